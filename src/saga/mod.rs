#![doc = include_str!("../docs/saga.md")]

pub(crate) mod attempt;
pub mod barrier;
pub mod conformance;
pub(crate) mod definition;
mod driver;
mod handle;
pub mod inbox;
pub mod journal;
mod key;
#[cfg(all(test, not(mainstay_loom)))]
mod lease_model;
mod ledger;
mod machine;
pub mod memory;
#[cfg(all(test, not(mainstay_loom)))]
mod model;
mod orchestrator;
pub mod outbox;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "sqlx"))]
mod participant;
#[cfg(feature = "postgres")]
pub mod postgres;
mod record;
mod same;
pub(crate) mod shape;
#[cfg(feature = "sqlite")]
pub mod sqlite;
mod step;
mod steps;
mod transact;
pub mod view;
mod writer;

pub use attempt::{Attempted, was_begun};
pub use definition::{Adding, Builder, Decided, Inputs, Output, Saga, Undecided};
pub use handle::{Handle, Outcome};
pub use journal::{Phase, StoreError};
pub use key::{Direction, InvalidKey, Key};
pub use orchestrator::{
    AskError, Census, InvalidText, OpenError, OpenSagas, Opening, Orchestrator, StartError, StartOptions,
    Status,
};
pub use record::{Cause, Entry, Incarnation, InvalidId, Order, Payload, Record, SagaId, Timestamp};
pub use shape::{Class, DefinitionError, Unknown};
pub use step::{Failure, Step, Verified};
pub use transact::{Answer, Transact};
