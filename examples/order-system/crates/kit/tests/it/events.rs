//! From a transaction through the broker into a handler.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use mainstay::saga::outbox::Unsent;
use order_broker::{Amqp, Broker, Queue, Switched, Topology};
use order_kit::{
    Db,
    db::{DbError, Publish, run_relay},
    env::Env,
    events::{self, Envelope, Trouble, consume, emit, start_relay},
    health::{self, Check},
    server::Access,
    trace,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Served, Somewhere, context, get, memory, service, until};

type Heard = Arc<Mutex<Vec<Envelope>>>;

async fn emit_some(db: &Db, from: u64, to: u64) {
    for n in from..to {
        let emitted = db
            .write(async move |tx| {
                for part in 0..2 {
                    let key = format!("order-{}", n % 10);
                    emit(tx, "test", "order.created", &key, &json!({ "n": n * 2 + part })).await?;
                }
                if n % 7 == 3 { Err(DbError::Statement("taken back".to_owned())) } else { Ok(()) }
            })
            .await;
        assert_eq!(emitted.is_err(), n % 7 == 3);
    }
}

fn wanted(to: u64) -> BTreeMap<String, Vec<u64>> {
    let mut by_key = BTreeMap::<_, Vec<u64>>::new();
    for n in (0..to).filter(|n| n % 7 != 3) {
        by_key.entry(format!("order-{}", n % 10)).or_default().extend([n * 2, n * 2 + 1]);
    }
    by_key
}

fn by_key(heard: &Heard) -> BTreeMap<String, Vec<u64>> {
    let mut by_key = BTreeMap::<_, Vec<u64>>::new();
    for event in heard.lock().unwrap().iter() {
        by_key
            .entry(event.metadata.correlation_id.clone())
            .or_default()
            .push(event.data["n"].as_u64().unwrap());
    }
    by_key
}

/// Threads that have panicked, by name, beside what a panic does otherwise.
fn panicked() -> &'static Mutex<Vec<String>> {
    static PANICKED: OnceLock<Mutex<Vec<String>>> = OnceLock::new();
    PANICKED.get_or_init(|| {
        let otherwise = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            if let Some(panicked) = PANICKED.get() {
                panicked.lock().unwrap().push(name);
            }
            otherwise(panic);
        }));
        Mutex::default()
    })
}

#[test]
fn a_relay_ends_quietly_with_the_runtime_that_nobody_has_told_to_end() {
    panicked();
    for somewhere in
        [Some(Somewhere::sqlite()), Somewhere::postgres("a_relay_ends_quietly")].into_iter().flatten()
    {
        for round in 0..20 {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let rounds = Arc::new(AtomicU32::new(0));
            let counter = rounds.clone();
            // Away, so that there is always something to do.
            let publish: Publish = Arc::new(move |messages| {
                let counter = counter.clone();
                Box::pin(async move {
                    counter.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    messages.iter().map(|_| Err(Unsent::unavailable("away"))).collect()
                })
            });
            let place = somewhere.place.clone();
            runtime.block_on(async {
                let db = Db::open(place, &[]).await.unwrap();
                emit_some(&db, 0, 2).await;
                let relay = publish.clone();
                tokio::spawn(async move { run_relay(&db, relay, CancellationToken::new()).await });
                until("it publishes", async || rounds.load(Ordering::SeqCst) > 0).await;
                tokio::time::sleep(Duration::from_millis(round)).await;
            });
            drop(runtime);
            let began = Instant::now();
            while Arc::strong_count(&publish) > 1 {
                assert!(began.elapsed() < Duration::from_secs(20), "its thread has not ended");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(somewhere.end());
    }
    assert!(!panicked().lock().unwrap().contains(&"outbox".to_owned()));
}

/// What the check below would not forgive.
#[test]
fn another_order_of_one_key_is_not_what_is_wanted() {
    let mut swapped = wanted(30);
    swapped.get_mut("order-1").unwrap().swap(0, 1);
    assert_ne!(swapped, wanted(30));
}

#[tokio::test]
async fn every_event_arrives_in_the_order_of_its_key_whether_or_not_the_broker_is_there() {
    for somewhere in Somewhere::all("every_event_arrives_in_the_order_of_its_key") {
        let broker = Switched::new(memory().await);
        let context = context("test", Env::empty(), Arc::new(broker.clone()));
        let db = Db::open(somewhere.place.clone(), &[]).await.unwrap();
        let heard = Heard::default();
        let handler = heard.clone();
        consume(&context, Queue::new("all").bind("order.*"), 8, move |event| {
            handler.lock().unwrap().push(event);
            std::future::ready(Ok::<_, Trouble>(()))
        })
        .await
        .unwrap();
        start_relay(&context, &db);
        emit_some(&db, 0, 30).await;
        until("the first have come", async || by_key(&heard) == wanted(30)).await;
        broker.set_away(true);
        emit_some(&db, 30, 60).await;
        until("it is tried again and again", async || broker.refused() > 2).await;
        assert_eq!(by_key(&heard), wanted(30), "nothing comes while the broker is away");
        broker.set_away(false);
        until("the others have come as well", async || by_key(&heard) == wanted(60)).await;
        context.stop().cancel();
        context.finished().await;
        assert_eq!(by_key(&heard), wanted(60));
        drop(db);
        somewhere.end().await;
    }
}

/// A broker in a file, and RabbitMQ where there is one, with a prefix of the test's own.
fn shared_brokers(test: &str, folder: &std::path::Path) -> Vec<String> {
    let mut addresses = vec![format!("sqlite:{}", folder.join("broker.db").display())];
    match std::env::var("MAINSTAY_TEST_AMQP") {
        Ok(server) => addresses.push(format!("{server}?prefix=test.{}.", order_kit::new_id())),
        Err(_) => eprintln!("skipped: {test} on RabbitMQ: MAINSTAY_TEST_AMQP is not set"),
    }
    addresses
}

#[tokio::test]
async fn what_a_process_writes_that_consumes_nothing_reaches_a_queue_that_another_has_declared() {
    let folder = tempfile::tempdir().unwrap();
    let all = Topology::new(events::EXCHANGE).queue(Queue::new("all").bind("#"));
    for address in shared_brokers("what_a_process_writes_that_consumes_nothing", folder.path()) {
        let listener = order_broker::open(&address).await.unwrap();
        listener.declare(&all).await.unwrap();
        let somewhere = Somewhere::sqlite();
        let context = context("test", Env::empty(), order_broker::open(&address).await.unwrap());
        let db = Db::open(somewhere.place.clone(), &[]).await.unwrap();
        // As after a restart: something is unsent when the relay begins.
        emit_one(&db).await;
        start_relay(&context, &db);
        emit_one(&db).await;
        until("the outbox is empty", async || db.read(async |tx| tx.unsent().await).await.unwrap_or(9) == 0)
            .await;
        context.stop().cancel();
        context.finished().await;
        let there = listener.stats("all").await.unwrap().ready;
        if address.starts_with("amqp") {
            let cleaner = Amqp::new(&address).unwrap();
            cleaner.declare(&all).await.unwrap();
            cleaner.delete_declared().await.unwrap();
        }
        assert_eq!(there, 2, "{address}");
        drop(db);
        somewhere.end().await;
    }
}

#[tokio::test]
async fn nothing_leaves_the_outbox_until_the_exchange_is_there() {
    let inner = memory().await;
    let broker = Switched::new(inner.clone());
    broker.set_away(true);
    let context = context("test", Env::empty(), Arc::new(broker.clone()));
    let somewhere = Somewhere::sqlite();
    let db = Db::open(somewhere.place.clone(), &[]).await.unwrap();
    start_relay(&context, &db);
    emit_one(&db).await;
    let unsent = async || {
        db.read(async |tx| tx.unsent().await).await.unwrap_or_else(|error: DbError| panic!("{error}"))
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(unsent().await, 1, "it waits");
    inner.declare(&Topology::new(events::EXCHANGE).queue(Queue::new("all").bind("#"))).await.unwrap();
    broker.set_away(false);
    until("it has come", async || inner.stats("all").await.unwrap().ready == 1).await;
    until("it is marked", async || unsent().await == 0).await;
    broker.set_away(true);
    emit_one(&db).await;
    context.stop().cancel();
    tokio::time::timeout(Duration::from_secs(5), context.finished()).await.expect("it ends without a broker");
    drop(db);
    somewhere.end().await;
}

#[tokio::test]
async fn what_was_written_before_the_end_is_published_before_it() {
    let somewhere = Somewhere::sqlite();
    let broker = memory().await;
    broker.declare(&Topology::new(events::EXCHANGE).queue(Queue::new("all").bind("#"))).await.unwrap();
    let context = context("test", Env::empty(), broker.clone());
    let db = Db::open(somewhere.place.clone(), &[]).await.unwrap();
    start_relay(&context, &db);
    emit_some(&db, 0, 3).await;
    context.stop().cancel();
    context.finished().await;
    assert_eq!(broker.stats("all").await.unwrap().ready, 6);
    drop(db);
    somewhere.end().await;
}

#[tokio::test]
async fn what_the_last_request_writes_is_published_before_the_end() {
    let somewhere = Somewhere::sqlite();
    let broker = memory().await;
    broker.declare(&Topology::new(events::EXCHANGE).queue(Queue::new("all").bind("#"))).await.unwrap();
    let context = context("test", Env::empty(), broker.clone());
    let db = Db::open(somewhere.place.clone(), &[]).await.unwrap();
    start_relay(&context, &db);
    let (begun, writer) = (Arc::new(tokio::sync::Notify::new()), db.clone());
    let told = begun.clone();
    let late = async move || {
        told.notify_one();
        // The relay would have ended by now, if it did not wait.
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        emit_one(&writer).await;
    };
    let routes = axum::Router::new().route("/late", axum::routing::get(late));
    let served = Served::start(context.clone(), service(routes, Vec::new()), Access::Everybody).await;
    let url = format!("{}/late", served.url);
    let request = tokio::spawn(async move { get(&url).await.0 });
    begun.notified().await;
    context.stop().cancel();
    assert_eq!(request.await.unwrap(), 200);
    served.serving.await.unwrap();
    context.finished().await;
    assert_eq!(broker.stats("all").await.unwrap().ready, 1);
    drop((db, context, served.context));
    somewhere.end().await;
}

#[tokio::test]
async fn an_event_says_where_it_comes_from_and_nobody_can_say_otherwise() {
    let somewhere = Somewhere::sqlite();
    let db = Db::open(somewhere.place.clone(), &[]).await.unwrap();
    let data =
        json!({ "id": "x", "type": "x", "timestamp": "x", "metadata": { "source": "x", "timestamp": "x" } });
    let theirs = data.clone();
    let emitted = trace::with_correlation("orders", "request-7".to_owned(), async {
        db.write(async move |tx| emit(tx, "orders", "order.created", "o1", &theirs).await).await
    });
    let text = emitted.await.unwrap_or_else(|error: DbError| panic!("{error}"));
    let said: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(said["data"], data, "what they say is the data, and nothing else");
    let (id, at) = (said["id"].as_str().unwrap(), said["metadata"]["timestamp"].as_str().unwrap());
    assert!(id.len() == 36 && at.starts_with("20") && at.ends_with('Z'), "{said}");
    assert_eq!(
        (
            &said["type"],
            &said["metadata"]["source"],
            &said["metadata"]["version"],
            &said["metadata"]["correlationId"]
        ),
        (&json!("order.created"), &json!("orders"), &json!("1.0"), &json!("request-7"))
    );
    drop(db);
    somewhere.end().await;
}

#[tokio::test]
async fn a_handler_that_panics_gets_its_event_again() {
    let broker = memory().await;
    let context = context("test", Env::empty(), broker.clone());
    let times = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let seen = times.clone();
    consume(&context, Queue::new("all").bind("#"), 4, move |_| {
        let time = seen.fetch_add(1, Ordering::SeqCst);
        async move {
            match time {
                0 => panic!("on purpose"),
                1 => Err(Trouble::Later("not yet".to_owned())),
                _ => Ok(()),
            }
        }
    })
    .await
    .unwrap();
    let somewhere = Somewhere::sqlite();
    let db = Db::open(somewhere.place.clone(), &[]).await.unwrap();
    start_relay(&context, &db);
    emit_one(&db).await;
    until("it is handled", async || times.load(Ordering::SeqCst) == 3).await;
    until("it is gone", async || broker.stats("all").await.unwrap().backlog() == 0).await;
    context.stop().cancel();
    context.finished().await;
    drop(db);
    somewhere.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_says_nothing_holds_up_a_start_for_two_seconds_and_no_longer() {
    // It is connected to, and nobody answers there.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("amqp://guest:guest@{}/%2f", silent.local_addr().unwrap());
    let context = context("test", Env::empty(), order_broker::open(&address).await.unwrap());
    let began = tokio::time::Instant::now();
    consume(&context, Queue::new("all").bind("#"), 1, |_| std::future::ready(Ok(()))).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 2, "it starts all the same");
    context.stop().cancel();
    context.finished().await;
}

async fn emit_one(db: &Db) {
    let emitted = db.write(async |tx| emit(tx, "test", "x", "k", &json!({})).await.map(drop)).await;
    emitted.unwrap_or_else(|error: DbError| panic!("{error}"));
}

#[tokio::test]
async fn whoever_listens_consumes_when_it_has_been_built_and_says_so_when_it_does_not() {
    let inner = memory().await;
    let broker = Switched::new(inner.clone());
    let context = context("listener", Env::empty(), Arc::new(broker.clone()));
    let listen = async |queue: &str| {
        let handled = |_| std::future::ready(Ok::<_, Trouble>(()));
        consume(&context, Queue::new(queue).bind("#"), 1, handled).await.unwrap();
    };
    listen("here").await;
    assert_eq!(inner.stats("here").await.unwrap().consumers, 1);
    let ready = async || {
        health::ready("listener", Duration::ZERO, &[Check::message_queue(&context, true)]).await.status
    };
    assert_eq!(ready().await, health::Status::Ok);
    broker.set_away(true);
    listen("away").await;
    assert_eq!(ready().await, health::Status::Unhealthy);
    broker.set_away(false);
    until("both are consumed", async || ready().await == health::Status::Ok).await;
    assert_eq!(inner.stats("away").await.unwrap().consumers, 1);
    context.stop().cancel();
    context.finished().await;
}
