//! backon 1.6 and tokio-retry 0.3: retry alone. Neither has a budget.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder, Retryable};
use tokio_retry::Retry;
use tokio_retry::strategy::{ExponentialBackoff, jitter};

use crate::operation::{Operation, REQUEST, ReadyCall};
use crate::row::{Form, Rows, What};
use crate::settings::{ATTEMPTS, BACKOFF, BACKOFF_CAP};
use crate::worker::answered;

/// backon counts repetitions, and keeps its settings apart from the iterator
/// that it builds for every call.
pub fn backon() -> impl BackoffBuilder + Copy + 'static {
    ExponentialBuilder::new()
        .with_min_delay(BACKOFF)
        .with_max_delay(BACKOFF_CAP)
        .with_max_times(ATTEMPTS - 1)
        .with_jitter()
}

/// tokio-retry's delays are powers of the base, in milliseconds: 2, 4, 8 ...
/// times the factor; 25 makes the first one 50 ms.
fn tokio_retry() -> impl Iterator<Item = Duration> + Clone + Send + Sync + 'static {
    ExponentialBackoff::from_millis(2)
        .factor(BACKOFF.as_millis() as u64 / 2)
        .max_delay(BACKOFF_CAP)
        .map(jitter)
        .take(ATTEMPTS - 1)
}

pub fn rows(rows: &mut Rows) {
    let form = Form::Wrapper;
    let start = || ReadyCall::start(REQUEST);

    rows.add_noted(What::Retry, "backon 1.6", form, "no budget", move || {
        let settings = backon();
        move || answered(move || start.retry(settings))
    });

    rows.add_noted(What::Retry, "tokio-retry 0.3", form, "no budget", move || {
        let delays = tokio_retry();
        move || {
            let delays = delays.clone();
            answered(move || Retry::start(delays.clone(), start))
        }
    });
}
