//! Looks at a store of sagas, and leaves orders there for the orchestrators that work on it: `mainstay-saga --help`.
#![forbid(unsafe_code)]

mod ask;
mod attention;
mod command;
mod look;
mod server;
mod words;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use mainstay::saga::{SagaId, journal::Journal, sqlite::Sqlite};

use crate::command::{Command, Invocation};

type Error = Box<dyn std::error::Error>;

const USAGE: &str = "\
mainstay-saga --store STORE COMMAND

Looks at sagas:
  list [--phase P]... [--open] [--definition D] [--version V] [--tag T] [--limit N]
                                 --open: those that are not over
  stuck                          what needs a person: stuck, parked, blocked, damaged, overdue, or with nobody who
                                 works on it; why, and what to do. Reads every saga that is not over
  check                          reads every record of every saga; fails if one is damaged
  show ID
  timeline ID                    every record
  dot ID | mermaid ID            its steps as a graph

Leaves an order at a saga, and waits a moment for the orchestrator that takes it up:
  retry ID [STEP]                what is stuck or parked is tried once more
  resolve ID STEP --output JSON  the step has happened, with this output
  reject ID STEP --reason R      the step has not happened and will not: undo what is before it
  undone ID STEP --reason R      the undo of the step was done by hand, or is not needed
  cancel ID --reason R           turn it round, unless it has passed its pivot
  compensate ID --reason R       turn it round, even if it has
  abandon ID --reason R          leave it as it is, for ever
  signal ID STEP MESSAGE JSON    a message for a step that waits; MESSAGE names it, and counts once

Tidies up:
  gc --older-than 30d [--limit N]  forget sagas that ended so long ago
  audit                          who had which sagas forgotten, and when

Options:
  --store sqlite:FILE | postgres://USER@HOST/DATABASE   or the variable MAINSTAY_SAGA_STORE
  --schema S  where the tables are in Postgres; or the variable MAINSTAY_SAGA_SCHEMA (mainstay_saga)
  --ca FILE   the connection to Postgres has to be encrypted, with a certificate that one of the roots in this PEM file
              has signed; or the variable MAINSTAY_SAGA_CA
  --json     list, stuck, audit: an object for each line; show, timeline: one object
  --by WHO   in whose name an order is left, or sagas are forgotten (the variable USER)
  --wait T   how long to wait for what becomes of an order (5s)

The store has to be there: none is made.

A connection to Postgres is encrypted where the server offers it. With ?sslmode=require behind the address it has to
be, and the server's certificate has to be signed, for that host, by a root of this system or of --ca; with
?sslmode=disable it is not encrypted.

It ends with 0 when it is done, 1 when it failed or the order was refused, 2 when it was not understood, and 3 when
the order was left and nobody has taken it up yet: it stays, and is obeyed when an orchestrator comes by. A message
that is refused because the code that runs cannot read it stays, too, for code that can.
";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = std::env::args().skip(1);
    let invocation = match Invocation::parse(arguments, |name| std::env::var(name).ok()) {
        Ok(Some(invocation)) => invocation,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("mainstay-saga: {problem} (--help says more)");
            return ExitCode::from(2);
        }
    };
    match run(&invocation).await {
        Ok(code) => code,
        // Whoever reads has heard enough, as `head` does.
        Err(error) if error.downcast_ref().map(io::Error::kind) == Some(io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("mainstay-saga: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(invocation: &Invocation) -> Result<ExitCode, Error> {
    let store = open(invocation).await?;
    let store = &*store;
    let json = invocation.json;
    let mut out = io::stdout().lock();
    match &invocation.command {
        Command::List(query, version) => look::list(store, query, *version, json, &mut out).await?,
        Command::Audit => look::audit(store, json, &mut out).await?,
        Command::Stuck => look::stuck(store, json, &mut out).await?,
        Command::Check => {
            let damaged = look::check(store, &mut out).await?;
            out.flush()?;
            return Ok(if damaged == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Show(id) => {
            look::show(&load(store, id).await?, &look::present(store).await?, json, &mut out)?
        }
        Command::Timeline(id) => look::timeline(&load(store, id).await?, json, &mut out)?,
        Command::Dot(id) => out.write_all(look::diagram(&load(store, id).await?).to_dot().as_bytes())?,
        Command::Mermaid(id) => {
            out.write_all(look::diagram(&load(store, id).await?).to_mermaid().as_bytes())?;
        }
        Command::Ask(id, ask) => {
            let before = load(store, id).await?;
            let told = ask::ask(store, &before, ask, &invocation.by, invocation.wait).await?;
            out.flush()?;
            return Ok(told.say(&mut out)?);
        }
        Command::Gc { age, limit } => {
            let forgotten = look::gc(store, &invocation.by, *age, *limit).await?;
            writeln!(out, "{forgotten} sagas forgotten")?;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

async fn open(invocation: &Invocation) -> Result<Box<dyn Journal>, Error> {
    let Invocation { store, schema, ca, .. } = invocation;
    let (kind, place) = store.split_once(':').unwrap_or((store, ""));
    // The address may be given as it is elsewhere, or behind the word.
    let address = if place.starts_with("//") { store } else { place };
    match kind {
        "sqlite" => Ok(Box::new(Sqlite::open_existing(place)?)),
        "postgres" | "postgresql" => Ok(Box::new(server::open(address, schema, ca.as_deref()).await?)),
        // Without the rest, in which a password may be.
        _ => Err(format!("{kind:?} is no kind of store: say sqlite:FILE or postgres:URL").into()),
    }
}

async fn load(store: &dyn Journal, id: &SagaId) -> Result<mainstay::saga::journal::Stored, Error> {
    store.load(id).await?.ok_or_else(|| format!("there is no saga {id}").into())
}
