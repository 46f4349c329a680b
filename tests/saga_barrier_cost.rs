//! What the barrier costs: a business transaction with and without it, in turns, on real files and a real server.
//!
//! `cargo test --release --features postgres,sqlite --test saga_barrier_cost -- --ignored --nocapture --test-threads 1`
//!
//! SQLite: the times of single transactions. Told are quantiles: on a machine that does other things as well the best tenth is the
//! nearest to the truth. Postgres: the rates of connections in short slices, and the median of what each slice reaches of the bare one
//! beside it. The business is one insert, or the three statements of a payment: read and lock a row, update it,
//! insert another. Its statements are prepared, and with and without the barrier it is the same client and the same connection.
//!
//! Beside the barrier there is a floor: one prepared insert of a key and a result, without a look-up, a direction or a time, which on
//! Postgres travels with the commit, in one message. A barrier whose memory is a table cannot write less.
//!
//! `whole_sagas` looks at the same from further away: what is measured are sagas per second, with their journal, HTTP, and participants
//! of which each does a transaction.
#![cfg(all(feature = "postgres", feature = "sqlite"))]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::Request,
    routing::post,
    serve::ListenerExt,
};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use mainstay::saga::{
    Direction, Failure, Key, Orchestrator, Outcome, Saga, SagaId, Step,
    barrier::{self, postgres::Barrier},
    postgres::Postgres,
};
use rusqlite::{Connection, TransactionBehavior::Immediate, params};
use tokio::sync::Semaphore;
use tokio_postgres::{Client, Statement, Transaction};

#[path = "support/postgres.rs"]
mod server;
use server::Schema;

const TRANSACTIONS: usize = 3_000;
/// For Postgres: how long each takes its turn, and how often.
const SLICE: Duration = Duration::from_millis(100);
const SLICES: usize = 40;
/// The same for whole sagas.
const SAGA_SLICE: Duration = Duration::from_millis(250);
const SAGA_SLICES: usize = 20;

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
    /// The same, with statements that are prepared.
    Within,
    /// With the barrier, as the whole transaction.
    Whole,
    /// The same, without a look-up.
    Blind,
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
}

impl Service {
    async fn new(client: Client) -> Self {
        let barrier = Barrier::prepare(&client).await.unwrap();
        let select = client.prepare("select balance from account where id = $1 for update").await.unwrap();
        let update = client.prepare("update account set balance = $2 where id = $1").await.unwrap();
        let payment = client.prepare("insert into payment values ($1, $2, 1)").await.unwrap();
        let floor = "prepare floor (text, text) as insert into floor values ($1, $2) on conflict do nothing";
        client.batch_execute(floor).await.unwrap();
        Service { client, barrier, select, update, payment }
    }

    /// One transaction: one insert, a payment of three statements, or an even number of them, inserts and updates in turns.
    async fn transact(&mut self, key: &Key, how: How, statements: usize) {
        let Service { client, barrier, select, update, payment } = self;
        let saga = key.saga().as_str();
        let number: u64 = saga.trim_start_matches("order-").parse().unwrap();
        let account = (number.wrapping_mul(7919) % 9_990) as i64 + 1;
        let business = async |client: &Client| {
            if statements == 3 {
                let balance: i64 = client.query_one(select, &[&account]).await?.get(0);
                client.execute(update, &[&account, &(balance - 1)]).await?;
            }
            if statements % 2 == 1 {
                client.execute(payment, &[&saga, &account]).await?;
            } else {
                for pair in 0..statements as i64 / 2 {
                    client.execute(payment, &[&format!("{saga}/{pair}"), &account]).await?;
                    client.execute(update, &[&(account + pair), &1_i64]).await?;
                }
            }
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
                client.batch_execute(&format!("execute floor('{key}', '{receipt}'); commit")).await.unwrap();
            }
            How::Action | How::Within => {
                let tx = client.transaction().await.unwrap();
                let business = async |tx: &Transaction<'_>| business(tx.client()).await;
                let action = match how {
                    How::Action => barrier::postgres::action(&tx, key, business).await,
                    _ => barrier.action_within(&tx, key, business).await,
                };
                action.unwrap().result().unwrap();
                tx.commit().await.unwrap();
            }
            How::Whole | How::Blind => {
                let barrier = barrier.clone();
                let barrier = if how == How::Whole { barrier } else { barrier.without_look_up() };
                barrier.action(client, key, business).await.unwrap().result().unwrap();
            }
        }
    }
}

const WAYS: [(&str, How); 6] = [
    ("bare", How::Bare),
    ("floor", How::Floor),
    ("action", How::Action),
    ("action_within", How::Within),
    ("Barrier", How::Whole),
    ("without_look_up", How::Blind),
];

/// The connections, to a schema in which the tables are made.
async fn services(connections: Vec<Client>) -> Vec<Service> {
    let accounts = "insert into account select i, 1000000 from generate_series(1, 10000) as i";
    let floor = "create table floor (key text collate \"C\" primary key, result text)";
    connections[0].batch_execute(&format!("{SCHEMA} {accounts}; {floor}")).await.unwrap();
    barrier::postgres::install(&connections[0]).await.unwrap();
    let mut services = Vec::new();
    for client in connections {
        services.push(Service::new(client).await);
    }
    services
}

/// What a slice in each way reaches, in turns; each in each place of the turn as often.
async fn in_turns(name: &str, ways: &[(&str, How)], turns: usize, mut slice: impl AsyncFnMut(How) -> f64) {
    let mut rates = vec![Vec::new(); ways.len()];
    for turn in 0..turns {
        for place in 0..ways.len() {
            let which = (turn + place) % ways.len();
            rates[which].push(slice(ways[which].1).await);
        }
    }
    print!("{name}: bare {:.0} /s", median(rates[0].clone()));
    for ((name, _), those) in ways.iter().zip(&rates).skip(1) {
        let shares = those.iter().zip(&rates[0]).map(|(with, bare)| with / bare);
        let change = 100.0 * (median(shares.collect()) - 1.0);
        print!("; {name} {:.0} /s, {change:+.1} %", median(those.clone()));
    }
    println!();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "it measures"]
fn postgres() {
    let Some(schema) = Schema::new("postgres") else { return };
    let connections = (0..16).map(|_| schema.connect()).collect();
    schema.runtime.block_on(async {
        let mut all = services(connections).await;
        let mut next = 0;
        for connections in [1, 16] {
            for statements in [1, 3] {
                let name = format!("postgres, {statements} statement(s), {connections} connection(s)");
                in_turns(&name, &WAYS, SLICES, async |how| {
                    slice(&mut all, connections, how, statements, &mut next).await
                })
                .await;
            }
        }
    });
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
                service.transact(&key(first + count), how, statements).await;
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

/// A participant behind HTTP: a request is a transaction on a connection that is free.
struct Participant {
    free: Mutex<Vec<Service>>,
    permits: Semaphore,
}

impl Participant {
    /// Serves until the runtime ends.
    async fn serve(services: Vec<Service>) -> SocketAddr {
        let permits = Semaphore::new(services.len());
        let participant = Arc::new(Participant { free: Mutex::new(services), permits });
        let router = Router::new().route("/{how}/{statements}", post(transact)).with_state(participant);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }
}

/// The path says how, the body is the step's key.
async fn transact(
    State(participant): State<Arc<Participant>>,
    Path((how, statements)): Path<(usize, usize)>,
    key: String,
) -> String {
    let _permit = participant.permits.acquire().await.unwrap();
    let mut service = participant.free.lock().unwrap().pop().unwrap();
    service.transact(&key.parse().unwrap(), WAYS[how].1, statements).await;
    participant.free.lock().unwrap().push(service);
    key
}

type Http = legacy::Client<HttpConnector, String>;

/// One request of a step to its participant.
async fn call(http: &Http, url: String, key: &Key) -> Result<String, Failure> {
    let request = Request::post(url).body(key.to_string()).map_err(Failure::unknown)?;
    let answer = http.request(request).await.map_err(Failure::unknown)?;
    if !answer.status().is_success() {
        return Err(Failure::unknown(answer.status()));
    }
    let body = axum::body::to_bytes(Body::new(answer.into_body()), 1_000).await.map_err(Failure::unknown)?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Whole sagas of two steps: their journal and the participants' databases are on the same server, and everything shares the machine.
#[test]
#[ignore = "it measures"]
fn whole_sagas() {
    let (Some(journal), Some(one), Some(two)) =
        (Schema::new("journal"), Schema::new("one"), Schema::new("two"))
    else {
        return;
    };
    let connections = [&one, &two].map(|schema| (0..16).map(|_| schema.connect()).collect());
    let client = journal.connect();
    journal.runtime.block_on(async {
        let [one, two] = connections;
        let urls =
            [Participant::serve(services(one).await).await, Participant::serve(services(two).await).await]
                .map(|address| format!("http://{address}"));
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http: Http = legacy::Client::builder(TokioExecutor::new()).build(connector);

        let mut saga = Saga::define::<String>("order", 1);
        let [reserve, charge] = urls.map(|url| {
            let http = http.clone();
            move |step: Step<String>| {
                let (http, url) = (http.clone(), format!("{url}{}", step.input()));
                async move { call(&http, url, step.key()).await }
            }
        });
        let reserved =
            saga.step("reserve", (), move |step, ()| reserve(step)).without_compensation("it measures");
        let charged = saga
            .step("charge", reserved, move |step, _: String| charge(step))
            .without_compensation("it measures");
        let saga = saga.build(charged).unwrap();

        let schema: String = client.query_one("select current_schema()::text", &[]).await.unwrap().get(0);
        let url = std::env::var("MAINSTAY_TEST_POSTGRES").unwrap();
        let store = Postgres::connect(&url).schema(&schema).await.unwrap();
        let orchestrator = Orchestrator::open(store).max_live(256).register(&saga).start().await.unwrap();
        orchestrator.recovered().await;

        let ways = [WAYS[0], WAYS[2], WAYS[3], WAYS[4], WAYS[5]];
        let next = Arc::new(AtomicU64::new(0));
        for statements in [2, 10] {
            for sagas in [16, 64] {
                let name = format!("two participants, {statements} statements each, {sagas} sagas at once");
                in_turns(&name, &ways, SAGA_SLICES, async |how| {
                    let how = WAYS.iter().position(|way| way.1 == how).unwrap();
                    let input = format!("/{how}/{statements}");
                    let began = Instant::now();
                    let runners = (0..sagas).map(|_| {
                        let (orchestrator, saga, input, next) =
                            (orchestrator.clone(), saga.clone(), input.clone(), next.clone());
                        tokio::spawn(async move {
                            let mut count = 0;
                            while began.elapsed() < SAGA_SLICE {
                                let id = format!("order-{}", next.fetch_add(1, Relaxed));
                                let outcome = orchestrator.run(&saga, &id, &input).await.unwrap();
                                assert!(matches!(outcome, Outcome::Completed(_)), "{outcome:?}");
                                count += 1;
                            }
                            count
                        })
                    });
                    let mut total = 0;
                    for runner in runners.collect::<Vec<_>>() {
                        total += runner.await.unwrap();
                    }
                    f64::from(total) / began.elapsed().as_secs_f64()
                })
                .await;
            }
        }
        orchestrator.shutdown(Duration::from_secs(1)).await;
    });
}
