//! The trait, and the promises of everything that implements it.

use serde::{Deserialize, Serialize};

use crate::{BoxFuture, BrokerError, DeadLetter, Delivery, Message, PublishError, Topology};

/// Takes messages and hands each to one consumer of every queue that wants it.
///
/// # Guarantees
///
/// - **At least once.** A message whose [`publish`](Self::publish) answered `Ok` is delivered until somebody settles it. It may
///   be delivered twice: after a crash, and when it was published twice because the first confirmation was lost. Handlers
///   are to be idempotent, for example by remembering [`Message::id`].
/// - **Acknowledged means gone.** After [`Delivery::ack`] the queue does not deliver the message again, and not before. A
///   delivery that is dropped without an answer, or whose process dies, returns to the queue.
/// - **A failure is bounded.** After [`Queue::max_attempts`](crate::Queue::max_attempts) failures, or
///   [`MAX_RETURNS`](crate::MAX_RETURNS) unanswered returns, the message becomes a [`DeadLetter`] of its queue, with reason and count, and the
///   messages behind it go on. Nothing is ever discarded but by [`discard`](Self::discard).
/// - **Order per key.** Messages with the same non-empty [`Message::key`] are delivered in the order of publication, one at a
///   time: the next one comes when the one before is acknowledged or dead. That holds over retries and with several
///   consumers in memory and in SQLite. [RabbitMQ](crate::Amqp) keeps the order only for one consumer with prefetch 1, and
///   a retried message loses its place. One call of `publish` keeps the order of its list; of two calls at the
///   same time either may be first.
/// - **Prefetch** is the most that one consumer holds unsettled at any time.
/// - **It comes back.** A lost connection is made again without end, and consumers go on by themselves. Meanwhile `publish`
///   answers [`PublishError::Unconfirmed`] and [`check`](Self::check) fails.
///
/// # Cancel safety
///
/// A dropped `publish` may have published any of its messages. A dropped [`Consumer::next`] loses nothing. An answer
/// ([`Delivery::ack`] and its siblings) is sent by the call itself; its future only waits until the broker has taken it.
pub trait Broker: Send + Sync + 'static {
    /// Makes the exchange, the queues and their bindings, where they are not there yet. A queue that is there gets the new
    /// settings, and the new bindings beside those it has. One broker has one exchange: the last one declared.
    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// Publishes the messages in their order, and answers for each when it is stored in every queue that wants it.
    ///
    /// Who only publishes declares the exchange without queues. Before that (in memory and in SQLite: before anybody has) the answer is
    /// [`BrokerError::NoExchange`], unconfirmed: that nobody wants a message is said by who can know it.
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<(), PublishError>>>;

    /// Starts to consume a queue, holding at most `prefetch` unsettled deliveries. `prefetch` is at least 1.
    fn consume<'a>(
        &'a self,
        queue: &'a str,
        prefetch: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>, BrokerError>>;

    /// How many messages and consumers the queue has.
    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Stats, BrokerError>>;

    /// Whether the broker can be used now, for a readiness check.
    fn check(&self) -> BoxFuture<'_, Result<(), BrokerError>>;

    /// The oldest dead letters of the queue, at most `limit`.
    fn dead_letters<'a>(
        &'a self,
        queue: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<DeadLetter>, BrokerError>>;

    /// Puts dead letters back into this queue alone, with a clean record, and answers how many.
    fn replay<'a>(&'a self, queue: &'a str, which: Which) -> BoxFuture<'a, Result<u64, BrokerError>>;

    /// Throws dead letters away, and answers how many.
    fn discard<'a>(&'a self, queue: &'a str, which: Which) -> BoxFuture<'a, Result<u64, BrokerError>>;

    /// Finds out which of these queues are there, without making any; from then on this broker knows them as if it had declared them. For
    /// whoever looks at queues of others on RabbitMQ; elsewhere they are known anyhow, and nothing is done.
    fn look_for<'a>(&'a self, _: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// What has been declared: in the shared file by anybody, on RabbitMQ through this broker, with what it was to [look
    /// for](Broker::look_for) and has found.
    fn topology(&self) -> BoxFuture<'_, Result<Topology, BrokerError>>;

    /// Where it is, without a password.
    fn address(&self) -> String;
}

/// Takes deliveries from one queue.
///
/// Dropping it ends it. Deliveries that it has handed out can still be settled; those it has not return to the queue at once.
pub trait Consumer: Send {
    /// The next delivery. Waits as long as there is none, through lost connections too; an error is final.
    ///
    /// Cancel safe: dropping the future loses nothing.
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, BrokerError>>;

    /// The next deliveries that are there, at least one and at most `max`. Waits and is cancel safe as [`next`](Self::next).
    fn next_batch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, BrokerError>>;
}

/// What is in a queue now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Waiting for a consumer, or for an earlier message of their key.
    pub ready: u64,
    /// Waiting for the time of their next attempt.
    pub delayed: u64,
    /// With a consumer, and not settled. RabbitMQ tells only of the consumers of this broker object.
    pub unacked: u64,
    /// Given up, see [`Broker::dead_letters`].
    pub dead: u64,
    /// The consumers.
    pub consumers: u64,
}

impl Stats {
    /// What is still to be handled.
    pub fn backlog(&self) -> u64 {
        self.ready + self.delayed + self.unacked
    }
}

/// Some dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Which {
    /// All of the queue.
    All,
    /// Those with these message ids.
    Ids(Vec<String>),
}

impl Which {
    /// Whether the message with this id is meant.
    pub fn has(&self, id: &str) -> bool {
        match self {
            Which::All => true,
            Which::Ids(ids) => ids.iter().any(|wanted| wanted == id),
        }
    }
}
