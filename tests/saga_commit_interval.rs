//! Many sagas at once share forced writes for as long as was said; one alone waits for nobody.
#![cfg(feature = "saga")]
#![allow(missing_docs, clippy::disallowed_methods)] // Virtual time is measured from outside.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use mainstay::saga::{
    Failure, Incarnation, OpenError, Orchestrator, Outcome, Output, Saga, SagaId, Timestamp,
    journal::{
        Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
        Requested, Stored,
    },
    memory::Memory,
};
use tokio::time::Instant;

#[macro_use]
#[path = "support/forward.rs"]
mod forward;

const INTERVAL: Duration = Duration::from_millis(5);
const STEPS: u32 = 5;

/// When each batch began, and how many appends it had. Each takes a millisecond.
type Batches = Arc<Mutex<Vec<(Instant, usize)>>>;

struct Counted {
    store: Memory,
    batches: Batches,
    blocks: bool,
}

impl Journal for Counted {
    forward_to_store!(all but append);

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        self.batches.lock().unwrap().push((Instant::now(), batch.len()));
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.store.append(batch).await
        })
    }
}

/// Steps that take no time: all there is to wait for are the writes.
fn saga() -> Saga<u32, Output<()>> {
    let mut saga = Saga::define::<u32>("job", 1);
    let mut last = None;
    for step in 0..STEPS {
        last =
            Some(saga.retriable(&format!("step {step}"), (), |_, ()| async { Ok::<(), Failure>(()) }).add());
    }
    saga.build(last.unwrap()).unwrap()
}

/// So many sagas, one of which begins each half millisecond. How long it took, and the batches.
async fn run(sagas: u32, interval: Duration) -> (Duration, Vec<(Instant, usize)>) {
    run_on(false, sagas, interval).await
}

async fn run_on(blocks: bool, sagas: u32, interval: Duration) -> (Duration, Vec<(Instant, usize)>) {
    let batches = Batches::default();
    let journal = Counted { store: Memory::new(), batches: batches.clone(), blocks };
    let saga = saga();
    let opening = Orchestrator::open(journal).commit_interval(interval).register(&saga);
    let orchestrator = opening.start().await.unwrap();
    let began = Instant::now();
    let all = (0..sagas).map(|n| {
        let (orchestrator, saga) = (orchestrator.clone(), saga.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_micros(500) * n).await;
            orchestrator.start(&saga, &format!("{n}"), &n).await.unwrap().finished().await.unwrap()
        })
    });
    for outcome in futures::future::join_all(all).await {
        assert!(matches!(outcome.unwrap(), Outcome::Completed(())));
    }
    let took = began.elapsed();
    orchestrator.shutdown(Duration::ZERO).await;
    let batches = batches.lock().unwrap().clone();
    (took, batches)
}

/// What holds of batches that keep the interval.
fn apart(batches: &[(Instant, usize)], interval: Duration) -> Result<(), String> {
    let early = batches.windows(2).find(|two| two[0].1 > 1 && two[1].0 - two[0].0 < interval);
    early.map_or(Ok(()), |two| Err(format!("{:?} after a batch of {}", two[1].0 - two[0].0, two[0].1)))
}

#[tokio::test(start_paused = true)]
async fn many_at_once_share_fewer_writes() {
    let (_, often) = run(100, Duration::ZERO).await;
    let (_, seldom) = run(100, INTERVAL).await;
    apart(&seldom, INTERVAL).unwrap();
    let appends = |batches: &[(Instant, usize)]| batches.iter().map(|(_, appends)| appends).sum::<usize>();
    assert_eq!(appends(&often), appends(&seldom));
    assert!(2 * seldom.len() < often.len(), "{} and {}", seldom.len(), often.len());
    // The broken twin: without the interval, batches follow each other as fast as the store answers.
    apart(&often, INTERVAL).unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_is_alone_is_not_held_up() {
    let (often, _) = run(1, Duration::ZERO).await;
    let (seldom, batches) = run(1, INTERVAL).await;
    assert_eq!(often, seldom);
    assert!(batches.iter().all(|(_, appends)| *appends == 1), "{batches:?}");
}

/// By the clock of the wall, since the pause is the thread's. When a batch is seen says little then; that all together took their pauses does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_blocks_keeps_the_interval_as_well() {
    let (took, batches) = run_on(true, 100, INTERVAL).await;
    let waited_after = batches.iter().rev().skip(1).filter(|(_, appends)| *appends > 1).count();
    assert!(waited_after > 0, "many came at once");
    let pauses = INTERVAL * u32::try_from(waited_after).unwrap();
    assert!(took >= pauses, "{took:?} for {waited_after} pauses");
}

/// What was queued before the end is written, also where that comes in a pause.
#[tokio::test(start_paused = true)]
async fn an_end_within_a_pause_loses_nothing() {
    let journal = Counted { store: Memory::new(), batches: Batches::default(), blocks: false };
    let (store, batches) = (journal.store.clone(), journal.batches.clone());
    let saga = saga();
    let opening = Orchestrator::open(journal).commit_interval(Duration::from_secs(1)).register(&saga);
    let orchestrator = opening.start().await.unwrap();
    let starts = (0..20).map(|n| {
        let (orchestrator, saga) = (orchestrator.clone(), saga.clone());
        tokio::spawn(async move { orchestrator.start(&saga, &format!("{n}"), &n).await.map(drop) })
    });
    let starts: Vec<_> = starts.collect();
    while batches.lock().unwrap().iter().all(|(_, appends)| *appends < 2) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    orchestrator.shutdown(Duration::ZERO).await;
    let mut begun = 0;
    for start in starts {
        begun += usize::from(start.await.unwrap().is_ok());
    }
    let stored = store.list(Query { limit: 100, ..Query::default() }).await.unwrap();
    assert!(
        begun >= 2 && stored.len() >= begun,
        "{begun} were told that they have begun, {} have",
        stored.len()
    );
}

#[tokio::test]
async fn an_interval_that_would_look_like_a_store_that_hangs_is_refused() {
    let opening = || Orchestrator::open(Memory::new()).register(&saga());
    let longest = Duration::from_secs(1);
    drop(opening().commit_interval(longest).start().await.unwrap());
    let refused = opening().commit_interval(longest + Duration::from_millis(1)).start().await;
    assert!(
        matches!(refused.unwrap_err(), OpenError::Setting(error) if error.to_string().contains("commit_interval"))
    );
}
