//! The test kit, on sagas that hold and on planted bugs that it has to find.
#![cfg(feature = "saga")]

use std::{future::pending, time::Duration};

use mainstay::{
    saga::{Failure, Output, Saga, Step, Unknown},
    testing::{self, Bug, Case, Check, Fault, Flaw, Ledger, Skew},
};

/// An order: two steps that can be undone, a pivot, and one that has to succeed.
fn order(ledger: &Ledger) -> Saga<u32, Output<u64>> {
    let mut saga = Saga::define::<u32>("order", 1);
    let created = undoable(&mut saga, ledger, "create", ());
    let charged = undoable(&mut saga, ledger, "charge", created);
    let (confirm, send) = (ledger.clone(), ledger.clone());
    let confirmed = saga
        .pivot("confirm", charged, move |step: Step<u32>, _| {
            let done = confirm.action(step.key(), || 3);
            async move { done }
        })
        .add();
    saga.retriable("send", confirmed, move |step: Step<u32>, _| {
        let done = send.action(step.key(), || 4_u64);
        async move { done }
    })
    .add();
    saga.build(confirmed).unwrap()
}

fn undoable<D: mainstay::saga::Inputs>(
    saga: &mut mainstay::saga::Builder<u32>,
    ledger: &Ledger,
    name: &str,
    behind: D,
) -> Output<u64> {
    let (act, undo) = (ledger.clone(), ledger.clone());
    saga.step(name, behind, move |step: Step<u32>, _| {
        let done = act.action(step.key(), || 1);
        async move { done }
    })
    .compensate(move |step, _, _| {
        let _ = undo.undo(step.key());
        async { Ok(()) }
    })
}

/// Two branches and what follows from both.
fn branches(ledger: &Ledger) -> Saga<u32, Output<u64>> {
    let mut saga = Saga::define::<u32>("branches", 1);
    let flight = undoable(&mut saga, ledger, "flight", ());
    let hotel = undoable(&mut saga, ledger, "hotel", ());
    let both = undoable(&mut saga, ledger, "both", (flight, hotel));
    saga.build(both).unwrap()
}

/// A step of each kind that is sent only once.
fn once(ledger: &Ledger, unknown: Unknown) -> Saga<u32, Output<u64>> {
    let mut saga = Saga::define::<u32>("once", 1);
    let first = undoable(&mut saga, ledger, "first", ());
    let (act, ask, undo) = (ledger.clone(), ledger.clone(), ledger.clone());
    let step = saga.step("once", first, move |step: Step<u32>, _| {
        let done = act.action(step.key(), || 1);
        async move { done }
    });
    let step = match unknown {
        Unknown::Verify => step.verify(move |step, _| {
            let known = ask.verify(step.key());
            async move { Ok(known) }
        }),
        other => step.on_unknown(other),
    };
    let second = step.compensate(move |step, _, _| {
        let _ = undo.undo(step.key());
        async { Ok(()) }
    });
    let other = undoable(&mut saga, ledger, "beside", first);
    let last = undoable(&mut saga, ledger, "last", (second, other));
    saga.build(last).unwrap()
}

/// A pivot that is asked, behind a step that can be undone.
fn asked(ledger: &Ledger) -> Saga<u32, Output<u64>> {
    let mut saga = Saga::define::<u32>("asked", 1);
    let created = undoable(&mut saga, ledger, "create", ());
    let (act, ask) = (ledger.clone(), ledger.clone());
    let confirmed = saga
        .pivot("once", created, move |step: Step<u32>, _| {
            let done = act.action(step.key(), || 3);
            async move { done }
        })
        .verify(move |step, _| {
            let known = ask.verify(step.key());
            async move { Ok(known) }
        })
        .add();
    saga.build(confirmed).unwrap()
}

async fn holds<I, R>(check: Check<I, R>) -> usize
where
    I: serde::Serialize + serde::de::DeserializeOwned + Send + Sync + 'static,
    R: mainstay::saga::Inputs,
{
    match check.all().await {
        Ok(summary) => summary.cases,
        Err(failed) => panic!("{failed}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_with_every_class_holds_in_every_case() {
    let cases = holds(Check::new(1, order)).await;
    println!("{cases} cases");
    assert!(cases > 1_000, "{cases}");
}

#[tokio::test(start_paused = true)]
async fn branches_hold_in_every_case_whichever_answers_first() {
    for skew in [Skew::Even, Skew::Ascending, Skew::Descending] {
        println!("{} cases", holds(Check::new(1, branches).skew(skew)).await);
    }
}

#[tokio::test(start_paused = true)]
async fn steps_that_are_sent_once_hold_in_every_case() {
    for unknown in [Unknown::Verify, Unknown::Compensate, Unknown::Park] {
        println!("{} cases", holds(Check::new(1, move |ledger: &Ledger| once(ledger, unknown))).await);
    }
    println!("{} cases", holds(Check::new(1, asked)).await);
}

/// The first request is on its way when its participant is asked; orders come at every place.
#[tokio::test(start_paused = true)]
async fn what_may_be_sent_again_may_still_arrive() {
    let late = Case(vec![Fault::Late("once".to_owned())]);
    for build in [asked, |ledger: &Ledger| once(ledger, Unknown::Verify)] {
        let (check, planted) = (Check::new(1, build), Check::new(1, build).plant(Bug::ResendIsClean));
        let seen = check.run(&late).await.unwrap_or_else(|failed| panic!("{failed}"));
        let mut found = 0;
        for case in testing::orders_in(&seen) {
            check.run(&case).await.unwrap_or_else(|failed| panic!("{failed}"));
            if let Err(failed) = planted.run(&case).await {
                found += usize::from(failed.violations.iter().any(|violation| violation.invariant == "I2"));
            }
        }
        assert!(found > 0, "nobody notices that what was sent is forgotten");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_that_does_not_come_fails_the_case() {
    let check = Check::new(1, branches);
    for text in ["reject(nobody)", "crash(append:99:after)", "crash(undo:flight:0:before)"] {
        let failed = check.replay(text).await.expect_err(text);
        assert_eq!(failed.unfired, text.parse::<Case>().unwrap().0, "{failed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_case_is_replayed_exactly() {
    let check = Check::new(1, branches);
    let name = "reject(both)+crash(undo:hotel:0:after)";
    let (first, second) = (check.replay(name).await.unwrap(), check.replay(name).await.unwrap());
    // The checksums depend on who wrote, which is drawn anew each time.
    let calls = |seen: &testing::Seen| {
        let calls = seen.calls.iter();
        calls.map(|call| (call.step.clone(), call.what, call.began, call.ended)).collect::<Vec<_>>()
    };
    assert_eq!(calls(&first), calls(&second));
    assert_eq!(first.places, second.places);
}

#[tokio::test(start_paused = true)]
async fn ones_own_expectation_is_asked_in_every_case() {
    let check = Check::new(1, branches).expect(|seen| match seen.case.0.first() {
        Some(Fault::Reject(_)) => Err("not so".to_owned()),
        _ => Ok(()),
    });
    let failed = check.all().await.unwrap_err();
    assert_eq!(failed.problem.as_deref(), Some("not so"));
}

#[tokio::test(start_paused = true)]
async fn a_step_without_a_barrier_is_found() {
    // Its compensation undoes what may never have happened, and its action happens as often as it arrives.
    let build = |ledger: &Ledger| {
        let _unused = ledger;
        let mut saga = Saga::define::<u32>("bare", 1);
        let sum = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(0));
        let (act, undo) = (sum.clone(), sum);
        let done = saga
            .step("bare", (), move |_, ()| {
                act.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                async { Ok::<u64, Failure>(1) }
            })
            .compensate(move |_, (), _| {
                let left = undo.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) - 1;
                async move { if left == 0 { Ok(()) } else { Err(Failure::unknown(left)) } }
            });
        saga.build(done).unwrap()
    };
    // Stuck is visible, so the invariants hold; the one who uses the kit says what he wants.
    let check = Check::new(1, build).expect(|seen| match seen.phase {
        Some(phase) if phase.is_terminal() => Ok(()),
        phase => Err(format!("{phase:?}")),
    });
    assert!(check.all().await.is_err());
}

/// Its second step has its effect, and then never ends.
fn hangs(ledger: &Ledger, within: Option<Duration>) -> Saga<u32, Output<u64>> {
    let mut saga = Saga::define::<u32>("hangs", 1);
    let created = undoable(&mut saga, ledger, "create", ());
    let (act, undo) = (ledger.clone(), ledger.clone());
    let mut charged = saga.step("charge", created, move |step: Step<u32>, _| {
        let _ = act.act(step.key(), || 1_u64);
        pending::<Result<u64, Failure>>()
    });
    if let Some(time) = within {
        charged = charged.within(time);
    }
    let charged = charged.compensate(move |step, _, _| {
        let _ = undo.undo(step.key());
        async { Ok(()) }
    });
    saga.build(charged).unwrap()
}

/// By a timer a runtime that has nothing else to wait for goes on, on a paused clock.
async fn ends<T>(checked: impl Future<Output = T>) -> T {
    let years = Duration::from_secs(10 * 365 * 24 * 3_600);
    tokio::time::timeout(years, checked).await.expect("it is waited for what never ends")
}

#[tokio::test(start_paused = true)]
async fn a_step_that_never_ends_holds_in_every_case() {
    for within in [None, Some(Duration::from_secs(3))] {
        println!("{} cases", ends(holds(Check::new(1, move |ledger: &Ledger| hangs(ledger, within)))).await);
    }
}

/// It arrives behind its compensation, is never answered, and has done something nevertheless.
#[tokio::test(start_paused = true)]
async fn what_a_late_request_did_before_it_hung_counts() {
    let late = Case(vec![Fault::Late("charge".to_owned())]);
    let check = Check::new(1, |ledger: &Ledger| hangs(ledger, None));
    let seen = ends(check.run(&late)).await.unwrap_or_else(|failed| panic!("{failed}"));
    let arrived: Vec<_> = seen.calls.iter().filter(|call| call.redelivered).collect();
    assert!(!arrived.is_empty() && arrived.iter().all(|call| call.step == "charge" && call.ended.is_none()));

    let failed = ends(check.plant(Bug::Barrier(Flaw::LateAction)).run(&late)).await.unwrap_err();
    assert!(failed.violations.iter().any(|violation| violation.invariant == "I2"), "{failed}");
}

/// Each planted bug is found, by the invariant that it breaks.
#[tokio::test(start_paused = true)]
async fn every_planted_bug_is_found() {
    for (bug, invariants) in [
        (Bug::SkipCompensation, &["I2"][..]),
        (Bug::ForwardAfterAbort, &["I3"]),
        (Bug::KeyOfAttempt, &["I5"]),
        (Bug::NoFence, &["I6"]),
        (Bug::AcknowledgeBeforeSync, &["I4", "I7"]),
        (Bug::ClaimHeld, &["I1"]),
        (Bug::ClaimCached, &["I1"]),
        (Bug::ClaimUnsynced, &["I6"]),
        (Bug::Barrier(Flaw::EmptyRollback), &["I2"]),
        (Bug::Barrier(Flaw::LateAction), &["I2"]),
        (Bug::Barrier(Flaw::Duplicates), &["I2"]),
    ] {
        let failed = Check::new(1, branches).plant(bug).all().await.expect_err(&format!("{bug:?}"));
        println!("{bug:?}: {failed}");
        let found = failed.violations.iter().any(|violation| invariants.contains(&violation.invariant));
        assert!(found, "{bug:?} is not seen as what it is: {failed}");
        let again = Check::new(1, branches).plant(bug).replay(&failed.case.to_string()).await;
        let names = |failed: &testing::Failed| -> Vec<_> {
            failed.violations.iter().map(|violation| violation.invariant).collect()
        };
        assert_eq!(names(&again.unwrap_err()), names(&failed), "a failing case is replayed by its name");
    }
}

#[tokio::test(start_paused = true)]
async fn one_line_is_enough() {
    assert!(testing::check(1, branches).await > 500);
}

/// Its step keeps to itself what it has done; its compensation does nothing.
fn nobody_looks(_: &Ledger) -> Saga<u32, Output<u64>> {
    let mut saga = Saga::define::<u32>("unseen", 1);
    let charged = saga
        .step("charge", (), |_, ()| async { Ok::<u64, Failure>(1) })
        .compensate(|_, (), _| async { Ok(()) });
    saga.build(charged).unwrap()
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "in none was it seen what the steps have done")]
async fn one_line_is_not_enough_where_no_effect_is_seen() {
    testing::check(1, nobody_looks).await;
}

#[tokio::test(start_paused = true)]
async fn records_and_calls_are_enough_for_who_says_so() {
    holds(Check::new(1, nobody_looks).expect(|_| Ok(()))).await;
}

/// It is said before anything is waited for.
#[tokio::test]
#[should_panic(expected = "run this with start_paused = true")]
async fn a_clock_that_runs_is_noticed() {
    tokio::select! {
        biased;
        _ = testing::check(1, branches) => {}
        () = std::future::ready(()) => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_cannot_be_left_fails_the_case() {
    let check = Check::new(1, branches).signal("nobody", &1);
    let checked = tokio::time::timeout(Duration::from_secs(3_600), check.replay("happy"));
    let failed = checked.await.expect("it is tried for ever");
    assert!(failed.unwrap_err().problem.is_some_and(|why| why.contains("\"nobody\"")));
}
