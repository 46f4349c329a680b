//! How long something may take: the same for every call, or computed from the request.

use std::{fmt, marker::PhantomData, time::Duration};

use crate::error::ConfigError;

/// A duration for a request; implemented by [`Fixed`] and by [`PerRequest`] closures.
pub trait Limit<R>: Clone {
    /// The limit for `request`, which is `None` once the request has been consumed.
    fn limit(&self, request: Option<&R>) -> Duration;
}

/// The same limit for every call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fixed(pub(crate) Duration);

impl fmt::Debug for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<R> Limit<R> for Fixed {
    #[inline]
    fn limit(&self, _: Option<&R>) -> Duration {
        self.0
    }
}

/// A limit computed from each request.
pub struct PerRequest<F, R> {
    of: F,
    request: PhantomData<fn(&R)>,
}

impl<F, R> PerRequest<F, R> {
    pub(crate) fn new(of: F) -> Self {
        PerRequest { of, request: PhantomData }
    }
}

impl<F: Clone, R> Clone for PerRequest<F, R> {
    fn clone(&self) -> Self {
        PerRequest::new(self.of.clone())
    }
}

impl<F, R> fmt::Debug for PerRequest<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("per request")
    }
}

impl<F: Fn(&R) -> Duration + Clone, R> Limit<R> for PerRequest<F, R> {
    /// A consumed request has no limit of its own any more: nothing is begun with it.
    fn limit(&self, request: Option<&R>) -> Duration {
        request.map_or(Duration::MAX, |request| (self.of)(request))
    }
}

pub(crate) fn not_zero(limit: Duration, field: &'static str) -> Result<(), ConfigError> {
    ConfigError::unless(!limit.is_zero(), field, limit, "a duration above zero")
}
