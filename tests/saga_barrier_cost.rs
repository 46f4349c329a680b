//! What the barrier costs: a business transaction with and without it, in turns, on real files and a real server.
//!
//! `cargo test --release --all-features --test saga_barrier_cost -- --ignored --nocapture --test-threads 1`
#![cfg(all(feature = "sqlite", feature = "postgres"))]
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use mainstay::saga::{Direction, Key, SagaId, barrier};
use rusqlite::{Connection, TransactionBehavior::Immediate, params};
use tokio_postgres::{Client, Transaction};

#[path = "support/postgres.rs"]
mod postgres;
use postgres::Schema;

const SLICE: Duration = Duration::from_millis(1000);
const SLICES: usize = 8;

fn key(number: u64) -> Key {
    Key::new(&SagaId::new(&format!("order-{number}")).unwrap(), "charge-card", Direction::Do).unwrap()
}

/// Runs both in turns and prints how many of each there were in a second; a ratio for each pair of neighbouring slices, since the
/// machine has good and bad seconds.
fn compare(name: &str, mut slice: impl FnMut(bool) -> f64) {
    slice(false);
    slice(true);
    let pairs: Vec<(f64, f64)> = (0..SLICES)
        .map(|turn| {
            let first = slice(turn % 2 == 0);
            let second = slice(turn % 2 != 0);
            if turn % 2 == 0 { (second, first) } else { (first, second) }
        })
        .collect();
    let middle = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "{name}: {:.0}/s without, {:.0}/s with the barrier, cost {:.1} %",
        middle(&|pair| pair.0),
        middle(&|pair| pair.1),
        100.0 * (1.0 - middle(&|pair| pair.1 / pair.0)),
    );
}

fn rate(mut once: impl FnMut()) -> f64 {
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < SLICE {
        once();
        count += 1;
    }
    f64::from(count) / began.elapsed().as_secs_f64()
}

const SCHEMA: &str = "create table account (id bigint primary key, balance bigint not null);
    create table payment (saga text primary key, account bigint not null, amount bigint not null);";

#[test]
#[ignore = "it measures"]
fn sqlite() {
    let path = std::env::current_dir().unwrap().join(format!("target/barrier-cost-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    let mut connection = Connection::open(path.join("database")).unwrap();
    connection.execute_batch("pragma journal_mode = wal; pragma synchronous = full").unwrap();
    connection.execute_batch(SCHEMA).unwrap();
    let accounts = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 10000)
                    insert into account select i, 1000000 from n";
    connection.execute(accounts, []).unwrap();
    barrier::sqlite::install(&connection).unwrap();

    fn business(tx: &Connection, key: &Key, number: u64) -> rusqlite::Result<String> {
        let account = (number.wrapping_mul(7919) % 10_000) as i64 + 1;
        let balance: i64 =
            tx.query_row("select balance from account where id = ?1", [account], |row| row.get(0))?;
        tx.execute("update account set balance = ?2 where id = ?1", [account, balance - 1])?;
        let payment = "insert into payment values (?1, ?2, 1)";
        tx.execute(payment, params![key.saga().as_str(), account])?;
        Ok(format!("receipt-{number}"))
    }

    let mut number = 0;
    compare("sqlite, one connection, synchronous = full", |with| {
        rate(|| {
            number += 1;
            let key = key(number);
            let tx = connection.transaction_with_behavior(Immediate).unwrap();
            if with {
                barrier::sqlite::action(&tx, &key, |tx| business(tx, &key, number))
                    .unwrap()
                    .result()
                    .unwrap();
            } else {
                business(&tx, &key, number).unwrap();
            }
            tx.commit().unwrap();
        })
    });
    drop(connection);
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
#[ignore = "it measures"]
fn postgres_with_one_and_with_many_connections() {
    let Some(schema) = Schema::new("postgres_with_one_and_with_many_connections") else { return };
    let mut clients: Vec<Client> = (0..16).map(|_| schema.connect()).collect();
    schema.runtime.block_on(async {
        clients[0].batch_execute(SCHEMA).await.unwrap();
        let accounts = "insert into account select i, 1000000 from generate_series(1, 10000) as i";
        clients[0].execute(accounts, &[]).await.unwrap();
        barrier::postgres::install(&clients[0]).await.unwrap();
    });
    let mut next = 0;
    for connections in [1, 16] {
        compare(&format!("postgres, {connections} connections"), |with| {
            schema.runtime.block_on(async {
                let mut running = Vec::new();
                for mut client in clients.drain(..connections) {
                    next += 1_000_000;
                    running.push(tokio::spawn(async move {
                        let (began, mut count) = (Instant::now(), 0);
                        while began.elapsed() < SLICE {
                            count += 1;
                            transaction(&mut client, next + count, with).await.unwrap();
                        }
                        (client, count)
                    }));
                }
                let mut total = 0;
                for task in running {
                    let (client, count) = task.await.unwrap();
                    clients.push(client);
                    total += count;
                }
                total as f64 / SLICE.as_secs_f64()
            })
        });
    }
}

async fn transaction(
    client: &mut Client,
    number: u64,
    with: bool,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    use tokio_postgres::types::Type;
    async fn business(tx: &Transaction<'_>, key: &Key, number: u64) -> Result<String, tokio_postgres::Error> {
        let account = (number.wrapping_mul(7919) % 10_000) as i64 + 1;
        let select = "select balance from account where id = $1 for update";
        let row = tx.query_typed_one(select, &[(&account, Type::INT8)]).await?;
        let balance = row.get::<_, i64>(0) - 1;
        let update = "update account set balance = $2 where id = $1";
        tx.execute_typed(update, &[(&account, Type::INT8), (&balance, Type::INT8)]).await?;
        let payment = "insert into payment values ($1, $2, 1)";
        tx.execute_typed(payment, &[(&key.saga().as_str(), Type::TEXT), (&account, Type::INT8)]).await?;
        Ok(format!("receipt-{number}"))
    }
    let key = key(number);
    let tx = client.transaction().await?;
    if with {
        let action =
            barrier::postgres::action(&tx, &key, async |tx| business(tx, &key, number).await).await?;
        action.result().unwrap();
    } else {
        business(&tx, &key, number).await?;
    }
    tx.commit().await?;
    Ok(())
}
