//! mainstay itself: every policy alone and the stack, in both forms.

use mainstay::{Bulkhead, CircuitBreaker, Retry, Timeout, circuit_breaker, retry};
use tower::Layer;

use crate::operation::{CallError, Dependency, Operation, PendsOnce, REQUEST, ReadyCall};
use crate::row::{Form, Rows, What};
use crate::settings::{
    ATTEMPTS, BACKOFF, BACKOFF_CAP, BUDGET, DEADLINE, FAILURE_RATE, FALLBACK, LIMIT, MINIMUM_CALLS,
    OPEN_WAIT, TIMEOUT, WINDOW_CALLS, WINDOW_TIME,
};
use crate::worker::{answered, fail, refused, served, shared, turned_away};

const MAINSTAY: &str = "mainstay 0.1";

/// Steps of the time window.
const BUCKETS: u32 = 10;

impl From<mainstay::Refused> for CallError {
    fn from(_: mainstay::Refused) -> Self {
        Self::Refused
    }
}

fn breaker() -> circuit_breaker::Config {
    CircuitBreaker::config()
        .failure_rate(FAILURE_RATE)
        .minimum_calls(MINIMUM_CALLS as u32)
        .open_wait(OPEN_WAIT, 1.0, OPEN_WAIT)
}

fn count_window() -> CircuitBreaker {
    let breaker = breaker().count_window(WINDOW_CALLS as u32);
    breaker.build().expect("the settings are in range")
}

fn time_window() -> CircuitBreaker {
    let breaker = breaker().time_window(WINDOW_TIME, BUCKETS);
    breaker.build().expect("the settings are in range")
}

/// Refuses for as long as this program runs.
fn open() -> CircuitBreaker {
    let breaker = count_window();
    for _ in 0..MINIMUM_CALLS {
        fail(breaker.call(|| std::future::ready(Err::<u64, _>(CallError::Failed))));
    }
    breaker
}

fn bulkhead() -> Bulkhead {
    Bulkhead::new(LIMIT).expect("the settings are in range")
}

/// All permits are taken for good.
fn full() -> Bulkhead {
    let bulkhead = bulkhead();
    for _ in 0..LIMIT {
        std::mem::forget(bulkhead.try_acquire().expect("permits are free"));
    }
    bulkhead
}

fn timeout() -> Timeout {
    Timeout::new(TIMEOUT).expect("the settings are in range")
}

/// With a budget that successes fund.
fn retry_config() -> retry::Config {
    let budget = retry::Budget::config().ratio(BUDGET);
    Retry::exponential(BACKOFF)
        .max_attempts(ATTEMPTS as u32)
        .cap(BACKOFF_CAP)
        .budget(budget.build().expect("the settings are in range"))
}

fn retry() -> Retry {
    retry_config().build().expect("the settings are in range")
}

/// The stack of five, with whatever else stands below the fallback.
macro_rules! stack {
    ($(.$more:ident($value:expr))*) => {
        mainstay::stack("peers")
            .fallback(|_: mainstay::Error<CallError>| async { Ok(FALLBACK) })
            $(.$more($value))*
            .circuit_breaker(breaker().count_window(WINDOW_CALLS as u32))
            .retry(retry_config())
            .bulkhead(LIMIT)
            .timeout(TIMEOUT)
            .build()
            .expect("the settings are in range")
    };
}

/// Adds a row for each form of a policy or stack around an operation. `$policy` is built anew for each.
macro_rules! both_forms {
    ($rows:ident, $what:expr, $note:expr, $operation:ty, $wrapped:ident, $served:ident, $policy:expr) => {
        $rows.add_noted($what, MAINSTAY, Form::Wrapper, $note, || {
            let policy: &'static _ = Box::leak(Box::new($policy));
            move || $wrapped(|| policy.call(|| <$operation>::start(REQUEST)))
        });
        $rows.add_noted($what, MAINSTAY, Form::Tower, $note, || {
            shared($policy.layer(Dependency::<$operation>::new()), $served)
        });
    };
    ($rows:ident, $what:expr, $note:expr, $operation:ty, $policy:expr) => {
        both_forms!($rows, $what, $note, $operation, answered, served, $policy);
    };
}

pub fn rows(rows: &mut Rows) {
    both_forms!(rows, What::BreakerCount, "", ReadyCall, count_window());
    for calls in [1_000, 10_000] {
        let what = What::BreakerTime { calls };
        both_forms!(rows, what, "", ReadyCall, time_window());
    }
    let what = What::BreakerOpen;
    let note = "says when to come back";
    both_forms!(rows, what, note, ReadyCall, refused, turned_away, open());

    both_forms!(rows, What::BulkheadFree, "", ReadyCall, bulkhead());
    let what = What::BulkheadFull;
    both_forms!(rows, what, "", ReadyCall, refused, turned_away, full());

    both_forms!(rows, What::Timeout, "", ReadyCall, timeout());
    both_forms!(rows, What::TimeoutPending, "", PendsOnce, timeout());

    both_forms!(rows, What::Retry, "budget", ReadyCall, retry());

    let note = "budget, count window";
    both_forms!(rows, What::Five, note, ReadyCall, stack!());
    both_forms!(rows, What::FivePending, note, PendsOnce, stack!());
    let what = What::FiveDeadline;
    both_forms!(rows, what, note, ReadyCall, stack!(.deadline(DEADLINE)));
}
