//! What the ledgers have to say when everything is over.

use std::{collections::HashSet, path::Path};

use mainstay::saga::{
    Phase,
    journal::{Head, Journal, Query},
};
use rusqlite::Connection;

use crate::{Error, evidence, saga::OrderSaga};

/// Sagas by how they ended, and those that have not.
#[derive(Debug, Default)]
pub struct Sagas {
    pub completed: Vec<String>,
    pub compensated: Vec<String>,
    pub others: Vec<Head>,
    /// How often a saga was taken over from another orchestrator.
    pub moves: u64,
}

/// Reads all heads, a page at a time.
pub async fn sagas(store: &dyn Journal) -> Result<Sagas, Error> {
    let mut sagas = Sagas::default();
    let mut query = Query { limit: 1_000, ..Query::default() };
    loop {
        let heads = store.list(query.clone()).await?;
        let Some(last) = heads.last() else { return Ok(sagas) };
        query.after = Some(last.id.clone());
        for head in heads {
            sagas.moves += head.epoch.saturating_sub(1);
            match head.phase {
                Phase::Completed => sagas.completed.push(head.id.to_string()),
                Phase::Compensated => sagas.compensated.push(head.id.to_string()),
                _ => sagas.others.push(head),
            }
        }
    }
}

/// The number of promises that were broken; `accepted` are the sagas whose start somebody was told of.
pub async fn audit(
    data: &Path,
    store: &dyn Journal,
    order: &OrderSaga,
    accepted: &HashSet<String>,
) -> Result<usize, Error> {
    let sagas = sagas(store).await?;
    let database = Connection::open(data.join("orders.db"))?;
    for other in ["stock", "payments"] {
        let path = data.join(format!("{other}.db"));
        database.execute(&format!("attach ?1 as {other}"), [path.to_string_lossy()])?;
    }
    let number = |sql: &str| database.query_row(sql, [], |row| row.get::<_, i64>(0));
    let charged = number("select coalesce(sum(cents), 0) from payments.entry where cents > 0")?;
    let refunded = number("select coalesce(-sum(cents), 0) from payments.entry where cents < 0")?;
    let confirmed = number("select coalesce(sum(cents), 0) from purchase where state = 'confirmed'")?;
    // Money, goods and receipts of each order alone: sums could hide two faults behind each other.
    let wrong_money = number(
        "select count(*) from purchase left join (
             select purchase, count(*) filter (where cents > 0) as charges, sum(cents) as paid
             from payments.entry group by purchase
         ) on purchase = id
         where coalesce(charges, 0) > 1 or coalesce(paid, 0) <> iif(state = 'confirmed', cents, 0)",
    )?;
    let strangers =
        number("select count(*) from payments.entry where purchase not in (select id from purchase)")?;
    let wrong_stock = number(
        "select count(*) from stock.item where delivered <> free + (
             select coalesce(sum(quantity), 0) from purchase where item = name and state = 'confirmed'
         )",
    )?;
    let wrong_receipts = number(
        "select count(*) from purchase where iif(state = 'confirmed', 1, 0) <> (
             select count(*) from receipt where receipt.purchase = id
         )",
    )?;
    let open = number("select count(*) from purchase where state = 'open'")?;
    let in_state = |state: &str| number(&format!("select count(*) from purchase where state = '{state}'"));
    let (kept, given_up) = (in_state("confirmed")?, in_state("cancelled")?);

    let checked = evidence::check(data, &database, store, order, &sagas, accepted).await?;

    println!("\nThe audit");
    let mut broken = 0;
    let mut promise = |holds: bool, promise: &str, found: String| {
        println!("  {} {promise}: {found}", if holds { "yes" } else { "NO " });
        broken += usize::from(!holds);
    };
    promise(
        charged - refunded == confirmed,
        "charged - refunded = confirmed",
        format!("{} - {} = {}", euros(charged), euros(refunded), euros(confirmed)),
    );
    promise(
        wrong_money + strangers == 0,
        "no order was charged twice, or charged and not confirmed",
        format!("{wrong_money} wrong orders, {strangers} entries of no order"),
    );
    promise(wrong_stock == 0, "every item is free or sold", format!("{wrong_stock} wrong items"));
    promise(wrong_receipts == 0, "each confirmed order has one receipt", format!("{wrong_receipts} wrong"));
    promise(
        sagas.others.is_empty() && open == 0,
        "every saga is over",
        format!("{} sagas are not, {open} orders are open", sagas.others.len()),
    );
    for head in sagas.others.iter().take(10) {
        println!("      {} is {}, in its {} entries: {}", head.id, head.phase, head.len, head.note);
    }
    let ended = (sagas.completed.len(), sagas.compensated.len());
    promise(
        (i64::try_from(ended.0)?, given_up <= i64::try_from(ended.1)?) == (kept, true),
        "completed sagas are the confirmed orders",
        format!("{} completed, {} compensated; {kept} confirmed, {given_up} cancelled", ended.0, ended.1),
    );
    promise(
        checked.wrong == 0,
        "records, calls and effects keep the invariants",
        format!(
            "{} of {} sagas do not, by {} calls, {} of which were late ones of former owners",
            checked.wrong, checked.sagas, checked.calls, checked.late
        ),
    );
    Ok(broken)
}

fn euros(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}
