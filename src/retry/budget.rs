//! How many retries a client may afford: a bucket that its successes fill.
//!
//! Retries that are funded by requests multiply the load exactly when the dependency can bear it
//! least. Funded by successes they stop by themselves in a total failure, whatever the load
//! was before, and flow freely while failures are rare. Nobody ever waits for a token: the
//! successes that would refill the bucket might be waiting behind it.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::{
    error::ConfigError,
    slots::Slots,
    sync::{
        Arc, Mutex, Padded,
        atomic::{AtomicU64, Ordering::Relaxed},
        lock,
    },
    time,
};

/// The unit of every count here: thousandths of a token, thousandths of a call.
const ONE: u64 = 1_000;

/// What a new bucket holds, if its capacity allows.
const START: u64 = 3 * ONE;

/// After how many successes of one thread the estimate of the traffic is brought up to date.
const DRAIN: u64 = if cfg!(mainstay_loom) { 2 } else { 1_024 };

/// Settings of a [`Budget`]; see [`Budget::config`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct BudgetConfig {
    ratio: f64,
    #[cfg_attr(feature = "serde", serde(with = "crate::human"))]
    window: Duration,
    min: u32,
    max: u32,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        BudgetConfig { ratio: 0.1, window: Duration::from_secs(3), min: 1, max: 100 }
    }
}

impl BudgetConfig {
    /// Tokens per success, and the share of the traffic that can be saved up; 0.1 unless set. Rounded to a
    /// thousandth.
    pub fn ratio(mut self, ratio: f64) -> Self {
        self.ratio = ratio;
        self
    }

    /// How many seconds of own traffic the capacity is measured by; 3 s unless set.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// The least capacity, however small the traffic; 1 unless set.
    pub fn min(mut self, tokens: u32) -> Self {
        self.min = tokens;
        self
    }

    /// The largest capacity, however large the traffic; 100 unless set.
    pub fn max(mut self, tokens: u32) -> Self {
        self.max = tokens;
        self
    }

    /// A new budget.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] when the ratio is outside 0..=1, the window is zero, or the largest capacity is
    /// zero or below the least.
    pub fn build(self) -> Result<Budget, ConfigError> {
        self.check()?;
        Ok(Budget(Arc::new(Padded(Shared::new(self, time::now())))))
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless(
            (0.0..=1.0).contains(&self.ratio),
            "retry.budget.ratio",
            self.ratio,
            "a number from 0 to 1",
        )?;
        ConfigError::unless(
            self.ratio == 0.0 || thousandths(self.ratio) > 0,
            "retry.budget.ratio",
            self.ratio,
            "0, or a number from 0.0005 to 1",
        )?;
        ConfigError::unless(
            !self.window.is_zero(),
            "retry.budget.window",
            self.window,
            "a duration above zero",
        )?;
        ConfigError::unless(self.max > 0, "retry.budget.max", self.max, "a number from 1")?;
        if self.min > self.max {
            return Err(ConfigError::setting(
                "retry.budget.min",
                self.min,
                format!("0..={}, the largest capacity", self.max),
            ));
        }
        Ok(())
    }
}

fn thousandths(ratio: f64) -> u64 {
    (ratio * ONE as f64).round() as u64
}

/// A budget of retries. Clones share it, so several policies can draw from one.
///
/// Every success deposits 0.1 token, every retry costs one. The bucket holds at most a tenth of the calls of the
/// last three seconds, at least 1 and at most 100, and starts full but with at most 3. All but the last of
/// these numbers are [settings](Budget::config).
///
/// What bounds the retries is the account: where stacks share one, what
/// [`max_amplification`](crate::Stack::max_amplification) says of each holds for all of them together.
#[derive(Clone)]
pub struct Budget(Arc<Padded<Shared>>);

impl Budget {
    /// A budget with the default settings.
    #[allow(clippy::new_without_default)] // Each one is a separate account; that should be visible.
    pub fn new() -> Self {
        Budget(Arc::new(Padded(Shared::new(BudgetConfig::default(), time::now()))))
    }

    /// The default settings, to be changed and built.
    pub fn config() -> BudgetConfig {
        BudgetConfig::default()
    }

    /// How many tokens there are, to a thousandth. Locks, and reads the clock.
    pub fn available(&self) -> f64 {
        self.snapshot().available
    }

    /// What the budget holds. Locks, and reads the clock.
    pub fn snapshot(&self) -> BudgetSnapshot {
        self.0.snapshot(time::now())
    }

    /// Counts a success: a load and a store in memory of this thread's own.
    #[inline]
    pub(crate) fn deposit(&self) {
        self.0.deposit();
    }

    /// Takes a token, if there is a whole one. `first` if this is the call's first retry, and so
    /// the call is counted as traffic.
    pub(crate) fn withdraw(&self, now: Instant, first: bool) -> bool {
        self.0.withdraw(now, first)
    }

    /// Tokens per success and the largest capacity.
    pub(crate) fn bounds(&self) -> (f64, f64) {
        let config = &self.0.config;
        (thousandths(config.ratio) as f64 / ONE as f64, f64::from(config.max))
    }

    #[cfg(feature = "serde")]
    pub(crate) fn settings(&self) -> BudgetConfig {
        self.0.config
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("config", &self.0.config).finish_non_exhaustive()
    }
}

/// What a [`Budget`] holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct BudgetSnapshot {
    /// Tokens, to a thousandth.
    pub available: f64,
    /// The most tokens it can hold at present.
    pub capacity: f64,
    /// The estimated number of calls in the window.
    pub traffic: f64,
}

/// The account itself, without locks and clocks.
///
/// The traffic *T* is an estimate in constant memory. When `n` calls have been made in the time `g` since
/// the last look, and the window is `W`, then
///
/// ```text
/// g < W:  T ← T × (W − g) / W + n        the old estimate loses the share of the window that has passed
/// g ≥ W:  T ← n × W / g                  the calls are taken as spread evenly over g
/// ```
///
/// rounded down to a thousandth of a call in each term. For steady traffic of λ it is λ × W, however often one
/// looks. Then the capacity is `ratio × T` within its bounds, the successes among the `n` are deposited, and what
/// is above the capacity is lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    ratio: u64,
    window: u64,
    min: u64,
    max: u64,
    tokens: u64,
    traffic: u64,
    at: Instant,
}

impl Bucket {
    pub(crate) fn new(config: &BudgetConfig, now: Instant) -> Self {
        let mut bucket = Bucket {
            ratio: thousandths(config.ratio),
            window: time::nanos(config.window),
            min: u64::from(config.min) * ONE,
            max: u64::from(config.max) * ONE,
            tokens: 0,
            traffic: 0,
            at: now,
        };
        bucket.tokens = START.min(bucket.capacity());
        bucket
    }

    pub(crate) fn capacity(&self) -> u64 {
        let share = u128::from(self.traffic) * u128::from(self.ratio) / u128::from(ONE);
        u64::try_from(share).unwrap_or(u64::MAX).clamp(self.min, self.max)
    }

    /// Up to date: `successes` happened since the last look, and `failures` calls failed just now.
    pub(crate) fn look(&mut self, now: Instant, successes: u64, failures: u64) {
        let gap = time::nanos(now.saturating_duration_since(self.at));
        self.at = self.at.max(now);
        let kept = scaled(self.traffic, self.window.saturating_sub(gap), self.window);
        let calls = successes.saturating_mul(ONE);
        let new = scaled(calls, self.window, gap.max(self.window));
        self.traffic = kept.saturating_add(new).saturating_add(failures.saturating_mul(ONE));
        self.tokens = self.tokens.saturating_add(successes.saturating_mul(self.ratio)).min(self.capacity());
    }

    /// Takes a token if there is a whole one.
    pub(crate) fn take(&mut self) -> bool {
        match self.tokens.checked_sub(ONE) {
            Some(rest) => {
                self.tokens = rest;
                true
            }
            None => false,
        }
    }
}

/// `value × part / whole`, rounded down.
fn scaled(value: u64, part: u64, whole: u64) -> u64 {
    let scaled = u128::from(value) * u128::from(part) / u128::from(whole);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// The bucket and the successes that are not in it yet.
struct Shared {
    config: BudgetConfig,
    /// Successes, counted since the beginning by each thread alone.
    successes: Slots<AtomicU64>,
    /// Successes of threads that have no slot.
    overflow: AtomicU64,
    ledger: Mutex<Ledger>,
}

struct Ledger {
    bucket: Bucket,
    /// How many of each slot's successes are in the bucket.
    seen: Box<[u64]>,
    seen_overflow: u64,
}

impl Shared {
    fn new(config: BudgetConfig, now: Instant) -> Self {
        let successes = Slots::<AtomicU64>::new();
        let seen = successes.iter().map(|_| 0).collect();
        Shared {
            successes,
            overflow: AtomicU64::new(0),
            ledger: Mutex::new(Ledger { bucket: Bucket::new(&config, now), seen, seen_overflow: 0 }),
            config,
        }
    }

    #[inline]
    fn deposit(&self) {
        let before = match self.successes.mine() {
            Some((_, slot)) => {
                let before = slot.load(Relaxed);
                slot.store(before.wrapping_add(1), Relaxed);
                before
            }
            None => self.overflow.fetch_add(1, Relaxed),
        };
        if before % DRAIN == DRAIN - 1 {
            self.drain(time::now());
        }
    }

    #[cold]
    fn drain(&self, now: Instant) {
        let mut ledger = lock(&self.ledger);
        let successes = self.collect(&mut ledger);
        ledger.bucket.look(now, successes, 0);
    }

    /// One atomic step: nothing else is deposited or withdrawn between the check and the payment.
    fn withdraw(&self, now: Instant, first: bool) -> bool {
        let mut ledger = lock(&self.ledger);
        let successes = self.collect(&mut ledger);
        ledger.bucket.look(now, successes, u64::from(first));
        ledger.bucket.take()
    }

    /// The successes of all threads that are not in the bucket yet, each exactly once.
    fn collect(&self, ledger: &mut Ledger) -> u64 {
        let mut new = 0u64;
        for (slot, seen) in self.successes.iter().zip(&mut ledger.seen) {
            let count = slot.load(Relaxed);
            new = new.saturating_add(count.wrapping_sub(*seen));
            *seen = count;
        }
        let count = self.overflow.load(Relaxed);
        new = new.saturating_add(count.wrapping_sub(ledger.seen_overflow));
        ledger.seen_overflow = count;
        new
    }

    /// Looks without leaving a trace.
    fn snapshot(&self, now: Instant) -> BudgetSnapshot {
        let ledger = lock(&self.ledger);
        let mut copy =
            Ledger { bucket: ledger.bucket, seen: ledger.seen.clone(), seen_overflow: ledger.seen_overflow };
        let successes = self.collect(&mut copy);
        drop(ledger);
        copy.bucket.look(now, successes, 0);
        let whole = |thousandths: u64| thousandths as f64 / ONE as f64;
        BudgetSnapshot {
            available: whole(copy.bucket.tokens),
            capacity: whole(copy.bucket.capacity()),
            traffic: whole(copy.bucket.traffic),
        }
    }
}

#[cfg(all(test, not(mainstay_loom)))]
#[path = "budget_tests.rs"]
mod tests;

#[cfg(all(test, mainstay_loom))]
#[path = "budget_loom.rs"]
mod loom;
