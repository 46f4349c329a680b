//! The one file that reads the clock.
//!
//! Every machine takes `now` as an argument. The clock is tokio's, so that a paused clock in a test
//! is obeyed, but it is handed on as a std `Instant`, which costs no type parameter.

use std::time::{Duration, Instant};

/// The present. Costs one read of the monotonic clock.
#[inline]
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
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
