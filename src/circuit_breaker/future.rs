//! How a call passes a breaker.

use std::{pin::Pin, task::Poll, time::Instant};

use pin_project::pin_project;

use super::{CircuitBreaker, Class, Classify, config::class_of_refusal, machine::InFlight, window::Mark};
use crate::{
    call::{Cx, End, Guard, Operation, Run, Slot, refuse_and_tell},
    time,
};

/// What a breaker remembers of one call.
#[pin_project]
#[derive(Debug, Default)]
pub struct Passage<S> {
    held: Held,
    #[pin]
    inner: S,
}

#[derive(Debug, Clone, Copy, Default)]
enum Held {
    /// The breaker has not been asked.
    #[default]
    Nothing,
    /// Admitted; `started` is known where slow calls are of interest.
    Ticket { ticket: u64, started: Option<Instant> },
    /// Still in flight, and counted as slow.
    Slow { ticket: u64, mark: Mark },
    /// Still in flight, and nothing that it does counts any more.
    Settled,
}

impl<C> CircuitBreaker<C> {
    /// Settles what is held, at most once.
    #[inline]
    fn settle(&self, held: &mut Held, class: Class, mut now: impl FnMut() -> Instant) {
        match std::mem::take(held) {
            Held::Nothing | Held::Settled => {}
            // The cached present may lie before a long poll, which shall count.
            Held::Ticket { ticket, started: started @ Some(_) } => {
                self.core.settle(ticket, class, started, time::now)
            }
            Held::Ticket { ticket, started: None } => self.core.settle(ticket, class, None, now),
            Held::Slow { ticket, mark } => self.core.settle_slow(ticket, mark, class, now()),
        }
    }

    /// Counts a call as slow before it has ended.
    fn look_at_the_clock(&self, held: &mut Held, cx: &mut Cx<'_, '_>) {
        let Held::Ticket { ticket, started: Some(started) } = *held else {
            return;
        };
        let Some(after) = self.core.slow_after() else {
            return;
        };
        if !cx.reached(time::later(started, after)) {
            return;
        }
        // What a listener does must not find the ticket still unsettled.
        *held = Held::Settled;
        *held = match self.core.slow_in_flight(ticket, cx.now()) {
            InFlight::Unknown => Held::Ticket { ticket, started: None },
            InFlight::Counted(mark) => Held::Slow { ticket, mark },
            InFlight::Settled => Held::Settled,
        };
    }
}

impl<R, T, E, I, C> Guard<R, T, E, I> for CircuitBreaker<C>
where
    I: Run<R, T, E>,
    C: Classify<T, E>,
{
    type State = Passage<I::State>;

    #[inline]
    fn poll<O>(
        &self,
        inner: &I,
        state: Pin<&mut Self::State>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let this = state.project();
        if let Held::Nothing = this.held {
            let ticket = match self.core.admit(|| cx.now()) {
                Ok(ticket) => ticket,
                Err(after) => return refuse_and_tell(out, self.core.id(), self.core.refusal(after)),
            };
            *this.held = Held::Ticket { ticket, started: self.core.slow_after().map(|_| cx.now()) };
        }
        if inner.poll(this.inner, op, cx, out).is_pending() {
            self.look_at_the_clock(this.held, cx);
            return Poll::Pending;
        }
        let class = match out {
            Some(Ok(result)) => self.classify.classify(result),
            Some(Err(refused)) => class_of_refusal(refused),
            None => Class::Ignored,
        };
        self.settle(this.held, class, || cx.now());
        Poll::Ready(())
    }

    fn end<O>(&self, inner: &I, state: Pin<&mut Self::State>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let this = state.project();
        let held = std::mem::take(this.held);
        // What the operation holds first; its own drop may panic, and the ticket is settled all the same.
        let settle = SettleOnDrop { breaker: self, held, how };
        inner.end(this.inner, op, how);
        drop(settle);
    }
}

struct SettleOnDrop<'a, C> {
    breaker: &'a CircuitBreaker<C>,
    held: Held,
    how: End,
}

impl<C> Drop for SettleOnDrop<'_, C> {
    fn drop(&mut self) {
        let class = match self.how {
            End::Cancelled => self.breaker.core.cancelled(),
            End::TimedOut | End::Panicked => Class::Failure,
        };
        self.breaker.settle(&mut self.held, class, time::now);
    }
}
