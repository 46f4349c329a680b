//! What the barrier costs: a business transaction with and without it, in turns, on real files and a real server.
//!
//! `cargo test --release --features postgres --test saga_barrier_cost -- --ignored --nocapture --test-threads 1`
//!
//! SQLite: the times of single transactions. Told are quantiles: on a machine that does other things as well the best tenth is the
//! nearest to the truth. Postgres: the rates of connections in short slices, and the median of what each slice reaches of the bare one
//! beside it. The business is one insert, or the three statements of a payment: read and lock a row, update it,
//! insert another. Its statements are prepared, and with and without the barrier it is the same client and the same connection.
//!
//! Beside the barrier there is a floor: one prepared insert of a key and a result, without a look-up, a direction or a time, which on
//! Postgres travels with the commit. A barrier whose memory is a table cannot write less.
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

/// The times of single transactions made in each way, in turns, so that a busy machine is as busy for all.
fn compare<const N: usize>(name: &str, ways: [(&str, How); N], mut once: impl FnMut(How)) {
    let mut times = ways.map(|_| Vec::new());
    for turn in 0..TRANSACTIONS {
        for place in 0..N {
            let which = (turn + place) % N;
            let began = Instant::now();
            once(ways[which].1);
            times[which].push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    for times in &mut times {
        times.sort_by(f64::total_cmp);
    }
    print!("{name}:");
    for (quantile, of) in [(10, "best tenth"), (25, "quarter"), (50, "median")] {
        let at = times.each_ref().map(|times| times[times.len() * quantile / 100]);
        print!(" {of}: {} {:.0} us", ways[0].0, at[0]);
        for ((way, _), time) in ways.iter().zip(at).skip(1) {
            print!(", {way} {time:.0} us, {:+.1} %", 100.0 * (time / at[0] - 1.0));
        }
        print!(";");
    }
    println!();
}

const SCHEMA: &str = "create table account (id bigint primary key, balance bigint not null);
    create table payment (saga text primary key, account bigint not null, amount bigint not null);";

/// How a transaction of the business is made.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Bare,
    /// With one insert of a key and a result, which travels with the commit.
    Floor,
    /// With the barrier, in the caller's transaction.
    Action,
    /// With the barrier, as the whole transaction.
    Whole,
}

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
    connection.execute_batch("create table floor (key text primary key, result text) without rowid").unwrap();
    barrier::sqlite::install(&connection).unwrap();
    connection.set_prepared_statement_cache_capacity(64);

    fn business(tx: &Connection, key: &Key, number: u64, statements: usize) -> rusqlite::Result<String> {
        let account = (number.wrapping_mul(7919) % 10_000) as i64 + 1;
        if statements == 3 {
            let balance: i64 = tx
                .prepare_cached("select balance from account where id = ?1")?
                .query_row([account], |row| row.get(0))?;
            tx.prepare_cached("update account set balance = ?2 where id = ?1")?
                .execute([account, balance - 1])?;
        }
        tx.prepare_cached("insert into payment values (?1, ?2, 1)")?
            .execute(params![key.saga().as_str(), account])?;
        Ok(format!("receipt-{number}"))
    }

    let mut number = 0;
    for statements in [1, 3] {
        let name = format!("sqlite, {statements} statement(s), one connection, synchronous = full");
        compare(&name, [("bare", How::Bare), ("floor", How::Floor), ("action", How::Action)], |how| {
            number += 1;
            let key = key(number);
            let tx = connection.transaction_with_behavior(Immediate).unwrap();
            if how == How::Action {
                let action = barrier::sqlite::action(&tx, &key, |tx| business(tx, &key, number, statements));
                action.unwrap().result().unwrap();
            } else {
                let receipt = business(&tx, &key, number, statements).unwrap();
                if how == How::Floor {
                    let store = "insert into floor values (?1, ?2) on conflict do nothing";
                    tx.prepare_cached(store).unwrap().execute([key.to_string(), receipt]).unwrap();
                }
            }
            tx.commit().unwrap();
        });
    }
    drop(connection);
    std::fs::remove_dir_all(&path).unwrap();
}

/// A connection with the statements of the business, prepared once, as a service does it: the cheaper the business is, the more is
/// the barrier.
struct Service {
    client: Client,
    barrier: Barrier,
    select: Statement,
    update: Statement,
    payment: Statement,
    floor: Statement,
}

impl Service {
    async fn new(client: Client) -> Self {
        let barrier = Barrier::prepare(&client).await.unwrap();
        let select = client.prepare("select balance from account where id = $1 for update").await.unwrap();
        let update = client.prepare("update account set balance = $2 where id = $1").await.unwrap();
        let payment = client.prepare("insert into payment values ($1, $2, 1)").await.unwrap();
        let floor = client.prepare("insert into floor values ($1, $2) on conflict do nothing").await.unwrap();
        Service { client, barrier, select, update, payment, floor }
    }

    /// One transaction, of one statement or of three.
    async fn transact(&mut self, number: u64, how: How, statements: usize) {
        let Service { client, barrier, select, update, payment, floor } = self;
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
        match how {
            How::Bare => {
                let tx = client.transaction().await.unwrap();
                business(tx.client()).await.unwrap();
                tx.commit().await.unwrap();
            }
            How::Floor => {
                client.batch_execute("begin").await.unwrap();
                let receipt = business(client).await.unwrap();
                let key = key.to_string();
                let store = async { client.execute(floor, &[&key, &receipt]).await };
                futures::try_join!(store, client.batch_execute("commit")).unwrap();
            }
            How::Action => {
                let tx = client.transaction().await.unwrap();
                let action = barrier::postgres::action(&tx, &key, async |tx| business(tx.client()).await);
                action.await.unwrap().result().unwrap();
                tx.commit().await.unwrap();
            }
            How::Whole => {
                barrier.action(client, &key, business).await.unwrap().result().unwrap();
            }
        }
    }
}

const WAYS: [(&str, How); 4] =
    [("bare", How::Bare), ("floor", How::Floor), ("action", How::Action), ("Barrier", How::Whole)];

#[test]
#[ignore = "it measures"]
fn postgres() {
    let Some(schema) = Schema::new("postgres") else { return };
    let clients: Vec<Client> = (0..16).map(|_| schema.connect()).collect();
    schema.runtime.block_on(async {
        clients[0].batch_execute(SCHEMA).await.unwrap();
        let accounts = "insert into account select i, 1000000 from generate_series(1, 10000) as i";
        clients[0].execute(accounts, &[]).await.unwrap();
        let floor = "create table floor (key text collate \"C\" primary key, result text)";
        clients[0].batch_execute(floor).await.unwrap();
        barrier::postgres::install(&clients[0]).await.unwrap();
        let mut services = Vec::new();
        for client in clients {
            services.push(Service::new(client).await);
        }
        let mut next = 0;
        for connections in [1, 16] {
            for statements in [1, 3] {
                let mut rates = WAYS.map(|_| Vec::new());
                for turn in 0..SLICES {
                    // Each in each place of the turn as often.
                    for place in 0..WAYS.len() {
                        let which = (turn + place) % WAYS.len();
                        let how = WAYS[which].1;
                        rates[which]
                            .push(slice(&mut services, connections, how, statements, &mut next).await);
                    }
                }
                print!("postgres, {statements} statement(s), {connections} connection(s): ");
                print!("bare {:.0} /s", median(rates[0].clone()));
                for ((name, _), those) in WAYS.iter().zip(&rates).skip(1) {
                    let shares = those.iter().zip(&rates[0]).map(|(with, bare)| with / bare);
                    let change = 100.0 * (median(shares.collect()) - 1.0);
                    print!("; {name} {:.0} /s, {change:+.1} %", median(those.clone()));
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
