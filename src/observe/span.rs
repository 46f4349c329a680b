//! A `tracing` span for each step of a saga that is being tried; nothing without the feature `tracing`.

use std::{future::Future, pin::Pin};

use crate::saga::Key;

/// A span, or nothing.
pub(crate) struct Span(#[cfg(feature = "tracing")] tracing::Span);

/// The span of one step in one direction: `saga.step` with the fields `definition`, `saga`, `step` and `direction`.
#[cfg_attr(not(feature = "tracing"), allow(unused_variables))]
pub(crate) fn step(definition: &str, key: &Key) -> Span {
    Span(
        #[cfg(feature = "tracing")]
        tracing::info_span!(
            target: "mainstay",
            "saga.step",
            definition,
            saga = key.saga().as_str(),
            step = key.step(),
            direction = key.phase().as_str(),
        ),
    )
}

impl Span {
    /// Boxes a future that is polled inside the span.
    pub(crate) fn around<F>(self, future: F) -> Pin<Box<dyn Future<Output = F::Output> + Send>>
    where
        F: Future + Send + 'static,
    {
        #[cfg(feature = "tracing")]
        {
            Box::pin(tracing::Instrument::instrument(future, self.0))
        }
        #[cfg(not(feature = "tracing"))]
        {
            Box::pin(future)
        }
    }
}
