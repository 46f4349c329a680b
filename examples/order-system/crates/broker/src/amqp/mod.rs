//! Queues in RabbitMQ.

mod address;
mod consumer;
mod dead;
mod link;
mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;

use self::address::Address;
pub(crate) use self::address::without_password;
use self::consumer::AmqpConsumer;
use self::link::Link;
use self::wire::Record;
use crate::{
    BoxFuture, Broker, BrokerError, Consumer, DeadLetter, Message, PublishError, Stats, Topology, Which,
};

/// The broker `amqp://user:password@host:port/vhost`: RabbitMQ 3.10 or later. Clones share one connection.
///
/// The query parameter `prefix` is put before the names of all queues and exchanges, so that several systems (or tests) share one virtual
/// host: `amqp://localhost/%2f?prefix=staging.`
///
/// A queue `q` is a durable quorum queue, bound to the topic exchange. Beside it are `q.dead` for the dead letters and one `q.retry.<wait>`
/// for each step of the backoff, whose messages return to `q` when their time is over. Messages are persistent, published with
/// confirms and the mandatory flag. The connection is made when it is needed and made again when it is lost, with
/// everything that was declared; [`declare`](Broker::declare) remembers the topology even if the server is not there.
///
/// # Where it is weaker than the other brokers
///
/// - **Order per key** holds for one consumer with a prefetch of 1, as long as nothing fails: a retried message comes after
///   those that were behind it. Let the handler refuse what comes too early.
/// - **Retry and dead letter** store the copy, then acknowledge the original. A crash in between doubles the message.
/// - **An acknowledgement** is not confirmed by the protocol: `ack` answers when it is sent.
/// - **[`Stats::unacked`]** counts this broker's own consumers only: the protocol does not tell of others.
/// - **Looking at dead letters** takes them out for a moment, in which [`Stats::dead`] is less.
/// - **Fetched ahead** messages that go back with a lost connection count as returned.
#[derive(Clone)]
pub struct Amqp {
    link: Arc<Link>,
}

impl Amqp {
    /// A broker at this address. Nothing is sent yet. To be called within a tokio runtime, which its tasks then run on.
    ///
    /// # Errors
    ///
    /// [`BrokerError::BadAddress`] if it is none.
    pub fn new(address: &str) -> Result<Self, BrokerError> {
        Ok(Self { link: Arc::new(Link::new(Address::parse(address)?)) })
    }

    /// Deletes the exchange and the queues that were declared through this broker, with all that is in them.
    ///
    /// # Errors
    ///
    /// If the server is not there or refuses.
    pub async fn delete_declared(&self) -> Result<(), BrokerError> {
        let channel = self.link.channel().await?;
        let fault = |error: lapin::Error| self.link.fault(&error);
        for queue in &self.link.topology().queues {
            for name in self.link.names(queue).all() {
                let options = QueueDeleteOptions::default();
                channel.queue_delete(name.as_str().into(), options).await.map_err(fault)?;
            }
        }
        let exchange = self.link.exchange();
        if !exchange.is_empty() {
            let options = ExchangeDeleteOptions::default();
            channel.exchange_delete(exchange.into(), options).await.map_err(fault)?;
        }
        Ok(())
    }
}

impl Broker for Amqp {
    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            crate::topology::checked(topology)?;
            self.link.declare(topology).await
        })
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        Box::pin(async move {
            let exchange = self.link.exchange();
            let mut results: Vec<_> = messages
                .iter()
                .map(|message| match wire::check(message) {
                    Err(error) => Err(PublishError::Unconfirmed(error)),
                    Ok(()) if exchange.is_empty() => Err(PublishError::Unconfirmed(BrokerError::NoExchange)),
                    Ok(()) => Err(PublishError::Unroutable { topic: message.topic.clone() }),
                })
                .collect();
            if exchange.is_empty() {
                return results;
            }
            let sendable = |(n, message): (usize, Message)| match results[n] {
                Err(PublishError::Unroutable { .. }) => {
                    let properties = wire::properties(&message, Record::default());
                    Some((n, (exchange.clone(), message.topic, message.body.into_bytes(), properties)))
                }
                _ => None,
            };
            let (places, sent): (Vec<usize>, Vec<_>) =
                messages.into_iter().enumerate().filter_map(sendable).unzip();
            for (n, sent) in places.into_iter().zip(self.link.send(sent).await) {
                match sent {
                    Ok(true) => results[n] = Ok(()),
                    Ok(false) => {}
                    Err(error) => results[n] = Err(PublishError::Unconfirmed(error)),
                }
            }
            results
        })
    }

    fn consume<'a>(
        &'a self,
        queue: &'a str,
        prefetch: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>, BrokerError>> {
        Box::pin(async move {
            crate::topology::checked_prefetch(prefetch)?;
            let queue = self.link.queue(queue)?;
            let consumer = AmqpConsumer::start(self.link.clone(), queue, prefetch).await;
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        })
    }

    fn look_for<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            let mut there = Topology::new(topology.exchange.clone());
            for queue in &topology.queues {
                // The server closes a channel on which something is asked for that is not there.
                let channel = self.link.channel().await?;
                let name = self.link.names(queue).main;
                let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
                match channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await {
                    Ok(_) => there.queues.push(queue.clone()),
                    Err(error) if link::is_missing(&error) => {}
                    Err(error) => return Err(self.link.fault(&error)),
                }
            }
            self.link.know(&there);
            Ok(())
        })
    }

    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Stats, BrokerError>> {
        Box::pin(async move {
            let names = self.link.names(&self.link.queue(queue)?);
            let channel = self.link.channel().await?;
            let count = async |name: &str| {
                let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
                let declared = channel.queue_declare(name.into(), passive, FieldTable::default()).await;
                let declared = declared.map_err(|error| self.link.fault(&error))?;
                Ok::<_, BrokerError>((
                    u64::from(declared.message_count()),
                    u64::from(declared.consumer_count()),
                ))
            };
            let (ready, consumers) = count(&names.main).await?;
            let mut delayed = 0;
            for (name, _) in &names.retries {
                delayed += count(name).await?.0;
            }
            let dead = count(&names.dead).await?.0;
            let unacked = self.link.unacked(queue).load(Ordering::Relaxed);
            Ok(Stats { ready, delayed, unacked, dead, consumers })
        })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        // A round trip: a connection that has died in silence does not answer it.
        Box::pin(async {
            match tokio::time::timeout(std::time::Duration::from_secs(5), self.link.channel()).await {
                Ok(opened) => opened.map(drop),
                Err(_) => Err(self.link.unreachable("no answer in time")),
            }
        })
    }

    fn dead_letters<'a>(
        &'a self,
        queue: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<DeadLetter>, BrokerError>> {
        Box::pin(async move { dead::look(&self.link, &self.link.queue(queue)?, limit).await })
    }

    fn replay<'a>(&'a self, queue: &'a str, which: Which) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move { dead::take(&self.link, &self.link.queue(queue)?, &which, true).await })
    }

    fn discard<'a>(&'a self, queue: &'a str, which: Which) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move { dead::take(&self.link, &self.link.queue(queue)?, &which, false).await })
    }

    fn topology(&self) -> BoxFuture<'_, Result<Topology, BrokerError>> {
        Box::pin(async { Ok(self.link.topology()) })
    }

    fn address(&self) -> String {
        self.link.shown().to_owned()
    }
}
