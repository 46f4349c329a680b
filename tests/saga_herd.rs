//! Sagas that were refused before they began wait as long as they were told, and a crowd of them does not come back at one moment.
#![cfg(feature = "saga")]
#![allow(missing_docs, clippy::disallowed_methods)] // Virtual time is measured from outside.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::{
    CircuitBreaker, Event,
    saga::{Failure, Orchestrator, Outcome, Output, Saga, SagaId, memory::Memory},
};
use tokio::time::{Instant, sleep};

const OPEN: Duration = Duration::from_secs(20);
const TENTH: Duration = Duration::from_secs(2);
const MOMENT: Duration = Duration::from_millis(100);
/// A timer's resolution, and what is done in between.
const SLACK: Duration = Duration::from_millis(5);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Open from now on, and as it was before after the first good answer behind that.
fn tripped() -> CircuitBreaker {
    let config = CircuitBreaker::config().consecutive_failures(1).open_wait(OPEN, 1.0, OPEN);
    let breaker = config.open_wait_jitter(0.0).immediate_close().build().unwrap();
    breaker.try_acquire().unwrap().failure();
    breaker
}

/// When a step was let begin, since the breaker opened.
#[derive(Clone)]
struct Times(Instant, Arc<Mutex<Vec<Duration>>>);

impl Times {
    fn new() -> Self {
        Times(Instant::now(), Arc::default())
    }

    fn now(&self) {
        self.1.lock().unwrap().push(self.0.elapsed());
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut times = self.1.lock().unwrap().clone();
        times.sort();
        times
    }
}

/// Of tries that were all told to come after `OPEN`: none comes sooner, none more than a tenth later, and in no 100 ms come more than
/// twice as many as if they had agreed on their places.
fn spread(times: &[Duration]) -> Result<(), String> {
    if let Some(early) = times.iter().find(|time| **time < OPEN) {
        return Err(format!("one came after {early:?}"));
    }
    if let Some(late) = times.iter().find(|time| **time > OPEN + TENTH + SLACK) {
        return Err(format!("one came after {late:?}"));
    }
    let most = 2 * times.len() * MOMENT.as_millis() as usize / TENTH.as_millis() as usize;
    let from =
        |first: &Duration| times.iter().filter(|time| (*first..*first + MOMENT).contains(time)).count();
    match times.iter().map(|first| (from(first), first)).max() {
        Some((count, first)) if count > most => {
            Err(format!("{count} of {} came in the 100 ms from {first:?}", times.len()))
        }
        _ => Ok(()),
    }
}

/// A thousand sagas whose step is begun at these times, and how often one was refused.
async fn a_thousand(saga: &Saga<u32, Output<()>>) -> u32 {
    let refusals = Arc::new(AtomicU32::new(0));
    let counted = refusals.clone();
    let observer = move |event: &Event<'_>| {
        counted.fetch_add(u32::from(matches!(event, Event::SagaWaits { .. })), SeqCst);
    };
    let opening = Orchestrator::open(Memory::new()).register(saga).observe(observer);
    let orchestrator = opening.start().await.unwrap();
    for number in 0..1_000 {
        orchestrator.start(saga, &format!("order-{number}"), &1).await.unwrap();
    }
    sleep(2 * OPEN).await;
    assert_eq!(orchestrator.live(), 0, "they are all over");
    refusals.load(SeqCst)
}

#[tokio::test(start_paused = true)]
async fn a_thousand_sagas_that_an_open_breaker_refused_come_back_when_it_lets_them_and_spread() {
    let (breaker, times) = (tripped(), Times::new());
    let mut saga = Saga::define::<u32>("order", 1);
    let act = times.clone();
    let charged = saga
        .step("charge", (), move |_, ()| {
            act.now();
            async { Ok(()) }
        })
        .through(mainstay::stack("payments").circuit_breaker(breaker).build().unwrap())
        .without_compensation("nothing");
    let refusals = a_thousand(&saga.build(charged).unwrap()).await;
    assert_eq!(refusals, 1_000, "nobody was told to wait and asked in between");
    let times = times.sorted();
    assert_eq!(times.len(), 1_000);
    spread(&times).unwrap();
}

/// The check is one that can fail: whoever waits exactly as long as the breaker says comes with all the others.
#[tokio::test(start_paused = true)]
async fn a_thousand_that_wait_exactly_as_long_as_they_are_told_are_found_to_be_a_herd() {
    let (breaker, times) = (tripped(), Times::new());
    let mut saga = Saga::define::<u32>("order", 1);
    let act = times.clone();
    let charged = saga
        .step("charge", (), move |_, ()| {
            let (breaker, act) = (breaker.clone(), act.clone());
            async move {
                loop {
                    match breaker.try_acquire() {
                        Ok(permit) => {
                            act.now();
                            permit.success();
                            return Ok(());
                        }
                        Err(refused) => sleep(refused.retry_after().unwrap()).await,
                    }
                }
            }
        })
        .without_compensation("nothing");
    a_thousand(&saga.build(charged).unwrap()).await;
    let times = times.sorted();
    assert_eq!(times.len(), 1_000);
    let found = spread(&times).unwrap_err();
    assert!(found.starts_with("1000 of 1000 came in the 100 ms from 20"), "{found}");
}

/// One of 200 that were taken over, and may have been tried before: it does not wait in memory, but in the store.
fn job(breaker: &CircuitBreaker, times: &Times) -> Saga<u32, Output<()>> {
    let times = times.clone();
    let mut saga = Saga::define::<u32>("job", 1);
    let work = saga.retriable("work", (), move |_, ()| {
        times.now();
        async { Ok(()) }
    });
    let work = work.through(mainstay::stack("work").circuit_breaker(breaker.clone()).build().unwrap()).add();
    saga.build(work).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_the_store_outlives_its_process_and_comes_back_as_a_ramp() {
    const SAGAS: usize = 200;
    let store = Memory::new();
    let mut hangs = Saga::define::<u32>("job", 1);
    let never = hangs.retriable("work", (), |_, ()| std::future::pending::<Result<(), Failure>>());
    let never: Output<()> = never.add();
    let hangs = hangs.build(never).unwrap();
    let first = Orchestrator::open(store.clone()).register(&hangs).start().await.unwrap();
    for number in 0..SAGAS {
        first.start(&hangs, &format!("job-{number}"), &1).await.unwrap();
    }
    first.shutdown(Duration::ZERO).await;

    // The second is refused with each of them, and lets each go.
    let store = store.connect();
    let times = Times::new();
    let saga = job(&tripped(), &times);
    let second = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    second.recovered().await;
    sleep(seconds(3)).await;
    assert_eq!(second.live(), 0, "what waits takes no memory");
    drop(second);

    // For the third no breaker is open, and it waits all the same: the times are in the store.
    let store = store.connect();
    let healthy = CircuitBreaker::config().consecutive_failures(1).build().unwrap();
    let saga = job(&healthy, &times);
    let opening = Orchestrator::open(store.clone()).recovery_ramp(2, MOMENT).register(&saga);
    let third = opening.start().await.unwrap();
    sleep(2 * OPEN).await;
    let times = times.sorted();
    assert_eq!((times.len(), third.live()), (SAGAS, 0));
    assert!(times[0] >= OPEN && times[0] < OPEN + seconds(1), "the first came after {:?}", times[0]);
    for window in 0..6 {
        let from = times[0] + MOMENT * window;
        let begun = times.iter().filter(|time| (from..from + MOMENT).contains(time)).count();
        assert!(begun <= 2 << window, "{begun} in the window {window}: {times:?}");
    }
    let stored = store.stored(&SagaId::new("job-0").unwrap()).unwrap();
    assert_eq!(stored.entries.len(), 2, "a wait is no record");
}

/// The policies that a step has unless it is given others: three attempts, and ten of a compensation.
#[tokio::test(start_paused = true)]
async fn what_was_not_begun_uses_up_no_attempt_and_waits_as_long_as_a_step_says() {
    let times = Times::new();
    let (act, undo) = (times.clone(), times.clone());
    let (acts, undos) = (AtomicU32::new(0), AtomicU32::new(0));
    let mut saga = Saga::define::<u32>("busy", 1);
    let booked = saga
        .step("book", (), move |_, ()| {
            act.now();
            let call = acts.fetch_add(1, SeqCst);
            async move {
                match call {
                    0..4 => Err(Failure::unstarted("it answered 429").retry_after(seconds(10))),
                    4 | 5 => Err(Failure::unknown("no answer")),
                    _ => Ok(()),
                }
            }
        })
        .compensate(move |_, (), _| {
            undo.now();
            let call = undos.fetch_add(1, SeqCst);
            async move {
                let busy = Failure::unstarted("it answered 429").retry_after(seconds(10));
                if call < 20 { Err(busy) } else { Ok(()) }
            }
        });
    saga.step("pay", booked, |_, ()| async { Err::<(), _>(Failure::rejected("declined")) })
        .without_compensation("nothing");
    let saga = saga.build(()).unwrap();
    let orchestrator = Orchestrator::open(Memory::new()).register(&saga).start().await.unwrap();
    let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
    assert!(
        matches!(&outcome, Outcome::Compensated(why) if why.to_string() == "pay was rejected: declined"),
        "{outcome:?}"
    );
    let times = times.sorted();
    assert_eq!(times.len(), 7 + 21);
    for (call, pair) in times.windows(2).enumerate() {
        let waited = pair[1] - pair[0];
        let was_told = matches!(call, 0..4 | 7..27);
        // A compensation waits in the store, which is looked at every 250 ms.
        let latest = seconds(11) + Duration::from_millis(250) + SLACK;
        let expected = if was_told { seconds(10)..=latest } else { Duration::ZERO..=seconds(1) };
        assert!(expected.contains(&waited), "{waited:?} before call {}", call + 1);
    }
}

/// Nothing but that it was not begun can say when to come back: a rejection is not tried again.
#[tokio::test(start_paused = true)]
async fn a_rejection_with_a_wait_is_a_rejection() {
    let mut saga = Saga::define::<u32>("no", 1);
    saga.step("step", (), |_, ()| async { Err::<(), _>(Failure::rejected("no").retry_after(seconds(1))) })
        .without_compensation("nothing");
    let saga = saga.build(()).unwrap();
    let orchestrator = Orchestrator::open(Memory::new()).register(&saga).start().await.unwrap();
    let outcome =
        tokio::time::timeout(SLACK, orchestrator.run(&saga, "s", &1)).await.expect("at once").unwrap();
    assert!(matches!(outcome, Outcome::Compensated(_)), "{outcome:?}");
}
