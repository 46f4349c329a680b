//! The same in PostgreSQL, beside the server's own inserts.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use mainstay::saga::postgres::Postgres;
use tokio_postgres::{Client, NoTls};

use super::{Effort, Place, common, micros, overhead, percentile};

struct Server {
    url: String,
    prefix: String,
}

impl Place for Server {
    type Store = Postgres;
    const RECOVERY: &'static str = "G7: <= 5";
    const RATE: &'static str = "G5: at most 1, below 0.25 from 64 on";

    async fn open(&self, name: &str, _: bool) -> Postgres {
        let schema = format!("{}_{}", self.prefix, name.replace('-', "_"));
        Postgres::connect(&self.url).schema(&schema).await.expect("the server answers")
    }
}

impl Server {
    async fn client(&self) -> Client {
        let (client, connection) =
            tokio_postgres::connect(&self.url, NoTls).await.expect("the server answers");
        tokio::spawn(connection);
        client
    }

    /// A table like the journal's entries, for the server's own inserts.
    async fn raw(&self, client: &Client) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let schema = format!("{}_raw_{}", self.prefix, COUNT.fetch_add(1, Relaxed));
        let table = format!(
            "CREATE SCHEMA {schema}; CREATE TABLE {schema}.entry (saga bigint NOT NULL, seq bigint NOT NULL, epoch bigint NOT NULL,
            at bigint NOT NULL, author text NOT NULL, kind text NOT NULL, step text, data text NOT NULL, crc bigint NOT NULL,
            PRIMARY KEY (saga, seq))"
        );
        client.batch_execute(&table).await.expect("a table");
        format!("{schema}.entry")
    }

    async fn drop_schemas(&self) {
        let client = self.client().await;
        let all = "SELECT quote_ident(nspname) FROM pg_namespace WHERE starts_with(nspname, $1 || '_')";
        for row in client.query(all, &[&self.prefix]).await.expect("a list") {
            let name: &str = row.get(0);
            let drop = format!("SET client_min_messages TO warning; DROP SCHEMA {name} CASCADE");
            client.batch_execute(&drop).await.expect("it can be dropped");
        }
    }
}

/// Everything, if there is a server to measure with.
pub(super) async fn measure(effort: Effort) {
    let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
        println!("-- PostgreSQL: skipped, MAINSTAY_TEST_POSTGRES is not set");
        return;
    };
    let server = Server { url, prefix: format!("mainstay_bench_{}", std::process::id()) };
    println!("-- PostgreSQL");
    let insert = inserts(&server, effort.syncs).await;
    let (p50, _) = overhead(&server, effort, insert).await;
    println!(
        "{:<45}{:.0} us more than the insert (G5: <= 600 us a step)",
        "",
        micros(p50.saturating_sub(insert))
    );
    for size in [1, 64, 256, 1_024] {
        batched(&server, size, effort.steps / 3).await;
    }
    common(&server, effort).await;
    for size in [64, 256] {
        batched(&server, size, effort.steps / 3).await;
    }
    server.drop_schemas().await;
}

/// A row of a record's size, committed by itself, as the server's own price.
async fn inserts(server: &Server, count: usize) -> Duration {
    let client = server.client().await;
    let table = server.raw(&client).await;
    let insert = format!("INSERT INTO {table} VALUES (1, $1, 1, 1, 'me', 'completed', 'step-1', $2, 1)");
    let insert = client.prepare(&insert).await.expect("it can be prepared");
    let data = "x".repeat(100);
    let mut times = Vec::new();
    for number in 0..count as i64 {
        let began = Instant::now();
        client.execute(&insert, &[&number, &data]).await.expect("it inserts");
        times.push(began.elapsed());
    }
    let (p50, p99) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    println!(
        "server: insert of one row, committed         p50 {:.0} us, p99 {:.0} us",
        micros(p50),
        micros(p99)
    );
    p50
}

/// The rate of rows that are inserted so many at a time, each batch committed by itself, one behind the other.
async fn batched(server: &Server, size: usize, rows: usize) {
    let client = server.client().await;
    let table = server.raw(&client).await;
    let insert = format!(
        "INSERT INTO {table} SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[],
        $7::text[], $8::text[], $9::bigint[])"
    );
    let insert = client.prepare(&insert).await.expect("it can be prepared");
    let (saga, ones): (Vec<i64>, _) = ((0..size as i64).collect(), vec![1_i64; size]);
    let (author, kind, step) = (vec!["me"; size], vec!["completed"; size], vec![Some("step-1"); size]);
    let text = "x".repeat(100);
    let data = vec![&*text; size];
    let rounds = (rows / size).clamp(1, 5_000);
    let began = Instant::now();
    for round in 0..rounds as i64 {
        let seq = vec![round; size];
        client
            .execute(&insert, &[&saga, &seq, &ones, &ones, &author, &kind, &step, &data, &ones])
            .await
            .expect("it inserts");
    }
    println!(
        "server: rows inserted {size:>5} at a time: {:>8.0} /s (G5: the records are >= 60 % of it)",
        (rounds * size) as f64 / began.elapsed().as_secs_f64()
    );
}
