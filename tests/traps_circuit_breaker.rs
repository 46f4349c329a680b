//! What other circuit breakers get wrong, each as a test through the public API on a paused clock.
#![allow(missing_docs)]

use std::{
    future::{Future, pending, ready},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::FutureExt;
use mainstay::{
    CircuitBreaker, ConfigError, Deadline, Error, Event, Kind, Timeout,
    circuit_breaker::{Class, Classify, Config, State, Verdict},
};
use tokio::time::{Instant, advance, sleep};

const MS: Duration = Duration::from_millis(1);
const SEC: Duration = Duration::from_secs(1);

type Unit = Result<(), &'static str>;

async fn ok<C: Classify<(), &'static str>>(breaker: &CircuitBreaker<C>) -> bool {
    breaker.call(|| ready(Unit::Ok(()))).await.is_ok()
}

/// Whether the call was admitted; it fails in any case.
async fn fail<C: Classify<(), &'static str>>(breaker: &CircuitBreaker<C>) -> bool {
    let result = breaker.call(|| ready(Unit::Err("down"))).await;
    matches!(result, Err(Error::Inner("down")))
}

/// Opens at the first failure for 50 to 100 ms, sends one probe, closes at once.
fn touchy() -> Config {
    CircuitBreaker::config()
        .count_window(10)
        .consecutive_failures(1)
        .open_wait(100 * MS, 1.0, 100 * MS)
        .immediate_close()
        .seed(1)
}

async fn half_open(config: Config) -> CircuitBreaker {
    let breaker = config.build().unwrap();
    assert!(fail(&breaker).await);
    assert_eq!(breaker.state(), State::Open);
    advance(100 * MS).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    breaker
}

/// Polls once and expects to wait.
fn begin<F: Future>(call: std::pin::Pin<&mut F>) {
    assert!(call.now_or_never().is_none(), "the call did not wait");
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
            assert!(failures <= 101, "{breaker:?}");
        }
        assert!(failures >= 50, "{failures}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_minimum_below_the_window_is_honoured_alone() {
    let breaker = CircuitBreaker::config().count_window(100).minimum_calls(5).build().unwrap();
    for _ in 0..4 {
        fail(&breaker).await;
        assert_eq!(breaker.state(), State::Closed);
    }
    fail(&breaker).await;
    assert_eq!(breaker.state(), State::Open);
}

/// The documented breaker: five failures open it, it refuses until exactly 30 s later, and then lets one call through.
#[tokio::test(start_paused = true)]
async fn a_wait_without_jitter_is_as_long_as_it_was_said() {
    const WAIT: Duration = Duration::from_secs(30);
    let config =
        || CircuitBreaker::config().consecutive_failures(5).failure_rate(None).open_wait(WAIT, 1.0, WAIT);
    for seed in 0..20 {
        let breaker = config().seed(seed).open_wait_jitter(0.0).build().unwrap();
        for _ in 0..5 {
            assert_eq!(breaker.state(), State::Closed);
            fail(&breaker).await;
        }
        tokio::time::advance(WAIT - Duration::from_millis(1)).await;
        assert_eq!(breaker.state(), State::Open);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(breaker.state(), State::HalfOpen);
    }
    // With the jitter that is usual, none of twenty is that long.
    for seed in 0..20 {
        let breaker = config().seed(seed).build().unwrap();
        for _ in 0..5 {
            fail(&breaker).await;
        }
        tokio::time::advance(WAIT - Duration::from_millis(1)).await;
        assert_eq!(breaker.state(), State::HalfOpen);
    }
}

/// The documented rule: 5 failures within 60 s.
fn five_in_a_minute() -> Config {
    const WAIT: Duration = Duration::from_secs(30);
    CircuitBreaker::config()
        .consecutive_failures_within(5, 60 * SEC)
        .open_wait(WAIT, 1.0, WAIT)
        .open_wait_jitter(0.0)
        .immediate_close()
}

/// A row that is counted without a time opens because of failures of last week.
#[tokio::test(start_paused = true)]
async fn failures_in_a_row_open_it_within_their_time_and_not_a_nanosecond_later() {
    let nanosecond = Duration::from_nanos(1);
    let quarter = 15 * SEC;
    // The time is the rule's own, whatever the window is.
    let windows: [fn(Config) -> Config; 3] = [
        |config| config,
        |config| config.count_window(3).failure_rate(None),
        |config| config.time_window(SEC, 1),
    ];
    for window in windows {
        let after_gaps = async |gaps: [Duration; 4]| {
            let breaker = window(five_in_a_minute()).build().unwrap();
            fail(&breaker).await;
            for gap in gaps {
                advance(gap).await;
                assert!(fail(&breaker).await);
            }
            breaker.state()
        };
        assert_eq!(after_gaps([quarter; 4]).await, State::Open, "60 s");
        assert_eq!(after_gaps([Duration::ZERO; 4]).await, State::Open);
        assert_eq!(after_gaps([quarter, quarter, quarter, quarter + nanosecond]).await, State::Closed);
        assert_eq!(after_gaps([quarter + nanosecond, quarter, quarter, quarter]).await, State::Closed);
        assert_eq!(after_gaps([61 * SEC / 4; 4]).await, State::Closed, "61 s");

        // The row slides: the first of them has been left behind, and the next one makes five again.
        let breaker = window(five_in_a_minute()).build().unwrap();
        for _ in 0..100 {
            assert!(fail(&breaker).await);
            advance(quarter + nanosecond).await;
        }
        let counts = breaker.snapshot().counts;
        assert_eq!((counts.consecutive_failures, counts.consecutive_failures_within), (100, 3));
        fail(&breaker).await;
        fail(&breaker).await;
        assert_eq!(breaker.state(), State::Open);
    }
}

/// A success ends the row, so that the failures of a busy dependency do not add up to an outage.
#[tokio::test(start_paused = true)]
async fn a_few_failures_among_many_successes_are_no_row() {
    let breaker = five_in_a_minute().build().unwrap();
    for call in 0..10_000 {
        let admitted = if call % 4 == 0 { fail(&breaker).await } else { ok(&breaker).await };
        assert!(admitted, "a quarter is less than a half, and never five in a row: {breaker:?}");
        advance(MS).await;
    }
    for _ in 0..4 {
        fail(&breaker).await;
    }
    assert_eq!(breaker.snapshot().counts.consecutive_failures_within, 4);
    ok(&breaker).await;
    assert_eq!(breaker.snapshot().counts.consecutive_failures_within, 0);
}

/// After the wait one call is let through: its success makes the breaker as good as new, its failure opens it for another wait.
#[tokio::test(start_paused = true)]
async fn a_probe_ends_the_row_or_opens_it_again() {
    let breaker = five_in_a_minute().build().unwrap();
    for _ in 0..5 {
        fail(&breaker).await;
    }
    for last in [false, true] {
        advance(30 * SEC - MS).await;
        assert_eq!(breaker.state(), State::Open);
        assert!(!ok(&breaker).await);
        advance(MS).await;
        assert!(if last { ok(&breaker).await } else { fail(&breaker).await });
    }
    assert_eq!(breaker.state(), State::Closed);
    for _ in 0..4 {
        fail(&breaker).await;
    }
    assert_eq!(breaker.state(), State::Closed, "four are not five");
    fail(&breaker).await;
    assert_eq!(breaker.state(), State::Open);
}

#[test]
fn a_minimum_above_the_window_is_refused_when_built() {
    let error = CircuitBreaker::config().count_window(10).minimum_calls(11).build().unwrap_err();
    assert_eq!(
        error.to_string(),
        "circuit_breaker.minimum_calls = 11 is not possible: allowed is 1 to 10, the size of the count window"
    );
}

#[tokio::test(start_paused = true)]
async fn calls_leave_a_time_window_bucket_by_bucket() {
    let breaker = CircuitBreaker::config().time_window(10 * SEC, 10).minimum_calls(u32::MAX).build().unwrap();
    for second in 1..=25 {
        for _ in 0..1_000 {
            fail(&breaker).await;
            ok(&breaker).await;
        }
        let counts = breaker.snapshot().counts;
        assert_eq!(counts.calls, 2_000 * second.min(10));
        assert_eq!(counts.failures, 1_000 * second.min(10));
        advance(SEC).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_gap_of_a_window_empties_it() {
    let breaker = CircuitBreaker::config().time_window(10 * SEC, 10).build().unwrap();
    for gap in [10 * SEC, 11 * SEC, 100_000_000 * SEC] {
        for _ in 0..19 {
            fail(&breaker).await;
        }
        advance(gap).await;
        assert_eq!(breaker.snapshot().counts.calls, 0, "after {gap:?}");
        ok(&breaker).await;
        assert_eq!(breaker.snapshot().counts.calls, 1);
        assert_eq!(breaker.state(), State::Closed);
        advance(gap).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_probe_gives_its_place_back() {
    let breaker = half_open(touchy()).await;
    for _ in 0..100 {
        let mut probe = Box::pin(breaker.call(pending::<Unit>));
        begin(probe.as_mut());
        assert!(!ok(&breaker).await, "there is one place");
        drop(probe);
        assert_eq!(breaker.state(), State::HalfOpen);
    }
    assert!(ok(&breaker).await);
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_loses_its_place_and_is_not_heard_later() {
    let breaker = half_open(touchy().probe_timeout(3 * SEC)).await;
    let mut hung = Box::pin(breaker.call(|| sleep(10 * SEC).map(|()| Unit::Err("late"))));
    begin(hung.as_mut());
    advance(3 * SEC - MS).await;
    assert!(!ok(&breaker).await);
    advance(MS).await;
    let mut second = Box::pin(breaker.call(|| sleep(20 * SEC).map(|()| Unit::Ok(()))));
    begin(second.as_mut());
    assert!(matches!(hung.await, Err(Error::Inner("late"))));
    assert_eq!(breaker.state(), State::HalfOpen, "the first probe has lost its say");
    assert!(ok(&breaker).await, "the second lost its place too by now");
    assert_eq!(breaker.state(), State::Closed);
    assert!(second.await.is_ok());
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.late, totals.succeeded, totals.failed), (2, 1, 1));
}

/// Under steady traffic another probe takes the place of each before it has ended.
#[tokio::test(start_paused = true)]
async fn healthy_calls_that_take_longer_than_a_lease_close_the_breaker() {
    let breaker = half_open(touchy().probe_timeout(3 * SEC)).await;
    let healthy = || sleep(5 * SEC).map(|()| Unit::Ok(()));
    let mut flying = Vec::new();
    for _ in 0..100 {
        flying.push(Box::pin(breaker.call(healthy)));
        flying.retain_mut(|call| call.as_mut().now_or_never().is_none());
        advance(100 * MS).await;
    }
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_slow_before_it_ends_is_in_the_totals() {
    let breaker = half_open(touchy().slow_rate(1.0, 10 * MS)).await;
    let mut probe = Box::pin(breaker.call(|| sleep(SEC).map(|()| Unit::Ok(()))));
    begin(probe.as_mut());
    advance(10 * MS).await;
    begin(probe.as_mut());
    assert_eq!(breaker.state(), State::Open, "slow is bad");
    assert!(probe.await.is_ok());
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.failed, totals.slow, totals.late, totals.admitted()), (1, 1, 1, 2));
}

/// What was counted where nobody locks stays in its bucket: 25 days of milliseconds are more than 31 bits can number.
#[tokio::test(start_paused = true)]
async fn a_window_of_many_small_buckets_outlasts_a_month_without_calls() {
    let breaker = CircuitBreaker::config().time_window(SEC, 1_000).minimum_calls(2).build().unwrap();
    for _ in 0..3 {
        assert!(ok(&breaker).await);
    }
    advance(30 * 86_400 * SEC).await;
    assert!(fail(&breaker).await);
    assert!(fail(&breaker).await);
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn half_open_admits_its_probes_and_tells_the_others_when_to_come_back() {
    let breaker = half_open(touchy().probes(3)).await;
    let started = AtomicUsize::new(0);
    let operation = || {
        started.fetch_add(1, Relaxed);
        pending::<Unit>()
    };
    let mut calls: Vec<_> = (0..50).map(|_| Box::pin(breaker.call(operation))).collect();
    for (at, call) in calls.iter_mut().enumerate() {
        match call.now_or_never() {
            None => assert!(at < 3),
            Some(result) => {
                let refused = result.unwrap_err().refused().cloned().unwrap();
                assert_eq!(refused.kind(), Kind::CircuitOpen);
                assert!(refused.retry_after().is_some_and(|after| after > Duration::ZERO));
                assert!(!refused.was_started());
            }
        }
    }
    assert_eq!(started.load(Relaxed), 3);
    assert_eq!(breaker.snapshot().totals.refused, 47);
}

#[tokio::test(start_paused = true)]
async fn a_late_result_of_an_older_state_changes_nothing() {
    let breaker = touchy().build().unwrap();
    let late = |result| sleep(10 * SEC).map(move |()| result);
    let mut good = Box::pin(breaker.call(|| late(Unit::Ok(()))));
    let mut bad = Box::pin(breaker.call(|| late(Unit::Err("late"))));
    begin(good.as_mut());
    begin(bad.as_mut());
    fail(&breaker).await;
    advance(10 * SEC).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    let mut probe = Box::pin(breaker.call(|| late(Unit::Ok(()))));
    begin(probe.as_mut());
    assert!(good.await.is_ok());
    assert_eq!(breaker.state(), State::HalfOpen, "closed by a call from before it opened");
    assert!(probe.await.is_ok());
    assert_eq!(breaker.state(), State::Closed);
    assert!(bad.await.is_err());
    assert_eq!(breaker.state(), State::Closed, "opened by a call from before it opened");
    assert_eq!(breaker.snapshot().totals.late, 2);
}

#[tokio::test(start_paused = true)]
async fn a_late_probe_of_an_earlier_round_changes_nothing() {
    let breaker = half_open(touchy().probes(2)).await;
    let mut first_round = Box::pin(breaker.call(|| sleep(SEC).map(|()| Unit::Err("late"))));
    begin(first_round.as_mut());
    assert!(fail(&breaker).await);
    advance(100 * MS).await;
    assert!(ok(&breaker).await);
    assert_eq!(breaker.state(), State::HalfOpen, "one of two probes");
    assert!(matches!(first_round.await, Err(Error::Inner("late"))));
    assert_eq!(breaker.state(), State::HalfOpen);
    assert!(ok(&breaker).await);
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_hung_dependency_trips_the_breaker_inside_a_timeout_or_deadline() {
    for by_deadline in [false, true] {
        let breaker = touchy().build().unwrap();
        let stack = mainstay::stack("s");
        let result = if by_deadline {
            let stack =
                stack.deadline(Deadline::new(SEC).unwrap()).circuit_breaker(breaker.clone()).build().unwrap();
            stack.call(pending::<Unit>).await
        } else {
            let stack =
                stack.timeout(Timeout::new(SEC).unwrap()).circuit_breaker(breaker.clone()).build().unwrap();
            stack.call(pending::<Unit>).await
        };
        assert!(result.is_err());
        assert_eq!(breaker.state(), State::Open);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_dependency_trips_the_breaker_outside_a_timeout() {
    let breaker = touchy().build().unwrap();
    let stack = mainstay::stack("s").circuit_breaker(breaker.clone()).timeout(SEC).build().unwrap();
    assert!(stack.call(pending::<Unit>).await.is_err());
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_its_caller_drops_is_neutral_unless_it_is_said_to_be_a_failure() {
    for (config, state) in [(touchy(), State::Closed), (touchy().count_cancelled_as_failure(), State::Open)] {
        let breaker = config.build().unwrap();
        let mut call = Box::pin(breaker.call(pending::<Unit>));
        begin(call.as_mut());
        drop(call);
        assert_eq!(breaker.state(), state);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_hang_trip_before_they_end() {
    let breaker = CircuitBreaker::config()
        .failure_rate(None)
        .slow_rate(0.5, SEC)
        .minimum_calls(20)
        .open_wait(100 * SEC, 1.0, 100 * SEC)
        .build()
        .unwrap();
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let breaker = breaker.clone();
            tokio::spawn(async move { breaker.call(pending::<Unit>).await })
        })
        .collect();
    sleep(SEC - MS).await;
    assert_eq!(breaker.state(), State::Closed);
    sleep(2 * MS).await;
    assert_eq!(breaker.state(), State::Open, "{breaker:?}");
    for call in calls {
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
    }
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.slow, totals.late), (20, 20));
}

#[tokio::test(start_paused = true)]
async fn a_call_counted_as_slow_in_flight_is_counted_once_and_its_failure_too() {
    for config in by_time_and_by_count() {
        let breaker = config.slow_rate(1.0, SEC).build().unwrap();
        let _ = breaker.call(|| sleep(2 * SEC).map(|()| Unit::Ok(()))).await;
        let _ = breaker.call(|| sleep(2 * SEC).map(|()| Unit::Err("x"))).await;
        let counts = breaker.snapshot().counts;
        assert_eq!((counts.calls, counts.slow, counts.failures), (2, 2, 1));
        let totals = breaker.snapshot().totals;
        assert_eq!((totals.succeeded, totals.failed, totals.slow), (1, 1, 2));
        assert_eq!(totals.admitted(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn one_long_poll_counts_as_slow() {
    for config in by_time_and_by_count() {
        let breaker = config.slow_rate(1.0, 5 * MS).build().unwrap();
        let blocking = || async {
            // The paused clock moves inside this one poll.
            advance_within_a_poll(10 * MS);
            Unit::Ok(())
        };
        let _ = breaker.call(blocking).await;
        assert_eq!(breaker.snapshot().counts.slow, 1);
    }
}

/// The two kinds of window.
fn by_time_and_by_count() -> [Config; 2] {
    [CircuitBreaker::config().time_window(10 * SEC, 10), CircuitBreaker::config().count_window(100)]
}

fn advance_within_a_poll(by: Duration) {
    let mut step = Box::pin(advance(by));
    let _ = step.as_mut().now_or_never();
}

#[tokio::test(start_paused = true)]
async fn an_ignored_outcome_neither_closes_nor_occupies_half_open() {
    let config = touchy();
    let breaker = config
        .classify(|result: &Unit| match result {
            Err("mine") => Class::Ignored,
            Err(_) => Class::Failure,
            Ok(()) => Class::Success,
        })
        .build()
        .unwrap();
    fail(&breaker).await;
    advance(100 * MS).await;
    for _ in 0..10 {
        let ignored = breaker.call(|| ready(Unit::Err("mine"))).await;
        assert!(matches!(ignored, Err(Error::Inner("mine"))));
        assert_eq!(breaker.state(), State::HalfOpen);
    }
    assert!(ok(&breaker).await);
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(breaker.snapshot().totals.neutral, 10);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_and_returns_the_place() {
    let panics = || async { panic!("operation") };
    let breaker = touchy().build().unwrap();
    let call = AssertUnwindSafe(breaker.call(panics)).catch_unwind();
    let _: Box<_> = call.map(|result: Result<Result<(), Error<()>>, _>| result.unwrap_err()).await;
    assert_eq!(breaker.state(), State::Open);
    advance(100 * MS).await;
    let call = AssertUnwindSafe(breaker.call(panics)).catch_unwind();
    let _: Box<_> = call.map(|result: Result<Result<(), Error<()>>, _>| result.unwrap_err()).await;
    assert_eq!(breaker.state(), State::Open, "the probe failed");
    advance(100 * MS).await;
    assert!(ok(&breaker).await, "the probe's place came back");
}

#[tokio::test(start_paused = true)]
async fn a_listener_may_call_back_into_the_breaker() {
    static BREAKER: OnceLock<CircuitBreaker> = OnceLock::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let breaker = touchy()
        .observe({
            let seen = seen.clone();
            move |event: &Event<'_>| {
                let breaker = BREAKER.get().unwrap();
                let snapshot = breaker.snapshot();
                if let Event::Transition { to, .. } = event {
                    assert_eq!(snapshot.state, *to);
                    breaker.reset();
                }
                seen.lock().unwrap().push(snapshot.state);
            }
        })
        .build()
        .unwrap();
    BREAKER.set(breaker.clone()).unwrap();
    fail(&breaker).await;
    assert_eq!(*seen.lock().unwrap(), [State::Open, State::Closed], "told in their order");
    assert_eq!(breaker.state(), State::Closed, "the listener has reset it");
}

#[tokio::test(start_paused = true)]
async fn state_belongs_to_the_breaker_and_not_to_the_stacks_it_is_in() {
    let breaker = CircuitBreaker::config().count_window(20).build().unwrap();
    for _ in 0..20 {
        let stack = mainstay::stack("s").circuit_breaker(breaker.clone()).timeout(SEC).build().unwrap();
        let _ = stack.call(|| ready(Unit::Err("down"))).await;
    }
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn transitions_form_one_chain_so_that_a_gauge_is_right() {
    let seen = Arc::new(Mutex::new(vec![State::Closed]));
    let breaker = touchy()
        .ramp(1)
        .observe({
            let seen = seen.clone();
            move |event: &Event<'_>| {
                if let Event::Transition { from, to, .. } = event {
                    let mut seen = seen.lock().unwrap();
                    assert_eq!(seen.last(), Some(from));
                    seen.push(*to);
                }
            }
        })
        .build()
        .unwrap();
    fail(&breaker).await;
    advance(100 * MS).await;
    fail(&breaker).await;
    advance(100 * MS).await;
    while breaker.state() != State::Closed {
        ok(&breaker).await;
        advance(10 * MS).await;
    }
    breaker.force_open();
    breaker.disable();
    breaker.normal();
    use State::*;
    let expected = [Closed, Open, HalfOpen, Open, HalfOpen, Recovering, Closed, ForcedOpen, Disabled, Closed];
    assert_eq!(*seen.lock().unwrap(), expected);
}

/// The waits of a breaker that opens again and again.
async fn waits(config: Config) -> Vec<Duration> {
    let breaker = config.build().unwrap();
    let mut waits = Vec::new();
    for _ in 0..8 {
        assert!(fail(&breaker).await);
        let wait = breaker.snapshot().remaining_wait.unwrap();
        advance(wait - MS / 1_000_000).await;
        assert_eq!(breaker.state(), State::Open, "before the wait is over");
        advance(MS / 1_000_000).await;
        assert_eq!(breaker.state(), State::HalfOpen, "exactly when it is over");
        waits.push(wait);
    }
    waits
}

#[tokio::test(start_paused = true)]
async fn the_open_wait_grows_to_a_cap_with_jitter_within_it() {
    let config = |seed| touchy().open_wait(250 * MS, 2.0, SEC).seed(seed);
    let one = waits(config(1)).await;
    assert_eq!(one, waits(config(1)).await, "the same seed");
    assert_ne!(one, waits(config(2)).await, "another seed");
    for (at, wait) in one.iter().enumerate() {
        let longest = (250 * MS * (1 << at.min(2))).min(SEC);
        assert!(*wait >= longest / 2 && *wait <= longest, "wait {at}: {wait:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_the_first_again_only_after_the_breaker_was_closed() {
    let breaker = touchy().open_wait(SEC, 100.0, 1_000 * SEC).ramp(1).build().unwrap();
    fail(&breaker).await;
    assert!(breaker.snapshot().remaining_wait.unwrap() <= SEC);
    advance(SEC).await;
    assert!(ok(&breaker).await);
    assert_eq!(breaker.state(), State::Recovering);
    assert!(fail(&breaker).await);
    assert!(breaker.snapshot().remaining_wait.unwrap() >= 50 * SEC, "it was not closed");
    advance(100 * SEC).await;
    while breaker.state() != State::Closed {
        ok(&breaker).await;
    }
    fail(&breaker).await;
    assert!(breaker.snapshot().remaining_wait.unwrap() <= SEC);
}

#[tokio::test(start_paused = true)]
async fn traffic_comes_back_as_a_ramp_and_in_well_under_two_seconds() {
    for rate in [20, 50, 1_000] {
        let breaker = half_open(touchy().ramp(3)).await;
        let since = Instant::now();
        let mut admitted = Vec::new();
        while breaker.state() != State::Closed {
            let share = breaker.snapshot().share;
            admitted.push((share, ok(&breaker).await));
            sleep(SEC / rate).await;
        }
        let took = since.elapsed();
        assert!(took < Duration::from_millis(1_300), "{rate}/s took {took:?}");
        if rate == 1_000 {
            for step in [0.125, 0.25, 0.5] {
                let calls: Vec<_> = admitted.iter().filter(|(share, _)| *share == step).collect();
                let passed = calls.iter().filter(|(_, passed)| *passed).count();
                assert_eq!(passed, 3, "at a share of {step}");
                assert!(calls.len() as f64 * step <= 4.0, "{} calls at {step}", calls.len());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn extreme_settings_saturate_and_do_not_panic() {
    let breaker = CircuitBreaker::config()
        .time_window(Duration::MAX, 1)
        .consecutive_failures(1)
        .open_wait(Duration::MAX, f64::MAX, Duration::MAX)
        .probe_timeout(Duration::MAX)
        .open_for_max(Duration::MAX)
        .slow_rate(1.0, Duration::MAX)
        .classify(|result: &Unit| match result {
            Ok(()) => Class::Success,
            Err(_) => Class::OpenFor(Duration::MAX),
        })
        .build()
        .unwrap();
    assert!(ok(&breaker).await);
    assert!(fail(&breaker).await);
    assert!(!ok(&breaker).await);
    advance(86_400 * 365 * SEC).await;
    assert!(!ok(&breaker).await);
    assert!(breaker.retry_at().is_some());
}

#[test]
fn settings_that_would_wedge_are_refused_when_built() {
    let config = CircuitBreaker::config;
    let cases = [
        (config().probes(0), "probes"),
        (config().count_window(0), "window.count"),
        (config().time_window(Duration::ZERO, 10), "window.time.length"),
        (config().time_window(SEC, 0), "window.time.buckets"),
        (config().time_window(SEC, 1_001), "window.time.buckets"),
        (config().time_window(Duration::from_nanos(9), 10), "window.time.buckets"),
        (config().minimum_calls(0), "minimum_calls"),
        (config().failure_rate(0.0), "failure_rate"),
        (config().failure_rate(f64::NAN), "failure_rate"),
        (config().failure_rate(1.01), "failure_rate"),
        (config().failure_rate(-0.5), "failure_rate"),
        (config().slow_rate(2.0, SEC), "slow_rate.rate"),
        (config().slow_rate(0.5, Duration::ZERO), "slow_rate.threshold"),
        (config().consecutive_failures(0), "consecutive_failures"),
        (config().consecutive_failures_within(0, SEC), "consecutive_failures_within.failures"),
        (config().consecutive_failures_within(1_001, SEC), "consecutive_failures_within.failures"),
        (config().consecutive_failures_within(5, Duration::ZERO), "consecutive_failures_within.time"),
        (config().failures_of_last(3, 2), "failures_of_last.failures"),
        (config().failures_of_last(0, 2), "failures_of_last.failures"),
        (config().failures_of_last(0, 0), "failures_of_last.calls"),
        (config().probe_verdict(Verdict::Rate(0.0)), "probe_verdict"),
        (config().probe_timeout(Duration::ZERO), "probe_timeout"),
        (config().open_wait(Duration::ZERO, 2.0, SEC), "open_wait"),
        (config().open_wait(SEC, 0.9, SEC), "open_wait_growth"),
        (config().open_wait(SEC, f64::INFINITY, SEC), "open_wait_growth"),
        (config().open_wait_jitter(-0.1), "open_wait_jitter"),
        (config().open_wait(SEC, 2.0, SEC - MS), "open_wait_max"),
        (config().open_for_max(Duration::ZERO), "open_for_max"),
        (config().ramp(0), "ramp"),
    ];
    for (config, name) in cases {
        match config.build() {
            Err(ConfigError::Setting { field, .. }) => {
                assert_eq!(field, format!("circuit_breaker.{name}"));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_by_policies_inside_are_neutral() {
    let inner = touchy().name("inner").build().unwrap();
    fail(&inner).await;
    let outer = touchy().name("outer").build().unwrap();
    let stack =
        mainstay::stack("s").circuit_breaker(outer.clone()).circuit_breaker(inner.clone()).build().unwrap();
    for _ in 0..100 {
        let refused = stack.call(|| ready(Unit::Ok(()))).await.unwrap_err();
        assert_eq!(refused.refused().map(|refused| refused.name()), Some("inner"));
    }
    assert_eq!(outer.state(), State::Closed);
    let snapshot = outer.snapshot();
    assert_eq!((snapshot.counts.calls, snapshot.totals.neutral), (0, 100));
}

#[tokio::test(start_paused = true)]
async fn a_hanging_attempt_is_a_failure_though_the_next_one_is_refused() {
    let breaker = touchy().build().unwrap();
    let bulkhead = mainstay::Bulkhead::new(1).unwrap();
    let stack = mainstay::stack("s")
        .circuit_breaker(breaker.clone())
        .retry(
            mainstay::Retry::constant(10 * MS)
                .jitter(mainstay::backoff::Jitter::None)
                .idempotent()
                .no_budget(),
        )
        .bulkhead(bulkhead.clone())
        .timeout(100 * MS)
        .build()
        .unwrap();
    let call = stack.call(std::future::pending::<Result<(), ()>>);
    let others = async {
        // The only permit is taken by somebody else while the retry sleeps.
        tokio::time::sleep(101 * MS).await;
        let permit = bulkhead.try_acquire().unwrap();
        tokio::time::sleep(SEC).await;
        drop(permit);
    };
    let (refused, ()) = futures::join!(call, others);
    assert_eq!(
        refused.unwrap_err().refused().map(|refused| refused.kind()),
        Some(mainstay::Kind::BulkheadFull)
    );
    assert_eq!(breaker.snapshot().openings, 1);
}

#[tokio::test(start_paused = true)]
async fn one_failed_call_does_not_open_by_default() {
    let breaker = CircuitBreaker::config().build().unwrap();
    for _ in 0..19 {
        fail(&breaker).await;
        assert_eq!(breaker.state(), State::Closed);
    }
    fail(&breaker).await;
    assert_eq!(breaker.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn the_success_that_completes_the_minimum_trips() {
    for config in [CircuitBreaker::config().count_window(100), CircuitBreaker::config()] {
        let breaker = config.build().unwrap();
        for _ in 0..9 {
            ok(&breaker).await;
        }
        for _ in 0..10 {
            fail(&breaker).await;
        }
        assert_eq!(breaker.state(), State::Closed, "19 calls");
        ok(&breaker).await;
        assert_eq!(breaker.state(), State::Open, "20 calls, a half of them failed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_success_trips_when_older_successes_have_left_the_time_window() {
    let breaker = CircuitBreaker::config().time_window(10 * SEC, 10).build().unwrap();
    for _ in 0..100 {
        ok(&breaker).await;
    }
    advance(5 * SEC).await;
    for _ in 0..30 {
        fail(&breaker).await;
    }
    assert_eq!(breaker.state(), State::Closed, "30 of 130 failed");
    advance(5 * SEC).await;
    assert_eq!(breaker.state(), State::Closed, "nothing was decided yet");
    ok(&breaker).await;
    assert_eq!(breaker.state(), State::Open, "30 of 31 failed");
}

#[tokio::test(start_paused = true)]
async fn a_call_given_up_in_a_queue_says_nothing_about_the_dependency() {
    let breaker = touchy().build().unwrap();
    let bulkhead = mainstay::Bulkhead::config(1).queue(1, SEC).build().unwrap();
    let stack = mainstay::stack("s")
        .timeout(100 * MS)
        .circuit_breaker(breaker.clone())
        .bulkhead(bulkhead.clone())
        .build()
        .unwrap();
    let permit = bulkhead.try_acquire().unwrap();
    let refused = stack.call(|| ready(Unit::Ok(()))).await.unwrap_err();
    let refused = refused.refused().unwrap();
    assert_eq!((refused.kind(), refused.was_started()), (mainstay::Kind::TimedOut, false));
    assert_eq!((breaker.state(), bulkhead.waiting()), (State::Closed, 0));
    drop(permit);
}

#[test]
fn transitions_are_told_in_their_order_also_when_threads_race() {
    use std::sync::{Arc, Mutex};
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = {
        let told = told.clone();
        move |event: &mainstay::Event<'_>| {
            if let mainstay::Event::Transition { from, to, .. } = event {
                // Invites another thread to overtake.
                std::thread::yield_now();
                told.lock().unwrap().push((*from, *to));
            }
        }
    };
    let breaker = CircuitBreaker::config().observe(listener).build().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    breaker.force_open();
                    breaker.normal();
                }
            });
        }
    });
    let told = told.lock().unwrap();
    assert!(told.len() > 1_000, "{}", told.len());
    for pair in told.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "each state is left as it was entered");
    }
}
