//! Every interleaving of two threads on one limiter.

use std::{
    sync::Arc as StdArc,
    time::{Duration, Instant},
};

use loom::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use super::{Config, RateLimiter};
use crate::{
    event::Event,
    every_order::{Ever, model},
};

const HOUR: Duration = Duration::from_secs(3_600);

fn algorithms(limit: u32) -> [Config; 3] {
    let config = || Config::new(limit, HOUR);
    [config(), config().fixed_window(), config().token_bucket(limit)]
}

fn remaining(limiter: &RateLimiter) -> u32 {
    limiter.quota().remaining
}

#[test]
fn two_calls_for_one_place() {
    for config in algorithms(1) {
        model(move || {
            let limiter = config.clone().build().unwrap();
            let other = {
                let limiter = limiter.clone();
                thread::spawn(move || limiter.take(1, Instant::now()).is_ok())
            };
            let mine = limiter.take(1, Instant::now()).is_ok();
            assert!(mine != other.join().unwrap(), "one of them, and one alone");
        });
    }
}

#[test]
fn a_place_that_is_given_back_is_there_for_whoever_comes_after_and_never_twice() {
    for config in algorithms(1) {
        let (ever, never) = (Ever::default(), Ever::default());
        let (got_it, came_too_early) = (ever.clone(), never.clone());
        model(move || {
            let limiter = config.clone().build().unwrap();
            let inside = Arc::new(AtomicUsize::new(0));
            let permit = limiter.try_acquire().unwrap().into_owned();
            inside.fetch_add(1, SeqCst);
            let other = {
                let (limiter, inside) = (limiter.clone(), inside.clone());
                thread::spawn(move || match limiter.try_acquire() {
                    Ok(permit) => {
                        assert_eq!(inside.fetch_add(1, SeqCst), 0, "the place was given twice");
                        permit.started();
                        true
                    }
                    Err(_) => false,
                })
            };
            inside.fetch_sub(1, SeqCst);
            drop(permit);
            let taken = other.join().unwrap();
            let outcome = if taken { &got_it } else { &came_too_early };
            outcome.happened();
            assert_eq!(remaining(&limiter), u32::from(!taken), "a place was lost or made up");
        });
        assert!(ever.has_happened() && never.has_happened());
    }
}

#[test]
fn other_settings_beside_a_place_that_is_given_back() {
    model(|| {
        let limiter = Config::new(2, HOUR).build().unwrap();
        let permit = limiter.try_acquire().unwrap().into_owned();
        limiter.try_acquire().unwrap().started();
        let other = thread::spawn(move || drop(permit));
        limiter.reconfigure(&Config::new(2, HOUR).fixed_window()).unwrap();
        other.join().unwrap();
        // Given back before, or by a permit of the old settings, which changes nothing.
        assert!(remaining(&limiter) <= 1, "what was started counts");
    });
}

#[test]
fn a_listener_may_ask_the_limiter_that_tells_it() {
    let ever = Ever::default();
    let heard = ever.clone();
    model(move || {
        let place = StdArc::new(std::sync::OnceLock::<RateLimiter>::new());
        let (inside, heard) = (place.clone(), heard.clone());
        let config = Config::new(1, HOUR).observe(move |_: &Event<'_>| {
            if let Some(limiter) = inside.get() {
                assert_eq!(remaining(limiter), 0);
                heard.happened();
            }
        });
        let limiter = config.build().unwrap();
        place.set(limiter.clone()).unwrap();
        let other = {
            let limiter = limiter.clone();
            thread::spawn(move || limiter.try_acquire().map(super::Permit::started).is_ok())
        };
        let mine = limiter.try_acquire().map(super::Permit::started).is_ok();
        assert!(mine != other.join().unwrap());
    });
    assert!(ever.has_happened());
}
