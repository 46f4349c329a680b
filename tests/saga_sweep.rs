//! Every small saga, every outcome of its steps, and a crash at every place.
//!
//! The part that runs always is bounded. All of it: `MAINSTAY_SWEEP=full cargo test --release --test saga_sweep --features saga -- --ignored
//! --nocapture`. What it found is in `docs/saga-verification.md`.
#![cfg(feature = "saga")]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};

use mainstay::{
    saga::{Adding, Builder, Entry, Output, Phase, Saga, Step, Unknown, memory::Operation},
    testing::{
        Bug, Call, Case, Check, Edge, Failed, Fault, Flaw, Ledger, Loss, Place, Said, Seen, Skew, What,
        crashes_behind, crashes_in, orders_in,
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
    /// A definition of its own: two steps one after the other, and two beside each other.
    Nested,
    NestedBranches,
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

    fn is_nested(self) -> bool {
        matches!(self, Special::Nested | Special::NestedBranches)
    }
}

/// Limited to so many milliseconds.
fn within<I: Input, C>(step: Adding<'_, I, (), u64, C>, limit: Option<u64>) -> Adding<'_, I, (), u64, C> {
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
    Both((Output<u64>, Output<u64>)),
}

/// What a saga is started with.
trait Input: Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<I: Serialize + DeserializeOwned + Send + Sync + 'static> Input for I {}

/// Behind all of these.
fn behind<'a, I: Input, C>(step: Adding<'a, I, (), u64, C>, before: &[Done]) -> Adding<'a, I, (), u64, C> {
    before.iter().fold(step, |step, done| match done {
        Done::Value(output) => step.after(*output),
        Done::Time(output) => step.after(*output),
        Done::Message(output) => step.after(*output),
        Done::Both((one, other)) => step.after(*one).after(*other),
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
    /// Every step has to succeed: only within another definition.
    Retriable,
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
                Classes::Retriable => true,
            };
            // What decides is not undone, and code runs in it.
            let fits = |kind: &&Special| !decides || kind.acts() && !matches!(kind, Special::Compensated);
            dags.extend(Special::ALL.iter().filter(fits).map(special));
        }
        dags
    }

    /// The same with each step in turn a definition of two steps, where it may be.
    fn nested(&self) -> Vec<Dag> {
        let nested = |at| {
            let nested = move |kind| Dag { special: Some((at, kind)), ..self.clone() };
            let dags = [Special::Nested, Special::NestedBranches].map(nested);
            // A pivot decides for what comes before it, and stands beside nothing.
            dags.into_iter()
                .filter(move |dag| dag.within(at).classes != Classes::Pivot || dag.within(at).behind[1] != 0)
        };
        (0..self.len()).flat_map(nested).collect()
    }

    /// The definition that stands for a step.
    fn within(&self, at: usize) -> Dag {
        let from_end = self.len() - 1 - at;
        let classes = match (self.classes, from_end) {
            (Classes::Pivot, 0) | (Classes::PivotAndRetriable, 1) => Classes::Pivot,
            (Classes::PivotAndRetriable, 0) => Classes::Retriable,
            _ => Classes::Compensatable,
        };
        let chain = matches!(self.special, Some((_, Special::Nested)));
        Dag { behind: vec![0, u8::from(chain)], classes, ..Dag::NONE }
    }

    /// Puts a definition in the place of a step: what it is behind it gets for its input, if that is one value.
    fn put<I: Input>(&self, saga: &mut Builder<I>, at: usize, before: &[Done], ledger: &Ledger) -> Done {
        let (name, inner) = (name(at), self.within(at));
        macro_rules! put {
            ($put:ident, $input:ty, $before:expr) => {{
                let (steps, outputs) = inner.steps::<$input>(ledger);
                let [Done::Value(one), Done::Value(other)] = outputs[..] else { unreachable!("they act") };
                if inner.behind[1] == 0 {
                    Done::Both(saga.$put(&name, $before, &steps.build((one, other)).unwrap()))
                } else {
                    Done::Value(saga.$put(&name, $before, &steps.build(other).unwrap()))
                }
            }};
        }
        match before {
            [] => put!(nested_alike, I, ()),
            [Done::Value(one)] => put!(nested, u64, *one),
            [Done::Value(one), Done::Value(two)] => put!(nested_alike, I, (*one, *two)),
            _ => unreachable!("shapes with another definition in them have three steps at most"),
        }
    }

    fn build(&self, ledger: &Ledger) -> Saga<u32> {
        self.steps(ledger).0.build(()).unwrap()
    }

    fn steps<I: Input>(&self, ledger: &Ledger) -> (Builder<I>, Vec<Done>) {
        let mut saga = Saga::define::<I>("swept", 1);
        let mut outputs: Vec<Done> = Vec::new();
        for (at, mask) in self.behind.iter().enumerate() {
            let name = name(at);
            let special = self.special.filter(|(special, _)| *special == at).map(|(_, kind)| kind);
            let limit = self.limit.filter(|(limited, _)| *limited == at).map(|(_, limit)| limit);
            let (act, ask, undo) = (ledger.clone(), ledger.clone(), ledger.clone());
            let action = move |step: Step<I>, ()| {
                let done = match special {
                    Some(Special::Declined) => Err(act.reject(step.key(), "no")),
                    _ => act.action(step.key(), || 1_u64),
                };
                async move { done }
            };
            let ask = move |step: Step<I>, ()| {
                let known = ask.verify(step.key());
                async move { Ok(known) }
            };
            let undo = move |step: Step<I>, (), _| {
                let _ = undo.undo(step.key());
                async { Ok(()) }
            };
            let before: Vec<Done> = (0..at).filter(|a| mask >> a & 1 != 0).map(|a| outputs[a]).collect();
            let from_end = self.len() - 1 - at;
            if special.is_some_and(Special::is_nested) {
                outputs.push(self.put(&mut saga, at, &before, ledger));
                continue;
            }
            let output = match (self.classes, from_end) {
                (Classes::Pivot, 0) | (Classes::PivotAndRetriable, 1) => {
                    let step = within(behind(saga.pivot(&name, (), action), &before), limit);
                    Done::Value(match special {
                        Some(Special::Parked) => step.on_unknown(Unknown::Park).add(),
                        Some(_) => step.verify(ask).add(),
                        None => step.add(),
                    })
                }
                (Classes::PivotAndRetriable, 0) | (Classes::Retriable, _) => {
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
        (saga, outputs)
    }

    fn check(&self, skew: Skew, bug: Option<Bug>) -> Check<u32, ()> {
        let dag = self.clone();
        let mut check = Check::new(1, move |ledger: &Ledger| dag.build(ledger)).skew(skew).lock("account");
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
        if self.special.is_some_and(|(_, kind)| kind.is_nested()) {
            let dag = self.clone();
            check = check.expect(move |seen| dag.in_order(seen));
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

    /// The paths of the steps that are called in any case.
    fn called(&self) -> Vec<String> {
        let steps = (0..self.len()).filter(|step| self.acts(*step) && self.is_called(*step));
        steps.flat_map(|step| self.paths(step)).collect()
    }

    /// The steps that a step is.
    fn paths(&self, step: usize) -> Vec<String> {
        match self.special {
            Some((at, kind)) if at == step && kind.is_nested() => {
                [0, 1].map(|inner| format!("{}/{}", name(at), name(inner))).to_vec()
            }
            _ => vec![name(step)],
        }
    }

    /// Whether calls came in the order that was meant. What the checker knows of it is what the definition has come to.
    fn in_order(&self, seen: &Seen) -> Result<(), String> {
        let of = |path: &str, what: What| -> Vec<Call> {
            let calls = seen.calls.iter().filter(|call| call.step == path && call.what == what);
            calls.filter(|call| !call.redelivered).cloned().collect()
        };
        // Whatever of `first` there is, one was done before any of `then` began.
        let follows = |first: &[Call], then: &[Call]| {
            let done = |call: &Call| call.ended.filter(|(_, said)| *said == Said::Done).map(|(at, _)| at);
            let done = first.iter().filter_map(done).min();
            then.iter().all(|call| done.is_some_and(|done| done < call.began))
        };
        for (later, mask) in self.behind.iter().enumerate() {
            for earlier in (0..later).filter(|earlier| mask >> earlier & 1 != 0) {
                for (a, b) in self
                    .paths(earlier)
                    .iter()
                    .flat_map(|a| self.paths(later).into_iter().map(move |b| (a, b)))
                {
                    if !follows(&of(a, What::Act), &of(&b, What::Act)) {
                        return Err(format!("{b} was sent before {a} was done"));
                    }
                    let undone = of(&b, What::Undo);
                    if !undone.is_empty() && !follows(&undone, &of(a, What::Undo)) {
                        return Err(format!("{a} was undone before {b} was"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Rejected; happened and unknown; not happened and unknown.
    fn outcomes(step: &str) -> [Fault; 3] {
        let step = || step.to_owned();
        [Fault::Reject(step()), Fault::Lose(step(), Loss::Error, true), Fault::Drop(step(), true)]
    }
}

/// Whoever can be asked whether a step has happened, and recognises a key, needs no person; and a crash alone changes nothing.
fn found_out(kind: Special, step: &str, retriable: bool, seen: &Seen) -> Result<(), String> {
    let crash = |fault: &Fault| matches!(fault, Fault::Crash(..) | Fault::Unsynced(..));
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
fn waiting<I: Input>(saga: &mut Builder<I>, kind: Special, name: &str, before: &[Done]) -> Done {
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

/// How much goes wrong in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
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
    fn is_double(self) -> bool {
        matches!(self, Depth::Fifths | Depth::Double)
    }

    fn has(self, crash: &Case) -> bool {
        let saga = matches!(
            place_of(crash),
            Place::Call(..) | Place::Store(Operation::Append | Operation::Claim, _)
        );
        saga || matches!(self, Depth::Single | Depth::Double)
    }
}

/// Where the last crash of a case comes.
fn place_of(crash: &Case) -> Place {
    match crash.0.last() {
        Some(Fault::Crash(place, _)) => place.clone(),
        Some(Fault::Unsynced(operation, number)) => Place::Store(*operation, *number),
        other => unreachable!("{other:?} is no crash"),
    }
}

/// Whether the saga was in the store when the power was cut: before, a second crash only meets what the first one met.
fn has_begun(seen: &Seen, crash: &Case) -> bool {
    let begin = Place::Store(Operation::Append, 0);
    let at = |place: &Place| seen.places.iter().position(|passed| passed == place);
    let place = place_of(crash);
    at(&place) > at(&begin) || place == begin && matches!(crash.0.last(), Some(Fault::Crash(_, Edge::After)))
}

#[derive(Debug, Default)]
struct Count {
    shapes: usize,
    cases: usize,
    /// A second crash that the first one did not let come.
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

    /// One outcome that is not ok and one crash; or two outcomes and two crashes.
    fn sweep(&mut self, dag: &Dag, skew: Skew, depth: Depth) {
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
fn sweep(work: Vec<(Dag, Skew, Depth)>) -> Count {
    over(&work, |count, (dag, skew, depth)| count.sweep(dag, *skew, *depth))
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
        "{} shapes, {} runs, {} without their second crash, in {:.1?}: {} failures",
        all.shapes,
        all.cases,
        all.skipped,
        began.elapsed(),
        all.failures.len()
    );
    all
}

fn shapes(from: usize, to: usize, depth: Depth, skews: &[Skew]) -> Vec<(Dag, Skew, Depth)> {
    let mut work = Vec::new();
    for n in from..=to {
        for dag in Dag::variants(n) {
            work.extend(skews.iter().map(|skew| (dag.clone(), *skew, depth)));
        }
    }
    work
}

/// Shapes with one special step, shapes with a deadline, and shapes with a step whose time is limited.
fn specials(from: usize, to: usize, depth: Depth, skews: &[Skew]) -> Vec<(Dag, Skew, Depth)> {
    let plain: Vec<Dag> = (from..=to).flat_map(Dag::variants).collect();
    let deadlines = [1, 4, 8, 16];
    let due = |dag: &Dag| deadlines.map(|after| Dag { deadline: Some(after), ..dag.clone() });
    let special: Vec<Dag> = plain.iter().flat_map(Dag::specials).collect();
    let limit = |dag: &Dag, at: usize| deadlines.map(|after| Dag { limit: Some((at, after)), ..dag.clone() });
    let limited = plain.iter().flat_map(|dag| (0..dag.len()).flat_map(move |at| limit(dag, at)));
    let dags = plain.iter().flat_map(due).chain(special).chain(limited);
    dags.flat_map(|dag| skews.iter().map(move |skew| (dag.clone(), *skew, depth))).collect()
}

/// Shapes with a definition in the place of one step.
fn nested(from: usize, to: usize, depth: Depth, skews: &[Skew]) -> Vec<(Dag, Skew, Depth)> {
    let dags = (from..=to).flat_map(Dag::variants).flat_map(|dag| dag.nested());
    dags.flat_map(|dag| skews.iter().map(move |skew| (dag.clone(), *skew, depth))).collect()
}

fn none_failed(count: &Count) {
    assert!(count.failures.is_empty(), "{}\n{}", count.failures.len(), count.failures.join("\n"));
}

#[test]
fn the_shapes_are_all_there() {
    // The number of partial orders that differ in more than names.
    assert_eq!((1..=5).map(|n| Dag::all(n).len()).collect::<Vec<_>>(), [1, 2, 5, 16, 63]);
}

/// Where something can go wrong. What comes again and again while a saga waits for its owner's lease to end is there once.
#[test]
fn the_places_of_a_run_are_those_of_its_saga() {
    let dag = Dag { behind: vec![0], ..Dag::NONE };
    let places = |case: &str| {
        let seen = Count::default().run(&dag.check(Skew::Even, None), &case.parse().unwrap()).unwrap();
        seen.places.iter().map(Place::to_string).collect::<Vec<_>>().join(" ")
    };
    let happy = "heartbeat:0 claim:0 announce:0 append:0 act:a:0 append:1 forget:0 leave:0";
    assert_eq!(places("happy"), happy);
    assert_eq!(
        places("crash(act:a:0:before)"),
        "heartbeat:0 claim:0 announce:0 append:0 act:a:0 \
         heartbeat:1 claim:1 announce:1 append:1 heartbeat:2 claim:2 claim:4 act:a:1 append:2 forget:0 leave:0"
    );
}

#[test]
fn every_small_saga_survives_one_crash_at_every_place() {
    let mut work = shapes(1, 3, Depth::Single, &[Skew::Descending]);
    work.extend(shapes(4, 4, Depth::Saga, &[Skew::Descending]));
    let count = sweep(work);
    none_failed(&count);
    assert!(count.cases > 10_000, "{}", count.cases);
}

#[test]
fn every_tiny_saga_survives_two_crashes() {
    // Two steps in order with every class, and two branches: the rest is in the full run.
    let mut work = shapes(1, 2, Depth::Fifths, &[Skew::Even]);
    work.retain(|(dag, ..)| dag.len() == 1 || dag.classes != Classes::Pivot);
    let count = sweep(work);
    none_failed(&count);
    assert!(count.skipped * 10 < count.cases, "{} of {}", count.skipped, count.cases);
}

/// Steps that are sent once, timers, messages, deadlines and limits. Three steps are in the full run.
#[test]
fn every_special_step_survives_one_crash_at_every_place() {
    let mut work = specials(1, 1, Depth::Single, &[Skew::Descending]);
    work.extend(specials(2, 2, Depth::Saga, &[Skew::Descending]));
    let count = sweep(work);
    none_failed(&count);
    assert!(count.cases > 2_000, "{}", count.cases);
}

/// Definitions within others. Three steps, one of them another definition, are in the full run.
#[test]
fn every_nested_definition_survives_one_crash_at_every_place() {
    let mut work = nested(1, 2, Depth::Saga, &[Skew::Descending]);
    work.retain(|(dag, ..)| dag.len() == 1 || matches!(dag.special, Some((_, Special::Nested))));
    let count = sweep(work);
    none_failed(&count);
    assert!(count.cases > 1_000, "{}", count.cases);
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
        Bug::NoLocks,
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

/// What only shows when the power is cut behind a claim, or in it before it is synced, or in the first call under it.
#[test]
fn crashes_in_claims_find_what_nothing_else_does() {
    let dag = Dag { behind: vec![0], ..Dag::NONE };
    let finds = |bug, found: fn(&Fault) -> bool| {
        let check = dag.check(Skew::Even, Some(bug));
        let (mut count, mut last) = (Count::default(), Vec::new());
        let seen = count.run(&check, &Case::default()).unwrap();
        for crash in crashes_in(&seen) {
            let seen = count.run(&check, &crash).unwrap_or_else(|| panic!("{:?}", count.failures));
            for second in crashes_behind(&seen) {
                if count.run(&check, &second).is_none() {
                    last.extend(second.0.last().cloned());
                }
            }
        }
        assert!(!last.is_empty() && last.iter().all(found), "{bug:?}: {last:?}\n{:?}", count.failures);
    };
    finds(Bug::ClaimHeld, |fault| {
        matches!(fault, Fault::Crash(Place::Store(Operation::Claim, _), Edge::After))
    });
    finds(Bug::ClaimCached, |fault| matches!(fault, Fault::Unsynced(Operation::Claim, _)));
    finds(Bug::ClaimUnsynced, |fault| match fault {
        Fault::Crash(Place::Call(..), _) => true,
        // What the call came to is not written.
        Fault::Crash(Place::Store(operation, _), Edge::Before) => *operation == Operation::Append,
        fault => matches!(fault, Fault::Unsynced(Operation::Append, _)),
    });
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
    assert!(!wanted.is_empty(), "MAINSTAY_SWEEP=full, or single:6, double:4, special:3, nested:3, orders:3");
    let skews = [Skew::Even, Skew::Descending];
    let part = |kind: &str, most: usize| {
        for n in 1..=most {
            print!("{kind} faults, {n} steps: ");
            let depth = if kind == "double" { Depth::Double } else { Depth::Single };
            none_failed(&sweep(shapes(n, n, depth, &skews)));
        }
    };
    let special = |most: usize| {
        for n in 1..=most.min(3) {
            print!("special steps, deadlines and limits, {n} steps: ");
            none_failed(&sweep(specials(n, n, Depth::Single, &skews)));
        }
    };
    let nesting = |most: usize| {
        for n in 1..=most.min(3) {
            print!("nested definitions, {n} steps: ");
            none_failed(&sweep(nested(n, n, Depth::Single, &skews)));
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
        Some(("nested", most)) => nesting(most.parse().unwrap()),
        Some(("orders", most)) => orders(most.parse().unwrap()),
        Some((kind, most)) => part(kind, most.parse().unwrap()),
        None => {
            part("single", 6);
            part("double", 4);
            special(3);
            nesting(3);
            orders(3);
        }
    }
}
