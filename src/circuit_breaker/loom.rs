//! Every interleaving of a few calls, by loom's model checker:
//! `RUSTFLAGS="--cfg mainstay_loom" cargo test --release --lib loom`.

use std::{
    sync::Arc as StdArc,
    time::{Duration, Instant},
};

use ::loom::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::{CircuitBreaker, Class, Config, Mode, State, core::Core};
use crate::{
    event::{Event, Identity},
    every_order::{Ever, model},
    slots::index::assume,
};

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
    let ever = Ever::default();
    let seen = ever.clone();
    model(move || {
        let base = Instant::now();
        let config = CircuitBreaker::config().count_window(10).failure_rate(None).consecutive_failures(2);
        let core = breaker(config, base);
        let done = Arc::new(AtomicBool::new(false));
        // The other thread's counter is for this generation already: its success takes no lock.
        assume(1);
        assert!(call(&core, Class::Success, base));
        let ticket = core.acquire(|| base).unwrap();
        assume(0);
        assert!(call(&core, Class::Failure, base));
        let other = {
            let (core, done) = (core.clone(), done.clone());
            thread::spawn(move || {
                assume(1);
                core.settle(ticket, Class::Success, None, || base);
                done.store(true, Ordering::Release);
            })
        };
        let between = done.load(Ordering::Acquire);
        assert!(call(&core, Class::Failure, base));
        if between {
            seen.happened();
            assert_eq!(core.state(base), State::Closed, "a success lay between them");
        }
        other.join().unwrap();
        let totals = core.snapshot(base).totals;
        assert_eq!((totals.failed, totals.succeeded + totals.late), (2, 2));
    });
    assert!(ever.has_happened());
}

#[test]
fn loom_every_transition_is_told_once_and_in_its_order() {
    let ever = Ever::default();
    let seen = ever.clone();
    model(move || {
        let base = Instant::now();
        // Loom's lock: the other thread may come between what is taken and what is heard.
        let told = StdArc::new(Mutex::new(Vec::new()));
        let mut id = Identity::new("loom");
        let heard = told.clone();
        id.observe(StdArc::new(move |event: &Event<'_>| {
            if let Event::Transition { from, to, .. } = event {
                heard.lock().unwrap().push((*from, *to, thread::current().id()));
            }
        }));
        let core = Arc::new(Core::new(touchy().rules().unwrap(), Some(1), false, None, id, base));
        let other = {
            let core = core.clone();
            thread::spawn(move || core.set_mode(Mode::ForcedOpen, base))
        };
        core.set_mode(Mode::Disabled, base);
        other.join().unwrap();
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 2, "{:?}", *told);
        assert_eq!((told[0].0, told[0].1), (State::Closed, told[1].0), "out of order");
        assert_eq!(told[1].1, core.state(base), "the last that was told is not the present state");
        if told[0].2 == told[1].2 {
            seen.happened();
        }
    });
    assert!(ever.has_happened(), "no thread ever told what another had done");
}

#[test]
fn loom_healthy_calls_count_beside_the_lock() {
    for time_window in [false, true] {
        // One thread, one order.
        ::loom::model(move || {
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
