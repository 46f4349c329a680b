//! Consumers beside each other.

use futures::FutureExt;

use super::Place;
use super::support::{
    consume, counts, declare, drain, each_once, gives_nothing, next, numbered, publish, queue, until, within,
};
use crate::{BoxFuture, Consumer, Message, ack_all};

/// `Ok` for a message means that it is stored: all are there before anybody consumes, and what was not is told.
pub fn what_is_confirmed_is_in_the_queue(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("order.*"), queue("all").bind("#")]).await;
        let results = broker.publish(numbered(100)).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 100, "each has its confirmation");
        for name in ["orders", "all"] {
            let stats = until(place, &*broker, name, "all are there", |stats| stats.ready >= 100).await;
            assert_eq!((stats.ready, stats.unacked, stats.consumers), (100, 0, 0), "of `{name}`");
        }
    })
}

/// Two consumers of one queue: each message goes to one of them.
pub fn two_consumers_share_without_loss_and_without_doubles(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let (broker, other) = (place.open().await, place.open().await);
        declare(&*broker, [queue("orders").bind("#")]).await;
        declare(&*other, [queue("orders").bind("#")]).await;
        let mut first = consume(&*broker, "orders", 1).await;
        let mut second = consume(&*other, "orders", 1).await;
        publish(&*broker, numbered(200)).await;
        // Both get something: with a prefetch of 1 neither can take all.
        let held = (next(place, &mut *first).await, next(place, &mut *second).await);
        let mut got = vec![held.0.message().body.clone(), held.1.message().body.clone()];
        held.0.ack().await.unwrap();
        held.1.ack().await.unwrap();
        while got.len() < 200 {
            let either = futures::future::select(first.next(), second.next());
            let delivery = match within(place.patience(), "the next delivery", either).await {
                futures::future::Either::Left((delivery, _)) => delivery,
                futures::future::Either::Right((delivery, _)) => delivery,
            };
            let delivery = delivery.expect("the consumers go on");
            got.push(delivery.message().body.clone());
            delivery.ack().await.unwrap();
        }
        assert_eq!(counts(got), each_once(200));
        until(place, &*broker, "orders", "nothing is left", |stats| stats.backlog() == 0).await;
    })
}

/// With a prefetch of 1 a second message comes when the first is settled, and not before, whoever else is there.
pub fn nobody_holds_more_than_its_prefetch(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("order.*"), queue("barrier").bind("barrier")]).await;
        let mut barrier = consume(&*broker, "barrier", 1).await;
        let mut first = consume(&*broker, "orders", 1).await;
        let mut second = consume(&*broker, "orders", 1).await;
        publish(&*broker, numbered(4)).await;
        let slow = next(place, &mut *first).await;
        let quick = next(place, &mut *second).await;
        assert!(gives_nothing(place, &*broker, &mut *barrier, &mut *first).await, "the first holds one");
        assert!(gives_nothing(place, &*broker, &mut *barrier, &mut *second).await, "the second holds one");
        let stats = until(place, &*broker, "orders", "two wait", |stats| stats.ready == 2).await;
        assert_eq!((stats.unacked, stats.consumers), (2, 2));
        // The quick one does all the rest meanwhile.
        let mut got = vec![slow.message().body.clone(), quick.message().body.clone()];
        quick.ack().await.unwrap();
        got.extend(drain(place, &mut *second, 2).await);
        assert!(
            gives_nothing(place, &*broker, &mut *barrier, &mut *first).await,
            "the first still holds one"
        );
        slow.ack().await.unwrap();
        assert_eq!(counts(got), each_once(4));
        until(place, &*broker, "orders", "nothing is left", |stats| stats.backlog() == 0).await;
    })
}

/// A burst makes the queue longer and nothing else.
pub fn a_burst_drains(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        publish(&*broker, numbered(1000)).await;
        until(place, &*broker, "orders", "the burst is there", |stats| stats.ready == 1000).await;
        let mut consumer = consume(&*broker, "orders", 50).await;
        let mut got = Vec::new();
        while got.len() < 1000 {
            let batch = within(place.patience(), "the next batch", consumer.next_batch(50)).await.unwrap();
            got.extend(batch.iter().map(|delivery| delivery.message().body.clone()));
            ack_all(batch).await.unwrap();
        }
        assert_eq!(counts(got), each_once(1000));
        let drained = until(place, &*broker, "orders", "it drains to 0", |stats| stats.backlog() == 0).await;
        assert_eq!(drained.dead, 0);
    })
}

/// Two brokers opened on the same messages are two processes: an emitter within one of them is not enough.
pub fn what_one_publishes_another_one_gets(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let (publisher, worker) = (place.open().await, place.open().await);
        declare(&*worker, [queue("orders").bind("#")]).await;
        declare(&*publisher, [queue("orders").bind("#")]).await;
        let mut consumer = consume(&*worker, "orders", 1).await;
        for n in 0..5 {
            // The consumer is waiting already when the message comes.
            assert!(consumer.next().now_or_never().is_none(), "nothing is there yet");
            publish(&*publisher, vec![Message::new("order.created", "", n.to_string())]).await;
            assert_eq!(drain(place, &mut *consumer, 1).await, [n.to_string()]);
        }
        drop(publisher);
        until(place, &*worker, "orders", "nothing is left", |stats| stats.backlog() == 0).await;
    })
}

/// A batch has one delivery at least, and no more than was asked for.
pub fn batches_come_and_go(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        publish(&*broker, numbered(30)).await;
        let mut consumer = consume(&*broker, "orders", 10).await;
        let mut got = Vec::new();
        while got.len() < 30 {
            let batch = within(place.patience(), "the next batch", consumer.next_batch(4)).await.unwrap();
            assert!((1..=4).contains(&batch.len()), "{} deliveries", batch.len());
            got.extend(batch.iter().map(|delivery| delivery.message().body.clone()));
            ack_all(batch).await.unwrap();
        }
        assert_eq!(got, (0..30).map(|n| n.to_string()).collect::<Vec<_>>(), "oldest first");
    })
}

/// `next` is dropped again and again, as `select!` does, and each message still comes once.
pub fn a_dropped_next_loses_nothing(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        let mut consumer = consume(&*broker, "orders", 3).await;
        let publishing = async {
            for message in numbered(60) {
                publish(&*broker, vec![message]).await;
            }
        };
        let consuming = async {
            let mut got = Vec::new();
            for turn in 0.. {
                if got.len() == 60 {
                    break;
                }
                if let Some(delivery) = dropped_after(1 + turn % 3, &mut *consumer).await {
                    assert_eq!(delivery.attempt(), 1, "it was not handed out before");
                    got.push(delivery.message().body.clone());
                    delivery.ack().await.unwrap();
                }
            }
            got
        };
        let both = futures::future::join(publishing, consuming);
        let ((), got) = within(place.patience(), "all come", both).await;
        assert_eq!(counts(got), each_once(60));
    })
}

/// Polls a `next` so many times, with others' turns between, and drops it.
async fn dropped_after(polls: usize, consumer: &mut dyn Consumer) -> Option<crate::Delivery> {
    let mut next = consumer.next();
    for _ in 0..polls {
        if let std::task::Poll::Ready(delivery) = futures::poll!(&mut next) {
            return Some(delivery.expect("the consumer goes on"));
        }
        tokio::task::yield_now().await;
    }
    drop(next);
    tokio::task::yield_now().await;
    None
}
