//! A durable orchestrator of sagas.

pub mod conformance;
pub mod journal;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
mod record;
#[cfg(feature = "sqlite")]
pub mod sqlite;

pub use record::{Cause, Entry, Incarnation, InvalidId, Order, Payload, Record, SagaId, Timestamp};
