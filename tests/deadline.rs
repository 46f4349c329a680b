//! Deadlines: nested, readable inside, and nothing begins that cannot finish.
#![allow(missing_docs, clippy::disallowed_methods, clippy::type_complexity)]

use std::{
    cell::Cell,
    future::{pending, ready},
    time::{Duration, Instant},
};

use mainstay::{
    Bulkhead, CircuitBreaker, Deadline, Error, Kind, Refused, Retry, backoff::Jitter, circuit_breaker::State,
    deadline,
};
use tokio::{
    sync::oneshot,
    time::{advance, sleep},
};

const MS: Duration = Duration::from_millis(1);

type Answer = Result<u32, &'static str>;

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn refusal<T: std::fmt::Debug, E: std::fmt::Debug>(result: Result<T, Error<E>>) -> Refused {
    match result {
        Err(Error::Refused(refused)) => refused,
        other => panic!("no refusal: {other:?}"),
    }
}

fn of(limit: Duration) -> Deadline {
    Deadline::new(limit).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_earlier_of_two_holds_whichever_is_outside() {
    for (outer, inner, by) in [(100, 1_000, 100), (1_000, 100, 100), (100, 100, 100)] {
        let begin = now();
        let (outer, inner) = (of(outer * MS).named("outer"), of(inner * MS).named("inner"));
        let seen = Cell::new(None);
        let call = outer.call(|| async {
            let result = inner
                .call_with(|attempt| {
                    seen.set(attempt.deadline());
                    pending::<Answer>()
                })
                .await;
            Err::<(), _>(refusal(result))
        });
        let error = call.await.unwrap_err();
        assert_eq!(seen.get(), Some(begin + by * MS), "what the innermost operation sees");
        assert_eq!(now(), begin + by * MS);
        // The one that is polled first ends the call: the inner.
        assert_eq!(error.inner().unwrap().name(), "inner");
        assert_eq!(error.inner().unwrap().kind(), Kind::DeadlineExceeded);
    }
}

#[tokio::test(start_paused = true)]
async fn it_nests_in_one_stack_too() {
    let begin = now();
    let stack = mainstay::stack("nested").deadline(100 * MS).deadline(of(300 * MS)).build().unwrap();
    let seen = stack.call_with(|attempt| ready(Ok::<_, ()>(attempt.deadline()))).await;
    assert_eq!(seen, Ok(Some(begin + 100 * MS)));
}

#[tokio::test(start_paused = true)]
async fn it_nests_across_stacks_boxed_ones_and_layers_of_calls() {
    let begin = now();
    let stack = |limit: u32| mainstay::stack("s").deadline(limit * MS).build().unwrap();
    let (a, b, c) = (stack(300), stack(100).boxed::<Option<Instant>, ()>(), stack(200));
    let seen = a
        .call(|| async {
            let seen = b
                .call(|| async { c.call(|| ready(Ok::<_, ()>(deadline::current()))).await.map_err(|_| ()) })
                .await
                .map_err(|_| ())?;
            // Outside of b its earlier deadline is not seen any more.
            assert_eq!(deadline::current(), Some(begin + 300 * MS));
            Ok::<_, ()>(seen)
        })
        .await;
    assert_eq!(seen, Ok(Some(begin + 100 * MS)));
}

#[tokio::test(start_paused = true)]
async fn it_is_readable_inside_as_argument_and_anywhere_below() {
    let stack = mainstay::stack("readable").deadline(100 * MS).timeout(50 * MS).build().unwrap();
    let begin = now();
    let call = stack.call_with(|attempt| async move {
        assert_eq!(attempt.deadline(), Some(begin + 100 * MS));
        assert_eq!(attempt.remaining(), Some(100 * MS));
        sleep(30 * MS).await;
        assert_eq!(attempt.remaining(), Some(70 * MS));
        async { assert_eq!(deadline::current(), Some(begin + 100 * MS)) }.await;
        assert_eq!(deadline::remaining(), Some(70 * MS));
        Ok::<_, ()>(())
    });
    let mut call = Box::pin(call);
    assert!(futures::poll!(call.as_mut()).is_pending());
    assert_eq!((deadline::current(), deadline::remaining()), (None, None), "not between polls");
    call.await.unwrap();
    assert_eq!(deadline::current(), None, "not afterwards");

    // A timeout publishes nothing.
    let timeout = mainstay::Timeout::new(10 * MS).unwrap();
    assert_eq!(timeout.call(|| ready(Ok::<_, ()>(deadline::current()))).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn within_carries_it_to_another_task() {
    let begin = now();
    let stack = mainstay::stack("spawning").deadline(100 * MS).build().unwrap();
    let seen = stack
        .call(|| async {
            let bare = tokio::spawn(async { deadline::current() });
            let at = deadline::current().unwrap();
            let carried = tokio::spawn(deadline::within(at, async move {
                let around = deadline::current();
                // The earlier holds, in both directions.
                let later = deadline::within(at + 10 * MS, async { deadline::current() }).await;
                let earlier = deadline::within(at - 10 * MS, async { deadline::current() }).await;
                (around, later, earlier)
            }));
            Ok::<_, ()>((bare.await.unwrap(), carried.await.unwrap()))
        })
        .await;
    let at = begin + 100 * MS;
    assert_eq!(seen, Ok((None, (Some(at), Some(at), Some(at - 10 * MS)))));
    assert_eq!(deadline::current(), None);
}

#[tokio::test(start_paused = true)]
async fn within_ends_nothing_by_itself() {
    let late = deadline::within(now() + 10 * MS, async {
        sleep(100 * MS).await;
        "done"
    });
    assert_eq!(late.await, "done");
}

#[tokio::test(start_paused = true)]
async fn no_call_begins_after_it() {
    let past = now();
    advance(10 * MS).await;
    let started = Cell::new(0);
    let op = || {
        started.set(started.get() + 1);
        ready(Answer::Ok(1))
    };
    let refused = refusal(deadline::within(past, of(1_000 * MS).call(op)).await);
    assert_eq!((refused.kind(), refused.was_started()), (Kind::DeadlineExceeded, false));
    // A bulkhead that is free and sees a deadline from around it.
    let bulkhead = Bulkhead::new(1).unwrap();
    let refused = refusal(deadline::within(past, bulkhead.call(op)).await);
    assert_eq!((refused.kind(), refused.was_started()), (Kind::DeadlineExceeded, false));
    assert_eq!(refusal_of_permit(deadline::within(past, bulkhead.acquire()).await), Kind::DeadlineExceeded);
    assert_eq!((started.get(), bulkhead.in_use()), (0, 0));
}

fn refusal_of_permit(result: Result<mainstay::bulkhead::Permit<'_>, Refused>) -> Kind {
    result.unwrap_err().kind()
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_zero_from_a_request_refuses_the_call_unstarted() {
    let deadline = Deadline::per_request(|_: &()| Duration::ZERO);
    let refused = refusal(deadline.call(|| ready(Answer::Ok(1))).await);
    assert_eq!((refused.kind(), refused.was_started()), (Kind::DeadlineExceeded, false));
}

#[tokio::test(start_paused = true)]
async fn no_backoff_begins_that_ends_at_or_after_it() {
    for (limit, attempts) in [(79, 1), (80, 1), (81, 2)] {
        let started = Cell::new(0);
        let begin = now();
        let stack = mainstay::stack("backoff")
            .deadline(limit * MS)
            .retry(Retry::constant(50 * MS).jitter(Jitter::None).max_attempts(2).no_budget())
            .timeout(1_000 * MS)
            .build()
            .unwrap();
        let call = stack.call(|| async {
            started.set(started.get() + 1);
            if started.get() == 1 {
                sleep(30 * MS).await;
            }
            Answer::Err("down")
        });
        assert_eq!(call.await, Err(Error::Inner("down")), "the last error, unchanged");
        assert_eq!(started.get(), attempts, "{limit} ms");
        let ended = if attempts == 1 { 30 } else { 80 };
        assert_eq!(now() - begin, ended * MS, "given up at once, not at the deadline");
    }
}

#[tokio::test(start_paused = true)]
async fn no_attempt_begins_when_the_wake_up_from_a_backoff_comes_after_it() {
    let started = Cell::new(0);
    let stack = mainstay::stack("late")
        .deadline(100 * MS)
        .retry(Retry::constant(50 * MS).jitter(Jitter::None).no_budget())
        .timeout(1_000 * MS)
        .build()
        .unwrap();
    let mut call = Box::pin(stack.call(|| {
        started.set(started.get() + 1);
        ready(Answer::Err("down"))
    }));
    assert!(futures::poll!(call.as_mut()).is_pending());
    advance(150 * MS).await;
    let refused = refusal(call.await);
    assert_eq!((refused.kind(), refused.was_started()), (Kind::DeadlineExceeded, true));
    assert_eq!(started.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wait_in_a_queue_ends_with_it() {
    let bulkhead = Bulkhead::config(1).queue(5, 10_000 * MS).build().unwrap();
    let held = bulkhead.try_acquire().unwrap();
    let breaker = CircuitBreaker::config().build().unwrap();
    let stack = mainstay::stack("queue")
        .deadline(100 * MS)
        .circuit_breaker(breaker.clone())
        .bulkhead(bulkhead.clone())
        .build()
        .unwrap();
    let begin = now();
    let refused = refusal(stack.call(|| ready(Answer::Ok(1))).await);
    assert_eq!((refused.kind(), refused.was_started()), (Kind::DeadlineExceeded, false));
    assert_eq!((now() - begin, bulkhead.waiting()), (100 * MS, 0));
    let totals = breaker.snapshot().totals;
    assert_eq!(
        (totals.failed, totals.neutral),
        (0, 1),
        "waiting for ourselves is not the dependency's failure"
    );

    // A permit that is free when the deadline has passed is not used.
    let mut call = Box::pin(stack.call(|| ready(Answer::Ok(1))));
    assert!(futures::poll!(call.as_mut()).is_pending());
    advance(150 * MS).await;
    drop(held);
    let refused = refusal(call.await);
    assert_eq!((refused.kind(), refused.was_started()), (Kind::DeadlineExceeded, false));
    assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_ready_wins() {
    let (deadline, begin) = (of(100 * MS), now());
    let (send, receive) = oneshot::channel::<u32>();
    let mut receive = Some(receive);
    let mut call = Box::pin(deadline.call(|| {
        let receive = receive.take().unwrap();
        async { receive.await.map_err(|_| "gone") }
    }));
    assert!(futures::poll!(call.as_mut()).is_pending());
    send.send(1).unwrap();
    advance(500 * MS).await;
    assert_eq!(call.await, Ok(1));
    // At the very instant.
    let exact = deadline.call(|| async {
        sleep(100 * MS).await;
        Answer::Ok(2)
    });
    assert_eq!(exact.await, Ok(2));
    assert_eq!(now() - begin, 600 * MS);
}

#[tokio::test(start_paused = true)]
async fn a_hung_dependency_trips_the_breaker_of_the_same_stack() {
    let breaker =
        CircuitBreaker::config().count_window(10).minimum_calls(3).immediate_close().seed(1).build().unwrap();
    let stack = mainstay::stack("hung").deadline(100 * MS).circuit_breaker(breaker.clone()).build().unwrap();
    for call in 1..=3 {
        assert_eq!(breaker.state(), State::Closed, "before call {call}");
        let refused = refusal(stack.call(pending::<Answer>).await);
        assert_eq!((refused.kind(), refused.was_started()), (Kind::DeadlineExceeded, true));
    }
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(breaker.snapshot().totals.failed, 3);
    assert_eq!(refusal(stack.call(|| ready(Answer::Ok(1))).await).kind(), Kind::CircuitOpen);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_outside_counts_it_if_the_operation_was_started() {
    let breaker = CircuitBreaker::config().build().unwrap();
    let stack =
        mainstay::stack("outside").circuit_breaker(breaker.clone()).deadline(100 * MS).build().unwrap();
    refusal(stack.call(pending::<Answer>).await);
    assert_eq!(breaker.snapshot().totals.failed, 1);
    let past = now();
    advance(MS).await;
    refusal(deadline::within(past, stack.call(|| ready(Answer::Ok(1)))).await);
    let totals = breaker.snapshot().totals;
    assert_eq!(
        (totals.failed, totals.neutral),
        (1, 1),
        "refused unstarted says nothing about the dependency"
    );
}

#[tokio::test(start_paused = true)]
async fn extreme_limits_saturate() {
    let forever = of(Duration::MAX);
    let slow = forever.call_with(|attempt| async move {
        assert!(attempt.remaining().unwrap() > Duration::from_secs(86_400 * 365));
        sleep(Duration::from_secs(86_400)).await;
        Answer::Ok(1)
    });
    assert_eq!(slow.await, Ok(1));
    let computed = Deadline::per_request(|_: &()| Duration::MAX);
    assert_eq!(computed.call(|| ready(Answer::Ok(1))).await, Ok(1));
    let blink = of(Duration::from_nanos(1));
    assert_eq!(blink.call(|| ready(Answer::Ok(1))).await, Ok(1), "an answer without a wait is in time");
    let begin = now();
    assert_eq!(refusal(blink.call(pending::<Answer>).await).kind(), Kind::DeadlineExceeded);
    assert!(now() - begin <= 2 * MS, "as soon as the timer's resolution allows");
    assert!(Deadline::new(Duration::ZERO).is_err());
}

/// The clock of the paused runtime.
fn clock() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_after_a_deadline_that_somebody_around_has_set() {
    use std::cell::Cell;

    let begun = Cell::new(0);
    let operation = || {
        begun.set(begun.get() + 1);
        async { Ok::<_, &str>("late") }
    };
    let timeout = mainstay::Timeout::new(Duration::from_secs(1)).unwrap();
    let breaker = mainstay::CircuitBreaker::config().build().unwrap();
    let stack = mainstay::stack("s").retry(3).timeout(Duration::from_secs(1)).build().unwrap();

    let now = clock();
    for refused in [
        mainstay::deadline::within(now, timeout.call(operation)).await.unwrap_err(),
        mainstay::deadline::within(now, breaker.call(operation)).await.unwrap_err(),
        mainstay::deadline::within(now, stack.call(operation)).await.unwrap_err(),
    ] {
        let refused = refused.refused().cloned().unwrap();
        assert_eq!((refused.kind(), refused.was_started()), (mainstay::Kind::DeadlineExceeded, false));
    }
    assert_eq!(begun.get(), 0);
    assert_eq!(breaker.snapshot().counts.calls, 0, "it says nothing about the dependency");
    let in_time = mainstay::deadline::within(now + Duration::from_secs(1), stack.call(operation)).await;
    assert_eq!(in_time, Ok("late"));
}

// --- to the next service

/// What each service of a chain was given, and when it gave its answer.
type Seen = std::rc::Rc<std::cell::RefCell<Vec<(Duration, Instant)>>>;

/// A service that works for 7.3 ms and asks the next of the chain, by one header or the other; the last one hangs.
async fn hop(left: u32, header: String, allowance: Duration, seen: Seen) -> Result<(), Refused> {
    use deadline::header::{for_next_hop, from_grpc, from_millis, to_grpc, to_millis};
    let given = if left % 2 == 0 { from_grpc(&header) } else { from_millis(&header) }.unwrap();
    let begin = now();
    seen.borrow_mut().push((given, begin));
    let work = async {
        let stack = mainstay::stack("hop").deadline(Duration::MAX).build().unwrap();
        let call = stack.call(|| async {
            sleep(Duration::from_micros(7_300)).await;
            let rest = for_next_hop(allowance).expect("there is a deadline");
            let (next, seen) = (left - 1, seen.clone());
            match next {
                0 => pending().await,
                _ if next % 2 == 0 => Box::pin(hop(next, to_grpc(rest), allowance, seen)).await,
                _ => Box::pin(hop(next, to_millis(rest), allowance, seen)).await,
            }
        });
        call.await.map_err(Error::absorb)
    };
    let answer = deadline::within(deadline::after(given), work).await;
    // tokio's timer is up to a millisecond late.
    assert!(now() <= begin + given + MS, "it went on for longer than it was given");
    answer
}

#[tokio::test(start_paused = true)]
async fn a_chain_of_services_only_has_less_time_and_ends_with_its_first() {
    for allowance in [Duration::ZERO, 3 * MS] {
        let seen = Seen::default();
        let begin = now();
        let error = hop(6, "100m".to_owned(), allowance, seen.clone()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        assert!(now() <= begin + 101 * MS, "{:?}", now() - begin);
        let seen = seen.borrow();
        assert_eq!(seen.len(), 6);
        for pair in seen.windows(2) {
            let ((before, began), (after, at)) = (pair[0], pair[1]);
            assert!(after + allowance <= before - (at - began), "{before:?} became {after:?}");
            assert!(at + after <= began + before, "the next hop may work after this one has given up");
        }
    }
}

#[test]
fn without_a_deadline_there_is_nothing_to_hand_on() {
    assert_eq!(deadline::header::for_next_hop(MS), None);
}
