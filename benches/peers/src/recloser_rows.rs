//! recloser 1.4: a breaker over a ring buffer of the last calls.
//!
//! It has no minimum of calls: it judges once the ring is full.

use recloser::{AsyncRecloser, Recloser};

use crate::operation::{CallError, Operation, REQUEST, ReadyCall};
use crate::row::{Form, Rows, What};
use crate::settings::{FAILURE_RATE, OPEN_WAIT, WINDOW_CALLS};
use crate::worker::{answered, fail, refused};

const RECLOSER: &str = "recloser 1.4";

pub fn breaker() -> AsyncRecloser {
    let recloser = Recloser::custom()
        .error_rate(FAILURE_RATE as f32)
        .closed_len(WINDOW_CALLS)
        .open_wait(OPEN_WAIT)
        .build();
    AsyncRecloser::from(recloser)
}

pub fn rows(rows: &mut Rows) {
    let form = Form::Wrapper;

    rows.add(What::BreakerCount, RECLOSER, form, || {
        let breaker = breaker();
        move || {
            let breaker = breaker.clone();
            answered(move || breaker.call(ReadyCall::start(REQUEST)))
        }
    });

    rows.add(What::BreakerOpen, RECLOSER, form, || {
        let breaker = breaker();
        for _ in 0..=WINDOW_CALLS {
            fail(breaker.call(std::future::ready(Err::<u64, _>(CallError::Failed))));
        }
        move || {
            let breaker = breaker.clone();
            refused(move || breaker.call(ReadyCall::start(REQUEST)))
        }
    });
}
