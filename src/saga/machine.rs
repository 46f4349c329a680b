//! What may happen next in a saga, as a fold over its records: no time, no chance, no waiting.
//!
//! ```text
//!             all steps complete
//!   Running ------------------------> Completed
//!      |  aborted, once and for all
//!      v          nothing left to undo
//!   Unwinding ----------------------> Compensated
//! ```
//!
//! A saga in either direction can be stuck or parked at some steps; the others go on. Every pair of a state and a record is
//! answered: the record is legal and the state follows, or it is refused and nothing has changed. Recovery applies the records
//! of the journal in their order.

use std::{fmt, sync::Arc};

use super::{
    journal::{Ask, Phase},
    record::{Cause, Order, Payload, Record, Timestamp},
    shape::{Class, Kind, Shape},
    steps::Steps,
};

/// The most refused messages that are recorded of a saga: its journal is bounded, whatever is sent to it.
pub(crate) const REFUSED: usize = 8;

/// The state of one saga.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    shape: Arc<Shape>,
    input: Option<Payload>,
    outputs: Box<[Option<Payload>]>,
    signals: Vec<(usize, Payload)>,
    /// The messages that were refused; few.
    refused: Vec<Ask>,
    armed: Vec<(usize, Timestamp)>,
    /// For steps that have a limit: when the last of what is before them was complete, as far as it is.
    since: Vec<(usize, Timestamp)>,
    deadline: Option<Timestamp>,
    /// Why it was turned round; never forgotten.
    aborted: Option<Cause>,
    /// What has happened.
    done: Steps,
    /// What may have happened, frozen when the saga was turned round.
    applied: Steps,
    /// What may be sent only once and has been.
    sent: Steps,
    /// The same, and not forgotten when a person lets it be sent once more.
    tried: Steps,
    undone: Steps,
    stuck: Steps,
    parked: Steps,
    /// The saga as a whole waits for a person: to let it go on, or to turn it round.
    held: bool,
    abandoned: bool,
    /// Why somebody wanted it to be turned round.
    cancel: Option<String>,
    note: String,
}

/// A record that cannot follow those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Illegal(pub(crate) String);

impl fmt::Display for Illegal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Machine {
    pub(crate) fn new(shape: Arc<Shape>) -> Self {
        let outputs = vec![None; shape.nodes.len()].into();
        Machine {
            shape,
            input: None,
            outputs,
            signals: Vec::new(),
            refused: Vec::new(),
            armed: Vec::new(),
            since: Vec::new(),
            deadline: None,
            aborted: None,
            done: Steps::NONE,
            applied: Steps::NONE,
            sent: Steps::NONE,
            tried: Steps::NONE,
            undone: Steps::NONE,
            stuck: Steps::NONE,
            parked: Steps::NONE,
            held: false,
            abandoned: false,
            cancel: None,
            note: String::new(),
        }
    }

    // === questions

    pub(crate) fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }

    pub(crate) fn input(&self) -> Option<&Payload> {
        self.input.as_ref()
    }

    pub(crate) fn outputs(&self) -> &[Option<Payload>] {
        &self.outputs
    }

    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        self.deadline
    }

    pub(crate) fn cause(&self) -> Option<&Cause> {
        self.aborted.as_ref()
    }

    /// Why it shall be turned round as soon as that is possible.
    pub(crate) fn cancel(&self) -> Option<&str> {
        self.cancel.as_deref()
    }

    pub(crate) fn note(&self) -> &str {
        &self.note
    }

    pub(crate) fn was_sent(&self, step: usize) -> bool {
        self.sent.contains(step)
    }

    /// What may be sent only once and has been, at whatever time.
    pub(crate) fn tried(&self) -> Steps {
        self.tried
    }

    pub(crate) fn stuck(&self) -> Steps {
        self.stuck
    }

    pub(crate) fn parked(&self) -> Steps {
        self.parked
    }

    /// Steps of the journal's transaction of which a person has to find out whether they have happened; nobody else may decide it.
    pub(crate) fn doubtful(&self) -> Steps {
        self.parked & self.shape.transactional
    }

    /// Whether the saga as a whole waits for a person.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// When the timer or the wait for a signal in `step` is over, once it has begun.
    pub(crate) fn armed(&self, step: usize) -> Option<Timestamp> {
        self.armed.iter().find(|(armed, _)| *armed == step).map(|(_, until)| *until)
    }

    /// When `step`, which is due, has to be over, if it has a limit.
    pub(crate) fn limit(&self, step: usize) -> Option<Timestamp> {
        let within = self.shape.nodes[step].within?;
        let since = self.since.iter().find(|(limited, _)| *limited == step).map(|(_, since)| *since);
        since.map(|since| since.after(within))
    }

    /// The message for `step` that has come.
    pub(crate) fn signal(&self, step: usize) -> Option<&Payload> {
        self.signals.iter().find(|(to, _)| *to == step).map(|(_, payload)| payload)
    }

    /// Whether this message was refused before, and that is recorded.
    pub(crate) fn has_refused(&self, message: &Ask) -> bool {
        self.refused.contains(message)
    }

    /// What is to be done going forward: everything before it is complete, it is not, and the saga was not turned round.
    pub(crate) fn due(&self) -> Steps {
        if self.input.is_none() || self.aborted.is_some() || self.abandoned {
            return Steps::NONE;
        }
        let open = Steps::first(self.shape.nodes.len()) - self.done;
        open.iter().filter(|&step| self.shape.nodes[step].before.within(self.done)).collect()
    }

    /// What has to be undone yet.
    fn to_undo(&self) -> Steps {
        if self.aborted.is_none() || self.abandoned {
            return Steps::NONE;
        }
        (self.applied & self.shape.undoable) - self.undone
    }

    /// What may be undone now: nothing behind it has to be undone any more.
    pub(crate) fn undo_due(&self) -> Steps {
        let left = self.to_undo();
        left.iter().filter(|&step| self.shape.behind[step].apart_from(left)).collect()
    }

    /// Whether the saga could be turned round if, of what is due, `clean` is known to have had no effect.
    pub(crate) fn can_abort(&self, clean: Steps) -> bool {
        self.input.is_some()
            && self.aborted.is_none()
            && !self.phase().is_terminal()
            && (self.done | (self.due() - clean)).apart_from(self.shape.committed)
    }

    pub(crate) fn phase(&self) -> Phase {
        if self.abandoned {
            Phase::Abandoned
        } else if self.aborted.is_none() && self.done == Steps::first(self.shape.nodes.len()) {
            Phase::Completed
        } else if self.aborted.is_some() && self.to_undo().is_empty() {
            Phase::Compensated
        } else if self.held || !self.parked.is_empty() {
            Phase::Parked
        } else if !self.stuck.is_empty() {
            Phase::Stuck
        } else if self.aborted.is_some() {
            Phase::Unwinding
        } else if self.waits() {
            Phase::Waiting
        } else {
            Phase::Running
        }
    }

    /// Whether everything that is due is time or a message.
    fn waits(&self) -> bool {
        let due = self.due();
        !due.is_empty() && due.apart_from(self.shape.actions)
    }

    // === records

    /// Takes a record in that was written at `at`, or refuses it and is as before.
    pub(crate) fn apply(&mut self, record: &Record, at: Timestamp) -> Result<(), Illegal> {
        let illegal = |why: &str| Err(Illegal(format!("{:?} cannot be recorded: {why}", record.kind())));
        if matches!(record, Record::Begun { .. }) != self.input.is_none() {
            return illegal("a saga begins with its beginning and has one");
        }
        if self.input.is_some() && self.phase().is_terminal() {
            return illegal("the saga is over");
        }
        match record {
            Record::Begun { input, deadline } => {
                self.input = Some(input.clone());
                self.deadline = *deadline;
                self.count_from(self.due(), at);
            }
            Record::Sent { step } => {
                let step = self.known(record, step)?;
                if !(self.due() & self.shape.at_most_once).contains(step) || self.sent.contains(step) {
                    return illegal("the step is not due, or needs no such record, or has it");
                }
                self.sent.insert(step);
                self.tried.insert(step);
            }
            Record::Armed { step, until } => {
                let step = self.known(record, step)?;
                let waits = !matches!(self.shape.nodes[step].kind, Kind::Action);
                if !waits || !self.due().contains(step) || self.armed(step).is_some() {
                    return illegal("the step is not due, or does not wait, or waits already");
                }
                self.armed.push((step, *until));
            }
            Record::Completed { step, output, .. } => {
                let step = self.known(record, step)?;
                self.complete(record, step, output, at)?;
            }
            Record::Aborted { cause, clean } => {
                let mut steps = Steps::NONE;
                for path in clean {
                    steps.insert(self.known(record, path)?);
                }
                if !steps.within(self.due()) || !self.can_abort(steps) {
                    return illegal("a step that cannot be undone has happened, or may have");
                }
                self.abort(cause.clone(), steps);
            }
            Record::Clean { step } => {
                let step = self.known(record, step)?;
                if !self.open_after_abort().contains(step) {
                    return illegal("the step was not in flight when the saga was turned round");
                }
                self.applied.remove(step);
                self.settle(step);
            }
            Record::Undone { step, .. } => {
                let step = self.known(record, step)?;
                if !self.undo_due().contains(step) {
                    return illegal("the step has not to be undone, or not yet");
                }
                self.undo(step);
            }
            Record::Stuck { step, error } => {
                let step = self.known(record, step)?;
                if !(self.due() | self.undo_due()).contains(step) || self.stuck.contains(step) {
                    return illegal("the step is not being tried, or is stuck already");
                }
                self.stuck.insert(step);
                self.note = format!("{}: {error}", self.shape.nodes[step].path);
            }
            Record::Parked { step: None, reason } => {
                if self.held {
                    return illegal("the saga waits already");
                }
                self.held = true;
                self.note.clone_from(reason);
            }
            Record::Parked { step: Some(path), reason } => {
                let step = self.known(record, path)?;
                if !(self.due() | self.undo_due()).contains(step) || self.parked.contains(step) {
                    return illegal("the step is not being tried, or waits already");
                }
                self.parked.insert(step);
                self.note = format!("{path}: {reason}");
            }
            Record::Signalled { step, payload } => {
                let step = self.known(record, step)?;
                let waits = matches!(self.shape.nodes[step].kind, Kind::Signal(_));
                if !waits || self.done.contains(step) || self.signal(step).is_some() || self.aborted.is_some()
                {
                    return illegal("the step does not wait for it, or has it");
                }
                self.signals.push((step, payload.clone()));
            }
            Record::Ordered { order, clean, .. } => self.obey(record, order, clean, at)?,
            Record::Refused { ask, .. } => {
                if let Ask::Signal { .. } = ask {
                    if self.refused.len() >= REFUSED {
                        return illegal("enough messages were refused");
                    }
                    self.refused.push(ask.clone());
                }
            }
        }
        Ok(())
    }

    fn obey(
        &mut self,
        record: &Record,
        order: &Order,
        clean: &[String],
        at: Timestamp,
    ) -> Result<(), Illegal> {
        let illegal = |why: &str| Err(Illegal(format!("the order cannot be followed: {why}")));
        let mut untouched = Steps::NONE;
        for path in clean {
            untouched.insert(self.known(record, path)?);
        }
        if !untouched.within(self.due()) {
            return illegal("a step is said to be clean that is not due");
        }
        match order {
            // Said and heard; what follows from it is a record of its own.
            Order::Cancel { reason } => {
                self.cancel.get_or_insert_with(|| reason.clone());
                // It was turned round and is held: a person says that it shall be undone.
                self.held &= self.aborted.is_none();
            }
            // What could be sent only once may be sent once more: a person says so, who gives it as much time as it had.
            Order::Retry { step: None } => {
                self.count_from(self.due(), at);
                self.sent = self.sent - self.parked;
                self.stuck = Steps::NONE;
                self.parked = Steps::NONE;
                self.held = false;
                self.note.clear();
            }
            Order::Retry { step: Some(path) } => {
                let step = self.known(record, path)?;
                if !(self.stuck | self.parked).contains(step) {
                    return illegal("the step is neither stuck nor parked");
                }
                self.count_from(self.due() & Steps::one(step), at);
                self.sent.remove(step);
                self.settle(step);
            }
            Order::Complete { step, output } => {
                let step = self.known(record, step)?;
                self.complete(record, step, output, at)?;
            }
            Order::Reject { step: path, reason } => {
                let step = self.known(record, path)?;
                if self.open_after_abort().contains(step) {
                    self.applied.remove(step);
                    self.settle(step);
                    return Ok(());
                }
                if !self.due().contains(step) || !self.can_abort(untouched | Steps::one(step)) {
                    return illegal("the step is not due, or the saga can no longer be turned round");
                }
                let cause = Cause::Rejected { step: path.clone(), error: reason.clone() };
                self.abort(cause, untouched | Steps::one(step));
            }
            Order::Undone { step, .. } => {
                let step = self.known(record, step)?;
                if !self.to_undo().contains(step) {
                    return illegal("the step has not to be undone");
                }
                self.undo(step);
            }
            Order::Compensate { reason } => {
                if self.aborted.is_some() {
                    return illegal("the saga is turned round already");
                }
                self.abort(Cause::Cancelled { reason: reason.clone() }, untouched);
            }
            Order::Abandon { reason } => {
                self.abandoned = true;
                self.note.clone_from(reason);
            }
        }
        Ok(())
    }

    fn known(&self, record: &Record, path: &str) -> Result<usize, Illegal> {
        self.shape
            .find(path)
            .ok_or_else(|| Illegal(format!("{:?} names step {path:?}, which does not exist", record.kind())))
    }

    /// What was in flight, as far as anybody knows, when the saga was turned round, and has not been heard of since.
    pub(super) fn open_after_abort(&self) -> Steps {
        if self.aborted.is_none() {
            return Steps::NONE;
        }
        self.applied - self.done - self.undone
    }

    fn complete(
        &mut self,
        record: &Record,
        step: usize,
        output: &Payload,
        at: Timestamp,
    ) -> Result<(), Illegal> {
        if !(self.due() | self.open_after_abort()).contains(step) {
            return Err(Illegal(format!(
                "{:?} cannot be recorded: the step was not in flight",
                record.kind()
            )));
        }
        self.done.insert(step);
        self.outputs[step] = Some(output.clone());
        self.armed.retain(|(armed, _)| *armed != step);
        self.since.retain(|(limited, _)| *limited != step);
        if self.aborted.is_none() {
            let nodes = &self.shape.nodes;
            let limited = self.shape.limited.iter();
            self.count_from(limited.filter(|&next| nodes[next].before.contains(step)).collect(), at);
        }
        self.settle(step);
        Ok(())
    }

    /// The time of these steps, where they have a limit, does not begin before `at`. Clocks differ: the latest counts, not the last.
    fn count_from(&mut self, steps: Steps, at: Timestamp) {
        for step in (steps & self.shape.limited).iter() {
            match self.since.iter_mut().find(|(limited, _)| *limited == step) {
                Some((_, since)) => *since = at.max(*since),
                None => self.since.push((step, at)),
            }
        }
    }

    fn abort(&mut self, cause: Cause, clean: Steps) {
        self.applied = self.done | (self.due() - clean);
        self.note = cause.to_string();
        // Nothing of a saga that is held runs, so it was turned round by its deadline or by a person, who has thereby decided.
        self.held &= cause == Cause::Deadline;
        self.aborted = Some(cause);
        self.armed.clear();
        self.since.clear();
        self.signals.clear();
        // What was wrong on the way forward is over. What is in doubt is not: its compensation does not expect that, and waits.
        self.stuck = Steps::NONE;
        self.parked = self.doubtful() & self.to_undo();
        if let Some(step) = self.parked.iter().next() {
            let path = &self.shape.nodes[step].path;
            self.note.push_str(&format!("; {path}: nobody knows whether it has happened"));
        }
    }

    fn undo(&mut self, step: usize) {
        self.undone.insert(step);
        self.settle(step);
    }

    /// Nothing is wrong with `step` any more.
    fn settle(&mut self, step: usize) {
        let troubled = !(self.stuck | self.parked).is_empty();
        self.stuck.remove(step);
        self.parked.remove(step);
        if troubled && (self.stuck | self.parked).is_empty() && !self.held {
            self.note = self.aborted.as_ref().map(Cause::to_string).unwrap_or_default();
        }
    }
}

/// What came of trying a step forward, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It has happened.
    Completed(Payload),
    /// It has not happened and will not.
    Rejected(String),
    /// Nobody knows.
    Unknown(String),
    /// Asked whether it has happened, the participant said that it was rejected, for good: whatever of it still arrives is, too.
    Settled(String),
    /// Asked whether it has happened, the participant said that it has not, and cannot any more unless it is sent again.
    NotApplied,
    /// Asked whether it has happened, the participant said that it has not yet, and that it may be sent again all the same.
    Resend,
    /// It said so as often as it may, and this is what came of the last time that it was sent.
    Unseen(String),
}

/// What follows from an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// This is recorded; the abort's clean steps are for the driver to say.
    Record(Record),
    /// The saga is turned round; the step itself is clean, or is not.
    Abort { cause: Cause, clean: bool },
    /// The participant is asked.
    Verify,
    /// It is sent again; what was sent before has had no effect and will have none, or may have one yet.
    Again { clean: bool },
}

/// What follows from the last outcome of `step`. `tainted` is whether an attempt, of this owner or an earlier one, may have
/// had an effect; `asked` whether this outcome is the participant's answer to being asked.
pub(crate) fn next(shape: &Shape, step: usize, outcome: &Outcome, tainted: bool, asked: bool) -> Next {
    let node = &shape.nodes[step];
    let path = || node.path.clone();
    let has_to_succeed = shape.committed.contains(step);
    let stuck = |error: &String| Next::Record(Record::Stuck { step: path(), error: error.clone() });
    let park = |reason: String| Next::Record(Record::Parked { step: Some(path()), reason });
    let unknown = |error: &String| Next::Abort {
        cause: Cause::Unknown { step: path(), error: error.clone() },
        clean: false,
    };
    use super::shape::Unknown;
    match outcome {
        Outcome::Completed(output) => {
            Next::Record(Record::Completed { step: path(), output: output.clone(), attempts: 1, ms: 0 })
        }
        Outcome::NotApplied => Next::Again { clean: true },
        Outcome::Resend => Next::Again { clean: false },
        Outcome::Settled(error) if has_to_succeed && node.class != Class::Pivot => stuck(error),
        Outcome::Settled(error) => {
            Next::Abort { cause: Cause::Rejected { step: path(), error: error.clone() }, clean: true }
        }
        Outcome::Rejected(error) => {
            let cause = Cause::Rejected { step: path(), error: error.clone() };
            match node.class {
                Class::Pivot if !tainted => Next::Abort { cause, clean: true },
                // An earlier attempt may have been accepted: nobody may turn the saga round on the word of a later one.
                Class::Pivot if node.unknown == Unknown::Verify && !asked => Next::Verify,
                Class::Pivot => park(format!("rejected after an attempt whose outcome is unknown: {error}")),
                _ if has_to_succeed => stuck(error),
                _ => Next::Abort { cause, clean: !tainted },
            }
        }
        Outcome::Unknown(error) => match node.unknown {
            Unknown::Verify if !asked => Next::Verify,
            Unknown::Park => park(error.clone()),
            Unknown::Verify if has_to_succeed => {
                park(format!("could not find out whether it has happened: {error}"))
            }
            _ if has_to_succeed => stuck(error),
            _ => unknown(error),
        },
        Outcome::Unseen(error) if has_to_succeed => stuck(error),
        Outcome::Unseen(error) => unknown(error),
    }
}
