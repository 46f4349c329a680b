//! What other retry libraries get wrong, one test for each, and what must hold whatever happens to a call.
//!
//! Everything goes through the public API on tokio's paused clock; nothing sleeps.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::{Future, pending, poll_fn, ready},
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::FutureExt;
use mainstay::{
    Deadline, Error, Event, GaveUp, Kind, Retry, Timeout,
    backoff::Jitter,
    repeat::{CopyRequest, Never},
    retry::{Budget, Config, Failure, Judge, Verdict},
    stack::List,
};
use tokio::time::{Instant, advance, sleep};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// What a retry reported.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Report {
    Retried(u32, Duration),
    GaveUp(u32, GaveUp),
}

type Heard = Arc<Mutex<Vec<Report>>>;

/// A listener and what it heard.
fn listener() -> (impl Fn(&Event<'_>) + Send + Sync + 'static, Heard) {
    let heard = Heard::default();
    let reports = heard.clone();
    let listen = move |event: &Event<'_>| {
        reports.lock().unwrap().push(match *event {
            Event::Retried { attempt, delay, .. } => Report::Retried(attempt, delay),
            Event::GaveUp { attempts, why, .. } => Report::GaveUp(attempts, why),
            _ => return,
        });
    };
    (listen, heard)
}

fn last(heard: &Heard) -> Option<Report> {
    heard.lock().unwrap().last().copied()
}

/// The delays of a call whose operation always fails.
async fn delays<W: Judge<(), &'static str>, C>(config: Config<W, C>) -> Vec<Duration> {
    let (listen, heard) = listener();
    let retry = config.no_budget().observe(listen).build().unwrap();
    let _ = retry.call(|| async { Err::<(), _>("down") }).await;
    let heard = heard.lock().unwrap();
    heard
        .iter()
        .filter_map(|report| match report {
            Report::Retried(_, delay) => Some(*delay),
            Report::GaveUp(..) => None,
        })
        .collect()
}

/// An operation that fails and counts its attempts.
fn failing(attempts: &Cell<u32>) -> impl FnMut() -> std::future::Ready<Result<(), &'static str>> {
    || {
        attempts.set(attempts.get() + 1);
        ready(Err("down"))
    }
}

/// An operation that hangs and counts its attempts.
fn hanging(attempts: &Cell<u32>) -> impl FnMut() -> std::future::Pending<Result<(), Infallible>> {
    || {
        attempts.set(attempts.get() + 1);
        pending()
    }
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

// === the traps ===

#[tokio::test(start_paused = true)]
async fn jitter_stays_within_the_cap() {
    for jitter in [Jitter::Full, Jitter::Equal, Jitter::Decorrelated, Jitter::None] {
        let config = Retry::exponential(80 * MS).cap(100 * MS).jitter(jitter).max_attempts(200);
        let waits = delays(config).await;
        assert_eq!(waits.len(), 199);
        assert!(waits.iter().all(|wait| *wait <= 100 * MS), "{jitter:?}: {waits:?}");
        let longest = *waits.iter().max().unwrap();
        assert!(longest > 90 * MS, "{jitter:?} never comes near the cap: {longest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn jitter_is_not_truncated_at_whole_seconds() {
    let waits = delays(Retry::constant(SECOND).max_attempts(100)).await;
    let fractions = waits.iter().filter(|wait| wait.subsec_nanos() % 1_000_000 != 0);
    assert!(fractions.count() > 90, "{waits:?}");
    assert!(waits.iter().any(|wait| *wait < SECOND / 4));
    assert!(waits.iter().any(|wait| *wait > SECOND * 3 / 4));
}

#[tokio::test(start_paused = true)]
async fn a_budget_pays_for_whole_retries_only() {
    let budget = Budget::config().ratio(0.6).min(5).max(5).build().unwrap();
    let retry = Retry::constant(MS).budget(budget.clone()).max_attempts(2).build().unwrap();
    let fail = async || {
        let attempts = Cell::new(0);
        let _ = retry.call(failing(&attempts)).await;
        attempts.get()
    };
    let succeed = async || retry.call(|| ready(Ok::<_, &str>(()))).await.unwrap();

    assert_eq!([fail().await, fail().await, fail().await], [2, 2, 2], "what it started with");
    assert_eq!(budget.available(), 0.0);
    succeed().await;
    assert_eq!(fail().await, 1, "0.6 of a token does not buy a retry");
    assert_eq!(budget.available(), 0.6, "and asking for it costs nothing");
    succeed().await;
    assert_eq!(fail().await, 2);
    assert_eq!(budget.available(), 0.2, "the fraction is kept exactly");
}

#[tokio::test(start_paused = true)]
async fn retries_are_a_tenth_of_own_successes_not_one_for_each() {
    let retry = Retry::constant(Duration::ZERO).max_attempts(2).build().unwrap();
    let mut retries = 0;
    for call in 0..1_000 {
        let attempts = Cell::new(0);
        let _ = retry
            .call(|| {
                attempts.set(attempts.get() + 1);
                ready(if call % 2 == 0 { Ok(()) } else { Err("down") })
            })
            .await;
        retries += attempts.get() - 1;
        advance(100 * MS).await;
    }
    // 500 successes pay for 50; one token was there at the beginning, a fraction is left.
    assert!((49..=51).contains(&retries), "{retries}");
}

#[tokio::test(start_paused = true)]
async fn a_small_client_cannot_save_up_a_burst_and_a_large_one_only_in_proportion() {
    let retry = Retry::constant(MS).max_attempts(1_000).build().unwrap();
    let budget = retry.budget().unwrap();
    for _ in 0..3_600 {
        retry.call(|| ready(Ok::<_, &str>(()))).await.unwrap();
        advance(SECOND).await;
    }
    assert_eq!(budget.available(), 1.0);
    let attempts = Cell::new(0);
    let _ = retry.call(failing(&attempts)).await;
    assert_eq!(attempts.get(), 2, "one retry, not a burst");

    for _ in 0..6_000 {
        retry.call(|| ready(Ok::<_, &str>(()))).await.unwrap();
        advance(10 * MS).await;
    }
    let snapshot = budget.snapshot();
    assert!((29.0..=31.0).contains(&snapshot.available), "a tenth of 3 s: {snapshot:?}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_budget_never_waits_and_the_last_error_is_returned_unchanged() {
    let (listen, heard) = listener();
    let retry = Retry::exponential(50 * MS).max_attempts(10).observe(listen).build().unwrap();
    let _ = retry.call(|| ready(Err::<(), _>("spends what there is"))).await;
    let answer = retry.call(|| ready(Err::<(), _>("down"))).now_or_never();
    assert_eq!(answer, Some(Err(Error::Inner("down"))));
    assert_eq!(last(&heard), Some(Report::GaveUp(1, GaveUp::Budget)));
}

#[tokio::test(start_paused = true)]
async fn refusals_of_our_own_are_not_repeated_and_cost_no_budget() {
    let budget = Budget::new();
    let (listen, heard) = listener();
    let config = Retry::constant(MS).idempotent().budget(budget.clone()).observe(listen);
    let stack = mainstay::stack("s").retry(config).deadline(5 * MS).build().unwrap();
    let attempts = Cell::new(0);
    let before = budget.available();
    let error = stack.call(hanging(&attempts)).await.unwrap_err();
    assert_eq!(error.refused().unwrap().kind(), Kind::DeadlineExceeded);
    assert_eq!(attempts.get(), 1);
    assert_eq!(budget.available(), before);
    assert_eq!(last(&heard), None);
}

#[tokio::test(start_paused = true)]
async fn a_predicate_that_says_yes_to_everything_does_not_repeat_refusals_either() {
    let asked = Cell::new(0);
    let config =
        Retry::constant(MS).no_budget().idempotent().when(|attempt: &Failure<'_, (), Infallible>| {
            asked.set(asked.get() + 1);
            attempt.value().is_none()
        });
    let stack = mainstay::stack("s").retry(config).deadline(5 * MS).build().unwrap();
    let attempts = Cell::new(0);
    assert!(stack.call(hanging(&attempts)).await.is_err());
    assert_eq!((attempts.get(), asked.get()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn refusals_are_repeated_where_that_is_asked_for() {
    let config = Retry::constant(MS).no_budget().idempotent().repeat_refusals();
    let stack = mainstay::stack("s").retry(config).deadline(5 * MS).build().unwrap();
    let attempts = Cell::new(0);
    assert!(stack.call(hanging(&attempts)).await.is_err());
    assert_eq!(attempts.get(), 3);
    // Unless the operation had begun and must not run twice.
    let config = Retry::constant(MS).no_budget().repeat_refusals();
    let stack = mainstay::stack("s").retry(config).deadline(5 * MS).build().unwrap();
    attempts.set(0);
    assert!(stack.call(hanging(&attempts)).await.is_err());
    assert_eq!(attempts.get(), 1);
}

#[test]
fn requests_need_no_clone_and_are_copied_by_the_hook_of_the_outermost_retry() {
    /// Not `Clone`.
    #[derive(Debug, PartialEq)]
    struct Request(u32);

    let timeout = || Timeout::new(SECOND).unwrap();
    let none = (Deadline::new(SECOND).unwrap(), (timeout(), ()));
    let copier: &Never = none.copier();
    assert_eq!(copier.copy(&Request(1)), None);

    let hook = |request: &Request| (request.0 < 10).then_some(Request(request.0));
    let hooked = Retry::constant(MS).clone_request(hook).build().unwrap();
    let list = (Deadline::new(SECOND).unwrap(), (hooked, (timeout(), ())));
    assert_eq!(list.copier().copy(&Request(3)), Some(Request(3)));
    assert_eq!(list.copier().copy(&Request(10)), None);

    let plain = (Retry::constant(MS).build().unwrap(), (timeout(), ()));
    assert_eq!(plain.copier().copy(&"any clone"), Some("any clone"));
}

#[tokio::test(start_paused = true)]
async fn the_operation_is_told_which_attempt_is_the_last_so_that_it_copies_nothing_for_it() {
    async fn told(config: Config) -> Vec<(u32, bool)> {
        let told = RefCell::new(Vec::new());
        let retry = config.no_budget().build().unwrap();
        let _ = retry
            .call_with(|attempt| {
                told.borrow_mut().push((attempt.number(), attempt.is_last()));
                ready(Err::<(), _>("down"))
            })
            .await;
        told.into_inner()
    }
    assert_eq!(told(Retry::constant(MS)).await, [(1, false), (2, false), (3, true)]);
    assert_eq!(told(Retry::constant(MS).max_attempts(1)).await, [(1, true)]);
    assert_eq!(told(Retry::sequence([MS])).await, [(1, false), (2, true)]);
    assert_eq!(told(Retry::sequence([MS]).max_attempts(9)).await, [(1, false), (2, true)]);
}

#[tokio::test(start_paused = true)]
async fn an_inner_retry_is_last_only_in_the_last_attempt_of_the_outer_one() {
    let told = RefCell::new(Vec::new());
    let stack = mainstay::stack("s")
        .retry(Retry::constant(MS).max_attempts(2).no_budget())
        .retry(Retry::constant(MS).max_attempts(2).no_budget())
        .in_any_order()
        .build()
        .unwrap();
    let _ = stack
        .call_with(|attempt| {
            told.borrow_mut().push(attempt.is_last());
            ready(Err::<(), _>("down"))
        })
        .await;
    assert_eq!(*told.borrow(), [false, false, false, true]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_repeated_only_if_the_operation_is_idempotent() {
    async fn attempts(idempotent: bool, verdict: Verdict) -> (u32, Option<Report>) {
        let (listen, heard) = listener();
        let mut config = Retry::constant(MS).no_budget().observe(listen);
        if idempotent {
            config = config.idempotent();
        }
        let retry = config.when(move |_: &Failure<'_, (), &str>| verdict).build().unwrap();
        let attempts = Cell::new(0);
        let _ = retry.call(failing(&attempts)).await;
        (attempts.get(), last(&heard))
    }
    let refused = Some(Report::GaveUp(1, GaveUp::NotIdempotent));
    let exhausted = Some(Report::GaveUp(3, GaveUp::Attempts));
    assert_eq!(attempts(false, Verdict::Unknown).await, (1, refused));
    assert_eq!(attempts(true, Verdict::Unknown).await, (3, exhausted));
    assert_eq!(attempts(false, Verdict::Again).await, (3, exhausted));
    assert_eq!(attempts(true, Verdict::Stop).await, (1, None));
}

#[tokio::test(start_paused = true)]
async fn a_timed_out_attempt_is_repeated_only_if_the_operation_is_idempotent() {
    async fn attempts<W: Judge<(), Infallible>>(config: Config<W>) -> u32 {
        let stack = mainstay::stack("s").retry(config).timeout(10 * MS).build().unwrap();
        let attempts = Cell::new(0);
        let error = stack.call(hanging(&attempts)).await.unwrap_err();
        assert_eq!(error.refused().unwrap().kind(), Kind::TimedOut);
        attempts.get()
    }
    let retry = || Retry::constant(MS).no_budget();
    assert_eq!(attempts(retry()).await, 1);
    assert_eq!(attempts(retry().idempotent()).await, 3);
    // A predicate cannot know either what became of it.
    assert_eq!(attempts(retry().when(|_: &Failure<'_, (), Infallible>| true)).await, 1);
    assert_eq!(attempts(retry().idempotent().when(|_: &Failure<'_, (), Infallible>| true)).await, 3);
    assert_eq!(attempts(retry().idempotent().when(|_: &Failure<'_, (), Infallible>| false)).await, 1);
}

#[tokio::test(start_paused = true)]
async fn an_ok_that_is_a_failure_can_be_repeated() {
    let retry = Retry::constant(MS)
        .no_budget()
        .when(|attempt: &Failure<'_, u16, Infallible>| attempt.value() == Some(&503))
        .build()
        .unwrap();
    let answers = RefCell::new(vec![200, 503, 503]);
    let answer = retry.call(|| ready(Ok::<u16, Infallible>(answers.borrow_mut().pop().unwrap()))).await;
    assert_eq!(answer, Ok(200));
    // And the last one is returned as it is when attempts run out.
    assert_eq!(retry.call(|| ready(Ok::<u16, Infallible>(503))).await, Ok(503));
}

#[tokio::test(start_paused = true)]
async fn the_predicate_sees_the_attempt_the_elapsed_time_and_the_outcome() {
    let seen = RefCell::new(Vec::new());
    let retry = Retry::constant(10 * MS)
        .jitter(Jitter::None)
        .no_budget()
        .when(|attempt: &Failure<'_, (), u32>| {
            let error = attempt.error().copied();
            seen.borrow_mut().push((attempt.number(), attempt.elapsed(), error));
            attempt.elapsed() < 20 * MS
        })
        .max_attempts(10)
        .build()
        .unwrap();
    let answer = retry
        .call_with(|attempt| async move {
            sleep(5 * MS).await;
            Err::<(), _>(attempt.number())
        })
        .await;
    assert_eq!(answer, Err(Error::Inner(2)));
    assert_eq!(*seen.borrow(), [(1, 5 * MS, Some(1)), (2, 20 * MS, Some(2))]);
}

#[tokio::test(start_paused = true)]
async fn only_accepted_answers_fund_the_budget() {
    let budget = Budget::config().min(3).build().unwrap();
    let spend = Retry::constant(MS).budget(budget.clone()).max_attempts(2).build().unwrap();
    let _ = spend.call(|| ready(Err::<(), _>("down"))).await;
    assert_eq!(budget.available(), 2.0);
    let retry = Retry::constant(MS)
        .budget(budget.clone())
        .max_attempts(1)
        .when(|attempt: &Failure<'_, u16, &str>| attempt.value() == Some(&503))
        .build()
        .unwrap();
    let _ = retry.call(|| ready(Ok::<u16, &str>(503))).await;
    let _ = retry.call(|| ready(Err::<u16, _>("not found"))).await;
    assert_eq!(budget.available(), 2.0);
    let _ = retry.call(|| ready(Ok::<u16, &str>(200))).await;
    assert_eq!(budget.available(), 2.1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_is_traffic_once_however_often_it_is_repeated() {
    let retry = Retry::constant(Duration::ZERO)
        .max_attempts(3)
        .budget(Budget::config().min(3).build().unwrap())
        .build()
        .unwrap();
    for _ in 0..5 {
        let _ = retry.call(|| ready(Err::<(), _>("down"))).await;
    }
    assert_eq!(retry.budget().unwrap().snapshot().traffic, 5.0);
}

#[tokio::test(start_paused = true)]
async fn a_servers_hint_is_honoured_within_its_window() {
    let hinted = |hint: Duration| {
        let config = Retry::constant(100 * MS).jitter(Jitter::None).hint_window(SECOND).max_attempts(2);
        delays(config.when(move |_: &Failure<'_, (), &str>| Verdict::After(hint)))
    };
    assert_eq!(hinted(500 * MS).await, [500 * MS]);
    assert_eq!(hinted(MS).await, [100 * MS], "not before the backoff");
    assert_eq!(hinted(Duration::MAX).await, [1100 * MS], "not later than the window");
}

#[tokio::test(start_paused = true)]
async fn hints_do_not_make_a_herd() {
    let mut waits = Vec::new();
    for _ in 0..100 {
        let config = Retry::exponential(50 * MS).max_attempts(2);
        waits.extend(delays(config.when(|_: &Failure<'_, (), &str>| Verdict::After(2 * SECOND))).await);
    }
    assert!(waits.iter().all(|wait| (2 * SECOND..=2200 * MS).contains(wait)), "{waits:?}");
    let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
    assert!(*most - *least > 150 * MS, "{least:?}..{most:?}");
}

#[tokio::test(start_paused = true)]
async fn an_overloaded_server_is_given_a_second_at_least() {
    let config = Retry::exponential(50 * MS).jitter(Jitter::None).max_attempts(4);
    let waits = delays(config.when(|_: &Failure<'_, (), &str>| Verdict::Throttled(None))).await;
    assert_eq!(waits, [SECOND, 2 * SECOND, 4 * SECOND]);
}

#[tokio::test(start_paused = true)]
async fn delays_can_come_from_the_outcome_alone() {
    let retry = Retry::from_outcome(|attempt: &Failure<'_, (), Duration>| match attempt.error() {
        Some(wait) => Verdict::After(*wait),
        None => Verdict::Stop,
    })
    .jitter(Jitter::None)
    .no_budget()
    .build()
    .unwrap();
    let before = Instant::now();
    let waits = RefCell::new(vec![3600 * SECOND, 7 * MS]);
    let answer = retry
        .call(|| {
            ready(match waits.borrow_mut().pop() {
                Some(wait) => Err(wait),
                None => Ok(()),
            })
        })
        .await;
    assert_eq!(answer, Ok(()));
    assert_eq!(before.elapsed(), 3600 * SECOND + 7 * MS);
}

#[tokio::test(start_paused = true)]
async fn the_total_time_counts_work_and_sleep() {
    let (listen, heard) = listener();
    let retry = Retry::constant(10 * MS)
        .jitter(Jitter::None)
        .max_attempts(100)
        .total_time(100 * MS)
        .no_budget()
        .observe(listen)
        .build()
        .unwrap();
    let before = Instant::now();
    let _ = retry
        .call(|| async {
            sleep(40 * MS).await;
            Err::<(), _>("slow and down")
        })
        .await;
    // Attempts at 0 and 50 ms; the next would begin at 100 ms, when the time is up.
    assert_eq!(before.elapsed(), 90 * MS);
    assert_eq!(last(&heard), Some(Report::GaveUp(2, GaveUp::TotalTime)));
}

#[tokio::test(start_paused = true)]
async fn durations_of_any_size_neither_overflow_nor_panic() {
    for config in [
        Retry::constant(Duration::MAX),
        Retry::linear(Duration::MAX),
        Retry::exponential(Duration::MAX).factor(f64::MAX),
        Retry::sequence([Duration::MAX]),
        Retry::exponential(MS).cap(Duration::MAX).factor(f64::MAX),
    ] {
        for jitter in [Jitter::None, Jitter::Full, Jitter::Equal, Jitter::Decorrelated] {
            let retry = config
                .clone()
                .jitter(jitter)
                .max_attempts(u32::MAX)
                .total_time(Duration::MAX)
                .hint_window(Duration::MAX)
                .throttle_base(Duration::MAX)
                .when(|_: &Failure<'_, (), &str>| Verdict::Throttled(Some(Duration::MAX)))
                .build()
                .unwrap();
            let mut call = pin!(retry.call(|| ready(Err::<(), _>("down"))));
            assert!(poll_once(call.as_mut()).is_pending(), "{config:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn waits_are_base_times_factor_to_the_n_and_attempts_are_limited_by_default() {
    let exact = |config: Config| delays(config.jitter(Jitter::None));
    assert_eq!(exact(Retry::exponential(50 * MS)).await, [50 * MS, 100 * MS]);
    assert_eq!(
        exact(Retry::exponential(50 * MS).factor(3.0).max_attempts(7)).await,
        [50 * MS, 150 * MS, 450 * MS, 1350 * MS, 4050 * MS, 5 * SECOND]
    );
    let linear = Retry::linear(50 * MS).max_attempts(4);
    assert_eq!(exact(linear).await, [50 * MS, 100 * MS, 150 * MS]);
    let sequence = Retry::sequence([5 * MS, MS, 9 * MS]);
    assert_eq!(exact(sequence).await, [5 * MS, MS, 9 * MS]);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_call_ends_its_backoff_at_once() {
    let retry = Retry::constant(SECOND).jitter(Jitter::None).no_budget().build().unwrap();
    let attempts = Cell::new(0);
    {
        let mut call = pin!(retry.call(failing(&attempts)));
        assert!(poll_once(call.as_mut()).is_pending());
        advance(999 * MS).await;
        assert!(poll_once(call.as_mut()).is_pending());
    }
    advance(10 * SECOND).await;
    assert_eq!(attempts.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn each_attempt_passes_through_the_inner_policies_afresh() {
    // Each attempt has a timeout of its own, begun with it: three of 80 ms fit into 100 ms each.
    let config = Retry::constant(SECOND).jitter(Jitter::None).no_budget();
    let stack = mainstay::stack("s").retry(config).timeout(100 * MS).build().unwrap();
    let before = Instant::now();
    let answer = stack
        .call_with(|attempt| async move {
            sleep(80 * MS).await;
            if attempt.is_last() { Ok(attempt.number()) } else { Err("down") }
        })
        .await;
    assert_eq!(answer, Ok(3));
    assert_eq!(before.elapsed(), 2240 * MS);
}

// === deadlines and refusals ===

#[tokio::test(start_paused = true)]
async fn no_backoff_is_begun_that_the_deadline_leaves_no_time_for() {
    let (listen, heard) = listener();
    let config = Retry::constant(60 * MS).jitter(Jitter::None).no_budget().observe(listen);
    let stack = mainstay::stack("s").deadline(100 * MS).retry(config).timeout(SECOND).build().unwrap();
    let before = Instant::now();
    let answer = stack.call(|| async { Err::<(), _>("down") }).await;
    assert_eq!(answer, Err(Error::Inner("down")), "the last outcome, not a refusal");
    assert_eq!(before.elapsed(), 60 * MS, "given up when the second attempt failed");
    assert_eq!(last(&heard), Some(Report::GaveUp(2, GaveUp::Deadline)));
}

#[tokio::test(start_paused = true)]
async fn no_attempt_is_begun_after_the_deadline_even_if_the_wake_up_came_late() {
    let config = Retry::constant(60 * MS).jitter(Jitter::None).no_budget();
    let stack = mainstay::stack("s").deadline(100 * MS).retry(config).timeout(SECOND).build().unwrap();
    let attempts = Cell::new(0);
    let mut call = pin!(stack.call(failing(&attempts)));
    assert!(poll_once(call.as_mut()).is_pending());
    advance(SECOND).await;
    let Poll::Ready(Err(Error::Refused(refused))) = poll_once(call.as_mut()) else {
        panic!("the deadline has passed");
    };
    assert_eq!(refused.kind(), Kind::DeadlineExceeded);
    assert!(refused.was_started());
    assert_eq!(attempts.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_a_later_attempt_does_not_claim_that_nothing_began() {
    // A limit for the second attempt that it cannot begin with: it is refused before it starts.
    let limits = Mutex::new(vec![Duration::ZERO, SECOND]);
    let limit = Arc::new(move |_: &()| limits.lock().unwrap().pop().unwrap());
    let stack = mainstay::stack("s")
        .retry(Retry::constant(MS).no_budget())
        .deadline(Deadline::per_request(move |request: &()| limit(request)))
        .build()
        .unwrap();
    let attempts = Cell::new(0);
    let error = stack.call(failing(&attempts)).await.unwrap_err();
    assert_eq!(error.refused().unwrap().kind(), Kind::DeadlineExceeded);
    assert_eq!(attempts.get(), 1);
    assert!(error.was_started(), "the first attempt did begin");
}

#[test]
fn impossible_settings_are_refused_when_built_and_name_field_value_and_range() {
    let budget = || Budget::config();
    let refused = [
        (Retry::constant(MS).max_attempts(0).build().err(), "retry.max_attempts"),
        (Retry::constant(MS).total_time(Duration::ZERO).build().err(), "retry.total_time"),
        (Retry::exponential(MS).factor(0.99).build().err(), "retry.factor"),
        (Retry::exponential(MS).factor(f64::NAN).build().err(), "retry.factor"),
        (Retry::exponential(MS).factor(f64::INFINITY).build().err(), "retry.factor"),
        (Retry::exponential(Duration::ZERO).build().err(), "retry.base"),
        (Retry::linear(Duration::ZERO).build().err(), "retry.step"),
        (Retry::exponential(2 * MS).cap(MS).build().err(), "retry.cap"),
        (Retry::sequence([MS, 3 * MS]).cap(2 * MS).build().err(), "retry.cap"),
        (Retry::sequence([]).build().err(), "retry.sequence"),
        (budget().ratio(1.01).build().err(), "retry.budget.ratio"),
        (budget().ratio(-0.1).build().err(), "retry.budget.ratio"),
        (budget().ratio(f64::NAN).build().err(), "retry.budget.ratio"),
        (budget().ratio(0.0001).build().err(), "retry.budget.ratio"),
        (budget().window(Duration::ZERO).build().err(), "retry.budget.window"),
        (budget().max(0).min(0).build().err(), "retry.budget.max"),
        (budget().min(101).build().err(), "retry.budget.min"),
    ];
    for (error, expected) in refused {
        match error {
            Some(mainstay::ConfigError::Setting { field, value, allowed, .. }) => {
                assert_eq!(field, expected);
                assert!(!value.is_empty() && !allowed.is_empty());
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
    // And nothing that is possible.
    Retry::constant(10 * SECOND).build().unwrap();
    Retry::constant(Duration::ZERO).build().unwrap();
    Retry::exponential(MS).cap(MS).factor(1.0).max_attempts(1).build().unwrap();
    budget().ratio(0.0).min(0).max(1).build().unwrap();
    budget().ratio(1.0).min(100).build().unwrap();
    mainstay::stack("s").retry(0).build().unwrap_err();
    mainstay::stack("s").retry(2).build().unwrap();
}

// === cancellation and panics ===

/// Counts values that are alive.
#[derive(Debug, Clone, Default)]
struct Alive(Arc<AtomicU32>);

#[derive(Debug)]
struct One(Alive);

impl Alive {
    fn one(&self) -> One {
        self.0.fetch_add(1, SeqCst);
        One(self.clone())
    }

    fn count(&self) -> u32 {
        self.0.load(SeqCst)
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_at_every_await_point_a_call_leaves_nothing_behind() {
    // Three attempts that wait twice and two backoffs between them: it is pending eight times.
    const PENDING: usize = 8;
    for polls in 0..=PENDING + 1 {
        let budget = Budget::config().min(100).build().unwrap();
        let retry = Retry::constant(10 * MS).jitter(Jitter::None).budget(budget.clone()).build().unwrap();
        let alive = Alive::default();
        let mut answer = Poll::Pending;
        {
            let mut call = pin!(retry.call(|| {
                let one = alive.one();
                async move {
                    let _one = one;
                    tokio::task::yield_now().await;
                    tokio::task::yield_now().await;
                    Err::<(), _>("down")
                }
            }));
            for poll in 1..=polls {
                assert!(answer.is_pending());
                answer = poll_once(call.as_mut());
                let backing_off = poll % 3 == 0 && poll < PENDING;
                assert_eq!(alive.count(), u32::from(!backing_off && answer.is_pending()), "{poll}");
                if backing_off {
                    advance(10 * MS).await;
                }
            }
        }
        assert_eq!(answer.is_ready(), polls == PENDING + 1);
        assert_eq!(alive.count(), 0, "after {polls} polls an attempt is still alive");
        // What was begun is paid for, nothing else.
        let retries = retry.snapshot().retries;
        assert_eq!(retries, (polls as u64 / 3).min(2));
        assert_eq!(budget.available(), 3.0 - retries as f64);
        // The policy is as good as new.
        assert_eq!(retry.call(|| ready(Ok::<_, &str>(7))).await, Ok(7));
    }
}

#[tokio::test(start_paused = true)]
async fn what_failed_is_dropped_before_the_wait() {
    let alive = Alive::default();
    let retry = Retry::constant(SECOND).jitter(Jitter::None).no_budget().build().unwrap();
    let mut call = pin!(retry.call(|| ready(Err::<(), _>(alive.one()))));
    assert!(poll_once(call.as_mut()).is_pending());
    assert_eq!(alive.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_outer_timeout_during_a_backoff_or_an_attempt_leaves_the_retry_as_new() {
    let stack = mainstay::stack("s")
        .timeout(15 * MS)
        .retry(Retry::constant(10 * MS).jitter(Jitter::None).no_budget().max_attempts(9))
        .timeout(SECOND)
        .build()
        .unwrap();
    for work in [MS, 7 * MS] {
        let alive = Alive::default();
        let answer = stack
            .call(|| {
                let one = alive.one();
                async move {
                    let _one = one;
                    sleep(work).await;
                    Err::<(), _>("down")
                }
            })
            .await;
        let refused = answer.unwrap_err();
        assert_eq!(refused.refused().unwrap().kind(), Kind::TimedOut);
        assert!(refused.was_started());
        assert_eq!(alive.count(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_ended_from_outside_begins_anew_and_holds_nothing_meanwhile() {
    // The outer retry begins the inner one anew after the timeout between them has ended it: once during an
    // attempt, once during a backoff.
    for work in [7 * MS, MS] {
        let alive = Alive::default();
        let told = RefCell::new(Vec::new());
        let inner = Retry::constant(10 * MS).jitter(Jitter::None).no_budget().max_attempts(9);
        let outer = Retry::constant(SECOND).jitter(Jitter::None).no_budget().max_attempts(2);
        let stack = mainstay::stack("s")
            .retry(outer.idempotent())
            .timeout(20 * MS)
            .retry(inner)
            .timeout(SECOND)
            .in_any_order()
            .build()
            .unwrap();
        let mut call = pin!(stack.call_with(|attempt| {
            assert_eq!(alive.count(), 0, "an earlier attempt is still alive");
            told.borrow_mut().push(attempt.number());
            let one = alive.one();
            async move {
                let _one = one;
                sleep(work).await;
                Err::<(), _>("down")
            }
        }));
        for _ in 0..30 {
            assert!((&mut call).now_or_never().is_none());
            advance(MS).await;
        }
        assert_eq!(alive.count(), 0, "nothing is held while the outer retry sleeps");
        assert!(call.await.is_err());
        assert_eq!(told.borrow().iter().filter(|number| **number == 1).count(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_operation_unwinds_and_harms_nobody() {
    for bad in 1..=3 {
        let retry = Retry::constant(MS).no_budget().build().unwrap();
        let call = retry.call_with(|attempt| async move {
            assert!(attempt.number() != bad, "boom");
            Err::<(), _>("down")
        });
        assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
        assert_eq!(retry.snapshot().retries, u64::from(bad) - 1);
        assert_eq!(retry.call(|| ready(Ok::<_, &str>(7))).await, Ok(7));
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_predicate_unwinds_and_costs_nothing() {
    let armed = Arc::new(AtomicU32::new(0));
    let trigger = armed.clone();
    let budget = Budget::config().min(3).build().unwrap();
    let alive = Alive::default();
    let retry = Retry::constant(MS)
        .budget(budget.clone())
        .when(move |attempt: &Failure<'_, u32, One>| {
            assert!(trigger.swap(0, SeqCst) == 0, "boom");
            attempt.error().is_some()
        })
        .build()
        .unwrap();
    for _ in 0..3 {
        armed.store(1, SeqCst);
        let call = retry.call(|| ready(Err(alive.one())));
        assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
        assert_eq!(alive.count(), 0);
        assert_eq!(budget.available(), 3.0);
    }
    assert_eq!(retry.call(|| ready(Ok(7))).await.ok(), Some(7));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_listener_unwinds_after_everything_is_settled() {
    let budget = Budget::config().min(3).build().unwrap();
    let boom = |_: &Event<'_>| panic!("boom");
    let retry = Retry::constant(MS).budget(budget.clone()).observe(boom).build().unwrap();
    let alive = Alive::default();
    let call = retry.call(|| ready(Err::<(), _>(alive.one())));
    assert!(AssertUnwindSafe(call).catch_unwind().await.is_err());
    assert_eq!(alive.count(), 0);
    assert_eq!(budget.available(), 2.0);
    let snapshot = retry.snapshot();
    assert_eq!((snapshot.failures, snapshot.retries), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_listener_may_ask_the_retry_that_reports_to_it() {
    let budget = Budget::config().min(3).build().unwrap();
    let asked = budget.clone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = seen.clone();
    let listen = move |_: &Event<'_>| notes.lock().unwrap().push(asked.available());
    let retry = Retry::constant(MS).budget(budget).observe(listen).build().unwrap();
    let _ = retry.call(|| ready(Err::<(), _>("down"))).await;
    assert_eq!(*seen.lock().unwrap(), [2.0, 1.0, 1.0]);
}

#[tokio::test(start_paused = true)]
async fn many_attempts_that_never_wait_let_other_tasks_run() {
    let retry = Retry::constant(Duration::ZERO).max_attempts(1_000).no_budget().build().unwrap();
    let mut polls = 0;
    let mut call = pin!(retry.call(|| ready(Err::<(), _>("down"))));
    let answer = poll_fn(|cx| {
        polls += 1;
        call.as_mut().poll(cx)
    })
    .await;
    assert_eq!(answer, Err(Error::Inner("down")));
    // The first attempt, then sixteen in each poll.
    assert!((60..70).contains(&polls), "{polls}");
    assert_eq!(retry.snapshot().retries, 999);
}

#[tokio::test(start_paused = true)]
async fn a_seed_repeats_the_same_delays() {
    let seeded = |seed| delays(Retry::constant(SECOND).max_attempts(20).seed(seed));
    assert_eq!(seeded(7).await, seeded(7).await);
    assert_ne!(seeded(7).await, seeded(8).await);
}

// === two threads ===

#[test]
fn two_threads_on_one_budget_neither_lose_nor_make_a_token() {
    // A capacity that is never reached, so that every deposit can be accounted for.
    let budget = Budget::config().ratio(0.5).min(1_000_000).max(1_000_000).build().unwrap();
    let retry = Retry::constant(Duration::ZERO).budget(budget.clone()).max_attempts(2).build().unwrap();
    const CALLS: u32 = 50_000;
    let spent: u32 = std::thread::scope(|scope| {
        let work = || {
            let mut retries = 0;
            for call in 0..CALLS {
                if call % 2 == 0 {
                    let attempts = Cell::new(0);
                    let answer = retry.call(failing(&attempts)).now_or_never();
                    assert_eq!(answer, Some(Err(Error::Inner("down"))));
                    retries += attempts.get() - 1;
                } else {
                    let answer = retry.call(|| ready(Ok::<_, &str>(()))).now_or_never();
                    assert_eq!(answer, Some(Ok(())));
                }
            }
            retries
        };
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(budget.available(), 3.0 + 0.5 * f64::from(CALLS) - f64::from(spent));
    let snapshot = retry.snapshot();
    assert_eq!(snapshot.retries, u64::from(spent));
    assert!(snapshot.gave_up.budget > 0, "the budget was never the limit: {snapshot:?}");
    assert_eq!(snapshot.failures, snapshot.retries + snapshot.gave_up.attempts + snapshot.gave_up.budget);
}
