//! The life of one saga, a line for each record.

use std::fmt;

use serde::Serialize;

use crate::saga::{
    Cause, Direction, Entry, Incarnation, Order, Record, SagaId,
    journal::{Ask, Phase, Stored},
};

/// The records of one saga in their order. `Display` is an aligned table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Timeline {
    /// The saga's name.
    #[serde(serialize_with = "text")]
    pub saga: SagaId,
    /// The name of its definition.
    pub definition: String,
    /// The version of its definition.
    pub version: u32,
    /// Where it stands.
    #[serde(serialize_with = "text")]
    pub phase: Phase,
    /// What there is to say about that.
    pub note: String,
    /// What is wrong with its records, if they are damaged.
    pub damage: Option<String>,
    /// A row for each record.
    pub rows: Vec<Row>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Row {
    /// Its place in the saga.
    pub seq: u64,
    /// How many milliseconds after the first record it was written, by the clocks of those who wrote them.
    pub at_ms: u64,
    /// The step that it is about.
    pub step: Option<String>,
    /// Whether it is about the action or the compensation of that step: `do` or `undo`.
    pub direction: Option<&'static str>,
    /// [`Record::kind`].
    pub kind: String,
    /// How many attempts were made, where that is recorded.
    pub attempts: Option<u32>,
    /// How many milliseconds they took.
    pub ms: Option<u64>,
    /// What came of it: an output, an error, a reason.
    pub outcome: String,
    /// The orchestrator that wrote it.
    #[serde(serialize_with = "text")]
    pub process: Incarnation,
    /// The ownership under which it was written.
    pub epoch: u64,
}

impl Timeline {
    /// The records of a saga, also of a damaged one.
    pub fn of(stored: &Stored) -> Self {
        let head = &stored.head;
        let began = stored.entries.first().map_or(head.created, |entry| entry.at);
        let mut turned = false;
        let row = |entry: &Entry| {
            let record = entry.record();
            let told = match &record {
                Ok(record) => Told::of(record, began.0),
                Err(error) => Told::outcome(format!("cannot be read: {error}")),
            };
            // What is stuck or parked is being undone once the saga was turned round.
            let direction = told.direction.or_else(|| {
                let tried = entry.step.is_some() && matches!(entry.kind.as_str(), "stuck" | "parked");
                tried.then_some(if turned { Direction::Undo } else { Direction::Do })
            });
            turned |= record.as_ref().is_ok_and(turns);
            Row {
                seq: entry.seq,
                at_ms: entry.at.0.saturating_sub(began.0),
                step: entry.step.clone().or(told.step),
                direction: direction.map(Direction::as_str),
                kind: entry.kind.clone(),
                attempts: told.attempts,
                ms: told.ms,
                outcome: told.outcome,
                process: entry.by.clone(),
                epoch: entry.epoch,
            }
        };
        Timeline {
            saga: head.id.clone(),
            definition: head.definition.name.clone(),
            version: head.definition.version,
            phase: head.phase,
            note: head.note.clone(),
            damage: stored.verify().err().map(|corrupt| corrupt.to_string()),
            rows: stored.entries.iter().map(row).collect(),
        }
    }
}

/// Whether nothing goes forward behind this record.
pub(super) fn turns(record: &Record) -> bool {
    match record {
        Record::Aborted { .. } => true,
        Record::Ordered { order, .. } => matches!(order, Order::Reject { .. } | Order::Compensate { .. }),
        _ => false,
    }
}

/// What a record says, for a row.
#[derive(Default)]
struct Told {
    step: Option<String>,
    direction: Option<Direction>,
    attempts: Option<u32>,
    ms: Option<u64>,
    outcome: String,
}

impl Told {
    fn outcome(outcome: impl Into<String>) -> Self {
        Told { outcome: outcome.into(), ..Told::default() }
    }

    fn forward(outcome: impl Into<String>) -> Self {
        Told { direction: Some(Direction::Do), ..Told::outcome(outcome) }
    }

    fn of(record: &Record, began: u64) -> Self {
        match record {
            Record::Begun { input, deadline } => {
                let due = deadline.map(|at| format!(", to be over in {} ms", at.0.saturating_sub(began)));
                Told::outcome(format!("with {}{}", input.as_str(), due.unwrap_or_default()))
            }
            Record::Sent { .. } => Told::forward("about to be sent, once"),
            Record::Armed { until, .. } => {
                Told::forward(format!("until {} ms", until.0.saturating_sub(began)))
            }
            Record::Completed { output, attempts, ms, .. } => {
                let told = Told::forward(output.as_str());
                Told { attempts: Some(*attempts), ms: Some(*ms), ..told }
            }
            Record::Aborted { cause, clean } => Told::outcome(aborted(cause, clean)),
            Record::Clean { .. } => Told::forward("has not happened"),
            Record::Undone { attempts, ms, .. } => Told {
                direction: Some(Direction::Undo),
                attempts: Some(*attempts),
                ms: Some(*ms),
                ..Told::default()
            },
            Record::Stuck { error, .. } => Told::outcome(error),
            Record::Parked { reason, .. } => Told::outcome(reason),
            Record::Signalled { payload, .. } => Told::forward(payload.as_str()),
            Record::Ordered { by, order, .. } => Told::ordered(by, order),
            Record::Refused { by, ask, why } => {
                let told = match ask {
                    Ask::Order(order) => Told::ordered(by, order),
                    Ask::Signal { step, payload } => Told {
                        step: Some(step.clone()),
                        ..Told::forward(format!("{by}: message {}", payload.as_str()))
                    },
                };
                // The reason comes first: a long line is cut.
                Told { outcome: format!("{why} ({})", told.outcome), ..told }
            }
        }
    }

    fn ordered(by: &str, order: &Order) -> Self {
        let (step, direction, what) = match order {
            Order::Cancel { reason } => (None, None, format!("cancel: {reason}")),
            Order::Retry { step } => (step.clone(), None, "try again".to_owned()),
            Order::Complete { step, output } => {
                (Some(step.clone()), Some(Direction::Do), format!("has happened: {}", output.as_str()))
            }
            Order::Reject { step, reason } => {
                (Some(step.clone()), Some(Direction::Do), format!("has not happened: {reason}"))
            }
            Order::Undone { step, reason } => {
                (Some(step.clone()), Some(Direction::Undo), format!("is undone: {reason}"))
            }
            Order::Compensate { reason } => (None, None, format!("turn round: {reason}")),
            Order::Abandon { reason } => (None, None, format!("give up: {reason}")),
        };
        Told { step, direction, ..Told::outcome(format!("{by}: {what}")) }
    }
}

fn aborted(cause: &Cause, clean: &[String]) -> String {
    if clean.is_empty() { cause.to_string() } else { format!("{cause} (clean: {})", clean.join(", ")) }
}

fn text<T: fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

// === Display

/// The longest outcome that is shown whole.
const WIDEST: usize = 80;

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Timeline { saga, definition, version, phase, note, .. } = self;
        let note = if note.is_empty() { String::new() } else { format!(": {}", line(note)) };
        writeln!(f, "{} ({} v{version}) {phase}{note}", line(saga.as_str()), line(definition))?;
        if let Some(damage) = &self.damage {
            writeln!(f, "damaged: {damage}")?;
        }
        let processes = self.processes();
        let head = ["seq", "ms", "step", "", "record", "tries", "took", "process", "epoch", "outcome"];
        let mut table = vec![head.map(str::to_owned)];
        for (row, process) in self.rows.iter().zip(processes) {
            let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
            table.push([
                row.seq.to_string(),
                row.at_ms.to_string(),
                line(row.step.as_deref().unwrap_or_default()),
                row.direction.unwrap_or_default().to_owned(),
                line(&row.kind),
                number(row.attempts.map(u64::from)),
                number(row.ms),
                line(process),
                row.epoch.to_string(),
                line(&row.outcome),
            ]);
        }
        let mut widths = [0; 10];
        for cells in &table {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for cells in &table {
            let mut text = String::new();
            for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
                let is_number = matches!(at, 0 | 1 | 5 | 6 | 8);
                let cell = if is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                text.push_str("  ");
                text.push_str(&cell);
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

impl Timeline {
    /// The beginnings of the incarnations, as long as they have to be to tell them from each other.
    fn processes(&self) -> Vec<&str> {
        let all: Vec<&str> = self.rows.iter().map(|row| row.process.as_str()).collect();
        let cut = |text: &'_ str, len: usize| text.char_indices().nth(len).map_or(text.len(), |(at, _)| at);
        let distinct = |len: usize| {
            all.iter()
                .all(|one| all.iter().all(|two| one == two || one[..cut(one, len)] != two[..cut(two, len)]))
        };
        let len = (10..64).find(|&len| distinct(len)).unwrap_or(64);
        all.into_iter().map(|text| &text[..cut(text, len)]).collect()
    }
}

/// A text on one line of bounded length, whatever is in it.
fn line(text: &str) -> String {
    let mut line = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == WIDEST {
            line.push('…');
            break;
        }
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::saga::{
        Payload, Timestamp,
        journal::{DefinitionId, Head},
    };

    /// A saga with these records, written at `at` by the orchestrator with this name.
    pub(crate) fn stored(records: &[(u64, &str, Record)]) -> Stored {
        let id = SagaId::new("order-17").unwrap();
        let definition = DefinitionId { name: "order".to_owned(), version: 2, digest: "d".to_owned() };
        let mut head = Head::new(id.clone(), definition, Timestamp(1_000));
        let mut entries: Vec<Entry> = Vec::new();
        for (seq, (at, by, record)) in (0..).zip(records) {
            let by = Incarnation::from_text(by);
            let at = Timestamp(1_000 + at);
            let entry = Entry::new(&id, seq, head.crc, 1 + at.0 / 2_000, at, &by, record).unwrap();
            head.epoch = entry.epoch;
            head.crc = entry.crc;
            head.len += 1;
            entries.push(entry);
        }
        Stored { head, entries }
    }

    pub(crate) fn json<T: Serialize>(value: T) -> Payload {
        Payload::encode(&value).unwrap()
    }

    pub(crate) fn completed(step: &str, output: u32) -> Record {
        Record::Completed { step: step.to_owned(), output: json(output), attempts: 1, ms: 4 }
    }

    fn turned_round() -> Stored {
        let first = "4711-aaaabbbbcccc";
        let second = "4711-aaaacdefcccc";
        let rejected = Cause::Rejected { step: "charge".to_owned(), error: "declined\nsorry".to_owned() };
        let undone = Order::Undone { step: "create".to_owned(), reason: "by hand".to_owned() };
        let mut stored = stored(&[
            (0, first, Record::Begun { input: json("é"), deadline: Some(Timestamp(61_000)) }),
            (12, first, completed("create", 7)),
            (12, first, Record::Sent { step: "charge".to_owned() }),
            (1_500, second, Record::Aborted { cause: rejected, clean: vec!["charge".to_owned()] }),
            (1_600, second, Record::Stuck { step: "create".to_owned(), error: "no".to_owned() }),
            (99_999, second, Record::Ordered { by: "ada".to_owned(), order: undone, clean: Vec::new() }),
        ]);
        stored.head.phase = Phase::Compensated;
        stored.head.note = "charge was rejected: declined".to_owned();
        stored
    }

    #[test]
    fn a_timeline_reads_as_a_table() {
        let expected = "\
order-17 (order v2) compensated: charge was rejected: declined
  seq     ms  step          record     tries  took  process     epoch  outcome
    0      0                begun                   4711-aaaab      1  with \"é\", to be over in 60000 ms
    1     12  create  do    completed      1     4  4711-aaaab      1  7
    2     12  charge  do    sent                    4711-aaaab      1  about to be sent, once
    3   1500                aborted                 4711-aaaac      2  charge was rejected: declined\\nsorry (clean: charge)
    4   1600  create  undo  stuck                   4711-aaaac      2  no
    5  99999  create  undo  ordered                 4711-aaaac     51  ada: is undone: by hand
";
        assert_eq!(Timeline::of(&turned_round()).to_string(), expected);
    }

    #[test]
    fn a_damaged_saga_says_so_and_is_shown_as_far_as_it_can_be_read() {
        let mut stored = stored(&[(0, "one", completed("a", 1)), (5, "two", completed("b", 2))]);
        stored.entries[1].data = "{".to_owned();
        let text = Timeline::of(&stored).to_string();
        assert!(text.contains("damaged: entry 1 does not have the checksum of what it says"), "{text}");
        assert!(text.contains("cannot be read: EOF"), "{text}");
    }

    #[test]
    fn a_timeline_serialises_by_field() {
        let stored = stored(&[(0, "one", completed("a", 1))]);
        let json = serde_json::to_string(&Timeline::of(&stored)).unwrap();
        let expected = concat!(
            r#"{"saga":"order-17","definition":"order","version":2,"phase":"running","note":"","damage":null,"#,
            r#""rows":[{"seq":0,"at_ms":0,"step":"a","direction":"do","kind":"completed","attempts":1,"ms":4,"#,
            r#""outcome":"1","process":"one","epoch":1}]}"#
        );
        assert_eq!(json, expected);
    }
}
