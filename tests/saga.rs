//! Sagas through the public API, on the paused clock and the store in memory.
#![cfg(feature = "saga")]

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use mainstay::saga::{
    Cause, Failure, Opening, Orchestrator, Outcome, Output, Phase, Saga, StartError, StartOptions, Step,
    Unknown, Verified,
    journal::{Journal, Request},
    memory::{Fault, Memory, Operation},
};
use serde::{Deserialize, Serialize};

#[path = "support/log.rs"]
mod log;
use log::Log;

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
struct Order {
    amount: u64,
}

type Charge = fn(u32) -> Result<u64, Failure>;

fn order_saga(log: &Log, charge: Charge) -> Saga<Order, Output<String>> {
    let mut saga = Saga::define::<Order>("order", 1);
    let (a, b, c, d, e, f) = (log.clone(), log.clone(), log.clone(), log.clone(), log.clone(), log.clone());
    let created = saga
        .step("create", (), move |step: Step<Order>, ()| {
            a.add(format!("create {}", step.key()));
            async move { Ok(step.input().amount) }
        })
        .compensate(move |step, (), output| {
            b.add(format!("cancel {} {output:?}", step.key()));
            async { Ok(()) }
        });
    let charged = saga
        .step("charge", created, move |step: Step<Order>, amount: u64| {
            c.add(format!("charge {amount} {}", step.key()));
            let attempt = step.attempt();
            async move { charge(attempt) }
        })
        .compensate(move |step, _, output| {
            d.add(format!("refund {} {output:?}", step.key()));
            async { Ok(()) }
        });
    let confirmed = saga
        .pivot("confirm", (created, charged), move |_, (amount, receipt): (u64, u64)| {
            e.add(format!("confirm {amount} {receipt}"));
            async move { Ok(format!("{amount}/{receipt}")) }
        })
        .add();
    saga.retriable("send", confirmed, move |_, text: String| {
        f.add(format!("send {text}"));
        async { Ok(()) }
    })
    .add();
    saga.build(confirmed).unwrap()
}

async fn orchestrator(store: &Memory, saga: &Saga<Order, Output<String>>) -> Orchestrator {
    Orchestrator::open(store.clone()).register(saga).start().await.unwrap()
}

/// Looks seldom, so that hours of virtual time pass quickly.
fn patient(store: &Memory) -> Opening {
    Orchestrator::open(store.clone()).poll(Duration::from_secs(20)).lease(Duration::from_secs(120))
}

#[tokio::test(start_paused = true)]
async fn a_happy_saga_runs_each_step_once_in_order() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = order_saga(&log, |_| Ok(99));
    let orchestrator = orchestrator(&store, &saga).await;
    let outcome = orchestrator.run(&saga, "o-1", &Order { amount: 5 }).await.unwrap();
    assert_eq!(outcome, Outcome::Completed("5/99".to_owned()));
    assert_eq!(log.lines(), ["create create.do@o-1", "charge 5 charge.do@o-1", "confirm 5 99", "send 5/99"]);
    assert_eq!(store.counts().forced, 5, "a beginning and one for each step");
}

/// The number of forced writes that the design allows: what is forced before the first compensation of a saga whose second step is
/// rejected, and what a step costs that is sent at most once.
#[tokio::test(start_paused = true)]
async fn no_more_is_forced_than_has_to_be() {
    let (store, forced) = (Memory::new(), Arc::new(AtomicU64::new(0)));
    let (seen, at) = (store.clone(), forced.clone());
    let mut saga = Saga::define::<u32>("count", 1);
    let first = saga.step("first", (), |_, ()| async { Ok(1) }).compensate(move |_, (), _| {
        at.store(seen.counts().forced, Relaxed);
        async { Ok(()) }
    });
    let rejected = |_, _| async { Err::<u32, _>(Failure::rejected("no")) };
    let second = saga.step("second", first, rejected).without_compensation("it is rejected");
    let saga = saga.build(second).unwrap();
    let orchestrator = Orchestrator::open(store).register(&saga).start().await.unwrap();
    let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated(_)), "{outcome:?}");
    assert_eq!(forced.load(Relaxed), 3, "a beginning, a completion, and the decision to turn round");

    for (policy, most) in [(Unknown::Retry, 2), (Unknown::Compensate, 3), (Unknown::Park, 3)] {
        let store = Memory::new();
        let mut saga = Saga::define::<u32>("once", 1);
        let only = saga.step("only", (), |_, ()| async { Ok(1) }).on_unknown(policy);
        let only = only.compensate(|_, (), _| async { Ok(()) });
        let saga = saga.build(only).unwrap();
        let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
        orchestrator.run(&saga, "s", &1).await.unwrap();
        assert_eq!(store.counts().forced, most, "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejection_undoes_what_was_done_and_not_what_was_rejected() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = order_saga(&log, |_| Err(Failure::rejected("declined")));
    let orchestrator = orchestrator(&store, &saga).await;
    let outcome = orchestrator.run(&saga, "o-1", &Order { amount: 5 }).await.unwrap();
    let cause = Cause::Rejected { step: "charge".to_owned(), error: "declined".to_owned() };
    assert_eq!(outcome, Outcome::Compensated(cause));
    assert_eq!(
        log.lines(),
        ["create create.do@o-1", "charge 5 charge.do@o-1", "cancel create.undo@o-1 Some(5)"]
    );
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_compensated_without_its_output() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = order_saga(&log, |_| Err(std::io::Error::other("reset").into()));
    let orchestrator = orchestrator(&store, &saga).await;
    let outcome = orchestrator.run(&saga, "o-1", &Order { amount: 5 }).await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated(Cause::Unknown { .. })), "{outcome:?}");
    let lines = log.lines();
    assert_eq!(lines[1..4], ["charge 5 charge.do@o-1"; 3], "three attempts with one key");
    assert_eq!(lines[4..], ["refund charge.undo@o-1 None", "cancel create.undo@o-1 Some(5)"]);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_behind_an_unknown_attempt_is_not_clean() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = order_saga(&log, |attempt| match attempt {
        1 => Err(Failure::unknown("timeout")),
        _ => Err(Failure::rejected("declined")),
    });
    let orchestrator = orchestrator(&store, &saga).await;
    orchestrator.run(&saga, "o-1", &Order { amount: 5 }).await.unwrap();
    assert!(log.lines().contains(&"refund charge.undo@o-1 None".to_owned()), "{:?}", log.lines());
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_an_outcome_like_any_other() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = order_saga(&log, |_| panic!("oh"));
    let orchestrator = orchestrator(&store, &saga).await;
    let outcome = orchestrator.run(&saga, "o-1", &Order { amount: 5 }).await.unwrap();
    assert!(
        matches!(&outcome, Outcome::Compensated(Cause::Unknown { error, .. }) if error.contains("oh")),
        "{outcome:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_same_id_with_the_same_input_is_the_same_saga_and_with_another_is_refused() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = order_saga(&log, |_| Ok(1));
    let orchestrator = orchestrator(&store, &saga).await;
    for _ in 0..2 {
        orchestrator.run(&saga, "o-1", &Order { amount: 5 }).await.unwrap();
    }
    assert_eq!(log.lines().len(), 4);
    let refused = orchestrator.start(&saga, "o-1", &Order { amount: 6 }).await.unwrap_err();
    assert!(matches!(refused, StartError::Different { .. }), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_leaves_is_taken_up_by_the_next_orchestrator() {
    let (store, log) = (Memory::new(), Log::default());
    let saga = order_saga(&log, |_| Ok(1));
    let first = orchestrator(&store, &saga).await;
    store.fault(Operation::Append, 3, Fault::CrashAfter);
    let handle = first.start(&saga, "o-1", &Order { amount: 5 }).await.unwrap();
    tokio::select! {
        _ = handle.finished() => panic!("the store is dead"),
        () = store.dead() => {}
    }
    drop((first, handle));
    let store = store.reopen();
    let second = orchestrator(&store, &saga).await;
    let handle = second.handle(&saga, "o-1").unwrap();
    let outcome = handle.finished().await.unwrap();
    assert_eq!(outcome, Outcome::Completed("5/1".to_owned()));
    assert_eq!(
        log.lines().iter().filter(|line| line.starts_with("charge")).count(),
        1,
        "its completion was durable"
    );
}

#[tokio::test(start_paused = true)]
async fn a_timer_and_a_signal_wait_without_a_driver() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("wait", 1);
    let slept = saga.sleep("cool-off", (), Duration::from_secs(3600));
    let answer = saga.signal::<String, _>("approval", slept, Some(Duration::from_secs(3600)));
    let saga = saga.build(answer).unwrap();
    let orchestrator = patient(&store).register(&saga).start().await.unwrap();
    let handle = orchestrator.start(&saga, "w", &1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(orchestrator.live(), 0);
    assert_eq!(handle.status().await.unwrap().phase, Some(Phase::Waiting));
    orchestrator.signal("w", "approval", "m1", "yes").await.unwrap();
    let outcome = handle.finished().await.unwrap();
    assert_eq!(outcome, Outcome::Completed(Some("yes".to_owned())));

    let handle = orchestrator.start(&saga, "never", &1).await.unwrap();
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(None));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_turns_a_saga_round_before_its_pivot() {
    let store = Memory::new();
    let log = Log::default();
    let undo = log.clone();
    let mut saga = Saga::define::<u32>("late", 1);
    let first = saga.step("first", (), |_, ()| async { Ok(1_u32) }).compensate(move |_, (), _| {
        undo.add("undone");
        async { Ok(()) }
    });
    saga.signal::<(), _>("never", first, None);
    let saga = saga.build(()).unwrap();
    let orchestrator = patient(&store).register(&saga).start().await.unwrap();
    let options = StartOptions::default().deadline(Duration::from_secs(7200));
    let handle = orchestrator.start_with(&saga, "l", &1, options).await.unwrap();
    assert_eq!(handle.finished().await.unwrap(), Outcome::Compensated(Cause::Deadline));
    assert_eq!(log.lines(), ["undone"]);
}

#[tokio::test(start_paused = true)]
async fn a_stuck_compensation_is_held_and_goes_on_when_a_person_says_so() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("stuck", 1);
    let first = saga
        .step("first", (), |_, ()| async { Ok(1_u32) })
        .compensate(|_, (), _| async { Err(Failure::unknown("no")) });
    saga.step("second", first, |_, _| async { Err::<(), _>(Failure::rejected("no")) })
        .without_compensation("it does nothing");
    let saga = saga.build(()).unwrap();
    let orchestrator = patient(&store).register(&saga).start().await.unwrap();
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    let outcome = handle.settled().await.unwrap();
    assert!(
        matches!(&outcome, Outcome::Held { phase: Some(Phase::Stuck), why } if why == "first: no"),
        "{outcome:?}"
    );
    let entries = orchestrator.load("s").await.unwrap().unwrap().entries.len();
    tokio::time::sleep(Duration::from_secs(3_000)).await;
    assert_eq!(
        orchestrator.load("s").await.unwrap().unwrap().entries.len(),
        entries,
        "trying on records nothing"
    );
    let order = mainstay::saga::Order::Undone { step: "first".to_owned(), reason: "by hand".to_owned() };
    orchestrator.order("s", "alice", order).await.unwrap();
    assert!(matches!(handle.finished().await.unwrap(), Outcome::Compensated(_)));
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_verified_is_asked_and_not_repeated() {
    let store = Memory::new();
    let log = Log::default();
    let (act, ask) = (log.clone(), log.clone());
    let mut saga = Saga::define::<u32>("verify", 1);
    let first = saga
        .step("first", (), move |_, ()| {
            act.add("sent");
            async { Err::<u32, _>(Failure::unknown("lost")) }
        })
        .verify(move |_, ()| {
            ask.add("asked");
            async { Ok(Verified::Applied(7)) }
        })
        .compensate(|_, (), _| async { Ok(()) });
    let saga = saga.build(first).unwrap();
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    assert_eq!(orchestrator.run(&saga, "v", &1).await.unwrap(), Outcome::Completed(7));
    assert_eq!(log.lines(), ["sent", "asked"]);
}

#[tokio::test(start_paused = true)]
async fn a_parked_step_waits_for_a_person_and_may_then_be_sent_again() {
    let store = Memory::new();
    let log = Log::default();
    let act = log.clone();
    let mut saga = Saga::define::<u32>("park", 1);
    let first = saga
        .step("first", (), move |_, ()| {
            act.add("sent");
            let first = act.lines().len() == 1;
            async move { if first { Err(Failure::unknown("lost")) } else { Ok(7_u32) } }
        })
        .on_unknown(Unknown::Park)
        .compensate(|_, (), _| async { Ok(()) });
    let saga = saga.build(first).unwrap();
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    let held = orchestrator.run(&saga, "p", &1).await.unwrap();
    assert!(matches!(held, Outcome::Held { phase: Some(Phase::Parked), .. }), "{held:?}");
    orchestrator.order("p", "alice", mainstay::saga::Order::Retry { step: None }).await.unwrap();
    let handle = orchestrator.handle(&saga, "p").unwrap();
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(7));
    assert_eq!(log.lines(), ["sent", "sent"]);
}

#[tokio::test(start_paused = true)]
async fn branches_run_side_by_side_and_are_undone_in_reverse() {
    let store = Memory::new();
    let log = Log::default();
    let mut saga = Saga::define::<u32>("branches", 1);
    let mut branches = Vec::new();
    for name in ["flight", "hotel", "car"] {
        let (act, undo) = (log.clone(), log.clone());
        branches.push(
            saga.step(name, (), move |_, ()| {
                let act = act.clone();
                async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    act.add(name);
                    if name == "car" {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        return Err(Failure::rejected("none left"));
                    }
                    Ok(name.to_owned())
                }
            })
            .compensate(move |_, (), output: Option<String>| {
                undo.add(format!("undo {output:?}"));
                async { Ok(()) }
            }),
        );
    }
    let saga = saga.build((branches[0], branches[1], branches[2])).unwrap();
    let began = tokio::time::Instant::now();
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    let outcome = orchestrator.run(&saga, "b", &1).await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated(Cause::Rejected { .. })), "{outcome:?}");
    assert!(began.elapsed() < Duration::from_secs(3), "side by side");
    let mut lines = log.lines();
    assert_eq!(lines.len(), 5, "{lines:?}");
    lines.drain(..3);
    lines.sort();
    assert_eq!(lines, ["undo Some(\"flight\")", "undo Some(\"hotel\")"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_of_a_saga_that_nobody_works_on_comes_before_what_is_due() {
    let store = Memory::new();
    let log = Log::default();
    let (act, undo) = (log.clone(), log.clone());
    let mut saga = Saga::define::<u32>("asked", 1);
    let first = saga.step("first", (), |_, ()| async { Ok(1_u32) }).compensate(move |_, (), _| {
        undo.add("undo");
        async { Err(Failure::unknown("no")) }
    });
    let slept = saga.sleep("sleep", first, Duration::from_secs(60));
    saga.step("second", slept, move |_, ()| {
        act.add("second");
        async { Ok(()) }
    })
    .without_compensation("it is never sent");
    let saga = saga.build(()).unwrap();
    let order = |order| Request::order(mainstay::saga::SagaId::new("a").unwrap(), "ada", order);
    let start =
        async || Orchestrator::open(store.clone()).register(&saga).stuck_retry(None).start().await.unwrap();
    let orchestrator = start().await;
    orchestrator.start(&saga, "a", &1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    orchestrator.shutdown(Duration::from_secs(1)).await;

    store.request(order(mainstay::saga::Order::Cancel { reason: "late".to_owned() })).await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    let orchestrator = start().await;
    let held = orchestrator.handle(&saga, "a").unwrap().settled().await.unwrap();
    assert!(matches!(held, Outcome::Held { phase: Some(Phase::Stuck), .. }), "{held:?}");
    assert_eq!(log.lines(), ["undo"; 10], "its time had come, but it was cancelled before");
    orchestrator.shutdown(Duration::from_secs(1)).await;

    let undone = mainstay::saga::Order::Undone { step: "first".to_owned(), reason: "by hand".to_owned() };
    store.request(order(undone)).await.unwrap();
    let orchestrator = start().await;
    let ended = orchestrator.handle(&saga, "a").unwrap().finished().await.unwrap();
    assert!(matches!(ended, Outcome::Compensated(Cause::Cancelled { .. })), "{ended:?}");
    assert_eq!(log.lines().len(), 10, "what was undone by hand is not tried again first");
}

/// The first of ten fruitless attempts, and then again and again: nothing of that is recorded, nothing grows.
#[tokio::test(start_paused = true)]
async fn a_compensation_that_fails_ten_thousand_times_records_one_thing() {
    let store = Memory::new();
    let attempts = Arc::new(AtomicU32::new(0));
    let counted = attempts.clone();
    let mut saga = Saga::define::<u32>("hopeless", 1);
    let first = saga.step("first", (), |_, ()| async { Ok(1_u32) }).compensate(move |_, (), _| {
        counted.fetch_add(1, Relaxed);
        async { Err(Failure::unknown("no")) }
    });
    saga.step("second", first, |_, _| async { Err::<(), _>(Failure::rejected("no")) })
        .without_compensation("it does nothing");
    let saga = saga.build(()).unwrap();
    let opening = patient(&store).stuck_retry(Some(Duration::from_secs(30)));
    let orchestrator = opening.register(&saga).start().await.unwrap();
    let handle = orchestrator.start(&saga, "h", &1).await.unwrap();
    handle.settled().await.unwrap();
    let before = orchestrator.load("h").await.unwrap().unwrap().entries.len();
    while attempts.load(Relaxed) < 10_000 {
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    let stored = orchestrator.load("h").await.unwrap().unwrap();
    assert_eq!(stored.entries.len(), before, "{:?}", stored.entries);
    assert_eq!(stored.head.phase, Phase::Stuck);
    assert!(orchestrator.live() <= 1);
}

#[tokio::test(start_paused = true)]
async fn a_status_is_told_while_the_store_stalls() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("stalled", 1);
    let first = saga.step("first", (), |_, ()| async { Ok(1_u32) }).without_compensation("a test");
    saga.step("second", first, |_, _| async { Ok(2_u32) }).without_compensation("a test");
    let saga = saga.build(()).unwrap();
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    // The beginning goes through, the next one hangs for five seconds.
    store.fault(Operation::Append, 2, Fault::Stall(Duration::from_secs(5)));
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let asked = tokio::time::Instant::now();
    assert_eq!(handle.status().await.unwrap().phase, Some(Phase::Running));
    assert!(asked.elapsed() <= Duration::from_millis(100), "{:?}", asked.elapsed());
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(()));
    assert!(asked.elapsed() >= Duration::from_secs(4), "the store has stalled");
}

/// Whoever waits for a saga may stop at any point; the saga does not notice.
#[tokio::test(start_paused = true)]
async fn a_start_that_is_dropped_at_any_await_point_leaves_nothing_behind() {
    for polls in 0..12 {
        let (store, log) = (Memory::new(), Log::default());
        let saga = order_saga(&log, |_| Ok(1));
        let orchestrator = orchestrator(&store, &saga).await;
        let input = Order { amount: 5 };
        {
            let mut running = std::pin::pin!(orchestrator.run(&saga, "o-1", &input));
            for _ in 0..polls {
                let polled =
                    std::future::poll_fn(|cx| std::task::Poll::Ready(running.as_mut().poll(cx))).await;
                if polled.is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        // Whatever became of it: the same saga can be started, and runs once.
        let outcome = orchestrator.run(&saga, "o-1", &input).await.unwrap();
        assert_eq!(outcome, Outcome::Completed("5/1".to_owned()), "dropped after {polls} polls");
        assert_eq!(log.lines().len(), 4, "dropped after {polls} polls: {:?}", log.lines());
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(orchestrator.live(), 0, "dropped after {polls} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_definition_within_another_is_given_an_output_or_the_input_of_the_whole() {
    let log = Log::default();
    let part = || {
        let (act, undo) = (log.clone(), log.clone());
        let mut part = Saga::define::<u32>("part", 1);
        let double = part.step("double", (), move |step: Step<u32>, ()| {
            act.add(format!("{} of {}", step.key().step(), step.input()));
            async move { Ok(2 * step.input()) }
        });
        let double = double.compensate(move |step, (), output| {
            undo.add(format!("undo {} of {}: {output:?}", step.key().step(), step.input()));
            async { Ok(()) }
        });
        let end = part.step("end", double, async |_: Step<u32>, double: u32| Ok(double + 1));
        let end = end.without_compensation("it only adds");
        part.build(end).unwrap()
    };
    let mut middle = Saga::define::<u32>("middle", 1);
    let inner = middle.nested_alike("inner", (), &part());
    let middle = middle.build(inner).unwrap();

    let mut saga = Saga::define::<u32>("whole", 1);
    let first = saga.step("first", (), async |_: Step<u32>, ()| Ok(100_u32));
    let first = first.without_compensation("it is a number");
    let own = saga.nested_alike("own", first, &middle);
    let given = saga.nested("given", first, &middle);
    let last = saga.step("last", (own, given), async |step: Step<u32>, (own, given): (u32, u32)| {
        if *step.input() == 9 { Err(Failure::rejected("no")) } else { Ok((own, given)) }
    });
    let last = last.without_compensation("it only says");
    let saga = saga.build(last).unwrap();

    let store = Memory::new();
    let orchestrator = Orchestrator::open(store).register(&saga).start().await.unwrap();
    // 2 * 7 + 1 of what the saga was given, 2 * 100 + 1 of what the first step said.
    assert_eq!(orchestrator.run(&saga, "s", &7).await.unwrap(), Outcome::Completed((15, 201)));
    let mut calls = log.lines();
    calls.sort();
    assert_eq!(calls, ["given/inner/double of 100", "own/inner/double of 7"]);
    assert!(matches!(orchestrator.run(&saga, "t", &9).await.unwrap(), Outcome::Compensated(_)));
    let mut undone = log.lines();
    undone.retain(|line| line.starts_with("undo"));
    undone.sort();
    let expected = ["undo given/inner/double of 100: Some(200)", "undo own/inner/double of 9: Some(18)"];
    assert_eq!(undone, expected);
}
