//! seatbelt 0.11, composed with layered 0.3 and tick 0.8 as it recommends.
//!
//! Its breaker has a time window only, its retry no budget, and there is no
//! bulkhead: the stacks take tokio's semaphore.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use layered::{Execute, Layer, Service, Stack};
use seatbelt::breaker::{Breaker, BreakerLayer};
use seatbelt::fallback::{Fallback, FallbackLayer};
use seatbelt::retry::{Backoff, Retry, RetryLayer};
use seatbelt::timeout::{Timeout, TimeoutLayer};
use seatbelt::{RecoveryInfo, ResilienceContext};
use tick::Clock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceBuilder;

use crate::operation::{CallError, Dependency, Operation, PendsOnce, REQUEST, ReadyCall};
use crate::row::{Form, Rows, What};
use crate::runtime;
use crate::settings::{
    ATTEMPTS, BACKOFF, BACKOFF_CAP, DEADLINE, FAILURE_RATE, FALLBACK, LIMIT, MINIMUM_CALLS, OPEN_WAIT,
    TIMEOUT, WINDOW_TIME,
};
use crate::worker::{answered, fail, refused, served, shared, turned_away};

const SEATBELT: &str = "seatbelt 0.11";
const WITH_TOKIO: &str = "seatbelt 0.11 + tokio";

type Answer = Result<u64, CallError>;

/// One clock for the process. Like the runtime's own timers, it always has one
/// that is due before any timeout here: else each timeout wakes its driver.
fn clock() -> &'static Clock {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    CLOCK.get_or_init(|| {
        let clock = Clock::new_tokio();
        tokio::spawn({
            let clock = clock.clone();
            async move {
                loop {
                    clock.delay(runtime::TICK).await;
                }
            }
        });
        clock
    })
}

fn context() -> ResilienceContext<u64, Answer> {
    ResilienceContext::new(clock())
}

fn classify(answer: &Answer) -> RecoveryInfo {
    match answer {
        Err(CallError::Failed) => RecoveryInfo::retry(),
        Ok(_) | Err(CallError::Refused) => RecoveryInfo::never(),
    }
}

fn breaker() -> BreakerLayer<u64, Answer> {
    Breaker::layer("breaker", &context())
        .recovery_with(|answer, _| classify(answer))
        .rejected_input_error(|_, _| CallError::Refused)
        .failure_threshold(FAILURE_RATE as f32)
        .min_throughput(MINIMUM_CALLS as u32)
        .sampling_duration(WINDOW_TIME)
        .break_duration(OPEN_WAIT)
}

fn retry() -> RetryLayer<u64, Answer> {
    Retry::layer("retry", &context())
        .clone_input()
        .recovery_with(|answer, _| classify(answer))
        .max_retry_attempts(ATTEMPTS as u32 - 1)
        .backoff(Backoff::Exponential)
        .base_delay(BACKOFF)
        .max_delay(BACKOFF_CAP)
        .use_jitter(true)
}

fn timeout(limit: Duration) -> TimeoutLayer<u64, Answer> {
    Timeout::layer("timeout", &context()).timeout_error(|_| CallError::Refused).timeout(limit)
}

fn fallback() -> FallbackLayer<u64, Answer> {
    Fallback::layer("fallback", &context())
        .should_fallback(|answer: &Answer| answer.is_err())
        .fallback(|_, _| Ok(FALLBACK))
}

/// tokio's semaphore as a layer, in both forms: refuses at once when no permit
/// is free. (tower's own limit cannot stand below seatbelt's retry, which calls
/// clones that were never polled ready: the load shed refuses them all.)
struct Limit;

#[derive(Clone)]
struct Limited<S> {
    permits: Arc<Semaphore>,
    inner: S,
}

impl<S> Layer<S> for Limit {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { permits: Arc::new(Semaphore::new(LIMIT)), inner }
    }
}

impl<S: Service<u64, Out = Answer>> Service<u64> for Limited<S> {
    type Out = Answer;

    async fn execute(&self, request: u64) -> Answer {
        let _permit = self.permits.try_acquire().map_err(|_| CallError::Refused)?;
        self.inner.execute(request).await
    }
}

impl<S> tower::Service<u64> for Limited<S>
where
    S: tower::Service<u64, Response = u64, Error = CallError, Future: Unpin>,
{
    type Response = u64;
    type Error = CallError;
    type Future = Held<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: u64) -> Self::Future {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
        Held(permit.map(|permit| (self.inner.call(request), permit)))
    }
}

/// A call with its permit, or a refused one. seatbelt boxes its tower futures,
/// so what is inside may move.
struct Held<F>(Option<(F, OwnedSemaphorePermit)>);

impl<F: Future<Output = Answer> + Unpin> Future for Held<F> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        match &mut self.0 {
            Some((call, _permit)) => Pin::new(call).poll(cx),
            None => Poll::Ready(Err(CallError::Refused)),
        }
    }
}

fn execute<O: Operation>() -> Execute<impl Fn(u64) -> O + Send + Sync + Copy + 'static> {
    Execute::new(O::start)
}

/// Services are called through a reference; this one lives as long as the run.
fn leaked<S>(service: S) -> &'static S {
    Box::leak(Box::new(service))
}

fn five<O: Operation>() -> impl Service<u64, Out = Answer> {
    let stack = (fallback(), breaker(), retry(), Limit, timeout(TIMEOUT), execute::<O>());
    stack.into_service()
}

fn five_in_time<O: Operation>() -> impl Service<u64, Out = Answer> {
    let stack = (fallback(), timeout(DEADLINE), breaker(), retry(), Limit, timeout(TIMEOUT), execute::<O>());
    stack.into_service()
}

fn five_tower<O: Operation>()
-> impl tower::Service<u64, Response = u64, Error = CallError, Future: Send> + Clone + Send + Sync {
    ServiceBuilder::new()
        .layer(fallback())
        .layer(breaker())
        .layer(retry())
        .layer(Limit)
        .layer(timeout(TIMEOUT))
        .service(Dependency::<O>::new())
}

fn five_in_time_tower<O: Operation>()
-> impl tower::Service<u64, Response = u64, Error = CallError, Future: Send> + Clone + Send + Sync {
    ServiceBuilder::new()
        .layer(fallback())
        .layer(timeout(DEADLINE))
        .layer(breaker())
        .layer(retry())
        .layer(Limit)
        .layer(timeout(TIMEOUT))
        .service(Dependency::<O>::new())
}

/// An operation that fails the calls that ask for it, to open the breaker.
const FAILING: u64 = 0;

async fn failing_on_request(request: u64) -> Answer {
    match request {
        FAILING => Err(CallError::Failed),
        other => ReadyCall::start(other).await,
    }
}

pub fn rows(rows: &mut Rows) {
    wrappers(rows);
    services(rows);
}

fn wrappers(rows: &mut Rows) {
    let form = Form::Wrapper;

    for calls in [1_000, 10_000] {
        rows.add(What::BreakerTime { calls }, SEATBELT, form, || {
            let service = leaked((breaker(), execute::<ReadyCall>()).into_service());
            move || answered(|| service.execute(REQUEST))
        });
    }

    rows.add(What::BreakerOpen, SEATBELT, form, || {
        let service = leaked((breaker(), Execute::new(failing_on_request)).into_service());
        for _ in 0..=MINIMUM_CALLS {
            fail(service.execute(FAILING));
        }
        move || refused(|| service.execute(REQUEST))
    });

    rows.add(What::Timeout, SEATBELT, form, || {
        let service = leaked((timeout(TIMEOUT), execute::<ReadyCall>()).into_service());
        move || answered(|| service.execute(REQUEST))
    });
    rows.add(What::TimeoutPending, SEATBELT, form, || {
        let service = leaked((timeout(TIMEOUT), execute::<PendsOnce>()).into_service());
        move || answered(|| service.execute(REQUEST))
    });

    rows.add_noted(What::Retry, SEATBELT, form, "no budget", || {
        let service = leaked((retry(), execute::<ReadyCall>()).into_service());
        move || answered(|| service.execute(REQUEST))
    });

    let note = "no budget, time window";
    rows.add_noted(What::Five, WITH_TOKIO, form, note, || {
        let service = leaked(five::<ReadyCall>());
        move || answered(|| service.execute(REQUEST))
    });
    rows.add_noted(What::FiveDeadline, WITH_TOKIO, form, note, || {
        let service = leaked(five_in_time::<ReadyCall>());
        move || answered(|| service.execute(REQUEST))
    });
    rows.add_noted(What::FivePending, WITH_TOKIO, form, note, || {
        let service = leaked(five::<PendsOnce>());
        move || answered(|| service.execute(REQUEST))
    });
}

fn services(rows: &mut Rows) {
    let form = Form::Tower;
    let dependency = Dependency::<ReadyCall>::new;

    for calls in [1_000, 10_000] {
        rows.add(What::BreakerTime { calls }, SEATBELT, form, move || {
            shared(breaker().layer(dependency()), served)
        });
    }

    rows.add(What::BreakerOpen, SEATBELT, form, || {
        let mut service = breaker().layer(tower::service_fn(failing_on_request));
        for _ in 0..=MINIMUM_CALLS {
            fail(tower::Service::call(&mut service, FAILING));
        }
        shared(service, turned_away)
    });

    rows.add(What::Timeout, SEATBELT, form, move || shared(timeout(TIMEOUT).layer(dependency()), served));
    rows.add(What::TimeoutPending, SEATBELT, form, || {
        shared(timeout(TIMEOUT).layer(Dependency::<PendsOnce>::new()), served)
    });

    rows.add_noted(What::Retry, SEATBELT, form, "no budget", move || {
        shared(retry().layer(dependency()), served)
    });

    let note = "no budget, time window";
    rows.add_noted(What::Five, WITH_TOKIO, form, note, || shared(five_tower::<ReadyCall>(), served));
    rows.add_noted(What::FiveDeadline, WITH_TOKIO, form, note, || {
        shared(five_in_time_tower::<ReadyCall>(), served)
    });
    rows.add_noted(What::FivePending, WITH_TOKIO, form, note, || shared(five_tower::<PendsOnce>(), served));
}
