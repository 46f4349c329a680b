//! A broker that can be away, and what orders do then.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use order_broker::{
    Broker, BrokerError, Consumer, DeadLetter, Message, PublishError, Stats, Topology, Which,
};

use crate::world::{World, eventually};

type Pending<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

struct Away {
    inner: Arc<dyn Broker>,
    away: AtomicBool,
}

fn away() -> BrokerError {
    BrokerError::Failed("away".to_owned())
}

impl Broker for Away {
    fn declare<'a>(&'a self, topology: &'a Topology) -> Pending<'a, Result<(), BrokerError>> {
        self.inner.declare(topology)
    }

    fn publish(&self, messages: Vec<Message>) -> Pending<'_, Vec<Result<(), PublishError>>> {
        if self.away.load(SeqCst) {
            let answers = messages.iter().map(|_| Err(PublishError::Unconfirmed(away()))).collect();
            return Box::pin(async { answers });
        }
        self.inner.publish(messages)
    }

    fn consume<'a>(
        &'a self,
        queue: &'a str,
        prefetch: u16,
    ) -> Pending<'a, Result<Box<dyn Consumer>, BrokerError>> {
        self.inner.consume(queue, prefetch)
    }

    fn stats<'a>(&'a self, queue: &'a str) -> Pending<'a, Result<Stats, BrokerError>> {
        self.inner.stats(queue)
    }

    fn check(&self) -> Pending<'_, Result<(), BrokerError>> {
        let answer = if self.away.load(SeqCst) { Err(away()) } else { Ok(()) };
        Box::pin(async { answer })
    }

    fn dead_letters<'a>(
        &'a self,
        queue: &'a str,
        limit: usize,
    ) -> Pending<'a, Result<Vec<DeadLetter>, BrokerError>> {
        self.inner.dead_letters(queue, limit)
    }

    fn replay<'a>(&'a self, queue: &'a str, which: Which) -> Pending<'a, Result<u64, BrokerError>> {
        self.inner.replay(queue, which)
    }

    fn discard<'a>(&'a self, queue: &'a str, which: Which) -> Pending<'a, Result<u64, BrokerError>> {
        self.inner.discard(queue, which)
    }

    fn topology(&self) -> Pending<'_, Result<Topology, BrokerError>> {
        self.inner.topology()
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}

#[tokio::test]
async fn orders_are_accepted_and_confirmed_without_a_broker_and_their_events_come_in_order_when_it_is_back() {
    let inner = order_broker::open("memory:").await.unwrap();
    let listener = Topology::new("events").queue(order_broker::Queue::new("all").bind("order.*"));
    inner.declare(&listener).await.unwrap();
    let broker = Arc::new(Away { inner: inner.clone(), away: AtomicBool::new(true) });
    let world = World::on(broker.clone(), |env| env).await;
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

    broker.away.store(false, SeqCst);
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
