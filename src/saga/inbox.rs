//! Messages that have their effect once, however often they are delivered: the consumer's side of an
//! [`outbox`](super::outbox).
//!
//! The consumer accepts a message in the transaction in which it does what the message asks for. What has been accepted
//! before is a duplicate, and nothing is left to do but to acknowledge it.
//!
//! # Example
//!
#![cfg_attr(feature = "sqlite", doc = "```")]
#![cfg_attr(not(feature = "sqlite"), doc = "```ignore")]
//! use mainstay::saga::inbox::{self, Accepted};
//! use rusqlite::{Connection, TransactionBehavior::Immediate};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut database = Connection::open_in_memory()?;
//! inbox::sqlite::install(&database)?;
//! for delivered in 1..=2 {
//!     let tx = database.transaction_with_behavior(Immediate)?;
//!     if inbox::sqlite::accept(&tx, "shipping", "message-1")? == Accepted::First {
//!         assert_eq!(delivered, 1);
//!         // What the message asks for, in this transaction.
//!     }
//!     tx.commit()?; // and only now acknowledge
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Semantics
//!
//! | the message was | [`Accepted`] |
//! |---|---|
//! | never accepted by this consumer, or in a transaction that was rolled back | `First` |
//! | accepted by this consumer in a transaction that was committed | `Duplicate` |
//! | accepted by another consumer | `First`: each has its own |
//!
//! Of two simultaneous deliveries the second waits for the end of the first one's transaction.
//!
//! `prune` forgets what was accepted longer ago than messages can still be delivered again; [`KEEP`] is a safe value for most.
//!
//! # Cancel safety
//!
//! All or nothing with the caller's transaction.
//!
//! # Errors
//!
//! The database's.
//!
//! # Panics
//!
//! None.
//!
//! # Cost
//!
//! One insert for each message.

#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(any(feature = "postgres", feature = "sqlx"))]
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(feature = "sqlx")]
pub mod sqlx;

use std::time::Duration;

/// 30 days: longer than brokers usually deliver again.
pub const KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Whether a message was accepted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "a duplicate must have no effect"]
pub enum Accepted {
    /// It is new: do what it asks for, in the same transaction.
    First,
    /// It was accepted before.
    Duplicate,
}
