//! mainstay
#![forbid(unsafe_code)]

pub mod backoff;
pub mod boxed;
pub mod bulkhead;
pub mod call;
mod chance;
pub mod circuit_breaker;
pub mod deadline;
mod error;
mod event;
pub mod fallback;
#[cfg(feature = "serde")]
mod human;
pub mod limit;
mod order;
pub mod repeat;
pub mod retry;
mod slots;
pub mod stack;
mod sync;
mod time;
pub mod timeout;

pub use boxed::BoxedStack;
pub use bulkhead::Bulkhead;
pub use call::{Answer, Attempt};
pub use circuit_breaker::CircuitBreaker;
pub use deadline::Deadline;
pub use error::{ConfigError, Error, Kind, Name, Refused};
pub use event::{Event, GaveUp, Observer};
pub use fallback::Fallback;
pub use retry::Retry;
pub use stack::{Stack, recommended, stack};
pub use timeout::Timeout;
