//! The inventory when nobody conducts.

use order_kit::env::{Env, SAGA_STYLE};
use serde_json::{Value, json};

use crate::{
    on_both,
    service::{Bench, Place, count, needs_its_broker_in_choreography_alone},
};

const QUEUE: &str = "inventory.saga";

async fn start(place: Place) -> Bench {
    let env = Env::empty().with(SAGA_STYLE, "choreography");
    let it = Bench::start(place, order_inventory::NAME, env, order_inventory::build).await;
    it.put("/inventory/p", json!({"quantity": 10})).await;
    it
}

fn created(order: &str, quantity: i64) -> Value {
    json!({"orderId": order, "userId": "u", "total": "4.50", "timestamp": "2026-01-01T00:00:00.000Z",
        "items": [{"productId": "p", "quantity": quantity, "price": "1.50"}]})
}

async fn level(it: &Bench) -> (i64, i64) {
    let level = it.get("/inventory/p").await.body;
    (level["onHand"].as_i64().unwrap(), level["reserved"].as_i64().unwrap())
}

on_both!(
    a_created_order_is_reserved_and_a_confirmed_one_is_committed_once,
    an_order_that_is_not_paid_or_is_cancelled_is_released_once,
    what_is_out_of_stock_is_told,
    a_cancelled_order_that_is_created_late_holds_nothing,
    both_styles_know_an_order_by_the_same_key,
    what_cannot_be_handled_becomes_a_dead_letter,
);

async fn a_created_order_is_reserved_and_a_confirmed_one_is_committed_once(place: Place) {
    let it = start(place).await;
    // The same event again, and the same order in another event.
    for id in ["e1", "e1", "e2", "e1"] {
        it.tell(id, "order.created", "o", created("o", 3)).await;
    }
    assert_eq!(it.handled(QUEUE).await, 0);
    assert_eq!(level(&it).await, (10, 3));
    for id in ["e3", "e3", "e4"] {
        it.tell(id, "order.confirmed", "o", json!({"orderId": "o"})).await;
    }
    assert_eq!(it.handled(QUEUE).await, 0);
    assert_eq!(level(&it).await, (7, 0));
    let told = it.end().await;
    let reserved: Vec<_> = told.iter().filter(|event| event.kind == "inventory.reserved").collect();
    let items = json!([{"productId": "p", "quantity": 3}]);
    assert_eq!(reserved.len(), 1);
    assert_eq!(reserved[0].data, json!({"orderId": "o", "userId": "u", "items": items, "total": "4.50"}));
    assert_eq!((&*reserved[0].metadata.source, &*reserved[0].metadata.correlation_id), ("inventory", "o"));
}

async fn an_order_that_is_not_paid_or_is_cancelled_is_released_once(place: Place) {
    let it = start(place).await;
    it.tell("e1", "order.created", "o", created("o", 3)).await;
    for (id, kind) in [
        ("e2", "payment.failed"),
        ("e3", "order.cancelled"),
        ("e2", "payment.failed"),
        ("e3", "order.cancelled"),
    ] {
        it.tell(id, kind, "o", json!({"orderId": "o", "reason": "card_declined"})).await;
    }
    assert_eq!(it.handled(QUEUE).await, 0);
    assert_eq!(level(&it).await, (10, 0));
    let told = it.end().await;
    assert_eq!((count(&told, "inventory.reserved", "o"), count(&told, "inventory.released", "o")), (1, 1));
}

async fn what_is_out_of_stock_is_told(place: Place) {
    let it = start(place).await;
    it.tell("e1", "order.created", "o", created("o", 11)).await;
    it.tell("e1", "order.created", "o", created("o", 11)).await;
    it.tell("e2", "order.cancelled", "o", json!({"orderId": "o"})).await;
    assert_eq!(it.handled(QUEUE).await, 0);
    assert_eq!(level(&it).await, (10, 0));
    let told = it.end().await;
    assert_eq!(count(&told, "inventory.reservation.failed", "o"), 1);
    assert_eq!(count(&told, "inventory.released", "o"), 0);
    let failed = told.iter().find(|event| event.kind == "inventory.reservation.failed").unwrap();
    assert_eq!(failed.data["reason"], "out_of_stock");
}

async fn a_cancelled_order_that_is_created_late_holds_nothing(place: Place) {
    let it = start(place).await;
    it.tell("e2", "order.cancelled", "o", json!({"orderId": "o"})).await;
    it.tell("e1", "order.created", "o", created("o", 3)).await;
    assert_eq!(it.handled(QUEUE).await, 0);
    assert_eq!(level(&it).await, (10, 0));
    let told = it.end().await;
    assert_eq!(count(&told, "inventory.reserved", "o"), 0);
}

async fn both_styles_know_an_order_by_the_same_key(place: Place) {
    let it = start(place).await;
    let body = json!({"orderId": "o", "items": [{"productId": "p", "quantity": 3}]});
    assert_eq!(it.step("/inventory/reserve", "reserve-stock.do@o", body).await.status, 200);
    it.tell("e1", "order.created", "o", created("o", 3)).await;
    it.tell("e2", "order.confirmed", "o", json!({"orderId": "o"})).await;
    assert_eq!(it.handled(QUEUE).await, 0);
    assert_eq!(it.step("/inventory/commit", "commit-stock.do@o", json!({"orderId": "o"})).await.status, 200);
    assert_eq!(level(&it).await, (7, 0));
}

async fn what_cannot_be_handled_becomes_a_dead_letter(place: Place) {
    let it = start(place).await;
    it.tell("e1", "order.created", "o", json!({"orderId": "o"})).await;
    it.tell("e2", "order.created", "o2", created("o2", 0)).await;
    // A contradiction: its stock may be somebody else's by now.
    it.tell("e3", "order.cancelled", "o3", json!({"orderId": "o3"})).await;
    it.tell("e4", "order.created", "o3", created("o3", 1)).await;
    assert_eq!(it.handled(QUEUE).await, 2);
    let body = json!({"orderId": "o4", "items": [{"productId": "p", "quantity": 1}]});
    it.step("/inventory/reserve", "reserve-stock.do@o4", body).await;
    it.tell("e5", "payment.failed", "o4", json!({"orderId": "o4"})).await;
    it.tell("e6", "order.confirmed", "o4", json!({"orderId": "o4"})).await;
    assert_eq!(it.handled(QUEUE).await, 3);
    assert_eq!(level(&it).await, (10, 0));
}

#[tokio::test]
async fn the_broker_is_needed_where_its_events_move_orders_on_and_only_there() {
    needs_its_broker_in_choreography_alone(order_inventory::NAME, order_inventory::build).await;
}
