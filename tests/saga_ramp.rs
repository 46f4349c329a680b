//! What was left over goes on as a ramp: its participants do not meet a crowd, and nobody else waits for it.
#![cfg(feature = "saga")]
#![allow(missing_docs, clippy::disallowed_methods)] // Virtual time is measured from outside.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use mainstay::saga::{Failure, OpenError, Orchestrator, Outcome, Output, Phase, Saga, memory::Memory};
use tokio::time::Instant;

const EVERY: Duration = Duration::from_millis(100);

type Times = Arc<Mutex<Vec<(String, Instant)>>>;

fn saga(times: &Times) -> Saga<u32, Output<()>> {
    let times = times.clone();
    let mut saga = Saga::define::<u32>("job", 1);
    let done = saga.retriable("work", (), move |step, ()| {
        times.lock().unwrap().push((step.saga().as_str().to_owned(), Instant::now()));
        async { Ok(()) }
    });
    let done = done.add();
    saga.build(done).unwrap()
}

/// `count` sagas that have begun and that nobody works on.
async fn left_over(count: usize) -> Memory {
    let store = Memory::new();
    let mut stuck = Saga::define::<u32>("job", 1);
    let never = stuck.retriable("work", (), |_, ()| std::future::pending::<Result<(), Failure>>());
    let never: Output<()> = never.add();
    let stuck = stuck.build(never).unwrap();
    let first = Orchestrator::open(store.clone()).register(&stuck).start().await.unwrap();
    for saga in 0..count {
        first.start(&stuck, &format!("{saga:03}"), &1).await.unwrap();
    }
    first.shutdown(Duration::ZERO).await;
    store.connect()
}

#[tokio::test(start_paused = true)]
async fn a_crowd_is_classified_at_once_and_goes_on_in_doubling_parts() {
    let store = left_over(30).await;
    let times = Times::default();
    let saga = saga(&times);
    let opening = Orchestrator::open(store).recovery_ramp(2, EVERY).register(&saga);
    let orchestrator = opening.start().await.unwrap();
    orchestrator.recovered().await;
    let began = Instant::now();
    assert_eq!(orchestrator.live(), 28, "all but the first two are known and do not go on yet");
    assert_eq!(orchestrator.status("029").await.unwrap().unwrap().phase, Some(Phase::Running));

    // A new one does not wait behind them.
    let new = orchestrator.run(&saga, "new", &1).await.unwrap();
    assert_eq!((new, Instant::now() - began), (Outcome::Completed(()), Duration::ZERO));

    tokio::time::sleep(10 * EVERY).await;
    let times = times.lock().unwrap();
    let windows =
        times.iter().filter(|(saga, _)| saga != "new").map(|(_, at)| (*at - began).as_millis() / 100);
    let mut counts = [0; 5];
    windows.for_each(|window| counts[window as usize] += 1);
    assert_eq!(counts, [2, 4, 8, 16, 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_of_a_saga_is_done_while_it_waits_for_its_turn() {
    let store = left_over(3).await;
    let times = Times::default();
    let saga = saga(&times);
    let opening =
        Orchestrator::open(store.clone()).recovery_ramp(1, Duration::from_secs(600)).register(&saga);
    let orchestrator = opening.start().await.unwrap();
    orchestrator.recovered().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let went_on = times.lock().unwrap().len();
    assert_eq!(went_on, 1);
    for saga in ["000", "001", "002"] {
        let reason = "no longer wanted".to_owned();
        let _ = orchestrator.order(saga, "test", mainstay::saga::Order::Abandon { reason }).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((orchestrator.live(), times.lock().unwrap().len()), (0, 1));
}

/// They are let go as they are, and the next owner has them at once.
#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_those_that_wait_for_their_turn() {
    let store = left_over(5).await;
    let times = Times::default();
    let saga = saga(&times);
    let slow = Orchestrator::open(store.clone()).recovery_ramp(1, Duration::from_secs(600)).register(&saga);
    let slow = slow.start().await.unwrap();
    slow.recovered().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    slow.shutdown(Duration::from_secs(60)).await;
    assert!(Instant::now() - began < Duration::from_secs(1));
    let next = Orchestrator::open(store.connect()).register(&saga).start().await.unwrap();
    next.recovered().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((next.live(), times.lock().unwrap().len()), (0, 5));
}

#[tokio::test(start_paused = true)]
async fn a_ramp_of_nothing_does_not_open() {
    for (sagas, every) in [(0, EVERY), (1, Duration::ZERO)] {
        let error = Orchestrator::open(Memory::new()).recovery_ramp(sagas, every).start().await.unwrap_err();
        assert!(
            matches!(&error, OpenError::Setting(error) if error.to_string().contains("recovery_ramp")),
            "{error}"
        );
    }
}
