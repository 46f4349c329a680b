#![doc = include_str!("docs/fallback.md")]

use std::{
    fmt,
    future::{self, Future, Ready},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Poll, ready},
};

use pin_project::pin_project;

use crate::{
    call::{Cx, End, Guard, Operation, Outcome, Run, Sealed, Slot},
    error::{ConfigError, Error, Name},
    event::{Event, Identity, Observer},
    stack::{IntoPolicy, Part, Role, callable},
};
#[cfg(feature = "tower")]
use crate::{
    repeat::{Cloning, CopyWith},
    tower::Other,
};

/// How many answers of one fallback may be in the making at once, unless
/// [set](Fallback::limit).
pub const DEFAULT_LIMIT: usize = 100;

type Predicate<E> = Arc<dyn Fn(&Error<E>) -> bool + Send + Sync>;
type Mark<T> = Arc<dyn Fn(&mut T) + Send + Sync>;

/// Answers in place of an operation that was refused or failed; see the [module](self).
pub struct Fallback<H, T, E> {
    handler: H,
    when: Option<Predicate<E>>,
    mark: Option<Mark<T>>,
    limit: usize,
    running: Arc<AtomicUsize>,
    id: Arc<Identity>,
}

impl<H, T, E> Fallback<H, T, E> {
    /// Answers with what `handler` makes of the reason.
    pub fn new<Fut>(handler: H) -> Self
    where
        H: Fn(Error<E>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        Fallback::with(handler)
    }

    fn with(handler: H) -> Self {
        Fallback {
            handler,
            when: None,
            mark: None,
            limit: DEFAULT_LIMIT,
            running: Arc::new(AtomicUsize::new(0)),
            id: Arc::new(Identity::new("fallback")),
        }
    }

    /// Falls back only where `predicate` says so; everywhere else the error is returned unchanged.
    pub fn when(mut self, predicate: impl Fn(&Error<E>) -> bool + Send + Sync + 'static) -> Self {
        self.when = Some(Arc::new(predicate));
        self
    }

    /// Marks each answer of this fallback, a header for instance.
    pub fn mark(mut self, mark: impl Fn(&mut T) + Send + Sync + 'static) -> Self {
        self.mark = Some(Arc::new(mark));
        self
    }

    /// Allows at most `limit` answers in the making at once; beyond it the error is returned unchanged.
    ///
    /// A fallback is a dependency too, and it is asked most when everything else is down. With zero it never
    /// runs.
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// The same fallback under another name.
    pub fn named(mut self, name: impl Into<Name>) -> Self {
        Arc::make_mut(&mut self.id).set_name(name.into());
        self
    }

    /// Adds a listener for [`Event::FellBack`].
    pub fn observe(mut self, observer: impl Observer + 'static) -> Self {
        Arc::make_mut(&mut self.id).observe(Arc::new(observer));
        self
    }

    /// How many answers are in the making.
    pub fn running(&self) -> usize {
        self.running.load(Relaxed)
    }
}

impl<T: Clone, E> Fallback<Value<T>, T, E> {
    /// Answers with a copy of `value`.
    pub fn value(value: T) -> Self {
        Fallback::with(Value(value))
    }
}

#[cfg(feature = "tower")]
impl<S, T, E> Fallback<Other<S, Cloning>, T, E> {
    /// Answers with what `service` says to a copy of the request. For stacks around tower services.
    ///
    /// The copy is made before the first attempt, for every call.
    pub fn service(service: S) -> Self {
        Fallback::with(Other::new(service, Cloning))
    }
}

#[cfg(feature = "tower")]
impl<S, T, E, F, R> Fallback<Other<S, CopyWith<F, R>>, T, E> {
    /// Like [`service`](Fallback::service) for requests that are not `Clone`; a call whose request `copy` answers
    /// with `None` has no fallback.
    pub fn service_with(service: S, copy: F) -> Self
    where
        F: Fn(&R) -> Option<R>,
    {
        Fallback::with(Other::new(service, CopyWith::new(copy)))
    }
}

impl<H: Clone, T, E> Clone for Fallback<H, T, E> {
    /// Shares the limit and its count.
    fn clone(&self) -> Self {
        Fallback {
            handler: self.handler.clone(),
            when: self.when.clone(),
            mark: self.mark.clone(),
            limit: self.limit,
            running: self.running.clone(),
            id: self.id.clone(),
        }
    }
}

impl<H, T, E> fmt::Debug for Fallback<H, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("name", self.id.name())
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl<H, T, E> Sealed for Fallback<H, T, E> {}

impl<H, T, E> Part for Fallback<H, T, E> {
    fn role(&self) -> Role {
        Role::Fallback
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fallback, at most {} at once", self.limit)
    }
}

impl<H, T, E> IntoPolicy<Fallback<H, T, E>> for Fallback<H, T, E> {
    fn into_policy(mut self, stack: &Identity) -> Result<Self, ConfigError> {
        Arc::make_mut(&mut self.id).inherit(stack);
        Ok(self)
    }
}

/// Makes the answer of a fallback. Implemented by closures, [`Value`] and, for tower, by a service.
pub trait Handle<R, T, E> {
    /// What is kept of the request while the operation runs.
    type Kept;
    /// The answer in the making.
    type Future: Future<Output = Result<T, E>>;

    /// Keeps what is needed of the request, before the operation consumes it; `None` if it cannot be
    /// kept, and then there is no fallback for this call.
    fn keep(&self, request: Option<&R>) -> Option<Self::Kept>;

    /// Begins an answer.
    fn handle(&self, why: Error<E>, kept: Self::Kept) -> Self::Future;
}

impl<R, T, E, F, Fut> Handle<R, T, E> for F
where
    F: Fn(Error<E>) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    type Kept = ();
    type Future = Fut;

    #[inline]
    fn keep(&self, _: Option<&R>) -> Option<()> {
        Some(())
    }

    fn handle(&self, why: Error<E>, (): ()) -> Fut {
        self(why)
    }
}

/// The same answer each time.
#[derive(Debug, Clone)]
pub struct Value<T>(T);

impl<R, T: Clone, E> Handle<R, T, E> for Value<T> {
    type Kept = ();
    type Future = Ready<Result<T, E>>;

    fn keep(&self, _: Option<&R>) -> Option<()> {
        Some(())
    }

    fn handle(&self, _: Error<E>, (): ()) -> Self::Future {
        future::ready(Ok(self.0.clone()))
    }
}

/// What a fallback remembers of one call.
#[derive(Debug)]
pub struct State<K, S> {
    stage: Stage<K>,
    inner: S,
}

#[derive(Debug)]
enum Stage<K> {
    /// The operation has not been asked yet.
    New,
    /// The operation is asked; this is kept for the handler.
    Asking(Option<K>),
    /// The handler makes an answer.
    Answering,
}

impl<K, S: Default> Default for State<K, S> {
    #[inline]
    fn default() -> Self {
        State { stage: Stage::New, inner: S::default() }
    }
}

/// What a fallback polls by itself.
#[pin_project]
pub struct Pinned<S, F> {
    #[pin]
    answering: Option<Answering<F>>,
    #[pin]
    inner: S,
}

/// An answer in the making, and its place among the [limit](Fallback::limit).
#[pin_project]
struct Answering<F> {
    #[pin]
    answer: F,
    place: Place,
}

impl<S: Default, F> Default for Pinned<S, F> {
    #[inline]
    fn default() -> Self {
        Pinned { answering: None, inner: S::default() }
    }
}

impl<S, F> fmt::Debug for Pinned<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").field("answering", &self.answering.is_some()).finish_non_exhaustive()
    }
}

/// One of the answers in the making; counted until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl<R, T, E, I, H> Guard<R, T, E, I> for Fallback<H, T, E>
where
    I: Run<R, T, E>,
    H: Handle<R, T, E>,
{
    type Notes = State<H::Kept, I::Notes>;
    type Pinned = Pinned<I::Pinned, H::Future>;

    #[inline(always)]
    fn poll<O>(
        &self,
        inner: &I,
        notes: &mut Self::Notes,
        pinned: Pin<&mut Self::Pinned>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let mut pinned = pinned.project();
        if let Stage::New = notes.stage {
            notes.stage = Stage::Asking(self.handler.keep(op.request()));
        }
        if let Stage::Asking(kept) = &mut notes.stage {
            ready!(inner.poll(&mut notes.inner, pinned.inner, op, cx, out));
            let kept = kept.take();
            notes.stage = Stage::New;
            if let Some(Ok(Ok(_))) = out.get() {
                return Poll::Ready(());
            }
            match self.turn(kept, out.take()) {
                Ok(answering) => pinned.answering.set(Some(answering)),
                Err(outcome) => {
                    match outcome {
                        Ok(result) => out.put(result),
                        Err(refused) => out.refuse(refused),
                    }
                    return Poll::Ready(());
                }
            }
            notes.stage = Stage::Answering;
        }
        let Some(answering) = pinned.answering.as_mut().as_pin_mut() else {
            return Poll::Pending;
        };
        let mut answer = ready!(answering.project().answer.poll(cx.task()));
        if let Ok(value) = &mut answer {
            cx.facts.degraded = true;
            if let Some(mark) = &self.mark {
                mark(value);
            }
        }
        pinned.answering.set(None);
        notes.stage = Stage::New;
        out.put(answer);
        Poll::Ready(())
    }

    fn end<O>(&self, inner: &I, notes: Self::Notes, pinned: Pin<&mut Self::Pinned>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let mut pinned = pinned.project();
        match notes.stage {
            Stage::New => {}
            Stage::Asking(_) => inner.end(notes.inner, pinned.inner, op, how),
            Stage::Answering => pinned.answering.set(None),
        }
    }
}

impl<H, T, E> Fallback<H, T, E> {
    /// A place among the limit, if this error is one to fall back from.
    fn admit(&self, why: &Error<E>) -> Option<Place> {
        if self.when.as_ref().is_some_and(|when| !when(why)) {
            return None;
        }
        // Counted first and given back when it was one too many: `running` may overshoot for a moment, the
        // number of places never does.
        let place = Place(self.running.clone());
        let before = place.0.fetch_add(1, Relaxed);
        (before < self.limit).then_some(place)
    }

    /// The answer to what is not a success, if it is one to fall back from; otherwise it stays the outcome.
    #[cold]
    fn turn<R>(
        &self,
        kept: Option<H::Kept>,
        outcome: Option<Outcome<T, E>>,
    ) -> Result<Answering<H::Future>, Outcome<T, E>>
    where
        H: Handle<R, T, E>,
    {
        let error = match outcome {
            Some(Ok(Err(error))) => Error::Inner(error),
            Some(Err(refused)) => Error::Refused(refused),
            Some(Ok(Ok(_))) | None => unreachable!("a success is not fallen back from"),
        };
        if let (Some(kept), Some(place)) = (kept, self.admit(&error)) {
            return Ok(Answering { answer: self.begin(error, kept), place });
        }
        Err(match error {
            Error::Inner(error) => Ok(Err(error)),
            Error::Refused(refused) => Err(refused),
        })
    }

    fn begin<R>(&self, why: Error<E>, kept: H::Kept) -> H::Future
    where
        H: Handle<R, T, E>,
    {
        let instead_of = why.refused().map(|refused| refused.kind());
        self.id.emit(&Event::FellBack { name: self.id.name(), instead_of });
        self.handler.handle(why, kept)
    }
}

callable!(Fallback<H, T, E>, [H, T, E]);
