//! Threads on one breaker, and operations that panic or are dropped: every call is accounted for.
#![allow(missing_docs)]

use std::{
    future::{Future, pending, poll_fn, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use mainstay::{
    CircuitBreaker, Event,
    circuit_breaker::{Class, State},
};

const MS: Duration = Duration::from_millis(1);

type Unit = Result<(), &'static str>;

fn poll<F: Future>(call: Pin<&mut F>) -> Poll<F::Output> {
    call.poll(&mut Context::from_waker(Waker::noop()))
}

/// What the threads did, to be compared with what the breaker says.
#[derive(Default)]
struct Did {
    admitted: AtomicU64,
    refused: AtomicU64,
    neutral: AtomicU64,
}

#[test]
fn two_threads_and_every_call_is_accounted_for() {
    for time_window in [false, true] {
        let config = if time_window {
            CircuitBreaker::config().time_window(20 * MS, 4)
        } else {
            CircuitBreaker::config().count_window(50)
        };
        let breaker = config.minimum_calls(5).open_wait(MS / 10, 2.0, MS).probes(2).build().unwrap();
        let (did, stop) = (Did::default(), AtomicBool::new(false));
        thread::scope(|scope| {
            for seed in [1u64, 2] {
                let (breaker, did, stop) = (&breaker, &did, &stop);
                scope.spawn(move || {
                    let mut random = seed;
                    while !stop.load(Relaxed) {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        // Good times and bad times.
                        let bad = if random >> 40 & 0xff < 128 { 0 } else { random % 100 };
                        let Ok(permit) = breaker.try_acquire() else {
                            did.refused.fetch_add(1, Relaxed);
                            continue;
                        };
                        did.admitted.fetch_add(1, Relaxed);
                        match bad {
                            0..60 => permit.success(),
                            60..90 => permit.failure(),
                            90..95 => permit.record(Class::OpenFor(MS / 20)),
                            _ => {
                                drop(permit);
                                did.neutral.fetch_add(1, Relaxed);
                            }
                        }
                    }
                });
            }
            thread::sleep(500 * MS);
            stop.store(true, Relaxed);
        });
        let snapshot = breaker.snapshot();
        let totals = snapshot.totals;
        let admitted = did.admitted.into_inner();
        assert!(totals.failed > 100 && totals.succeeded > 100 && totals.refused > 100, "{totals:?}");
        assert_eq!(totals.admitted(), admitted);
        assert_eq!(totals.refused, did.refused.into_inner());
        assert!(totals.neutral <= did.neutral.into_inner());
        assert!(snapshot.counts.failures <= snapshot.counts.calls);
        // No place is lost: left alone, and with good calls, it closes.
        let since = Instant::now();
        while breaker.state() != State::Closed {
            if let Ok(permit) = breaker.try_acquire() {
                permit.success();
            }
            assert!(since.elapsed() < Duration::from_secs(5), "{breaker:?}");
        }
    }
}

#[test]
fn no_success_is_lost_while_another_thread_fails() {
    let breaker = CircuitBreaker::config().count_window(1_000_000_000).failure_rate(1.0).build().unwrap();
    const EACH: u64 = 300_000;
    thread::scope(|scope| {
        for failing in [false, true] {
            let breaker = &breaker;
            scope.spawn(move || {
                for call in 0..EACH {
                    let permit = breaker.try_acquire().unwrap();
                    if failing && call % 3 > 0 {
                        permit.failure();
                    } else {
                        permit.success();
                    }
                }
            });
        }
    });
    let snapshot = breaker.snapshot();
    assert_eq!(snapshot.counts.calls, 2 * EACH);
    assert_eq!(snapshot.counts.failures, EACH / 3 * 2);
    assert_eq!(snapshot.totals.succeeded, EACH + EACH / 3);
    assert_eq!(snapshot.totals.late, 0);
}

fn touchy() -> mainstay::circuit_breaker::Config {
    CircuitBreaker::config()
        .count_window(10)
        .consecutive_failures(1)
        .open_wait(MS / 1_000, 1.0, MS / 1_000)
        .immediate_close()
}

/// A half-open breaker must have its one place, and close by it.
fn place_is_free<C: mainstay::circuit_breaker::Classify<(), &'static str>>(breaker: &CircuitBreaker<C>) {
    thread::sleep(MS);
    assert_eq!(breaker.state(), State::HalfOpen);
    breaker.try_acquire().expect("the place is free").success();
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn a_panic_at_any_point_of_a_call_is_one_failure() {
    // In the closure, in its future's first poll, in its second.
    for point in 0..3 {
        let breaker = touchy().build().unwrap();
        let operation = || {
            assert!(point != 0, "in the closure");
            let mut polls = 0;
            poll_fn(move |_| {
                polls += 1;
                assert!(polls != point, "in a poll");
                Poll::<Unit>::Pending
            })
        };
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut call = Box::pin(breaker.call(operation));
            for _ in 0..3 {
                assert!(poll(call.as_mut()).is_pending());
            }
        }));
        assert!(result.is_err());
        let totals = breaker.snapshot().totals;
        assert_eq!((totals.failed, totals.admitted()), (1, 1), "point {point}");
        place_is_free(&breaker);
    }
}

#[test]
fn a_classifier_that_panics_is_one_failure() {
    let breaker = touchy().classify(|_: &Unit| panic!("classifier")).build().unwrap();
    let result =
        catch_unwind(AssertUnwindSafe(|| poll(std::pin::pin!(breaker.call(|| ready(Unit::Ok(())))))));
    assert!(result.is_err());
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.failed, totals.admitted()), (1, 1));
    place_is_free(&breaker);
}

#[test]
fn a_listener_that_panics_finds_everything_settled() {
    let breaker = touchy()
        .observe(|event: &Event<'_>| {
            assert!(!matches!(event, Event::Transition { to: State::Open, .. }), "listener");
        })
        .build()
        .unwrap();
    let result =
        catch_unwind(AssertUnwindSafe(|| poll(std::pin::pin!(breaker.call(|| ready(Unit::Err("down")))))));
    assert!(result.is_err());
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.failed, totals.admitted()), (1, 1));
    place_is_free(&breaker);
}

#[test]
fn a_permit_dropped_by_a_panic_is_a_failure_and_otherwise_neutral() {
    let breaker = touchy().build().unwrap();
    drop(breaker.try_acquire().unwrap());
    assert_eq!(breaker.state(), State::Closed);
    let owned = breaker.try_acquire_owned().unwrap();
    let result = catch_unwind(AssertUnwindSafe(move || {
        let _permit = owned;
        panic!("with a permit");
    }));
    assert!(result.is_err());
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.failed, totals.neutral), (1, 1));
    place_is_free(&breaker);
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic!("in drop");
        }
    }
}

#[test]
fn an_operation_that_panics_while_it_is_dropped_still_gives_its_place_back() {
    let breaker = touchy().build().unwrap();
    breaker.try_acquire().unwrap().failure();
    thread::sleep(MS);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut call = Box::pin(breaker.call(|| async {
            let _bomb = Bomb;
            pending::<Unit>().await
        }));
        assert!(poll(call.as_mut()).is_pending());
        drop(call);
    }));
    assert!(result.is_err());
    assert_eq!(breaker.snapshot().totals.neutral, 1);
    place_is_free(&breaker);
}

#[test]
fn a_call_dropped_at_any_point_holds_nothing() {
    let breaker = touchy().build().unwrap();
    let steps = Arc::new(AtomicU64::new(0));
    for polls in 0..4 {
        breaker.try_acquire().unwrap().failure();
        thread::sleep(MS);
        let steps = steps.clone();
        let mut call = Box::pin(breaker.call(move || {
            let steps = steps.clone();
            poll_fn(move |_| {
                steps.fetch_add(1, Relaxed);
                Poll::<Unit>::Pending
            })
        }));
        for _ in 0..polls {
            assert!(poll(call.as_mut()).is_pending());
        }
        assert_eq!(breaker.try_acquire().is_ok(), polls == 0, "the place is taken by the first poll");
        drop(call);
        place_is_free(&breaker);
    }
    assert_eq!(steps.load(Relaxed), 1 + 2 + 3);
}
