//! RabbitMQ that is not there: cut connections, wrong addresses, killed processes, strangers' messages.

mod support;

use std::sync::Arc;
use std::time::Duration;

use order_broker::conformance::within;
use order_broker::{Amqp, Broker, BrokerError, Consumer, Delivery, Message, PublishError, Stats};
use support::process::{Process, numbered, topology};
use support::{proxy::Proxy, runtime};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
#[ignore = "a role for the other tests, which start it as a process of its own"]
fn child() {
    support::process::play();
}

/// Deletes what the test has declared, also of a test that failed.
struct Cleanup(String);

impl Drop for Cleanup {
    fn drop(&mut self) {
        runtime().block_on(async {
            let declared = Amqp::new(&self.0).unwrap();
            declared.declare(&topology()).await.expect("the server is there");
            support::delete(&self.0, &[declared]).await;
        });
    }
}

fn start(test: &str) -> Option<(String, Cleanup)> {
    let address = support::amqp_address(test)?;
    Some((address.clone(), Cleanup(address)))
}

async fn next(consumer: &mut dyn Consumer) -> Delivery {
    within(PATIENCE, "the next delivery", consumer.next()).await.expect("the consumer goes on")
}

async fn until(broker: &dyn Broker, what: &str, right: impl Fn(&Stats) -> bool) {
    within(PATIENCE, what, async {
        while !right(&broker.stats("orders").await.expect("it has stats")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// What an outbox does: sends until it is confirmed.
async fn insist(broker: &dyn Broker, message: Message) -> usize {
    within(PATIENCE, "the confirmation", async {
        let mut tries = 1;
        while broker.publish(vec![message.clone()]).await[0].is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            tries += 1;
        }
        tries
    })
    .await
}

#[test]
fn a_cut_connection_is_made_again_and_consumers_go_on() {
    let Some((server, _cleanup)) = start("a_cut_connection_is_made_again_and_consumers_go_on") else {
        return;
    };
    runtime().block_on(async {
        let proxy = Proxy::start(&server).await;
        let broker = Amqp::new(&proxy.address()).unwrap();
        broker.declare(&topology()).await.unwrap();
        broker.check().await.unwrap();
        let mut consumer = broker.consume("orders", 2).await.unwrap();
        let messages = numbered(6);
        insist(&broker, messages[0].clone()).await;
        next(&mut *consumer).await.ack().await.unwrap();
        insist(&broker, messages[1].clone()).await;
        let held = next(&mut *consumer).await;
        assert_eq!(held.attempt(), 1);

        proxy.cut().await;
        // The answer to what was held can no longer be given, and what is published is not confirmed.
        let lost = within(PATIENCE, "the loss is noticed", async {
            loop {
                match broker.publish(vec![messages[2].clone()]).await.remove(0) {
                    Err(PublishError::Unconfirmed(BrokerError::Unreachable { address, .. })) => {
                        break address;
                    }
                    other => assert!(matches!(other, Err(PublishError::Unconfirmed(_))), "{other:?}"),
                }
            }
        })
        .await;
        assert!(lost.contains("guest@127.0.0.1") && !lost.contains("guest:guest"), "{lost}");
        assert!(matches!(broker.check().await, Err(BrokerError::Unreachable { .. })));
        assert!(matches!(broker.stats("orders").await, Err(BrokerError::Unreachable { .. })));
        assert_eq!(held.ack().await, Err(BrokerError::Lost));

        proxy.heal();
        for message in &messages[2..] {
            insist(&broker, message.clone()).await;
        }
        broker.check().await.unwrap();
        // At least once: what was held comes again, and what was sent meanwhile comes.
        let mut missing: Vec<_> = (1..6).map(|n| n.to_string()).collect();
        while !missing.is_empty() {
            let delivery = next(&mut *consumer).await;
            if delivery.message().body == "1" {
                assert_eq!(delivery.attempt(), 2);
            }
            missing.retain(|body| *body != delivery.message().body);
            delivery.ack().await.unwrap();
        }
        until(&broker, "nothing is left", |stats| stats.backlog() == 0 && stats.consumers == 1).await;
    });
}

#[test]
fn a_server_that_comes_late_is_found() {
    let Some((server, _cleanup)) = start("a_server_that_comes_late_is_found") else { return };
    runtime().block_on(async {
        let proxy = Proxy::start(&server).await;
        proxy.cut().await;
        // As a service starts whose broker is not there yet: nothing panics, and everything says so.
        let broker: Arc<dyn Broker> = order_broker::open(&proxy.address()).await.unwrap();
        assert!(matches!(broker.check().await, Err(BrokerError::Unreachable { .. })));
        assert!(matches!(broker.declare(&topology()).await, Err(BrokerError::Unreachable { .. })));
        let mut consumer = broker.consume("orders", 1).await.expect("it is declared, and tried for");
        assert!(futures::poll!(consumer.next()).is_pending());
        proxy.heal();
        // The consumer connects by itself, and the topology is there then.
        let direct = Amqp::new(&server).unwrap();
        direct.declare(&topology()).await.unwrap();
        insist(&direct, numbered(1).remove(0)).await;
        next(&mut *consumer).await.ack().await.unwrap();
        broker.check().await.unwrap();
    });
}

#[test]
fn a_wrong_password_is_told_and_not_shown() {
    let Some((server, _cleanup)) = start("a_wrong_password_is_told_and_not_shown") else { return };
    runtime().block_on(async {
        let broker = Amqp::new(&server.replacen(":guest@", ":s3cret@", 1)).unwrap();
        let Err(error) = broker.check().await else { panic!("it was let in") };
        assert!(matches!(error, BrokerError::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("REFUSED"), "{error}");
        assert!(!format!("{error} {error:?} {}", broker.address()).contains("s3cret"), "{error}");
    });
}

#[test]
fn what_was_confirmed_survives_kill_9_of_its_publisher() {
    let Some((server, _cleanup)) = start("what_was_confirmed_survives_kill_9_of_its_publisher") else {
        return;
    };
    let mut publisher = Process::start("publish", &server);
    assert_eq!(publisher.says(), "published");
    publisher.kill();
    runtime().block_on(async {
        let broker = Amqp::new(&server).unwrap();
        broker.declare(&topology()).await.unwrap();
        let mut consumer = broker.consume("orders", 10).await.unwrap();
        for n in 0..50 {
            let delivery = next(&mut *consumer).await;
            assert_eq!((delivery.message().body.as_str(), delivery.attempt()), (&*n.to_string(), 1));
            delivery.ack().await.unwrap();
        }
    });
}

#[test]
fn what_a_killed_handler_held_is_handled_by_another() {
    let Some((server, _cleanup)) = start("what_a_killed_handler_held_is_handled_by_another") else { return };
    runtime().block_on(async {
        let broker = Amqp::new(&server).unwrap();
        broker.declare(&topology()).await.unwrap();
        insist(&broker, numbered(1).remove(0)).await;
        let mut handler = Process::start("hold", &server);
        assert_eq!(handler.says(), "0");
        let mut consumer = broker.consume("orders", 1).await.unwrap();
        assert!(futures::poll!(consumer.next()).is_pending(), "the other holds it");
        handler.kill();
        let delivery = next(&mut *consumer).await;
        assert_eq!((delivery.message().body.as_str(), delivery.attempt()), ("0", 2));
        delivery.ack().await.unwrap();
        until(&broker, "nothing is left", |stats| stats.backlog() == 0).await;
    });
}

#[test]
fn messages_of_strangers_come_and_what_is_no_text_is_dead() {
    let Some((server, _cleanup)) = start("messages_of_strangers_come_and_what_is_no_text_is_dead") else {
        return;
    };
    runtime().block_on(async {
        let broker = Amqp::new(&server).unwrap();
        broker.declare(&topology()).await.unwrap();
        let mut consumer = broker.consume("orders", 1).await.unwrap();
        let (plain, prefix) = server.split_once("?prefix=").expect("the prefix is last");
        let connection =
            lapin::Connection::connect(plain, lapin::ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        for body in [&b"\xff\xfe"[..], b"{}"] {
            let options = lapin::options::BasicPublishOptions::default();
            let exchange = format!("{prefix}events").into();
            let properties = lapin::BasicProperties::default();
            channel.basic_publish(exchange, "order.paid".into(), options, body, properties).await.unwrap();
        }
        let delivery = next(&mut *consumer).await;
        assert_eq!(
            (delivery.message().body.as_str(), delivery.message().topic.as_str()),
            ("{}", "order.paid")
        );
        delivery.ack().await.unwrap();
        until(&broker, "the other is dead", |stats| stats.dead == 1).await;
        let dead = broker.dead_letters("orders", 1).await.unwrap().remove(0);
        assert!(dead.reason.contains("not text"), "{}", dead.reason);
        assert!(dead.since_ms > 0 && dead.count == 1, "{dead:?}");
    });
}

#[test]
fn what_amqp_cannot_carry_is_refused_alone() {
    let Some((server, _cleanup)) = start("what_amqp_cannot_carry_is_refused_alone") else { return };
    runtime().block_on(async {
        let broker = Amqp::new(&server).unwrap();
        broker.declare(&topology()).await.unwrap();
        let messages = vec![
            Message::new("x".repeat(300), "", ""),
            Message::new("order.created", "", "").header("x-death", "forged"),
            Message::new("order.created", "", "fine"),
        ];
        let results = broker.publish(messages).await;
        let invalid = |result: &Result<(), PublishError>| {
            matches!(result, Err(PublishError::Unconfirmed(BrokerError::Invalid(_))))
        };
        assert!(invalid(&results[0]) && invalid(&results[1]), "{results:?}");
        assert_eq!(results[2], Ok(()));
        let mut consumer = broker.consume("orders", 1).await.unwrap();
        let delivery = next(&mut *consumer).await;
        assert_eq!(delivery.message().body, "fine");
        delivery.ack().await.unwrap();
    });
}
