//! The census at its edges: takeovers, pages, a store that fails half way, sagas that nobody can work on.
#![cfg(feature = "saga")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use mainstay::{
    Event,
    saga::{
        Census, Failure, OpenSagas, Orchestrator, Order, Output, Saga, StoreError,
        memory::{Fault, Memory, Operation},
    },
};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Waits for a message, then does what the message says.
fn asking(version: u32) -> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>("asking", version);
    let answer = saga.signal::<String, _>("answer", (), None);
    let done = saga.retriable("act", answer, |_, answer: Option<String>| async move {
        match answer.as_deref() {
            Some("stick") => Err(Failure::unknown("no")),
            _ => Ok(1_u32),
        }
    });
    let done = done.add();
    if version > 1 {
        saga.retriable("more", done, |_, _| async { Ok(()) }).add();
    }
    saga.build(done).unwrap()
}

/// Its step never ends.
fn endless() -> Saga<u32> {
    let mut saga = Saga::define::<u32>("endless", 1);
    saga.step("wait", (), |_, ()| std::future::pending::<Result<(), Failure>>())
        .without_compensation("nothing is done");
    saga.build(()).unwrap()
}

/// The counts of a definition as `phase count` of those that are not 0, with the blocked ones.
fn counts(census: &Census, definition: &str) -> String {
    let of = |open: &&OpenSagas| open.definition == definition;
    let open = census.definitions.iter().find(of).unwrap_or_else(|| panic!("{definition} is not counted"));
    let phases = open.phases().into_iter().map(|(phase, count)| (phase.as_str(), count));
    let all = phases.chain([("blocked", open.blocked)]).filter(|(_, count)| *count > 0);
    all.map(|(phase, count)| format!("{phase} {count}")).collect::<Vec<_>>().join(", ")
}

fn oldest(census: &Census, definition: &str) -> Duration {
    let open = census.definitions.iter().find(|open| open.definition == definition).unwrap();
    census.age(open)
}

/// Until every orchestrator has counted again.
async fn counted() {
    tokio::time::sleep(seconds(61)).await;
}

#[tokio::test(start_paused = true)]
async fn the_census_is_that_of_the_store_whoever_has_the_sagas() {
    let store = Memory::new();
    let (ask, wait) = (asking(1), endless());
    let open = |store: Memory| Orchestrator::open(store).register(&ask).register(&wait).start();
    let first = open(store.clone()).await.unwrap();
    assert_eq!(first.census(), None, "nothing was counted yet");
    first.recovered().await;
    let none = first.census().unwrap();
    assert_eq!((counts(&none, "asking"), counts(&none, "endless")), (String::new(), String::new()));
    assert_eq!(oldest(&none, "asking"), Duration::ZERO);

    for saga in ["a", "b", "c", "d"] {
        first.start(&ask, saga, &1).await.unwrap();
    }
    tokio::time::sleep(seconds(9)).await;
    first.start(&wait, "w", &1).await.unwrap();
    first.signal("b", "answer", "m", "stick").await.unwrap();
    let second = open(store.connect()).await.unwrap();
    counted().await;
    for orchestrator in [&first, &second] {
        let census = orchestrator.census().unwrap();
        assert_eq!(counts(&census, "asking"), "waiting 3, stuck 1");
        assert_eq!(counts(&census, "endless"), "running 1");
        assert_eq!(census.unregistered, 0);
        let apart = oldest(&census, "asking") - oldest(&census, "endless");
        assert_eq!(apart, seconds(9));
    }

    // A crash changes nothing, and neither does who takes the sagas.
    drop(first);
    counted().await;
    let census = second.census().unwrap();
    assert_eq!(counts(&census, "asking"), "waiting 3, stuck 1");
    assert_eq!(counts(&census, "endless"), "running 1");
    let age = oldest(&census, "asking");

    // What is over is not counted any more, and the gauge goes back to zero.
    for saga in ["a", "c"] {
        second.signal(saga, "answer", "m", "go").await.unwrap();
    }
    counted().await;
    let census = second.census().unwrap();
    assert_eq!(counts(&census, "asking"), "waiting 1, stuck 1");
    assert!(oldest(&census, "asking") > age + seconds(50), "b and d are as old as a was");
    for saga in ["b", "d", "w"] {
        second.order(saga, "me", Order::Abandon { reason: "enough".to_owned() }).await.unwrap();
    }
    counted().await;
    let census = second.census().unwrap();
    assert_eq!((counts(&census, "asking"), counts(&census, "endless")), (String::new(), String::new()));
    assert_eq!(oldest(&census, "asking"), Duration::ZERO);
    // A snapshot can be written.
    let written = serde_json::to_value(&census).unwrap();
    assert_eq!(written["definitions"][0]["waiting"], 0);
}

#[tokio::test(start_paused = true)]
async fn more_than_a_page_is_counted() {
    let saga = asking(1);
    let orchestrator = Orchestrator::open(Memory::new()).register(&saga).start().await.unwrap();
    for at in 0..2_001 {
        orchestrator.start(&saga, &format!("s{at}"), &1).await.unwrap();
    }
    counted().await;
    assert_eq!(counts(&orchestrator.census().unwrap(), "asking"), "waiting 2001");
}

/// A deploy in which the first output is a `T`, and the second step does not end.
fn unreadable<T: serde::Serialize + serde::de::DeserializeOwned + Default + Send + 'static>()
-> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>("unreadable", 1);
    let first = saga.step("first", (), |_, ()| async { Ok(T::default()) });
    let first = first.without_compensation("nothing is done");
    let second = saga.step("second", first, |_, _| std::future::pending::<Result<u32, Failure>>());
    let second = second.without_compensation("nothing is done");
    saga.build(second).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_worked_on_is_counted_apart() {
    let store = Memory::new();
    let (before, blocked, old, new) = (unreadable::<u32>(), unreadable::<String>(), asking(1), asking(2));
    let left = Orchestrator::open(store.connect()).register(&before).start().await.unwrap();
    left.start(&before, "x", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    left.shutdown(seconds(1)).await;
    let first = Orchestrator::open(store.clone()).register(&blocked).register(&old).start().await.unwrap();
    first.start(&old, "y", &1).await.unwrap();
    let second = Orchestrator::open(store.connect()).register(&new).start().await.unwrap();
    counted().await;
    let census = first.census().unwrap();
    assert_eq!(counts(&census, "unreadable"), "running 1, blocked 1");
    assert_eq!((counts(&census, "asking"), census.unregistered), ("waiting 1".to_owned(), 0));
    // Of the other version of its own definition, and of one that it does not know.
    let census = second.census().unwrap();
    assert_eq!((counts(&census, "asking"), census.unregistered), ("waiting 1".to_owned(), 2));
    assert_eq!(census.definitions.len(), 1, "a name that is not registered becomes no label");
}

#[tokio::test(start_paused = true)]
async fn half_a_count_is_not_told() {
    let store = Memory::new();
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let saga = asking(1);
    let log = told.clone();
    let observer = move |event: &Event<'_>| {
        if let Event::SagaCensus { census, .. } = event {
            log.lock().unwrap().push(counts(census, "asking"));
        }
    };
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).observe(observer).start();
    let orchestrator = orchestrator.await.unwrap();
    orchestrator.recovered().await;
    for at in 0..1_001 {
        orchestrator.start(&saga, &format!("s{at}"), &1).await.unwrap();
    }
    tokio::time::sleep(seconds(2)).await;
    store.reset_counts();
    // The second page of the next count; it is counted again in the next round.
    let error = StoreError::Unavailable("planned".to_owned());
    store.fault(Operation::List, 1, Fault::Fail(error));
    counted().await;
    assert_eq!(store.counts().operation(Operation::List), 2 + 3, "the fault has not fired");
    assert_eq!(*told.lock().unwrap(), ["", "waiting 1001"]);
}
