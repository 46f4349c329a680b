//! Starts the sagas whose start was lost: the order was accepted, and the process died, or was busy.

use std::{sync::Arc, time::Duration};

use order_kit::{Context, db::DbError, now_ms};
use tokio::sync::{Notify, mpsc};

use crate::{saga::Engine, store::Store};

/// How old an order is when its saga is missed.
const MISSED: Duration = Duration::from_secs(5);
/// How often it is looked.
const EVERY: Duration = Duration::from_secs(2);
/// After how many looks all open orders are looked at again, not only those that are new.
const ALL: u32 = 150;
const PAGE: i64 = 500;

/// Wakes the sweeper.
#[derive(Debug, Clone, Default)]
pub(crate) struct Missed(Arc<Notify>);

impl Missed {
    /// An order's saga could not be started.
    pub(crate) fn one(&self) {
        self.0.notify_one();
    }
}

/// Looks at all open orders at once, then at those that come, and at what has `turned`.
pub(crate) fn start(
    context: &Context,
    store: Store,
    engine: Engine,
    missed: Missed,
    mut turned: mpsc::UnboundedReceiver<String>,
) {
    let stop = context.stop().clone();
    let (orders, sagas) = (store.clone(), engine.clone());
    context.spawn(async move {
        let (mut after, mut looks) = (String::new(), 0);
        let mut age = Duration::ZERO;
        while !stop.is_cancelled() {
            match sweep(&orders, &sagas, &after, age).await {
                Ok(Swept { last, complete }) => after = if complete { last } else { after },
                Err(error) => tracing::warn!(%error, "open orders could not be looked at"),
            }
            age = MISSED;
            looks += 1;
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = missed.0.notified() => {
                    after.clear();
                    tokio::select! {
                        () = tokio::time::sleep(EVERY) => {}
                        () = stop.cancelled() => {}
                    }
                }
                () = stop.cancelled() => {}
            }
            if looks % ALL == 0 {
                after.clear();
            }
        }
    });
    let stop = context.stop().clone();
    context.spawn(async move {
        loop {
            let order = tokio::select! {
                order = turned.recv() => order,
                () = stop.cancelled() => None,
            };
            let Some(order) = order else { return };
            if let Err(error) = close(&store, &engine, &order).await {
                tracing::warn!(%error, order, "whether an order is closed could not be seen");
            }
        }
    });
}

struct Swept {
    /// The last order that was looked at.
    last: String,
    /// Whether each was dealt with.
    complete: bool,
}

async fn sweep(store: &Store, engine: &Engine, after: &str, age: Duration) -> Result<Swept, DbError> {
    let before = now_ms().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(0));
    let mut swept = Swept { last: after.to_owned(), complete: true };
    loop {
        let page = store.open(&swept.last, before, PAGE).await?;
        for order in &page {
            if let Err(error) = engine.begin(order).await {
                tracing::debug!(%error, order = order.id, "a saga could not be started yet");
                swept.complete = false;
                return Ok(swept);
            }
            if let Err(error) = close(store, engine, &order.id).await {
                tracing::warn!(%error, order = order.id, "whether a saga is over could not be seen");
                swept.complete = false;
            }
        }
        match page.last() {
            Some(last) => swept.last = last.id.clone(),
            None => return Ok(swept),
        }
    }
}

/// Cancels an order whose saga was turned round before its first step was tried: there was nothing to compensate then.
async fn close(store: &Store, engine: &Engine, order: &str) -> Result<(), order_kit::BoxError> {
    let open = store.find(order).await?.is_some_and(|order| !order.status.is_final());
    if open && let Some(reason) = engine.turned_round(order).await? {
        store.cancel(order, &reason).await?;
    }
    Ok(())
}
