//! A durable orchestrator of sagas.

mod attempt;
mod definition;
pub mod journal;
mod key;
mod machine;
pub mod memory;
mod record;
mod shape;
mod step;
mod steps;

pub use attempt::Attempted;
pub use definition::{Adding, Builder, Decided, Inputs, Output, Saga, Undecided};
pub use key::{Direction, Key};
pub use record::{Cause, Entry, Incarnation, InvalidId, Order, Payload, Record, SagaId, Timestamp};
pub use shape::{Class, DefinitionError, Unknown};
pub use step::{Failure, Step, Verified};
