//! The outbox and the inbox on `rusqlite`.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

use std::{
    cell::RefCell,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::saga::{
    inbox::{self, Accepted},
    outbox::{self, Message, Parked, Relay, Relayed, Unsent},
};
use proptest::test_runner::{Config, TestRunner};
use rusqlite::{Connection, TransactionBehavior::Immediate};

#[path = "support/outbox.rs"]
mod support;
use support::{Fault, Outbox, Twin, block_on, patient, seen};

/// A database in a directory that goes when it is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mainstay-outbox-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        // Here and not in `open`: of several that change the mode at once, SQLite refuses all but one, whatever their busy timeouts.
        Connection::open(path.join("database")).unwrap().execute_batch("pragma journal_mode = wal").unwrap();
        Directory(path)
    }

    fn open(&self) -> Sqlite {
        let connection = Connection::open(self.0.join("database")).unwrap();
        connection.busy_timeout(Duration::from_secs(30)).unwrap();
        connection.execute_batch("pragma synchronous = off").unwrap();
        Sqlite::on(connection)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Sqlite(Connection);

impl Sqlite {
    fn on(connection: Connection) -> Self {
        outbox::sqlite::install(&connection).unwrap();
        inbox::sqlite::install(&connection).unwrap();
        Sqlite(connection)
    }

    fn outbox(&mut self) -> &mut Self {
        self
    }
}

fn in_memory(_: &str) -> Option<Sqlite> {
    Some(Sqlite::on(Connection::open_in_memory().unwrap()))
}

impl Outbox for Sqlite {
    async fn append(&mut self, key: &str, number: u32, commit: bool) {
        let tx = self.0.transaction_with_behavior(Immediate).unwrap();
        outbox::sqlite::append(&tx, "topic", key, &number).unwrap();
        if commit {
            tx.commit().unwrap();
        }
    }

    async fn relay(
        &mut self,
        relay: &Relay,
        publisher: impl AsyncFnMut(Message) -> Result<(), Unsent>,
    ) -> Relayed {
        outbox::sqlite::relay(&mut self.0, relay, publisher).await.unwrap()
    }

    async fn parked(&mut self) -> Vec<Parked> {
        outbox::sqlite::parked(&self.0, 100).unwrap()
    }

    async fn release(&mut self, id: &str) -> bool {
        outbox::sqlite::release(&self.0, id).unwrap()
    }

    async fn discard(&mut self, id: &str) -> bool {
        outbox::sqlite::discard(&self.0, id).unwrap()
    }

    async fn prune(&mut self, keep: Duration) -> usize {
        outbox::sqlite::prune(&self.0, keep, 100).unwrap()
    }

    async fn rows(&mut self) -> usize {
        self.0.query_row("select count(*) from mainstay_outbox", [], |row| row.get::<_, u32>(0)).unwrap()
            as usize
    }
}

support::every_scenario!(in_memory);

#[test]
fn any_history_publishes_what_was_committed_in_the_order_of_each_key() {
    let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&support::histories(), |history| {
        block_on(support::property(&mut in_memory("").unwrap(), &history))
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn the_property_sees_every_planted_fault() {
    let run = |fault| {
        let config =
            Config { cases: 2_000, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
        TestRunner::new(config).run(&support::histories(), |history| {
            let mut twin = Twin::default();
            twin.fault = fault;
            block_on(support::property(&mut twin, &history))
        })
    };
    run(None).expect("the twin without a fault is as it should be");
    for fault in [Fault::MarksFirst, Fault::GoesOnBehindRefused, Fault::OutlivesRollback, Fault::MarksAll] {
        assert!(run(Some(fault)).is_err(), "nothing notices {fault:?}");
    }
}

#[test]
fn two_relays_repeat_and_do_not_reorder() {
    let directory = Directory::new("two-relays");
    let published = Mutex::new(Vec::new());
    let appended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut outbox = directory.open();
            for number in 0..300 {
                block_on(outbox.append(&(number % 3).to_string(), number, true));
            }
            appended.store(true, SeqCst);
        });
        for relay in 0..2 {
            let (directory, published, appended) = (&directory, &published, &appended);
            scope.spawn(move || {
                let mut outbox = directory.open();
                let calls = RefCell::new(relay);
                loop {
                    let over = appended.load(SeqCst);
                    let publisher = async |message: Message| {
                        *calls.borrow_mut() += 1;
                        if *calls.borrow() % 7 == 0 {
                            return Err(Unsent::refused("no"));
                        }
                        published.lock().unwrap().push(seen(&message));
                        Ok(())
                    };
                    let relayed = block_on(outbox.relay(&patient().batch(10), publisher));
                    if over && relayed == Relayed::default() {
                        break;
                    }
                }
            });
        }
    });
    let by_key = support::first_of_each(published.into_inner().unwrap());
    assert_eq!(by_key.values().map(Vec::len).sum::<usize>(), 300, "nothing is lost");
    for (key, numbers) in by_key {
        assert!(numbers.is_sorted(), "key {key} is in order: {numbers:?}");
    }
}

/// A relay is a task.
#[test]
fn the_relay_can_be_spawned() {
    let Sqlite(mut connection) = in_memory("").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let relay = runtime.spawn(async move {
        outbox::sqlite::relay(&mut connection, &Relay::new(), async |_| Ok(())).await.unwrap()
    });
    assert!(runtime.block_on(relay).unwrap().is_idle());
}

#[test]
fn what_cannot_be_written_as_json_is_told_and_not_appended() {
    let Sqlite(mut connection) = in_memory("").unwrap();
    let tx = connection.transaction().unwrap();
    let error = outbox::sqlite::append(&tx, "topic", "key", &std::collections::HashMap::from([((1, 2), 3)]));
    assert!(
        error.unwrap_err().to_string().starts_with("the payload of an event"),
        "a map whose keys are no text"
    );
}

fn accept(outbox: &mut Sqlite, consumer: &str, message: &str, commit: bool) -> Accepted {
    let tx = outbox.0.transaction_with_behavior(Immediate).unwrap();
    let accepted = inbox::sqlite::accept(&tx, consumer, message).unwrap();
    if commit {
        tx.commit().unwrap();
    }
    accepted
}

#[test]
fn a_message_is_accepted_once_by_each_consumer() {
    let mut database = in_memory("").unwrap();
    assert_eq!(accept(&mut database, "a", "1", false), Accepted::First);
    assert_eq!(accept(&mut database, "a", "1", true), Accepted::First, "the first one was rolled back");
    assert_eq!(accept(&mut database, "a", "1", true), Accepted::Duplicate);
    assert_eq!(accept(&mut database, "b", "1", true), Accepted::First);
    assert_eq!(accept(&mut database, "a", "2", true), Accepted::First);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(inbox::sqlite::prune(&database.0, inbox::KEEP, 10).unwrap(), 0);
    assert_eq!(inbox::sqlite::prune(&database.0, Duration::ZERO, 2).unwrap(), 2);
    assert_eq!(inbox::sqlite::prune(&database.0, Duration::ZERO, 2).unwrap(), 1);
    assert_eq!(accept(&mut database, "a", "1", true), Accepted::First);
}

#[test]
fn of_simultaneous_deliveries_one_is_the_first() {
    let directory = Directory::new("inbox");
    let first = Mutex::new(vec![0; 300]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut database = directory.open();
                for message in 0..300 {
                    if accept(&mut database, "a", &message.to_string(), true) == Accepted::First {
                        first.lock().unwrap()[message] += 1;
                    }
                }
            });
        }
    });
    assert_eq!(first.into_inner().unwrap(), vec![1; 300]);
}

/// Where one connection does all the writing, it marks together with whatever else it writes; what is not marked comes again.
#[test]
fn a_round_is_marked_in_the_callers_transaction() {
    let directory = Directory::new("parts");
    let (mut writer, reader) = (directory.open().0, directory.open().0);
    for number in 0..2 {
        let tx = writer.transaction_with_behavior(Immediate).unwrap();
        outbox::sqlite::append(&tx, "orders", &format!("order-{number}"), &number).unwrap();
        tx.commit().unwrap();
    }
    let relay = Relay::new();
    let publish = || {
        let round = outbox::sqlite::Round::read(&reader, &relay).unwrap();
        let mut told = Vec::new();
        let published = block_on(round.publish_many(&relay, async |messages: Vec<Message>| {
            told.extend(messages.iter().map(|message| message.key.clone()));
            messages.iter().map(|_| Ok(())).collect()
        }));
        (published, told)
    };
    let both = ["order-0", "order-1"];
    let (published, told) = publish();
    assert_eq!(told, both);
    drop(published);
    let (published, told) = publish();
    assert_eq!(told, both, "nothing was marked");
    let tx = writer.transaction_with_behavior(Immediate).unwrap();
    published.mark(&tx).unwrap();
    tx.rollback().unwrap();
    let (published, told) = publish();
    assert_eq!(told, both, "the marks were taken back with the transaction");
    let tx = writer.transaction_with_behavior(Immediate).unwrap();
    assert_eq!(published.mark(&tx).unwrap().sent, 2);
    tx.commit().unwrap();
    assert!(outbox::sqlite::Round::read(&reader, &relay).unwrap().is_empty());
}
