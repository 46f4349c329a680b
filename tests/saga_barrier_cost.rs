//! What the barrier costs: a business transaction with and without it, in turns, on real files and a real server.
//! Told are quantiles: on a machine that does other things as well the best tenth is the nearest to the truth.
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

const TRANSACTIONS: usize = 3_000;
/// For several connections: how long both take turns, and how often.
const SLICE: Duration = Duration::from_millis(150);
const SLICES: usize = 60;

fn key(number: u64) -> Key {
    Key::new(&SagaId::new(&format!("order-{number}")).unwrap(), "charge-card", Direction::Do).unwrap()
}

/// The times of single transactions without and with the barrier, in turns, so that a busy machine is as busy for both.
fn compare(name: &str, mut once: impl FnMut(bool)) {
    let mut times = [Vec::new(), Vec::new()];
    for turn in 0..TRANSACTIONS {
        for with in [turn % 2 == 0, turn % 2 != 0] {
            let began = Instant::now();
            once(with);
            times[usize::from(with)].push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    print!("{name}:");
    for times in &mut times {
        times.sort_by(f64::total_cmp);
    }
    for (quantile, name) in [(10, "best tenth"), (25, "quarter"), (50, "median")] {
        let [without, with] = [&times[0], &times[1]].map(|times| times[times.len() * quantile / 100]);
        print!(" {name} {without:.0} and {with:.0} us, {:+.1} %;", 100.0 * (with / without - 1.0));
    }
    println!();
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
        number += 1;
        let key = key(number);
        let tx = connection.transaction_with_behavior(Immediate).unwrap();
        if with {
            barrier::sqlite::action(&tx, &key, |tx| business(tx, &key, number)).unwrap().result().unwrap();
        } else {
            business(&tx, &key, number).unwrap();
        }
        tx.commit().unwrap();
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
    let mut number = 0;
    compare("postgres, one connection, synchronous_commit = on", |with| {
        number += 1;
        schema.runtime.block_on(transaction(&mut clients[0], number, with)).unwrap();
    });

    let mut next = 1_000_000;
    let mut slice = |with| {
        schema.runtime.block_on(async {
            let began = Instant::now();
            let mut running = Vec::new();
            for mut client in clients.drain(..) {
                next += 1_000_000;
                running.push(tokio::spawn(async move {
                    let mut count = 0;
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
            total as f64 / began.elapsed().as_secs_f64()
        })
    };
    let mut rates = [Vec::new(), Vec::new()];
    for turn in 0..SLICES {
        for with in [turn % 2 == 0, turn % 2 != 0] {
            rates[usize::from(with)].push(slice(with));
        }
    }
    print!("postgres, 16 connections:");
    for rates in &mut rates {
        rates.sort_by(f64::total_cmp);
    }
    for (quantile, name) in [(90, "best tenth"), (75, "quarter"), (50, "median")] {
        let [without, with] = [&rates[0], &rates[1]].map(|rates| rates[rates.len() * quantile / 100]);
        print!(" {name} {without:.0} and {with:.0} /s, {:+.1} %;", 100.0 * (with / without - 1.0));
    }
    println!();
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
