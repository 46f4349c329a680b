//! Waits for attempts and between them; decides nothing.

use std::{
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use pin_project::pin_project;

use super::{
    Retry, Shared,
    judge::{Failure, Judge, is_outcome, unanswered},
    machine::{Decision, Ended, Verdict},
};
use crate::{
    call::{Cx, End, Guard, Operation, Outcome, Run, Slot, refuse},
    error::{Kind, Refused},
    event::{Event, GaveUp},
    time,
};

/// How many attempts one poll may start when there is nothing to wait for between them; then other tasks have a turn
/// and the clock is read anew.
const ATTEMPTS_PER_POLL: u32 = 16;

/// What a retry remembers of one call.
#[pin_project]
#[derive(Debug, Default)]
pub struct State<S> {
    progress: Progress,
    #[pin]
    inner: S,
}

#[derive(Debug, Default)]
struct Progress {
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
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let mut this = state.project();
        let progress = this.progress;
        if progress.until.is_none() {
            if progress.attempt == 0 {
                self.0.begin::<T, E>(progress, cx);
            }
            ready!(self.attempt(inner, progress, this.inner.as_mut(), op.as_mut(), cx, out));
            if self.0.judged(progress, op.can_repeat(), cx, out) {
                return Poll::Ready(());
            }
        }
        self.back_off(inner, progress, this.inner, op, cx, out)
    }

    fn end<O>(&self, inner: &I, state: Pin<&mut Self::State>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let this = state.project();
        *this.progress = Progress::default();
        inner.end(this.inner, op, how);
    }
}

impl<W, C> Retry<W, C> {
    /// Moves the attempt in progress on, or begins it.
    #[inline]
    fn attempt<R, T, E, I, O>(
        &self,
        inner: &I,
        progress: &mut Progress,
        state: Pin<&mut I::State>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        I: Run<R, T, E>,
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        // What the inner list is told of this attempt is put back afterwards, for the policies around.
        let (attempt, last, started) = (cx.attempt, cx.last, cx.started);
        cx.attempt = progress.attempt;
        cx.last = last && progress.attempt >= self.0.last_attempt;
        cx.started = progress.begun;
        let polled = inner.poll(state, op, cx, out);
        progress.begun = cx.started;
        (cx.attempt, cx.last, cx.started) = (attempt, last, started | cx.started);
        polled
    }

    /// Waits for the backoff to end and makes the attempts after it.
    #[cold]
    #[inline(never)]
    fn back_off<R, T, E, I, O>(
        &self,
        inner: &I,
        progress: &mut Progress,
        mut state: Pin<&mut I::State>,
        mut op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        I: Run<R, T, E>,
        W: Judge<T, E>,
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let shared = &*self.0;
        for _ in 0..ATTEMPTS_PER_POLL {
            if let Some(until) = progress.until {
                if !cx.reached(until) {
                    return Poll::Pending;
                }
                if let Some(refused) = shared.too_late(progress.attempt, cx) {
                    *progress = Progress::default();
                    return refuse(out, refused);
                }
                progress.until = None;
                progress.attempt += 1;
            }
            ready!(self.attempt(inner, progress, state.as_mut(), op.as_mut(), cx, out));
            if shared.judged(progress, op.can_repeat(), cx, out) {
                return Poll::Ready(());
            }
        }
        cx.task().waker().wake_by_ref();
        Poll::Pending
    }
}

impl<W, C> Shared<W, C> {
    #[inline]
    fn begin<T, E>(&self, progress: &mut Progress, cx: &mut Cx<'_, '_>)
    where
        W: Judge<T, E>,
    {
        progress.attempt = 1;
        if W::ASKS_FOR_TIME || self.rules.total_time.is_some() {
            progress.started = Some(cx.now());
        }
    }

    /// Whether the outcome of the attempt is the answer of the call. If not, it is gone, and another attempt follows.
    #[inline]
    fn judged<T, E>(
        &self,
        progress: &mut Progress,
        repeatable: bool,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> bool
    where
        W: Judge<T, E>,
    {
        let Some(outcome) = out else { return true };
        let verdict = self.judge(progress, outcome);
        if let (Verdict::Stop, Ok(Ok(_))) = (verdict, &*outcome) {
            self.deposit();
            *progress = Progress::default();
            return true;
        }
        self.follow(progress, verdict, repeatable, cx, out)
    }

    /// What [`judged`](Self::judged) does with what is not a success.
    #[cold]
    fn follow<T, E>(
        &self,
        progress: &mut Progress,
        verdict: Verdict,
        repeatable: bool,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> bool {
        let next = match (verdict, &*out) {
            (Verdict::Stop, _) | (_, None) => None,
            (_, Some(outcome)) => self.settle(progress, verdict, repeatable, outcome, cx),
        };
        if let Some((until, delay)) = next {
            // What failed is dropped before the wait, and before anybody is told.
            *out = None;
            self.tell_of_retry(progress.attempt, delay);
            progress.until = Some(until);
            progress.begun = false;
            return false;
        }
        *progress = Progress::default();
        if let Some(Err(refused)) = out {
            // An earlier attempt may have begun what this refusal promises not to have.
            refused.add_started(cx.started);
        }
        true
    }

    #[inline]
    fn judge<T, E>(&self, progress: &Progress, outcome: &Outcome<T, E>) -> Verdict
    where
        W: Judge<T, E>,
    {
        if let Err(refused) = outcome {
            if !self.repeat_refusals && !is_outcome(refused) {
                return Verdict::Stop;
            }
        }
        let attempt = Failure::new(progress.attempt, progress.started, outcome);
        self.judge.judge(&attempt)
    }

    #[inline]
    fn deposit(&self) {
        if let Some(budget) = &self.budget {
            budget.deposit();
        }
    }

    /// Lets the machine decide, pays and counts; when and after what delay the next attempt begins, if one does.
    #[cold]
    fn settle<T, E>(
        &self,
        progress: &mut Progress,
        verdict: Verdict,
        repeatable: bool,
        outcome: &Outcome<T, E>,
        cx: &mut Cx<'_, '_>,
    ) -> Option<(Instant, Duration)> {
        let now = cx.now();
        let since = |started| now.saturating_duration_since(started);
        let attempt = progress.attempt;
        let ended = Ended {
            attempt,
            verdict,
            unanswered: outcome.as_ref().is_err_and(unanswered),
            repeatable,
            elapsed: progress.started.map_or(Duration::ZERO, since),
            left: cx.deadline.map(|at| at.saturating_duration_since(now)),
            random: [self.chance.next(), self.chance.next()],
        };
        let mut decision = self.rules.decide(ended, &mut progress.previous);
        if let (Decision::After(_), Some(budget)) = (decision, &self.budget) {
            if !budget.withdraw(now, attempt == 1) {
                decision = Decision::GiveUp(GaveUp::Budget);
            }
        }
        self.counters.failures.fetch_add(1, Relaxed);
        match decision {
            Decision::Done => None,
            Decision::GiveUp(why) => {
                self.give_up(attempt, why);
                None
            }
            Decision::After(delay) => {
                self.counters.retries.fetch_add(1, Relaxed);
                Some((time::later(now, delay), delay))
            }
        }
    }

    #[cold]
    fn tell_of_retry(&self, attempt: u32, delay: Duration) {
        self.id.emit(&Event::Retried { name: self.id.name(), attempt, delay });
    }

    #[cold]
    fn give_up(&self, attempts: u32, why: GaveUp) {
        self.counters.gave_up(why);
        self.id.emit(&Event::GaveUp { name: self.id.name(), attempts, why });
    }

    /// A refusal if the deadline passed during a backoff that was to end before it, because the wake-up came late.
    #[cold]
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
