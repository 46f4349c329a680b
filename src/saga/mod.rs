//! A durable orchestrator of sagas.

pub mod barrier;
pub mod inbox;
pub mod journal;
mod key;
pub mod outbox;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod participant;
mod record;

pub use key::{Direction, InvalidKey, Key};
pub use record::{Cause, Entry, Incarnation, InvalidId, Order, Payload, Record, SagaId, Timestamp};
