//! The outbox and the inbox on `sqlx`, with the server of `MAINSTAY_TEST_POSTGRES`: alone, and beside those on `tokio-postgres`.
#![allow(missing_docs)]

use std::{
    cell::RefCell,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use mainstay::saga::{
    inbox::{self, Accepted},
    outbox::{self, Message, Parked, Relay, Relayed, Unsent},
};
use proptest::test_runner::{Config, TestRunner};
use sqlx::{Connection, PgConnection, postgres::PgPoolOptions};
use tokio_postgres::Client;

#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/outbox.rs"]
mod support;
use postgres::Schema;
use support::{Outbox, block_on, patient, seen};

struct Sqlx(PgConnection);

impl Sqlx {
    fn on(schema: &Schema) -> Self {
        let mut connection = schema.connect_sqlx();
        block_on(outbox::sqlx::install(&mut connection)).unwrap();
        block_on(inbox::sqlx::install(&mut connection)).unwrap();
        // A relay needs another level than this one.
        let settings =
            "set synchronous_commit to off; set default_transaction_isolation to 'repeatable read'";
        block_on(sqlx::raw_sql(settings).execute(&mut connection)).unwrap();
        Sqlx(connection)
    }

    async fn count(&mut self, what: &str) -> i64 {
        let count = format!("select count(*) from mainstay_outbox where {what}");
        sqlx::query_scalar(&count).fetch_one(&mut self.0).await.unwrap()
    }
}

/// In this order: the connection goes before its schema.
struct Opened {
    outbox: Sqlx,
    _schema: Schema,
}

impl Opened {
    fn outbox(&mut self) -> &mut Sqlx {
        &mut self.outbox
    }
}

fn open(test: &str) -> Option<Opened> {
    let schema = Schema::new(test)?;
    Some(Opened { outbox: Sqlx::on(&schema), _schema: schema })
}

impl Outbox for Sqlx {
    async fn append(&mut self, key: &str, number: u32, commit: bool) {
        let mut tx = self.0.begin().await.unwrap();
        outbox::sqlx::append(&mut tx, "topic", key, &number).await.unwrap();
        if commit {
            tx.commit().await.unwrap();
        }
    }

    async fn relay(
        &mut self,
        relay: &Relay,
        publisher: impl AsyncFnMut(Message) -> Result<(), Unsent>,
    ) -> Relayed {
        outbox::sqlx::relay(self.0.begin().await.unwrap(), relay, publisher).await.unwrap()
    }

    async fn parked(&mut self) -> Vec<Parked> {
        outbox::sqlx::parked(&mut self.0, 100).await.unwrap()
    }

    async fn release(&mut self, id: &str) -> bool {
        outbox::sqlx::release(&mut self.0, id).await.unwrap()
    }

    async fn discard(&mut self, id: &str) -> bool {
        outbox::sqlx::discard(&mut self.0, id).await.unwrap()
    }

    async fn prune(&mut self, keep: Duration) -> usize {
        outbox::sqlx::prune(&mut self.0, keep, 100).await.unwrap() as usize
    }

    async fn rows(&mut self) -> usize {
        self.count("true").await as usize
    }
}

support::every_scenario!(open);

#[test]
fn any_history_publishes_what_was_committed_in_the_order_of_each_key() {
    let Some(opened) = open("any_history_publishes_what_was_committed_in_the_order_of_each_key") else {
        return;
    };
    let opened = RefCell::new(opened);
    let config = Config { cases: 60, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&support::histories(), |history| {
        let outbox = &mut opened.borrow_mut().outbox;
        block_on(sqlx::raw_sql("delete from mainstay_outbox").execute(&mut outbox.0)).unwrap();
        block_on(support::property(outbox, &history))
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// One on either client.
enum Either {
    Sqlx(Sqlx),
    Postgres(Client),
}

impl Either {
    async fn append(&mut self, key: &str, number: u32) {
        match self {
            Either::Sqlx(outbox) => outbox.append(key, number, true).await,
            Either::Postgres(client) => {
                let tx = client.transaction().await.unwrap();
                outbox::postgres::append(&tx, "topic", key, &number).await.unwrap();
                tx.commit().await.unwrap();
            }
        }
    }

    async fn relay(
        &mut self,
        relay: &Relay,
        publisher: impl AsyncFnMut(Message) -> Result<(), Unsent>,
    ) -> Relayed {
        match self {
            Either::Sqlx(outbox) => outbox.relay(relay, publisher).await,
            Either::Postgres(client) => outbox::postgres::relay(client, relay, publisher).await.unwrap(),
        }
    }
}

#[test]
fn relays_on_both_clients_share_the_work_and_keep_the_order() {
    const MESSAGES: u32 = 600;
    let Some(schema) = Schema::new("relays_on_both_clients_share_the_work_and_keep_the_order") else {
        return;
    };
    // The keys of each appender are its own, so that the numbers of a key grow.
    let published = Mutex::new(Vec::new());
    let running = AtomicUsize::new(2);
    // Each with its connection to look on. Appenders are the first two.
    let outboxes: Vec<_> = (0..6)
        .map(|index| {
            let look = Sqlx::on(&schema);
            let outbox = match index % 2 {
                0 => Either::Sqlx(Sqlx::on(&schema)),
                _ => Either::Postgres(schema.connect()),
            };
            (look, outbox)
        })
        .collect();
    let work = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (index, (mut look, mut outbox)) in outboxes.into_iter().enumerate() {
            let (published, running, work) = (&published, &running, &work);
            scope.spawn(move || {
                if index < 2 {
                    for number in (index as u32..MESSAGES).step_by(2) {
                        block_on(outbox.append(&(number % 6).to_string(), number));
                    }
                    running.fetch_sub(1, Relaxed);
                    return;
                }
                let calls = RefCell::new(index);
                let mut sent = 0;
                loop {
                    let over = running.load(Relaxed) == 0;
                    let publisher = async |message: Message| {
                        *calls.borrow_mut() += 1;
                        match *calls.borrow() % 11 {
                            0 => return Err(Unsent::refused("no")),
                            5 => return Err(Unsent::unavailable("down")),
                            _ => {}
                        }
                        tokio::time::sleep(Duration::from_micros(200)).await;
                        published.lock().unwrap().push(seen(&message));
                        Ok(())
                    };
                    let relayed = block_on(outbox.relay(&patient().batch(8), publisher));
                    sent += relayed.sent;
                    // Others may hold what is left.
                    if over && block_on(look.count("sent is null")) == 0 {
                        break;
                    }
                }
                work.fetch_add(usize::from(sent > 0), Relaxed);
            });
        }
    });
    let published = published.into_inner().unwrap();
    assert_eq!(
        published.len(),
        MESSAGES as usize,
        "nothing is lost, and without a crash nothing is repeated"
    );
    for (key, numbers) in support::first_of_each(published) {
        assert!(numbers.is_sorted(), "key {key} is in order: {numbers:?}");
    }
    assert!(work.load(Relaxed) > 1, "more than one relay had something to do");
}

/// Otherwise the later number could be committed and published first.
#[test]
fn a_transaction_appends_behind_one_on_the_other_client_that_is_not_over() {
    let Some(schema) = Schema::new("a_transaction_appends_behind_one_on_the_other_client") else { return };
    let (Sqlx(mut one), mut two) = (Sqlx::on(&schema), schema.connect());
    schema.runtime.block_on(async {
        let mut first = one.begin().await.unwrap();
        outbox::sqlx::append(&mut first, "topic", "a", &1).await.unwrap();
        let second = two.transaction().await.unwrap();
        {
            let mut append = std::pin::pin!(outbox::postgres::append(&second, "topic", "a", &2));
            let waited = tokio::time::timeout(Duration::from_millis(200), append.as_mut()).await;
            assert!(waited.is_err(), "it waits for the key");
            first.commit().await.unwrap();
            append.await.unwrap();
        }
        second.commit().await.unwrap();
        let published = support::Published::default();
        let tx = one.begin().await.unwrap();
        outbox::sqlx::relay(tx, &Relay::new(), support::into(&published)).await.unwrap();
        assert_eq!(support::first_of_each(published.take())["a"], [1, 2]);
    });
}

#[test]
fn a_key_in_the_hands_of_one_relay_is_left_alone_by_one_on_the_other_client() {
    let name = "a_key_in_the_hands_of_one_relay_is_left_alone_by_one_on_the_other_client";
    let Some(schema) = Schema::new(name) else { return };
    let (mut one, mut two) = (Sqlx::on(&schema), schema.connect());
    block_on(async {
        for (key, number) in [("a", 1), ("a", 2), ("b", 3)] {
            one.append(key, number, true).await;
        }
        let others = support::Published::default();
        let two = &mut two;
        let slow = async |_| {
            outbox::postgres::relay(two, &Relay::new(), support::into(&others)).await.unwrap();
            Ok(())
        };
        assert_eq!(one.relay(&Relay::new().batch(1), slow).await.sent, 1);
        assert_eq!(others.take(), [("b".to_owned(), 3)]);
    });
}

#[test]
fn many_at_once_are_told_in_waves() {
    let Some(mut opened) = open("many_at_once_are_told_in_waves") else { return };
    let outbox = opened.outbox();
    block_on(async {
        for (key, number) in [("a", 1), ("a", 2), ("b", 3)] {
            outbox.append(key, number, true).await;
        }
        let mut waves = Vec::new();
        let publisher = async |wave: Vec<Message>| {
            waves.push(wave.iter().map(seen).collect::<Vec<_>>());
            vec![Ok(()); wave.len()]
        };
        let tx = outbox.0.begin().await.unwrap();
        let relayed = outbox::sqlx::relay_many(tx, &Relay::new(), publisher).await.unwrap();
        assert_eq!(relayed.sent, 3);
        assert_eq!(waves, [vec![("a".to_owned(), 1), ("b".to_owned(), 3)], vec![("a".to_owned(), 2)]]);
        assert_eq!(outbox.count("sent is null").await, 0);
    });
}

/// A relay is a task, which may be aborted: what it held is free, as soon as the pool has its connection back.
#[test]
fn the_relay_can_be_spawned_and_aborted() {
    let Some(schema) = Schema::new("the_relay_can_be_spawned_and_aborted") else { return };
    let mut other = Sqlx::on(&schema);
    block_on(other.append("a", 1, true));
    let connecting = PgPoolOptions::new().max_connections(1).connect_with(schema.options());
    let pool = schema.runtime.block_on(connecting).expect("the server answers");
    let relay = pool.clone();
    let (began, begins) = tokio::sync::oneshot::channel();
    let mut began = Some(began);
    let relay = schema.runtime.spawn(async move {
        let publisher = move |_: Message| {
            began.take().unwrap().send(()).unwrap();
            std::future::pending()
        };
        outbox::sqlx::install(&relay).await.unwrap();
        outbox::sqlx::prune(&relay, Duration::MAX, 1).await.unwrap();
        assert!(outbox::sqlx::parked(&relay, 1).await.unwrap().is_empty());
        assert!(!outbox::sqlx::release(&relay, "nobody").await.unwrap());
        outbox::sqlx::relay(relay.begin().await.unwrap(), &Relay::new(), publisher).await.unwrap()
    });
    schema.runtime.block_on(async {
        begins.await.unwrap();
        let published = support::Published::default();
        assert!(other.relay(&Relay::new(), support::into(&published)).await.is_idle(), "another one has it");
        relay.abort();
        assert!(relay.await.unwrap_err().is_cancelled());
        let tx = pool.begin().await.unwrap();
        let relayed = outbox::sqlx::relay(tx, &Relay::new(), support::into(&published)).await.unwrap();
        assert_eq!((relayed.sent, published.take().len()), (1, 1));
    });
}

async fn accept(database: &mut Sqlx, consumer: &str, message: &str, commit: bool) -> Accepted {
    let mut tx = database.0.begin_with("begin isolation level read committed").await.unwrap();
    let accepted = inbox::sqlx::accept(&mut tx, consumer, message).await.unwrap();
    if commit {
        tx.commit().await.unwrap();
    }
    accepted
}

async fn accept_next_door(client: &mut Client, consumer: &str, message: &str) -> Accepted {
    let tx = client.transaction().await.unwrap();
    let accepted = inbox::postgres::accept(&tx, consumer, message).await.unwrap();
    tx.commit().await.unwrap();
    accepted
}

#[test]
fn a_message_is_accepted_once_by_each_consumer() {
    let Some(schema) = Schema::new("a_message_is_accepted_once_by_each_consumer") else { return };
    let (mut database, mut neighbour) = (Sqlx::on(&schema), schema.connect());
    let database = &mut database;
    block_on(async {
        assert_eq!(accept(database, "a", "1", false).await, Accepted::First);
        assert_eq!(accept(database, "a", "1", true).await, Accepted::First, "the first one was rolled back");
        assert_eq!(accept(database, "a", "1", true).await, Accepted::Duplicate);
        assert_eq!(accept_next_door(&mut neighbour, "a", "1").await, Accepted::Duplicate);
        assert_eq!(accept_next_door(&mut neighbour, "b", "1").await, Accepted::First);
        assert_eq!(accept(database, "b", "1", true).await, Accepted::Duplicate);
        assert_eq!(accept(database, "a", "2", true).await, Accepted::First);
        assert_eq!(inbox::sqlx::prune(&mut database.0, inbox::KEEP, 10).await.unwrap(), 0);
        assert_eq!(inbox::sqlx::prune(&mut database.0, Duration::ZERO, 2).await.unwrap(), 2);
        assert_eq!(inbox::sqlx::prune(&mut database.0, Duration::ZERO, 2).await.unwrap(), 1);
        assert_eq!(accept(database, "a", "1", true).await, Accepted::First);
    });
}

#[test]
fn of_simultaneous_deliveries_one_is_the_first() {
    let Some(schema) = Schema::new("of_simultaneous_deliveries_one_is_the_first") else { return };
    let first = Mutex::new(vec![0; 300]);
    let databases: Vec<_> = (0..3).map(|_| Sqlx::on(&schema)).collect();
    let mut neighbour = schema.connect();
    std::thread::scope(|scope| {
        let first = &first;
        for mut database in databases {
            scope.spawn(move || {
                for message in 0..300 {
                    let accepted = block_on(accept(&mut database, "a", &message.to_string(), true));
                    first.lock().unwrap()[message] += usize::from(accepted == Accepted::First);
                }
            });
        }
        scope.spawn(move || {
            for message in 0..300 {
                let accepted = block_on(accept_next_door(&mut neighbour, "a", &message.to_string()));
                first.lock().unwrap()[message] += usize::from(accepted == Accepted::First);
            }
        });
    });
    assert_eq!(first.into_inner().unwrap(), vec![1; 300]);
}
