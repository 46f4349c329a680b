//! Everybody who listens gets every event; who comes later misses nothing that is stored.

use http::StatusCode;
use order_broker::{Queue, Topology};
use order_kit::events::EXCHANGE;
use order_notifications::{analytics, build, loyalty};
use serde_json::json;

use crate::support::{On, Running, Users, World, order, until};

async fn each_gets_all(on: On) {
    let users = Users::start().await;
    let Some(world) = World::on(on, "each_listener_gets_every_event_once").await else { return };
    let world = world.with_users(&users);
    let mails = world.start(order_notifications::NAME, build).await;
    let figures = world.start(analytics::NAME, analytics::build).await;
    let points = world.start(loyalty::NAME, loyalty::build).await;
    let [created, confirmed] =
        ["order.created", "order.confirmed"].map(|kind| order(kind, "o1", "alice", "12.50"));
    for event in [&created, &confirmed, &created, &confirmed] {
        world.publish(event).await;
    }
    world.publish(&order("order.cancelled", "o2", "bob", "3.00")).await;
    for queue in [order_notifications::NAME, analytics::NAME, loyalty::NAME] {
        world.settled(queue).await;
    }
    assert_eq!(mails.sent("o1").await.len(), 2);
    let once = |total: &str| json!({ "events": 1, "total": total });
    let all = json!({ "order.created": once("12.50"), "order.confirmed": once("12.50"), "order.cancelled": once("3.00") });
    assert_eq!(figures.get("/counters").await, (StatusCode::OK, all));
    let alice = json!({ "userId": "alice", "points": 12, "orders": 1 });
    assert_eq!(points.get("/points/alice").await, (StatusCode::OK, alice));
    assert_eq!(points.get("/points/bob").await.1, json!({ "userId": "bob", "points": 0, "orders": 0 }));
    assert_eq!(points.get("/counters").await.1, json!({ "points": 12, "orders": 1 }));
    world.end([mails, figures, points]).await;
}

#[tokio::test]
async fn an_address_that_cannot_be_read_is_refused_in_the_services_words() {
    let users = Users::start().await;
    let world = World::new().await.with_users(&users);
    let mails = world.start(order_notifications::NAME, build).await;
    let points = world.start(loyalty::NAME, loyalty::build).await;
    for path in ["/sent", "/sent?order=a&order=b"] {
        let refused = mails.get(path).await;
        assert_eq!(refused, (StatusCode::BAD_REQUEST, json!({ "error": "Malformed query" })), "{path}");
    }
    let refused = points.get("/points/%FF").await;
    assert_eq!(refused, (StatusCode::BAD_REQUEST, json!({ "error": "Malformed path" })));
    world.end([mails, points]).await;
}

#[tokio::test]
async fn each_listener_gets_every_event_once() {
    each_gets_all(On::Sqlite).await;
    each_gets_all(On::Postgres).await;
}

/// What the test above would see if listeners shared a queue, as one of the tutorials has it.
#[tokio::test]
async fn of_one_queue_only_one_gets_an_event() {
    let world = World::new().await;
    let shared = Topology::new(EXCHANGE).queue(Queue::new("order.created").bind("order.created"));
    world.broker.declare(&shared).await.unwrap();
    let mut first = world.broker.consume("order.created", 1).await.unwrap();
    let mut second = world.broker.consume("order.created", 1).await.unwrap();
    world.publish(&order("order.created", "o1", "alice", "1.00")).await;
    tokio::select! {
        got = first.next() => got.unwrap().ack().await.unwrap(),
        got = second.next() => got.unwrap().ack().await.unwrap(),
    }
    assert_eq!(
        world.broker.stats("order.created").await.unwrap().backlog(),
        0,
        "nothing is left for the other"
    );
}

async fn counted(points: &Running) -> i64 {
    points.get("/counters").await.1["orders"].as_i64().unwrap()
}

#[tokio::test]
async fn who_comes_later_gets_what_comes_then_and_by_replay_what_was() {
    let world = World::new().await;
    // Somebody else listens already, so that publishing is no error.
    let figures = world.start(analytics::NAME, analytics::build).await;
    let before: Vec<_> =
        (0..3).map(|n| order("order.confirmed", &format!("before{n}"), "alice", "10.00")).collect();
    for event in &before {
        world.publish(event).await;
    }
    let points = world.start(loyalty::NAME, loyalty::build).await;
    let after = order("order.confirmed", "after", "alice", "10.00");
    world.publish(&after).await;
    until("the new one is counted", async || counted(&points).await == 1).await;

    // What orders has stored: all of them, the one that came by the queue, and others.
    let others =
        [order("order.created", "x", "alice", "1.00"), order("order.confirmed", "y", "alice", "not money")];
    let stored: Vec<_> = before.into_iter().chain([after]).chain(others).collect();
    let world = world.with_orders(stored).await;
    let replayed = loyalty::replay(&world.context(loyalty::NAME)).await.unwrap();
    assert_eq!(replayed, loyalty::Replayed { counted: 3, known: 1, passed_over: 2 });
    assert_eq!(counted(&points).await, 4);
    let again = loyalty::replay(&world.context(loyalty::NAME)).await.unwrap();
    assert_eq!(again, loyalty::Replayed { counted: 0, known: 4, passed_over: 2 });
    assert_eq!(points.get("/points/alice").await.1, json!({ "userId": "alice", "points": 40, "orders": 4 }));
    world.end([figures, points]).await;
}

#[tokio::test]
async fn what_is_published_after_a_replay_is_not_missed_by_who_starts_later() {
    let world = World::new().await.with_orders(Vec::new()).await;
    loyalty::replay(&world.context(loyalty::NAME)).await.unwrap();
    world.publish(&order("order.confirmed", "later", "alice", "10.00")).await;
    let points = world.start(loyalty::NAME, loyalty::build).await;
    until("it is counted", async || counted(&points).await == 1).await;
    world.end([points]).await;
}

#[tokio::test]
async fn a_replay_that_cannot_ask_orders_says_so() {
    let world = World::new().await;
    let points = world.start(loyalty::NAME, loyalty::build).await;
    assert!(loyalty::replay(&world.context(loyalty::NAME)).await.is_err());
    world.end([points]).await;
}
