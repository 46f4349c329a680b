//! What can only be seen from within: pragmas, plans, and another connection in the way.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use rusqlite::Connection;

use super::{Sqlite, open, read, write};
use crate::saga::{
    Incarnation, SagaId, Timestamp,
    conformance::{Pen, definition},
    journal::{Journal, Pending, Phase, Query, StoreError},
};

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("mainstay-sqlite-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn path(&self) -> PathBuf {
        self.0.join("sagas.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Done in one poll, like everything here.
fn now<T>(mut pending: Pending<'_, T>) -> Result<T, StoreError> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match pending.as_mut().poll(&mut cx) {
        std::task::Poll::Ready(answer) => answer,
        std::task::Poll::Pending => panic!("it was not done in one poll"),
    }
}

fn pen(saga: &str) -> Pen {
    Pen::new(saga, &Incarnation::from_text("one"), Timestamp(1))
}

/// The `CREATE TABLE`s of a schema, without comments, indexes and what only SQLite says.
fn tables(sql: &str) -> Vec<String> {
    let lines = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
    let sql = lines.collect::<Vec<_>>().join(" ");
    let words = |statement: &str| statement.split_whitespace().collect::<Vec<_>>().join(" ");
    let bare = |statement: String| {
        statement.trim_end_matches(" STRICT, WITHOUT ROWID").trim_end_matches(" STRICT").to_owned()
    };
    sql.split(';').map(words).filter(|statement| statement.starts_with("CREATE TABLE")).map(bare).collect()
}

#[test]
fn the_documented_tables_are_those_that_are_made() {
    let page = include_str!("../../../docs/saga-format.md");
    let documented = page.split("```").nth(1).and_then(|block| block.strip_prefix("sql")).unwrap();
    let (documented, made) = (tables(documented), tables(open::SCHEMA));
    assert_eq!(made.len(), 7);
    assert_eq!(documented, made);
}

#[test]
fn both_connections_sync_every_commit() {
    let folder = Folder::new();
    let store = Sqlite::open(folder.path()).unwrap();
    for connection in [&store.0.writer, &store.0.reader] {
        let connection = connection.lock().unwrap();
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!((mode.as_str(), number("synchronous"), number("foreign_keys")), ("wal", 2, 1));
    }
}

/// How SQLite goes about a query.
fn plan(connection: &Connection, sql: &str) -> String {
    let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let count = explain.parameter_count();
    let parameters = rusqlite::params_from_iter(vec!["x"; count]);
    let steps = explain.query_map(parameters, |row| row.get::<_, String>(3)).unwrap();
    steps.map(Result::unwrap).collect::<Vec<_>>().join("; ")
}

#[test]
fn claims_walk_indexes_in_order() {
    let folder = Folder::new();
    let store = Sqlite::open(folder.path()).unwrap();
    let connection = store.0.writer.lock().unwrap();
    for (condition, index) in [(write::AWAKE, "saga_asleep"), (write::DEAD, "saga_owned")] {
        let plan = plan(&connection, &format!("{} {condition}", write::COLUMNS));
        assert!(plan.contains(&format!("SEARCH saga USING INDEX {index}")), "{plan}");
        assert!(!plan.contains("TEMP B-TREE"), "it sorts all to take the first: {plan}");
    }
    let owners = plan(&connection, write::OWNERS);
    assert!(owners.contains("SEARCH saga USING COVERING INDEX saga_owned"), "{owners}");
    let asked = plan(&connection, &format!("{} {}", write::COLUMNS, write::ASKED));
    assert!(asked.contains("signal_waiting") && !asked.contains("SCAN saga"), "{asked}");
    let attention =
        "SELECT id FROM saga WHERE phase IN (?1) AND phase IN ('stuck', 'parked') AND id > ?2 ORDER BY id";
    let attention = plan(&connection, attention);
    assert!(attention.contains("saga_attention") && !attention.contains("TEMP B-TREE"), "{attention}");
    // What an orchestrator looks through for its own.
    let phases: Vec<Phase> = Phase::ALL.into_iter().filter(|phase| !phase.is_terminal()).collect();
    let after = Some(SagaId::new("a").unwrap());
    let (open, _) = read::listing(&Query { phases, after, limit: 9, ..Query::default() });
    let open = plan(&connection, &open);
    assert!(open.contains("saga_open") && !open.contains("TEMP B-TREE"), "{open}");
    let tagged =
        plan(&connection, "SELECT id FROM saga WHERE tag = ?1 AND tag <> '' AND id > ?2 ORDER BY id LIMIT 9");
    assert!(tagged.contains("saga_tagged") && !tagged.contains("TEMP B-TREE"), "{tagged}");
}

#[test]
fn another_writer_makes_it_unavailable_and_nothing_worse() {
    let folder = Folder::new();
    let store = Sqlite::at(folder.path()).busy_timeout(Duration::from_millis(20)).open().unwrap();
    let mut pen = pen("a");
    assert_eq!(now(store.append(vec![pen.begin(&definition())])), Ok(vec![Ok(())]));
    let other = Connection::open(folder.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let step = pen.step("x");
    assert!(matches!(now(store.append(vec![step.clone()])), Err(StoreError::Unavailable(_))));
    assert!(matches!(now(store.forget("me", Timestamp(9), 9)), Err(StoreError::Unavailable(_))));
    assert!(now(store.load(pen.saga())).unwrap().unwrap().verify().is_ok(), "it can be read");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(now(store.append(vec![step])), Ok(vec![Ok(())]), "when the other one is done it goes on");
}

#[test]
fn a_status_is_told_while_a_write_stalls() {
    let folder = Folder::new();
    let store = Sqlite::open(folder.path()).unwrap();
    let mut pen = pen("a");
    now(store.append(vec![pen.begin(&definition())])).unwrap();
    let other = Connection::open(folder.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let written = Arc::new(AtomicBool::new(false));
    let (writing, step, done) = (store.clone(), pen.step("x"), written.clone());
    let writer = std::thread::spawn(move || {
        let answer = now(writing.append(vec![step]));
        done.store(true, SeqCst);
        answer
    });
    while store.0.writer.try_lock().is_ok() {
        std::thread::yield_now();
    }
    assert_eq!(now(store.list(Query::default())).unwrap().len(), 1);
    assert_eq!(now(store.load(pen.saga())).unwrap().unwrap().head.len, 1);
    assert_eq!(now(store.requests(&Incarnation::from_text("one"))), Ok(Vec::new()));
    assert!(!written.load(SeqCst), "all that was told while the write was waiting");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(writer.join().unwrap(), Ok(vec![Ok(())]));
}

#[test]
fn a_row_of_a_later_version_does_not_hide_the_others() {
    let folder = Folder::new();
    let store = Sqlite::open(folder.path()).unwrap();
    for saga in ["a", "b", "c"] {
        let release = |mut pen: Pen| [pen.begin(&definition()), pen.release(Some(Timestamp(1)))];
        for append in release(pen(saga)) {
            now(store.append(vec![append])).unwrap();
        }
    }
    let other = Connection::open(folder.path()).unwrap();
    other.execute_batch("UPDATE saga SET phase = 'dreaming' WHERE id = 'b'").unwrap();
    let listed = now(store.list(Query::default())).unwrap();
    let listed: Vec<_> = listed.iter().map(|head| (head.id.as_str(), head.damage.as_deref())).collect();
    assert_eq!(listed, [("a", None), ("b", Some("column phase cannot be read")), ("c", None)]);
    let claim = crate::saga::journal::Claim {
        by: Incarnation::from_text("two"),
        definitions: vec![definition()],
        except: Vec::new(),
        only: None,
        limit: 9,
    };
    let taken = now(store.claim(claim)).unwrap();
    assert_eq!(taken.iter().map(|stored| stored.head.id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    let owner: Option<String> =
        other.query_row("SELECT owner FROM saga WHERE id = 'b'", [], |row| row.get(0)).unwrap();
    assert_eq!(owner, None, "it is left alone");
}
