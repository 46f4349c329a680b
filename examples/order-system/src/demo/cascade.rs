//! A service that hangs takes those with it that wait for it, unless somebody stops waiting.

use std::time::{Duration, Instant};

use futures::future::join_all;
use mainstay::registry::Snapshot;
use order_kit::{BoxError, env};
use serde_json::json;

use super::{AT_ONCE, AT_ONCE_LOOSE, Play, Story};
use crate::system::System;

/// What a caller saw.
#[derive(Debug)]
struct Seen {
    p50: Duration,
    p99: Duration,
    /// Calls that had no answer yet, half of the time. The most there were would be those of a moment in which the machine did other things.
    held: usize,
    /// Calls that were answered.
    answered: usize,
    /// Calls for which users were not asked, because the breaker was open.
    refused: u64,
}

const CALLS: u32 = 400;
/// From which call on it is measured, a second after the first ones have been given up. What came before was to wait for a service that hangs,
/// with or without a breaker.
const NOTICED: u32 = 300;

pub(super) async fn cascade(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    story.say("users hang; details of orders, which need a user, are asked for 50 times a second for 8 s");
    story.say("the first calls are given up after 5 s; what callers see from 6 s on");
    let without = run(play, "off").await?;
    let with = run(play, "on").await?;
    println!("\n{:>28} {:>12} {:>12}", "", "no breakers", "breakers");
    println!(
        "{:>28} {:>9} ms {:>9} ms",
        "half are answered within",
        without.p50.as_millis(),
        with.p50.as_millis()
    );
    println!("{:>28} {:>9} ms {:>9} ms", "99 of 100 within", without.p99.as_millis(), with.p99.as_millis());
    println!("{:>28} {:>12} {:>12}\n", "calls held up, as a rule", without.held, with.held);
    let bar = story.bound(AT_ONCE, AT_ONCE_LOOSE);
    story.check(with.p50 < bar, "with breakers most are answered at once, without the user");
    let times = story.bound(10, 1);
    story.check(without.p50 > with.p50 * times, "without, everybody waits");
    // On any machine, however slow it is.
    story.check(with.held < without.held, "and holds on to more connections");
    story.check(
        without.refused == 0,
        format!("without breakers users were to be asked for every call ({} were spared)", without.refused),
    );
    story.check(
        with.refused * 10 > u64::from(CALLS),
        format!("with them many of {CALLS} did without ({})", with.refused),
    );
    story.check(
        with.answered == CALLS as usize,
        format!("every call is answered all the same ({})", with.answered),
    );
    Ok(())
}

async fn run(play: &Play, breakers: &str) -> Result<Seen, BoxError> {
    let data = tempfile::tempdir()?;
    let stage = play.stage(data.path(), &[(env::BREAKERS, breakers)]).await?;
    let order = super::order_id(&stage.order(0, 1, 1).await?.expect(202)?)?;
    stage.over(&order, Duration::from_secs(5)).await?;
    stage.remote.put("users", "/_faults", json!({ "hang": true })).await?.expect(200)?;
    let began = tokio::time::Instant::now();
    let path = format!("/orders/{order}/details");
    let mut calls = Vec::new();
    let mut held = Vec::new();
    for number in 0..CALLS {
        tokio::time::sleep_until(began + Duration::from_millis(20) * number).await;
        let (remote, path) = (stage.remote.clone(), path.clone());
        calls.push(tokio::spawn(async move {
            let began = Instant::now();
            let answer = remote.get("orders", &path).await;
            (began.elapsed(), answer.is_ok_and(|answer| answer.status == 200))
        }));
        if number >= NOTICED {
            held.push(calls.iter().filter(|call| !call.is_finished()).count());
        }
    }
    let answers = join_all(calls).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut times: Vec<Duration> = answers.iter().skip(NOTICED as usize).map(|(time, _)| *time).collect();
    times.sort();
    held.sort_unstable();
    let held = held[held.len() / 2];
    let answered = answers.iter().filter(|(_, well)| *well).count();
    let refused = stage.system.as_ref().map_or(0, refused);
    stage.end().await;
    Ok(Seen { p50: times[times.len() / 2], p99: times[times.len() * 99 / 100], held, answered, refused })
}

/// How many calls the breaker before users has refused in order-service.
fn refused(system: &System) -> u64 {
    let snapshots = system.context("orders").policies().snapshots();
    let of = |snapshot: &Snapshot| match snapshot {
        Snapshot::CircuitBreaker(breaker) if breaker.name.starts_with("user") => breaker.totals.refused,
        _ => 0,
    };
    snapshots.iter().map(of).sum()
}
