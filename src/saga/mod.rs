//! A durable orchestrator of sagas.

pub mod journal;
mod key;
mod record;

pub use key::{Direction, InvalidKey, Key};
pub use record::{Cause, Entry, Incarnation, InvalidId, Order, Payload, Record, SagaId, Timestamp};
