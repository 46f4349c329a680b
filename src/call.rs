//! How a call goes through a list of policies.
//!
//! A call has two halves. The [`Operation`] is what the user wants done; it can be started several
//! times and holds the future of the attempt in progress. The policies hold their half in a
//! [`Run::State`], a plain value nested like the policies themselves. One [`Call`] future owns both and
//! polls them with a [`Cx`] that all policies share: it reads the clock at most once per poll and
//! owns the call's only timer, armed for the earliest instant that any policy waits for.
//!
//! These types appear in signatures. You need them only to name the future of a call.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use pin_project::{pin_project, pinned_drop};
use tokio::time::Sleep;

use crate::{
    deadline,
    error::{Error, Kind, Name, Refused},
    event::{Event, Identity},
    time,
};

/// What came of a call or an attempt: a policy's refusal, or the operation's own result.
pub type Outcome<T, E> = Result<Result<T, E>, Refused>;

/// Where the outcome of a call is put: written once by whoever makes it, and looked at in place by the policies around, so
/// that a value is not moved once for each policy.
pub type Slot<T, E> = Option<Outcome<T, E>>;

/// Ready, with a policy's refusal.
#[inline]
pub(crate) fn refuse<T, E>(out: &mut Slot<T, E>, refused: Refused) -> Poll<()> {
    *out = Some(Err(refused));
    Poll::Ready(())
}

/// Ready, with a policy's refusal, of which its listeners are told. It is made where it stays: a copy of a refusal costs as
/// much as the rest of refusing.
#[inline]
pub(crate) fn refuse_and_tell<T, E>(out: &mut Slot<T, E>, id: &Identity, refused: Refused) -> Poll<()> {
    *out = Some(Err(refused));
    if let Some(Err(refused)) = out {
        id.emit(&Event::Refused { refused, observed: false });
    }
    Poll::Ready(())
}

/// What an operation may know about the attempt it is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    number: u32,
    last: bool,
    deadline: Option<Instant>,
}

impl Attempt {
    /// The number of this attempt, from 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether no other attempt can follow, so that nothing needs to be kept for one.
    pub fn is_last(&self) -> bool {
        self.last
    }

    /// The instant at which the whole call is given up, if there is one.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The time that is left until the [deadline](Self::deadline); zero when it has passed. Reads the clock.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(time::now()))
    }
}

/// Something that can be started, and perhaps started again.
///
/// Closures and `(service, request)` pairs are operations; you do not implement this.
pub trait Operation {
    /// What policies that look at requests get to see; `()` for a closure.
    type Request;
    /// The value of a success.
    type Output;
    /// The error of a failure.
    type Error;

    /// The request, until the last attempt has consumed it.
    fn request(&self) -> Option<&Self::Request>;

    /// Whether the attempt in progress has begun; not while it waits for a service to be ready, when nothing was sent.
    fn has_begun(&self) -> bool;

    /// Whether another attempt can be started after the one in progress.
    fn can_repeat(&self) -> bool {
        true
    }

    /// Polls the attempt in progress, after starting one if there is none.
    fn poll_attempt(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        attempt: Attempt,
    ) -> Poll<Result<Self::Output, Self::Error>>;

    /// Drops the attempt in progress.
    fn abandon(self: Pin<&mut Self>);
}

/// Why an unfinished call is taken from a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The caller dropped it.
    Cancelled,
    /// A timeout or deadline of the same stack gave it up after the operation was started.
    TimedOut,
    /// The operation panicked.
    Panicked,
}

impl End {
    /// Given up by a timeout or deadline. What was never started, a call in a queue for instance, says nothing about
    /// the operation.
    pub(crate) fn given_up(started: bool) -> Self {
        if started { End::TimedOut } else { End::Cancelled }
    }
}

/// A list of policies around operations on `R` that return `Result<T, E>`: `()`, or a policy and the list
/// inside it.
///
/// Sealed: implemented for nested pairs of this crate's policies, and for pointers to them.
pub trait Run<R, T, E>: Sealed {
    /// What the list remembers of one call. As new again after `poll` was ready and after `end`.
    type State: Default;

    /// Moves the call on. When it is ready, `out` holds the outcome.
    fn poll<O>(
        &self,
        state: Pin<&mut Self::State>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized;

    /// Takes an unfinished call away, giving back whatever it holds.
    fn end<O>(&self, state: Pin<&mut Self::State>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized;
}

/// One policy around the inner list `I`.
pub trait Guard<R, T, E, I: Run<R, T, E>>: Sealed {
    /// What the policy and the inner list remember of one call; see [`Run::State`].
    type State: Default;

    /// Moves the call on. When it is ready, `out` holds the outcome.
    fn poll<O>(
        &self,
        inner: &I,
        state: Pin<&mut Self::State>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized;

    /// Takes an unfinished call away, giving back whatever it holds.
    fn end<O>(&self, inner: &I, state: Pin<&mut Self::State>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized;
}

pub(crate) mod sealed {
    pub trait Sealed {}
    impl Sealed for () {}
    impl<P, I> Sealed for (P, I) {}
    impl<P: Sealed> Sealed for &P {}
}
pub(crate) use sealed::Sealed;

impl<R, T, E, P, I> Run<R, T, E> for (P, I)
where
    P: Guard<R, T, E, I>,
    I: Run<R, T, E>,
{
    type State = P::State;

    #[inline]
    fn poll<O>(
        &self,
        state: Pin<&mut P::State>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        self.0.poll(&self.1, state, op, cx, out)
    }

    #[inline]
    fn end<O>(&self, state: Pin<&mut P::State>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        self.0.end(&self.1, state, op, how);
    }
}

/// A policy that guards by reference, so that one alone needs no reference count.
impl<R, T, E, P, I> Guard<R, T, E, I> for &P
where
    P: Guard<R, T, E, I>,
    I: Run<R, T, E>,
{
    type State = P::State;

    #[inline]
    fn poll<O>(
        &self,
        inner: &I,
        state: Pin<&mut P::State>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        P::poll(self, inner, state, op, cx, out)
    }

    #[inline]
    fn end<O>(&self, inner: &I, state: Pin<&mut P::State>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        P::end(self, inner, state, op, how);
    }
}

/// The two ways to hold a list: borrowed by the wrapper form, shared by the tower form.
macro_rules! run_through_pointer {
    ($pointer:ty) => {
        impl<R, T, E, L: Run<R, T, E>> Run<R, T, E> for $pointer {
            type State = L::State;

            #[inline]
            fn poll<O>(
                &self,
                state: Pin<&mut L::State>,
                op: Pin<&mut O>,
                cx: &mut Cx<'_, '_>,
                out: &mut Slot<T, E>,
            ) -> Poll<()>
            where
                O: Operation<Request = R, Output = T, Error = E> + ?Sized,
            {
                L::poll(self, state, op, cx, out)
            }

            #[inline]
            fn end<O>(&self, state: Pin<&mut L::State>, op: Pin<&mut O>, how: End)
            where
                O: Operation<Request = R, Output = T, Error = E> + ?Sized,
            {
                L::end(self, state, op, how);
            }
        }
    };
}
run_through_pointer!(&L);
#[cfg(feature = "tower")]
run_through_pointer!(crate::tower::Held<L>);

/// Inside all policies: the operation itself. It is not begun in a call that comes after the deadline around it; policies that
/// begin it later, after a wait, look at the deadline themselves.
impl<R, T, E> Run<R, T, E> for () {
    type State = ();

    #[inline]
    fn poll<O>(
        &self,
        _: Pin<&mut ()>,
        mut op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        if cx.late {
            return refuse(out, Refused::ended(Kind::DeadlineExceeded, &Name::new("deadline"), cx.started));
        }
        let attempt = Attempt { number: cx.attempt, last: cx.last, deadline: cx.deadline };
        let readable = cx.deadline.map(deadline::enter);
        let polled = op.as_mut().poll_attempt(cx.task, attempt);
        drop(readable);
        match polled {
            Poll::Ready(result) => {
                cx.started = true;
                *out = Some(Ok(result));
                Poll::Ready(())
            }
            Poll::Pending => {
                cx.started |= op.has_begun();
                Poll::Pending
            }
        }
    }

    #[inline]
    fn end<O>(&self, _: Pin<&mut ()>, op: Pin<&mut O>, _: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        op.abandon();
    }
}

/// What the policies of one call share while it is polled.
pub struct Cx<'a, 'w> {
    task: &'a mut Context<'w>,
    now: Option<Instant>,
    timer: Option<Pin<&'a Sleep>>,
    wake_at: Option<Instant>,
    /// When the whole call is given up: the earliest of all deadlines around this place.
    pub(crate) deadline: Option<Instant>,
    /// The number of the current attempt, from 1.
    pub(crate) attempt: u32,
    /// Whether no other attempt can follow this one.
    pub(crate) last: bool,
    /// Whether the call begins after the deadline around it.
    late: bool,
    /// Whether the operation was ever started in this call.
    pub(crate) started: bool,
    /// Whether a fallback made the answer.
    pub(crate) degraded: bool,
}

impl<'w> Cx<'_, 'w> {
    /// The present, read at most once per poll.
    #[inline]
    pub(crate) fn now(&mut self) -> Instant {
        *self.now.get_or_insert_with(time::now)
    }

    /// The present, if some policy has read it in this poll already.
    #[inline]
    pub(crate) fn known_now(&self) -> Option<Instant> {
        self.now
    }

    /// Whether `at` has come. If not, the call will be polled again when it has.
    ///
    /// While the call's timer is armed for an earlier instant and has not fired, the answer costs no
    /// clock read.
    #[inline]
    pub(crate) fn reached(&mut self, at: Instant) -> bool {
        let armed_before =
            self.timer.is_some_and(|timer| timer.deadline().into_std() <= at && !timer.is_elapsed());
        if !armed_before && self.now() >= at {
            return true;
        }
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
        false
    }

    /// The waker of the task that polls this call.
    #[inline]
    pub(crate) fn task(&mut self) -> &mut Context<'w> {
        self.task
    }
}

impl fmt::Debug for Cx<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx").field("now", &self.now).field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// Turns an outcome into what the caller of this form of call is given.
#[diagnostic::on_unimplemented(
    message = "a refusal cannot be turned into the service's error type `{E}`",
    note = "implement `From<mainstay::Refused>` for your own error type",
    note = "for an error type of somebody else use `stack.lift()` as the layer: the error becomes `mainstay::Error<{E}>`"
)]
pub trait Finish<T, E> {
    /// The output of the call's future.
    type Output;

    #[doc(hidden)]
    fn finish(outcome: Outcome<T, E>, degraded: bool) -> Self::Output;
}

/// The form of [`Stack::call`](crate::Stack::call): `Result<T, Error<E>>`.
#[derive(Debug)]
pub struct Flat(());

impl<T, E> Finish<T, E> for Flat {
    type Output = Result<T, Error<E>>;

    #[inline]
    fn finish(outcome: Outcome<T, E>, _: bool) -> Self::Output {
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Error::Inner(error)),
            Err(refused) => Err(Error::Refused(refused)),
        }
    }
}

/// An answer that says where it came from; see [`Stack::call_marked`](crate::Stack::call_marked).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer<T> {
    /// The answer.
    pub value: T,
    /// Whether a fallback made it.
    pub degraded: bool,
}

/// The form of [`Stack::call_marked`](crate::Stack::call_marked): `Result<Answer<T>, Error<E>>`.
#[derive(Debug)]
pub struct Marked(());

impl<T, E> Finish<T, E> for Marked {
    type Output = Result<Answer<T>, Error<E>>;

    fn finish(outcome: Outcome<T, E>, degraded: bool) -> Self::Output {
        Flat::finish(outcome, degraded).map(|value| Answer { value, degraded })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Never polled: holds nothing.
    New,
    /// Between polls.
    Waiting,
    /// Inside a poll. Found in `drop` only when the poll panicked.
    Polling,
    Done,
}

/// The future of a protected call: `O` guarded by the policies `L`.
///
/// Does nothing and holds nothing until it is first polled. Dropping it at any point gives back every permit and
/// removes it from every queue.
///
/// # Panics
///
/// When polled after it was ready, and when it has to wait for a timer outside a tokio runtime with time enabled.
#[pin_project(PinnedDrop)]
#[must_use = "futures do nothing unless polled"]
pub struct Call<L, O, M>
where
    L: Run<O::Request, O::Output, O::Error>,
    O: Operation,
{
    policies: L,
    phase: Phase,
    started: bool,
    parent: Option<Instant>,
    #[pin]
    state: L::State,
    #[pin]
    timer: Option<Sleep>,
    #[pin]
    op: O,
    form: PhantomData<fn() -> M>,
}

impl<L, O, M> Call<L, O, M>
where
    L: Run<O::Request, O::Output, O::Error>,
    O: Operation,
{
    #[inline]
    pub(crate) fn new(policies: L, op: O) -> Self {
        Call {
            policies,
            phase: Phase::New,
            started: false,
            parent: None,
            state: Default::default(),
            timer: None,
            op,
            form: PhantomData,
        }
    }
}

impl<L, O, M> Future for Call<L, O, M>
where
    L: Run<O::Request, O::Output, O::Error>,
    O: Operation,
    M: Finish<O::Output, O::Error>,
{
    type Output = M::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let mut late = false;
        match *this.phase {
            Phase::New => {
                *this.parent = deadline::current();
                late = this.parent.is_some_and(|at| time::now() >= at);
            }
            Phase::Waiting => {}
            Phase::Polling | Phase::Done => panic!("a call was polled after it had ended"),
        }
        *this.phase = Phase::Polling;
        let mut out = None;
        loop {
            let mut cx = Cx {
                task: &mut *task,
                now: None,
                timer: this.timer.as_ref().as_pin_ref(),
                wake_at: None,
                deadline: *this.parent,
                attempt: 1,
                last: true,
                late,
                started: *this.started,
                degraded: false,
            };
            let polled = this.policies.poll(this.state.as_mut(), this.op.as_mut(), &mut cx, &mut out);
            let (wake_at, degraded) = (cx.wake_at, cx.degraded);
            *this.started = cx.started;
            if polled.is_ready() {
                *this.phase = Phase::Done;
                return match out {
                    Some(outcome) => Poll::Ready(M::finish(outcome, degraded)),
                    None => unreachable!("policies that are ready have left an outcome"),
                };
            }
            let timer_is_due = match wake_at {
                Some(at) => arm(this.timer.as_mut(), at, task),
                None => false,
            };
            if !timer_is_due {
                *this.phase = Phase::Waiting;
                return Poll::Pending;
            }
        }
    }
}

/// Arms `timer` for `at` unless it fires earlier anyway; `true` if it is due already, and then it is gone.
fn arm(mut timer: Pin<&mut Option<Sleep>>, at: Instant, task: &mut Context<'_>) -> bool {
    let at = tokio::time::Instant::from_std(at);
    match timer.as_mut().as_pin_mut() {
        None => timer.set(Some(tokio::time::sleep_until(at))),
        Some(sleep) if at < sleep.deadline() => sleep.reset(at),
        // Firing early costs one wake-up, moving the timer costs more.
        Some(_) => {}
    }
    let due = timer.as_mut().as_pin_mut().is_some_and(|sleep| sleep.poll(task).is_ready());
    if due {
        timer.set(None);
    }
    due
}

#[pinned_drop]
impl<L, O, M> PinnedDrop for Call<L, O, M>
where
    L: Run<O::Request, O::Output, O::Error>,
    O: Operation,
{
    #[inline]
    fn drop(self: Pin<&mut Self>) {
        let this = self.project();
        let how = match *this.phase {
            Phase::New | Phase::Done => return,
            Phase::Waiting => End::Cancelled,
            Phase::Polling => End::Panicked,
        };
        this.policies.end(this.state, this.op, how);
    }
}

impl<L, O, M> fmt::Debug for Call<L, O, M>
where
    L: Run<O::Request, O::Output, O::Error>,
    O: Operation,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// A closure as an operation.
#[pin_project]
pub struct Closure<F, Fut> {
    start: F,
    #[pin]
    running: Option<Fut>,
}

impl<F, Fut> Closure<F, Fut> {
    #[inline]
    pub(crate) fn new(start: F) -> Self {
        Closure { start, running: None }
    }
}

impl<F, Fut> fmt::Debug for Closure<F, Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closure").field("running", &self.running.is_some()).finish_non_exhaustive()
    }
}

impl<F, Fut, T, E> Operation for Closure<F, Fut>
where
    F: FnMut(Attempt) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    type Request = ();
    type Output = T;
    type Error = E;

    fn request(&self) -> Option<&()> {
        Some(&())
    }

    #[inline]
    fn has_begun(&self) -> bool {
        self.running.is_some()
    }

    #[inline]
    fn poll_attempt(self: Pin<&mut Self>, cx: &mut Context<'_>, attempt: Attempt) -> Poll<Result<T, E>> {
        let mut this = self.project();
        if this.running.is_none() {
            this.running.set(Some((this.start)(attempt)));
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
