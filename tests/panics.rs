//! User code that panics, at every point where it is called: the panic reaches the caller, nothing is lost, and the
//! next call works.
#![allow(missing_docs, clippy::disallowed_methods, clippy::type_complexity)]

use std::{
    future::{Future, pending, poll_fn, ready},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use futures::{FutureExt, future::join};
use mainstay::{
    Bulkhead, CircuitBreaker, Deadline, Error, Event, Fallback, Keyed, Kind, Retry, Timeout,
    backoff::Jitter,
    circuit_breaker::{Class, State},
    deadline,
};
use tokio::time::advance;

const MS: Duration = Duration::from_millis(1);

type Answer = Result<u32, &'static str>;

/// The message that `call` panicked with.
async fn panic_of<T>(call: impl Future<Output = T>) -> String {
    match AssertUnwindSafe(call).catch_unwind().await {
        Ok(_) => "no panic".to_owned(),
        Err(payload) => match payload.downcast::<&'static str>() {
            Ok(message) => (*message).to_owned(),
            Err(_) => "another panic".to_owned(),
        },
    }
}

/// Panics at its `at`-th poll, from 1; pends before.
async fn panics_at(at: u32) -> Answer {
    let mut polls = 0;
    poll_fn(move |cx| {
        polls += 1;
        assert!(polls < at, "boom");
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

struct PanicsInDrop;

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        // Twice would abort.
        if !std::thread::panicking() {
            panic!("boom");
        }
    }
}

/// The policies of one stack, and what became of them.
struct World {
    breaker: CircuitBreaker,
    bulkhead: Bulkhead,
    retry: Retry,
}

fn breaker_config() -> mainstay::circuit_breaker::Config {
    CircuitBreaker::config()
        .count_window(20)
        .failure_rate(None)
        .consecutive_failures(3)
        .open_wait(50 * MS, 1.0, 50 * MS)
        .immediate_close()
        .seed(1)
}

impl World {
    fn new() -> World {
        World {
            breaker: breaker_config().build().unwrap(),
            bulkhead: Bulkhead::config(1).queue(1, 30 * MS).build().unwrap(),
            retry: Retry::constant(5 * MS).jitter(Jitter::None).idempotent().no_budget().build().unwrap(),
        }
    }

    fn stack(&self) -> mainstay::Stack![Deadline, CircuitBreaker, Retry, Bulkhead, Timeout] {
        mainstay::stack("panics")
            .deadline(200 * MS)
            .circuit_breaker(self.breaker.clone())
            .retry(self.retry.clone())
            .bulkhead(self.bulkhead.clone())
            .timeout(20 * MS)
            .build()
            .unwrap()
    }

    /// The breaker counted `failures` and nothing else; nothing is held, and the next call works.
    async fn is_exact_after(&self, failures: u64) {
        let totals = self.breaker.snapshot().totals;
        assert_eq!((totals.failed, totals.succeeded, totals.neutral, totals.late), (failures, 0, 0, 0));
        assert_eq!((self.bulkhead.in_use(), self.bulkhead.waiting()), (0, 0));
        assert_eq!(deadline::current(), None);
        assert_eq!(self.stack().call(|| ready(Answer::Ok(1))).await, Ok(1));
        assert_eq!(self.breaker.snapshot().totals.succeeded, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn the_closure_panics() {
    fn start() -> std::future::Ready<Answer> {
        panic!("boom")
    }
    let world = World::new();
    assert_eq!(panic_of(world.stack().call(start)).await, "boom");
    world.is_exact_after(1).await;

    let world = World::new();
    assert_eq!(panic_of(world.stack().boxed().call(start)).await, "boom");
    world.is_exact_after(1).await;
}

#[tokio::test(start_paused = true)]
async fn the_future_panics_at_its_nth_poll() {
    for at in 1..=4 {
        let world = World::new();
        assert_eq!(panic_of(world.stack().call(|| panics_at(at))).await, "boom");
        world.is_exact_after(1).await;

        let world = World::new();
        assert_eq!(panic_of(world.stack().boxed().call(|| panics_at(at))).await, "boom");
        world.is_exact_after(1).await;

        let world = World::new();
        assert_eq!(panic_of(world.breaker.call(|| panics_at(at))).await, "boom");
        world.is_exact_after(1).await;

        let world = World::new();
        assert_eq!(panic_of(world.bulkhead.call(|| panics_at(at))).await, "boom");
        world.is_exact_after(0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_attempt_panics() {
    let world = World::new();
    let mut attempt = 0;
    let stack = world.stack();
    let call = stack.call(|| {
        attempt += 1;
        let nth = attempt;
        async move { if nth == 1 { Err("down") } else { panics_at(2).await } }
    });
    assert_eq!(panic_of(call).await, "boom");
    assert_eq!(attempt, 2);
    world.is_exact_after(1).await;
}

/// Several attempts in the first poll: what the call holds has not been written down yet.
#[tokio::test(start_paused = true)]
async fn a_later_attempt_of_the_first_poll_panics_or_is_dropped() {
    let at_once = || Retry::constant(Duration::ZERO).jitter(Jitter::None).no_budget().build().unwrap();
    let fails_then = |then: u32| {
        let mut attempt = 0;
        move || {
            attempt += 1;
            let nth = attempt;
            async move { if nth < 3 { Err("down") } else { panics_at(then).await } }
        }
    };
    let stack = |world: &World| {
        mainstay::stack("at once")
            .circuit_breaker(world.breaker.clone())
            .retry(at_once())
            .bulkhead(world.bulkhead.clone())
            .timeout(20 * MS)
            .build()
            .unwrap()
    };

    let world = World::new();
    assert_eq!(panic_of(stack(&world).call(fails_then(1))).now_or_never().unwrap(), "boom");
    world.is_exact_after(1).await;

    let world = World::new();
    assert_eq!(panic_of(stack(&world).boxed().call(fails_then(1))).now_or_never().unwrap(), "boom");
    world.is_exact_after(1).await;

    // The third attempt pends, in the first poll, and its caller loses interest.
    let world = World::new();
    let stack = stack(&world);
    let mut call = Box::pin(stack.call(fails_then(9)));
    assert!(futures::poll!(call.as_mut()).is_pending());
    assert_eq!(world.bulkhead.in_use(), 1);
    drop(call);
    let totals = world.breaker.snapshot().totals;
    assert_eq!((totals.neutral, totals.failed, world.bulkhead.in_use()), (1, 0, 0));
}

/// An outcome that nobody will get is dropped.
#[tokio::test(start_paused = true)]
async fn what_a_classifier_panics_over_is_dropped() {
    let breaker = breaker_config()
        .classify(|_: &Result<Arc<u32>, Arc<u32>>| -> Class { panic!("cannot say") })
        .build()
        .unwrap();
    let held = Arc::new(1);
    for outcome in [Ok(held.clone()), Err(held.clone())] {
        let mut outcome = Some(outcome);
        let call = breaker.call(|| ready(outcome.take().unwrap()));
        assert_eq!(panic_of(call).await, "cannot say");
    }
    assert_eq!(Arc::strong_count(&held), 1);
}

#[tokio::test(start_paused = true)]
async fn the_future_panics_when_it_is_dropped() {
    // When it is ready.
    let world = World::new();
    let held = || {
        let held = PanicsInDrop;
        let mut held = Some(held);
        Holding(poll_fn(move |_| {
            let _held = &mut held;
            Poll::Ready(Answer::Ok(1))
        }))
    };
    assert_eq!(panic_of(world.stack().call(held)).await, "boom");
    world.is_exact_after(1).await;

    // When a timeout gives it up.
    let hang = || async {
        let _held = PanicsInDrop;
        pending::<Answer>().await
    };
    let world = World::new();
    assert_eq!(panic_of(world.stack().call(hang)).await, "boom");
    world.is_exact_after(1).await;

    // When a deadline gives it up, with the breaker inside.
    let world = World::new();
    let stack = mainstay::stack("hang")
        .deadline(50 * MS)
        .circuit_breaker(world.breaker.clone())
        .bulkhead(world.bulkhead.clone())
        .build()
        .unwrap();
    assert_eq!(panic_of(stack.call(hang)).await, "boom");
    world.is_exact_after(1).await;

    // When its caller drops it: cancelled, so not a failure.
    let world = World::new();
    let stack = world.stack();
    let mut call = Box::pin(stack.call(hang));
    assert!(futures::poll!(call.as_mut()).is_pending());
    assert_eq!(world.bulkhead.in_use(), 1);
    assert_eq!(panic_of(async move { drop(call) }).await, "boom");
    assert_eq!(world.breaker.snapshot().totals.neutral, 1);
    assert_eq!((world.breaker.snapshot().totals.failed, world.bulkhead.in_use()), (0, 0));
}

/// A future that is only `Unpin` wrapping, so that what it holds is dropped with it and not before.
struct Holding<F>(F);

impl<F: Future + Unpin> Future for Holding<F> {
    type Output = F::Output;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<F::Output> {
        self.0.poll_unpin(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn the_classifier_panics() {
    let sick = Arc::new(AtomicBool::new(true));
    let is_sick = sick.clone();
    let breaker = breaker_config()
        .classify(move |result: &Answer| {
            assert!(!is_sick.load(Relaxed), "cannot say");
            if result.is_ok() { Class::Success } else { Class::Failure }
        })
        .build()
        .unwrap();
    let bulkhead = Bulkhead::new(1).unwrap();
    let stack = mainstay::stack("classifier")
        .bulkhead(bulkhead.clone())
        .circuit_breaker(breaker.clone())
        .in_any_order()
        .build()
        .unwrap();
    assert_eq!(panic_of(stack.call(|| ready(Answer::Ok(1)))).await, "cannot say");
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.failed, totals.succeeded, totals.neutral), (1, 0, 0));
    assert_eq!(bulkhead.in_use(), 0);
    sick.store(false, Relaxed);
    assert_eq!(stack.call(|| ready(Answer::Ok(1))).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn the_classifier_of_a_probe_panics() {
    let breaker = breaker_config()
        .classify_err(
            |error: &&'static str| if *error == "odd" { panic!("cannot say") } else { Class::Failure },
        )
        .build()
        .unwrap();
    for _ in 0..3 {
        breaker.call(|| ready(Answer::Err("down"))).await.unwrap_err();
    }
    advance(50 * MS).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(panic_of(breaker.call(|| ready(Answer::Err("odd")))).await, "cannot say");
    assert_eq!(breaker.state(), State::Open, "a probe that panicked failed");
    advance(50 * MS).await;
    assert_eq!(breaker.call(|| ready(Answer::Ok(1))).await, Ok(1));
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_retry_predicate_panics() {
    let world = World::new();
    let retry = Retry::constant(5 * MS)
        .no_budget()
        .when(|failure: &mainstay::retry::Failure<'_, u32, &'static str>| {
            assert!(failure.number() < 2, "cannot say");
            failure.error().is_some()
        })
        .build()
        .unwrap();
    let stack = mainstay::stack("predicate")
        .circuit_breaker(world.breaker.clone())
        .retry(retry)
        .bulkhead(world.bulkhead.clone())
        .build()
        .unwrap();
    assert_eq!(panic_of(stack.call(|| ready(Answer::Err("down")))).await, "cannot say");
    assert_eq!(world.bulkhead.in_use(), 0);
    assert_eq!(stack.call(|| ready(Answer::Ok(1))).await, Ok(1));
    let totals = world.breaker.snapshot().totals;
    assert_eq!((totals.failed, totals.succeeded), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_fallback_panics() {
    fn boom() -> bool {
        true
    }
    // The handler, and its answer at two polls.
    let handler = Fallback::<_, u32, &'static str>::new(|_| -> std::future::Ready<Answer> { panic!("boom") });
    assert_eq!(panic_of(handler.call(|| ready(Answer::Err("down")))).await, "boom");
    assert_eq!(handler.running(), 0);
    for at in 1..=2 {
        let fallback = Fallback::new(move |_| panics_at(at)).limit(1);
        assert_eq!(panic_of(fallback.call(|| ready(Answer::Err("down")))).await, "boom");
        assert_eq!(fallback.running(), 0, "at poll {at}");
        // The only place is free again: the handler is asked once more.
        assert_eq!(panic_of(fallback.call(|| ready(Answer::Err("down")))).await, "boom");
    }
    // The predicate and the mark.
    let predicate =
        Fallback::<_, u32, &'static str>::value(1).when(|_| if boom() { panic!("boom") } else { true });
    assert_eq!(panic_of(predicate.call(|| ready(Answer::Err("down")))).await, "boom");
    assert_eq!(predicate.running(), 0);
    let mark = Fallback::<_, u32, &'static str>::value(1).mark(|_| panic!("boom"));
    assert_eq!(panic_of(mark.call(|| ready(Answer::Err("down")))).await, "boom");
    assert_eq!(mark.running(), 0);
    assert_eq!(mark.call(|| ready(Answer::Ok(2))).await, Ok(2));
    // The answer's drop.
    let held = Fallback::new(|_: Error<&'static str>| async {
        let _held = PanicsInDrop;
        pending::<Answer>().await
    });
    let mut call = Box::pin(held.call(|| ready(Answer::Err("down"))));
    assert!(futures::poll!(call.as_mut()).is_pending());
    assert_eq!(held.running(), 1);
    assert_eq!(panic_of(async move { drop(call) }).await, "boom");
    assert_eq!(held.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_fallback_of_a_stack_panics_after_the_breaker_has_counted() {
    let world = World::new();
    let stack = mainstay::stack("fallback")
        .fallback(|_: Error<&'static str>| panics_at(2))
        .circuit_breaker(world.breaker.clone())
        .bulkhead(world.bulkhead.clone())
        .build()
        .unwrap();
    assert_eq!(panic_of(stack.call(|| ready(Answer::Err("down")))).await, "boom");
    world.is_exact_after(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_computed_from_the_request_panics() {
    let world = World::new();
    let stack = mainstay::stack("limit")
        .circuit_breaker(world.breaker.clone())
        .bulkhead(world.bulkhead.clone())
        .timeout(Timeout::per_request(|_: &()| -> Duration { panic!("how long?") }))
        .build()
        .unwrap();
    assert_eq!(panic_of(stack.call(|| ready(Answer::Ok(1)))).await, "how long?");
    world.is_exact_after(1).await;

    let world = World::new();
    let stack = mainstay::stack("limit")
        .deadline(Deadline::per_request(|_: &()| -> Duration { panic!("how long?") }))
        .circuit_breaker(world.breaker.clone())
        .bulkhead(world.bulkhead.clone())
        .build()
        .unwrap();
    assert_eq!(panic_of(stack.call(|| ready(Answer::Ok(1)))).await, "how long?");
    world.is_exact_after(0).await;
}

#[tokio::test(start_paused = true)]
async fn the_key_function_panics() {
    let world = World::new();
    let keyed = Keyed::new(4, Bulkhead::config(1)).unwrap();
    let sick = Arc::new(AtomicBool::new(true));
    let is_sick = sick.clone();
    let stack = mainstay::stack("keyed")
        .circuit_breaker(world.breaker.clone())
        .policy(keyed.by(move |_: &()| {
            assert!(!is_sick.load(Relaxed), "which?");
            "a".to_owned()
        }))
        .build()
        .unwrap();
    assert_eq!(panic_of(stack.call(|| ready(Answer::Ok(1)))).await, "which?");
    assert!(keyed.is_empty());
    assert_eq!(world.breaker.snapshot().totals.failed, 1);
    sick.store(false, Relaxed);
    assert_eq!(stack.call(|| ready(Answer::Ok(1))).await, Ok(1));
    // And an operation inside it.
    assert_eq!(panic_of(stack.call(|| panics_at(2))).await, "boom");
    assert_eq!((keyed.get("a").in_use(), world.breaker.snapshot().totals.failed), (0, 2));
}

// --- observers

/// Panics at the first event that `which` picks.
fn once(which: fn(&Event<'_>) -> bool) -> impl Fn(&Event<'_>) + Send + Sync + 'static {
    let done = AtomicBool::new(false);
    move |event: &Event<'_>| {
        if which(event) && !done.swap(true, Relaxed) {
            panic!("cannot listen");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_panics_when_the_breaker_opens() {
    let breaker = breaker_config()
        .observe(once(|event| matches!(event, Event::Transition { to: State::Open, .. })))
        .build()
        .unwrap();
    for _ in 0..2 {
        breaker.call(|| ready(Answer::Err("down"))).await.unwrap_err();
    }
    assert_eq!(panic_of(breaker.call(|| ready(Answer::Err("down")))).await, "cannot listen");
    assert_eq!(breaker.state(), State::Open);
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.failed, totals.late, totals.neutral), (3, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_observer_panics_when_the_breaker_half_opens_and_the_probe_is_not_lost() {
    let breaker = breaker_config()
        .observe(once(|event| matches!(event, Event::Transition { to: State::HalfOpen, .. })))
        .build()
        .unwrap();
    for _ in 0..3 {
        breaker.call(|| ready(Answer::Err("down"))).await.unwrap_err();
    }
    advance(50 * MS).await;
    assert_eq!(panic_of(breaker.call(|| ready(Answer::Ok(1)))).await, "cannot listen");
    assert_eq!(breaker.state(), State::HalfOpen, "the operation was not started, so nothing was found out");
    assert_eq!(breaker.call(|| ready(Answer::Ok(1))).await, Ok(1));
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_observer_panics_when_a_slow_call_in_flight_opens_the_breaker() {
    let breaker = CircuitBreaker::config()
        .count_window(2)
        .minimum_calls(1)
        .failure_rate(None)
        .slow_rate(1.0, 10 * MS)
        .seed(1)
        .observe(once(|event| matches!(event, Event::Transition { .. })))
        .build()
        .unwrap();
    assert_eq!(panic_of(breaker.call(pending::<Answer>)).await, "cannot listen");
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.state, snapshot.counts.slow, snapshot.totals.slow), (State::Open, 1, 1));
    let totals = snapshot.totals;
    assert_eq!((totals.failed, totals.succeeded, totals.neutral, totals.late), (0, 0, 0, 0), "counted once");
}

#[tokio::test(start_paused = true)]
async fn an_observer_panics_at_a_refusal() {
    for kind in [Kind::BulkheadFull, Kind::QueueTimeout, Kind::TimedOut, Kind::DeadlineExceeded] {
        let breaker = breaker_config().build().unwrap();
        let observed =
            mainstay::stack("refusal").observe(once(|event| matches!(event, Event::Refused { .. })));
        let bulkhead = match kind {
            Kind::BulkheadFull => Bulkhead::new(1).unwrap(),
            _ => Bulkhead::config(1)
                .queue(1, 10 * MS)
                .observe(once(|event| matches!(event, Event::Refused { .. })))
                .build()
                .unwrap(),
        };
        let bulkhead = match kind {
            Kind::BulkheadFull => Bulkhead::config(1)
                .observe(once(|event| matches!(event, Event::Refused { .. })))
                .build()
                .unwrap(),
            _ => bulkhead,
        };
        let taken = matches!(kind, Kind::BulkheadFull | Kind::QueueTimeout)
            .then(|| bulkhead.try_acquire().unwrap().into_owned());
        let timeout = if kind == Kind::TimedOut { 20 * MS } else { 200 * MS };
        let stack = observed
            .deadline(100 * MS)
            .circuit_breaker(breaker.clone())
            .bulkhead(bulkhead.clone())
            .timeout(timeout)
            .build()
            .unwrap();
        assert_eq!(panic_of(stack.call(pending::<Answer>)).await, "cannot listen", "{kind}");
        drop(taken);
        assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (0, 0), "{kind}");
        // Ended by a policy outside, it is settled before that policy tells.
        assert_eq!(breaker.snapshot().totals.failed, 1, "{kind}");
        assert_eq!(stack.call(|| ready(Answer::Ok(1))).await, Ok(1), "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_panics_when_the_breaker_refuses() {
    let breaker =
        breaker_config().observe(once(|event| matches!(event, Event::Refused { .. }))).build().unwrap();
    for _ in 0..3 {
        breaker.call(|| ready(Answer::Err("down"))).await.unwrap_err();
    }
    assert_eq!(panic_of(breaker.call(|| ready(Answer::Ok(1)))).await, "cannot listen");
    let refused = breaker.call(|| ready(Answer::Ok(1))).await.unwrap_err();
    assert_eq!(refused.refused().unwrap().kind(), Kind::CircuitOpen);
    let totals = breaker.snapshot().totals;
    assert_eq!((totals.failed, totals.refused), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn an_observer_panics_at_a_retry() {
    for which in [
        |event: &Event<'_>| matches!(event, Event::Retried { .. }),
        |event: &Event<'_>| matches!(event, Event::GaveUp { .. }),
    ] {
        let world = World::new();
        let stack = mainstay::stack("retried")
            .observe(once(which))
            .circuit_breaker(world.breaker.clone())
            .retry(Retry::constant(5 * MS).max_attempts(2).no_budget())
            .bulkhead(world.bulkhead.clone())
            .build()
            .unwrap();
        assert_eq!(panic_of(stack.call(|| ready(Answer::Err("down")))).await, "cannot listen");
        world.is_exact_after(1).await;
        assert_eq!(stack.call(|| ready(Answer::Ok(1))).await, Ok(1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_panics_at_a_fallback() {
    let fallback = Fallback::<_, u32, &'static str>::value(9)
        .limit(1)
        .observe(once(|event| matches!(event, Event::FellBack { .. })));
    assert_eq!(panic_of(fallback.call(|| ready(Answer::Err("down")))).await, "cannot listen");
    assert_eq!(fallback.running(), 0);
    assert_eq!(fallback.call(|| ready(Answer::Err("down"))).await, Ok(9));
}

// --- bystanders

#[tokio::test(start_paused = true)]
async fn a_healthy_call_dropped_by_the_panic_of_another_is_cancelled() {
    let (healthy, sick) = (World::new(), World::new());
    let (healthy_stack, sick_stack) = (healthy.stack(), sick.stack());
    let both = join(healthy_stack.call(pending::<Answer>), sick_stack.call(|| panics_at(2)));
    assert_eq!(panic_of(both).await, "boom");
    let totals = healthy.breaker.snapshot().totals;
    assert_eq!((totals.failed, totals.succeeded, totals.neutral), (0, 0, 1));
    assert_eq!(healthy.bulkhead.in_use(), 0);
    sick.is_exact_after(1).await;

    // And on one stack of both.
    let world = World::new();
    let breaker = &world.breaker;
    let both = join(breaker.call(pending::<Answer>), breaker.call(|| panics_at(2)));
    assert_eq!(panic_of(both).await, "boom");
    let totals = world.breaker.snapshot().totals;
    assert_eq!((totals.failed, totals.neutral), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_elsewhere_does_not_take_the_probe_of_a_healthy_call_for_failed() {
    let breaker = breaker_config().build().unwrap();
    for _ in 0..3 {
        breaker.call(|| ready(Answer::Err("down"))).await.unwrap_err();
    }
    advance(50 * MS).await;
    assert_eq!(panic_of(join(breaker.call(pending::<Answer>), panics_at(2))).await, "boom");
    assert_eq!(breaker.state(), State::HalfOpen);
    assert_eq!(breaker.call(|| ready(Answer::Ok(1))).await, Ok(1), "its slot is free");
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "polled after it had ended")]
async fn a_call_that_panicked_cannot_be_polled_on() {
    let world = World::new();
    let mut call = Box::pin(world.breaker.call(|| panics_at(1)));
    assert_eq!(panic_of(poll_fn(|cx| call.as_mut().poll(cx))).await, "boom");
    call.await.unwrap();
}
