//! Prints what was measured.

use crate::measure::Measured;
use crate::row::{Form, What};

const HEAD: [&str; 10] = [
    "what",
    "library",
    "form",
    "ns/call",
    "over bare",
    "allocations",
    "bytes",
    "future",
    "2 threads",
    "note",
];

/// Which columns hold numbers.
const NUMBERS: std::ops::Range<usize> = 3..9;

/// The table's cells, a blank row between different things measured.
fn cells(measured: &[Measured<'_>]) -> Vec<[String; 10]> {
    let bare = |what: What, form: Form| {
        measured.iter().find(|m| m.row.what == what && m.row.form == form).map(|m| m.ns)
    };
    measured
        .iter()
        .map(|m| {
            let row = m.row;
            let over = row.what.baseline().and_then(|what| bare(what, row.form));
            [
                row.what.to_string(),
                row.library.to_owned(),
                row.form.to_string(),
                nanoseconds(m.ns),
                over.map_or("-".to_owned(), |bare| nanoseconds(m.ns - bare)),
                count(m.allocations),
                format!("{:.0}", m.bytes),
                m.future.map_or("-".to_owned(), |size| size.to_string()),
                m.pair.map_or("-".to_owned(), |ratio| format!("{ratio:.2}x")),
                row.note.to_owned(),
            ]
        })
        .collect()
}

fn nanoseconds(ns: f64) -> String {
    if ns >= 10_000.0 { format!("{ns:.0}") } else { format!("{ns:.1}") }
}

/// Whole numbers as such; a rare allocation shows as a fraction.
fn count(per_call: f64) -> String {
    if (per_call - per_call.round()).abs() < 0.005 {
        format!("{per_call:.0}")
    } else {
        format!("{per_call:.2}")
    }
}

/// An aligned text table.
pub fn text(measured: &[Measured<'_>]) -> String {
    let cells = cells(measured);
    let width = |column: usize| {
        let widest = cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
        widest.max(HEAD[column].len())
    };
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |row: &[String; 10]| {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let padded = if NUMBERS.contains(&column) {
                format!("{cell:>width$}  ")
            } else {
                format!("{cell:<width$}  ")
            };
            line.push_str(&padded);
        }
        line.trim_end().to_owned() + "\n"
    };

    let mut table = line(&HEAD.map(str::to_owned));
    let mut last = None;
    for (row, measured) in cells.iter().zip(measured) {
        let what = std::mem::discriminant(&measured.row.what);
        if last.replace(what) != Some(what) {
            table.push('\n');
        }
        table.push_str(&line(row));
    }
    table
}

/// The same as a Markdown table.
pub fn markdown(measured: &[Measured<'_>]) -> String {
    let mut table = format!("| {} |\n|", HEAD.join(" | "));
    for column in 0..HEAD.len() {
        table.push_str(if NUMBERS.contains(&column) { "---:|" } else { "---|" });
    }
    table.push('\n');
    for row in cells(measured) {
        table.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    table
}
