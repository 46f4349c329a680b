//! Payments when nobody conducts.

use std::time::Duration;

use order_kit::env::{Env, SAGA_STYLE};
use order_payments::Options;
use serde_json::{Value, json};

use crate::{
    api::{behave, charge},
    on_both,
    service::{Bench, Place, count, needs_its_broker_in_choreography_alone},
};

const QUEUE: &str = "payments.saga";

async fn start(place: Place) -> Bench {
    let env = Env::empty().with(SAGA_STYLE, "choreography");
    let options = Options { provider_timeout: Duration::from_millis(300) };
    Bench::start(place, order_payments::NAME, env, |context| order_payments::build_with(context, options))
        .await
}

fn reserved(order: &str, user: &str) -> Value {
    json!({"orderId": order, "userId": user, "total": "4.50", "items": [{"productId": "p", "quantity": 3}]})
}

async fn money(it: &Bench, order: &str) -> (String, String) {
    let found = it.get(&format!("/payments/order/{order}")).await.body;
    (found["charged"].as_str().unwrap().to_owned(), found["refunded"].as_str().unwrap().to_owned())
}

on_both!(
    a_reserved_order_is_charged_and_a_cancelled_one_refunded_once,
    a_declined_card_is_told,
    a_cancelled_order_that_is_reserved_late_is_not_charged,
    an_answer_that_does_not_come_is_asked_for_again,
    both_styles_know_an_order_by_the_same_key,
);

async fn a_reserved_order_is_charged_and_a_cancelled_one_refunded_once(place: Place) {
    let it = start(place).await;
    for id in ["e1", "e1", "e2", "e1"] {
        it.tell(id, "inventory.reserved", "o", reserved("o", "u")).await;
    }
    assert_eq!(it.handled(QUEUE).await, 0);
    assert_eq!(money(&it, "o").await, ("4.50".to_owned(), "0.00".to_owned()));
    for id in ["e3", "e3", "e4"] {
        it.tell(id, "order.cancelled", "o", json!({"orderId": "o"})).await;
    }
    assert_eq!(it.handled(QUEUE).await, 0);
    assert_eq!(money(&it, "o").await, ("4.50".to_owned(), "4.50".to_owned()));
    assert_eq!(it.get("/_audit").await.body["ok"], true);
    let told = it.end().await;
    for kind in ["payment.completed", "payment.received", "payment.refunded"] {
        assert_eq!(count(&told, kind, "o"), 1, "{kind}");
    }
}

async fn a_declined_card_is_told(place: Place) {
    let it = start(place).await;
    behave(&it, "u", "decline").await;
    it.tell("e1", "inventory.reserved", "o", reserved("o", "u")).await;
    it.tell("e1", "inventory.reserved", "o", reserved("o", "u")).await;
    it.tell("e2", "order.cancelled", "o", json!({"orderId": "o"})).await;
    // What cannot be read is no charge.
    it.tell("e3", "inventory.reserved", "o2", json!({"orderId": "o2", "items": []})).await;
    assert_eq!(it.handled(QUEUE).await, 1);
    let told = it.end().await;
    assert_eq!((count(&told, "payment.failed", "o"), count(&told, "payment.refunded", "o")), (1, 0));
    let failed = told.iter().find(|event| event.kind == "payment.failed").unwrap();
    assert_eq!(
        failed.data,
        json!({"orderId": "o", "userId": "u", "amount": "4.50", "reason": "card_declined"})
    );
}

async fn a_cancelled_order_that_is_reserved_late_is_not_charged(place: Place) {
    let it = start(place).await;
    it.tell("e2", "order.cancelled", "o", json!({"orderId": "o"})).await;
    it.tell("e1", "inventory.reserved", "o", reserved("o", "u")).await;
    assert_eq!(it.handled(QUEUE).await, 0);
    let audit = it.get("/_audit").await.body;
    assert_eq!(
        (&audit["ok"], &audit["taken"], &audit["charged"]),
        (&json!(true), &json!("0.00"), &json!("0.00"))
    );
}

async fn an_answer_that_does_not_come_is_asked_for_again(place: Place) {
    let it = start(place).await;
    behave(&it, "u", "timeout").await;
    it.tell("e1", "inventory.reserved", "o", reserved("o", "u")).await;
    assert_eq!(it.handled(QUEUE).await, 0);
    assert_eq!(money(&it, "o").await, ("4.50".to_owned(), "0.00".to_owned()));
    let audit = it.get("/_audit").await.body;
    assert_eq!((&audit["ok"], &audit["taken"]), (&json!(true), &json!("4.50")));
}

async fn both_styles_know_an_order_by_the_same_key(place: Place) {
    let it = start(place).await;
    assert_eq!(it.step("/payments/charge", "charge-card.do@o", charge("o", "4.50")).await.status, 200);
    it.tell("e1", "inventory.reserved", "o", reserved("o", "u")).await;
    assert_eq!(it.handled(QUEUE).await, 0);
    assert_eq!(money(&it, "o").await, ("4.50".to_owned(), "0.00".to_owned()));
}

#[tokio::test]
async fn the_broker_is_needed_where_its_events_move_orders_on_and_only_there() {
    needs_its_broker_in_choreography_alone(order_payments::NAME, order_payments::build).await;
}
