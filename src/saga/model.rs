//! The machine against a model that keeps every record and looks everything up in the list, on random definitions and random
//! records, legal and illegal ones.

use std::{sync::Arc, time::Duration};

use proptest::prelude::*;

use super::{
    journal::{Ask, Phase},
    machine::{Machine, REFUSED},
    record::{Cause, Order, Payload, Record, Timestamp},
    shape::{Class, Kind, Node, Shape, Unknown},
    steps::Steps,
};
use crate::property::{catches, holds};

/// What could be wrong with the machine; each is planted in the model, which is the same to the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// What is due while the saga is unwound.
    ForwardAfterAbort,
    /// The compensation of the last step that may have happened is forgotten.
    SkipCompensation,
    /// What was due when the saga was turned round is taken for clean.
    DueIsClean,
    /// Undone in any order.
    UndoInAnyOrder,
    /// A second abort is taken.
    AbortTwice,
    /// A pivot that may have happened is no obstacle to turning round.
    AbortBehindPivot,
    /// Something follows the end.
    NotFinal,
    /// A step is completed twice.
    CompletedTwice,
    /// A saga that is held stays so when a person turns it round.
    HeldAfterCancel,
    /// The deadline lets a saga go on that is held.
    DeadlineLetsGo,
    /// Any number of refused messages is recorded.
    RefusedWithoutEnd,
    /// What nobody knows of a step in the journal's transaction is forgotten when the saga is turned round.
    DoubtEndsWithAbort,
    /// The time of a step begins with the first of those that it is behind.
    TimeFromTheFirst,
    /// The time of a step goes on while a person is waited for.
    RetryGivesNoTime,
}

/// The records that were taken, each with when it was written, and nothing else.
struct Model<'a> {
    shape: &'a Shape,
    records: Vec<Record>,
    times: Vec<Timestamp>,
    bug: Bug,
}

impl Model<'_> {
    /// The first `len` records.
    fn until(&self, len: usize) -> Self {
        let (records, times) = (self.records[..len].to_vec(), self.times[..len].to_vec());
        Model { shape: self.shape, records, times, bug: self.bug }
    }

    fn path(&self, step: usize) -> &str {
        &self.shape.nodes[step].path
    }

    fn all(&self) -> Vec<usize> {
        (0..self.shape.nodes.len()).collect()
    }

    fn begun(&self) -> bool {
        !self.records.is_empty()
    }

    /// Where it was turned round.
    fn abort(&self) -> Option<usize> {
        (0..self.records.len()).find(|&at| match &self.records[at] {
            Record::Aborted { .. } | Record::Ordered { order: Order::Compensate { .. }, .. } => true,
            // The first thing that is said of a rejected step, going forward, turns the saga round.
            Record::Ordered { order: Order::Reject { .. }, .. } => true,
            _ => false,
        })
    }

    fn completed_at(&self, step: usize) -> Option<usize> {
        self.records.iter().position(|record| match record {
            Record::Completed { step: path, .. }
            | Record::Ordered { order: Order::Complete { step: path, .. }, .. } => path == self.path(step),
            _ => false,
        })
    }

    fn abandoned(&self) -> bool {
        self.records
            .iter()
            .any(|record| matches!(record, Record::Ordered { order: Order::Abandon { .. }, .. }))
    }

    /// What may be sent after the first `len` records, if it was not turned round.
    fn open_at(&self, len: usize) -> Vec<usize> {
        let done = |step: usize| self.completed_at(step).is_some_and(|at| at < len);
        let all = self.all().into_iter();
        all.filter(|&step| !done(step) && self.shape.nodes[step].before.iter().all(done)).collect()
    }

    /// When a step that is due has to be over: behind everything that let it begin, and the last time that a person said so.
    fn limit(&self, step: usize) -> Option<Timestamp> {
        let node = &self.shape.nodes[step];
        let begun = |at: usize| match &self.records[at] {
            Record::Begun { .. } => node.before.is_empty(),
            Record::Completed { step: path, .. }
            | Record::Ordered { order: Order::Complete { step: path, .. }, .. } => {
                node.before.contains(self.shape.find(path).unwrap())
            }
            Record::Ordered { order: Order::Retry { step: path }, .. } => {
                let said = path.as_deref().is_none_or(|path| path == node.path);
                said && self.open_at(at).contains(&step) && self.bug != Bug::RetryGivesNoTime
            }
            _ => false,
        };
        let times = (0..self.records.len()).filter(|&at| begun(at)).map(|at| self.times[at]);
        let since = if self.bug == Bug::TimeFromTheFirst { times.min() } else { times.max() };
        Some(since?.after(node.within?))
    }

    fn due(&self) -> Vec<usize> {
        let stopped = self.abort().is_some() && self.bug != Bug::ForwardAfterAbort;
        if !self.begun() || stopped || self.abandoned() {
            Vec::new()
        } else {
            self.open_at(self.records.len())
        }
    }

    fn clean(&self, step: usize) -> bool {
        let path = self.path(step);
        self.records.iter().any(|record| match record {
            Record::Aborted { clean, .. } => clean.iter().any(|clean| clean == path),
            Record::Clean { step } => step == path,
            Record::Ordered { order: Order::Reject { step, .. }, .. } if step == path => true,
            Record::Ordered { clean, .. } => clean.iter().any(|step| step == path),
            _ => false,
        })
    }

    fn undone(&self, step: usize) -> bool {
        let path = self.path(step);
        self.records.iter().any(|record| match record {
            Record::Undone { step, .. } => step == path,
            Record::Ordered { order: Order::Undone { step, .. }, .. } => step == path,
            _ => false,
        })
    }

    /// What may have happened, and is not known not to have.
    fn applied(&self) -> Vec<usize> {
        let Some(abort) = self.abort() else { return Vec::new() };
        let open = if self.bug == Bug::DueIsClean { Vec::new() } else { self.open_at(abort) };
        let done = |step: usize| self.completed_at(step).is_some_and(|at| at < abort);
        let all = self.all().into_iter();
        all.filter(|&step| done(step) || open.contains(&step) && !self.clean(step)).collect()
    }

    fn to_undo(&self) -> Vec<usize> {
        if self.abandoned() {
            return Vec::new();
        }
        let mut left = self.applied();
        left.retain(|&step| self.shape.nodes[step].has_undo && !self.undone(step));
        if self.bug == Bug::SkipCompensation && self.undone_count() == 0 {
            left.pop();
        }
        left
    }

    fn undone_count(&self) -> usize {
        self.all().into_iter().filter(|&step| self.undone(step)).count()
    }

    fn is_behind(&self, later: usize, earlier: usize) -> bool {
        let before = self.shape.nodes[later].before;
        before.contains(earlier) || before.iter().any(|step| self.is_behind(step, earlier))
    }

    fn undo_due(&self) -> Vec<usize> {
        let left = self.to_undo();
        let free = |step: usize| !left.iter().any(|&later| self.is_behind(later, step));
        left.iter().copied().filter(|&step| free(step) || self.bug == Bug::UndoInAnyOrder).collect()
    }

    /// What was in flight when it was turned round, and was not heard of since.
    fn unheard(&self) -> Vec<usize> {
        let mut open = self.applied();
        open.retain(|&step| self.completed_at(step).is_none() && !self.undone(step));
        open
    }

    /// A step that cannot be undone has happened, or may have.
    fn committed(&self, clean: &[usize]) -> bool {
        let len = self.records.len();
        let open = self.open_at(len);
        let cannot = |step: usize| matches!(self.shape.nodes[step].class, Class::Pivot | Class::Retriable);
        self.all().into_iter().any(|step| {
            let done = self.completed_at(step).is_some();
            let may = open.contains(&step) && !clean.contains(&step) && self.bug != Bug::AbortBehindPivot;
            let behind = self.all().into_iter().any(|other| cannot(other) && self.is_behind(step, other));
            (done || may) && (cannot(step) || behind)
        })
    }

    fn over(&self) -> Option<Phase> {
        if self.abandoned() {
            Some(Phase::Abandoned)
        } else if self.abort().is_none() && self.all().iter().all(|&step| self.completed_at(step).is_some()) {
            Some(Phase::Completed)
        } else if self.abort().is_some() && self.to_undo().is_empty() {
            Some(Phase::Compensated)
        } else {
            None
        }
    }

    /// What is stuck or parked, and whether the saga as a whole is: the list read from its beginning.
    fn trouble(&self) -> (Vec<usize>, Vec<usize>, bool) {
        let (mut stuck, mut parked, mut held) = (Vec::new(), Vec::new(), false);
        let abort = self.abort();
        for (at, record) in self.records.iter().enumerate() {
            let mut settle = |path: &str| {
                stuck.retain(|&step| self.path(step) != path);
                parked.retain(|&step| self.path(step) != path);
            };
            match record {
                Record::Completed { step, .. } | Record::Clean { step } | Record::Undone { step, .. } => {
                    settle(step)
                }
                Record::Ordered { order, .. } => match order {
                    Order::Retry { step: None } => (stuck, parked, held) = (Vec::new(), Vec::new(), false),
                    Order::Retry { step: Some(step) }
                    | Order::Complete { step, .. }
                    | Order::Reject { step, .. }
                    | Order::Undone { step, .. } => settle(step),
                    Order::Cancel { .. } => held &= abort.is_none_or(|abort| abort > at),
                    _ => {}
                },
                Record::Stuck { step, .. } => stuck.extend(self.shape.find(step)),
                Record::Parked { step: Some(step), .. } => parked.extend(self.shape.find(step)),
                Record::Parked { step: None, .. } => held = true,
                _ => {}
            }
            if abort == Some(at) {
                // What is in doubt stays so, if it is to be undone.
                let until = self.until(at + 1);
                let doubtful =
                    |step: &usize| self.shape.nodes[*step].transactional && until.to_undo().contains(step);
                stuck = Vec::new();
                parked.retain(|step| doubtful(step) && self.bug != Bug::DoubtEndsWithAbort);
                let late = matches!(record, Record::Aborted { cause: Cause::Deadline, .. });
                held &= late && self.bug != Bug::DeadlineLetsGo || self.bug == Bug::HeldAfterCancel;
            }
        }
        (stuck, parked, held)
    }

    fn phase(&self) -> Phase {
        if let Some(over) = self.over() {
            return over;
        }
        let (stuck, parked, held) = self.trouble();
        let due = self.due();
        let waits = |&step: &usize| self.shape.nodes[step].kind != Kind::Action;
        if held || !parked.is_empty() {
            Phase::Parked
        } else if !stuck.is_empty() {
            Phase::Stuck
        } else if self.abort().is_some() {
            Phase::Unwinding
        } else if !due.is_empty() && due.iter().all(waits) {
            Phase::Waiting
        } else {
            Phase::Running
        }
    }

    /// How often a step that is sent only once was sent since a person last let it be.
    fn is_sent(&self, step: usize) -> bool {
        let mut sent = false;
        for at in 0..self.records.len() {
            let before = self.until(at);
            match &self.records[at] {
                Record::Sent { step: path } => sent |= path == self.path(step),
                Record::Ordered { order: Order::Retry { step: Some(path) }, .. }
                    if path == self.path(step) =>
                {
                    sent = false;
                }
                Record::Ordered { order: Order::Retry { step: None }, .. } => {
                    sent &= !before.trouble().1.contains(&step);
                }
                _ => {}
            }
        }
        sent
    }

    fn takes(&self, record: &Record) -> bool {
        if matches!(record, Record::Begun { .. }) == self.begun() {
            return false;
        }
        if self.begun() && self.over().is_some() && self.bug != Bug::NotFinal {
            return false;
        }
        let known = |path: &str| self.shape.find(path);
        let (due, undo) = (self.due(), self.undo_due());
        let (stuck, parked, held) = self.trouble();
        let complete = |path: &str| {
            known(path).is_some_and(|step| {
                due.contains(&step)
                    || self.unheard().contains(&step)
                    || self.bug == Bug::CompletedTwice
                        && self.completed_at(step).is_some()
                        && self.abort().is_none()
            })
        };
        match record {
            Record::Begun { .. } => true,
            Record::Sent { step } => known(step).is_some_and(|step| {
                let node = &self.shape.nodes[step];
                node.kind == Kind::Action
                    && node.unknown != Unknown::Retry
                    && due.contains(&step)
                    && !self.is_sent(step)
            }),
            Record::Armed { step: path, .. } => known(path).is_some_and(|step| {
                let armed = |record: &Record| matches!(record, Record::Armed { step, .. } if step == path);
                self.shape.nodes[step].kind != Kind::Action
                    && due.contains(&step)
                    && !self.records.iter().any(armed)
            }),
            Record::Completed { step, .. } => complete(step),
            Record::Aborted { clean, .. } => {
                let steps: Option<Vec<usize>> = clean.iter().map(|path| known(path)).collect();
                steps.is_some_and(|steps| {
                    let open = self.open_at(self.records.len());
                    steps.iter().all(|step| open.contains(step))
                        && (self.abort().is_none() || self.bug == Bug::AbortTwice)
                        && !self.committed(&steps)
                })
            }
            Record::Clean { step } => known(step).is_some_and(|step| self.unheard().contains(&step)),
            Record::Undone { step, .. } => known(step).is_some_and(|step| undo.contains(&step)),
            Record::Stuck { step, .. } => known(step)
                .is_some_and(|step| (due.contains(&step) || undo.contains(&step)) && !stuck.contains(&step)),
            Record::Parked { step: None, .. } => !held,
            Record::Parked { step: Some(step), .. } => known(step)
                .is_some_and(|step| (due.contains(&step) || undo.contains(&step)) && !parked.contains(&step)),
            Record::Signalled { step: path, .. } => known(path).is_some_and(|step| {
                let has = |record: &Record| matches!(record, Record::Signalled { step, .. } if step == path);
                matches!(self.shape.nodes[step].kind, Kind::Signal(_))
                    && self.completed_at(step).is_none()
                    && self.abort().is_none()
                    && !self.records.iter().any(has)
            }),
            Record::Ordered { order, .. } => match order {
                Order::Cancel { .. } | Order::Retry { step: None } | Order::Abandon { .. } => true,
                Order::Retry { step: Some(step) } => {
                    known(step).is_some_and(|step| stuck.contains(&step) || parked.contains(&step))
                }
                Order::Complete { step, .. } => complete(step),
                Order::Reject { step, .. } => known(step).is_some_and(|step| {
                    self.unheard().contains(&step) || due.contains(&step) && !self.committed(&[step])
                }),
                Order::Undone { step, .. } => known(step).is_some_and(|step| self.to_undo().contains(&step)),
                Order::Compensate { .. } => self.abort().is_none(),
            },
            Record::Refused { ask: Ask::Order(_), .. } => true,
            Record::Refused { .. } => {
                let message =
                    |record: &&Record| matches!(record, Record::Refused { ask: Ask::Signal { .. }, .. });
                let many = self.records.iter().filter(message).count();
                many < REFUSED || self.bug == Bug::RefusedWithoutEnd
            }
        }
    }
}

/// A definition: for each step its class, kind, policy, and bits of what it is behind.
fn definitions() -> impl Strategy<Value = Vec<(u8, u8, u8, u8)>> {
    proptest::collection::vec((0..8_u8, 0..6_u8, 0..4_u8, any::<u8>()), 1..6)
}

/// Records as numbers: which kind, which step, a set of steps.
fn records() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
    proptest::collection::vec((0..28_u8, 0..6_u8, any::<u8>()), 0..40)
}

fn build(steps: &[(u8, u8, u8, u8)]) -> Option<Shape> {
    let nodes = steps.iter().enumerate().map(|(at, &(class, kind, unknown, behind))| {
        let kind = match kind {
            0 => Kind::Timer(Duration::from_secs(1)),
            1 => Kind::Signal(None),
            _ => Kind::Action,
        };
        let action = kind == Kind::Action;
        let class = match class {
            _ if !action => Class::ReadOnly,
            5 => Class::Pivot,
            6 => Class::Retriable,
            7 => Class::ReadOnly,
            _ => Class::Compensatable,
        };
        let unknown = match unknown {
            _ if !action => Unknown::Retry,
            1 => Unknown::Verify,
            2 if class == Class::Compensatable => Unknown::Compensate,
            3 => Unknown::Park,
            _ => Unknown::Retry,
        };
        Node {
            path: format!("s{at}"),
            class,
            kind,
            unknown,
            has_undo: class == Class::Compensatable && behind & 0x80 == 0,
            no_undo: None,
            transactional: action && unknown == Unknown::Retry && behind & 0x40 != 0,
            within: (action && behind & 0x20 != 0).then_some(Duration::from_secs(1)),
            before: (0..at).filter(|a| behind >> a & 1 != 0).collect(),
        }
    });
    Shape::new("model", 1, nodes.collect()).ok()
}

fn record(shape: &Shape, (kind, step, set): (u8, u8, u8)) -> Record {
    let n = shape.nodes.len();
    // One more than there are: a step that does not exist.
    let step = shape.nodes.get(usize::from(step) % (n + 1)).map_or("nobody", |node| &node.path).to_owned();
    let output = Payload::encode(&1).unwrap();
    let why = || "why".to_owned();
    let order = |order| Record::Ordered { by: "ann".to_owned(), order, clean: Vec::new() };
    match kind {
        0 => Record::Begun { input: output, deadline: None },
        1 => Record::Sent { step },
        2 => Record::Armed { step, until: Timestamp(1) },
        3..=8 => Record::Completed { step, output, attempts: 1, ms: 0 },
        9 | 10 => {
            let clean =
                (0..n).filter(|at| set >> at & 1 != 0).map(|at| shape.nodes[at].path.clone()).collect();
            let cancelled = Cause::Cancelled { reason: why() };
            let late = Cause::Late { step, ms: 1_000 };
            let turned = if set & 1 == 0 { cancelled } else { late };
            Record::Aborted { cause: if kind == 9 { Cause::Deadline } else { turned }, clean }
        }
        11 => Record::Clean { step },
        12 | 13 => Record::Undone { step, attempts: 1, ms: 0 },
        14 => Record::Stuck { step, error: why() },
        15 => Record::Parked { step: (set & 1 == 0).then_some(step), reason: why() },
        16 => Record::Signalled { step, payload: output },
        17 => order(Order::Retry { step: (set & 1 == 0).then_some(step) }),
        18 => order(Order::Complete { step, output }),
        19 => order(Order::Reject { step, reason: why() }),
        20 => order(Order::Undone { step, reason: why() }),
        21 => order(Order::Compensate { reason: why() }),
        22 => order(Order::Cancel { reason: why() }),
        24..=27 => {
            let order = Ask::Order(Order::Retry { step: None });
            let ask = if set & 7 == 0 { order } else { Ask::Signal { step, payload: output } };
            Record::Refused { by: "ann".to_owned(), ask, why: why() }
        }
        _ if set < 16 => order(Order::Abandon { reason: why() }),
        _ => Record::Completed { step, output, attempts: 1, ms: 0 },
    }
}

type Case = (Vec<(u8, u8, u8, u8)>, Vec<(u8, u8, u8)>);

fn agree(bug: Bug, (steps, records): Case) -> Result<(), TestCaseError> {
    let Some(shape) = build(&steps) else { return Ok(()) };
    let shape = Arc::new(shape);
    let mut machine = Machine::new(shape.clone());
    let mut model = Model { shape: &shape, records: Vec::new(), times: Vec::new(), bug };
    let begun = [(0, 0, 0)];
    for numbers in begun.iter().chain(&records) {
        let record = record(&shape, *numbers);
        let taken = model.takes(&record);
        let before = format!("{machine:?}");
        // Written by clocks that differ.
        let at = Timestamp(u64::from(numbers.2));
        let applied = machine.apply(&record, at);
        prop_assert_eq!(taken, applied.is_ok(), "{:?} after {:?}: {:?}", record, model.records, applied);
        if applied.is_err() {
            prop_assert_eq!(before, format!("{machine:?}"), "a refused record changes nothing");
            continue;
        }
        model.records.push(record);
        model.times.push(at);
        let set = |steps: Vec<usize>| steps.into_iter().collect::<Steps>();
        prop_assert_eq!(set(model.due()), machine.due(), "due after {:?}", &model.records);
        prop_assert_eq!(set(model.undo_due()), machine.undo_due(), "to undo after {:?}", &model.records);
        prop_assert_eq!(model.phase(), machine.phase(), "phase after {:?}", &model.records);
        let (stuck, parked, held) = model.trouble();
        prop_assert_eq!(
            (set(stuck), set(parked), held),
            (machine.stuck(), machine.parked(), machine.is_held()),
            "trouble after {:?}",
            &model.records
        );
        for step in model.all() {
            prop_assert_eq!(model.is_sent(step), machine.was_sent(step), "sent after {:?}", &model.records);
        }
        for step in model.due() {
            prop_assert_eq!(model.limit(step), machine.limit(step), "limit after {:?}", &model.records);
        }
        // What can be turned round, can be: the driver asks before it records.
        let cancel = Record::Aborted { cause: Cause::Deadline, clean: Vec::new() };
        prop_assert_eq!(machine.can_abort(Steps::NONE), model.takes(&cancel));
    }
    Ok(())
}

#[test]
fn the_machine_does_what_a_list_of_records_says() {
    holds((definitions(), records()), |case| agree(Bug::None, case));
}

#[test]
fn a_machine_with_a_planted_bug_is_told_from_the_model() {
    let bugs = [
        Bug::ForwardAfterAbort,
        Bug::SkipCompensation,
        Bug::DueIsClean,
        Bug::UndoInAnyOrder,
        Bug::AbortTwice,
        Bug::AbortBehindPivot,
        Bug::NotFinal,
        Bug::CompletedTwice,
        Bug::HeldAfterCancel,
        Bug::DeadlineLetsGo,
        Bug::RefusedWithoutEnd,
        Bug::DoubtEndsWithAbort,
        Bug::TimeFromTheFirst,
        Bug::RetryGivesNoTime,
    ];
    catches(&bugs, || (definitions(), records()), agree);
}
