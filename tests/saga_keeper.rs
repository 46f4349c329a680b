//! What an orchestrator does at its edges: two starts at once, an end that is cut off, what is left at an end, what others left.
#![cfg(feature = "saga")]

#[macro_use]
#[path = "support/forward.rs"]
mod forward;

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::saga::{
    Failure, Incarnation, Inputs, Orchestrator, Order, Outcome, Output, Payload, Phase, Saga, SagaId,
    StartError, StoreError, Timestamp,
    journal::{
        Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
        Requested, Stored,
    },
    memory::{Fault, Memory, Operation},
};
use serde::{Serialize, de::DeserializeOwned};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn open<R: Inputs>(store: &Memory, saga: &Saga<u32, R>) -> Orchestrator {
    Orchestrator::open(store.clone()).register(saga).lease(seconds(10)).start().await.unwrap()
}

fn kinds(store: &Memory, id: &str) -> Vec<String> {
    let stored = store.stored(&SagaId::new(id).unwrap()).unwrap();
    stored.entries.into_iter().map(|entry| entry.kind).collect()
}

/// Two steps, the first of which comes to a `T`: of one structure, whatever it is.
fn two<T: Serialize + DeserializeOwned + Send + 'static>(first: fn() -> T) -> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>("two", 1);
    let one = saga.step("one", (), move |_, ()| async move { Ok(first()) }).without_compensation("nothing");
    let two = saga.step("two", one, |_, _: T| async { Ok(2_u32) }).without_compensation("nothing");
    saga.build(two).unwrap()
}

/// One step that takes so long.
fn slow(name: &str, time: Duration) -> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>(name, 1);
    let step = saga.step("slow", (), move |_, ()| async move {
        tokio::time::sleep(time).await;
        Ok(1_u32)
    });
    let step = step.through(mainstay::stack("bare").build().unwrap()).without_compensation("nothing");
    let last = saga.step("last", step, |_, _| async { Ok(2_u32) }).without_compensation("nothing");
    saga.build(last).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_the_code_cannot_read_is_let_go_at_an_end_and_never_taken_for_a_cause_of_death() {
    let (store, good, bad) = (Memory::new(), two(|| 1_u32), two(|| "text".to_owned()));
    assert_eq!(good.digest(), bad.digest());
    let orchestrator = open(&store, &good).await;
    store.fault(Operation::Append, 1, Fault::CrashAfter);
    orchestrator.start(&good, "s", &1).await.unwrap();
    store.dead().await;
    drop(orchestrator);
    let store = store.connect();
    for restart in 0..7 {
        let orchestrator = open(&store, &bad).await;
        tokio::time::sleep(seconds(20)).await;
        assert_eq!(orchestrator.blocked().await.unwrap().len(), 1, "restart {restart}");
        orchestrator.shutdown(seconds(5)).await;
        let head = store.stored(&SagaId::new("s").unwrap()).unwrap().head;
        assert_eq!((head.owner, head.recoveries), (None, 1), "restart {restart}: one of them was a death");
    }
    let orchestrator = open(&store, &good).await;
    let outcome = orchestrator.handle(&good, "s").unwrap().settled().await.unwrap();
    assert_eq!(outcome, Outcome::Completed(2));
    assert_eq!(kinds(&store, "s"), ["begun", "completed", "completed"]);
}

#[tokio::test(start_paused = true)]
async fn two_starts_at_once_are_one() {
    let (store, saga) = (Memory::new(), two(|| 1_u32));
    let orchestrator = open(&store, &saga).await;
    store.fault(Operation::Append, 0, Fault::Stall(seconds(1)));
    let (a, b, c) = tokio::join!(
        orchestrator.start(&saga, "s", &1),
        orchestrator.start(&saga, "s", &1),
        orchestrator.start(&saga, "s", &2)
    );
    assert!(a.is_ok() && b.is_ok(), "{:?} {:?}", a.err(), b.err());
    assert!(matches!(c, Err(StartError::Different { .. })), "{c:?}");
    // When the first of them fails, the second is on its own.
    store.fault(Operation::Append, 0, Fault::Fail(StoreError::Unavailable("planned".to_owned())));
    let (a, b) = tokio::join!(orchestrator.start(&saga, "t", &1), orchestrator.start(&saga, "t", &1));
    assert!(matches!(a, Err(StartError::Store(_))), "{a:?}");
    assert_eq!(b.unwrap().finished().await.unwrap(), Outcome::Completed(2));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_nobody_waits_for_is_an_end() {
    let (store, saga) = (Memory::new(), slow("slow", seconds(20)));
    let orchestrator = open(&store, &saga).await;
    orchestrator.start(&saga, "s", &1).await.unwrap();
    let cut_off = tokio::time::timeout(seconds(1), orchestrator.clone().shutdown(seconds(30))).await;
    assert!(cut_off.is_err());
    let beats = || store.counts().operation(Operation::Heartbeat);
    let before = beats();
    tokio::time::sleep(seconds(600)).await;
    assert_eq!(beats(), before, "it lives on, and nobody else gets its sagas");
    assert!(matches!(orchestrator.start(&saga, "t", &1).await, Err(StartError::Closed)));
    let next = open(&store.connect(), &saga).await;
    assert_eq!(next.handle(&saga, "s").unwrap().finished().await.unwrap(), Outcome::Completed(2));
}

/// What is claimed while an end is under way is let go again, without anything being begun.
#[tokio::test(start_paused = true)]
async fn what_comes_while_it_is_ending_is_not_begun() {
    let (store, long, saga) = (Memory::new(), slow("long", seconds(10)), slow("slow", seconds(20)));
    let orchestrator = open(&store, &saga).await;
    orchestrator.start(&saga, "s", &1).await.unwrap();
    drop(orchestrator);
    tokio::time::sleep(seconds(20)).await;
    let opening = Orchestrator::open(store.clone()).register(&saga).register(&long);
    store.fault(Operation::Claim, 0, Fault::Stall(seconds(2)));
    let orchestrator = opening.start().await.unwrap();
    orchestrator.start(&long, "long", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    let began = tokio::time::Instant::now();
    orchestrator.shutdown(seconds(60)).await;
    assert!(began.elapsed() < seconds(12), "{:?}: it waited for what was begun at its end", began.elapsed());
    assert_eq!(kinds(&store, "s"), ["begun"]);
    let head = store.stored(&SagaId::new("s").unwrap()).unwrap().head;
    assert_eq!((head.owner, head.epoch), (None, 2), "it was claimed, and let go");
}

#[derive(Debug)]
struct Panics;

impl Serialize for Panics {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(1)
    }
}

impl<'de> serde::Deserialize<'de> for Panics {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        std::panic::resume_unwind(Box::new("in the codec"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_codec_panics_is_one_that_cannot_be_read() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("asks", 1);
    let first = saga.step("first", (), |_, ()| async { Ok(1_u32) }).compensate(|_, (), _| async { Ok(()) });
    saga.signal::<Panics, _>("ask", first, None);
    let saga = saga.build(()).unwrap();
    let orchestrator = open(&store, &saga).await;
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    // By a way on which nobody has looked at it: it is let go, and whoever takes it up reads the message.
    tokio::time::sleep(seconds(5)).await;
    let message =
        Request::signal(SagaId::new("s").unwrap(), "other", "ask", "m", Payload::encode(&1).unwrap());
    store.request(message).await.unwrap();
    tokio::time::sleep(seconds(300)).await;
    let abandon = Order::Abandon { reason: "hopeless".to_owned() };
    orchestrator.order("s", "ann", abandon).await.unwrap();
    tokio::time::sleep(seconds(5)).await;
    assert_eq!(handle.status().await.unwrap().phase, Some(Phase::Abandoned));
    assert_eq!(kinds(&store, "s"), ["begun", "completed", "refused", "ordered"]);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_large_is_not_taken_up_whoever_left_it() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("asks", 1);
    let asked = saga.signal::<String, _>("ask", (), None);
    let saga = saga.build(asked).unwrap();
    let opening = Orchestrator::open(store.clone()).register(&saga).max_output(10);
    let orchestrator = opening.start().await.unwrap();
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    let id = SagaId::new("s").unwrap();
    let leave = |name: &'static str, text: &'static str| {
        Request::signal(id.clone(), "other", "ask", name, Payload::encode(text).unwrap())
    };
    store.request(leave("large", "more than ten")).await.unwrap();
    let order = Order::Complete { step: "ask".to_owned(), output: Payload::encode("more than ten").unwrap() };
    store.request(Request::order(id.clone(), "ann", order)).await.unwrap();
    tokio::time::sleep(seconds(5)).await;
    assert_eq!(kinds(&store, "s"), ["begun", "refused", "refused"]);
    let stored = store.stored(&id).unwrap();
    assert!(stored.entries.iter().all(|entry| !entry.data.contains("more than ten")), "{:?}", stored.entries);
    store.request(leave("small", "ten")).await.unwrap();
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(Some("ten".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn many_that_were_lost_at_once_are_read_anew_in_few_rounds() {
    let (store, saga) = (Memory::new(), slow("slow", seconds(5)));
    let orchestrator = open(&store, &saga).await;
    for n in 0..300 {
        orchestrator.start(&saga, &n.to_string(), &1).await.unwrap();
    }
    // All of them end at one time, and none can say so.
    let unavailable = || Fault::Fail(StoreError::Unavailable("planned".to_owned()));
    (0..5).for_each(|skip| store.fault(Operation::Append, skip, unavailable()));
    tokio::time::sleep(Duration::from_millis(5_010)).await;
    let counted = |operation| store.counts().operation(operation);
    let (asked, claimed) = (counted(Operation::Requests), counted(Operation::Claim));
    for n in 0..300 {
        let handle = orchestrator.handle(&saga, &n.to_string()).unwrap();
        assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(2));
    }
    let (asked, claimed) = (counted(Operation::Requests) - asked, counted(Operation::Claim) - claimed);
    assert!(asked < 200, "the requests were read {asked} times");
    assert!(claimed < 200, "they were claimed one by one: {claimed} claims");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_undone_while_something_is_still_being_done() {
    let store = Memory::new();
    let running = Arc::new(AtomicU32::new(0));
    let mut saga = Saga::define::<u32>("beside", 1);
    let overlaps = Arc::new(AtomicU32::new(0));
    let (seen, undone_beside) = (running.clone(), overlaps.clone());
    saga.step("quick", (), |_, ()| async { Ok(1_u32) }).compensate(move |_, (), _| {
        undone_beside.fetch_add(seen.load(SeqCst), SeqCst);
        async { Ok(()) }
    });
    let counted = running.clone();
    saga.step("long", (), move |_, ()| {
        counted.fetch_add(1, SeqCst);
        let counted = counted.clone();
        async move {
            tokio::time::sleep(seconds(5)).await;
            counted.fetch_sub(1, SeqCst);
            Ok(1_u32)
        }
    })
    .through(mainstay::stack("bare").build().unwrap())
    .compensate(|_, (), _| async { Ok(()) });
    saga.step("fails", (), |_, ()| async {
        tokio::time::sleep(seconds(1)).await;
        Err::<u32, _>(Failure::rejected("no"))
    })
    .without_compensation("nothing");
    let saga = saga.build(()).unwrap();
    let orchestrator = open(&store, &saga).await;
    let began = tokio::time::Instant::now();
    let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated(_)), "{outcome:?}");
    assert!(began.elapsed() >= seconds(5));
    assert_eq!(overlaps.load(SeqCst), 0, "a compensation has begun while a step was being done");
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_waits_for_less_than_a_second_stays_where_it_is() {
    let store = Memory::new();
    for (id, time, epochs) in [("short", Duration::from_millis(800), 1), ("long", seconds(5), 2)] {
        let mut saga = Saga::define::<u32>("sleeper", 1);
        let slept = saga.sleep("sleep", (), time);
        saga.step("last", slept, |_, ()| async { Ok(1_u32) }).without_compensation("nothing");
        let saga = saga.build(()).unwrap();
        let orchestrator = open(&store, &saga).await;
        orchestrator.run(&saga, id, &1).await.unwrap();
        let head = store.stored(&SagaId::new(id).unwrap()).unwrap().head;
        assert_eq!(head.epoch, epochs, "{id}");
        orchestrator.shutdown(seconds(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_poisoned_is_seen_without_a_listener() {
    let (store, saga) = (Memory::new(), two(|| 1_u32));
    let orchestrator = open(&store, &saga).await;
    assert!(!orchestrator.failed());
    store.fault(Operation::Append, 0, Fault::FailSync);
    orchestrator.start(&saga, "s", &1).await.unwrap_err();
    tokio::time::sleep(seconds(4)).await;
    assert!(orchestrator.failed());
    let refused = orchestrator.start(&saga, "t", &1).await;
    assert!(matches!(refused, Err(StartError::Store(StoreError::Poisoned))), "{refused:?}");
    orchestrator.shutdown(seconds(1)).await;
    let next = open(&store.reopen(), &saga).await;
    assert_eq!(next.run(&saga, "t", &1).await.unwrap(), Outcome::Completed(2));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_at_every_append_is_no_saga_s_fault() {
    let (store, saga) = (Memory::new(), slow("slow", seconds(1)));
    let orchestrator = open(&store, &saga).await;
    for id in ["a", "b", "c"] {
        orchestrator.start(&saga, id, &1).await.unwrap();
    }
    for skip in 0..60 {
        store.fault(Operation::Append, skip, Fault::Fail(StoreError::Io("planned".to_owned())));
    }
    for id in ["a", "b", "c"] {
        let handle = orchestrator.handle(&saga, id).unwrap();
        assert_eq!(handle.settled().await.unwrap(), Outcome::Completed(2), "{id}");
    }
    assert_eq!(store.planned_faults(), 0);
}

/// A store that blocks the thread that asks it. While it is shut, one kind of operation does not come through.
#[derive(Clone)]
struct Blocking {
    store: Memory,
    gated: Operation,
    gate: Arc<(Mutex<Gate>, Condvar)>,
    /// Somebody stands before the gate.
    waits: Arc<tokio::sync::Notify>,
    /// Whether a listing panics.
    panics: Arc<AtomicBool>,
}

#[derive(Default)]
struct Gate {
    shut: bool,
    /// What has come through since it was shut for the first time.
    passed: Option<Vec<Operation>>,
}

impl Blocking {
    fn new(gated: Operation) -> Self {
        Blocking {
            store: Memory::new(),
            gated,
            gate: Arc::default(),
            waits: Arc::default(),
            panics: Arc::default(),
        }
    }

    fn shut(&self) {
        *self.gate.0.lock().unwrap() = Gate { shut: true, passed: Some(Vec::new()) };
    }

    fn open(&self) {
        self.gate.0.lock().unwrap().shut = false;
        self.gate.1.notify_all();
    }

    fn passed(&self) -> Vec<Operation> {
        self.gate.0.lock().unwrap().passed.clone().unwrap()
    }

    fn pass(&self, operation: Operation) {
        let mut gate = self.gate.0.lock().unwrap();
        if operation == self.gated {
            while gate.shut {
                self.waits.notify_one();
                gate = self.gate.1.wait(gate).unwrap();
            }
        }
        if let Some(passed) = gate.passed.as_mut() {
            passed.push(operation);
        }
    }
}

impl Journal for Blocking {
    forward_to_store!(all but list);

    fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
        if self.panics.load(SeqCst) {
            std::panic::resume_unwind(Box::new("planned"));
        }
        self.store.list(query)
    }

    fn blocks(&self) -> bool {
        true
    }

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        self.store.append(batch)
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        self.pass(Operation::Heartbeat);
        self.store.heartbeat(by, lease)
    }

    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        self.pass(Operation::Claim);
        self.store.claim(claim)
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        self.pass(Operation::Leave);
        self.store.leave(by)
    }
}

/// It would have a lease again behind its end, or sagas that nobody drives.
#[tokio::test]
async fn nothing_that_blocks_is_done_behind_an_end() {
    for gated in [Operation::Heartbeat, Operation::Claim] {
        let (journal, saga) = (Blocking::new(gated), two(|| 1_u32));
        let opening = Orchestrator::open(journal.clone()).register(&saga).lease(seconds(2));
        let orchestrator = opening.start().await.unwrap();
        orchestrator.run(&saga, "s", &1).await.unwrap();
        journal.shut();
        journal.waits.notified().await;
        let ending = tokio::spawn(orchestrator.shutdown(seconds(5)));
        tokio::time::sleep(Duration::from_millis(300)).await;
        let left = journal.passed().contains(&Operation::Leave);
        // Before anything is asserted: the thread would wait for ever.
        journal.open();
        ending.await.unwrap();
        assert!(!left, "{gated:?}");
        assert_eq!(journal.passed().last(), Some(&Operation::Leave), "{gated:?}: {:?}", journal.passed());
    }
}

/// What is behind something else on its thread, and was not begun, is not done at all.
#[tokio::test]
async fn what_waits_for_a_thread_is_not_done_when_nobody_waits_for_it() {
    let (journal, saga) = (Blocking::new(Operation::Claim), two(|| 1_u32));
    let orchestrator = Orchestrator::open(journal.clone()).register(&saga).start().await.unwrap();
    orchestrator.run(&saga, "s", &1).await.unwrap();
    orchestrator.recovered().await;
    journal.shut();
    journal.waits.notified().await;
    // A claim has the thread.
    let given_up = orchestrator.forget(Duration::ZERO, 1);
    let given_up = tokio::time::timeout(Duration::from_millis(50), given_up).await;
    let forgotten = tokio::spawn({
        let orchestrator = orchestrator.clone();
        async move { orchestrator.forget(seconds(3_600), 1).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Before anything is asserted: the thread would wait for ever.
    journal.open();
    assert!(given_up.is_err(), "it was done beside the claim: {given_up:?}");
    assert_eq!(forgotten.await.unwrap().unwrap(), 0);
    assert_eq!(journal.store.counts().operation(Operation::Forget), 1, "only the one that is waited for");
    assert!(journal.store.stored(&SagaId::new("s").unwrap()).is_some());
}

/// A store that panics has failed in that one thing.
#[tokio::test]
async fn what_panics_on_its_thread_fails_and_nothing_else() {
    let (journal, saga) = (Blocking::new(Operation::Forget), two(|| 1_u32));
    let orchestrator = Orchestrator::open(journal.clone()).register(&saga).start().await.unwrap();
    journal.panics.store(true, SeqCst);
    let failed = orchestrator.list(Query::default()).await;
    assert!(matches!(&failed, Err(StoreError::Unavailable(why)) if why == "planned"), "{failed:?}");
    journal.panics.store(false, SeqCst);
    assert_eq!(orchestrator.list(Query::default()).await.unwrap(), []);
}
