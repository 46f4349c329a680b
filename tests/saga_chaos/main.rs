//! Five orchestrators over one store that die, stand still, lose their leases and come back, while sagas are started.
//!
//! Over a store in memory on the paused clock, and in real time over one SQLite file and over one schema in the Postgres of
//! `MAINSTAY_TEST_POSTGRES`; without it the latter are skipped and say so. More seeds: `MAINSTAY_CHAOS=100 cargo test --release
//! --features saga --test saga_chaos -- --nocapture`. A minute of each of the real ones: `cargo test --release --features
//! sqlite,postgres --test saga_chaos -- --ignored --nocapture --test-threads 1`.
#![cfg(feature = "saga")]
#![allow(missing_docs, clippy::disallowed_methods)] // Time is measured from outside.

mod gate;
#[cfg(feature = "postgres")]
#[path = "../support/postgres.rs"]
mod postgres;
mod sagas;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use mainstay::{
    saga::{
        Incarnation, Orchestrator, Order, Phase, Saga, SagaId, StartOptions,
        journal::{Head, Journal, Query, Stored},
        memory::Memory,
    },
    testing::{Evidence, Structure, check_evidence},
};
use tokio::time::{Instant, sleep};

use self::{
    gate::{Chance, Gate, Life, Stale, ask},
    sagas::{Town, journey, order},
};

const OWNERS: usize = 5;

/// How long things take.
#[derive(Clone, Copy)]
struct Pace {
    lease: Duration,
    poll: Duration,
    travel: Duration,
    chaos: Duration,
    /// Between two starts, at most.
    starts: Duration,
}

type Connect = Arc<dyn Fn() -> BoxFuture<'static, Arc<dyn Journal>> + Send + Sync>;

/// An orchestrator with its own code for the sagas.
#[derive(Clone)]
struct Present {
    orchestrator: Orchestrator,
    order: Saga<u32>,
    journey: Saga<u32>,
    life: Arc<Life>,
}

struct Slot {
    present: Mutex<Option<Present>>,
    /// Whether nothing is wrong with it, and has not been for a lease.
    well: AtomicBool,
}

struct World {
    pace: Pace,
    connect: Connect,
    viewer: Arc<dyn Journal>,
    chance: Arc<Chance>,
    town: Arc<Town>,
    stale: Arc<Stale>,
    unfenced: bool,
    slots: Vec<Slot>,
    over: AtomicBool,
    /// Who died, and when.
    died: Mutex<BTreeMap<Incarnation, Instant>>,
    started: Mutex<BTreeMap<SagaId, (bool, bool)>>,
    disturbed: [AtomicU64; 5],
}

/// What came of it.
#[derive(Debug, Default)]
struct Report {
    sagas: usize,
    completed: usize,
    compensated: usize,
    /// Epochs beyond each saga's first.
    changes: u64,
    /// Held, lapsed, killed, closed, lied to.
    disturbed: Vec<u64>,
    stale_refused: u64,
    stale_accepted: u64,
    takeovers: usize,
    worst_takeover: Duration,
    problems: Vec<String>,
}

impl World {
    fn time(&self, most: Duration) -> Duration {
        Duration::from_millis(self.chance.below(most.as_millis() as u64 + 1))
    }

    async fn open(&self, slot: usize) -> Present {
        let life = Life::new();
        let gate = Gate {
            store: (self.connect)().await,
            viewer: self.viewer.clone(),
            life: life.clone(),
            stale: self.stale.clone(),
            chance: self.chance.clone(),
            unfenced: self.unfenced,
        };
        let (order, journey) = (order(&self.town, &life), journey(&self.town, &life));
        let opening = Orchestrator::open(gate).register(&order).register(&journey);
        let opening = opening.lease(self.pace.lease).poll(self.pace.poll).max_recoveries(1_000);
        let orchestrator = opening.stuck_retry(Some(self.pace.lease)).start().await.unwrap();
        let present = Present { orchestrator, order, journey, life };
        *self.slots[slot].present.lock().unwrap() = Some(present.clone());
        self.slots[slot].well.store(true, SeqCst);
        present
    }

    /// One place for an orchestrator, and what befalls whoever is there.
    async fn disturb(self: Arc<Self>, slot: usize) {
        let lease = self.pace.lease;
        let mut present = self.open(slot).await;
        loop {
            sleep(self.time(lease * 5)).await;
            if self.over.load(SeqCst) {
                return;
            }
            let what = self.chance.below(5) as usize;
            self.disturbed[what].fetch_add(1, SeqCst);
            self.slots[slot].well.store(false, SeqCst);
            let life = &present.life;
            match what {
                0 => {
                    life.held.send_replace(true);
                    sleep(self.time(lease * 4)).await;
                    life.held.send_replace(false);
                }
                1 => {
                    life.heartbeats_fail.store(true, SeqCst);
                    sleep(self.time(lease * 3)).await;
                    life.heartbeats_fail.store(false, SeqCst);
                }
                2 => {
                    life.dead.store(true, SeqCst);
                    let by = present.orchestrator.incarnation().clone();
                    self.died.lock().unwrap().insert(by, Instant::now());
                    *self.slots[slot].present.lock().unwrap() = None;
                    sleep(self.time(lease * 3)).await;
                    present = self.open(slot).await;
                }
                3 => {
                    *self.slots[slot].present.lock().unwrap() = None;
                    present.orchestrator.shutdown(self.time(lease)).await;
                    sleep(self.time(lease)).await;
                    present = self.open(slot).await;
                }
                _ => {
                    life.answers_lost.store(true, SeqCst);
                    sleep(self.time(lease * 2)).await;
                    life.answers_lost.store(false, SeqCst);
                }
            }
            sleep(lease).await;
            self.slots[slot].well.store(true, SeqCst);
        }
    }

    /// Starts one saga, wherever somebody takes it.
    async fn start(self: Arc<Self>, number: u32) {
        let name = format!("s-{number}");
        let is_order = number % 2 == 0;
        for _ in 0..20 {
            let slot = &self.slots[self.chance.below(OWNERS as u64) as usize];
            let present = slot.present.lock().unwrap().clone();
            if let Some(present) = present {
                let saga = if is_order { &present.order } else { &present.journey };
                let options = match number % 11 {
                    5 => StartOptions::default().deadline(self.pace.travel * 6),
                    _ => StartOptions::default(),
                };
                let start = present.orchestrator.start_with(saga, &name, &number, options);
                let started = tokio::time::timeout(self.pace.lease * 2, start).await;
                let started = matches!(started, Ok(Ok(_)));
                let id = SagaId::new(&name).unwrap();
                self.started.lock().unwrap().insert(id, (is_order, started));
                if started {
                    if !is_order && number % 3 == 0 {
                        sleep(self.time(self.pace.travel * 10)).await;
                        let said = present.orchestrator.signal(&name, "word", "m", &number);
                        let _heard = tokio::time::timeout(self.pace.lease * 2, said).await;
                    }
                    return;
                }
            }
            sleep(self.time(self.pace.lease)).await;
        }
    }

    async fn starts(self: Arc<Self>) -> Vec<tokio::task::JoinHandle<()>> {
        let mut tasks = Vec::new();
        for number in 0.. {
            if self.over.load(SeqCst) {
                break;
            }
            tasks.push(tokio::spawn(self.clone().start(number)));
            sleep(self.time(self.pace.starts)).await;
        }
        tasks
    }

    /// The sagas that are not over.
    async fn open_sagas(&self) -> Vec<Head> {
        let phases = Phase::ALL.into_iter().filter(|phase| !phase.is_terminal()).collect();
        let query = Query { phases, limit: 100_000, ..Query::default() };
        ask(&self.viewer, |journal| journal.list(query)).await.unwrap()
    }

    /// How long sagas of dead owners have waited for another one, while there was one in order: how many they were, and the longest.
    async fn watch(self: Arc<Self>) -> (usize, Duration) {
        let mut waiting: BTreeMap<SagaId, (u64, Instant)> = BTreeMap::new();
        let (mut takeovers, mut worst) = (0, Duration::ZERO);
        while !self.over.load(SeqCst) {
            sleep(self.pace.poll / 4).await;
            let now = Instant::now();
            let heads: BTreeMap<SagaId, Head> =
                self.open_sagas().await.into_iter().map(|head| (head.id.clone(), head)).collect();
            waiting.retain(|id, (epoch, since)| {
                let same = heads.get(id).is_some_and(|head| head.epoch == *epoch);
                if !same && heads.contains_key(id) {
                    takeovers += 1;
                    worst = worst.max(now - *since);
                }
                same
            });
            let died = self.died.lock().unwrap().clone();
            for head in heads.values() {
                if let Some(at) = head.owner.as_ref().and_then(|owner| died.get(owner)) {
                    waiting.entry(head.id.clone()).or_insert((head.epoch, *at));
                }
            }
            if !self.slots.iter().any(|slot| slot.well.load(SeqCst)) {
                waiting.values_mut().for_each(|(_, since)| *since = now);
            }
        }
        (takeovers, worst)
    }

    /// A person's part: a pivot that was refused behind an attempt nobody knows of waits for somebody who has looked.
    async fn decide(&self, head: &Head) {
        if self.town.ledger.net(&head.id, "confirm") == 0 {
            let present = self.slots[0].present.lock().unwrap().clone().unwrap();
            let order = Order::Reject { step: "confirm".to_owned(), reason: "it was never made".to_owned() };
            present.orchestrator.order(head.id.as_str(), "ann", order).await.unwrap();
        }
    }

    /// What the invariants say of every saga that anybody has tried to start.
    async fn judge(&self, report: &mut Report) {
        let life = Life::new();
        let structures =
            [Structure::of(&journey(&self.town, &life)), Structure::of(&order(&self.town, &life))];
        let started = self.started.lock().unwrap().clone();
        for (id, (is_order, acknowledged)) in started {
            let asked = id.clone();
            let load = ask(&self.viewer, move |journal| Box::pin(async move { journal.load(&asked).await }));
            let stored: Option<Stored> = load.await.unwrap();
            let calls = self.town.calls(&id);
            let effects = self.town.ledger.effects(&id);
            let evidence = Evidence {
                structure: &structures[usize::from(is_order)],
                stored: stored.as_ref(),
                acknowledged,
                settled: true,
                calls: &calls,
                effects: Some(&effects),
            };
            for violation in check_evidence(&evidence) {
                report.problems.push(format!("{id}: {violation}"));
            }
            let Some(stored) = stored else { continue };
            report.sagas += 1;
            report.changes += stored.head.epoch - 1;
            match stored.head.phase {
                Phase::Completed => report.completed += 1,
                Phase::Compensated => report.compensated += 1,
                phase => report.problems.push(format!("{id} is {phase} at the end: {}", stored.head.note)),
            }
        }
    }
}

async fn chaos(seed: u64, pace: Pace, connect: Connect, unfenced: bool) -> Report {
    let chance = Arc::new(Chance::new(seed));
    let viewer = connect().await;
    let slot = || Slot { present: Mutex::new(None), well: AtomicBool::new(false) };
    let world = Arc::new(World {
        pace,
        connect,
        town: Town::new(viewer.clone(), chance.clone(), pace.travel),
        viewer,
        chance,
        stale: Arc::new(Stale::default()),
        unfenced,
        slots: (0..OWNERS).map(|_| slot()).collect(),
        over: AtomicBool::new(false),
        died: Mutex::default(),
        started: Mutex::default(),
        disturbed: Default::default(),
    });
    let owners: Vec<_> = (0..OWNERS).map(|slot| tokio::spawn(world.clone().disturb(slot))).collect();
    let (starts, watch) = (tokio::spawn(world.clone().starts()), tokio::spawn(world.clone().watch()));
    sleep(pace.chaos).await;
    world.over.store(true, SeqCst);
    for task in starts.await.unwrap() {
        task.await.unwrap();
    }
    for owner in owners {
        owner.await.unwrap();
    }
    let (takeovers, worst_takeover) = watch.await.unwrap();
    // Nothing is wrong any more: what is not over yet comes to its end. Without a fence it may have none.
    let looks = if unfenced { 20 } else { 600 };
    for _ in 0..looks {
        let open = world.open_sagas().await;
        if open.is_empty() {
            break;
        }
        for head in open.iter().filter(|head| head.phase == Phase::Parked) {
            world.decide(head).await;
        }
        sleep(pace.lease / 2).await;
    }
    let mut report = Report { takeovers, worst_takeover, ..Report::default() };
    world.judge(&mut report).await;
    report.disturbed = world.disturbed.iter().map(|count| count.load(SeqCst)).collect();
    report.stale_refused = world.stale.refused.load(SeqCst);
    report.stale_accepted = world.stale.accepted.load(SeqCst);
    let last: Vec<_> = world.slots.iter().filter_map(|slot| slot.present.lock().unwrap().take()).collect();
    for present in last {
        present.orchestrator.shutdown(pace.lease).await;
    }
    report
}

fn is_safe(report: &Report) {
    assert!(report.problems.is_empty(), "{}\n{}", report.problems.len(), report.problems.join("\n"));
    assert_eq!(report.stale_accepted, 0, "{report:?}");
}

fn holds(report: &Report, pace: Pace) {
    is_safe(report);
    let bar = pace.lease + pace.poll + Duration::from_secs(1);
    assert!(report.worst_takeover <= bar, "{report:?}");
}

fn shows_that_the_fence_is_gone(report: &Report) -> bool {
    report.stale_accepted > 0 && report.problems.iter().any(|problem| problem.contains("I6"))
}

const SIMULATED: Pace = Pace {
    lease: Duration::from_secs(10),
    poll: Duration::from_secs(1),
    travel: Duration::from_millis(2_000),
    chaos: Duration::from_secs(1_000),
    starts: Duration::from_secs(8),
};

const MINUTE: Pace = Pace {
    lease: Duration::from_secs(1),
    poll: Duration::from_millis(100),
    travel: Duration::from_millis(50),
    chaos: Duration::from_secs(60),
    starts: Duration::from_millis(60),
};

const SHORT: Pace = Pace {
    lease: Duration::from_millis(200),
    poll: Duration::from_millis(20),
    travel: Duration::from_millis(20),
    chaos: Duration::from_secs(3),
    starts: Duration::from_millis(40),
};

fn in_memory() -> Connect {
    let store = Memory::new();
    Arc::new(move || {
        let store = store.connect();
        Box::pin(async move { Arc::new(store) as Arc<dyn Journal> })
    })
}

/// On a runtime of its own, so that nothing of it is left.
fn simulated(seed: u64, unfenced: bool) -> Report {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(chaos(seed, SIMULATED, in_memory(), unfenced))
}

/// The same in real time.
fn real(seed: u64, pace: Pace, connect: Connect, unfenced: bool) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(chaos(seed, pace, connect, unfenced))
}

/// A short run in real time: without the bar for take-overs, which a busy machine may miss.
fn short_one_is_safe(report: &Report) {
    is_safe(report);
    assert!(report.sagas > 20 && report.disturbed.iter().sum::<u64>() > 2, "{report:?}");
}

fn minute_holds(report: &Report) {
    println!("{report:?}");
    holds(report, MINUTE);
    assert!(report.stale_refused > 0 && report.takeovers > 10, "nothing was put to the test: {report:?}");
}

#[test]
fn five_owners_in_chaos_keep_every_promise() {
    let seeds = std::env::var("MAINSTAY_CHAOS").map_or(3, |seeds| seeds.parse().unwrap());
    let (mut sagas, mut changes, mut refused, mut takeovers) = (0, 0, 0, 0);
    let mut worst = Duration::ZERO;
    for seed in 0..seeds {
        let report = simulated(seed, false);
        holds(&report, SIMULATED);
        assert!(report.completed > 50 && report.compensated > 50, "{report:?}");
        assert!(report.disturbed.iter().all(|count| *count > 2), "{report:?}");
        sagas += report.sagas;
        changes += report.changes;
        refused += report.stale_refused;
        takeovers += report.takeovers;
        worst = worst.max(report.worst_takeover);
    }
    println!(
        "{seeds} seeds: {sagas} sagas, {changes} changes of owner, {refused} stale appends refused and none \
         accepted, {takeovers} sagas of dead owners taken over, the slowest in {worst:.2?}"
    );
    assert!(refused > 0 && takeovers > 10, "nothing was put to the test");
}

#[test]
fn a_store_without_a_fence_is_found() {
    assert!((0..5).any(|seed| shows_that_the_fence_is_gone(&simulated(seed, true))));
}

#[cfg(feature = "sqlite")]
mod on_a_disk {
    use mainstay::saga::sqlite::Sqlite;

    use super::*;

    fn over_one_file(seed: u64, pace: Pace) -> Report {
        let folder = std::env::temp_dir().join(format!("mainstay-chaos-{seed}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("sagas.db");
        let connect: Connect = Arc::new(move || {
            let store = Sqlite::at(&path).shared().open().unwrap();
            Box::pin(async move { Arc::new(store) as Arc<dyn Journal> })
        });
        let report = real(seed, pace, connect, false);
        std::fs::remove_dir_all(&folder).unwrap();
        report
    }

    #[test]
    fn five_owners_over_one_file_in_chaos() {
        short_one_is_safe(&over_one_file(2, SHORT));
    }

    #[test]
    #[ignore = "takes a minute of real time"]
    fn five_owners_over_one_file_in_chaos_for_a_minute() {
        minute_holds(&over_one_file(1, MINUTE));
    }
}

#[cfg(feature = "postgres")]
mod on_a_server {
    use std::sync::PoisonError;

    use mainstay::saga::postgres::Postgres;

    use super::{postgres::Schema, *};

    /// None without a server.
    fn over_one_schema(test: &str, seed: u64, pace: Pace, unfenced: bool) -> Option<Report> {
        // Each takes some thirty connections, of the hundred that a server has unless it is told otherwise.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let schema = Schema::new(test)?;
        let (url, name) = (schema.url.clone(), schema.name.clone());
        let connect: Connect = Arc::new(move || {
            let connecting = Postgres::connect(&url).schema(&name);
            Box::pin(async move { Arc::new(connecting.await.unwrap()) as Arc<dyn Journal> })
        });
        Some(real(seed, pace, connect, unfenced))
    }

    #[test]
    fn five_owners_over_one_schema_in_chaos() {
        if let Some(report) = over_one_schema("five_owners_over_one_schema_in_chaos", 2, SHORT, false) {
            short_one_is_safe(&report);
        }
    }

    #[test]
    fn a_schema_without_a_fence_is_found() {
        let found = |seed| {
            let report = over_one_schema("a_schema_without_a_fence_is_found", seed, SHORT, true);
            report.is_none_or(|report| shows_that_the_fence_is_gone(&report))
        };
        assert!((0..5).any(found));
    }

    #[test]
    #[ignore = "takes a minute of real time"]
    fn five_owners_over_one_schema_in_chaos_for_a_minute() {
        let test = "five_owners_over_one_schema_in_chaos_for_a_minute";
        if let Some(report) = over_one_schema(test, 1, MINUTE, false) {
            minute_holds(&report);
        }
    }
}
