//! Waits for attempts and between them; decides nothing.

use std::{
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    task::Poll,
    time::{Duration, Instant},
};

use pin_project::pin_project;

use super::{
    Retry, Shared,
    judge::{Failure, Judge, is_outcome, unanswered},
    machine::{Decision, Ended, Verdict},
};
use crate::{
    call::{Cx, End, Guard, Operation, Outcome, Run},
    error::{Kind, Refused},
    event::{Event, GaveUp},
    time,
};

/// How many attempts one poll may start when there is nothing to wait for between them; then other tasks have a turn
/// and the clock is read anew.
const ATTEMPTS_PER_POLL: u32 = 16;

/// What a retry remembers of one call.
#[pin_project(project = Fields)]
#[derive(Debug, Default)]
pub struct State<S> {
    /// The number of the attempt in progress, or of the one that the backoff follows; 0 before the first.
    attempt: u32,
    /// Whether this attempt has started the operation.
    begun: bool,
    /// When the first attempt began, if anybody needs to know.
    started: Option<Instant>,
    /// When the backoff ends. While there is one, nothing of the inner list is held.
    until: Option<Instant>,
    /// Kept for the schedule.
    previous: u64,
    #[pin]
    inner: S,
}

impl<S> Fields<'_, S> {
    /// As new, but for the inner list.
    #[inline]
    fn clear(&mut self) {
        *self.attempt = 0;
        *self.begun = false;
        *self.started = None;
        *self.until = None;
        *self.previous = 0;
    }

    /// Ends the call with `outcome`.
    #[cold]
    fn answer<T, E>(&mut self, mut outcome: Outcome<T, E>, cx: &Cx<'_, '_>) -> Poll<Outcome<T, E>> {
        self.clear();
        if let Err(refused) = &mut outcome {
            // An earlier attempt may have begun what the refusal of a later one promises not to have.
            refused.mark_started(cx.started);
        }
        Poll::Ready(outcome)
    }
}

/// What to do after an attempt has ended.
enum Next<T, E> {
    Answer(Outcome<T, E>),
    At(Instant),
}

impl<R, T, E, I, W, C> Guard<R, T, E, I> for Retry<W, C>
where
    I: Run<R, T, E>,
    W: Judge<T, E>,
{
    type State = State<I::State>;

    #[inline]
    fn poll<O>(
        &self,
        inner: &I,
        state: Pin<&mut Self::State>,
        mut op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
    ) -> Poll<Outcome<T, E>>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let shared = &*self.0;
        let mut this = state.project();
        if *this.attempt == 0 {
            *this.attempt = 1;
            if W::ASKS_FOR_TIME || shared.rules.total_time.is_some() {
                *this.started = Some(cx.now());
            }
        }
        let mut begun_here = 0;
        loop {
            if let Some(until) = *this.until {
                match shared.next(&mut this, until, cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(refused)) => return this.answer(Err(refused), cx),
                    Poll::Ready(None) => {}
                }
                if begun_here == ATTEMPTS_PER_POLL {
                    // Marked as an attempt that is about to begin: there is no backoff any more.
                    cx.task().waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            begun_here += 1;

            // What the inner list is told of this attempt is put back afterwards, for the policies around.
            let (attempt, last, started) = (cx.attempt, cx.last, cx.started);
            cx.attempt = *this.attempt;
            cx.last = last && *this.attempt >= shared.last_attempt;
            cx.started = *this.begun;
            let polled = inner.poll(this.inner.as_mut(), op.as_mut(), cx);
            *this.begun = cx.started;
            (cx.attempt, cx.last, cx.started) = (attempt, last, started | cx.started);

            let outcome = match polled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(outcome) => outcome,
            };
            let verdict = shared.judge(*this.attempt, *this.started, &outcome);
            if verdict == Verdict::Stop {
                match outcome {
                    Ok(result) => {
                        if let (Ok(_), Some(budget)) = (&result, &shared.budget) {
                            budget.deposit();
                        }
                        this.clear();
                        return Poll::Ready(Ok(result));
                    }
                    refused => return this.answer(refused, cx),
                }
            }
            let ended = (*this.attempt, *this.started, verdict, op.can_repeat());
            match shared.settle(outcome, ended, this.previous, cx) {
                Next::Answer(outcome) => return this.answer(outcome, cx),
                Next::At(until) => {
                    *this.until = Some(until);
                    *this.begun = false;
                }
            }
        }
    }

    fn end<O>(&self, inner: &I, state: Pin<&mut Self::State>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let mut this = state.project();
        this.clear();
        inner.end(this.inner, op, how);
    }
}

impl<W, C> Shared<W, C> {
    #[inline]
    fn judge<T, E>(&self, attempt: u32, started: Option<Instant>, outcome: &Outcome<T, E>) -> Verdict
    where
        W: Judge<T, E>,
    {
        if let Err(refused) = outcome {
            if !self.repeat_refusals && !is_outcome(refused) {
                return Verdict::Stop;
            }
        }
        self.judge.judge(&Failure::new(attempt, started, outcome))
    }

    /// Lets the machine decide, pays, counts and tells.
    #[cold]
    fn settle<T, E>(
        &self,
        outcome: Outcome<T, E>,
        (attempt, started, verdict, repeatable): (u32, Option<Instant>, Verdict, bool),
        previous: &mut u64,
        cx: &mut Cx<'_, '_>,
    ) -> Next<T, E> {
        let now = cx.now();
        let since = |started| now.saturating_duration_since(started);
        let ended = Ended {
            attempt,
            verdict,
            unanswered: outcome.as_ref().is_err_and(unanswered),
            repeatable,
            elapsed: started.map_or(Duration::ZERO, since),
            left: cx.deadline.map(|at| at.saturating_duration_since(now)),
            random: [self.chance.next(), self.chance.next()],
        };
        let mut decision = self.rules.decide(ended, previous);
        if let (Decision::After(_), Some(budget)) = (decision, &self.budget) {
            if !budget.withdraw(now, attempt == 1) {
                decision = Decision::GiveUp(GaveUp::Budget);
            }
        }
        self.counters.failures.fetch_add(1, Relaxed);
        match decision {
            Decision::Done => Next::Answer(outcome),
            Decision::GiveUp(why) => {
                self.give_up(attempt, why);
                Next::Answer(outcome)
            }
            Decision::After(delay) => {
                // What failed is dropped before the wait, and before anybody is told.
                drop(outcome);
                self.counters.retries.fetch_add(1, Relaxed);
                self.id.emit(&Event::Retried { name: self.id.name(), attempt, delay });
                Next::At(time::later(now, delay))
            }
        }
    }

    fn give_up(&self, attempts: u32, why: GaveUp) {
        self.counters.gave_up(why);
        self.id.emit(&Event::GaveUp { name: self.id.name(), attempts, why });
    }

    /// From the backoff that ends at `until` to the next attempt, or to a refusal.
    #[cold]
    fn next<S>(
        &self,
        state: &mut Fields<'_, S>,
        until: Instant,
        cx: &mut Cx<'_, '_>,
    ) -> Poll<Option<Refused>> {
        if !cx.reached(until) {
            return Poll::Pending;
        }
        *state.until = None;
        let refused = self.too_late(*state.attempt, cx);
        if refused.is_none() {
            *state.attempt += 1;
        }
        Poll::Ready(refused)
    }

    /// A refusal if the deadline passed during a backoff that was to end before it, because the wake-up came late.
    fn too_late(&self, attempts: u32, cx: &mut Cx<'_, '_>) -> Option<Refused> {
        let deadline = cx.deadline?;
        if cx.now() < deadline {
            return None;
        }
        self.give_up(attempts, GaveUp::Deadline);
        let refused = Refused::ended(Kind::DeadlineExceeded, self.id.name(), cx.started);
        Some(self.id.refuse(refused))
    }
}
