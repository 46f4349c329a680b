//! The order of the messages of one key, and where messages are.

use std::collections::BTreeMap;

use super::Place;
use super::support::{consume, declare, drain, next, publish, queue, until, within};
use crate::{BoxFuture, Message};

const KEYS: usize = 5;
const EACH: usize = 12;

/// For each key its messages in order, keys interleaved.
fn interleaved() -> Vec<Message> {
    let at = |n: usize| Message::new("order.changed", format!("order-{}", n % KEYS), (n / KEYS).to_string());
    (0..KEYS * EACH).map(at).collect()
}

/// The bodies of each key, as they were handled.
#[derive(Default)]
struct Seen(BTreeMap<String, Vec<String>>);

impl Seen {
    fn handled(&mut self, message: &Message) {
        self.0.entry(message.key.clone()).or_default().push(message.body.clone());
    }

    fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    fn assert_in_order(&self) {
        let right: Vec<_> = (0..EACH).map(|n| n.to_string()).collect();
        for (key, bodies) in &self.0 {
            assert_eq!(*bodies, right, "the order of {key}");
        }
        assert_eq!(self.0.len(), KEYS);
    }
}

/// One consumer handles the messages of a key in the order of their publication.
pub fn order_per_key_is_kept(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        let mut consumer = consume(&*broker, "orders", 1).await;
        publish(&*broker, interleaved()).await;
        let mut seen = Seen::default();
        while seen.count() < KEYS * EACH {
            let delivery = next(place, &mut *consumer).await;
            seen.handled(delivery.message());
            delivery.ack().await.unwrap();
        }
        seen.assert_in_order();
    })
}

/// Where the broker promises it: also when messages fail at first, when they return, and with two consumers that hold several.
/// Where it does not, all of them still come.
pub fn order_per_key_is_kept_over_retries(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        let mut consumers = [consume(&*broker, "orders", 4).await, consume(&*broker, "orders", 4).await];
        publish(&*broker, interleaved()).await;
        let mut seen = Seen::default();
        let mut turn = 0;
        while seen.count() < KEYS * EACH {
            let [a, b] = &mut consumers;
            let either = futures::future::select(a.next(), b.next());
            let delivery =
                within(place.patience(), "the next delivery", either).await.factor_first().0.unwrap();
            turn += 1;
            match (delivery.attempt(), turn % 3) {
                (1, 0) => drop(delivery.retry("not yet").await.unwrap()),
                (1, 1) => drop(delivery),
                _ => {
                    seen.handled(delivery.message());
                    delivery.ack().await.unwrap();
                }
            }
        }
        if place.keeps_order() {
            seen.assert_in_order();
        }
        until(place, &*broker, "orders", "nothing is left", |stats| stats.backlog() == 0).await;
    })
}

/// When a message of a key is given up, the next one of the key comes.
pub fn the_dead_do_not_block_their_key(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        let of_one_key = ["0", "1", "2"].map(|body| Message::new("order.changed", "order-1", body));
        publish(&*broker, of_one_key.into()).await;
        let mut consumer = consume(&*broker, "orders", 1).await;
        next(place, &mut *consumer).await.reject("no").await.unwrap();
        assert_eq!(drain(place, &mut *consumer, 2).await, ["1", "2"]);
    })
}

/// Ready, delayed, unacked, dead: a message is counted in one of them.
pub fn stats_tell_where_messages_are(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        let long = std::time::Duration::from_secs(3600);
        declare(&*broker, [queue("orders").bind("#").backoff(long, long)]).await;
        let messages = (0..6).map(|n| Message::new("order.created", "", n.to_string()));
        publish(&*broker, messages.collect()).await;
        let mut consumer = consume(&*broker, "orders", 2).await;
        next(place, &mut *consumer).await.ack().await.unwrap();
        next(place, &mut *consumer).await.reject("no").await.unwrap();
        next(place, &mut *consumer).await.retry("later").await.unwrap();
        let held = next(place, &mut *consumer).await;
        let also_held = next(place, &mut *consumer).await;
        let right = crate::Stats { ready: 1, delayed: 1, unacked: 2, dead: 1, consumers: 1 };
        until(place, &*broker, "orders", "each is in its place", |stats| *stats == right).await;
        drop(consumer);
        drop((held, also_held));
        let right = crate::Stats { ready: 3, delayed: 1, unacked: 0, dead: 1, consumers: 0 };
        until(place, &*broker, "orders", "what was held is back", |stats| *stats == right).await;
        assert_eq!(right.backlog(), 4);
    })
}
