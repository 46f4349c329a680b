//! Whether to start another attempt, and when: a pure function of what is known when one has failed.

use std::time::Duration;

use crate::{backoff::Schedule, event::GaveUp};

/// What a finished attempt means for the next one.
///
/// `true` converts into [`Again`](Verdict::Again), `false` into [`Stop`](Verdict::Stop).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// This is the answer: a success, or a failure that would only come again.
    Stop,
    /// It failed for the moment, and repeating it does no harm: the operation answered that it did not do it.
    Again,
    /// It may have been done, so it is repeated only if the operation is declared
    /// [idempotent](super::Config::idempotent).
    Unknown,
    /// The server said when to come back.
    After(Duration),
    /// The server is overloaded, and perhaps said when to come back. No wait counts as less than
    /// [`throttle_base`](super::Config::throttle_base) then.
    Throttled(Option<Duration>),
}

impl From<bool> for Verdict {
    fn from(again: bool) -> Self {
        if again { Verdict::Again } else { Verdict::Stop }
    }
}

/// The settings that decide.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) schedule: Schedule,
    pub(crate) throttle_base: Duration,
    pub(crate) hint_window: Duration,
    /// All attempts of a call, the first included.
    pub(crate) attempts: u32,
    pub(crate) total_time: Option<Duration>,
    pub(crate) idempotent: bool,
}

/// What is known when an attempt has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    /// Its number, from 1.
    pub(crate) attempt: u32,
    pub(crate) verdict: Verdict,
    /// Whether it ended without an answer, so that it may have been done whatever the verdict.
    pub(crate) unanswered: bool,
    /// Whether the operation can be started again.
    pub(crate) repeatable: bool,
    /// Since the first attempt began; only looked at if there is a total time.
    pub(crate) elapsed: Duration,
    /// Until the deadline of the call, if there is one.
    pub(crate) left: Option<Duration>,
    /// One random number for the backoff, one for the hint.
    pub(crate) random: [u64; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing to repeat.
    Done,
    /// It should be repeated but must not be.
    GiveUp(GaveUp),
    /// The next attempt may begin after this delay, if the budget pays for it.
    After(Duration),
}

impl Rules {
    /// The number of the attempt after which there is never another.
    pub(crate) fn last_attempt(&self) -> u32 {
        match self.schedule.len() {
            Some(waits) => self.attempts.min(waits.saturating_add(1)),
            None => self.attempts,
        }
    }

    /// Decides. `previous` is what the schedule keeps between the failures of one call.
    pub(crate) fn decide(&self, ended: Ended, previous: &mut u64) -> Decision {
        let (floor, hint, unknown) = match ended.verdict {
            Verdict::Stop => return Decision::Done,
            Verdict::Again => (Duration::ZERO, None, false),
            Verdict::Unknown => (Duration::ZERO, None, true),
            Verdict::After(hint) => (Duration::ZERO, Some(hint), false),
            Verdict::Throttled(hint) => (self.throttle_base, hint, false),
        };
        if (unknown || ended.unanswered) && !self.idempotent {
            return Decision::GiveUp(GaveUp::NotIdempotent);
        }
        if ended.attempt >= self.attempts {
            return Decision::GiveUp(GaveUp::Attempts);
        }
        if !ended.repeatable {
            return Decision::GiveUp(GaveUp::NotRepeatable);
        }
        let step = ended.attempt - 1;
        let [random, random_for_hint] = ended.random;
        let Some(backoff) = self.schedule.delay(step, floor, previous, random) else {
            return Decision::GiveUp(GaveUp::Backoff);
        };
        let delay = match hint {
            Some(hint) => self.schedule.honour(hint, backoff, self.hint_window, random_for_hint),
            None => backoff,
        };
        let delay = Duration::from_nanos(delay);
        // At equality there is no time left to do anything in.
        if self.total_time.is_some_and(|total| ended.elapsed.saturating_add(delay) >= total) {
            return Decision::GiveUp(GaveUp::TotalTime);
        }
        if ended.left.is_some_and(|left| delay >= left) {
            return Decision::GiveUp(GaveUp::Deadline);
        }
        Decision::After(delay)
    }
}

#[cfg(all(test, not(mainstay_loom)))]
#[path = "machine_tests.rs"]
mod tests;
