//! The one file that makes random numbers. Machines never draw: they are handed a value.

#[cfg(feature = "saga")]
use std::hash::{DefaultHasher, Hash, Hasher};
use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// A seedable, shareable source of random numbers.
///
/// SplitMix64 (Steele, Lea, Flood 2014): its state only ever grows by a constant, so one
/// `fetch_add` hands each caller its own state without a lock or a retry loop. Good enough for jitter, not
/// for secrets.
#[derive(Debug)]
pub(crate) struct Chance(AtomicU64);

impl Chance {
    /// Seeded, or seeded by the operating system when there is no seed.
    pub(crate) fn new(seed: Option<u64>) -> Self {
        #[cfg(feature = "saga")]
        let seed = seed.or_else(planned::next);
        Chance(AtomicU64::new(seed.unwrap_or_else(|| RandomState::new().hash_one(0u8))))
    }

    /// The same chances for the same thing, and others for another: what is done once more then takes as long again.
    #[cfg(feature = "saga")]
    pub(crate) fn of(thing: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        thing.hash(&mut hasher);
        Chance(AtomicU64::new(hasher.finish()))
    }

    /// The next 64 random bits.
    pub(crate) fn next(&self) -> u64 {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(GOLDEN, Relaxed).wrapping_add(GOLDEN);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Seeds instead of the operating system's, for tests that are replayed: see [`testing`](crate::testing).
#[cfg(feature = "saga")]
pub(crate) mod planned {
    use std::cell::Cell;

    thread_local!(static SEED: Cell<Option<u64>> = const { Cell::new(None) });

    /// Lets everything that `make` makes have the same chances each time.
    pub(crate) fn within<T>(make: impl FnOnce() -> T) -> T {
        let before = SEED.replace(Some(1));
        let made = make();
        SEED.set(before);
        made
    }

    pub(super) fn next() -> Option<u64> {
        let seed = SEED.get()?;
        SEED.set(Some(seed.wrapping_add(1)));
        Some(seed)
    }
}

/// `random` as a fraction in `0.0..1.0`.
pub(crate) fn fraction(random: u64) -> f64 {
    (random >> 11) as f64 / (1u64 << 53) as f64
}
