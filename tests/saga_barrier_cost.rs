//! What the barrier costs: a business transaction with and without it, in turns, on real files and a real server.
//!
//! `cargo test --release --features postgres --test saga_barrier_cost -- --ignored --nocapture --test-threads 1`
//!
//! SQLite: the times of single transactions. Told are quantiles: on a machine that does other things as well the best tenth is the
//! nearest to the truth. Postgres: the rates of connections in short slices, and the median of what each slice with the barrier
//! reaches of the bare one beside it. The business is one insert, or the three statements of a payment: read and lock a row, update it,
//! insert another. Its statements are prepared, and with and without the barrier it is the same client and the same connection.
#![cfg(all(feature = "sqlite", feature = "postgres"))]
#![allow(missing_docs)]

use std::time::{Duration, Instant};

use mainstay::saga::{
    Direction, Key, SagaId,
    barrier::{self, postgres::Barrier},
};
use rusqlite::{Connection, TransactionBehavior::Immediate, params};
use tokio_postgres::{Client, Statement};

#[path = "support/postgres.rs"]
mod server;
use server::Schema;

const TRANSACTIONS: usize = 3_000;
/// For Postgres: how long each takes its turn, and how often.
const SLICE: Duration = Duration::from_millis(100);
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

/// How a transaction of the business is made.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Bare,
    /// In the caller's transaction.
    Action,
    /// As the whole transaction.
    Whole,
}

/// A connection with the statements of the business, prepared once, as a service does it: the cheaper the business is, the more is
/// the barrier.
struct Service {
    client: Client,
    barrier: Barrier,
    select: Statement,
    update: Statement,
    payment: Statement,
}

impl Service {
    async fn new(client: Client) -> Self {
        let barrier = Barrier::prepare(&client).await.unwrap();
        let select = client.prepare("select balance from account where id = $1 for update").await.unwrap();
        let update = client.prepare("update account set balance = $2 where id = $1").await.unwrap();
        let payment = client.prepare("insert into payment values ($1, $2, 1)").await.unwrap();
        Service { client, barrier, select, update, payment }
    }

    /// One transaction, of one statement or of three.
    async fn transact(&mut self, number: u64, how: How, statements: usize) {
        let Service { client, barrier, select, update, payment } = self;
        let key = key(number);
        let business = async |client: &Client| {
            let account = (number.wrapping_mul(7919) % 10_000) as i64 + 1;
            if statements == 3 {
                let balance: i64 = client.query_one(select, &[&account]).await?.get(0);
                client.execute(update, &[&account, &(balance - 1)]).await?;
            }
            client.execute(payment, &[&key.saga().as_str(), &account]).await?;
            Ok::<_, tokio_postgres::Error>(format!("receipt-{number}"))
        };
        if how == How::Whole {
            let action = barrier.action(client, &key, business).await;
            action.unwrap().result().unwrap();
            return;
        }
        let tx = client.transaction().await.unwrap();
        if how == How::Action {
            let action = barrier::postgres::action(&tx, &key, async |tx| business(tx.client()).await).await;
            action.unwrap().result().unwrap();
        } else {
            business(tx.client()).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
}

#[test]
#[ignore = "it measures"]
fn postgres() {
    let Some(schema) = Schema::new("postgres") else { return };
    let clients: Vec<Client> = (0..16).map(|_| schema.connect()).collect();
    schema.runtime.block_on(async {
        clients[0].batch_execute(SCHEMA).await.unwrap();
        let accounts = "insert into account select i, 1000000 from generate_series(1, 10000) as i";
        clients[0].execute(accounts, &[]).await.unwrap();
        barrier::postgres::install(&clients[0]).await.unwrap();
        let mut services = Vec::new();
        for client in clients {
            services.push(Service::new(client).await);
        }
        let mut next = 0;
        for connections in [1, 16] {
            for statements in [1, 3] {
                let hows = [How::Bare, How::Action, How::Whole];
                let mut rates = [Vec::new(), Vec::new(), Vec::new()];
                for turn in 0..SLICES {
                    // Each in each place of the turn as often.
                    for place in 0..hows.len() {
                        let which = (turn + place) % hows.len();
                        let rate =
                            slice(&mut services, connections, hows[which], statements, &mut next).await;
                        rates[which].push(rate);
                    }
                }
                let medians = rates.each_ref().map(|rates| median(rates.clone()));
                print!(
                    "postgres, {statements} statement(s), {connections} connection(s): bare {:.0} /s",
                    medians[0]
                );
                for (which, name) in [(1, "action"), (2, "Barrier")] {
                    let shares = rates[which].iter().zip(&rates[0]).map(|(with, bare)| with / bare);
                    let change = 100.0 * (median(shares.collect()) - 1.0);
                    print!("; {name} {:.0} /s, {change:+.1} %", medians[which]);
                }
                println!();
            }
        }
    });
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The rate of so many connections, each of which does one transaction after the other.
async fn slice(
    services: &mut Vec<Service>,
    connections: usize,
    how: How,
    statements: usize,
    next: &mut u64,
) -> f64 {
    let began = Instant::now();
    let mut running = Vec::new();
    for mut service in services.drain(..connections) {
        *next += 1_000_000;
        let first = *next;
        running.push(tokio::spawn(async move {
            let mut count = 0;
            while began.elapsed() < SLICE {
                count += 1;
                service.transact(first + count, how, statements).await;
            }
            (service, count)
        }));
    }
    let mut total = 0;
    for task in running {
        let (service, count) = task.await.unwrap();
        services.push(service);
        total += count;
    }
    total as f64 / began.elapsed().as_secs_f64()
}
