//! Reservations and releases in every order and repetition.

use order_kit::env::Env;
use serde_json::json;

use crate::{
    deliveries::{Forgetful, NoKey, Participant, failures},
    on_both,
    service::{Answer, Bench, Place},
};

/// What others hold of each product, so that a release too many would show.
const HELD_BY_OTHERS: i64 = 5;

struct Inventory(Bench);

impl Inventory {
    async fn level(&self, product: &str) -> Option<i64> {
        self.0.get(&format!("/inventory/{product}")).await.body["reserved"].as_i64()
    }

    /// A product for each order, of which others hold some.
    async fn prepare(&self, order: &str) {
        if self.level(order).await.is_none() {
            self.0.put(&format!("/inventory/{order}"), json!({"quantity": 10})).await;
            let other = format!("other-{order}");
            let items = json!([{"productId": order, "quantity": HELD_BY_OTHERS}]);
            let body = json!({"orderId": other, "items": items});
            self.0.step("/inventory/reserve", &format!("reserve-stock.do@{other}"), body).await;
        }
    }
}

impl Participant for Inventory {
    type Answer = (u16, serde_json::Value);

    async fn act(&self, order: &str) -> Self::Answer {
        self.prepare(order).await;
        let body = json!({"orderId": order, "items": [{"productId": order, "quantity": 1}]});
        let Answer { status, body, .. } =
            self.0.step("/inventory/reserve", &format!("reserve-stock.do@{order}"), body).await;
        (status, body)
    }

    async fn undo(&self, order: &str) -> bool {
        self.prepare(order).await;
        let body = json!({"orderId": order});
        self.0.step("/inventory/release", &format!("reserve-stock.undo@{order}"), body).await.status == 200
    }

    async fn effect(&self, order: &str) -> i64 {
        self.level(order).await.unwrap() - HELD_BY_OTHERS
    }

    fn too_late(&self) -> Self::Answer {
        (409, json!({"error": "already_compensated"}))
    }
}

on_both!(any_order_and_repetition_holds_once_or_not_at_all);

async fn any_order_and_repetition_holds_once_or_not_at_all(place: Place) {
    let longest = if matches!(place, Place::Sqlite) { 5 } else { 4 };
    let it =
        Inventory(Bench::start(place, order_inventory::NAME, Env::empty(), order_inventory::build).await);
    assert_eq!(failures(&it, longest).await, Vec::<String>::new());
    let audit = it.0.get("/_audit").await.body;
    assert_eq!(audit["ok"], true, "{audit}");
}

#[tokio::test]
async fn participants_without_keys_are_found_out() {
    let no_key = failures(&NoKey::default(), 4).await;
    assert!(no_key.contains(&"2 effects in place of 1 after [Action, Action]".to_owned()), "{no_key:?}");
    let forgetful = failures(&Forgetful::default(), 4).await;
    assert!(!forgetful.is_empty());
    // It is right as long as no compensation comes first.
    assert!(forgetful.iter().all(|failure| failure.contains("after [Compensation")), "{forgetful:?}");
}
