//! `order-system`: the documented order system as one program.

use std::process::ExitCode;

use clap::Parser;
use order_system::cli::Cli;

fn main() -> ExitCode {
    order_system::cli::run(Cli::parse())
}
