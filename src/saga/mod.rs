//! A durable orchestrator of sagas.

pub(crate) mod attempt;
pub mod barrier;
pub mod conformance;
pub(crate) mod definition;
mod driver;
mod handle;
pub mod journal;
mod key;
mod machine;
pub mod memory;
mod orchestrator;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod participant;
mod record;
pub(crate) mod shape;
mod step;
mod steps;
mod writer;

pub use attempt::Attempted;
pub use definition::{Adding, Builder, Decided, Inputs, Output, Saga, Undecided};
pub use handle::{Handle, Outcome};
pub use journal::{Phase, StoreError};
pub use key::{Direction, InvalidKey, Key};
pub use orchestrator::{AskError, OpenError, Opening, Orchestrator, StartError, StartOptions, Status};
pub use record::{Cause, Entry, Incarnation, InvalidId, Order, Payload, Record, SagaId, Timestamp};
pub use shape::{Class, DefinitionError, Unknown};
pub use step::{Failure, Step, Verified};
