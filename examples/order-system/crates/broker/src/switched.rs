//! A broker that can be taken away, to see what the others do without it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    BoxFuture, Broker, BrokerError, Consumer, DeadLetter, Delivery, Message, PublishError, Stats, Topology,
    Which,
};

/// A broker that can be taken away: what is published is not confirmed, and nothing is delivered.
#[derive(Clone)]
pub struct Switched {
    broker: Arc<dyn Broker>,
    away: Arc<AtomicBool>,
    refused: Arc<AtomicU64>,
}

impl std::fmt::Debug for Switched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Switched({}, away: {})", self.broker.address(), self.away.load(Ordering::SeqCst))
    }
}

impl Switched {
    /// Around another, which is there.
    pub fn new(broker: Arc<dyn Broker>) -> Self {
        Switched { broker, away: Arc::default(), refused: Arc::default() }
    }

    /// Takes it away, or brings it back.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// How often somebody has published in vain.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
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
                    self.refused.fetch_add(1, Ordering::SeqCst);
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
