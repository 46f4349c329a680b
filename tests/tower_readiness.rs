//! Every policy and every stack obeys tower's contract: it calls the instance that said it was ready, once for each time
//! that it said so, and reserves nothing of its own in `poll_ready`.
#![cfg(feature = "tower")]
#![allow(missing_docs, clippy::disallowed_methods)] // Time is measured from outside.

mod support;

use std::{
    convert::Infallible,
    future::{Future, Ready, pending, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use futures::{
    FutureExt,
    future::{join_all, poll_fn},
    poll,
};
use mainstay::{
    Bulkhead, CircuitBreaker, Deadline, Error, Fallback, Keyed, Kind, RateLimiter, Timeout,
    circuit_breaker::State, deadline,
};
use support::*;
use tower::{Layer, Service, ServiceExt};

/// What a service in a `Strict` service's place is put through. Retries are expected to make up for `failing` failures.
async fn uses_it_as_intended<L>(layer: &L, failing: usize) -> Result<(), String>
where
    L: Layer<Strict>,
    L::Service: Service<u32, Response = u32, Error = Failed> + Clone,
{
    caught(async {
        let (strict, record) = Strict::failing(failing);
        let mut service = layer.layer(strict);

        // One after the other on one instance.
        for request in 0..3 {
            assert_eq!(service.ready().await.unwrap().call(request).await, Ok(request + 1));
        }
        assert_eq!(record.calls(), 3 + failing);

        // A clone of a ready instance has to become ready itself.
        service.ready().await.unwrap();
        let mut clone = service.clone();
        let (of_ready, of_clone) = (service.call(10), async { clone.ready().await.unwrap().call(20).await });
        assert_eq!(of_clone.await, Ok(21));
        assert_eq!(of_ready.await, Ok(11));

        // Readiness is not used up by asking for it again.
        service.ready().await.unwrap();
        service.ready().await.unwrap();
        record.failing.store(failing, Relaxed);
        assert_eq!(service.call(30).await, Ok(31));
        assert_eq!(service.ready().await.unwrap().call(40).await, Ok(41));

        // Many at once.
        let answers = join_all((0..5).map(|request| service.clone().oneshot(request))).await;
        assert_eq!(answers, [Ok(1), Ok(2), Ok(3), Ok(4), Ok(5)]);

        assert_eq!(record.calls(), 3 + failing + 2 + failing + 2 + 5);

        // A call that is dropped unpolled gives its place back, and so does an instance.
        service.ready().await.unwrap();
        assert_eq!(record.reserved(), 1);
        drop(service.call(50));
        assert_eq!(record.reserved(), 0, "a dropped call kept its place");
        service.ready().await.unwrap();
        drop(service);
        assert_eq!(record.reserved(), 0, "a dropped service kept its place");
    })
    .await
}

macro_rules! obeys_the_contract {
    ($($name:ident: $failing:expr, $layer:expr;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            assert_eq!(uses_it_as_intended(&$layer, $failing).await, Ok(()));
        }
    )*};
}
obeys_the_contract! {
    a_circuit_breaker_obeys: 0, CircuitBreaker::config().build().unwrap();
    a_bulkhead_obeys: 0, Bulkhead::new(5).unwrap();
    a_queueing_bulkhead_obeys: 0, Bulkhead::config(1).queue(10, 1_000 * MS).build().unwrap();
    a_retry_obeys: 3, stubborn(5).build().unwrap();
    a_timeout_obeys: 0, Timeout::new(100 * MS).unwrap();
    a_deadline_obeys: 0, Deadline::new(100 * MS).unwrap();
    a_fallback_obeys: 0, Fallback::<_, u32, Failed>::value(0);
    a_fallback_to_a_service_obeys: 0, Fallback::<_, u32, Failed>::service(Strict::failing(0).0);
    a_keyed_breaker_obeys: 0, mainstay::stack("keyed")
        .policy(Keyed::new(10, CircuitBreaker::config()).unwrap().by(|request: &u32| request % 3))
        .build()
        .unwrap();
    a_stack_obeys: 4, full();
    a_stack_with_a_fallback_obeys: 2, mainstay::stack("fallback")
        .fallback(|_why: Error<Failed>| async { Ok(0) })
        .deadline(1_000 * MS)
        .circuit_breaker(CircuitBreaker::config())
        .retry(stubborn(3))
        .bulkhead(Bulkhead::config(1).queue(10, 1_000 * MS))
        .timeout(100 * MS)
        .build()
        .unwrap();
    a_retry_around_a_retry_obeys: 3, mainstay::stack("twice")
        .retry(stubborn(2))
        .retry(stubborn(2))
        .in_any_order()
        .build()
        .unwrap();
    a_layer_around_a_layer_obeys: 4, tower::layer::layer_fn(|strict| full().layer(full().layer(strict)));
    an_empty_stack_obeys: 0, mainstay::stack("empty").build().unwrap();
}

/// What this harness is for: each of these does one of the things that it must notice.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    CallsTheClone,
    NeverAsks,
    RepeatsWithoutAsking,
    KeepsThePlace,
}

#[derive(Clone)]
struct Faulty {
    inner: Strict,
    fault: Fault,
    kept: Arc<std::sync::Mutex<Vec<Strict>>>,
}

impl Faulty {
    fn layer(fault: Fault) -> impl Layer<Strict, Service = Faulty> {
        tower::layer::layer_fn(move |inner| Faulty { inner, fault, kept: Arc::default() })
    }
}

impl Service<u32> for Faulty {
    type Response = u32;
    type Error = Failed;
    type Future = Ready<Result<u32, Failed>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        match self.fault {
            Fault::NeverAsks => Poll::Ready(Ok(())),
            _ => self.inner.poll_ready(cx),
        }
    }

    fn call(&mut self, request: u32) -> Self::Future {
        match self.fault {
            Fault::CallsTheClone => self.inner.clone().call(request),
            Fault::RepeatsWithoutAsking => {
                let _first = self.inner.call(request);
                self.inner.call(request)
            }
            Fault::KeepsThePlace if request == 50 => {
                let fresh = self.inner.clone();
                let kept = std::mem::replace(&mut self.inner, fresh);
                self.kept.lock().unwrap().push(kept);
                ready(Ok(request + 1))
            }
            Fault::None | Fault::NeverAsks | Fault::KeepsThePlace => self.inner.call(request),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_harness_notices_every_fault() {
    assert_eq!(uses_it_as_intended(&Faulty::layer(Fault::None), 0).await, Ok(()));
    for fault in [Fault::CallsTheClone, Fault::NeverAsks, Fault::RepeatsWithoutAsking] {
        let noticed = uses_it_as_intended(&Faulty::layer(fault), 0).await.unwrap_err();
        assert!(noticed.contains("had not said that it is ready"), "{fault:?}: {noticed}");
    }
    let noticed = uses_it_as_intended(&Faulty::layer(Fault::KeepsThePlace), 0).await.unwrap_err();
    assert!(noticed.contains("a dropped call kept its place"), "{noticed}");
}

/// Whether clones that are ready but idle keep another one from being served.
async fn idle_clones_hold_capacity<S>(service: S) -> bool
where
    S: Service<u32, Response = u32, Error = Failed> + Clone,
{
    let mut idle: Vec<S> = vec![service; 5];
    let (last, others) = idle.split_last_mut().unwrap();
    for other in others {
        if poll!(other.ready()).is_pending() && poll!(other.ready()).is_pending() {
            return true;
        }
    }
    if poll!(last.ready()).is_pending() && poll!(last.ready()).is_pending() {
        return true;
    }
    last.call(1).await != Ok(2)
}

#[tokio::test(start_paused = true)]
async fn poll_ready_holds_no_permit() {
    let bulkhead = Bulkhead::new(1).unwrap();
    let stack = mainstay::stack("one").bulkhead(bulkhead.clone()).build().unwrap();
    let mut service = stack.layer(Strict::failing(0).0);
    service.ready().await.unwrap();
    assert_eq!(bulkhead.in_use(), 0);
    assert!(!idle_clones_hold_capacity(service).await);
    assert_eq!(bulkhead.in_use(), 0);

    let (strict, record) = Strict::failing(0);
    assert!(!idle_clones_hold_capacity(full().layer(strict)).await);
    assert_eq!(record.reserved(), 0);

    // tower's own limit takes its permit in `poll_ready`, which is what must be noticed.
    let limited = tower::limit::ConcurrencyLimit::new(Strict::failing(0).0, 1);
    assert!(idle_clones_hold_capacity(limited).await);
}

#[tokio::test(start_paused = true)]
async fn a_call_does_nothing_until_it_is_polled() {
    let (strict, record) = Strict::failing(0);
    let bulkhead = Bulkhead::new(1).unwrap();
    let stack = mainstay::stack("lazy").bulkhead(bulkhead.clone()).build().unwrap();
    let mut service = stack.layer(strict);
    let call = service.ready().await.unwrap().call(1);
    assert_eq!((record.calls(), bulkhead.in_use()), (0, 0));
    drop(call);
    assert_eq!((record.calls(), record.reserved(), bulkhead.in_use()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_idle_ready_instance_is_no_probe() {
    let breaker = open();
    tokio::time::advance(100 * MS).await;
    let (strict, _) = Strict::failing(0);
    let mut idle = breaker.layer(strict.clone());
    idle.ready().await.unwrap();
    assert_eq!(breaker.state(), State::HalfOpen);
    // The one place for a probe is still free.
    assert_eq!(breaker.layer(strict).oneshot(1).await, Ok(2));
    assert_eq!(breaker.state(), State::Closed);
}

/// Never ready.
#[derive(Clone, Default)]
struct Stuck {
    asked: Arc<AtomicUsize>,
}

impl Service<u32> for Stuck {
    type Response = u32;
    type Error = Failed;
    type Future = futures::future::Pending<Result<u32, Failed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        self.asked.fetch_add(1, Relaxed);
        Poll::Pending
    }

    fn call(&mut self, _: u32) -> Self::Future {
        panic!("called an instance that had not said that it is ready");
    }
}

/// Fails where `answer` would never come.
async fn soon<F: Future>(answer: F) -> F::Output {
    caught(answer).await.unwrap()
}

fn kind(answer: Result<u32, Failed>) -> Option<Kind> {
    match answer {
        Err(Failed::Refused(refused)) => Some(refused.kind()),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_shut_breaker_answers_without_asking_the_service() {
    let stuck = Stuck::default();
    let breaker = open();
    let alone = breaker.layer(stuck.clone());
    assert_eq!(kind(soon(alone.oneshot(1)).await), Some(Kind::CircuitOpen));

    let stack = mainstay::stack("shut")
        .deadline(1_000 * MS)
        .circuit_breaker(breaker.clone())
        .retry(stubborn(3))
        .bulkhead(1)
        .timeout(100 * MS)
        .build()
        .unwrap();
    assert_eq!(kind(soon(stack.layer(stuck.clone()).oneshot(1)).await), Some(Kind::CircuitOpen));
    assert_eq!(
        kind(soon(stack.layer(full().layer(stuck.clone())).oneshot(1)).await),
        Some(Kind::CircuitOpen)
    );

    let fallback = mainstay::stack("fallback")
        .fallback(|_why| async { Ok::<_, Failed>(7) })
        .circuit_breaker(breaker.clone())
        .build()
        .unwrap();
    assert_eq!(soon(fallback.layer(stuck.clone()).oneshot(1)).await, Ok(7));

    let forced = CircuitBreaker::config().build().unwrap();
    forced.force_open();
    assert_eq!(kind(soon(forced.layer(stuck.clone()).oneshot(1)).await), Some(Kind::CircuitOpen));
    assert_eq!(stuck.asked.load(Relaxed), 0);

    // One that is not shut asks, whatever the reason for it.
    tokio::time::advance(100 * MS).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    let observing = open();
    observing.observe_only();
    let off = open();
    off.disable();
    for (asked, breaker) in [breaker, observing, off].into_iter().enumerate() {
        let mut service = breaker.layer(stuck.clone());
        assert!(poll!(service.ready()).is_pending());
        assert_eq!(stuck.asked.load(Relaxed), asked + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_after_a_shut_breaker_opened_up_asks_the_service_first() {
    let breaker = open();
    let (strict, record) = Strict::failing(0);
    let mut service = breaker.layer(strict);
    service.ready().await.unwrap();
    assert_eq!(record.asked(), 0);
    let call = service.call(1);
    tokio::time::advance(100 * MS).await;
    assert_eq!(call.await, Ok(2), "the probe must wait until the service is ready");
    assert_eq!((record.asked(), record.calls(), record.reserved()), (2, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_clone_of_a_ready_instance_is_not_ready() {
    let breaker = touchy().build().unwrap();
    let (strict, record) = Strict::failing(0);
    let mut service = breaker.layer(strict);
    service.ready().await.unwrap();
    let mut clone = service.clone();
    breaker.try_acquire().unwrap().failure();
    // The breaker is shut, so the clone is told to go on without the service being asked.
    clone.ready().await.unwrap();
    tokio::time::advance(100 * MS).await;
    assert_eq!(clone.call(1).await, Ok(2));
    assert_eq!((record.calls(), record.reserved()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_gives_the_reserved_place_back_at_once() {
    let breaker = touchy().build().unwrap();
    let (strict, record) = Strict::failing(0);
    let mut service = breaker.layer(strict);
    service.ready().await.unwrap();
    breaker.try_acquire().unwrap().failure();
    assert_eq!(record.reserved(), 1);
    assert_eq!(kind(service.call(1).await), Some(Kind::CircuitOpen));
    assert_eq!((record.reserved(), record.calls()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_readiness_between_attempts_is_under_the_timeout() {
    /// Ready once.
    #[derive(Clone)]
    struct Once(Arc<AtomicUsize>);
    impl Service<u32> for Once {
        type Response = u32;
        type Error = Failed;
        type Future = Ready<Result<u32, Failed>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
            if self.0.fetch_add(1, Relaxed) == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
        }
        fn call(&mut self, _: u32) -> Self::Future {
            ready(Err(Failed::Down))
        }
    }
    let stack = mainstay::stack("once").retry(stubborn(2)).timeout(50 * MS).build().unwrap();
    let begun = tokio::time::Instant::now();
    let answer = stack.layer(Once(Arc::default())).oneshot(1).await;
    assert_eq!(kind(answer), Some(Kind::TimedOut));
    assert_eq!(begun.elapsed(), 60 * MS);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_poll_ready_is_the_callers_in_the_services_own_type() {
    #[derive(Clone)]
    struct Broken;
    impl Service<u32> for Broken {
        type Response = u32;
        type Error = Failed;
        type Future = futures::future::Pending<Result<u32, Failed>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
            Poll::Ready(Err(Failed::Down))
        }
        fn call(&mut self, _: u32) -> Self::Future {
            unreachable!()
        }
    }
    assert_eq!(full().layer(Broken).ready().await.err(), Some(Failed::Down));
    let lifted = full().lift().layer(Broken).ready().await.err();
    assert_eq!(lifted, Some(Error::Inner(Failed::Down)));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_never_fails_needs_only_a_lift() {
    let mut service =
        full().lift().layer(tower::service_fn(|request: u32| async move { Ok::<_, Infallible>(request) }));
    poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
    assert_eq!(service.call(1).await, Ok(1));
    let never = tower::service_fn(|_: u32| pending::<Result<u32, Infallible>>());
    let refused = full().lift().layer(never).oneshot(1).await.unwrap_err();
    assert_eq!(refused.refused().map(|refused| refused.kind()), Some(Kind::TimedOut));
}

/// Is ready as often as it is let; fails its first call if `fails`, and leaves the others without an answer.
#[derive(Clone, Default)]
struct Door {
    lets: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
    fails: bool,
}

impl Service<u32> for Door {
    type Response = u32;
    type Error = Failed;
    type Future =
        futures::future::Either<Ready<Result<u32, Failed>>, futures::future::Pending<Result<u32, Failed>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let let_in = self.lets.fetch_update(Relaxed, Relaxed, |lets| lets.checked_sub(1));
        if let_in.is_ok() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn call(&mut self, _: u32) -> Self::Future {
        let first = self.calls.fetch_add(1, Relaxed) == 0;
        if self.fails && first {
            ready(Err(Failed::Down)).left_future()
        } else {
            futures::future::pending().right_future()
        }
    }
}

fn after(time: std::time::Duration) -> std::time::Instant {
    (tokio::time::Instant::now() + time).into_std()
}

/// The clock moves on while the runtime's timers have no turn.
fn busy(time: std::time::Duration) {
    assert!(tokio::time::advance(time).now_or_never().is_none());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_if_the_service_is_ready_after_a_deadline_around_the_call() {
    for at in [99, 100, 150] {
        let (breaker, bulkhead) = (open(), Bulkhead::new(2).unwrap());
        let limiter = RateLimiter::new(2, 1_000 * MS).unwrap();
        let stack = mainstay::stack("door")
            .rate_limiter(limiter.clone())
            .circuit_breaker(breaker.clone())
            .bulkhead(bulkhead.clone())
            .timeout(1_000 * MS)
            .build()
            .unwrap();
        let door = Door::default();
        let mut service = stack.layer(door.clone());
        // The breaker is shut, so the service is asked inside the call.
        service.ready().await.unwrap();
        tokio::time::advance(100 * MS).await;
        let mut call = Box::pin(deadline::within(after(100 * MS), service.call(1)));
        assert!(poll!(&mut call).is_pending());
        assert_eq!((bulkhead.in_use(), limiter.quota().remaining), (1, 1));
        tokio::time::advance(at * MS).await;
        door.lets.store(1, Relaxed);
        let polled = poll!(&mut call);
        if at < 100 {
            assert_eq!((polled, door.calls.load(Relaxed)), (Poll::Pending, 1));
            continue;
        }
        let Poll::Ready(Err(Failed::Refused(refused))) = polled else { panic!("{at} ms: {polled:?}") };
        assert_eq!((refused.kind(), refused.was_started()), (Kind::DeadlineExceeded, false));
        assert_eq!(door.calls.load(Relaxed), 0);
        assert_eq!(door.lets.load(Relaxed), 1, "the service was asked for nothing");
        assert_eq!((bulkhead.in_use(), limiter.quota().remaining), (0, 2), "given back");
        let totals = breaker.snapshot().totals;
        // The failure is the one that had opened it.
        assert_eq!((breaker.state(), totals.failed, totals.neutral), (State::HalfOpen, 1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn no_further_attempt_is_sent_if_the_service_is_ready_after_a_deadline_around_the_call() {
    let (breaker, bulkhead) = (CircuitBreaker::config().build().unwrap(), Bulkhead::new(2).unwrap());
    let stack = mainstay::stack("door")
        .retry(stubborn(3))
        .circuit_breaker(breaker.clone())
        .bulkhead(bulkhead.clone())
        .timeout(1_000 * MS)
        .in_any_order()
        .build()
        .unwrap();
    let door = Door { lets: Arc::new(1.into()), fails: true, ..Door::default() };
    let mut service = stack.layer(door.clone());
    let call = service.ready().await.unwrap().call(1);
    let mut call = Box::pin(deadline::within(after(100 * MS), call));
    assert!(poll!(&mut call).is_pending());
    tokio::time::advance(10 * MS).await;
    assert!(poll!(&mut call).is_pending());
    assert_eq!((door.calls.load(Relaxed), bulkhead.in_use()), (1, 1), "the second attempt waits");
    tokio::time::advance(190 * MS).await;
    door.lets.store(1, Relaxed);
    let Poll::Ready(Err(Failed::Refused(refused))) = poll!(&mut call) else { panic!("not refused") };
    assert_eq!((refused.kind(), refused.was_started()), (Kind::DeadlineExceeded, true));
    assert_eq!((door.calls.load(Relaxed), bulkhead.in_use()), (1, 0));
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.failed, totals.neutral), (1, 1), "the second attempt says nothing");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_if_the_service_is_ready_when_its_own_deadline_has_passed() {
    for timers_had_a_turn in [true, false] {
        let (breaker, bulkhead) = (open(), Bulkhead::new(2).unwrap());
        let limiter = RateLimiter::new(2, 1_000 * MS).unwrap();
        let heard = Heard::default();
        let stack = mainstay::stack("door")
            .observe(heard.clone())
            .deadline(100 * MS)
            .rate_limiter(limiter.clone())
            .circuit_breaker(breaker.clone())
            .bulkhead(bulkhead.clone())
            .timeout(1_000 * MS)
            .build()
            .unwrap();
        let door = Door::default();
        let mut service = stack.layer(door.clone());
        service.ready().await.unwrap();
        tokio::time::advance(100 * MS).await;
        let mut call = Box::pin(service.call(1));
        assert!(poll!(&mut call).is_pending());
        if timers_had_a_turn {
            tokio::time::advance(150 * MS).await;
        } else {
            busy(150 * MS);
        }
        door.lets.store(1, Relaxed);
        let Err(Failed::Refused(refused)) = soon(call).await else { panic!("not refused") };
        assert_eq!((refused.kind(), refused.was_started()), (Kind::DeadlineExceeded, false));
        assert_eq!(refused.name(), "door");
        assert_eq!(door.calls.load(Relaxed), 0);
        assert_eq!((bulkhead.in_use(), limiter.quota().remaining), (0, 2), "given back");
        let totals = breaker.snapshot().totals;
        assert_eq!((breaker.state(), totals.failed, totals.neutral), (State::HalfOpen, 1, 1));
        assert_eq!((heard.count("Refused"), heard.all().len()), (1, 1), "{:?}", heard.all());
    }
}
