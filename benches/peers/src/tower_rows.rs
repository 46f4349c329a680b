//! tower 0.5's own layers: timeout, concurrency limit, load shed, and retry
//! with the budget it ships. It has no breaker and no fallback: the stack uses
//! recloser's breaker as a service, and `map_result`.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use recloser::{AnyError, AsyncRecloser, RecloserFuture};
use tokio::sync::Semaphore;
use tower::limit::ConcurrencyLimit;
use tower::load_shed::LoadShed;
use tower::retry::backoff::{Backoff, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff};
use tower::retry::budget::{Budget, TpsBudget};
use tower::retry::{Policy, Retry};
use tower::timeout::Timeout;
use tower::util::rng::HasherRng;
use tower::{BoxError, Service, ServiceBuilder};

use crate::operation::{CallError, Dependency, Operation, PendsOnce, ReadyCall};
use crate::recloser_rows;
use crate::row::{Form, Rows, What};
use crate::settings::{ATTEMPTS, BACKOFF, BACKOFF_CAP, BUDGET, DEADLINE, FALLBACK, LIMIT, TIMEOUT};
use crate::worker::{served, shared, turned_away};

const TOWER: &str = "tower 0.5";
const WITH_RECLOSER: &str = "tower 0.5 + recloser";

/// A retry policy as `tower::retry`'s documentation builds one: attempts, a
/// shared budget that successes pay into, exponential backoff with jitter.
#[derive(Clone)]
struct Attempts {
    left: usize,
    budget: Arc<TpsBudget>,
    backoff: ExponentialBackoff,
}

impl Attempts {
    fn new() -> Self {
        // Deposits count for ten seconds; ten retries a second are free: both
        // are the budget's own defaults.
        let budget = TpsBudget::new(Duration::from_secs(10), 10, BUDGET as f32);
        let jitter = 1.0;
        let mut backoff = ExponentialBackoffMaker::new(BACKOFF, BACKOFF_CAP, jitter, HasherRng::default())
            .expect("the settings are in range");
        Self { left: ATTEMPTS - 1, budget: Arc::new(budget), backoff: backoff.make_backoff() }
    }
}

impl<E> Policy<u64, u64, E> for Attempts {
    type Future = tokio::time::Sleep;

    fn retry(&mut self, _: &mut u64, result: &mut Result<u64, E>) -> Option<Self::Future> {
        if result.is_ok() {
            self.budget.deposit();
            return None;
        }
        if self.left == 0 || !self.budget.withdraw() {
            return None;
        }
        self.left -= 1;
        Some(self.backoff.next_backoff())
    }

    fn clone_request(&mut self, request: &u64) -> Option<u64> {
        Some(*request)
    }
}

/// recloser's breaker as a service.
#[derive(Clone)]
struct Breaker<S> {
    breaker: AsyncRecloser,
    inner: S,
}

impl<S: Service<u64>> Service<u64> for Breaker<S>
where
    S::Future: Future<Output = Result<S::Response, S::Error>>,
{
    type Response = S::Response;
    type Error = recloser::Error<S::Error>;
    type Future = RecloserFuture<S::Future, AnyError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(recloser::Error::Inner)
    }

    fn call(&mut self, request: u64) -> Self::Future {
        self.breaker.call(self.inner.call(request))
    }
}

impl From<BoxError> for CallError {
    fn from(_: BoxError) -> Self {
        Self::Refused
    }
}

/// All that is below the fallback and the deadline.
fn guarded<O: Operation>() -> impl Service<u64, Response = u64, Error = CallError, Future: Send> + Clone + Send
{
    let breaker = recloser_rows::breaker();
    ServiceBuilder::new()
        .map_err(|_: recloser::Error<BoxError>| CallError::Refused)
        .layer_fn(move |inner| Breaker { breaker: breaker.clone(), inner })
        .retry(Attempts::new())
        .load_shed()
        .concurrency_limit(LIMIT)
        .timeout(TIMEOUT)
        .service(Dependency::<O>::new())
}

fn five<O: Operation>() -> impl Service<u64, Response = u64, Error = CallError, Future: Send> + Clone + Send {
    ServiceBuilder::new()
        .map_result(|result: Result<u64, CallError>| Ok::<_, CallError>(result.unwrap_or(FALLBACK)))
        .service(guarded::<O>())
}

fn five_in_time<O: Operation>()
-> impl Service<u64, Response = u64, Error = CallError, Future: Send> + Clone + Send {
    ServiceBuilder::new()
        .map_result(|result: Result<u64, BoxError>| Ok::<_, CallError>(result.unwrap_or(FALLBACK)))
        .timeout(DEADLINE)
        .service(guarded::<O>())
}

fn dependency() -> Dependency<ReadyCall> {
    Dependency::new()
}

pub fn rows(rows: &mut Rows) {
    let form = Form::Tower;

    rows.add_noted(What::BulkheadFree, TOWER, form, "ConcurrencyLimit: waits when full", || {
        let service = ConcurrencyLimit::new(dependency(), LIMIT);
        shared(service, served)
    });
    rows.add_noted(What::BulkheadFree, TOWER, form, "LoadShed + ConcurrencyLimit", || {
        let service = LoadShed::new(ConcurrencyLimit::new(dependency(), LIMIT));
        shared(service, served)
    });
    rows.add_noted(What::BulkheadFull, TOWER, form, "LoadShed + ConcurrencyLimit", || {
        let none = Arc::new(Semaphore::new(0));
        let service = LoadShed::new(ConcurrencyLimit::with_semaphore(dependency(), none));
        shared(service, turned_away)
    });

    rows.add(What::Timeout, TOWER, form, || shared(Timeout::new(dependency(), TIMEOUT), served));
    rows.add(What::TimeoutPending, TOWER, form, || {
        shared(Timeout::new(Dependency::<PendsOnce>::new(), TIMEOUT), served)
    });

    rows.add_noted(What::Retry, TOWER, form, "TpsBudget", || {
        shared(Retry::new(Attempts::new(), dependency()), served)
    });

    rows.add(What::Five, WITH_RECLOSER, form, || shared(five::<ReadyCall>(), served));
    rows.add(What::FiveDeadline, WITH_RECLOSER, form, || shared(five_in_time::<ReadyCall>(), served));
    rows.add(What::FivePending, WITH_RECLOSER, form, || shared(five::<PendsOnce>(), served));
}
