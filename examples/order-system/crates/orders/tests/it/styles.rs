//! Whoever moves orders on, a saga or events: the same faults, the same ends.

use std::sync::Arc;

use http::StatusCode;
use order_broker::Queue;
use order_kit::{
    env,
    events::{self, Trouble},
};
use serde_json::{Value, json};

use crate::world::{Mood, Neighbours, World, event, eventually, publish};

/// Inventory and payments as they behave when nobody directs them.
async fn play(world: &World) {
    let (neighbours, broker) = (world.neighbours.clone(), world.broker.clone());
    let context = world.context_of("inventory");
    let queue = Queue::new("played").bind("order.created").bind("order.cancelled");
    events::consume(&context, queue, 1, move |envelope| {
        let (neighbours, broker) = (neighbours.clone(), broker.clone());
        async move {
            let order = envelope.data["orderId"].as_str().unwrap_or_default().to_owned();
            for (kind, data) in answers(&neighbours, &envelope.kind, &order, &envelope.data) {
                publish(&*broker, event(kind, &order, data)).await;
            }
            Ok::<_, Trouble>(())
        }
    })
    .await
    .unwrap();
    // Ends with the world.
    let (ended, played) = (world.context.stop().clone(), context.stop().clone());
    tokio::spawn(async move {
        ended.cancelled().await;
        played.cancel();
    });
}

fn answers(
    neighbours: &Arc<Neighbours>,
    kind: &str,
    order: &str,
    data: &Value,
) -> Vec<(&'static str, Value)> {
    let about = json!({ "orderId": order });
    let ask = |what: &str, key: &str| neighbours.once(what, &format!("{key}@{order}"), data).0;
    if kind == "order.cancelled" {
        ask("refund", "charge-card.undo");
        ask("release", "reserve-stock.undo");
        return Vec::new();
    }
    if ask("reserve", "reserve-stock.do") == StatusCode::CONFLICT {
        return vec![("inventory.reservation.failed", about)];
    }
    let reserved = ("inventory.reserved", about.clone());
    if neighbours.mood("charge") != Mood::Well {
        return vec![reserved];
    }
    if ask("charge", "charge-card.do") == StatusCode::PAYMENT_REQUIRED {
        ask("release", "reserve-stock.undo");
        return vec![reserved, ("payment.failed", about)];
    }
    vec![reserved, ("payment.completed", about)]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Declined,
    OutOfStock,
    /// The user service is away when the order is accepted, and knows no such user when it is back.
    NobodyLater,
    /// The same, and it does know the user.
    SomebodyLater,
    /// The payment service is never heard of.
    NoPayment,
}

#[tokio::test]
async fn the_ends_are_the_same_in_both_styles() {
    let table = [
        (Fault::None, "confirmed", None),
        (Fault::Declined, "cancelled", Some("card_declined")),
        (Fault::OutOfStock, "cancelled", Some("out_of_stock")),
        (Fault::NobodyLater, "cancelled", Some("unknown_user")),
        (Fault::SomebodyLater, "confirmed", None),
        (Fault::NoPayment, "cancelled", Some("timed_out")),
    ];
    for style in ["orchestrated", "choreography"] {
        for (fault, status, reason) in table {
            let deadline = if fault == Fault::NoPayment { "1000" } else { "600000" };
            let world =
                World::with(|env| env.with(env::SAGA_STYLE, style).with(env::ORDER_DEADLINE_MS, deadline))
                    .await;
            if style == "choreography" {
                play(&world).await;
            }
            let neighbours = &world.neighbours;
            let user = if fault == Fault::NobodyLater { "nobody" } else { "ada" };
            match fault {
                Fault::None => {}
                Fault::Declined => drop(neighbours.declined.lock().unwrap().insert("ada".to_owned())),
                Fault::OutOfStock => *neighbours.stock.lock().unwrap() = 2,
                Fault::NobodyLater | Fault::SomebodyLater => neighbours.set("users", Mood::Failing),
                Fault::NoPayment => neighbours.set("charge", Mood::Failing),
            }
            let had = *neighbours.stock.lock().unwrap();
            let id = world.order(user, 3).await;
            neighbours.set("users", Mood::Well);
            let order = world.decided(&id).await;
            let case = format!("{style} {fault:?}");
            assert_eq!(
                (order["status"].as_str(), order["reason"].as_str()),
                (Some(status), reason),
                "{case}"
            );
            let (pieces, money) = if status == "confirmed" { (3, 1) } else { (0, 0) };
            eventually(&format!("{case}: nothing is held that is not the customer's"), async || {
                let paid = neighbours.effects("charge", &id) - neighbours.effects("refund", &id);
                *neighbours.stock.lock().unwrap() == had - pieces && paid == money
            })
            .await;
            if fault == Fault::NobodyLater {
                // Events validate a user when money has been taken, a saga before anybody is asked for anything.
                assert_eq!(neighbours.effects("charge", &id), usize::from(style == "choreography"), "{case}");
            }
            world.end().await;
        }
    }
}

#[tokio::test]
async fn what_comes_twice_or_too_late_changes_nothing() {
    let world = World::with(|env| env.with(env::SAGA_STYLE, "choreography")).await;
    let heard = async |kind: &str, id: &str| {
        for _ in 0..3 {
            world.publish(kind, id, json!({ "orderId": id })).await;
        }
        let queue = order_orders::CHOREOGRAPHY_QUEUE;
        eventually("it is heard", async || world.broker.stats(queue).await.unwrap().backlog() == 0).await;
        world.get(&format!("/orders/{id}")).await.body["status"].as_str().unwrap().to_owned()
    };
    let (paid, failed) = (world.order("ada", 1).await, world.order("ada", 1).await);
    assert_eq!(heard("payment.completed", &paid).await, "confirmed");
    assert_eq!(heard("payment.failed", &paid).await, "confirmed");
    assert_eq!(heard("inventory.reservation.failed", &failed).await, "cancelled");
    assert_eq!(heard("payment.completed", &failed).await, "cancelled");
    let kinds = async |id: &str| {
        let timeline = world.get(&format!("/orders/{id}/timeline")).await.body;
        let steps = timeline["steps"].as_array().unwrap().clone();
        steps.iter().map(|step| step["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&paid).await, ["order.created", "order.confirmed", "order.paid"]);
    assert_eq!(kinds(&failed).await, ["order.created", "order.cancelled"]);

    let open = world.order("ada", 1).await;
    assert_eq!(world.post(&format!("/orders/{open}/cancel"), json!(null)).await.body["status"], "cancelled");
    world.publish("payment.completed", "x", json!({ "orderId": "of nobody" })).await;
    eventually("an event of an unknown order is a dead letter", async || {
        world.broker.stats(order_orders::CHOREOGRAPHY_QUEUE).await.unwrap().dead == 1
    })
    .await;
    world.end().await;
}
