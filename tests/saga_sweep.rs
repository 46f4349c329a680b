//! Every small saga, every outcome of its steps, and a crash at every place.
//!
//! The part that runs always is bounded. All of it: `MAINSTAY_SWEEP=full cargo test --release --test saga_sweep --features saga -- --ignored
//! --nocapture`. What it found is in `docs/saga-verification.md`.
#![cfg(feature = "saga")]

use std::{collections::BTreeSet, time::Instant};

use mainstay::{
    saga::{Output, Saga, Step},
    testing::{Bug, Case, Check, Failed, Fault, Flaw, Ledger, Loss, Seen, Skew, crashes_behind, crashes_in},
};

/// A saga's shape: for each step, what it is behind. The steps stand in an order in which each is behind what comes before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Dag {
    behind: Vec<u8>,
    classes: Classes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Classes {
    /// Every step can be undone.
    Compensatable,
    /// The last one, when it is behind all others, decides.
    Pivot,
    /// The last but one decides, and the last has to succeed.
    PivotAndRetriable,
}

impl Dag {
    fn len(&self) -> usize {
        self.behind.len()
    }

    /// All orders of `n` steps that differ in more than names: what can be due at once is what matters, so that an edge that follows from
    /// others is as good as none.
    fn all(n: usize) -> Vec<Vec<u8>> {
        let pairs: Vec<(usize, usize)> = (0..n).flat_map(|b| (0..b).map(move |a| (a, b))).collect();
        let mut seen = BTreeSet::new();
        let mut shapes = Vec::new();
        for bits in 0..1_u32 << pairs.len() {
            let mut behind = vec![0_u8; n];
            for (at, &(a, b)) in pairs.iter().enumerate() {
                if bits >> at & 1 != 0 {
                    behind[b] |= 1 << a;
                }
            }
            // Only those that are closed, one of each set of equals; the closure has all the edges that follow.
            let closed =
                (0..n).all(|b| (0..b).all(|a| behind[b] >> a & 1 == 0 || behind[a] & !behind[b] == 0));
            if closed && seen.insert(canonical(&behind)) {
                shapes.push(behind);
            }
        }
        shapes
    }

    fn variants(n: usize) -> Vec<Dag> {
        let mut dags = Vec::new();
        for behind in Dag::all(n) {
            let before = |step: usize| (1_u8 << step) - 1;
            let all_before = |step: usize| behind[step] == before(step);
            let dag = |classes| Dag { behind: behind.clone(), classes };
            dags.push(dag(Classes::Compensatable));
            if all_before(n - 1) {
                dags.push(dag(Classes::Pivot));
                if n > 1 && all_before(n - 2) {
                    dags.push(dag(Classes::PivotAndRetriable));
                }
            }
        }
        dags
    }

    fn build(&self, ledger: &Ledger) -> Saga<u32> {
        let mut saga = Saga::define::<u32>("swept", 1);
        let mut outputs: Vec<Output<u64>> = Vec::new();
        for (at, behind) in self.behind.iter().enumerate() {
            let name = name(at);
            let (act, undo) = (ledger.clone(), ledger.clone());
            let action = move |step: Step<u32>, ()| {
                let done = act.action(step.key(), || 1_u64);
                async move { done }
            };
            let before: Vec<Output<u64>> =
                (0..at).filter(|a| behind >> a & 1 != 0).map(|a| outputs[a]).collect();
            let from_end = self.len() - 1 - at;
            let output = match (self.classes, from_end) {
                (Classes::Pivot, 0) | (Classes::PivotAndRetriable, 1) => {
                    before.into_iter().fold(saga.pivot(&name, (), action), |step, b| step.after(b)).add()
                }
                (Classes::PivotAndRetriable, 0) => {
                    before.into_iter().fold(saga.retriable(&name, (), action), |step, b| step.after(b)).add()
                }
                _ => before
                    .into_iter()
                    .fold(saga.step(&name, (), action), |step, b| step.after(b))
                    .compensate(move |step, (), _| {
                        let _ = undo.undo(step.key());
                        async { Ok(()) }
                    }),
            };
            outputs.push(output);
        }
        saga.build(()).unwrap()
    }

    fn check(&self, skew: Skew, bug: Option<Bug>) -> Check<u32, ()> {
        let dag = self.clone();
        let check = Check::new(1, move |ledger: &Ledger| dag.build(ledger)).skew(skew);
        match bug {
            Some(bug) => check.plant(bug),
            None => check,
        }
    }

    /// Rejected; happened and unknown; not happened and unknown.
    fn outcomes(step: usize) -> [Fault; 3] {
        [Fault::Reject(name(step)), Fault::Lose(name(step), Loss::Error, true), Fault::Drop(name(step), true)]
    }
}

fn name(step: usize) -> String {
    ["a", "b", "c", "d", "e", "f"][step].to_owned()
}

/// The smallest of what renaming makes of a closed order.
fn canonical(behind: &[u8]) -> Vec<u8> {
    let n = behind.len();
    let mut order: Vec<usize> = (0..n).collect();
    let mut least: Option<Vec<u8>> = None;
    permute(&mut order, 0, &mut |order| {
        let mut renamed = vec![0_u8; n];
        for b in 0..n {
            for a in 0..n {
                if behind[b] >> a & 1 != 0 {
                    renamed[order[b]] |= 1 << order[a];
                }
            }
        }
        if least.as_ref().is_none_or(|least| renamed < *least) {
            least = Some(renamed);
        }
    });
    least.unwrap()
}

fn permute(order: &mut Vec<usize>, at: usize, visit: &mut dyn FnMut(&[usize])) {
    if at == order.len() {
        return visit(order);
    }
    for other in at..order.len() {
        order.swap(at, other);
        permute(order, at + 1, visit);
        order.swap(at, other);
    }
}

#[derive(Debug, Default)]
struct Count {
    shapes: usize,
    cases: usize,
    /// A second outcome that the first one did not let come.
    skipped: usize,
    failures: Vec<String>,
}

impl Count {
    /// One run on a runtime of its own, so that nothing of it is left.
    fn run(&mut self, check: &Check<u32, ()>, case: &Case) -> Option<Seen> {
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

    fn fail(&mut self, failed: &Failed) {
        if self.failures.len() < 20 {
            self.failures.push(failed.to_string());
        }
    }

    /// One outcome that is not ok and one crash; with `double` two outcomes and two crashes.
    fn sweep(&mut self, dag: &Dag, skew: Skew, double: bool) {
        self.shapes += 1;
        let check = dag.check(skew, None);
        let mut bases = vec![Case::default()];
        for step in 0..dag.len() {
            bases.extend(Dag::outcomes(step).map(|fault| Case(vec![fault])));
        }
        if double {
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
            for crash in crashes_in(&seen) {
                let Some(seen) = self.run(&check, &crash) else { continue };
                if double {
                    for second in crashes_behind(&seen) {
                        self.run(&check, &second);
                    }
                }
            }
        }
    }
}

/// Shapes over two threads; what came of them.
fn sweep(work: Vec<(Dag, Skew, bool)>) -> Count {
    let began = Instant::now();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let counts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut count = Count::default();
                    while let Some((dag, skew, double)) =
                        work.get(next.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
                    {
                        count.sweep(dag, *skew, *double);
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
        "{} shapes, {} runs in {:.1?}: {} failures",
        all.shapes,
        all.cases,
        began.elapsed(),
        all.failures.len()
    );
    all
}

fn shapes(from: usize, to: usize, double: bool, skews: &[Skew]) -> Vec<(Dag, Skew, bool)> {
    let mut work = Vec::new();
    for n in from..=to {
        for dag in Dag::variants(n) {
            work.extend(skews.iter().map(|skew| (dag.clone(), *skew, double)));
        }
    }
    work
}

fn none_failed(count: &Count) {
    assert!(count.failures.is_empty(), "{}\n{}", count.failures.len(), count.failures.join("\n"));
}

#[test]
fn the_shapes_are_all_there() {
    // The number of partial orders that differ in more than names.
    assert_eq!((1..=5).map(|n| Dag::all(n).len()).collect::<Vec<_>>(), [1, 2, 5, 16, 63]);
}

#[test]
fn every_small_saga_survives_one_crash_at_every_place() {
    let count = sweep(shapes(1, 4, false, &[Skew::Descending]));
    none_failed(&count);
    assert!(count.cases > 10_000, "{}", count.cases);
}

#[test]
fn every_tiny_saga_survives_two_crashes() {
    // Two steps in order with every class, and two branches: the rest is in the full run.
    let mut work = shapes(1, 2, true, &[Skew::Even]);
    work.retain(|(dag, ..)| dag.len() == 1 || dag.classes != Classes::Pivot);
    none_failed(&sweep(work));
}

#[test]
fn the_sweep_finds_planted_bugs() {
    let dag = Dag { behind: vec![0, 1, 1], classes: Classes::Compensatable };
    for bug in [
        Bug::SkipCompensation,
        Bug::ForwardAfterAbort,
        Bug::KeyOfAttempt,
        Bug::AcknowledgeBeforeSync,
        Bug::Barrier(Flaw::EmptyRollback),
        Bug::Barrier(Flaw::LateAction),
    ] {
        let check = dag.check(Skew::Even, Some(bug));
        let mut count = Count::default();
        for base in [Case::default(), Case(vec![Fault::Lose("c".to_owned(), Loss::Error, true)])]
            .into_iter()
            .chain([Case(vec![Fault::Drop("c".to_owned(), true)]), Case(vec![Fault::Late("c".to_owned())])])
        {
            let Some(seen) = count.run(&check, &base) else { continue };
            for crash in crashes_in(&seen) {
                count.run(&check, &crash);
            }
        }
        assert!(!count.failures.is_empty(), "nothing notices {bug:?} in {} runs", count.cases);
    }
}

/// Single faults up to 6 steps, double ones up to 4.
#[test]
#[ignore = "takes long: see the top of this file"]
fn everything() {
    let wanted = std::env::var("MAINSTAY_SWEEP").unwrap_or_default();
    assert!(!wanted.is_empty(), "MAINSTAY_SWEEP=full, or single:6, or double:4");
    let skews = [Skew::Even, Skew::Descending];
    let part = |kind: &str, most: usize| {
        for n in 1..=most {
            print!("{kind} faults, {n} steps: ");
            none_failed(&sweep(shapes(n, n, kind == "double", &skews)));
        }
    };
    match wanted.split_once(':') {
        Some((kind, most)) => part(kind, most.parse().unwrap()),
        None => {
            part("single", 6);
            part("double", 4);
        }
    }
}
