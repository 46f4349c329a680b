//! Queues in this process.

mod queue;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use self::queue::{Held, Line};
use crate::topology::checked;
use crate::{
    BoxFuture, Broker, BrokerError, Consumer, DeadLetter, Delivery, Fate, Message, PublishError, Settle,
    Settlement, Stats, Topology, Which,
};

/// The broker `memory:`. Clones share the queues, which last as long as the process at most.
#[derive(Clone, Default)]
pub struct Memory {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    topology: Topology,
    lines: HashMap<String, Arc<SharedLine>>,
}

/// A queue, and who waits for it.
struct SharedLine {
    line: Mutex<Line>,
    /// Told when something can be taken that could not be before: a message came, or a consumer's prefetch has room again.
    changed: Notify,
}

impl SharedLine {
    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// A broker without queues.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, queue: &str) -> Result<Arc<SharedLine>, BrokerError> {
        self.lock().lines.get(queue).cloned().ok_or_else(|| BrokerError::UnknownQueue(queue.to_owned()))
    }

    fn publish_one(&self, message: &Message) -> Result<(), PublishError> {
        let state = self.lock();
        if state.topology.exchange.is_empty() {
            return Err(BrokerError::NoExchange.into());
        }
        let mut routed = false;
        for queue in state.topology.route(&message.topic) {
            let shared = &state.lines[&queue.name];
            shared.lock().push(message.clone());
            shared.changed.notify_waiters();
            routed = true;
        }
        if routed { Ok(()) } else { Err(PublishError::Unroutable { topic: message.topic.clone() }) }
    }

    /// Takes dead letters out of the queue, and answers how many.
    fn take_dead(&self, queue: &str, which: &Which, replay: bool) -> Result<u64, BrokerError> {
        let shared = self.line(queue)?;
        let mut line = shared.lock();
        let taken = line.take_dead(which);
        let count = taken.len() as u64;
        if replay {
            taken.into_iter().for_each(|letter| line.push(letter.message));
            shared.changed.notify_waiters();
        }
        Ok(count)
    }
}

impl Broker for Memory {
    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            checked(topology)?;
            let state = &mut *self.lock();
            state.topology.merge(topology);
            for queue in &topology.queues {
                let shared = state.lines.entry(queue.name.clone()).or_insert_with(|| {
                    Arc::new(SharedLine { line: Mutex::new(Line::new(queue)), changed: Notify::new() })
                });
                shared.lock().set(queue);
            }
            Ok(())
        })
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        Box::pin(async move { messages.iter().map(|message| self.publish_one(message)).collect() })
    }

    fn consume<'a>(
        &'a self,
        queue: &'a str,
        prefetch: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>, BrokerError>> {
        Box::pin(async move {
            crate::topology::checked_prefetch(prefetch)?;
            let shared = self.line(queue)?;
            let id = shared.lock().open();
            Ok(Box::new(MemoryConsumer { shared, id, prefetch: prefetch.into() }) as Box<dyn Consumer>)
        })
    }

    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Stats, BrokerError>> {
        Box::pin(async move { Ok(self.line(queue)?.lock().stats()) })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async { Ok(()) })
    }

    fn dead_letters<'a>(
        &'a self,
        queue: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<DeadLetter>, BrokerError>> {
        Box::pin(async move { Ok(self.line(queue)?.lock().dead(limit)) })
    }

    fn replay<'a>(&'a self, queue: &'a str, which: Which) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move { self.take_dead(queue, &which, true) })
    }

    fn discard<'a>(&'a self, queue: &'a str, which: Which) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move { self.take_dead(queue, &which, false) })
    }

    fn topology(&self) -> BoxFuture<'_, Result<Topology, BrokerError>> {
        Box::pin(async { Ok(self.lock().topology.clone()) })
    }

    fn address(&self) -> String {
        "memory:".to_owned()
    }
}

struct MemoryConsumer {
    shared: Arc<SharedLine>,
    id: u64,
    prefetch: usize,
}

impl MemoryConsumer {
    /// What is there and may be held, or when to look again at the latest.
    fn take(&self, max: usize) -> Result<Vec<Delivery>, Option<Instant>> {
        let mut line = self.shared.lock();
        let taken = line.take(self.id, self.prefetch, max);
        if taken.is_empty() {
            return Err(line.next_due());
        }
        let delivery = |(seq, Held { message, attempt })| {
            let settle = MemorySettle { shared: self.shared.clone(), seq };
            Delivery::new(message, attempt, Box::new(settle))
        };
        Ok(taken.into_iter().map(delivery).collect())
    }
}

impl Consumer for MemoryConsumer {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, BrokerError>> {
        Box::pin(async { Ok(self.next_batch(1).await?.pop().expect("a batch is not empty")) })
    }

    fn next_batch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, BrokerError>> {
        Box::pin(async move {
            loop {
                let mut changed = std::pin::pin!(self.shared.changed.notified());
                changed.as_mut().enable();
                // Nothing is awaited after the taking, so a dropped `next` holds nothing.
                match self.take(max.max(1)) {
                    Ok(taken) => return Ok(taken),
                    Err(None) => changed.await,
                    Err(Some(due)) => drop(tokio::time::timeout_at(due, changed).await),
                }
            }
        })
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.shared.lock().close(self.id);
    }
}

struct MemorySettle {
    shared: Arc<SharedLine>,
    seq: u64,
}

impl Settle for MemorySettle {
    fn settle(self: Box<Self>, how: Settlement) -> BoxFuture<'static, Result<Fate, BrokerError>> {
        let fate = self.shared.lock().settle(self.seq, how);
        self.shared.changed.notify_waiters();
        Box::pin(async move { Ok(fate) })
    }
}
