//! What is known about one saga: what its journal says, who was called, and what that came to.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::saga::{
    Class, Direction, Inputs, Saga,
    attempt::StepCode,
    definition::Definition,
    journal::Stored,
    shape::{Kind, Node},
};

/// One step of a definition, as far as the invariants are about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The step's path.
    pub path: String,
    /// Its class.
    pub class: Class,
    /// Whether code runs in it; otherwise time passes or a message comes.
    pub action: bool,
    /// Whether there is something to do when it is undone.
    pub has_undo: bool,
    /// Whether the action's work is done in the journal's transaction, so that it has happened exactly if that is recorded.
    pub transactional: bool,
    /// The same of the compensation.
    pub undo_transactional: bool,
    /// How long it may take from when everything that it is behind is complete.
    pub within: Option<Duration>,
    /// The paths of the steps that it is directly behind.
    pub behind: Vec<String>,
}

/// The steps of a definition in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Structure {
    /// The steps.
    pub parts: Vec<Part>,
}

impl Structure {
    /// A definition's structure.
    pub fn of<I, R: Inputs>(saga: &Saga<I, R>) -> Self {
        Structure::of_definition(&saga.definition)
    }

    pub(super) fn of_definition(definition: &Definition) -> Self {
        let nodes = &definition.shape.nodes;
        let part = |(node, code): (&Node, &StepCode)| Part {
            path: node.path.clone(),
            class: node.class,
            action: node.kind == Kind::Action,
            has_undo: node.has_undo,
            transactional: node.transactional,
            undo_transactional: code.jobs.len() > usize::from(node.transactional),
            within: node.within,
            behind: node.before.iter().map(|step| nodes[step].path.clone()).collect(),
        };
        Structure { parts: nodes.iter().zip(&definition.code).map(part).collect() }
    }

    pub(super) fn part(&self, path: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.path == path)
    }

    /// Whether `later` can only be due when `earlier` is complete.
    pub(super) fn is_behind(&self, later: &str, earlier: &str) -> bool {
        let mut open = vec![later];
        while let Some(path) = open.pop() {
            for behind in self.part(path).iter().flat_map(|part| &part.behind) {
                if behind == earlier {
                    return true;
                }
                open.push(behind);
            }
        }
        false
    }
}

/// What was wanted of a participant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    /// The action.
    Act,
    /// The compensation.
    Undo,
    /// To say whether the action has happened.
    Verify,
}

impl What {
    /// The kind as a short stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            What::Act => "act",
            What::Undo => "undo",
            What::Verify => "verify",
        }
    }

    /// The direction that its key has.
    pub fn direction(self) -> Direction {
        if self == What::Undo { Direction::Undo } else { Direction::Do }
    }
}

/// What a participant's code has said, whatever the orchestrator heard of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It is done; of a verification, that the action is.
    Done,
    /// There was no effect; of a verification, that there was none and will be none of what was sent before. Work for the journal's transaction
    /// is said to have none: its effect is for the records to say.
    Nothing,
    /// Nobody knows.
    Unknown,
}

/// One call of a participant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which step, as the definition says.
    pub step: String,
    /// What for.
    pub what: What,
    /// The key that it came with.
    pub key: String,
    /// The epoch that it came with.
    pub epoch: u64,
    /// Whether the network made it: a second delivery, or one that had been held up.
    pub redelivered: bool,
    /// How many entries were durable when it was sent, and the checksum of the last one; none where that is not known.
    pub durable: Option<(u64, u32)>,
    /// When it was sent, on a scale of its own.
    pub began: u64,
    /// When it was answered, and with what; none when it never was.
    pub ended: Option<(u64, Said)>,
}

impl Call {
    /// Whether it may have had an effect.
    pub fn may_have_happened(&self) -> bool {
        !matches!(self.ended, Some((_, Said::Nothing)))
    }
}

/// Everything that is known about one saga.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    /// The definition's structure.
    pub structure: &'a Structure,
    /// What the store has of it; none when it is not there.
    pub stored: Option<&'a Stored>,
    /// Whether its start was acknowledged.
    pub acknowledged: bool,
    /// Whether it was given the time to come to its end, so that it has to be over or to say why not.
    pub settled: bool,
    /// Who was called, in the order of the calls.
    pub calls: &'a [Call],
    /// The net effects by the paths of the steps: how often it was done less how often it was undone. None where the participants cannot
    /// tell. Of what is done in the journal's transaction: how often the transaction was committed.
    pub effects: Option<&'a BTreeMap<String, i64>>,
}

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which, `I1` to `I10`; see [`check`](super::check_evidence).
    pub invariant: &'static str,
    /// What was found.
    pub why: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.why)
    }
}
