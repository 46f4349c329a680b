//! What an orchestrator over a store that blocks its threads has to bear: work of others on the runtime's threads, and what a later version
//! has left in the file.
#![cfg(feature = "sqlite")]
#![allow(missing_docs)]

use std::{
    path::PathBuf,
    sync::mpsc,
    time::{Duration, Instant},
};

use mainstay::saga::{
    Orchestrator, Outcome, Output, Saga, SagaId,
    journal::{Head, Journal, Request},
    sqlite::{Sqlite, rusqlite::Connection},
};

const MS: Duration = Duration::from_millis(1);

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("mainstay-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.join("sagas.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Waits for a message.
fn asking() -> Saga<u32, Output<Option<u32>>> {
    let mut saga = Saga::define::<u32>("asking", 1);
    let word = saga.signal::<u32, _>("word", (), None);
    saga.build(word).unwrap()
}

async fn head(store: &Sqlite, id: &str) -> Head {
    store.load(&SagaId::new(id).unwrap()).await.unwrap().unwrap().head
}

/// Steps are told to do what blocks in `spawn_blocking`. When they have all threads there are, and wait, the lease is kept, and sagas begin,
/// go on and end.
#[test]
fn the_lease_does_not_wait_for_a_thread_that_steps_have() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let folder = Folder::new("lease");
        let lease = 600 * MS;
        let mut saga = Saga::define::<u32>("nap", 1);
        let slept = saga.sleep("sleep", (), 1_500 * MS);
        let rung = saga.step("ring", slept, |step, ()| async move { Ok(*step.input()) });
        let rung = rung.without_compensation("it is heard");
        let (nap, asking) = (saga.build(rung).unwrap(), asking());
        let opening = Orchestrator::open(Sqlite::open(folder.file()).unwrap());
        let opening = opening.register(&nap).register(&asking).lease(lease).poll(20 * MS);
        let orchestrator = opening.start().await.unwrap();
        orchestrator.recovered().await;

        let (free, busy) = mpsc::channel::<()>();
        let thread = tokio::task::spawn_blocking(move || busy.recv());
        let tool = Connection::open(folder.file()).unwrap();
        let lived = || {
            let until = "select until - unixepoch('subsec') * 1000 from orchestrator";
            tool.query_row(until, [], |row| row.get::<_, f64>(0)).unwrap()
        };
        let rings = orchestrator.start(&nap, "nap", &7).await.unwrap();
        let asked = orchestrator.start(&asking, "asked", &1).await.unwrap();
        let began = Instant::now();
        let mut least = f64::MAX;
        while began.elapsed() < 4 * lease {
            least = least.min(lived());
            tokio::time::sleep(10 * MS).await;
        }
        assert!(least > 0.0, "others could have taken its sagas for {least} ms");
        let patience = 5_000 * MS;
        orchestrator.signal("asked", "word", "m", &5_u32).await.unwrap();
        let asked = tokio::time::timeout(patience, asked.finished()).await;
        let rings = tokio::time::timeout(patience, rings.finished()).await;
        // Before anything is asserted: the runtime would wait for the thread.
        let held = free.send(());
        thread.await.unwrap().unwrap();
        assert_eq!(asked.expect("a message waits for the thread").unwrap(), Outcome::Completed(Some(5)));
        assert_eq!(rings.expect("a timer waits for the thread").unwrap(), Outcome::Completed(7));
        held.unwrap();
        orchestrator.shutdown(1_000 * MS).await;
    });
}

/// A later version knows more to ask for. What this one cannot read waits for that one, and costs next to nothing meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_cannot_be_read_is_no_reason_to_claim_again_and_again() {
    let folder = Folder::new("unreadable");
    let store = Sqlite::open(folder.file()).unwrap();
    let asking = asking();
    let opening = Orchestrator::open(store.clone()).register(&asking).poll(10 * MS);
    let orchestrator = opening.start().await.unwrap();
    for id in ["own", "other"] {
        orchestrator.start(&asking, id, &1).await.unwrap();
    }
    while orchestrator.live() > 0 {
        tokio::time::sleep(10 * MS).await;
    }
    let before = head(&store, "own").await.epoch;
    let tool = Connection::open(folder.file()).unwrap();
    let leave =
        "insert into signal (saga, id, author, ask) select number, 'later', 'ada', '{\"poke\":{}}' from saga";
    assert_eq!(tool.execute(leave, []).unwrap(), 2);
    tokio::time::sleep(3_000 * MS).await;
    for id in ["own", "other"] {
        let claims = head(&store, id).await.epoch - before;
        assert!((1..15).contains(&claims), "{id} was claimed {claims} times");
    }
    assert_eq!(orchestrator.live(), 0);

    // What can be read is followed: at once where it is left here, and soon where it comes from elsewhere.
    let handle = |id| orchestrator.handle(&asking, id).unwrap();
    let began = Instant::now();
    orchestrator.signal("own", "word", "m", &7_u32).await.unwrap();
    assert_eq!(handle("own").finished().await.unwrap(), Outcome::Completed(Some(7)));
    assert!(began.elapsed() < 500 * MS, "{:?}", began.elapsed());
    let payload = mainstay::saga::Payload::encode(&8).unwrap();
    let request = Request::signal(SagaId::new("other").unwrap(), "ada", "word", "m", payload);
    Sqlite::open_existing(folder.file()).unwrap().request(request).await.unwrap();
    let end = tokio::time::timeout(10_000 * MS, handle("other").finished()).await;
    assert_eq!(end.expect("it waits for ever").unwrap(), Outcome::Completed(Some(8)));
    let row = "select count(*) from signal where ask is not null";
    assert_eq!(tool.query_row(row, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    orchestrator.shutdown(1_000 * MS).await;
}
