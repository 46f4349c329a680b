//! Faults of other libraries around bulkheads, timeouts and fallbacks; each test is named after what must not happen
//! here.

use std::{
    future::{Future, pending, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures::FutureExt;
use mainstay::{Bulkhead, ConfigError, Error, Fallback, Kind, Retry, Timeout};

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn kind<T: std::fmt::Debug, E: std::fmt::Debug>(answer: Result<T, Error<E>>) -> Kind {
    match answer {
        Err(Error::Refused(refused)) => refused.kind(),
        other => panic!("was not refused: {other:?}"),
    }
}

/// Counts wake-ups.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Counts itself while it lives.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Alive(count.clone())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[test]
fn a_bulkhead_does_not_queue_unless_it_is_told_to() {
    let bulkhead = Bulkhead::new(1).unwrap();
    let _held = bulkhead.try_acquire().unwrap();
    let answer = bulkhead.call(|| async { Ok::<u32, &str>(1) }).now_or_never();
    assert_eq!(kind(answer.expect("must not wait")), Kind::BulkheadFull);
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_bounded_in_length_and_in_time() {
    let bulkhead = Bulkhead::config(1).queue(2, ms(100)).build().unwrap();
    let _held = bulkhead.try_acquire().unwrap();
    let started = tokio::time::Instant::now();
    let call = || async {
        let answer = bulkhead.call(|| async { Ok::<u32, &str>(1) }).await;
        (kind(answer), started.elapsed())
    };
    let (a, b, c) = tokio::join!(call(), call(), call());
    assert_eq!(c, (Kind::BulkheadFull, ms(0)), "the third found no room");
    assert_eq!(a, (Kind::QueueTimeout, ms(100)));
    assert_eq!(b, (Kind::QueueTimeout, ms(100)));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_gave_up_never_runs_later() {
    let bulkhead = Bulkhead::config(1).queue(2, ms(50)).build().unwrap();
    let held = bulkhead.try_acquire().unwrap();
    let runs = AtomicUsize::new(0);
    let call = || {
        bulkhead.call(|| async {
            runs.fetch_add(1, SeqCst);
            Ok::<u32, &str>(1)
        })
    };
    assert_eq!(kind(call().await), Kind::QueueTimeout);
    assert!(tokio::time::timeout(ms(10), call()).await.is_err(), "cancelled");
    drop(held);
    tokio::time::sleep(ms(1000)).await;
    assert_eq!(runs.load(SeqCst), 0);
    assert_eq!(bulkhead.in_use(), 0, "neither took a permit with it");
}

#[test]
fn idle_clones_and_calls_that_were_not_polled_hold_no_capacity() {
    let bulkhead = Bulkhead::new(1).unwrap();
    let stack = mainstay::stack("s").bulkhead(bulkhead.clone()).build().unwrap();
    let _clones = (stack.clone(), bulkhead.clone());
    let _unpolled = (stack.call(|| async { Ok::<u32, &str>(1) }), bulkhead.acquire());
    assert_eq!(bulkhead.in_use(), 0);
    assert_eq!(stack.call(|| async { Ok::<u32, &str>(1) }).now_or_never(), Some(Ok(1)));
}

#[test]
fn a_stack_that_would_hold_a_permit_while_retry_sleeps_does_not_build() {
    let built = mainstay::stack("s").bulkhead(1).retry(Retry::exponential(ms(50))).timeout(ms(10)).build();
    let Err(ConfigError::Order { fix, .. }) = built else {
        panic!("was built");
    };
    assert!(fix.contains(".retry(..) before .bulkhead(..)"), "{fix}");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_drops_the_work_it_gives_up_on() {
    let alive = Arc::new(AtomicUsize::new(0));
    let timeout = Timeout::new(ms(10)).unwrap();
    for _ in 0..100 {
        let call = timeout.call(|| async {
            let _work = Alive::new(&alive);
            pending::<Result<u32, &str>>().await
        });
        assert_eq!(kind(call.await), Kind::TimedOut);
        assert_eq!(alive.load(SeqCst), 0, "the work goes on");
    }
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_not_reported_as_a_timeout() {
    let timeout = Timeout::new(ms(10)).unwrap();
    let call = timeout.call(|| async {
        tokio::time::sleep(ms(1)).await;
        if true {
            panic!("in the operation");
        }
        Ok::<u32, &str>(1)
    });
    let panic = AssertUnwindSafe(call).catch_unwind().await.unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"in the operation"));
}

#[tokio::test(start_paused = true)]
async fn the_numbers_are_right_after_every_kind_of_end() {
    let bulkhead = Bulkhead::config(1).queue(1, ms(20)).build().unwrap();
    let stack = mainstay::stack("s").bulkhead(bulkhead.clone()).timeout(ms(50)).build().unwrap();
    let idle = || assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (0, 0));

    assert_eq!(stack.call(|| async { Ok::<u32, &str>(1) }).await, Ok(1));
    idle();
    assert_eq!(stack.call(|| async { Err::<u32, &str>("no") }).await, Err(Error::Inner("no")));
    idle();
    assert_eq!(kind(stack.call(pending::<Result<u32, &str>>).await), Kind::TimedOut);
    idle();
    let cancelled = stack.call(pending::<Result<u32, &str>>);
    assert!(tokio::time::timeout(ms(10), cancelled).await.is_err());
    idle();
    let panics = stack.call(|| async { if true { panic!() } else { Ok::<u32, &str>(1) } });
    assert!(AssertUnwindSafe(panics).catch_unwind().await.is_err());
    idle();
    let held = bulkhead.try_acquire().unwrap();
    let (waited, refused) = tokio::join!(
        stack.call(|| async { Ok::<u32, &str>(1) }),
        stack.call(|| async { Ok::<u32, &str>(1) }),
    );
    assert_eq!((kind(waited), kind(refused)), (Kind::QueueTimeout, Kind::BulkheadFull));
    assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (1, 0));
    drop(held);
    idle();
}

#[test]
fn a_fallback_always_has_a_strategy_and_copies_no_value_that_it_does_not_need() {
    /// Counts its copies.
    struct Copied(Arc<AtomicUsize>);
    impl Clone for Copied {
        fn clone(&self) -> Self {
            self.0.fetch_add(1, SeqCst);
            Copied(self.0.clone())
        }
    }
    // There is no constructor without a strategy: this test holds what can be had of both.
    let copies = Arc::new(AtomicUsize::new(0));
    let fallback = Fallback::value(Copied(copies.clone()));
    let fresh = Copied(copies.clone());
    let healthy = fallback.call(|| std::future::ready(Ok::<_, &str>(Copied(fresh.0.clone()))));
    assert!(healthy.now_or_never().is_some_and(|answer| answer.is_ok()));
    assert_eq!(copies.load(SeqCst), 0, "a healthy call copied something");
    let failed = fallback.call(|| std::future::ready(Err::<Copied, _>("down")));
    assert!(failed.now_or_never().is_some_and(|answer| answer.is_ok()));
    assert_eq!(copies.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_does_not_run_for_a_cancelled_call() {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = runs.clone();
    let fallback = Fallback::new(move |_: Error<&str>| {
        count.fetch_add(1, SeqCst);
        async { Ok::<u32, &str>(0) }
    });
    let call = fallback.call(pending::<Result<u32, &str>>);
    assert!(tokio::time::timeout(ms(10), call).await.is_err());
    assert_eq!((runs.load(SeqCst), fallback.running()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_sleeps_until_it_is_woken() {
    let bulkhead = Bulkhead::config(1).queue(1, ms(100)).build().unwrap();
    let held = bulkhead.try_acquire().unwrap();
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(bell.clone());
    let call = bulkhead.call(|| async { Ok::<u32, &str>(1) });
    let mut call = pin!(call);
    assert!(call.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    tokio::time::advance(ms(50)).await;
    // Nothing moved, so nobody asks to be polled.
    assert_eq!(bell.0.load(SeqCst), 0, "woke itself up");
    drop(held);
    assert_eq!(bell.0.load(SeqCst), 1, "was not woken by the permit");
    assert_eq!(call.poll(&mut Context::from_waker(&waker)), Poll::Ready(Ok(1)));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_is_polled_as_often_as_something_happens_to_it() {
    let bulkhead = Bulkhead::config(1).queue(1, ms(100)).build().unwrap();
    let _held = bulkhead.try_acquire().unwrap();
    let polls = AtomicUsize::new(0);
    let call = bulkhead.call(|| async { Ok::<u32, &str>(1) });
    let mut call = pin!(call);
    let answer = poll_fn(|cx| {
        polls.fetch_add(1, SeqCst);
        call.as_mut().poll(cx)
    })
    .await;
    assert_eq!(kind(answer), Kind::QueueTimeout);
    assert_eq!(polls.load(SeqCst), 2, "once to queue up, once at the end of the wait");
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_ready_wins_over_a_timeout_polled_at_the_same_time() {
    let timeout = Timeout::new(ms(10)).unwrap();
    let call = timeout.call(|| async {
        tokio::time::sleep(ms(10)).await;
        Ok::<u32, &str>(1)
    });
    assert_eq!(call.await, Ok(1));
}

#[test]
fn a_call_that_panics_under_a_fallback_is_not_answered_by_it() {
    let fallback = Fallback::value(0_u32);
    let call = fallback.call(|| async { if true { panic!("inside") } else { Ok::<u32, &str>(1) } });
    assert!(catch_unwind(AssertUnwindSafe(|| call.now_or_never())).is_err());
    assert_eq!(fallback.running(), 0);
}
