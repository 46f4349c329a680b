//! The inner call: the same for every row.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll};

use tower::Service;

/// The operation's error. It never occurs here, but policies must classify it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The dependency failed.
    Failed,
    /// A policy did not let the call through, or gave it up.
    Refused,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "failed",
            Self::Refused => "refused",
        })
    }
}

impl std::error::Error for CallError {}

impl From<Infallible> for CallError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// What is sent, and what a healthy call answers.
pub const REQUEST: u64 = 7;

/// An operation of one of the two kinds that are measured.
pub trait Operation: Future<Output = Result<u64, CallError>> + Send + 'static {
    fn start(request: u64) -> Self;
}

/// A call that is ready at its first poll.
pub struct ReadyCall {
    request: u64,
}

impl Operation for ReadyCall {
    #[inline]
    fn start(request: u64) -> Self {
        Self { request: black_box(request) }
    }
}

impl Future for ReadyCall {
    type Output = Result<u64, CallError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(self.request))
    }
}

/// A call that is pending at its first poll and ready at its second, as calls
/// that leave the process are.
pub struct PendsOnce {
    request: u64,
    polled: bool,
}

impl Operation for PendsOnce {
    #[inline]
    fn start(request: u64) -> Self {
        Self { request: black_box(request), polled: false }
    }
}

impl Future for PendsOnce {
    type Output = Result<u64, CallError>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polled {
            return Poll::Ready(Ok(self.request));
        }
        self.polled = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The operation as a tower service.
pub struct Dependency<O>(std::marker::PhantomData<fn() -> O>);

impl<O> Dependency<O> {
    pub fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<O> Default for Dependency<O> {
    fn default() -> Self {
        Self::new()
    }
}

impl<O> Clone for Dependency<O> {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl<O: Operation> Service<u64> for Dependency<O> {
    type Response = u64;
    type Error = CallError;
    type Future = O;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: u64) -> O {
        O::start(request)
    }
}
