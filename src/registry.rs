//! A list of policies by name, for health checks and dashboards.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    bulkhead, circuit_breaker,
    keyed::{Keyed, Template},
    rate_limiter, retry,
    stack::{List, Part, Stack},
};

/// Lists snapshots of the policies it was told of.
///
/// Cloning shares the list. The registry keeps what it lists alive.
///
/// ```
/// use mainstay::Registry;
///
/// let registry = Registry::new();
/// let payments = mainstay::stack("payments").bulkhead(20).build()?;
/// registry.add(&payments);
///
/// let snapshots = registry.snapshots();
/// assert_eq!(snapshots[0].name(), "payments");
/// # Ok::<_, mainstay::ConfigError>(())
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    listed: Arc<Mutex<Vec<Arc<dyn Inspect + Send + Sync>>>>,
}

impl Registry {
    /// An empty list.
    pub fn new() -> Self {
        Registry::default()
    }

    /// Lists a policy, the policies of a stack, or those of all keys of a [`Keyed`].
    pub fn add<P>(&self, policy: &P)
    where
        P: Inspect + Clone + Send + Sync + 'static,
    {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(policy.clone()));
    }

    /// What all of them look like now, in the order in which they were added. Timeouts, deadlines and fallbacks
    /// have nothing to show.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        // Taken out first: looking at a policy takes its lock, and may wait.
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut snapshots = Vec::new();
        for policy in listed {
            policy.inspect(&mut |snapshot| snapshots.push(snapshot));
        }
        snapshots
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner).len();
        f.debug_struct("Registry").field("listed", &listed).finish()
    }
}

/// Something that a [`Registry`] can list.
pub trait Inspect {
    /// Shows what it looks like now.
    fn inspect(&self, show: &mut dyn FnMut(Snapshot));
}

impl<L: List> Inspect for Stack<L> {
    fn inspect(&self, show: &mut dyn FnMut(Snapshot)) {
        self.list().each(&mut |part| part.inspect(show));
    }
}

impl<P: Part> Inspect for P {
    fn inspect(&self, show: &mut dyn FnMut(Snapshot)) {
        Part::inspect(self, show);
    }
}

/// What one policy looks like at one moment.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(tag = "policy", rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Snapshot {
    /// A circuit breaker.
    CircuitBreaker(circuit_breaker::Snapshot),
    /// A bulkhead.
    Bulkhead(bulkhead::Snapshot),
    /// A retry.
    Retry(retry::Snapshot),
    /// A rate limiter.
    RateLimiter(rate_limiter::Snapshot),
}

impl Snapshot {
    /// The name of the policy.
    pub fn name(&self) -> &str {
        match self {
            Snapshot::CircuitBreaker(snapshot) => &snapshot.name,
            Snapshot::Bulkhead(snapshot) => &snapshot.name,
            Snapshot::Retry(snapshot) => &snapshot.name,
            Snapshot::RateLimiter(snapshot) => &snapshot.name,
        }
    }
}

impl<K, C: Template> Inspect for Keyed<K, C> {
    fn inspect(&self, show: &mut dyn FnMut(Snapshot)) {
        self.policies().iter().for_each(|policy| Part::inspect(policy, show));
    }
}
