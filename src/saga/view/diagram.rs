//! Definitions and sagas as graphs, for Graphviz and Mermaid.

use std::fmt::Write as _;

use super::timeline::turns;
use crate::saga::{
    Cause, Class, Order, Record, Saga,
    definition::Inputs,
    journal::Stored,
    shape::{Kind, Shape},
};

/// The steps of a definition, or of a saga, with what each is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagram {
    title: String,
    steps: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    path: String,
    /// What is known of it besides its name, when there is a definition.
    known: Option<(Class, Wait, bool)>,
    /// Why it has no undo, where that was said.
    no_undo: Option<String>,
    before: Vec<usize>,
    state: Option<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    None,
    Timer,
    Signal,
}

/// Where a step of a saga stands, as far as its records say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Nothing is recorded of it, or that it was sent.
    Open,
    /// A timer runs, or a message is waited for.
    Waiting,
    /// It has happened.
    Completed,
    /// It has not happened and will not.
    Rejected,
    /// Nobody knows whether it has happened; the saga was turned round for that.
    Unknown,
    /// It was undone.
    Undone,
    /// It has to succeed, or be undone, and does not.
    Stuck,
    /// It waits for a person.
    Parked,
}

impl State {
    /// The state as a short stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Open => "open",
            State::Waiting => "waiting",
            State::Completed => "completed",
            State::Rejected => "rejected",
            State::Unknown => "unknown",
            State::Undone => "undone",
            State::Stuck => "stuck",
            State::Parked => "parked",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            State::Open => "#ffffff",
            State::Waiting => "#fff3bf",
            State::Completed => "#b2f2bb",
            State::Rejected => "#dee2e6",
            State::Unknown => "#ffd8a8",
            State::Undone => "#a5d8ff",
            State::Stuck => "#ffa8a8",
            State::Parked => "#ffe066",
        }
    }
}

impl Diagram {
    pub(crate) fn of_shape(shape: &Shape) -> Self {
        let steps = shape.nodes.iter().map(|node| {
            let wait = match node.kind {
                Kind::Action => Wait::None,
                Kind::Timer(_) => Wait::Timer,
                Kind::Signal(_) => Wait::Signal,
            };
            let known = Some((node.class, wait, node.has_undo));
            let (path, no_undo) = (node.path.clone(), node.no_undo.clone());
            Node { path, known, no_undo, before: node.before.iter().collect(), state: None }
        });
        Diagram { title: format!("{} v{}", shape.id.name, shape.id.version), steps: steps.collect() }
    }

    /// The steps that a saga's records name, in the order in which they do: all that can be known without its definition.
    pub fn of(stored: &Stored) -> Self {
        let definition = &stored.head.definition;
        let title = format!("{} v{}", definition.name, definition.version);
        let mut diagram = Diagram { title, steps: Vec::new() };
        let records = stored.entries.iter().filter_map(|entry| entry.record().ok());
        for path in records.flat_map(|record| named(&record)) {
            let at = diagram.steps.len();
            if diagram.steps.iter().all(|node| node.path != path) {
                let before = at.checked_sub(1).into_iter().collect();
                diagram.steps.push(Node { path, known: None, no_undo: None, before, state: None });
            }
        }
        diagram.with(stored)
    }

    /// The same with every step in the state that the records of `stored` say.
    pub fn with(mut self, stored: &Stored) -> Self {
        self.title = format!("{}: {} {}", self.title, stored.head.id, stored.head.phase);
        // What is known of a step, and what stands in its way.
        let mut marks = vec![(State::Open, None); self.steps.len()];
        let mut turned = false;
        for record in stored.entries.iter().filter_map(|entry| entry.record().ok()) {
            if !turned && turns(&record) {
                turned = true;
                marks.iter_mut().for_each(|(_, trouble)| *trouble = None);
            }
            if let Record::Ordered { order: Order::Retry { step: None }, .. } = &record {
                marks.iter_mut().for_each(|(_, trouble)| *trouble = None);
            }
            for path in named(&record) {
                let Some(at) = self.steps.iter().position(|node| node.path == path) else { continue };
                let (state, trouble) = &mut marks[at];
                match says(&record, &path) {
                    Some(State::Stuck) => *trouble = Some(State::Stuck),
                    Some(State::Parked) => *trouble = Some(State::Parked),
                    Some(now) => (*state, *trouble) = (now, None),
                    None => *trouble = None,
                }
            }
        }
        for (node, (state, trouble)) in self.steps.iter_mut().zip(marks) {
            node.state = Some(trouble.unwrap_or(state));
        }
        self
    }

    /// The state of each step, by its path; empty for a definition alone.
    pub fn states(&self) -> impl Iterator<Item = (&str, State)> {
        self.steps.iter().filter_map(|node| Some((node.path.as_str(), node.state?)))
    }

    /// The graph in the language of Graphviz: `dot -Tsvg`.
    pub fn to_dot(&self) -> String {
        let mut out = format!("digraph \"{}\" {{\n  rankdir=LR;\n", escaped(&self.title));
        let _ = writeln!(out, "  node [shape=box, style=\"rounded,filled\", fillcolor=\"#ffffff\"];");
        for (at, node) in self.steps.iter().enumerate() {
            let remark = node.remark().map(|remark| format!("\\n{}", escaped(&remark))).unwrap_or_default();
            let _ = write!(out, "  s{at} [label=\"{}{remark}\"", escaped(&node.path));
            match node.known {
                Some((Class::Pivot, ..)) => out.push_str(", shape=octagon, style=filled"),
                Some((Class::ReadOnly, ..)) => out.push_str(", style=\"rounded,filled,dashed\""),
                _ => {}
            }
            if let Some(state) = node.state {
                let _ = write!(out, ", fillcolor=\"{}\", tooltip={}", state.colour(), state.as_str());
            }
            out.push_str("];\n");
        }
        for (at, node) in self.steps.iter().enumerate() {
            // Without a definition the order is that of the records, no more.
            let style = if node.known.is_some() { "" } else { " [style=dotted]" };
            for from in &node.before {
                let _ = writeln!(out, "  s{from} -> s{at}{style};");
            }
        }
        out.push_str("}\n");
        out
    }

    /// The graph in the language of Mermaid, which many Markdown viewers draw.
    pub fn to_mermaid(&self) -> String {
        let mut out = format!("---\ntitle: \"{}\"\n---\nflowchart LR\n", escaped(&self.title));
        for (at, node) in self.steps.iter().enumerate() {
            let (open, close) = match node.known {
                Some((Class::Pivot, ..)) => ("{{", "}}"),
                Some((Class::ReadOnly, ..)) => ("([", "])"),
                _ => ("(", ")"),
            };
            let remark =
                node.remark().map(|remark| format!("<br/>{}", mermaid_text(&remark))).unwrap_or_default();
            let _ = writeln!(out, "  s{at}{open}\"{}{remark}\"{close}", mermaid_text(&node.path));
        }
        for (at, node) in self.steps.iter().enumerate() {
            let arrow = if node.known.is_some() { "-->" } else { "-.->" };
            for from in &node.before {
                let _ = writeln!(out, "  s{from} {arrow} s{at}");
            }
        }
        for (at, node) in self.steps.iter().enumerate() {
            if let Some(state) = node.state {
                let _ = writeln!(out, "  style s{at} fill:{},color:#000000", state.colour());
            }
        }
        out
    }
}

impl Node {
    /// What is written below its name.
    fn remark(&self) -> Option<String> {
        let kind = match self.known {
            None => None,
            Some((_, Wait::Timer, _)) => Some("timer".to_owned()),
            Some((_, Wait::Signal, _)) => Some("signal".to_owned()),
            Some((Class::Compensatable, _, true)) => None,
            Some((Class::Compensatable, _, false)) => Some(match &self.no_undo {
                Some(why) => format!("no undo: {why}"),
                None => "no undo".to_owned(),
            }),
            Some((class, ..)) => Some(class.as_str().to_owned()),
        };
        let state = self.state.filter(|state| *state != State::Open).map(State::as_str);
        match (kind, state) {
            (Some(kind), Some(state)) => Some(format!("{kind}, {state}")),
            (kind, state) => kind.or(state.map(str::to_owned)),
        }
    }
}

impl<I, R: Inputs> Saga<I, R> {
    /// The definition as a graph.
    pub fn diagram(&self) -> Diagram {
        Diagram::of_shape(&self.definition.shape)
    }

    /// The definition in the language of Graphviz.
    pub fn to_dot(&self) -> String {
        self.diagram().to_dot()
    }

    /// The definition in the language of Mermaid.
    pub fn to_mermaid(&self) -> String {
        self.diagram().to_mermaid()
    }
}

/// The steps that a record says something about.
fn named(record: &Record) -> Vec<String> {
    match record {
        Record::Aborted { cause, clean } => {
            let of_cause = match cause {
                Cause::Rejected { step, .. } | Cause::Unknown { step, .. } | Cause::Late { step, .. } => {
                    Some(step)
                }
                _ => None,
            };
            let mut steps: Vec<String> = of_cause.into_iter().chain(clean).cloned().collect();
            steps.dedup();
            steps
        }
        Record::Ordered { order, .. } => match order {
            Order::Retry { step: Some(step) }
            | Order::Complete { step, .. }
            | Order::Reject { step, .. }
            | Order::Undone { step, .. } => vec![step.clone()],
            _ => Vec::new(),
        },
        record => record.step().map(str::to_owned).into_iter().collect(),
    }
}

/// What a record says about a step that it names; `None` that nothing is in its way any more.
fn says(record: &Record, path: &str) -> Option<State> {
    Some(match record {
        Record::Armed { .. } => State::Waiting,
        Record::Completed { .. } => State::Completed,
        Record::Clean { .. } => State::Rejected,
        Record::Aborted { clean, .. } if clean.iter().any(|step| step == path) => State::Rejected,
        Record::Aborted { .. } => State::Unknown,
        Record::Undone { .. } => State::Undone,
        Record::Stuck { .. } => State::Stuck,
        Record::Parked { .. } => State::Parked,
        Record::Ordered { order, .. } => match order {
            Order::Complete { .. } => State::Completed,
            Order::Reject { .. } => State::Rejected,
            Order::Undone { .. } => State::Undone,
            _ => return None,
        },
        _ => return None,
    })
}

/// The inside of a quoted string of Graphviz or YAML. A backslash would begin an escape there, so it is doubled.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The inside of a quoted label of Mermaid, where everything that could mean something has a code.
fn mermaid_text(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '"' | '#' | '<' | '>' | '&' | '`' | ';' | '\\' | '*' | '_' => {
                let _ = write!(out, "#{};", u32::from(c));
            }
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
#[path = "diagram_tests.rs"]
mod tests;
