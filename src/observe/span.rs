//! A `tracing` span for each saga that is driven, and within it one for each step that is being tried; nothing without the feature
//! `tracing`.

use std::{future::Future, pin::Pin};

use crate::saga::{Key, SagaId};

/// A span, or nothing.
pub(crate) struct Span(#[cfg(feature = "tracing")] tracing::Span);

/// The span of a saga while one orchestrator drives it: `saga` with the fields `definition`, `saga` and `epoch`.
#[cfg_attr(not(feature = "tracing"), allow(unused_variables))]
pub(crate) fn saga(definition: &str, saga: &SagaId, epoch: u64) -> Span {
    Span(
        #[cfg(feature = "tracing")]
        tracing::info_span!(target: "mainstay", "saga", definition, saga = saga.as_str(), epoch),
    )
}

/// The span of one step in one direction, within that of its saga: `saga.step` with the fields `definition`, `saga`, `step` and `direction`.
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
    /// What becomes of a future that is polled inside the span.
    pub(crate) async fn within<F: Future>(self, future: F) -> F::Output {
        #[cfg(feature = "tracing")]
        {
            tracing::Instrument::instrument(future, self.0).await
        }
        #[cfg(not(feature = "tracing"))]
        {
            future.await
        }
    }

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
