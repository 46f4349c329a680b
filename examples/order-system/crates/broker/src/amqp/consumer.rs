//! Consuming: one task per consumer subscribes, and subscribes again whenever the connection was lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use lapin::Channel;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::{mpsc, oneshot};

use super::link::Link;
use super::wire::{self, Record};
use crate::{BoxFuture, BrokerError, Consumer, Delivery, Fate, Message, Queue, Settle, Settlement};

/// Between two attempts to subscribe.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(1);

pub(super) struct AmqpConsumer {
    arrived: mpsc::UnboundedReceiver<Arrived>,
}

/// A delivery that nobody has seen yet. Dropped, it goes back.
struct Arrived(Option<Box<(Message, u32, AmqpSettle)>>);

impl Arrived {
    /// `None` if the connection it came by is lost: it comes again by the next one.
    fn delivery(mut self) -> Option<Delivery> {
        let (message, attempt, settle) = *self.0.take()?;
        settle.delivery.usable().then(|| Delivery::new(message, attempt, Box::new(settle)))
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        if let Some(unseen) = self.0.take() {
            drop(Box::new(unseen.2).settle(Settlement::Return));
        }
    }
}

impl AmqpConsumer {
    /// Starts to consume. Answers after the first attempt to subscribe, which need not succeed.
    pub(super) async fn start(link: Arc<Link>, queue: Queue, prefetch: u16) -> Self {
        let (to, arrived) = mpsc::unbounded_channel();
        let (tried, first_attempt) = oneshot::channel();
        let consumer = Self { arrived };
        link.runtime.clone().spawn(consume(link, queue, prefetch, to, tried));
        drop(first_attempt.await);
        consumer
    }
}

impl Consumer for AmqpConsumer {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, BrokerError>> {
        Box::pin(async {
            loop {
                let arrived = self.arrived.recv().await.ok_or(BrokerError::Closed)?;
                if let Some(delivery) = arrived.delivery() {
                    return Ok(delivery);
                }
            }
        })
    }

    fn next_batch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, BrokerError>> {
        Box::pin(async move {
            let mut batch = vec![self.next().await?];
            while batch.len() < max {
                let Ok(arrived) = self.arrived.try_recv() else { break };
                batch.extend(arrived.delivery());
            }
            Ok(batch)
        })
    }
}

async fn consume(
    link: Arc<Link>,
    queue: Queue,
    prefetch: u16,
    to: mpsc::UnboundedSender<Arrived>,
    tried: oneshot::Sender<()>,
) {
    let mut tried = Some(tried);
    let mut wait = FIRST_WAIT;
    while !to.is_closed() {
        let subscribed = subscribe(&link, &queue, prefetch).await;
        if let Some(tried) = tried.take() {
            let _ = tried.send(());
        }
        match subscribed {
            Ok((channel, deliveries)) => {
                wait = FIRST_WAIT;
                forward(&link, &queue, channel, deliveries, &to).await;
            }
            Err(error) => {
                tracing::warn!(queue = %queue.name, %error, "cannot consume now");
                if matches!(error, BrokerError::Failed(_)) {
                    // Perhaps somebody has deleted the queue.
                    let topology = link.topology();
                    drop(link.declare(&topology).await);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(LAST_WAIT),
            () = to.closed() => {}
        }
    }
}

async fn subscribe(
    link: &Link,
    queue: &Queue,
    prefetch: u16,
) -> Result<(Channel, lapin::Consumer), BrokerError> {
    let channel = link.channel().await?;
    let subscribed = async {
        channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let name = link.names(queue).main;
        let options = BasicConsumeOptions::default();
        channel.basic_consume(name.into(), "".into(), options, FieldTable::default()).await
    };
    let deliveries = subscribed.await.map_err(|error| link.fault(&error))?;
    Ok((channel, deliveries))
}

/// Hands over what comes, until the channel or the consumer ends.
async fn forward(
    link: &Arc<Link>,
    queue: &Queue,
    channel: Channel,
    mut deliveries: lapin::Consumer,
    to: &mpsc::UnboundedSender<Arrived>,
) {
    let unacked = link.unacked(&queue.name);
    let mut cancelled = false;
    loop {
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery,
            () = to.closed(), if !cancelled => {
                // What is on its way still arrives below, and goes back from there.
                cancelled = true;
                drop(channel.basic_cancel(deliveries.tag(), BasicCancelOptions::default()).await);
                continue;
            }
        };
        match delivery {
            Some(Ok(delivery)) => {
                let arrived = arrived(link, queue, &channel, &unacked, delivery).await;
                if let Some(arrived) = arrived {
                    drop(to.send(arrived));
                }
            }
            Some(Err(error)) => tracing::warn!(queue = %queue.name, %error, "stopped consuming"),
            None => return,
        }
    }
}

async fn arrived(
    link: &Arc<Link>,
    queue: &Queue,
    channel: &Channel,
    unacked: &Arc<AtomicU64>,
    mut delivery: lapin::message::Delivery,
) -> Option<Arrived> {
    let Some((message, record)) = wire::message(&delivery) else {
        // RabbitMQ itself puts it to the dead letters.
        let unreadable = BasicNackOptions { requeue: false, ..BasicNackOptions::default() };
        drop(delivery.nack(unreadable).await);
        return None;
    };
    // It is in `message` now, and headers are made anew whenever the message moves.
    delivery.data = Vec::new();
    let settle = AmqpSettle {
        link: link.clone(),
        queue: queue.name.clone(),
        held: Held::new(unacked.clone()),
        delivery,
        message: message.clone(),
        record,
        _channel: channel.clone(),
    };
    Some(Arrived(Some(Box::new((message, record.attempts, settle)))))
}

/// Counts as long as it lives.
struct Held(Arc<AtomicU64>);

impl Held {
    fn new(count: Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct AmqpSettle {
    link: Arc<Link>,
    queue: String,
    held: Held,
    delivery: lapin::message::Delivery,
    message: Message,
    record: Record,
    /// Keeps the channel open, also when its consumer is gone: only there can the delivery be settled.
    _channel: Channel,
}

impl Settle for AmqpSettle {
    fn settle(self: Box<Self>, how: Settlement) -> BoxFuture<'static, Result<Fate, BrokerError>> {
        let settled = self.link.runtime.clone().spawn(async move { self.send(how).await });
        Box::pin(async move { settled.await.unwrap_or(Err(BrokerError::Closed)) })
    }
}

impl AmqpSettle {
    async fn send(self, how: Settlement) -> Result<Fate, BrokerError> {
        let settled = self.try_send(how).await;
        if settled.is_err() {
            // Neither here nor there: it is to come again. Where the connection is lost it does so anyway.
            self.give_back().await;
        }
        drop(self.held);
        settled
    }

    async fn try_send(&self, how: Settlement) -> Result<Fate, BrokerError> {
        let fate = match how {
            Settlement::Ack => Fate::Done,
            Settlement::Reject(reason) => self.bury(self.record.failures + 1, &reason).await?,
            Settlement::Retry(reason) => self.put_off(self.record.failures + 1, &reason).await?,
            Settlement::Return => {
                self.give_back().await;
                return Ok(Fate::Again(Duration::ZERO));
            }
        };
        // The copy is confirmed by now. A crash in between doubles the message and does not lose it.
        match self.delivery.ack(lapin::options::BasicAckOptions::default()).await {
            Ok(true) => Ok(fate),
            Ok(false) | Err(_) => Err(BrokerError::Lost),
        }
    }

    async fn give_back(&self) {
        let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        drop(self.delivery.nack(requeue).await);
    }

    async fn put_off(&self, failures: u32, reason: &str) -> Result<Fate, BrokerError> {
        let queue = self.link.queue(&self.queue)?;
        if failures >= queue.max_attempts {
            return self.bury(failures, reason).await;
        }
        let (waits_in, wait) = self.link.retry(&queue, failures);
        let properties = wire::properties(&self.message, Record { failures, ..self.record });
        self.link.send_to(waits_in, self.message.body.clone().into_bytes(), properties).await?;
        Ok(Fate::Again(wait))
    }

    async fn bury(&self, failures: u32, reason: &str) -> Result<Fate, BrokerError> {
        let dead = self.link.names(&self.link.queue(&self.queue)?).dead;
        let properties = wire::dead_properties(&self.message, Record { failures, ..self.record }, reason);
        self.link.send_to(dead, self.message.body.clone().into_bytes(), properties).await?;
        Ok(Fate::Dead)
    }
}
