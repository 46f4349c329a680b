//! What other circuit breakers get wrong, each as a test through the public API.
#![allow(missing_docs)]

use std::{
    future::{pending, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::FutureExt;
use mainstay::{
    Bulkhead, CircuitBreaker, Error, Event, Kind,
    circuit_breaker::{Class, Config, State},
};
use tokio::time::{advance, sleep};

const MS: Duration = Duration::from_millis(1);

async fn ok<C: mainstay::circuit_breaker::Classify<(), &'static str>>(breaker: &CircuitBreaker<C>) -> bool {
    breaker.call(|| ready(Ok::<_, &str>(()))).await.is_ok()
}

async fn fail<C: mainstay::circuit_breaker::Classify<(), &'static str>>(breaker: &CircuitBreaker<C>) -> bool {
    matches!(breaker.call(|| ready(Err::<(), _>("down"))).await, Err(Error::Inner(_)))
}

/// Trips at the first failure; a wait of 100 ms without growth, one probe, closes at once.
fn touchy() -> Config {
    CircuitBreaker::config()
        .count_window(10)
        .consecutive_failures(1)
        .open_wait(100 * MS, 1.0, 100 * MS)
        .immediate_close()
        .seed(1)
}

#[tokio::test(start_paused = true)]
async fn long_healthy_then_down_trips_after_the_windows_worth_of_calls() {
    for config in [CircuitBreaker::config().count_window(100), CircuitBreaker::config()] {
        let breaker = config.build().unwrap();
        for call in 0..1_000_000 {
            assert!(ok(&breaker).await);
            if call % 1_000 == 0 {
                advance(100 * MS).await;
            }
        }
        let mut failures = 0;
        while breaker.state() == State::Closed {
            fail(&breaker).await;
            advance(100 * MS).await;
            failures += 1;
            assert!(failures <= 100, "{breaker:?}");
        }
        assert!(failures >= 50, "{failures}");
    }
}
