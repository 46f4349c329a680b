//! Who works on a queue: nobody for a while, then two processes.

use std::time::Duration;

use futures::future::{join_all, try_join, try_join_all};
use order_broker::Broker;
use order_kit::{BoxError, env};
use order_system::{
    audit::settled,
    remote::{Answer, Remote},
    seed::{Seed, seed},
    services,
    system::{Options, System},
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    journeys::STAGE,
    operations::{program, terminated},
};

const SOON: Duration = Duration::from_secs(60);
/// Within which half of the answers come: they are some milliseconds of work, also where programs are built meanwhile.
const PROMPT: Duration = Duration::from_secs(1);
/// How many order while others wait.
const MEANWHILE: usize = 9;
/// The queue of the inventory, when nobody conducts.
const QUEUE: &str = "inventory.saga";

/// Orders one cup, so many times at once; the ids.
async fn burst(orders: usize, remote: &Remote, seed: &Seed) -> Result<Vec<String>, BoxError> {
    let order = async || {
        let items = json!([{ "productId": seed.products[1].1, "quantity": 1 }]);
        let body = json!({ "userId": seed.users[0].1, "items": items });
        let taken = remote.post("orders", "/orders", body).await?.expect(202)?.json();
        taken["id"].as_str().map(str::to_owned).ok_or_else(|| BoxError::from("no id"))
    };
    try_join_all((0..orders).map(|_| order())).await
}

/// Waits until so many events are in the queue, those in hand included.
async fn until_backlog(broker: &dyn Broker, wanted: u64) -> Result<(), BoxError> {
    let end = Instant::now() + SOON;
    loop {
        let stats = broker.stats(QUEUE).await?;
        if stats.backlog() == wanted {
            return Ok(());
        }
        assert!(Instant::now() < end, "not {wanted}: {stats:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// How many events of the queue a worker has handled, in whatever way.
async fn handled(worker: &Remote) -> Result<u64, BoxError> {
    let figures = worker.get("inventory", "/metrics").await?.expect(200)?.text;
    let lines =
        figures.lines().filter(|line| line.starts_with("events_handled_total{") && line.contains(QUEUE));
    Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_waits_for_whoever_works_and_two_processes_share_it() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let mut options = Options::alone(data.path());
    options.parts.retain(|part| *part != "inventory");
    let system = System::start(options.with(env::SAGA_STYLE, "choreography")).await?;
    let (gateway, broker) = (system.url("gateway"), system.broker().clone());
    let variables =
        [(env::SAGA_STYLE, "choreography"), (env::GATEWAY_URL, gateway.as_str()), (env::LOG, "off")];
    let worker = async || {
        let arguments = ["serve", "inventory", "--port-base", "0"];
        let (child, at, _) = program(&arguments, data.path(), &variables, "inventory http").await?;
        Ok::<_, BoxError>((child, at))
    };
    let mut remote = Remote::to(&system);
    let (before, at) = worker().await?;
    remote.moved("inventory", at.url("inventory").to_owned());
    let seed = seed(&remote).await?;
    let path = format!("/inventory/{}", seed.products[1].1);
    let had = remote.get("inventory", &path).await?.expect(200)?.json()["onHand"].as_u64().ok_or("stock")?;
    assert_eq!(terminated(before).await?, Some(0));

    // Nobody works, and everything is taken.
    let mut orders = burst(500, &remote, &seed).await?;
    until_backlog(&*broker, 500).await?;
    // Whoever orders while they wait is answered as ever: an answer that waited for somebody to work would not come at all.
    let mut took = Vec::new();
    for _ in 0..MEANWHILE {
        let began = Instant::now();
        orders.extend(burst(1, &remote, &seed).await?);
        took.push(began.elapsed());
    }
    took.sort_unstable();
    assert!(took[MEANWHILE / 2] < PROMPT, "{took:?}");
    until_backlog(&*broker, orders.len() as u64).await?;
    let ((one, first), (two, second)) = try_join(worker(), worker()).await?;
    remote.moved("inventory", first.url("inventory").to_owned());
    until_backlog(&*broker, 0).await?;
    // Now both are there when it comes.
    orders.extend(burst(100, &remote, &seed).await?);
    let confirmed = orders.iter().map(async |order| {
        let path = format!("/orders/{order}");
        remote.until(SOON, "orders", &path, |answer| answer.json()["status"] == "confirmed").await
    });
    for order in join_all(confirmed).await {
        order?;
    }
    // An order is confirmed before the queue has heard of it.
    let left = had - orders.len() as u64;
    let sold = |answer: &Answer| {
        let stock = answer.json();
        (stock["onHand"].as_u64(), stock["reserved"].as_u64()) == (Some(left), Some(0))
    };
    remote.until(SOON, "inventory", &path, sold).await?;
    until_backlog(&*broker, 0).await?;

    let counts = (handled(&first).await?, handled(&second).await?);
    assert!(counts.0 > 0 && counts.1 > 0, "both work: {counts:?}");
    // That it was created, and that it was confirmed.
    assert_eq!(counts.0 + counts.1, 2 * orders.len() as u64, "each event is one worker's: {counts:?}");
    let stock = remote.get("inventory", &path).await?.expect(200)?.json();
    assert_eq!((stock["onHand"].as_u64(), &stock["reserved"]), (Some(left), &json!(0)), "and no more");
    assert!(settled(&remote, SOON).await?.print(), "the audit is green");
    for worker in [one, two] {
        assert_eq!(terminated(worker).await?, Some(0));
    }
    system.stop().await;
    Ok(())
}

/// A dead letter would be goods that nobody can buy, or a customer's money.
#[test]
fn what_moves_orders_on_outlasts_an_outage_of_a_day() {
    let moves = [QUEUE, "payments.saga", "orders.choreography"];
    let queues = services::topology().queues.into_iter().filter(|queue| moves.contains(&queue.name.as_str()));
    let waits: Vec<Duration> = queues
        .map(|queue| (1..queue.max_attempts).map(|failures| queue.backoff.after(failures)).sum())
        .collect();
    assert_eq!(waits.len(), moves.len());
    assert!(waits.iter().all(|waits| *waits > Duration::from_secs(24 * 3_600)), "{waits:?}");
}
