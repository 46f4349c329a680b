//! Every small saga, every outcome of its steps, and a crash at every place.
//!
//! The part that runs always is bounded. All of it: `MAINSTAY_SWEEP=full cargo test --release --test saga_sweep --features saga -- --ignored
//! --nocapture`. What it found is in `docs/saga-verification.md`.
#![cfg(feature = "saga")]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use mainstay::{
    saga::{Adding, Builder, Entry, Output, Phase, Saga, Step, Unknown},
    testing::{
        Bug, Call, Case, Check, Failed, Fault, Flaw, Ledger, Loss, Seen, Skew, What, crashes_behind,
        crashes_in, orders_in,
    },
};

/// A saga's shape: for each step, what it is behind. The steps stand in an order in which each is behind what comes before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Dag {
    behind: Vec<u8>,
    classes: Classes,
    /// One step that is not like the others.
    special: Option<(usize, Special)>,
    /// In milliseconds.
    deadline: Option<u64>,
    /// One step whose time is limited, in milliseconds.
    limit: Option<(usize, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Special {
    /// It is sent once; what is done then.
    Compensated,
    Parked,
    Verified,
    /// The same, and its participant rejects it, for good.
    Declined,
    Timer,
    /// A message that has come before, or comes while it is waited for.
    Signal,
    /// A message that does not come in time.
    Silence,
}

impl Special {
    const ALL: [Special; 7] = [
        Special::Compensated,
        Special::Parked,
        Special::Verified,
        Special::Declined,
        Special::Timer,
        Special::Signal,
        Special::Silence,
    ];

    /// Whether code runs in it.
    fn acts(self) -> bool {
        !matches!(self, Special::Timer | Special::Signal | Special::Silence)
    }
}

/// Limited to so many milliseconds.
fn within<C>(step: Adding<'_, u32, (), u64, C>, limit: Option<u64>) -> Adding<'_, u32, (), u64, C> {
    match limit {
        Some(limit) => step.within(Duration::from_millis(limit)),
        None => step,
    }
}

/// What a step is followed by.
#[derive(Clone, Copy)]
enum Done {
    Value(Output<u64>),
    Time(Output<()>),
    Message(Output<Option<u64>>),
}

/// Behind all of these.
fn behind<'a, C>(step: Adding<'a, u32, (), u64, C>, before: &[Done]) -> Adding<'a, u32, (), u64, C> {
    before.iter().fold(step, |step, done| match done {
        Done::Value(output) => step.after(*output),
        Done::Time(output) => step.after(*output),
        Done::Message(output) => step.after(*output),
    })
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
    const NONE: Dag = Dag {
        behind: Vec::new(),
        classes: Classes::Compensatable,
        special: None,
        deadline: None,
        limit: None,
    };

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
            let plain = |classes| Dag { behind: behind.clone(), classes, ..Dag::NONE };
            dags.push(plain(Classes::Compensatable));
            if all_before(n - 1) {
                dags.push(plain(Classes::Pivot));
                if n > 1 && all_before(n - 2) {
                    dags.push(plain(Classes::PivotAndRetriable));
                }
            }
        }
        dags
    }

    /// The same with each step in turn of each special kind, where it may be.
    fn specials(&self) -> Vec<Dag> {
        let mut dags = Vec::new();
        for at in 0..self.len() {
            let special = |kind: &Special| Dag { special: Some((at, *kind)), ..self.clone() };
            let decides = match self.classes {
                Classes::Compensatable => false,
                Classes::Pivot => at + 1 == self.len(),
                Classes::PivotAndRetriable => at + 2 >= self.len(),
            };
            // What decides is not undone, and code runs in it.
            let fits = |kind: &&Special| !decides || kind.acts() && !matches!(kind, Special::Compensated);
            dags.extend(Special::ALL.iter().filter(fits).map(special));
        }
        dags
    }

    fn build(&self, ledger: &Ledger) -> Saga<u32> {
        let mut saga = Saga::define::<u32>("swept", 1);
        let mut outputs: Vec<Done> = Vec::new();
        for (at, mask) in self.behind.iter().enumerate() {
            let name = name(at);
            let special = self.special.filter(|(special, _)| *special == at).map(|(_, kind)| kind);
            let limit = self.limit.filter(|(limited, _)| *limited == at).map(|(_, limit)| limit);
            let (act, ask, undo) = (ledger.clone(), ledger.clone(), ledger.clone());
            let action = move |step: Step<u32>, ()| {
                let done = match special {
                    Some(Special::Declined) => Err(act.reject(step.key(), "no")),
                    _ => act.action(step.key(), || 1_u64),
                };
                async move { done }
            };
            let ask = move |step: Step<u32>, ()| {
                let known = ask.verify(step.key());
                async move { Ok(known) }
            };
            let undo = move |step: Step<u32>, (), _| {
                let _ = undo.undo(step.key());
                async { Ok(()) }
            };
            let before: Vec<Done> = (0..at).filter(|a| mask >> a & 1 != 0).map(|a| outputs[a]).collect();
            let from_end = self.len() - 1 - at;
            let output = match (self.classes, from_end) {
                (Classes::Pivot, 0) | (Classes::PivotAndRetriable, 1) => {
                    let step = within(behind(saga.pivot(&name, (), action), &before), limit);
                    Done::Value(match special {
                        Some(Special::Parked) => step.on_unknown(Unknown::Park).add(),
                        Some(_) => step.verify(ask).add(),
                        None => step.add(),
                    })
                }
                (Classes::PivotAndRetriable, 0) => {
                    let step = within(behind(saga.retriable(&name, (), action), &before), limit);
                    Done::Value(match special {
                        Some(Special::Parked) => step.on_unknown(Unknown::Park).add(),
                        Some(_) => step.verify(ask).add(),
                        None => step.add(),
                    })
                }
                _ => match special {
                    Some(kind) if !kind.acts() => waiting(&mut saga, kind, &name, &before),
                    special => {
                        let step = within(behind(saga.step(&name, (), action), &before), limit);
                        let step = match special {
                            Some(Special::Compensated) => step.on_unknown(Unknown::Compensate),
                            Some(Special::Parked) => step.on_unknown(Unknown::Park),
                            Some(_) => step.verify(ask),
                            None => step,
                        };
                        Done::Value(step.compensate(undo))
                    }
                },
            };
            outputs.push(output);
        }
        saga.build(()).unwrap()
    }

    fn check(&self, skew: Skew, bug: Option<Bug>) -> Check<u32, ()> {
        let dag = self.clone();
        let mut check = Check::new(1, move |ledger: &Ledger| dag.build(ledger)).skew(skew);
        if let Some((at, Special::Signal)) = self.special {
            check = check.signal(&name(at), &7_u64);
        }
        if let Some((at, kind @ (Special::Verified | Special::Declined))) = self.special {
            let retriable = self.classes == Classes::PivotAndRetriable && at + 1 == self.len();
            check = check.expect(move |seen| found_out(kind, &name(at), retriable, seen));
        }
        if let Some((at, _)) = self.limit {
            let dag = self.clone();
            check = check.expect(move |seen| given_up(&dag, at, seen));
        }
        if let Some(deadline) = self.deadline {
            check = check.deadline(Duration::from_millis(deadline));
        }
        match bug {
            Some(bug) => check.plant(bug),
            None => check,
        }
    }

    /// Whether code runs in a step.
    fn acts(&self, step: usize) -> bool {
        self.special.is_none_or(|(at, kind)| at != step || kind.acts())
    }

    /// Whether it is called in any case: behind a deadline or a limit nobody need be, nor behind or beside what is rejected.
    fn is_called(&self, step: usize) -> bool {
        self.deadline.is_none()
            && self.limit.is_none()
            && match self.special {
                Some((at, Special::Declined)) => at == step || self.behind[at] >> step & 1 != 0,
                _ => true,
            }
    }

    /// Rejected; happened and unknown; not happened and unknown.
    fn outcomes(step: usize) -> [Fault; 3] {
        [Fault::Reject(name(step)), Fault::Lose(name(step), Loss::Error, true), Fault::Drop(name(step), true)]
    }
}

/// Whoever can be asked whether a step has happened, and recognises a key, needs no person; and a crash alone changes nothing.
fn found_out(kind: Special, step: &str, retriable: bool, seen: &Seen) -> Result<(), String> {
    let crash = |fault: &Fault| matches!(fault, Fault::Crash(..) | Fault::Unsynced(_));
    let expected = match (kind, retriable) {
        (Special::Verified, _) => Phase::Completed,
        (_, true) => Phase::Stuck,
        (_, false) => Phase::Compensated,
    };
    let entries = seen.stored.iter().flat_map(|stored| &stored.entries);
    let parked = |entry: &Entry| entry.kind == "parked" && entry.step.as_deref() == Some(step);
    match seen.phase {
        _ if entries.into_iter().any(parked) => Err(format!("a person is asked about {step}")),
        phase if seen.case.0.iter().all(crash) && phase != Some(expected) => {
            Err(format!("it is {phase:?}, not {expected:?}"))
        }
        _ => Ok(()),
    }
}

/// Whoever takes a saga over comes too late for a step that was due before and whose time is limited to some milliseconds: it is not tried
/// again, unless it has to succeed.
fn given_up(dag: &Dag, limited: usize, seen: &Seen) -> Result<(), String> {
    let path = name(limited);
    let entries = || seen.stored.iter().flat_map(|stored| &stored.entries);
    let epoch_of = |kind: &str, step: Option<&str>| {
        let entry = |entry: &&Entry| entry.kind == kind && entry.step.as_deref() == step;
        entries().find(entry).map(|entry| entry.epoch)
    };
    let before = (0..limited).filter(|step| dag.behind[limited] >> step & 1 != 0);
    let due = before.map(|step| epoch_of("completed", Some(&name(step)))).chain([epoch_of("begun", None)]);
    let Some(due) = due.collect::<Option<Vec<u64>>>() else { return Ok(()) };
    let due = due.into_iter().max().unwrap_or_default();
    let retriable = dag.classes == Classes::PivotAndRetriable && limited + 1 == dag.len();
    let again =
        |call: &Call| call.step == path && call.what == What::Act && !call.redelivered && call.epoch > due;
    match seen.calls.iter().find(|call| again(call)) {
        Some(call) if !retriable && epoch_of("stuck", Some(&path)).is_none() => {
            Err(format!("{path} is late, and is sent under epoch {}", call.epoch))
        }
        _ => Ok(()),
    }
}

/// A step in which time passes or a message comes.
fn waiting(saga: &mut Builder<u32>, kind: Special, name: &str, before: &[Done]) -> Done {
    let value = |done: &Done| match done {
        Done::Value(output) => *output,
        _ => unreachable!("there is one special step"),
    };
    let limit = Duration::from_millis(10);
    macro_rules! add {
        ($before:expr) => {
            match kind {
                Special::Timer => Done::Time(saga.sleep(name, $before, limit)),
                Special::Signal => Done::Message(saga.signal(name, $before, None)),
                _ => Done::Message(saga.signal(name, $before, Some(limit))),
            }
        };
    }
    match before {
        [] => add!(()),
        [one] => add!(value(one)),
        [one, two] => add!((value(one), value(two))),
        _ => unreachable!("shapes of special steps have three at most"),
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
        for step in (0..dag.len()).filter(|step| dag.acts(*step) && dag.is_called(*step)) {
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

    /// Every order at every place where the saga goes forward, and where it is undone, and a crash at every place behind it.
    fn orders(&mut self, dag: &Dag) {
        self.shapes += 1;
        let check = dag.check(Skew::Descending, None);
        let last = Fault::Reject(name(dag.len() - 1));
        for base in [Case::default(), Case(vec![last])] {
            let Some(seen) = self.run(&check, &base) else { continue };
            for ordered in orders_in(&seen) {
                let Some(seen) = self.run(&check, &ordered) else { continue };
                let Some(Fault::Ask(_, place, _)) = ordered.0.last() else { unreachable!("it is an order") };
                let at = seen.places.iter().position(|passed| passed == place);
                let behind = |crash: &Case| match crash.0.last() {
                    Some(Fault::Crash(place, _)) => {
                        seen.places.iter().position(|passed| passed == place) > at
                    }
                    _ => false,
                };
                for crash in crashes_in(&seen).iter().filter(|crash| behind(crash)) {
                    self.run(&check, crash);
                }
            }
        }
    }
}

/// Shapes over two threads; what came of them.
fn sweep(work: Vec<(Dag, Skew, bool)>) -> Count {
    over(&work, |count, (dag, skew, double)| count.sweep(dag, *skew, *double))
}

fn over<T: Sync>(work: &[T], run: impl Fn(&mut Count, &T) + Sync) -> Count {
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

/// Shapes with one special step, shapes with a deadline, and shapes with a step whose time is limited.
fn specials(from: usize, to: usize, skews: &[Skew]) -> Vec<(Dag, Skew, bool)> {
    let plain: Vec<Dag> = (from..=to).flat_map(Dag::variants).collect();
    let deadlines = [1, 4, 8, 16];
    let due = |dag: &Dag| deadlines.map(|after| Dag { deadline: Some(after), ..dag.clone() });
    let special: Vec<Dag> = plain.iter().flat_map(Dag::specials).collect();
    let limit = |dag: &Dag, at: usize| deadlines.map(|after| Dag { limit: Some((at, after)), ..dag.clone() });
    let limited = plain.iter().flat_map(|dag| (0..dag.len()).flat_map(move |at| limit(dag, at)));
    let dags = plain.iter().flat_map(due).chain(special).chain(limited);
    dags.flat_map(|dag| skews.iter().map(move |skew| (dag.clone(), *skew, false))).collect()
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

/// Steps that are sent once, timers, messages, deadlines and limits. Three steps are in the full run.
#[test]
fn every_special_step_survives_one_crash_at_every_place() {
    let count = sweep(specials(1, 2, &[Skew::Descending]));
    none_failed(&count);
    assert!(count.cases > 2_000, "{}", count.cases);
}

#[test]
fn every_order_survives_one_crash_at_every_place_behind_it() {
    let count = over(&Dag::variants(1), |count, dag| count.orders(dag));
    none_failed(&count);
    assert!(count.cases > 200, "{}", count.cases);
}

#[test]
fn the_sweep_finds_planted_bugs() {
    let dag = Dag { behind: vec![0, 1, 1], ..Dag::NONE };
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

#[test]
fn the_sweep_finds_planted_bugs_in_special_steps_and_behind_deadlines() {
    let chain = |special, deadline| Dag { behind: vec![0, 1, 3], special, deadline, ..Dag::NONE };
    let limited = Dag { limit: Some((1, 8)), ..chain(None, None) };
    for (dag, bug) in [
        (chain(Some((1, Special::Compensated)), None), Bug::SkipCompensation),
        (chain(Some((1, Special::Verified)), None), Bug::Barrier(Flaw::Duplicates)),
        (chain(Some((1, Special::Timer)), None), Bug::AcknowledgeBeforeSync),
        (chain(Some((1, Special::Signal)), None), Bug::AcknowledgeBeforeSync),
        (chain(None, Some(8)), Bug::ForwardAfterAbort),
        (chain(None, Some(8)), Bug::SkipCompensation),
        (limited.clone(), Bug::ForwardAfterAbort),
        (limited, Bug::SkipCompensation),
    ] {
        let check = dag.check(Skew::Even, Some(bug));
        let mut count = Count::default();
        for base in [Case::default(), Case(vec![Fault::Twice])] {
            let Some(seen) = count.run(&check, &base) else { continue };
            for crash in crashes_in(&seen) {
                count.run(&check, &crash);
            }
        }
        if dag.deadline.is_none() && dag.limit.is_none() {
            count.run(&check, &Case(vec![Fault::Lose(name(2), Loss::Error, true)]));
        }
        assert!(!count.failures.is_empty(), "nothing notices {bug:?} in {dag:?}");
    }
}

/// Single faults up to 6 steps, double ones up to 4.
#[test]
#[ignore = "takes long: see the top of this file"]
fn everything() {
    let wanted = std::env::var("MAINSTAY_SWEEP").unwrap_or_default();
    assert!(!wanted.is_empty(), "MAINSTAY_SWEEP=full, or single:6, double:4, special:3, orders:3");
    let skews = [Skew::Even, Skew::Descending];
    let part = |kind: &str, most: usize| {
        for n in 1..=most {
            print!("{kind} faults, {n} steps: ");
            none_failed(&sweep(shapes(n, n, kind == "double", &skews)));
        }
    };
    let special = |most: usize| {
        for n in 1..=most.min(3) {
            print!("special steps, deadlines and limits, {n} steps: ");
            none_failed(&sweep(specials(n, n, &skews)));
        }
    };
    let orders = |most: usize| {
        for n in 1..=most {
            print!("orders, {n} steps: ");
            none_failed(&over(&Dag::variants(n), |count, dag| count.orders(dag)));
        }
    };
    match wanted.split_once(':') {
        Some(("special", most)) => special(most.parse().unwrap()),
        Some(("orders", most)) => orders(most.parse().unwrap()),
        Some((kind, most)) => part(kind, most.parse().unwrap()),
        None => {
            part("single", 6);
            part("double", 4);
            special(3);
            orders(3);
        }
    }
}
