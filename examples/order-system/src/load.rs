//! `load`: requests at a rate, whatever the answers take. A request's time is counted from when it was to be sent, so that a system that
//! stands still is seen to.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use order_kit::{BoxError, env};
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

/// What came of it.
#[derive(Debug)]
pub struct Report {
    post: Histogram<u64>,
    get: Histogram<u64>,
    statuses: BTreeMap<String, u64>,
    accepted: u64,
    unsent: u64,
    time: Duration,
    /// From the last request until the last saga was over.
    drained: Duration,
    /// The audit is green.
    pub green: bool,
    memory_mib: u64,
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
    for number in 0..total {
        let due = began + Duration::from_nanos(number * 1_000_000_000 / u64::from(options.rps.max(1)));
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
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
    if options.freeze_payment {
        remote.call(http::Method::DELETE, "payments", "/_faults", None).await?.expect(200)?;
    }
    let drain = Instant::now();
    let audited = settled(remote, Duration::from_secs(300)).await?;
    let green = audited.print();
    let take = |times: &Mutex<Histogram<u64>>| times.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Report {
        post: take(&seen.post),
        get: take(&seen.get),
        statuses: seen.statuses.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        accepted: seen.accepted.load(Ordering::Relaxed),
        unsent,
        time,
        drained: drain.elapsed(),
        green,
        memory_mib: peak_memory_mib(),
    })
}

/// The most that this process, the system and whoever loads it together, had in memory.
fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1_024
}

impl Report {
    /// Prints reports side by side.
    pub fn print(reports: &[(&str, &Report)]) {
        let row = |name: &str, cell: &dyn Fn(&Report) -> String| {
            print!("{name:<34}");
            for (_, report) in reports {
                print!(" {:>16}", cell(report));
            }
            println!();
        };
        let ms = |micros: u64| format!("{:.1} ms", micros as f64 / 1_000.0);
        print!("{:<34}", "");
        for (name, _) in reports {
            print!(" {name:>16}");
        }
        println!();
        row("orders accepted", &|it| it.accepted.to_string());
        row("accepted a second", &|it| format!("{:.0}", it.accepted as f64 / it.time.as_secs_f64()));
        row("orders finished a second", &|it| {
            format!("{:.0}", it.accepted as f64 / (it.time + it.drained).as_secs_f64())
        });
        for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
            row(&format!("POST, {:.1} % within", quantile * 100.0), &|it| {
                ms(it.post.value_at_quantile(quantile))
            });
        }
        for quantile in [0.5, 0.99, 1.0] {
            row(&format!("GET, {:.1} % within", quantile * 100.0), &|it| {
                if it.get.is_empty() { "-".to_owned() } else { ms(it.get.value_at_quantile(quantile)) }
            });
        }
        row("last saga over after the last POST", &|it| format!("{:.1} s", it.drained.as_secs_f64()));
        row("not sent, too many on their way", &|it| it.unsent.to_string());
        row("most memory, load included", &|it| format!("{} MiB", it.memory_mib));
        row("audit", &|it| if it.green { "green".to_owned() } else { "RED".to_owned() });
        for (name, report) in reports {
            let statuses: Vec<String> =
                report.statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
            println!("{:<34} {}", format!("answers, {name}"), statuses.join(", "));
        }
    }
}
