//! A full batch does not wait for the one before it, unless a saga would be in both.
#![cfg(feature = "saga")]
#![allow(missing_docs, clippy::disallowed_methods)] // Virtual time is measured from outside.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use mainstay::saga::{
    Failure, Incarnation, Orchestrator, Outcome, Output, Saga, SagaId, Timestamp,
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

/// The most appends of a batch.
const FULL: usize = 1_024;

/// A batch: whose it is, when it began and when it was answered.
struct Batch {
    sagas: Vec<SagaId>,
    began: Instant,
    over: Option<Instant>,
}

impl Batch {
    fn is_under_way(&self, at: Instant) -> bool {
        self.began <= at && self.over.is_none_or(|over| at < over)
    }
}

type Batches = Arc<Mutex<Vec<Batch>>>;

/// A store far away: each batch takes a while.
struct Far {
    store: Memory,
    batches: Batches,
    blocks: bool,
}

impl Journal for Far {
    forward_to_store!(all but append);

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        let sagas = batch.iter().map(|append| append.saga.clone()).collect();
        let number = {
            let mut batches = self.batches.lock().unwrap();
            batches.push(Batch { sagas, began: Instant::now(), over: None });
            batches.len() - 1
        };
        Box::pin(async move {
            // The second of two is answered first, every now and then.
            let takes = if number % 3 == 0 { 10 } else { 7 };
            tokio::time::sleep(Duration::from_millis(takes)).await;
            let answers = self.store.append(batch).await;
            self.batches.lock().unwrap()[number].over = Some(Instant::now());
            answers
        })
    }
}

/// Three steps that are undone since the fourth one is refused. That they are undone is queued without waiting, so that a saga has several
/// appends on their way.
fn undone() -> Saga<u32, Output<()>> {
    let mut saga = Saga::define::<u32>("undone", 1);
    for step in ["a", "b", "c"] {
        saga.step(step, (), |_, ()| async { Ok::<(), Failure>(()) })
            .compensate(|_, (), _| async { Ok::<(), Failure>(()) });
    }
    let last = saga
        .step("d", (), |_, ()| async { Err::<(), Failure>(Failure::rejected("no")) })
        .without_compensation("it only ever refuses");
    saga.build(last).unwrap()
}

/// So many sagas, each begun a microsecond after the one before it, and the batches that they came to.
async fn run(sagas: usize, journal: impl FnOnce(Batches) -> Far, interval: Duration) -> Vec<Batch> {
    run_spread(sagas, Duration::from_micros(1), journal, interval).await
}

async fn run_spread(
    sagas: usize,
    by: Duration,
    journal: impl FnOnce(Batches) -> Far,
    interval: Duration,
) -> Vec<Batch> {
    let batches = Batches::default();
    let saga = undone();
    let opening = Orchestrator::open(journal(batches.clone())).commit_interval(interval).max_live(sagas + 1);
    let orchestrator = opening.register(&saga).start().await.unwrap();
    let all = (0..sagas).map(|n| {
        let (orchestrator, saga) = (orchestrator.clone(), saga.clone());
        tokio::spawn(async move {
            tokio::time::sleep(by * u32::try_from(n).unwrap()).await;
            orchestrator.start(&saga, &format!("{n}"), &1).await.unwrap().finished().await.unwrap()
        })
    });
    for outcome in futures::future::join_all(all).await {
        assert!(matches!(outcome.unwrap(), Outcome::Compensated(_)));
    }
    orchestrator.shutdown(Duration::ZERO).await;
    std::mem::take(&mut *batches.lock().unwrap())
}

fn far(batches: Batches) -> Far {
    Far { store: Memory::new(), batches, blocks: false }
}

/// How many batches began beside another one.
fn beside(batches: &[Batch]) -> usize {
    let mut count = 0;
    for (number, batch) in batches.iter().enumerate() {
        let others: Vec<_> = batches[..number].iter().filter(|it| it.is_under_way(batch.began)).collect();
        assert!(others.len() <= 1, "two at most are under way");
        for other in others {
            count += 1;
            assert_eq!((batch.sagas.len(), other.sagas.len()), (FULL, FULL), "both are full");
            let sagas: HashSet<_> = other.sagas.iter().collect();
            assert!(batch.sagas.iter().all(|saga| !sagas.contains(saga)), "no saga is in both");
        }
    }
    count
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_does_not_wait_for_the_one_before_it() {
    let batches = run(4 * FULL, far, Duration::ZERO).await;
    let doubled = |batch: &&Batch| batch.sagas.iter().collect::<HashSet<_>>().len() < batch.sagas.len();
    assert!(batches.iter().any(|batch| doubled(&batch)), "a saga has several appends on their way");
    let count = beside(&batches);
    assert!(count > batches.len() / 4, "{count} of {}", batches.len());
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fill_a_batch_waits_for_the_one_before_it() {
    let batches = run_spread(FULL / 8, Duration::from_micros(100), far, Duration::ZERO).await;
    assert!(batches.len() > 8, "they came at different times: {}", batches.len());
    assert_eq!(beside(&batches), 0);
}

#[tokio::test(start_paused = true)]
async fn batches_that_keep_an_interval_come_one_by_one() {
    let batches = run(4 * FULL, far, Duration::from_millis(1)).await;
    assert!(batches.iter().any(|batch| batch.sagas.len() == FULL), "some are full");
    assert_eq!(beside(&batches), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_blocks_is_polled_by_one_thread_alone() {
    let blocking = |batches| Far { store: Memory::new(), batches, blocks: true };
    let batches = run(4 * FULL, blocking, Duration::ZERO).await;
    assert!(batches.iter().any(|batch| batch.sagas.len() == FULL), "some are full");
    assert_eq!(beside(&batches), 0);
}
