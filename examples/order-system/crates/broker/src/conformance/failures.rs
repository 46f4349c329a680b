//! Deliveries that are not acknowledged.

use std::time::Duration;

use super::Place;
use super::support::{consume, declare, drain, next, numbered, publish, queue, until};
use crate::{BoxFuture, Broker, Fate, MAX_RETURNS, Message, Which};

/// A consumer that goes without an answer has done nothing: another one gets the message.
pub fn a_dropped_delivery_returns(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        publish(&*broker, numbered(1)).await;
        let mut first = consume(&*broker, "orders", 1).await;
        let delivery = next(place, &mut *first).await;
        assert_eq!(delivery.attempt(), 1);
        drop(delivery);
        let delivery = next(place, &mut *first).await;
        assert_eq!(delivery.attempt(), 2, "it has been out before");
        // The consumer goes first, with the delivery still open; then the delivery too.
        drop(first);
        drop(delivery);
        let mut second = consume(&*broker, "orders", 1).await;
        let delivery = next(place, &mut *second).await;
        assert_eq!(delivery.message().body, "0");
        // Once more where it went to the first again on the way, whose end was not known there yet.
        assert!((3..=4).contains(&delivery.attempt()), "{}", delivery.attempt());
        delivery.ack().await.unwrap();
        until(place, &*broker, "orders", "nothing is left", |stats| stats.backlog() == 0).await;
    })
}

/// What a consumer has fetched ahead goes to others when it is closed; what it has handed out can still be settled.
pub fn a_closed_consumer_gives_back_what_nobody_saw(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        publish(&*broker, numbered(5)).await;
        let mut first = consume(&*broker, "orders", 5).await;
        let held = next(place, &mut *first).await;
        drop(first);
        let mut second = consume(&*broker, "orders", 1).await;
        let mut returned = drain(place, &mut *second, 4).await;
        // They have different keys: no order is promised among them.
        returned.sort_unstable();
        assert_eq!(returned, ["1", "2", "3", "4"]);
        held.ack().await.expect("it was handed out before the end");
        until(place, &*broker, "orders", "nothing is left", |stats| stats.backlog() == 0).await;
    })
}

/// Handles one poison message until it is dead and answers how often it came, with `others` acknowledged on the way.
async fn poison(place: &dyn Place, broker: &dyn Broker, others: usize) -> u32 {
    let mut consumer = consume(broker, "orders", 1).await;
    let (mut attempts, mut acked, mut dead) = (0, 0, false);
    while acked < others || !dead {
        let delivery = next(place, &mut *consumer).await;
        if delivery.message().body != "poison" {
            delivery.ack().await.unwrap();
            acked += 1;
            continue;
        }
        attempts += 1;
        assert!(!dead, "the dead do not come back by themselves");
        assert_eq!(delivery.attempt(), attempts);
        match delivery.retry(format!("failure {attempts}")).await.unwrap() {
            Fate::Again(wait) => assert_eq!(wait, Duration::from_millis(20 * u64::from(attempts))),
            Fate::Dead => dead = true,
            Fate::Done => panic!("nobody acknowledged it"),
        }
    }
    attempts
}

/// A message that always fails is tried `max_attempts` times and put aside, and the others are not kept waiting.
pub fn poison_dies_with_reason_and_count_and_others_pass(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        let bad = Message::new("order.created", "order-x", "poison").header("correlation-id", "c-1");
        publish(&*broker, vec![bad.clone()]).await;
        publish(&*broker, numbered(10)).await;
        let before = crate::unix_ms();
        assert_eq!(poison(place, &*broker, 10).await, 3);
        let stats = until(place, &*broker, "orders", "one is dead", |stats| stats.dead == 1).await;
        assert_eq!(stats.backlog(), 0);
        // Looking changes nothing, so one can look twice.
        for _ in 0..2 {
            let dead = broker.dead_letters("orders", 10).await.unwrap();
            assert_eq!(dead.len(), 1);
            assert_eq!(dead[0].message, bad, "as it was published");
            assert_eq!((dead[0].reason.as_str(), dead[0].count), ("failure 3", 3));
            assert!((before..=crate::unix_ms()).contains(&dead[0].since_ms), "since {}", dead[0].since_ms);
        }
    })
}

/// After the fix the dead go back into their queue, and into no other, and have all their attempts again.
pub fn the_dead_are_replayed(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#"), queue("others").bind("#")]).await;
        publish(&*broker, vec![Message::new("order.created", "order-x", "poison")]).await;
        poison(place, &*broker, 0).await;
        until(place, &*broker, "orders", "one is dead", |stats| stats.dead == 1).await;
        assert_eq!(broker.replay("orders", Which::Ids(vec!["unknown".to_owned()])).await, Ok(0));
        assert_eq!(broker.replay("orders", Which::All).await, Ok(1));
        // Not fixed yet.
        assert_eq!(poison(place, &*broker, 0).await, 3);
        until(place, &*broker, "orders", "one is dead", |stats| stats.dead == 1).await;
        assert_eq!(broker.replay("orders", Which::All).await, Ok(1));
        let mut consumer = consume(&*broker, "orders", 1).await;
        assert_eq!(drain(place, &mut *consumer, 1).await, ["poison"]);
        let end = |stats: &crate::Stats| stats.backlog() == 0 && stats.dead == 0;
        until(place, &*broker, "orders", "nothing is left", end).await;
        until(place, &*broker, "others", "it came here once", |stats| stats.ready == 1).await;
        assert_eq!(broker.dead_letters("orders", 10).await, Ok(Vec::new()));
    })
}

/// Only `discard` throws anything away, and only what it is told to.
pub fn the_dead_are_discarded_by_name(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        let messages = numbered(4);
        let ids: Vec<_> = messages.iter().map(|message| message.id.clone()).collect();
        publish(&*broker, messages).await;
        let mut consumer = consume(&*broker, "orders", 1).await;
        for _ in 0..4 {
            next(place, &mut *consumer).await.reject("no").await.unwrap();
        }
        until(place, &*broker, "orders", "four are dead", |stats| stats.dead == 4).await;
        let two = Which::Ids(vec![ids[1].clone(), ids[2].clone()]);
        assert_eq!(broker.discard("orders", two).await, Ok(2));
        let left: Vec<_> = broker.dead_letters("orders", 10).await.unwrap();
        let left: Vec<_> = left.iter().map(|letter| letter.message.body.as_str()).collect();
        assert_eq!(left, ["0", "3"]);
        assert_eq!(broker.dead_letters("orders", 1).await.unwrap().len(), 1, "no more than asked for");
        assert_eq!(broker.replay("orders", Which::Ids(vec![ids[3].clone()])).await, Ok(1));
        assert_eq!(drain(place, &mut *consumer, 1).await, ["3"]);
        assert_eq!(broker.discard("orders", Which::All).await, Ok(1));
        until(place, &*broker, "orders", "none is left", |stats| stats.dead == 0).await;
    })
}

/// What waits for its next attempt is not held: a consumer with a prefetch of 1 gets what has come meanwhile, from wherever.
pub fn a_failed_message_makes_room_for_the_next(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let (broker, other) = (place.open().await, place.open().await);
        let long = Duration::from_secs(3600);
        declare(&*broker, [queue("orders").bind("#").backoff(long, long)]).await;
        declare(&*other, [queue("orders").bind("#").backoff(long, long)]).await;
        let mut consumer = consume(&*broker, "orders", 1).await;
        publish(&*other, vec![Message::new("order.created", "", "0")]).await;
        let delivery = next(place, &mut *consumer).await;
        publish(&*other, vec![Message::new("order.created", "", "1")]).await;
        // So that it had its chance to be noticed while there was no room.
        until(place, &*broker, "orders", "both are there", |stats| (stats.ready, stats.unacked) == (1, 1))
            .await;
        broker.check().await.unwrap();
        assert_eq!(delivery.retry("later").await, Ok(Fate::Again(long)));
        assert_eq!(drain(place, &mut *consumer, 1).await, ["1"]);
    })
}

/// What can never succeed is not tried again.
pub fn a_rejected_message_is_dead_at_once(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        publish(&*broker, numbered(2)).await;
        let mut consumer = consume(&*broker, "orders", 1).await;
        next(place, &mut *consumer).await.reject("not an order").await.unwrap();
        assert_eq!(drain(place, &mut *consumer, 1).await, ["1"]);
        until(place, &*broker, "orders", "one is dead", |stats| stats.dead == 1).await;
        let dead = broker.dead_letters("orders", 10).await.unwrap();
        assert_eq!((dead[0].reason.as_str(), dead[0].count), ("not an order", 1));
    })
}

/// What kills whoever takes it, before any answer, is put aside too in the end.
pub fn what_is_never_answered_dies_at_last(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        publish(&*broker, numbered(2)).await;
        let mut consumer = consume(&*broker, "orders", 1).await;
        let mut drops = 0;
        loop {
            let delivery = next(place, &mut *consumer).await;
            if delivery.message().body != "0" {
                delivery.ack().await.unwrap();
            } else {
                drops += 1;
                drop(delivery);
            }
            if drops > MAX_RETURNS {
                break;
            }
        }
        until(place, &*broker, "orders", "it is dead", |stats| stats.dead == 1 && stats.backlog() <= 1).await;
        let dead = broker.dead_letters("orders", 10).await.unwrap();
        assert_eq!(dead[0].message.body, "0");
        assert_eq!(dead[0].count, MAX_RETURNS + 1);
        assert!(dead[0].reason.contains("without an answer"), "{}", dead[0].reason);
    })
}
