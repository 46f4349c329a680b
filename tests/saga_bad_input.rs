//! What an orchestrator refuses, and that nothing comes of it: too large, unknown, begun twice, of another definition.
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
    AskError, Cause, Failure, OpenError, Orchestrator, Outcome, Output, Saga, SagaId, StartError,
    journal::Query, memory::Memory,
};

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
