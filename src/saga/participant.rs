//! What the helpers of participants share.

use std::time::Duration;

/// A duration for Postgres' `make_interval`, at most some thousand years.
#[cfg(any(feature = "postgres", feature = "sqlx"))]
pub(super) fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64().min(1e11)
}

/// A duration in milliseconds for SQLite, which leaves room to subtract it from any time.
#[cfg(feature = "sqlite")]
pub(super) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(i64::MAX / 2)
}

/// How many rows at most.
pub(super) fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
