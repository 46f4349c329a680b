#![doc = include_str!("../docs/bulkhead.md")]

mod config;
mod future;
#[cfg(all(test, mainstay_loom))]
mod loom;
mod machine;
mod partitions;
mod shared;
pub mod sizing;

use std::{fmt, sync::Arc, time::Duration};

pub use self::{
    config::{Config, Queue},
    future::{Acquire, State},
    partitions::Partitions,
};
use self::{partitions::Partition, shared::Shared};
use crate::{
    call::Sealed,
    error::{ConfigError, Kind, Name, Refused},
    event::Identity,
    keyed::{Loss, Template},
    registry,
    stack::{IntoPolicy, Part, Role, callable},
};

/// Bounds how many calls run at once; see the [module](self).
///
/// Clones share the permits.
#[derive(Clone)]
pub struct Bulkhead(Arc<Inner>);

struct Inner {
    id: Identity,
    permits: Permits,
}

/// Where the permits come from.
// The large variant is the common one, and there is one of them behind each `Arc`.
#[allow(clippy::large_enum_variant)]
enum Permits {
    Own { shared: Shared, queue: Option<Queue> },
    Partition(Partition),
}

impl Bulkhead {
    /// A bulkhead of `limit` permits that refuses at once when all are in use.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] when `limit` is zero.
    pub fn new(limit: usize) -> Result<Self, ConfigError> {
        Config::new(limit).build()
    }

    /// Settings for a bulkhead of `limit` permits.
    pub fn config(limit: usize) -> Config {
        Config::new(limit)
    }

    /// A bulkhead that refuses one call in a thousand while `rate_per_s` calls arrive per second and
    /// take `p99` each; see [`sizing`].
    ///
    /// Using the 99th percentile where the formula asks for the mean leaves room for a latency that grows.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] when the rate is not above zero, the latency is zero, or their product is above a
    /// million.
    pub fn for_load(rate_per_s: f64, p99: Duration) -> Result<Self, ConfigError> {
        ConfigError::unless(rate_per_s > 0.0, "bulkhead.rate_per_s", rate_per_s, "above 0")?;
        ConfigError::unless(!p99.is_zero(), "bulkhead.p99", p99, "a duration above zero")?;
        Bulkhead::new(sizing::for_blocking(sizing::little(rate_per_s, p99), 0.001)?)
    }

    /// Takes a permit if one is free, without waiting.
    ///
    /// Waiters of a [queue](Config::queue) come first: while there are any, no permit is free.
    ///
    /// # Errors
    ///
    /// [`Refused`] of the kind [`Kind::BulkheadFull`].
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit<'_>, Refused> {
        if self.take() { Ok(Permit { bulkhead: self }) } else { Err(self.refuse(Kind::BulkheadFull, false)) }
    }

    /// Takes a permit, waiting in the [queue](Config::queue) if there is one.
    ///
    /// The wait is bounded by the queue's `max_wait` and by the [deadline](crate::deadline::current) of the call in
    /// which it happens. Nothing is held before the first poll.
    ///
    /// # Errors
    ///
    /// [`Refused`] of the kind [`Kind::BulkheadFull`], [`Kind::QueueTimeout`] or [`Kind::DeadlineExceeded`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the queue; a permit that had been granted goes to the next waiter. The place in the
    /// queue is lost, so do not poll it in a `select!` loop that makes it anew each time.
    pub fn acquire(&self) -> Acquire<'_> {
        Acquire::new(self)
    }

    /// Changes the limit from now on.
    ///
    /// A larger one serves waiters at once. With a smaller one the running calls finish, and none is admitted until
    /// fewer than `limit` run.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] when `limit` is zero, and for a partition, whose limit follows from its
    /// [`Partitions`].
    pub fn resize(&self, limit: usize) -> Result<(), ConfigError> {
        config::check_limit(limit)?;
        match &self.0.permits {
            Permits::Own { shared, .. } => {
                shared.resize(limit);
                Ok(())
            }
            Permits::Partition(_) => {
                Err(ConfigError::setting("bulkhead.limit", limit, "what the partition was made with"))
            }
        }
    }

    /// The name that appears in events, metrics and errors.
    pub fn name(&self) -> &str {
        self.0.id.name()
    }

    /// How many calls may run at once.
    pub fn limit(&self) -> usize {
        self.snapshot().limit
    }

    /// How many permits are in use.
    pub fn in_use(&self) -> usize {
        self.snapshot().in_use
    }

    /// How many calls wait in the queue.
    pub fn waiting(&self) -> usize {
        self.snapshot().waiting
    }

    /// All numbers, of one instant. Takes the lock: meant for dashboards, not for each call.
    pub fn snapshot(&self) -> Snapshot {
        let name = self.0.id.name().clone();
        match &self.0.permits {
            Permits::Own { shared, queue } => {
                let usage = shared.usage();
                Snapshot {
                    name,
                    limit: usage.limit,
                    in_use: usage.in_use,
                    waiting: usage.waiting,
                    queue_length: queue.map_or(0, |queue| queue.length),
                }
            }
            Permits::Partition(partition) => Snapshot {
                name,
                limit: partition.limit(),
                in_use: partition.in_use(),
                waiting: 0,
                queue_length: 0,
            },
        }
    }

    #[inline]
    fn take(&self) -> bool {
        match &self.0.permits {
            Permits::Own { shared, .. } => shared.take(),
            Permits::Partition(partition) => partition.take(),
        }
    }

    #[inline]
    fn give_back(&self) {
        match &self.0.permits {
            Permits::Own { shared, .. } => shared.give_back(),
            Permits::Partition(partition) => partition.give_back(),
        }
    }

    fn queue(&self) -> Option<(&Shared, Queue)> {
        match &self.0.permits {
            Permits::Own { shared, queue: Some(queue) } => Some((shared, *queue)),
            _ => None,
        }
    }

    #[inline]
    fn id(&self) -> &Identity {
        &self.0.id
    }

    /// A refusal, made known. `started` is whether an earlier attempt of the same call was.
    fn refuse(&self, kind: Kind, started: bool) -> Refused {
        let id = self.id();
        id.refuse(Refused::ended(kind, id.name(), started))
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.snapshot(), f)
    }
}

/// What a [`Bulkhead`] looks like at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// The bulkhead.
    pub name: Name,
    /// How many calls may run at once.
    pub limit: usize,
    /// How many permits are in use; more than `limit` for a while after it was made smaller.
    pub in_use: usize,
    /// How many calls wait.
    pub waiting: usize,
    /// How many calls may wait.
    pub queue_length: usize,
}

/// The right to run one call; given back when it is dropped.
#[derive(Debug)]
#[must_use = "a permit is given back when it is dropped"]
pub struct Permit<'a> {
    bulkhead: &'a Bulkhead,
}

impl Permit<'_> {
    /// The same permit without the borrow, for tasks and structs.
    pub fn into_owned(self) -> OwnedPermit {
        let owned = OwnedPermit { bulkhead: self.bulkhead.clone() };
        // The permit lives on in `owned`.
        std::mem::forget(self);
        owned
    }
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        self.bulkhead.give_back();
    }
}

/// A [`Permit`] that keeps its bulkhead alive by itself.
#[derive(Debug)]
#[must_use = "a permit is given back when it is dropped"]
pub struct OwnedPermit {
    bulkhead: Bulkhead,
}

impl Drop for OwnedPermit {
    fn drop(&mut self) {
        self.bulkhead.give_back();
    }
}

impl Sealed for Bulkhead {}

impl Part for Bulkhead {
    fn role(&self) -> Role {
        Role::Bulkhead { queues: self.queue().is_some() }
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bulkhead of {}", self.limit())?;
        match self.queue() {
            Some((_, Queue { length, max_wait })) => {
                write!(f, ", queue of {length} for at most {max_wait:?}")
            }
            None => Ok(()),
        }
    }

    fn inspect(&self, show: &mut dyn FnMut(registry::Snapshot)) {
        show(registry::Snapshot::Bulkhead(self.snapshot()));
    }
}

impl Template for Config {
    type Policy = Bulkhead;

    fn build_for(&self, key: &dyn fmt::Display) -> Result<Bulkhead, ConfigError> {
        self.clone().keyed(key).build()
    }

    /// The limit. The queue of a bulkhead stays as it was built.
    fn apply_to(&self, policy: &Bulkhead) -> Result<(), ConfigError> {
        policy.resize(self.limit())
    }

    /// Nothing without calls in it or waiting for it.
    fn loss(policy: &Bulkhead) -> Loss {
        let snapshot = policy.snapshot();
        if snapshot.in_use == 0 && snapshot.waiting == 0 { Loss::Nothing } else { Loss::Protection }
    }
}

impl IntoPolicy<Bulkhead> for Bulkhead {
    fn into_policy(self, _: &Identity) -> Result<Bulkhead, ConfigError> {
        Ok(self)
    }
}

impl IntoPolicy<Bulkhead> for Config {
    fn into_policy(self, stack: &Identity) -> Result<Bulkhead, ConfigError> {
        self.inherit(stack).build()
    }
}

impl IntoPolicy<Bulkhead> for usize {
    fn into_policy(self, stack: &Identity) -> Result<Bulkhead, ConfigError> {
        Config::new(self).into_policy(stack)
    }
}

callable!(Bulkhead, []);
