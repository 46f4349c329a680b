//! Orders that nobody moves on but the events of others: `SAGA_STYLE=choreography`.
//!
//! | event | the order |
//! |---|---|
//! | `payment.completed` | is confirmed |
//! | `payment.failed` | is cancelled: `card_declined` |
//! | `inventory.reservation.failed` | is cancelled: `out_of_stock` |
//! | none of them, until the deadline | is cancelled: `timed_out` |
//!
//! An order that was accepted while users did not answer is validated when it is paid, and not before anybody is asked as in a saga: what is
//! told to all when it is accepted, `order.created`, is what the inventory goes by. If there is no such user, it is cancelled:
//! `unknown_user`.
//!
//! Whoever hears `order.cancelled` gives back what was taken. What comes too late finds the order decided, and changes nothing: the keys of
//! the barrier are those that a saga would have.

use std::time::Duration;

use order_broker::Queue;
use order_kit::{
    BoxError, Context,
    events::{self, Envelope, Trouble},
    now_ms,
};

use crate::{
    steps::UNKNOWN_USER,
    store::{Decided, Order, Store},
    users::{Directory, Known},
    wire::{AboutOrder, PAYMENT_COMPLETED, PAYMENT_FAILED, RESERVATION_FAILED},
};

/// The queue of what moves orders on.
pub const QUEUE: &str = "orders.choreography";
/// How many orders are looked at at once.
const PAGE: i64 = 200;

/// What it wants to hear.
pub fn queue() -> Queue {
    events::patient(QUEUE).bind(PAYMENT_COMPLETED).bind(PAYMENT_FAILED).bind(RESERVATION_FAILED)
}

/// Listens to payments and the inventory, and looks for orders that nothing has been heard of for too long.
pub(crate) async fn start(
    context: &Context,
    store: &Store,
    users: &Directory,
    deadline: Duration,
) -> Result<(), BoxError> {
    let (orders, directory) = (store.clone(), users.clone());
    events::consume(context, queue(), 16, move |envelope| {
        let (orders, directory) = (orders.clone(), directory.clone());
        async move { hear(&orders, &directory, envelope).await }
    })
    .await?;
    let (store, stop) = (store.clone(), context.stop().clone());
    let every = (deadline / 20).clamp(Duration::from_millis(20), Duration::from_secs(10));
    context.spawn(async move {
        while !stop.is_cancelled() {
            if let Err(error) = time_out(&store, deadline).await {
                tracing::warn!(%error, "orders that take too long could not be cancelled");
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = stop.cancelled() => {}
            }
        }
    });
    Ok(())
}

async fn hear(store: &Store, users: &Directory, envelope: Envelope) -> Result<(), Trouble> {
    if ![PAYMENT_COMPLETED, PAYMENT_FAILED, RESERVATION_FAILED].contains(&envelope.kind.as_str()) {
        return Ok(());
    }
    let AboutOrder { order_id, reason } = envelope.data()?;
    // The order's row was committed before its event was, so nobody can have heard of one that is not there.
    let Some(order) = store.find(&order_id).await? else {
        return Err(Trouble::Poison(format!("there is no order {order_id}")));
    };
    let decided = match envelope.kind.as_str() {
        PAYMENT_COMPLETED => paid(store, users, &order).await?,
        PAYMENT_FAILED => store.cancel(&order_id, reason.as_deref().unwrap_or("card_declined")).await?,
        _ => store.cancel(&order_id, reason.as_deref().unwrap_or("out_of_stock")).await?,
    };
    if decided == Decided::Otherwise {
        tracing::info!(order_id, event = envelope.kind, "an event came too late");
    }
    Ok(())
}

/// Confirms an order, unless its user turns out to be none.
async fn paid(store: &Store, users: &Directory, order: &Order) -> Result<Decided, Trouble> {
    if !order.user_known {
        match users.validate(&order.user_id).await {
            Known::Yes => {}
            Known::No => return Ok(store.cancel(&order.id, UNKNOWN_USER).await?),
            Known::Unknown(_) => return Err(Trouble::Later("the user service does not answer".to_owned())),
        }
    }
    Ok(store.confirm(&order.id).await?)
}

/// Cancels what has been open for longer than an order may take.
async fn time_out(store: &Store, deadline: Duration) -> Result<(), order_kit::db::DbError> {
    let before = now_ms().saturating_sub(i64::try_from(deadline.as_millis()).unwrap_or(i64::MAX));
    // Ids grow with the time, so the first ones are the oldest; what is cancelled is no longer among them.
    loop {
        let late = store.open("", before, PAGE).await?;
        for order in &late {
            store.cancel(&order.id, "timed_out").await?;
        }
        if late.len() < PAGE as usize {
            return Ok(());
        }
    }
}
