//! Orders when every service works.

use std::time::{Duration, Instant};

use order_kit::BoxError;
use serde_json::{Value, json};

use super::{AT_ONCE, CALM, ONE_LOOSE, Play, Stage, Story, order_id};
use crate::audit::settled;

const SOON: Duration = Duration::from_secs(5);

/// The steps of a timeline, in the order in which they were first begun, with what became of them.
pub(super) async fn steps(stage: &Stage, order: &str) -> Result<Vec<Value>, BoxError> {
    let timeline =
        stage.remote.get("orders", &format!("/orders/{order}/timeline")).await?.expect(200)?.json();
    let steps = timeline["steps"].as_array().or(timeline.as_array());
    Ok(steps.cloned().unwrap_or_default())
}

pub(super) fn names(steps: &[Value]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for step in steps {
        let name = step["step"].as_str().unwrap_or_default().to_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

pub(super) async fn happy(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    let data = tempfile::tempdir()?;
    let stage = play.stage(data.path(), &[]).await?;
    let before = stage.stock(1).await?;
    story.say("three cups at 0.10");
    let began = Instant::now();
    let answer = stage.order(0, 1, 3).await?;
    let took = began.elapsed();
    story.check(answer.status == 202, format!("the answer is 202 ({})", answer.status));
    let bar = story.bound(AT_ONCE, ONE_LOOSE);
    story.check(took < bar, format!("within {} ms ({} ms)", bar.as_millis(), took.as_millis()));
    let order = order_id(&answer)?;
    let location = answer.header("location").unwrap_or_default().to_owned();
    story.check(location.ends_with(&format!("/orders/{order}")), format!("with where it is: {location}"));
    let over = stage.over(&order, SOON).await?;
    story.check(over["status"] == "confirmed", format!("it is confirmed ({})", over["status"]));
    story.check(over["total"] == "0.30", format!("three times 0.10 are 0.30 ({})", over["total"]));
    let steps = steps(&stage, &order).await?;
    story.say(format!("its timeline: {}", names(&steps).join(" → ")));
    if play.conducted() {
        story.check(names(&steps).len() >= 4, "create, reserve, charge, confirm are in it");
    }
    let paid = stage.remote.get("payments", &format!("/payments/order/{order}")).await?.expect(200)?.json();
    story.check(
        paid["charged"] == "0.30" && paid["refunded"] == "0.00",
        format!("charged once, nothing refunded: {paid}"),
    );
    let after = stage
        .remote
        .until(SOON, "inventory", &format!("/inventory/{}", stage.product(1)), |answer| {
            answer.json()["reserved"] == 0
        })
        .await?
        .json();
    let fell = before["onHand"].as_i64().unwrap_or(0) - after["onHand"].as_i64().unwrap_or(0);
    story.check(fell == 3, format!("the stock fell by three, once ({fell})"));
    let mails = stage.mails(&order, 2).await?;
    story.check(
        mails == ["confirmed", "received"],
        format!("two mails, one of each kind: {}", mails.join(", ")),
    );
    let list = format!("/orders/user/{}", stage.user(0));
    let row = stage
        .remote
        .until(Duration::from_secs(1), "orders", &list, |answer| answer.text.contains(&order))
        .await?;
    story.check(
        row.json()[0]["summary"] == format!("Order #{order} - 0.30"),
        "the customer's list has it within a second",
    );
    story.check(settled(&stage.remote, CALM).await?.print(), "the audit is green");
    stage.end().await;
    Ok(())
}

pub(super) async fn declined(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    let data = tempfile::tempdir()?;
    let stage = play.stage(data.path(), &[]).await?;
    let before = stage.stock(0).await?;
    story.say("Bob's card is declined");
    let card = format!("/payments/cards/{}", stage.user(1));
    stage.remote.put("payments", &card, json!({ "behaviour": "decline" })).await?.expect(200)?;
    let order = order_id(&stage.order(1, 0, 2).await?.expect(202)?)?;
    let over = stage.over(&order, SOON).await?;
    story.check(over["status"] == "cancelled", format!("it is cancelled ({})", over["status"]));
    story.check(over["reason"] == "card_declined", format!("and says why: {}", over["reason"]));
    let paid = stage.remote.get("payments", &format!("/payments/order/{order}")).await?.expect(200)?.json();
    story.check(
        paid["charged"] == "0.00" && paid["refunded"] == "0.00",
        "no money was taken, so none is given back",
    );
    if play.conducted() {
        let steps = steps(&stage, &order).await?;
        let undone: Vec<&Value> = steps.iter().filter(|step| step["direction"] == "undo").collect();
        let undone: Vec<&str> = undone.iter().filter_map(|step| step["step"].as_str()).collect();
        story.check(
            !undone.contains(&"charge-card"),
            format!("no refund was asked for; undone: {}", undone.join(", ")),
        );
        story.check(undone.contains(&"reserve-stock"), "what was reserved was released");
    }
    let stock = format!("/inventory/{}", stage.product(0));
    let as_before = stage.remote.until(SOON, "inventory", &stock, |answer| answer.json() == before).await;
    story.check(as_before.is_ok(), "the stock is as it was");
    let mails = stage.mails(&order, 2).await?;
    story.check(mails == ["cancelled", "received"], format!("the customer was told: {}", mails.join(", ")));
    story.check(settled(&stage.remote, CALM).await?.print(), "the audit is green");
    stage.end().await;
    Ok(())
}

pub(super) async fn out_of_stock(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    let data = tempfile::tempdir()?;
    let stage = play.stage(data.path(), &[]).await?;
    let before = stage.stock(0).await?;
    story.say("more teapots than there are");
    let order = order_id(&stage.order(0, 0, 9_999).await?.expect(202)?)?;
    let over = stage.over(&order, SOON).await?;
    story.check(
        over["status"] == "cancelled",
        format!("it is cancelled, and not pending for ever ({})", over["status"]),
    );
    story.check(over["reason"] == "out_of_stock", format!("and says why: {}", over["reason"]));
    let paid = stage.remote.get("payments", &format!("/payments/order/{order}")).await?.json();
    story.check(paid["charged"].as_str().is_none_or(|sum| sum == "0.00"), "nobody was asked for money");
    story.check(stage.stock(0).await? == before, "the stock is as it was");
    story.check(settled(&stage.remote, CALM).await?.print(), "the audit is green");
    stage.end().await;
    Ok(())
}
