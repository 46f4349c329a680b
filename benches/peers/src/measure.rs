//! How rows are measured: many short batches, every row's in turn, so that
//! whatever else the machine does hits all rows alike; the median counts.
//! Batches during which the thread had to wait for a processor are left out.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::alloc::{self, Count};
use crate::row::{Row, Spawner};
use crate::worker::Worker;

/// How long and how often.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Batches per row.
    pub rounds: usize,
    /// What one batch should take.
    pub batch: Duration,
    /// Rounds with two threads; none when zero.
    pub pair_rounds: usize,
    /// Calls over which allocations are counted.
    pub counted: u64,
}

impl Effort {
    pub const FULL: Self =
        Self { rounds: 400, batch: Duration::from_micros(200), pair_rounds: 300, counted: 2_000 };

    pub const QUICK: Self =
        Self { rounds: 30, batch: Duration::from_micros(100), pair_rounds: 20, counted: 500 };
}

/// What was found out about one row.
pub struct Measured<'a> {
    pub row: &'a Row,
    /// Nanoseconds per call.
    pub ns: f64,
    pub allocations: f64,
    pub bytes: f64,
    pub future: Option<usize>,
    /// Calls per second of two threads on one policy, over that of one thread.
    pub pair: Option<f64>,
}

/// A row while it is measured.
struct Subject<'a> {
    row: &'a Row,
    spawner: Spawner,
    worker: Box<dyn Worker>,
    calls: u64,
    /// Rows that need a filled window every time take part in fewer rounds.
    every: usize,
    future: Option<usize>,
    count: Count,
    counted: u64,
    alone: Samples,
    pairs: Samples,
}

/// Measures all rows. Fails when a row does not get the answer it must get.
pub fn measure<'a>(rows: &[&'a Row], effort: Effort) -> Result<Vec<Measured<'a>>, String> {
    let mut subjects = Vec::new();
    for row in rows {
        subjects.push(Subject::new(row, effort)?);
    }

    for round in 0..effort.rounds {
        for subject in subjects.iter_mut().filter(|s| round % s.every == 0) {
            subject.batch();
        }
    }

    if effort.pair_rounds > 0 {
        let partner = Partner::start();
        for round in 0..effort.pair_rounds {
            for subject in subjects.iter_mut().filter(|s| round % s.every == 0) {
                subject.pair(&partner);
            }
        }
    }

    Ok(subjects.into_iter().map(Subject::finish).collect())
}

impl<'a> Subject<'a> {
    fn new(row: &'a Row, effort: Effort) -> Result<Self, String> {
        let spawner = row.policy();
        let mut worker = spawner();
        for _ in 0..3 {
            worker.check().map_err(|error| format!("{row}: {error}"))?;
        }
        let future = worker.future_size();

        // How many calls make a batch?
        let mut calls = 1;
        let prefill = row.what.prefill();
        let mut took = timed(&mut *worker, calls).elapsed();
        while prefill.is_none() && took < effort.batch {
            calls *= 2;
            took = timed(&mut *worker, calls).elapsed();
        }
        if let Some(filled) = prefill {
            // The window must not grow by much while it is measured.
            calls = filled / 10;
        } else if calls > 1 {
            let share = effort.batch.as_secs_f64() / took.as_secs_f64();
            calls = ((calls as f64 * share) as u64).max(1);
        }

        let mut subject = Self {
            row,
            spawner,
            worker,
            calls,
            every: if prefill.is_some() { 10 } else { 1 },
            future,
            count: Count::default(),
            counted: effort.counted.min(calls * 20),
            alone: Samples::default(),
            pairs: Samples::default(),
        };
        subject.renew();
        let counted = subject.counted;
        subject.count = alloc::count(|| subject.worker.run(counted));
        Ok(subject)
    }

    /// Where a row measures a window of a certain fill: a new policy, filled.
    fn renew(&mut self) {
        if let Some(calls) = self.row.what.prefill() {
            self.spawner = self.row.policy();
            self.worker = (self.spawner)();
            self.worker.run(calls);
        }
    }

    /// One batch on this thread.
    fn batch(&mut self) {
        self.renew();
        let span = timed(&mut *self.worker, self.calls);
        let ns = span.elapsed().as_secs_f64() * 1e9 / self.calls as f64;
        self.alone.push(ns, span.disturbed);
    }

    /// One batch alone and one together with the partner: the ratio of the
    /// rates, if the two really ran at the same time.
    fn pair(&mut self, partner: &Partner) {
        self.renew();
        let alone = timed(&mut *self.worker, self.calls);
        self.renew();
        let (mine, theirs) = partner.together(&self.spawner, &mut *self.worker, self.calls);

        // The slower one counts: a thread that starves the other gains nothing.
        let together = mine.elapsed().max(theirs.elapsed());
        let ratio = 2.0 * alone.elapsed().as_secs_f64() / together.as_secs_f64();
        let skew = mine.start.max(theirs.start) - mine.start.min(theirs.start);
        let apart = skew * 20 > together;
        let disturbed = alone.disturbed || mine.disturbed || theirs.disturbed;
        self.pairs.push(ratio, apart || disturbed);
    }

    fn finish(self) -> Measured<'a> {
        Measured {
            row: self.row,
            ns: self.alone.median().unwrap_or(f64::NAN),
            allocations: self.count.allocations as f64 / self.counted as f64,
            bytes: self.count.bytes as f64 / self.counted as f64,
            future: self.future,
            // A pair that was disturbed was no pair, so none of them stands in for a quiet one.
            pair: self.pairs.quiet_median(),
        }
    }
}

/// What batches gave, the disturbed ones apart.
#[derive(Default)]
struct Samples {
    quiet: Vec<f64>,
    disturbed: Vec<f64>,
}

impl Samples {
    fn push(&mut self, sample: f64, disturbed: bool) {
        let samples = if disturbed { &mut self.disturbed } else { &mut self.quiet };
        samples.push(sample);
    }

    /// Of the quiet ones, unless these are too few to speak.
    fn median(mut self) -> Option<f64> {
        if self.too_few() {
            self.quiet.append(&mut self.disturbed);
        }
        self.middle()
    }

    /// Nothing where the quiet ones are too few to speak.
    fn quiet_median(self) -> Option<f64> {
        if self.too_few() { None } else { self.middle() }
    }

    fn too_few(&self) -> bool {
        self.quiet.len() * 10 < self.quiet.len() + self.disturbed.len()
    }

    fn middle(mut self) -> Option<f64> {
        let middle = self.quiet.len() / 2;
        let any = !self.quiet.is_empty();
        any.then(|| *self.quiet.select_nth_unstable_by(middle, f64::total_cmp).1)
    }
}

/// When a batch ran.
#[derive(Clone, Copy)]
struct Span {
    start: Instant,
    end: Instant,
    /// The thread waited for a processor meanwhile.
    disturbed: bool,
}

impl Span {
    fn elapsed(self) -> Duration {
        self.end - self.start
    }
}

fn timed(worker: &mut dyn Worker, calls: u64) -> Span {
    let waited = waited();
    let start = Instant::now();
    worker.run(calls);
    let end = Instant::now();
    Span { start, end, disturbed: self::waited() != waited }
}

/// How long this thread was ready to run and did not, as Linux tells it;
/// elsewhere nothing is known and no batch is left out.
fn waited() -> Option<u64> {
    let mut text = [0; 64];
    let length = File::open("/proc/thread-self/schedstat").ok()?.read(&mut text).ok()?;
    std::str::from_utf8(&text[..length]).ok()?.split_whitespace().nth(1)?.parse().ok()
}

/// A second thread that runs batches at the same moment as this one.
struct Partner {
    jobs: mpsc::Sender<(Spawner, u64)>,
    spans: mpsc::Receiver<Span>,
    gate: Arc<AtomicU32>,
}

impl Partner {
    fn start() -> Self {
        let (jobs, orders) = mpsc::channel::<(Spawner, u64)>();
        let (results, spans) = mpsc::channel();
        let gate = Arc::new(AtomicU32::new(0));
        let runtime = tokio::runtime::Handle::current();
        let door = gate.clone();
        // Ends when the sender of jobs is dropped.
        thread::spawn(move || {
            let _context = runtime.enter();
            for (spawner, calls) in orders {
                let mut worker = spawner();
                worker.run(1);
                meet(&door);
                if results.send(timed(&mut *worker, calls)).is_err() {
                    return;
                }
            }
        });
        Self { jobs, spans, gate }
    }

    fn together(&self, spawner: &Spawner, worker: &mut dyn Worker, calls: u64) -> (Span, Span) {
        self.gate.store(0, Ordering::Release);
        self.jobs.send((spawner.clone(), calls)).expect("the partner waits for jobs");
        meet(&self.gate);
        let mine = timed(worker, calls);
        let theirs = self.spans.recv().expect("the partner answers every job");
        (mine, theirs)
    }
}

/// Spins until both threads are here, so that both are on a processor.
fn meet(gate: &AtomicU32) {
    gate.fetch_add(1, Ordering::AcqRel);
    while gate.load(Ordering::Acquire) < 2 {
        std::hint::spin_loop();
    }
}
