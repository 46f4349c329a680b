//! What comes of a run.

use std::fmt;

use super::{
    case::{Case, Fault, Place},
    checker::Story,
    evidence::{Call, Violation},
    ledger::Ledger,
};
use crate::saga::{Phase, Record, journal::Stored};

/// What was seen in one run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Seen {
    /// What went wrong.
    pub case: Case,
    /// Where the saga stands at the end; none when it never began.
    pub phase: Option<Phase>,
    /// What the store has of it.
    pub stored: Option<Stored>,
    /// Who was called.
    pub calls: Vec<Call>,
    /// What was passed, in order: the places where something can go wrong. Heartbeats, and claims that took nothing, are there only once until
    /// something else was passed.
    pub places: Vec<Place>,
    /// How often the power was cut. Of two planned crashes the first one may have kept the second one away.
    pub crashes: u32,
    /// The ledger that the definition was built with.
    pub ledger: Ledger,
}

impl Seen {
    /// Whether, by the records, a step has happened and was not undone. Of a step of the journal's transaction that is what its rows have to
    /// show, however the saga has ended; of others, what they have to show when it is over. None where a person has said what is so: the
    /// records then have it from there.
    pub fn stands(&self, step: &str) -> Option<bool> {
        let records: Vec<(u64, Record)> = self
            .stored
            .iter()
            .flat_map(|stored| &stored.entries)
            .filter_map(|entry| Some((entry.epoch, entry.record().ok()?)))
            .collect();
        let story = Story { records: &records };
        (!story.by_hand(step)).then(|| story.completed(step).is_some() && story.undone(step).is_none())
    }
}

/// A run that was not as it has to be.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Failed {
    /// What went wrong; its text is what [`Check::replay`](super::Check::replay) takes.
    pub case: Case,
    /// The invariants that do not hold.
    pub violations: Vec<Violation>,
    /// Faults that were planned and did not come.
    pub unfired: Vec<Fault>,
    /// What else was wrong.
    pub problem: Option<String>,
    /// The records and the calls, one a line.
    pub story: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "case {:?} fails; replay it by this name", self.case.to_string())?;
        for violation in &self.violations {
            writeln!(f, "  {violation}")?;
        }
        for fault in &self.unfired {
            writeln!(f, "  {fault} was planned and did not come")?;
        }
        if let Some(problem) = &self.problem {
            writeln!(f, "  {problem}")?;
        }
        f.write_str(&self.story)
    }
}

impl std::error::Error for Failed {}

/// How many runs there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// The runs, all of which were as they have to be.
    pub cases: usize,
}

pub(super) fn story(seen: &Seen) -> String {
    use fmt::Write;
    let mut text = String::new();
    for entry in seen.stored.iter().flat_map(|stored| &stored.entries) {
        let _ = writeln!(text, "  {:>3} epoch {} {}", entry.seq, entry.epoch, entry.data);
    }
    for call in &seen.calls {
        let _ = writeln!(
            text,
            "  call {} {} {} epoch {} durable {:?} {:?}{}",
            call.began,
            call.what.as_str(),
            call.key,
            call.epoch,
            call.durable.map(|(len, _)| len),
            call.ended,
            if call.redelivered { " redelivered" } else { "" }
        );
    }
    text
}
