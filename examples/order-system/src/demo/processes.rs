//! Processes are killed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use order_kit::{BoxError, env};
use serde_json::{Value, json};

use super::{HANGS, HANGS_LOOSE, Play, Stage, Story, order_id, orders::steps};
use crate::{
    audit::settled,
    demo::CALM,
    processes::{Options, Processes, free_ports},
    remote::Answer,
};

/// A place for processes: their ports, and a folder of their own.
pub(crate) async fn start(play: &Play, data: &std::path::Path) -> Result<Processes, BoxError> {
    let mut variables =
        vec![(env::RATE_LIMIT.to_owned(), "off".to_owned()), (env::POLICY_FAST.to_owned(), "1".to_owned())];
    variables.extend(play.variables.iter().cloned());
    let log = Some(data.join("processes.log"));
    Processes::start(Options {
        program: play.program.clone(),
        port_base: free_ports()?,
        data: data.to_owned(),
        variables,
        log,
    })
    .await
}

pub(super) async fn payment_killed(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    let data = tempfile::tempdir()?;
    let processes = start(play, data.path()).await?;
    let stage = Stage::set(None, processes.remote()).await?;
    story.say("50 orders a second; after 2 s the payment process is killed");
    let began = tokio::time::Instant::now();
    let mut calls = Vec::new();
    let mut killed = 0;
    for number in 0..300_u32 {
        tokio::time::sleep_until(began + Duration::from_millis(20) * number).await;
        if number == 100 {
            killed = processes.kill("payments").await?;
            story.say(format!("process {killed} is killed"));
        }
        let (remote, user, product) =
            (stage.remote.clone(), stage.user(0).to_owned(), stage.product(1).to_owned());
        calls.push(tokio::spawn(async move {
            let began = Instant::now();
            let body = json!({ "userId": user, "items": [{ "productId": product, "quantity": 1 }] });
            let answer = remote.post("gateway", "/api/orders", body).await;
            (began.elapsed(), answer)
        }));
    }
    let (mut accepted, mut slowest) = (Vec::new(), Duration::ZERO);
    for call in calls {
        let (time, answer) = call.await?;
        slowest = slowest.max(time);
        if let Some(order) =
            answer.ok().filter(|answer| answer.status == 202).and_then(|answer| order_id(&answer).ok())
        {
            accepted.push(order);
        }
    }
    let bar = story.bound(HANGS, HANGS_LOOSE);
    story
        .check(slowest < bar, format!("the gateway never hangs (slowest answer {} ms)", slowest.as_millis()));
    story.check(accepted.len() == 300, format!("all 300 orders are taken ({})", accepted.len()));
    let anew = processes.back("payments", killed).await?;
    story.say(format!("the supervisor has started process {anew}"));
    let mut confirmed = 0;
    for order in &accepted {
        confirmed += usize::from(stage.over(order, Duration::from_secs(60)).await?["status"] == "confirmed");
    }
    story.check(confirmed == accepted.len(), format!("every order is confirmed ({confirmed})"));
    story.check(settled(&stage.remote, CALM).await?.print(), "the audit is green: nobody paid twice");
    processes.stop().await;
    Ok(())
}

/// How the saga comes to a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Forward: all is well.
    There,
    /// The card is declined, so that what was done before is undone.
    Declined,
    /// The customer cancels when the money was taken, so that it is given back.
    Cancelled,
}

/// Before and after every step, there and back: after it something has happened that is not recorded. From the end to the beginning, so
/// that nobody comes by where another stands.
fn places() -> Vec<(String, Way)> {
    let undone =
        [("charge-card", Way::Cancelled), ("create-order", Way::Declined), ("reserve-stock", Way::Declined)];
    let done = ["commit-stock", "confirm-order", "charge-card", "reserve-stock", "create-order"];
    let undone = undone.map(|(step, way)| (format!("{step}.undo"), way));
    let done = done.map(|step| (format!("{step}.do"), Way::There));
    let both = |(step, way)| ["after", "before"].map(|when| (format!("{when} {step}"), way));
    undone.into_iter().chain(done).flat_map(both).collect()
}

pub(super) async fn crash(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    const CHARGED: &str = "after charge-card.do";
    let data = tempfile::tempdir()?;
    let processes = start(play, data.path()).await?;
    let stage = Stage::set(None, processes.remote()).await?;
    let card = format!("/payments/cards/{}", stage.user(1));
    stage.remote.put("payments", &card, json!({ "behaviour": "decline" })).await?.expect(200)?;
    story.say("an order for each place in a saga: there its step stands still");
    let (mut named, mut standing) = (Vec::new(), Vec::new());
    for (place, way) in places() {
        let first = if way == Way::Cancelled { CHARGED } else { &place };
        named.push(first.to_owned());
        hold_at(&stage, &named).await?;
        let order = order_id(&stage.order(usize::from(way == Way::Declined), 1, 1).await?.expect(202)?)?;
        held(&stage, first, &order).await?;
        if way == Way::Cancelled {
            // The charge is waited for before anything is undone.
            stage.remote.post("orders", &format!("/orders/{order}/cancel"), json!({})).await?.expect(202)?;
            phase(&stage, &order, &["unwinding"]).await?;
            named.pop();
            named.push(place.clone());
            hold_at(&stage, &named).await?;
            held(&stage, &place, &order).await?;
        }
        standing.push((place, way, order));
    }
    let old = processes.kill("orders").await?;
    story.say(format!("with {} sagas at as many places process {old} is killed", standing.len()));
    processes.back("orders", old).await?;
    for (place, way, order) in standing {
        phase(&stage, &order, &["completed", "compensated"]).await?;
        let over = stage.over(&order, CALM).await?;
        let wanted = if way == Way::There { "confirmed" } else { "cancelled" };
        story.check(
            over["status"] == wanted,
            format!("{place}: the order is {} all the same", over["status"]),
        );
        let seen = processes_of(&steps(&stage, &order).await?);
        story.check(seen.len() == 2, format!("{place}: its timeline has two processes ({})", seen.len()));
    }
    story.check(settled(&stage.remote, CALM).await?.print(), "the audit is green");
    processes.stop().await;
    Ok(())
}

/// Names the places at which a saga of the orders stands still, the first that comes to each.
async fn hold_at(stage: &Stage, places: &[String]) -> Result<(), BoxError> {
    stage.remote.put("orders", "/_faults", json!({ "holdAt": places })).await?.expect(200).map(drop)
}

/// Waits until an order stands at a place.
async fn held(stage: &Stage, place: &str, order: &str) -> Result<(), BoxError> {
    let there = |answer: &Answer| answer.json()["held"][place] == order;
    stage.remote.until(CALM, "orders", "/_faults", there).await.map(drop)
}

/// Waits until an order's saga is in one of these phases.
async fn phase(stage: &Stage, order: &str, wanted: &[&str]) -> Result<(), BoxError> {
    let there =
        |answer: &Answer| answer.json()["phase"].as_str().is_some_and(|phase| wanted.contains(&phase));
    stage.remote.until(CALM, "orders", &format!("/orders/{order}/timeline"), there).await.map(drop)
}

/// The processes that had a hand in it.
fn processes_of(steps: &[Value]) -> BTreeSet<String> {
    steps.iter().filter_map(|step| step["process"].as_str().map(str::to_owned)).collect()
}
