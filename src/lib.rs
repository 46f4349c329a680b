#![doc = include_str!("docs/crate.md")]
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod backoff;
pub mod boxed;
pub mod bulkhead;
pub mod call;
mod chance;
pub mod circuit_breaker;
pub mod deadline;
mod error;
mod event;
#[cfg(all(test, mainstay_loom))]
mod every_order;
pub mod fallback;
mod held;
#[cfg(feature = "serde")]
mod human;
pub mod keyed;
pub mod limit;
pub mod observe;
mod order;
#[cfg(all(test, not(mainstay_loom)))]
mod property;
pub mod rate_limiter;
pub mod registry;
pub mod repeat;
pub mod retry;
#[cfg(feature = "saga")]
pub mod saga;
mod slots;
pub mod stack;
mod sync;
#[cfg(feature = "saga")]
pub mod testing;
mod time;
pub mod timeout;
#[cfg(feature = "tower")]
pub mod tower;

pub use boxed::BoxedStack;
pub use bulkhead::Bulkhead;
pub use call::{Answer, Attempt};
pub use circuit_breaker::CircuitBreaker;
pub use deadline::Deadline;
pub use error::{ConfigError, Error, Kind, Name, Refused};
pub use event::{Event, GaveUp, Observer};
pub use fallback::Fallback;
pub use keyed::Keyed;
pub use rate_limiter::RateLimiter;
pub use registry::Registry;
pub use retry::Retry;
pub use stack::{Stack, recommended, stack};
pub use timeout::Timeout;

/// The examples of the guide to sagas, compiled.
#[cfg(all(doctest, feature = "sqlite"))]
#[doc = include_str!("../docs/saga.md")]
struct SagaGuide;

/// The README's examples, compiled.
#[cfg(all(doctest, feature = "tower"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// The examples beside those of the tutorials, compiled.
#[cfg(all(doctest, feature = "sqlite", feature = "tower"))]
#[doc = include_str!("../docs/from-tutorials.md")]
struct FromTutorials;
