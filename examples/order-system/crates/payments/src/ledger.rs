//! The ledger, and what is written together with it.

use mainstay::saga::{
    Direction, Key,
    barrier::{Action, Compensation},
};
use order_kit::{ApiError, Cents, Tx, db::DbError, events};
use serde::Serialize;

use crate::{
    NAME,
    provider::Verdict,
    wire::{
        ALREADY_COMPENSATED, Charge, DECLINED, Declined, Entry, OrderPayments, Payment, PaymentCompleted,
        PaymentFailed, PaymentRefunded, Refunded, told,
    },
};

/// The tables. Whatever keys a caller may make up: an order has one charge and one refund at most.
pub(crate) const MIGRATION: &str = "
    create table entry (
        id {serial},
        payment_id text not null,
        order_id text not null,
        key text not null,
        amount bigint not null check (amount <> 0),
        at bigint not null
    );
    create unique index entry_charge on entry (order_id) where amount > 0;
    create unique index entry_refund on entry (order_id) where amount < 0;
    create index entry_key on entry (key);
";

/// Of all entries of an order, which the two indexes for the one or the other kind do not serve.
pub(crate) const INDEX: &str = "create index entry_order on entry (order_id)";

/// Why a charge is not written.
#[derive(Debug)]
pub(crate) enum Unwritten {
    /// The order was charged under another key.
    AlreadyCharged,
    /// Anything else.
    Other(ApiError),
}

impl From<DbError> for Unwritten {
    fn from(error: DbError) -> Self {
        Unwritten::Other(error.into())
    }
}

/// Writes what the provider said of a charge, once for its key. A verdict is there unless the key's answer was seen before.
pub(crate) async fn charge(
    tx: &Tx<'_>,
    key: &Key,
    charge: &Charge,
    verdict: Option<Verdict>,
) -> Result<Action<Result<Payment, Declined>>, Unwritten> {
    let done = tx
        .once(key, async |tx| match verdict {
            Some(Verdict::Paid) => paid(tx, key, charge).await.map(Ok),
            Some(Verdict::Declined) => declined(tx, charge).await.map(Err),
            Some(Verdict::Withdrawn) => Err(Unwritten::Other(ApiError::conflict(ALREADY_COMPENSATED))),
            Some(Verdict::Other) => Err(used_otherwise()),
            None => Err(Unwritten::Other(ApiError::internal("the answer of a key has gone"))),
        })
        .await?;
    if let Action::Repeated(before) = &done {
        let (order, amount) = match before {
            Ok(payment) => (&payment.order_id, payment.amount),
            Err(declined) => (&declined.order_id, declined.amount),
        };
        if (order, amount) != (&charge.order_id, charge.amount) {
            return Err(used_otherwise());
        }
    }
    Ok(done)
}

fn used_otherwise() -> Unwritten {
    Unwritten::Other(ApiError::unprocessable("This key was used for another charge"))
}

async fn paid(tx: &Tx<'_>, key: &Key, charge: &Charge) -> Result<Payment, Unwritten> {
    let Charge { order_id, user_id, amount } = charge.clone();
    let payment_id = order_kit::new_id();
    match enter(tx, &payment_id, &order_id, key, amount).await {
        Err(DbError::NotUnique(_)) => return Err(Unwritten::AlreadyCharged),
        entered => entered?,
    }
    let event =
        PaymentCompleted { order_id: order_id.clone(), user_id, payment_id: payment_id.clone(), amount };
    for kind in [told::COMPLETED, told::RECEIVED] {
        tell(tx, kind, &order_id, &event).await?;
    }
    Ok(Payment { payment_id, order_id, amount, status: "charged".to_owned() })
}

async fn declined(tx: &Tx<'_>, charge: &Charge) -> Result<Declined, Unwritten> {
    let Charge { order_id, user_id, amount } = charge.clone();
    let event = PaymentFailed { order_id: order_id.clone(), user_id, amount, reason: DECLINED.to_owned() };
    tell(tx, told::FAILED, &order_id, &event).await?;
    Ok(Declined { error: DECLINED.to_owned(), order_id, amount })
}

/// Writes that a charge was taken back, once for its key; and if it was not made yet, it never will be.
pub(crate) async fn refund(
    tx: &Tx<'_>,
    key: &Key,
    order: &str,
) -> Result<(Compensation, Refunded), ApiError> {
    let action = key.with_phase(Direction::Do);
    let give_back = async |tx: &Tx<'_>, payment: Payment| {
        if payment.order_id != order {
            return Err(ApiError::unprocessable("This key was used for another order"));
        }
        enter(tx, &payment.payment_id, order, &action, Cents(-payment.amount.0)).await?;
        let event = PaymentRefunded {
            order_id: payment.order_id,
            payment_id: payment.payment_id,
            amount: payment.amount,
        };
        Ok(tell(tx, told::REFUNDED, order, &event).await?)
    };
    let done = tx.undo_once(key, give_back).await?;
    // The sum rather than what was done just now, so that the answer is the same each time.
    let sum = "select cast(coalesce(sum(amount), 0) as bigint) from entry where key = $1 and amount < 0";
    let row = tx.first(sum, &[action.to_string().into()]).await?;
    let given_back = row.map_or(Ok(0), |row| row.int(0))?;
    let answer =
        Refunded { order_id: order.to_owned(), refunded: Cents(-given_back), status: "refunded".to_owned() };
    Ok((done, answer))
}

async fn enter(tx: &Tx<'_>, payment: &str, order: &str, key: &Key, amount: Cents) -> Result<(), DbError> {
    tx.execute(
        "insert into entry (payment_id, order_id, key, amount, at) values ($1, $2, $3, $4, $5)",
        &[payment.into(), order.into(), key.to_string().into(), amount.into(), order_kit::now_ms().into()],
    )
    .await
    .map(drop)
}

async fn tell<T: Serialize>(tx: &Tx<'_>, kind: &str, order: &str, data: &T) -> Result<(), DbError> {
    events::emit(tx, NAME, kind, order, data).await.map(drop)
}

/// Whether the order was charged under another key.
pub(crate) async fn charged_otherwise(tx: &Tx<'_>, order: &str, key: &Key) -> Result<bool, DbError> {
    let sql = "select 1 from entry where order_id = $1 and key <> $2 limit 1";
    Ok(tx.first(sql, &[order.into(), key.to_string().into()]).await?.is_some())
}

/// All that was moved for an order.
pub(crate) async fn of_order(tx: &Tx<'_>, order: &str) -> Result<OrderPayments, DbError> {
    let sql = "select payment_id, amount, at from entry where order_id = $1 order by id";
    let mut found = OrderPayments {
        order_id: order.to_owned(),
        charged: Cents(0),
        refunded: Cents(0),
        entries: Vec::new(),
    };
    for row in tx.query(sql, &[order.into()]).await? {
        let amount = row.int(1)?;
        let kind = if amount > 0 { "charge" } else { "refund" };
        let sum = if amount > 0 { &mut found.charged } else { &mut found.refunded };
        sum.0 = sum.0.saturating_add(amount.saturating_abs());
        found.entries.push(Entry {
            payment_id: row.text(0)?,
            kind: kind.to_owned(),
            amount: Cents(amount),
            at: order_kit::iso(row.int(2)?),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use order_kit::{Db, db::Place};

    use super::*;

    /// The shop does not grow slower with its books.
    #[tokio::test]
    async fn an_orders_entries_are_found_by_an_index() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Sqlite(folder.path().join("it.db"));
        let db = Db::open(place, crate::MIGRATIONS).await.unwrap();
        for asked in [
            "select 1 from entry where order_id = 'it' and key <> 'it' limit 1",
            "select payment_id, amount, at from entry where order_id = 'it' order by id",
        ] {
            let plan = db
                .read(async move |tx| tx.query(&format!("explain query plan {asked}"), &[]).await)
                .await
                .unwrap_or_else(|error: DbError| panic!("{error}"));
            let plan: Vec<String> = plan.iter().map(|row| row.text(3).unwrap()).collect();
            assert!(plan[0].contains("USING INDEX entry_order"), "{plan:?}");
        }
    }
}
