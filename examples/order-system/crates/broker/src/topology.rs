//! Which queues there are, and what they want.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{BrokerError, matches};

/// An exchange and the queues bound to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Topology {
    /// The name of the topic exchange.
    pub exchange: String,
    /// The queues. A publisher may name none.
    pub queues: Vec<Queue>,
}

/// A queue: each of its messages is handled by one of its consumers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// The topics it wants, see [`matches`](crate::matches()). A message that several bindings want comes once.
    pub bindings: Vec<String>,
    /// How often a message may be handled before [`retry`](crate::Delivery::retry) makes it a dead letter. At least 1.
    pub max_attempts: u32,
    /// How long a message waits after `retry`.
    pub backoff: Backoff,
    /// How long after the last sign of life of a consumer's process its deliveries return to the queue. The SQLite broker
    /// keeps this time; RabbitMQ has its own heartbeat, and in memory there is no process to outlive.
    pub visibility: Duration,
}

/// How long a message waits before it is delivered again: doubling, with a cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// At most.
    pub max: Duration,
}

impl Topology {
    /// An exchange without queues.
    pub fn new(exchange: impl Into<String>) -> Self {
        Self { exchange: exchange.into(), queues: Vec::new() }
    }

    /// Adds a queue.
    #[must_use]
    pub fn queue(mut self, queue: Queue) -> Self {
        self.queues.push(queue);
        self
    }

    /// The queue of this name.
    pub fn find(&self, name: &str) -> Option<&Queue> {
        self.queues.iter().find(|queue| queue.name == name)
    }

    /// The queues that get a message of this topic.
    pub fn route<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = &'a Queue> {
        self.queues.iter().filter(move |queue| queue.wants(topic))
    }

    /// Takes `other` in: settings of a queue that is known already are replaced, its bindings are added to.
    pub(crate) fn merge(&mut self, other: &Topology) {
        self.exchange.clone_from(&other.exchange);
        for queue in &other.queues {
            match self.queues.iter_mut().find(|known| known.name == queue.name) {
                None => self.queues.push(queue.clone()),
                Some(known) => {
                    let mut bindings = std::mem::take(&mut known.bindings);
                    bindings.extend(
                        queue
                            .bindings
                            .iter()
                            .filter(|new| !bindings.contains(new))
                            .cloned()
                            .collect::<Vec<_>>(),
                    );
                    *known = Queue { bindings, ..queue.clone() };
                }
            }
        }
    }
}

impl Queue {
    /// A queue that wants nothing yet: 5 attempts, 100 ms doubling to 10 s between them, 30 s until a silent consumer is
    /// taken for dead.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            bindings: Vec::new(),
            max_attempts: 5,
            backoff: Backoff { first: Duration::from_millis(100), max: Duration::from_secs(10) },
            visibility: Duration::from_secs(30),
        }
    }

    /// Binds it to the topics that match `pattern`.
    #[must_use]
    pub fn bind(mut self, pattern: impl Into<String>) -> Self {
        self.bindings.push(pattern.into());
        self
    }

    /// Sets [`max_attempts`](Self::max_attempts).
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Sets the [`backoff`](Self::backoff).
    #[must_use]
    pub fn backoff(mut self, first: Duration, max: Duration) -> Self {
        self.backoff = Backoff { first, max };
        self
    }

    /// Sets the [`visibility`](Self::visibility) timeout.
    #[must_use]
    pub fn visibility(mut self, timeout: Duration) -> Self {
        self.visibility = timeout;
        self
    }

    /// Whether one of its bindings wants this topic.
    pub fn wants(&self, topic: &str) -> bool {
        self.bindings.iter().any(|pattern| matches(pattern, topic))
    }
}

impl Backoff {
    /// The wait after the `failures`th failure, which is 1 for the first.
    pub fn after(&self, failures: u32) -> Duration {
        let factor = 2u32.checked_pow(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.max)
    }
}

/// Refuses what no broker could keep.
pub(crate) fn checked(topology: &Topology) -> Result<(), BrokerError> {
    if topology.exchange.is_empty() {
        return Err(BrokerError::Invalid("an exchange needs a name".to_owned()));
    }
    for queue in &topology.queues {
        if queue.name.is_empty() {
            return Err(BrokerError::Invalid("a queue needs a name".to_owned()));
        }
        if queue.max_attempts == 0 {
            return Err(BrokerError::Invalid(format!("queue `{}`: max_attempts is at least 1", queue.name)));
        }
        if queue.visibility < Duration::from_millis(1) {
            return Err(BrokerError::Invalid(format!("queue `{}`: visibility is at least 1 ms", queue.name)));
        }
    }
    Ok(())
}

/// In AMQP 0 means "as many as there are", which no consumer wants by accident.
pub(crate) fn checked_prefetch(prefetch: u16) -> Result<(), BrokerError> {
    if prefetch == 0 { Err(BrokerError::Invalid("prefetch is at least 1".to_owned())) } else { Ok(()) }
}
