//! The settings every library is given, as far as it has them.
//!
//! A library that lacks one keeps its own default; its file says so.

use std::time::Duration;

/// Breaker, count window: the last so many calls.
pub const WINDOW_CALLS: usize = 100;
/// Breaker, time window.
pub const WINDOW_TIME: Duration = Duration::from_secs(10);
/// Breaker: calls in the window before a verdict.
pub const MINIMUM_CALLS: usize = 20;
/// Breaker: share of failures that opens it.
pub const FAILURE_RATE: f64 = 0.5;
/// Breaker: how long it stays open; longer than any run of this benchmark.
pub const OPEN_WAIT: Duration = Duration::from_secs(3600);

/// Bulkhead: calls at once.
pub const LIMIT: usize = 20;

/// Timeout of one attempt.
pub const TIMEOUT: Duration = Duration::from_millis(500);
/// Deadline of the whole call.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Retry: attempts, the first included.
pub const ATTEMPTS: usize = 3;
/// Retry: delay before the first repetition; it doubles, with jitter.
pub const BACKOFF: Duration = Duration::from_millis(50);
/// Retry: longest delay.
pub const BACKOFF_CAP: Duration = Duration::from_secs(1);
/// Retry: repetitions per call that the budget allows.
pub const BUDGET: f64 = 0.1;

/// What a fallback answers: never what the operation answers, so that a row
/// whose policies got in the way of a healthy call is noticed.
pub const FALLBACK: u64 = u64::MAX;
