//! One id started twice: when it is the same saga, when it is not, and when nobody can say.
#![cfg(feature = "saga")]
#![allow(missing_docs)]

use std::{collections::HashMap, time::Duration};

use mainstay::saga::{Orchestrator, Outcome, Saga, SagaId, StartError, StartOptions, memory::Memory};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// One step, for an input of any type: two of them are two deploys of one definition.
fn pay<I: DeserializeOwned + Send + 'static>(name: &str) -> Saga<I> {
    let mut saga = Saga::define::<I>(name, 1);
    saga.step("pay", (), |_, ()| async { Ok(1_u32) }).without_compensation("a test");
    saga.build(()).unwrap()
}

fn id() -> SagaId {
    SagaId::new("s").unwrap()
}

/// A store in which the saga `s` was run with this input.
async fn run<I: Serialize + DeserializeOwned + Send + 'static>(input: &I) -> Memory {
    let store = Memory::new();
    let saga = pay::<I>("pay");
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    orchestrator.run(&saga, "s", input).await.unwrap();
    orchestrator.shutdown(Duration::from_secs(1)).await;
    store.connect()
}

/// What another orchestrator says when the saga `s` is started once more, which changes nothing.
async fn again<I>(store: &Memory, name: &str, input: &I) -> Result<(), StartError>
where
    I: Serialize + DeserializeOwned + Send + 'static,
{
    let store = store.connect();
    let before = store.stored(&id()).unwrap();
    let saga = pay::<I>(name);
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    let answer = orchestrator.start(&saga, "s", input).await.map(drop);
    orchestrator.shutdown(Duration::from_secs(1)).await;
    assert_eq!(store.stored(&id()).unwrap().entries, before.entries);
    answer
}

fn is_different(answer: &Result<(), StartError>) -> bool {
    matches!(answer, Err(StartError::Different { id }) if id.as_str() == "s")
}

fn unreadable(answer: Result<(), StartError>) -> String {
    match answer {
        Err(StartError::Unreadable { id, why }) if id.as_str() == "s" => why,
        other => panic!("{other:?}"),
    }
}

#[derive(Serialize, Deserialize)]
struct Transfer {
    wei: u128,
}

#[tokio::test(start_paused = true)]
async fn numbers_that_no_float_tells_apart_are_not_the_same() {
    let wei = |wei| Transfer { wei };
    let store = run(&wei(1_000_000_000_000_000_000_001)).await;
    assert_eq!(again(&store, "pay", &wei(1_000_000_000_000_000_000_001)).await, Ok(()));
    let other = again(&store, "pay", &wei(1_000_000_000_000_000_000_002)).await;
    assert!(is_different(&other), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn the_order_in_which_a_map_comes_does_not_matter() {
    let prices = |last: u64| -> HashMap<String, u64> {
        (0..20).map(|n| (format!("item-{n}"), if n == 19 { last } else { n })).collect()
    };
    let store = run(&prices(7)).await;
    // Each has an order of its own.
    for _ in 0..10 {
        assert_eq!(again(&store, "pay", &prices(7)).await, Ok(()));
    }
    let other = again(&store, "pay", &prices(8)).await;
    assert!(is_different(&other), "{other:?}");
}

/// The same a deploy later.
#[derive(Serialize, Deserialize)]
struct WithNote {
    #[serde(default)]
    note: String,
    wei: u128,
}

#[tokio::test(start_paused = true)]
async fn a_field_that_was_added_makes_no_difference_while_it_has_its_default() {
    let with = |wei, note: &str| WithNote { wei, note: note.to_owned() };
    let store = run(&Transfer { wei: 1_000_000_000_000_000_000_001 }).await;
    assert_eq!(again(&store, "pay", &with(1_000_000_000_000_000_000_001, "")).await, Ok(()));
    for other in [with(1_000_000_000_000_000_000_001, "gift"), with(1_000_000_000_000_000_000_002, "")] {
        let answer = again(&store, "pay", &other).await;
        assert!(is_different(&answer), "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_definition_is_another_saga() {
    let store = run(&7_u32).await;
    let other = again(&store, "refund", &7_u32).await;
    assert!(is_different(&other), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn an_input_that_this_code_cannot_read_is_not_said_to_be_another() {
    let store = run(&7_u32).await;
    let why = unreadable(again(&store, "pay", &"7".to_owned()).await);
    assert!(why.starts_with("invalid type: integer `7`, expected a string"), "{why}");
    // What is the same text is the same, whoever reads it.
    assert_eq!(again(&store, "pay", &7_u64).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn whether_a_damaged_saga_is_the_same_is_not_known() {
    let store = run(&7_u32).await;
    // Some leave a text that can be read, with another number in it.
    for bit in 0..7 * store.stored(&id()).unwrap().entries[0].data.len() {
        let damaged = Memory::restore(&store.snapshot());
        assert!(damaged.corrupt(&id(), 0, bit));
        let answer = again(&damaged, "pay", &7_u32).await;
        assert!(!unreadable(answer).is_empty(), "bit {bit}");
    }
    let damaged = Memory::restore(&store.snapshot());
    damaged.truncate(&id(), 0);
    let why = unreadable(again(&damaged, "pay", &7_u32).await);
    assert_eq!(why, "there are 0 entries where 2 were written");
    let error = again(&damaged, "pay", &7_u32).await.unwrap_err().to_string();
    assert_eq!(error, format!("there is a saga s, and what it was started with cannot be read: {why}"));
}

#[tokio::test(start_paused = true)]
async fn damage_behind_its_beginning_does_not_matter() {
    let store = run(&7_u32).await;
    assert!(store.corrupt(&id(), 1, 3));
    assert_eq!(again(&store, "pay", &7_u32).await, Ok(()));
    let other = again(&store, "pay", &8_u32).await;
    assert!(is_different(&other), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn deadline_tag_and_locks_are_those_of_the_first_start() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("pause", 1);
    saga.sleep("pause", (), Duration::from_secs(60));
    let saga = saga.build(()).unwrap();
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    let first = StartOptions::default().tag("first").lock("a");
    let first = orchestrator.start_with(&saga, "s", &7, first).await.unwrap();
    let second = StartOptions::default().tag("second").lock("b").deadline(Duration::from_secs(1));
    orchestrator.start_with(&saga, "s", &7, second).await.unwrap();
    assert_eq!(store.stored(&id()).unwrap().head.tag, "first");
    let with = async |id, lock| {
        orchestrator.start_with(&saga, id, &7, StartOptions::default().lock(lock)).await.map(drop)
    };
    assert_eq!(with("other", "b").await, Ok(()));
    let locked = StartError::Locked { key: "a".to_owned(), holder: id() };
    assert_eq!(with("third", "a").await, Err(locked));
    assert_eq!(first.finished().await.unwrap(), Outcome::Completed(()));
}
