//! What an orchestrator knows of steps in flight, and does not forget: refused by a policy, cut off by a lapse, held up by a slow store,
//! decided upon by a person.
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
    CircuitBreaker, Retry,
    backoff::Jitter,
    saga::{
        Cause, Failure, Opening, Orchestrator, Order, Outcome, Output, Phase, Saga, SagaId, StartOptions,
        Step, Unknown,
        memory::{Fault, Memory, Operation},
    },
};

type Lines = Arc<Mutex<Vec<String>>>;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn kinds(store: &Memory, saga: &str) -> Vec<String> {
    let stored = store.stored(&SagaId::new(saga).unwrap()).unwrap();
    stored.entries.into_iter().map(|entry| entry.kind).collect()
}

/// Refuses for eight seconds from now on.
async fn tripped() -> CircuitBreaker {
    let config = CircuitBreaker::config().consecutive_failures(1).open_wait(seconds(8), 1.0, seconds(8));
    let breaker = config.build().unwrap();
    let failed = breaker.call(|| async { Err::<(), _>("down") }).await;
    assert!(failed.is_err());
    breaker
}

#[tokio::test(start_paused = true)]
async fn a_step_that_an_open_breaker_held_back_is_not_taken_for_one_that_was_sent() {
    for policy in [Unknown::Park, Unknown::Compensate] {
        let (store, calls) = (Memory::new(), Arc::new(AtomicU32::new(0)));
        let (act, undo) = (calls.clone(), calls.clone());
        let mut saga = Saga::define::<u32>("held back", 1);
        let first = saga
            .step("first", (), move |_, ()| {
                act.fetch_add(1, SeqCst);
                async { Ok(7_u32) }
            })
            .on_unknown(policy)
            .through(mainstay::stack("first").circuit_breaker(tripped().await).build().unwrap())
            .compensate(move |_, (), _| {
                undo.fetch_add(100, SeqCst);
                async { Ok(()) }
            });
        let saga = saga.build(first).unwrap();
        let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
        let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
        assert_eq!(outcome, Outcome::Completed(7), "{policy:?}");
        assert_eq!(calls.load(SeqCst), 1, "{policy:?}");
        assert_eq!(kinds(&store, "s"), ["begun", "sent", "completed"], "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_only_word_of_a_pivot_that_was_held_back_is_taken() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("declined", 1);
    let charge = saga
        .pivot("charge", (), |_, ()| async { Err::<u32, _>(Failure::rejected("declined")) })
        .through(mainstay::stack("charge").circuit_breaker(tripped().await).build().unwrap())
        .add();
    let saga = saga.build(charge).unwrap();
    let orchestrator = Orchestrator::open(store).register(&saga).start().await.unwrap();
    let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated(Cause::Rejected { .. })), "{outcome:?}");
}

/// One branch waits between two attempts, the first of which may have had an effect; the orchestrator is being shut down; another
/// branch is rejected meanwhile.
#[tokio::test(start_paused = true)]
async fn an_orderly_shutdown_does_not_forget_what_an_attempt_may_have_done() {
    let (store, charged) = (Memory::new(), Arc::new(AtomicU32::new(0)));
    let (act, undo) = (charged.clone(), charged.clone());
    let retry = Retry::constant(seconds(30)).jitter(Jitter::None).max_attempts(3).no_budget().idempotent();
    let mut saga = Saga::define::<u32>("drained", 1);
    let charge = saga
        .step("charge", (), move |_, ()| {
            act.store(1, SeqCst); // The answer to it is lost.
            async { Err::<u32, _>(Failure::unknown("502")) }
        })
        .through(mainstay::stack("charge").retry(retry).timeout(seconds(10)).build().unwrap())
        .compensate(move |_, (), _| {
            undo.store(0, SeqCst);
            async { Ok(()) }
        });
    let reserve = saga
        .step("reserve", (), |_, ()| async {
            tokio::time::sleep(seconds(5)).await;
            Err::<u32, _>(Failure::rejected("sold out"))
        })
        .without_compensation("it is rejected");
    let saga = saga.build((charge, reserve)).unwrap();
    let first = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    first.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    first.shutdown(seconds(60)).await;
    let second = Orchestrator::open(store.connect()).register(&saga).start().await.unwrap();
    let outcome = second.handle(&saga, "s").unwrap().finished().await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated(_)), "{outcome:?}");
    assert_eq!(charged.load(SeqCst), 0, "{:?}", kinds(&store, "s"));
}

/// A's lease lapses between two attempts, and B undoes the saga meanwhile.
#[tokio::test(start_paused = true)]
async fn an_attempt_after_a_lapse_is_not_begun() {
    let (store, lines) = (Memory::new(), Lines::default());
    let define = |who: &'static str| {
        let (act, undo) = (lines.clone(), lines.clone());
        let retry =
            Retry::constant(seconds(30)).jitter(Jitter::None).max_attempts(3).no_budget().idempotent();
        let stack = mainstay::stack("first").retry(retry).timeout(seconds(10)).build().unwrap();
        let mut saga = Saga::define::<u32>("lapse", 1);
        let first = saga
            .step("first", (), move |_, ()| {
                act.lock().unwrap().push(format!("{who} acts"));
                async move {
                    match who {
                        "A" => Err::<u32, _>(Failure::unknown("502")),
                        _ => Err(Failure::rejected("no")),
                    }
                }
            })
            .through(stack)
            .compensate(move |_, (), _| {
                undo.lock().unwrap().push(format!("{who} undoes"));
                async { Ok(()) }
            });
        saga.build(first).unwrap()
    };
    let (a, b) = (define("A"), define("B"));
    let open = |store: Memory, saga: &Saga<u32, Output<u32>>| {
        let opening: Opening = Orchestrator::open(store).lease(seconds(1)).poll(Duration::from_millis(100));
        opening.register(saga).start()
    };
    let first = open(store.clone(), &a).await.unwrap();
    let _second = open(store.connect(), &b).await.unwrap();
    store.fault(Operation::Heartbeat, 0, Fault::Stall(seconds(3)));
    first.start(&a, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(200)).await;
    assert_eq!(*lines.lock().unwrap(), ["A acts", "B acts", "B undoes"]);
}

/// A hiccup of the store while one branch is recorded is no timeout of another.
#[tokio::test(start_paused = true)]
async fn branches_go_on_while_the_store_is_slow() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("slow store", 1);
    let quick = saga.step("quick", (), |_, ()| async { Ok(1_u32) }).without_compensation("a test");
    let stack = mainstay::stack("steady").timeout(seconds(3)).build().unwrap();
    let steady = saga
        .step("steady", (), |_, ()| async {
            for _ in 0..12 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(2_u32)
        })
        .through(stack)
        .without_compensation("a test");
    let saga = saga.build((quick, steady)).unwrap();
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    store.fault(Operation::Append, 1, Fault::Stall(seconds(5)));
    let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
    assert_eq!(store.planned_faults(), 0, "the store has stalled");
    assert_eq!(outcome, Outcome::Completed((1, 2)));
}

/// Nobody can have looked whether a charge was made while it is being made.
#[tokio::test(start_paused = true)]
async fn what_is_being_tried_cannot_be_rejected() {
    let (store, tries) = (Memory::new(), Arc::new(AtomicU32::new(0)));
    let mut saga = Saga::define::<u32>("race", 1);
    let charge = saga
        .pivot("charge", (), move |_, ()| {
            let first = tries.fetch_add(1, SeqCst) == 0;
            async move {
                if first {
                    return Err(Failure::unknown("502"));
                }
                tokio::time::sleep(seconds(5)).await;
                Ok(7_u32)
            }
        })
        .through(mainstay::stack("charge").timeout(seconds(10)).build().unwrap())
        .add();
    let saga = saga.build(charge).unwrap();
    let opening = Orchestrator::open(store).stuck_retry(Some(seconds(300)));
    let orchestrator = opening.register(&saga).start().await.unwrap();
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    assert!(matches!(handle.settled().await.unwrap(), Outcome::Held { phase: Some(Phase::Stuck), .. }));
    tokio::time::sleep(seconds(302)).await;
    let reject = Order::Reject { step: "charge".to_owned(), reason: "the bank has nothing".to_owned() };
    orchestrator.order("s", "ann", reject).await.unwrap();
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(7));
}

/// A deadline, or a cancel, that came while the pivot was in flight counts when it comes back without having been made.
#[tokio::test(start_paused = true)]
async fn a_deadline_and_a_cancel_count_again_when_a_pivot_was_not_made() {
    for cancelled in [false, true] {
        let mut saga = Saga::define::<u32>("again", 1);
        let reserve =
            saga.step("reserve", (), |_, ()| async { Ok(1_u32) }).compensate(|_, (), _| async { Ok(()) });
        let charge = saga
            .pivot("charge", reserve, |_, _| async {
                tokio::time::sleep(seconds(2)).await;
                Err::<u32, _>(Failure::unstarted("not reached"))
            })
            .through(mainstay::stack("charge").timeout(seconds(10)).build().unwrap())
            .add();
        let saga = saga.build(charge).unwrap();
        let orchestrator = Orchestrator::open(Memory::new()).register(&saga).start().await.unwrap();
        let options = match cancelled {
            true => StartOptions::default(),
            false => StartOptions::default().deadline(seconds(1)),
        };
        let handle = orchestrator.start_with(&saga, "s", &1, options).await.unwrap();
        if cancelled {
            tokio::time::sleep(seconds(1)).await;
            handle.cancel("changed my mind").await.unwrap();
        }
        let outcome = tokio::time::timeout(seconds(600), handle.finished()).await.expect("it ends").unwrap();
        let expected = match cancelled {
            true => Cause::Cancelled { reason: "changed my mind".to_owned() },
            false => Cause::Deadline,
        };
        assert_eq!(outcome, Outcome::Compensated(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_hangs_when_the_saga_is_turned_round_is_waited_for_a_minute_and_undone() {
    let lines = Lines::default();
    let undo = lines.clone();
    let mut saga = Saga::define::<u32>("hangs", 1);
    let hang = saga
        .step("hang", (), |_, ()| async {
            std::future::pending::<()>().await;
            Ok(1_u32)
        })
        .through(mainstay::stack("no limit").build().unwrap())
        .compensate(move |_, (), output| {
            undo.lock().unwrap().push(format!("{output:?}"));
            async { Ok(()) }
        });
    let saga = saga.build(hang).unwrap();
    let orchestrator = Orchestrator::open(Memory::new()).register(&saga).start().await.unwrap();
    let options = StartOptions::default().deadline(seconds(10));
    let began = tokio::time::Instant::now();
    let handle = orchestrator.start_with(&saga, "s", &1, options).await.unwrap();
    assert_eq!(handle.finished().await.unwrap(), Outcome::Compensated(Cause::Deadline));
    assert!((seconds(69)..seconds(75)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(*lines.lock().unwrap(), ["None"]);
}

#[tokio::test(start_paused = true)]
async fn an_order_to_compensate_undoes_nothing_that_was_never_sent() {
    let (store, undone) = (Memory::new(), Arc::new(AtomicU32::new(0)));
    let undo = undone.clone();
    let breaker = tripped().await;
    breaker.force_open();
    let mut saga = Saga::define::<u32>("never sent", 1);
    let first = saga
        .step("first", (), |_: Step<u32>, ()| async { Ok(1_u32) })
        .through(mainstay::stack("first").circuit_breaker(breaker).build().unwrap())
        .compensate(move |_, (), _| {
            undo.fetch_add(1, SeqCst);
            async { Ok(()) }
        });
    let saga = saga.build(first).unwrap();
    let orchestrator = Orchestrator::open(store).register(&saga).start().await.unwrap();
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(3)).await;
    let order = Order::Compensate { reason: "no longer wanted".to_owned() };
    orchestrator.order("s", "ann", order).await.unwrap();
    assert!(matches!(handle.finished().await.unwrap(), Outcome::Compensated(_)));
    assert_eq!(undone.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_retriable_step_that_was_rejected_stays_stuck_for_what_it_said() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("closed", 1);
    saga.retriable("send", (), |_, ()| async { Err::<u32, _>(Failure::rejected("closed on sundays")) })
        .on_unknown(Unknown::Park)
        .add();
    let saga = saga.build(()).unwrap();
    let opening = Orchestrator::open(store.clone()).stuck_retry(Some(seconds(60)));
    let orchestrator = opening.register(&saga).start().await.unwrap();
    orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(400)).await;
    assert_eq!(kinds(&store, "s"), ["begun", "sent", "stuck"]);
}
