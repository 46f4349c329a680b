//! failsafe 1.3: a breaker for futures.
//!
//! It has no count window; consecutive failures, its cheapest policy, stand in.
//! Its time window is an exponential average over ten seconds.

use std::time::Duration;

use failsafe::futures::CircuitBreaker;
use failsafe::{Config, FailurePolicy, backoff, failure_policy};

use crate::operation::{CallError, Operation, REQUEST, ReadyCall};
use crate::row::{Form, Rows, What};
use crate::settings::{FAILURE_RATE, MINIMUM_CALLS, OPEN_WAIT, WINDOW_TIME};
use crate::worker::{answered, refused};

const FAILSAFE: &str = "failsafe 1.3";

/// Failures in a row that open the breaker: failsafe's own default.
const CONSECUTIVE: u32 = 5;

fn open_wait() -> impl Iterator<Item = Duration> + Clone + Send + Sync {
    backoff::constant(OPEN_WAIT)
}

/// Opens after failures in a row. Reads no clock while closed.
pub fn consecutive() -> impl CircuitBreaker + Clone + Send + Sync + 'static {
    build(failure_policy::consecutive_failures(CONSECUTIVE, open_wait()))
}

fn time_window() -> impl CircuitBreaker + Clone + Send + Sync + 'static {
    build(failure_policy::success_rate_over_time_window(
        1.0 - FAILURE_RATE,
        MINIMUM_CALLS as u32,
        WINDOW_TIME,
        open_wait(),
    ))
}

fn build<P: FailurePolicy + Send + Sync + 'static>(
    policy: P,
) -> impl CircuitBreaker + Clone + Send + Sync + 'static {
    Config::new().failure_policy(policy).build()
}

pub fn rows(rows: &mut Rows) {
    let form = Form::Wrapper;

    rows.add_noted(What::BreakerCount, FAILSAFE, form, "consecutive failures, no window", || {
        let breaker = consecutive();
        move || {
            let breaker = breaker.clone();
            answered(move || breaker.call(ReadyCall::start(REQUEST)))
        }
    });

    for calls in [1_000, 10_000] {
        rows.add(What::BreakerTime { calls }, FAILSAFE, form, || {
            let breaker = time_window();
            move || {
                let breaker = breaker.clone();
                answered(move || breaker.call(ReadyCall::start(REQUEST)))
            }
        });
    }

    rows.add(What::BreakerOpen, FAILSAFE, form, || {
        let breaker = consecutive();
        for _ in 0..CONSECUTIVE {
            crate::worker::fail(breaker.call(std::future::ready(Err::<u64, _>(CallError::Failed))));
        }
        move || {
            let breaker = breaker.clone();
            refused(move || breaker.call(ReadyCall::start(REQUEST)))
        }
    });
}
