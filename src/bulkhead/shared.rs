//! A pool that threads share.
//!
//! The truth is the pool behind the lock. So that a healthy call touches only memory of its own core, each
//! thread borrows a few permits into a cache of its own and takes and returns them there with one
//! compare-and-swap each. A word is 0 when the cache is shut and `1 + permits` when it is open.
//!
//! ```text
//!              pool has none: lock, shut every cache, collect
//!   CACHING ------------------------------------------------------> EXACT
//!      ^        nobody waits and more than half is free               |
//!      +--------------------------------------------------------------+
//! ```
//!
//! A shut cache is opened and emptied under the lock only. So once all are shut, every permit is either in the pool or
//! in use, and nothing changes that without the lock: a refusal means that every permit *was* in
//! use at that instant, and while somebody waits every returned permit passes the queue. Opening again only when half
//! is free keeps a bulkhead at its limit from going back and forth.

use std::task::Waker;

use super::machine::{Asked, Pool};
use crate::{
    slots::Slots,
    sync::{
        Mutex, MutexGuard, Padded,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
        lock,
    },
};

const SHUT: u64 = 0;

/// What can be said without the lock. Written under it.
const FREE: usize = 0;
/// Every permit is in use.
const TAKEN: usize = 1;
/// Every permit is in use and the queue is full.
const FULL: usize = 2;

#[derive(Debug)]
pub(super) struct Shared {
    front: Padded<Front>,
    locked: Padded<Mutex<Locked>>,
}

/// Read by every call, written seldom.
#[derive(Debug)]
struct Front {
    level: AtomicUsize,
    /// The most permits that one cache may hold.
    cap: AtomicU64,
    caches: Slots<AtomicU64>,
}

#[derive(Debug)]
struct Locked {
    pool: Pool<Waker>,
    caching: bool,
    /// The indexes of the open caches; empty unless `caching`.
    open: Vec<usize>,
}

/// What a caller that is willing to wait is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joined {
    Taken,
    Waiting(u64),
    Full,
}

/// What a pool looks like at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) limit: usize,
    pub(super) in_use: usize,
    pub(super) waiting: usize,
}

impl Shared {
    pub(super) fn new(limit: usize, room: usize) -> Self {
        let pool = Pool::new(limit, room);
        Shared {
            front: Padded(Front {
                level: AtomicUsize::new(FREE),
                cap: AtomicU64::new(cap(&pool)),
                caches: Slots::new(),
            }),
            locked: Padded(Mutex::new(Locked { pool, caching: true, open: Vec::new() })),
        }
    }

    /// Takes a permit unless every one is in use.
    #[inline]
    pub(super) fn take(&self) -> bool {
        if let Some((_, cache)) = self.front.caches.mine() {
            let word = cache.load(Relaxed);
            if word > 1 && cache.compare_exchange(word, word - 1, Acquire, Relaxed).is_ok() {
                return true;
            }
        }
        self.front.level.load(Acquire) == FREE && self.take_from_pool()
    }

    /// Whether a call would be refused, and not even be allowed to wait.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.front.level.load(Acquire) == FULL
    }

    /// Gives a permit back.
    #[inline]
    pub(super) fn give_back(&self) {
        if let Some((_, cache)) = self.front.caches.mine() {
            let word = cache.load(Relaxed);
            // A shut cache wraps round to more than any cap.
            if word.wrapping_sub(1) < self.front.cap.load(Relaxed)
                && cache.compare_exchange(word, word + 1, Release, Relaxed).is_ok()
            {
                return;
            }
        }
        self.give_back_to_pool();
    }

    #[cold]
    fn take_from_pool(&self) -> bool {
        let mut locked = lock(&self.locked);
        let taken = self.take_locked(&mut locked);
        self.settle(locked);
        taken
    }

    /// Takes a permit, or a place in the queue if `waker` is willing to wait.
    #[cold]
    pub(super) fn take_or_join(&self, waker: Waker) -> Joined {
        let mut locked = lock(&self.locked);
        if self.take_locked(&mut locked) {
            self.settle(locked);
            return Joined::Taken;
        }
        let joined = locked.pool.join(waker);
        self.settle(locked);
        joined.map_or(Joined::Full, Joined::Waiting)
    }

    /// What became of a waiter; see [`Pool::ask`].
    #[cold]
    pub(super) fn ask(&self, ticket: u64, waker: Waker, expired: bool) -> Asked {
        let mut locked = lock(&self.locked);
        let (asked, _unused) = locked.pool.ask(ticket, waker, expired);
        self.settle(locked);
        asked
    }

    /// Takes a waiter out of the queue, and the permit from it that it may have been granted.
    #[cold]
    pub(super) fn leave(&self, ticket: u64) {
        let mut locked = lock(&self.locked);
        let (next, _own) = locked.pool.leave(ticket);
        self.settle(locked);
        if let Some(waker) = next {
            waker.wake();
        }
    }

    #[cold]
    fn give_back_to_pool(&self) {
        let mut locked = lock(&self.locked);
        let next = locked.pool.give_back();
        if locked.caching {
            // The own cache is shut, or it has all that it may have: half of that goes to the others.
            self.fill(&mut locked, |has, cap| if has < cap { 1 } else { has / 2 });
        }
        self.settle(locked);
        if let Some(waker) = next {
            waker.wake();
        }
    }

    pub(super) fn resize(&self, limit: usize) {
        let mut locked = lock(&self.locked);
        self.shut_caches(&mut locked);
        let served = locked.pool.resize(limit);
        self.front.cap.store(cap(&locked.pool), Relaxed);
        self.settle(locked);
        for waker in served {
            waker.wake();
        }
    }

    /// The numbers of one instant.
    pub(super) fn usage(&self) -> Usage {
        let locked = lock(&self.locked);
        // Each cache is shut for a moment: permits that move from one to another while they are counted one after
        // the other would be counted twice or not at all.
        let held: Vec<_> = self.open(&locked).map(|cache| (cache, cache.swap(SHUT, AcqRel))).collect();
        let cached: u64 = held.iter().map(|(_, word)| word - 1).sum();
        for (cache, word) in held {
            cache.store(word, Release);
        }
        Usage {
            limit: locked.pool.limit(),
            in_use: locked.pool.out() - to_usize(cached),
            waiting: locked.pool.waiting(),
        }
    }

    fn take_locked(&self, locked: &mut Locked) -> bool {
        if locked.caching {
            if locked.pool.take() {
                let free = locked.pool.free();
                // One less than it may have, so that the permit just taken has a place to return to.
                self.fill(locked, |has, cap| has.max((free / 2).min(cap - 1)));
                return true;
            }
            self.shut_caches(locked);
        }
        locked.pool.take()
    }

    /// Makes this thread's cache hold as many permits as `wanted` says, given what it has and may have.
    fn fill(&self, locked: &mut Locked, wanted: impl FnOnce(usize, usize) -> usize) {
        let Some((index, cache)) = self.front.caches.mine() else {
            return;
        };
        // Only this thread changes this word without the lock, and it is here.
        let word = cache.load(Relaxed);
        if word == SHUT {
            locked.open.push(index);
        }
        let has = to_usize(word.saturating_sub(1));
        locked.pool.collect(has);
        let wanted = wanted(has, to_usize(cap(&locked.pool))).min(locked.pool.free());
        locked.pool.lend(wanted);
        cache.store(1 + wanted as u64, Release);
    }

    fn open<'a>(&'a self, locked: &'a Locked) -> impl Iterator<Item = &'a AtomicU64> {
        locked.open.iter().filter_map(|&index| self.front.caches.get(index))
    }

    fn shut_caches(&self, locked: &mut Locked) {
        if !locked.caching {
            return;
        }
        let cached: u64 = self.open(locked).map(|cache| cache.swap(SHUT, AcqRel) - 1).sum();
        locked.open.clear();
        locked.caching = false;
        locked.pool.collect(to_usize(cached));
    }

    /// Ends every step under the lock: says what can be said without it, and lets it go.
    fn settle(&self, mut locked: MutexGuard<'_, Locked>) {
        let pool = &locked.pool;
        let level = if locked.caching || pool.free() > 0 {
            FREE
        } else if pool.has_room() {
            TAKEN
        } else {
            FULL
        };
        // Nobody waits while a permit is free.
        if !locked.caching && pool.free() > pool.limit() / 2 {
            locked.caching = true;
        }
        if self.front.level.load(Relaxed) != level {
            self.front.level.store(level, Release);
        }
    }
}

/// A quarter of all, so that a few busy threads can have what they need without emptying the pool.
fn cap(pool: &Pool<Waker>) -> u64 {
    (pool.limit() / 4).max(1) as u64
}

/// Counts of permits come from a `usize` in the first place.
fn to_usize(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(all(test, not(mainstay_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_alone_keeps_a_permit_at_hand_whatever_the_limit() {
        for limit in 1..100 {
            let shared = Shared::new(limit, 0);
            for round in 0..3 {
                assert!(shared.take());
                shared.give_back();
                let (_, cache) = shared.front.caches.mine().expect("few threads run here");
                let word = cache.load(Relaxed);
                assert!(word > 1, "limit {limit}, round {round}: the next call needs the lock");
            }
        }
    }
}
