//! Steps whose time is limited: what becomes of their sagas before, at and behind the pivot, and over the lives of several processes.
#![cfg(feature = "saga")]
#![allow(missing_docs, clippy::disallowed_methods)] // Virtual time is measured from outside.

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::{
    Bulkhead, CircuitBreaker, Event, Retry,
    backoff::Jitter,
    saga::{
        Adding, Builder, Cause, Failure, Handle, Inputs, Orchestrator, Order, Outcome, Output, Phase, Record,
        Saga, SagaId, Step, Unknown, Verified,
        memory::{Fault, Memory, Operation},
    },
};

#[path = "support/log.rs"]
mod log;
use log::Log;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn late(step: &str, within: Duration) -> Cause {
    Cause::Late { step: step.to_owned(), ms: u64::try_from(within.as_millis()).unwrap() }
}

async fn open<I, R: Inputs>(store: &Memory, saga: &Saga<I, R>) -> Orchestrator {
    Orchestrator::open(store.clone()).register(saga).start().await.unwrap()
}

fn records(store: &Memory) -> Vec<Record> {
    let stored = store.stored(&SagaId::new("s").unwrap()).unwrap();
    stored.entries.iter().map(|entry| entry.record().unwrap()).collect()
}

fn kinds(store: &Memory) -> Vec<&'static str> {
    records(store).iter().map(Record::kind).collect()
}

/// The steps that the record of the turn says had no effect.
fn clean(store: &Memory) -> Vec<String> {
    let of = |record| if let Record::Aborted { clean, .. } = record { Some(clean) } else { None };
    records(store).into_iter().find_map(of).unwrap()
}

/// What it comes to, before long.
async fn finished<R: Inputs>(handle: &Handle<R>) -> Outcome<R::Values> {
    tokio::time::timeout(seconds(1_000), handle.finished()).await.expect("it is over").unwrap()
}

/// Runs `saga` in `store`; what comes of it, or at what it is held, and when.
async fn run<R: Inputs>(store: &Memory, saga: &Saga<u32, R>) -> (Outcome<R::Values>, Duration) {
    let began = tokio::time::Instant::now();
    let orchestrator = open(store, saga).await;
    let handle = orchestrator.start(saga, "s", &1).await.unwrap();
    let settled = tokio::time::timeout(seconds(1_000), handle.settled()).await;
    (settled.expect("it settles").unwrap(), began.elapsed())
}

type Acting = Pin<Box<dyn Future<Output = Result<u32, Failure>> + Send>>;
type Charging<'a, C> = Adding<'a, u32, Output<u32>, u32, C>;

/// What the charge says the first time, and from then on; `None` that it never answers.
#[derive(Debug, Clone, Copy)]
struct Says(Option<fn() -> Result<u32, Failure>>, Option<fn() -> Result<u32, Failure>>);

const NEVER: Says = Says(None, None);
/// One attempt fails, and then it hangs.
const LOST: Says = Says(Some(|| Err(Failure::unknown("502"))), None);

impl Says {
    fn act(self, log: &Log) -> impl Fn(Step<u32>, u32) -> Acting + Send + Sync + 'static {
        let (log, calls) = (log.clone(), AtomicU32::new(0));
        move |_, _| {
            log.add("charge");
            let says = if calls.fetch_add(1, SeqCst) == 0 { self.0 } else { self.1 };
            Box::pin(async move {
                match says {
                    Some(says) => says(),
                    None => pending().await,
                }
            })
        }
    }
}

/// A step that is done at once, and says so when it is undone.
fn reserve(saga: &mut Builder<u32>, log: &Log) -> Output<u32> {
    let undo = log.clone();
    saga.step("reserve", (), |_, ()| async { Ok(1_u32) }).compensate(move |_, (), _| {
        undo.add("release");
        async { Ok(()) }
    })
}

/// Behind a reservation, a charge that can be refunded.
fn refundable(
    log: &Log,
    says: Says,
    more: impl FnOnce(Charging<'_, mainstay::saga::Undecided>) -> Charging<'_, mainstay::saga::Undecided>,
) -> Saga<u32, Output<u32>> {
    let undo = log.clone();
    let mut saga = Saga::define::<u32>("refundable", 1);
    let reserved = reserve(&mut saga, log);
    let charge = saga.step("charge", reserved, says.act(log)).within(seconds(10));
    let charged = more(charge).compensate(move |_, _, output| {
        undo.add(format!("refund {output:?}"));
        async { Ok(()) }
    });
    saga.build(charged).unwrap()
}

/// Behind a reservation, a charge that decides.
fn deciding(
    log: &Log,
    says: Says,
    more: impl FnOnce(Charging<'_, mainstay::saga::Decided>) -> Charging<'_, mainstay::saga::Decided>,
) -> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>("deciding", 1);
    let reserved = reserve(&mut saga, log);
    let charge = saga.pivot("charge", reserved, says.act(log)).within(seconds(10));
    let charged = more(charge).add();
    saga.build(charged).unwrap()
}

/// Lets nobody through for an hour.
async fn open_breaker() -> mainstay::Stack![CircuitBreaker] {
    let hour = seconds(3_600);
    let config = CircuitBreaker::config().consecutive_failures(1).open_wait(hour, 1.0, hour);
    let breaker = config.build().unwrap();
    breaker.call(|| async { Err::<(), _>("down") }).await.unwrap_err();
    mainstay::stack("payments").circuit_breaker(breaker).build().unwrap()
}

// === before the pivot

#[tokio::test(start_paused = true)]
async fn a_step_that_is_not_over_in_time_is_dropped_and_compensated() {
    let (store, log) = (Memory::new(), Log::default());
    let (outcome, took) = run(&store, &refundable(&log, NEVER, |charge| charge)).await;
    assert_eq!(outcome, Outcome::Compensated(late("charge", seconds(10))));
    assert_eq!(log.lines(), ["charge", "refund None", "release"]);
    // Neither the 30 s of the attempt nor the minute for what is in flight.
    assert_eq!(took.as_secs(), 10);
    assert_eq!(kinds(&store), ["begun", "completed", "aborted", "undone", "undone"]);
    assert_eq!(clean(&store), [""; 0]);
    let stored = store.stored(&SagaId::new("s").unwrap()).unwrap();
    assert_eq!(stored.head.note, "charge was not over within 10000 ms");
}

#[tokio::test(start_paused = true)]
async fn attempts_and_the_waits_between_them_count() {
    let (store, log) = (Memory::new(), Log::default());
    let retry = || {
        let retry = Retry::constant(seconds(4)).jitter(Jitter::None).max_attempts(100).no_budget();
        mainstay::stack("charge").retry(retry.idempotent()).build().unwrap()
    };
    let fails = Says(LOST.0, LOST.0);
    let (outcome, took) = run(&store, &refundable(&log, fails, |charge| charge.through(retry()))).await;
    assert_eq!(outcome, Outcome::Compensated(late("charge", seconds(10))));
    assert_eq!(log.lines(), ["charge", "charge", "charge", "refund None", "release"], "at 0, 4 and 8 s");
    assert_eq!(took.as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_was_never_begun_is_clean() {
    let (store, log) = (Memory::new(), Log::default());
    let stack = open_breaker().await;
    let (outcome, took) = run(&store, &refundable(&log, NEVER, |charge| charge.through(stack))).await;
    assert_eq!(outcome, Outcome::Compensated(late("charge", seconds(10))));
    assert_eq!((log.lines(), clean(&store)), (vec!["release".to_owned()], vec!["charge".to_owned()]));
    assert_eq!(took.as_secs(), 10);
}

/// Nothing of it was sent, although it was let be.
#[tokio::test(start_paused = true)]
async fn a_step_that_waits_for_its_turn_is_clean_whatever_its_policy_is() {
    for policy in [Unknown::Retry, Unknown::Compensate, Unknown::Park] {
        let (store, log) = (Memory::new(), Log::default());
        let bulkhead = Bulkhead::config(1).queue(1, seconds(3_600)).build().unwrap();
        let _full = bulkhead.acquire().await.unwrap();
        let stack = mainstay::stack("charge").bulkhead(bulkhead.clone()).build().unwrap();
        let saga = refundable(&log, NEVER, |charge| charge.through(stack).on_unknown(policy));
        let (outcome, _) = run(&store, &saga).await;
        assert_eq!(outcome, Outcome::Compensated(late("charge", seconds(10))), "{policy:?}");
        assert_eq!(log.lines(), ["release"], "{policy:?}");
        assert_eq!(clean(&store), ["charge"], "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_over_in_time_is_none_the_worse() {
    let (store, log) = (Memory::new(), Log::default());
    let says = Says(Some(|| Ok(7)), None);
    let (outcome, _) = run(&store, &refundable(&log, says, |charge| charge)).await;
    assert_eq!(outcome, Outcome::Completed(7));
    assert_eq!(kinds(&store), ["begun", "completed", "completed"], "it costs no record");
}

#[tokio::test(start_paused = true)]
async fn what_is_done_about_an_unknown_outcome_is_done_about_a_late_one() {
    type Answer = fn() -> Verified<u32>;
    let turned = || Outcome::Compensated(late("charge", seconds(10)));
    let verified: [(Answer, Outcome<u32>, &[&str]); 4] = [
        (|| Verified::Applied(7), Outcome::Completed(7), &["charge", "ask"]),
        (|| Verified::NotApplied, turned(), &["charge", "ask", "release"]),
        (|| Verified::Resend, turned(), &["charge", "ask", "refund None", "release"]),
        (|| Verified::Unknown, turned(), &["charge", "ask", "refund None", "release"]),
    ];
    for (answer, expected, lines) in verified {
        let (store, log) = (Memory::new(), Log::default());
        let ask = log.clone();
        let saga = refundable(&log, NEVER, |charge| {
            charge.verify(move |_, _| {
                ask.add("ask");
                async move { Ok(answer()) }
            })
        });
        let (outcome, took) = run(&store, &saga).await;
        assert_eq!((outcome, took.as_secs()), (expected, 10), "{:?}", answer());
        assert_eq!(log.lines(), lines, "{:?}", answer());
    }
    let (store, log) = (Memory::new(), Log::default());
    let saga = refundable(&log, NEVER, |charge| charge.on_unknown(Unknown::Compensate));
    assert_eq!(run(&store, &saga).await.0, turned());
    assert_eq!(log.lines(), ["charge", "refund None", "release"]);
}

#[tokio::test(start_paused = true)]
async fn a_participant_that_cannot_be_asked_is_not_waited_for() {
    let (store, log) = (Memory::new(), Log::default());
    let hour = seconds(3_600);
    // Open from the first failure on.
    let breaker =
        CircuitBreaker::config().consecutive_failures(1).open_wait(hour, 1.0, hour).build().unwrap();
    let stack = mainstay::stack("payments").circuit_breaker(breaker).build().unwrap();
    let ask = log.clone();
    let saga = refundable(&log, LOST, |charge| {
        charge.through(stack).verify(move |_, _| {
            ask.add("ask");
            async move { Ok(Verified::NotApplied) }
        })
    });
    let (outcome, took) = run(&store, &saga).await;
    assert_eq!(outcome, Outcome::Compensated(late("charge", seconds(10))));
    assert_eq!(log.lines(), ["charge", "refund None", "release"]);
    assert_eq!(took.as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_person_who_has_a_step_tried_again_gives_it_as_much_time_again() {
    let (store, log) = (Memory::new(), Log::default());
    // The second attempt takes its whole time, too.
    let saga = refundable(&log, NEVER, |charge| charge.on_unknown(Unknown::Park));
    let orchestrator = open(&store, &saga).await;
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    for step in [Some("charge".to_owned()), None] {
        let settled = handle.settled().await.unwrap();
        assert!(matches!(settled, Outcome::Held { phase: Some(Phase::Parked), .. }), "{settled:?}");
        // However long the person takes, and whatever else is asked, nothing follows from it.
        orchestrator.order("s", "bob", Order::Retry { step: Some("reserve".to_owned()) }).await.unwrap();
        tokio::time::sleep(seconds(600)).await;
        let status = handle.status().await.unwrap();
        assert_eq!((status.phase, status.blocked), (Some(Phase::Parked), None));
        let asked = tokio::time::Instant::now();
        orchestrator.order("s", "ada", Order::Retry { step }).await.unwrap();
        tokio::time::sleep(seconds(5)).await;
        let status = handle.status().await.unwrap();
        assert_eq!((status.phase, status.blocked), (Some(Phase::Running), None));
        tokio::time::timeout(seconds(1_000), handle.settled()).await.unwrap().unwrap();
        assert_eq!(asked.elapsed().as_secs(), 10);
    }
    assert_eq!(log.lines(), ["charge"; 3]);
    let kinds: Vec<_> = kinds(&store).into_iter().filter(|kind| *kind != "refused").collect();
    assert_eq!(kinds[2..], ["sent", "parked", "ordered", "sent", "parked", "ordered", "sent", "parked"]);
}

// === the pivot, and behind it

#[tokio::test(start_paused = true)]
async fn a_pivot_that_may_have_happened_is_not_guessed_about() {
    // Tried again much later, and what it says then counts.
    let (store, log) = (Memory::new(), Log::default());
    let says = Says(None, Some(|| Ok(7)));
    let saga = deciding(&log, says, |charge| charge);
    let began = tokio::time::Instant::now();
    let orchestrator = open(&store, &saga).await;
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    let held = handle.settled().await.unwrap();
    let why = "charge: charge was not over within 10000 ms".to_owned();
    assert_eq!(held, Outcome::Held { phase: Some(Phase::Stuck), why });
    assert_eq!(began.elapsed().as_secs(), 10);
    assert_eq!(finished(&handle).await, Outcome::Completed(7));
    assert_eq!(began.elapsed().as_secs(), 310);
    assert_eq!(log.lines(), ["charge", "charge"]);

    let (store, log) = (Memory::new(), Log::default());
    let (outcome, _) = run(&store, &deciding(&log, LOST, |charge| charge.on_unknown(Unknown::Park))).await;
    assert!(matches!(outcome, Outcome::Held { phase: Some(Phase::Parked), .. }), "{outcome:?}");
    assert_eq!(log.lines(), ["charge"]);

    type Answer = fn() -> Verified<u32>;
    let verified: [(Answer, Outcome<u32>); 2] = [
        (|| Verified::Applied(7), Outcome::Completed(7)),
        (|| Verified::NotApplied, Outcome::Compensated(late("charge", seconds(10)))),
    ];
    for (answer, expected) in verified {
        let (store, log) = (Memory::new(), Log::default());
        let saga = deciding(&log, NEVER, |charge| charge.verify(move |_, _| async move { Ok(answer()) }));
        assert_eq!(run(&store, &saga).await.0, expected);
        assert_eq!(log.lines()[0], "charge");
        assert_eq!(log.lines().contains(&"release".to_owned()), answer() == Verified::NotApplied);
    }
    for (answer, expected) in [(Verified::Resend, Phase::Stuck), (Verified::Unknown, Phase::Parked)] {
        let (store, log) = (Memory::new(), Log::default());
        let said = answer.clone();
        let saga = deciding(&log, NEVER, |charge| {
            charge.verify(move |_, _| {
                let said = said.clone();
                async move { Ok(said) }
            })
        });
        let (outcome, _) = run(&store, &saga).await;
        assert!(matches!(&outcome, Outcome::Held { phase, .. } if *phase == Some(expected)), "{outcome:?}");
        assert_eq!(log.lines(), ["charge"], "{answer:?}: no further attempt");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pivot_that_was_never_begun_is_turned_away_from() {
    let (store, log) = (Memory::new(), Log::default());
    let stack = open_breaker().await;
    let (outcome, took) = run(&store, &deciding(&log, NEVER, |charge| charge.through(stack))).await;
    assert_eq!(outcome, Outcome::Compensated(late("charge", seconds(10))));
    assert_eq!((log.lines(), took.as_secs()), (vec!["release".to_owned()], 10));
}

/// It is asked when that is possible, and not all the time.
#[tokio::test(start_paused = true)]
async fn a_pivot_that_cannot_be_asked_about_waits_until_it_can_be() {
    // Asked for the first time, or after it was sent again and again by the word of its participant, and waits for the next time.
    for resent in [false, true] {
        let (store, log, asked) = (Memory::new(), Log::default(), Arc::new(AtomicU32::new(0)));
        let (count, began) = (asked.clone(), tokio::time::Instant::now());
        let says = if resent { Says(LOST.0, LOST.0) } else { LOST };
        let saga = deciding(&log, says, |charge| {
            let stack = mainstay::stack("bare").build().unwrap();
            charge.through(stack).verify(move |_, _| {
                let never_mind = count.fetch_add(1, SeqCst) > 1_000;
                let after = began.elapsed();
                async move {
                    match () {
                        () if never_mind || after > seconds(30) => Ok(Verified::Applied(7)),
                        () if resent && after < seconds(9) => Ok(Verified::Resend),
                        () => Err(Failure::unstarted("it is away")),
                    }
                }
            })
        });
        let (outcome, took) = run(&store, &saga).await;
        assert_eq!(outcome, Outcome::Completed(7));
        assert!((30..=31).contains(&took.as_secs()), "{took:?}");
        let asked = asked.load(SeqCst);
        assert!((20..=80).contains(&asked), "{asked}");
        assert_eq!(log.lines().len(), if resent { 6 } else { 1 }, "{:?}", log.lines());
    }
}

/// Its answer comes when the time is over, and counts.
#[tokio::test(start_paused = true)]
async fn who_is_being_asked_is_let_answer() {
    let (store, log) = (Memory::new(), Log::default());
    let ask = log.clone();
    let saga = deciding(&log, LOST, |charge| {
        charge.through(mainstay::stack("bare").build().unwrap()).verify(move |_, _| {
            ask.add("ask");
            async {
                tokio::time::sleep(seconds(15)).await;
                Ok(Verified::Applied(7))
            }
        })
    });
    let (outcome, took) = run(&store, &saga).await;
    assert_eq!((outcome, took.as_secs()), (Outcome::Completed(7), 15));
    assert_eq!(log.lines(), ["charge", "ask"]);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_has_to_succeed_is_told_of_once_and_goes_on() {
    let (store, told) = (Memory::new(), Arc::new(Mutex::new(Vec::new())));
    let mut saga = Saga::define::<u32>("sent", 1);
    let charged = saga.pivot("charge", (), |_, ()| async { Ok(1_u32) }).add();
    let slow = |_: Step<u32>, _| async {
        tokio::time::sleep(seconds(25)).await;
        Ok(2_u32)
    };
    let sent = saga.retriable("send", charged, slow).within(seconds(10)).add();
    let read = saga.read_only("read", sent, slow).within(seconds(20)).add();
    let saga = saga.build(read).unwrap();
    let (seen, began) = (told.clone(), tokio::time::Instant::now());
    let observer = move |event: &Event<'_>| {
        if let Event::SagaOverdue { step, .. } = event {
            seen.lock().unwrap().push((step.map(str::to_owned), began.elapsed().as_secs()));
        }
    };
    let opening = Orchestrator::open(store).register(&saga).observe(observer);
    let orchestrator = opening.start().await.unwrap();
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    // It is looked at whenever something happens.
    for _ in 0..4 {
        tokio::time::sleep(seconds(4)).await;
        orchestrator.order("s", "ada", Order::Retry { step: Some("send".to_owned()) }).await.unwrap();
    }
    assert_eq!(finished(&handle).await, Outcome::Completed(2));
    assert_eq!(*told.lock().unwrap(), [(Some("send".to_owned()), 10), (Some("read".to_owned()), 45)]);
}

// === branches

#[tokio::test(start_paused = true)]
async fn the_time_of_a_step_begins_behind_the_last_that_it_is_behind_and_others_are_waited_for() {
    let (store, log) = (Memory::new(), Log::default());
    let mut saga = Saga::define::<u32>("branches", 1);
    let mut branch = |name: &'static str, time| {
        let (act, undo) = (log.clone(), log.clone());
        let step = saga.step(name, (), move |_, ()| {
            let act = act.clone();
            async move {
                tokio::time::sleep(seconds(time)).await;
                act.add(name);
                Ok(1_u32)
            }
        });
        step.compensate(move |_, (), output| {
            undo.add(format!("undo {name} {output:?}"));
            async { Ok(()) }
        })
    };
    let (short, long, _longest) = (branch("short", 1), branch("long", 8), branch("longest", 20));
    let undo = log.clone();
    let join = saga.step("join", (short, long), |_, _| async {
        pending::<()>().await;
        Ok(())
    });
    join.within(seconds(5)).compensate(move |_, _, _| {
        undo.add("undo join");
        async { Ok(()) }
    });
    let saga = saga.build(()).unwrap();
    let began = tokio::time::Instant::now();
    let orchestrator = open(&store, &saga).await;
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(12_900)).await;
    assert_eq!(handle.status().await.unwrap().phase, Some(Phase::Running));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(handle.status().await.unwrap().phase, Some(Phase::Unwinding));
    assert_eq!(finished(&handle).await, Outcome::Compensated(late("join", seconds(5))));
    // What was in flight is heard first; it was not late.
    assert_eq!(began.elapsed().as_secs(), 20);
    let lines = log.lines();
    assert_eq!(lines[..3], ["short", "long", "longest"]);
    let mut undone = lines[3..].to_vec();
    undone.sort();
    assert_eq!(undone, ["undo join", "undo long Some(1)", "undo longest Some(1)", "undo short Some(1)"]);
}

// === crashes

#[tokio::test(start_paused = true)]
async fn the_next_owner_counts_from_the_same_moment() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = refundable(&log, NEVER, |charge| charge);
    let began = tokio::time::Instant::now();
    let first = Orchestrator::open(store.clone()).register(&saga).lease(seconds(2)).start().await.unwrap();
    first.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(4)).await;
    store.crash();
    drop(first);
    let second = open(&store.reopen(), &saga).await;
    let handle = second.handle(&saga, "s").unwrap();
    assert_eq!(finished(&handle).await, Outcome::Compensated(late("charge", seconds(10))));
    assert_eq!(began.elapsed().as_secs(), 10);
    assert_eq!(log.lines(), ["charge", "charge", "refund None", "release"]);
}

#[tokio::test(start_paused = true)]
async fn a_step_whose_time_is_over_while_nobody_lives_is_not_tried_again() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = refundable(&log, NEVER, |charge| charge);
    let first = open(&store, &saga).await;
    first.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(4)).await;
    store.crash();
    drop(first);
    tokio::time::sleep(seconds(600)).await;
    let store = store.reopen();
    let began = tokio::time::Instant::now();
    let second = open(&store, &saga).await;
    let handle = second.handle(&saga, "s").unwrap();
    assert_eq!(finished(&handle).await, Outcome::Compensated(late("charge", seconds(10))));
    assert!(began.elapsed() < seconds(1), "{:?}", began.elapsed());
    // It may have happened.
    assert_eq!(log.lines(), ["charge", "refund None", "release"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_recorded_before_the_crash_was_not_sent() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = refundable(&log, NEVER, |charge| charge.on_unknown(Unknown::Park));
    let first = open(&store, &saga).await;
    // Of the beginning, the reservation, and that the charge is about to be sent, the last is lost.
    store.fault(Operation::Append, 2, Fault::CrashBefore);
    first.start(&saga, "s", &1).await.unwrap();
    store.dead().await;
    drop(first);
    tokio::time::sleep(seconds(600)).await;
    let store = store.reopen();
    let second = open(&store, &saga).await;
    let handle = second.handle(&saga, "s").unwrap();
    assert_eq!(finished(&handle).await, Outcome::Compensated(late("charge", seconds(10))));
    assert_eq!((log.lines(), clean(&store)), (vec!["release".to_owned()], vec!["charge".to_owned()]));
}

/// Nothing of the saga is in memory, and it wakes for the limit.
#[tokio::test(start_paused = true)]
async fn a_saga_that_is_let_go_comes_back_for_a_limit() {
    let (store, log) = (Memory::new(), Log::default());
    let (breaker, act, undo) = (open_breaker().await, log.clone(), log.clone());
    let mut saga = Saga::define::<u32>("let go", 1);
    let reserved = reserve(&mut saga, &log);
    let charge = saga.step("charge", reserved, move |_, _| {
        act.add("charge");
        let breaker = breaker.clone();
        // What it did before that call nobody knows.
        async move { Ok(breaker.call(|| async { Ok::<_, std::io::Error>(1) }).await?) }
    });
    let charged = charge.within(seconds(10)).compensate(move |_, _, output: Option<i32>| {
        undo.add(format!("refund {output:?}"));
        async { Ok(()) }
    });
    let saga = saga.build(charged).unwrap();
    let orchestrator = open(&store, &saga).await;
    let began = tokio::time::Instant::now();
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(6)).await;
    assert_eq!((orchestrator.live(), log.lines().len()), (0, 1));
    let head = store.stored(&SagaId::new("s").unwrap()).unwrap().head;
    let left = head.wake.unwrap().since(head.created);
    assert!((9_900..=10_100).contains(&left.as_millis()), "{left:?}");
    assert_eq!(finished(&handle).await, Outcome::Compensated(late("charge", seconds(10))));
    assert_eq!(began.elapsed().as_secs(), 10);
    assert_eq!(log.lines(), ["charge", "refund None", "release"]);
}

// === definitions

#[tokio::test(start_paused = true)]
async fn an_attempt_sees_what_is_left_of_its_steps_time() {
    let (store, log) = (Memory::new(), Log::default());
    let seen = log.clone();
    let mut saga = Saga::define::<u32>("left", 1);
    let look = move |name: &'static str| {
        let seen = seen.clone();
        move |step: Step<u32>, ()| {
            seen.add(format!("{name}: {:?}", step.remaining().map(|left| left.as_secs())));
            let first = step.attempt() == 1;
            async move {
                tokio::time::sleep(seconds(3)).await;
                if first { Err(Failure::unknown("502")) } else { Ok(()) }
            }
        }
    };
    let retry = || {
        let retry = Retry::constant(seconds(2)).jitter(Jitter::None).max_attempts(2).no_budget().idempotent();
        let stack = mainstay::stack("two").deadline(seconds(11)).retry(retry).timeout(seconds(11));
        stack.build().unwrap()
    };
    let first = saga.read_only("short", (), look("short")).within(seconds(10)).through(retry()).add();
    let plain = saga.read_only("plain", (), look("plain")).after(first).through(retry()).add();
    saga.retriable("sent", (), look("sent")).after(plain).through(retry()).within(seconds(5)).add();
    let saga = saga.build(()).unwrap();
    assert_eq!(run(&store, &saga).await.0, Outcome::Completed(()));
    let expected = ["short: Some(10)", "short: Some(5)", "plain: Some(11)", "plain: Some(6)"];
    assert_eq!(log.lines()[..4], expected);
    // What goes on all the same is not hurried.
    assert_eq!(log.lines()[4..], ["sent: Some(11)", "sent: Some(6)"]);
}

#[tokio::test(start_paused = true)]
async fn a_nested_definition_keeps_its_limits() {
    let (store, log) = (Memory::new(), Log::default());
    let inner = refundable(&log, NEVER, |charge| charge);
    let mut saga = Saga::define::<u32>("outer", 1);
    let charged = saga.nested_alike("payment", (), &inner);
    let saga = saga.build(charged).unwrap();
    let (outcome, took) = run(&store, &saga).await;
    assert_eq!(outcome, Outcome::Compensated(late("payment/charge", seconds(10))));
    assert_eq!(took.as_secs(), 10);
}

#[test]
fn a_limit_is_no_part_of_the_digest_and_has_a_length() {
    let build = |within: Option<Duration>| {
        let mut saga = Saga::define::<u32>("limit", 1);
        let step = saga.read_only("look", (), |_, ()| async { Ok(1_u32) });
        match within {
            Some(within) => step.within(within).add(),
            None => step.add(),
        };
        saga.build(())
    };
    let digest = build(None).unwrap().digest().to_owned();
    for within in [Duration::from_millis(1), seconds(10), Duration::MAX] {
        assert_eq!(build(Some(within)).unwrap().digest(), digest);
    }
    for within in [Duration::ZERO, Duration::from_micros(999)] {
        let error = build(Some(within)).unwrap_err().to_string();
        assert_eq!(error, "saga \"limit\": step \"look\" has to have at least 1 ms");
    }
}
