//! Whether the books are right: no order charged twice, none given back more than it paid, and the provider has what the ledger says.

use std::collections::BTreeMap;

use order_kit::{ApiError, Cents, Db, Tx, context::Page, db::DbError};
use serde::{Deserialize, Serialize};

use crate::provider;

/// How many keys are named where ledger and provider differ.
const NAMED: usize = 20;

/// What the audit says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// All books together, with the first page only: they are read from end to end.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub whole: Option<Whole>,
    /// One page of orders, by their ids.
    pub orders: Vec<OrderSum>,
    /// What to ask for the next page with; nothing after the last.
    pub next: Option<String>,
}

/// All books together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Whole {
    /// Whether nobody was charged twice or given back too much, and ledger and provider agree.
    pub ok: bool,
    /// All charges.
    pub charged: Cents,
    /// All refunds.
    pub refunded: Cents,
    /// Orders with more than one charge.
    pub charged_twice: Vec<String>,
    /// Orders that were given back more than they paid.
    pub over_refunded: Vec<String>,
    /// What the provider has taken and not given back.
    pub taken: Cents,
    /// Keys for which ledger and provider differ, twenty at most. A charge that is just being made is among them for a moment, and
    /// so is one that nobody has asked for again after its answer was lost.
    pub unsettled: Vec<String>,
}

/// What was moved for an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderSum {
    /// Which.
    pub order_id: String,
    /// The sum of its charges.
    pub charged: Cents,
    /// The sum of its refunds.
    pub refunded: Cents,
    /// How many charges.
    pub charges: i64,
}

/// Looks at the books: one page of orders, and with the first one the whole.
///
/// # Errors
///
/// The database's.
pub async fn audit(db: Db, page: Page) -> Result<Audit, ApiError> {
    Ok(db.read(async move |tx| look(tx, &page).await).await?)
}

async fn look(tx: &Tx<'_>, page: &Page) -> Result<Audit, DbError> {
    let after = page.after.as_deref().unwrap_or_default();
    let whole = if after.is_empty() { Some(whole(tx).await?) } else { None };
    let orders = sums(tx, after, page.limit()).await?;
    let full = i64::try_from(orders.len()) == Ok(page.limit());
    let next = orders.last().filter(|_| full).map(|order| order.order_id.clone());
    Ok(Audit { whole, orders, next })
}

async fn whole(tx: &Tx<'_>) -> Result<Whole, DbError> {
    let (mut charged, mut refunded) = (Cents(0), Cents(0));
    let (mut charged_twice, mut over_refunded) = (Vec::new(), Vec::new());
    for order in sums(tx, "", i64::MAX).await? {
        charged.0 += order.charged.0;
        refunded.0 += order.refunded.0;
        if order.charges > 1 {
            charged_twice.push(order.order_id.clone());
        }
        if order.refunded > order.charged {
            over_refunded.push(order.order_id);
        }
    }
    let taken: BTreeMap<String, Cents> = provider::taken(tx).await?.into_iter().collect();
    let unsettled = differences(&kept(tx).await?, &taken);
    Ok(Whole {
        ok: charged_twice.is_empty() && over_refunded.is_empty() && unsettled.is_empty(),
        charged,
        refunded,
        charged_twice,
        over_refunded,
        taken: taken.values().copied().sum(),
        unsettled,
    })
}

async fn sums(tx: &Tx<'_>, after: &str, limit: i64) -> Result<Vec<OrderSum>, DbError> {
    let rows = tx
        .query(
            "select order_id,
                 cast(coalesce(sum(case when amount > 0 then amount end), 0) as bigint),
                 cast(coalesce(sum(case when amount < 0 then -amount end), 0) as bigint),
                 count(case when amount > 0 then 1 end)
             from entry where order_id > $1 group by order_id order by order_id limit $2",
            &[after.into(), limit.into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let (charged, refunded) = (Cents(row.int(1)?), Cents(row.int(2)?));
            Ok(OrderSum { order_id: row.text(0)?, charged, refunded, charges: row.int(3)? })
        })
        .collect()
}

/// What the ledger has of each key, refunds subtracted.
async fn kept(tx: &Tx<'_>) -> Result<BTreeMap<String, Cents>, DbError> {
    let sql = "select key, cast(sum(amount) as bigint) from entry group by key having sum(amount) <> 0";
    let rows = tx.query(sql, &[]).await?;
    rows.iter().map(|row| Ok((row.text(0)?, Cents(row.int(1)?)))).collect()
}

fn differences(kept: &BTreeMap<String, Cents>, taken: &BTreeMap<String, Cents>) -> Vec<String> {
    let keys = kept.keys().chain(taken.keys().filter(|key| !kept.contains_key(*key)));
    keys.filter(|key| kept.get(*key) != taken.get(*key)).take(NAMED).cloned().collect()
}
