//! Every small saga, every outcome of its steps, and a crash at every place.
//!
//! The part that runs always is bounded. All of it: `MAINSTAY_SWEEP=full cargo test --release --test saga_sweep --features saga -- --ignored
//! --nocapture`. What it found is in `docs/saga-verification.md`.
#![cfg(feature = "saga")]

use mainstay::{
    saga::memory::Operation,
    testing::{Bug, Case, Edge, Fault, Flaw, Loss, Place, Skew, crashes_behind, crashes_in},
};

mod dag;
mod runs;

use dag::{Classes, Dag, Special, name};
use runs::{Count, Depth, nested, over, shapes, specials, sweep};

fn none_failed(count: &Count) {
    assert!(count.failures.is_empty(), "{}\n{}", count.failures.len(), count.failures.join("\n"));
}

#[test]
fn the_shapes_are_all_there() {
    // The number of partial orders that differ in more than names.
    assert_eq!((1..=5).map(|n| Dag::all(n).len()).collect::<Vec<_>>(), [1, 2, 5, 16, 63]);
}

/// Where something can go wrong. What comes again and again while a saga waits for its owner's lease to end is there once.
#[test]
fn the_places_of_a_run_are_those_of_its_saga() {
    let dag = Dag { behind: vec![0], ..Dag::NONE };
    let places = |case: &str| {
        let seen = Count::default().run(&dag.check(Skew::Even, None), &case.parse().unwrap()).unwrap();
        seen.places.iter().map(Place::to_string).collect::<Vec<_>>().join(" ")
    };
    let happy = "heartbeat:0 claim:0 announce:0 append:0 act:a:0 append:1 forget:0 leave:0";
    assert_eq!(places("happy"), happy);
    assert_eq!(
        places("crash(act:a:0:before)"),
        "heartbeat:0 claim:0 announce:0 append:0 act:a:0 \
         heartbeat:1 claim:1 announce:1 append:1 heartbeat:2 claim:2 claim:4 act:a:1 append:2 forget:0 leave:0"
    );
}

#[test]
fn every_small_saga_survives_one_crash_at_every_place() {
    let mut work = shapes(1, 3, Depth::Single, &[Skew::Descending]);
    work.extend(shapes(4, 4, Depth::Saga, &[Skew::Descending]));
    let count = sweep(work);
    none_failed(&count);
    assert!(count.cases > 10_000, "{}", count.cases);
}

#[test]
fn every_tiny_saga_survives_two_crashes() {
    // Two steps in order with every class, and two branches: the rest is in the full run.
    let mut work = shapes(1, 2, Depth::Fifths, &[Skew::Even]);
    work.retain(|(dag, ..)| dag.len() == 1 || dag.classes != Classes::Pivot);
    let count = sweep(work);
    none_failed(&count);
    assert!(count.skipped * 10 < count.cases, "{} of {}", count.skipped, count.cases);
}

/// Steps that are sent once, timers, messages, deadlines and limits. Three steps are in the full run.
#[test]
fn every_special_step_survives_one_crash_at_every_place() {
    let mut work = specials(1, 1, Depth::Single, &[Skew::Descending]);
    work.extend(specials(2, 2, Depth::Saga, &[Skew::Descending]));
    let count = sweep(work);
    none_failed(&count);
    assert!(count.cases > 2_000, "{}", count.cases);
}

/// Definitions within others. Three steps, one of them another definition, are in the full run.
#[test]
fn every_nested_definition_survives_one_crash_at_every_place() {
    let mut work = nested(1, 2, Depth::Saga, &[Skew::Descending]);
    work.retain(|(dag, ..)| dag.len() == 1 || matches!(dag.special, Some((_, Special::Nested))));
    let count = sweep(work);
    none_failed(&count);
    assert!(count.cases > 1_000, "{}", count.cases);
}

#[test]
fn every_order_survives_one_crash_at_every_place_behind_it() {
    let count = over(&Dag::variants(1), |count, dag| count.orders(dag));
    none_failed(&count);
    assert!(count.cases > 200, "{}", count.cases);
}

#[test]
fn the_sweep_finds_planted_bugs() {
    let dag = Dag { behind: vec![0, 1, 1], ..Dag::NONE };
    for bug in [
        Bug::SkipCompensation,
        Bug::ForwardAfterAbort,
        Bug::KeyOfAttempt,
        Bug::AcknowledgeBeforeSync,
        Bug::NoLocks,
        Bug::Barrier(Flaw::EmptyRollback),
        Bug::Barrier(Flaw::LateAction),
    ] {
        let check = dag.check(Skew::Even, Some(bug));
        let mut count = Count::default();
        for base in [Case::default(), Case(vec![Fault::Lose("c".to_owned(), Loss::Error, true)])]
            .into_iter()
            .chain([Case(vec![Fault::Drop("c".to_owned(), true)]), Case(vec![Fault::Late("c".to_owned())])])
        {
            let Some(seen) = count.run(&check, &base) else { continue };
            for crash in crashes_in(&seen) {
                count.run(&check, &crash);
            }
        }
        assert!(!count.failures.is_empty(), "nothing notices {bug:?} in {} runs", count.cases);
    }
}

/// What only shows when the power is cut behind a claim, or in it before it is synced, or in the first call under it.
#[test]
fn crashes_in_claims_find_what_nothing_else_does() {
    let dag = Dag { behind: vec![0], ..Dag::NONE };
    let finds = |bug, found: fn(&Fault) -> bool| {
        let check = dag.check(Skew::Even, Some(bug));
        let (mut count, mut last) = (Count::default(), Vec::new());
        let seen = count.run(&check, &Case::default()).unwrap();
        for crash in crashes_in(&seen) {
            let seen = count.run(&check, &crash).unwrap_or_else(|| panic!("{:?}", count.failures));
            for second in crashes_behind(&seen) {
                if count.run(&check, &second).is_none() {
                    last.extend(second.0.last().cloned());
                }
            }
        }
        assert!(!last.is_empty() && last.iter().all(found), "{bug:?}: {last:?}\n{:?}", count.failures);
    };
    finds(Bug::ClaimHeld, |fault| {
        matches!(fault, Fault::Crash(Place::Store(Operation::Claim, _), Edge::After))
    });
    finds(Bug::ClaimCached, |fault| matches!(fault, Fault::Unsynced(Operation::Claim, _)));
    finds(Bug::ClaimUnsynced, |fault| match fault {
        Fault::Crash(Place::Call(..), _) => true,
        // What the call came to is not written.
        Fault::Crash(Place::Store(operation, _), Edge::Before) => *operation == Operation::Append,
        fault => matches!(fault, Fault::Unsynced(Operation::Append, _)),
    });
}

#[test]
fn the_sweep_finds_planted_bugs_in_special_steps_and_behind_deadlines() {
    let chain = |special, deadline| Dag { behind: vec![0, 1, 3], special, deadline, ..Dag::NONE };
    let limited = Dag { limit: Some((1, 8)), ..chain(None, None) };
    for (dag, bug) in [
        (chain(Some((1, Special::Compensated)), None), Bug::SkipCompensation),
        (chain(Some((1, Special::Verified)), None), Bug::Barrier(Flaw::Duplicates)),
        (chain(Some((1, Special::Timer)), None), Bug::AcknowledgeBeforeSync),
        (chain(Some((1, Special::Signal)), None), Bug::AcknowledgeBeforeSync),
        (chain(None, Some(8)), Bug::ForwardAfterAbort),
        (chain(None, Some(8)), Bug::SkipCompensation),
        (limited.clone(), Bug::ForwardAfterAbort),
        (limited, Bug::SkipCompensation),
    ] {
        let check = dag.check(Skew::Even, Some(bug));
        let mut count = Count::default();
        for base in [Case::default(), Case(vec![Fault::Twice])] {
            let Some(seen) = count.run(&check, &base) else { continue };
            for crash in crashes_in(&seen) {
                count.run(&check, &crash);
            }
        }
        if dag.deadline.is_none() && dag.limit.is_none() {
            count.run(&check, &Case(vec![Fault::Lose(name(2), Loss::Error, true)]));
        }
        assert!(!count.failures.is_empty(), "nothing notices {bug:?} in {dag:?}");
    }
}

/// Single faults up to 6 steps, double ones up to 4.
#[test]
#[ignore = "takes long: see the top of this file"]
fn everything() {
    let wanted = std::env::var("MAINSTAY_SWEEP").unwrap_or_default();
    assert!(!wanted.is_empty(), "MAINSTAY_SWEEP=full, or single:6, double:4, special:3, nested:3, orders:3");
    let skews = [Skew::Even, Skew::Descending];
    let part = |kind: &str, most: usize| {
        for n in 1..=most {
            print!("{kind} faults, {n} steps: ");
            let depth = if kind == "double" { Depth::Double } else { Depth::Single };
            none_failed(&sweep(shapes(n, n, depth, &skews)));
        }
    };
    let special = |most: usize| {
        for n in 1..=most.min(3) {
            print!("special steps, deadlines and limits, {n} steps: ");
            none_failed(&sweep(specials(n, n, Depth::Single, &skews)));
        }
    };
    let nesting = |most: usize| {
        for n in 1..=most.min(3) {
            print!("nested definitions, {n} steps: ");
            none_failed(&sweep(nested(n, n, Depth::Single, &skews)));
        }
    };
    let orders = |most: usize| {
        for n in 1..=most {
            print!("orders, {n} steps: ");
            none_failed(&over(&Dag::variants(n), |count, dag| count.orders(dag)));
        }
    };
    match wanted.split_once(':') {
        Some(("special", most)) => special(most.parse().unwrap()),
        Some(("nested", most)) => nesting(most.parse().unwrap()),
        Some(("orders", most)) => orders(most.parse().unwrap()),
        Some((kind, most)) => part(kind, most.parse().unwrap()),
        None => {
            part("single", 6);
            part("double", 4);
            special(3);
            nesting(3);
            orders(3);
        }
    }
}
