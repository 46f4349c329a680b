//! Events that are published if and only if their transaction was committed.
//!
//! A row that is written and an event that is published afterwards are two acts: a crash between them loses the event. Here the event is a
//! row too, [appended](sqlite::append) in the business transaction; a *relay* publishes what was committed, in order, and again until the
//! publisher said `Ok`.
//!
//! [`sqlite`] works on `rusqlite`, [`postgres`] on `tokio-postgres`, [`mod@sqlx`] on `sqlx` with PostgreSQL. Consumers recognise what they are told twice with the
//! [`inbox`](super::inbox).
//!
//! # Example
//!
#![cfg_attr(feature = "sqlite", doc = "```")]
#![cfg_attr(not(feature = "sqlite"), doc = "```ignore")]
//! use mainstay::saga::outbox::{self, Relay, Unsent};
//! use rusqlite::Connection;
//!
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let mut database = Connection::open_in_memory()?;
//! outbox::sqlite::install(&database)?;
//! database.execute_batch("create table orders (id text)")?;
//!
//! let tx = database.transaction()?;
//! tx.execute("insert into orders values ('order-17')", [])?;
//! outbox::sqlite::append(&tx, "orders", "order-17", &"confirmed")?;
//! tx.commit()?;
//!
//! // In a task of its own, again and again, with a pause when there was nothing to do.
//! let relayed = outbox::sqlite::relay(&mut database, &Relay::new(), async |message| {
//!     // A broker's client: `Unsent::unavailable` when it does not answer, `Unsent::refused` when it says no to this message.
//!     assert_eq!((&*message.topic, &*message.key, message.payload.as_str()), ("orders", "order-17", "\"confirmed\""));
//!     Ok(())
//! }).await?;
//! assert_eq!(relayed.sent, 1);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! # Ok::<_, std::io::Error>(())
//! ```
//!
//! # Semantics
//!
//! | the publisher says | then |
//! |---|---|
//! | `Ok` | the message is marked as sent |
//! | [`Unsent::Unavailable`] | the round ends. No attempt is counted: an outage parks nothing |
//! | [`Unsent::Refused`], or panics | an attempt is counted; the message waits for its backoff, and the later ones of its key with it |
//! | the same for the last of the [`attempts`](Relay::attempts) | the message is *parked*, with the reason |
//!
//! * **At least once.** A message is marked after the publisher said `Ok`; a relay that dies in between, or whose future is dropped,
//!   leaves at most one batch to be published again. [`Message::id`] is the same each time.
//! * **Order.** Messages of one topic and key are published in the order in which they were appended, one after the other. Where
//!   some are published again, what is new still comes in order. Between keys there is no order.
//! * **A parked message** stops the later ones of its topic and key, and no others, until it is released or discarded; with
//!   [`skip_parked`](Relay::skip_parked) they pass it.
//! * **Several relays** share the work in Postgres, a key at a time. In SQLite a second one repeats the first one's work and harms nothing.
//! * **Settings** are the relay's: relays of one outbox should have the same.
//!
//! # Cancel safety
//!
//! A dropped relay has marked nothing of its round.
//!
//! # Errors
//!
//! [`AppendError`] in front of the commit; of a relay the database's alone. What a publisher says is counted in [`Relayed`] and kept
//! in the table.
//!
//! # Panics
//!
//! None of its own. A panic in the publisher is a refusal.
//!
//! # Cost
//!
//! One insert for each event, and in Postgres a lock on topic and key until the commit. A round is two reads and a write for the
//! whole batch. In Postgres the reads pass over each unsent row a few times at most, whatever its key: with 20,000 of one key they take 50 to
//! 150 ms (`cargo test --features postgres --test saga_outbox_cost -- --ignored --nocapture`).

#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "sqlx"))]
mod round;
#[cfg(any(feature = "postgres", feature = "sqlx"))]
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(feature = "sqlx")]
pub mod sqlx;

use std::{fmt, time::Duration};

use super::record::Payload;
use crate::backoff::{Jitter, Schedule};

/// An event on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Its own name, random and the same each time it is published.
    pub id: String,
    /// What kind of event it is: where it is published.
    pub topic: String,
    /// What it is about: the messages of a topic with the same key are in order.
    pub key: String,
    /// What it says.
    pub payload: Payload,
    /// How often the publisher has refused it.
    pub refusals: u32,
}

impl Message {
    /// A message that was never refused: for the test of a publisher.
    pub fn new(id: &str, topic: &str, key: &str, payload: Payload) -> Self {
        Message { id: id.to_owned(), topic: topic.to_owned(), key: key.to_owned(), payload, refusals: 0 }
    }
}

/// A message that was refused as often as it may.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Parked {
    /// The message.
    pub message: Message,
    /// What the publisher said last.
    pub reason: String,
}

/// Why a message was not published.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unsent {
    /// Nothing can be published at the moment. It is no fault of the message.
    Unavailable(String),
    /// This message cannot.
    Refused(String),
}

impl Unsent {
    /// Nothing can be published at the moment.
    pub fn unavailable(why: impl fmt::Display) -> Self {
        Unsent::Unavailable(why.to_string())
    }

    /// This message cannot be published.
    pub fn refused(why: impl fmt::Display) -> Self {
        Unsent::Refused(why.to_string())
    }
}

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsent::Unavailable(why) => write!(f, "the publisher is unavailable: {why}"),
            Unsent::Refused(why) => write!(f, "the message was refused: {why}"),
        }
    }
}

impl std::error::Error for Unsent {}

/// How a relay works.
#[derive(Debug, Clone, PartialEq)]
pub struct Relay {
    batch: usize,
    attempts: u32,
    backoff: Schedule,
    skip_parked: bool,
}

impl Relay {
    /// 100 messages in a round; 10 attempts, with waits of 1 s, 2 s, 4 s, at most 5 min; a parked message stops its key.
    pub fn new() -> Self {
        let backoff = Schedule::exponential(Duration::from_secs(1)).cap(Duration::from_secs(300));
        Relay { batch: 100, attempts: 10, backoff: backoff.jitter(Jitter::None), skip_parked: false }
    }

    /// The most messages in a round; at least 1.
    #[must_use]
    pub fn batch(mut self, messages: usize) -> Self {
        self.batch = messages.max(1);
        self
    }

    /// How often a message is refused before it is parked; at least 1.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How long a message waits after it was refused. When the schedule has an end, the message is parked there.
    #[must_use]
    pub fn backoff(mut self, backoff: Schedule) -> Self {
        self.backoff = backoff;
        self
    }

    /// Lets the later messages of a key pass a parked one.
    #[must_use]
    pub fn skip_parked(mut self) -> Self {
        self.skip_parked = true;
        self
    }
}

impl Default for Relay {
    fn default() -> Self {
        Relay::new()
    }
}

/// What came of a round.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Relayed {
    /// So many were published.
    pub sent: usize,
    /// So many were refused and wait for their next attempt.
    pub refused: usize,
    /// So many were refused and are parked.
    pub parked: usize,
    /// Why the round ended early.
    pub unavailable: Option<String>,
}

impl Relayed {
    /// Whether another round should wait a little: nothing was published.
    pub fn is_idle(&self) -> bool {
        self.sent == 0
    }
}

/// Why an event could not be appended.
#[derive(Debug)]
#[non_exhaustive]
pub enum AppendError<D> {
    /// It cannot be written as JSON.
    Payload(serde_json::Error),
    /// The database said so.
    Database(D),
}

impl<D> From<D> for AppendError<D> {
    fn from(error: D) -> Self {
        AppendError::Database(error)
    }
}

impl<D: fmt::Display> fmt::Display for AppendError<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppendError::Payload(error) => write!(f, "the payload of an event: {error}"),
            AppendError::Database(error) => write!(f, "the outbox's table: {error}"),
        }
    }
}

impl<D: std::error::Error + 'static> std::error::Error for AppendError<D> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AppendError::Payload(error) => Some(error),
            AppendError::Database(error) => Some(error),
        }
    }
}
