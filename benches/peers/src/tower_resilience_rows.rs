//! tower-resilience 0.13: layers for all five policies.
//!
//! Policies are built with a handle where there is one, so that clones and
//! threads share state. No listener is registered. Where two layers stand for
//! one policy the notes say which.

use std::time::Duration;

use tower::{Layer, Service, ServiceBuilder};
use tower_resilience::bulkhead::{BulkheadConfigBuilder, BulkheadLayer, BulkheadServiceError};
use tower_resilience::circuitbreaker::{
    CircuitBreakerConfigBuilder, CircuitBreakerError, CircuitBreakerLayer, SlidingWindowType,
};
use tower_resilience::fallback::FallbackLayer;
use tower_resilience::retry::{ExponentialRandomBackoff, RetryBudgetBuilder, RetryLayer};
use tower_resilience::timelimiter::{TimeLimiterError, TimeLimiterLayer};

use crate::operation::{CallError, Dependency, Operation, PendsOnce, REQUEST, ReadyCall};
use crate::row::{Form, Rows, What};
use crate::settings::{
    ATTEMPTS, BACKOFF, BACKOFF_CAP, DEADLINE, FAILURE_RATE, FALLBACK, LIMIT, MINIMUM_CALLS, OPEN_WAIT,
    TIMEOUT, WINDOW_CALLS, WINDOW_TIME,
};
use crate::worker::{refused_later, served, shared, turned_away};

const TOWER_RESILIENCE: &str = "tower-resilience 0.13";

fn breaker() -> CircuitBreakerConfigBuilder {
    CircuitBreakerLayer::builder()
        .name("peers")
        .failure_rate_threshold(FAILURE_RATE)
        .sliding_window_size(WINDOW_CALLS)
        .minimum_number_of_calls(MINIMUM_CALLS)
        .wait_duration_in_open(OPEN_WAIT)
}

fn count_window() -> CircuitBreakerLayer {
    breaker().build_with_handle().expect("the settings are in range").0
}

fn time_window() -> CircuitBreakerLayer {
    breaker()
        .sliding_window_type(SlidingWindowType::TimeBased)
        .sliding_window_duration(WINDOW_TIME)
        .build_with_handle()
        .expect("the settings are in range")
        .0
}

/// Does not wait for a permit.
fn bulkhead() -> BulkheadConfigBuilder {
    BulkheadLayer::builder().name("peers").max_concurrent_calls(LIMIT).reject_when_full()
}

fn time_limiter(limit: Duration) -> TimeLimiterLayer {
    TimeLimiterLayer::builder().name("peers").timeout_duration(limit).build()
}

/// Its budget is paid one token per success, or so many per second.
fn retry<E: Send + Sync + 'static>() -> RetryLayer<u64, u64, E> {
    let budget = RetryBudgetBuilder::new()
        .token_bucket()
        .tokens_per_second(10.0)
        .max_tokens(100)
        .build()
        .expect("the settings are in range");
    let backoff = ExponentialRandomBackoff::new(BACKOFF, 1.0).expect("the settings are in range");
    RetryLayer::builder()
        .name("peers")
        .max_attempts(ATTEMPTS)
        .backoff(backoff.max_interval(BACKOFF_CAP))
        .budget(budget)
        .build()
}

type Limited = BulkheadServiceError<TimeLimiterError<CallError>>;
type Broken = CircuitBreakerError<Limited>;

fn five<O: Operation>()
-> impl Service<u64, Response = u64, Error: std::fmt::Debug, Future: Send> + Clone + Send + Sync {
    ServiceBuilder::new()
        .layer(FallbackLayer::<u64, u64, Broken>::value(FALLBACK))
        .layer(count_window())
        .layer(retry::<Limited>())
        .layer(bulkhead().build_with_handle().expect("the limit is in range").0)
        .layer(time_limiter(TIMEOUT))
        .service(Dependency::<O>::new())
}

fn five_in_time<O: Operation>()
-> impl Service<u64, Response = u64, Error: std::fmt::Debug, Future: Send> + Clone + Send + Sync {
    ServiceBuilder::new()
        .layer(FallbackLayer::<u64, u64, TimeLimiterError<Broken>>::value(FALLBACK))
        .layer(time_limiter(DEADLINE))
        .layer(count_window())
        .layer(retry::<Limited>())
        .layer(bulkhead().build_with_handle().expect("the limit is in range").0)
        .layer(time_limiter(TIMEOUT))
        .service(Dependency::<O>::new())
}

fn dependency() -> Dependency<ReadyCall> {
    Dependency::new()
}

pub fn rows(rows: &mut Rows) {
    let form = Form::Tower;
    let library = TOWER_RESILIENCE;

    rows.add(What::BreakerCount, library, form, || shared(count_window().layer(dependency()), served));

    for calls in [1_000, 10_000] {
        rows.add(What::BreakerTime { calls }, library, form, || {
            shared(time_window().layer(dependency()), served)
        });
    }

    rows.add(What::BreakerOpen, library, form, || {
        let (layer, handle) = breaker().build_with_handle().expect("the settings are in range");
        tokio::runtime::Handle::current().block_on(handle.force_open());
        shared(layer.layer(dependency()), turned_away)
    });

    rows.add_noted(What::BulkheadFree, library, form, "reject_when_full", || {
        let (layer, _) = bulkhead().build_with_handle().expect("the limit is in range");
        shared(layer.layer(dependency()), served)
    });
    rows.add_noted(What::BulkheadFree, library, form, "waits when full: its default", || {
        let waiting = BulkheadLayer::builder().name("peers").max_concurrent_calls(LIMIT);
        let (layer, _) = waiting.build_with_handle().expect("the limit is in range");
        shared(layer.layer(dependency()), served)
    });

    // Refuses through a timer of zero length, that is at the next millisecond:
    // the thread sleeps until then.
    let note = "reject_when_full: sleeps till the next tick";
    rows.add_noted(What::BulkheadFull, library, form, note, || {
        let (layer, _) = BulkheadLayer::builder()
            .name("peers")
            .max_concurrent_calls(1)
            .reject_when_full()
            .build_with_handle()
            .expect("the limit is in range");
        // One call that never ends holds the only permit.
        let mut holder =
            layer.layer(tower::service_fn(|_: u64| std::future::pending::<Result<u64, CallError>>()));
        let held: &'static mut _ = Box::leak(Box::new(holder.call(REQUEST)));
        crate::worker::begin(held);
        let service = layer.layer(dependency());
        move || {
            let mut service = service.clone();
            refused_later(move || service.call(REQUEST))
        }
    });

    rows.add(What::Timeout, library, form, || shared(time_limiter(TIMEOUT).layer(dependency()), served));
    rows.add(What::TimeoutPending, library, form, || {
        shared(time_limiter(TIMEOUT).layer(Dependency::<PendsOnce>::new()), served)
    });

    rows.add_noted(What::Retry, library, form, "token bucket", || {
        shared(retry::<CallError>().layer(dependency()), served)
    });

    rows.add(What::Five, library, form, || shared(five::<ReadyCall>(), served));
    rows.add(What::FiveDeadline, library, form, || shared(five_in_time::<ReadyCall>(), served));
    rows.add(What::FivePending, library, form, || shared(five::<PendsOnce>(), served));
}
