//! How a call goes through a list of policies.
//!
//! A call has two halves. The [`Operation`] is what the user wants done; it can be started several
//! times and holds the future of the attempt in progress. The policies hold their half in
//! [`Run::Notes`], a plain value nested like the policies themselves. One [`Call`] future owns both and
//! polls them with a [`Cx`] that all policies share: it reads the clock at most once per poll and
//! owns the call's only timer, armed for the earliest instant that any policy waits for.
//!
//! Notes that are not pinned can be moved: in the first poll of a call they are a local variable, which a compiler that sees all
//! policies keeps in registers, and only a call that has to wait writes them down.
//!
//! These types appear in signatures. You need them only to name the future of a call.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    mem::{self, ManuallyDrop},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use pin_project::{pin_project, pinned_drop};
use tokio::time::Sleep;

use crate::{
    deadline,
    error::{Error, Kind, Name, Refused},
    event::Identity,
    time,
};

/// What came of a call or an attempt: a policy's refusal, or the operation's own result.
pub type Outcome<T, E> = Result<Result<T, E>, Refused>;

/// Where the outcome of a call is put: written once by whoever makes it, and looked at in place by the policies around, so
/// that a value is not moved once for each policy.
///
/// Its destructor moves what it drops. No reference leads to the slot then, and a result can stay in registers; nor does it
/// share its place with a refusal, to be told from one at each look.
pub struct Slot<T, E> {
    result: ManuallyDrop<Option<Result<T, E>>>,
    refused: ManuallyDrop<Option<Refused>>,
}

impl<T, E> Slot<T, E> {
    #[inline(always)]
    pub(crate) fn put(&mut self, result: Result<T, E>) {
        self.clear();
        self.result = ManuallyDrop::new(Some(result));
    }

    #[inline(always)]
    pub(crate) fn refuse(&mut self, refused: Refused) {
        self.clear();
        self.refused = ManuallyDrop::new(Some(refused));
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> Option<Result<&Result<T, E>, &Refused>> {
        match &*self.result {
            Some(result) => Some(Ok(result)),
            None => self.refused.as_ref().map(Err),
        }
    }

    #[inline]
    pub(crate) fn refused_mut(&mut self) -> Option<&mut Refused> {
        self.refused.as_mut()
    }

    #[inline(always)]
    pub(crate) fn take(&mut self) -> Option<Outcome<T, E>> {
        match take(&mut self.result) {
            Some(result) => Some(Ok(result)),
            None => take(&mut self.refused).map(Err),
        }
    }

    /// Empties it.
    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        if self.result.is_some() {
            discard(take(&mut self.result));
        }
        if self.refused.is_some() {
            discard(take(&mut self.refused));
        }
    }

    /// What the caller is given.
    #[inline(always)]
    fn finish<M: Finish<T, E>>(mut self, degraded: bool) -> M::Output {
        match take(&mut self.result) {
            Some(Ok(value)) => M::answer(value, degraded),
            Some(Err(error)) => M::error(Error::Inner(error)),
            None => match take(&mut self.refused) {
                Some(refused) => M::error(Error::Refused(refused.by_words())),
                None => unreachable!("policies that are ready have left an outcome"),
            },
        }
    }
}

#[inline(always)]
fn take<V>(from: &mut ManuallyDrop<Option<V>>) -> Option<V> {
    ManuallyDrop::into_inner(mem::replace(from, ManuallyDrop::new(None)))
}

#[cold]
#[inline(never)]
fn discard<V>(_: V) {}

impl<T, E> Default for Slot<T, E> {
    #[inline(always)]
    fn default() -> Self {
        Slot { result: ManuallyDrop::new(None), refused: ManuallyDrop::new(None) }
    }
}

impl<T, E> Drop for Slot<T, E> {
    #[inline(always)]
    fn drop(&mut self) {
        self.clear();
    }
}

impl<T, E> fmt::Debug for Slot<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("is_some", &self.get().is_some()).finish()
    }
}

/// Ready, with a policy's refusal.
#[inline(always)]
pub(crate) fn refuse<T, E>(out: &mut Slot<T, E>, refused: Refused) -> Poll<()> {
    out.refuse(refused);
    Poll::Ready(())
}

/// Ready, with a policy's refusal, of which its listeners are told.
#[inline(always)]
pub(crate) fn refuse_and_tell<T, E>(out: &mut Slot<T, E>, id: &Identity, refused: Refused) -> Poll<()> {
    out.refuse(refused);
    if id.has_listeners() {
        if let Some(refused) = out.refused_mut() {
            id.tell_refused(refused.clone());
        }
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

    /// Whether the attempt in progress, or the next one, has to wait for a service to be ready before it begins.
    fn waits(&self) -> bool {
        false
    }

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
    /// What the list remembers of one call. As new again after `poll` was ready.
    type Notes: Default;
    /// What the list polls by itself and must not move: the answer of a fallback.
    type Pinned: Default;
    /// Both, where a call keeps them while it waits.
    type State: Store<Notes = Self::Notes, Pinned = Self::Pinned>;

    /// Moves the call on. When it is ready, `out` holds the outcome.
    fn poll<O>(
        &self,
        notes: &mut Self::Notes,
        pinned: Pin<&mut Self::Pinned>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized;

    /// Takes an unfinished call away, giving back whatever it holds, also if a part of it panics.
    fn end<O>(&self, notes: Self::Notes, pinned: Pin<&mut Self::Pinned>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized;
}

/// One policy around the inner list `I`.
pub trait Guard<R, T, E, I: Run<R, T, E>>: Sealed {
    /// What the policy and the inner list remember of one call; see [`Run::Notes`].
    type Notes: Default;
    /// What they poll by themselves; see [`Run::Pinned`].
    type Pinned: Default;

    /// Moves the call on. When it is ready, `out` holds the outcome.
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
        O: Operation<Request = R, Output = T, Error = E> + ?Sized;

    /// Takes an unfinished call away, giving back whatever it holds, also if a part of it panics.
    fn end<O>(
        &self,
        inner: &I,
        notes: Self::Notes,
        pinned: Pin<&mut Self::Pinned>,
        op: Pin<&mut O>,
        how: End,
    ) where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized;
}

/// The policies' half of a call that waits; see [`Run::State`].
pub trait Store: Default {
    /// What can be moved.
    type Notes;
    /// What cannot.
    type Pinned;

    #[doc(hidden)]
    fn parts(self: Pin<&mut Self>) -> (&mut Option<Self::Notes>, Pin<&mut Self::Pinned>);
}

/// The one [`Store`].
#[pin_project]
#[derive(Debug)]
pub struct Stored<N, P> {
    /// Nothing before the first wait.
    notes: Option<N>,
    #[pin]
    pinned: P,
}

impl<N, P: Default> Default for Stored<N, P> {
    #[inline]
    fn default() -> Self {
        Stored { notes: None, pinned: P::default() }
    }
}

impl<N, P: Default> Store for Stored<N, P> {
    type Notes = N;
    type Pinned = P;

    #[inline]
    fn parts(self: Pin<&mut Self>) -> (&mut Option<N>, Pin<&mut P>) {
        let this = self.project();
        (this.notes, this.pinned)
    }
}

/// Puts `value` to its `home` when this is dropped, also by a panic.
pub(crate) struct PutBack<'a, V, H: From<V> = V> {
    /// There is one.
    value: &'a mut Option<V>,
    home: &'a mut H,
}

impl<'a, V: Default> PutBack<'a, V> {
    /// What is at `home`, moved to `aside` for something that is not inlined: what no reference leads to can stay in
    /// registers.
    #[inline(always)]
    pub(crate) fn from(home: &'a mut V, aside: &'a mut Option<V>) -> Self {
        *aside = Some(mem::take(home));
        PutBack { value: aside, home }
    }
}

impl<V, H: From<V>> PutBack<'_, V, H> {
    #[inline(always)]
    pub(crate) fn get(&mut self) -> &mut V {
        match self.value {
            Some(value) => value,
            None => unreachable!("it is put back when this is dropped"),
        }
    }
}

// So small that a compiler inlines it also where a panic passes: else a reference would lead to `value`.
impl<V, H: From<V>> Drop for PutBack<'_, V, H> {
    #[inline]
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            *self.home = value.into();
        }
    }
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
    type Notes = P::Notes;
    type Pinned = P::Pinned;
    type State = Stored<P::Notes, P::Pinned>;

    #[inline(always)]
    fn poll<O>(
        &self,
        notes: &mut P::Notes,
        pinned: Pin<&mut P::Pinned>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        self.0.poll(&self.1, notes, pinned, op, cx, out)
    }

    fn end<O>(&self, notes: P::Notes, pinned: Pin<&mut P::Pinned>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        self.0.end(&self.1, notes, pinned, op, how);
    }
}

/// A policy that guards by reference, so that one alone needs no reference count.
impl<R, T, E, P, I> Guard<R, T, E, I> for &P
where
    P: Guard<R, T, E, I>,
    I: Run<R, T, E>,
{
    type Notes = P::Notes;
    type Pinned = P::Pinned;

    #[inline(always)]
    fn poll<O>(
        &self,
        inner: &I,
        notes: &mut P::Notes,
        pinned: Pin<&mut P::Pinned>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        P::poll(self, inner, notes, pinned, op, cx, out)
    }

    fn end<O>(&self, inner: &I, notes: P::Notes, pinned: Pin<&mut P::Pinned>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        P::end(self, inner, notes, pinned, op, how);
    }
}

/// The two ways to hold a list: borrowed by the wrapper form, shared by the tower form.
macro_rules! run_through_pointer {
    ($pointer:ty) => {
        impl<R, T, E, L: Run<R, T, E>> Run<R, T, E> for $pointer {
            type Notes = L::Notes;
            type Pinned = L::Pinned;
            type State = L::State;

            #[inline(always)]
            fn poll<O>(
                &self,
                notes: &mut L::Notes,
                pinned: Pin<&mut L::Pinned>,
                op: Pin<&mut O>,
                cx: &mut Cx<'_, '_>,
                out: &mut Slot<T, E>,
            ) -> Poll<()>
            where
                O: Operation<Request = R, Output = T, Error = E> + ?Sized,
            {
                L::poll(self, notes, pinned, op, cx, out)
            }

            fn end<O>(&self, notes: L::Notes, pinned: Pin<&mut L::Pinned>, op: Pin<&mut O>, how: End)
            where
                O: Operation<Request = R, Output = T, Error = E> + ?Sized,
            {
                L::end(self, notes, pinned, op, how);
            }
        }
    };
}
run_through_pointer!(&L);
#[cfg(feature = "tower")]
run_through_pointer!(crate::tower::Held<L>);

/// Inside all policies: the operation itself. It is not begun in a call that comes after the deadline around it, nor when a
/// service becomes ready after the deadline; policies that begin it later, after a wait, look at the deadline themselves.
impl<R, T, E> Run<R, T, E> for () {
    type Notes = ();
    type Pinned = ();
    type State = Stored<(), ()>;

    #[inline(always)]
    fn poll<O>(
        &self,
        (): &mut (),
        _: Pin<&mut ()>,
        mut op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        if cx.facts.late || cx.facts.deadline.is_some() && op.waits() && cx.is_late() {
            if cx.facts.watched {
                // The policy that watches ends the call, under its own name.
                return Poll::Pending;
            }
            return refuse(out, too_late(op, cx.facts.started));
        }
        let attempt = Attempt { number: cx.facts.attempt, last: cx.facts.last, deadline: cx.facts.deadline };
        let readable = cx.facts.deadline.map(deadline::enter);
        let polled = op.as_mut().poll_attempt(cx.task, attempt);
        drop(readable);
        match polled {
            Poll::Ready(result) => {
                cx.facts.started = true;
                out.put(result);
                Poll::Ready(())
            }
            Poll::Pending => {
                cx.facts.started |= op.has_begun();
                Poll::Pending
            }
        }
    }

    fn end<O>(&self, (): (), _: Pin<&mut ()>, op: Pin<&mut O>, _: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        op.abandon();
    }
}

/// Takes away an operation that was not begun before the deadline around its call.
#[cold]
fn too_late<O: Operation + ?Sized>(op: Pin<&mut O>, started: bool) -> Refused {
    op.abandon();
    Refused::ended(Kind::DeadlineExceeded, &Name::new("deadline"), started)
}

/// What the policies of one call share while it is polled.
pub struct Cx<'a, 'w> {
    task: &'a mut Context<'w>,
    timer: Option<&'a dyn Alarm>,
    pub(crate) facts: Facts,
}

/// What they know of it.
#[derive(Clone, Copy)]
pub(crate) struct Facts {
    now: Option<Instant>,
    wake_at: Option<Instant>,
    /// When the whole call is given up: the earliest of all deadlines around this place.
    pub(crate) deadline: Option<Instant>,
    /// The number of the current attempt, from 1.
    pub(crate) attempt: u32,
    /// Whether no other attempt can follow this one.
    pub(crate) last: bool,
    /// Whether the call begins after the deadline around it.
    late: bool,
    /// Whether a policy ends the call at the deadline; if not, the deadline came from around the call.
    pub(crate) watched: bool,
    /// Whether the operation was ever started in this call.
    pub(crate) started: bool,
    /// Whether a fallback made the answer.
    pub(crate) degraded: bool,
}

impl<'a, 'w> Cx<'a, 'w> {
    /// For a poll of a call that was begun before `deadline`, that of the code around it.
    #[inline]
    fn new(task: &'a mut Context<'w>, deadline: Option<Instant>) -> Self {
        let facts = Facts {
            now: None,
            wake_at: None,
            deadline,
            attempt: 1,
            last: true,
            late: false,
            watched: false,
            started: false,
            degraded: false,
        };
        Cx { task, timer: None, facts }
    }

    /// The present, read at most once per poll.
    #[inline]
    pub(crate) fn now(&mut self) -> Instant {
        *self.facts.now.get_or_insert_with(time::now)
    }

    /// The present, if some policy has read it in this poll already.
    #[inline]
    pub(crate) fn known_now(&self) -> Option<Instant> {
        self.facts.now
    }

    /// Takes over what somebody knows who asked [`known_now`](Self::known_now) and then read the clock by itself.
    #[inline]
    pub(crate) fn learn(&mut self, now: Option<Instant>) {
        self.facts.now = now;
    }

    /// Whether the deadline has passed. The policies outside have read the clock for it; if not, the deadline came from
    /// around the call.
    #[inline]
    pub(crate) fn is_late(&mut self) -> bool {
        self.facts.deadline.is_some_and(|deadline| self.now() >= deadline)
    }

    /// Whether `at` has come. If not, the call will be polled again when it has.
    ///
    /// While the call's timer is armed for an earlier instant and has not fired, the answer costs no
    /// clock read.
    #[inline(always)]
    pub(crate) fn reached(&mut self, at: Instant) -> bool {
        let armed_before = self.timer.is_some_and(|timer| timer.goes_off_by(at));
        if !armed_before && self.now() >= at {
            return true;
        }
        self.facts.wake_at = Some(self.facts.wake_at.map_or(at, |other| other.min(at)));
        false
    }

    /// A copy, for the same reason as [`PutBack::from`]. Its facts have to be taken over.
    #[inline(always)]
    pub(crate) fn copy(&mut self) -> Cx<'_, 'w> {
        Cx { task: self.task, timer: self.timer, facts: self.facts }
    }

    /// The waker of the task that polls this call.
    #[inline]
    pub(crate) fn task(&mut self) -> &mut Context<'w> {
        self.task
    }
}

impl fmt::Debug for Cx<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx")
            .field("now", &self.facts.now)
            .field("deadline", &self.facts.deadline)
            .finish_non_exhaustive()
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
    fn answer(value: T, degraded: bool) -> Self::Output;

    #[doc(hidden)]
    fn error(why: Error<E>) -> Self::Output;
}

/// The form of [`Stack::call`](crate::Stack::call): `Result<T, Error<E>>`.
#[derive(Debug)]
pub struct Flat(());

impl<T, E> Finish<T, E> for Flat {
    type Output = Result<T, Error<E>>;

    #[inline]
    fn answer(value: T, _: bool) -> Self::Output {
        Ok(value)
    }

    #[inline]
    fn error(why: Error<E>) -> Self::Output {
        Err(why)
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

    #[inline]
    fn answer(value: T, degraded: bool) -> Self::Output {
        Ok(Answer { value, degraded })
    }

    #[inline]
    fn error(why: Error<E>) -> Self::Output {
        Err(why)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Never polled: holds nothing.
    New,
    Done,
    /// Between polls.
    Waiting,
    /// Inside a poll. Found in `drop` only when the poll panicked.
    Polling,
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
    timer: Option<Timer>,
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

    // Apart, so that dropping a call that has ended is a look at its phase, in the caller.
    #[cold]
    #[inline(never)]
    fn end(self: Pin<&mut Self>, how: End) {
        let this = self.project();
        let (notes, pinned) = this.state.parts();
        this.policies.end(notes.take().unwrap_or_default(), pinned, this.op, how);
    }
}

impl<L, O, M> Future for Call<L, O, M>
where
    L: Run<O::Request, O::Output, O::Error>,
    O: Operation,
    M: Finish<O::Output, O::Error>,
{
    type Output = M::Output;

    // Always inlined, and nothing that is called returns an outcome: so it reaches the caller in registers. Through memory it
    // would be written field by field and moved on by wider loads, and those wait until the stores have left the processor.
    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        if self.phase == Phase::New && deadline::current().is_none() {
            let mut out = Slot::default();
            match self.as_mut().poll_first(task, &mut out) {
                Ok(degraded) => return Poll::Ready(out.finish::<M>(degraded)),
                Err(wait) if self.as_mut().waits(wait, task) => return Poll::Pending,
                Err(_) => {}
            }
        }
        // A slot of its own, so that no reference leads to that of the first poll.
        let mut out = Slot::default();
        let degraded = ready!(self.poll_on(task, &mut out));
        Poll::Ready(out.finish::<M>(degraded))
    }
}

/// A poll that was not ready: when the call shall be polled again at the latest.
#[derive(Clone, Copy)]
struct Wait(Option<Instant>);

impl<L, O, M> Call<L, O, M>
where
    L: Run<O::Request, O::Output, O::Error>,
    O: Operation,
{
    /// The first poll of a call without a deadline around it. When it is ready, `out` holds the outcome, and the answer is whether
    /// a fallback made it.
    #[inline(always)]
    fn poll_first(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        out: &mut Slot<O::Output, O::Error>,
    ) -> Result<bool, Wait> {
        let this = self.project();
        let mut cx = Cx::new(task, None);
        *this.phase = Phase::Polling;
        let (home, pinned) = this.state.parts();
        let mut notes = Some(L::Notes::default());
        let mut lent = PutBack { value: &mut notes, home };
        if this.policies.poll(lent.get(), pinned, this.op, &mut cx, out).is_pending() {
            *this.started = cx.facts.started;
            return Err(Wait(cx.facts.wake_at));
        }
        *this.phase = Phase::Done;
        // As new, so there is nothing to put back.
        mem::forget(lent);
        Ok(cx.facts.degraded)
    }

    /// Every other poll. Answers as that does.
    #[inline(never)]
    fn poll_on(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        out: &mut Slot<O::Output, O::Error>,
    ) -> Poll<bool> {
        loop {
            let this = self.as_mut().project();
            let first = match *this.phase {
                Phase::New => true,
                Phase::Waiting => false,
                Phase::Done | Phase::Polling => panic!("a call was polled after it had ended"),
            };
            if first {
                *this.parent = deadline::current();
            }
            *this.phase = Phase::Polling;
            let mut cx = Cx::new(task, *this.parent);
            cx.facts.late = first && this.parent.is_some_and(|at| cx.now() >= at);
            cx.timer = this.timer.as_ref().get_ref().as_ref().map(|timer| timer as &dyn Alarm);
            cx.facts.started = *this.started;
            let (notes, pinned) = this.state.parts();
            let notes = notes.get_or_insert_default();
            if this.policies.poll(notes, pinned, this.op, &mut cx, out).is_ready() {
                *this.phase = Phase::Done;
                return Poll::Ready(cx.facts.degraded);
            }
            *this.started = cx.facts.started;
            let wait = Wait(cx.facts.wake_at);
            if self.as_mut().waits(wait, task) {
                return Poll::Pending;
            }
        }
    }

    /// Ends a poll that was not ready; `false` if the call shall be polled again at once.
    fn waits(self: Pin<&mut Self>, Wait(at): Wait, task: &mut Context<'_>) -> bool {
        let this = self.project();
        let due = at.is_some_and(|at| arm(this.timer, at, task));
        *this.phase = Phase::Waiting;
        !due
    }
}

/// The timer of a call that waits; there is one until it is dropped.
///
/// Most calls are dropped without a timer, so that shall be a test where the call ends, and the destructor of the timer be called
/// and not copied there. It is too long to be copied, and the table of [`Alarm`] is the second place that needs it: what is
/// needed in one place alone would be copied however long it is.
#[pin_project(PinnedDrop)]
struct Timer(#[pin] Option<Sleep>);

impl Timer {
    fn sleep(timer: Pin<&mut Option<Timer>>) -> Option<Pin<&mut Sleep>> {
        timer.as_pin_mut().and_then(|timer| timer.project().0.as_pin_mut())
    }
}

#[pinned_drop]
impl PinnedDrop for Timer {
    #[cold]
    #[inline(never)]
    fn drop(self: Pin<&mut Self>) {
        self.project().0.set(None);
    }
}

/// What a poll asks the timer that the last one armed.
trait Alarm {
    /// Whether it will go off at `at` or before, and has not.
    fn goes_off_by(&self, at: Instant) -> bool;
}

impl Alarm for Timer {
    fn goes_off_by(&self, at: Instant) -> bool {
        self.0.as_ref().is_some_and(|sleep| sleep.deadline().into_std() <= at && !sleep.is_elapsed())
    }
}

/// Arms `timer` for `at` unless it fires earlier anyway; `true` if it is due already, and then it is gone.
fn arm(mut timer: Pin<&mut Option<Timer>>, at: Instant, task: &mut Context<'_>) -> bool {
    let at = tokio::time::Instant::from_std(at);
    match Timer::sleep(timer.as_mut()) {
        None => timer.set(Some(Timer(Some(tokio::time::sleep_until(at))))),
        Some(sleep) if at < sleep.deadline() => sleep.reset(at),
        // Firing early costs one wake-up, moving the timer costs more.
        Some(_) => {}
    }
    let due = Timer::sleep(timer.as_mut()).is_some_and(|sleep| sleep.poll(task).is_ready());
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
        match self.phase {
            Phase::New | Phase::Done => {}
            Phase::Waiting => self.end(End::Cancelled),
            Phase::Polling => self.end(End::Panicked),
        }
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
