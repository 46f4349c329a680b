//! The embedded store on a disk that fails: the power is cut at every sync, and of what was not synced each sector is lost or there by
//! chance; or a sync fails. What was acknowledged is there afterwards, and it is whole.
//!
//! The disk is `support/disk.c`, between a process and its files; it is built here with the C compiler that SQLite needs, too.
#![cfg(target_os = "linux")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use futures::FutureExt;
use mainstay::saga::{
    Incarnation, Payload, Record, SagaId, Timestamp,
    conformance::{Pen, definition},
    journal::{Claim, Journal, Refusal, StoreError},
    sqlite::Sqlite,
};

/// Every operation of this store is done in one poll.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("it is done in one poll")
}

fn temporary(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()))
}

/// The library that is loaded before all others.
fn disk() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("power-loss-disk.so");
        let fresh = temporary("disk").with_extension("so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/disk.c");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let options = ["-shared", "-fPIC", "-O1", "-o"];
        let built =
            Command::new(compiler).args(options).arg(&fresh).args([source, "-ldl", "-lpthread"]).status();
        assert!(built.expect("a C compiler").success());
        // Another run of this test may be using the old one.
        fs::rename(fresh, &library).unwrap();
        library
    })
}

/// A directory that is gone after the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = temporary(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a process has said before it ended.
struct Run {
    acknowledged: BTreeMap<String, u64>,
    /// What it was told instead of an acknowledgement, and whether it ended in order.
    refused: Vec<String>,
    ended: bool,
    syncs: u64,
}

/// Does `work` in a process of its own, on a disk with these faults.
fn run(folder: &Folder, work: &str, faults: &[(&str, u64)]) -> Run {
    let count = folder.0.with_extension("count");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["another_process", "--exact", "--nocapture", "--test-threads", "1"]);
    child
        .env("LD_PRELOAD", disk())
        .env("DISK_DIR", &folder.0)
        .env("DISK_COUNT", &count)
        .env("POWER_LOSS", work);
    child.envs(faults.iter().map(|(name, value)| (*name, value.to_string())));
    let output = child.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let mut run = Run {
        acknowledged: BTreeMap::new(),
        refused: Vec::new(),
        ended: output.status.success(),
        syncs: fs::read_to_string(&count).ok().and_then(|text| text.parse().ok()).unwrap_or(0),
    };
    let _ = fs::remove_file(&count);
    for line in said.lines() {
        if let Some((saga, len)) = line.strip_prefix("ack ").and_then(|ack| ack.split_once(' ')) {
            run.acknowledged.insert(saga.to_owned(), len.parse().unwrap());
        } else if let Some(error) = line.strip_prefix("refused ") {
            run.refused.push(error.to_owned());
        }
    }
    let by_the_cut = output.status.code() == Some(9);
    assert!(
        run.ended || by_the_cut,
        "{work} with {faults:?}: {said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    run
}

/// Not a test by itself: what the processes do that are made by [`run`].
#[test]
fn another_process() {
    let Ok(work) = std::env::var("POWER_LOSS") else { return };
    let folder = PathBuf::from(std::env::var("DISK_DIR").unwrap());
    // Behind what the harness has begun to say.
    println!();
    match &*work {
        "sagas" => sagas(&folder.join("sagas.db")),
        "careless" => careless(&folder.join("careless.db")),
        other => panic!("{other}"),
    }
}

/// Four sagas, some of whose records take several pages, over a store that is closed in between, which moves the log into the database.
fn sagas(path: &Path) {
    for sitting in 0..3 {
        let store = match Sqlite::open(path) {
            Ok(store) => store,
            Err(error) => return println!("refused {error:?}"),
        };
        let by = Incarnation::from_text(&format!("sitting {sitting}"));
        let claim = Claim {
            by: by.clone(),
            definitions: vec![definition()],
            except: Vec::new(),
            only: None,
            limit: 9,
        };
        let taken = match block_on(store.claim(claim)) {
            Ok(taken) => taken,
            Err(error) => return println!("refused {error:?}"),
        };
        let mut pens: Vec<Pen> = taken.iter().map(|stored| Pen::resume(&stored.head, Timestamp(1))).collect();
        let new = pens.is_empty();
        if new {
            pens = (0..4).map(|n| Pen::new(&format!("saga-{n}"), &by, Timestamp(1))).collect();
        }
        for round in 0..6 {
            let chosen = pens.iter_mut().enumerate().filter(|(n, _)| round == 0 || (n + round) % 3 != 0);
            let output = Payload::encode(&"large ".repeat(if round % 3 == 0 { 2_000 } else { 5 })).unwrap();
            let step = Record::Completed { step: "x".into(), output, attempts: 1, ms: 1 };
            let batch: Vec<_> = chosen
                .map(|(_, pen)| match new && round == 0 {
                    true => pen.begin(&definition()),
                    false => pen.write(std::slice::from_ref(&step)),
                })
                .collect();
            let told: Vec<_> =
                batch.iter().map(|item| (item.saga.clone(), item.entries[0].seq + 1)).collect();
            let answers: Result<Vec<Result<(), Refusal>>, StoreError> = block_on(store.append(batch));
            match answers {
                Ok(answers) => {
                    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
                    told.iter().for_each(|(saga, len)| println!("ack {saga} {len}"));
                }
                Err(error) => {
                    println!("refused {error:?}");
                    // And everything behind it.
                    let late = block_on(store.append(vec![pens[0].clone().step("late")]));
                    return println!("refused {:?}", late.unwrap_err());
                }
            }
        }
    }
}

/// The same kind of work as somebody does it who does not wait for the disk: what the cuts have to find.
fn careless(path: &Path) {
    let database = rusqlite::Connection::open(path).unwrap();
    let settings = "pragma journal_mode = wal; pragma synchronous = normal; create table row (n integer)";
    database.execute_batch(settings).unwrap();
    for n in 1..=20_i64 {
        database.execute("insert into row values (?1)", [n]).unwrap();
        println!("ack careless {n}");
    }
}

/// What was acknowledged is there, and all that is there is whole.
fn audit(folder: &Folder, run: &Run, what: &str) {
    let store = Sqlite::open(folder.0.join("sagas.db")).unwrap_or_else(|error| panic!("{what}: {error}"));
    for (saga, len) in &run.acknowledged {
        let stored = block_on(store.load(&SagaId::new(saga).unwrap())).unwrap();
        let stored = stored.unwrap_or_else(|| panic!("{what}: {saga} was acknowledged and is gone"));
        assert_eq!(stored.verify(), Ok(()), "{what}: {saga}");
        assert!(stored.head.len >= *len, "{what}: {saga} has {} of {len} records", stored.head.len);
    }
    assert_eq!(block_on(store.check()).unwrap(), Vec::<String>::new(), "{what}");
}

/// How often each cut and each failure is tried, with other chance: `MAINSTAY_CASES`.
fn chances() -> u64 {
    std::env::var("MAINSTAY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2)
}

/// How many syncs the sagas take when nothing fails.
fn all_syncs() -> u64 {
    let folder = Folder::new("power-whole");
    let whole = run(&folder, "sagas", &[]);
    assert!(whole.ended && whole.refused.is_empty(), "{:?}", whole.refused);
    assert_eq!(whole.acknowledged.len(), 4);
    assert!(whole.syncs > 18, "each batch is synced, and more: {}", whole.syncs);
    audit(&folder, &whole, "undisturbed");
    whole.syncs
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_sync() {
    let mut lost = 0;
    for at in 1..=all_syncs() {
        for seed in 0..chances() {
            let folder = Folder::new("power-cut");
            let run = run(&folder, "sagas", &[("DISK_CUT", at), ("DISK_SEED", seed)]);
            assert!(!run.ended, "there is no sync {at}");
            audit(&folder, &run, &format!("power cut at sync {at}, seed {seed}"));
            lost += 1;
        }
    }
    println!("{lost} power cuts");
}

#[test]
fn a_sync_that_fails_poisons_the_store_and_loses_nothing_that_was_acknowledged() {
    let mut poisoned = 0;
    for at in 1..=all_syncs() {
        for seed in 0..chances() {
            let folder = Folder::new("power-fail");
            // The power goes soon after it, so that what the failed sync has not covered is lost.
            let faults = [("DISK_FAIL", at), ("DISK_CUT", at + 1 + seed % 3), ("DISK_SEED", seed)];
            let run = run(&folder, "sagas", &faults);
            if let [first, late] = &run.refused[..] {
                assert!(first.starts_with("Io("), "sync {at}: {first}");
                assert_eq!(late, "Poisoned", "sync {at}");
                poisoned += 1;
            }
            audit(&folder, &run, &format!("sync {at} failed, seed {seed}"));
        }
    }
    assert_eq!(poisoned, 18 * chances(), "each batch's sync has failed once");
}

#[test]
fn the_cuts_find_who_does_not_wait_for_the_disk() {
    let lost = (1..=8).flat_map(|at| (0..4).map(move |seed| (at, seed))).any(|(at, seed)| {
        let folder = Folder::new("power-careless");
        let run = run(&folder, "careless", &[("DISK_CUT", at), ("DISK_SEED", seed)]);
        let database = rusqlite::Connection::open(folder.0.join("careless.db")).unwrap();
        let found = database.query_row("select coalesce(max(n), 0) from row", [], |row| row.get::<_, i64>(0));
        (found.unwrap_or(0) as u64) < run.acknowledged.get("careless").copied().unwrap_or(0)
    });
    assert!(lost, "no cut has lost a row that was not synced");
}
