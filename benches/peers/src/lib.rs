//! Measures mainstay and its peers in one run, on the same inner call.
//!
//! - [`operation`] is the inner call, [`settings`] what every policy is given;
//! - one module per peer (or family of peers) adds its [`row`]s;
//! - [`measure`] measures them all, [`table`] prints.
//!
//! The package's bench target is `src/bench.rs`; `src/bin/instructions.rs` is
//! run under callgrind by `scripts/instructions.sh`.

mod alloc;
pub mod measure;
pub mod operation;
pub mod row;
pub mod runtime;
pub mod settings;
pub mod table;
pub mod worker;

mod failsafe_rows;
mod floors;
mod hand_composed;
mod mainstay_rows;
mod recloser_rows;
mod retry_rows;
mod seatbelt_rows;
mod tokio_rows;
mod tower_resilience_rows;
mod tower_rows;

/// All rows, in the order of the table.
pub fn rows() -> Vec<row::Row> {
    let mut rows = row::Rows::default();
    floors::rows(&mut rows);
    mainstay_rows::rows(&mut rows);
    tokio_rows::rows(&mut rows);
    failsafe_rows::rows(&mut rows);
    recloser_rows::rows(&mut rows);
    retry_rows::rows(&mut rows);
    hand_composed::rows(&mut rows);
    tower_rows::rows(&mut rows);
    seatbelt_rows::rows(&mut rows);
    tower_resilience_rows::rows(&mut rows);
    let mut rows = rows.0;
    // Stable: within one thing measured, rows stay in the order they came.
    rows.sort_by_key(|row| row.what.place());
    rows
}
