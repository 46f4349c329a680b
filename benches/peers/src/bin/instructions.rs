//! Makes so many calls through one row, and nothing else that depends on their
//! number: `scripts/instructions.sh` runs it under callgrind twice, with N and
//! 2N calls, and divides the difference.
//!
//!     instructions --list [filter..]
//!     instructions "five policies / tower-resilience 0.13 / tower" 1000

use std::process::ExitCode;

use peers::row::{Row, What};
use peers::{rows, runtime};

/// Rows that are counted when nobody asks for others.
fn usual(row: &Row) -> bool {
    matches!(row.what, What::Bare | What::Five)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();

    let runtime = runtime::still();
    let _context = runtime.enter();
    let rows = rows();

    match arguments.as_slice() {
        ["--list", filters @ ..] => {
            for row in &rows {
                let name = row.to_string();
                let wanted = filters.iter().any(|filter| name.contains(filter));
                if wanted || filters.is_empty() && usual(row) {
                    println!("{name}");
                }
            }
            ExitCode::SUCCESS
        }
        [name, calls] => {
            let row = rows.iter().find(|row| row.to_string() == *name);
            let (Some(row), Ok(calls)) = (row, calls.parse()) else {
                eprintln!("no such row, or not a number of calls");
                return ExitCode::FAILURE;
            };
            let mut worker = row.policy()();
            if let Err(error) = worker.check() {
                eprintln!("{row}: {error}");
                return ExitCode::FAILURE;
            }
            worker.run(calls);
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: instructions --list [filter..] | instructions ROW CALLS");
            ExitCode::FAILURE
        }
    }
}
