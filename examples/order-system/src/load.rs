//! `load`: requests at a rate, whatever the answers take. A request's time is counted from when it was to be sent, so that a system that
//! stands still is seen to.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use order_kit::{BoxError, env};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{task::JoinSet, time::Instant};

use crate::{
    audit::settled,
    remote::Remote,
    seed::{Seed, seed},
    system::{Options as SystemOptions, System},
};

/// At most so many requests are on their way; what would be more is not sent, and counted.
const IN_FLIGHT: u64 = 20_000;

/// What to send.
#[derive(Debug, Clone)]
pub struct Options {
    /// Requests a second.
    pub rps: u32,
    /// How long.
    pub time: Duration,
    /// So many of a hundred are orders; the rest reads users, products and orders.
    pub orders_percent: u8,
    /// Payments hang all the time, and are well again at the end.
    pub freeze_payment: bool,
    /// For the system that is started.
    pub variables: Vec<(String, String)>,
}

/// What came of it, in words.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Each figure's name and value, in the order in which they are read.
    pub figures: Vec<(String, String)>,
    /// What the audit found.
    pub audit: Vec<String>,
    /// It is green.
    pub green: bool,
}

/// Starts a system of its own, sends, waits until every saga is over, and audits.
///
/// # Errors
///
/// That it could not be started, or sagas do not end.
pub async fn run(options: &Options) -> Result<Report, BoxError> {
    let data = tempfile::tempdir()?;
    let mut system = SystemOptions::alone(data.path())
        .with(env::RATE_LIMIT, "off")
        .with(env::RATE_LIMIT_PLANS, "off")
        .with(env::POLICY_FAST, "1")
        .with(env::TRACE_SAMPLE, "0.01")
        .with(env::LOG, "error");
    for (name, value) in &options.variables {
        system = system.with(name, value.clone());
    }
    let system = System::start(system).await?;
    let remote = Remote::to(&system);
    let seed = seed(&remote).await?;
    stock_up(&remote, &seed).await?;
    if options.freeze_payment {
        remote.put("payments", "/_faults", json!({ "hang": true })).await?.expect(200)?;
    }
    let report = send(options, &remote, &seed).await?;
    system.stop().await;
    Ok(report)
}

async fn stock_up(remote: &Remote, seed: &Seed) -> Result<(), BoxError> {
    for (_, product) in &seed.products {
        remote
            .put("inventory", &format!("/inventory/{product}"), json!({ "quantity": 100_000_000 }))
            .await?
            .expect(200)?;
    }
    Ok(())
}

#[derive(Debug)]
struct Seen {
    post: Mutex<Histogram<u64>>,
    get: Mutex<Histogram<u64>>,
    statuses: Mutex<BTreeMap<String, u64>>,
    accepted: AtomicU64,
}

fn histogram() -> Result<Histogram<u64>, BoxError> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

async fn send(options: &Options, remote: &Remote, seed: &Seed) -> Result<Report, BoxError> {
    let seen = Arc::new(Seen {
        post: Mutex::new(histogram()?),
        get: Mutex::new(histogram()?),
        statuses: Mutex::default(),
        accepted: AtomicU64::new(0),
    });
    let customers = seed.customers(remote).await?;
    let began = Instant::now();
    let total = u64::from(options.rps) * options.time.as_millis() as u64 / 1_000;
    let mut calls = JoinSet::new();
    let mut unsent = 0;
    let mut memory = Vec::new();
    for number in 0..total {
        let due = began + Duration::from_nanos(number * 1_000_000_000 / u64::from(options.rps.max(1)));
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        // At each quarter of the time: what is flat does not grow with what has been done.
        if number > 0 && number * 4 / total > (number - 1) * 4 / total {
            memory.push(memory_mib("VmRSS:").to_string());
        }
        while calls.try_join_next().is_some() {}
        if calls.len() as u64 >= IN_FLIGHT {
            unsent += 1;
            continue;
        }
        // Spread evenly, without chance.
        let share = u64::from(options.orders_percent.min(100));
        let is_order = (number + 1) * share / 100 > number * share / 100;
        let (user, remote) = customers[(number % 3) as usize].clone();
        let product = seed.products[(number % 3) as usize].1.clone();
        let seen = seen.clone();
        calls.spawn(async move {
            let answer = if is_order {
                let body = json!({ "userId": user, "items": [{ "productId": product, "quantity": 1 }] });
                remote.post("gateway", "/api/orders", body).await
            } else if number % 2 == 0 {
                remote.get("gateway", &format!("/api/products/{product}")).await
            } else {
                remote.get("gateway", &format!("/api/users/{user}")).await
            };
            let micros = due.elapsed().as_micros() as u64;
            let times = if is_order { &seen.post } else { &seen.get };
            times.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(micros);
            let status = match &answer {
                Ok(answer) => answer.status.as_u16().to_string(),
                Err(_) => "no answer".to_owned(),
            };
            if is_order && status == "202" {
                seen.accepted.fetch_add(1, Ordering::Relaxed);
            }
            *seen.statuses.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
        });
    }
    while calls.join_next().await.is_some() {}
    let time = began.elapsed();
    memory.push(memory_mib("VmRSS:").to_string());
    if options.freeze_payment {
        remote.call(http::Method::DELETE, "payments", "/_faults", None).await?.expect(200)?;
    }
    let drain = Instant::now();
    let audited = settled(remote, Duration::from_secs(300)).await?;
    let take = |times: &Mutex<Histogram<u64>>| times.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (post, get) = (take(&seen.post), take(&seen.get));
    let accepted = seen.accepted.load(Ordering::Relaxed);
    let drained = drain.elapsed();
    let mut figures = Vec::new();
    let mut say = |name: &str, value: String| figures.push((name.to_owned(), value));
    say("orders accepted", accepted.to_string());
    say("accepted a second", format!("{:.0}", accepted as f64 / time.as_secs_f64()));
    say("orders finished a second", format!("{:.0}", accepted as f64 / (time + drained).as_secs_f64()));
    for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
        say(&format!("POST, {:.1} % within", quantile * 100.0), within(&post, quantile));
    }
    for quantile in [0.5, 0.99, 1.0] {
        say(&format!("GET, {:.1} % within", quantile * 100.0), within(&get, quantile));
    }
    say("last saga over after the last POST", format!("{:.1} s", drained.as_secs_f64()));
    say("not sent, too many on their way", unsent.to_string());
    // Of this process, the system and whoever loads it together.
    say("memory at each quarter, MiB", memory.join(", "));
    say("most memory", format!("{} MiB", memory_mib("VmHWM:")));
    for (status, count) in &*seen.statuses.lock().unwrap_or_else(PoisonError::into_inner) {
        say(&format!("answers: {status}"), count.to_string());
    }
    say("audit", if audited.green() { "green" } else { "RED" }.to_owned());
    Ok(Report { figures, audit: audited.lines(), green: audited.green() })
}

/// How long so many of the requests took at most.
fn within(times: &Histogram<u64>, quantile: f64) -> String {
    match times.is_empty() {
        true => "-".to_owned(),
        false => format!("{:.1} ms", times.value_at_quantile(quantile) as f64 / 1_000.0),
    }
}

/// A line of what the system says of this process's memory.
fn memory_mib(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|found| found.strip_prefix(line));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1_024
}

/// The same in a process of its own, so that neither memory nor what is set once in a process comes from another run.
///
/// # Errors
///
/// That it could not be started or did not come to a report.
pub async fn in_a_process(program: &Path, options: &Options) -> Result<Report, BoxError> {
    let mut command = tokio::process::Command::new(program);
    command
        .args(["load", "--json", "--rps", &options.rps.to_string()])
        .args(["--for", &options.time.as_secs().to_string()])
        .args(["--mix", &options.orders_percent.to_string()])
        .args(options.freeze_payment.then_some("--freeze-payment"))
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    for (name, value) in &options.variables {
        command.arg("--set").arg(format!("{name}={value}"));
    }
    let output = command.output().await?;
    serde_json::from_slice(&output.stdout).map_err(|_| format!("no report: {}", output.status).into())
}

/// Reports side by side, each under its name, behind what their audits found.
pub fn table(reports: &[(&str, &Report)]) -> String {
    let audits: String =
        reports.iter().flat_map(|(_, report)| &report.audit).map(|line| format!("{line}\n")).collect();
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in reports.iter().flat_map(|(_, report)| &report.figures) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let row = |name: &str, cells: Vec<&str>| {
        let cells: String = cells.iter().map(|cell| format!(" {cell:>24}")).collect();
        format!("{name:<34}{cells}\n")
    };
    let mut table = row("", reports.iter().map(|(name, _)| *name).collect());
    for name in names {
        let cells = reports.iter().map(|(_, report)| {
            report.figures.iter().find(|figure| figure.0 == name).map_or("-", |figure| figure.1.as_str())
        });
        table += &row(name, cells.collect());
    }
    audits + &table
}
