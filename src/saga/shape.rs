//! The structure of a definition, without its code: what the machine needs to know, what the digest is made of, and
//! which orders of classes make sense.

use std::{collections::HashSet, fmt, time::Duration};

use super::{journal::DefinitionId, steps::Steps};

/// What can be done about a step once it has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// It can be undone.
    Compensatable,
    /// It cannot be undone, and decides: before it the saga may be turned round, after it the saga will be completed.
    Pivot,
    /// It cannot be undone and is repeated until it succeeds.
    Retriable,
    /// It changes nothing.
    ReadOnly,
}

impl Class {
    /// The class as a short stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Compensatable => "compensatable",
            Class::Pivot => "pivot",
            Class::Retriable => "retriable",
            Class::ReadOnly => "read-only",
        }
    }
}

/// What to do when nobody knows whether a step has happened: it failed, timed out, panicked or was cut off by a crash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unknown {
    /// Send it again with the same key; the participant recognises it. If that does not help, the saga is turned round and the step
    /// compensated as if it had happened.
    #[default]
    Retry,
    /// Ask the participant, by the step's `verify`.
    Verify,
    /// Never send it again: turn the saga round and compensate the step as if it had happened.
    Compensate,
    /// Never send it again: wait for a person.
    Park,
}

impl Unknown {
    /// The policy as a short stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Unknown::Retry => "retry",
            Unknown::Verify => "verify",
            Unknown::Compensate => "compensate",
            Unknown::Park => "park",
        }
    }

    /// Whether a step with this policy is sent only behind a record that says so.
    pub(crate) fn at_most_once(self) -> bool {
        self != Unknown::Retry
    }
}

/// What happens in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Code runs.
    Action,
    /// So much time passes.
    Timer(Duration),
    /// A message comes, or so much time passes.
    Signal(Option<Duration>),
}

/// One step, without its code.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) path: String,
    pub(crate) class: Class,
    pub(crate) kind: Kind,
    pub(crate) unknown: Unknown,
    /// Whether there is something to do when it is undone.
    pub(crate) has_undo: bool,
    /// Why there is not, where that was said; for people, and no part of the digest.
    pub(crate) no_undo: Option<String>,
    /// Whether its effect and its record are one transaction of the journal.
    pub(crate) transactional: bool,
    /// How long it may take from when it is due; no part of the digest.
    pub(crate) within: Option<Duration>,
    /// What has to be complete before it is due.
    pub(crate) before: Steps,
}

/// All steps of a definition.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) id: DefinitionId,
    pub(crate) nodes: Vec<Node>,
    /// For each step, everything that can only be due after it.
    pub(crate) behind: Vec<Steps>,
    /// What has something to undo.
    pub(crate) undoable: Steps,
    /// What must not have happened if the saga is to be turned round: the pivot, the retriable steps, and what is behind them.
    pub(crate) committed: Steps,
    /// The pivot, or nothing.
    pub(crate) pivot: Steps,
    /// What has to be recorded before it is sent.
    pub(crate) at_most_once: Steps,
    /// What runs code.
    pub(crate) actions: Steps,
    /// What has happened when that is recorded, and otherwise has not: nothing of it is ever in doubt.
    pub(crate) transactional: Steps,
    /// What has a limit.
    pub(crate) limited: Steps,
}

impl Shape {
    /// Checks a definition. `nodes` stand in an order in which each is behind what comes before it.
    pub(crate) fn new(name: &str, version: u32, nodes: Vec<Node>) -> Result<Self, DefinitionError> {
        let refuse = |problem: String| Err(DefinitionError { saga: name.to_owned(), problem });
        if !is_name(name) {
            return refuse("its name has to have 1 to 100 bytes, without control characters".to_owned());
        }
        if nodes.is_empty() || nodes.len() > Steps::MAX {
            return refuse(format!("it has {} steps; allowed are 1 to {}", nodes.len(), Steps::MAX));
        }
        let mut paths = HashSet::new();
        for node in &nodes {
            if !is_name(&node.path) || node.path.contains('@') {
                return refuse(format!(
                    "step {:?} has to have a name of 1 to 100 bytes, without '@' and control characters",
                    node.path
                ));
            }
            if !paths.insert(node.path.as_str()) {
                return refuse(format!("there are two steps with the name {:?}", node.path));
            }
        }

        let ahead = ancestors(&nodes);
        let behind = descendants(&ahead);
        let of = |test: &dyn Fn(&Node) -> bool| -> Steps {
            nodes.iter().enumerate().filter(|(_, node)| test(node)).map(|(at, _)| at).collect()
        };
        let pivots = of(&|node| node.class == Class::Pivot);
        let retriable = of(&|node| node.class == Class::Retriable);
        let mut committed = pivots | retriable;
        (pivots | retriable).iter().for_each(|step| committed |= behind[step]);
        let shape = Shape {
            id: DefinitionId { name: name.to_owned(), version, digest: digest(&nodes) },
            undoable: of(&|node| node.has_undo),
            pivot: pivots,
            committed,
            at_most_once: of(&|node| node.kind == Kind::Action && node.unknown.at_most_once()),
            actions: of(&|node| node.kind == Kind::Action),
            transactional: of(&|node| node.transactional),
            limited: of(&|node| node.within.is_some()),
            behind,
            nodes,
        };
        match shape.class_problem(&ahead) {
            Some(problem) => refuse(problem),
            None => Ok(shape),
        }
    }

    /// Why this order of classes could leave a saga that can be neither completed nor undone.
    fn class_problem(&self, ahead: &[Steps]) -> Option<String> {
        let path = |step: usize| &self.nodes[step].path;
        let mut pivots = self.pivot.iter();
        if let (Some(first), Some(second)) = (pivots.next(), pivots.next()) {
            return Some(format!(
                "{:?} and {:?} are both pivots: if one has happened and the other is rejected, nothing can be done; \
                 make the later one retriable",
                path(first),
                path(second)
            ));
        }
        let everything = Steps::first(self.nodes.len());
        for step in everything.iter() {
            let node = &self.nodes[step];
            if self.committed.contains(step) {
                if node.class == Class::Compensatable {
                    return Some(format!(
                        "{:?} comes after a step that cannot be undone, so it can never be compensated: make it retriable, \
                         or put it in front",
                        node.path
                    ));
                }
                if node.unknown == Unknown::Compensate {
                    return Some(format!(
                        "{:?} cannot be compensated when its outcome is unknown",
                        node.path
                    ));
                }
            }
        }
        // Everything that may still turn the saga round has to be over when the first step that cannot be undone begins.
        let before = everything - self.committed;
        for step in (self.committed & (self.pivot | self.retriable())).iter() {
            if let Some(beside) = (before - ahead[step]).iter().next() {
                return Some(format!(
                    "{:?} may fail when {:?}, which cannot be undone, has happened: let the latter come after it",
                    path(beside),
                    path(step)
                ));
            }
            if let Some(beside) = (self.pivot - ahead[step] - Steps::one(step)).iter().next() {
                return Some(format!("{:?} has to come after the pivot {:?}", path(step), path(beside)));
            }
        }
        None
    }

    /// Whether the limit of `step` ends it: behind the pivot, and of what has to succeed, it is only told that it has come.
    pub(crate) fn ends_in_time(&self, step: usize) -> bool {
        !(self.committed - self.pivot).contains(step)
    }

    fn retriable(&self) -> Steps {
        (0..self.nodes.len()).filter(|&step| self.nodes[step].class == Class::Retriable).collect()
    }

    /// The place of the step with this path.
    pub(crate) fn find(&self, path: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.path == path)
    }
}

fn is_name(text: &str) -> bool {
    (1..=100).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn ancestors(nodes: &[Node]) -> Vec<Steps> {
    let mut ahead: Vec<Steps> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let own = node.before.iter().fold(node.before, |set, step| set | ahead[step]);
        ahead.push(own);
    }
    ahead
}

fn descendants(ahead: &[Steps]) -> Vec<Steps> {
    (0..ahead.len())
        .map(|step| (0..ahead.len()).filter(|&other| ahead[other].contains(step)).collect())
        .collect()
}

/// 64 bits of FNV-1a over everything that the records of a saga depend on: paths, order, classes, policies. Not over the code.
fn digest(nodes: &[Node]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes.iter().chain(&[0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for node in nodes {
        add(node.path.as_bytes());
        add(node.class.as_str().as_bytes());
        add(node.unknown.as_str().as_bytes());
        add(match node.kind {
            Kind::Action => b"action",
            Kind::Timer(_) => b"timer",
            Kind::Signal(_) => b"signal",
        });
        add(&[u8::from(node.has_undo)]);
        if node.transactional {
            add(b"transactional");
        }
        node.before.iter().for_each(|step| add(nodes[step].path.as_bytes()));
        add(b";");
    }
    format!("{hash:016x}")
}

/// A definition that could leave a saga in between, found when it is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinitionError {
    pub(crate) saga: String,
    pub(crate) problem: String,
}

impl fmt::Display for DefinitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "saga {:?}: {}", self.saga, self.problem)
    }
}

impl std::error::Error for DefinitionError {}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `"a:c b:c>a p:p>b r:r>p"`: name, class (c, p, r, o; `n` is compensatable with nothing to undo) and what it is behind.
    pub(crate) fn shape(text: &str) -> Result<Shape, DefinitionError> {
        let mut nodes: Vec<Node> = Vec::new();
        for word in text.split_whitespace() {
            let (path, rest) = word.split_once(':').unwrap();
            let (class, before) = rest.split_once('>').unwrap_or((rest, ""));
            let before = before.split(',').filter(|name| !name.is_empty());
            let before = before.map(|name| nodes.iter().position(|node| node.path == name).unwrap());
            let (class, has_undo) = match class {
                "c" => (Class::Compensatable, true),
                "n" => (Class::Compensatable, false),
                "p" => (Class::Pivot, false),
                "r" => (Class::Retriable, false),
                "o" => (Class::ReadOnly, false),
                other => panic!("{other}"),
            };
            let before = before.collect();
            let path = path.to_owned();
            nodes.push(Node {
                path,
                class,
                kind: Kind::Action,
                unknown: Unknown::Retry,
                has_undo,
                no_undo: None,
                transactional: false,
                within: None,
                before,
            });
        }
        Shape::new("test", 1, nodes)
    }

    #[test]
    fn orders_of_classes_that_can_end_are_accepted() {
        for text in [
            "a:c",
            "a:c b:c>a c:c>b",
            "a:c b:c p:p>a,b r:r>p",
            "a:c p:p>a r:r>p s:r>p o:o>r",
            "o:o a:c>o p:p>a",
            "a:c r:r>a s:r>r",
            "p:p",
            "r:r s:r",
        ] {
            assert!(shape(text).is_ok(), "{text}: {:?}", shape(text).err());
        }
    }

    #[test]
    fn orders_of_classes_that_cannot_end_are_refused() {
        for (text, word) in [
            ("p:p a:c>p", "after a step that cannot be undone"),
            ("a:c p:p", "has happened"),
            ("a:c b:c r:r>a", "has happened"),
            ("p:p q:p>p", "both pivots"),
            ("a:c r:r>a p:p>a", "after the pivot"),
            ("a:c o:o r:r>a", "has happened"),
            ("r:r a:c>r", "after a step"),
            ("a:c a:c", "two steps"),
            ("", "0 steps"),
            ("a@b:c", "'@'"),
        ] {
            let problem = shape(text).expect_err(text).to_string();
            assert!(problem.contains(word), "{text}: {problem}");
        }
    }

    #[test]
    fn the_digest_follows_the_structure_and_not_the_version() {
        let digest = |text: &str| shape(text).unwrap().id.digest;
        let base = digest("a:c b:c>a");
        assert_eq!(base, digest("a:c b:c>a"));
        for other in ["a:c b:c", "a:c b:n>a", "a:c x:c>a", "a:c b:p>a", "a:c b:c>a d:c>b"] {
            assert_ne!(base, digest(other), "{other}");
        }
    }
}
