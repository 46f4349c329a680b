//! One policy per host, tenant or shard, with the same settings for all of them.
//!
//! A circuit breaker shared by many hosts turns the failure of one into the failure of all. `Keyed` gives each its own.
//!
//! # Example
//!
//! ```
//! use mainstay::{CircuitBreaker, Keyed};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let breakers = Keyed::new(1_000, CircuitBreaker::config().name("search"))?;
//!
//! let breaker = breakers.get("shard-7");
//! assert_eq!(breaker.call(|| async { Ok::<_, ()>("found") }).await, Ok("found"));
//! assert_eq!(breaker.name(), "search[shard-7]");
//! # Ok::<_, mainstay::ConfigError>(())
//! # }).unwrap();
//! ```
//!
//! # Semantics
//!
//! | question | answer |
//! |---|---|
//! | How many keys are kept? | At most the capacity. A new key beyond it takes the place of the one that was asked for longest ago, among those with which least is lost. From a capacity of 128 on several go at once, a 64th of the capacity, if equally little is lost with them; but one alone where protection is. |
//! | What is lost? | Nothing with a closed breaker without failures in its window, or a bulkhead without calls. A little evidence with a closed breaker that has seen failures. An open breaker is kept in preference to both, so a flood of keys, even of failing ones, does not reset it. Of rate limiters those with the fewest places taken go first, so nobody gets a new quota by making other keys known. |
//! | What happens to calls of a key that was evicted? | They finish with the policy they began with. The key's next call finds a new one. |
//! | What does the name say? | `name[key]`; metrics use the part before the bracket, so their labels stay few. |
//! | Reconfiguration | [`Keyed::reconfigure`] changes every key's policy and keeps its evidence, and applies to keys to come. Of a bulkhead that exists it changes the limit alone; a rate limiter keeps what is taken. |
//! | In a stack | `.policy(keyed.by(key))` picks the policy by the request, see [`Keyed::by`]. It keeps the name and the listeners of its settings, and does not take over the stack's. |
//!
//! # Sharing
//!
//! Cloning shares the keys and their policies.
//!
//! # Cancel safety
//!
//! That of the policy. A call that is dropped lets go of its handle; the key stays.
//!
//! # Errors
//!
//! Those of the policy, under its name with the key.
//!
//! # Panics
//!
//! None of its own. A panic of the function that computes the key unwinds through the call, which holds nothing then.
//!
//! # Cost
//!
//! [`Keyed::get`] takes a read lock and looks up a hash map; a new key takes the write lock. At capacity one new key in so many as go at
//! once looks at every key: under a flood of keys that is about 64 looks for each. Keep the handle it returns where the key stays the same.

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    fmt,
    hash::Hash,
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
};

use crate::{
    call::{Cx, End, Guard, Operation, Run, Sealed, Slot},
    error::ConfigError,
    event::Identity,
    registry,
    stack::{IntoPolicy, Part, Role},
};

/// Settings that make the policies of a [`Keyed`].
pub trait Template: Clone {
    /// The policy they make.
    type Policy: Part + Clone;

    /// The policy for one key, under `base[key]`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] for an impossible setting.
    fn build_for(&self, key: &dyn fmt::Display) -> Result<Self::Policy, ConfigError>;

    /// Changes a policy that exists to these settings, keeping its evidence.
    fn apply_to(&self, policy: &Self::Policy) -> Result<(), ConfigError>;

    /// What would be lost with the policy.
    fn loss(policy: &Self::Policy) -> Loss;
}

/// What is lost when the policy of a key is forgotten, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// Nothing: it is at rest.
    Nothing,
    /// So many places of a quota that are taken.
    Places(u32),
    /// Some failures that it has seen.
    Evidence,
    /// What it is doing: refusing calls, or running some.
    Protection,
}

/// One policy per key; see the [module](self).
pub struct Keyed<K, C: Template> {
    shared: Arc<Shared<K, C>>,
}

struct Shared<K, C: Template> {
    capacity: usize,
    /// Counts look-ups; the largest is the most recent.
    tick: AtomicU64,
    keys: RwLock<Keys<K, C>>,
}

struct Keys<K, C: Template> {
    config: Arc<C>,
    /// A policy without a key, which says what all of them are to a stack.
    sample: C::Policy,
    entries: HashMap<K, Entry<C::Policy>>,
}

struct Entry<P> {
    policy: P,
    last_asked: AtomicU64,
}

impl<K, C: Template> Keyed<K, C> {
    /// How many keys have a policy.
    pub fn len(&self) -> usize {
        self.shared.keys.read().unwrap_or_else(PoisonError::into_inner).entries.len()
    }

    /// Whether no key has a policy.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All policies that there are now, in no order.
    pub fn policies(&self) -> Vec<C::Policy> {
        let keys = self.shared.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.entries.values().map(|entry| entry.policy.clone()).collect()
    }
}

impl<K, C> Keyed<K, C>
where
    K: Eq + Hash + fmt::Display,
    C: Template,
{
    /// At most `capacity` policies made of `config`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] when `capacity` is zero or `config` is impossible.
    pub fn new(capacity: usize, config: C) -> Result<Self, ConfigError> {
        ConfigError::unless(capacity > 0, "keyed.capacity", capacity, "1 or more")?;
        let sample = config.build_for(&"*")?;
        let keys = Keys { config: Arc::new(config), sample, entries: HashMap::new() };
        Ok(Keyed { shared: Arc::new(Shared { capacity, tick: AtomicU64::new(0), keys: RwLock::new(keys) }) })
    }

    /// The policy of `key`, made now if there is none.
    pub fn get<Q>(&self, key: &Q) -> C::Policy
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        let tick = self.shared.tick.fetch_add(1, Relaxed);
        {
            let keys = self.shared.keys.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = keys.entries.get(key) {
                entry.last_asked.store(tick, Relaxed);
                return entry.policy.clone();
            }
        }
        self.insert(key.to_owned(), tick)
    }

    #[cold]
    fn insert(&self, key: K, tick: u64) -> C::Policy {
        loop {
            let (config, sample) = {
                let keys = self.shared.keys.read().unwrap_or_else(PoisonError::into_inner);
                (keys.config.clone(), keys.sample.clone())
            };
            // Made without the lock, because it asks the key for its name. The settings were checked when they came in,
            // and no check looks at the name.
            let policy = config.build_for(&key).unwrap_or(sample);
            let mut keys = self.shared.keys.write().unwrap_or_else(PoisonError::into_inner);
            if !Arc::ptr_eq(&keys.config, &config) {
                // It has other settings now than those that came meanwhile.
                continue;
            }
            if let Some(entry) = keys.entries.get(&key) {
                return entry.policy.clone();
            }
            let capacity = self.shared.capacity;
            let evicted =
                if keys.entries.len() >= capacity { keys.evict((capacity / 64).max(1)) } else { Vec::new() };
            keys.entries.insert(key, Entry { policy: policy.clone(), last_asked: AtomicU64::new(tick) });
            // What was the user's, listeners for instance, is dropped without the lock.
            drop(keys);
            drop(evicted);
            return policy;
        }
    }

    /// Changes the settings of every policy, keeping the evidence of each, and of those to come.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] for an impossible setting; nothing is changed then.
    pub fn reconfigure(&self, config: C) -> Result<(), ConfigError> {
        let sample = config.build_for(&"*")?;
        let mut keys = self.shared.keys.write().unwrap_or_else(PoisonError::into_inner);
        for entry in keys.entries.values() {
            config.apply_to(&entry.policy)?;
        }
        keys.config = Arc::new(config);
        keys.sample = sample;
        Ok(())
    }

    /// A policy for a stack around a tower service, which picks the key's own for each request.
    ///
    /// For the wrapper form, [`get`](Self::get) the policy and call through it.
    pub fn by<R, F>(&self, key: F) -> By<K, C, F>
    where
        F: Fn(&R) -> K,
    {
        By { keyed: self.clone(), key }
    }
}

impl<K: Hash + Eq, C: Template> Keys<K, C> {
    /// Takes out the policies with which least is lost, at most so many, and of those the ones that were asked for longest ago.
    ///
    /// Several, since to find them means to look at all: in a flood of keys each new one would do so, and keep everybody else from the map.
    fn evict(&mut self, most: usize) -> Vec<C::Policy> {
        let entries = self.entries.values();
        let mut ranks: Vec<(Loss, u64)> =
            entries.map(|entry| (C::loss(&entry.policy), entry.last_asked.load(Relaxed))).collect();
        let Some(least) = ranks.iter().map(|(loss, _)| *loss).min() else { return Vec::new() };
        ranks.retain(|(loss, _)| *loss == least);
        // An open breaker, or a bulkhead in use, is given up for want of room and for nothing else.
        let most = if least == Loss::Protection { 1 } else { most };
        let (most, len) = (most.min(ranks.len()), ranks.len());
        if most < len {
            ranks.select_nth_unstable(most);
        }
        // Ticks are unique, and stay as they are while nobody reads.
        let chosen: HashSet<u64> = ranks[..most].iter().map(|(_, tick)| *tick).collect();
        let mut evicted = Vec::with_capacity(most);
        self.entries.retain(|_, entry| {
            let stays = !chosen.contains(&entry.last_asked.load(Relaxed));
            if !stays {
                evicted.push(entry.policy.clone());
            }
            stays
        });
        evicted
    }
}

impl<K, C: Template> Clone for Keyed<K, C> {
    fn clone(&self) -> Self {
        Keyed { shared: self.shared.clone() }
    }
}

impl<K, C: Template> fmt::Debug for Keyed<K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").field("capacity", &self.shared.capacity).finish_non_exhaustive()
    }
}

/// The policy of each request's key; made by [`Keyed::by`].
pub struct By<K, C: Template, F> {
    keyed: Keyed<K, C>,
    key: F,
}

impl<K, C: Template, F: Clone> Clone for By<K, C, F> {
    fn clone(&self) -> Self {
        By { keyed: self.keyed.clone(), key: self.key.clone() }
    }
}

impl<K, C: Template, F> fmt::Debug for By<K, C, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("By").field("keyed", &self.keyed).finish_non_exhaustive()
    }
}

impl<K, C: Template, F> Sealed for By<K, C, F> {}

impl<K, C: Template, F> Part for By<K, C, F> {
    fn role(&self) -> Role {
        self.keyed.shared.keys.read().unwrap_or_else(PoisonError::into_inner).sample.role()
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sample = self.keyed.shared.keys.read().unwrap_or_else(PoisonError::into_inner).sample.clone();
        sample.describe(f)?;
        write!(f, ", one per key, at most {}", self.keyed.shared.capacity)
    }

    fn inspect(&self, show: &mut dyn FnMut(registry::Snapshot)) {
        self.keyed.policies().iter().for_each(|policy| Part::inspect(policy, show));
    }
}

impl<K, C: Template, F> IntoPolicy<By<K, C, F>> for By<K, C, F> {
    fn into_policy(self, _: &Identity) -> Result<Self, ConfigError> {
        Ok(self)
    }
}

/// What a keyed policy remembers of one call.
#[derive(Debug)]
pub struct State<P, S> {
    policy: Option<P>,
    inner: S,
}

impl<P, S: Default> Default for State<P, S> {
    fn default() -> Self {
        State { policy: None, inner: S::default() }
    }
}

impl<R, T, E, I, K, C, F> Guard<R, T, E, I> for By<K, C, F>
where
    I: Run<R, T, E>,
    K: Eq + Hash + fmt::Display + Clone,
    C: Template,
    C::Policy: Guard<R, T, E, I>,
    F: Fn(&R) -> K,
{
    type Notes = State<C::Policy, <C::Policy as Guard<R, T, E, I>>::Notes>;
    type Pinned = <C::Policy as Guard<R, T, E, I>>::Pinned;

    fn poll<O>(
        &self,
        inner: &I,
        notes: &mut Self::Notes,
        pinned: Pin<&mut Self::Pinned>,
        op: Pin<&mut O>,
        cx: &mut Cx<'_, '_>,
        out: &mut Slot<T, E>,
    ) -> Poll<()>
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        let policy = match &mut notes.policy {
            Some(policy) => policy,
            None => {
                let Some(request) = op.request() else {
                    unreachable!("policies are asked before the request is consumed");
                };
                let key = (self.key)(request);
                notes.policy.insert(self.keyed.get(&key))
            }
        };
        let polled = policy.poll(inner, &mut notes.inner, pinned, op, cx, out);
        if polled.is_ready() {
            notes.policy = None;
        }
        polled
    }

    fn end<O>(&self, inner: &I, notes: Self::Notes, pinned: Pin<&mut Self::Pinned>, op: Pin<&mut O>, how: End)
    where
        O: Operation<Request = R, Output = T, Error = E> + ?Sized,
    {
        if let Some(policy) = notes.policy {
            policy.end(inner, notes.inner, pinned, op, how);
        }
    }
}
