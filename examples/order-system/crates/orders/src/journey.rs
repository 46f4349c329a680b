//! The span of an order on its way: one for as long as this process moves it on, part of the trace of the request that made it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use order_kit::{Cents, trace};
use tracing::Span;

/// The orders that are on their way here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journeys(Arc<Mutex<HashMap<String, Journey>>>);

#[derive(Debug)]
struct Journey {
    span: Span,
    /// Why it is turned round, when that is known.
    reason: Option<String>,
    /// Whether it has been said that it waits for the payment service.
    waiting: bool,
}

impl Journeys {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Journey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The order's span, made anew if this process has none.
    pub(crate) fn span(&self, order: &str, total: Cents, traceparent: Option<&str>) -> Span {
        let mut all = self.lock();
        if let Some(journey) = all.get(order) {
            return journey.span.clone();
        }
        let make = || {
            tracing::info_span!(
                parent: None, "process-order", order.id = order, order.total = %total,
                otel.status_code = tracing::field::Empty, otel.status_description = tracing::field::Empty,
            )
        };
        let span = trace::span_in(traceparent, make);
        all.insert(order.to_owned(), Journey { span: span.clone(), reason: None, waiting: false });
        span
    }

    /// Whether this is the first time that the order is found to wait for the payment service.
    pub(crate) fn begins_to_wait(&self, order: &str) -> bool {
        let mut all = self.lock();
        all.get_mut(order).is_some_and(|journey| !std::mem::replace(&mut journey.waiting, true))
    }

    /// That it could not be said.
    pub(crate) fn did_not_begin_to_wait(&self, order: &str) {
        if let Some(journey) = self.lock().get_mut(order) {
            journey.waiting = false;
        }
    }

    /// Why nothing comes of it.
    pub(crate) fn refused(&self, order: &str, reason: &str) {
        if let Some(journey) = self.lock().get_mut(order) {
            tracing::error!(parent: &journey.span, error = %reason);
            journey.reason = Some(reason.to_owned());
        }
    }

    /// Ends the span: well, or because of what was said before, or of this.
    pub(crate) fn end(&self, order: &str, ended: Result<(), &str>) {
        let Some(Journey { span, reason, .. }) = self.lock().remove(order) else { return };
        match ended {
            Ok(()) => {
                span.record("otel.status_code", "OK");
            }
            Err(why) => {
                span.record("otel.status_code", "ERROR");
                span.record("otel.status_description", reason.as_deref().unwrap_or(why));
            }
        }
    }
}
