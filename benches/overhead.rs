//! What each policy adds to a call, watched from one change to the next.
//!
//! The comparison with other libraries is a package of its own, `benches/peers`. This one measures mainstay alone:
//! `cargo bench --bench overhead`, or `-- --test` to run each once.

use std::{
    future::Future,
    hint::black_box,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use criterion::{Criterion, criterion_group, criterion_main};
use mainstay::{Bulkhead, CircuitBreaker, ConfigError, Deadline, Fallback, RateLimiter, Retry, Timeout};
use tower::{Layer, Service};

/// Polls to the end on this thread, with a waker that does nothing.
fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
}

async fn ready() -> Result<u64, u64> {
    black_box(Ok(7))
}

/// Pends once, like a call that has to wait for a socket.
async fn pends_once() -> Result<u64, u64> {
    struct Once(bool);
    impl Future for Once {
        type Output = ();
        fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
            if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
        }
    }
    Once(false).await;
    black_box(Ok(7))
}

macro_rules! five {
    () => {
        mainstay::stack("five")
            .fallback(|_| async { Ok(0) })
            .circuit_breaker(CircuitBreaker::config())
            .retry(Retry::exponential(Duration::from_millis(50)))
            .bulkhead(100)
            .timeout(Duration::from_millis(500))
            .build()?
    };
}

fn each_policy(c: &mut Criterion) -> Result<(), ConfigError> {
    let mut group = c.benchmark_group("ready");
    group.bench_function("bare", |b| b.iter(|| run(ready())));

    let timeout = Timeout::new(Duration::from_millis(500))?;
    group.bench_function("timeout", |b| b.iter(|| run(timeout.call(ready))));
    let deadline = Deadline::new(Duration::from_secs(2))?;
    group.bench_function("deadline", |b| b.iter(|| run(deadline.call(ready))));
    let fallback = Fallback::<_, u64, u64>::value(0);
    group.bench_function("fallback", |b| b.iter(|| run(fallback.call(ready))));
    let retry = Retry::exponential(Duration::from_millis(50)).build()?;
    group.bench_function("retry", |b| b.iter(|| run(retry.call(ready))));
    let bulkhead = Bulkhead::new(100)?;
    group.bench_function("bulkhead", |b| b.iter(|| run(bulkhead.call(ready))));
    let breaker = CircuitBreaker::config().count_window(100).build()?;
    group.bench_function("breaker, count window", |b| b.iter(|| run(breaker.call(ready))));
    let breaker = CircuitBreaker::config().time_window(Duration::from_secs(10), 10).build()?;
    group.bench_function("breaker, time window", |b| b.iter(|| run(breaker.call(ready))));
    // Never full; the sliding window remembers a few hundred calls and forgets one at each.
    let limiter = RateLimiter::new(1_000_000, Duration::from_micros(20))?;
    group.bench_function("rate limiter, sliding window", |b| b.iter(|| run(limiter.call(ready))));
    let limiter = RateLimiter::config(u32::MAX, Duration::from_secs(1)).token_bucket(u32::MAX).build()?;
    group.bench_function("rate limiter, token bucket", |b| b.iter(|| run(limiter.call(ready))));
    group.finish();

    let mut group = c.benchmark_group("refused");
    breaker.force_open();
    group.bench_function("breaker open", |b| b.iter(|| run(breaker.call(ready))));
    let full = Bulkhead::new(1)?;
    let permit = full.try_acquire();
    group.bench_function("bulkhead full", |b| b.iter(|| run(full.call(ready))));
    drop(permit);
    let spent = RateLimiter::new(1, Duration::from_secs(86_400))?;
    run(spent.call(ready)).ok();
    group.bench_function("rate limiter", |b| b.iter(|| run(spent.call(ready))));
    group.finish();
    Ok(())
}

fn stacks(c: &mut Criterion) -> Result<(), ConfigError> {
    let mut group = c.benchmark_group("stack");
    let five = five!();
    group.bench_function("wrapper", |b| b.iter(|| run(five.call(ready))));
    group.bench_function("wrapper, pends once", |b| b.iter(|| run(five.call(pends_once))));
    let boxed = five!().boxed();
    group.bench_function("boxed", |b| b.iter(|| run(boxed.call(ready))));
    let mut service = five!().layer(tower::service_fn(|_: u64| ready_or_refused()));
    group.bench_function("tower", |b| {
        b.iter(|| {
            let mut cx = Context::from_waker(Waker::noop());
            let _ready = service.poll_ready(&mut cx);
            run(service.call(7))
        });
    });
    group.finish();
    Ok(())
}

/// The error of the tower form must hold a refusal.
#[derive(Debug)]
struct Failed;

impl From<mainstay::Refused> for Failed {
    fn from(_: mainstay::Refused) -> Self {
        Failed
    }
}

async fn ready_or_refused() -> Result<u64, Failed> {
    black_box(Ok(7))
}

fn all(c: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime with a timer");
    let _entered = runtime.enter();
    each_policy(c).expect("the settings are constants");
    stacks(c).expect("the settings are constants");
}

criterion_group!(benches, all);
criterion_main!(benches);
