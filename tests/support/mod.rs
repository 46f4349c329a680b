//! A service that notices when it is misused, and what several files of tests share.
#![allow(dead_code, missing_docs)]

use std::{
    future::{Future, Ready, ready},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt;
use mainstay::{
    CircuitBreaker, Event, Observer, Refused, Retry,
    circuit_breaker::{self, State},
    retry,
};
use tower::Service;

pub const MS: Duration = Duration::from_millis(1);

/// A user's own error, which can hold a refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    #[error("down")]
    Down,
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// A service that obeys tower's contract to the letter and panics when its caller does not.
///
/// `poll_ready` makes it wait once and then reserves one of its places; a call uses the place up. A clone has reserved
/// nothing. Dropping it gives back a place that was not used.
#[derive(Debug)]
pub struct Strict {
    record: Arc<Record>,
    waited: bool,
    ready: bool,
}

/// What all clones of a [`Strict`] have seen.
#[derive(Debug, Default)]
pub struct Record {
    /// So many of the next calls fail.
    pub failing: AtomicUsize,
    pub calls: AtomicUsize,
    /// Places that are reserved and not used.
    pub reserved: AtomicUsize,
    pub asked: AtomicUsize,
}

impl Record {
    pub fn calls(&self) -> usize {
        self.calls.load(Relaxed)
    }

    pub fn reserved(&self) -> usize {
        self.reserved.load(Relaxed)
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

impl Strict {
    /// One whose first `failing` calls fail; the others answer with the request plus one.
    pub fn failing(failing: usize) -> (Strict, Arc<Record>) {
        let record = Arc::new(Record { failing: failing.into(), ..Record::default() });
        (Strict { record: record.clone(), waited: false, ready: false }, record)
    }

    fn give_up_place(&mut self) {
        if std::mem::take(&mut self.ready) {
            self.record.reserved.fetch_sub(1, Relaxed);
        }
    }
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Strict { record: self.record.clone(), waited: false, ready: false }
    }
}

impl Drop for Strict {
    fn drop(&mut self) {
        self.give_up_place();
    }
}

impl Service<u32> for Strict {
    type Response = u32;
    type Error = Failed;
    type Future = Ready<Result<u32, Failed>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        self.record.asked.fetch_add(1, Relaxed);
        if !self.waited {
            self.waited = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !self.ready {
            self.ready = true;
            self.record.reserved.fetch_add(1, Relaxed);
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: u32) -> Self::Future {
        assert!(self.ready, "called an instance that had not said that it is ready");
        self.give_up_place();
        self.waited = false;
        self.record.calls.fetch_add(1, Relaxed);
        let fails = self.record.failing.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        ready(if fails { Err(Failed::Down) } else { Ok(request + 1) })
    }
}

/// The answer of `future`, or the message of its panic, or that it hangs.
pub async fn caught<F: Future>(future: F) -> Result<F::Output, String> {
    let Ok(ended) = tokio::time::timeout(3_600_000 * MS, AssertUnwindSafe(future).catch_unwind()).await
    else {
        return Err("hangs".to_owned());
    };
    ended.map_err(|panic| match panic.downcast::<&str>() {
        Ok(message) => message.to_string(),
        Err(panic) => panic.downcast::<String>().map_or_else(|_| "?".to_owned(), |message| *message),
    })
}

/// Every event, as its debug text.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn count(&self, part: &str) -> usize {
        self.all().iter().filter(|event| event.contains(part)).count()
    }
}

impl Observer for Heard {
    fn on_event(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}

/// Trips at the first failure; closes at the first success after 100 ms.
pub fn touchy() -> circuit_breaker::Config {
    CircuitBreaker::config()
        .count_window(10)
        .consecutive_failures(1)
        .open_wait(100 * MS, 1.0, 100 * MS)
        .immediate_close()
        .seed(1)
}

/// Repeats without limits, 10 ms apart.
pub fn stubborn(attempts: u32) -> retry::Config {
    Retry::constant(10 * MS).max_attempts(attempts).no_budget().jitter(mainstay::backoff::Jitter::None)
}

/// A breaker that is open.
pub fn open() -> CircuitBreaker {
    let breaker = touchy().build().unwrap();
    breaker.try_acquire().unwrap().failure();
    assert_eq!(breaker.state(), State::Open);
    breaker
}

/// All policies without closures, with a retry that repeats.
pub type Full = mainstay::stack::Recommended;

pub fn full() -> Full {
    mainstay::stack("full")
        .deadline(2_000 * MS)
        .circuit_breaker(CircuitBreaker::config())
        .retry(stubborn(5))
        .bulkhead(10)
        .timeout(500 * MS)
        .build()
        .unwrap()
}
