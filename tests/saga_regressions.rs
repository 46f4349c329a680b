//! Faults that the driver and the orchestrator have had, and promises of theirs that nothing else holds them to.
#![cfg(feature = "saga")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::saga::{
    Cause, Failure, Inputs, Orchestrator, Order, Outcome, Output, Phase, Record, Saga, SagaId, StoreError,
    Unknown, Verified,
    journal::Journal,
    memory::{Fault, Memory, Operation},
};

#[path = "support/log.rs"]
mod log;
use log::Log;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn open<R: Inputs>(store: &Memory, saga: &Saga<u32, R>) -> Orchestrator {
    Orchestrator::open(store.clone()).register(saga).lease(seconds(10)).start().await.unwrap()
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("planned".to_owned())
}

fn kinds(store: &Memory, id: &str) -> Vec<String> {
    let stored = store.stored(&SagaId::new(id).unwrap()).unwrap();
    stored.entries.into_iter().map(|entry| entry.kind).collect()
}

/// Two steps one after the other, each undone with a line in the log.
fn chain(log: &Log, second: fn() -> Result<u32, Failure>) -> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>("chain", 1);
    let (a, b, c, d) = (log.clone(), log.clone(), log.clone(), log.clone());
    let first = saga
        .step("first", (), move |_, ()| {
            a.add("first");
            async { Ok(1_u32) }
        })
        .compensate(move |_, (), _| {
            b.add("undo first");
            async {
                // Long enough for what was noted before to be a batch of its own.
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(())
            }
        });
    let second = saga
        .step("second", first, move |_, _| {
            c.add("second");
            async move { second() }
        })
        .compensate(move |_, _, _| {
            d.add("undo second");
            async { Ok(()) }
        });
    saga.build(second).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_unwinding_is_announced_when_it_is_durable() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = chain(&log, || Err(Failure::rejected("no")));
    let orchestrator = open(&store, &saga).await;
    // Begun, completed, aborted, and then what is undone.
    store.fault(Operation::Append, 3, Fault::StallUnsynced(seconds(5)));
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    let waited = tokio::time::timeout(seconds(4), handle.finished()).await;
    assert!(waited.is_err(), "the power may still be cut, and the saga would not be over: {waited:?}");
    assert!(matches!(handle.finished().await.unwrap(), Outcome::Compensated(_)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_when_a_step_before_it_in_the_same_round_has_turned_the_saga_round() {
    let (store, log) = (Memory::new(), Log::default());
    let build = |hangs: bool| {
        let mut saga = Saga::define::<u32>("round", 1);
        for name in ["once", "ordinary"] {
            let (act, undo) = (log.clone(), log.clone());
            let step = saga.step(name, (), move |_, ()| {
                act.add(name);
                async move {
                    if hangs {
                        std::future::pending::<()>().await;
                    }
                    Ok(1_u32)
                }
            });
            let unknown = if name == "once" { Unknown::Compensate } else { Unknown::Retry };
            step.on_unknown(unknown).compensate(move |_, (), _| {
                undo.add(format!("undo {name}"));
                async { Ok(()) }
            });
        }
        saga.build(()).unwrap()
    };
    let saga = build(true);
    let first = open(&store, &saga).await;
    first.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    assert_eq!(log.lines(), ["once", "ordinary"]);
    store.crash();
    drop(first);

    let (store, saga) = (store.connect(), build(false));
    let second = open(&store, &saga).await;
    let outcome = second.handle(&saga, "s").unwrap().finished().await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated(Cause::Unknown { .. })), "{outcome:?}");
    assert_eq!(log.count("ordinary"), 1, "it was sent forward behind the abort: {:?}", log.lines());
}

/// An at-most-once step whose first attempt may have had an effect, let go once more by a person, then rejected.
#[tokio::test(start_paused = true)]
async fn a_step_that_a_person_sends_once_more_stays_one_that_may_have_happened() {
    for crash in [false, true] {
        let (store, log) = (Memory::new(), Log::default());
        let calls = Arc::new(AtomicU32::new(0));
        let build = || {
            let (act, undo, calls) = (log.clone(), log.clone(), calls.clone());
            let mut saga = Saga::define::<u32>("parked", 1);
            saga.step("once", (), move |_, ()| {
                act.add("once");
                let call = calls.fetch_add(1, SeqCst);
                async move {
                    if call == 0 {
                        Err::<u32, _>(Failure::unknown("lost"))
                    } else {
                        Err(Failure::rejected("no"))
                    }
                }
            })
            .on_unknown(Unknown::Park)
            .compensate(move |_, (), _| {
                undo.add("undo once");
                async { Ok(()) }
            });
            // Keeps the driver where it is, with what it knows.
            saga.step("slow", (), |_, ()| async {
                tokio::time::sleep(seconds(20)).await;
                Ok(1_u32)
            })
            .compensate(|_, (), _| async { Ok(()) });
            saga.build(()).unwrap()
        };
        let saga = build();
        let mut orchestrator = open(&store, &saga).await;
        let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
        tokio::time::sleep(seconds(1)).await;
        assert_eq!(handle.status().await.unwrap().phase, Some(Phase::Parked));
        if crash {
            // The order is there, and what it let go is not sent yet.
            store.fault(Operation::Append, 0, Fault::CrashAfter);
        }
        orchestrator.order("s", "ann", Order::Retry { step: None }).await.unwrap();
        let mut store = store.clone();
        if crash {
            store.dead().await;
            store = store.connect();
            orchestrator = open(&store, &build()).await;
        }
        let outcome = orchestrator.handle(&build(), "s").unwrap().finished().await.unwrap();
        assert!(matches!(outcome, Outcome::Compensated(_)), "{outcome:?}");
        assert_eq!(log.count("once"), 2, "it is sent once more: {:?}", log.lines());
        assert_eq!(log.count("undo once"), 1, "its first attempt may have had an effect: {:?}", log.lines());
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_that_was_not_made_does_not_leave_the_saga_to_nobody() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = chain(&log, || Err(Failure::unknown("lost")));
    let orchestrator = open(&store, &saga).await;
    // The note that the second step is undone is lost, and what comes behind it is refused for the gap.
    store.fault(Operation::Append, 3, Fault::Fail(unavailable()));
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    let waited = tokio::time::timeout(seconds(60), handle.finished()).await;
    assert!(matches!(waited, Ok(Ok(Outcome::Compensated(_)))), "{waited:?}");
    assert_eq!(store.planned_faults(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_handed_over_again_is_taken_up_once() {
    let (store, log) = (Memory::new(), Log::default());
    let mut saga = Saga::define::<u32>("pivoted", 1);
    let act = log.clone();
    saga.pivot("decide", (), move |_, ()| {
        act.add("decide");
        async {
            tokio::time::sleep(seconds(20)).await;
            Ok(1_u32)
        }
    })
    .add();
    let saga = saga.build(()).unwrap();
    let orchestrator = open(&store, &saga).await;
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    // While the answer takes its time, the request is seen in the store again and again.
    store.fault(Operation::Append, 0, Fault::Stall(seconds(5)));
    handle.cancel("late").await.unwrap();
    assert!(handle.finished().await.unwrap().completed().is_some());
    assert_eq!(kinds(&store, "s"), ["begun", "ordered", "completed"]);
}

#[tokio::test(start_paused = true)]
async fn a_start_that_nobody_waits_for_is_looked_after() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = chain(&log, || Ok(2));
    let orchestrator = open(&store, &saga).await;
    store.fault(Operation::Append, 0, Fault::Stall(seconds(2)));
    let given_up = tokio::time::timeout(Duration::from_millis(100), orchestrator.start(&saga, "s", &1)).await;
    assert!(given_up.is_err());
    let handle = orchestrator.handle(&saga, "s").unwrap();
    tokio::time::sleep(seconds(30)).await;
    assert_eq!(handle.status().await.unwrap().phase, Some(Phase::Completed));
}

#[tokio::test(start_paused = true)]
async fn no_lost_saga_is_forgotten_because_the_store_fails_at_another() {
    let (store, log) = (Memory::new(), Log::default());
    let mut saga = Saga::define::<u32>("slow", 1);
    let act = log.clone();
    let done = saga
        .step("slow", (), move |_, ()| {
            act.add("slow");
            async {
                tokio::time::sleep(seconds(1)).await;
                Ok(2_u32)
            }
        })
        .compensate(|_, (), _| async { Ok(()) });
    let saga = saga.build(done).unwrap();
    let orchestrator =
        Orchestrator::open(store.clone()).register(&saga).poll(seconds(9)).start().await.unwrap();
    for id in ["a", "b", "c"] {
        orchestrator.start(&saga, id, &1).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    // All three lose the answer to their next append, and the first that is claimed again finds the store gone once more.
    for skip in 0..3 {
        store.fault(Operation::Append, skip, Fault::LoseAnswer(unavailable()));
    }
    store.fault(Operation::Claim, 0, Fault::Fail(unavailable()));
    for id in ["a", "b", "c"] {
        let waited =
            tokio::time::timeout(seconds(60), orchestrator.handle(&saga, id).unwrap().finished()).await;
        assert!(matches!(waited, Ok(Ok(Outcome::Completed(2)))), "{id}: {waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_was_lost_is_found_again() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = chain(&log, || Ok(2));
    let first = open(&store, &saga).await;
    store.fault(Operation::Append, 1, Fault::CrashBefore);
    first.start(&saga, "s", &1).await.unwrap();
    store.dead().await;
    drop(first);
    let store = store.connect();
    let second = open(&store, &saga).await;
    second.recovered().await;
    // Each claim is made and nobody hears of it, also the one that takes the saga when the lease of the first is over.
    let mut owned = false;
    for _ in 0..60 {
        store.clear_faults();
        store.fault(Operation::Claim, 0, Fault::LoseAnswer(unavailable()));
        tokio::time::sleep(Duration::from_millis(250)).await;
        let head = store.stored(&SagaId::new("s").unwrap()).unwrap().head;
        owned |= head.owner.as_ref() == Some(second.incarnation());
    }
    store.clear_faults();
    assert!(owned, "a claim has taken the saga");
    let waited = tokio::time::timeout(seconds(60), second.handle(&saga, "s").unwrap().finished()).await;
    assert!(matches!(waited, Ok(Ok(Outcome::Completed(2)))), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn ending_in_order_waits_for_what_runs_and_not_without_end() {
    let (store, log) = (Memory::new(), Log::default());
    let mut saga = Saga::define::<u32>("slow", 1);
    let act = log.clone();
    let slow = saga
        .step("slow", (), move |_, ()| {
            act.add("slow");
            async {
                tokio::time::sleep(seconds(5)).await;
                Ok(1_u32)
            }
        })
        .compensate(|_, (), _| async { Ok(()) });
    saga.step("next", slow, |_, _| async { Ok(1_u32) }).compensate(|_, _, _| async { Ok(()) });
    let saga = saga.build(()).unwrap();
    let orchestrator = open(&store, &saga).await;
    orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    let began = tokio::time::Instant::now();
    orchestrator.shutdown(seconds(60)).await;
    assert!(began.elapsed() < seconds(6), "{:?}", began.elapsed());
    assert_eq!(kinds(&store, "s"), ["begun", "completed"], "what ran was recorded, nothing else was begun");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_begun_when_the_last_handle_is_gone() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = chain(&log, || Ok(2));
    let orchestrator = open(&store, &saga).await;
    store.fault(Operation::Append, 1, Fault::Stall(seconds(2)));
    orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    drop(orchestrator);
    tokio::time::sleep(seconds(30)).await;
    assert_eq!(log.lines(), ["first"], "the second step was sent by an orchestrator that had ended");
}

/// Stops the world for an orchestrator's lease while others go on: its heartbeats fail.
#[tokio::test(start_paused = true)]
async fn an_orchestrator_that_has_lost_its_lease_sends_nothing_before_it_has_asked() {
    let (store, log) = (Memory::new(), Log::default());
    let mut saga = Saga::define::<u32>("lease", 1);
    let calls = Arc::new(AtomicU32::new(0));
    let (act, counted) = (log.clone(), calls.clone());
    let done = saga
        .step("step", (), move |step, ()| {
            let call = counted.fetch_add(1, SeqCst);
            act.add(format!("epoch {}", step.epoch()));
            async move {
                if call == 0 {
                    // Nothing was done, and it says when it may be asked again: when the lease is long over.
                    return Err(Failure::unstarted("busy"));
                }
                Ok(1_u32)
            }
        })
        .through(
            mainstay::stack("once")
                .retry(
                    mainstay::Retry::constant(seconds(40))
                        .jitter(mainstay::backoff::Jitter::None)
                        .max_attempts(5)
                        .no_budget()
                        .idempotent(),
                )
                .build()
                .unwrap(),
        )
        .compensate(|_, (), _| async { Ok(()) });
    let saga = saga.build(done).unwrap();
    let first = open(&store, &saga).await;
    first.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    for skip in 0..200 {
        store.fault(Operation::Heartbeat, skip, Fault::Fail(unavailable()));
    }
    let other = store.connect();
    let second = open(&other, &saga).await;
    assert_eq!(second.handle(&saga, "s").unwrap().finished().await.unwrap(), Outcome::Completed(1));
    tokio::time::sleep(seconds(200)).await;
    assert_eq!(log.lines(), ["epoch 1", "epoch 2"], "the first owner tried on without its lease");
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_panics_is_an_outcome_too() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("policy", 1);
    let retry = mainstay::Retry::constant(seconds(1)).no_budget().idempotent();
    let retry = retry.when(|_: &mainstay::retry::Failure<'_, mainstay::saga::Attempted, Failure>| -> bool {
        std::panic::resume_unwind(Box::new("in the predicate"))
    });
    let stack = mainstay::stack("policy").retry(retry).build().unwrap();
    let done = saga
        .step("step", (), |_, ()| async { Err::<u32, _>(Failure::unknown("no")) })
        .through(stack)
        .compensate(|_, (), _| async { Ok(()) });
    let saga = saga.build(done).unwrap();
    let orchestrator = open(&store, &saga).await;
    let waited = tokio::time::timeout(seconds(60), orchestrator.run(&saga, "s", &1)).await;
    assert!(matches!(waited, Ok(Ok(Outcome::Compensated(Cause::Unknown { .. })))), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_person_has_settled_is_not_waited_for() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("settled", 1);
    let mut stuck = Vec::new();
    for name in ["a", "b"] {
        stuck.push(saga.retriable(name, (), |_, ()| async { Err::<u32, _>(Failure::rejected("no")) }).add());
    }
    let saga = saga.build((stuck[0], stuck[1])).unwrap();
    let opening =
        Orchestrator::open(store.clone()).register(&saga).stuck_retry(Some(Duration::from_millis(900)));
    let orchestrator = opening.start().await.unwrap();
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let output = mainstay::saga::Payload::encode(&7).unwrap();
    for step in ["a", "b"] {
        // The driver is at it all the time; a step whose time had come and gone kept it awake for ever.
        let order = Order::Complete { step: step.to_owned(), output: output.clone() };
        orchestrator.order("s", "ann", order).await.unwrap();
        tokio::time::sleep(seconds(3)).await;
    }
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed((7, 7)));
}

/// G12: a compensation that fails 10,000 times.
#[tokio::test(start_paused = true)]
async fn a_compensation_that_fails_ten_thousand_times_leaves_one_record() {
    let (store, calls) = (Memory::new(), Arc::new(AtomicU32::new(0)));
    let mut saga = Saga::define::<u32>("stubborn", 1);
    let counted = calls.clone();
    let first = saga
        .step("first", (), |_, ()| async { Ok(1_u32) })
        .undo_through(mainstay::stack("bare").build().unwrap())
        .compensate(move |_, (), _| {
            let call = counted.fetch_add(1, SeqCst);
            async move { if call < 10_000 { Err(Failure::unknown("no")) } else { Ok(()) } }
        });
    saga.step("second", first, |_, _| async { Err::<u32, _>(Failure::rejected("no")) })
        .without_compensation("it does nothing");
    let saga = saga.build(()).unwrap();
    // Within a driver's patience: it stays. Beyond it: it is let go and taken up again.
    for (id, every) in [("live", Duration::from_millis(500)), ("released", seconds(2))] {
        calls.store(0, SeqCst);
        let opening = Orchestrator::open(store.clone()).register(&saga).stuck_retry(Some(every));
        let orchestrator = opening.poll(seconds(1)).start().await.unwrap();
        let handle = orchestrator.start(&saga, id, &1).await.unwrap();
        assert!(matches!(handle.finished().await.unwrap(), Outcome::Compensated(_)));
        assert_eq!(calls.load(SeqCst), 10_001);
        assert_eq!(kinds(&store, id), ["begun", "completed", "aborted", "stuck", "undone"]);
        orchestrator.shutdown(seconds(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_decoded_blocks_one_saga_and_changes_nothing_on_the_disk() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = chain(&log, || Ok(2));
    let first = open(&store, &saga).await;
    store.fault(Operation::Append, 1, Fault::CrashAfter);
    first.start(&saga, "bad", &1).await.unwrap();
    store.dead().await;
    drop(first);
    let store = store.connect();
    let bad = SagaId::new("bad").unwrap();
    // The output of the first step is no longer what the second expects: another type of the same structure.
    let mut other = Saga::define::<u32>("chain", 1);
    let one = other
        .step("first", (), |_, ()| async { Ok("text".to_owned()) })
        .compensate(|_, (), _| async { Ok(()) });
    other.step("second", one, |_, _: String| async { Ok(1_u32) }).compensate(|_, _, _| async { Ok(()) });
    let other = other.build(()).unwrap();
    assert_eq!(other.digest(), saga.digest());
    let before = store.stored(&bad).unwrap().entries;
    let second = open(&store, &other).await;
    second.recovered().await;
    tokio::time::sleep(seconds(30)).await;
    let blocked = second.blocked().await.unwrap();
    assert_eq!(blocked.len(), 1, "{blocked:?}");
    assert_eq!(blocked[0].0, bad);
    assert_eq!(store.stored(&bad).unwrap().entries, before, "nothing was changed");
    let outcome = second.run(&other, "good", &1).await.unwrap();
    assert_eq!(outcome, Outcome::Completed(()), "another one is not held up by it");
    drop(second);
    // With the code it was written by it goes on.
    let third = open(&store, &saga).await;
    assert_eq!(third.handle(&saga, "bad").unwrap().finished().await.unwrap(), Outcome::Completed(2));
}

#[tokio::test(start_paused = true)]
async fn a_closure_that_panics_before_it_has_a_future_is_an_outcome() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("early", 1);
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let done = saga
        .step("step", (), move |_, ()| {
            if counted.fetch_add(1, SeqCst) < 100 {
                std::panic::resume_unwind(Box::new("before there is a future"));
            }
            async { Ok(1_u32) }
        })
        .compensate(|_, (), _| async { Ok(()) });
    let saga = saga.build(done).unwrap();
    let orchestrator = open(&store, &saga).await;
    let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
    let Outcome::Compensated(Cause::Unknown { error, .. }) = outcome else { panic!("{outcome:?}") };
    assert!(error.contains("before there is a future"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_verification_that_says_not_applied_for_long_leaves_no_records() {
    let (store, log) = (Memory::new(), Log::default());
    let mut saga = Saga::define::<u32>("again", 1);
    let act = log.clone();
    let done = saga
        .step("step", (), move |_, ()| {
            act.add("sent");
            let sent = act.count("sent");
            async move { if sent < 50 { Err(Failure::unknown("lost")) } else { Ok(1_u32) } }
        })
        .verify(|_, ()| async { Ok(Verified::NotApplied) })
        .compensate(|_, (), _| async { Ok(()) });
    let saga = saga.build(done).unwrap();
    let orchestrator = open(&store, &saga).await;
    assert_eq!(orchestrator.run(&saga, "s", &1).await.unwrap(), Outcome::Completed(1));
    assert_eq!(
        kinds(&store, "s").iter().filter(|kind| *kind == "sent").count(),
        kinds(&store, "s").len() - 2
    );
    assert!(kinds(&store, "s").len() <= 10, "{:?}", kinds(&store, "s"));
}

#[tokio::test(start_paused = true)]
async fn a_signal_counts_once_early_and_late() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("signals", 1);
    let slept = saga.sleep("before", (), seconds(20));
    let answer = saga.signal::<u32, _>("answer", slept, Some(seconds(20)));
    let then = saga.sleep("after", answer, seconds(20));
    saga.step("last", then, |_, ()| async { Ok(1_u32) }).compensate(|_, _, _| async { Ok(()) });
    let saga = saga.build(answer).unwrap();
    let orchestrator = open(&store, &saga).await;
    for (id, at, expected) in [("early", 1, Some(1)), ("in time", 30, Some(1)), ("late", 50, None)] {
        let handle = orchestrator.start(&saga, id, &1).await.unwrap();
        tokio::time::sleep(seconds(at)).await;
        for (message, payload) in [("m", 1_u32), ("m", 2), ("n", 3)] {
            let left = orchestrator.signal(id, "answer", message, &payload).await.unwrap();
            println!("{id} {message}: {left:?}");
        }
        assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(expected), "{id}");
        let stored = store.load(&SagaId::new(id).unwrap()).await.unwrap().unwrap();
        let signals = stored.entries.iter().filter(|entry| entry.kind == "signalled").count();
        assert_eq!(signals, usize::from(expected.is_some()), "{id}");
        let last = stored.entries.last().unwrap().record().unwrap();
        assert!(matches!(last, Record::Completed { .. }));
    }
}

/// Two branches end in one moment: one turns the saga round, the other was rejected and is named in the same record.
#[tokio::test(start_paused = true)]
async fn a_rejection_in_the_moment_in_which_the_saga_is_turned_round_blocks_nothing() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("at once", 1);
    let one = || mainstay::stack("one attempt").timeout(seconds(10)).build().unwrap();
    saga.step("unknown", (), |_, ()| async {
        tokio::time::sleep(seconds(1)).await;
        Err::<u32, _>(Failure::unknown("502"))
    })
    .through(one())
    .on_unknown(Unknown::Compensate)
    .compensate(|_, (), _| async { Ok(()) });
    saga.step("rejected", (), |_, ()| async {
        tokio::time::sleep(seconds(1)).await;
        Err::<u32, _>(Failure::rejected("no"))
    })
    .through(one())
    .compensate(|_, (), _| async { Ok(()) });
    let saga = saga.build(()).unwrap();
    let orchestrator = open(&store, &saga).await;
    let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated(_)), "{outcome:?}");
}
