//! What the checks share.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Place;
use crate::{Broker, Consumer, Delivery, Message, Queue, Stats, Topology};

/// Waits for something that has to happen.
///
/// # Panics
///
/// If it does not within `patience`.
pub async fn within<T>(patience: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(patience, future).await {
        Ok(done) => done,
        Err(_) => panic!("did not happen: {what}"),
    }
}

/// Short waits, so that the suite is quick.
pub(super) fn queue(name: &str) -> Queue {
    Queue::new(name)
        .max_attempts(3)
        .backoff(Duration::from_millis(20), Duration::from_millis(40))
        .visibility(Duration::from_secs(5))
}

pub(super) async fn declare(broker: &dyn Broker, queues: impl IntoIterator<Item = Queue>) {
    let topology = queues.into_iter().fold(Topology::new("events"), Topology::queue);
    broker.declare(&topology).await.expect("the topology is declared");
}

/// Publishes, and insists that all is confirmed.
pub(super) async fn publish(broker: &dyn Broker, messages: Vec<Message>) {
    for (n, result) in broker.publish(messages).await.into_iter().enumerate() {
        result.unwrap_or_else(|error| panic!("message {n}: {error}"));
    }
}

/// Messages of topic `order.created` whose bodies are their numbers and whose keys are all different.
pub(super) fn numbered(count: usize) -> Vec<Message> {
    (0..count).map(|n| Message::new("order.created", format!("order-{n}"), n.to_string())).collect()
}

pub(super) async fn consume(broker: &dyn Broker, queue: &str, prefetch: u16) -> Box<dyn Consumer> {
    broker.consume(queue, prefetch).await.expect("the queue can be consumed")
}

pub(super) async fn next(place: &dyn Place, consumer: &mut dyn Consumer) -> Delivery {
    within(place.patience(), "the next delivery", consumer.next()).await.expect("the consumer goes on")
}

/// Acknowledges `count` deliveries, and answers the bodies in the order in which they came.
pub(super) async fn drain(place: &dyn Place, consumer: &mut dyn Consumer, count: usize) -> Vec<String> {
    let mut bodies = Vec::with_capacity(count);
    for _ in 0..count {
        let delivery = next(place, consumer).await;
        bodies.push(delivery.message().body.clone());
        delivery.ack().await.expect("it is acknowledged");
    }
    bodies
}

/// Waits until the queue looks like this.
pub(super) async fn until(
    place: &dyn Place,
    broker: &dyn Broker,
    queue: &str,
    what: &str,
    right: impl Fn(&Stats) -> bool,
) -> Stats {
    let mut last = None;
    let waited = tokio::time::timeout(place.patience(), async {
        loop {
            let stats = broker.stats(queue).await.expect("the queue has stats");
            if right(&stats) {
                return stats;
            }
            last = Some(stats);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    match waited.await {
        Ok(stats) => stats,
        Err(_) => panic!("did not happen: {what}; the last stats were {last:?}"),
    }
}

/// How often each is there.
pub(super) fn counts(bodies: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for body in bodies {
        *counts.entry(body).or_default() += 1;
    }
    counts
}

pub(super) fn each_once(count: usize) -> BTreeMap<String, usize> {
    (0..count).map(|n| (n.to_string(), 1)).collect()
}

/// Whether the consumer has nothing to give although everything that was published before has had its time: a message sent after
/// all others has gone through the queue `barrier`, and the consumer was asked again after that.
pub(super) async fn gives_nothing(
    place: &dyn Place,
    broker: &dyn Broker,
    barrier: &mut dyn Consumer,
    consumer: &mut dyn Consumer,
) -> bool {
    let mut next = consumer.next();
    for _ in 0..3 {
        if futures::poll!(&mut next).is_ready() {
            return false;
        }
        publish(broker, vec![Message::new("barrier", "", "")]).await;
        drain(place, barrier, 1).await;
    }
    futures::poll!(&mut next).is_pending()
}
