#![doc = include_str!("../docs/retry.md")]

mod budget;
mod config;
#[cfg(feature = "serde")]
mod file;
mod future;
mod judge;
mod machine;

pub use budget::{Budget, BudgetConfig, BudgetSnapshot};
pub use config::Config;
pub use future::State;
pub use judge::{Failure, Judge, When};
pub use machine::Verdict;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    backoff::Schedule,
    call::Sealed,
    chance::Chance,
    error::{ConfigError, Name},
    event::{GaveUp, Identity},
    registry,
    repeat::Cloning,
    stack::{IntoPolicy, Part, Role, callable},
    sync::Padded,
};
use machine::Rules;

/// Starts failed operations again; see the [module](self).
///
/// Clones share the budget and the counters.
pub struct Retry<W = (), C = Cloning>(Arc<Padded<Shared<W, C>>>);

struct Shared<W, C> {
    rules: Rules,
    /// `rules.last_attempt()`.
    last_attempt: u32,
    repeat_refusals: bool,
    judge: W,
    copier: C,
    budget: Option<Budget>,
    chance: Chance,
    counters: Counters,
    id: Identity,
}

/// Touched on the failure path only.
#[derive(Default)]
struct Counters {
    failures: AtomicU64,
    retries: AtomicU64,
    gave_up: [AtomicU64; REASONS.len()],
}

const REASONS: [GaveUp; 7] = [
    GaveUp::Attempts,
    GaveUp::Backoff,
    GaveUp::Budget,
    GaveUp::Deadline,
    GaveUp::TotalTime,
    GaveUp::NotIdempotent,
    GaveUp::NotRepeatable,
];

impl Counters {
    fn gave_up(&self, why: GaveUp) {
        for (reason, count) in REASONS.iter().zip(&self.gave_up) {
            if *reason == why {
                count.fetch_add(1, Relaxed);
            }
        }
    }
}

impl Retry {
    /// The same wait before each retry.
    pub fn constant(wait: Duration) -> Config {
        Config::new(Schedule::constant(wait))
    }

    /// A wait of `step`, then one `step` more each time.
    pub fn linear(step: Duration) -> Config {
        Config::new(Schedule::linear(step))
    }

    /// A wait of `base`, then [`factor`](Config::factor) times as long each time.
    pub fn exponential(base: Duration) -> Config {
        Config::new(Schedule::exponential(base))
    }

    /// These waits, and no attempt after the last of them has failed.
    pub fn sequence(waits: impl IntoIterator<Item = Duration>) -> Config {
        Config::new(Schedule::sequence(waits))
    }

    /// The waits that `predicate` reads from the outcome: [`Verdict::After`] waits as long as it says, however long
    /// that is, and up to a tenth longer unless the jitter is `None`; [`Verdict::Again`] repeats at once.
    pub fn from_outcome<F, V, T, E>(predicate: F) -> Config<When<F, T, E>>
    where
        F: Fn(&Failure<'_, T, E>) -> V,
        V: Into<Verdict>,
    {
        Config::new(Schedule::constant(Duration::ZERO)).hint_window(Duration::MAX).when(predicate)
    }
}

impl<W, C> Retry<W, C> {
    /// Its name.
    pub fn name(&self) -> &str {
        self.0.id.name()
    }

    fn new(config: Config<W, C>, budget: Option<Budget>) -> Self {
        let rules = config.plain.rules();
        Retry(Arc::new(Padded(Shared {
            last_attempt: rules.last_attempt(),
            rules,
            repeat_refusals: config.plain.repeat_refusals,
            judge: config.judge,
            copier: config.copier,
            budget,
            chance: Chance::new(config.plain.seed),
            counters: Counters::default(),
            id: config.id,
        })))
    }

    /// What pays for the retries, if anything does.
    pub fn budget(&self) -> Option<&Budget> {
        self.0.budget.as_ref()
    }

    /// What this retry has done since it was built. Locks the budget, and reads the clock.
    pub fn snapshot(&self) -> Snapshot {
        let counters = &self.0.counters;
        let gave_up = |why: GaveUp| {
            REASONS
                .iter()
                .zip(&counters.gave_up)
                .find(|(reason, _)| **reason == why)
                .map_or(0, |(_, count)| count.load(Relaxed))
        };
        Snapshot {
            name: self.0.id.name().clone(),
            failures: counters.failures.load(Relaxed),
            retries: counters.retries.load(Relaxed),
            gave_up: GaveUpCounts {
                attempts: gave_up(GaveUp::Attempts),
                backoff: gave_up(GaveUp::Backoff),
                budget: gave_up(GaveUp::Budget),
                deadline: gave_up(GaveUp::Deadline),
                total_time: gave_up(GaveUp::TotalTime),
                not_idempotent: gave_up(GaveUp::NotIdempotent),
                not_repeatable: gave_up(GaveUp::NotRepeatable),
            },
            budget: self.0.budget.as_ref().map(Budget::snapshot),
        }
    }

    pub(crate) fn request_copier(&self) -> &C {
        &self.0.copier
    }
}

/// What a [`Retry`] has done since it was built.
///
/// Calls that succeed at once are not in it: they touch no counter. Many of them are in
/// [`BudgetSnapshot::traffic`].
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// The name of the retry.
    pub name: Name,
    /// Attempts that were judged worth repeating.
    pub failures: u64,
    /// How many of them were.
    pub retries: u64,
    /// How many were not, and why.
    pub gave_up: GaveUpCounts,
    /// What the budget holds, if there is one.
    pub budget: Option<BudgetSnapshot>,
}

/// How often a [`Retry`] gave up, by [reason](GaveUp).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
#[allow(missing_docs)] // The names are those of `GaveUp`.
pub struct GaveUpCounts {
    pub attempts: u64,
    pub backoff: u64,
    pub budget: u64,
    pub deadline: u64,
    pub total_time: u64,
    pub not_idempotent: u64,
    pub not_repeatable: u64,
}

impl<W, C> Clone for Retry<W, C> {
    fn clone(&self) -> Self {
        Retry(self.0.clone())
    }
}

impl<W, C> fmt::Debug for Retry<W, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("name", self.0.id.name())
            .field("rules", &self.0.rules)
            .field("budget", &self.0.budget)
            .finish_non_exhaustive()
    }
}

impl<W, C> Sealed for Retry<W, C> {}

impl<W, C> Part for Retry<W, C> {
    fn role(&self) -> Role {
        Role::Retry {
            attempts: Some(self.0.last_attempt),
            budget: self.0.budget.as_ref().map(Budget::bounds),
            repeats_refusals: self.0.repeat_refusals,
        }
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "retry, at most {} attempts, {}", self.0.last_attempt, self.0.rules.schedule)?;
        match self.0.budget.as_ref().map(Budget::bounds) {
            Some((ratio, most)) => write!(f, ", budget {ratio} per success, at most {most} saved"),
            None => f.write_str(", no budget"),
        }
    }

    fn inspect(&self, show: &mut dyn FnMut(registry::Snapshot)) {
        show(registry::Snapshot::Retry(self.snapshot()));
    }
}

/// A retry that was built before keeps its own name and listeners.
impl<W, C> IntoPolicy<Retry<W, C>> for Retry<W, C> {
    fn into_policy(self, _: &Identity) -> Result<Self, ConfigError> {
        Ok(self)
    }
}

impl<W, C> IntoPolicy<Retry<W, C>> for Config<W, C> {
    fn into_policy(mut self, stack: &Identity) -> Result<Retry<W, C>, ConfigError> {
        self.id.inherit(stack);
        self.build()
    }
}

/// So many attempts, with exponential waits from 50 ms.
impl IntoPolicy<Retry> for u32 {
    fn into_policy(self, stack: &Identity) -> Result<Retry, ConfigError> {
        Config::default().max_attempts(self).into_policy(stack)
    }
}

callable!(Retry<W, C>, [W, C]);
