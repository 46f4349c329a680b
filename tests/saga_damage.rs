//! Bits that have flipped in the file of a store: they are one saga's misfortune, or that of those on one page, and are never silent.
#![cfg(feature = "sqlite")]
#![allow(missing_docs, clippy::disallowed_methods)] // The store has threads, which no paused clock waits for.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mainstay::saga::{
    Failure, Orchestrator, Output, Saga, StoreError,
    journal::{Journal, Phase, Query},
    sqlite::Sqlite,
};

const SAGAS: usize = 24;

/// Removes itself.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("mainstay-damage-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.join("sagas.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn saga(ends: bool) -> Saga<String, Output<()>> {
    let mut saga = Saga::define::<String>("order", 1);
    let first = saga.step("first", (), |_, ()| async { Ok(1) }).without_compensation("nothing is done");
    let last = saga.retriable("last", first, move |_, _: i32| async move {
        if !ends {
            std::future::pending::<()>().await;
        }
        Ok::<_, Failure>(())
    });
    let last = last.add();
    saga.build(last).unwrap()
}

/// The file of a store with sagas in flight that nobody works on.
async fn in_flight(folder: &Folder) -> Vec<u8> {
    let saga = saga(false);
    let orchestrator = Orchestrator::open(Sqlite::open(folder.file()).unwrap()).register(&saga);
    let orchestrator = orchestrator.poll(Duration::from_millis(10)).start().await.unwrap();
    for number in 0..SAGAS {
        orchestrator.start(&saga, &format!("order-{number:02}"), &"x".repeat(100)).await.unwrap();
    }
    while orchestrator.live() < SAGAS {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    orchestrator.shutdown(Duration::ZERO).await;
    let connection = rusqlite::Connection::open(folder.file()).unwrap();
    connection.pragma_update(None, "journal_mode", "DELETE").unwrap();
    drop(connection);
    fs::read(folder.file()).unwrap()
}

fn write(path: &Path, bytes: &[u8]) {
    for end in ["-wal", "-shm"] {
        let mut beside = path.as_os_str().to_owned();
        beside.push(end);
        let _ = fs::remove_file(beside);
    }
    fs::write(path, bytes).unwrap();
}

/// What became of a damaged file.
#[derive(Debug)]
enum Fate {
    /// It cannot be opened at all.
    Refused(StoreError),
    /// So many have finished, and these are named as damaged.
    Went { finished: usize, named: usize, whole: bool },
}

/// Opens a damaged file and works on it until everything has finished or is named.
async fn work(path: &Path) -> Fate {
    let saga = saga(true);
    let store = match Sqlite::open(path) {
        Ok(store) => store,
        Err(error) => return Fate::Refused(error),
    };
    let check = store.clone();
    let opening = Orchestrator::open(store).poll(Duration::from_millis(10)).register(&saga);
    let orchestrator = match opening.start().await {
        Ok(orchestrator) => orchestrator,
        Err(mainstay::saga::OpenError::Store(error)) => return Fate::Refused(error),
        Err(error) => panic!("{error}"),
    };
    let limit = Duration::from_secs(5);
    let recovered = tokio::time::timeout(limit, orchestrator.recovered()).await;
    assert!(recovered.is_ok(), "one damaged row keeps it from looking at the others");
    let began = Instant::now();
    let (mut finished, mut named) = (0, BTreeSet::new());
    let whole = loop {
        let heads = orchestrator.list(Query { limit: 1_000, ..Query::default() }).await.unwrap_or_default();
        finished = heads.iter().filter(|head| head.phase.is_terminal()).count().max(finished);
        named.extend(orchestrator.blocked().await.unwrap_or_default().into_iter().map(|(id, _)| id));
        let all = finished + named.len() >= SAGAS;
        // Only a file that is not whole may keep it from more, and only a slow machine from this.
        if all || began.elapsed() > Duration::from_millis(300) {
            let whole = check.check().await.is_ok_and(|wrong| wrong.is_empty());
            if all || !whole || began.elapsed() > limit {
                break whole;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    drop(check);
    orchestrator.shutdown(Duration::from_secs(1)).await;
    Fate::Went { finished, named: named.len(), whole }
}

/// A sample of all bits of the file, the same each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_the_misfortune_of_few_and_never_silent() {
    let samples = std::env::var("MAINSTAY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(150);
    let folder = Folder::new("bits");
    let whole = in_flight(&folder).await;
    let bits = whole.len() * 8;
    let page = 4_096 * 8;
    let (mut refused, mut hurt) = (0, 0);
    for sample in 0..samples {
        // A multiple of an odd number goes through all the bits before it comes back.
        let bit = (sample * 104_729 + 7) % bits;
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        write(&folder.file(), &damaged);
        match work(&folder.file()).await {
            Fate::Refused(error) => {
                // The first page is the schema's and says what the file is.
                assert!(bit < 8 * page, "bit {bit}: {error}");
                refused += 1;
            }
            Fate::Went { finished, named, whole } => {
                hurt += usize::from(finished < SAGAS);
                assert!(finished + named >= SAGAS || !whole, "bit {bit}: {finished} finished, {named} named");
            }
        }
    }
    assert!(refused * 3 < samples, "{refused} of {samples} could not be opened");
    assert!(hurt > 0 && hurt * 2 < samples, "{hurt} of {samples} have hurt a saga");
}

/// Impossible values in one row, and nothing wrong with the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impossible_value_in_one_row_blocks_one_saga() {
    let folder = Folder::new("values");
    let whole = in_flight(&folder).await;
    for (what, change) in [
        ("a phase", "UPDATE saga SET phase = 'dreaming' WHERE id = 'order-05'"),
        ("a phase in no encoding", "UPDATE saga SET phase = CAST(x'ff' AS TEXT) WHERE id = 'order-05'"),
        ("a version", "UPDATE saga SET version = 1 << 40 WHERE id = 'order-05'"),
        ("an epoch", "UPDATE saga SET epoch = -1 WHERE id = 'order-05'"),
        ("an id", "UPDATE saga SET id = 'order' || char(7) WHERE id = 'order-05'"),
        ("a length", "UPDATE saga SET len = 77 WHERE id = 'order-05'"),
        ("a head's checksum", "UPDATE saga SET crc = crc + (1 << 40) WHERE id = 'order-05'"),
        ("a digest", "UPDATE saga SET digest = 'x' || digest WHERE id = 'order-05'"),
        (
            "an entry's checksum, in bits that it does not have",
            "UPDATE saga_event SET crc = crc + (1 << 40) WHERE seq = 0 AND saga = (SELECT number FROM saga WHERE id = 'order-05')",
        ),
        (
            "an entry's data",
            "UPDATE saga_event SET data = CAST(x'ff' AS TEXT) WHERE seq = 0 AND saga = (SELECT number FROM saga WHERE id = 'order-05')",
        ),
        (
            "an entry's epoch",
            "UPDATE saga_event SET epoch = -1 WHERE seq = 1 AND saga = (SELECT number FROM saga WHERE id = 'order-05')",
        ),
        (
            "an entry",
            "DELETE FROM saga_event WHERE seq = 0 AND saga = (SELECT number FROM saga WHERE id = 'order-05')",
        ),
    ] {
        write(&folder.file(), &whole);
        let connection = rusqlite::Connection::open(folder.file()).unwrap();
        assert_eq!(connection.execute(change, []).unwrap(), 1, "{what}");
        drop(connection);
        let fate = work(&folder.file()).await;
        assert!(matches!(fate, Fate::Went { finished: 23, named: 1, whole: true }), "{what}: {fate:?}");
    }
}

/// An index that cannot be read hides nothing: what does not have to be written there goes on, and everything is listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_index_stops_neither_the_recovery_nor_the_listing() {
    let folder = Folder::new("index");
    let whole = in_flight(&folder).await;
    let connection = rusqlite::Connection::open(folder.file()).unwrap();
    let root = |name: &str| -> usize {
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        connection.query_row(sql, [name], |row| row.get::<_, u32>(0)).unwrap() as usize
    };
    let (asleep, open) = (root("saga_asleep"), root("saga_open"));
    drop(connection);
    let broken = |page: usize| {
        let mut file = whole.clone();
        file[(page - 1) * 4_096] = 0;
        write(&folder.file(), &file);
    };

    broken(asleep);
    let fate = work(&folder.file()).await;
    assert!(matches!(fate, Fate::Went { finished: SAGAS, named: 0, whole: false }), "{fate:?}");

    broken(open);
    let store = Sqlite::open(folder.file()).unwrap();
    let phases = vec![Phase::Running, Phase::Waiting, Phase::Unwinding, Phase::Stuck, Phase::Parked];
    let mut query = Query { phases, limit: 10, ..Query::default() };
    let mut listed = Vec::new();
    loop {
        let heads = store.list(query.clone()).await.unwrap();
        let Some(last) = heads.last() else { break };
        query.after = Some(last.id.clone());
        listed.extend(heads.into_iter().map(|head| head.id.as_str().to_owned()));
    }
    let all: Vec<_> = (0..SAGAS).map(|number| format!("order-{number:02}")).collect();
    assert_eq!(listed, all);
    let wrong = store.check().await.unwrap();
    assert!(!wrong.is_empty(), "it says that the file is damaged");
}

/// A key that is wrong in an index alone puts its entries out of order, of which SQLite says nothing. Whoever walks them has to come to an end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_out_of_order_is_walked_to_an_end() {
    let folder = Folder::new("order");
    let whole = in_flight(&folder).await;
    let connection = rusqlite::Connection::open(folder.file()).unwrap();
    let indexes = ["sqlite_autoindex_saga_1", "saga_open", "saga_owned"].map(|name| {
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        connection.query_row(sql, [name], |row| row.get::<_, u32>(0)).unwrap() as usize
    });
    let owner: String = connection
        .query_row("SELECT coalesce(max(owner), 'order-05') FROM saga", [], |row| row.get(0))
        .unwrap();
    drop(connection);
    for page in indexes {
        let page = (page - 1) * 4_096..page * 4_096;
        let mut tried = 0;
        for key in ["order-05", "order-23", &owner] {
            let mut file = whole.clone();
            let found = file[page.clone()].windows(key.len()).position(|bytes| bytes == key.as_bytes());
            let Some(at) = found else { continue };
            tried += 1;
            // In front of all others, and behind them.
            for byte in [b'!', b'~'] {
                file[page.start + at] = byte;
                write(&folder.file(), &file);
                let fate = tokio::time::timeout(Duration::from_secs(20), work(&folder.file())).await;
                let fate =
                    fate.unwrap_or_else(|_| panic!("{key} in page {}: no end", page.start / 4_096 + 1));
                assert!(matches!(fate, Fate::Went { finished: 1.., .. }), "{key}: {fate:?}");
            }
        }
        assert!(tried > 0, "page {} has none of the keys", page.start / 4_096 + 1);
    }
}
