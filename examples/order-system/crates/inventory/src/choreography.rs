//! The inventory's part when nobody conducts: it hears of orders and payments, and tells what it did.
//!
//! Each event is handled in one transaction with its entry in the inbox, the step's key and what is told. An event that comes again does
//! nothing, and so does one that comes too late: whoever cancelled first has taken the key.

use mainstay::saga::{Direction, barrier::Action};
use order_broker::Queue;
use order_kit::{
    ApiError, BoxError, Context, Db, Tx,
    events::{self, Envelope, Trouble},
};

use crate::{
    stock::{self, COMMIT, Demand, RESERVE},
    wire::{ALREADY_COMPENSATED, Wanted, WhichOrder, heard},
};

/// The one queue, so that the events of an order keep their order.
const QUEUE: &str = "inventory.saga";
/// How many orders are handled at once.
const PARALLEL: u16 = 8;

/// What it wants to hear.
pub fn queue() -> Queue {
    events::patient(QUEUE)
        .bind(heard::ORDER_CREATED)
        .bind(heard::ORDER_CONFIRMED)
        .bind(heard::ORDER_CANCELLED)
        .bind(heard::PAYMENT_FAILED)
}

pub(crate) async fn start(context: &Context, db: &Db) -> Result<(), BoxError> {
    let db = db.clone();
    events::consume(context, queue(), PARALLEL, move |event| {
        let db = db.clone();
        async move { handle(&db, event).await }
    })
    .await?;
    Ok(())
}

async fn handle(db: &Db, event: Envelope) -> Result<(), Trouble> {
    match event.kind.as_str() {
        heard::ORDER_CREATED => {
            let demand = Demand::new(event.data::<Wanted>()?)?;
            let key = stock::key(demand.order_id(), RESERVE, Direction::Do)?;
            once(db, &event, async move |tx| stock::reserve(tx, &key, &demand).await.map(drop)).await
        }
        heard::ORDER_CANCELLED | heard::PAYMENT_FAILED => {
            let WhichOrder { order_id } = event.data()?;
            let key = stock::key(&order_id, RESERVE, Direction::Undo)?;
            once(db, &event, async move |tx| stock::release(tx, &key, &order_id).await.map(drop)).await
        }
        heard::ORDER_CONFIRMED => {
            let WhichOrder { order_id } = event.data()?;
            let key = stock::key(&order_id, COMMIT, Direction::Do)?;
            once(db, &event, async move |tx| match stock::commit(tx, &key, &order_id).await? {
                Action::Done(Ok(_)) | Action::Repeated(Ok(_)) => Ok(()),
                // An error, so that nothing of it is kept and a person can hand the event in again.
                _ => Err(ApiError::conflict(ALREADY_COMPENSATED)),
            })
            .await
        }
        other => Err(Trouble::Poison(format!("{other} is none of the inventory's events"))),
    }
}

async fn once(
    db: &Db,
    event: &Envelope,
    work: impl for<'t> AsyncFnOnce(&'t Tx<'t>) -> Result<(), ApiError> + Send + 'static,
) -> Result<(), Trouble> {
    let id = event.id.clone();
    db.write(async move |tx| if tx.inbox(QUEUE, &id).await? { work(tx).await } else { Ok(()) })
        .await
        .map_err(early_is_later)
}

/// An order that is confirmed before it is reserved here is only early.
fn early_is_later(error: ApiError) -> Trouble {
    if error.message == stock::NOT_RESERVED { Trouble::Later(error.to_string()) } else { error.into() }
}
