//! How long to wait before the next attempt.
//!
//! A [`Schedule`] says how the wait grows, where it is capped and how it is jittered. Its
//! [`delays`](Schedule::delays) are an iterator, so a schedule also serves loops of your own:
//!
//! ```
//! use std::time::Duration;
//! use mainstay::backoff::{Jitter, Schedule};
//!
//! let ms = Duration::from_millis;
//! let schedule = Schedule::exponential(ms(50)).cap(ms(300)).jitter(Jitter::None);
//! let delays: Vec<_> = schedule.delays(None).take(5).collect();
//! assert_eq!(delays, [ms(50), ms(100), ms(200), ms(300), ms(300)]);
//! ```
//!
//! The wait after the failure number *n*, counted from 0, is before jitter:
//!
//! | schedule | wait | 50 ms: first four |
//! |---|---|---|
//! | constant | `d` | 50, 50, 50, 50 |
//! | linear | `step × (n + 1)` | 50, 100, 150, 200 |
//! | exponential | `base × factorⁿ`, rounded down to a nanosecond | 50, 100, 200, 400 |
//! | sequence | item *n*; no further attempt after the last item | as given |
//!
//! and never more than the cap. Jitter is drawn from whole nanoseconds, both ends included, after the cap:
//!
//! | jitter | from | to |
//! |---|---|---|
//! | full | 0 | the wait |
//! | none | the wait | the wait |
//! | equal | the wait − half of it | the wait |
//! | decorrelated | the first wait (of a sequence: the item) | three times the previous delay, at most the cap |

use std::{fmt, sync::Arc, time::Duration};

use crate::{chance::Chance, error::ConfigError, time};

/// What a wait may be at most unless that is [set](Schedule::cap) or the schedule itself names a longer one.
pub const DEFAULT_CAP: Duration = Duration::from_secs(5);

/// How delays are spread, so that callers that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Jitter {
    /// Anything from nothing to the whole wait: spreads most.
    #[default]
    Full,
    /// None: for tests, and for one caller alone.
    None,
    /// From half of the wait to the whole.
    Equal,
    /// From the first wait to three times the previous delay: grows by itself, at random.
    Decorrelated,
}

/// How waits grow; see the [module](self).
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    pub(crate) shape: Shape,
    pub(crate) factor: f64,
    pub(crate) cap: Option<Duration>,
    pub(crate) jitter: Jitter,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    Constant(Duration),
    Linear(Duration),
    Exponential(Duration),
    Sequence(Arc<[Duration]>),
}

impl Schedule {
    fn new(shape: Shape) -> Self {
        Schedule { shape, factor: 2.0, cap: None, jitter: Jitter::Full }
    }

    /// The same wait each time.
    pub fn constant(wait: Duration) -> Self {
        Schedule::new(Shape::Constant(wait))
    }

    /// One `step` more each time.
    pub fn linear(step: Duration) -> Self {
        Schedule::new(Shape::Linear(step))
    }

    /// `base`, then [`factor`](Self::factor) times as long each time.
    pub fn exponential(base: Duration) -> Self {
        Schedule::new(Shape::Exponential(base))
    }

    /// These waits, and no further attempt after the last.
    pub fn sequence(waits: impl IntoIterator<Item = Duration>) -> Self {
        Schedule::new(Shape::Sequence(waits.into_iter().collect()))
    }

    /// How much longer each wait of an exponential schedule is; 2 unless set.
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// The longest wait; [`DEFAULT_CAP`] unless set, or the longest wait that was given if that is longer.
    pub fn cap(mut self, cap: Duration) -> Self {
        self.cap = Some(cap);
        self
    }

    /// How the waits are spread; [`Jitter::Full`] unless set.
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// The waits one after another, ending only for a sequence; the same ones for the same seed.
    pub fn delays(&self, seed: Option<u64>) -> Backoff {
        Backoff { schedule: self.clone(), chance: Chance::new(seed), step: 0, previous: 0 }
    }

    /// The longest wait that was given.
    fn longest(&self) -> Duration {
        match &self.shape {
            Shape::Constant(wait) | Shape::Linear(wait) | Shape::Exponential(wait) => *wait,
            Shape::Sequence(waits) => waits.iter().copied().max().unwrap_or_default(),
        }
    }

    /// The cap that is in force, in nanoseconds.
    fn limit(&self) -> u64 {
        time::nanos(self.cap.unwrap_or_else(|| self.longest().max(DEFAULT_CAP)))
    }

    /// How many waits there are; `None` for no end.
    pub(crate) fn len(&self) -> Option<u32> {
        match &self.shape {
            Shape::Sequence(waits) => Some(u32::try_from(waits.len()).unwrap_or(u32::MAX)),
            _ => None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        match &self.shape {
            Shape::Constant(_) => {}
            Shape::Linear(step) => {
                ConfigError::unless(!step.is_zero(), "retry.step", step, "a duration above zero")?;
            }
            Shape::Exponential(base) => {
                ConfigError::unless(!base.is_zero(), "retry.base", base, "a duration above zero")?;
            }
            Shape::Sequence(waits) => {
                ConfigError::unless(!waits.is_empty(), "retry.sequence", waits, "at least one wait")?;
            }
        }
        ConfigError::unless(
            self.factor.is_finite() && self.factor >= 1.0,
            "retry.factor",
            self.factor,
            "a finite number from 1",
        )?;
        match self.cap {
            Some(cap) if cap < self.longest() => Err(ConfigError::setting(
                "retry.cap",
                cap,
                format!("at least the longest wait of the schedule, {:?}", self.longest()),
            )),
            _ => Ok(()),
        }
    }

    /// The wait after failure number `step` (from 0) before jitter, in nanoseconds, with no wait that was
    /// given counting as less than `floor`; `None` when the schedule has ended.
    pub(crate) fn wait(&self, step: u32, floor: Duration) -> Option<u64> {
        let at_least = |wait: Duration| time::nanos(wait.max(floor));
        let limit = self.limit();
        let wait = match &self.shape {
            Shape::Constant(wait) => at_least(*wait),
            Shape::Linear(wait) => at_least(*wait).saturating_mul(u64::from(step) + 1),
            Shape::Exponential(base) => grown(at_least(*base), self.factor, step, limit),
            Shape::Sequence(waits) => at_least(*waits.get(step as usize)?),
        };
        Some(wait.min(limit))
    }

    /// The delay after failure number `step` (from 0), jittered by `random`. `previous` is what this function
    /// keeps between the failures of one call, 0 at first.
    pub(crate) fn delay(&self, step: u32, floor: Duration, previous: &mut u64, random: u64) -> Option<u64> {
        let wait = self.wait(step, floor)?;
        let delay = match self.jitter {
            Jitter::Full => between(0, wait, random),
            Jitter::None => wait,
            Jitter::Equal => between(wait - wait / 2, wait, random),
            Jitter::Decorrelated => {
                let limit = self.limit();
                let low = match self.shape {
                    Shape::Sequence(_) => wait,
                    _ => self.wait(0, floor)?,
                };
                let from = if step == 0 { low } else { *previous };
                between(low, from.saturating_mul(3).clamp(low, limit), random)
            }
        };
        *previous = delay;
        Some(delay)
    }

    /// The delay after a failure that said when to come back, in nanoseconds: at least the `backoff` that was drawn, at most `window` more
    /// than it, and a little later than it says, as far as the window goes, because others were told the same.
    pub(crate) fn honour(&self, hint: Duration, backoff: u64, window: Duration, random: u64) -> u64 {
        let latest = backoff.saturating_add(time::nanos(window));
        let hint = time::nanos(hint).clamp(backoff, latest);
        match self.jitter {
            Jitter::None => hint,
            _ => between(hint, hint.saturating_add(hint / 10).min(latest), random),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = Duration::from_nanos(self.limit());
        match &self.shape {
            Shape::Constant(wait) => write!(f, "constant {wait:?}"),
            Shape::Linear(step) => write!(f, "linear {step:?} to {limit:?}"),
            Shape::Exponential(base) => {
                write!(f, "exponential {base:?} × {} to {limit:?}", self.factor)
            }
            Shape::Sequence(waits) => write!(f, "sequence of {} waits", waits.len()),
        }
    }
}

/// `base × factor^steps`, rounded down; anything from `limit` on is as good as `limit`.
fn grown(base: u64, factor: f64, steps: u32, limit: u64) -> u64 {
    // Multiplied step by step and not by `powi`, because a product with a number from 1 never gets smaller by
    // rounding, so that waits never do. The loop ends at the limit, which an exponential reaches soon.
    let mut growth = 1.0;
    if factor > 1.0 {
        for _ in 0..steps {
            if base as f64 * growth >= limit as f64 {
                return limit;
            }
            growth *= factor;
        }
    }
    if growth == 1.0 {
        // Not through floating point, which would round what is longer than 104 days.
        return base;
    }
    // The conversion saturates.
    (base as f64 * growth) as u64
}

/// A whole number from `low` to `high`, both included, at the place of `random` among all 64-bit numbers.
pub(crate) fn between(low: u64, high: u64, random: u64) -> u64 {
    let width = u128::from(high - low) + 1;
    low + ((u128::from(random) * width) >> 64) as u64
}

/// The waits of a [`Schedule`] one after another.
#[derive(Debug)]
pub struct Backoff {
    schedule: Schedule,
    chance: Chance,
    step: u32,
    previous: u64,
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let random = self.chance.next();
        let delay = self.schedule.delay(self.step, Duration::ZERO, &mut self.previous, random)?;
        self.step = self.step.saturating_add(1);
        Some(Duration::from_nanos(delay))
    }
}

#[cfg(all(test, not(mainstay_loom)))]
#[path = "backoff_tests.rs"]
mod tests;
