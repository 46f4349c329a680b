//! Which queue gets what.

use super::Place;
use super::support::{consume, counts, declare, drain, each_once, next, numbered, publish, queue, until};
use crate::{BoxFuture, BrokerError, Message, PublishError, Topology};

/// Patterns, and the topics that each is to get of those in [`TOPICS`].
const TABLE: [(&str, &[&str]); 9] = [
    ("order.*", &["order.created", "order.paid"]),
    ("payment.#", &["payment", "payment.card.declined"]),
    ("#", TOPICS),
    ("*", &["payment"]),
    ("*.created", &["order.created", "user.created"]),
    ("#.declined", &["payment.card.declined"]),
    ("payment.*.declined", &["payment.card.declined"]),
    ("order.created", &["order.created"]),
    ("order.#.paid", &["order.paid"]),
];

const TOPICS: &[&str] = &["order.created", "order.paid", "payment", "payment.card.declined", "user.created"];

/// A binding gets the topics that AMQP's rules say, and no other.
pub fn topics_are_matched_by_the_one_table(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        let name = |n: usize| format!("table-{n}");
        declare(&*broker, TABLE.iter().enumerate().map(|(n, row)| queue(&name(n)).bind(row.0))).await;
        publish(&*broker, TOPICS.iter().map(|topic| Message::new(*topic, "", *topic)).collect()).await;
        // Comes last into each queue, so that what should not be there would have come before.
        let ends = (0..TABLE.len()).map(|n| queue(&name(n)).bind("the.very.end"));
        declare(&*broker, ends).await;
        publish(&*broker, vec![Message::new("the.very.end", "", "end")]).await;
        for (n, (pattern, wanted)) in TABLE.iter().enumerate() {
            let mut consumer = consume(&*broker, &name(n), 1).await;
            let mut got = Vec::new();
            loop {
                let body = drain(place, &mut *consumer, 1).await.remove(0);
                if body == "end" {
                    break;
                }
                got.push(body);
            }
            assert_eq!(got, *wanted, "what `{pattern}` gets");
        }
    })
}

/// A queue of one's own means: every event once, however many other queues there are, also if two of its bindings want it.
pub fn each_queue_gets_each_event(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        let names = ["inventory", "email", "analytics"];
        declare(&*broker, names.map(|name| queue(name).bind("order.*").bind("#"))).await;
        publish(&*broker, numbered(20)).await;
        for name in names {
            let mut consumer = consume(&*broker, name, 5).await;
            let got = drain(place, &mut *consumer, 20).await;
            assert_eq!(counts(got), each_once(20), "what `{name}` gets");
            until(place, &*broker, name, "the queue is empty", |stats| stats.backlog() == 0).await;
        }
    })
}

/// Nothing of a message is lost or changed, whatever is in it.
pub fn a_message_comes_as_it_was_sent(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("all").bind("#")]).await;
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let sent = vec![
            Message::new("order.created", "", ""),
            Message::new("order.created", "Schlüssel 'n\"", r#"{"total":"0.30","name":"Żółć 🦀"}"#)
                .header("traceparent", trace)
                .header("correlation-id", "c-1"),
            Message::new("order.created", "big", format!("\"{}\"", "x".repeat(1 << 20))),
        ];
        publish(&*broker, sent.clone()).await;
        let mut consumer = consume(&*broker, "all", 1).await;
        for message in sent {
            let delivery = next(place, &mut *consumer).await;
            assert!(*delivery.message() == message, "{} came as {:?}", message.id, delivery.message().id);
            assert_eq!(delivery.attempt(), 1);
            delivery.ack().await.unwrap();
        }
    })
}

/// A message that no queue wants is not taken for published, and does not spoil those beside it.
pub fn what_nobody_wants_is_told(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("order.*")]).await;
        let topics = ["order.created", "user.created", "order.paid"];
        let messages = topics.map(|topic| Message::new(topic, "", topic)).into();
        let unroutable = Err(PublishError::Unroutable { topic: "user.created".to_owned() });
        assert_eq!(broker.publish(messages).await, [Ok(()), unroutable, Ok(())]);
        assert_eq!(broker.publish(Vec::new()).await, [], "nothing to publish");
        let mut consumer = consume(&*broker, "orders", 1).await;
        assert_eq!(drain(place, &mut *consumer, 2).await, ["order.created", "order.paid"]);
    })
}

/// Who publishes need not know of any queue. Where no exchange is known yet nobody can say that a message is unwanted, so it is not confirmed.
pub fn who_only_publishes_declares_the_exchange_alone(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let publisher = place.open().await;
        let unconfirmed = Err(PublishError::Unconfirmed(BrokerError::NoExchange));
        assert_eq!(
            publisher.publish(numbered(2)).await,
            [unconfirmed.clone(), unconfirmed],
            "none is declared"
        );
        declare(&*publisher, []).await;
        let unroutable = Err(PublishError::Unroutable { topic: "order.created".to_owned() });
        assert_eq!(publisher.publish(numbered(1)).await, [unroutable], "there is no queue yet");
        let worker = place.open().await;
        declare(&*worker, [queue("orders").bind("order.*")]).await;
        publish(&*publisher, numbered(3)).await;
        let mut consumer = consume(&*worker, "orders", 1).await;
        assert_eq!(drain(place, &mut *consumer, 3).await, ["0", "1", "2"]);
    })
}

/// Every service declares what it needs at its start, in any order and again and again.
pub fn bindings_are_added_and_declaring_again_changes_nothing(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("order.*")]).await;
        publish(&*broker, numbered(3)).await;
        declare(&*broker, [queue("orders").bind("order.*"), queue("users").bind("user.*")]).await;
        declare(&*broker, [queue("orders").bind("payment.*").max_attempts(7)]).await;
        declare(&*broker, []).await;
        publish(&*broker, vec![Message::new("payment.received", "", "3")]).await;
        let mut consumer = consume(&*broker, "orders", 1).await;
        assert_eq!(drain(place, &mut *consumer, 4).await, ["0", "1", "2", "3"]);
        let topology = broker.topology().await.unwrap();
        assert_eq!(topology.exchange, "events");
        let orders = topology.find("orders").expect("the topology names the queue");
        assert_eq!(orders.bindings, ["order.*", "payment.*"]);
        assert_eq!(orders.max_attempts, 7, "settings are replaced");
        assert!(topology.find("users").is_some(), "a declaration takes nothing away");
    })
}

/// Mistakes are answered by an error that says which.
pub fn what_makes_no_sense_is_refused(place: &dyn Place) -> BoxFuture<'_, ()> {
    Box::pin(async {
        let broker = place.open().await;
        declare(&*broker, [queue("orders").bind("#")]).await;
        let unknown = Some(BrokerError::UnknownQueue("nowhere".to_owned()));
        assert_eq!(broker.consume("nowhere", 1).await.err(), unknown);
        assert_eq!(broker.stats("nowhere").await.err(), unknown);
        assert_eq!(broker.dead_letters("nowhere", 1).await.err(), unknown);
        assert_eq!(broker.replay("nowhere", crate::Which::All).await.err(), unknown);
        assert!(matches!(broker.consume("orders", 0).await.err(), Some(BrokerError::Invalid(_))));
        let nameless = [
            Topology::new(""),
            Topology::new("events").queue(queue("")),
            Topology::new("events").queue(queue("orders").max_attempts(0)),
        ];
        for wrong in nameless {
            assert!(matches!(broker.declare(&wrong).await, Err(BrokerError::Invalid(_))), "{wrong:?}");
        }
        broker.check().await.expect("no harm was done");
    })
}
