//! Charges and refunds in every order and repetition.

use serde_json::json;

use crate::{
    api::{behave, charge, start},
    deliveries::{Delivery, Forgetful, NoKey, Participant, failures, sequences},
    on_both,
    service::{Answer, Bench, Place},
};

struct Payments(Bench);

impl Participant for Payments {
    type Answer = (u16, serde_json::Value);

    async fn act(&self, order: &str) -> Self::Answer {
        let key = format!("charge-card.do@{order}");
        let Answer { status, body, .. } = self.0.step("/payments/charge", &key, charge(order, "0.01")).await;
        (status, body)
    }

    async fn undo(&self, order: &str) -> bool {
        let key = format!("charge-card.undo@{order}");
        self.0.step("/payments/refund", &key, json!({"orderId": order})).await.status == 200
    }

    async fn effect(&self, order: &str) -> i64 {
        let found = self.0.get(&format!("/payments/order/{order}")).await.body;
        let cents =
            |amount: &serde_json::Value| amount.as_str().unwrap().parse::<order_kit::Cents>().unwrap().0;
        let entries = found["entries"].as_array().unwrap();
        assert!(entries.len() <= 2, "{found}");
        entries.iter().map(|entry| cents(&entry["amount"])).sum()
    }

    fn too_late(&self) -> Self::Answer {
        (409, json!({"error": "already_compensated"}))
    }
}

on_both!(any_order_and_repetition_charges_once_or_not_at_all, a_declined_card_is_never_charged_in_any_order);

async fn any_order_and_repetition_charges_once_or_not_at_all(place: Place) {
    let longest = if matches!(place, Place::Sqlite) { 5 } else { 4 };
    let it = Payments(start(place).await);
    assert_eq!(failures(&it, longest).await, Vec::<String>::new());
    let audit = it.0.get("/_audit").await.body;
    assert_eq!(audit["ok"], true, "{audit}");
}

async fn a_declined_card_is_never_charged_in_any_order(place: Place) {
    let it = Payments(start(place).await);
    behave(&it.0, "u", "decline").await;
    for (number, sequence) in sequences(3).iter().enumerate() {
        let order = format!("order-{number}");
        for delivery in sequence {
            match delivery {
                Delivery::Action => {
                    let (status, _) = it.act(&order).await;
                    // The first thing that arrives decides what it is answered.
                    let expected = if sequence[0] == Delivery::Action { 402 } else { 409 };
                    assert_eq!(status, expected, "{sequence:?}");
                }
                Delivery::Compensation => assert!(it.undo(&order).await, "{sequence:?}"),
            }
            assert_eq!(it.effect(&order).await, 0, "{sequence:?}");
        }
    }
    let audit = it.0.get("/_audit").await.body;
    assert_eq!((&audit["ok"], &audit["taken"]), (&json!(true), &json!("0.00")));
}

#[tokio::test]
async fn participants_without_keys_are_found_out() {
    assert!(!failures(&NoKey::default(), 2).await.is_empty());
    assert!(!failures(&Forgetful::default(), 2).await.is_empty());
}
