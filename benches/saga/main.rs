//! What a durable saga costs, beside what the device or the server asks: `cargo bench --bench saga --features sqlite,postgres`.
//!
//! `-- --quick` runs everything once and small, to see that it works; it measures nothing. `-- --dir DIR` chooses the device; by
//! default the target directory's. PostgreSQL is measured on the server of `MAINSTAY_TEST_POSTGRES`, in schemas that are dropped
//! afterwards; `-- --only sqlite` and `-- --only postgres` leave the other out. Real time is measured here, so the clock is read
//! directly.

#[cfg(feature = "postgres")]
mod postgres;

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mainstay::saga::{
    Incarnation, Orchestrator, Saga, SagaId, Timestamp,
    journal::{
        Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
        Requested, Stored,
    },
    sqlite::Sqlite,
};

/// How much is done.
#[derive(Clone, Copy)]
struct Effort {
    syncs: usize,
    alone: usize,
    steps: usize,
    crowd: usize,
    parked: usize,
    takeovers: usize,
}

const FULL: Effort =
    Effort { syncs: 2_000, alone: 500, steps: 60_000, crowd: 10_000, parked: 10_000, takeovers: 5 };
const QUICK: Effort = Effort { syncs: 20, alone: 5, steps: 500, crowd: 100, parked: 100, takeovers: 1 };

/// Where the stores of this run are.
trait Place {
    type Store: Journal + Clone;

    /// What the goals say of a take-up of all sagas in flight.
    const RECOVERY: &'static str;
    /// What they say of the rate.
    const RATE: &'static str;

    /// The store of this name, made when it is not there; `shared` by two orchestrators or with one alone.
    async fn open(&self, name: &str, shared: bool) -> Self::Store;
}

struct Files(PathBuf);

impl Place for Files {
    type Store = Sqlite;
    const RECOVERY: &'static str = "G7: <= 1";
    const RATE: &'static str = "G4: >= 20,000 from 256 on; at 10,000 at most 0.125";

    async fn open(&self, name: &str, shared: bool) -> Sqlite {
        let file = Sqlite::at(self.0.join(format!("{name}.db")));
        let file = if shared { file.shared() } else { file };
        file.open().expect("a store that nobody has")
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name| arguments.iter().position(|it| it == name).and_then(|at| arguments.get(at + 1));
    let quick = arguments.iter().any(|argument| argument == "--quick" || argument == "--test");
    let only = option("--only").map(String::as_str);
    let effort = if quick { QUICK } else { FULL };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    if only.is_none_or(|only| only == "sqlite") {
        let base = option("--dir").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        let dir = base.join(format!("saga-bench-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the directory can be made");
        println!("-- SQLite");
        let device = device(&dir, effort.syncs);
        let place = Files(dir.clone());
        runtime.block_on(async {
            let (p50, saga) = overhead(&place, effort, device).await;
            println!("{:<45}device + {:.0} us (G3: <= 150)", "", micros(p50.saturating_sub(device)));
            println!("{:<45}{:.2} ms a saga (G3: <= 1.1 where fdatasync takes 0.1)", "", micros(saga) / 1e3);
            common(&place, effort).await;
            parked(&place, effort).await;
        });
        std::fs::remove_dir_all(&dir).expect("the directory can be removed");
    }
    if only.is_none_or(|only| only == "postgres") {
        #[cfg(feature = "postgres")]
        runtime.block_on(postgres::measure(effort));
        #[cfg(not(feature = "postgres"))]
        println!("-- PostgreSQL: skipped, the feature `postgres` is off");
    }
}

/// What is measured of both.
async fn common<P: Place>(place: &P, effort: Effort) {
    for sagas in [1, 64, 256, effort.crowd] {
        throughput(place, effort, sagas).await;
    }
    recovery(place, effort).await;
    takeover(place, effort).await;
}

fn percentile(times: &mut [Duration], of: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * of) as usize]
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A raw append of a record's size with `fdatasync`, as the device's own price.
fn device(dir: &Path, syncs: usize) -> Duration {
    let mut file: File = OpenOptions::new().create(true).append(true).open(dir.join("raw")).expect("a file");
    let record = [b'x'; 400];
    let mut times: Vec<Duration> = (0..syncs)
        .map(|_| {
            let began = Instant::now();
            file.write_all(&record).and_then(|()| file.sync_data()).expect("the device writes");
            began.elapsed()
        })
        .collect();
    let (p50, p99) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    println!(
        "device: append of 400 bytes + fdatasync     p50 {:.0} us, p99 {:.0} us",
        micros(p50),
        micros(p99)
    );
    p50
}

/// A saga of `steps` steps in a row, each of which notes when it began and ended.
fn chain(steps: usize, noted: &Arc<Mutex<Vec<(Instant, Instant)>>>) -> Saga<u32> {
    let mut saga = Saga::define::<u32>("chain", 1);
    let mut last = None;
    for number in 0..steps {
        let noted = noted.clone();
        let name = format!("step-{number}");
        let act = move || {
            let began = Instant::now();
            noted.lock().expect("not poisoned").push((began, Instant::now()));
        };
        last = Some(match last {
            None => saga
                .step(&name, (), move |_, ()| {
                    act();
                    async { Ok(7_u32) }
                })
                .without_compensation("a benchmark"),
            Some(before) => saga
                .step(&name, before, move |_, _: u32| {
                    act();
                    async { Ok(7_u32) }
                })
                .without_compensation("a benchmark"),
        });
    }
    saga.build(()).expect("a chain is a saga")
}

/// G2, G3: one saga of three steps after the other.
async fn overhead<P: Place>(place: &P, effort: Effort, device: Duration) -> (Duration, Duration) {
    let noted = Arc::new(Mutex::new(Vec::new()));
    let saga = chain(3, &noted);
    let store = Counted::new(place.open("alone", false).await);
    let orchestrator = Orchestrator::open(store.clone()).register(&saga).start().await.expect("it starts");
    orchestrator.recovered().await;
    let (mut whole, mut between) = (Vec::new(), Vec::new());
    for number in 0..effort.alone {
        noted.lock().expect("not poisoned").clear();
        let began = Instant::now();
        orchestrator.run(&saga, &format!("s-{number}"), &1).await.expect("it runs");
        whole.push(began.elapsed());
        let noted = noted.lock().expect("not poisoned");
        between.extend(noted.windows(2).map(|pair| pair[1].0 - pair[0].1));
    }
    let (appends, entries) = store.counts();
    let (p50, saga) = (percentile(&mut between, 0.5), percentile(&mut whole, 0.5));
    println!(
        "one after the other: a step's overhead       p50 {:.0} us, p99 {:.0} us, {:.2} x what it is measured by",
        micros(p50),
        micros(percentile(&mut between, 0.99)),
        p50.as_secs_f64() / device.as_secs_f64()
    );
    println!(
        "                     a saga of three steps  p50 {:.2} ms, p99 {:.2} ms",
        micros(saga) / 1e3,
        micros(percentile(&mut whole, 0.99)) / 1e3
    );
    println!(
        "                     per saga {:.2} records, {:.2} forced writes (G2: 4)",
        entries as f64 / effort.alone as f64,
        appends as f64 / effort.alone as f64
    );
    orchestrator.shutdown(Duration::from_secs(1)).await;
    (p50, saga)
}

/// G4: many sagas of ten steps side by side.
async fn throughput<P: Place>(place: &P, effort: Effort, sagas: usize) {
    const STEPS: usize = 10;
    let saga = chain(STEPS, &Arc::default());
    let store = Counted::new(place.open(&format!("many-{sagas}"), false).await);
    let orchestrator = Orchestrator::open(store.clone())
        .max_live(sagas.max(16) * 2)
        .register(&saga)
        .start()
        .await
        .expect("it starts");
    orchestrator.recovered().await;
    let rounds = (effort.steps / STEPS / sagas).clamp(1, 400);
    let began = Instant::now();
    let runners: Vec<_> = (0..sagas)
        .map(|runner| {
            let (orchestrator, saga) = (orchestrator.clone(), saga.clone());
            tokio::spawn(async move {
                for round in 0..rounds {
                    orchestrator.run(&saga, &format!("s-{runner}-{round}"), &1).await.expect("it runs");
                }
            })
        })
        .collect();
    for runner in runners {
        runner.await.expect("no runner panics");
    }
    let took = began.elapsed();
    let (appends, entries) = store.counts();
    let steps = sagas * rounds * STEPS;
    println!(
        "{sagas:>6} sagas at once: {:>8.0} step completions/s, {:>8.0} records/s, {:.3} forced writes per record ({})",
        steps as f64 / took.as_secs_f64(),
        entries as f64 / took.as_secs_f64(),
        appends as f64 / entries as f64,
        P::RATE
    );
    orchestrator.shutdown(Duration::from_secs(1)).await;
}

/// G6: sagas that wait for a message.
async fn parked<P: Place>(place: &P, effort: Effort) {
    let mut saga = Saga::define::<u32>("parked", 1);
    let answer = saga.signal::<u32, _>("answer", (), None);
    let saga = saga.build(answer).expect("a saga");
    let store = place.open("parked", false).await;
    let orchestrator = Orchestrator::open(store).register(&saga).start().await.expect("it starts");
    // What the first ones need once is not counted.
    start_many(&orchestrator, &saga, "warm", effort.parked / 2).await;
    let before = resident();
    start_many(&orchestrator, &saga, "p", effort.parked).await;
    let grown = resident().saturating_sub(before);
    println!(
        "{} sagas that wait: {:.0} bytes of memory each, {} live (G6: <= 2,048)",
        effort.parked,
        grown as f64 / effort.parked as f64,
        orchestrator.live()
    );
    orchestrator.shutdown(Duration::from_secs(1)).await;
}

async fn start_many<R: mainstay::saga::Inputs>(
    orchestrator: &Orchestrator,
    saga: &Saga<u32, R>,
    name: &'static str,
    count: usize,
) {
    for chunk in 0..count.div_ceil(500) {
        let starting: Vec<_> = (chunk * 500..count.min((chunk + 1) * 500))
            .map(|number| {
                let (orchestrator, saga) = (orchestrator.clone(), saga.clone());
                tokio::spawn(async move {
                    orchestrator.start(&saga, &format!("{name}-{number}"), &1).await.expect("it starts");
                })
            })
            .collect();
        for started in starting {
            started.await.expect("no panic");
        }
    }
    // Until those that only wait have left memory.
    for _ in 0..200 {
        if orchestrator.live() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The process's resident memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0);
    pages * 4096
}

/// A saga whose second step never answers.
fn hanging() -> Saga<u32> {
    let mut saga = Saga::define::<u32>("hanging", 1);
    let first = saga.step("first", (), |_, ()| async { Ok(1_u32) }).without_compensation("a benchmark");
    saga.step("second", first, |_, _: u32| async {
        std::future::pending::<()>().await;
        Ok(2_u32)
    })
    .without_compensation("a benchmark");
    saga.build(()).expect("a saga")
}

/// G7: an orchestrator finds what another has left in flight.
async fn recovery<P: Place>(place: &P, effort: Effort) {
    const LEASE: Duration = Duration::from_secs(2);
    let saga = hanging();
    let crowd = effort.crowd;
    {
        let store = place.open("recovery", false).await;
        let first = Orchestrator::open(store)
            .lease(LEASE)
            .max_live(crowd * 2)
            .register(&saga)
            .start()
            .await
            .expect("it starts");
        for chunk in 0..crowd.div_ceil(500) {
            let range = chunk * 500..crowd.min((chunk + 1) * 500);
            let starting: Vec<_> = range
                .map(|number| {
                    let (first, saga) = (first.clone(), saga.clone());
                    tokio::spawn(
                        async move { first.start(&saga, &format!("h-{number}"), &1).await.map(drop) },
                    )
                })
                .collect();
            for started in starting {
                started.await.expect("no panic").expect("it starts");
            }
        }
        // Dropped as in a crash.
    }
    // In a store that is shared they are nobody's only when the lease is over.
    tokio::time::sleep(LEASE + Duration::from_millis(500)).await;
    let store = place.open("recovery", false).await;
    let began = Instant::now();
    let second =
        Orchestrator::open(store).max_live(crowd * 2).register(&saga).start().await.expect("it starts");
    second.recovered().await;
    let took = began.elapsed();
    assert_eq!(second.live(), crowd, "all of them");
    println!(
        "{crowd} sagas in flight after a crash: all taken up in {:.2} s ({})",
        took.as_secs_f64(),
        P::RECOVERY
    );
    second.shutdown(Duration::from_millis(10)).await;
}

/// G8: one of two orchestrators on one store dies without a word.
async fn takeover<P: Place>(place: &P, effort: Effort) {
    const LEASE: Duration = Duration::from_secs(1);
    const POLL: Duration = Duration::from_millis(100);
    let saga = hanging();
    let mut times = Vec::new();
    for round in 0..effort.takeovers {
        let name = format!("takeover-{round}");
        let open = async |saga: &Saga<u32>| {
            let store = place.open(&name, true).await;
            Orchestrator::open(store).lease(LEASE).poll(POLL).register(saga).start().await
        };
        let first = open(&saga).await.expect("it starts");
        first.start(&saga, "t", &1).await.expect("it starts");
        let second = open(&saga).await.expect("it starts");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(second.live(), 0, "the first one holds its lease");
        drop(first);
        let began = Instant::now();
        while second.live() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        times.push(began.elapsed());
        second.shutdown(Duration::from_millis(10)).await;
    }
    println!(
        "take-over with a lease of 1 s and a look every 0.1 s: p50 {:.2} s, worst {:.2} s (G8: <= 2.1)",
        percentile(&mut times, 0.5).as_secs_f64(),
        percentile(&mut times, 1.0).as_secs_f64()
    );
}

/// A journal that counts what is appended.
#[derive(Clone)]
struct Counted<J> {
    inner: J,
    appends: Arc<AtomicU64>,
    entries: Arc<AtomicU64>,
}

impl<J> Counted<J> {
    fn new(inner: J) -> Self {
        Counted { inner, appends: Arc::default(), entries: Arc::default() }
    }

    fn counts(&self) -> (u64, u64) {
        (self.appends.load(Relaxed), self.entries.load(Relaxed))
    }
}

impl<J: Journal> Journal for Counted<J> {
    fn now(&self) -> Pending<'_, Timestamp> {
        self.inner.now()
    }

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        self.appends.fetch_add(1, Relaxed);
        self.entries.fetch_add(batch.iter().map(|append| append.entries.len() as u64).sum(), Relaxed);
        self.inner.append(batch)
    }

    fn blocks(&self) -> bool {
        self.inner.blocks()
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        self.inner.heartbeat(by, lease)
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        self.inner.leave(by)
    }

    fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()> {
        self.inner.announce(by, presence)
    }

    fn orchestrators(&self) -> Pending<'_, Vec<Registered>> {
        self.inner.orchestrators()
    }

    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        self.inner.claim(claim)
    }

    fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>> {
        self.inner.load(saga)
    }

    fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
        self.inner.list(query)
    }

    fn request(&self, request: Request) -> Pending<'_, Requested> {
        self.inner.request(request)
    }

    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
        self.inner.requests(by)
    }

    fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize> {
        self.inner.forget(by, before, limit)
    }

    fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>> {
        self.inner.forgotten(limit)
    }
}
