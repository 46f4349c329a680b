//! What becomes of the request: when it is copied, and what looks at it.
#![cfg(feature = "tower")]
#![allow(missing_docs, clippy::disallowed_methods)] // Time is measured from outside.

mod support;

use std::{
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use mainstay::{
    Bulkhead, CircuitBreaker, Deadline, Fallback, Keyed, Kind, Refused, Timeout,
    circuit_breaker::State,
    deadline,
    retry::{Failure, Verdict},
};
use support::*;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};

/// A request that counts its copies.
#[derive(Debug, Default)]
struct Counted(Arc<AtomicUsize>);

impl Clone for Counted {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Relaxed);
        Counted(self.0.clone())
    }
}

/// Fails so often, then succeeds.
#[derive(Clone)]
struct Failing {
    times: usize,
    calls: Arc<AtomicUsize>,
}

fn failing(times: usize) -> Failing {
    Failing { times, calls: Arc::default() }
}

impl<R> Service<R> for Failing {
    type Response = usize;
    type Error = Failed;
    type Future = Ready<Result<usize, Failed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: R) -> Self::Future {
        let number = self.calls.fetch_add(1, Relaxed);
        ready(if number < self.times { Err(Failed::Down) } else { Ok(number) })
    }
}

/// The attempts and the copies of one call.
async fn attempts_and_copies<L>(layer: &L, failures: usize) -> (usize, usize)
where
    L: Layer<Failing>,
    L::Service: Service<Counted, Response = usize, Error = Failed>,
{
    let service = failing(failures);
    let request = Counted::default();
    let (calls, copies) = (service.calls.clone(), request.0.clone());
    let _answer = layer.layer(service).oneshot(request).await;
    (calls.load(Relaxed), copies.load(Relaxed))
}

#[tokio::test(start_paused = true)]
async fn a_retry_copies_before_each_attempt_that_another_may_follow() {
    let retry = stubborn(3).build().unwrap();
    assert_eq!(attempts_and_copies(&retry, 0).await, (1, 1));
    assert_eq!(attempts_and_copies(&retry, 1).await, (2, 2));
    assert_eq!(attempts_and_copies(&retry, 2).await, (3, 2), "the last attempt takes the request itself");
    assert_eq!(attempts_and_copies(&retry, 9).await, (3, 2));
    assert_eq!(attempts_and_copies(&full(), 9).await, (5, 4));

    let sequence = mainstay::Retry::sequence([MS, MS]).no_budget().build().unwrap();
    assert_eq!(attempts_and_copies(&sequence, 9).await, (3, 2), "the sequence ends before the attempts do");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_copied_where_no_retry_can_happen() {
    let stack = mainstay::stack("none")
        .fallback(|_why| async { Ok(7) })
        .deadline(1_000 * MS)
        .circuit_breaker(CircuitBreaker::config())
        .bulkhead(5)
        .timeout(100 * MS)
        .build()
        .unwrap();
    assert_eq!(attempts_and_copies(&stack, 9).await, (1, 0));
    assert_eq!(attempts_and_copies(&stubborn(1).build().unwrap(), 9).await, (1, 0));
    // Refused before it was started.
    let refused = mainstay::stack("open").circuit_breaker(open()).retry(stubborn(3)).build().unwrap();
    assert_eq!(attempts_and_copies(&refused, 0).await, (0, 0));

    // A retry inside another: the last attempt of the inner one is not the last of the call.
    let twice =
        mainstay::stack("twice").retry(stubborn(2)).retry(stubborn(2)).in_any_order().build().unwrap();
    assert_eq!(attempts_and_copies(&twice, 9).await, (4, 3));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_copy_is_sent_once_and_the_retry_says_why() {
    #[derive(Debug)]
    struct Single(bool);
    let heard = Heard::default();
    let copies = Arc::new(AtomicUsize::new(0));
    let counter = copies.clone();
    let retry = stubborn(5)
        .observe(heard.clone())
        .clone_request(move |single: &Single| {
            counter.fetch_add(1, Relaxed);
            single.0.then_some(Single(true))
        })
        .build()
        .unwrap();
    let service = failing(2);
    let calls = service.calls.clone();
    assert_eq!(retry.layer(service).oneshot(Single(false)).await, Err(Failed::Down));
    assert_eq!((calls.load(Relaxed), copies.load(Relaxed)), (1, 1));
    assert_eq!((heard.count("NotRepeatable"), heard.count("Retried")), (1, 0));
    assert_eq!(retry.snapshot().gave_up.not_repeatable, 1);

    let service = failing(2);
    assert_eq!(retry.layer(service).oneshot(Single(true)).await, Ok(2));
    assert_eq!(heard.count("Retried"), 2);
    // Without `Clone` and without a retry nothing is asked of it.
    assert_eq!(Bulkhead::new(1).unwrap().layer(failing(0)).oneshot(Single(false)).await, Ok(0));
}

#[tokio::test(start_paused = true)]
async fn an_operation_is_repeated_after_a_timeout_only_if_it_is_declared_idempotent() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let hangs_once = service_fn(move |request: u32| {
        let number = counter.fetch_add(1, Relaxed);
        async move {
            if number % 2 == 0 {
                std::future::pending::<()>().await;
            }
            Ok::<_, Failed>(request)
        }
    });
    let heard = Heard::default();
    let not =
        mainstay::stack("charge").observe(heard.clone()).retry(stubborn(3)).timeout(50 * MS).build().unwrap();
    match not.layer(hangs_once.clone()).oneshot(1).await {
        Err(Failed::Refused(refused)) => {
            assert_eq!((refused.kind(), refused.was_started()), (Kind::TimedOut, true))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((calls.load(Relaxed), heard.count("NotIdempotent")), (1, 1));

    calls.store(0, Relaxed);
    let is = mainstay::stack("read").retry(stubborn(3).idempotent()).timeout(50 * MS).build().unwrap();
    assert_eq!(is.layer(hangs_once.clone()).oneshot(1).await, Ok(1));
    assert_eq!(calls.load(Relaxed), 2);

    // A predicate decides for itself where the outcome is not unknown, and cannot where it is.
    calls.store(0, Relaxed);
    let eager = stubborn(3).when(|failure: &Failure<'_, u32, Failed>| match failure.value() {
        Some(_) => Verdict::Stop,
        None => Verdict::Again,
    });
    let eager = mainstay::stack("eager").retry(eager).timeout(50 * MS).build().unwrap();
    assert!(eager.layer(hangs_once).oneshot(1).await.is_err());
    assert_eq!(calls.load(Relaxed), 1);
}

/// How long a call of a service that never answers takes, and why it ends.
async fn given_up<L, R>(layer: &L, request: R) -> (Duration, Kind)
where
    L: Layer<Hang>,
    L::Service: Service<R, Response = u32, Error = Failed>,
{
    let begun = Instant::now();
    match layer.layer(Hang).oneshot(request).await {
        Err(Failed::Refused(refused)) => (begun.elapsed(), refused.kind()),
        other => panic!("{other:?}"),
    }
}

#[derive(Clone, Copy)]
struct Hang;

impl<R> Service<R> for Hang {
    type Response = u32;
    type Error = Failed;
    type Future = std::future::Pending<Result<u32, Failed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: R) -> Self::Future {
        std::future::pending()
    }
}

#[derive(Debug, Clone)]
struct Order {
    host: &'static str,
    limit: Duration,
}

fn order(limit: Duration) -> Order {
    Order { host: "eu", limit }
}

#[tokio::test(start_paused = true)]
async fn timeouts_and_deadlines_per_request() {
    let timeout = Timeout::per_request(|order: &Order| order.limit);
    assert_eq!(given_up(&timeout, order(30 * MS)).await, (30 * MS, Kind::TimedOut));
    assert_eq!(given_up(&timeout, order(70 * MS)).await, (70 * MS, Kind::TimedOut));
    assert_eq!(given_up(&timeout, order(Duration::ZERO)).await, (Duration::ZERO, Kind::TimedOut));

    let deadline = Deadline::per_request(|order: &Order| order.limit);
    assert_eq!(given_up(&deadline, order(30 * MS)).await, (30 * MS, Kind::DeadlineExceeded));
    assert_eq!(given_up(&deadline, order(Duration::ZERO)).await, (Duration::ZERO, Kind::DeadlineExceeded));
    let refused = deadline.layer(failing(0)).oneshot(order(Duration::ZERO)).await;
    assert!(matches!(refused, Err(Failed::Refused(refused)) if !refused.was_started()));

    // Each attempt's limit is that of the same request, the last attempt's too, which takes the request away.
    let stack = mainstay::stack("orders")
        .deadline(Deadline::per_request(|order: &Order| order.limit * 10))
        .retry(stubborn(3).idempotent())
        .timeout(Timeout::per_request(|order: &Order| order.limit))
        .build()
        .unwrap();
    assert_eq!(given_up(&stack, order(30 * MS)).await, (3 * 30 * MS + 2 * 10 * MS, Kind::TimedOut));
    // A request that cannot be copied has its limit all the same.
    let once = mainstay::stack("once")
        .retry(stubborn(3).idempotent().clone_request(|_: &Order| None))
        .timeout(Timeout::per_request(|order: &Order| order.limit))
        .build()
        .unwrap();
    assert_eq!(given_up(&once, order(30 * MS)).await, (30 * MS, Kind::TimedOut));
}

#[tokio::test(start_paused = true)]
async fn a_service_sees_the_deadline_of_its_request() {
    let deadline = Deadline::per_request(|order: &Order| order.limit);
    let seeing = service_fn(|_: Order| async {
        tokio::time::sleep(10 * MS).await;
        Ok::<_, Failed>(deadline::remaining())
    });
    assert_eq!(deadline.layer(seeing).oneshot(order(50 * MS)).await, Ok(Some(40 * MS)));
    let none = Timeout::new(50 * MS).unwrap().layer(seeing).oneshot(order(50 * MS)).await;
    assert_eq!(none, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn each_requests_key_has_a_breaker_of_its_own() {
    let hosts = Keyed::new(10, touchy().name("hosts")).unwrap();
    let stack = mainstay::stack("hosts")
        .policy(hosts.by(|order: &Order| order.host.to_owned()))
        .retry(stubborn(2))
        .timeout(100 * MS)
        .build()
        .unwrap();
    let service = stack.layer(service_fn(|order: Order| async move {
        if order.host == "eu" { Err(Failed::Down) } else { Ok(1) }
    }));
    let at = |host| Order { host, limit: MS };
    assert_eq!(service.clone().oneshot(at("eu")).await, Err(Failed::Down));
    assert_eq!(service.clone().oneshot(at("us")).await, Ok(1));
    match service.clone().oneshot(at("eu")).await {
        Err(Failed::Refused(refused)) => {
            assert_eq!((refused.kind(), refused.name()), (Kind::CircuitOpen, "hosts[eu]"))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(hosts.get("eu").state(), State::Open);
    assert_eq!(hosts.get("us").state(), State::Closed);
    assert_eq!(service.oneshot(at("us")).await, Ok(1));
    assert_eq!(hosts.len(), 2);

    // Inside a retry the key of every attempt is known, although each attempt takes its request away.
    let limits = Keyed::new(10, Bulkhead::config(1)).unwrap();
    let stack = mainstay::stack("limits")
        .retry(stubborn(3))
        .policy(limits.by(|order: &Order| order.host.to_owned()))
        .build()
        .unwrap();
    assert_eq!(stack.layer(failing(2)).oneshot(at("eu")).await, Ok(2));
    assert_eq!(limits.get("eu").in_use(), 0);
}

#[tokio::test(start_paused = true)]
async fn only_a_fallback_to_a_service_copies_the_request_and_only_once() {
    let plain =
        mainstay::stack("plain").fallback_with(Fallback::<_, usize, Failed>::value(7)).build().unwrap();
    assert_eq!(attempts_and_copies(&plain, 9).await, (1, 0));
    let function = mainstay::stack("function").fallback(|_why| async { Ok(7) }).build().unwrap();
    assert_eq!(attempts_and_copies(&function, 9).await, (1, 0));

    let service = Fallback::service(failing(0));
    assert_eq!(attempts_and_copies(&service, 9).await, (1, 1));
    let other = failing(0);
    let asked = other.calls.clone();
    let with_retry = mainstay::stack("both")
        .fallback_with(Fallback::<_, usize, Failed>::service(other))
        .retry(stubborn(3))
        .build()
        .unwrap();
    assert_eq!(attempts_and_copies(&with_retry, 9).await, (3, 3), "one for the fallback, two for the retry");
    assert_eq!(asked.load(Relaxed), 1);
    assert_eq!(attempts_and_copies(&with_retry, 0).await, (1, 2));
    assert_eq!(asked.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_service_is_asked_whether_it_is_ready_and_answers_with_its_own_error() {
    let (other, record) = Strict::failing(1);
    let (strict, _) = Strict::failing(usize::MAX);
    let fallback = Fallback::<_, u32, Failed>::service(other).mark(|answer| *answer += 100);
    let service = fallback.layer(strict);
    assert_eq!(service.clone().oneshot(1).await, Err(Failed::Down), "the fallback failed as well");
    assert_eq!(service.clone().oneshot(1).await, Ok(102));
    assert_eq!((record.calls(), record.reserved()), (2, 0));

    let copying =
        Fallback::service_with(Strict::failing(0).0, |request: &u32| (*request != 5).then_some(*request));
    let copying: Fallback<_, u32, Failed> = copying;
    let service = copying.layer(Strict::failing(usize::MAX).0);
    assert_eq!(service.clone().oneshot(4).await, Ok(5));
    assert_eq!(service.oneshot(5).await, Err(Failed::Down));
    assert_eq!(copying.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_retry_in_the_tower_form_obeys_its_budget() {
    let retry = mainstay::Retry::constant(MS).max_attempts(10).build().unwrap();
    let heard_before = retry.snapshot().gave_up.budget;
    let calls: usize = {
        let service = failing(usize::MAX);
        let calls = service.calls.clone();
        for _ in 0..100 {
            let answer: Result<usize, Failed> = retry.layer(service.clone()).oneshot(()).await;
            assert_eq!(answer.err(), Some(Failed::Down));
        }
        calls.load(Relaxed)
    };
    // What it starts with, and not ten times the load.
    assert!((101..=115).contains(&calls), "{calls}");
    assert!(retry.snapshot().gave_up.budget > heard_before);
}

#[tokio::test(start_paused = true)]
async fn refusals_inside_a_retry_are_returned_without_another_attempt() {
    let breaker = open();
    let retry =
        mainstay::stack("r").retry(stubborn(5)).circuit_breaker(breaker).in_any_order().build().unwrap();
    let answer = retry.layer(failing(0)).oneshot(()).await;
    let Err(Failed::Refused(refused)) = answer else { panic!("{answer:?}") };
    assert_eq!(Refused::kind(&refused), Kind::CircuitOpen);
}

/// A service that is never ready after its first call.
#[derive(Clone)]
struct OnceReady(std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl Service<u32> for OnceReady {
    type Response = ();
    type Error = tower::BoxError;
    type Future = std::future::Ready<Result<(), tower::BoxError>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), tower::BoxError>> {
        if self.0.load(std::sync::atomic::Ordering::SeqCst) == 0 {
            std::task::Poll::Ready(Ok(()))
        } else {
            std::task::Poll::Pending
        }
    }

    fn call(&mut self, _: u32) -> Self::Future {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        std::future::ready(Err("busy".into()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_the_service_was_not_sent() {
    let calls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let breaker = mainstay::CircuitBreaker::config().consecutive_failures(2).build().unwrap();
    let inner = mainstay::stack("inner")
        .timeout(std::time::Duration::from_millis(100))
        .circuit_breaker(breaker.clone())
        .build()
        .unwrap();
    let mut service = inner.layer(OnceReady(calls.clone()));
    let first = service.ready().await.unwrap().call(1).await.unwrap_err();
    assert_eq!(first.to_string(), "busy");
    // Called without having said that it is ready, as a shut breaker's answer is followed by a probe.
    let second = service.call(2).await.unwrap_err();
    let refused = second.downcast_ref::<mainstay::Refused>().unwrap();
    assert_eq!((refused.kind(), refused.was_started()), (mainstay::Kind::TimedOut, false));
    assert_eq!(calls.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(breaker.snapshot().counts.failures, 1, "only what was sent counts");
}
