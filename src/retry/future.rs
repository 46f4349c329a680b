//! Waits for attempts and between them; decides nothing.

use std::{
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use super::{
    Retry, Shared,
    judge::{Failure, Judge, is_outcome, unanswered},
    machine::{Decision, Ended, Verdict},
};
use crate::{
    call::{Cx, End, Guard, Operation, PutBack, Run, Slot, refuse},
    error::{Kind, Refused},
    event::{Event, GaveUp},
    time,
};

/// How many attempts one poll may start when there is nothing to wait for between them; then other tasks have a turn
/// and the clock is read anew.
const ATTEMPTS_PER_POLL: u32 = 16;

/// What a retry remembers of one call.
#[derive(Debug, Default)]
pub struct State<S> {
    progress: Progress,
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
    type Notes = State<I::Notes>;
    type Pinned = I::Pinned;

    #[inline(always)]
    fn poll<O>(
        &self,
        inner: &I,
        notes: &mut Self::Notes,
        mut pinned: Pin<&mut I::Pinned>,
        mut op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let mut failed = None;
        if notes.progress.until.is_none() {
            if notes.progress.attempt == 0 {
                self.0.begin::<T, E>(&mut notes.progress, cx);
            }
            ready!(self.attempt(inner, notes, pinned.as_mut(), op.as_mut(), cx, out));
            failed = self.0.judge(&notes.progress, out);
            if failed.is_none() {
                notes.progress = Progress::default();
                return Poll::Ready(());
            }
        }
        let (mut notes_aside, mut out_aside, mut copy) = (None, None, cx.copy());
        let polled = self.go_on(
            inner,
            PutBack::from(notes, &mut notes_aside).get(),
            failed,
            (pinned, op),
            &mut copy,
            PutBack::from(out, &mut out_aside).get(),
        );
        cx.facts = copy.facts;
        polled
    }

    fn end<O>(&self, inner: &I, notes: Self::Notes, pinned: Pin<&mut I::Pinned>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        inner.end(notes.inner, pinned, op, how);
    }
}

impl<W, C> Retry<W, C> {
    /// Moves the attempt in progress on, or begins it.
    #[inline(always)]
    fn attempt<R, T, E, I, O>(
        &self,
        inner: &I,
        notes: &mut State<I::Notes>,
        pinned: Pin<&mut I::Pinned>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        I: Run<R, T, E>,
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let progress = &mut notes.progress;
        // What the inner list is told of this attempt is put back afterwards, for the policies around.
        let (attempt, last, started) = (cx.facts.attempt, cx.facts.last, cx.facts.started);
        cx.facts.attempt = progress.attempt;
        cx.facts.last = last && progress.attempt >= self.0.last_attempt;
        cx.facts.started = progress.begun;
        let polled = inner.poll(&mut notes.inner, pinned, op, cx, out);
        progress.begun = cx.facts.started;
        (cx.facts.attempt, cx.facts.last, cx.facts.started) = (attempt, last, started | cx.facts.started);
        polled
    }

    /// Follows an attempt that was not a success, if it was just made, and the backoff after it by others.
    #[cold]
    #[inline(never)]
    fn go_on<R, T, E, I, O>(
        &self,
        inner: &I,
        notes: &mut State<I::Notes>,
        failed: Option<Verdict>,
        (mut pinned, mut op): (Pin<&mut I::Pinned>, Pin<&mut O>),
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        I: Run<R, T, E>,
        W: Judge<T, E>,
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let shared = &*self.0;
        if let Some(verdict) = failed {
            if shared.follow(&mut notes.progress, verdict, op.can_repeat(), cx, out) {
                return Poll::Ready(());
            }
        }
        for _ in 0..ATTEMPTS_PER_POLL {
            let progress = &mut notes.progress;
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
            ready!(self.attempt(inner, notes, pinned.as_mut(), op.as_mut(), cx, out));
            let progress = &mut notes.progress;
            let Some(verdict) = shared.judge(progress, out) else {
                *progress = Progress::default();
                return Poll::Ready(());
            };
            if shared.follow(progress, verdict, op.can_repeat(), cx, out) {
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

    /// What the attempt means for the next one; nothing, and a deposit, if it was a success.
    #[inline]
    fn judge<T, E>(&self, progress: &Progress, out: &Slot<T, E>) -> Option<Verdict>
    where
        W: Judge<T, E>,
    {
        let outcome = out.get()?;
        let verdict = self.verdict(progress, outcome);
        if let (Verdict::Stop, Ok(Ok(_))) = (verdict, outcome) {
            self.deposit();
            return None;
        }
        Some(verdict)
    }

    /// Whether what was not a success is the answer of the call. If not, it is gone, and another attempt follows.
    #[cold]
    #[inline(never)]
    fn follow<T, E>(
        &self,
        progress: &mut Progress,
        verdict: Verdict,
        repeatable: bool,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> bool {
        let next = match (verdict, out.get()) {
            (Verdict::Stop, _) | (_, None) => None,
            (_, Some(outcome)) => {
                let unanswered = outcome.is_err_and(unanswered);
                self.settle(progress, verdict, repeatable, unanswered, cx)
            }
        };
        if let Some((until, delay)) = next {
            // What failed is dropped before the wait, and before anybody is told.
            out.clear();
            self.tell_of_retry(progress.attempt, delay);
            progress.until = Some(until);
            progress.begun = false;
            return false;
        }
        *progress = Progress::default();
        if let Some(refused) = out.refused_mut() {
            // An earlier attempt may have begun what this refusal promises not to have.
            refused.add_started(cx.facts.started);
        }
        true
    }

    #[inline]
    fn verdict<T, E>(&self, progress: &Progress, outcome: Result<&Result<T, E>, &Refused>) -> Verdict
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
    fn settle(
        &self,
        progress: &mut Progress,
        verdict: Verdict,
        repeatable: bool,
        unanswered: bool,
        cx: &mut Cx<'_, '_>,
    ) -> Option<(Instant, Duration)> {
        let now = cx.now();
        let since = |started| now.saturating_duration_since(started);
        let attempt = progress.attempt;
        let ended = Ended {
            attempt,
            verdict,
            unanswered,
            repeatable,
            elapsed: progress.started.map_or(Duration::ZERO, since),
            left: cx.facts.deadline.map(|at| at.saturating_duration_since(now)),
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
        let deadline = cx.facts.deadline?;
        if cx.now() < deadline {
            return None;
        }
        self.give_up(attempts, GaveUp::Deadline);
        let refused = Refused::ended(Kind::DeadlineExceeded, self.id.name(), cx.facts.started);
        Some(self.id.refuse(refused))
    }
}
