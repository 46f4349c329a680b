//! What orders do without a broker.

use std::sync::Arc;

use order_broker::{Switched, Topology};

use crate::world::{World, eventually};

#[tokio::test]
async fn orders_are_accepted_and_confirmed_without_a_broker_and_their_events_come_in_order_when_it_is_back() {
    let inner = order_broker::open("memory:").await.unwrap();
    let listener = Topology::new("events").queue(order_broker::Queue::new("all").bind("order.*"));
    inner.declare(&listener).await.unwrap();
    let broker = Switched::new(inner.clone());
    broker.set_away(true);
    let world = World::on(Arc::new(broker.clone()), |env| env).await;
    let mut orders = Vec::new();
    for _ in 0..5 {
        orders.push(world.order("ada", 1).await);
    }
    for id in &orders {
        assert_eq!(world.decided(id).await["status"], "confirmed");
    }
    let ready = world.get("/health/ready").await;
    assert_eq!((ready.status.as_u16(), ready.body["status"].as_str()), (200, Some("degraded")));
    assert_eq!(inner.stats("all").await.unwrap().backlog(), 0);

    broker.set_away(false);
    eventually("all events have come", async || inner.stats("all").await.unwrap().backlog() == 15).await;
    let mut consumer = inner.consume("all", 100).await.unwrap();
    let mut topics = std::collections::BTreeMap::<String, Vec<String>>::new();
    for _ in 0..15 {
        let delivery = consumer.next().await.unwrap();
        topics.entry(delivery.message().key.clone()).or_default().push(delivery.message().topic.clone());
        delivery.ack().await.unwrap();
    }
    for id in &orders {
        assert_eq!(topics[id], ["order.created", "order.confirmed", "order.paid"]);
    }
    world.end().await;
}
