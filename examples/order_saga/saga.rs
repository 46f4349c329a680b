//! The order of an order: what comes after what, and what undoes it.

use std::time::Duration;

use mainstay::{
    Retry,
    saga::{Output, Saga},
};

use crate::{
    Error,
    services::{Purchase, Shop},
};

/// What a finished order comes to: its receipt.
pub type OrderSaga = Saga<Purchase, Output<i64>>;

pub fn order(shop: &'static Shop) -> Result<OrderSaga, Error> {
    let Shop { orders, stock, payments } = shop;
    let again = || Retry::exponential(Duration::from_millis(20)).max_attempts(3).no_budget().idempotent();
    let payment = mainstay::stack("payment").retry(again()).timeout(Duration::from_millis(500)).build()?;
    let release = mainstay::stack("release").retry(again()).timeout(Duration::from_secs(5)).build()?;

    let mut saga = Saga::define::<Purchase>("order", 1);
    let created = saga
        .step("create-order", (), |order, ()| orders.create(order))
        .compensate(|order, (), _| orders.cancel(order));
    let reserved = saga
        .step("reserve-stock", created, |order, ()| stock.reserve(order))
        .undo_through(release)
        .compensate(|order, (), _| stock.release(order));
    let charged = saga
        .step("charge-card", reserved, |order, _| payments.charge(order))
        .through(payment)
        .compensate(|order, _, _| payments.refund(order));
    // It may say no, so it has to be able to tell afterwards whether it did.
    let confirmed = saga
        .pivot("confirm-order", charged, |order, _| orders.confirm(order))
        .verify(|order, _| orders.is_confirmed(order))
        .add();
    saga.retriable("send-receipt", (charged, confirmed), |order, (receipt, ())| {
        orders.send_receipt(order, receipt)
    })
    .add();
    Ok(saga.build(charged)?)
}
