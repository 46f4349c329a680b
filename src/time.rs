//! The one file that reads the clock.
//!
//! Every machine takes `now` as an argument. The clock is tokio's, so that a paused clock in a test
//! is obeyed, but it is handed on as a std `Instant`, which costs no type parameter.

use std::{
    hash::{Hash, Hasher},
    time::{Duration, Instant},
};

/// The present. Costs one read of the monotonic clock.
#[inline]
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Whether tokio's clock stands still where it is asked, as a paused one does as long as nobody waits. Takes as long as the system's clock needs
/// to move on: some nanoseconds.
#[cfg(feature = "saga")]
#[allow(clippy::disallowed_methods)]
pub(crate) fn is_paused() -> bool {
    let (then, moves) = (now(), Instant::now());
    while Instant::now() == moves {
        std::hint::spin_loop();
    }
    now() == then
}

/// `at + by`, or an instant too far away to matter when the sum does not exist.
#[inline]
pub(crate) fn later(at: Instant, by: Duration) -> Instant {
    // Thirty years: what tokio's timer uses for "far in the future", and what every platform's
    // `Instant` can hold.
    const FAR: Duration = Duration::from_secs(86_400 * 365 * 30);
    at.checked_add(by.min(FAR)).unwrap_or_else(|| at.checked_add(FAR).unwrap_or(at))
}

/// A duration as nanoseconds, saturating at 584 years.
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration
        .as_secs()
        .checked_mul(1_000_000_000)
        .and_then(|nanos| nanos.checked_add(u64::from(duration.subsec_nanos())))
        .unwrap_or(u64::MAX)
}

/// The present by the wall clock, since 1970: what is written down for other processes to compare with. It may be set back.
#[cfg(feature = "sqlite")]
#[allow(clippy::disallowed_methods)]
pub(crate) fn wall() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Instants as nanoseconds since one of them, so that they fit into an atomic word.
///
/// The difference of two `Instant`s is two nested calls into std that are not inlined. An `Instant` does show what it is made of to a
/// `Hasher`: seconds and nanoseconds, on every platform today. That is read where it has been found to be so, and differences are
/// taken where not.
#[derive(Debug)]
pub(crate) struct Scale {
    base: Instant,
    /// What `base` is made of; `None` if that does not count nanoseconds.
    inside: Option<u64>,
}

impl Scale {
    pub(crate) fn new(base: Instant) -> Self {
        let counts = |by: Duration| {
            base.checked_add(by).is_none_or(|at| inside(at).wrapping_sub(inside(base)) == nanos(by))
        };
        let second = Duration::from_secs(1);
        let steps =
            [Duration::from_nanos(1), second - Duration::from_nanos(1), second, second * 86_400 * 365];
        Scale { base, inside: steps.into_iter().all(counts).then(|| inside(base)) }
    }

    /// The nanoseconds from the base to `at`, at most 292 years; 0 before it.
    #[inline]
    pub(crate) fn nanos(&self, at: Instant) -> u64 {
        match self.inside {
            Some(base) => (inside(at).wrapping_sub(base) as i64).max(0) as u64,
            None => self.difference(at),
        }
    }

    #[cold]
    fn difference(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.base)).min(i64::MAX as u64)
    }
}

/// The seconds that an instant is made of in nanoseconds, and the nanoseconds.
#[inline]
fn inside(at: Instant) -> u64 {
    struct Parts(u64);

    impl Hasher for Parts {
        #[inline]
        fn write_i64(&mut self, seconds: i64) {
            self.write_u64(seconds as u64);
        }

        #[inline]
        fn write_u64(&mut self, seconds: u64) {
            self.0 = self.0.wrapping_add(seconds.wrapping_mul(1_000_000_000));
        }

        #[inline]
        fn write_u32(&mut self, nanos: u32) {
            self.0 = self.0.wrapping_add(nanos.into());
        }

        // Something else: no count of nanoseconds.
        fn write(&mut self, _: &[u8]) {}

        fn finish(&self) -> u64 {
            self.0
        }
    }

    let mut parts = Parts(0);
    at.hash(&mut parts);
    parts.finish()
}

#[cfg(all(test, not(mainstay_loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_instant_in_nanoseconds_is_its_difference_from_the_base() {
        let base = now();
        let scale = Scale::new(base);
        let apart = Scale { base, inside: None };
        let mut step = 1_u64;
        while step < i64::MAX as u64 / 3 {
            for nanos in [step - 1, step, step + 1] {
                let by = Duration::from_nanos(nanos);
                if let Some(at) = base.checked_add(by) {
                    assert_eq!(scale.nanos(at), nanos);
                    assert_eq!(apart.nanos(at), nanos);
                }
                if let Some(at) = base.checked_sub(by) {
                    assert_eq!(scale.nanos(at), 0, "{nanos} ns before the base");
                    assert_eq!(apart.nanos(at), 0);
                }
            }
            step = step * 3 / 2 + 1;
        }
    }

    #[test]
    fn no_difference_is_taken_on_the_platforms_that_are_tested() {
        assert!(Scale::new(now()).inside.is_some(), "std's `Instant` is no longer seconds and nanoseconds");
    }
}
