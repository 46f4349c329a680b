//! One policy per key: bounded, evicting what loses least, reconfigured with the evidence kept.
#![allow(missing_docs)]

use std::{
    collections::HashSet,
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use mainstay::{
    Bulkhead, CircuitBreaker, ConfigError, Keyed, Kind, Registry, circuit_breaker, circuit_breaker::State,
};
use tokio::time::advance;

const MS: Duration = Duration::from_millis(1);

type Breakers = Keyed<String, circuit_breaker::Config>;

fn config() -> circuit_breaker::Config {
    CircuitBreaker::config()
        .count_window(10)
        .failure_rate(None)
        .consecutive_failures(2)
        .open_wait(100 * MS, 1.0, 100 * MS)
        .immediate_close()
        .seed(1)
        .name("hosts")
}

fn fail(breaker: &CircuitBreaker) {
    breaker.try_acquire().unwrap().failure();
}

fn names(breakers: &Breakers) -> HashSet<String> {
    breakers.policies().iter().map(|breaker| breaker.name().to_owned()).collect()
}

fn set(names: &[&str]) -> HashSet<String> {
    names.iter().map(|name| format!("hosts[{name}]")).collect()
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_and_keeps_it() {
    let breakers = Keyed::new(3, config()).unwrap();
    assert!(breakers.is_empty());
    for _ in 0..2 {
        fail(&breakers.get("a"));
    }
    assert_eq!((breakers.get("a").state(), breakers.get("b").state()), (State::Open, State::Closed));
    assert_eq!(breakers.len(), 2);
    assert_eq!(names(&breakers), set(&["a", "b"]));
    assert_eq!(breakers.clone().get("a").state(), State::Open, "clones share");
    let refused = breakers.get("a").try_acquire().unwrap_err();
    assert_eq!(
        (refused.name(), refused.full_name().base(), refused.full_name().key()),
        ("hosts[a]", "hosts", Some("a"))
    );
}

#[tokio::test(start_paused = true)]
async fn it_is_bounded_and_the_one_asked_for_longest_ago_goes_first() {
    let breakers = Keyed::new(3, config()).unwrap();
    for key in ["a", "b", "c"] {
        breakers.get(key);
    }
    breakers.get("a");
    breakers.get("d");
    assert_eq!(names(&breakers), set(&["a", "c", "d"]));
    breakers.get("c");
    breakers.get("e");
    assert_eq!(names(&breakers), set(&["c", "d", "e"]));
    for key in 0..1_000 {
        breakers.get(&key.to_string());
        assert!(breakers.len() <= 3);
    }
    assert_eq!(names(&breakers), set(&["997", "998", "999"]));
}

#[tokio::test(start_paused = true)]
async fn open_breakers_and_those_with_failures_are_kept_through_a_flood_of_keys() {
    let breakers = Keyed::new(3, config()).unwrap();
    let open = breakers.get("open");
    fail(&open);
    fail(&open);
    fail(&breakers.get("failing"));
    for key in 0..100 {
        breakers.get(&key.to_string());
    }
    assert_eq!(names(&breakers), set(&["open", "failing", "99"]));
    assert_eq!(breakers.get("open").state(), State::Open);
    // Nor does a flood of keys that fail: an open breaker is worth more than a failure or two.
    for key in 0..100 {
        fail(&breakers.get(&format!("bad {key}")));
    }
    assert_eq!(names(&breakers), set(&["open", "bad 98", "bad 99"]));
    // If all are open, the oldest of them has to go.
    for key in ["bad 98", "bad 99"] {
        fail(&breakers.get(key));
    }
    assert!(breakers.policies().iter().all(|breaker| breaker.state() == State::Open));
    breakers.get("new");
    assert_eq!(names(&breakers), set(&["new", "bad 98", "bad 99"]));
}

#[tokio::test(start_paused = true)]
async fn of_many_keys_several_go_at_once_but_only_with_which_equally_little_is_lost() {
    let breakers = Keyed::new(256, config()).unwrap();
    fail(&breakers.get("failing"));
    for key in 0..255 {
        breakers.get(&key.to_string());
    }
    breakers.get("0");
    breakers.get("new");
    let kept = names(&breakers);
    assert_eq!(kept.len(), 256 - 256 / 64 + 1);
    for (key, stays) in [
        ("failing", true),
        ("0", true),
        ("1", false),
        ("4", false),
        ("5", true),
        ("254", true),
        ("new", true),
    ] {
        assert_eq!(kept.contains(&format!("hosts[{key}]")), stays, "{key}");
    }
    // With one at rest among those that have failures, it alone goes.
    for breaker in breakers.policies() {
        fail(&breaker);
    }
    for key in 0..4 {
        let breaker = breakers.get(&format!("more {key}"));
        if key != 2 {
            fail(&breaker);
        }
    }
    let kept = names(&breakers);
    assert_eq!((kept.len(), kept.contains("hosts[more 2]")), (256, false));
    // And where all are open, one.
    for breaker in breakers.policies() {
        while let Ok(permit) = breaker.try_acquire() {
            permit.failure();
        }
    }
    breakers.get("last");
    assert_eq!(breakers.len(), 256);
}

#[tokio::test(start_paused = true)]
async fn bulkheads_in_use_are_kept() {
    let bulkheads = Keyed::new(2, Bulkhead::config(1).name("tenants")).unwrap();
    let (busy, _idle) = (bulkheads.get("busy"), bulkheads.get("idle"));
    let permit = busy.try_acquire().unwrap();
    bulkheads.get("new");
    assert!(bulkheads.get("busy").try_acquire().is_err(), "the same bulkhead, still full");
    drop(permit);
    assert!(bulkheads.get("busy").try_acquire().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_call_of_a_key_that_was_evicted_finishes_with_its_policy() {
    let bulkheads = Keyed::new(1, Bulkhead::config(1).name("tenants")).unwrap();
    let old = bulkheads.get("a");
    let mut call = Box::pin(old.call(pending::<Result<(), ()>>));
    assert!(futures::poll!(call.as_mut()).is_pending());
    bulkheads.get("b");
    let new = bulkheads.get("a");
    assert_eq!((old.in_use(), new.in_use()), (1, 0));
    drop(call);
    assert_eq!(old.in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn reconfiguring_keeps_the_evidence_and_reaches_keys_to_come() {
    let breakers: Breakers = Keyed::new(3, config()).unwrap();
    fail(&breakers.get("one failure"));
    for _ in 0..2 {
        fail(&breakers.get("open"));
    }
    breakers.reconfigure(config().consecutive_failures(3)).unwrap();
    assert_eq!(breakers.get("open").state(), State::Open);
    let counts = breakers.get("one failure").snapshot().counts;
    assert_eq!((counts.failures, counts.consecutive_failures), (1, 1));
    for key in ["one failure", "new"] {
        while breakers.get(key).state() == State::Closed {
            fail(&breakers.get(key));
        }
        assert_eq!(breakers.get(key).snapshot().counts.consecutive_failures, 3, "{key}");
    }
    // Impossible settings change nothing.
    let error = breakers.reconfigure(config().consecutive_failures(0)).unwrap_err();
    assert!(error.to_string().starts_with("circuit_breaker.consecutive_failures = 0"), "{error}");
    let fresh = breakers.get("fresh");
    for _ in 0..3 {
        assert_eq!(fresh.state(), State::Closed);
        fail(&fresh);
    }
    assert_eq!(fresh.state(), State::Open);

    let bulkheads = Keyed::new(3, Bulkhead::config(1)).unwrap();
    let (old, _permit) = (bulkheads.get("a"), bulkheads.get("a").try_acquire().unwrap().into_owned());
    bulkheads.reconfigure(Bulkhead::config(2)).unwrap();
    assert_eq!((old.limit(), old.in_use(), bulkheads.get("b").limit()), (2, 1, 2));
}

/// The window has forgotten them; the row has not.
#[tokio::test(start_paused = true)]
async fn a_row_of_failures_that_may_yet_open_it_is_something_to_lose() {
    let config = config().time_window(10 * MS, 1).consecutive_failures_within(2, 100 * MS);
    let breakers: Breakers = Keyed::new(2, config).unwrap();
    for (key, remembers) in [("a", true), ("b", false)] {
        fail(&breakers.get(key));
        if !remembers {
            breakers.get(key).try_acquire().unwrap().success();
        }
    }
    advance(50 * MS).await;
    assert_eq!(breakers.get("a").snapshot().counts.failures, 0);
    breakers.get("b");
    breakers.get("c");
    assert_eq!(names(&breakers), set(&["a", "c"]));
}

#[test]
fn impossible_settings_are_refused_when_it_is_built() {
    assert!(matches!(
        Keyed::<String, _>::new(0, config()),
        Err(ConfigError::Setting { field: "keyed.capacity", .. })
    ));
    assert!(matches!(
        Keyed::<String, _>::new(1, Bulkhead::config(0)),
        Err(ConfigError::Setting { field: "bulkhead.limit", .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn a_stack_asks_for_the_key_of_each_call() {
    let breakers: Breakers = Keyed::new(3, config()).unwrap();
    let sick = Arc::new(AtomicBool::new(true));
    let is_sick = sick.clone();
    let key = move |_: &()| if is_sick.load(Relaxed) { "sick".to_owned() } else { "well".to_owned() };
    let stack = mainstay::stack("by key").policy(breakers.by(key)).build().unwrap();
    assert_eq!(
        format!("{stack:?}").lines().nth(1).map(|line| line.ends_with(", one per key, at most 3")),
        Some(true)
    );
    for _ in 0..2 {
        stack.call(|| ready(Err::<(), _>("down"))).await.unwrap_err();
    }
    let refused = stack.call(|| ready(Ok::<_, &str>(()))).await.unwrap_err();
    assert_eq!(
        refused.refused().map(|refused| (refused.kind(), refused.name())),
        Some((Kind::CircuitOpen, "hosts[sick]"))
    );
    sick.store(false, Relaxed);
    assert_eq!(stack.call(|| ready(Ok::<_, &str>(()))).await, Ok(()));
    sick.store(true, Relaxed);
    advance(100 * MS).await;
    assert_eq!(stack.call(|| ready(Ok::<_, &str>(()))).await, Ok(()), "the probe");
    assert_eq!(breakers.get("sick").state(), State::Closed);
}

#[test]
fn many_threads_get_one_policy_per_key() {
    const THREADS: usize = 2;
    const KEYS: usize = 2_000;
    let bulkheads = Keyed::<String, _>::new(KEYS, Bulkhead::config(THREADS)).unwrap();
    let arrived = AtomicUsize::new(0);
    let taken: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    // All ask for each key at the same time, when there is none yet.
                    let take = |key: usize| {
                        arrived.fetch_add(1, Relaxed);
                        while arrived.load(Relaxed) < THREADS * (key + 1) {
                            std::thread::yield_now();
                        }
                        bulkheads.get(&key.to_string()).try_acquire().unwrap().into_owned()
                    };
                    (0..KEYS).map(take).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!((bulkheads.len(), taken.len()), (KEYS, KEYS * THREADS));
    for bulkhead in bulkheads.policies() {
        assert_eq!(bulkhead.in_use(), THREADS, "every thread used the same one: {bulkhead:?}");
    }
    drop(taken);
    assert!(bulkheads.policies().iter().all(|bulkhead| bulkhead.in_use() == 0));
}

#[test]
fn many_threads_never_exceed_the_bound() {
    let breakers = Keyed::<String, _>::new(8, config()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let breakers = &breakers;
            scope.spawn(move || {
                for at in 0..500 {
                    let key = (at * 7 + thread * 13) % 40;
                    assert_eq!(breakers.get(&key.to_string()).name(), format!("hosts[{key}]"));
                    assert!(breakers.len() <= 8);
                }
            });
        }
    });
    assert_eq!(breakers.len(), 8);
}

#[test]
fn a_registry_lists_the_policies_there_are_when_it_is_asked() {
    let breakers = Keyed::<String, _>::new(8, config()).unwrap();
    let registry = Registry::new();
    registry.add(&breakers);
    assert_eq!(registry.snapshots().len(), 0);
    breakers.get("a");
    breakers.get("b");
    let mut names: Vec<_> = registry.snapshots().iter().map(|snapshot| snapshot.name().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["hosts[a]", "hosts[b]"]);
}

/// A key that looks at the registry it is used in while it says its name.
#[derive(PartialEq, Eq, Hash, Clone)]
struct Curious(u32);

static CURIOUS: std::sync::OnceLock<Keyed<Curious, circuit_breaker::Config>> = std::sync::OnceLock::new();

impl std::fmt::Display for Curious {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let others = CURIOUS.get().map_or(0, Keyed::len);
        write!(f, "{}-{others}", self.0)
    }
}

#[test]
fn a_key_is_asked_for_its_name_with_no_lock_held() {
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let breakers = CURIOUS.get_or_init(|| Keyed::new(10, config()).unwrap());
        for number in 0..2 {
            done.send(breakers.get(&Curious(number)).name().to_owned()).unwrap();
        }
    });
    let next =
        || finished.recv_timeout(Duration::from_secs(10)).expect("the key waits for a lock that it is under");
    assert_eq!([next(), next()], ["hosts[0-0]", "hosts[1-1]"]);
}
