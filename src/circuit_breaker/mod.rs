#![doc = include_str!("../docs/circuit_breaker.md")]

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    call::Sealed,
    error::{ConfigError, Name, Refused},
    keyed::{Loss, Template},
    registry,
    stack::{Part, Role, callable},
    time,
};

mod config;
mod core;
#[cfg(feature = "serde")]
mod file;
mod future;
#[cfg(all(test, mainstay_loom))]
mod loom;
mod machine;
#[cfg(all(test, not(mainstay_loom)))]
mod model;
mod window;

pub use config::{Classifier, Classify, Config, ErrorClassifier, Verdict, Window};
pub use future::Passage;

use self::core::Core;

/// What a breaker does with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum State {
    /// Admits them, and looks at their results.
    Closed,
    /// Refuses them until its wait is over.
    Open,
    /// Admits a few as probes.
    HalfOpen,
    /// Admits a growing share.
    Recovering,
    /// Refuses them until told otherwise.
    ForcedOpen,
    /// Admits them whatever their results are.
    ForcedClosed,
    /// Admits them and does not look.
    Disabled,
}

impl State {
    /// Every state.
    pub const ALL: [State; 7] = [
        State::Closed,
        State::Open,
        State::HalfOpen,
        State::Recovering,
        State::ForcedOpen,
        State::ForcedClosed,
        State::Disabled,
    ];

    /// The state as the value of a gauge: 0 admits everything, 1 some, 2 only probes, 3 nothing.
    pub fn level(self) -> u8 {
        match self {
            State::Closed | State::ForcedClosed | State::Disabled => 0,
            State::Recovering => 1,
            State::HalfOpen => 2,
            State::Open | State::ForcedOpen => 3,
        }
    }

    /// The state as a short stable label, as used by metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half_open",
            State::Recovering => "recovering",
            State::ForcedOpen => "forced_open",
            State::ForcedClosed => "forced_closed",
            State::Disabled => "disabled",
        }
    }
}

/// Who decides what a breaker does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Mode {
    /// Its rules.
    #[default]
    Normal,
    /// Its rules, but nothing is refused: what would have been is reported as
    /// [`Event::Refused`](crate::Event::Refused) with `observed`, and not counted.
    ObserveOnly,
    /// A person: it refuses everything.
    ForcedOpen,
    /// A person: it refuses nothing, and goes on counting.
    ForcedClosed,
    /// Nobody: it refuses nothing and counts nothing.
    Disabled,
}

/// What an outcome means to a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The dependency works.
    Success,
    /// The dependency does not work.
    Failure,
    /// It says nothing about the dependency: neutral, as if there had been no call.
    Ignored,
    /// A failure that says for how long the dependency wants to be left alone. Opens the breaker at once.
    OpenFor(Duration),
}

/// What the window of a breaker holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Counts {
    /// The calls that were counted: neither neutral nor late.
    pub calls: u64,
    /// Those that failed.
    pub failures: u64,
    /// Those that were slow; a call can be both.
    pub slow: u64,
    /// The failures since the last call that was none, whether or not they are still in the window.
    pub consecutive_failures: u64,
    /// Those of them that ended no longer ago than [`Config::consecutive_failures_within`] says, up to as many as it asks for; 0
    /// without that rule.
    #[cfg_attr(feature = "serde", serde(default))]
    pub consecutive_failures_within: u64,
}

impl Counts {
    /// The share of calls that failed; 0 if there was no call.
    pub fn failure_rate(&self) -> f64 {
        rate(self.failures, self.calls)
    }

    /// The share of calls that were slow; 0 if there was no call.
    pub fn slow_rate(&self) -> f64 {
        rate(self.slow, self.calls)
    }
}

fn rate(bad: u64, calls: u64) -> f64 {
    if calls == 0 { 0.0 } else { bad as f64 / calls as f64 }
}

/// What became of all calls since a breaker was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Totals {
    /// Admitted, and succeeded.
    pub succeeded: u64,
    /// Admitted, and failed.
    pub failed: u64,
    /// Admitted, and slow; these are among the others too.
    pub slow: u64,
    /// Admitted, and neutral: ignored or cancelled.
    pub neutral: u64,
    /// Admitted, but their result came when the breaker was in another state than the one that had admitted them, or when their place as
    /// a probe was lost and it was not good, or behind the verdict that they are slow.
    pub late: u64,
    /// Refused; in observe-only mode those that would have been.
    pub refused: u64,
}

impl Totals {
    /// Admitted and ended.
    pub fn admitted(&self) -> u64 {
        self.succeeded + self.failed + self.neutral + self.late
    }
}

/// A breaker at one moment, for dashboards and for [`Config::restore`].
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// Its name.
    pub name: Name,
    /// Who decides.
    pub mode: Mode,
    /// What it does.
    pub state: State,
    /// The share of calls that it admits: 1 when closed, less while recovering. 0 when half-open, where it is a number
    /// and not a share.
    pub share: f64,
    /// What its window holds; while it is not closed, what the window held when it opened and has not expired.
    pub counts: Counts,
    /// The share of calls that failed.
    pub failure_rate: f64,
    /// The share of calls that were slow.
    pub slow_rate: f64,
    /// How long it stays open yet.
    #[cfg_attr(feature = "serde", serde(with = "crate::human::option", default))]
    pub remaining_wait: Option<Duration>,
    /// How often it has opened since it was last closed.
    pub openings: u32,
    /// What became of all calls.
    pub totals: Totals,
}

/// Stops calls to what fails; see the [module](self).
///
/// Cloning shares the state.
pub struct CircuitBreaker<C = ()> {
    core: Arc<Core>,
    classify: Arc<C>,
}

impl CircuitBreaker {
    /// The settings, at their [defaults](Config).
    pub fn config() -> Config {
        Config::default()
    }
}

impl<C> CircuitBreaker<C> {
    fn new(config: Config<C>) -> Result<Self, ConfigError> {
        let core = Core::new(
            config.rules()?,
            config.seed_value(),
            config.cancelled_is_failure(),
            config.restore.as_deref(),
            config.id,
            time::now(),
        );
        Ok(CircuitBreaker { core: Arc::new(core), classify: Arc::new(config.classify) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.core.id().name()
    }

    /// Admits a call that is made by hand, or refuses it.
    ///
    /// # Errors
    ///
    /// [`Refused`] of the kind [`CircuitOpen`](crate::Kind::CircuitOpen) when the breaker is open, or half-open with all probes
    /// given out, or recovering and this call is not in the share that it admits.
    pub fn try_acquire(&self) -> Result<Permit<'_>, Refused> {
        self.core.acquire(time::now).map(|ticket| Permit::new(Shared::Borrowed(&self.core), ticket))
    }

    /// Like [`try_acquire`](Self::try_acquire), for a permit that outlives this handle.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_owned(&self) -> Result<Permit<'static>, Refused> {
        self.core.acquire(time::now).map(|ticket| Permit::new(Shared::Owned(self.core.clone()), ticket))
    }

    /// What it does with calls now. An open breaker whose wait is over is half-open.
    pub fn state(&self) -> State {
        self.core.state(time::now())
    }

    /// Everything there is to know about it now.
    pub fn snapshot(&self) -> Snapshot {
        self.core.snapshot(time::now())
    }

    /// The next instant at which it may admit a call; `None` if it would admit one now, or if only a person can say.
    pub fn retry_at(&self) -> Option<Instant> {
        self.core.retry_at(time::now())
    }

    /// Refuses everything until another mode is chosen.
    pub fn force_open(&self) {
        self.set_mode(Mode::ForcedOpen);
    }

    /// Admits everything until another mode is chosen, and goes on counting.
    pub fn force_closed(&self) {
        self.set_mode(Mode::ForcedClosed);
    }

    /// Admits everything and counts nothing until another mode is chosen.
    pub fn disable(&self) {
        self.set_mode(Mode::Disabled);
    }

    /// Goes on deciding and reporting, but refuses nothing.
    pub fn observe_only(&self) {
        self.set_mode(Mode::ObserveOnly);
    }

    /// Lets the rules decide again. After a forced state the breaker is closed; after
    /// [`observe_only`](Self::observe_only) it goes on in the state that it would have been in.
    pub fn normal(&self) {
        self.set_mode(Mode::Normal);
    }

    /// Chooses who decides. Results of calls that were admitted before are late, except between normal and observe-only.
    pub fn set_mode(&self, mode: Mode) {
        self.core.set_mode(mode, time::now());
    }

    /// Closed with an empty window and the first wait, as if new; the mode and the totals stay.
    pub fn reset(&self) {
        self.core.reset(time::now());
    }

    /// Goes on by the rules of `config`, with the evidence in the window, the state and the calls in flight.
    ///
    /// A larger window begins with what the smaller one held. Name, listeners, seed and classifier stay as they are.
    ///
    /// # Errors
    ///
    /// As [`Config::build`]; then nothing has changed.
    pub fn reconfigure<D>(&self, config: &Config<D>) -> Result<(), ConfigError> {
        let rules = config.rules()?;
        self.core.reconfigure(rules, config.cancelled_is_failure(), time::now());
        Ok(())
    }
}

impl<C> Clone for CircuitBreaker<C> {
    fn clone(&self) -> Self {
        CircuitBreaker { core: self.core.clone(), classify: self.classify.clone() }
    }
}

impl<C> fmt::Debug for CircuitBreaker<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = self.snapshot();
        f.debug_struct("CircuitBreaker")
            .field("name", &snapshot.name)
            .field("state", &snapshot.state)
            .field("counts", &snapshot.counts)
            .finish_non_exhaustive()
    }
}

impl<C> Sealed for CircuitBreaker<C> {}

impl<C> Part for CircuitBreaker<C> {
    fn role(&self) -> Role {
        Role::CircuitBreaker
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "circuit breaker, {}", self.core.describe())
    }

    #[inline]
    fn is_shut(&self) -> bool {
        self.core.is_shut(time::now)
    }

    fn inspect(&self, show: &mut dyn FnMut(registry::Snapshot)) {
        show(registry::Snapshot::CircuitBreaker(self.snapshot()));
    }
}

callable!(CircuitBreaker<C>, [C]);

impl<C: Clone> Template for Config<C> {
    type Policy = CircuitBreaker<C>;

    fn build_for(&self, key: &dyn fmt::Display) -> Result<CircuitBreaker<C>, ConfigError> {
        let mut config = self.clone();
        config.id.set_key(key);
        config.build()
    }

    fn apply_to(&self, policy: &CircuitBreaker<C>) -> Result<(), ConfigError> {
        policy.reconfigure(self)
    }

    /// Protection unless it is closed; then what may yet open it: the failures and the slow calls in its window, and a row of failures
    /// that is not too old.
    fn loss(policy: &CircuitBreaker<C>) -> Loss {
        let snapshot = policy.snapshot();
        let counts = snapshot.counts;
        match snapshot.state {
            State::Closed if counts.failures + counts.slow + counts.consecutive_failures_within == 0 => {
                Loss::Nothing
            }
            State::Closed => Loss::Evidence,
            _ => Loss::Protection,
        }
    }
}

enum Shared<'a> {
    Borrowed(&'a Core),
    Owned(Arc<Core>),
}

/// The right to make one call, which its result is reported with.
///
/// Dropped without a report it is a cancelled call: neutral, unless the settings say otherwise; dropped by a panic it
/// is a failure. Reports that come after the breaker has changed its state are not heard.
#[must_use = "a permit that is dropped at once is a cancelled call"]
pub struct Permit<'a> {
    core: Shared<'a>,
    ticket: u64,
    started: Option<Instant>,
}

impl<'a> Permit<'a> {
    fn new(core: Shared<'a>, ticket: u64) -> Self {
        let mut permit = Permit { core, ticket, started: None };
        permit.started = permit.core().slow_after().map(|_| time::now());
        permit
    }

    fn core(&self) -> &Core {
        match &self.core {
            Shared::Borrowed(core) => core,
            Shared::Owned(core) => core,
        }
    }

    /// The call succeeded. It counts as slow if the permit is older than the threshold, where there is one.
    pub fn success(self) {
        self.record(Class::Success);
    }

    /// The call failed.
    pub fn failure(self) {
        self.record(Class::Failure);
    }

    /// The call has ended, and this is what it means.
    pub fn record(mut self, class: Class) {
        self.settle(class);
    }

    fn settle(&mut self, class: Class) {
        // Ticket 0 is never heard: a listener that panics does not make it count twice.
        let ticket = std::mem::take(&mut self.ticket);
        self.core().settle(ticket, class, self.started, time::now);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.ticket != 0 {
            let class = if std::thread::panicking() { Class::Failure } else { self.core().cancelled() };
            self.settle(class);
        }
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("breaker", self.core().id().name()).finish_non_exhaustive()
    }
}
