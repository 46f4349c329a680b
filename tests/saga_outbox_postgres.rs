//! The outbox and the inbox on `tokio-postgres`, with the server of `MAINSTAY_TEST_POSTGRES`.
#![cfg(feature = "postgres")]
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
use tokio_postgres::Client;

#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/outbox.rs"]
mod support;
use postgres::Schema;
use support::{Outbox, block_on, patient, seen};

struct Postgres(Client);

impl Postgres {
    fn on(schema: &Schema) -> Self {
        let client = schema.connect();
        block_on(outbox::postgres::install(&client)).unwrap();
        block_on(inbox::postgres::install(&client)).unwrap();
        block_on(client.batch_execute("set synchronous_commit to off")).unwrap();
        Postgres(client)
    }
}

/// In this order: the client goes before its schema.
struct Opened {
    outbox: Postgres,
    _schema: Schema,
}

impl Opened {
    fn outbox(&mut self) -> &mut Postgres {
        &mut self.outbox
    }
}

fn open(test: &str) -> Option<Opened> {
    let schema = Schema::new(test)?;
    Some(Opened { outbox: Postgres::on(&schema), _schema: schema })
}

impl Outbox for Postgres {
    async fn append(&mut self, key: &str, number: u32, commit: bool) {
        let tx = self.0.transaction().await.unwrap();
        outbox::postgres::append(&tx, "topic", key, &number).await.unwrap();
        if commit {
            tx.commit().await.unwrap();
        }
    }

    async fn relay(
        &mut self,
        relay: &Relay,
        publisher: impl AsyncFnMut(Message) -> Result<(), Unsent>,
    ) -> Relayed {
        outbox::postgres::relay(&mut self.0, relay, publisher).await.unwrap()
    }

    async fn parked(&mut self) -> Vec<Parked> {
        outbox::postgres::parked(&self.0, 100).await.unwrap()
    }

    async fn release(&mut self, id: &str) -> bool {
        outbox::postgres::release(&self.0, id).await.unwrap()
    }

    async fn discard(&mut self, id: &str) -> bool {
        outbox::postgres::discard(&self.0, id).await.unwrap()
    }

    async fn prune(&mut self, keep: Duration) -> usize {
        outbox::postgres::prune(&self.0, keep, 100).await.unwrap() as usize
    }

    async fn rows(&mut self) -> usize {
        let count = self.0.query_one("select count(*) from mainstay_outbox", &[]).await.unwrap();
        count.get::<_, i64>(0) as usize
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
        block_on(outbox.0.execute("delete from mainstay_outbox", &[])).unwrap();
        block_on(support::property(outbox, &history))
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn several_relays_share_the_work_and_keep_the_order() {
    const MESSAGES: u32 = 600;
    let Some(schema) = Schema::new("several_relays_share_the_work_and_keep_the_order") else { return };
    // The keys of each appender are its own, so that the numbers of a key grow.
    let published = Mutex::new(Vec::new());
    let running = AtomicUsize::new(2);
    let outboxes: Vec<_> = (0..5).map(|_| Postgres::on(&schema)).collect();
    let work = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (index, mut outbox) in outboxes.into_iter().enumerate() {
            let (published, running, work) = (&published, &running, &work);
            scope.spawn(move || {
                if index < 2 {
                    for number in (index as u32..MESSAGES).step_by(2) {
                        block_on(outbox.append(&(number % 6).to_string(), number, true));
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
                    if over && block_on(unsent(&outbox.0)) == 0 {
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

async fn unsent(client: &Client) -> i64 {
    client.query_one("select count(*) from mainstay_outbox where sent is null", &[]).await.unwrap().get(0)
}

/// Otherwise the later number could be committed and published first.
#[test]
fn a_transaction_appends_behind_one_that_has_appended_to_the_same_key_and_is_not_over() {
    let Some(schema) = Schema::new("a_transaction_appends_behind_one_that_is_not_over") else { return };
    let (mut one, mut two) = (Postgres::on(&schema).0, Postgres::on(&schema).0);
    schema.runtime.block_on(async {
        let first = one.transaction().await.unwrap();
        outbox::postgres::append(&first, "topic", "a", &1).await.unwrap();
        let second = two.transaction().await.unwrap();
        outbox::postgres::append(&second, "topic", "b", &2).await.unwrap();
        {
            let mut append = std::pin::pin!(outbox::postgres::append(&second, "topic", "a", &3));
            let waited = tokio::time::timeout(Duration::from_millis(200), append.as_mut()).await;
            assert!(waited.is_err(), "it waits for the key");
            let numbers = "select last_value from pg_sequences where schemaname = current_schema()";
            let last: i64 = first.query_one(numbers, &[]).await.unwrap().get(0);
            assert_eq!(
                last, 2,
                "it has no number yet, so that the order of the numbers is that of the commits"
            );
            first.commit().await.unwrap();
            append.await.unwrap();
        }
        second.commit().await.unwrap();
        let published = support::Published::default();
        outbox::postgres::relay(&mut one, &Relay::new(), support::into(&published)).await.unwrap();
        let published = support::first_of_each(published.take());
        assert_eq!(published["a"], [1, 3]);
    });
}

#[test]
fn a_key_in_the_hands_of_one_relay_is_left_alone_by_another() {
    let Some(schema) = Schema::new("a_key_in_the_hands_of_one_relay_is_left_alone_by_another") else {
        return;
    };
    let (mut one, mut two) = (Postgres::on(&schema), Postgres::on(&schema));
    block_on(async {
        for (key, number) in [("a", 1), ("a", 2), ("b", 3)] {
            one.append(key, number, true).await;
        }
        let others = RefCell::new(Vec::new());
        let two = &mut two;
        let relay = Relay::new().batch(1);
        let slow = async |_| {
            let published = support::Published::default();
            two.relay(&Relay::new(), support::into(&published)).await;
            others.borrow_mut().extend(published.take());
            Ok(())
        };
        assert_eq!(one.relay(&relay, slow).await.sent, 1);
        assert_eq!(others.take(), [("b".to_owned(), 3)]);
    });
}

/// A relay is a task.
#[test]
fn the_relay_can_be_spawned() {
    let Some(schema) = Schema::new("the_relay_can_be_spawned") else { return };
    let Postgres(mut client) = Postgres::on(&schema);
    let relay = schema.runtime.spawn(async move {
        let publisher = async |_| {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(())
        };
        outbox::postgres::relay(&mut client, &Relay::new(), publisher).await.unwrap()
    });
    assert!(schema.runtime.block_on(relay).unwrap().is_idle());
}

async fn accept(database: &mut Postgres, consumer: &str, message: &str, commit: bool) -> Accepted {
    let tx = database.0.transaction().await.unwrap();
    let accepted = inbox::postgres::accept(&tx, consumer, message).await.unwrap();
    if commit {
        tx.commit().await.unwrap();
    }
    accepted
}

#[test]
fn a_message_is_accepted_once_by_each_consumer() {
    let Some(mut opened) = open("a_message_is_accepted_once_by_each_consumer") else { return };
    let database = opened.outbox();
    block_on(async {
        assert_eq!(accept(database, "a", "1", false).await, Accepted::First);
        assert_eq!(accept(database, "a", "1", true).await, Accepted::First, "the first one was rolled back");
        assert_eq!(accept(database, "a", "1", true).await, Accepted::Duplicate);
        assert_eq!(accept(database, "b", "1", true).await, Accepted::First);
        assert_eq!(accept(database, "a", "2", true).await, Accepted::First);
        assert_eq!(inbox::postgres::prune(&database.0, inbox::KEEP, 10).await.unwrap(), 0);
        assert_eq!(inbox::postgres::prune(&database.0, Duration::ZERO, 2).await.unwrap(), 2);
        assert_eq!(inbox::postgres::prune(&database.0, Duration::ZERO, 2).await.unwrap(), 1);
        assert_eq!(accept(database, "a", "1", true).await, Accepted::First);
    });
}

#[test]
fn of_simultaneous_deliveries_one_is_the_first() {
    let Some(schema) = Schema::new("of_simultaneous_deliveries_one_is_the_first") else { return };
    let first = Mutex::new(vec![0; 300]);
    let databases: Vec<_> = (0..4).map(|_| Postgres::on(&schema)).collect();
    std::thread::scope(|scope| {
        for mut database in databases {
            let first = &first;
            scope.spawn(move || {
                for message in 0..300 {
                    let accepted = block_on(accept(&mut database, "a", &message.to_string(), true));
                    first.lock().unwrap()[message] += usize::from(accepted == Accepted::First);
                }
            });
        }
    });
    assert_eq!(first.into_inner().unwrap(), vec![1; 300]);
}
