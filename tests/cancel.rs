//! Every call dropped at every await point: whatever it held is free again, and nothing was counted.
#![allow(missing_docs, clippy::disallowed_methods, clippy::type_complexity)]

use std::{
    cell::Cell,
    future::{Future, pending, poll_fn},
    mem::ManuallyDrop,
    pin::Pin,
    task::Poll,
    time::Duration,
};

use futures::future::LocalBoxFuture;
use mainstay::{
    Bulkhead, CircuitBreaker, Deadline, Error, Fallback, Keyed, Retry, Timeout, backoff::Jitter,
    bulkhead::OwnedPermit, circuit_breaker::State, deadline, retry::Budget,
};
use tokio::time::advance;

const MS: Duration = Duration::from_millis(1);
/// Between two polls.
const STEP: Duration = Duration::from_millis(10);
/// A call that has not ended by then hangs.
const MOST_POLLS: usize = 40;

thread_local! {
    /// Operations and answers that exist.
    static LIVE: Cell<i32> = const { Cell::new(0) };
    /// Attempts that were started.
    static STARTED: Cell<u32> = const { Cell::new(0) };
    /// Answers that a fallback began.
    static ANSWERS: Cell<u32> = const { Cell::new(0) };
}

/// Counts itself while it exists.
struct Live;

impl Live {
    fn new() -> Self {
        LIVE.set(LIVE.get() + 1);
        Live
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        LIVE.set(LIVE.get() - 1);
    }
}

/// What an operation does.
#[derive(Debug, Clone, Copy)]
struct Behaviour {
    /// How often it is pending; `None` for ever.
    pends: Option<u32>,
    result: Result<u32, &'static str>,
}

const BEHAVIOURS: [Behaviour; 6] = [
    Behaviour { pends: Some(0), result: Ok(1) },
    Behaviour { pends: Some(1), result: Ok(1) },
    Behaviour { pends: Some(3), result: Ok(1) },
    Behaviour { pends: None, result: Ok(1) },
    Behaviour { pends: Some(0), result: Err("down") },
    Behaviour { pends: Some(2), result: Err("down") },
];

impl Behaviour {
    fn start(self) -> impl Future<Output = Result<u32, &'static str>> + Send {
        STARTED.set(STARTED.get() + 1);
        self.run()
    }

    async fn run(self) -> Result<u32, &'static str> {
        let _live = Live::new();
        match self.pends {
            None => pending().await,
            Some(times) => pends(times).await,
        }
        self.result
    }
}

async fn pends(mut times: u32) {
    poll_fn(|cx| {
        if times == 0 {
            return Poll::Ready(());
        }
        times -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

type Made = Pin<Box<dyn Future<Output = Result<u32, &'static str>> + Send>>;
type Handler = fn(Error<&'static str>) -> Made;

fn answer(_: Error<&'static str>) -> Made {
    ANSWERS.set(ANSWERS.get() + 1);
    let live = Live::new();
    Box::pin(async move {
        let _live = live;
        pends(2).await;
        Ok(7)
    })
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Setup {
    Healthy,
    /// The breaker has one probe to give.
    HalfOpen,
    /// All permits are taken, and given back before this poll if there is one.
    Queue {
        until: Option<usize>,
    },
}

const SETUPS: [Setup; 4] =
    [Setup::Healthy, Setup::HalfOpen, Setup::Queue { until: Some(2) }, Setup::Queue { until: None }];

struct World {
    breaker: CircuitBreaker,
    bulkhead: Bulkhead,
    budget: Budget,
    tokens: f64,
    retry: Retry,
    timeout: Timeout,
    deadline: Deadline,
    fallback: Fallback<Handler, u32, &'static str>,
    breakers: Keyed<String, mainstay::circuit_breaker::Config>,
    bulkheads: Keyed<String, mainstay::bulkhead::Config>,
    taken: Option<OwnedPermit>,
    setup: Setup,
}

fn breaker_config() -> mainstay::circuit_breaker::Config {
    CircuitBreaker::config()
        .count_window(10)
        .failure_rate(None)
        .consecutive_failures(2)
        .open_wait(50 * MS, 1.0, 50 * MS)
        .immediate_close()
        .seed(1)
}

impl World {
    async fn new(setup: Setup) -> World {
        let breaker = breaker_config().build().unwrap();
        let breakers = Keyed::new(4, breaker_config()).unwrap();
        let bulkheads = Keyed::new(4, Bulkhead::config(1).queue(2, 40 * MS)).unwrap();
        let bulkhead = Bulkhead::config(1).queue(2, 40 * MS).build().unwrap();
        let budget = Budget::config().ratio(0.0).min(10).max(10).build().unwrap();
        let retry = Retry::constant(15 * MS)
            .jitter(Jitter::None)
            .max_attempts(3)
            .idempotent()
            .budget(budget.clone())
            .seed(1)
            .build()
            .unwrap();
        let mut taken = None;
        match setup {
            Setup::Healthy => {}
            Setup::HalfOpen => {
                for breaker in [&breaker, &breakers.get("a")] {
                    for _ in 0..2 {
                        breaker.try_acquire().unwrap().failure();
                    }
                }
                advance(50 * MS).await;
                assert_eq!((breaker.state(), breakers.get("a").state()), (State::HalfOpen, State::HalfOpen));
            }
            Setup::Queue { .. } => taken = Some(bulkhead.try_acquire().unwrap().into_owned()),
        }
        for count in [&STARTED, &ANSWERS] {
            count.set(0);
        }
        LIVE.set(0);
        World {
            tokens: budget.available(),
            breaker,
            bulkhead,
            budget,
            retry,
            timeout: Timeout::new(35 * MS).unwrap(),
            deadline: Deadline::new(150 * MS).unwrap(),
            fallback: Fallback::new(answer as Handler),
            breakers,
            bulkheads,
            taken,
            setup,
        }
    }

    /// What is not as it should be after a call was dropped or, if `ended`, has ended.
    fn wrong(&self, ended: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut expect = |holds: bool, what: String| {
            if !holds {
                wrong.push(what);
            }
        };
        for bulkhead in self.bulkheads.policies().iter().chain([&self.bulkhead]) {
            expect(bulkhead.in_use() == 0, format!("{} permits in use", bulkhead.in_use()));
            expect(bulkhead.waiting() == 0, format!("{} in the queue", bulkhead.waiting()));
        }
        expect(LIVE.get() == 0, format!("{} operations alive", LIVE.get()));
        expect(self.fallback.running() == 0, format!("{} answers running", self.fallback.running()));
        expect(deadline::current().is_none(), "a deadline is left".to_owned());
        // A retry is paid for when it is decided, and is not paid back when it is dropped while it waits.
        let retries = self.retry.snapshot().retries as u32;
        let spent = self.tokens - self.budget.available();
        expect(spent == f64::from(retries), format!("{spent} tokens for {retries} retries"));
        let began = STARTED.get().saturating_sub(1);
        expect(began <= retries, format!("{began} attempts after the first for {retries} retries"));
        let answered = ANSWERS.get() > 0;
        let counted_before = if self.setup == Setup::HalfOpen { 2 } else { 0 };
        for breaker in self.breakers.policies().iter().chain([&self.breaker]) {
            let totals = breaker.snapshot().totals;
            let counted = totals.succeeded + totals.failed - counted_before;
            expect(counted <= u64::from(ended || answered), format!("the breaker counted {counted}"));
            if !ended && !answered && self.setup == Setup::HalfOpen {
                expect(breaker.state() == State::HalfOpen, format!("the breaker is {:?}", breaker.state()));
                expect(breaker.try_acquire().is_ok(), "the probe is not free".to_owned());
            }
        }
        wrong
    }
}

type Scenario = for<'a> fn(&'a World, Behaviour) -> LocalBoxFuture<'a, ()>;

/// What goes wrong when `scenario` is dropped after no poll, after one, after two …, until it ends by itself.
async fn every_drop(setup: Setup, behaviour: Behaviour, scenario: Scenario) -> Vec<String> {
    let mut found = Vec::new();
    for polls in 0..=MOST_POLLS {
        let mut world = World::new(setup).await;
        let mut taken = world.taken.take();
        let mut call = scenario(&world, behaviour);
        let mut ended = false;
        for poll in 0..polls {
            if setup == (Setup::Queue { until: Some(poll) }) {
                taken = None;
            }
            ended = futures::poll!(call.as_mut()).is_ready();
            if deadline::current().is_some() {
                found.push(format!("a deadline is left after poll {poll}"));
            }
            if ended {
                break;
            }
            advance(STEP).await;
        }
        drop(call);
        // Before the permit comes back, which would go to whoever waits.
        let waiting = world.bulkhead.waiting();
        drop(taken);
        let mut wrong = world.wrong(ended);
        if waiting != 0 {
            wrong.push(format!("{waiting} in the queue"));
        }
        found.extend(wrong.iter().map(|wrong| format!("{setup:?}, {behaviour:?}, {polls} polls: {wrong}")));
        if ended {
            break;
        }
    }
    found
}

async fn in_every_way(scenario: Scenario) -> Vec<String> {
    let mut found = Vec::new();
    for setup in SETUPS {
        for behaviour in BEHAVIOURS {
            found.extend(every_drop(setup, behaviour, scenario).await);
        }
    }
    found
}

macro_rules! exact {
    ($($name:ident: |$world:ident, $op:ident| $call:expr;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            let scenario: Scenario = |$world, $op| Box::pin(async move { let _ = $call; });
            let found = in_every_way(scenario).await;
            assert!(found.is_empty(), "{found:#?}");
        }
    )*};
}

exact! {
    breaker_alone: |w, op| w.breaker.call(|| op.start()).await;
    bulkhead_alone: |w, op| w.bulkhead.call(|| op.start()).await;
    bulkhead_permit: |w, op| if let Ok(permit) = w.bulkhead.acquire().await { op.run().await.ok(); drop(permit) };
    breaker_permit: |w, op| if let Ok(permit) = w.breaker.try_acquire() { op.run().await.ok(); permit.success() };
    retry_alone: |w, op| w.retry.call(|| op.start()).await;
    timeout_alone: |w, op| w.timeout.call(|| op.start()).await;
    deadline_alone: |w, op| w.deadline.call(|| op.start()).await;
    fallback_alone: |w, op| w.fallback.call(|| op.start()).await;
    within: |w, op| deadline::within(tokio::time::Instant::now().into_std(), w.breaker.call(|| op.start())).await;
    full_stack: |w, op| full(w).call(|| op.start()).await;
    full_stack_marked: |w, op| full(w).call_marked(|| op.start()).await;
    full_stack_told_of_the_attempt: |w, op| full(w).call_with(|_| op.start()).await;
    full_stack_boxed: |w, op| full(w).boxed().call(|| op.start()).await;
    without_fallback: |w, op| bare(w).call(|| op.start()).await;
    without_fallback_boxed: |w, op| bare(w).boxed().call(|| op.start()).await;
    stack_in_a_stack: |w, op| {
        let (outer, inner) = (mainstay::stack("outer").deadline(60 * MS).build().unwrap(), bare(w));
        let call = || async { inner.call(|| op.start()).await.map_err(|_| "inner") };
        outer.call(call).await
    };
    keyed_by_hand: |w, op| w.breakers.get("a").call(|| op.start()).await;
    keyed_in_a_stack: |w, op| {
        let stack = mainstay::stack("keyed")
            .deadline(w.deadline.clone())
            .policy(w.breakers.by(|_: &()| "a".to_owned()))
            .retry(w.retry.clone())
            .policy(w.bulkheads.by(|_: &()| "a".to_owned()))
            .timeout(w.timeout.clone())
            .build()
            .unwrap();
        stack.call(|| op.start()).await
    };
}

/// All six, with the world's own state.
fn full(
    w: &World,
) -> mainstay::Stack![
    Fallback<Handler, u32, &'static str>,
    Deadline,
    CircuitBreaker,
    Retry,
    Bulkhead,
    Timeout
] {
    mainstay::stack("full")
        .fallback_with(w.fallback.clone())
        .deadline(w.deadline.clone())
        .circuit_breaker(w.breaker.clone())
        .retry(w.retry.clone())
        .bulkhead(w.bulkhead.clone())
        .timeout(w.timeout.clone())
        .build()
        .unwrap()
}

fn bare(w: &World) -> mainstay::Stack![Deadline, CircuitBreaker, Retry, Bulkhead, Timeout] {
    mainstay::stack("bare")
        .deadline(w.deadline.clone())
        .circuit_breaker(w.breaker.clone())
        .retry(w.retry.clone())
        .bulkhead(w.bulkhead.clone())
        .timeout(w.timeout.clone())
        .build()
        .unwrap()
}

/// Broken twins: each forgets one thing when it is dropped, and the harness has to say which.
macro_rules! caught {
    ($($name:ident: $complaint:literal, |$world:ident, $op:ident| $call:expr;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            let scenario: Scenario = |$world, $op| Box::pin(async move { let _ = $call; });
            let found = in_every_way(scenario).await;
            assert!(found.iter().any(|found| found.contains($complaint)), "{found:#?}");
        }
    )*};
}

caught! {
    caught_a_forgotten_permit: "1 permits in use", |w, op| {
        let permit = ManuallyDrop::new(w.bulkhead.acquire().await);
        op.start().await.ok();
        drop(ManuallyDrop::into_inner(permit))
    };
    caught_a_forgotten_place_in_the_queue: "1 in the queue", |w, op| {
        let mut waiting = ManuallyDrop::new(Box::pin(w.bulkhead.acquire()));
        let permit = waiting.as_mut().await;
        op.start().await.ok();
        drop(permit)
    };
    caught_a_forgotten_probe: "the probe is not free", |w, op| {
        if let Ok(permit) = w.breaker.try_acquire() {
            let permit = ManuallyDrop::new(permit);
            op.start().await.ok();
            ManuallyDrop::into_inner(permit).success()
        }
    };
    caught_a_cancellation_that_is_counted: "the breaker counted 1", |w, op| {
        struct Count<'a>(&'a CircuitBreaker);
        impl Drop for Count<'_> {
            fn drop(&mut self) {
                if let Ok(permit) = self.0.try_acquire() {
                    permit.failure();
                }
            }
        }
        let count = Count(&w.breaker);
        op.start().await.ok();
        std::mem::forget(count)
    };
    caught_a_forgotten_operation: "operations alive", |_w, op| {
        let mut running = ManuallyDrop::new(Box::pin(op.start()));
        running.as_mut().await.ok();
        drop(ManuallyDrop::into_inner(running))
    };
    caught_an_answer_that_goes_on: "1 answers running", |w, op| {
        let mut call = ManuallyDrop::new(Box::pin(w.fallback.call(|| op.start())));
        call.as_mut().await.ok();
        drop(ManuallyDrop::into_inner(call))
    };
    caught_a_token_for_nothing: "1 tokens for 0 retries", |w, op| {
        let other = Retry::constant(15 * MS).budget(w.budget.clone()).build().unwrap();
        let mut spend = Box::pin(other.call(|| async { Err::<(), _>("spent") }));
        let _waits = futures::poll!(spend.as_mut());
        op.start().await.ok()
    };
}

/// The harness sees all of a call: it drops the longest one after each of these many polls.
#[tokio::test(start_paused = true)]
async fn the_harness_gets_to_the_end_of_a_call() {
    let world = World::new(Setup::Healthy).await;
    let hang = BEHAVIOURS[3];
    let mut call: LocalBoxFuture<'_, _> = {
        let stack = full(&world);
        Box::pin(async move { stack.call(|| hang.start()).await })
    };
    let mut polls = 0;
    let result = loop {
        polls += 1;
        match futures::poll!(call.as_mut()) {
            Poll::Ready(result) => break result,
            Poll::Pending => advance(STEP).await,
        }
    };
    drop(call);
    assert_eq!(result, Ok(7), "the fallback's answer, after three attempts that timed out");
    assert_eq!((STARTED.get(), ANSWERS.get()), (3, 1));
    assert!((10..MOST_POLLS).contains(&polls), "{polls}");
    assert_eq!(world.tokens - world.budget.available(), 2.0);
    assert_eq!(world.wrong(true), Vec::<String>::new());
}
