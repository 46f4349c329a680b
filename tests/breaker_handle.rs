//! The breaker's handle: modes, settings in files, restarts, live reconfiguration, permits by hand.
#![allow(missing_docs)]

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use mainstay::{
    CircuitBreaker, Event, Kind,
    circuit_breaker::{Class, Config, Mode, State, Verdict},
};
use tokio::time::advance;

const MS: Duration = Duration::from_millis(1);
const SEC: Duration = Duration::from_secs(1);

fn touchy() -> Config {
    CircuitBreaker::config()
        .count_window(10)
        .consecutive_failures(1)
        .open_wait(100 * MS, 1.0, 100 * MS)
        .immediate_close()
        .seed(1)
}

#[tokio::test(start_paused = true)]
async fn modes_decide_over_the_rules() {
    let breaker = touchy().build().unwrap();
    breaker.force_open();
    let refused = breaker.try_acquire().unwrap_err();
    assert_eq!((refused.kind(), refused.retry_after()), (Kind::CircuitOpen, None));
    assert_eq!((breaker.state(), breaker.retry_at()), (State::ForcedOpen, None));

    breaker.force_closed();
    for _ in 0..5 {
        breaker.try_acquire().unwrap().failure();
    }
    assert_eq!(breaker.state(), State::ForcedClosed);
    assert_eq!(breaker.snapshot().counts.failures, 5, "it goes on counting");

    breaker.disable();
    breaker.try_acquire().unwrap().failure();
    assert_eq!(breaker.snapshot().counts.failures, 5, "it does not count");

    breaker.normal();
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(breaker.snapshot().counts.calls, 0, "a disabled breaker knows nothing recent");
    breaker.try_acquire().unwrap().failure();
    assert_eq!(breaker.state(), State::Open);
    breaker.reset();
    assert_eq!(breaker.state(), State::Closed);
    breaker.try_acquire().unwrap().success();
    assert_eq!(breaker.snapshot().counts.calls, 1);
}

#[tokio::test(start_paused = true)]
async fn observe_only_reports_what_it_would_refuse_and_refuses_nothing() {
    let observed = Arc::new(AtomicUsize::new(0));
    let breaker = touchy()
        .observe({
            let seen = observed.clone();
            move |event: &Event<'_>| {
                if let Event::Refused { observed: true, refused, .. } = event {
                    assert_eq!(refused.kind(), Kind::CircuitOpen);
                    seen.fetch_add(1, Relaxed);
                }
            }
        })
        .build()
        .unwrap();
    breaker.observe_only();
    breaker.try_acquire().unwrap().failure();
    assert_eq!(breaker.state(), State::Open);
    for _ in 0..5 {
        breaker.try_acquire().expect("nothing is refused").failure();
    }
    assert_eq!(observed.load(Relaxed), 5);
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.totals.refused, snapshot.totals.failed), (5, 1));
    breaker.normal();
    assert_eq!(breaker.state(), State::Open, "it goes on where it would have been");
    assert!(breaker.try_acquire().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_outcome_can_open_the_breaker_for_as_long_as_it_says_within_a_bound() {
    let breaker = CircuitBreaker::config()
        .open_for_max(10 * SEC)
        .classify_err(|wait: &Duration| Class::OpenFor(*wait))
        .build()
        .unwrap();
    for (asked, waits) in [(3 * SEC, 3 * SEC), (3_000 * SEC, 10 * SEC)] {
        let _ = breaker.call(|| ready(Err::<(), _>(asked))).await;
        assert_eq!(breaker.snapshot().remaining_wait, Some(waits));
        advance(waits).await;
        assert_eq!(breaker.state(), State::HalfOpen);
    }
}

#[tokio::test(start_paused = true)]
async fn probes_can_be_judged_by_their_rate() {
    for (failures, state) in [(1, State::Closed), (2, State::Open)] {
        let breaker = touchy().probes(4).probe_verdict(Verdict::Rate(0.5)).build().unwrap();
        breaker.try_acquire().unwrap().failure();
        advance(100 * MS).await;
        for probe in 0..4 {
            match breaker.try_acquire() {
                Ok(permit) if probe < failures => permit.failure(),
                Ok(permit) => permit.success(),
                Err(_) => assert_eq!(breaker.state(), State::Open),
            }
        }
        assert_eq!(breaker.state(), state, "{failures} of 4 failed");
    }
}

#[tokio::test(start_paused = true)]
async fn other_rules_work_on_the_evidence_that_is_there() {
    let breaker = CircuitBreaker::config().count_window(20).failure_rate(0.9).build().unwrap();
    let in_flight = breaker.try_acquire().unwrap();
    for call in 0..20 {
        let permit = breaker.try_acquire().unwrap();
        if call < 12 { permit.failure() } else { permit.success() }
    }
    assert_eq!(breaker.state(), State::Closed);
    let stricter = CircuitBreaker::config().count_window(40).minimum_calls(10);
    breaker.reconfigure(&stricter).unwrap();
    let counts = breaker.snapshot().counts;
    assert_eq!((counts.calls, counts.failures), (20, 12));
    in_flight.success();
    assert_eq!(breaker.state(), State::Open, "12 of 21 failed, and the call in flight was heard");

    let error = breaker.reconfigure(&stricter.clone().probes(0)).unwrap_err();
    assert!(error.to_string().contains("circuit_breaker.probes = 0"));
}

#[tokio::test(start_paused = true)]
async fn evidence_survives_a_change_between_the_kinds_of_window() {
    let windows: [fn(Config) -> Config; 4] = [
        |config| config.time_window(10 * SEC, 10),
        |config| config.time_window(20 * SEC, 4),
        |config| config.count_window(200),
        |config| config.time_window(10 * SEC, 100),
    ];
    let calm = || CircuitBreaker::config().failure_rate(1.0);
    let breaker = calm().count_window(100).build().unwrap();
    for call in 0..60 {
        let permit = breaker.try_acquire().unwrap();
        if call % 3 == 0 {
            permit.failure()
        } else {
            permit.success()
        }
        advance(10 * MS).await;
    }
    for window in windows {
        breaker.reconfigure(&window(calm())).unwrap();
        let counts = breaker.snapshot().counts;
        assert_eq!((counts.calls, counts.failures), (60, 20), "{breaker:?}");
    }
    breaker.reconfigure(&calm().count_window(30)).unwrap();
    let counts = breaker.snapshot().counts;
    assert_eq!((counts.calls, counts.failures), (30, 20), "the latest may be the bad ones");
}

#[tokio::test(start_paused = true)]
async fn more_successes_than_a_counter_holds_stay_in_their_bucket() {
    let breaker = CircuitBreaker::config().time_window(10 * SEC, 10).build().unwrap();
    for _ in 0..200_000 {
        breaker.try_acquire().unwrap().success();
    }
    assert_eq!(breaker.snapshot().counts.calls, 200_000);
    advance(10 * SEC - MS).await;
    assert_eq!(breaker.snapshot().counts.calls, 200_000);
    advance(MS).await;
    assert_eq!(breaker.snapshot().counts.calls, 0);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_goes_on_after_a_restart_where_it_was() {
    let config = || CircuitBreaker::config().open_wait(SEC, 2.0, 8 * SEC).seed(1);
    let first = config().build().unwrap();
    for _ in 0..15 {
        first.try_acquire().unwrap().failure();
    }
    let second = config().restore(&first.snapshot()).build().unwrap();
    assert_eq!(second.snapshot().counts, first.snapshot().counts);
    for _ in 0..5 {
        second.try_acquire().unwrap().failure();
    }
    assert_eq!(second.state(), State::Open, "15 failures before, 5 after");
    let third = config().restore(&second.snapshot()).build().unwrap();
    assert_eq!(third.state(), State::Open);
    assert_eq!(third.snapshot().remaining_wait, second.snapshot().remaining_wait);
    advance(SEC).await;
    third.try_acquire().expect("a probe").failure();
    assert!(third.snapshot().remaining_wait.unwrap() >= SEC, "the wait has grown");
    third.force_open();
    let fourth = config().restore(&third.snapshot()).build().unwrap();
    assert_eq!(fourth.snapshot().mode, Mode::ForcedOpen);
}

/// What it has not kept is not made up: old failures of the row stay old.
#[tokio::test(start_paused = true)]
async fn a_row_within_a_time_survives_a_restart_and_other_rules() {
    let config = |failures| CircuitBreaker::config().consecutive_failures_within(failures, 10 * SEC);
    let within = |breaker: &CircuitBreaker| breaker.snapshot().counts.consecutive_failures_within;
    let first = config(5).build().unwrap();
    first.try_acquire().unwrap().failure();
    advance(8 * SEC).await;
    for _ in 0..3 {
        first.try_acquire().unwrap().failure();
    }
    assert_eq!(within(&first), 4);
    advance(3 * SEC).await;
    assert_eq!(within(&first), 3, "one is too old");
    let second = config(5).restore(&first.snapshot()).build().unwrap();
    assert_eq!((within(&second), second.snapshot().counts.consecutive_failures), (3, 4));
    second.try_acquire().unwrap().failure();
    assert_eq!(second.state(), State::Closed, "four that are young enough");
    let third = CircuitBreaker::config().restore(&second.snapshot()).build().unwrap();
    assert_eq!(within(&third), 0, "no such rule");

    second.reconfigure(&config(3)).unwrap();
    assert_eq!(within(&second), 3);
    second.reconfigure(&config(4)).unwrap();
    assert_eq!(within(&second), 3, "the older ones are forgotten");
    second.try_acquire().unwrap().failure();
    assert_eq!(second.state(), State::Open);
    let counts = second.snapshot().counts;
    assert_eq!((counts.consecutive_failures, counts.consecutive_failures_within), (6, 4));
}

#[tokio::test(start_paused = true)]
async fn a_stack_says_that_it_is_shut_and_prints_the_rules() {
    let config = || CircuitBreaker::config().count_window(50);
    let drawn = |breaker| format!("{:?}", mainstay::stack("s").circuit_breaker(breaker).build().unwrap());
    assert_eq!(
        drawn(config().consecutive_failures(5)),
        "s\n└─ circuit breaker, opens at 50% failed of the last 50 calls or 5 failures in a row\n   └─ the operation"
    );
    assert_eq!(
        drawn(config().failure_rate(None).consecutive_failures_within(5, 60 * SEC)),
        "s\n└─ circuit breaker, opens at 5 failures in a row within 60s\n   └─ the operation"
    );
}

#[cfg(feature = "serde")]
mod files {
    use super::*;
    use mainstay::circuit_breaker::Snapshot;

    #[test]
    fn settings_are_read_from_a_file_and_checked() {
        let config: Config = serde_json::from_str(
            r#"{
                "name": "payments", "window": {"time": {"length": "30s", "buckets": 6}}, "minimum_calls": 5,
                "failure_rate": 0.25, "slow_rate": {"rate": 0.5, "threshold": "1s 500ms"},
                "consecutive_failures_within": {"failures": 5, "time": "1m"},
                "failures_of_last": {"failures": 3, "calls": 5}, "open_wait": "100ms", "ramp": null
            }"#,
        )
        .unwrap();
        let breaker = config.clone().build().unwrap();
        assert_eq!(breaker.name(), "payments");
        let text = serde_json::to_string(&config).unwrap();
        let again: Config = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);

        for (text, problem) in [
            (r#"{"failure_rat": 0.5}"#, "unknown field `failure_rat`"),
            (r#"{"failure_rate": 1.5}"#, "circuit_breaker.failure_rate = 1.5"),
            (r#"{"open_wait": "soon"}"#, "like \"250ms\""),
            (r#"{"window": {"count": 5}, "minimum_calls": 6}"#, "allowed is 1 to 5"),
        ] {
            let error = serde_json::from_str::<Config>(text).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_can_be_written_and_read() {
        let breaker = touchy().name("payments").build().unwrap();
        breaker.try_acquire().unwrap().failure();
        let snapshot = breaker.snapshot();
        let text = serde_json::to_string(&snapshot).unwrap();
        assert!(text.contains(r#""state":"open""#), "{text}");
        assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
        let older = text.replace(r#","consecutive_failures_within":0"#, "");
        assert_ne!(older, text);
        assert_eq!(serde_json::from_str::<Snapshot>(&older).unwrap(), snapshot);
    }
}

#[tokio::test(start_paused = true)]
async fn fewer_probes_than_have_reported_do_not_wedge_a_half_open_breaker() {
    let probing = touchy().probes(3).probe_verdict(Verdict::Rate(1.0));
    for bad in [false, true] {
        let breaker = probing.clone().build().unwrap();
        breaker.try_acquire().unwrap().failure();
        advance(100 * MS).await;
        for _ in 0..2 {
            let probe = breaker.try_acquire().unwrap();
            if bad { probe.failure() } else { probe.success() }
        }
        breaker.reconfigure(&touchy().probes(1)).unwrap();
        assert_eq!(breaker.state(), State::HalfOpen);
        breaker.try_acquire().expect("somebody has to find out").success();
        assert_eq!(breaker.state(), State::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_that_fails_after_its_window_got_wider_buckets_leaves_the_window_in_its_time() {
    let window = |length, buckets| {
        CircuitBreaker::config()
            .time_window(length, buckets)
            .minimum_calls(10)
            .failure_rate(0.5)
            .slow_rate(1.0, 10 * MS)
    };
    let breaker = window(SEC, 1_000).build().unwrap();
    advance(5 * SEC).await;
    let slow = tokio::spawn({
        let breaker = breaker.clone();
        async move {
            breaker
                .call(|| async {
                    tokio::time::sleep(100 * MS).await;
                    Err::<(), _>("failed")
                })
                .await
        }
    });
    tokio::task::yield_now().await;
    advance(50 * MS).await;
    tokio::task::yield_now().await;
    assert_eq!(breaker.snapshot().counts.slow, 1, "it counts as slow in flight");
    breaker.reconfigure(&window(10 * SEC, 10)).unwrap();
    slow.await.unwrap().unwrap_err();
    let counts = breaker.snapshot().counts;
    assert_eq!((counts.calls, counts.failures, counts.slow), (1, 1, 1));
    for _ in 0..9 {
        breaker.try_acquire().unwrap().failure();
    }
    assert_eq!(breaker.state(), State::Open, "the breaker is blind");
}
