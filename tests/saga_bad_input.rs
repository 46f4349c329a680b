//! What an orchestrator refuses, and that nothing comes of it: too large, not to be read again, unknown, begun twice, of another definition.
#![cfg(feature = "saga")]
#![allow(missing_docs)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::saga::{
    AskError, Cause, Failure, OpenError, Orchestrator, Order, Outcome, Output, Payload, Phase, Saga, SagaId,
    StartError, Unknown, Verified, journal::Query, memory::Memory,
};
use serde::{Deserialize, Serialize};

/// One step that answers with so many bytes as it is given, and counts what was done and undone.
fn echo(version: u32, effects: &Arc<AtomicU32>) -> Saga<String, Output<String>> {
    let (act, undo) = (effects.clone(), effects.clone());
    let mut saga = Saga::define::<String>("echo", version);
    let said = saga
        .step("say", (), move |step, ()| {
            act.fetch_add(1, SeqCst);
            async move { Ok::<String, Failure>(step.input().repeat(2)) }
        })
        .compensate(move |_, (), output| {
            assert_eq!(output, None, "an output that is too large is not known");
            undo.fetch_sub(1, SeqCst);
            async { Ok(()) }
        });
    saga.build(said).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_input_that_is_too_large_is_refused_before_anything_is_stored() {
    let (store, effects) = (Memory::new(), Arc::new(AtomicU32::new(0)));
    let saga = echo(1, &effects);
    let orchestrator = Orchestrator::open(store.clone()).max_input(10).register(&saga).start().await.unwrap();
    let refused = orchestrator.start(&saga, "s", &"123456789".to_owned()).await.unwrap_err();
    assert!(matches!(refused, StartError::Input(_)), "{refused:?}");
    assert_eq!(refused.to_string(), "the input is not possible: it has 11 bytes of JSON, allowed are 10");
    assert_eq!(store.stored(&SagaId::new("s").unwrap()), None);
    // As large as is allowed is not too large.
    orchestrator.run(&saga, "s", &"12345678".to_owned()).await.unwrap();
    assert_eq!(effects.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn an_output_that_is_too_large_is_an_unknown_outcome_and_is_undone() {
    let (store, effects) = (Memory::new(), Arc::new(AtomicU32::new(0)));
    let saga = echo(1, &effects);
    let orchestrator = Orchestrator::open(store).max_output(10).register(&saga).start().await.unwrap();
    let outcome = orchestrator.run(&saga, "s", &"12345".to_owned()).await.unwrap();
    let Outcome::Compensated(Cause::Unknown { step, error }) = outcome else { panic!("{outcome:?}") };
    assert_eq!((&*step, &*error), ("say", "its output has 12 bytes, allowed are 10"));
    assert_eq!(effects.load(SeqCst), 0, "done once, and undone");
}

/// Has a JSON whatever it is, which cannot always be read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Amount {
    value: f64,
    #[serde(skip_serializing_if = "String::is_empty")]
    unit: String,
}

fn amount(value: f64, unit: &str) -> Amount {
    Amount { value, unit: unit.to_owned() }
}

/// What is written and cannot be read, each with what is said of it.
fn unreadable() -> [(Amount, &'static str); 2] {
    let null = "invalid type: null, expected f64 at line 1 column 13";
    [(amount(f64::NAN, "EUR"), null), (amount(1.0, ""), "missing field `unit` at line 1 column 13")]
}

#[tokio::test(start_paused = true)]
async fn an_input_that_cannot_be_read_again_is_refused_before_anything_is_stored() {
    let store = Memory::new();
    let mut saga = Saga::define::<Amount>("pay", 1);
    let paid = saga.step("pay", (), |step, ()| async move { Ok(step.input().value) });
    let paid = paid.without_compensation("a test");
    let saga = saga.build(paid).unwrap();
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    for (input, why) in unreadable() {
        let refused = orchestrator.start(&saga, "s", &input).await.unwrap_err();
        assert!(matches!(refused, StartError::Input(_)), "{refused:?}");
        let expected = format!("the input is not possible: it cannot be read again: {why}");
        assert_eq!(refused.to_string(), expected);
        assert_eq!(store.stored(&SagaId::new("s").unwrap()), None);
    }
    // The id was not used up.
    let outcome = orchestrator.run(&saga, "s", &amount(1.5, "EUR")).await.unwrap();
    assert_eq!(outcome, Outcome::Completed(1.5));
}

#[tokio::test(start_paused = true)]
async fn an_output_that_cannot_be_read_again_is_an_unknown_outcome_and_is_undone() {
    for (output, why) in unreadable() {
        let effects = Arc::new(AtomicU32::new(0));
        let (act, undo, calls) = (effects.clone(), effects.clone(), Arc::new(AtomicU32::new(0)));
        let called = calls.clone();
        let mut saga = Saga::define::<u32>("charge", 1);
        let charged = saga
            .step("charge", (), move |_, ()| {
                called.fetch_add(1, SeqCst);
                act.fetch_add(1, SeqCst);
                let output = output.clone();
                async move { Ok(output) }
            })
            .compensate(move |_, (), output| {
                assert_eq!(output, None, "an output that cannot be read is not known");
                undo.fetch_sub(1, SeqCst);
                async { Ok(()) }
            });
        let shipped = saga.step("ship", charged, |_, _| async { Ok(()) }).without_compensation("a test");
        let saga = saga.build(shipped).unwrap();
        let orchestrator = Orchestrator::open(Memory::new()).register(&saga).start().await.unwrap();
        let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
        let Outcome::Compensated(cause) = outcome else { panic!("{outcome:?}") };
        let expected = format!("the outcome of charge is unknown: its output cannot be read again: {why}");
        assert_eq!(cause.to_string(), expected);
        assert_eq!((calls.load(SeqCst), effects.load(SeqCst)), (1, 0), "done once, and undone");
    }
}

#[tokio::test(start_paused = true)]
async fn behind_the_pivot_an_output_that_cannot_be_read_again_is_stuck_until_one_can() {
    let calls = Arc::new(AtomicU32::new(0));
    let mut saga = Saga::define::<u32>("pay", 1);
    let pivot = saga.pivot("sign", (), |_, ()| async { Ok(()) }).add();
    let paid = saga
        .retriable("pay", pivot, move |_, ()| {
            let value = if calls.fetch_add(1, SeqCst) == 0 { f64::INFINITY } else { 2.5 };
            async move { Ok(value) }
        })
        .add();
    let saga = saga.build(paid).unwrap();
    let orchestrator = Orchestrator::open(Memory::new()).register(&saga).start().await.unwrap();
    let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
    let Outcome::Held { phase: Some(Phase::Stuck), why } = outcome else { panic!("{outcome:?}") };
    assert!(why.starts_with("pay: its output cannot be read again: invalid type: null"), "{why}");
    let handle = orchestrator.handle(&saga, "s").unwrap();
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(2.5));
}

/// What a participant answers that is asked, and what a person says, is read as what the action has said.
#[tokio::test(start_paused = true)]
async fn an_output_that_somebody_else_knows_has_to_be_one_that_can_be_read_again() {
    for (told, why) in [
        (amount(f64::NAN, "EUR"), "its output cannot be read again: invalid type: null"),
        (amount(1.0, &"x".repeat(100)), "its output has 123 bytes, allowed are 50"),
    ] {
        let mut saga = Saga::define::<u32>("pay", 1);
        let paid = saga
            .pivot("pay", (), |_, ()| async { Err::<Amount, _>(Failure::unknown("no answer")) })
            .verify(move |_, ()| {
                let told = told.clone();
                async move { Ok(Verified::Applied(told)) }
            })
            .add();
        let saga = saga.build(paid).unwrap();
        let opening = Orchestrator::open(Memory::new()).max_output(50).register(&saga);
        let orchestrator = opening.start().await.unwrap();
        let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
        let Outcome::Held { phase: Some(Phase::Parked), why: said } = outcome else { panic!("{outcome:?}") };
        assert!(said.contains(why), "{said}");
        let handle = orchestrator.handle(&saga, "s").unwrap();
        for (output, value) in [(amount(f64::NAN, "EUR"), None), (amount(2.5, "EUR"), Some(2.5))] {
            let output = Payload::encode(&output).unwrap();
            handle.order("ada", Order::Complete { step: "pay".to_owned(), output }).await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
            let outcome = handle.settled().await.unwrap();
            assert_eq!(outcome.completed().map(|amount| amount.value), value);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_repeated_and_has_an_output_that_cannot_be_read_again_waits_for_a_person() {
    let mut saga = Saga::define::<u32>("pay", 1);
    let paid = saga.step("pay", (), |_, ()| async { Ok(f64::NAN) }).on_unknown(Unknown::Park);
    let paid = paid.without_compensation("a test");
    let saga = saga.build(paid).unwrap();
    let orchestrator = Orchestrator::open(Memory::new()).register(&saga).start().await.unwrap();
    let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
    let Outcome::Held { phase: Some(Phase::Parked), why } = outcome else { panic!("{outcome:?}") };
    assert!(why.starts_with("pay: its output cannot be read again: invalid type: null"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_is_not_registered_starts_nothing() {
    let (store, effects) = (Memory::new(), Arc::default());
    let (old, new) = (echo(1, &effects), echo(2, &effects));
    let orchestrator = Orchestrator::open(store.clone()).register(&old).start().await.unwrap();
    let refused = orchestrator.start(&new, "s", &"a".to_owned()).await.unwrap_err();
    assert!(matches!(&refused, StartError::Unregistered(id) if id.version == 2), "{refused:?}");
    assert_eq!(store.stored(&SagaId::new("s").unwrap()), None);
}

#[tokio::test(start_paused = true)]
async fn two_definitions_with_one_name_and_version_do_not_open() {
    let one = echo(1, &Arc::default());
    let mut other = Saga::define::<String>("echo", 1);
    other.sleep("pause", (), Duration::from_secs(1));
    let other = other.build(()).unwrap();
    let opening = Orchestrator::open(Memory::new()).register(&one).register(&other);
    let error = opening.start().await.unwrap_err();
    assert_eq!(error, OpenError::Twice { name: "echo".to_owned(), version: 1 });
    // The same one twice is no mistake.
    Orchestrator::open(Memory::new()).register(&one).register(&one.clone()).start().await.unwrap();
}

/// A deploy that has lost a definition, and one that has changed it under its version: the saga is named and left alone, others go on,
/// and the old code finishes it.
#[tokio::test(start_paused = true)]
async fn a_saga_whose_definition_is_missing_or_changed_waits_for_the_code_that_knows_it() {
    let store = Memory::new();
    let define = |steps: &[&str]| {
        let mut saga = Saga::define::<u32>("job", 1);
        let pause = saga.sleep("pause", (), Duration::from_secs(60));
        for step in steps {
            saga.retriable(step, pause, |_, ()| async { Ok(()) }).add();
        }
        saga.build(()).unwrap()
    };
    let (old, changed) = (define(&["work"]), define(&["work", "more"]));
    let first = Orchestrator::open(store.clone()).register(&old).start().await.unwrap();
    first.start(&old, "left", &1).await.unwrap();
    first.shutdown(Duration::from_secs(1)).await;
    let before = store.stored(&SagaId::new("left").unwrap()).unwrap();

    let echo = echo(1, &Arc::default());
    for known in [None, Some(&changed)] {
        let opening = Orchestrator::open(store.connect()).register(&echo);
        let opening = match known {
            Some(changed) => opening.register(changed),
            None => opening,
        };
        let deployed = opening.start().await.unwrap();
        deployed.recovered().await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        let blocked = deployed.blocked().await.unwrap();
        assert_eq!(blocked.len(), 1, "{blocked:?}");
        assert!(blocked[0].0.as_str() == "left" && blocked[0].1.contains("is not registered"), "{blocked:?}");
        let id = format!("other {}", known.is_some());
        deployed.run(&echo, &id, &"a".to_owned()).await.unwrap();
        deployed.shutdown(Duration::from_secs(1)).await;
        assert_eq!(store.stored(&SagaId::new("left").unwrap()).unwrap(), before, "it is as it was found");
    }

    let back = Orchestrator::open(store.connect()).register(&old).start().await.unwrap();
    let outcome = back.handle(&old, "left").unwrap().finished().await.unwrap();
    assert_eq!(outcome, Outcome::Completed(()));
    assert_eq!(back.list(Query { limit: 10, ..Query::default() }).await.unwrap().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_with_another_input_is_not_begun_again_and_an_unknown_id_is_said_to_be_so() {
    let (store, effects) = (Memory::new(), Arc::new(AtomicU32::new(0)));
    let saga = echo(1, &effects);
    let orchestrator = Orchestrator::open(store).register(&saga).start().await.unwrap();
    let first = orchestrator.run(&saga, "s", &"a".to_owned()).await.unwrap();
    assert_eq!(orchestrator.run(&saga, "s", &"a".to_owned()).await.unwrap(), first);
    let refused = orchestrator.run(&saga, "s", &"b".to_owned()).await.unwrap_err();
    assert!(matches!(&refused, StartError::Different { id } if id.as_str() == "s"), "{refused:?}");
    assert_eq!(effects.load(SeqCst), 1);
    let unknown = orchestrator.handle(&saga, "nobody").unwrap().status().await.unwrap_err();
    assert!(matches!(&unknown, AskError::Missing(id) if id.as_str() == "nobody"), "{unknown:?}");
    assert_eq!(orchestrator.status("nobody").await.unwrap(), None);
}
