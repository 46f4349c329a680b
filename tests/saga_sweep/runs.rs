//! What is done to them, and what came of it.

use std::time::Instant;

use mainstay::{
    saga::memory::Operation,
    testing::{Case, Check, Edge, Failed, Fault, Place, Seen, Skew, crashes_behind, crashes_in, orders_in},
};

use crate::dag::{Dag, name};

/// How much goes wrong in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// One outcome and one crash.
    Single,
    /// The same, with crashes in what is about the saga alone: appends, claims and calls.
    Saga,
    /// One outcome, and two crashes in what is about the saga; of the second ones every fifth.
    Fifths,
    /// Two outcomes and two crashes.
    Double,
}

impl Depth {
    pub fn is_double(self) -> bool {
        matches!(self, Depth::Fifths | Depth::Double)
    }

    pub fn has(self, crash: &Case) -> bool {
        let saga = matches!(
            place_of(crash),
            Place::Call(..) | Place::Store(Operation::Append | Operation::Claim, _)
        );
        saga || matches!(self, Depth::Single | Depth::Double)
    }
}

/// Where the last crash of a case comes.
pub fn place_of(crash: &Case) -> Place {
    match crash.0.last() {
        Some(Fault::Crash(place, _)) => place.clone(),
        Some(Fault::Unsynced(operation, number)) => Place::Store(*operation, *number),
        other => unreachable!("{other:?} is no crash"),
    }
}

/// Whether the saga was in the store when the power was cut: before, a second crash only meets what the first one met.
pub fn has_begun(seen: &Seen, crash: &Case) -> bool {
    let begin = Place::Store(Operation::Append, 0);
    let at = |place: &Place| seen.places.iter().position(|passed| passed == place);
    let place = place_of(crash);
    at(&place) > at(&begin) || place == begin && matches!(crash.0.last(), Some(Fault::Crash(_, Edge::After)))
}

#[derive(Debug, Default)]
pub struct Count {
    pub shapes: usize,
    pub cases: usize,
    /// A second crash that the first one did not let come.
    pub skipped: usize,
    pub failures: Vec<String>,
}

impl Count {
    /// One run on a runtime of its own, so that nothing of it is left.
    pub fn run(&mut self, check: &Check<u32, ()>, case: &Case) -> Option<Seen> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        self.cases += 1;
        match runtime.block_on(check.run(case)) {
            Ok(seen) => Some(seen),
            Err(failed) => {
                self.fail(&failed);
                None
            }
        }
    }

    pub fn fail(&mut self, failed: &Failed) {
        if self.failures.len() < 20 {
            self.failures.push(failed.to_string());
        }
    }

    /// One outcome that is not ok and one crash; or two outcomes and two crashes.
    pub fn sweep(&mut self, dag: &Dag, skew: Skew, depth: Depth) {
        self.shapes += 1;
        let check = dag.check(skew, None);
        let mut bases = vec![Case::default()];
        for step in dag.called() {
            bases.extend(Dag::outcomes(&step).map(|fault| Case(vec![fault])));
        }
        if depth == Depth::Double {
            let single = bases.len();
            for first in 1..single {
                for second in first + 1..single {
                    if (first - 1) / 3 != (second - 1) / 3 {
                        bases.push(bases[first].and(bases[second].0[0].clone()));
                    }
                }
            }
        }
        for base in bases {
            let Some(seen) = self.run(&check, &base) else { continue };
            for crash in crashes_in(&seen).iter().filter(|crash| depth.has(crash)) {
                let Some(seen) = self.run(&check, crash) else { continue };
                if depth.is_double() && has_begun(&seen, crash) {
                    let seconds = crashes_behind(&seen);
                    let step = if depth == Depth::Fifths { 5 } else { 1 };
                    // From one crash to the next, other places behind it.
                    let skip = self.cases % step;
                    for second in seconds.iter().filter(|second| depth.has(second)).skip(skip).step_by(step) {
                        if let Some(seen) = self.run(&check, second) {
                            self.skipped += usize::from(seen.crashes < 2);
                        }
                    }
                }
            }
        }
    }

    /// Every order at every place where the saga goes forward, and where it is undone, and a crash at every place behind it.
    pub fn orders(&mut self, dag: &Dag) {
        self.shapes += 1;
        let check = dag.check(Skew::Descending, None);
        let last = Fault::Reject(name(dag.len() - 1));
        for base in [Case::default(), Case(vec![last])] {
            let Some(seen) = self.run(&check, &base) else { continue };
            for ordered in orders_in(&seen) {
                let Some(seen) = self.run(&check, &ordered) else { continue };
                let Some(Fault::Ask(_, place, _)) = ordered.0.last() else { unreachable!("it is an order") };
                let at = seen.places.iter().position(|passed| passed == place);
                let behind = |crash: &Case| {
                    let place = place_of(crash);
                    seen.places.iter().position(|passed| *passed == place) > at
                };
                for crash in crashes_in(&seen).iter().filter(|crash| behind(crash)) {
                    self.run(&check, crash);
                }
            }
        }
    }
}

/// Shapes over two threads; what came of them.
pub fn sweep(work: Vec<(Dag, Skew, Depth)>) -> Count {
    over(&work, |count, (dag, skew, depth)| count.sweep(dag, *skew, *depth))
}

pub fn over<T: Sync>(work: &[T], run: impl Fn(&mut Count, &T) + Sync) -> Count {
    let began = Instant::now();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let counts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut count = Count::default();
                    while let Some(item) = work.get(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst)) {
                        run(&mut count, item);
                    }
                    count
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let mut all = Count::default();
    for count in counts {
        all.shapes += count.shapes;
        all.cases += count.cases;
        all.skipped += count.skipped;
        all.failures.extend(count.failures);
    }
    println!(
        "{} shapes, {} runs, {} without their second crash, in {:.1?}: {} failures",
        all.shapes,
        all.cases,
        all.skipped,
        began.elapsed(),
        all.failures.len()
    );
    all
}

fn each(dags: impl Iterator<Item = Dag>, depth: Depth, skews: &[Skew]) -> Vec<(Dag, Skew, Depth)> {
    dags.flat_map(|dag| skews.iter().map(move |skew| (dag.clone(), *skew, depth))).collect()
}

pub fn shapes(from: usize, to: usize, depth: Depth, skews: &[Skew]) -> Vec<(Dag, Skew, Depth)> {
    each((from..=to).flat_map(Dag::variants), depth, skews)
}

/// Shapes with one special step, shapes with a deadline, and shapes with a step whose time is limited.
pub fn specials(from: usize, to: usize, depth: Depth, skews: &[Skew]) -> Vec<(Dag, Skew, Depth)> {
    let plain: Vec<Dag> = (from..=to).flat_map(Dag::variants).collect();
    let deadlines = [1, 4, 8, 16];
    let due = |dag: &Dag| deadlines.map(|after| Dag { deadline: Some(after), ..dag.clone() });
    let special: Vec<Dag> = plain.iter().flat_map(Dag::specials).collect();
    let limit = |dag: &Dag, at: usize| deadlines.map(|after| Dag { limit: Some((at, after)), ..dag.clone() });
    let limited = plain.iter().flat_map(|dag| (0..dag.len()).flat_map(move |at| limit(dag, at)));
    each(plain.iter().flat_map(due).chain(special).chain(limited), depth, skews)
}

/// Shapes with a definition in the place of one step.
pub fn nested(from: usize, to: usize, depth: Depth, skews: &[Skew]) -> Vec<(Dag, Skew, Depth)> {
    each((from..=to).flat_map(Dag::variants).flat_map(|dag| dag.nested()), depth, skews)
}
