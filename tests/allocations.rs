//! What calls allocate: nothing, whether they are admitted or refused, but what a sliding window remembers for the first time.
#![allow(missing_docs, clippy::disallowed_methods, unsafe_code)] // Time is measured from outside.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    future::{Future, pending, ready},
    hint::black_box,
    time::Duration,
};

use futures::FutureExt;
use mainstay::{
    BoxedStack, Bulkhead, CircuitBreaker, Deadline, Error, Fallback, Kind, RateLimiter, Refused, Retry,
    Stack, Timeout, bulkhead, circuit_breaker,
};

/// The system's allocator, and how often the current thread has asked it.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // Gone only while the thread ends.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every method is the system allocator's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CALLS: u64 = 1_000;

/// The allocations of a thousand calls that are ready at once, after a few for whatever is made once per thread.
fn allocations<F: Future>(mut call: impl FnMut() -> F, mut check: impl FnMut(F::Output)) -> u64 {
    for _ in 0..10 {
        check(call().now_or_never().expect("ready at once"));
    }
    let before = COUNT.get();
    for _ in 0..CALLS {
        check(black_box(call()).now_or_never().expect("ready at once"));
    }
    COUNT.get() - before
}

fn seven() -> std::future::Ready<Result<u64, Refused>> {
    ready(Ok(7))
}

fn ok<E: std::fmt::Debug>(answer: Result<u64, E>) {
    assert_eq!(answer.unwrap(), 7);
}

fn refused(kind: Kind) -> impl Fn(Result<u64, Error<Refused>>) {
    move |answer| assert_eq!(answer.unwrap_err().refused().map(Refused::kind), Some(kind))
}

/// All that there is in one stack, and nothing that a call may not cost.
type Five = Stack<(Deadline, (CircuitBreaker, (Retry, (Bulkhead, (Timeout, ())))))>;

fn five(breaker: circuit_breaker::Config, bulkhead: bulkhead::Config) -> Five {
    mainstay::stack("five".to_owned())
        .deadline(Duration::from_secs(2))
        .circuit_breaker(breaker)
        .retry(Retry::exponential(Duration::from_millis(50)))
        .bulkhead(bulkhead)
        .timeout(Duration::from_millis(500))
        .build()
        .unwrap()
}

fn plain_five() -> Five {
    five(CircuitBreaker::config(), Bulkhead::config(20))
}

fn breakers() -> Vec<CircuitBreaker> {
    let config = CircuitBreaker::config;
    let configs = [
        config(),
        config().count_window(100),
        config().time_window(Duration::from_secs(10), 10),
        config().consecutive_failures(5),
        config().consecutive_failures_within(5, Duration::from_secs(60)),
        config().failures_of_last(5, 10),
        config().slow_rate(0.5, Duration::from_secs(1)),
    ];
    configs.into_iter().map(|config| config.build().unwrap()).collect()
}

/// With room for a few more calls than are made, which the sliding window has used before.
fn limiters() -> [RateLimiter; 3] {
    let config = || RateLimiter::config(3_000, Duration::from_secs(3_600));
    let configs = [config(), config().fixed_window(), config().token_bucket(3_000)];
    configs.map(|config| {
        let limiter = config.build().unwrap();
        drop(limiter.try_acquire_many(3_000).unwrap());
        limiter
    })
}

/// The ring is doubled when more is in the window than ever before: from 16 for the first ten calls to 1,024 for a thousand more.
#[tokio::test(flavor = "current_thread")]
async fn a_sliding_window_allocates_as_often_as_its_ring_is_doubled() {
    let limiter = RateLimiter::new(3_000, Duration::from_secs(3_600)).unwrap();
    assert_eq!(allocations(|| limiter.call(seven), ok), 6);
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| async { Box::new(black_box(7)) }, |value| assert_eq!(*value, 7)), CALLS);
    assert_eq!(allocations(|| ready(vec![1_u8; 10].len()), |_| ()), CALLS);
    assert_eq!(allocations(seven, ok), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_healthy_call_of_each_policy_allocates_nothing() {
    for breaker in breakers() {
        assert_eq!(allocations(|| breaker.call(seven), ok), 0, "{breaker:?}");
    }
    let queueing = Bulkhead::config(1).queue(10, Duration::from_secs(1)).build().unwrap();
    for bulkhead in [Bulkhead::new(1).unwrap(), Bulkhead::new(1_000).unwrap(), queueing] {
        assert_eq!(allocations(|| bulkhead.call(seven), ok), 0, "{bulkhead:?}");
    }
    for limiter in limiters() {
        assert_eq!(allocations(|| limiter.call(seven), ok), 0, "{limiter:?}");
        let given_back = || ready(limiter.try_acquire().map(drop));
        assert_eq!(allocations(given_back, |permit| permit.unwrap()), 0, "{limiter:?}");
    }
    let retry = Retry::exponential(Duration::from_millis(50)).build().unwrap();
    assert_eq!(allocations(|| retry.call(seven), ok), 0);
    let judging = Retry::exponential(Duration::from_millis(50))
        .when(|failure: &mainstay::retry::Failure<'_, u64, Refused>| failure.value().is_none())
        .build()
        .unwrap();
    assert_eq!(allocations(|| judging.call(seven), ok), 0);
    let timeout = Timeout::new(Duration::from_secs(1)).unwrap();
    assert_eq!(allocations(|| timeout.call(seven), ok), 0);
    let deadline = Deadline::new(Duration::from_secs(1)).unwrap();
    assert_eq!(allocations(|| deadline.call(seven), ok), 0);
    let fallback = Fallback::<_, u64, Refused>::value(1);
    assert_eq!(allocations(|| fallback.call(seven), ok), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_healthy_call_of_a_stack_allocates_nothing_in_any_form() {
    let stack = plain_five();
    assert_eq!(allocations(|| stack.call(seven), ok), 0);
    assert_eq!(allocations(|| stack.call_with(|_| seven()), ok), 0);
    assert_eq!(allocations(|| stack.call_marked(seven), |answer| assert_eq!(answer.unwrap().value, 7)), 0);
    let once = mainstay::stack("once").bulkhead(1).build().unwrap();
    assert_eq!(allocations(|| once.call_once(seven), ok), 0);
    let with_fallback = mainstay::stack("fallback")
        .fallback(|_why| async { Ok::<_, Refused>(1) })
        .deadline(Duration::from_secs(1))
        .circuit_breaker(CircuitBreaker::config())
        .build()
        .unwrap();
    assert_eq!(allocations(|| with_fallback.call(seven), ok), 0);
    // Not the clone of a stack or a handle either.
    assert_eq!(allocations(|| ready(black_box(stack.clone())), drop), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_call_of_a_boxed_stack_allocates_once() {
    let boxed: BoxedStack<u64, Refused> = plain_five().boxed();
    assert_eq!(allocations(|| boxed.call(seven), ok), CALLS);
    let small: BoxedStack<u64, Refused> = mainstay::stack("small").bulkhead(1).build().unwrap().boxed();
    assert_eq!(allocations(|| small.call_with(|_| seven()), ok), CALLS);
    let shut: BoxedStack<u64, Refused> = {
        let breaker = CircuitBreaker::config().build().unwrap();
        breaker.force_open();
        mainstay::stack("shut").circuit_breaker(breaker).build().unwrap().boxed()
    };
    assert_eq!(allocations(|| shut.call(seven), refused(Kind::CircuitOpen)), CALLS);
}

#[tokio::test(flavor = "current_thread")]
async fn a_refusal_allocates_nothing() {
    let open = CircuitBreaker::config()
        .name("open".to_owned())
        .consecutive_failures(1)
        .open_wait(Duration::from_secs(60), 1.0, Duration::from_secs(60))
        .build()
        .unwrap();
    open.try_acquire().unwrap().failure();
    assert_eq!(allocations(|| open.call(seven), refused(Kind::CircuitOpen)), 0);
    let stack = mainstay::stack("open").circuit_breaker(open).bulkhead(1).build().unwrap();
    assert_eq!(allocations(|| stack.call(seven), refused(Kind::CircuitOpen)), 0);

    let forced = CircuitBreaker::config().build().unwrap();
    forced.force_open();
    assert_eq!(allocations(|| forced.call(seven), refused(Kind::CircuitOpen)), 0);

    let full = Bulkhead::config(1).name("full".to_owned()).build().unwrap();
    let _held = full.try_acquire().unwrap();
    assert_eq!(allocations(|| full.call(seven), refused(Kind::BulkheadFull)), 0);
    let stack = mainstay::stack("full")
        .deadline(Duration::from_secs(2))
        .circuit_breaker(CircuitBreaker::config())
        .retry(3)
        .bulkhead(full.clone())
        .timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    assert_eq!(allocations(|| stack.call(seven), refused(Kind::BulkheadFull)), 0);

    for limiter in limiters() {
        while let Ok(permit) = limiter.try_acquire() {
            permit.started();
        }
        assert_eq!(allocations(|| limiter.call(seven), refused(Kind::RateLimited)), 0, "{limiter:?}");
    }

    // The queue is full as well.
    let queue = Bulkhead::config(1).queue(1, Duration::from_secs(60)).build().unwrap();
    let _held = queue.try_acquire().unwrap();
    let mut waiting = Box::pin(queue.call(seven));
    assert!((&mut waiting).now_or_never().is_none());
    assert_eq!(allocations(|| queue.call(seven), refused(Kind::BulkheadFull)), 0);

    let late = mainstay::deadline::within(std::time::Instant::now(), async {
        let deadline = Deadline::new(Duration::from_secs(1)).unwrap();
        allocations(|| deadline.call(seven), refused(Kind::DeadlineExceeded))
    });
    assert_eq!(late.await, 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_failure_allocates_nothing() {
    let fails = || ready(Err::<u64, _>("down"));
    let down = |answer: Result<u64, Error<&str>>| assert_eq!(answer, Err(Error::Inner("down")));
    let breaker = CircuitBreaker::config().build().unwrap();
    breaker.force_closed();
    assert_eq!(allocations(|| breaker.call(fails), down), 0);
    let retry = Retry::constant(Duration::from_secs(1)).max_attempts(1).build().unwrap();
    assert_eq!(allocations(|| retry.call(fails), down), 0);
    let fallback = Fallback::<_, u64, &str>::value(7);
    assert_eq!(allocations(|| fallback.call(fails), ok), 0);
}

/// A call that has to wait registers with tokio's timer, which has room for it in the call itself.
#[tokio::test(flavor = "current_thread")]
async fn a_call_that_waits_allocates_nothing() {
    let stack = plain_five();
    let waits = || {
        stack.call(|| async {
            pending::<()>().await;
            Ok::<u64, Refused>(7)
        })
    };
    let begin = || {
        let mut call = std::pin::pin!(waits());
        assert!(call.as_mut().now_or_never().is_none());
    };
    for _ in 0..10 {
        begin();
    }
    let before = COUNT.get();
    for _ in 0..100 {
        begin();
    }
    assert_eq!(COUNT.get() - before, 0);
}

#[cfg(feature = "tower")]
mod tower_form {
    use super::*;
    use std::task::{Context, Poll, Waker};
    use tower::{Layer, Service};

    #[derive(Clone, Copy)]
    struct Echo;

    impl Service<u64> for Echo {
        type Response = u64;
        type Error = Refused;
        type Future = std::future::Ready<Result<u64, Refused>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refused>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: u64) -> Self::Future {
            ready(Ok(request))
        }
    }

    fn per_thousand<L>(layer: &L, check: impl FnMut(Result<u64, Refused>)) -> u64
    where
        L: Layer<Echo>,
        L::Service: Service<u64, Response = u64, Error = Refused>,
    {
        let mut service = layer.layer(Echo);
        let call = move || {
            let ready = service.poll_ready(&mut Context::from_waker(Waker::noop()));
            assert!(ready.is_ready());
            service.call(7)
        };
        allocations(call, check)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_healthy_call_allocates_nothing() {
        for breaker in breakers() {
            assert_eq!(per_thousand(&breaker, ok), 0, "{breaker:?}");
        }
        assert_eq!(per_thousand(&Bulkhead::new(1).unwrap(), ok), 0);
        for limiter in limiters() {
            assert_eq!(per_thousand(&limiter, ok), 0, "{limiter:?}");
        }
        assert_eq!(per_thousand(&Retry::exponential(Duration::from_millis(50)).build().unwrap(), ok), 0);
        assert_eq!(per_thousand(&Timeout::new(Duration::from_secs(1)).unwrap(), ok), 0);
        assert_eq!(per_thousand(&Deadline::new(Duration::from_secs(1)).unwrap(), ok), 0);
        assert_eq!(per_thousand(&Fallback::<_, u64, Refused>::value(1), ok), 0);
        assert_eq!(per_thousand(&Fallback::<_, u64, Refused>::service(Echo), ok), 0);
        assert_eq!(per_thousand(&plain_five(), ok), 0);
        // What the count would be if the future were boxed.
        let boxing = tower::layer::layer_fn(|inner| tower::util::BoxService::new(plain_five().layer(inner)));
        assert_eq!(per_thousand(&boxing, ok), CALLS);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_refusal_allocates_nothing() {
        let kind = |kind| move |answer: Result<u64, Refused>| assert_eq!(answer.unwrap_err().kind(), kind);
        let open = CircuitBreaker::config().build().unwrap();
        open.force_open();
        assert_eq!(per_thousand(&open, kind(Kind::CircuitOpen)), 0);
        let full = Bulkhead::new(1).unwrap();
        let _held = full.try_acquire().unwrap();
        assert_eq!(per_thousand(&full, kind(Kind::BulkheadFull)), 0);
        let stack =
            mainstay::stack("full").circuit_breaker(CircuitBreaker::config()).retry(3).bulkhead(full.clone());
        assert_eq!(per_thousand(&stack.build().unwrap(), kind(Kind::BulkheadFull)), 0);
    }
}
