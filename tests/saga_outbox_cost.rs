//! How many rows the server passes over for a round of the outbox: a small multiple of the backlog, whatever plan it takes.
//!
//! The statements are the library's own, and what is counted is what `EXPLAIN ANALYZE` says of each node: rows that it handed on or threw away.
//! Times are told by the ignored part, for a backlog of 20,000:
//!
//! `cargo test --features postgres --test saga_outbox_cost -- --ignored --nocapture`
#![cfg(feature = "postgres")]
#![allow(missing_docs)]

use serde_json::Value;
use tokio_postgres::{Client, SimpleQueryMessage};

#[path = "support/postgres.rs"]
mod postgres;
#[allow(dead_code)]
#[path = "../src/saga/outbox/sql.rs"]
mod sql;
use postgres::Schema;

/// What is in the outbox, by the number `n` of a row and the backlog `$`.
const OUTBOXES: [(&str, &str); 7] = [
    ("one key", "(key) select 'a' from generate_series(1, $) n"),
    ("five keys", "(key) select n % 5 from generate_series(1, $) n"),
    ("a key each", "(key) select n from generate_series(1, $) n"),
    (
        "one key, and five times as much that was sent",
        "(key, sent) select 'a', case when n <= 5 * $ then now() end from generate_series(1, 6 * $) n",
    ),
    (
        "a parked head",
        "(key, parked) select 'a', case when n = 1 then now() end from generate_series(1, $) n",
    ),
    (
        "half parked",
        "(key, parked) select 'a', case when n <= $ / 2 then now() end from generate_series(1, $) n",
    ),
    (
        "a head that waits",
        "(key, due) select 'a', case when n = 1 then 'infinity' else '-infinity' end::timestamptz
         from generate_series(1, $) n",
    ),
];

/// Analysed or never, planned for its parameters or for any, with parked messages skipped or not.
const WAYS: [(bool, &str, bool); 8] = [
    (false, "force_custom_plan", false),
    (false, "force_custom_plan", true),
    (false, "force_generic_plan", false),
    (false, "force_generic_plan", true),
    (true, "force_custom_plan", false),
    (true, "force_custom_plan", true),
    (true, "force_generic_plan", false),
    (true, "force_generic_plan", true),
];

const LIMIT: usize = 100;

struct Explained {
    /// Rows that its nodes handed on or threw away.
    rows: f64,
    milliseconds: f64,
}

fn explained(plan: &Value) -> Explained {
    fn rows(node: &Value) -> f64 {
        let of = |name: &str| node[name].as_f64().unwrap_or(0.0);
        let removed =
            ["Filter", "Join Filter", "Index Recheck"].map(|by| of(&format!("Rows Removed by {by}")));
        let here = of("Actual Loops") * (of("Actual Rows") + removed.iter().sum::<f64>());
        here + node["Plans"].as_array().into_iter().flatten().map(rows).sum::<f64>()
    }
    let top = &plan[0];
    assert!(top["Plan"]["Actual Loops"].is_number(), "{plan}");
    Explained { rows: rows(&top["Plan"]), milliseconds: top["Execution Time"].as_f64().unwrap() }
}

async fn texts(client: &Client, statement: &str) -> Vec<String> {
    let answer = client.simple_query(statement).await.unwrap();
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap().to_owned()),
        _ => None,
    };
    answer.into_iter().filter_map(row).collect()
}

async fn explain(client: &Client, call: &str) -> Explained {
    let plan = texts(client, &format!("explain (analyze, format json) execute {call}")).await.concat();
    explained(&serde_json::from_str(&plan).unwrap())
}

/// What a round reads, for each way; its second statement only if the first one has found something.
async fn rounds(client: &Client, outbox: &str, backlog: usize, mut told: impl FnMut(&str, Explained)) {
    let insert = outbox.replace('$', &backlog.to_string()).replacen('(', "(topic, payload, ", 1).replacen(
        "select ",
        "select 'topic', '1', ",
        1,
    );
    client
        .batch_execute(&format!("truncate mainstay_outbox; insert into mainstay_outbox {insert}"))
        .await
        .unwrap();
    for (analysed, mode, skip) in WAYS {
        if analysed {
            client.batch_execute("analyze mainstay_outbox").await.unwrap();
        }
        client.batch_execute(&format!("set plan_cache_mode to {mode}; begin")).await.unwrap();
        let way = format!("{}analysed, {mode}, skip_parked {skip}", if analysed { "" } else { "never " });
        let first = format!("first({skip}, {LIMIT})");
        told(&format!("FIRST, {way}"), explain(client, &first).await);
        let heads = texts(client, &format!("execute {first}")).await.join(",");
        if !heads.is_empty() {
            let batch = format!("batch('{{{heads}}}', {skip}, {LIMIT})");
            assert!(!texts(client, &format!("execute {batch}")).await.is_empty(), "{way}");
            told(&format!("BATCH, {way}"), explain(client, &batch).await);
        }
        client.batch_execute("rollback").await.unwrap();
    }
}

fn every_round(test: &str, backlog: usize, mut told: impl FnMut(&str, &str, Explained)) {
    let Some(schema) = Schema::new(test) else { return };
    let client = schema.connect();
    schema.runtime.block_on(async {
        client.batch_execute(sql::INSTALL).await.unwrap();
        let (first, batch) = (sql::FIRST, sql::BATCH);
        let prepare = format!(
            "prepare first(bool, bigint) as {first}; prepare batch(bigint[], bool, bigint) as {batch};"
        );
        client.batch_execute(&prepare).await.unwrap();
        for (name, outbox) in OUTBOXES {
            // A table of its own, of which the server knows nothing, and learns nothing by itself.
            client.batch_execute("drop table mainstay_outbox").await.unwrap();
            client.batch_execute(sql::INSTALL).await.unwrap();
            client
                .batch_execute("alter table mainstay_outbox set (autovacuum_enabled = false)")
                .await
                .unwrap();
            rounds(&client, outbox, backlog, |what, explained| told(name, what, explained)).await;
        }
    });
    drop(client);
}

#[test]
fn a_round_passes_over_each_row_of_a_backlog_a_few_times_at_most() {
    const BACKLOG: usize = 3_000;
    let mut failed = Vec::new();
    every_round(
        "a_round_passes_over_each_row_of_a_backlog_a_few_times_at_most",
        BACKLOG,
        |outbox, what, explained| {
            // A scan of the whole table passes over what was sent, too.
            if explained.rows > (12 * BACKLOG) as f64 {
                failed.push(format!("{outbox}: {what}: {} rows", explained.rows));
            }
        },
    );
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
#[ignore = "measures"]
fn measure() {
    every_round("measure", 20_000, |outbox, what, Explained { rows, milliseconds }| {
        println!("{milliseconds:10.2} ms {rows:10} rows  {outbox}: {what}");
    });
}
