//! Semantic locks: who waits for one, and for how long.
#![cfg(feature = "saga")]
#![allow(missing_docs, clippy::disallowed_methods)] // Virtual time is measured from outside.

use std::time::Duration;

use mainstay::saga::{
    Orchestrator, Output, Saga, SagaId, StartError, StartOptions, StoreError,
    memory::{Fault, Memory, Operation},
};
use tokio::time::Instant;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A saga that is over after so many seconds as it is started with, in steps of one minute at most: it is let go in between.
fn saga() -> Saga<u64, Output<u64>> {
    let mut saga = Saga::define::<u64>("transfer", 1);
    let done = saga.step("hold", (), |step, ()| async move {
        tokio::time::sleep(seconds(*step.input())).await;
        Ok(*step.input())
    });
    let done = done.without_compensation("nothing is done");
    saga.build(done).unwrap()
}

fn account(patience: u64) -> StartOptions {
    StartOptions::default().lock("account-7").wait_for_locks(seconds(patience))
}

fn is_locked(error: &StartError, by: &str) -> bool {
    matches!(error, StartError::Locked { key, holder } if key == "account-7" && holder.as_str() == by)
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_until_the_holder_is_over_and_no_longer_than_it_may() {
    let (store, saga) = (Memory::new(), saga());
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    let began = Instant::now();
    orchestrator.start_with(&saga, "first", &30, account(0)).await.unwrap();

    let refused = orchestrator.start_with(&saga, "second", &1, account(10)).await.unwrap_err();
    assert!(is_locked(&refused, "first"), "{refused:?}");
    let waited = Instant::now() - began;
    assert!((10..11).contains(&waited.as_secs()), "{waited:?}");
    assert_eq!(store.stored(&SagaId::new("second").unwrap()), None);

    orchestrator.start_with(&saga, "second", &1, account(60)).await.unwrap();
    let waited = Instant::now() - began;
    assert!((30..31).contains(&waited.as_secs()), "{waited:?}");
}

/// Each in turn, and all of them.
#[tokio::test(start_paused = true)]
async fn several_that_wait_get_it_one_after_the_other() {
    let saga = saga();
    let orchestrator = Orchestrator::open(Memory::new()).register(&saga).start().await.unwrap();
    let began = Instant::now();
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..5 {
        let (orchestrator, saga) = (orchestrator.clone(), saga.clone());
        waiting.spawn(async move {
            let handle =
                orchestrator.start_with(&saga, &format!("s-{number}"), &10, account(300)).await.unwrap();
            handle.finished().await.unwrap();
        });
    }
    while let Some(done) = waiting.join_next().await {
        done.unwrap();
    }
    let took = (Instant::now() - began).as_secs();
    assert!((50..60).contains(&took), "{took} s: no two at once, and nobody waits without need");
}

/// Neither a place among the live sagas nor anything else is held by one that waits, or is left by one that is dropped.
#[tokio::test(start_paused = true)]
async fn who_waits_takes_no_place_and_leaves_nothing() {
    let (store, saga) = (Memory::new(), saga());
    let opening = Orchestrator::open(store.clone()).max_live(2).register(&saga);
    let orchestrator = opening.start().await.unwrap();
    orchestrator.start_with(&saga, "holder", &100, account(0)).await.unwrap();
    {
        let mut starts: Vec<_> = (0..5).map(|at| format!("waits-{at}")).collect();
        let starts: Vec<_> = starts
            .iter_mut()
            .map(|id| Box::pin(orchestrator.start_with(&saga, id, &1, account(1_000))))
            .collect();
        for mut start in starts {
            assert!(tokio::time::timeout(seconds(5), &mut start).await.is_err());
            assert_eq!(orchestrator.live(), 1);
        }
        orchestrator.run(&saga, "other", &1).await.unwrap();
    }
    tokio::time::sleep(seconds(200)).await;
    assert_eq!(orchestrator.live(), 0);
    for at in 0..5 {
        assert_eq!(store.stored(&SagaId::new(&format!("waits-{at}")).unwrap()), None);
    }
    orchestrator.start_with(&saga, "last", &1, account(0)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_holder_may_be_driven_by_another_orchestrator() {
    let (store, saga) = (Memory::new(), saga());
    let first = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    let second = Orchestrator::open(store.connect()).register(&saga).start().await.unwrap();
    let began = Instant::now();
    first.start_with(&saga, "first", &30, account(0)).await.unwrap();
    second.start_with(&saga, "second", &1, account(60)).await.unwrap();
    let waited = (Instant::now() - began).as_secs();
    assert!((30..=40).contains(&waited), "{waited} s: seen in the store");
}

/// What was last seen of the holder's id is that it is over: so it is while somebody has not looked for that yet who has asked. The saga that
/// has the lock now is a later one of this id.
#[tokio::test(start_paused = true)]
async fn who_has_seen_the_holder_end_before_asks_no_more_often_than_others() {
    let (store, saga) = (Memory::new(), saga());
    let first = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    let connection = store.connect();
    let second = Orchestrator::open(connection.clone()).register(&saga).start().await.unwrap();
    first.start_with(&saga, "first", &30, account(0)).await.unwrap();
    let handle = second.handle(&saga, "first").unwrap();
    let mut asked = Box::pin(handle.finished());
    assert!(tokio::time::timeout(seconds(20), &mut asked).await.is_err());
    second.handle(&saga, "first").unwrap().finished().await.unwrap();
    assert_eq!(first.forget(Duration::ZERO, 10).await.unwrap(), 1);
    first.start_with(&saga, "first", &30, account(0)).await.unwrap();
    store.reset_counts();
    // Without it nothing would end the test: no time passes while somebody is busy.
    connection.fault(Operation::Append, 500, Fault::Fail(StoreError::Unavailable("busy".to_owned())));
    let began = Instant::now();
    second.start_with(&saga, "second", &1, account(60)).await.unwrap();
    let (waited, appends) = ((Instant::now() - began).as_secs(), store.counts().operation(Operation::Append));
    assert!((29..=40).contains(&waited), "{waited} s");
    assert!((2..60).contains(&appends), "{appends} appends, 4 a second for at most 10 s");
    assert!(tokio::time::timeout(seconds(1), &mut asked).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_the_wait() {
    let (store, saga) = (Memory::new(), saga());
    let first = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    let second = Orchestrator::open(store.connect()).register(&saga).start().await.unwrap();
    first.start_with(&saga, "first", &10_000, account(0)).await.unwrap();
    let waits = second.clone();
    let waits =
        tokio::spawn(async move { waits.start_with(&saga, "second", &1, account(5_000)).await.unwrap_err() });
    tokio::time::sleep(seconds(1)).await;
    second.shutdown(seconds(1)).await;
    let began = Instant::now();
    let refused = waits.await.unwrap();
    assert!(matches!(refused, StartError::Closed), "{refused:?}");
    assert!((Instant::now() - began).as_secs() <= 10);
}
