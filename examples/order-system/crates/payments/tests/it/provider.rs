//! A provider that does not answer, and what is done about it.

use std::time::Duration;

use order_kit::env::Env;
use order_payments::Options;
use serde_json::json;

use crate::{
    api::{behave, charge},
    on_both,
    service::{Bench, Place},
};

async fn start(place: Place, provider_timeout: Duration) -> Bench {
    start_with(place, provider_timeout, Env::empty()).await
}

async fn start_with(place: Place, provider_timeout: Duration, env: Env) -> Bench {
    let options = Options { provider_timeout };
    Bench::start(place, order_payments::NAME, env, |context| order_payments::build_with(context, options))
        .await
}

on_both!(
    money_that_was_taken_without_an_answer_is_found_by_the_same_key,
    money_that_was_taken_without_an_answer_goes_back_with_the_refund,
    a_provider_that_does_not_answer_is_left_alone_after_five_times,
    a_breaker_that_is_off_lets_everything_through,
);

async fn money_that_was_taken_without_an_answer_is_found_by_the_same_key(place: Place) {
    let it = start(place, Duration::from_millis(300)).await;
    behave(&it, "u", "timeout").await;
    let lost = it.step("/payments/charge", "charge-card.do@o", charge("o", "5")).await;
    assert_eq!((lost.status, lost.error()), (503, "Payment temporarily unavailable"));
    assert!(lost.header("retry-after").is_some());
    // The provider has the money, and the ledger does not know: that is what the audit is for.
    let audit = it.get("/_audit").await.body;
    assert_eq!(
        (&audit["ok"], &audit["taken"], &audit["charged"]),
        (&json!(false), &json!("5.00"), &json!("0.00"))
    );
    assert_eq!(audit["unsettled"], json!(["charge-card.do@o"]));
    assert_eq!(it.get("/payments/lookup?key=charge-card.do@o").await.body, json!({"state": "notApplied"}));
    // With another amount it is no question about the same charge.
    assert_eq!(it.step("/payments/charge", "charge-card.do@o", charge("o", "6")).await.status, 422);
    let found = it.step("/payments/charge", "charge-card.do@o", charge("o", "5")).await;
    assert_eq!(found.status, 200);
    let audit = it.get("/_audit").await.body;
    assert_eq!(
        (&audit["ok"], &audit["taken"], &audit["charged"]),
        (&json!(true), &json!("5.00"), &json!("5.00"))
    );
}

async fn money_that_was_taken_without_an_answer_goes_back_with_the_refund(place: Place) {
    let it = start(place, Duration::from_millis(300)).await;
    behave(&it, "u", "timeout").await;
    assert_eq!(it.step("/payments/charge", "charge-card.do@o", charge("o", "5")).await.status, 503);
    for _ in 0..3 {
        let refunded = it.step("/payments/refund", "charge-card.undo@o", json!({"orderId": "o"})).await;
        // By the ledger there was nothing.
        assert_eq!((refunded.status, &refunded.body["refunded"]), (200, &json!("0.00")));
    }
    let late = it.step("/payments/charge", "charge-card.do@o", charge("o", "5")).await;
    assert_eq!((late.status, late.error()), (409, "already_compensated"));
    let audit = it.get("/_audit").await.body;
    assert_eq!((&audit["ok"], &audit["taken"]), (&json!(true), &json!("0.00")), "{audit}");
}

async fn a_provider_that_does_not_answer_is_left_alone_after_five_times(place: Place) {
    let it = start(place, Duration::from_millis(300)).await;
    behave(&it, "u", "timeout").await;
    for number in 0..5 {
        let order = format!("o{number}");
        let answer =
            it.step("/payments/charge", &format!("charge-card.do@{order}"), charge(&order, "5")).await;
        assert_eq!(answer.status, 503);
    }
    let began = std::time::Instant::now();
    let refused = it.step("/payments/charge", "charge-card.do@o5", charge("o5", "5")).await;
    assert_eq!((refused.status, refused.error()), (503, "Payment temporarily unavailable"));
    assert!(began.elapsed() < Duration::from_millis(250), "it was asked all the same");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    let policies = it.get("/_policies").await.body;
    let policies = policies.as_array().unwrap();
    assert!(policies.iter().all(|policy| policy["name"] == "card-provider"), "{policies:?}");
    let of = |kind: &str| policies.iter().find(|policy| policy["policy"] == kind).unwrap();
    assert!(of("circuit_breaker")["state"].to_string().contains("open"), "{policies:?}");
    assert_eq!((&of("bulkhead")["limit"], &of("bulkhead")["in_use"]), (&json!(10), &json!(0)));
}

async fn a_breaker_that_is_off_lets_everything_through(place: Place) {
    let env = Env::empty().with(order_kit::env::BREAKERS, "off");
    let it = start_with(place, Duration::from_millis(300), env).await;
    behave(&it, "u", "timeout").await;
    let keys: Vec<_> = (0..8).map(|number| format!("charge-card.do@o{number}")).collect();
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(it.step("/payments/charge", key, charge(&format!("o{number}"), "5")).await.status, 503);
    }
    let audit = it.get("/_audit").await.body;
    assert_eq!(audit["unsettled"], json!(keys), "the provider has heard of each of them");
}
