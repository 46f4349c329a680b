//! How a call passes a breaker.

use std::{mem, pin::Pin, task::Poll, time::Instant};

use super::{CircuitBreaker, Class, Classify, config::class_of_refusal, machine::InFlight, window::Mark};
use crate::{
    call::{Cx, End, Guard, Operation, PutBack, Run, Slot, refuse_and_tell},
    error::Hint,
    time,
};

/// What a breaker remembers of one call.
#[derive(Debug, Default)]
pub struct Passage<S> {
    held: Held,
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
    /// Lets a call in, or says why not.
    #[inline(always)]
    fn admit(&self, cx: &mut Cx<'_, '_>) -> Result<Held, Hint> {
        let ticket = match self.core.ticket() {
            Some(ticket) => ticket,
            None => {
                let mut now = cx.known_now();
                let admitted = self.core.admit(|| *now.get_or_insert_with(time::now));
                cx.learn(now);
                admitted?
            }
        };
        Ok(Held::Ticket { ticket, started: self.core.slow_after().map(|_| cx.now()) })
    }

    /// Settles a call that came to its end.
    #[inline(always)]
    fn settle(&self, held: &mut Held, class: Class, cx: &mut Cx<'_, '_>) {
        if let (Held::Ticket { ticket, started: None }, Class::Success) = (&*held, class) {
            if self.core.counts(*ticket, || cx.now()) {
                *held = Held::Nothing;
                return;
            }
        }
        self.settle_held(mem::take(held), class, cx.known_now());
    }

    /// Settles what is held.
    #[inline(never)]
    fn settle_held(&self, held: Held, class: Class, known: Option<Instant>) {
        let now = || known.unwrap_or_else(time::now);
        match held {
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
    #[cold]
    #[inline(never)]
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
    type Notes = Passage<I::Notes>;
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
        if let Held::Nothing = notes.held {
            match self.admit(cx) {
                Ok(held) => notes.held = held,
                Err(after) => return refuse_and_tell(out, self.core.id(), self.core.refusal(after)),
            }
        }
        if inner.poll(&mut notes.inner, pinned, op, cx, out).is_pending() {
            if let Held::Ticket { started: Some(_), .. } = notes.held {
                let (mut aside, mut copy) = (None, cx.copy());
                self.look_at_the_clock(PutBack::from(&mut notes.held, &mut aside).get(), &mut copy);
                cx.facts = copy.facts;
            }
            return Poll::Pending;
        }
        let class = match out.get() {
            Some(Ok(result)) => self.classify.classify(result),
            Some(Err(refused)) => class_of_refusal(refused),
            None => Class::Ignored,
        };
        self.settle(&mut notes.held, class, cx);
        Poll::Ready(())
    }

    fn end<O>(&self, inner: &I, notes: Self::Notes, pinned: Pin<&mut I::Pinned>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        // What the operation holds first; its own drop may panic, and the ticket is settled all the same.
        let _settled = SettleOnDrop { breaker: self, held: notes.held, how };
        inner.end(notes.inner, pinned, op, how);
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
        self.breaker.settle_held(mem::take(&mut self.held), class, None);
    }
}
