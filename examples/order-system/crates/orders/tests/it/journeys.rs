//! What becomes of orders, whatever becomes of the neighbours.

use http::StatusCode;

use crate::world::{Mood, World, order_of};

#[tokio::test]
async fn an_order_is_confirmed() {
    let world = World::new().await;
    let answer = world.post("/orders", order_of("ada", 3)).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(answer.body["status"], "pending");
    let id = answer.body["id"].as_str().unwrap();
    assert_eq!(answer.headers["location"], format!("/orders/{id}"));

    let order = world.decided(id).await;
    assert_eq!((order["status"].as_str(), order["total"].as_str()), (Some("confirmed"), Some("0.30")));
    assert_eq!(world.over(id).await, "completed");
    let timeline = world.get(&format!("/orders/{id}/timeline")).await.body;
    let steps: Vec<&str> = timeline["steps"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|step| step["kind"] == "completed")
        .map(|step| step["step"].as_str().unwrap())
        .collect();
    assert_eq!(steps, ["create-order", "reserve-stock", "charge-card", "confirm-order", "commit-stock"]);
    for what in ["reserve", "charge", "commit"] {
        assert_eq!(world.neighbours.effects(what, id), 1, "{what}");
    }
    world.end().await;
}

#[tokio::test]
async fn a_declined_card_undoes_what_was_done_and_nothing_else() {
    let world = World::new().await;
    world.neighbours.declined.lock().unwrap().insert("eve".to_owned());
    let id = world.order("eve", 3).await;
    let order = world.decided(&id).await;
    assert_eq!(
        (order["status"].as_str(), order["reason"].as_str()),
        (Some("cancelled"), Some("card_declined"))
    );
    assert_eq!(world.over(&id).await, "compensated");
    let keys = ["reserve-stock.do", "charge-card.do", "reserve-stock.undo"].map(|key| format!("{key}@{id}"));
    assert_eq!(world.neighbours.calls(), keys, "no refund of what was not charged");
    assert_eq!(*world.neighbours.stock.lock().unwrap(), 1_000_000);
    world.end().await;
}

#[tokio::test]
async fn what_is_out_of_stock_is_cancelled() {
    let world = World::new().await;
    *world.neighbours.stock.lock().unwrap() = 2;
    let id = world.order("ada", 3).await;
    let order = world.decided(&id).await;
    assert_eq!(
        (order["status"].as_str(), order["reason"].as_str()),
        (Some("cancelled"), Some("out_of_stock"))
    );
    assert_eq!(world.neighbours.calls(), [format!("reserve-stock.do@{id}")]);
    world.end().await;
}

#[tokio::test]
async fn orders_wait_for_the_payment_service_and_are_confirmed_when_it_is_back() {
    let world = World::new().await;
    world.neighbours.set("charge", Mood::Failing);
    let id = world.order("ada", 1).await;
    world.until(&id, "waiting_payment").await;
    world.neighbours.set("charge", Mood::Well);
    assert_eq!(world.decided(&id).await["status"], "confirmed");
    assert_eq!(world.neighbours.effects("charge", &id), 1);
    world.end().await;
}
