//! Processes are killed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use order_kit::{BoxError, env};
use serde_json::{Value, json};

use super::{Play, Stage, Story, order_id, orders::steps};
use crate::{
    audit::settled,
    demo::CALM,
    processes::{Options, Processes},
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

/// The first of some ports in a row that nobody listens on.
pub(crate) fn free_ports() -> Result<u16, BoxError> {
    let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let start = 20_000 + u16::try_from(std::process::id() % 8_000)? * 2;
    (0..500_u16)
        .map(|step| start.wrapping_add(step * 16) % 20_000 + 20_000)
        .find(|base| (*base..base + 12).all(free))
        .ok_or_else(|| "no free ports".into())
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
    story.check_time(
        slowest < Duration::from_secs(2),
        format!("the gateway never hangs (slowest answer {} ms)", slowest.as_millis()),
    );
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

/// A place in a saga where the process is killed, by what the services do there.
struct Place {
    what: &'static str,
    service: &'static str,
    faults: Value,
    /// Whether the card is declined, so that the saga is on its way back.
    back: bool,
}

pub(super) async fn crash(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    let place = |what, service, faults, back| Place { what, service, faults, back };
    let places = [
        place("before the goods are reserved", "inventory", json!({ "hang": true }), false),
        place(
            "after the goods are reserved, before that is recorded",
            "inventory",
            json!({ "effectThenHang": true }),
            false,
        ),
        place("before the card is charged", "payments", json!({ "hang": true }), false),
        place(
            "after the card is charged, before that is recorded",
            "payments",
            json!({ "effectThenHang": true }),
            false,
        ),
        place(
            "after the goods are released, before that is recorded",
            "inventory",
            json!({ "effectThenHang": true }),
            true,
        ),
    ];
    let data = tempfile::tempdir()?;
    let processes = start(play, data.path()).await?;
    let stage = Stage::set(None, processes.remote()).await?;
    let card = format!("/payments/cards/{}", stage.user(1));
    stage.remote.put("payments", &card, json!({ "behaviour": "decline" })).await?.expect(200)?;
    for Place { what, service, faults, back } in places {
        story.say(what);
        // On the way back the goods have to be reserved before the fault can concern their release: the card waits.
        if back {
            stage.remote.put("payments", "/_faults", json!({ "latencyMs": 600 })).await?.expect(200)?;
        } else {
            stage.remote.put(service, "/_faults", faults.clone()).await?.expect(200)?;
        }
        let order = order_id(&stage.order(usize::from(back), 1, 1).await?.expect(202)?)?;
        if back {
            let reserved = format!("/inventory/reservations/{order}");
            stage
                .remote
                .until(Duration::from_secs(5), service, &reserved, |answer| answer.status == 200)
                .await?;
            stage.remote.put(service, "/_faults", faults).await?.expect(200)?;
        }
        tokio::time::sleep(Duration::from_millis(if back { 1_200 } else { 400 })).await;
        let old = processes.kill("orders").await?;
        for service in ["inventory", "payments"] {
            stage.remote.call(http::Method::DELETE, service, "/_faults", None).await?.expect(200)?;
        }
        processes.back("orders", old).await?;
        let over = stage.over(&order, Duration::from_secs(40)).await?;
        let wanted = if back { "cancelled" } else { "confirmed" };
        story.check(
            over["status"] == wanted,
            format!("order-service was killed there; the order is {} all the same", over["status"]),
        );
        let seen = processes_of(&steps(&stage, &order).await?);
        story.check(seen.len() == 2, format!("its timeline has two processes ({})", seen.len()));
    }
    story.check(settled(&stage.remote, CALM).await?.print(), "the audit is green");
    processes.stop().await;
    Ok(())
}

/// The processes that had a hand in it.
fn processes_of(steps: &[Value]) -> BTreeSet<String> {
    steps.iter().filter_map(|step| step["process"].as_str().map(str::to_owned)).collect()
}
