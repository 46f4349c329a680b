//! An order as a saga, over three services with a database each.
//!
//! Four short plays show what becomes of an order when everything goes well, when a card is declined, when nobody knows whether
//! a card was charged, and when an undo does not work. With `--kill` the orchestrator is killed again and again under load, or
//! stopped until another has its sagas, and every order it had accepted has to end all the same. Either way the services' ledgers are audited at the end, and what they were
//! asked is laid before the checker of the invariants together with what the store has.

mod audit;
mod calls;
mod chance;
mod evidence;
mod kill;
mod plays;
mod saga;
mod services;
mod store;
mod worker;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use services::Shop;
use store::Place;

type Error = Box<dyn std::error::Error + Send + Sync>;

const USAGE: &str = "\
cargo run --example order_saga -- [options]

  --data DIR   where the databases are and stay (a temporary folder)
  --store postgres:URL
               keep the sagas there, in a schema of this run that is dropped at its end (a file in DIR);
               the feature `postgres` has to be on
  --kill       kill the orchestrator under load instead of playing; with PostgreSQL one is also stopped now and then,
               for longer than its lease, and goes on
  --kills N    how often (200)
  --patience S for how many seconds the last orchestrator may work at what the killed have left (120)
  --wrong-keys put the number of the attempt into the keys: the common mistake, which the audit finds
  --seed N     the orders and the moments of the kills (drawn, and printed)
";

#[derive(Debug, Clone, Default)]
struct Options {
    data: Option<PathBuf>,
    store: Option<String>,
    /// In a child of this program: the schema that its parent has made.
    schema: Option<String>,
    patience: Duration,
    kill: bool,
    kills: u32,
    seed: Option<u64>,
    wrong_keys: bool,
    /// In a child of this program: which one it is.
    worker: Option<u32>,
    /// In the last child: take no orders, and end when there is nothing left to do.
    last: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprint!("order_saga: {problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(broken) => {
            eprintln!("\norder_saga: {broken} of the promises above did not hold");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("order_saga: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The number of promises that were broken.
async fn run(options: &Options) -> Result<usize, Error> {
    let temporary = std::env::temp_dir().join(format!("mainstay-orders-{}", std::process::id()));
    let data = options.data.clone().unwrap_or_else(|| temporary.clone());
    let place = Place::new(&data, options.store.as_deref(), options.schema.as_deref())?;
    std::fs::create_dir_all(&data)?;
    let seed = options.seed.unwrap_or_else(|| chance::seed() % 1_000_000);
    if let Some(round) = options.worker {
        worker::work(&data, &place, seed, round, options).await?;
        return Ok(0);
    }
    let broken = play_and_audit(&data, &place, seed, options).await;
    let removed = place.remove().await;
    let broken = broken?;
    removed?;
    if options.data.is_none() && broken == 0 {
        std::fs::remove_dir_all(&temporary)?;
    } else {
        println!("\nThe databases are in {}", data.display());
    }
    Ok(broken)
}

async fn play_and_audit(data: &Path, place: &Place, seed: u64, options: &Options) -> Result<usize, Error> {
    let (accepted, broken) = if options.kill {
        kill::run(data, place, seed, options).await?
    } else {
        (HashSet::new(), plays::play(data, place, options.wrong_keys).await?)
    };
    let order = saga::order(Shop::open(data, false)?)?;
    let store = place.open().await?;
    Ok(broken + audit::audit(data, store.journal(), &order, &accepted).await?)
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Options { kills: 200, patience: Duration::from_secs(120), ..Options::default() };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            let number = |text: String| text.parse().map_err(|_| format!("{text:?} is not a number"));
            let small = |text: String| text.parse().map_err(|_| format!("{text:?} is not a number"));
            match arg.as_str() {
                "--data" => options.data = Some(value()?.into()),
                "--store" => options.store = Some(value()?),
                "--schema" => options.schema = Some(value()?),
                "--patience" => options.patience = Duration::from_secs(number(value()?)?),
                "--kill" => options.kill = true,
                "--kills" => options.kills = small(value()?)?,
                "--seed" => options.seed = Some(number(value()?)?),
                "--worker" => options.worker = Some(small(value()?)?),
                "--wrong-keys" => options.wrong_keys = true,
                "--last" => options.last = true,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("there is no option {arg}")),
            }
        }
        Ok(Some(options))
    }
}
