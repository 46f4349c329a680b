//! What the orchestrator owes to those who start sagas, wait for them and keep their store.
#![cfg(feature = "saga")]

#[macro_use]
#[path = "support/forward.rs"]
mod forward;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::{
    Event, Observer,
    saga::{
        AskError, Cause, Failure, Incarnation, Orchestrator, Order, Outcome, Output, Phase, Saga, SagaId,
        StartError, StartOptions, StoreError, Timestamp,
        journal::{
            Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
            Requested, Stored,
        },
        memory::{Fault, Memory, Operation},
    },
};

/// Whether an append fails, and how.
type Plan = dyn Fn(&Memory, &[Append]) -> Option<StoreError> + Send + Sync;

/// A store whose appends go wrong as `plan` says.
#[derive(Clone)]
struct Faulty {
    store: Memory,
    plan: Arc<Plan>,
}

impl Faulty {
    fn new(
        store: &Memory,
        plan: impl Fn(&Memory, &[Append]) -> Option<StoreError> + Send + Sync + 'static,
    ) -> Self {
        Faulty { store: store.clone(), plan: Arc::new(plan) }
    }
}

impl Journal for Faulty {
    forward_to_store!();

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        match (self.plan)(&self.store, &batch) {
            Some(error) => Box::pin(async { Err(error) }),
            None => self.store.append(batch),
        }
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        self.store.heartbeat(by, lease)
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn phase(store: &Memory, id: &str) -> Phase {
    store.stored(&SagaId::new(id).unwrap()).unwrap().head.phase
}

/// One step, counted.
fn one(calls: &Arc<AtomicU32>) -> Saga<u32, Output<u32>> {
    let calls = calls.clone();
    let mut saga = Saga::define::<u32>("one", 1);
    let step = saga.step("step", (), move |_, ()| {
        calls.fetch_add(1, SeqCst);
        async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(1_u32)
        }
    });
    let step = step.without_compensation("it only counts");
    saga.build(step).unwrap()
}

/// The first append has no answer, and comes to the store `after` later.
fn late(store: &Memory, after: Duration) -> Faulty {
    let first = AtomicU32::new(0);
    Faulty::new(store, move |store, batch| {
        (first.fetch_add(1, SeqCst) == 0).then(|| {
            let (store, batch) = (store.clone(), batch.to_vec());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                store.append(batch).await
            });
            StoreError::Unavailable("no answer in time".to_owned())
        })
    })
}

#[tokio::test(start_paused = true)]
async fn a_begin_that_comes_late_is_driven_when_it_is_started_again() {
    let store = Memory::new();
    let saga = one(&Arc::default());
    let orchestrator =
        Orchestrator::open(late(&store, seconds(700))).lease(seconds(600)).register(&saga).start();
    let orchestrator = orchestrator.await.unwrap();
    orchestrator.start(&saga, "x", &1).await.unwrap_err();
    tokio::time::sleep(seconds(800)).await;
    assert_eq!(phase(&store, "x"), Phase::Running);
    let handle = orchestrator.start(&saga, "x", &1).await.unwrap();
    let outcome = tokio::time::timeout(seconds(5), handle.finished()).await.unwrap().unwrap();
    assert_eq!(outcome.completed(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_begin_that_comes_late_is_driven_even_if_nobody_starts_it_again() {
    for after in [1, 20, 700] {
        let store = Memory::new();
        let saga = one(&Arc::default());
        let orchestrator = Orchestrator::open(late(&store, seconds(after))).register(&saga).start();
        let orchestrator = orchestrator.await.unwrap();
        orchestrator.start(&saga, "x", &1).await.unwrap_err();
        tokio::time::sleep(seconds(after + 90)).await;
        assert_eq!(phase(&store, "x"), Phase::Completed, "after {after} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_whose_appends_fail_is_tried_seldom_and_then_parked() {
    let store = Memory::new();
    let calls = Arc::default();
    let saga = one(&calls);
    let refused = |append: &Append| append.entries.iter().any(|entry| entry.kind == "completed");
    let journal = Faulty::new(&store, move |_, batch| {
        batch.iter().any(refused).then(|| StoreError::Io("row too large".to_owned()))
    });
    let orchestrator = Orchestrator::open(journal).register(&saga).start().await.unwrap();
    orchestrator.start(&saga, "x", &1).await.unwrap();
    store.reset_counts();
    tokio::time::sleep(seconds(10)).await;
    assert!(calls.load(SeqCst) <= 7, "{} calls in 10 s", calls.load(SeqCst));
    tokio::time::sleep(seconds(60)).await;
    assert_eq!(phase(&store, "x"), Phase::Parked);
    assert_eq!(calls.load(SeqCst), 6);
    assert!(store.counts().operation(Operation::Claim) < 600);
}

#[tokio::test(start_paused = true)]
async fn an_outage_parks_nothing() {
    let store = Memory::new();
    let calls: Arc<AtomicU32> = Arc::default();
    let saga = one(&calls);
    let down = tokio::time::Instant::now() + seconds(300);
    let journal = Faulty::new(&store, move |_, batch| {
        let out = tokio::time::Instant::now() < down && batch.iter().all(|append| append.begin.is_none());
        out.then(|| StoreError::Unavailable("planned".to_owned()))
    });
    let orchestrator = Orchestrator::open(journal).register(&saga).start().await.unwrap();
    let handle = orchestrator.start(&saga, "x", &1).await.unwrap();
    tokio::time::sleep(seconds(335)).await;
    assert_eq!(handle.finished().await.unwrap().completed(), Some(1));
    assert!(calls.load(SeqCst) < 30, "{} calls", calls.load(SeqCst));
}

#[tokio::test(start_paused = true)]
async fn texts_that_no_store_takes_are_refused_or_cut() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("texts", 1);
    let step =
        saga.step("step", (), |_, ()| async { Err::<u32, _>(Failure::rejected("ö\0".repeat(1 << 20))) });
    let step = step.without_compensation("nothing is done");
    let saga = saga.build(step).unwrap();
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    let long = "k".repeat(201);
    let many = (0..65).fold(StartOptions::default(), |options, lock| options.lock(lock.to_string()));
    for options in [
        StartOptions::default().lock(&long),
        StartOptions::default().lock("a\0b"),
        StartOptions::default().tag(&long),
        many,
    ] {
        let refused = orchestrator.start_with(&saga, "x", &1, options).await.unwrap_err();
        assert!(matches!(refused, StartError::Text(_)), "{refused:?}");
    }
    for refused in [
        orchestrator.signal("x", "step", &long, &1).await,
        orchestrator.signal("x", "step", "a\u{1f}b", &1).await,
        orchestrator.signal("x", &"s".repeat(2_000), "m", &1).await,
        orchestrator.order("x", &long, Order::Retry { step: None }).await,
    ] {
        assert!(matches!(refused, Err(AskError::Text(_))), "{refused:?}");
    }
    let outcome = orchestrator.run(&saga, "x", &1).await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated(Cause::Rejected { error, .. }) if error.len() < 8_000));
    let stored = store.stored(&SagaId::new("x").unwrap()).unwrap();
    assert!(stored.head.note.len() < 8_000 && !stored.head.note.contains('\0'));
    assert!(stored.entries.iter().all(|entry| entry.data.len() < 16_000));
}

#[tokio::test(start_paused = true)]
async fn one_bad_append_does_not_fail_those_beside_it() {
    let store = Memory::new();
    let saga = one(&Arc::default());
    let journal = Faulty::new(&store, |_, batch| {
        let bad = batch.iter().any(|append| append.saga.as_str() == "bad");
        bad.then(|| StoreError::Io("row too large".to_owned()))
    });
    let orchestrator = Orchestrator::open(journal).register(&saga).start().await.unwrap();
    let ids = ["a", "bad", "b"];
    let started = ids.map(|id| {
        let (orchestrator, saga) = (orchestrator.clone(), saga.clone());
        tokio::spawn(async move { orchestrator.start(&saga, id, &1).await })
    });
    for (id, started) in ids.into_iter().zip(started) {
        assert_eq!(started.await.unwrap().is_ok(), id != "bad", "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_of_another_version_is_not_decoded() {
    let first = one(&Arc::default());
    let mut second = Saga::define::<u32>("one", 2);
    let step = second.step("step", (), |_, ()| async { Ok(1_u32) }).without_compensation("nothing is done");
    let more = second.step("more", step, |_, _| async { Ok("2".to_owned()) });
    let more = more.without_compensation("nothing is done");
    let second = second.build(more).unwrap();
    let orchestrator = Orchestrator::open(Memory::new()).register(&first).register(&second).start();
    let orchestrator = orchestrator.await.unwrap();
    // While it is driven, and when it is over.
    let handle = orchestrator.start(&first, "x", &1).await.unwrap();
    for _ in 0..2 {
        let other = orchestrator.handle(&second, "x").unwrap().finished().await;
        assert!(
            matches!(&other, Err(AskError::OtherDefinition { stored }) if stored.version == 1),
            "{other:?}"
        );
        let other = orchestrator.run(&second, "x", &1).await;
        assert!(matches!(other, Err(StartError::OtherDefinition { .. })), "{other:?}");
        assert_eq!(handle.finished().await.unwrap().completed(), Some(1));
    }
}

struct Panics;

impl Observer for Panics {
    fn on_event(&self, _: &Event<'_>) {
        panic!("an observer");
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_that_panics_ends_neither_keeper_nor_driver() {
    let store = Memory::new();
    let saga = one(&Arc::default());
    let orchestrator = Orchestrator::open(store.clone()).observe(Panics).register(&saga).start();
    let orchestrator = orchestrator.await.unwrap();
    store.fault(Operation::Requests, 0, Fault::Fail(StoreError::Unavailable("planned".to_owned())));
    tokio::time::sleep(seconds(60)).await;
    assert_eq!(store.planned_faults(), 0);
    let outcome = tokio::time::timeout(seconds(5), orchestrator.run(&saga, "x", &1)).await.unwrap();
    assert_eq!(outcome.unwrap().completed(), Some(1));
}

#[cfg(feature = "sqlite")]
mod file {
    use mainstay::saga::sqlite::Sqlite;

    use super::*;

    /// An empty folder, gone with the value.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("mainstay-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn after_a_shutdown_the_file_can_be_opened_at_once() {
        let folder = Folder::new("shutdown");
        let path = folder.0.join("sagas.db");
        let saga = one(&Arc::default());
        for round in 0..5 {
            let orchestrator =
                Orchestrator::open(Sqlite::open(&path).unwrap()).register(&saga).start().await.unwrap();
            let outcome = orchestrator.run(&saga, &format!("x{round}"), &1).await.unwrap();
            assert_eq!(outcome.completed(), Some(1));
            let left = orchestrator.start(&saga, &format!("y{round}"), &1).await.unwrap();
            let clone = orchestrator.clone();
            orchestrator.shutdown(Duration::ZERO).await;
            Sqlite::open(&path).unwrap();
            assert!(matches!(left.finished().await, Err(AskError::Store(_))));
            assert!(clone.load("x0").await.is_err());
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_no_second_store() {
        let folder = Folder::new("link");
        let (path, link) = (folder.0.join("sagas.db"), folder.0.join("link.db"));
        std::os::unix::fs::symlink("sagas.db", &link).unwrap();
        let first = Sqlite::open(&link).unwrap();
        assert!(matches!(Sqlite::open(&path), Err(StoreError::InUse(_))));
        drop(first);
        let _second = Sqlite::open(&path).unwrap();
        assert!(matches!(Sqlite::open(&link), Err(StoreError::InUse(_))));
    }
}

/// One step that waits for a message.
fn asking() -> Saga<u32, Output<Option<u32>>> {
    let mut saga = Saga::define::<u32>("asking", 1);
    let answer = saga.signal::<u32, _>("answer", (), None);
    saga.build(answer).unwrap()
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_ask_the_store_seldom() {
    let store = Memory::new();
    let (waits, quick) = (asking(), one(&Arc::default()));
    let orchestrator = Orchestrator::open(store.clone()).register(&waits).register(&quick).start();
    let orchestrator = orchestrator.await.unwrap();
    let mut waiters = Vec::new();
    for saga in 0..250 {
        let handle = Arc::new(orchestrator.start(&waits, &format!("w{saga}"), &1).await.unwrap());
        for _ in 0..2 {
            let handle = handle.clone();
            waiters.push(tokio::spawn(async move { handle.finished().await.unwrap().completed() }));
        }
    }
    tokio::time::sleep(seconds(30)).await;
    store.reset_counts();
    tokio::time::sleep(seconds(100)).await;
    let loads = store.counts().operation(Operation::Load);
    assert!(loads <= 10 * 250 + 250, "{loads} loads in 100 s");
    store.reset_counts();
    for saga in 0..100 {
        orchestrator.run(&quick, &format!("q{saga}"), &1).await.unwrap();
    }
    let loads = store.counts().operation(Operation::Load);
    assert!(loads <= 500, "{loads} loads while others ran");
    for saga in 0..250 {
        orchestrator.signal(&format!("w{saga}"), "answer", "m", &saga).await.unwrap();
    }
    // Nobody waits for the next look when the end is seen here.
    let told = tokio::time::Instant::now();
    for (at, waiter) in waiters.into_iter().enumerate() {
        assert_eq!(waiter.await.unwrap(), Some(Some(at as u32 / 2)));
    }
    assert!(told.elapsed() < seconds(1), "{:?}", told.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_end_elsewhere_is_seen_in_the_store() {
    let store = Memory::new();
    let saga = one(&Arc::default());
    let other = Orchestrator::open(store.connect()).start().await.unwrap();
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
    orchestrator.start(&saga, "x", &1).await.unwrap();
    let handle = other.handle(&saga, "x").unwrap();
    let outcome = tokio::time::timeout(seconds(1), handle.finished()).await.unwrap();
    assert_eq!(outcome.unwrap().completed(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn what_comes_from_outside_is_checked() {
    let mut saga = Saga::define::<u32>("two", 1);
    let first = saga.signal::<u32, _>("a", (), None);
    let second = saga.signal::<u32, _>("a:b", (), None);
    let saga = saga.build((first, second)).unwrap();
    let orchestrator = Orchestrator::open(Memory::new()).max_output(100).register(&saga).start();
    let orchestrator = orchestrator.await.unwrap();
    let handle = orchestrator.start(&saga, "x", &1).await.unwrap();
    let long = "l".repeat(200);
    let output = mainstay::saga::Payload::encode(&long).unwrap();
    for refused in [
        orchestrator.signal("x", "a", "m", &long).await,
        orchestrator.order("x", "me", Order::Complete { step: "a".to_owned(), output }).await,
    ] {
        assert!(matches!(refused, Err(AskError::Payload(_))), "{refused:?}");
    }
    // Two messages, whatever their names are joined by.
    assert_eq!(orchestrator.signal("x", "a", "b:c", &1).await.unwrap(), Requested::Left);
    assert_eq!(orchestrator.signal("x", "a:b", "c", &2).await.unwrap(), Requested::Left);
    assert_eq!(handle.finished().await.unwrap().completed(), Some((Some(1), Some(2))));
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_has_begun_is_found_when_there_is_no_room() {
    let saga = one(&Arc::default());
    let orchestrator = Orchestrator::open(Memory::new()).max_live(1).register(&saga).start();
    let orchestrator = orchestrator.await.unwrap();
    orchestrator.start(&saga, "x", &1).await.unwrap();
    orchestrator.start(&saga, "x", &1).await.unwrap();
    let busy = orchestrator.start(&saga, "y", &1).await;
    assert!(matches!(busy, Err(StartError::Busy(_))), "{busy:?}");
    let text = busy.unwrap_err().to_string();
    assert_eq!(text, "as many sagas are being worked on at once as `max_live` allows; nothing has begun");
    let other = orchestrator.start(&saga, "x", &2).await;
    assert!(matches!(other, Err(StartError::Different { .. })), "{other:?}");
}

/// A deploy in which the first output is a `T`, and the second step does not end.
fn two_steps<T: serde::Serialize + serde::de::DeserializeOwned + Default + Send + 'static>()
-> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>("blocked", 1);
    let first = saga.step("first", (), |_, ()| async { Ok(T::default()) });
    let first = first.without_compensation("nothing is done");
    let second = saga.step("second", first, |_, _| std::future::pending::<Result<u32, Failure>>());
    let second = second.without_compensation("nothing is done");
    saga.build(second).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_blocked_saga_says_where_it_stands_and_can_be_given_up() {
    let (store, before, saga) = (Memory::new(), two_steps::<u32>(), two_steps::<String>());
    let first = Orchestrator::open(store.clone()).register(&before).start().await.unwrap();
    first.start(&before, "x", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    first.shutdown(seconds(1)).await;
    let orchestrator = Orchestrator::open(store.connect()).register(&saga).start().await.unwrap();
    let handle = orchestrator.handle(&saga, "x").unwrap();
    orchestrator.recovered().await;
    let held = handle.settled().await.unwrap();
    assert!(matches!(held, Outcome::Held { phase: Some(Phase::Running), .. }), "{held:?}");
    let status = handle.status().await.unwrap();
    assert!(status.phase == Some(Phase::Running) && status.blocked.is_some(), "{status:?}");
    assert_eq!(orchestrator.blocked().await.unwrap().len(), 1);
    orchestrator.order("x", "me", Order::Abandon { reason: "hopeless".to_owned() }).await.unwrap();
    let ended = tokio::time::timeout(seconds(5), handle.finished()).await.unwrap().unwrap();
    assert!(matches!(ended, Outcome::Abandoned(_)), "{ended:?}");
    assert!(orchestrator.blocked().await.unwrap().is_empty());
}

/// A deploy in which a `T` comes of it.
fn comes_to<T: serde::Serialize + serde::de::DeserializeOwned + Default + Send + 'static>()
-> Saga<u32, Output<T>> {
    let mut saga = Saga::define::<u32>("comes-to", 1);
    let step = saga.step("step", (), |_, ()| async { Ok(T::default()) });
    let step = step.without_compensation("nothing is done");
    saga.build(step).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_came_of_a_saga_and_cannot_be_read_is_no_failure_of_the_store() {
    let (store, before, after) = (Memory::new(), comes_to::<u32>(), comes_to::<String>());
    let first = Orchestrator::open(store.clone()).register(&before).start().await.unwrap();
    first.run(&before, "x", &1).await.unwrap();
    first.shutdown(seconds(1)).await;
    let second = Orchestrator::open(store.connect()).register(&after).start().await.unwrap();
    let asked = second.handle(&after, "x").unwrap().finished().await.unwrap_err();
    let run = second.run(&after, "x", &1).await.unwrap_err();
    assert!(matches!(&asked, AskError::Output { saga, .. } if saga.as_str() == "x"), "{asked:?}");
    assert!(matches!(&run, StartError::Output { id, .. } if id.as_str() == "x"), "{run:?}");
    let text = "the saga x is completed, and what came of it cannot be read: the output of a step cannot be read: \
                invalid type: integer `0`, expected a string";
    assert!(asked.to_string().starts_with(text), "{asked}");
    assert_eq!(run.to_string(), asked.to_string());
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_is_forgotten_while_it_is_looked_at_is_no_failure_of_the_store() {
    // When its beginning is looked for, and when its end is.
    for look in [0, 1] {
        let (store, saga) = (Memory::new(), one(&Arc::default()));
        let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.unwrap();
        orchestrator.run(&saga, "x", &1).await.unwrap();
        tokio::time::sleep(seconds(1)).await;
        store.fault(Operation::Load, look, Fault::Stall(seconds(60)));
        let (other, again) = (orchestrator.clone(), saga.clone());
        let run = tokio::spawn(async move { other.run(&again, "x", &1).await });
        tokio::time::sleep(seconds(1)).await;
        assert_eq!(store.planned_faults(), 0, "it is being looked at");
        assert_eq!(orchestrator.forget(Duration::ZERO, 10).await.unwrap(), 1);
        let error = run.await.unwrap().unwrap_err();
        assert_eq!(error, StartError::Forgotten { id: SagaId::new("x").unwrap() });
        assert_eq!(error.to_string(), "the saga x is over, and was just forgotten");
    }
}
