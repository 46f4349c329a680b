//! The broker is away, and back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use order_broker::{
    Broker, BrokerError, Consumer, DeadLetter, Delivery, Message, PublishError, Stats, Topology, Which,
};
use order_kit::{BoxError, env};
use serde_json::Value;

use super::{Play, Stage, Story, order_id};
use crate::{
    audit::settled,
    demo::CALM,
    remote::Remote,
    system::{Options, System, broker_address},
};

const ORDERS: usize = 50;

/// A broker that can be taken away: what is published is not confirmed, and nothing is delivered.
#[derive(Clone)]
pub struct Switched {
    broker: Arc<dyn Broker>,
    away: Arc<AtomicBool>,
}

impl Switched {
    /// Around another, which is there.
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        Switched { broker, away: Arc::default() }
    }

    /// Takes it away, or brings it back.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    fn here(&self) -> Result<&dyn Broker, BrokerError> {
        if self.away.load(Ordering::SeqCst) { Err(gone(&*self.broker)) } else { Ok(&*self.broker) }
    }
}

fn gone(broker: &dyn Broker) -> BrokerError {
    BrokerError::Unreachable { address: broker.address(), reason: "it was taken away".to_owned() }
}

impl Broker for Switched {
    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async { self.here()?.declare(topology).await })
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        Box::pin(async {
            match self.here() {
                Ok(broker) => broker.publish(messages).await,
                Err(error) => {
                    messages.iter().map(|_| Err(PublishError::Unconfirmed(error.clone()))).collect()
                }
            }
        })
    }

    fn consume<'a>(
        &'a self,
        queue: &'a str,
        prefetch: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>, BrokerError>> {
        Box::pin(async move {
            let consumer = self.here()?.consume(queue, prefetch).await?;
            Ok(Box::new(SwitchedConsumer { consumer, away: self.away.clone() }) as Box<dyn Consumer>)
        })
    }

    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Stats, BrokerError>> {
        Box::pin(async move { self.here()?.stats(queue).await })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async { self.here()?.check().await })
    }

    fn dead_letters<'a>(
        &'a self,
        queue: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<DeadLetter>, BrokerError>> {
        Box::pin(async move { self.here()?.dead_letters(queue, limit).await })
    }

    fn replay<'a>(&'a self, queue: &'a str, which: Which) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move { self.here()?.replay(queue, which).await })
    }

    fn discard<'a>(&'a self, queue: &'a str, which: Which) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move { self.here()?.discard(queue, which).await })
    }

    fn topology(&self) -> BoxFuture<'_, Result<Topology, BrokerError>> {
        Box::pin(async { self.here()?.topology().await })
    }

    fn address(&self) -> String {
        self.broker.address()
    }
}

struct SwitchedConsumer {
    consumer: Box<dyn Consumer>,
    away: Arc<AtomicBool>,
}

async fn back(away: &AtomicBool) {
    while away.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Consumer for SwitchedConsumer {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, BrokerError>> {
        Box::pin(async {
            back(&self.away).await;
            self.consumer.next().await
        })
    }

    fn next_batch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, BrokerError>> {
        Box::pin(async move {
            back(&self.away).await;
            self.consumer.next_batch(max).await
        })
    }
}

pub(super) async fn down(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    let data = tempfile::tempdir()?;
    let mut options = Options::alone(data.path()).with(env::RATE_LIMIT, "off").with(env::POLICY_FAST, "1");
    for (name, value) in &play.variables {
        options = options.with(name, value.clone());
    }
    let broker = Switched::new(order_broker::open(&broker_address(&options.env, data.path())).await?);
    let system = System::start_with(options, Arc::new(broker.clone())).await?;
    let remote = Remote::to(&system);
    let stage = Stage::set(Some(system), remote).await?;

    story.say("the broker goes away");
    broker.set_away(true);
    let mut orders = Vec::new();
    for _ in 0..ORDERS {
        orders.push(order_id(&stage.order(0, 1, 1).await?.expect(202)?)?);
    }
    story.check(orders.len() == ORDERS, format!("{ORDERS} orders are taken all the same"));
    let ready = stage.remote.get("orders", "/health/ready").await?;
    story.check(
        ready.text.contains("messageQueue"),
        format!("readiness names the broker: {}", ready.json()["checks"]["messageQueue"]["status"]),
    );
    let list = format!("/orders/{}", orders[ORDERS - 1]);
    let last = stage
        .remote
        .until(Duration::from_secs(30), "orders", &list, |answer| answer.json()["status"] == "confirmed")
        .await;
    story.check(last.is_ok(), "they are even confirmed, since a saga asks services and not queues");
    let mails = stage.remote.get("notifications", &format!("/sent?order={}", orders[0])).await?.json();
    story.check(mails.as_array().is_some_and(Vec::is_empty), "nobody was told yet");

    story.say("the broker is back");
    broker.set_away(false);
    let mut once = 0;
    for order in &orders {
        once += usize::from(stage.mails(order, 2).await? == ["confirmed", "received"]);
    }
    story.check(once == ORDERS, format!("each customer has one mail of each kind ({once} of {ORDERS})"));
    let sent = stage.remote.get("notifications", &format!("/sent?order={}", orders[0])).await?.json();
    let kinds: Vec<&Value> =
        sent.as_array().map(|mails| mails.iter().map(|mail| &mail["kind"]).collect()).unwrap_or_default();
    story.check(kinds == ["received", "confirmed"], "in the order in which it happened");

    story.say("an event that nobody can read");
    let poison = Message::new("order.created", "poison", "{\"no\":\"event\"}");
    let id = poison.id.clone();
    for published in broker.publish(vec![poison]).await {
        published?;
    }
    let mut dead = Vec::new();
    for _ in 0..500 {
        dead = broker.dead_letters("notifications", 10).await?;
        if !dead.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let reason = dead.first().map(|letter| letter.reason.clone()).unwrap_or_default();
    story.check(
        dead.len() == 1 && dead[0].message.id == id,
        format!("is a dead letter with a reason: {reason}"),
    );
    let next = order_id(&stage.order(0, 1, 1).await?.expect(202)?)?;
    story.check(stage.mails(&next, 1).await.is_ok(), "and blocks nobody behind it");
    let gone = broker.discard("notifications", Which::Ids(vec![id])).await?;
    story.check(gone == 1, "it is thrown away by hand");
    story.check(
        stage.over(&next, Duration::from_secs(5)).await.is_ok()
            && settled(&stage.remote, CALM).await?.print(),
        "the audit is green",
    );
    stage.end().await;
    Ok(())
}
