//! Failures in a row, as long as they are close together: the rule that a breaker opens by, beside the one about shares.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Complete when `most` calls have failed within a while and none has succeeded between them.
#[derive(Debug)]
pub(crate) struct Streak {
    most: usize,
    within: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    round: Round,
    failures: VecDeque<Instant>,
}

/// Between two completions. A result counts in the round in which its call began: what was under way when the breaker opened says
/// nothing about the time after it has closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Round(u64);

impl Streak {
    pub(crate) fn new(most: usize, within: Duration) -> Self {
        Streak { most, within, state: Mutex::default() }
    }

    /// To be asked when a call begins.
    pub(crate) fn round(&self) -> Round {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).round
    }

    pub(crate) fn succeeded(&self, round: Round) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.round == round {
            state.failures.clear();
        }
    }

    /// Whether that made it complete; then the next one begins.
    pub(crate) fn failed(&self, round: Round) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.round != round {
            return false;
        }
        let now = Instant::now();
        state.failures.push_back(now);
        while state.failures.front().is_some_and(|&at| now - at > self.within) {
            state.failures.pop_front();
        }
        let complete = state.failures.len() >= self.most;
        if complete {
            *state = State { round: Round(round.0 + 1), failures: VecDeque::new() };
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn opens(failures: usize, apart: Duration) -> bool {
        let streak = Streak::new(5, Duration::from_secs(60));
        for _ in 1..failures {
            if streak.failed(streak.round()) {
                return true;
            }
            tokio::time::advance(apart).await;
        }
        streak.failed(streak.round())
    }

    #[tokio::test(start_paused = true)]
    async fn five_within_a_minute_are_enough_and_five_over_61_seconds_are_not() {
        assert!(opens(5, Duration::from_secs(15)).await, "exactly 60 s");
        assert!(!opens(5, Duration::from_millis(15_250)).await, "61 s");
        assert!(!opens(100, Duration::from_millis(15_250)).await, "however long it goes on");
        assert!(!opens(4, Duration::ZERO).await);
        assert!(opens(5, Duration::ZERO).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_ends_it_unless_it_is_late() {
        let streak = Streak::new(2, Duration::from_secs(60));
        let early = streak.round();
        assert!(!streak.failed(early));
        streak.succeeded(early);
        assert!(!streak.failed(early));
        assert!(streak.failed(early));
        assert!(!streak.failed(streak.round()));
        streak.succeeded(early);
        assert!(!streak.failed(early), "as late as that success");
        assert!(streak.failed(streak.round()));
    }
}
