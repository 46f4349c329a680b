//! The one check of the invariants, by a logic of its own: it knows records and calls, and nothing of the machine that made them.

use std::collections::{BTreeMap, BTreeSet};

use super::evidence::{Call, Evidence, Part, Said, Structure, Violation, What};
use crate::saga::{
    Cause, Class, Order, Phase, Record,
    journal::{Ask, Stored},
};

/// What is wrong with a saga; empty when nothing is.
///
/// | | what is checked |
/// |---|---|
/// | I1 | an acknowledged saga is in the store; given time, it is over, or stuck, parked or waiting |
/// | I2 | completed: each step was done and none was undone, net one effect each; compensated: everything that may have happened and can be undone was undone, no net effect; no pivot and no retriable step may have happened, unless a person has turned it round nevertheless; in the journal's transaction: done and undone as often as is recorded, however the saga ends |
/// | I3 | no action is sent behind a durable abort, no compensation before one |
/// | I4 | a step is sent when everything before it is durably complete, and undone when everything behind it that may have happened is undone |
/// | I5 | one step and direction has one key, two have two |
/// | I6 | epochs do not fall; each has one author |
/// | I7 | what was durable when something followed from it is there |
/// | I8 | the entries are whole and readable |
/// | I9 | nothing follows an end, and an end follows from the records; no step is late before its time is over |
/// | I10 | the number of entries is bounded by steps and orders |
///
/// A call under an older epoch than the record that forbids it was made by somebody who could not know; it counts for I2, not for I3 and I4.
pub fn check_evidence(evidence: &Evidence<'_>) -> Vec<Violation> {
    let mut checker = Checker { structure: evidence.structure, found: Vec::new() };
    let Some(stored) = evidence.stored else {
        if evidence.acknowledged {
            checker.report("I1", "its start was acknowledged, and it is not in the store".to_owned());
        }
        if let Some(call) = evidence.calls.first() {
            checker.report("I1", format!("{} was called, and the saga is not in the store", call.step));
        }
        return checker.found;
    };
    let Some(records) = checker.read(stored) else { return checker.found };
    let story = Story { records: &records };
    checker.follow(stored, &story);
    checker.settled(evidence, stored);
    checker.size(stored, &story);
    checker.keys(evidence.calls);
    checker.durability(evidence.calls, stored);
    checker.order(evidence.calls, &story);
    checker.effects(evidence, stored, &story);
    checker.found
}

/// The records in their order, each with the epoch that it was written under.
#[derive(Clone, Copy)]
pub(super) struct Story<'r> {
    pub(super) records: &'r [(u64, Record)],
}

impl Story<'_> {
    /// Where the saga was turned round.
    fn abort(&self) -> Option<usize> {
        self.records
            .iter()
            .position(|(_, record)| {
                matches!(
                    record,
                    Record::Aborted { .. } | Record::Ordered { order: Order::Compensate { .. }, .. }
                )
            })
            .into_iter()
            .chain(self.rejection())
            .min()
    }

    /// A person's rejection turns it round too, when nothing has before.
    fn rejection(&self) -> Option<usize> {
        self.records
            .iter()
            .position(|(_, record)| matches!(record, Record::Ordered { order: Order::Reject { .. }, .. }))
    }

    /// Where a step is said to be complete.
    pub(super) fn completed(&self, path: &str) -> Option<usize> {
        self.records.iter().position(|(_, record)| match record {
            Record::Completed { step, .. } => step == path,
            Record::Ordered { order: Order::Complete { step, .. }, .. } => step == path,
            _ => false,
        })
    }

    /// Where it is said to be undone.
    pub(super) fn undone(&self, path: &str) -> Option<usize> {
        self.records.iter().position(|(_, record)| match record {
            Record::Undone { step, .. } => step == path,
            Record::Ordered { order: Order::Undone { step, .. }, .. } => step == path,
            _ => false,
        })
    }

    /// Whether it is said to have had no effect.
    fn clean(&self, path: &str) -> bool {
        self.records.iter().any(|(_, record)| match record {
            Record::Aborted { clean, .. } => clean.iter().any(|step| step == path),
            Record::Clean { step } => step == path,
            Record::Ordered { order: Order::Reject { step, .. }, .. } if step == path => true,
            Record::Ordered { clean, .. } => clean.iter().any(|step| step == path),
            _ => false,
        })
    }

    /// Whether a person has said what is so, and answers for it.
    pub(super) fn by_hand(&self, path: &str) -> bool {
        self.records.iter().any(|(_, record)| match record {
            Record::Ordered {
                order: Order::Complete { step, .. } | Order::Reject { step, .. } | Order::Undone { step, .. },
                ..
            } => step == path,
            _ => false,
        })
    }

    /// Whether a person has turned it round whatever has happened.
    fn forced(&self) -> bool {
        let forced =
            |record: &Record| matches!(record, Record::Ordered { order: Order::Compensate { .. }, .. });
        self.records.iter().any(|(_, record)| forced(record))
    }

    fn orders(&self) -> usize {
        let order = |record: &Record| {
            matches!(record, Record::Ordered { .. } | Record::Refused { ask: Ask::Order(_), .. })
        };
        self.records.iter().filter(|(_, record)| order(record)).count()
    }

    fn refused_messages(&self) -> usize {
        let message = |record: &Record| matches!(record, Record::Refused { ask: Ask::Signal { .. }, .. });
        self.records.iter().filter(|(_, record)| message(record)).count()
    }
}

struct Checker<'a> {
    structure: &'a Structure,
    found: Vec<Violation>,
}

impl Checker<'_> {
    fn report(&mut self, invariant: &'static str, why: String) {
        self.found.push(Violation { invariant, why });
    }

    /// I6 and I8: the entries as such.
    fn read(&mut self, stored: &Stored) -> Option<Vec<(u64, Record)>> {
        if let Err(corrupt) = stored.verify() {
            self.report("I8", corrupt.to_string());
            return None;
        }
        let mut authors = BTreeMap::new();
        let mut last = 0;
        let mut records = Vec::new();
        for entry in &stored.entries {
            if entry.epoch < last {
                self.report(
                    "I6",
                    format!("entry {} of epoch {} follows epoch {last}", entry.seq, entry.epoch),
                );
            }
            last = entry.epoch;
            let author = authors.entry(entry.epoch).or_insert_with(|| entry.by.clone());
            if *author != entry.by {
                let why =
                    format!("entry {}: both {author} and {} wrote in epoch {last}", entry.seq, entry.by);
                self.report("I6", why);
            }
            match entry.record() {
                Ok(record) => records.push((entry.epoch, record)),
                Err(error) => {
                    self.report("I8", format!("entry {} cannot be read: {error}", entry.seq));
                    return None;
                }
            }
        }
        if last > stored.head.epoch {
            self.report("I6", format!("epoch {last} was written, the head is at {}", stored.head.epoch));
        }
        Some(records)
    }

    /// I3, I4 and I9: one record after the other.
    fn follow(&mut self, stored: &Stored, story: &Story<'_>) {
        let abort = story.abort();
        let mut done: BTreeSet<String> = BTreeSet::new();
        for (at, (_, record)) in story.records.iter().enumerate() {
            if matches!(record, Record::Begun { .. }) != (at == 0) {
                self.report("I9", format!("record {at} is {:?}", record.kind()));
            }
            let behind = abort.is_some_and(|abort| at > abort);
            match record {
                Record::Sent { step } | Record::Armed { step, .. } if behind => {
                    self.report("I3", format!("{step} is sent in record {at}, behind the abort"));
                }
                Record::Aborted { .. } if behind => {
                    self.report("I9", format!("record {at} turns the saga round a second time"));
                }
                Record::Aborted { cause: Cause::Late { step, .. }, .. } => {
                    if let Some(why) = self.not_late(stored, story, step, at) {
                        self.report("I9", format!("record {at} says that {step} is late, and {why}"));
                    }
                }
                Record::Undone { step, .. } if !behind => {
                    self.report("I3", format!("{step} is undone in record {at}, before any abort"));
                }
                Record::Undone { step, .. }
                    if !self.structure.part(step).is_some_and(|part| part.has_undo) =>
                {
                    self.report("I9", format!("{step} is undone in record {at} and has no compensation"));
                }
                Record::Completed { step, .. }
                | Record::Sent { step }
                | Record::Ordered { order: Order::Complete { step, .. }, .. } => {
                    let Some(part) = self.structure.part(step) else {
                        self.report("I9", format!("record {at} is about {step}, which does not exist"));
                        continue;
                    };
                    if let Some(open) = part.behind.iter().find(|path| !done.contains(*path)) {
                        self.report("I4", format!("{step} is in record {at}, and {open} is not complete"));
                    }
                    if !matches!(record, Record::Sent { .. }) && !done.insert(step.clone()) {
                        self.report("I9", format!("record {at} completes {step} a second time"));
                    }
                }
                _ => {}
            }
            if at + 1 < story.records.len() && self.end_after(story, at).is_some() {
                self.report("I9", format!("record {} follows the end", at + 1));
                break;
            }
        }
        let derived = story.records.len().checked_sub(1).and_then(|last| self.end_after(story, last));
        let claimed = Some(stored.head.phase).filter(|phase| phase.is_terminal());
        if derived != claimed {
            self.report(
                "I9",
                format!("the head says {}, the records come to {derived:?}", stored.head.phase),
            );
        }
    }

    /// Why a step cannot have been late when record `at` was written.
    fn not_late(&self, stored: &Stored, story: &Story<'_>, path: &str, at: usize) -> Option<String> {
        let Some(part) = self.structure.part(path) else { return Some("it does not exist".to_owned()) };
        let Some(within) = part.within else { return Some("its time is not limited".to_owned()) };
        if story.completed(path).is_some_and(|done| done < at) {
            return Some("it is complete".to_owned());
        }
        let mut since = stored.entries[0].at;
        for behind in &part.behind {
            match story.completed(behind).filter(|done| *done < at) {
                Some(done) => since = since.max(stored.entries[done].at),
                None => return Some(format!("{behind}, which it is behind, is not complete")),
            }
        }
        let took = stored.entries[at].at.since(since);
        // Of its clock, which follows the store's, the owner may have been told anew in between.
        (took < within * 9 / 10).then(|| format!("it had only {took:?} of {within:?}"))
    }

    /// The end that the records up to `last` come to.
    fn end_after(&self, story: &Story<'_>, last: usize) -> Option<Phase> {
        let story = Story { records: &story.records[..=last] };
        if story
            .records
            .iter()
            .any(|(_, record)| matches!(record, Record::Ordered { order: Order::Abandon { .. }, .. }))
        {
            return Some(Phase::Abandoned);
        }
        let parts = &self.structure.parts;
        let Some(abort) = story.abort() else {
            return parts
                .iter()
                .all(|part| story.completed(&part.path).is_some())
                .then_some(Phase::Completed);
        };
        let done_by = |path: &str| story.completed(path).is_some_and(|at| at < abort);
        let left = parts.iter().any(|part| {
            let due = part.behind.iter().all(|path| done_by(path));
            part.has_undo
                && (done_by(&part.path) || due && !story.clean(&part.path))
                && story.undone(&part.path).is_none()
        });
        (!left).then_some(Phase::Compensated)
    }

    /// I1.
    fn settled(&mut self, evidence: &Evidence<'_>, stored: &Stored) {
        let phase = stored.head.phase;
        let visible = phase.is_terminal() || matches!(phase, Phase::Stuck | Phase::Parked | Phase::Waiting);
        if evidence.settled && !visible {
            self.report("I1", format!("it is {phase} for ever, and says no reason"));
        }
    }

    /// I10.
    fn size(&mut self, stored: &Stored, story: &Story<'_>) {
        let (steps, orders) = (self.structure.parts.len(), story.orders());
        // Of refused messages the journal takes eight.
        let most = 3 + 8 * steps + orders * (2 + 3 * steps) + story.refused_messages().min(8);
        if stored.entries.len() > most {
            let why = format!("{} entries for {steps} steps and {orders} orders", stored.entries.len());
            self.report("I10", why);
        }
    }

    /// I5.
    fn keys(&mut self, calls: &[Call]) {
        let mut keys = BTreeMap::new();
        let mut owners = BTreeMap::new();
        for call in calls {
            let name = (call.step.clone(), call.what.direction());
            let key = keys.entry(name.clone()).or_insert_with(|| call.key.clone());
            if *key != call.key {
                let why = format!("{} {} has the keys {key} and {}", call.what.as_str(), call.step, call.key);
                self.report("I5", why);
            }
            let owner = owners.entry(call.key.clone()).or_insert_with(|| name.clone());
            if *owner != name {
                self.report("I5", format!("{} is the key of {owner:?} and of {name:?}", call.key));
            }
        }
    }

    /// I7: nothing that was acted on is gone.
    fn durability(&mut self, calls: &[Call], stored: &Stored) {
        for call in calls {
            let Some((len, crc)) = call.durable.filter(|(len, _)| *len > 0) else { continue };
            let entry = usize::try_from(len - 1).ok().and_then(|at| stored.entries.get(at));
            if entry.is_none_or(|entry| entry.crc != crc) {
                self.report("I7", format!("entry {} was durable when {} was called", len - 1, call.step));
            }
        }
    }

    /// I3 and I4: the calls against what was durable.
    fn order(&mut self, calls: &[Call], story: &Story<'_>) {
        let abort = story.abort();
        for call in calls.iter().filter(|call| !call.redelivered && call.what != What::Verify) {
            let Some(part) = self.structure.part(&call.step) else {
                self.report("I9", format!("{} was called and does not exist", call.step));
                continue;
            };
            let durable = call.durable.map(|(len, _)| usize::try_from(len).unwrap_or(usize::MAX));
            let knew = |at: usize| durable.is_some_and(|len| at < len);
            // Written under a later epoch than the caller's: the caller could not know.
            let stale = |at: usize| story.records.get(at).is_some_and(|(epoch, _)| *epoch > call.epoch);
            if call.what == What::Act {
                if let Some(at) = abort.filter(|&at| knew(at) && !stale(at)) {
                    self.report("I3", format!("{} was sent behind the abort in record {at}", call.step));
                }
                for behind in &part.behind {
                    let complete = story.completed(behind).is_some_and(|at| durable.is_none() || knew(at));
                    if !complete {
                        let why = format!("{} was sent, and {behind} was not durably complete", call.step);
                        self.report("I4", why);
                    }
                }
                continue;
            }
            if !abort.is_some_and(|at| durable.is_none() || knew(at)) {
                self.report("I3", format!("{} was compensated without a durable abort", call.step));
            }
            for later in &self.structure.parts {
                if later.has_undo
                    && self.structure.is_behind(&later.path, &call.step)
                    && !story.clean(&later.path)
                    && happened(calls, story, later, call.began)
                    && !undone(calls, story, later, call.began, durable)
                    && !story.by_hand(&later.path)
                {
                    let why =
                        format!("{} was compensated before {}, which is behind it", call.step, later.path);
                    self.report("I4", why);
                }
            }
        }
    }

    /// I2.
    fn effects(&mut self, evidence: &Evidence<'_>, stored: &Stored, story: &Story<'_>) {
        let calls = evidence.calls;
        let net = |path: &str| evidence.effects.and_then(|effects| effects.get(path).copied());
        let parts: Vec<_> = self.structure.parts.iter().filter(|part| part.action).collect();
        for part in parts {
            let path = &part.path;
            if story.by_hand(path) {
                continue;
            }
            if part.transactional {
                let undone = part.undo_transactional && story.undone(path).is_some();
                let expected = i64::from(story.completed(path).is_some()) - i64::from(undone);
                if let Some(net) = net(path).filter(|net| *net != expected) {
                    let why =
                        format!("{path} has {net} net effects, by the records it has to have {expected}");
                    self.report("I2", why);
                }
            }
            let net = |path: &str| net(path).filter(|_| !part.transactional);
            match stored.head.phase {
                Phase::Completed => {
                    let done = calls.iter().any(|call| {
                        call.step == *path
                            && call.what != What::Undo
                            && (part.transactional || matches!(call.ended, Some((_, Said::Done))))
                    });
                    if !done {
                        self.report("I2", format!("it is completed, and {path} was never done"));
                    }
                    if calls.iter().any(|call| call.step == *path && call.what == What::Undo) {
                        self.report("I2", format!("it is completed, and {path} was compensated"));
                    }
                    let expected = i64::from(part.class != Class::ReadOnly);
                    if let Some(net) = net(path).filter(|net| *net != expected) {
                        self.report("I2", format!("it is completed, and {path} has {net} net effects"));
                    }
                }
                Phase::Compensated if part.has_undo => {
                    if happened(calls, story, part, u64::MAX) && !undone(calls, story, part, u64::MAX, None) {
                        let why =
                            format!("it is compensated, and {path}, which may have happened, was not undone");
                        self.report("I2", why);
                    }
                    if let Some(net) = net(path).filter(|net| *net != 0) {
                        self.report("I2", format!("it is compensated, and {path} has {net} net effects"));
                    }
                }
                Phase::Compensated
                    if matches!(part.class, Class::Pivot | Class::Retriable)
                        && !story.forced()
                        && (happened(calls, story, part, u64::MAX)
                            || net(path).is_some_and(|net| net != 0)) =>
                {
                    self.report("I2", format!("it is compensated, and {path}, behind which nothing is turned round, may have happened"));
                }
                _ => {}
            }
        }
    }
}

/// Whether the action may have had an effect by a call from before `before`. What was sent before its participant vouched for that there was
/// none, and will be none, has not.
fn happened(calls: &[Call], story: &Story<'_>, part: &Part, before: u64) -> bool {
    if part.transactional {
        // Behind the abort none is recorded any more.
        return story.completed(&part.path).is_some();
    }
    let of_step = |call: &&Call| call.step == part.path && !call.redelivered;
    let vouched = |call: &Call| {
        let word = |other: &Call| {
            other.what == What::Verify
                && other.began > call.began
                && matches!(other.ended, Some((at, Said::Nothing)) if at < before)
        };
        calls.iter().filter(of_step).any(word)
    };
    calls.iter().filter(of_step).any(|call| {
        call.what == What::Act && call.began < before && call.may_have_happened() && !vouched(call)
    })
}

/// Whether a compensation had been answered before `before`, when so many records were `durable`.
fn undone(calls: &[Call], story: &Story<'_>, part: &Part, before: u64, durable: Option<usize>) -> bool {
    if part.undo_transactional {
        return story.undone(&part.path).is_some_and(|at| durable.is_none_or(|len| at < len));
    }
    calls.iter().any(|call| {
        call.step == part.path
            && call.what == What::Undo
            && matches!(call.ended, Some((at, Said::Done)) if at < before)
    })
}
