//! Waiting for a permit, and holding it as long as the call runs.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use pin_project::pin_project;

use super::{Bulkhead, Permit, machine::Asked, shared::Joined};
use crate::{
    call::{Attempt, Call, Cx, End, Finish, Guard, Operation, PutBack, Run, Sealed, Slot, refuse_and_tell},
    error::{Error, Kind, Refused},
    time,
};

/// What a bulkhead remembers of one call.
#[derive(Debug, Default)]
pub struct State<S> {
    seat: Seat,
    inner: S,
}

/// What a call has of a bulkhead.
#[derive(Debug, Clone, Copy, Default)]
enum Seat {
    #[default]
    None,
    Waiting {
        ticket: u64,
        until: Instant,
    },
    Holding,
}

impl Bulkhead {
    /// Moves from any seat towards `Holding`.
    #[inline(always)]
    fn sit(&self, seat: &mut Seat, cx: &mut Cx<'_, '_>) -> Poll<Result<(), Kind>> {
        if self.sits(seat, cx) {
            return Poll::Ready(Ok(()));
        }
        if self.queue().is_none() {
            return Poll::Ready(Err(if cx.is_late() { Kind::DeadlineExceeded } else { Kind::BulkheadFull }));
        }
        let (mut aside, mut copy) = (None, cx.copy());
        let sat = self.sit_later(PutBack::from(seat, &mut aside).get(), &mut copy);
        cx.facts = copy.facts;
        sat
    }

    /// Whether the seat is held, or a permit is free.
    #[inline(always)]
    fn sits(&self, seat: &mut Seat, cx: &mut Cx<'_, '_>) -> bool {
        match *seat {
            Seat::Holding => true,
            Seat::None if !cx.is_late() && self.take() => {
                *seat = Seat::Holding;
                true
            }
            _ => false,
        }
    }

    /// For a call that was not given a permit at once.
    #[cold]
    #[inline(never)]
    fn sit_later(&self, seat: &mut Seat, cx: &mut Cx<'_, '_>) -> Poll<Result<(), Kind>> {
        match *seat {
            Seat::Waiting { ticket, until } => self.wait(seat, ticket, until, cx),
            _ if cx.is_late() => Poll::Ready(Err(Kind::DeadlineExceeded)),
            _ => self.queue_up(seat, cx),
        }
    }

    fn queue_up(&self, seat: &mut Seat, cx: &mut Cx<'_, '_>) -> Poll<Result<(), Kind>> {
        let Some((shared, queue)) = self.queue().filter(|(shared, _)| !shared.is_full()) else {
            return Poll::Ready(Err(Kind::BulkheadFull));
        };
        let end = time::later(cx.now(), queue.max_wait);
        let until = cx.facts.deadline.map_or(end, |deadline| deadline.min(end));
        let waker = cx.task().waker().clone();
        match shared.take_or_join(waker) {
            Joined::Taken => {
                *seat = Seat::Holding;
                Poll::Ready(Ok(()))
            }
            Joined::Full => Poll::Ready(Err(Kind::BulkheadFull)),
            Joined::Waiting(ticket) => {
                *seat = Seat::Waiting { ticket, until };
                // Not yet: `until` is after the present. Asked so that the call's timer is armed.
                let _later = cx.reached(until);
                Poll::Pending
            }
        }
    }

    fn wait(
        &self,
        seat: &mut Seat,
        ticket: u64,
        until: Instant,
        cx: &mut Cx<'_, '_>,
    ) -> Poll<Result<(), Kind>> {
        let Some((shared, _)) = self.queue() else {
            return Poll::Pending;
        };
        let expired = cx.reached(until);
        let waker = cx.task().waker().clone();
        match shared.ask(ticket, waker, expired) {
            Asked::Waiting => Poll::Pending,
            Asked::Expired => {
                *seat = Seat::None;
                let by_deadline = cx.facts.deadline.is_some_and(|deadline| deadline <= until);
                let kind = if by_deadline { Kind::DeadlineExceeded } else { Kind::QueueTimeout };
                Poll::Ready(Err(kind))
            }
            Asked::Granted => {
                *seat = Seat::Holding;
                // A permit that comes at the end of the wait is used, one that comes after the deadline is not.
                if cx.is_late() {
                    self.stand_up(seat);
                    return Poll::Ready(Err(Kind::DeadlineExceeded));
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Gives up whatever there is.
    #[inline]
    fn stand_up(&self, seat: &mut Seat) {
        match std::mem::take(seat) {
            Seat::None => {}
            Seat::Holding => self.give_back(),
            Seat::Waiting { ticket, .. } => {
                if let Some((shared, _)) = self.queue() {
                    shared.leave(ticket);
                }
            }
        }
    }
}

impl<R, T, E, I: Run<R, T, E>> Guard<R, T, E, I> for Bulkhead {
    type Notes = State<I::Notes>;
    type Pinned = I::Pinned;

    #[inline(always)]
    fn poll<O>(
        &self,
        inner: &I,
        notes: &mut Self::Notes,
        pinned: Pin<&mut I::Pinned>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        if let Err(kind) = ready!(self.sit(&mut notes.seat, cx)) {
            return refuse_and_tell(out, self.id(), Refused::ended(kind, self.id().name(), cx.facts.started));
        }
        let polled = inner.poll(&mut notes.inner, pinned, op, cx, out);
        if polled.is_ready() {
            notes.seat = Seat::None;
            self.give_back();
        }
        polled
    }

    fn end<O>(&self, inner: &I, notes: Self::Notes, pinned: Pin<&mut I::Pinned>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        // The attempt is dropped before its permit is free, and the permit also if that drop panics.
        let _seat = StandUp(self, notes.seat);
        inner.end(notes.inner, pinned, op, how);
    }
}

struct StandUp<'a>(&'a Bulkhead, Seat);

impl Drop for StandUp<'_> {
    fn drop(&mut self) {
        self.0.stand_up(&mut self.1);
    }
}

/// The future of [`Bulkhead::acquire`].
///
/// # Panics
///
/// When polled after it was ready, and when it has to wait outside a tokio runtime with time enabled.
#[pin_project]
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Acquire<'a>(#[pin] Call<(Hand<'a>, ()), Nothing<'a>, Bare>);

impl<'a> Acquire<'a> {
    pub(super) fn new(bulkhead: &'a Bulkhead) -> Self {
        Acquire(Call::new((Hand(bulkhead), ()), Nothing(PhantomData)))
    }
}

impl<'a> Future for Acquire<'a> {
    type Output = Result<Permit<'a>, Refused>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().0.poll(cx)
    }
}

/// A bulkhead as a policy that answers with its permit in place of starting the operation.
struct Hand<'a>(&'a Bulkhead);

/// The operation that is never started.
struct Nothing<'a>(PhantomData<fn() -> Permit<'a>>);

/// The outcome without an operation's error, since there is none.
struct Bare;

impl Sealed for Hand<'_> {}

impl<'a, R, E, I: Run<R, Permit<'a>, E>> Guard<R, Permit<'a>, E, I> for Hand<'a> {
    type Notes = Seat;
    type Pinned = ();

    fn poll<O>(
        &self,
        _: &I,
        seat: &mut Seat,
        _: Pin<&mut ()>,
        _: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<Permit<'a>, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = Permit<'a>, Error = E> + ?Sized,
    {
        let sat = ready!(self.0.sit(seat, cx));
        *seat = Seat::None;
        match sat {
            Ok(()) => out.put(Ok(Permit { bulkhead: self.0 })),
            Err(kind) => out.refuse(self.0.refuse(kind, cx.facts.started)),
        }
        Poll::Ready(())
    }

    fn end<O>(&self, _: &I, mut seat: Seat, _: Pin<&mut ()>, _: Pin<&mut O>, _: End)
    where
        O: Operation<Request = R, Output = Permit<'a>, Error = E> + ?Sized,
    {
        self.0.stand_up(&mut seat);
    }
}

impl<'a> Operation for Nothing<'a> {
    type Request = ();
    type Output = Permit<'a>;
    type Error = Infallible;

    fn request(&self) -> Option<&()> {
        None
    }

    fn has_begun(&self) -> bool {
        false
    }

    fn poll_attempt(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: Attempt,
    ) -> Poll<Result<Permit<'a>, Infallible>> {
        Poll::Pending
    }

    fn abandon(self: Pin<&mut Self>) {}
}

impl<T> Finish<T, Infallible> for Bare {
    type Output = Result<T, Refused>;

    fn answer(value: T, _: bool) -> Self::Output {
        Ok(value)
    }

    fn error(why: Error<Infallible>) -> Self::Output {
        match why {
            Error::Refused(refused) => Err(refused),
        }
    }
}

impl fmt::Debug for Hand<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
