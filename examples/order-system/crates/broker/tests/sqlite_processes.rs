//! The SQLite broker between processes: `kill -9`, standing still, and a file that fails.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use order_broker::conformance::within;
use order_broker::{Broker, BrokerError, Consumer, Delivery, PublishError, Sqlite, Stats};
use support::process::{Process, VISIBILITY, numbered, topology};
use support::{Folder, runtime};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
#[ignore = "a role for the other tests, which start it as a process of its own"]
fn child() {
    support::process::play();
}

struct Place {
    folder: Folder,
}

impl Place {
    fn new(test: &str) -> Self {
        Self { folder: Folder::new(test) }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("broker.db")
    }

    fn address(&self) -> String {
        format!("sqlite:{}", self.path().display())
    }

    async fn open(&self) -> Sqlite {
        let broker = Sqlite::open(self.path()).await.expect("it opens");
        broker.declare(&topology()).await.expect("it declares");
        broker
    }

    /// Another way into the file, as an operator has.
    fn sql(&self, statement: &str) {
        let conn = rusqlite::Connection::open(self.path()).expect("it opens");
        conn.busy_timeout(PATIENCE).expect("it waits");
        conn.execute_batch(statement).expect("it is done");
    }
}

async fn next(consumer: &mut dyn Consumer) -> Delivery {
    within(PATIENCE, "the next delivery", consumer.next()).await.expect("the consumer goes on")
}

async fn until(broker: &dyn Broker, what: &str, right: impl Fn(&Stats) -> bool) {
    within(PATIENCE, what, async {
        while !right(&broker.stats("orders").await.expect("it has stats")) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

async fn publish(broker: &dyn Broker, count: usize) {
    for result in broker.publish(numbered(count)).await {
        result.expect("it is confirmed");
    }
}

#[test]
fn what_was_confirmed_survives_kill_9_of_its_publisher() {
    let place = Place::new("publisher");
    let mut publisher = Process::start("publish", &place.address());
    assert_eq!(publisher.says(), "published");
    publisher.kill();
    runtime().block_on(async {
        let broker = place.open().await;
        let mut consumer = broker.consume("orders", 10).await.unwrap();
        for n in 0..50 {
            let delivery = next(&mut *consumer).await;
            assert_eq!((delivery.message().body.as_str(), delivery.attempt()), (&*n.to_string(), 1));
            delivery.ack().await.unwrap();
        }
        until(&broker, "nothing is left", |stats| stats.backlog() == 0).await;
    });
}

#[test]
fn what_a_killed_handler_held_is_handled_by_another() {
    let place = Place::new("handler");
    runtime().block_on(async {
        let broker = place.open().await;
        publish(&broker, 4).await;
        let mut handler = Process::start("hold", &place.address());
        assert_eq!(handler.says(), "0");
        let mut consumer = broker.consume("orders", 1).await.unwrap();
        // It held 3 of the 4. While it lives, the last one is all that another gets.
        let delivery = next(&mut *consumer).await;
        assert_eq!(delivery.message().body, "3");
        delivery.ack().await.unwrap();
        handler.kill();
        for n in 0..3 {
            let delivery = next(&mut *consumer).await;
            assert_eq!((delivery.message().body.as_str(), delivery.attempt()), (&*n.to_string(), 2));
            delivery.ack().await.unwrap();
        }
        until(&broker, "nothing is left", |stats| stats.backlog() == 0 && stats.consumers == 1).await;
    });
}

#[test]
fn a_handler_may_take_longer_than_the_visibility_timeout() {
    let place = Place::new("slow");
    runtime().block_on(async {
        let (broker, other) = (place.open().await, place.open().await);
        publish(&broker, 1).await;
        let mut slow = broker.consume("orders", 1).await.unwrap();
        let delivery = next(&mut *slow).await;
        // Others look for the dead too.
        let mut waiting = other.consume("orders", 1).await.unwrap();
        let expires = || {
            let conn = rusqlite::Connection::open(place.path()).unwrap();
            conn.busy_timeout(PATIENCE).unwrap();
            conn.query_row("SELECT min(expires) FROM holders", [], |row| row.get::<_, u64>(0)).unwrap()
        };
        let beyond = expires() + 2 * u64::try_from(VISIBILITY.as_millis()).unwrap();
        within(PATIENCE, "twice the timeout passes", async {
            while expires() < beyond {
                assert!(futures::poll!(waiting.next()).is_pending(), "nobody else gets it");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert_eq!(delivery.ack().await, Ok(()), "it is still its own");
        until(&broker, "nothing is left", |stats| stats.backlog() == 0 && stats.consumers == 2).await;
    });
}

#[test]
fn who_stands_still_too_long_loses_what_it_held() {
    let place = Place::new("still");
    runtime().block_on(async {
        let broker = place.open().await;
        publish(&broker, 1).await;
        let mut still = Process::start("hold", &place.address());
        assert_eq!(still.says(), "0");
        still.signal("STOP");
        let mut consumer = broker.consume("orders", 1).await.unwrap();
        let delivery = next(&mut *consumer).await;
        assert_eq!((delivery.message().body.as_str(), delivery.attempt()), ("0", 2));
        still.signal("CONT");
        still.tell();
        assert_eq!(still.says(), "Err(Lost)", "its late answer settles nothing");
        until(&broker, "it is with the second", |stats| stats.unacked == 1).await;
        assert_eq!(delivery.ack().await, Ok(()));
        until(&broker, "nothing is left", |stats| stats.backlog() == 0).await;
    });
}

#[test]
fn two_processes_share_the_work_of_a_third() {
    let place = Place::new("share");
    runtime().block_on(async {
        let broker = place.open().await;
        let mut workers = [(); 2].map(|()| Process::start("work", &place.address()));
        for worker in &mut workers {
            assert_eq!(worker.says(), "works");
        }
        publish(&broker, 100).await;
        // Listen until all is done, whoever has done it.
        let (to, said) = std::sync::mpsc::channel();
        for worker in &mut workers {
            let (to, mut listening) = (to.clone(), worker.listen());
            std::thread::spawn(move || listening.try_for_each(|body| to.send(body)));
        }
        let mut done = BTreeMap::new();
        while done.len() < 100 {
            let body = said.recv_timeout(PATIENCE).expect("the work goes on");
            *done.entry(body).or_insert(0) += 1;
        }
        assert!(done.values().all(|times| *times == 1), "{done:?}");
        until(&broker, "nothing is left", |stats| stats.backlog() == 0).await;
    });
}

#[test]
fn a_file_opened_again_goes_on_where_it_was() {
    let place = Place::new("again");
    runtime().block_on(async {
        {
            let broker = place.open().await;
            publish(&broker, 3).await;
            let mut consumer = broker.consume("orders", 1).await.unwrap();
            next(&mut *consumer).await.reject("no").await.unwrap();
            next(&mut *consumer).await.ack().await.unwrap();
        }
        let broker = Sqlite::open(place.path()).await.unwrap();
        assert_eq!(broker.topology().await.unwrap(), topology(), "it needs no declaration");
        assert_eq!(broker.replay("orders", order_broker::Which::All).await, Ok(1));
        let mut consumer = broker.consume("orders", 1).await.unwrap();
        for body in ["2", "0"] {
            let delivery = next(&mut *consumer).await;
            assert_eq!(delivery.message().body, body);
            delivery.ack().await.unwrap();
        }
    });
}

#[test]
fn a_file_that_fails_is_told_and_no_answer_is_lost() {
    let place = Place::new("fails");
    runtime().block_on(async {
        let broker = place.open().await;
        publish(&broker, 2).await;
        let mut consumer = broker.consume("orders", 2).await.unwrap();
        let (first, second) = (next(&mut *consumer).await, next(&mut *consumer).await);
        place.sql(
            "CREATE TRIGGER full BEFORE INSERT ON messages BEGIN SELECT raise(ABORT, 'disk full'); END;
             CREATE TRIGGER stuck BEFORE DELETE ON deliveries BEGIN SELECT raise(ABORT, 'disk full'); END;",
        );
        let refused = broker.publish(numbered(2)).await;
        let told = |result: &Result<(), PublishError>| match result {
            Err(PublishError::Unconfirmed(BrokerError::Failed(why))) => why.contains("disk full"),
            _ => false,
        };
        assert!(refused.iter().all(told), "{refused:?}");
        assert!(matches!(first.ack().await, Err(BrokerError::Failed(_))));
        drop(second.reject("no"));
        place.sql("DROP TRIGGER full; DROP TRIGGER stuck;");
        // Both answers are given as soon as they can be, although nobody asks again.
        until(&broker, "the answers are taken", |stats| stats.backlog() == 0 && stats.dead == 1).await;
        publish(&broker, 1).await;
        next(&mut *consumer).await.ack().await.unwrap();
        broker.check().await.unwrap();
    });
}

#[test]
fn what_is_no_file_of_ours_is_refused_by_name() {
    let folder = Folder::new("refused");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("text"), "This is no database, and long enough to be seen as none. ".repeat(20))
        .unwrap();
    rusqlite::Connection::open(at("newer")).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    runtime().block_on(async {
        for (name, why) in
            [("no/such/folder", "unable to open"), ("text", "not a database"), ("newer", "version 99")]
        {
            let address = format!("sqlite:{}", at(name).display());
            let Err(BrokerError::Unreachable { address: named, reason }) =
                order_broker::open(&address).await.map(drop)
            else {
                panic!("`{name}` was opened");
            };
            assert_eq!(named, address);
            assert!(reason.contains(why), "{reason}");
        }
        for nonsense in ["", "sqlite:", "redis://host", "nonsense", "amqps://user:secret@host"] {
            let error = order_broker::open(nonsense).await.map(drop).expect_err("it is no address");
            assert!(matches!(error, BrokerError::BadAddress { .. }), "{error:?}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    });
}
