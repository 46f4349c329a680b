//! What a finished attempt is shown to.

use std::{
    marker::PhantomData,
    time::{Duration, Instant},
};

use super::machine::Verdict;
use crate::{
    error::{Kind, Refused},
    time,
};

/// A finished attempt, as a predicate sees it.
#[derive(Debug)]
pub struct Failure<'a, T, E> {
    number: u32,
    started: Option<Instant>,
    outcome: Result<&'a Result<T, E>, &'a Refused>,
}

impl<'a, T, E> Failure<'a, T, E> {
    pub(super) fn new(
        number: u32,
        started: Option<Instant>,
        outcome: Result<&'a Result<T, E>, &'a Refused>,
    ) -> Self {
        Failure { number, started, outcome }
    }

    /// The number of the attempt, from 1.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The time since the first attempt began. Reads the clock.
    pub fn elapsed(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| time::now().saturating_duration_since(started))
    }

    /// What came of it: the operation's own result, or the refusal of a policy inside.
    pub fn outcome(&self) -> Result<&'a Result<T, E>, &'a Refused> {
        self.outcome
    }

    /// The operation's value, if it returned one.
    pub fn value(&self) -> Option<&'a T> {
        self.outcome.ok()?.as_ref().ok()
    }

    /// The operation's error, if it returned one.
    pub fn error(&self) -> Option<&'a E> {
        self.outcome.ok()?.as_ref().err()
    }

    /// The refusal, if a policy inside ended the attempt.
    pub fn refused(&self) -> Option<&'a Refused> {
        self.outcome.err()
    }
}

/// Judges finished attempts: `()` by the default rule, [`When`] by a closure.
pub trait Judge<T, E> {
    /// Whether it may ask for the elapsed time, so that the clock has to be read when a call begins.
    const ASKS_FOR_TIME: bool;

    /// What the attempt means for the next one.
    fn judge(&self, attempt: &Failure<'_, T, E>) -> Verdict;
}

impl<T, E> Judge<T, E> for () {
    const ASKS_FOR_TIME: bool = false;

    #[inline]
    fn judge(&self, attempt: &Failure<'_, T, E>) -> Verdict {
        match attempt.outcome() {
            Ok(Ok(_)) => Verdict::Stop,
            // It answered that it failed.
            Ok(Err(_)) => Verdict::Again,
            Err(refused) if unanswered(refused) => Verdict::Unknown,
            Err(refused) => match refused.retry_after() {
                Some(wait) => Verdict::After(wait),
                None => Verdict::Again,
            },
        }
    }
}

/// Whether the refusal took the attempt from an operation that had begun.
pub(super) fn unanswered(refused: &Refused) -> bool {
    refused.was_started()
}

/// Whether the refusal is an outcome of the operation rather than a policy's own decision: its time ran out.
pub(super) fn is_outcome(refused: &Refused) -> bool {
    refused.kind() == Kind::TimedOut && refused.was_started()
}

/// A closure that judges; see [`Config::when`](super::Config::when).
pub struct When<F, T, E> {
    judge: F,
    outcome: PhantomData<fn(&T, &E)>,
}

impl<F, T, E> When<F, T, E> {
    pub(super) fn new(judge: F) -> Self {
        When { judge, outcome: PhantomData }
    }
}

impl<F: Clone, T, E> Clone for When<F, T, E> {
    fn clone(&self) -> Self {
        When::new(self.judge.clone())
    }
}

impl<F, T, E> std::fmt::Debug for When<F, T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("When")
    }
}

impl<F, V, T, E> Judge<T, E> for When<F, T, E>
where
    F: Fn(&Failure<'_, T, E>) -> V,
    V: Into<Verdict>,
{
    const ASKS_FOR_TIME: bool = true;

    #[inline]
    fn judge(&self, attempt: &Failure<'_, T, E>) -> Verdict {
        (self.judge)(attempt).into()
    }
}
