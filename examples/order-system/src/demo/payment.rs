//! Payments fail, and are well again.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use order_kit::BoxError;
use serde_json::json;

use super::{AT_ONCE, AT_ONCE_LOOSE, CALM, ONE_LOOSE, Play, Story, median, order_id};
use crate::audit::settled;

const ORDERS: usize = 20;

pub(super) async fn down(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    let data = tempfile::tempdir()?;
    let stage = play.stage(data.path(), &[]).await?;
    let first = order_id(&stage.order(0, 1, 1).await?.expect(202)?)?;
    story.check(
        stage.over(&first, Duration::from_secs(5)).await?["status"] == "confirmed",
        "while all is well an order is confirmed",
    );
    let user = format!("/api/users/{}", stage.user(0));
    let healthy = slowest(&stage, &user).await?;

    story.say("payments fail, all of them");
    stage.remote.put("payments", "/_faults", json!({ "failPercent": 100 })).await?.expect(200)?;
    let began = Instant::now();
    let mut times = Vec::new();
    let mut orders = Vec::new();
    for _ in 0..ORDERS {
        let began = Instant::now();
        orders.push(order_id(&stage.order(0, 1, 1).await?.expect(202)?)?);
        times.push(began.elapsed());
    }
    let slowest_post = times.iter().max().copied().unwrap_or_default();
    let bar = story.bound(AT_ONCE, ONE_LOOSE);
    story.check(
        slowest_post < bar,
        format!(
            "each of {ORDERS} orders is taken within {} ms ({} ms)",
            bar.as_millis(),
            slowest_post.as_millis()
        ),
    );
    let middle = median(times);
    let bar = story.bound(AT_ONCE, AT_ONCE_LOOSE);
    story.check(
        middle < bar,
        format!("and half of them within {} ms ({} ms)", bar.as_millis(), middle.as_millis()),
    );
    let open = |text: &str| text.contains("\"open\"") || text.contains("Open");
    let policies =
        stage.remote.until(Duration::from_secs(5), "orders", "/_policies", |answer| open(&answer.text)).await;
    story.check(
        policies.is_ok(),
        format!("the breaker before payments is open after {} ms", began.elapsed().as_millis()),
    );
    let waiting = stage
        .remote
        .until(Duration::from_secs(5), "orders", &format!("/orders/{}", orders[0]), |answer| {
            answer.json()["status"] == "waiting_payment"
        })
        .await;
    story.check(waiting.is_ok(), "the orders wait for their payment, and say so");
    let details = stage.remote.get("gateway", &format!("/api/orders/{}/details", orders[0])).await?;
    story.check(details.status == 200, "the details of an order can be read");
    let troubled = slowest(&stage, &user).await?;
    let bar = story.bound((healthy * 2).max(Duration::from_millis(20)), (healthy * 2).max(ONE_LOOSE));
    story.check(
        troubled <= bar,
        format!(
            "users are as fast as before: {} ms, {} ms before",
            troubled.as_millis(),
            healthy.as_millis()
        ),
    );

    story.say("payments are well again");
    stage.remote.call(http::Method::DELETE, "payments", "/_faults", None).await?.expect(200)?;
    let ends = try_join_all(orders.iter().map(|order| stage.over(order, Duration::from_secs(30)))).await?;
    let confirmed = ends.iter().filter(|order| order["status"] == "confirmed").count();
    story.check(confirmed == ORDERS, format!("all {ORDERS} are confirmed ({confirmed})"));
    story.check(settled(&stage.remote, CALM).await?.print(), "the audit is green: nobody paid twice");
    stage.end().await;
    Ok(())
}

/// Of a hundred requests through the gateway.
async fn slowest(stage: &super::Stage, path: &str) -> Result<Duration, BoxError> {
    let mut times = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        stage.remote.get("gateway", path).await?.expect(200)?;
        times.push(began.elapsed());
    }
    times.sort();
    Ok(times[98])
}
