//! What a retry can be told.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    Failure, Retry,
    budget::{Budget, BudgetConfig},
    judge::When,
    machine::{Rules, Verdict},
};
use crate::{
    backoff::{Jitter, Schedule},
    error::{ConfigError, Name},
    event::{Identity, Observer},
    repeat::{Cloning, CopyWith},
};

/// Settings of a [`Retry`], made by its constructors.
///
/// `W` judges the attempts ([`when`](Config::when)), `C` copies the requests of the tower form
/// ([`clone_request`](Config::clone_request)).
///
/// | setting | default | allowed |
/// |---|---|---|
/// | [`max_attempts`](Config::max_attempts) | 3; for a sequence one more than its waits | from 1 |
/// | [`factor`](Config::factor) | 2 | finite, from 1 |
/// | [`cap`](Config::cap) | 5 s, or the longest wait given if that is longer | from the longest wait given |
/// | [`jitter`](Config::jitter) | full | |
/// | [`total_time`](Config::total_time) | none | above zero |
/// | [`idempotent`](Config::idempotent) | no | |
/// | [`repeat_refusals`](Config::repeat_refusals) | no | |
/// | [`hint_window`](Config::hint_window) | 5 s | |
/// | [`throttle_base`](Config::throttle_base) | 1 s | |
/// | [`budget`](Config::budget) | one of its own | see [`BudgetConfig`] |
/// | [`seed`](Config::seed) | the operating system's | |
#[derive(Clone)]
#[must_use = "settings do nothing until they are built"]
pub struct Config<W = (), C = Cloning> {
    pub(super) plain: Plain,
    pub(super) judge: W,
    pub(super) copier: C,
    pub(crate) id: Identity,
}

/// The settings that are neither generic nor about identity.
#[derive(Debug, Clone)]
pub(super) struct Plain {
    pub(super) schedule: Schedule,
    pub(super) max_attempts: Option<u32>,
    pub(super) total_time: Option<Duration>,
    pub(super) idempotent: bool,
    pub(super) repeat_refusals: bool,
    pub(super) hint_window: Duration,
    pub(super) throttle_base: Duration,
    pub(super) funding: Funding,
    pub(super) seed: Option<u64>,
}

/// Who pays for retries.
#[derive(Debug, Clone)]
pub(super) enum Funding {
    Own(BudgetConfig),
    Shared(Budget),
    Unlimited,
}

/// Three attempts, exponential from 50 ms.
impl Default for Config {
    fn default() -> Self {
        Config::new(Schedule::exponential(Duration::from_millis(50)))
    }
}

impl Config {
    pub(super) fn new(schedule: Schedule) -> Self {
        Config {
            plain: Plain {
                schedule,
                max_attempts: None,
                total_time: None,
                idempotent: false,
                repeat_refusals: false,
                hint_window: Duration::from_secs(5),
                throttle_base: Duration::from_secs(1),
                funding: Funding::Own(BudgetConfig::default()),
                seed: None,
            },
            judge: (),
            copier: Cloning,
            id: Identity::new("retry"),
        }
    }
}

impl<C> Config<(), C> {
    /// Judges each finished attempt, a successful one included, by `predicate`; a `bool` will do.
    ///
    /// Without it every `Err` is repeated and every `Ok` is the answer. Refusals of this crate's policies are
    /// shown to it only where they can be repeated at all.
    pub fn when<F, V, T, E>(self, predicate: F) -> Config<When<F, T, E>, C>
    where
        F: Fn(&Failure<'_, T, E>) -> V,
        V: Into<Verdict>,
    {
        Config { plain: self.plain, judge: When::new(predicate), copier: self.copier, id: self.id }
    }
}

impl<W> Config<W, Cloning> {
    /// Copies the requests of the tower form by `copy` instead of `Clone`. A request for which it returns `None` is
    /// sent once.
    pub fn clone_request<F, R>(self, copy: F) -> Config<W, CopyWith<F, R>>
    where
        F: Fn(&R) -> Option<R>,
    {
        Config { plain: self.plain, judge: self.judge, copier: CopyWith::new(copy), id: self.id }
    }
}

impl<W, C> Config<W, C> {
    /// The most attempts of one call, the first included.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.plain.max_attempts = Some(attempts);
        self
    }

    /// How much longer each wait of an exponential backoff is.
    pub fn factor(mut self, factor: f64) -> Self {
        self.plain.schedule = self.plain.schedule.factor(factor);
        self
    }

    /// The longest wait between attempts. Jitter stays below it; a server's hint may exceed it.
    pub fn cap(mut self, cap: Duration) -> Self {
        self.plain.schedule = self.plain.schedule.cap(cap);
        self
    }

    /// How waits are spread.
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.plain.schedule = self.plain.schedule.jitter(jitter);
        self
    }

    /// The most time for all attempts and the waits between them: no attempt begins when it is used up. It does not
    /// end an attempt; see [`Deadline`](crate::Deadline).
    pub fn total_time(mut self, limit: Duration) -> Self {
        self.plain.total_time = Some(limit);
        self
    }

    /// Declares that doing the operation twice is the same as doing it once, so that it is
    /// repeated also where its outcome is unknown: after a timeout, and where the predicate says so. A predicate is asked about
    /// timeouts too, with [`Failure::refused`] in place of [`Failure::error`], and has to say yes to them.
    pub fn idempotent(mut self) -> Self {
        self.plain.idempotent = true;
        self
    }

    /// Repeats also what the policies inside refuse.
    pub fn repeat_refusals(mut self) -> Self {
        self.plain.repeat_refusals = true;
        self
    }

    /// How much later than the backoff a server may ask for. Zero ignores its hints.
    pub fn hint_window(mut self, window: Duration) -> Self {
        self.plain.hint_window = window;
        self
    }

    /// What no wait counts as less than after [`Verdict::Throttled`].
    pub fn throttle_base(mut self, base: Duration) -> Self {
        self.plain.throttle_base = base;
        self
    }

    /// Pays for retries from `budget`, shared with whoever else was given it.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.plain.funding = Funding::Shared(budget);
        self
    }

    /// Retries without a budget: in a total failure each call costs [`max_attempts`](Self::max_attempts) calls.
    pub fn no_budget(mut self) -> Self {
        self.plain.funding = Funding::Unlimited;
        self
    }

    /// Draws the same jitter each time, for tests.
    pub fn seed(mut self, seed: u64) -> Self {
        self.plain.seed = Some(seed);
        self
    }

    /// The name in events, metrics and errors.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.id.set_name(name.into());
        self
    }

    /// Adds a listener for [`Event::Retried`](crate::Event::Retried) and [`Event::GaveUp`](crate::Event::GaveUp).
    pub fn observe(mut self, observer: impl Observer + 'static) -> Self {
        self.id.observe(Arc::new(observer));
        self
    }

    /// The policy.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] when a setting is outside its range; see the table above.
    pub fn build(self) -> Result<Retry<W, C>, ConfigError> {
        self.plain.check()?;
        let budget = match &self.plain.funding {
            Funding::Own(config) => Some(config.build()?),
            Funding::Shared(budget) => Some(budget.clone()),
            Funding::Unlimited => None,
        };
        Ok(Retry::new(self, budget))
    }
}

impl Plain {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.schedule.check()?;
        ConfigError::unless(
            self.max_attempts != Some(0),
            "retry.max_attempts",
            0,
            "a number from 1, the first attempt included",
        )?;
        ConfigError::unless(
            self.total_time != Some(Duration::ZERO),
            "retry.total_time",
            Duration::ZERO,
            "a duration above zero",
        )?;
        match &self.funding {
            Funding::Own(config) => config.check(),
            Funding::Shared(_) | Funding::Unlimited => Ok(()),
        }
    }

    pub(super) fn rules(&self) -> Rules {
        let attempts = self
            .max_attempts
            .unwrap_or_else(|| self.schedule.len().map_or(3, |waits| waits.saturating_add(1)));
        Rules {
            schedule: self.schedule.clone(),
            throttle_base: self.throttle_base,
            hint_window: self.hint_window,
            attempts,
            total_time: self.total_time,
            idempotent: self.idempotent,
        }
    }
}

impl<W, C> fmt::Debug for Config<W, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("name", self.id.name()).field("settings", &self.plain).finish()
    }
}
