//! Many at the same time: one charge, one refund, and ledger and provider agree.

use futures::future::join_all;
use serde_json::{Value, json};

use crate::{
    api::{charge, start},
    on_both,
    service::{Answer, Bench, Place},
};

on_both!(
    the_same_charge_at_the_same_time_is_one,
    two_keys_for_one_order_at_the_same_time_charge_once,
    charges_and_refunds_at_the_same_time_leave_nothing_behind,
);

/// Asks until there is an answer, as an orchestrator does: with many at once on a slow disk the queue in front of the provider says no.
async fn post(it: &Bench, path: &str, key: &str, body: Value) -> Answer {
    for _ in 0..50 {
        let answer = it.step(path, key, body.clone()).await;
        if answer.status != 503 {
            return answer;
        }
    }
    panic!("no answer from {path} for {key}");
}

async fn audited(it: &Bench) -> Value {
    let audit = it.get("/_audit").await.body;
    assert_eq!(audit["ok"], true, "{audit}");
    audit
}

async fn the_same_charge_at_the_same_time_is_one(place: Place) {
    let it = start(place).await;
    let one = || post(&it, "/payments/charge", "charge-card.do@o", charge("o", "5"));
    let answers = join_all((0..20).map(|_| one())).await;
    assert_eq!(answers[0].status, 200);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(
        (&audited(&it).await["charged"], &audited(&it).await["taken"]),
        (&json!("5.00"), &json!("5.00"))
    );
}

async fn two_keys_for_one_order_at_the_same_time_charge_once(place: Place) {
    let it = start(place).await;
    for round in 0..5 {
        let order = format!("o{round}");
        let keys: Vec<_> = (0..4).map(|way| format!("way-{way}.do@{order}")).collect();
        let work = keys.iter().map(|key| post(&it, "/payments/charge", key, charge(&order, "5")));
        let mut answers: Vec<_> = join_all(work).await.iter().map(|answer| answer.status).collect();
        answers.sort_unstable();
        assert_eq!(answers, [200, 409, 409, 409]);
    }
    let audit = audited(&it).await;
    assert_eq!((&audit["charged"], &audit["taken"]), (&json!("25.00"), &json!("25.00")));
}

async fn charges_and_refunds_at_the_same_time_leave_nothing_behind(place: Place) {
    let it = start(place).await;
    let orders: Vec<_> = (0..16).map(|number| format!("o{number:02}")).collect();
    join_all(orders.iter().map(async |order| {
        let (action, compensation) = (format!("charge-card.do@{order}"), format!("charge-card.undo@{order}"));
        let charge = || post(&it, "/payments/charge", &action, charge(order, "5"));
        let refund = || post(&it, "/payments/refund", &compensation, json!({"orderId": order}));
        let (one, two, three, four, five) = futures::join!(charge(), refund(), charge(), refund(), refund());
        for answer in [two, four, five] {
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        for answer in [one, three] {
            assert!(answer.status == 200 || answer.error() == "already_compensated", "{answer:?}");
        }
    }))
    .await;
    // Page by page.
    let (mut after, mut seen) = (String::new(), 0);
    loop {
        let page = it.get(&format!("/_audit?limit=3&after={after}")).await.body;
        // The whole is looked at once, with the first.
        let whole =
            if after.is_empty() { (&json!(true), &json!("0.00")) } else { (&Value::Null, &Value::Null) };
        assert_eq!((&page["ok"], &page["taken"]), whole, "{page}");
        for order in page["orders"].as_array().unwrap() {
            assert_eq!(order["charged"], order["refunded"], "{order}");
            seen += 1;
        }
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut after),
            None => break,
        }
    }
    assert!(seen <= orders.len());
    for order in &orders {
        let found = it.get(&format!("/payments/order/{order}")).await.body;
        assert_eq!(found["charged"], found["refunded"]);
    }
}
