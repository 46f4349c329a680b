#![doc = include_str!("../docs/rate_limiter.md")]

mod config;
mod future;
#[cfg(all(test, mainstay_loom))]
mod loom;
mod machine;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use self::machine::{Left, Machine, Receipt, Rules};
pub use self::{
    config::{Algorithm, Config},
    future::State,
};
use crate::{
    call::Sealed,
    error::{ConfigError, Hint, Kind, Name, Refused},
    event::Identity,
    keyed::{Loss, Template},
    registry,
    stack::{IntoPolicy, Part, Role, callable},
    sync::{Mutex, lock},
    time::{self, Scale},
};

/// Bounds how many calls are admitted in a stretch of time; see the [module](self).
///
/// Clones share the places.
#[derive(Clone)]
pub struct RateLimiter(Arc<Inner>);

struct Inner {
    id: Identity,
    scale: Scale,
    machine: Mutex<Machine>,
}

impl RateLimiter {
    /// At most `limit` calls in *any* stretch of time as long as `window`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] when `limit` or `window` is zero, or `limit` is above 1,000,000.
    pub fn new(limit: u32, window: Duration) -> Result<Self, ConfigError> {
        Config::new(limit, window).build()
    }

    /// Settings for a limiter of `limit` calls per `window`.
    pub fn config(limit: u32, window: Duration) -> Config {
        Config::new(limit, window)
    }

    /// Takes a place for one call that is made by hand, or refuses it.
    ///
    /// # Errors
    ///
    /// [`Refused`] of the kind [`Kind::RateLimited`], with [`retry_after`](Refused::retry_after).
    pub fn try_acquire(&self) -> Result<Permit<'_>, Refused> {
        self.try_acquire_many(1)
    }

    /// Takes `cost` places, all of them or none.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire). More than there ever are at once are refused without a `retry_after`.
    pub fn try_acquire_many(&self, cost: u32) -> Result<Permit<'_>, Refused> {
        let taken = self.with_machine(time::now(), |machine, now| {
            machine.take(cost, now).map(|receipt| (receipt, Quota::new(machine.left(now), machine.rules())))
        });
        match taken {
            Ok((receipt, quota)) => {
                Ok(Permit { limiter: Handle::Borrowed(self), receipt: Some(receipt), quota })
            }
            Err(wait) => Err(self.id().refuse(self.limited(wait))),
        }
    }

    /// What is left now. Takes the lock.
    pub fn quota(&self) -> Quota {
        self.with_machine(time::now(), |machine, now| Quota::new(machine.left(now), machine.rules()))
    }

    /// All numbers, of one instant. Takes the lock.
    pub fn snapshot(&self) -> Snapshot {
        let name = self.id().name().clone();
        self.with_machine(time::now(), |machine, now| {
            let totals = machine.totals();
            Snapshot {
                name,
                algorithm: machine.rules().algorithm,
                quota: Quota::new(machine.left(now), machine.rules()),
                admitted: totals.admitted,
                refused: totals.refused,
                given_back: totals.given_back,
            }
        })
    }

    /// Goes on by the settings of `config`. What is taken stays taken; name and listeners stay as they are.
    ///
    /// A longer window knows only what the shorter one still held. From one algorithm to another, and from one bucket to another,
    /// all that is taken counts as taken now, as far as the new settings have room for it, and what was reserved before is not
    /// given back any more.
    ///
    /// # Errors
    ///
    /// As [`Config::build`]; then nothing has changed.
    pub fn reconfigure(&self, config: &Config) -> Result<(), ConfigError> {
        let rules = config.rules()?;
        self.with_machine(time::now(), |machine, now| machine.reconfigure(rules, now));
        Ok(())
    }

    /// The name that appears in events, metrics and errors.
    pub fn name(&self) -> &str {
        self.id().name()
    }

    #[inline]
    fn id(&self) -> &Identity {
        &self.0.id
    }

    /// One step of the machine at `at`. No user code runs under the lock.
    #[inline]
    fn with_machine<X>(&self, at: Instant, step: impl FnOnce(&mut Machine, u64) -> X) -> X {
        let now = self.0.scale.nanos(at);
        step(&mut lock(&self.0.machine), now)
    }

    #[inline]
    fn take(&self, cost: u32, at: Instant) -> Result<Receipt, Option<u64>> {
        self.with_machine(at, |machine, now| machine.take(cost, now))
    }

    #[cold]
    fn give_back(&self, receipt: Receipt) {
        self.with_machine(time::now(), |machine, now| machine.give_back(receipt, now));
    }

    /// The refusal of a call for which there will be room in `wait` nanoseconds.
    fn limited(&self, wait: Option<u64>) -> Refused {
        Refused::unstarted(Kind::RateLimited, self.id().name(), wait.map_or(Hint::NONE, Hint::nanos))
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.snapshot(), f)
    }
}

/// What there is at one moment, as the `RateLimit-*` fields of HTTP say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Quota {
    /// How many places there are at most: the limit, or the burst of a token bucket.
    pub limit: u32,
    /// How many of them are free.
    pub remaining: u32,
    /// How long it takes until all are free again, if nobody comes.
    #[cfg_attr(feature = "serde", serde(with = "crate::human"))]
    pub reset: Duration,
    /// The window of the settings.
    #[cfg_attr(feature = "serde", serde(with = "crate::human"))]
    pub window: Duration,
}

impl Quota {
    fn new(left: Left, rules: &Rules) -> Self {
        Quota {
            limit: left.limit,
            remaining: left.remaining,
            reset: Duration::from_nanos(left.reset),
            window: Duration::from_nanos(rules.window),
        }
    }

    /// [`reset`](Self::reset) in whole seconds, rounded up: who comes back then does not come too early.
    pub fn reset_seconds(&self) -> u64 {
        self.reset.as_secs() + u64::from(self.reset.subsec_nanos() > 0)
    }
}

/// What a [`RateLimiter`] looks like at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// The limiter.
    pub name: Name,
    /// How it counts.
    pub algorithm: Algorithm,
    /// What is left.
    pub quota: Quota,
    /// How many calls were admitted since it was made; those that gave their places back are among them.
    pub admitted: u64,
    /// How many were refused.
    pub refused: u64,
    /// How many ended before their operation was started.
    pub given_back: u64,
}

/// A reservation: the right to start one operation.
///
/// Say [`started`](Self::started) when you start it. A permit that is dropped without gives its places back, as a call does that
/// is cancelled before its operation was started.
#[must_use = "a permit that is dropped gives its places back: say `started()` when the operation is started"]
pub struct Permit<'a> {
    limiter: Handle<'a>,
    /// Until it is settled.
    receipt: Option<Receipt>,
    quota: Quota,
}

enum Handle<'a> {
    Borrowed(&'a RateLimiter),
    Owned(RateLimiter),
}

impl Permit<'_> {
    /// The operation is started: from now on the places count as used, whatever becomes of it.
    pub fn started(mut self) {
        self.receipt = None;
    }

    /// What was left when the permit was given, without it.
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// The same permit without the borrow, for tasks and structs.
    pub fn into_owned(mut self) -> Permit<'static> {
        let limiter = Handle::Owned(self.limiter().clone());
        Permit { limiter, receipt: self.receipt.take(), quota: self.quota }
    }

    fn limiter(&self) -> &RateLimiter {
        match &self.limiter {
            Handle::Borrowed(limiter) => limiter,
            Handle::Owned(limiter) => limiter,
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(receipt) = self.receipt.take() {
            self.limiter().give_back(receipt);
        }
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("limiter", &self.limiter().name())
            .field("quota", &self.quota)
            .finish_non_exhaustive()
    }
}

impl Sealed for RateLimiter {}

impl Part for RateLimiter {
    fn role(&self) -> Role {
        Role::RateLimiter
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rules { algorithm, limit, window } = *lock(&self.0.machine).rules();
        write!(f, "rate limiter, {limit} in {:?}", Duration::from_nanos(window))?;
        match algorithm {
            Algorithm::SlidingWindow => Ok(()),
            Algorithm::FixedWindow => f.write_str(", in fixed windows"),
            Algorithm::TokenBucket { burst } => write!(f, ", bursts of {burst}"),
        }
    }

    fn inspect(&self, show: &mut dyn FnMut(registry::Snapshot)) {
        show(registry::Snapshot::RateLimiter(self.snapshot()));
    }
}

impl Template for Config {
    type Policy = RateLimiter;

    fn build_for(&self, key: &dyn fmt::Display) -> Result<RateLimiter, ConfigError> {
        self.clone().keyed(key).build()
    }

    fn apply_to(&self, policy: &RateLimiter) -> Result<(), ConfigError> {
        policy.reconfigure(self)
    }

    /// Nothing when no place is taken. Otherwise what it has used: among these the least is forgotten first, so that
    /// nobody gets a new quota by making many other keys known.
    fn loss(policy: &RateLimiter) -> Loss {
        let quota = policy.quota();
        match quota.limit - quota.remaining {
            0 => Loss::Nothing,
            used => Loss::Places(used),
        }
    }
}

impl IntoPolicy<RateLimiter> for RateLimiter {
    fn into_policy(self, _: &Identity) -> Result<RateLimiter, ConfigError> {
        Ok(self)
    }
}

impl IntoPolicy<RateLimiter> for Config {
    fn into_policy(self, stack: &Identity) -> Result<RateLimiter, ConfigError> {
        self.inherit(stack).build()
    }
}

callable!(RateLimiter, []);
