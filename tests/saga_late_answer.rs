//! An owner that lost its saga while the answer to an append or to a claim was on its way begins nothing when the answer comes.
#![cfg(feature = "saga")]
#![allow(missing_docs)]

#[macro_use]
#[path = "support/forward.rs"]
mod forward;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::saga::{
    Failure, Incarnation, Orchestrator, Output, Saga, SagaId, StoreError, Timestamp, Unknown,
    journal::{
        Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
        Requested, Stored,
    },
    memory::{Memory, Operation},
};

type Lines = Arc<Mutex<Vec<String>>>;

/// A store behind a network that fails behind the first `sent`, or the first claim of a saga, that it has taken, before its answer; and when
/// it is back, a heartbeat is answered first.
#[derive(Clone)]
struct Late {
    store: Memory,
    of: Operation,
    armed: Arc<AtomicBool>,
    down: Arc<AtomicBool>,
    beaten: Arc<tokio::sync::Notify>,
}

impl Late {
    fn new(store: &Memory, of: Operation) -> Self {
        let armed = Arc::new(AtomicBool::new(true));
        Late { store: store.clone(), of, armed, down: Arc::default(), beaten: Arc::default() }
    }

    /// An answer is on its way.
    async fn answers(&self, of: Operation) {
        if of == self.of && self.armed.swap(false, SeqCst) {
            self.down.store(true, SeqCst);
            self.beaten.notified().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Journal for Late {
    forward_to_store!(the rest);

    fn blocks(&self) -> bool {
        false
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        self.store.leave(by)
    }

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        Box::pin(async move {
            let sent = batch.iter().any(|item| item.entries.iter().any(|entry| entry.kind == "sent"));
            let done = self.store.append(batch).await;
            if sent {
                self.answers(Operation::Append).await;
            }
            done
        })
    }

    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        Box::pin(async move {
            let claimed = self.store.claim(claim).await;
            if claimed.as_ref().is_ok_and(|claimed| !claimed.is_empty()) {
                self.answers(Operation::Claim).await;
            }
            claimed
        })
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(async move {
            if self.down.load(SeqCst) {
                return Err(StoreError::Unavailable("the network is down".to_owned()));
            }
            let done = self.store.heartbeat(&by, lease).await;
            if !self.armed.load(SeqCst) {
                self.beaten.notify_one();
            }
            done
        })
    }
}

fn saga(who: &'static str, lines: &Lines) -> Saga<u32, Output<u32>> {
    let (act, undo) = (lines.clone(), lines.clone());
    let mut saga = Saga::define::<u32>("order", 1);
    let charged = saga
        .step("charge", (), move |_, ()| {
            act.lock().unwrap().push(format!("{who} charges"));
            async { Ok::<u32, Failure>(1) }
        })
        .on_unknown(Unknown::Compensate)
        .compensate(move |_, (), _| {
            undo.lock().unwrap().push(format!("{who} refunds"));
            async { Ok(()) }
        });
    saga.build(charged).unwrap()
}

async fn open(journal: impl Journal, saga: &Saga<u32, Output<u32>>) -> Orchestrator {
    let opening = Orchestrator::open(journal).lease(Duration::from_secs(3)).poll(Duration::from_millis(100));
    opening.register(saga).start().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_was_undone_by_another_is_not_done_when_a_late_answer_comes() {
    let (lines, store) = (Lines::default(), Memory::new());
    let late = Late::new(&store, Operation::Append);
    let (by_a, by_b) = (saga("A", &lines), saga("B", &lines));
    let a = open(late.clone(), &by_a).await;
    let b = open(store.connect(), &by_b).await;
    a.start(&by_a, "s", &1).await.unwrap();
    // B takes it over, and undoes what may have been sent.
    b.handle(&by_b, "s").unwrap().finished().await.unwrap();
    assert_eq!(*lines.lock().unwrap(), ["B refunds"]);
    late.down.store(false, SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*lines.lock().unwrap(), ["B refunds"], "A has begun what B has undone");
}

/// The same without anybody who takes it: it was recorded as sent and never was, and its owner knows that.
#[tokio::test(start_paused = true)]
async fn what_was_recorded_as_sent_and_not_begun_is_sent_by_its_owner() {
    let (lines, store) = (Lines::default(), Memory::new());
    let late = Late::new(&store, Operation::Append);
    let saga = saga("A", &lines);
    let a = open(late.clone(), &saga).await;
    a.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(lines.lock().unwrap().len(), 0);
    late.down.store(false, SeqCst);
    let outcome = a.handle(&saga, "s").unwrap().finished().await.unwrap();
    assert_eq!(outcome.completed(), Some(1));
    assert_eq!(*lines.lock().unwrap(), ["A charges"]);
}

/// One step, which is sent again when nobody has heard of it; it never ends, or comes to this.
fn repeated(
    who: &'static str,
    lines: &Lines,
    ends: Option<fn() -> Result<u32, Failure>>,
) -> Saga<u32, Output<u32>> {
    let (act, undo) = (lines.clone(), lines.clone());
    let mut saga = Saga::define::<u32>("repeated", 1);
    let charged = saga
        .step("charge", (), move |_, ()| {
            act.lock().unwrap().push(format!("{who} charges"));
            async move {
                match ends {
                    Some(ends) => ends(),
                    None => std::future::pending().await,
                }
            }
        })
        .compensate(move |_, (), _| {
            undo.lock().unwrap().push(format!("{who} refunds"));
            async { Ok(()) }
        });
    saga.build(charged).unwrap()
}

/// What was claimed and taken by another before the claimer heard of it: it has its lease again by then, but it had lost it.
#[tokio::test(start_paused = true)]
async fn what_was_undone_by_another_is_not_done_when_a_late_claim_is_answered() {
    let (lines, store) = (Lines::default(), Memory::new());
    let late = Late::new(&store, Operation::Claim);
    let dying = repeated("O", &lines, None);
    let by_a = repeated("A", &lines, Some(|| Ok(1)));
    let by_b = repeated("B", &lines, Some(|| Err(Failure::rejected("no"))));
    let o = open(store.connect(), &dying).await;
    o.start(&dying, "s", &1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    drop(o);
    let _a = open(late.clone(), &by_a).await;
    while !late.down.load(SeqCst) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let b = open(store.connect(), &by_b).await;
    b.handle(&by_b, "s").unwrap().finished().await.unwrap();
    let undone = ["O charges", "B charges", "B refunds"];
    assert_eq!(*lines.lock().unwrap(), undone);
    let claimed = store.stored(&SagaId::new("s").unwrap()).unwrap().head.epoch;
    assert_eq!(claimed, 3, "A had it in between");
    late.down.store(false, SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*lines.lock().unwrap(), undone, "A has begun what B has undone");
}
