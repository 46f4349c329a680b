//! Observers for the usual places to send [events](crate::Event) to.

#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "saga")]
pub(crate) mod span;
#[cfg(feature = "tracing")]
mod tracing;

#[cfg(feature = "metrics")]
pub use metrics::Metrics;
#[cfg(feature = "tracing")]
pub use tracing::Tracing;
