//! Every interleaving of a few calls, by loom's model checker:
//! `RUSTFLAGS="--cfg mainstay_loom" cargo test --release --lib loom`.

use std::time::{Duration, Instant};

use ::loom::{model, sync::Arc, thread};

use super::{CircuitBreaker, Class, Config, State, core::Core};
use crate::{event::Identity, slots::index::assume};

const MS: Duration = Duration::from_millis(1);

fn breaker(config: Config, base: Instant) -> Arc<Core> {
    let id = Identity::new("loom");
    let rules = config.rules().unwrap();
    Arc::new(Core::new(rules, Some(1), false, None, id, base))
}

fn touchy() -> Config {
    CircuitBreaker::config().count_window(4).consecutive_failures(1).open_wait(MS, 1.0, MS).immediate_close()
}

fn call(core: &Core, class: Class, at: Instant) -> bool {
    let ticket = core.acquire(|| at);
    if let Ok(ticket) = ticket {
        core.settle(ticket, class, None, || at);
    }
    ticket.is_ok()
}

#[test]
fn loom_a_success_beside_a_transition_counts_in_its_own_generation_or_not_at_all() {
    model(|| {
        let base = Instant::now();
        let core = breaker(touchy(), base);
        assume(0);
        // From now on this thread's counter is for this generation.
        assert!(call(&core, Class::Success, base));
        let ticket = core.acquire(|| base).unwrap();
        let other = {
            let core = core.clone();
            thread::spawn(move || {
                assume(1);
                // Opens, probes, closes: a new generation with an empty window.
                assert!(call(&core, Class::Failure, base));
                assert!(call(&core, Class::Success, base + MS));
            })
        };
        core.settle(ticket, Class::Success, None, || base);
        other.join().unwrap();
        let snapshot = core.snapshot(base + MS);
        assert_eq!(snapshot.state, State::Closed);
        assert_eq!(snapshot.counts.calls, 0, "the old call is in the new window");
        let totals = snapshot.totals;
        assert_eq!(totals.failed, 1);
        assert_eq!(totals.succeeded + totals.late, 3, "{totals:?}");
    });
}

#[test]
fn loom_a_late_failure_never_opens_the_next_generation() {
    model(|| {
        let base = Instant::now();
        let core = breaker(touchy(), base);
        assume(0);
        let ticket = core.acquire(|| base).unwrap();
        assert!(call(&core, Class::Failure, base));
        let other = {
            let core = core.clone();
            thread::spawn(move || {
                assume(1);
                core.settle(ticket, Class::Failure, None, || base + MS);
            })
        };
        assert!(call(&core, Class::Success, base + MS));
        other.join().unwrap();
        assert_eq!(core.state(base + MS), State::Closed);
        assert_eq!(core.snapshot(base + MS).totals.late, 1);
    });
}

#[test]
fn loom_two_calls_for_one_probe_place() {
    model(|| {
        let base = Instant::now();
        let core = breaker(touchy(), base);
        assume(0);
        assert!(call(&core, Class::Failure, base));
        let now = base + MS;
        let other = {
            let core = core.clone();
            thread::spawn(move || {
                assume(1);
                core.acquire(|| now).ok()
            })
        };
        let mine = core.acquire(|| now).ok();
        let theirs = other.join().unwrap();
        assert!(mine.is_some() != theirs.is_some(), "{mine:?} {theirs:?}");
        core.settle(mine.or(theirs).unwrap(), Class::Ignored, None, || now);
        assert!(call(&core, Class::Success, now), "the place came back");
        assert_eq!(core.state(now), State::Closed);
    });
}

#[test]
fn loom_no_success_is_lost_or_counted_twice_beside_an_evaluation() {
    model(|| {
        let base = Instant::now();
        // Two threads, one bad call each at most; it never opens.
        let config = CircuitBreaker::config().count_window(100).failure_rate(1.0).minimum_calls(100);
        let core = breaker(config, base);
        assume(0);
        let other = {
            let core = core.clone();
            thread::spawn(move || {
                assume(1);
                assert!(call(&core, Class::Success, base));
                assert!(call(&core, Class::Success, base));
            })
        };
        assert!(call(&core, Class::Success, base));
        assert!(call(&core, Class::Failure, base));
        // What this thread did is in the window, whatever the other has done.
        let counts = core.snapshot(base).counts;
        assert!((2..=4).contains(&counts.calls) && counts.failures == 1);
        other.join().unwrap();
        let snapshot = core.snapshot(base);
        assert_eq!((snapshot.counts.calls, snapshot.totals.succeeded), (4, 3));
    });
}

#[test]
fn loom_a_success_that_happened_before_a_failure_is_seen_by_it() {
    model(|| {
        let base = Instant::now();
        let config = CircuitBreaker::config().count_window(10).failure_rate(None).consecutive_failures(2);
        let core = breaker(config, base);
        assume(0);
        assert!(call(&core, Class::Failure, base));
        let other = {
            let core = core.clone();
            thread::spawn(move || {
                assume(1);
                assert!(call(&core, Class::Success, base));
            })
        };
        other.join().unwrap();
        assert!(call(&core, Class::Failure, base));
        assert_eq!(core.state(base), State::Closed, "a success lay between them");
    });
}

#[test]
fn loom_healthy_calls_count_beside_the_lock() {
    for time_window in [false, true] {
        model(move || {
            let base = Instant::now();
            let config = CircuitBreaker::config();
            let config = match time_window {
                true => config,
                false => config.count_window(100),
            };
            let core = breaker(config, base);
            assume(0);
            for _ in 0..5 {
                assert!(call(&core, Class::Success, base));
            }
            assert!(core.counted_beside_the_lock() >= 4);
            assert_eq!(core.snapshot(base).counts.calls, 5);
        });
    }
}
