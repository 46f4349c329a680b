//! Transactional steps with the SQLite journal.
#![cfg(feature = "sqlite")]

mod limits;
#[path = "../support/transact.rs"]
mod transact;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::saga::{
    Failure, Orchestrator, Outcome, Saga, Transact, Unknown,
    journal::{Append, Job, Journal, Refusal},
    sqlite::{
        self, InTransaction, Sqlite,
        rusqlite::{self, Connection, Transaction},
    },
};
use transact::{How, Shop, begun, end, kinds, stored, working};

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[derive(Clone)]
struct File {
    folder: Arc<Folder>,
    journal: Sqlite,
}

impl File {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("mainstay-transact-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst));
        let folder = Folder(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&folder.0).unwrap();
        let journal = Sqlite::open(folder.0.join("sagas.db")).unwrap();
        let file = File { folder: Arc::new(folder), journal };
        file.connection()
            .execute_batch(
                "CREATE TABLE booking (what TEXT NOT NULL);
                 CREATE TABLE only (what TEXT PRIMARY KEY, of TEXT REFERENCES only DEFERRABLE INITIALLY DEFERRED)",
            )
            .unwrap();
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.0.join("sagas.db")
    }

    fn connection(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }
}

fn count(connection: &Connection) -> i64 {
    connection.query_row("SELECT count(*) FROM booking", [], |row| row.get(0)).unwrap()
}

fn insert(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.execute("INSERT INTO booking VALUES ('seat')", []).map(drop)
}

/// Work that books and then does something with the transaction.
fn then(
    more: impl FnOnce(&Transaction<'_>) -> Result<(), Failure> + Send + 'static,
) -> Transact<String, InTransaction> {
    sqlite::in_transaction(move |tx| {
        insert(tx)?;
        more(tx)?;
        end(How::Fine)
    })
}

fn sql(text: &'static str) -> Transact<String, InTransaction> {
    then(move |tx| Ok(tx.execute_batch(text)?))
}

impl Shop for File {
    type Job = InTransaction;
    type Journal = Sqlite;

    fn journal(&self) -> Sqlite {
        self.journal.clone()
    }

    fn book(&self, how: How) -> Transact<String, InTransaction> {
        sqlite::in_transaction(move |tx| {
            insert(tx)?;
            if how == How::Error {
                tx.execute("INSERT INTO booking VALUES (NULL)", [])?;
            }
            end(how)
        })
    }

    fn book_unreadably(&self) -> Transact<f64, InTransaction> {
        sqlite::in_transaction(|tx| {
            insert(tx)?;
            Ok(f64::NAN)
        })
    }

    fn unbook(&self) -> Transact<(), InTransaction> {
        sqlite::in_transaction(|tx| {
            tx.execute("DELETE FROM booking WHERE rowid = (SELECT max(rowid) FROM booking)", [])?;
            Ok(())
        })
    }

    async fn rows(&self) -> i64 {
        count(&self.connection())
    }
}

#[tokio::test]
async fn it_is_done_and_recorded_once() {
    transact::it_is_done_and_recorded_once(File::new()).await;
}

#[tokio::test]
async fn what_is_rejected_leaves_nothing() {
    transact::what_is_rejected_leaves_nothing(File::new()).await;
}

#[tokio::test]
async fn what_cannot_be_read_again_leaves_nothing() {
    transact::what_cannot_be_read_again_leaves_nothing(File::new()).await;
}

#[tokio::test]
async fn what_fails_is_tried_again_and_then_given_up() {
    transact::what_fails_is_tried_again_and_then_given_up(File::new()).await;
}

#[tokio::test]
async fn an_owner_of_before_does_no_work() {
    transact::an_owner_of_before_does_no_work(File::new()).await;
}

#[tokio::test]
async fn work_of_one_batch_fails_alone() {
    transact::work_of_one_batch_fails_alone(File::new()).await;
}

#[tokio::test]
async fn what_was_turned_round_does_no_work() {
    transact::what_was_turned_round_does_no_work(File::new()).await;
}

#[tokio::test]
async fn who_takes_over_knows_that_nothing_has_happened() {
    transact::who_takes_over_knows_that_nothing_has_happened(File::new()).await;
}

struct Elsewhere;

impl Job for Elsewhere {
    const STORE: &'static str = "a drawer";
}

#[tokio::test]
async fn work_for_another_store_is_refused() {
    let file = File::new();
    let (pen, head) = begun(&file.journal, "a").await;
    let append = move || working(&mut pen.clone(), &head, Transact::<String, _>::new(Elsewhere));
    transact::work_for_another_store_is_refused(file, append).await;
}

/// The database as a power cut in the middle of the work, and one behind the answer, would leave it.
#[tokio::test]
async fn a_crash_leaves_both_or_neither() {
    let file = File::new();
    let copy = |to: &str| -> Box<dyn Fn() + Send> {
        let (from, to) = (file.path(), file.folder.0.join(to));
        Box::new(move || {
            for end in ["", "-wal"] {
                std::fs::copy(format!("{}{end}", from.display()), format!("{}{end}", to.display())).unwrap();
            }
        })
    };
    let (within, behind) = (copy("within.db"), copy("behind.db"));
    let (mut pen, head) = begun(&file.journal, "a").await;
    let work = then(move |tx| {
        // What has left the cache for the log is not committed either.
        tx.execute_batch("PRAGMA cache_spill = 1; PRAGMA cache_size = 1")?;
        tx.execute(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2000)
             INSERT INTO booking SELECT hex(zeroblob(200)) FROM n",
            [],
        )?;
        within();
        Ok(())
    });
    assert_eq!(file.journal.append(vec![working(&mut pen, &head, work)]).await.unwrap(), [Ok(())]);
    behind();
    for (name, rows, entries) in [("within.db", 0, 1), ("behind.db", 2_001, 2)] {
        let path = file.folder.0.join(name);
        let left = Sqlite::open(&path).unwrap();
        assert_eq!(count(&Connection::open(&path).unwrap()), rows, "{name}");
        assert_eq!(stored(&left, "a").await.head.len, entries, "{name}");
    }
}

#[tokio::test]
async fn work_cannot_end_the_transaction_or_change_the_journal() {
    let file = File::new();
    for (n, text) in [
        "COMMIT",
        "ROLLBACK",
        "BEGIN",
        "END",
        "RELEASE mainstay_work",
        "ROLLBACK TO mainstay_work",
        "DELETE FROM saga_event",
        "UPDATE saga SET epoch = 9",
        "INSERT INTO META VALUES ('format', '2')",
        "DROP TABLE semantic_lock",
    ]
    .into_iter()
    .enumerate()
    {
        let (mut neighbour, _) = begun(&file.journal, &format!("n{n}")).await;
        let (mut pen, head) = begun(&file.journal, &format!("a{n}")).await;
        let batch = vec![neighbour.step("x"), working(&mut pen, &head, sql(text)), neighbour.step("y")];
        let answers = file.journal.append(batch).await.unwrap();
        let [Ok(()), Err(Refusal::Failed { why }), Ok(())] = &answers[..] else {
            panic!("{text}: {answers:?}")
        };
        assert!(why.contains("not authorized"), "{text}: {why}");
        assert_eq!(stored(&file.journal, &format!("n{n}")).await.head.len, 3, "{text}");
    }
    // A statement that is kept is none that the journal has kept.
    let (mut pen, head) = begun(&file.journal, "kept").await;
    let work = then(|tx| Ok(tx.prepare_cached("COMMIT")?.execute([]).map(drop)?));
    let answers = file.journal.append(vec![working(&mut pen, &head, work)]).await.unwrap();
    assert!(matches!(&answers[..], [Err(Refusal::Failed { .. })]), "{answers:?}");
    assert_eq!(file.rows().await, 0);
    // Savepoints of one's own are allowed.
    let (mut pen, head) = begun(&file.journal, "own").await;
    let own = sql("SAVEPOINT own; DELETE FROM booking; ROLLBACK TO own; RELEASE own");
    assert_eq!(file.journal.append(vec![working(&mut pen, &head, own)]).await.unwrap(), [Ok(())]);
    assert_eq!(file.rows().await, 1);
}

/// SQLite rolls all of a transaction back where it is told to, and looks at some constraints only when it ends.
#[tokio::test]
async fn work_that_spoils_its_batch_loses_no_record() {
    for (n, text) in [
        "INSERT INTO only (what) VALUES ('a'); INSERT OR ROLLBACK INTO only (what) VALUES ('a')",
        "INSERT INTO only VALUES ('b', 'not there')",
    ]
    .into_iter()
    .enumerate()
    {
        let file = File::new();
        let (mut plain, _) = begun(&file.journal, "plain").await;
        let (mut good, head) = begun(&file.journal, "good").await;
        let good_again = (good.clone(), head.clone());
        let mut batch = vec![plain.step("x"), working(&mut good, &head, file.book(How::Fine))];
        let (mut bad, head) = begun(&file.journal, "bad").await;
        batch.push(working(&mut bad, &head, sql(text)));
        batch.push(plain.step("y"));
        let answers = file.journal.append(batch).await.unwrap();
        let [Ok(()), Err(Refusal::Failed { .. }), Err(Refusal::Failed { .. }), Ok(())] = &answers[..] else {
            panic!("{n}: {answers:?}")
        };
        assert_eq!(stored(&file.journal, "plain").await.head.len, 3);
        assert_eq!((stored(&file.journal, "good").await.head.len, file.rows().await), (1, 0), "{n}");
        let (mut good, head) = good_again;
        let again = working(&mut good, &head, file.book(How::Fine));
        assert_eq!(file.journal.append(vec![again]).await.unwrap(), [Ok(())]);
        assert_eq!((stored(&file.journal, "good").await.head.len, file.rows().await), (2, 1), "{n}");
    }
}

/// The journal, and how many batches it has made.
#[derive(Clone)]
struct Counted(Sqlite, Arc<Mutex<Vec<usize>>>);

macro_rules! forward {
    ($($name:ident($($arg:ident: $of:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($arg: $of),*) -> $answer { self.0.$name($($arg),*) })*
    };
}

impl Journal for Counted {
    fn append(&self, batch: Vec<Append>) -> mainstay::saga::journal::Pending<'_, Vec<Result<(), Refusal>>> {
        self.1.lock().unwrap().push(batch.len());
        self.0.append(batch)
    }

    forward! {
        now() -> mainstay::saga::journal::Pending<'_, mainstay::saga::Timestamp>;
        does(job: std::any::TypeId) -> bool;
        blocks() -> bool;
        heartbeat(by: &mainstay::saga::Incarnation, lease: Duration) -> mainstay::saga::journal::Pending<'_, ()>;
        announce(by: &mainstay::saga::Incarnation, present: mainstay::saga::journal::Presence)
            -> mainstay::saga::journal::Pending<'_, ()>;
        orchestrators() -> mainstay::saga::journal::Pending<'_, Vec<mainstay::saga::journal::Registered>>;
        leave(by: &mainstay::saga::Incarnation) -> mainstay::saga::journal::Pending<'_, ()>;
        claim(claim: mainstay::saga::journal::Claim)
            -> mainstay::saga::journal::Pending<'_, Vec<mainstay::saga::journal::Stored>>;
        load(saga: &mainstay::saga::SagaId)
            -> mainstay::saga::journal::Pending<'_, Option<mainstay::saga::journal::Stored>>;
        list(query: mainstay::saga::journal::Query)
            -> mainstay::saga::journal::Pending<'_, Vec<mainstay::saga::journal::Head>>;
        request(request: mainstay::saga::journal::Request)
            -> mainstay::saga::journal::Pending<'_, mainstay::saga::journal::Requested>;
        requests(by: &mainstay::saga::Incarnation)
            -> mainstay::saga::journal::Pending<'_, Vec<mainstay::saga::journal::Request>>;
        forget(by: &str, before: mainstay::saga::Timestamp, limit: usize) -> mainstay::saga::journal::Pending<'_, usize>;
        forgotten(limit: usize) -> mainstay::saga::journal::Pending<'_, Vec<mainstay::saga::journal::Forgotten>>;
    }
}

/// A batch is a transaction, and so a forced write: `n + 1` for a saga alone, and fewer for many at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_costs_no_forced_write_of_its_own() {
    const STEPS: usize = 3;
    const SAGAS: usize = 200;
    let file = File::new();
    let journal = Counted(file.journal.clone(), Arc::default());
    let mut order = Saga::define::<u32>("order", 1);
    let mut last = None;
    for step in ["a", "b", "c"] {
        let shop = file.clone();
        let added = order.step(step, (), move |_, ()| {
            let work = shop.book(How::Fine);
            async move { Ok(work) }
        });
        let added = match last {
            Some(before) => added.after(before),
            None => added,
        };
        last = Some(added.without_compensation("a test"));
    }
    let saga = order.build(()).unwrap();
    let orders = Orchestrator::open(journal.clone()).register(&saga).start().await.unwrap();
    assert!(matches!(orders.run(&saga, "alone", &1).await.unwrap(), Outcome::Completed(())));
    assert_eq!(*journal.1.lock().unwrap(), [1; STEPS + 1]);
    assert_eq!(kinds(&file.journal, "alone").await.len(), STEPS + 1);

    journal.1.lock().unwrap().clear();
    let mut running = tokio::task::JoinSet::new();
    for n in 0..SAGAS {
        let (orders, saga) = (orders.clone(), saga.clone());
        running.spawn(async move { orders.run(&saga, &format!("s{n}"), &1).await.unwrap() });
    }
    while let Some(outcome) = running.join_next().await {
        assert!(matches!(outcome.unwrap(), Outcome::Completed(())));
    }
    let (batches, entries) = {
        let batches = journal.1.lock().unwrap();
        (batches.len(), batches.iter().sum::<usize>())
    };
    println!("{entries} entries and {} business rows in {batches} forced writes", SAGAS * STEPS);
    assert_eq!(entries, SAGAS * (STEPS + 1));
    assert!(batches * 4 < entries, "{entries} entries in {batches} batches");
    assert_eq!(file.rows().await, ((SAGAS + 1) * STEPS) as i64);
}

/// Whether a step can be in doubt is a part of a definition, and what is never in doubt needs nobody to decide on it.
#[test]
fn a_definition_says_which_steps_are_never_in_doubt() {
    let file = File::new();
    let define = |transactional: bool, unknown: Unknown| {
        let mut order = Saga::define::<u32>("order", 1);
        let shop = file.clone();
        let after = match transactional {
            true => order.step("book", (), move |_, ()| {
                let work = shop.book(How::Fine);
                async move { Ok(work) }
            }),
            false => order.step("book", (), |_, ()| async { Ok("booked".to_owned()) }),
        };
        let booked = after.on_unknown(unknown).without_compensation("a test");
        order.build(booked)
    };
    let digest = |transactional| define(transactional, Unknown::Retry).unwrap().digest().to_owned();
    assert_ne!(digest(true), digest(false));
    for unknown in [Unknown::Park, Unknown::Compensate] {
        let refused = define(true, unknown).unwrap_err().to_string();
        assert!(refused.contains("there is nothing unknown about it"), "{refused}");
        define(false, unknown).unwrap();
    }
}

/// Where a conflict clause has ended the transaction, later statements of the same work would each be one of their own.
#[tokio::test]
async fn what_work_does_after_it_has_ended_the_transaction_is_not_done() {
    let file = File::new();
    file.connection().execute_batch("INSERT INTO only (what) VALUES ('there')").unwrap();
    let mut saga = Saga::define::<u32>("stubborn", 1);
    let booked = saga.step("book", (), |_, ()| async {
        Ok(sqlite::in_transaction(|tx| {
            if tx.execute("INSERT OR ROLLBACK INTO only (what) VALUES ('there')", []).is_err() {
                insert(tx)?;
                return Err::<u32, _>(Failure::rejected("it is there already"));
            }
            Ok(1)
        }))
    });
    let booked = booked.without_compensation("it is rolled back");
    let saga = saga.build(booked).unwrap();
    let orchestrator = Orchestrator::open(file.journal.clone()).register(&saga).start().await.unwrap();
    let outcome = orchestrator.run(&saga, "s", &1).await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated(_)), "{outcome:?}");
    assert_eq!(count(&file.connection()), 0);
    orchestrator.shutdown(Duration::from_secs(5)).await;
}

/// Work whose violation shows when the transaction ends is not known among others; they are not blamed for it.
#[tokio::test]
async fn work_beside_that_which_spoils_the_batch_is_not_turned_round() {
    let file = File::new();
    let mut good = Saga::define::<u32>("good", 1);
    let booked = good.step("book", (), |_, ()| async {
        Ok(sqlite::in_transaction(|tx| {
            insert(tx)?;
            Ok(1_u32)
        }))
    });
    // One failure that counts is enough to turn it round.
    let once =
        mainstay::stack("once").retry(mainstay::Retry::constant(Duration::from_secs(1)).max_attempts(1));
    let booked = booked.through(once.build().unwrap()).without_compensation("it is rolled back");
    let good = good.build(booked).unwrap();
    let mut bad = Saga::define::<u32>("bad", 1);
    let never = bad.step("spoil", (), |_, ()| async {
        Ok(sqlite::in_transaction(|tx| {
            tx.execute("INSERT INTO only VALUES (?1, 'nothing')", [uuid()])?;
            Ok(1_u32)
        }))
    });
    let never = never.without_compensation("it is rolled back");
    let bad = bad.build(never).unwrap();
    let opening = Orchestrator::open(file.journal.clone()).register(&good).register(&bad);
    let orchestrator = opening.start().await.unwrap();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..120 {
        let (orchestrator, good, bad) = (orchestrator.clone(), good.clone(), bad.clone());
        running.spawn(async move {
            if number % 4 == 0 {
                let outcome = orchestrator.run(&bad, &format!("bad {number}"), &1).await.unwrap();
                assert!(matches!(outcome, Outcome::Compensated(_)), "{outcome:?}");
            } else {
                let outcome = orchestrator.run(&good, &format!("good {number}"), &1).await.unwrap();
                assert_eq!(outcome, Outcome::Completed(1));
            }
        });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
    assert_eq!(count(&file.connection()), 90);
    orchestrator.shutdown(Duration::from_secs(5)).await;
}

/// Another text each time.
fn uuid() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, SeqCst).to_string()
}
