//! Every policy and every stack as a tower `Layer`.
//!
//! One adaptor serves them all: it turns a service and a request into an operation and calls it through the same
//! list of policies as the wrapper form, with the same state.
//!
//! ```
//! use std::time::Duration;
//! use mainstay::CircuitBreaker;
//! use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let payments = mainstay::stack("payments")
//!     .deadline(Duration::from_secs(2))
//!     .circuit_breaker(CircuitBreaker::config())
//!     .build()?;
//!
//! let client = service_fn(|order: u32| async move { Ok::<_, BoxError>(order + 1) });
//! let service = ServiceBuilder::new().layer(payments.clone()).service(client);
//! assert_eq!(service.oneshot(41).await?, 42);
//! # Ok(()) }
//! ```
//!
//! # Errors
//!
//! The service's error type passes through unchanged if a refusal can be turned into it: `E: From<Refused>`. `BoxError`
//! and [`Error<E>`] can, and any enum of yours with a variant for it (`#[from]` of
//! `thiserror` writes the conversion). For an error type of somebody else, [`Stack::lift`] makes the service's error `Error<E>`.
//!
//! Without one of these the layered type is no service. Handed to something that asks for one, the compiler names both remedies;
//! where a method is called on it, it only says that there is "no method named `call`", or that "trait bounds were not satisfied":
//!
//! ```compile_fail,E0599
//! # use std::{io, time::Duration};
//! # use tower::{Layer, ServiceExt, service_fn};
//! # async fn open() -> Result<(), mainstay::ConfigError> {
//! let files = service_fn(|_: ()| async { Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)) });
//! let stack = mainstay::stack("files").timeout(Duration::from_secs(1)).build()?;
//! stack.layer(files).oneshot(()).await;           // `stack.lift().layer(files)` is a service
//! # Ok(()) }
//! ```
//!
//! # Stacks rather than layers of layers
//!
//! Policies know each other within one stack. To the outer of two layers that were added one by one, a refusal of the inner one is
//! an error of its service like any other: a retry repeats it, and a circuit breaker counts it. Compose them as a stack,
//! or tell the outer one with [`when`](crate::retry::Config::when) or
//! [`classify`](crate::circuit_breaker::Config::classify).
//!
//! # Readiness
//!
//! `poll_ready` asks the inner service and takes no permit. The instance that said it was ready is the one that is called;
//! further attempts call a clone, after asking it for readiness. While a circuit breaker of the stack is shut, `poll_ready`
//! answers without asking the inner service.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project::pin_project;
use tower_layer::Layer;
use tower_service::Service;

pub use crate::held::Held;
use crate::{
    call::{Attempt, Call, Finish, Flat, Operation, Run},
    error::{Error, Refused},
    fallback::Handle,
    held::Shared,
    repeat::CopyRequest,
    stack::{List, Stack},
};

/// A service whose calls go through the policies `L`.
///
/// Cloning it clones the inner service and shares the policies.
pub struct Guarded<S, L, M = Absorbed> {
    inner: S,
    shared: Shared<L>,
    /// Whether `inner` has said that it is ready and was not called since.
    ready: bool,
    form: PhantomData<fn() -> M>,
}

impl<S, L, M> Guarded<S, L, M> {
    pub(crate) fn new(inner: S, shared: Shared<L>) -> Self {
        Guarded { inner, shared, ready: false, form: PhantomData }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service inside, to change it.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service inside, by value.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Clone, L, M> Clone for Guarded<S, L, M> {
    fn clone(&self) -> Self {
        // Readiness belongs to the instance that was asked.
        Guarded::new(self.inner.clone(), self.shared.clone())
    }
}

impl<S: fmt::Debug, L, M> fmt::Debug for Guarded<S, L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, L> Layer<S> for Stack<L> {
    type Service = Guarded<S, L>;

    fn layer(&self, inner: S) -> Guarded<S, L> {
        Guarded::new(inner, self.shared().clone())
    }
}

impl<L> Stack<L> {
    /// The stack as a layer that makes the service's error [`Error<E>`], for error types that cannot hold a refusal.
    pub fn lift(&self) -> Lifted<L> {
        Lifted(self.shared().clone())
    }
}

/// A layer whose services fail with [`Error<E>`]; made by [`Stack::lift`].
pub struct Lifted<L>(Shared<L>);

impl<L> Lifted<L> {
    pub(crate) fn new(list: L) -> Self {
        Lifted(Shared::new(list))
    }
}

impl<L> Clone for Lifted<L> {
    fn clone(&self) -> Self {
        Lifted(self.0.clone())
    }
}

impl<L> fmt::Debug for Lifted<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifted").finish_non_exhaustive()
    }
}

impl<S, L> Layer<S> for Lifted<L> {
    type Service = Guarded<S, L, Flat>;

    fn layer(&self, inner: S) -> Guarded<S, L, Flat> {
        Guarded::new(inner, self.0.clone())
    }
}

/// The form of a service whose error type absorbs refusals: `Result<T, E>`.
#[derive(Debug)]
pub struct Absorbed(());

#[diagnostic::do_not_recommend]
impl<T, E: From<Refused>> Finish<T, E> for Absorbed {
    type Output = Result<T, E>;

    #[inline]
    fn answer(value: T, _: bool) -> Result<T, E> {
        Ok(value)
    }

    #[inline]
    fn error(why: Error<E>) -> Result<T, E> {
        Err(why.absorb())
    }
}

impl<S, L, R, M, X> Service<R> for Guarded<S, L, M>
where
    S: Service<R> + Clone,
    L: List + Run<R, S::Response, S::Error>,
    L::Copier: CopyRequest<R> + Clone,
    M: Finish<S::Response, S::Error, Output = Result<S::Response, X>>,
{
    type Response = S::Response;
    type Error = X;
    type Future = Call<Held<L>, ServiceCall<S, R, L::Copier>, M>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), X>> {
        if self.shared.list().is_shut() {
            return Poll::Ready(Ok(()));
        }
        if let Err(error) = ready!(self.inner.poll_ready(cx)) {
            return Poll::Ready(M::error(Error::Inner(error)).map(drop));
        }
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: R) -> Self::Future {
        let fresh = self.inner.clone();
        let op = ServiceCall {
            service: mem::replace(&mut self.inner, fresh),
            ready: mem::take(&mut self.ready),
            request: Some(request),
            copier: self.shared.list().copier().clone(),
            running: None,
        };
        Call::new(self.shared.hold(), op)
    }
}

/// A service and a request as an operation.
#[pin_project]
pub struct ServiceCall<S, R, C>
where
    S: Service<R>,
{
    service: S,
    ready: bool,
    request: Option<R>,
    copier: C,
    #[pin]
    running: Option<Asked<S, R>>,
}

impl<S: Service<R>, R, C> fmt::Debug for ServiceCall<S, R, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceCall").field("running", &self.running.is_some()).finish_non_exhaustive()
    }
}

impl<S, R, C> Operation for ServiceCall<S, R, C>
where
    S: Service<R> + Clone,
    C: CopyRequest<R>,
{
    type Request = R;
    type Output = S::Response;
    type Error = S::Error;

    fn request(&self) -> Option<&R> {
        self.request.as_ref()
    }

    #[inline]
    fn has_begun(&self) -> bool {
        matches!(self.running, Some(Asked::Called { .. }))
    }

    #[inline]
    fn waits(&self) -> bool {
        match self.running {
            None => !self.ready,
            Some(Asked::Waiting { .. }) => true,
            Some(Asked::Called { .. }) => false,
        }
    }

    fn can_repeat(&self) -> bool {
        self.request.is_some()
    }

    #[inline]
    fn poll_attempt(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        attempt: Attempt,
    ) -> Poll<Result<S::Response, S::Error>> {
        let mut this = self.project();
        if this.running.is_none() {
            let copy = match &*this.request {
                Some(request) if !attempt.is_last() => this.copier.copy(request),
                _ => None,
            };
            let Some(request) = mem::replace(this.request, copy) else {
                unreachable!("an attempt was started after `can_repeat` had said no");
            };
            this.running.set(Some(if mem::take(this.ready) {
                Asked::Called { response: this.service.call(request) }
            } else {
                Asked::Waiting { service: this.service.clone(), request: Some(request) }
            }));
        }
        let polled = this.running.as_mut().as_pin_mut().map_or(Poll::Pending, |running| running.poll(cx));
        if polled.is_ready() {
            this.running.set(None);
        }
        polled
    }

    fn abandon(self: Pin<&mut Self>) {
        self.project().running.set(None);
    }
}

/// One request to a service, from waiting until it is ready to its response.
#[pin_project(project = AskedProjection)]
pub enum Asked<S, R>
where
    S: Service<R>,
{
    /// Waiting until the service is ready.
    Waiting {
        /// The instance that is asked, and then called.
        service: S,
        /// What it will be called with.
        request: Option<R>,
    },
    /// Called.
    Called {
        /// What it answers.
        #[pin]
        response: S::Future,
    },
}

impl<S: Service<R>, R> fmt::Debug for Asked<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Asked::Waiting { .. } => "Waiting",
            Asked::Called { .. } => "Called",
        })
    }
}

impl<S: Service<R>, R> Future for Asked<S, R> {
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let response = match self.as_mut().project() {
                AskedProjection::Called { response } => return response.poll(cx),
                AskedProjection::Waiting { service, request } => {
                    ready!(service.poll_ready(cx))?;
                    let Some(request) = request.take() else {
                        unreachable!("a service is called once per wait");
                    };
                    service.call(request)
                }
            };
            self.set(Asked::Called { response });
        }
    }
}

/// Another service that answers in place of the first; see [`Fallback::service`](crate::Fallback::service).
#[derive(Debug, Clone)]
pub struct Other<S, C> {
    service: S,
    copier: C,
}

impl<S, C> Other<S, C> {
    pub(crate) fn new(service: S, copier: C) -> Self {
        Other { service, copier }
    }
}

impl<S, C, R> Handle<R, S::Response, S::Error> for Other<S, C>
where
    S: Service<R> + Clone,
    C: CopyRequest<R>,
{
    type Kept = R;
    type Future = Asked<S, R>;

    fn keep(&self, request: Option<&R>) -> Option<R> {
        request.and_then(|request| self.copier.copy(request))
    }

    fn handle(&self, _: Error<S::Error>, request: R) -> Asked<S, R> {
        Asked::Waiting { service: self.service.clone(), request: Some(request) }
    }
}
