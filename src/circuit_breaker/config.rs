//! The settings of a circuit breaker and what makes sense of them.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use super::{CircuitBreaker, Class, Snapshot, machine::Rules, window::Shape};
use crate::{
    error::{ConfigError, Name, Refused},
    event::{Identity, Observer},
    limit::not_zero,
    time,
};

/// What a breaker looks back on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case", deny_unknown_fields)
)]
pub enum Window {
    /// The last calls, however long ago they were. A healthy call reads no clock.
    Count(u32),
    /// The calls of the last while, in steps of `length / buckets`.
    Time {
        /// How far back it looks.
        #[cfg_attr(feature = "serde", serde(with = "crate::human"))]
        length: Duration,
        /// In how many steps calls leave it.
        buckets: u32,
    },
}

/// How the probes of a half-open breaker are judged.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Verdict {
    /// The first one that is bad opens the breaker again.
    FirstFailure,
    /// The breaker opens again when this share of them is bad.
    Rate(f64),
}

/// The rule for slow calls.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub(super) struct SlowRate {
    rate: f64,
    #[cfg_attr(feature = "serde", serde(with = "crate::human"))]
    threshold: Duration,
}

/// The rule "k of the last n".
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub(super) struct OfLast {
    failures: u32,
    calls: u32,
}

/// The rule for failures in a row that are close together.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub(super) struct Within {
    failures: u32,
    #[cfg_attr(feature = "serde", serde(with = "crate::human"))]
    time: Duration,
}

/// Everything that can stand in a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    pub(super) name: Option<Name>,
    pub(super) window: Window,
    pub(super) minimum_calls: Option<u32>,
    pub(super) failure_rate: Option<f64>,
    pub(super) slow_rate: Option<SlowRate>,
    pub(super) consecutive_failures: Option<u32>,
    pub(super) consecutive_failures_within: Option<Within>,
    pub(super) failures_of_last: Option<OfLast>,
    pub(super) probes: u32,
    pub(super) probe_verdict: Verdict,
    pub(super) probe_timeout: Duration,
    pub(super) open_wait: Duration,
    pub(super) open_wait_growth: f64,
    pub(super) open_wait_jitter: f64,
    pub(super) open_wait_max: Duration,
    pub(super) open_for_max: Duration,
    pub(super) ramp: Option<u32>,
    pub(super) count_cancelled_as_failure: bool,
    pub(super) seed: Option<u64>,
}

/// The minimum of calls where none is set and the window is not smaller.
const MINIMUM: u32 = 20;

impl Default for Settings {
    fn default() -> Self {
        Settings {
            name: None,
            window: Window::Time { length: Duration::from_secs(10), buckets: 10 },
            minimum_calls: None,
            failure_rate: Some(0.5),
            slow_rate: None,
            consecutive_failures: None,
            consecutive_failures_within: None,
            failures_of_last: None,
            probes: 1,
            probe_verdict: Verdict::FirstFailure,
            probe_timeout: Duration::from_secs(10),
            open_wait: Duration::from_millis(250),
            open_wait_growth: 2.0,
            open_wait_jitter: 0.5,
            open_wait_max: Duration::from_secs(1),
            open_for_max: Duration::from_secs(60),
            ramp: Some(3),
            count_cancelled_as_failure: false,
            seed: None,
        }
    }
}

/// The settings of a [`CircuitBreaker`]; they are checked when it is [built](Self::build).
///
/// | setting | default |
/// |---|---|
/// | [`count_window`](Self::count_window), [`time_window`](Self::time_window) | time, 10 s in 10 buckets |
/// | [`minimum_calls`](Self::minimum_calls) | 20, or the whole of a smaller count window |
/// | [`failure_rate`](Self::failure_rate) | 0.5 |
/// | [`slow_rate`](Self::slow_rate) | none |
/// | [`consecutive_failures`](Self::consecutive_failures) | none |
/// | [`consecutive_failures_within`](Self::consecutive_failures_within) | none |
/// | [`failures_of_last`](Self::failures_of_last) | none |
/// | [`open_wait`](Self::open_wait) | 250 ms, doubling to 1 s |
/// | [`open_wait_jitter`](Self::open_wait_jitter) | 0.5 |
/// | [`open_for_max`](Self::open_for_max) | 60 s |
/// | [`probes`](Self::probes) | 1 |
/// | [`probe_verdict`](Self::probe_verdict) | first failure |
/// | [`probe_timeout`](Self::probe_timeout) | 10 s |
/// | [`ramp`](Self::ramp), [`immediate_close`](Self::immediate_close) | a ramp, 3 results per step |
/// | [`count_cancelled_as_failure`](Self::count_cancelled_as_failure) | no |
/// | [`classify`](Self::classify), [`classify_err`](Self::classify_err) | every `Err` of the operation is a failure |
/// | [`seed`](Self::seed) | by the operating system |
///
/// With the feature `serde` the settings can stand in a file, without the classifier and the listeners. Durations are
/// written as `"250ms"`, and a field that does not exist is an error. `no_failure_rate = true` is a failure rate of `None`, and
/// `immediate_close = true` is no ramp; beside the setting that it switches off each is an error. Where a format has
/// a `null`, that in place of the setting is read as the same.
#[must_use = "settings do nothing until a breaker is built from them"]
pub struct Config<C = ()> {
    pub(crate) id: Identity,
    pub(super) settings: Settings,
    pub(super) classify: C,
    pub(super) restore: Option<Box<Snapshot>>,
}

impl Default for Config {
    fn default() -> Self {
        Config::from(Settings::default())
    }
}

impl From<Settings> for Config {
    fn from(settings: Settings) -> Self {
        let mut id = Identity::new("circuit_breaker");
        if let Some(name) = &settings.name {
            id.set_name(name.clone());
        }
        Config { id, settings, classify: (), restore: None }
    }
}

impl<C> Config<C> {
    /// The name in events, metrics and errors. Without one it is the stack's.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        let name = name.into();
        self.settings.name = Some(name.clone());
        self.id.set_name(name);
        self
    }

    /// Adds a listener for [`Event::Transition`](crate::Event::Transition) and [`Event::Refused`](crate::Event::Refused).
    pub fn observe(mut self, observer: impl Observer + 'static) -> Self {
        self.id.observe(Arc::new(observer));
        self
    }

    /// Looks back on the last `calls` calls.
    pub fn count_window(mut self, calls: u32) -> Self {
        self.settings.window = Window::Count(calls);
        self
    }

    /// Looks back on the calls of the last `length`, which leave it in `buckets` steps.
    pub fn time_window(mut self, length: Duration, buckets: u32) -> Self {
        self.settings.window = Window::Time { length, buckets };
        self
    }

    /// The rates are judged from this many calls in the window on. The other rules need no minimum.
    pub fn minimum_calls(mut self, calls: u32) -> Self {
        self.settings.minimum_calls = Some(calls);
        self
    }

    /// Opens when this share of the calls in the window failed, or more; `None` for never.
    pub fn failure_rate(mut self, rate: impl Into<Option<f64>>) -> Self {
        self.settings.failure_rate = rate.into();
        self
    }

    /// Opens when this share of the calls in the window, or more, took `threshold` or longer. A call counts as slow as
    /// soon as it has been in flight for so long.
    ///
    /// It costs each call the clock reads at its start and its end.
    pub fn slow_rate(mut self, rate: f64, threshold: Duration) -> Self {
        self.settings.slow_rate = Some(SlowRate { rate, threshold });
        self
    }

    /// Opens after this many failures without a success between them, however long ago the first of them was.
    pub fn consecutive_failures(mut self, failures: u32) -> Self {
        self.settings.consecutive_failures = Some(failures);
        self
    }

    /// Opens after this many failures without a success between them, the first of which ended no longer than `time` before the last:
    /// "5 failures within 60 seconds".
    ///
    /// The time is its own, exact, and has nothing to do with the [window](Window). A success ends the row, so that a busy dependency
    /// of which one call in a hundred fails is not shut by what it does all day; for that there are the rates.
    pub fn consecutive_failures_within(mut self, failures: u32, time: Duration) -> Self {
        self.settings.consecutive_failures_within = Some(Within { failures, time });
        self
    }

    /// Opens when `failures` of the last `calls` calls failed.
    pub fn failures_of_last(mut self, failures: u32, calls: u32) -> Self {
        self.settings.failures_of_last = Some(OfLast { failures, calls });
        self
    }

    /// How long the breaker stays open: `first`, then `growth` times as long with each time that it opens again before it
    /// was closed, up to `max`. Each wait is drawn between a half and the whole of that, unless
    /// [`open_wait_jitter`](Self::open_wait_jitter) says otherwise.
    ///
    /// Short waits are safe because of what follows them: a probe now and then. The wait *is* the outage once the
    /// dependency has recovered.
    pub fn open_wait(mut self, first: Duration, growth: f64, max: Duration) -> Self {
        self.settings.open_wait = first;
        self.settings.open_wait_growth = growth;
        self.settings.open_wait_max = max;
        self
    }

    /// The share of each wait that is left to chance: it is drawn between `1 - share` of the wait and the whole. 0 waits exactly as long as
    /// was said, as the breakers of many clients should not: those that opened together then probe together.
    pub fn open_wait_jitter(mut self, share: f64) -> Self {
        self.settings.open_wait_jitter = share;
        self
    }

    /// The longest wait that [`Class::OpenFor`] can ask for.
    pub fn open_for_max(mut self, max: Duration) -> Self {
        self.settings.open_for_max = max;
        self
    }

    /// How many calls the half-open breaker admits to find out whether the dependency is back.
    pub fn probes(mut self, probes: u32) -> Self {
        self.settings.probes = probes;
        self
    }

    /// How the probes are judged.
    pub fn probe_verdict(mut self, verdict: Verdict) -> Self {
        self.settings.probe_verdict = verdict;
        self
    }

    /// A probe that has not reported after so long loses its place to another. That it was good is still heard as long as the breaker is
    /// half-open; that it was not is not, since it may have met what was there when it began. So this may be less than a healthy call
    /// takes, and one that is longer lets fewer calls through to what does not answer.
    pub fn probe_timeout(mut self, timeout: Duration) -> Self {
        self.settings.probe_timeout = timeout;
        self
    }

    /// After the probes, admits an eighth of the calls, then a quarter, then a half, each until `results` of them have
    /// been judged.
    pub fn ramp(mut self, results: u32) -> Self {
        self.settings.ramp = Some(results);
        self
    }

    /// Admits all calls as soon as the probes have passed.
    pub fn immediate_close(mut self) -> Self {
        self.settings.ramp = None;
        self
    }

    /// Counts calls that their caller dropped as failures, where dropping is how the caller's own timeout works. Without it
    /// they are neutral.
    pub fn count_cancelled_as_failure(mut self) -> Self {
        self.settings.count_cancelled_as_failure = true;
        self
    }

    /// Makes the jitter of the waits repeatable.
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = Some(seed);
        self
    }

    /// Begins where another breaker was when `snapshot` was taken of it, before a restart for instance: with its mode,
    /// its evidence, the rest of its wait.
    pub fn restore(mut self, snapshot: &Snapshot) -> Self {
        self.restore = Some(Box::new(snapshot.clone()));
        self
    }

    /// The breaker.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] for the first setting that makes no sense by itself or with the others.
    pub fn build(self) -> Result<CircuitBreaker<C>, ConfigError> {
        CircuitBreaker::new(self)
    }

    pub(super) fn seed_value(&self) -> Option<u64> {
        self.settings.seed
    }

    pub(super) fn cancelled_is_failure(&self) -> bool {
        self.settings.count_cancelled_as_failure
    }

    /// The settings as rules, if they make sense.
    pub(super) fn rules(&self) -> Result<Rules, ConfigError> {
        self.settings.rules()
    }
}

impl Config {
    /// Says what each outcome means to the breaker. `classify` is asked once per call, with the operation's own result.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay::{CircuitBreaker, circuit_breaker::Class};
    ///
    /// # enum HttpError { Status(u16), TooManyRequests(Duration) }
    /// let breaker = CircuitBreaker::config()
    ///     .classify(|result: &Result<(), HttpError>| match result {
    ///         Ok(_) => Class::Success,
    ///         Err(HttpError::TooManyRequests(wait)) => Class::OpenFor(*wait),
    ///         Err(HttpError::Status(400..500)) => Class::Ignored,
    ///         Err(_) => Class::Failure,
    ///     })
    ///     .build()?;
    /// # Ok::<_, mainstay::ConfigError>(())
    /// ```
    pub fn classify<F, T, E>(self, classify: F) -> Config<Classifier<F, T, E>>
    where
        F: Fn(&Result<T, E>) -> Class,
    {
        self.with(Classifier { of: classify, result: PhantomData })
    }

    /// Says what each error means to the breaker; every `Ok` is a success.
    pub fn classify_err<F, E>(self, classify: F) -> Config<ErrorClassifier<F, E>>
    where
        F: Fn(&E) -> Class,
    {
        self.with(ErrorClassifier { of: classify, error: PhantomData })
    }

    fn with<C>(self, classify: C) -> Config<C> {
        Config { id: self.id, settings: self.settings, classify, restore: self.restore }
    }
}

impl<C: Clone> Clone for Config<C> {
    fn clone(&self) -> Self {
        Config {
            id: self.id.clone(),
            settings: self.settings.clone(),
            classify: self.classify.clone(),
            restore: self.restore.clone(),
        }
    }
}

impl<C> fmt::Debug for Config<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("id", &self.id)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The widest time window's number of buckets: more is memory without precision.
const BUCKETS_MAX: u32 = 1_000;
/// The longest row of failures whose times are kept.
const WITHIN_MAX: u32 = 1_000;

impl Settings {
    fn rules(&self) -> Result<Rules, ConfigError> {
        let (shape, largest) = self.shape()?;
        let minimum = self.minimum_calls.unwrap_or(MINIMUM.min(largest));
        if minimum == 0 || minimum > largest {
            let allowed = match self.window {
                Window::Count(calls) => format!("1 to {calls}, the size of the count window"),
                Window::Time { .. } => "1 or more".to_owned(),
            };
            return Err(ConfigError::setting("circuit_breaker.minimum_calls", minimum, allowed));
        }
        if let Some(rate) = self.failure_rate {
            check_rate("circuit_breaker.failure_rate", rate)?;
        }
        if let Some(slow) = self.slow_rate {
            check_rate("circuit_breaker.slow_rate.rate", slow.rate)?;
            not_zero(slow.threshold, "circuit_breaker.slow_rate.threshold")?;
        }
        if let Some(failures) = self.consecutive_failures {
            at_least_one("circuit_breaker.consecutive_failures", failures)?;
        }
        if let Some(Within { failures, time }) = self.consecutive_failures_within {
            if failures == 0 || failures > WITHIN_MAX {
                return Err(ConfigError::setting(
                    "circuit_breaker.consecutive_failures_within.failures",
                    failures,
                    format!("1 to {WITHIN_MAX}"),
                ));
            }
            not_zero(time, "circuit_breaker.consecutive_failures_within.time")?;
        }
        if let Some(OfLast { failures, calls }) = self.failures_of_last {
            at_least_one("circuit_breaker.failures_of_last.calls", calls)?;
            if failures == 0 || failures > calls {
                return Err(ConfigError::setting(
                    "circuit_breaker.failures_of_last.failures",
                    failures,
                    format!("1 to {calls}, the number of calls it is taken of"),
                ));
            }
        }
        at_least_one("circuit_breaker.probes", self.probes)?;
        if let Verdict::Rate(rate) = self.probe_verdict {
            check_rate("circuit_breaker.probe_verdict", rate)?;
        }
        not_zero(self.probe_timeout, "circuit_breaker.probe_timeout")?;
        not_zero(self.open_wait, "circuit_breaker.open_wait")?;
        ConfigError::unless(
            self.open_wait_growth.is_finite() && self.open_wait_growth >= 1.0,
            "circuit_breaker.open_wait_growth",
            self.open_wait_growth,
            "a number from 1.0",
        )?;
        ConfigError::unless(
            (0.0..=1.0).contains(&self.open_wait_jitter),
            "circuit_breaker.open_wait_jitter",
            self.open_wait_jitter,
            "a number from 0.0 to 1.0",
        )?;
        if self.open_wait_max < self.open_wait {
            return Err(ConfigError::setting(
                "circuit_breaker.open_wait_max",
                self.open_wait_max,
                format!("{:?} or more, the first wait", self.open_wait),
            ));
        }
        not_zero(self.open_for_max, "circuit_breaker.open_for_max")?;
        if let Some(results) = self.ramp {
            at_least_one("circuit_breaker.ramp", results)?;
        }
        Ok(Rules {
            shape,
            failure_rate: self.failure_rate,
            slow_rate: self.slow_rate.map(|slow| slow.rate),
            slow_after: self.slow_rate.map(|slow| slow.threshold),
            consecutive: self.consecutive_failures,
            within: self.consecutive_failures_within.map(|row| (row.failures, row.time)),
            of_last: self.failures_of_last.map(|of| (of.failures, of.calls)),
            minimum: minimum.into(),
            probes: self.probes,
            verdict: self.probe_verdict,
            probe_timeout: self.probe_timeout,
            wait: self.open_wait,
            wait_growth: self.open_wait_growth,
            wait_jitter: self.open_wait_jitter,
            wait_max: self.open_wait_max,
            hint_max: self.open_for_max,
            ramp: self.ramp,
        })
    }

    /// The window's shape and the most calls that it can hold.
    fn shape(&self) -> Result<(Shape, u32), ConfigError> {
        match self.window {
            Window::Count(calls) => {
                at_least_one("circuit_breaker.window.count", calls)?;
                Ok((Shape::Count(calls.into()), calls))
            }
            Window::Time { length, buckets } => {
                not_zero(length, "circuit_breaker.window.time.length")?;
                let most = time::nanos(length).min(BUCKETS_MAX.into());
                if buckets == 0 || u64::from(buckets) > most {
                    return Err(ConfigError::setting(
                        "circuit_breaker.window.time.buckets",
                        buckets,
                        format!("1 to {most}"),
                    ));
                }
                let buckets = u64::from(buckets);
                Ok((
                    Shape::Time {
                        // Rounded up: a window that is a few nanoseconds too long rather than too short.
                        width: time::nanos(length).div_ceil(buckets),
                        buckets,
                    },
                    u32::MAX,
                ))
            }
        }
    }
}

fn check_rate(field: &'static str, rate: f64) -> Result<(), ConfigError> {
    ConfigError::unless(rate > 0.0 && rate <= 1.0, field, rate, "a number above 0.0 and up to 1.0")
}

fn at_least_one(field: &'static str, value: u32) -> Result<(), ConfigError> {
    ConfigError::unless(value > 0, field, value, "1 or more")
}

/// What the outcomes of calls mean to a breaker.
pub trait Classify<T, E> {
    /// What `result` of the operation means.
    fn classify(&self, result: &Result<T, E>) -> Class;
}

impl<T, E> Classify<T, E> for () {
    #[inline]
    fn classify(&self, result: &Result<T, E>) -> Class {
        match result {
            Ok(_) => Class::Success,
            Err(_) => Class::Failure,
        }
    }
}

/// A closure that classifies results; see [`Config::classify`].
pub struct Classifier<F, T, E> {
    of: F,
    result: PhantomData<fn(&Result<T, E>)>,
}

impl<F: Clone, T, E> Clone for Classifier<F, T, E> {
    fn clone(&self) -> Self {
        Classifier { of: self.of.clone(), result: PhantomData }
    }
}

impl<F, T, E> fmt::Debug for Classifier<F, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Classifier")
    }
}

impl<F: Fn(&Result<T, E>) -> Class, T, E> Classify<T, E> for Classifier<F, T, E> {
    #[inline]
    fn classify(&self, result: &Result<T, E>) -> Class {
        (self.of)(result)
    }
}

/// A closure that classifies errors; see [`Config::classify_err`].
pub struct ErrorClassifier<F, E> {
    of: F,
    error: PhantomData<fn(&E)>,
}

impl<F: Clone, E> Clone for ErrorClassifier<F, E> {
    fn clone(&self) -> Self {
        ErrorClassifier { of: self.of.clone(), error: PhantomData }
    }
}

impl<F, E> fmt::Debug for ErrorClassifier<F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ErrorClassifier")
    }
}

impl<F: Fn(&E) -> Class, T, E> Classify<T, E> for ErrorClassifier<F, E> {
    #[inline]
    fn classify(&self, result: &Result<T, E>) -> Class {
        match result {
            Ok(_) => Class::Success,
            Err(error) => (self.of)(error),
        }
    }
}

/// What a refusal by a policy inside means, by what it says about the operation.
pub(super) fn class_of_refusal(refused: &Refused) -> Class {
    // The operation was started and brought nothing: by hanging, or by failing before an attempt of a retry inside
    // was refused. Otherwise a refusal of our own says nothing about the dependency.
    if refused.was_started() { Class::Failure } else { Class::Ignored }
}
