//! The command line.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};
use order_kit::{
    BoxError, Context,
    env::{self, Env},
};
use order_notifications::loyalty::{self, Replayed};
use order_users::moving::{self, Backfilled};
use tokio::time::Instant;

use crate::{
    audit, chaos, demo, doctor, load, messages, monolith,
    processes::{self, Processes},
    remote::Remote,
    saga, seed, services, strangler,
    system::{LAST, Options, System, longest_end},
    top, watch,
};

/// The documented order system, protected by mainstay throughout.
#[derive(Debug, Parser)]
#[command(name = "order-system", version, subcommand_required = false)]
pub struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Where a system is.
#[derive(Debug, Clone, Args)]
struct Place {
    /// The gateway's port; the others follow. 0: free ports.
    #[arg(long, global = true, default_value_t = 3000)]
    port_base: u16,
    /// The folder with everybody's data.
    #[arg(long, global = true, default_value = "order-data")]
    data: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every service, in this process or in one each. This is what happens without a command.
    Up {
        /// A process for each service, supervised: any can be killed.
        #[arg(long)]
        processes: bool,
    },
    /// One service.
    Serve {
        /// Which: gateway, users, orders, orders-read, products, payments, inventory, notifications, analytics, loyalty.
        service: String,
        /// End when standard input does: what a supervisor's death looks like.
        #[arg(long)]
        with_parent: bool,
        /// Of loyalty: also what happened before it came, which orders has stored. Without it, what happens from then on.
        #[arg(long)]
        replay: bool,
        /// Of users: first take in all whom a monolith has (LEGACY_URL, LEGACY_TOKEN). What the monolith changes meanwhile, and from then on,
        /// comes by its events, of which users hear whenever LEGACY_RABBITMQ_URL is set.
        #[arg(long)]
        backfill: bool,
    },
    /// Everything behind one address, without a gateway.
    Monolith,
    /// Plays a journey and checks it; without a name, lists them.
    Demo {
        /// Which.
        name: Option<String>,
    },
    /// Requests at a rate against a system of its own, and what they took.
    Load {
        /// Requests a second.
        #[arg(long, default_value_t = 500)]
        rps: u32,
        /// For so many seconds.
        #[arg(long = "for", default_value = "20", value_parser = seconds)]
        time: Duration,
        /// So many of a hundred are orders; the rest reads.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100))]
        mix: u8,
        /// Payments hang all the time.
        #[arg(long)]
        freeze_payment: bool,
        /// Sets a variable of the system that is started: `--set SAGA_STYLE=choreography`.
        #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
        set: Vec<(String, String)>,
        /// Runs it twice, each in a process of its own, the second time with `NAME=VALUE` set, and shows both: `--compare breakers=off`.
        #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
        compare: Option<(String, String)>,
        /// Prints the report as JSON.
        #[arg(long, conflicts_with = "compare")]
        json: bool,
    },
    /// Faults and kills at random against processes of its own; fails if the audit does.
    Chaos {
        /// The same seed has the same schedule.
        #[arg(long)]
        seed: Option<u64>,
        /// For so many seconds.
        #[arg(long = "for", default_value = "60", value_parser = seconds)]
        time: Duration,
    },
    /// What every service says of itself, four times a second: health, policies, outbox, queues, sagas. Ctrl-C ends it.
    Top {
        /// One look, as plain text.
        #[arg(long)]
        once: bool,
    },
    /// Whether money, goods and orders of a running system agree.
    Audit,
    /// Where an order of a running system stands, and each change until it is over; by gRPC.
    Watch {
        /// The order.
        id: String,
    },
    /// The sagas of orders: `list`, `show ID`, `retry ID`.
    Saga {
        #[command(subcommand)]
        what: saga::What,
    },
    #[command(flatten)]
    Strangler(strangler::What),
    /// Dead letters.
    Dlq {
        #[command(subcommand)]
        what: Dlq,
    },
    /// Makes the read side anew, from the events of orders.
    Rebuild,
    /// The broker's exchange, queues and bindings, and what is in them.
    Topology,
    /// Every variable, what it does and where its value is from; and whether what is named answers.
    Doctor,
    /// Whether an address answers 200: for a container's health check.
    Check {
        /// `http://127.0.0.1:3001/health/ready`.
        url: String,
    },
    /// What a call costs by gRPC and by HTTP.
    Bench {
        /// So many calls each.
        #[arg(long, default_value_t = 2_000)]
        calls: u32,
    },
}

#[derive(Debug, Subcommand)]
enum Dlq {
    /// Shows them.
    List {
        /// Of this queue alone.
        queue: Option<String>,
    },
    /// Puts them back into their queue: these, or all.
    Replay {
        /// Their queue.
        queue: String,
        /// Which.
        ids: Vec<String>,
    },
    /// Throws them away: these, or all.
    Discard {
        /// Their queue.
        queue: String,
        /// Which.
        ids: Vec<String>,
    },
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    number.parse().map(Duration::from_secs).map_err(|_| format!("`{text}` is no number of seconds"))
}

/// `NAME=VALUE`, with the name of a variable that the system reads, in capitals or not. `breaker=off` is what people say.
fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is needed")?;
    let name = match name.to_uppercase().as_str() {
        "BREAKER" => env::BREAKERS.to_owned(),
        name => name.to_owned(),
    };
    match env::VARIABLES.iter().any(|known| known.name == name) {
        true => Ok((name, value.to_owned())),
        false => Err(format!("there is no variable {name}; `order-system doctor` lists them")),
    }
}

/// Does what the command says.
pub fn run(cli: Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("order-system: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(command(cli));
    // A thread that hangs holds up nobody.
    runtime.shutdown_timeout(LAST);
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("order-system: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is as it should be.
async fn command(cli: Cli) -> Result<bool, BoxError> {
    let Cli { place, command } = cli;
    let env = Env::process();
    match command.unwrap_or(Command::Up { processes: false }) {
        Command::Up { processes: false } => up(place).await?,
        Command::Up { processes: true } => up_processes(place).await?,
        Command::Serve { service, with_parent, replay, backfill } => {
            serve(place, &service, with_parent, replay, backfill).await?;
        }
        Command::Monolith => {
            let by = monolith::run(place.port_base, &place.data).await?;
            flush(&env, by).await?;
        }
        Command::Demo { name: None } => {
            for (name, what) in demo::NAMES {
                println!("{name:<18} {what}");
            }
        }
        Command::Demo { name: Some(name) } => {
            let play =
                demo::Play { variables: passed_on(&env), program: std::env::current_exe()?, timed: true };
            // What services log would hide the story.
            order_kit::telemetry::init(
                &env.clone().with(env::LOG, env.get(env::LOG).unwrap_or_else(|| "off".to_owned())),
            )?;
            return Ok(demo::play(&name, &play).await? == 0);
        }
        Command::Load { rps, time, mix, freeze_payment, set, compare, json } => {
            let mut variables = passed_on(&env);
            variables.extend(set);
            let mut options = load::Options { rps, time, orders_percent: mix, freeze_payment, variables };
            let Some((name, value)) = compare else {
                let report = load::run(&options).await?;
                match json {
                    true => println!("{}", serde_json::to_string(&report)?),
                    false => print!("{}", load::table(&[("", &report)])),
                }
                return Ok(report.green);
            };
            let program = std::env::current_exe()?;
            let first = load::in_a_process(&program, &options).await?;
            let title = format!("{name}={value}");
            options.variables.push((name, value));
            let second = load::in_a_process(&program, &options).await?;
            print!("{}", load::table(&[("as it is", &first), (&title, &second)]));
            return Ok(first.green && second.green);
        }
        Command::Chaos { seed, time } => {
            let play =
                demo::Play { variables: passed_on(&env), program: std::env::current_exe()?, timed: true };
            return chaos::run(seed.unwrap_or_else(chaos::any_seed), time, &play).await;
        }
        Command::Audit => return Ok(audit::audit(&Remote::at(place.port_base, &env)).await?.print()),
        Command::Watch { id } => {
            watch::watch(&Remote::at(place.port_base, &env), &id, &mut std::io::stdout()).await?;
        }
        Command::Top { once } => top::run(&Remote::at(place.port_base, &env), once).await?,
        Command::Saga { what } => {
            print!("{}", saga::run(&what, &Remote::at(place.port_base, &env)).await?);
        }
        Command::Strangler(what) => {
            print!("{}", strangler::run(&what, &Remote::at(place.port_base, &env)).await?);
        }
        Command::Rebuild => services::rebuild(&env, &place.data).await?,
        Command::Bench { calls } => services::compare_transports(calls).await?,
        Command::Check { url } => {
            let (base, path) = url.split_at(url.match_indices('/').nth(2).map_or(url.len(), |(at, _)| at));
            let remote = Remote::of([("it".to_owned(), base.to_owned())].into(), &env);
            return Ok(remote.get("it", path).await?.status == 200);
        }
        Command::Doctor => return Ok(doctor::doctor(&env, &place.data).await? == 0),
        Command::Topology => messages::topology(&*messages::open(&env, &place.data).await?).await?,
        Command::Dlq { what } => {
            let broker = messages::open(&env, &place.data).await?;
            match what {
                Dlq::List { queue } => messages::list(&*broker, queue.as_deref(), 1_000).await?,
                Dlq::Replay { queue, ids } => {
                    println!("{} are back in {queue}", messages::settle(&*broker, &queue, ids, true).await?);
                }
                Dlq::Discard { queue, ids } => {
                    println!("{} are gone", messages::settle(&*broker, &queue, ids, false).await?);
                }
            }
        }
    }
    Ok(true)
}

/// What journeys and loads hand on to the systems that they start.
fn passed_on(env: &Env) -> Vec<(String, String)> {
    let names = [
        env::DATABASE_URL,
        env::RABBITMQ_URL,
        env::REDIS_URL,
        env::SAGA_STYLE,
        env::USER_TRANSPORT,
        env::LOG,
    ];
    names.iter().filter_map(|name| env.get(name).map(|value| ((*name).to_owned(), value))).collect()
}

async fn up(place: Place) -> Result<(), BoxError> {
    let began = std::time::Instant::now();
    let system = System::start(Options {
        port_base: place.port_base,
        data: place.data,
        env: Env::process().with(env::LOG, Env::process().get(env::LOG).unwrap_or_else(|| "warn".to_owned())),
        parts: services::ALL.to_vec(),
    })
    .await?;
    let remote = Remote::to(&system);
    let seed = seed::seed(&remote).await?;
    // Whoever reads that it is ready may end it.
    let end = end_of_program();
    for (part, address) in system.parts() {
        println!("{part:<14} http://{address}");
    }
    println!("\nready after {} ms\n", began.elapsed().as_millis());
    introduce(&remote, &seed);
    end.await;
    println!("ending: what is in flight is finished");
    stopped(system).await
}

async fn up_processes(place: Place) -> Result<(), BoxError> {
    let began = std::time::Instant::now();
    let log = place.data.join("processes.log");
    std::fs::create_dir_all(&place.data)?;
    let processes = Processes::start(processes::Options {
        program: std::env::current_exe()?,
        port_base: place.port_base,
        data: place.data,
        variables: Vec::new(),
        log: Some(log.clone()),
    })
    .await?;
    let remote = processes.remote();
    let seed = seed::seed(&remote).await?;
    let end = end_of_program();
    for (part, pid) in processes.pids() {
        println!("{part:<14} {:<26} process {}", remote.url(part), pid.unwrap_or(0));
    }
    println!("\nready after {} ms; what they say is in {}\n", began.elapsed().as_millis(), log.display());
    introduce(&remote, &seed);
    end.await;
    println!("ending: what is in flight is finished");
    processes.stop().await;
    Ok(())
}

/// Five lines to try.
fn introduce(remote: &Remote, seed: &seed::Seed) {
    let gateway = remote.url("gateway");
    let name = |list: &[(String, String)]| list.first().map(|(_, id)| id.clone()).unwrap_or_default();
    let (user, product) = (name(&seed.users), name(&seed.products));
    println!(
        "TOKEN=$(curl -s {gateway}/auth/token -H 'content-type: application/json' -d '{{\"userId\":\"{user}\"}}' | sed 's/.*\"token\":\"\\([^\"]*\\)\".*/\\1/')"
    );
    println!("curl -s {gateway}/api/products/{product}");
    println!("curl -s {gateway}/api/users/{user} -H \"authorization: Bearer $TOKEN\"");
    println!(
        "curl -si {gateway}/api/orders -H \"authorization: Bearer $TOKEN\" -H 'content-type: application/json' -d '{{\"userId\":\"{user}\",\"items\":[{{\"productId\":\"{product}\",\"quantity\":2}}]}}'"
    );
    println!("curl -s {gateway}/api/orders/user/{user} -H \"authorization: Bearer $TOKEN\"");
    println!("\nCtrl-C ends it.");
}

async fn serve(
    place: Place,
    service: &str,
    with_parent: bool,
    replay: bool,
    backfill: bool,
) -> Result<(), BoxError> {
    let part = services::PARTS
        .iter()
        .find(|known| **known == service)
        .ok_or_else(|| format!("there is no service `{service}`"))?;
    if replay && *part != loyalty::NAME {
        return Err(format!("--replay is for {}: {part} has heard everything", loyalty::NAME).into());
    }
    if backfill && *part != order_users::NAME {
        return Err(format!("--backfill is for {}: {part} moves by no command", order_users::NAME).into());
    }
    let system = System::start(Options {
        port_base: place.port_base,
        data: place.data,
        env: Env::process(),
        parts: vec![part],
    })
    .await?;
    let mut end = std::pin::pin!(end_of_program());
    for (part, address) in system.parts() {
        println!("{part} http://{address}");
    }
    let before = async {
        match (replay, backfill) {
            (true, _) => replayed(system.context(part)).await,
            (_, true) => backfilled(system.context(part)).await,
            _ => Ok(()),
        }
    };
    let before = tokio::select! {
        before = before => before,
        // What was taken in stays, and can be done again.
        () = &mut end => return stopped(system).await,
    };
    if let Err(error) = before {
        system.stop().await;
        return Err(error);
    }
    tokio::select! {
        () = end => {}
        () = end_of_input(), if with_parent => {}
    }
    stopped(system).await
}

async fn stopped(system: System) -> Result<(), BoxError> {
    let by = spans_by();
    system.stop().await;
    flush(&Env::process(), by).await
}

async fn replayed(context: &Context) -> Result<(), BoxError> {
    let replayed = loyalty::replay(context).await;
    let Replayed { counted, known, passed_over } =
        replayed.map_err(|error| format!("what was before could not be replayed: {error}"))?;
    println!("replayed: {counted} counted, {known} known already, {passed_over} of no concern");
    Ok(())
}

async fn backfilled(context: &Context) -> Result<(), BoxError> {
    let backfilled = moving::backfill(context).await;
    let Backfilled { taken, known, refused } =
        backfilled.map_err(|error| format!("users could not be taken in: {error}"))?;
    for why in &refused {
        println!("refused    {why}");
    }
    println!("backfilled: {taken} taken in, {known} known already, {} refused", refused.len());
    Ok(())
}

/// Sends the spans of the last requests, which nobody would hear of otherwise.
async fn flush(env: &Env, by: Instant) -> Result<(), BoxError> {
    let telemetry = order_kit::telemetry::init(env)?;
    // It blocks until the collector has answered or failed to.
    let flushed = tokio::task::spawn_blocking(|| telemetry.flush());
    match tokio::time::timeout_at(by, flushed).await {
        Ok(flushed) => Ok(flushed?),
        Err(_) => {
            tracing::warn!("the last spans could not be sent in time");
            Ok(())
        }
    }
}

/// By when spans are to be sent if the process begins to end now.
pub(crate) fn spans_by() -> Instant {
    Instant::now() + longest_end(&Env::process()) - LAST
}

/// That SIGTERM or Ctrl-C asks for the end. It is heard from now on, also before somebody waits for it.
pub fn end_of_program() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let heard = |kind| signal(kind).inspect_err(|error| eprintln!("order-system: {error}")).ok();
    let signals = heard(SignalKind::terminate()).zip(heard(SignalKind::interrupt()));
    async move {
        let Some((mut term, mut interrupt)) = signals else { return };
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

async fn end_of_input() {
    // A thread of its own, which nobody waits for when the process ends for another reason.
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = ended.send(());
    });
    let _ = end.await;
}
