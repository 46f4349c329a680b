//! Waiting for a saga that another orchestrator has.
#![cfg(feature = "saga")]
#![allow(missing_docs)]

use std::{future::pending, time::Duration};

use mainstay::saga::{
    Failure, Inputs, Orchestrator, Order, Outcome, Output, Phase, Saga, SagaId, Unknown, memory::Memory,
};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn open<R: Inputs>(store: &Memory, saga: &Saga<u32, R>) -> Orchestrator {
    Orchestrator::open(store.clone()).register(saga).start().await.unwrap()
}

/// How it is settled, as an orchestrator sees it that does not have it: within a minute.
async fn seen<R: Inputs>(other: &Orchestrator, saga: &Saga<u32, R>, id: &str) -> Outcome<R::Values> {
    let handle = other.handle(saga, id).unwrap();
    let settled = tokio::time::timeout(seconds(60), handle.settled()).await;
    settled.unwrap_or_else(|_| panic!("{id} is waited for in vain")).unwrap()
}

fn owned(store: &Memory, id: &str) -> bool {
    store.stored(&SagaId::new(id).unwrap()).unwrap().head.owner.is_some()
}

/// A step that has to happen and is rejected, beside one of which nobody knows, and one that takes its time: the saga stays with its owner.
fn held(name: &str) -> Saga<u32, ()> {
    let mut saga = Saga::define::<u32>(name, 1);
    match name {
        "stuck" => {
            let _never: Output<()> =
                saga.retriable("never", (), |_, ()| async { Err::<(), _>(Failure::rejected("no")) }).add();
        }
        _ => {
            let lost = saga.step("lost", (), |_, ()| async { Err::<(), _>(Failure::unknown("no answer")) });
            lost.on_unknown(Unknown::Park).without_compensation("nothing");
            let long = saga.step("long", (), |_, ()| pending::<Result<(), Failure>>());
            let long = long.through(mainstay::stack("bare").build().unwrap());
            long.without_compensation("nothing");
        }
    }
    saga.build(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_that_is_stuck_or_parked_at_another_is_settled() {
    for (name, phase) in [("stuck", Phase::Stuck), ("parked", Phase::Parked)] {
        let (store, saga) = (Memory::new(), held(name));
        let first = open(&store, &saga).await;
        let second = open(&store.connect(), &saga).await;
        first.start(&saga, "s", &1).await.unwrap();
        let outcome = seen(&second, &saga, "s").await;
        assert!(
            matches!(&outcome, Outcome::Held { phase: Some(found), .. } if *found == phase),
            "{outcome:?}"
        );
        assert!(owned(&store, "s"), "{name}: it would be seen anyway");
        // Who waits for its end is told of that alone.
        let handle = second.handle(&saga, "s").unwrap();
        let end = tokio::time::timeout(seconds(60), handle.finished()).await;
        assert!(end.is_err(), "{end:?}");
        first.order("s", "ada", Order::Abandon { reason: "enough".to_owned() }).await.unwrap();
        assert_eq!(handle.finished().await.unwrap(), Outcome::Abandoned("enough".to_owned()));
    }
}

/// Two steps, the second of which reads what the first has answered.
fn two<T>(first: fn() -> T) -> Saga<u32, Output<u32>>
where
    T: serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
{
    let mut saga = Saga::define::<u32>("two", 1);
    let one = saga.step("one", (), move |_, ()| async move { Ok(first()) }).without_compensation("nothing");
    let two = saga.step("two", one, |_, _: T| async { Ok(2_u32) }).without_compensation("nothing");
    saga.build(two).unwrap()
}

#[tokio::test(start_paused = true)]
async fn one_that_is_blocked_at_another_is_settled_and_goes_on_where_it_can_be_read() {
    let store = Memory::new();
    let (good, bad) = (two(|| 1_u32), two(|| "text".to_owned()));
    let (first, crashes) = (store.connect(), store.connect());
    // The first step has answered when its process ends.
    let gone = open(&crashes, &good).await;
    crashes.fault(
        mainstay::saga::memory::Operation::Append,
        1,
        mainstay::saga::memory::Fault::LoseAnswer(mainstay::saga::StoreError::Unavailable("cut".to_owned())),
    );
    gone.start(&good, "s", &1).await.unwrap();
    crashes.kill();
    drop(gone);
    let first = open(&first, &bad).await;
    tokio::time::sleep(seconds(20)).await;
    assert_eq!(first.blocked().await.unwrap().len(), 1);
    assert!(owned(&store, "s"));
    let second = open(&store.connect(), &good).await;
    let outcome = seen(&second, &good, "s").await;
    assert!(matches!(&outcome, Outcome::Held { why, .. } if why.contains("cannot be read")), "{outcome:?}");
    first.shutdown(seconds(1)).await;
    assert_eq!(seen(&second, &good, "s").await, Outcome::Completed(2));
}
