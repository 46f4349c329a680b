//! A file that many messages have gone through is no larger than what was in it at once.

mod support;

use std::path::Path;

use order_broker::{Broker, Message, Queue, Sqlite, Topology, Which};
use rusqlite::Connection;
use support::Folder;

const QUEUES: [&str; 2] = ["one", "two"];
const MESSAGES: u64 = 100;

/// A round in which everything is published, handled, returned, given up or thrown away.
async fn round(broker: &Sqlite, number: u64) {
    let message = |n: u64| {
        let body = "x".repeat(500);
        Message { id: format!("{number}-{n}"), ..Message::new("it.is", format!("key {}", n % 7), body) }
    };
    for answer in broker.publish((0..MESSAGES).map(message).collect()).await {
        answer.unwrap();
    }
    for queue in QUEUES {
        let mut consumer = broker.consume(queue, 10).await.unwrap();
        let mut settled = Vec::new();
        for n in 0..MESSAGES {
            let delivery = consumer.next().await.unwrap();
            settled.push(if n % 10 == 3 { delivery.reject("no") } else { delivery.ack() });
        }
        for settled in futures::future::join_all(settled).await {
            settled.unwrap();
        }
        assert_eq!(broker.discard(queue, Which::All).await.unwrap(), MESSAGES / 10);
    }
}

/// The rows of each table that has messages, and the pages of the file.
fn size(path: &Path) -> ([i64; 3], i64) {
    let file = Connection::open(path).unwrap();
    let number = |sql: &str| file.query_row(sql, [], |row| row.get(0)).unwrap();
    let rows =
        ["messages", "deliveries", "dead"].map(|table| number(&format!("SELECT count(*) FROM {table}")));
    (rows, number("PRAGMA page_count"))
}

#[test]
fn what_was_settled_leaves_nothing_behind() {
    let folder = Folder::new("flat");
    let path = folder.path().join("broker.db");
    support::runtime().block_on(async {
        let broker = Sqlite::open(&path).await.unwrap();
        let topology =
            QUEUES.iter().fold(Topology::new("events"), |all, name| all.queue(Queue::new(*name).bind("#")));
        broker.declare(&topology).await.unwrap();
        for number in 0..5 {
            round(&broker, number).await;
        }
        let (rows, pages) = size(&path);
        assert_eq!(rows, [0; 3]);
        for number in 5..20 {
            round(&broker, number).await;
        }
        let (rows, later) = size(&path);
        assert_eq!(rows, [0; 3]);
        // A few pages more or less are a matter of which were free.
        assert!(later <= pages + pages / 10, "{pages} pages became {later}");
    });
}
