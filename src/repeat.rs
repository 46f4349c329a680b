//! How a request is kept for another attempt.
//!
//! Closures make their request anew for each attempt and need none of this. In the tower form an attempt consumes
//! the request, so a copy is made before each attempt that may be followed by another; never for the last.

use std::{fmt, marker::PhantomData};

use crate::{
    bulkhead::Bulkhead,
    circuit_breaker::CircuitBreaker,
    deadline::Deadline,
    fallback::Fallback,
    keyed::{By, Template},
    rate_limiter::RateLimiter,
    retry::Retry,
    stack::{List, Part},
    timeout::Timeout,
};

/// Copies a request, or says that this one cannot be copied; then its first attempt is its last.
#[diagnostic::on_unimplemented(
    message = "requests of the type `{R}` cannot be copied for another attempt",
    note = "implement `Clone` for the request, or tell the retry how to copy it: `.clone_request(|request| ..)`",
    note = "where the answer of that closure is `None`, the request is sent once"
)]
pub trait CopyRequest<R> {
    /// A copy of `request`.
    fn copy(&self, request: &R) -> Option<R>;
}

/// Copies by `Clone`; what a retry does unless told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cloning;

#[diagnostic::do_not_recommend]
impl<R: Clone> CopyRequest<R> for Cloning {
    fn copy(&self, request: &R) -> Option<R> {
        Some(request.clone())
    }
}

/// Copies by a closure; see [`Config::clone_request`](crate::retry::Config::clone_request).
pub struct CopyWith<F, R> {
    copy: F,
    request: PhantomData<fn(&R) -> R>,
}

impl<F, R> CopyWith<F, R> {
    pub(crate) fn new(copy: F) -> Self {
        CopyWith { copy, request: PhantomData }
    }
}

impl<F: Clone, R> Clone for CopyWith<F, R> {
    fn clone(&self) -> Self {
        CopyWith::new(self.copy.clone())
    }
}

impl<F, R> fmt::Debug for CopyWith<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CopyWith")
    }
}

impl<F: Fn(&R) -> Option<R>, R> CopyRequest<R> for CopyWith<F, R> {
    fn copy(&self, request: &R) -> Option<R> {
        (self.copy)(request)
    }
}

/// Never copies, and asks nothing of the request: for stacks that repeat nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Never;

impl<R> CopyRequest<R> for Never {
    fn copy(&self, _: &R) -> Option<R> {
        None
    }
}

/// Which copier a policy around the list `I` asks for: its own, or that of the list.
pub trait Copying<I: List>: Part {
    /// The copier.
    type Copier;

    /// The copier in force.
    fn copier<'a>(&'a self, inner: &'a I) -> &'a Self::Copier;
}

impl<W, C, I: List> Copying<I> for Retry<W, C> {
    type Copier = C;

    fn copier<'a>(&'a self, _: &'a I) -> &'a C {
        self.request_copier()
    }
}

/// Policies that start an operation once leave the question to what is inside them.
macro_rules! copies_as_its_inside_does {
    ($($policy:ty, [$($generic:ident $(: $bound:path)?),*];)*) => {$(
        impl<I: List, $($generic $(: $bound)?),*> Copying<I> for $policy
        where
            Self: Part,
        {
            type Copier = I::Copier;

            fn copier<'a>(&'a self, inner: &'a I) -> &'a I::Copier {
                inner.copier()
            }
        }
    )*};
}
copies_as_its_inside_does! {
    CircuitBreaker<C>, [C];
    Bulkhead, [];
    RateLimiter, [];
    Deadline<L>, [L];
    Timeout<L>, [L];
    Fallback<H, T, E>, [H, T, E];
    By<K, T, F>, [K, T: Template, F];
}
