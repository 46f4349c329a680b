//! The service's part when nobody conducts: it charges what is reserved, refunds what is cancelled, and tells what it did.

use mainstay::saga::{Direction, Key, SagaId};
use order_broker::Queue;
use order_kit::{
    BoxError, Context,
    events::{self, Envelope, Trouble},
};

use crate::{
    payments::Payments,
    wire::{ALREADY_COMPENSATED, Charge, OrderToRefund, ReservedOrder, heard},
};

/// The one queue, so that the events of an order keep their order.
const QUEUE: &str = "payments.saga";
/// How many orders are handled at once: as many as the provider is asked at once.
const PARALLEL: u16 = 10;
/// The step, as the saga calls it: what was charged for a saga is not charged again for an event.
const STEP: &str = "charge-card";

/// What it wants to hear.
pub fn queue() -> Queue {
    events::patient(QUEUE).bind(heard::INVENTORY_RESERVED).bind(heard::ORDER_CANCELLED)
}

pub(crate) async fn start(context: &Context, payments: &Payments) -> Result<(), BoxError> {
    let payments = payments.clone();
    events::consume(context, queue(), PARALLEL, move |event| {
        let payments = payments.clone();
        async move { handle(&payments, event).await }
    })
    .await?;
    Ok(())
}

async fn handle(payments: &Payments, event: Envelope) -> Result<(), Trouble> {
    let seen = Some((QUEUE, event.id.clone()));
    match event.kind.as_str() {
        heard::INVENTORY_RESERVED => {
            let ReservedOrder { order_id, user_id, total } = event.data()?;
            let key = key(&order_id, Direction::Do)?;
            match payments.charge(key, Charge { order_id, user_id, amount: total }, seen).await {
                // Cancelled in the meantime, and whoever did so has told.
                Err(error) if error.message == ALREADY_COMPENSATED => Ok(()),
                charged => Ok(charged.map(drop)?),
            }
        }
        heard::ORDER_CANCELLED => {
            let OrderToRefund { order_id } = event.data()?;
            let key = key(&order_id, Direction::Undo)?;
            Ok(payments.refund(key, order_id, seen).await.map(drop)?)
        }
        other => Err(Trouble::Poison(format!("{other} is none of the events that concern payments"))),
    }
}

fn key(order_id: &str, direction: Direction) -> Result<Key, Trouble> {
    let poison = |error: &dyn std::fmt::Display| Trouble::Poison(error.to_string());
    let saga = SagaId::new(order_id).map_err(|error| poison(&error))?;
    Key::new(&saga, STEP, direction).map_err(|error| poison(&error))
}
