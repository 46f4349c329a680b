//! The rate limiter as it is used: how many calls come through, when a place counts, and when it is given back.
#![allow(missing_docs)]

use std::{
    future::{Future, pending, poll_fn, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use futures::{FutureExt, poll};
use mainstay::{
    Bulkhead, CircuitBreaker, ConfigError, Deadline, Error, Event, Keyed, Kind, RateLimiter, Registry, Retry,
    Stack, Timeout, backoff::Jitter, deadline, rate_limiter, registry, stack,
};
use tokio::time::{advance, sleep};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);
const QUARTER: Duration = Duration::from_secs(15 * 60);

fn limiter(limit: u32) -> RateLimiter {
    RateLimiter::new(limit, QUARTER).unwrap()
}

fn taken(limiter: &RateLimiter) -> u32 {
    let quota = limiter.quota();
    quota.limit - quota.remaining
}

async fn healthy() -> Result<u32, &'static str> {
    Ok(1)
}

#[tokio::test(start_paused = true)]
async fn a_hundred_in_a_quarter_of_an_hour_for_each_address() {
    let addresses = Keyed::new(1_000, RateLimiter::config(100, QUARTER).name("api")).unwrap();
    let client = addresses.get("192.0.2.1");
    for _ in 0..100 {
        assert_eq!(client.call(healthy).await, Ok(1));
        advance(S).await;
    }
    let refused = client.call(healthy).await.unwrap_err().refused().unwrap().clone();
    assert_eq!((refused.kind(), refused.name()), (Kind::RateLimited, "api[192.0.2.1]"));
    assert_eq!(refused.retry_after(), Some(QUARTER - 100 * S), "when the first is a quarter of an hour old");
    assert!(!refused.was_started());
    assert_eq!(addresses.get("192.0.2.2").call(healthy).await, Ok(1), "another address");
    advance(QUARTER - 100 * S - Duration::from_nanos(1)).await;
    assert!(client.call(healthy).await.is_err());
    advance(Duration::from_nanos(1)).await;
    assert_eq!(client.call(healthy).await, Ok(1));
    assert!(client.call(healthy).await.is_err(), "one place, not a hundred");
    advance(QUARTER).await;
    for _ in 0..100 {
        assert_eq!(client.call(healthy).await, Ok(1));
    }
    assert!(client.call(healthy).await.is_err());
}

/// When each call that was admitted came, of many that try all the time.
async fn admissions(limiter: &RateLimiter) -> Vec<Duration> {
    let begun = tokio::time::Instant::now();
    let mut admitted = Vec::new();
    for step in 0..4_000_u64 {
        if limiter.call(healthy).await.is_ok() {
            admitted.push(begun.elapsed());
        }
        advance(Duration::from_millis(step * 7_919 % 2_500)).await;
    }
    admitted
}

/// The most in any stretch as long as `window`.
fn most_in(window: Duration, times: &[Duration]) -> usize {
    let inside = |&from: &Duration| times.iter().filter(|&&at| at >= from && at - from < window).count();
    times.iter().map(inside).max().unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn no_stretch_of_a_sliding_window_has_more_than_the_limit_and_those_of_others_have() {
    assert_eq!(most_in(QUARTER, &admissions(&limiter(100)).await), 100);
    // The broken twins: what is commonly offered as the same.
    let fixed = RateLimiter::config(100, QUARTER).fixed_window().build().unwrap();
    let bucket = RateLimiter::config(100, QUARTER).token_bucket(100).build().unwrap();
    for twin in [fixed, bucket] {
        let busiest = most_in(QUARTER, &admissions(&twin).await);
        assert!((101..=200).contains(&busiest), "{twin:?}: {busiest}");
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_exact() {
    for config in [
        RateLimiter::config(3, S),
        RateLimiter::config(3, S).fixed_window(),
        RateLimiter::config(3, S).token_bucket(2),
    ] {
        let limiter = config.build().unwrap();
        advance(17 * MS).await;
        while limiter.call(healthy).await.is_ok() {
            advance(31 * MS).await;
        }
        let wait = limiter.try_acquire().unwrap_err().retry_after().unwrap();
        advance(wait - Duration::from_nanos(1)).await;
        assert!(limiter.try_acquire().is_err(), "{limiter:?}");
        advance(Duration::from_nanos(1)).await;
        assert!(limiter.try_acquire().is_ok(), "{limiter:?}");
    }
}

// === reservations ===

#[tokio::test(start_paused = true)]
async fn a_call_that_is_never_polled_takes_nothing() {
    let limiter = limiter(1);
    let call = limiter.call(healthy);
    assert_eq!(taken(&limiter), 0);
    drop(call);
    assert_eq!(limiter.snapshot().admitted, 0);
}

/// Pending so often, and ready then.
fn pends(mut times: u32) -> impl Future<Output = ()> {
    poll_fn(move |cx| {
        if times == 0 {
            return Poll::Ready(());
        }
        times -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

type All = Stack<(RateLimiter, (Deadline, (CircuitBreaker, (Retry, (Bulkhead, (Timeout, ()))))))>;

/// The limiter outside of everything that waits.
fn all(limiter: &RateLimiter, bulkhead: &Bulkhead) -> All {
    stack("all")
        .rate_limiter(limiter.clone())
        .deadline(150 * MS)
        .circuit_breaker(CircuitBreaker::config())
        .retry(Retry::constant(15 * MS).jitter(Jitter::None).idempotent().no_budget())
        .bulkhead(bulkhead.clone())
        .timeout(35 * MS)
        .build()
        .unwrap()
}

type Made<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;
type Scenario = for<'a> fn(&'a RateLimiter, &'a Bulkhead, &'a AtomicU32, u32) -> Made<'a>;

/// Drops the call of `scenario` after no poll, after one, and so on; the place has to be taken exactly if the operation was started.
async fn every_drop(scenario: Scenario) -> Vec<String> {
    let mut found = Vec::new();
    for (queued, duration) in [(false, 0), (false, 2), (false, 50), (true, 0), (true, 2), (true, 50)] {
        for polls in 0..40 {
            let (limiter, started) = (limiter(5), AtomicU32::new(0));
            let bulkhead = Bulkhead::config(1).queue(1, 40 * MS).build().unwrap();
            let mut held = queued.then(|| bulkhead.try_acquire().unwrap());
            let mut call = scenario(&limiter, &bulkhead, &started, duration);
            let mut ended = false;
            for poll in 0..polls {
                if poll == 2 {
                    held = None;
                }
                ended = poll!(call.as_mut()).is_ready();
                if ended {
                    break;
                }
                advance(10 * MS).await;
            }
            drop(call);
            drop(held);
            let expected = started.load(Relaxed).min(1);
            if taken(&limiter) != expected {
                let taken = taken(&limiter);
                found.push(format!(
                    "queued {queued}, {duration} waits, {polls} polls: {taken} for {expected}"
                ));
            }
            if ended {
                break;
            }
        }
    }
    found
}

macro_rules! operation {
    ($started:ident, $duration:ident) => {
        || {
            $started.fetch_add(1, Relaxed);
            async move {
                pends($duration).await;
                Ok::<_, ()>(1)
            }
        }
    };
}

#[tokio::test(start_paused = true)]
async fn a_place_counts_exactly_if_the_operation_was_started_wherever_the_call_is_dropped() {
    let in_a_stack: Scenario = |limiter, bulkhead, started, duration| {
        Box::pin(async move { drop(all(limiter, bulkhead).call(operation!(started, duration)).await) })
    };
    let boxed: Scenario = |limiter, bulkhead, started, duration| {
        Box::pin(
            async move { drop(all(limiter, bulkhead).boxed().call(operation!(started, duration)).await) },
        )
    };
    let told: Scenario = |limiter, bulkhead, started, duration| {
        Box::pin(async move {
            let outer =
                stack("outer").rate_limiter(limiter.clone()).bulkhead(bulkhead.clone()).build().unwrap();
            drop(outer.call_with(|_| operation!(started, duration)()).await);
        })
    };
    let by_hand: Scenario = |limiter, bulkhead, started, duration| {
        Box::pin(async move {
            let Ok(permit) = limiter.try_acquire() else { return };
            let Ok(inside) = bulkhead.acquire().await else { return };
            permit.started();
            operation!(started, duration)().await.unwrap();
            drop(inside);
        })
    };
    for scenario in [in_a_stack, boxed, told, by_hand] {
        let found = every_drop(scenario).await;
        assert!(found.is_empty(), "{found:#?}");
    }
}

/// The broken twins, which forget one or the other.
#[tokio::test(start_paused = true)]
async fn the_harness_finds_a_place_that_is_lost_and_one_that_does_not_count() {
    let lost: Scenario = |limiter, bulkhead, started, duration| {
        Box::pin(async move {
            limiter.try_acquire().unwrap().started();
            let _inside = bulkhead.acquire().await.unwrap();
            operation!(started, duration)().await.unwrap();
        })
    };
    let found = every_drop(lost).await;
    assert!(found.iter().any(|found| found.ends_with("1 for 0")), "{found:#?}");
    let uncounted: Scenario = |limiter, _, started, duration| {
        Box::pin(async move {
            let _permit = limiter.try_acquire().unwrap();
            operation!(started, duration)().await.unwrap();
        })
    };
    let found = every_drop(uncounted).await;
    assert!(found.iter().any(|found| found.ends_with("0 for 1")), "{found:#?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_policy_inside_refuses_is_given_back() {
    let limiter = limiter(2);
    let full = Bulkhead::new(1).unwrap();
    let _held = full.try_acquire().unwrap();
    let breaker = CircuitBreaker::config().build().unwrap();
    breaker.force_open();
    let inside_full = stack("full").rate_limiter(limiter.clone()).bulkhead(full.clone()).build().unwrap();
    let inside_open = stack("open").rate_limiter(limiter.clone()).circuit_breaker(breaker).build().unwrap();
    for _ in 0..10 {
        assert!(inside_full.call(healthy).await.is_err());
        assert!(inside_open.call(healthy).await.is_err());
    }
    assert_eq!(taken(&limiter), 0);
    let snapshot = limiter.snapshot();
    assert_eq!((snapshot.admitted, snapshot.given_back, snapshot.refused), (20, 20, 0));
}

#[tokio::test(start_paused = true)]
async fn a_place_stays_taken_whatever_becomes_of_the_operation() {
    let limiter = limiter(10);
    let alone = stack("alone").rate_limiter(limiter.clone()).timeout(10 * MS).build().unwrap();
    assert_eq!(alone.call(|| async { Err::<(), _>("no") }).await, Err(Error::Inner("no")));
    assert_eq!(taken(&limiter), 1);
    let late = alone.call(pending::<Result<(), &str>>).await.unwrap_err();
    assert_eq!(late.refused().map(|refused| refused.kind()), Some(Kind::TimedOut));
    assert_eq!(taken(&limiter), 2);
    let operations: [fn() -> Made<'static>; 2] = [
        || panic!("at once"),
        || {
            Box::pin(async {
                sleep(MS).await;
                panic!("later")
            })
        },
    ];
    for (index, operation) in operations.into_iter().enumerate() {
        let call = alone.call(|| operation().map(Ok::<_, &str>));
        assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
        assert_eq!(taken(&limiter), 3 + index as u32);
    }
}

#[tokio::test(start_paused = true)]
async fn outside_a_retry_it_counts_calls_and_inside_attempts() {
    let failing = || ready(Err::<(), _>("down"));
    let retry = || Retry::constant(MS).max_attempts(3).no_budget();
    let calls = limiter(10);
    let outside = stack("calls").rate_limiter(calls.clone()).retry(retry()).build().unwrap();
    assert_eq!(outside.call(failing).await, Err(Error::Inner("down")));
    assert_eq!(taken(&calls), 1);
    let attempts = limiter(5);
    let inside = stack("attempts").retry(retry()).rate_limiter(attempts.clone()).build().unwrap();
    assert_eq!(inside.call(failing).await, Err(Error::Inner("down")));
    assert_eq!(taken(&attempts), 3);
    let refused = inside.call(failing).await.unwrap_err().refused().unwrap().clone();
    assert_eq!(refused.kind(), Kind::RateLimited, "the third attempt had no place");
    assert!(refused.was_started(), "the first two had begun");
    assert_eq!(taken(&attempts), 5);
    let refused = inside.call(failing).await.unwrap_err().refused().unwrap().clone();
    assert!(!refused.was_started());
}

/// What is refused in a later attempt gives back the place of that attempt, although an earlier one was started.
#[tokio::test(start_paused = true)]
async fn the_place_of_a_later_attempt_is_its_own() {
    let (limiter, bulkhead) = (limiter(10), Bulkhead::new(1).unwrap());
    let stack = stack("attempts")
        .retry(Retry::constant(MS).no_budget())
        .rate_limiter(limiter.clone())
        .bulkhead(bulkhead.clone())
        .build()
        .unwrap();
    let mut call = Box::pin(stack.call(|| ready(Err::<(), _>("down"))));
    assert!(poll!(call.as_mut()).is_pending(), "it waits for its second attempt");
    let _held = bulkhead.try_acquire().unwrap();
    assert!(call.await.is_err());
    assert_eq!(taken(&limiter), 1);
    assert_eq!(limiter.snapshot().given_back, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_after_its_deadline_takes_nothing_and_is_told_why() {
    let limiter = limiter(1);
    let late = deadline::within(deadline::after(Duration::ZERO), limiter.call(healthy)).await.unwrap_err();
    assert_eq!(late.refused().map(|refused| refused.kind()), Some(Kind::DeadlineExceeded));
    assert_eq!(limiter.snapshot().admitted, 0);
}

#[tokio::test(start_paused = true)]
async fn the_time_that_an_attempt_kept_its_thread_busy_counts() {
    // Both attempts are made in one poll, which has read the clock before the first.
    let limiter = RateLimiter::new(1, S).unwrap();
    let stack = stack("busy")
        .deadline(QUARTER)
        .retry(Retry::constant(Duration::ZERO).jitter(Jitter::None).no_budget())
        .rate_limiter(limiter.clone())
        .timeout(QUARTER)
        .build()
        .unwrap();
    let mut attempts = 0;
    let result = stack
        .call(|| {
            attempts += 1;
            // As a thread would that computes for a second; the clock has moved when this is first pending.
            assert!(advance(S).now_or_never().is_none());
            ready(if attempts < 2 { Err("down") } else { Ok(attempts) })
        })
        .await;
    assert_eq!(result, Ok(2), "the place of the first attempt is free again");
}

// === by hand ===

#[tokio::test(start_paused = true)]
async fn permits_by_hand_are_reservations_too() {
    let limiter = limiter(3);
    let permit = limiter.try_acquire().unwrap();
    assert_eq!((permit.quota().remaining, permit.quota().limit), (2, 3));
    drop(permit);
    assert_eq!(taken(&limiter), 0);
    let owned = limiter.try_acquire().unwrap().into_owned();
    std::thread::spawn(move || drop(owned)).join().unwrap();
    assert_eq!(taken(&limiter), 0);
    limiter.try_acquire().unwrap().into_owned().started();
    assert_eq!(taken(&limiter), 1);
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _permit = limiter.try_acquire().unwrap();
        panic!("before it was started");
    }));
    assert!(unwound.is_err());
    assert_eq!(taken(&limiter), 1);
    assert!(limiter.try_acquire_many(3).is_err());
    assert_eq!(limiter.try_acquire_many(4).unwrap_err().retry_after(), None, "there are never four");
    limiter.try_acquire_many(2).unwrap().started();
    assert_eq!(limiter.try_acquire_many(1).unwrap_err().retry_after(), Some(QUARTER));
    assert_eq!(limiter.quota().reset_seconds(), QUARTER.as_secs());
    advance(MS).await;
    assert_eq!(limiter.quota().reset_seconds(), QUARTER.as_secs(), "rounded up");
}

#[test]
fn threads_never_take_more_than_there_is_and_lose_nothing() {
    let limiter = limiter(1_000);
    let started = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (limiter, started) = (&limiter, &started);
            scope.spawn(move || {
                for turn in 0..2_000_u32 {
                    match limiter.try_acquire() {
                        Ok(permit) if (turn + thread) % 3 == 0 => drop(permit),
                        Ok(permit) => {
                            started.fetch_add(1, Relaxed);
                            permit.started();
                        }
                        Err(refused) => assert!(refused.retry_after().is_some()),
                    }
                }
            });
        }
    });
    assert_eq!(started.load(Relaxed), 1_000);
    assert_eq!(taken(&limiter), 1_000);
}

// === keyed ===

#[tokio::test(start_paused = true)]
async fn nobody_gets_a_new_quota_by_making_other_keys_known() {
    let clients = Keyed::new(10, RateLimiter::config(100, QUARTER).name("api")).unwrap();
    let spend = |key: &str, count: u32| {
        (0..count).filter(|_| clients.get(key).try_acquire().map(|permit| permit.started()).is_ok()).count()
    };
    // One has a place left, so that it refuses nobody yet.
    assert_eq!(spend("attacker", 99), 99);
    for flood in 0..1_000 {
        spend(&format!("flood {flood}"), 1);
    }
    assert_eq!(spend("attacker", 100), 1, "its 99 were forgotten");
    // Idle ones go first, whoever was asked last.
    advance(QUARTER).await;
    spend("busy", 2);
    for idle in 0..100 {
        clients.get(&format!("idle {idle}"));
    }
    assert_eq!(clients.get("busy").quota().remaining, 98);
    assert_eq!(clients.len(), 10);
}

#[tokio::test(start_paused = true)]
async fn other_settings_for_all_keys_keep_what_is_taken() {
    let clients = Keyed::new(10, RateLimiter::config(10, S)).unwrap();
    clients.get("a").try_acquire_many(6).unwrap().started();
    clients.reconfigure(RateLimiter::config(8, S)).unwrap();
    assert_eq!((clients.get("a").quota().remaining, clients.get("b").quota().remaining), (2, 8));
    assert!(clients.reconfigure(RateLimiter::config(0, S)).is_err());
    assert_eq!(clients.get("a").quota().limit, 8);
}

// === in company ===

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_when_no_lock_is_held() {
    let limiter = Arc::new(Mutex::new(None::<RateLimiter>));
    let heard = Arc::new(AtomicU32::new(0));
    let (inside, count) = (limiter.clone(), heard.clone());
    let built = RateLimiter::config(1, S)
        .name("partner")
        .observe(move |event: &Event<'_>| {
            if let Event::Refused { refused, observed: false, .. } = event {
                assert_eq!((refused.kind(), refused.to_string()), (Kind::RateLimited, EXPECTED.to_owned()));
                let limiter = inside.lock().unwrap().clone().unwrap();
                assert_eq!(limiter.quota().remaining, 0);
                count.fetch_add(1, Relaxed);
            }
        })
        .build()
        .unwrap();
    const EXPECTED: &str = "partner: rate limited, retry after 1000 ms";
    *limiter.lock().unwrap() = Some(built.clone());
    assert!(built.call(healthy).await.is_ok());
    assert!(built.call(healthy).await.is_err());
    assert!(built.try_acquire().is_err());
    assert_eq!(heard.load(Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn to_a_breaker_outside_a_refusal_is_as_if_there_had_been_no_call() {
    let breaker = CircuitBreaker::config().consecutive_failures(1).build().unwrap();
    let limited = stack("limited").circuit_breaker(breaker.clone()).rate_limiter(limiter(1)).build().unwrap();
    assert!(limited.call(healthy).await.is_ok());
    for _ in 0..10 {
        assert!(limited.call(healthy).await.is_err());
    }
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.succeeded, totals.failed, totals.neutral), (1, 0, 10));
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_repeats_refusals_may_not_stand_around_it() {
    let retry = || Retry::constant(MS).repeat_refusals();
    let wrong = stack("s").retry(retry()).rate_limiter(RateLimiter::config(1, S)).build();
    assert!(matches!(wrong, Err(ConfigError::Order { problem, .. }) if problem.contains("repeats refusals")));
    assert!(stack("s").rate_limiter(RateLimiter::config(1, S)).retry(retry()).build().is_ok());
    let text = format!("{:?}", all(&limiter(3), &Bulkhead::new(1).unwrap()));
    assert!(text.starts_with("all\n└─ rate limiter, 3 in 900s\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn stacks_share_a_limiter_and_the_registry_shows_it() {
    let shared = RateLimiter::config(2, S).name("partner").build().unwrap();
    let (one, two) = (
        stack("one").rate_limiter(shared.clone()).build().unwrap(),
        stack("two").rate_limiter(shared.clone()).build().unwrap(),
    );
    assert!(one.call(healthy).await.is_ok() && two.call(healthy).await.is_ok());
    assert_eq!(one.call(healthy).await.unwrap_err().refused().unwrap().name(), "partner");
    let own = stack("own").rate_limiter(RateLimiter::config(1, S).token_bucket(3)).build().unwrap();
    let registry = Registry::new();
    registry.add(&one);
    registry.add(&own);
    let [registry::Snapshot::RateLimiter(partner), registry::Snapshot::RateLimiter(own)] =
        &registry.snapshots()[..]
    else {
        panic!("two limiters");
    };
    assert_eq!(
        (&*partner.name, partner.admitted, partner.refused, partner.quota.remaining),
        ("partner", 2, 1, 0)
    );
    assert_eq!((&*own.name, own.algorithm), ("own", rate_limiter::Algorithm::TokenBucket { burst: 3 }));
    assert_eq!((own.quota.limit, own.quota.window), (3, S));
}

#[cfg(feature = "tower")]
mod tower_form {
    use super::*;
    use std::task::Context;
    use tower::{Layer, Service, ServiceExt};

    /// Never ready for another call while one runs elsewhere.
    #[derive(Clone)]
    struct Busy {
        ready: bool,
    }

    impl Service<u32> for Busy {
        type Response = u32;
        type Error = Error<()>;
        type Future = std::future::Ready<Result<u32, Error<()>>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error<()>>> {
            if self.ready { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn call(&mut self, request: u32) -> Self::Future {
            ready(Ok(request))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_layer_shares_its_places_with_the_wrapper_and_waits_for_nothing() {
        let limiter = limiter(2);
        let mut service = limiter.layer(Busy { ready: true });
        assert_eq!(service.ready().await.unwrap().call(7).await, Ok(7));
        let made = service.ready().await.unwrap().call(8);
        assert_eq!(taken(&limiter), 1, "a call that is not polled takes nothing");
        assert!(limiter.call(healthy).await.is_ok());
        assert_eq!(made.await.unwrap_err().refused().unwrap().kind(), Kind::RateLimited);
    }

    #[tokio::test(start_paused = true)]
    async fn each_request_takes_a_place_of_its_own_key() {
        let clients = Keyed::new(10, RateLimiter::config(2, QUARTER).name("api")).unwrap();
        let stack = stack("server").policy(clients.by(|request: &u32| request % 10)).build().unwrap();
        let mut service = stack.layer(Busy { ready: true });
        for (request, admitted) in [(11, true), (21, true), (12, true), (31, false), (22, true), (32, false)]
        {
            let answer = service.ready().await.unwrap().call(request).await;
            assert_eq!(answer.is_ok(), admitted, "{request}");
        }
        let refused = service.ready().await.unwrap().call(1).await.unwrap_err().refused().unwrap().clone();
        assert_eq!((refused.name(), refused.retry_after()), ("api[1]", Some(QUARTER)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_never_reached_its_service_gives_its_place_back() {
        let limiter = limiter(1);
        let mut service = limiter.layer(Busy { ready: false });
        // Without asking for readiness first, as a caller may do whose service is wrapped in one that buffers.
        let mut call = Box::pin(service.call(1));
        assert!(poll!(call.as_mut()).is_pending());
        assert_eq!(taken(&limiter), 1);
        drop(call);
        assert_eq!(taken(&limiter), 0);
    }
}
