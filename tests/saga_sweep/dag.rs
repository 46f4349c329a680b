//! Small sagas: their shapes, and the steps in them.

use std::{collections::BTreeSet, time::Duration};

use mainstay::{
    saga::{Adding, Builder, Entry, Output, Phase, Saga, Step, Unknown},
    testing::{Bug, Call, Check, Fault, Ledger, Loss, Said, Seen, Skew, What},
};
use serde::{Serialize, de::DeserializeOwned};

/// A saga's shape: for each step, what it is behind. The steps stand in an order in which each is behind what comes before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dag {
    pub behind: Vec<u8>,
    pub classes: Classes,
    /// One step that is not like the others.
    pub special: Option<(usize, Special)>,
    /// In milliseconds.
    pub deadline: Option<u64>,
    /// One step whose time is limited, in milliseconds.
    pub limit: Option<(usize, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Special {
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
    pub const ALL: [Special; 7] = [
        Special::Compensated,
        Special::Parked,
        Special::Verified,
        Special::Declined,
        Special::Timer,
        Special::Signal,
        Special::Silence,
    ];

    /// Whether code runs in it.
    pub fn acts(self) -> bool {
        !matches!(self, Special::Timer | Special::Signal | Special::Silence)
    }

    pub fn is_nested(self) -> bool {
        matches!(self, Special::Nested | Special::NestedBranches)
    }
}

/// Limited to so many milliseconds.
pub fn within<I: Input, C>(step: Adding<'_, I, (), u64, C>, limit: Option<u64>) -> Adding<'_, I, (), u64, C> {
    match limit {
        Some(limit) => step.within(Duration::from_millis(limit)),
        None => step,
    }
}

/// What a step is followed by.
#[derive(Clone, Copy)]
pub enum Done {
    Value(Output<u64>),
    Time(Output<()>),
    Message(Output<Option<u64>>),
    Both((Output<u64>, Output<u64>)),
}

/// What a saga is started with.
pub trait Input: Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<I: Serialize + DeserializeOwned + Send + Sync + 'static> Input for I {}

/// Behind all of these.
pub fn behind<'a, I: Input, C>(
    step: Adding<'a, I, (), u64, C>,
    before: &[Done],
) -> Adding<'a, I, (), u64, C> {
    before.iter().fold(step, |step, done| match done {
        Done::Value(output) => step.after(*output),
        Done::Time(output) => step.after(*output),
        Done::Message(output) => step.after(*output),
        Done::Both((one, other)) => step.after(*one).after(*other),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Classes {
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
    pub const NONE: Dag = Dag {
        behind: Vec::new(),
        classes: Classes::Compensatable,
        special: None,
        deadline: None,
        limit: None,
    };

    pub fn len(&self) -> usize {
        self.behind.len()
    }

    /// All orders of `n` steps that differ in more than names: what can be due at once is what matters, so that an edge that follows from
    /// others is as good as none.
    pub fn all(n: usize) -> Vec<Vec<u8>> {
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

    pub fn variants(n: usize) -> Vec<Dag> {
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
    pub fn specials(&self) -> Vec<Dag> {
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
    pub fn nested(&self) -> Vec<Dag> {
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
    pub fn within(&self, at: usize) -> Dag {
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
    pub fn put<I: Input>(&self, saga: &mut Builder<I>, at: usize, before: &[Done], ledger: &Ledger) -> Done {
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

    pub fn build(&self, ledger: &Ledger) -> Saga<u32> {
        self.steps(ledger).0.build(()).unwrap()
    }

    pub fn steps<I: Input>(&self, ledger: &Ledger) -> (Builder<I>, Vec<Done>) {
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

    pub fn check(&self, skew: Skew, bug: Option<Bug>) -> Check<u32, ()> {
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
    pub fn acts(&self, step: usize) -> bool {
        self.special.is_none_or(|(at, kind)| at != step || kind.acts())
    }

    /// Whether it is called in any case: behind a deadline or a limit nobody need be, nor behind or beside what is rejected.
    pub fn is_called(&self, step: usize) -> bool {
        self.deadline.is_none()
            && self.limit.is_none()
            && match self.special {
                Some((at, Special::Declined)) => at == step || self.behind[at] >> step & 1 != 0,
                _ => true,
            }
    }

    /// The paths of the steps that are called in any case.
    pub fn called(&self) -> Vec<String> {
        let steps = (0..self.len()).filter(|step| self.acts(*step) && self.is_called(*step));
        steps.flat_map(|step| self.paths(step)).collect()
    }

    /// The steps that a step is.
    pub fn paths(&self, step: usize) -> Vec<String> {
        match self.special {
            Some((at, kind)) if at == step && kind.is_nested() => {
                [0, 1].map(|inner| format!("{}/{}", name(at), name(inner))).to_vec()
            }
            _ => vec![name(step)],
        }
    }

    /// Whether calls came in the order that was meant. What the checker knows of it is what the definition has come to.
    pub fn in_order(&self, seen: &Seen) -> Result<(), String> {
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
    pub fn outcomes(step: &str) -> [Fault; 3] {
        let step = || step.to_owned();
        [Fault::Reject(step()), Fault::Lose(step(), Loss::Error, true), Fault::Drop(step(), true)]
    }
}

/// Whoever can be asked whether a step has happened, and recognises a key, needs no person; and a crash alone changes nothing.
pub fn found_out(kind: Special, step: &str, retriable: bool, seen: &Seen) -> Result<(), String> {
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
pub fn given_up(dag: &Dag, limited: usize, seen: &Seen) -> Result<(), String> {
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
pub fn waiting<I: Input>(saga: &mut Builder<I>, kind: Special, name: &str, before: &[Done]) -> Done {
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

pub fn name(step: usize) -> String {
    ["a", "b", "c", "d", "e", "f"][step].to_owned()
}

/// The smallest of what renaming makes of a closed order.
pub fn canonical(behind: &[u8]) -> Vec<u8> {
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

pub fn permute(order: &mut Vec<usize>, at: usize, visit: &mut dyn FnMut(&[usize])) {
    if at == order.len() {
        return visit(order);
    }
    for other in at..order.len() {
        order.swap(at, other);
        permute(order, at + 1, visit);
        order.swap(at, other);
    }
}
