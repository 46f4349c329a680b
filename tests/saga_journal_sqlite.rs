//! The embedded store: it keeps every promise of a journal, whatever becomes of its process, its files and its disk.
#![cfg(unix)]

use std::{
    collections::HashMap,
    fs,
    hash::{BuildHasher, RandomState},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::{Duration, Instant},
};

use futures::FutureExt;
use mainstay::saga::{
    Incarnation, Payload, Record, SagaId, Timestamp,
    conformance::{self, Pen, Subject, definition},
    journal::{Append, Ask, Claim, Corrupt, Journal, Phase, Query, Request, Requested, StoreError},
    sqlite::Sqlite,
};

/// Every operation of this store is done in one poll.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("it is done in one poll")
}

const LONG: Duration = Duration::from_secs(3_600);

/// A folder that is gone after the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("sqlite-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn id(text: &str) -> SagaId {
    SagaId::new(text).unwrap()
}

fn incarnation(name: &str) -> Incarnation {
    Incarnation::from_text(name)
}

fn append(store: &Sqlite, append: Append) -> Result<(), StoreError> {
    block_on(store.append(vec![append])).map(|answers| assert_eq!(answers, [Ok(())]))
}

fn length(store: &Sqlite, saga: &str) -> Option<u64> {
    let stored = block_on(store.load(&id(saga))).unwrap()?;
    assert_eq!(stored.verify(), Ok(()), "what is there of {saga} is whole");
    Some(stored.head.len)
}

fn claim(by: &str) -> Claim {
    Claim { by: incarnation(by), definitions: vec![definition()], except: vec![], only: None, limit: 100 }
}

// --- the promises ---

fn subject(open: impl Fn(&Path) -> Sqlite + Send + Sync + Clone + 'static) -> Subject {
    let folder = Folder::new();
    let count = AtomicUsize::new(0);
    let latest = Arc::new(Mutex::new(PathBuf::new()));
    let (reopen, again) = (open.clone(), latest.clone());
    Subject::new(
        move || {
            let path = folder.file(&format!("{}.db", count.fetch_add(1, SeqCst)));
            *latest.lock().unwrap() = path.clone();
            std::future::ready(Arc::new(open(&path)) as Arc<dyn Journal>)
        },
        tokio::time::sleep,
    )
    .reopen(move |journal| {
        drop(journal);
        std::future::ready(Arc::new(reopen(&again.lock().unwrap())) as Arc<dyn Journal>)
    })
}

#[tokio::test]
async fn the_embedded_store_keeps_every_promise() {
    conformance::run(&subject(|path| Sqlite::open(path).unwrap())).await;
}

#[tokio::test]
async fn the_store_that_processes_share_keeps_every_promise() {
    conformance::run(&subject(|path| Sqlite::at(path).shared().open().unwrap())).await;
}

// --- other processes ---

/// This test program again, as another process that does what `CHILD` says. It is told to go on by a line, and tells by lines.
struct Other {
    child: Child,
    lines: mpsc::Receiver<String>,
}

const CHILD: &str = "MAINSTAY_TEST_CHILD";

impl Other {
    fn run(what: &str, path: &Path) -> Self {
        let program = std::env::current_exe().unwrap();
        Other::spawn(Command::new(program).args(["another_process", "--exact", "--nocapture"]), what, path)
    }

    fn spawn(command: &mut Command, what: &str, path: &Path) -> Self {
        let command = command.env(CHILD, what).env("MAINSTAY_TEST_PATH", path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (told, lines) = mpsc::channel();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut line = String::new();
            // The last line may be torn when the process is killed: it counts with its end alone.
            while out.read_line(&mut line).is_ok_and(|read| read > 0) {
                if let Some(line) = line.strip_suffix('\n').and_then(|line| line.strip_prefix("> ")) {
                    if told.send(line.to_owned()).is_err() {
                        break;
                    }
                }
                line.clear();
            }
        });
        Other { child, lines }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(60)).expect("the other process tells something")
    }

    /// Ends it as `kill -9` does; what it told that was not heard yet.
    fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.lines.iter().collect()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n> {line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// The other process. In a run of the tests it does nothing.
#[test]
fn another_process() {
    let Ok(what) = std::env::var(CHILD) else { return };
    let path = PathBuf::from(std::env::var("MAINSTAY_TEST_PATH").unwrap());
    match what.as_str() {
        "exclusive" => own(Sqlite::open(path).unwrap()),
        "shared" => own(Sqlite::at(path).shared().open().unwrap()),
        "write" => write_on(&path),
        "log" => log(&path),
        "limited" => limited(&path),
        other => panic!("{other}"),
    }
}

fn forever() -> ! {
    loop {
        std::thread::sleep(LONG);
    }
}

/// Owns a saga, with a long lease.
fn own(store: Sqlite) {
    block_on(store.heartbeat(&incarnation("child"), LONG)).unwrap();
    append(&store, Pen::new("owned", &incarnation("child"), Timestamp(1)).begin(&definition())).unwrap();
    tell("open");
    forever();
}

/// Appends to eight sagas in batches, goes on where it finds them, and tells what was acknowledged.
fn write_on(path: &Path) {
    let store = Sqlite::open(path).unwrap();
    let by = incarnation(&format!("child {}", std::process::id()));
    block_on(store.heartbeat(&by, LONG)).unwrap();
    let taken = block_on(store.claim(claim(by.as_str()))).unwrap();
    let mut pens: Vec<Pen> = taken.iter().map(|stored| Pen::resume(&stored.head, Timestamp(1))).collect();
    if pens.is_empty() {
        pens = (0..8).map(|n| Pen::new(&format!("saga {n}"), &by, Timestamp(1))).collect();
        let answers = block_on(store.append(pens.iter_mut().map(|pen| pen.begin(&definition())).collect()));
        assert!(answers.unwrap().iter().all(Result::is_ok));
    }
    for round in 0.. {
        // A different half each time, one of them with a record that takes several pages.
        let chosen = pens.iter_mut().enumerate().filter(|(n, _)| (n + round) % 3 != 0).map(|(_, pen)| pen);
        let mut batch: Vec<Append> = chosen.map(|pen| pen.step("x")).collect();
        if round % 7 == 0 {
            let saga = batch.pop().unwrap().saga;
            let pen = pens.iter_mut().find(|pen| *pen.saga() == saga).unwrap();
            let stored = block_on(store.load(&saga)).unwrap().unwrap();
            *pen = Pen::resume(&stored.head, Timestamp(1));
            let output = Payload::encode(&"large ".repeat(5_000)).unwrap();
            batch.push(pen.write(&[Record::Completed { step: "y".into(), output, attempts: 1, ms: 1 }]));
        }
        let acks: Vec<String> = batch
            .iter()
            .map(|item| format!("{}={}", item.saga, item.entries.last().unwrap().seq + 1))
            .collect();
        assert!(block_on(store.append(batch)).unwrap().iter().all(Result::is_ok));
        tell(&acks.join(","));
    }
}

/// Appends a hundred times and tells each time how long the write-ahead log is then.
fn log(path: &Path) {
    let store = Sqlite::open(path).unwrap();
    let mut pen = Pen::new("a", &incarnation("child"), Timestamp(1));
    for n in 1..=100 {
        append(&store, if n == 1 { pen.begin(&definition()) } else { pen.step("x") }).unwrap();
        let log = fs::metadata(path.with_extension("db-wal")).unwrap().len();
        tell(&format!("{n} {log}"));
    }
    tell("done");
    forever();
}

/// Appends until the device refuses, and a little longer.
fn limited(path: &Path) {
    let store = Sqlite::open(path).unwrap();
    let mut pen = Pen::new("a", &incarnation("child"), Timestamp(1));
    append(&store, pen.begin(&definition())).unwrap();
    let error = loop {
        match append(&store, pen.step("x")) {
            Ok(()) => tell("ack"),
            Err(error) => break error,
        }
    };
    tell(&format!("{error:?}"));
    let late = append(&store, pen.clone().step("x"));
    tell(&format!("{late:?}"));
    tell(&format!("{:?}", block_on(store.load(&id("a"))).map(drop)));
    tell("done");
    forever();
}

#[test]
fn one_process_at_a_time_and_the_next_takes_over_at_once() {
    let folder = Folder::new();
    let path = folder.file("sagas.db");
    let other = Other::run("exclusive", &path);
    assert_eq!(other.line(), "open");
    for refused in [Sqlite::open(&path), Sqlite::at(&path).shared().open()] {
        assert!(matches!(refused, Err(StoreError::InUse(_))), "another process has it: {refused:?}");
    }
    let tool = Sqlite::open_existing(&path).unwrap();
    assert_eq!(length(&tool, "owned"), Some(1), "a tool reads beside it");
    other.kill();
    let store = Sqlite::open(&path).expect("a dead process holds nothing");
    let taken = block_on(store.claim(claim("next"))).unwrap();
    assert_eq!(taken.len(), 1, "its lease was long, but it is known to be dead");
    assert_eq!(taken[0].head.recoveries, 1);
    let same = Sqlite::open(&path);
    assert!(matches!(same, Err(StoreError::InUse(_))), "not twice in one process either: {same:?}");
    drop(store);
    Sqlite::open(&path).expect("it was closed");
}

#[test]
fn processes_that_share_respect_their_leases() {
    let folder = Folder::new();
    let path = folder.file("sagas.db");
    let other = Other::run("shared", &path);
    assert_eq!(other.line(), "open");
    let alone = Sqlite::open(&path);
    assert!(matches!(alone, Err(StoreError::InUse(_))), "it is shared: {alone:?}");
    let store = Sqlite::at(&path).shared().open().unwrap();
    let third = Sqlite::at(&path).shared().open().unwrap();
    assert_eq!(block_on(store.claim(claim("two"))).unwrap(), [], "the other one lives");
    other.kill();
    assert_eq!(block_on(third.claim(claim("two"))).unwrap(), [], "its lease has not run out");
    block_on(store.heartbeat(&incarnation("child"), Duration::ZERO)).unwrap();
    assert_eq!(block_on(third.claim(claim("two"))).unwrap().len(), 1);
}

#[test]
fn a_tool_asks_and_forgets_but_owns_nothing() {
    let folder = Folder::new();
    let path = folder.file("sagas.db");
    let store = Sqlite::open(&path).unwrap();
    let by = incarnation("one");
    let mut pen = Pen::new("a", &by, Timestamp(1));
    append(&store, pen.begin(&definition())).unwrap();
    let tool = Sqlite::open_existing(&path).unwrap();
    let ask = Ask::Order(mainstay::saga::Order::Cancel { reason: "a mistake".into() });
    let request = Request { id: "r".into(), saga: id("a"), by: "me".into(), ask };
    assert_eq!(block_on(tool.request(request.clone())), Ok(Requested::Left));
    assert_eq!(block_on(store.requests(&by)), Ok(vec![request]));
    let refused = [
        append(&tool, pen.clone().step("x")),
        block_on(tool.claim(claim("tool"))).map(drop),
        block_on(tool.heartbeat(&by, LONG)),
        block_on(tool.leave(&by)),
    ];
    assert!(refused.iter().all(|answer| matches!(answer, Err(StoreError::InUse(_)))), "{refused:?}");
    append(&store, pen.end(Phase::Compensated)).unwrap();
    assert_eq!(block_on(tool.forget("me", Timestamp(100), 10)), Ok(1));
    assert_eq!(length(&store, "a"), None);
}

#[test]
fn what_was_acknowledged_survives_being_killed() {
    let seed = std::env::var("MAINSTAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| RandomState::new().hash_one(0));
    let kills: u32 = std::env::var("MAINSTAY_KILLS").map_or(20, |kills| kills.parse().unwrap());
    eprintln!("MAINSTAY_SEED={seed}");
    let folder = Folder::new();
    let path = folder.file("sagas.db");
    let mut random = seed;
    let mut acked: HashMap<String, u64> = HashMap::new();
    let mut heard = 0;
    for _ in 0..kills {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let other = Other::run("write", &path);
        let first = other.line();
        std::thread::sleep(Duration::from_micros((random >> 33) % 80_000));
        let mut lines = other.kill();
        lines.push(first);
        heard += lines.len();
        for (saga, len) in lines.iter().flat_map(|line| line.split(',')).filter_map(|ack| ack.split_once('='))
        {
            let len: u64 = len.parse().unwrap();
            let known = acked.entry(saga.to_owned()).or_default();
            *known = len.max(*known);
        }
        let store = Sqlite::open(&path).unwrap();
        for (saga, len) in &acked {
            let found = length(&store, saga).unwrap_or(0);
            assert!(
                found >= *len,
                "{saga} was acknowledged up to {len} and has {found}; MAINSTAY_SEED={seed}"
            );
        }
    }
    assert!(heard >= 3 * kills as usize, "only {heard} batches were acknowledged");
}

// --- files and disks ---

#[test]
fn a_log_that_is_cut_anywhere_keeps_what_is_whole() {
    let folder = Folder::new();
    let path = folder.file("sagas.db");
    let other = Other::run("log", &path);
    let mut acks: Vec<(u64, u64)> = Vec::new();
    loop {
        let line = other.line();
        let Some((n, log)) = line.split_once(' ') else { break };
        acks.push((n.parse().unwrap(), log.parse().unwrap()));
    }
    other.kill();
    let (base, log) = (fs::read(&path).unwrap(), fs::read(path.with_extension("db-wal")).unwrap());
    assert_eq!(acks.last().unwrap().1, log.len() as u64, "nothing was moved into the database yet");
    let copy = folder.file("copy.db");
    let mut cuts: Vec<usize> =
        acks.iter().flat_map(|&(_, end)| [end - 1, end, end + 1]).map(|end| end as usize).collect();
    cuts.extend((0..40).map(|n| log.len() * n / 40));
    let first = acks[0].1;
    for cut in cuts.into_iter().filter(|&cut| cut <= log.len()) {
        for file in ["db-shm", "db-owner"] {
            let _ = fs::remove_file(copy.with_extension(file));
        }
        fs::write(&copy, &base).unwrap();
        fs::write(copy.with_extension("db-wal"), &log[..cut]).unwrap();
        let whole = acks.iter().rev().find(|(_, end)| *end <= cut as u64).map_or(0, |(n, _)| *n);
        match Sqlite::open(&copy) {
            Ok(store) => assert_eq!(length(&store, "a").unwrap_or(0), whole, "cut at {cut}"),
            Err(error) => assert!((cut as u64) < first, "cut at {cut}: {error}"),
        }
    }
}

/// A store with one closed saga of three entries; where the data of the second begins in the file.
fn closed(path: &Path) -> usize {
    let store = Sqlite::open(path).unwrap();
    let mut pen = Pen::new("a", &incarnation("one"), Timestamp(1));
    append(&store, pen.begin(&definition())).unwrap();
    append(&store, pen.step("needle-in-the-haystack")).unwrap();
    append(&store, pen.step("last")).unwrap();
    let mut other = Pen::new("b", &incarnation("one"), Timestamp(1));
    append(&store, other.begin(&definition())).unwrap();
    drop(store);
    let file = fs::read(path).unwrap();
    let needle = b"{\"completed\":{\"step\":\"needle";
    file.windows(needle.len())
        .position(|window| window == needle)
        .expect("the last close moves all into the database")
}

#[test]
fn a_flipped_bit_is_noticed_and_is_one_sagas_misfortune() {
    let folder = Folder::new();
    let path = folder.file("sagas.db");
    let at = closed(&path);
    let whole = fs::read(&path).unwrap();
    for bit in (0..8 * 40).step_by(3) {
        let mut file = whole.clone();
        file[at + bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &file).unwrap();
        let store = Sqlite::open(&path).unwrap();
        let taken = block_on(store.claim(claim("two"))).unwrap();
        let verdict: HashMap<&str, _> =
            taken.iter().map(|stored| (stored.head.id.as_str(), stored.verify())).collect();
        // The highest bit of a letter leaves no text.
        let expected = match bit % 8 {
            7 => Corrupt::Unreadable("entry 1: column data cannot be read".to_owned()),
            _ => Corrupt::Checksum { seq: 1 },
        };
        assert_eq!(verdict["a"], Err(expected), "bit {bit}");
        assert_eq!(verdict["b"], Ok(()), "the other saga is not touched by bit {bit}");
    }
}

#[test]
fn what_is_no_store_of_this_version_is_refused_and_left_alone() {
    let folder = Folder::new();
    let path = folder.file("sagas.db");
    closed(&path);
    let whole = fs::read(&path).unwrap();
    // The header has the version of the format at 60, the application at 68.
    let mut newer = whole.clone();
    newer[63] = 2;
    let mut foreign = whole.clone();
    foreign[71] ^= 1;
    let text = b"a file of somebody else, and long enough to be looked at. ".repeat(20);
    for (file, what) in [(newer, "2"), (foreign, "of another application"), (text, "no SQLite database")] {
        fs::write(&path, &file).unwrap();
        for opened in [Sqlite::open(&path), Sqlite::open_existing(&path), Sqlite::at(&path).shared().open()] {
            let Err(StoreError::Format { found, known }) = opened else { panic!("{opened:?}") };
            assert!(found.contains(what), "{found}");
            assert_eq!(known, "1");
        }
        assert!(fs::read(&path).unwrap() == file, "it was not changed");
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(length(&Sqlite::open(&path).unwrap(), "a"), Some(3));
}

#[test]
fn what_is_not_there_is_absent_or_made() {
    let folder = Folder::new();
    let missing = folder.file("missing.db");
    let nowhere = folder.file("no folder").join("sagas.db");
    for absent in [
        Sqlite::open_existing(&missing),
        Sqlite::at(&missing).existing().open(),
        Sqlite::open(&nowhere),
        Sqlite::open_existing(&nowhere),
    ] {
        assert!(matches!(absent, Err(StoreError::Absent(_))), "{absent:?}");
    }
    assert!(!missing.exists(), "looking makes nothing");
    fs::write(&missing, b"").unwrap();
    assert!(
        matches!(Sqlite::open_existing(&missing), Err(StoreError::Absent(_))),
        "an empty file is no store"
    );
    drop(Sqlite::open(&missing).unwrap());
    Sqlite::open_existing(&missing).unwrap();
    let directory = Sqlite::open(&folder.0);
    assert!(matches!(directory, Err(StoreError::Unavailable(_))), "{directory:?}");
}

#[test]
fn a_folder_that_may_not_be_written_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let closed = folder.file("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(closed.join("probe"), b"").is_ok() {
        eprintln!("skipped: this user may write everywhere");
        return;
    }
    let opened = Sqlite::open(closed.join("sagas.db"));
    assert!(matches!(opened, Err(StoreError::Unavailable(_))), "{opened:?}");
}

#[test]
fn a_full_disk_is_no_success_and_no_end() {
    let folder = Folder::new();
    let path = folder.file("sagas.db");
    let store = Sqlite::at(&path).max_pages(60).open().unwrap();
    let by = incarnation("one");
    let mut pens: Vec<Pen> = (0..4).map(|n| Pen::new(&format!("saga {n}"), &by, Timestamp(1))).collect();
    for pen in &mut pens {
        append(&store, pen.begin(&definition())).unwrap();
    }
    let mut acked = 1;
    let error = loop {
        let before = pens.clone();
        let output = Payload::encode(&"x".repeat(3_000)).unwrap();
        let record = Record::Completed { step: "x".into(), output, attempts: 1, ms: 1 };
        let batch = pens.iter_mut().map(|pen| pen.write(std::slice::from_ref(&record))).collect();
        match block_on(store.append(batch)) {
            Ok(answers) => assert!(answers.iter().all(Result::is_ok)),
            Err(error) => {
                pens = before;
                break error;
            }
        }
        acked += 1;
    };
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    assert!(acked > 2, "there was some room");
    for pen in &pens {
        assert_eq!(length(&store, pen.saga().as_str()), Some(acked), "nothing of the batch is there");
    }
    append(&store, pens[0].end(Phase::Completed)).expect("what needs no room is done");
    assert_eq!(block_on(store.forget("me", Timestamp(100), 10)), Ok(1));
    append(&store, pens[1].step("x")).expect("there is room again");
    drop(store);
    let store = Sqlite::open(&path).unwrap();
    assert_eq!(length(&store, "saga 1"), Some(acked + 1));
}

#[test]
fn a_failing_device_poisons_the_store() {
    let folder = Folder::new();
    let path = folder.file("sagas.db");
    // A limit on the size of files fails writes with another error than a full disk does.
    let mut shell = Command::new("sh");
    let script = "trap '' XFSZ; ulimit -f 300; exec \"$@\"";
    shell.args(["-c", script, "sh"]).arg(std::env::current_exe().unwrap());
    let other = Other::spawn(shell.args(["another_process", "--exact", "--nocapture"]), "limited", &path);
    let mut acked = 1;
    let error = loop {
        match other.line() {
            ack if ack == "ack" => acked += 1,
            error => break error,
        }
    };
    assert!(error.starts_with("Io("), "{error}");
    assert_eq!(other.line(), "Err(Poisoned)", "nothing is appended any more");
    assert_eq!(other.line(), "Err(Poisoned)", "and nothing is read");
    assert_eq!(other.line(), "done");
    other.kill();
    assert!(acked > 3, "there was some room");
    let store = Sqlite::open(&path).unwrap();
    let found = length(&store, "a").unwrap();
    assert!(found >= acked, "{acked} were acknowledged, {found} are there");
}

// --- speed ---

/// How long this thread has run: time that other processes have taken from it does not count.
fn busy() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    format!("p50 {} µs, p99 {} µs", at(50), at(99))
}

/// `cargo test --release --features sqlite --test saga_journal_sqlite -- --ignored --nocapture measure`
#[test]
#[ignore = "measures this machine"]
fn measure_appends() {
    let folder = Folder::new();
    let by = incarnation("018f4c1e-aaaa-bbbb-cccc-0123456789ab");
    let now = Timestamp(1_767_225_600_000);
    let output =
        Payload::encode(&serde_json::json!({"reservation": "r-0123456789", "amount": 4_200})).unwrap();
    let record = Record::Completed { step: "reserve-stock".into(), output, attempts: 1, ms: 12 };
    let rounds = 2_000;

    let mut sample = Pen::new("order-0", &by, now);
    let entry = sample.write(std::slice::from_ref(&record)).entries.remove(0);
    let bytes = vec![b'x'; entry.data.len() + 120];
    let mut file = fs::File::create(folder.file("raw")).unwrap();
    let mut store = Sqlite::open(folder.file("single.db")).unwrap();
    let mut pen = Pen::new("order-0", &by, now);
    append(&store, pen.begin(&definition())).unwrap();
    let (mut raw, mut single) = (Vec::new(), Vec::new());
    let (mut raw_busy, mut single_busy) = (Duration::ZERO, Duration::ZERO);
    for n in 0..rounds {
        // Side by side, so that both see the same disk.
        let (begin, before) = (Instant::now(), busy());
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
        raw.push(begin.elapsed());
        raw_busy += busy() - before;
        if n % 8 == 0 {
            pen = Pen::new(&format!("order-{n}-"), &by, now);
            append(&store, pen.begin(&definition())).unwrap();
        }
        let item = pen.write(std::slice::from_ref(&record));
        let (begin, before) = (Instant::now(), busy());
        append(&store, item).unwrap();
        single.push(begin.elapsed());
        single_busy += busy() - before;
    }
    println!("an entry has {} bytes of data", entry.data.len());
    println!("write + fdatasync: {}, {} µs of them busy", percentiles(raw), (raw_busy / rounds).as_micros());
    println!(
        "single append:     {}, {} µs of them busy",
        percentiles(single),
        (single_busy / rounds).as_micros()
    );

    for sagas in [1usize, 10] {
        for size in [64usize, 256, 1_024] {
            store = Sqlite::open(folder.file(&format!("batch-{size}-{sagas}.db"))).unwrap();
            let count = size * sagas;
            let mut pens: Vec<Pen> = (0..count).map(|n| Pen::new(&format!("order-{n}"), &by, now)).collect();
            for pens in pens.chunks_mut(size) {
                block_on(store.append(pens.iter_mut().map(|pen| pen.begin(&definition())).collect()))
                    .unwrap();
            }
            let batches = 20_000 / size;
            let (mut times, mut spent, mut worked, mut at) = (Vec::new(), Duration::ZERO, Duration::ZERO, 0);
            for _ in 0..batches {
                let stride = if sagas == 1 { 1 } else { 7_919 };
                let mut chosen: Vec<usize> = (0..size).map(|n| (at + n * stride) % count).collect();
                chosen.sort_unstable();
                chosen.dedup();
                at += size * stride;
                let batch: Vec<Append> =
                    chosen.iter().map(|&n| pens[n].write(std::slice::from_ref(&record))).collect();
                let (begin, before) = (Instant::now(), busy());
                block_on(store.append(batch)).unwrap();
                let took = begin.elapsed();
                worked += busy() - before;
                spent += took;
                times.push(took);
            }
            let rate = (batches * size) as f64 / spent.as_secs_f64() / 1_000.0;
            let entry = worked.as_secs_f64() * 1e6 / (batches * size) as f64;
            println!(
                "batches of {size} over {count} sagas: {rate:.0} K entries/s, {}, {entry:.1} µs busy for each entry",
                percentiles(times)
            );
        }
    }
    let store = Sqlite::open(folder.file("begin.db")).unwrap();
    let (mut spent, mut worked, mut done) = (Duration::ZERO, Duration::ZERO, 0);
    for n in 0..100 {
        let mut pens: Vec<Pen> = (0..256).map(|m| Pen::new(&format!("order-{m}-{n}"), &by, now)).collect();
        for step in 0..4 {
            let batch: Vec<Append> = pens
                .iter_mut()
                .map(|pen| match step {
                    0 => pen.begin(&definition()),
                    3 => pen.end(Phase::Completed),
                    _ => pen.write(std::slice::from_ref(&record)),
                })
                .collect();
            let (begin, before) = (Instant::now(), busy());
            block_on(store.append(batch)).unwrap();
            worked += busy() - before;
            spent += begin.elapsed();
            done += 256;
        }
    }
    let rate = f64::from(done) / spent.as_secs_f64() / 1_000.0;
    let entry = worked.as_secs_f64() * 1e6 / f64::from(done);
    println!(
        "whole sagas of four entries, 256 at a time: {rate:.0} K entries/s, {entry:.1} µs busy for each entry"
    );
    let begin = Instant::now();
    let rows = block_on(store.list(Query { limit: 1_000, ..Query::default() })).unwrap().len();
    println!("a page of {rows} heads: {} µs", begin.elapsed().as_micros());
}

/// Several owners share a file that none of them has made yet, and start at once.
#[test]
fn a_new_file_may_be_shared_by_many_who_open_it_at_once() {
    let folder = Folder::new();
    for round in 0..60 {
        let path = folder.file(&format!("{round}.db"));
        let opened: Vec<_> = std::thread::scope(|scope| {
            let open = || Sqlite::at(&path).shared().open().map(drop);
            let openers: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            openers.into_iter().map(|opener| opener.join().unwrap()).collect()
        });
        assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    }
}
