//! `cargo bench --manifest-path benches/peers/Cargo.toml -- [options] [filter..]`

use std::process::ExitCode;

use peers::measure::{Effort, measure};
use peers::row::{Row, What};
use peers::{rows, runtime, table};

const USAGE: &str = "\
Measures mainstay and its peers on the same inner call, in one run.

usage: cargo bench --manifest-path benches/peers/Cargo.toml -- [options] [filter..]

  filter        only rows whose name contains one of these (the bare calls always run)
  --quick       a smoke run: all rows, few rounds
  --markdown    print a Markdown table
  --list        print the rows' names and stop
  --rounds N    batches per row (default 400)
  --one-thread  leave out the runs with two threads
  --help        print this
";

struct Options {
    effort: Effort,
    markdown: bool,
    list: bool,
    help: bool,
    filters: Vec<String>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options =
            Self { effort: Effort::FULL, markdown: false, list: false, help: false, filters: Vec::new() };
        let mut rounds = None;
        let mut one_thread = false;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => {} // cargo passes it
                "--quick" => options.effort = Effort::QUICK,
                "--markdown" => options.markdown = true,
                "--list" => options.list = true,
                "--help" | "-h" => options.help = true,
                "--one-thread" => one_thread = true,
                "--rounds" => {
                    let value = arguments.next().and_then(|n| n.parse().ok());
                    rounds = Some(value.filter(|n| *n > 0).ok_or("--rounds needs a number above 0")?);
                }
                other if other.starts_with('-') => return Err(format!("unknown option {other}")),
                filter => options.filters.push(filter.to_lowercase()),
            }
        }
        if let Some(rounds) = rounds {
            options.effort.rounds = rounds;
            options.effort.pair_rounds = rounds;
        }
        if one_thread {
            options.effort.pair_rounds = 0;
        }
        Ok(options)
    }

    fn wants(&self, row: &Row) -> bool {
        let name = row.to_string().to_lowercase();
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter))
    }
}

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    if options.help {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }

    let runtime = runtime::driven();
    let _context = runtime.enter();
    let all = rows();
    let bare = |row: &Row| matches!(row.what, What::Bare | What::BarePending);
    if options.list {
        all.iter().filter(|row| options.wants(row)).for_each(|row| println!("{row}"));
        return ExitCode::SUCCESS;
    }
    if !all.iter().any(|row| options.wants(row)) {
        eprintln!("no row matches; --list prints their names");
        return ExitCode::FAILURE;
    }
    let chosen: Vec<&Row> = all.iter().filter(|row| options.wants(row) || bare(row)).collect();

    match measure(&chosen, options.effort) {
        Ok(measured) if options.markdown => print!("{}", table::markdown(&measured)),
        Ok(measured) => {
            println!("{}", machine());
            print!("\n{}", table::text(&measured));
        }
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// What the numbers were measured on.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{model}, {processors} processors; medians; `2 threads` is their rate over one thread's")
}
