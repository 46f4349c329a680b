//! A message in the hands of a consumer, and the answers it can get.

use std::time::Duration;

use crate::{BoxFuture, BrokerError, Message};

/// How often a message may return without an answer (dropped, its process or connection gone) before it is a dead letter:
/// what kills its consumer would otherwise do so for ever. More than a message's attempts, since those who return are often innocent.
pub const MAX_RETURNS: u32 = 20;

/// A message that is this consumer's until it is settled. Dropped without an answer, it returns to its queue.
#[must_use = "a delivery that is dropped returns to its queue"]
pub struct Delivery {
    message: Message,
    attempt: u32,
    settle: Option<Box<dyn Settle>>,
}

/// How a broker is told of an answer.
pub trait Settle: Send + Sync {
    /// Sends the answer before it returns; the future waits until the broker has taken it, and need not be polled.
    fn settle(self: Box<Self>, how: Settlement) -> BoxFuture<'static, Result<Fate, BrokerError>>;
}

/// The answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// Done.
    Ack,
    /// Failed, for this reason; once more.
    Retry(String),
    /// Failed for good, for this reason.
    Reject(String),
    /// No answer.
    Return,
}

/// What has become of a settled message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is gone from the queue.
    Done,
    /// It comes again after this wait.
    Again(Duration),
    /// It is a dead letter.
    Dead,
}

impl Delivery {
    /// For those who write a broker. The first delivery is attempt 1.
    pub fn new(message: Message, attempt: u32, settle: Box<dyn Settle>) -> Self {
        Self { message, attempt, settle: Some(settle) }
    }

    /// The message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// 1 at first; one more for each failure and each return without an answer.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// It was handled: the queue forgets it.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Lost`] if it has returned to the queue before: what was done will be done again, elsewhere. Any other
    /// error leaves it open whether it was taken.
    pub fn ack(self) -> BoxFuture<'static, Result<(), BrokerError>> {
        let settled = self.settle(Settlement::Ack);
        Box::pin(async { settled.await.map(drop) })
    }

    /// It failed: it comes again after the queue's backoff, or is a dead letter when it has failed often enough.
    ///
    /// # Errors
    ///
    /// As for [`ack`](Self::ack).
    pub fn retry(self, reason: impl Into<String>) -> BoxFuture<'static, Result<Fate, BrokerError>> {
        self.settle(Settlement::Retry(reason.into()))
    }

    /// It can never succeed: it becomes a dead letter at once.
    ///
    /// # Errors
    ///
    /// As for [`ack`](Self::ack).
    pub fn reject(self, reason: impl Into<String>) -> BoxFuture<'static, Result<(), BrokerError>> {
        let settled = self.settle(Settlement::Reject(reason.into()));
        Box::pin(async { settled.await.map(drop) })
    }

    fn settle(mut self, how: Settlement) -> BoxFuture<'static, Result<Fate, BrokerError>> {
        self.settle.take().expect("only this and `drop` take it, and both end the delivery").settle(how)
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(settle) = self.settle.take() {
            drop(settle.settle(Settlement::Return));
        }
    }
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery")
            .field("message", &self.message)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// Acknowledges many: all answers are sent before the first is waited for, so that a broker takes them in one go.
///
/// # Errors
///
/// The first that any of them had, when all are answered.
pub async fn ack_all(deliveries: impl IntoIterator<Item = Delivery>) -> Result<(), BrokerError> {
    let sent: Vec<_> = deliveries.into_iter().map(Delivery::ack).collect();
    let mut result = Ok(());
    for ack in sent {
        result = result.and(ack.await);
    }
    result
}

/// The reason of a dead letter that nobody gave a reason for.
pub(crate) fn returned_too_often() -> String {
    format!("returned {} times without an answer", MAX_RETURNS + 1)
}
