use std::time::Duration;

use order_broker::{Consumer, Queue, Topology};
use order_kit::events::{EXCHANGE, Envelope};
use order_users::wire::{CREATED, Revised, UPDATED};
use serde_json::{Value, json};

use crate::{everywhere, person, service::Bench};

async fn listen(users: &Bench) -> Box<dyn Consumer> {
    let broker = users.context.broker();
    let queue = Queue::new("heard").bind("user.*");
    broker.declare(&Topology::new(EXCHANGE).queue(queue)).await.unwrap();
    broker.consume("heard", 1).await.unwrap()
}

async fn next(consumer: &mut dyn Consumer) -> Envelope {
    let delivery = tokio::time::timeout(Duration::from_secs(30), consumer.next()).await.unwrap().unwrap();
    let envelope: Envelope = serde_json::from_str(&delivery.message().body).unwrap();
    assert_eq!(delivery.message().topic, envelope.kind);
    assert_eq!(delivery.message().key, envelope.data["id"].as_str().unwrap(), "in order for each user");
    delivery.ack().await.unwrap();
    envelope
}

/// Those that were refused say nothing, or they would be heard between the others.
#[tokio::test]
async fn what_is_stored_is_said_and_nothing_else() {
    everywhere("what_is_stored_is_said_and_nothing_else", async |users| {
        let mut heard = listen(users).await;
        let alice = users.post("/users", &person("Alice", "alice@example.com")).await.body;
        let path = format!("/users/{}", alice["id"].as_str().unwrap());
        assert_eq!(users.post("/users", &person("Eve", "alice@example.com")).await.status, 409);
        assert_eq!(users.post("/users", &person("E", "eve@example.com")).await.status, 400);
        assert_eq!(users.put(&path, &json!({ "name": "Alice" })).await.status, 200, "no change");
        let changed = users.put(&path, &json!({ "name": "Alice Smith" })).await.body;
        let bob = users.post("/users", &person("Bob", "bob@example.com")).await.body;

        let mut all: Vec<Envelope> = Vec::new();
        for _ in 0..3 {
            all.push(next(&mut *heard).await);
        }
        // Events of one user come in their order; those of two may come in any.
        let of = |id: &Value| -> Vec<(&str, Value)> {
            let mine = all.iter().filter(|it| it.data["id"] == *id);
            mine.map(|it| (it.kind.as_str(), it.data.clone())).collect()
        };
        let revised = |user: &Value, revision: i64| {
            let mut user = user.clone();
            user["revision"] = json!(revision);
            user
        };
        assert_eq!(of(&alice["id"]), [(CREATED, revised(&alice, 1)), (UPDATED, revised(&changed, 2))]);
        assert_eq!(of(&bob["id"]), [(CREATED, revised(&bob, 3))]);
        for envelope in all {
            assert_eq!(
                (envelope.metadata.source.as_str(), envelope.metadata.version.as_str()),
                ("users", "1.0")
            );
            let Revised { user, .. } = envelope.data().unwrap();
            assert_eq!(user.created_at.len(), "2026-11-26T03:40:00.000Z".len());
        }
    })
    .await;
}
