//! The broker is away, and back.

use std::{sync::Arc, time::Duration};

use order_broker::{Broker, Message, Switched, Which};
use order_kit::{BoxError, env};
use serde_json::Value;

use super::{Play, Stage, Story, order_id};
use crate::{
    audit::settled,
    demo::CALM,
    remote::Remote,
    system::{Options, System, broker_address},
};

const ORDERS: usize = 50;

pub(super) async fn down(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    let data = tempfile::tempdir()?;
    let mut options = Options::alone(data.path()).with(env::RATE_LIMIT, "off").with(env::POLICY_FAST, "1");
    for (name, value) in &play.variables {
        options = options.with(name, value.clone());
    }
    let broker = Switched::new(order_broker::open(&broker_address(&options.env, data.path())).await?);
    let system = System::start_with(options, Arc::new(broker.clone())).await?;
    let remote = Remote::to(&system);
    let stage = Stage::set(Some(system), remote).await?;

    story.say("the broker goes away");
    broker.set_away(true);
    let mut orders = Vec::new();
    for _ in 0..ORDERS {
        orders.push(order_id(&stage.order(0, 1, 1).await?.expect(202)?)?);
    }
    story.check(orders.len() == ORDERS, format!("{ORDERS} orders are taken all the same"));
    let ready = stage.remote.get("orders", "/health/ready").await?;
    story.check(
        ready.text.contains("messageQueue"),
        format!("readiness names the broker: {}", ready.json()["checks"]["messageQueue"]["status"]),
    );
    let list = format!("/orders/{}", orders[ORDERS - 1]);
    let last = stage
        .remote
        .until(Duration::from_secs(30), "orders", &list, |answer| answer.json()["status"] == "confirmed")
        .await;
    story.check(last.is_ok(), "they are even confirmed, since a saga asks services and not queues");
    let mails = stage.remote.get("notifications", &format!("/sent?order={}", orders[0])).await?.json();
    story.check(mails.as_array().is_some_and(Vec::is_empty), "nobody was told yet");

    story.say("the broker is back");
    broker.set_away(false);
    let mut once = 0;
    for order in &orders {
        once += usize::from(stage.mails(order, 2).await? == ["confirmed", "received"]);
    }
    story.check(once == ORDERS, format!("each customer has one mail of each kind ({once} of {ORDERS})"));
    let sent = stage.remote.get("notifications", &format!("/sent?order={}", orders[0])).await?.json();
    let kinds: Vec<&Value> =
        sent.as_array().map(|mails| mails.iter().map(|mail| &mail["kind"]).collect()).unwrap_or_default();
    story.check(kinds == ["received", "confirmed"], "in the order in which it happened");

    story.say("an event that nobody can read");
    let poison = Message::new("order.created", "poison", "{\"no\":\"event\"}");
    let id = poison.id.clone();
    for published in broker.publish(vec![poison]).await {
        published?;
    }
    let mut dead = Vec::new();
    for _ in 0..500 {
        dead = broker.dead_letters("notifications", 10).await?;
        if !dead.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let reason = dead.first().map(|letter| letter.reason.clone()).unwrap_or_default();
    story.check(
        dead.len() == 1 && dead[0].message.id == id,
        format!("is a dead letter with a reason: {reason}"),
    );
    let next = order_id(&stage.order(0, 1, 1).await?.expect(202)?)?;
    story.check(stage.mails(&next, 1).await.is_ok(), "and blocks nobody behind it");
    let gone = broker.discard("notifications", Which::Ids(vec![id])).await?;
    story.check(gone == 1, "it is thrown away by hand");
    story.check(
        stage.over(&next, Duration::from_secs(5)).await.is_ok()
            && settled(&stage.remote, CALM).await?.print(),
        "the audit is green",
    );
    stage.end().await;
    Ok(())
}
