//! `order-system`: the documented order system as one program.

use std::process::ExitCode;

use clap::Parser;
use order_system::cli::Cli;

// Requests and events are many small pieces that one thread makes and another frees.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    order_system::cli::run(Cli::parse())
}
