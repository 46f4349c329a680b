//! Timeouts: one attempt, dropped when it is given up; a result that is ready wins.
#![allow(missing_docs, clippy::disallowed_methods, clippy::type_complexity)]

use std::{
    cell::Cell,
    future::{pending, ready},
    time::{Duration, Instant},
};

use mainstay::{Bulkhead, CircuitBreaker, Error, Kind, Refused, Retry, Timeout, circuit_breaker::State};
use tokio::{
    sync::oneshot,
    time::{advance, sleep},
};

const MS: Duration = Duration::from_millis(1);

type Answer = Result<u32, &'static str>;

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn refusal(result: Result<u32, Error<&'static str>>) -> Refused {
    match result {
        Err(Error::Refused(refused)) => refused,
        other => panic!("no refusal: {other:?}"),
    }
}

fn of(limit: Duration) -> Timeout {
    Timeout::new(limit).unwrap()
}

#[tokio::test(start_paused = true)]
async fn it_ends_the_attempt_at_its_limit_and_drops_it() {
    struct Dropped<'a>(&'a Cell<Option<Instant>>);
    impl Drop for Dropped<'_> {
        fn drop(&mut self) {
            self.0.set(Some(now()));
        }
    }
    let (begin, dropped) = (now(), Cell::new(None));
    let timeout = of(100 * MS).named("slow");
    let mut call = Box::pin(timeout.call(|| async {
        let _dropped = Dropped(&dropped);
        pending::<Answer>().await
    }));
    let refused = refusal(call.as_mut().await);
    assert_eq!((refused.kind(), refused.name(), refused.was_started()), (Kind::TimedOut, "slow", true));
    assert_eq!(refused.retry_after(), None);
    // The call itself still exists.
    assert_eq!((now(), dropped.get()), (begin + 100 * MS, Some(begin + 100 * MS)));
    drop(call);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_ready_wins() {
    let timeout = of(100 * MS);
    let (send, receive) = oneshot::channel::<u32>();
    let mut receive = Some(receive);
    let mut call = Box::pin(timeout.call(|| {
        let receive = receive.take().unwrap();
        async { receive.await.map_err(|_| "gone") }
    }));
    assert!(futures::poll!(call.as_mut()).is_pending());
    send.send(1).unwrap();
    advance(500 * MS).await;
    assert_eq!(call.await, Ok(1));
    let exact = timeout.call(|| async {
        sleep(100 * MS).await;
        Answer::Ok(2)
    });
    assert_eq!(exact.await, Ok(2));
    let late = timeout.call(|| async {
        sleep(101 * MS).await;
        Answer::Ok(3)
    });
    assert_eq!(refusal(late.await).kind(), Kind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn it_begins_when_the_attempt_does_and_anew_for_each() {
    // Not while the call waits unpolled, nor in a queue outside.
    let bulkhead = Bulkhead::config(1).queue(1, 500 * MS).build().unwrap();
    let stack = mainstay::stack("queue").bulkhead(bulkhead.clone()).timeout(100 * MS).build().unwrap();
    let held = bulkhead.try_acquire().unwrap();
    let mut call = Box::pin(stack.call(|| async {
        sleep(90 * MS).await;
        Answer::Ok(1)
    }));
    advance(1_000 * MS).await;
    assert!(futures::poll!(call.as_mut()).is_pending());
    advance(400 * MS).await;
    drop(held);
    assert_eq!(call.await, Ok(1));

    let begin = now();
    let stack = mainstay::stack("each")
        .retry(Retry::constant(10 * MS).jitter(mainstay::backoff::Jitter::None).idempotent().no_budget())
        .timeout(100 * MS)
        .build()
        .unwrap();
    let refused = refusal(stack.call(pending::<Answer>).await);
    assert_eq!(refused.kind(), Kind::TimedOut);
    assert_eq!(now() - begin, 320 * MS, "three attempts and two waits");

    // Also after an attempt that answered.
    let begin = now();
    let slow_failure = || async {
        sleep(60 * MS).await;
        Answer::Err("down")
    };
    assert_eq!(stack.call(slow_failure).await, Err(Error::Inner("down")));
    assert_eq!(now() - begin, 200 * MS, "three attempts and two waits");
}

#[tokio::test(start_paused = true)]
async fn it_is_a_failure_to_the_breaker_inside_and_outside() {
    for inside in [true, false] {
        let breaker = CircuitBreaker::config().count_window(10).minimum_calls(3).seed(1).build().unwrap();
        let hang = async |breaker: &CircuitBreaker| {
            let stack = mainstay::stack("hung");
            if inside {
                let stack = stack.timeout(50 * MS).circuit_breaker(breaker.clone()).build().unwrap();
                refusal(stack.call(pending::<Answer>).await)
            } else {
                let stack = stack.circuit_breaker(breaker.clone()).timeout(50 * MS).build().unwrap();
                refusal(stack.call(pending::<Answer>).await)
            }
        };
        for _ in 0..3 {
            assert_eq!(hang(&breaker).await.kind(), Kind::TimedOut);
        }
        let totals = breaker.snapshot().totals;
        assert_eq!((totals.failed, totals.neutral), (3, 0), "inside: {inside}");
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(hang(&breaker).await.kind(), Kind::CircuitOpen);
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_per_request() {
    let limit = Cell::new(20 * MS);
    let limit_of = |_: &()| limit.get();
    let timeout = Timeout::per_request(&limit_of);
    for wait in [20, 70] {
        limit.set(wait * MS);
        let begin = now();
        assert_eq!(refusal(timeout.call(pending::<Answer>).await).kind(), Kind::TimedOut);
        assert_eq!(now() - begin, wait * MS);
    }
    // Zero ends at the first wait, and a ready answer does not wait.
    limit.set(Duration::ZERO);
    assert_eq!(timeout.call(|| ready(Answer::Ok(1))).await, Ok(1));
    let begin = now();
    assert_eq!(refusal(timeout.call(pending::<Answer>).await).kind(), Kind::TimedOut);
    assert_eq!(now(), begin);
}

#[tokio::test(start_paused = true)]
async fn the_shorter_of_timeout_and_deadline_ends_the_call() {
    for (deadline, timeout, kind) in
        [(50, 100, Kind::DeadlineExceeded), (100, 50, Kind::TimedOut), (50, 50, Kind::TimedOut)]
    {
        let stack = mainstay::stack("both").deadline(deadline * MS).timeout(timeout * MS).build().unwrap();
        let begin = now();
        assert_eq!(refusal(stack.call(pending::<Answer>).await).kind(), kind);
        assert_eq!(now() - begin, 50 * MS);
    }
}

#[tokio::test(start_paused = true)]
async fn extreme_limits_saturate() {
    let slow = || async {
        sleep(Duration::from_secs(86_400)).await;
        Answer::Ok(1)
    };
    assert_eq!(of(Duration::MAX).call(slow).await, Ok(1));
    let blink = of(Duration::from_nanos(1));
    assert_eq!(blink.call(|| ready(Answer::Ok(1))).await, Ok(1));
    let begin = now();
    assert_eq!(refusal(blink.call(pending::<Answer>).await).kind(), Kind::TimedOut);
    assert!(now() - begin <= 2 * MS);
    assert!(Timeout::new(Duration::ZERO).is_err());
}

#[tokio::test]
async fn a_ready_answer_needs_no_timer() {
    // Without a runtime's timer: nothing is armed before the first wait.
    std::thread::spawn(|| {
        let call = of(100 * MS);
        let mut call = Box::pin(call.call(|| ready(Answer::Ok(1))));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert_eq!(std::future::Future::poll(call.as_mut(), &mut cx), std::task::Poll::Ready(Ok(1)));
    })
    .join()
    .unwrap();
}
