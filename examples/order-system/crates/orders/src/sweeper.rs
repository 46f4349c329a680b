//! Starts the sagas whose start was lost: the order was accepted, and the process died, or was busy.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mainstay::saga::StartError;
use order_kit::{Context, now_ms};
use tokio::sync::mpsc;

use crate::{
    saga::Engine,
    store::{Order, Store},
};

/// How old an order is when its saga is missed.
const MISSED: Duration = Duration::from_secs(5);
/// How often it is looked.
const EVERY: Duration = Duration::from_secs(2);
/// After how many looks all open orders are looked at again, not only those that are new.
const ALL: u32 = 150;
const PAGE: i64 = 500;

/// The first of the orders whose sagas could not be started, however many they are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Missed(Arc<Mutex<Option<String>>>);

impl Missed {
    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An order's saga could not be started.
    pub(crate) fn one(&self, order: &str) {
        let mut first = self.lock();
        if first.as_deref().is_none_or(|first| order < first) {
            *first = Some(order.to_owned());
        }
    }

    /// A place before all of them, to go on from; they are not remembered any more.
    fn before(&self) -> Option<String> {
        let mut first = self.lock().take()?;
        // Without its last letter it stands before itself, and hardly before anything else.
        first.pop();
        Some(first)
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
            if let Some(first) = missed.before() {
                (after, age) = (after.min(first), Duration::ZERO);
            }
            after = sweep(&orders, &sagas, after, age).await;
            age = MISSED;
            looks += 1;
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
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

/// Deals with open orders behind `after` that are of that age. Returns the last one up to which all are: what is behind it, for which there
/// was no room or no database, is the next look's.
async fn sweep(store: &Store, engine: &Engine, mut after: String, age: Duration) -> String {
    let before = now_ms().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(0));
    loop {
        let page = match open(store, engine, &after, before).await {
            Ok(page) if page.is_empty() => return after,
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%error, "open orders could not be looked at");
                return after;
            }
        };
        for (order, under_way) in page {
            if !under_way {
                match begin(store, engine, &order.id).await {
                    Ok(()) => {}
                    Err(Missing::Later(error)) => {
                        tracing::debug!(%error, order = order.id, "a saga could not be started yet");
                        return after;
                    }
                    // It will not be otherwise at the next look, and must not keep the others from being looked at.
                    Err(Missing::Never(error)) => {
                        tracing::error!(%error, order = order.id, "a saga cannot be started");
                    }
                }
                if let Err(error) = close(store, engine, &order.id).await {
                    tracing::warn!(%error, order = order.id, "whether a saga is over could not be seen");
                    return after;
                }
            }
            after = order.id;
        }
    }
}

/// Why a saga is missing still.
enum Missing {
    Later(order_kit::BoxError),
    Never(StartError),
}

/// Begins the saga of an order that is open. It is looked at once more: others of its page were begun meanwhile, which takes its time, and
/// what a customer has cancelled by now must not be paid for.
async fn begin(store: &Store, engine: &Engine, id: &str) -> Result<(), Missing> {
    let order = store.find(id).await.map_err(|error| Missing::Later(error.into()))?;
    let Some(order) = order.filter(|order| !order.status.is_final()) else { return Ok(()) };
    engine.begin(&order).await.map_err(|error| match error {
        StartError::Busy(_) | StartError::Closed | StartError::Store(_) => Missing::Later(error.into()),
        other => Missing::Never(other),
    })
}

/// A page of open orders, and of each whether its saga is under way: those take nothing but the two pages, however many they are.
async fn open(
    store: &Store,
    engine: &Engine,
    after: &str,
    before: i64,
) -> Result<Vec<(Order, bool)>, order_kit::BoxError> {
    let orders = store.open(after, before, PAGE).await?;
    let Some(last) = orders.last() else { return Ok(Vec::new()) };
    let under_way = engine.under_way(after, &last.id).await?;
    let known = |order: Order| {
        let known = under_way.contains(&order.id);
        (order, known)
    };
    Ok(orders.into_iter().map(known).collect())
}

/// Cancels an order whose saga was turned round before its first step was tried: there was nothing to compensate then.
async fn close(store: &Store, engine: &Engine, order: &str) -> Result<(), order_kit::BoxError> {
    let open = store.find(order).await?.is_some_and(|order| !order.status.is_final());
    if open && let Some(reason) = engine.turned_round(order).await? {
        store.cancel(order, &reason).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use order_kit::{Cents, Db, env};

    use super::*;
    use crate::{
        order::{Item, Status},
        steps::Steps,
        store::{self, Placed},
        users::Directory,
    };

    fn order(number: i64) -> Order {
        Order {
            id: format!("order-{number:03}"),
            user_id: "ada".to_owned(),
            items: vec![Item { product_id: "lamp".to_owned(), quantity: 1, price: Cents(10) }],
            total: Cents(10),
            status: Status::Pending,
            reason: None,
            user_known: true,
            correlation: "c".to_owned(),
            traceparent: None,
            version: 1,
            created_at: now_ms() - 1,
            updated_at: now_ms(),
        }
    }

    #[tokio::test]
    async fn what_was_started_is_not_started_over_when_there_is_no_room_for_the_next() {
        let data = tempfile::tempdir().unwrap();
        // Who asks there waits, so that no order comes to an end, and none gives up its place meanwhile.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = format!("http://{}", listener.local_addr().unwrap());
        let env = [env::USER_SERVICE_URL, env::INVENTORY_SERVICE_URL, env::PAYMENT_SERVICE_URL]
            .into_iter()
            .fold(order_kit::env::Env::empty(), |env, url| env.with(url, &silent));
        let broker = order_broker::open("memory:").await.unwrap();
        let ports = Arc::new(order_kit::context::Ports(3_000));
        let context = Context::new(crate::NAME, env, data.path(), broker, ports);
        let db = Db::open(crate::place(&context, crate::NAME), store::MIGRATIONS).await.unwrap();
        let store = Store::new(db);
        let users = Directory::new(&context).unwrap();
        let steps = Steps::new(&context, store.clone(), users).unwrap();
        let (tell, _turned) = mpsc::unbounded_channel();
        let hour = Duration::from_secs(3_600);
        let engine = Engine::start(&context, &steps, hour, 3, tell).await.unwrap();
        for number in 0..5 {
            let placed = store.place(order(number), None).await.unwrap();
            assert!(matches!(placed, Placed::New));
        }

        // One of them is cancelled between the look at the page and its turn.
        assert!(matches!(store.place(order(9), None).await.unwrap(), Placed::New));
        store.cancel("order-009", "not_wanted").await.unwrap();
        assert!(begin(&store, &engine, "order-009").await.is_ok());
        assert!(engine.under_way("", "order-009").await.unwrap().is_empty());

        let ago = Duration::ZERO;
        let after = sweep(&store, &engine, String::new(), ago).await;
        assert_eq!(after, "order-002", "three have begun, and there is no room for the fourth");
        let under_way = engine.under_way("", "order-004").await.unwrap();
        assert_eq!(under_way.len(), 3);
        assert_eq!(engine.under_way("order-000", "order-001").await.unwrap().len(), 1);

        // One that has not begun can be cancelled all the same, and is not begun any more.
        let fourth = store.find("order-003").await.unwrap().unwrap();
        engine.call_off(&store, &fourth, "not_wanted").await.unwrap();
        let cancelled = store.find("order-003").await.unwrap().unwrap();
        assert_eq!((cancelled.status, cancelled.reason.as_deref()), (Status::Cancelled, Some("not_wanted")));
        assert!(
            store
                .open("order-002", now_ms(), PAGE)
                .await
                .unwrap()
                .iter()
                .all(|order| order.id == "order-004")
        );

        let missed = Missed::default();
        for one in ["order-004", "order-001", "order-003"] {
            missed.one(one);
        }
        let back = missed.before().unwrap();
        assert!(back.as_str() < "order-001" && back.as_str() > "order-", "{back}");
        assert_eq!(sweep(&store, &engine, back, ago).await, "order-002");
        assert_eq!(missed.before(), None);
        context.stop().cancel();
        context.finished().await;
    }
}
