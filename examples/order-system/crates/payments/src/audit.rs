//! Whether the books are right: no order charged twice, none given back more than it paid, and the provider has what the ledger says.

use order_kit::{ApiError, Cents, Db, Tx, context::Page, db::DbError};
use serde::{Deserialize, Serialize};

use crate::provider;

/// How many orders or keys are named of each kind that is wrong.
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
    /// Orders with more than one charge, twenty at most.
    pub charged_twice: Vec<String>,
    /// Orders that were given back more than they paid, twenty at most.
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

/// By the database alone, which goes through the books from end to end: here is nothing that grows with them.
async fn whole(tx: &Tx<'_>) -> Result<Whole, DbError> {
    let sql = "select cast(coalesce(sum(case when amount > 0 then amount end), 0) as bigint),
                 cast(coalesce(sum(case when amount < 0 then -amount end), 0) as bigint)
             from entry";
    let (charged, refunded) =
        tx.first(sql, &[]).await?.map_or(Ok((0, 0)), |row| Ok::<_, DbError>((row.int(0)?, row.int(1)?)))?;
    let orders = async |having: &'static str| {
        let sql = format!(
            "select order_id from entry group by order_id having {having} order by order_id limit {NAMED}"
        );
        names(tx, &sql).await
    };
    let charged_twice = orders("count(case when amount > 0 then 1 end) > 1").await?;
    let over_refunded = orders("sum(amount) < 0").await?;
    let theirs = provider::taken();
    let unsettled = names(
        tx,
        &format!(
            "select key from entry group by key
             having sum(amount) <> coalesce((select money from ({theirs}) taken where taken.key = entry.key), 0)
             union all
             select key from ({theirs}) taken where not exists (select 1 from entry where entry.key = taken.key)
             order by key limit {NAMED}"
        ),
    )
    .await?;
    let sql = format!("select cast(coalesce(sum(money), 0) as bigint) from ({theirs}) taken");
    let taken = tx.first(&sql, &[]).await?.map_or(Ok(0), |row| row.int(0))?;
    Ok(Whole {
        ok: charged_twice.is_empty() && over_refunded.is_empty() && unsettled.is_empty(),
        charged: Cents(charged),
        refunded: Cents(refunded),
        charged_twice,
        over_refunded,
        taken: Cents(taken),
        unsettled,
    })
}

async fn names(tx: &Tx<'_>, sql: &str) -> Result<Vec<String>, DbError> {
    tx.query(sql, &[]).await?.iter().map(|row| row.text(0)).collect()
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
