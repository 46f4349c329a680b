//! What is timed: calls through a policy, one after the other, on one thread.

use std::fmt;
use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tower::Service;

use crate::operation::REQUEST;

/// One thread's way through a policy.
pub trait Worker {
    /// Makes so many calls. Everything in here is timed.
    fn run(&mut self, calls: u64);

    /// Makes one call and says what was wrong with its answer.
    fn check(&mut self) -> Result<(), String>;

    /// Size of the future of one call, if calls have one.
    fn future_size(&mut self) -> Option<usize>;
}

/// Polls a future to its end, without a runtime around it.
///
/// The future's address escapes, so it has to exist in memory, as the future of
/// a real call does. Calls of this benchmark are pending once at most, except
/// where a peer's lock is contended.
#[inline(always)]
fn drive<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let cx = &mut Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = black_box(future.as_mut()).poll(cx) {
            return output;
        }
    }
}

/// Makes one call whose answer does not matter: it opens a breaker.
pub fn fail<F: Future>(call: F) {
    drive(call);
}

/// Polls a call once and leaves it: it holds what it has taken.
pub fn begin<F: Future + Unpin>(mut call: F) {
    let cx = &mut Context::from_waker(Waker::noop());
    let _ = pin!(&mut call).poll(cx);
    std::mem::forget(call);
}

/// Every worker gets its own clone of a service; clones share the policy.
pub fn shared<S, W>(service: S, worker: impl Fn(S) -> W + Send + Sync) -> impl Fn() -> W + Send + Sync
where
    S: Clone + Send + Sync,
{
    move || worker(service.clone())
}

/// The answer that a row must get from every call.
#[derive(Clone, Copy)]
enum Expect {
    Answer,
    Refusal,
}

impl Expect {
    fn check<E: fmt::Debug>(self, output: &Result<u64, E>) -> Result<(), String> {
        match (self, output) {
            (Self::Answer, Ok(REQUEST)) | (Self::Refusal, Err(_)) => Ok(()),
            (Self::Answer, other) => Err(format!("expected Ok({REQUEST}), got {other:?}")),
            (Self::Refusal, other) => Err(format!("expected a refusal, got {other:?}")),
        }
    }
}

/// Workers keep to cache lines of their own: what one thread writes into its own at each call, a service's readiness for instance,
/// shall not lie beside what the other reads.
#[repr(align(128))]
struct Wrapped<C> {
    call: C,
    expect: Expect,
}

impl<C, F, E> Worker for Wrapped<C>
where
    C: FnMut() -> F,
    F: Future<Output = Result<u64, E>>,
    E: fmt::Debug,
{
    fn run(&mut self, calls: u64) {
        for _ in 0..calls {
            let _ = black_box(drive((self.call)()));
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.expect.check(&drive((self.call)()))
    }

    fn future_size(&mut self) -> Option<usize> {
        Some(size_of_val(&(self.call)()))
    }
}

/// A worker whose calls must be answered by the operation.
pub fn answered<F: Future<Output = Result<u64, E>>, E: fmt::Debug>(call: impl FnMut() -> F) -> impl Worker {
    Wrapped { call, expect: Expect::Answer }
}

/// A worker whose calls must be refused.
pub fn refused<F: Future<Output = Result<u64, E>>, E: fmt::Debug>(call: impl FnMut() -> F) -> impl Worker {
    Wrapped { call, expect: Expect::Refusal }
}

#[repr(align(128))]
struct Served<S> {
    service: S,
    expect: Expect,
}

impl<S> Served<S>
where
    S: Service<u64, Response = u64>,
{
    #[inline(always)]
    fn call(&mut self) -> Result<u64, S::Error> {
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            match self.service.poll_ready(cx) {
                Poll::Ready(Ok(())) => break,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {}
            }
        }
        drive(self.service.call(REQUEST))
    }
}

impl<S> Worker for Served<S>
where
    S: Service<u64, Response = u64>,
    S::Error: fmt::Debug,
{
    fn run(&mut self, calls: u64) {
        for _ in 0..calls {
            let _ = black_box(self.call());
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.expect.check(&self.call())
    }

    fn future_size(&mut self) -> Option<usize> {
        let cx = &mut Context::from_waker(Waker::noop());
        match self.service.poll_ready(cx) {
            Poll::Ready(Ok(())) => Some(size_of_val(&self.service.call(REQUEST))),
            _ => None,
        }
    }
}

/// A worker on its own clone of a service; calls must be answered by the
/// operation.
pub fn served<S>(service: S) -> impl Worker
where
    S: Service<u64, Response = u64>,
    S::Error: fmt::Debug,
{
    Served { service, expect: Expect::Answer }
}

/// A worker on its own clone of a service; calls must be refused.
pub fn turned_away<S>(service: S) -> impl Worker
where
    S: Service<u64, Response = u64>,
    S::Error: fmt::Debug,
{
    Served { service, expect: Expect::Refusal }
}

#[repr(align(128))]
struct Repeated<A>(A);

impl<A: FnMut()> Worker for Repeated<A> {
    fn run(&mut self, calls: u64) {
        for _ in 0..calls {
            (self.0)();
        }
    }

    fn check(&mut self) -> Result<(), String> {
        (self.0)();
        Ok(())
    }

    fn future_size(&mut self) -> Option<usize> {
        None
    }
}

/// A worker that repeats something that is not a call: a floor.
pub fn repeated<T>(mut action: impl FnMut() -> T) -> impl Worker {
    Repeated(move || {
        black_box(action());
    })
}

#[repr(align(128))]
struct Blocked<C> {
    runtime: tokio::runtime::Handle,
    call: C,
    expect: Expect,
}

impl<C, F, E> Worker for Blocked<C>
where
    C: FnMut() -> F,
    F: Future<Output = Result<u64, E>>,
    E: fmt::Debug,
{
    fn run(&mut self, calls: u64) {
        for _ in 0..calls {
            let _ = black_box(self.runtime.block_on((self.call)()));
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.expect.check(&self.runtime.block_on((self.call)()))
    }

    fn future_size(&mut self) -> Option<usize> {
        Some(size_of_val(&(self.call)()))
    }
}

/// A worker whose calls must be refused, and whose refusal waits for a timer:
/// the thread sleeps, instead of polling on.
pub fn refused_later<F: Future<Output = Result<u64, E>>, E: fmt::Debug>(
    call: impl FnMut() -> F,
) -> impl Worker {
    let runtime = tokio::runtime::Handle::current();
    Blocked { runtime, call, expect: Expect::Refusal }
}
