//! The documented answers, and that one order pays once.

use order_kit::{Db, db::DbError, env::Env};
use serde_json::{Value, json};

use crate::{
    on_both,
    service::{Bench, Place, count},
};

pub(crate) async fn start(place: Place) -> Bench {
    Bench::start(place, order_payments::NAME, Env::empty(), order_payments::build).await
}

pub(crate) fn charge(order: &str, amount: impl Into<Value>) -> Value {
    json!({"orderId": order, "userId": "u", "amount": amount.into()})
}

pub(crate) async fn behave(it: &Bench, user: &str, behaviour: &str) {
    let answer = it.put(&format!("/payments/cards/{user}"), json!({"behaviour": behaviour})).await;
    assert_eq!((answer.status, answer.body), (200, json!({"behaviour": behaviour})));
}

on_both!(
    a_charge_is_made_once_and_always_answered_the_same,
    a_refund_is_made_once_however_often_it_comes,
    a_declined_card_stays_declined_for_the_order,
    a_charge_that_comes_after_its_refund_is_refused,
    an_order_is_charged_under_one_key_alone,
    a_key_is_for_one_charge,
    wrong_requests_are_refused_before_anything_is_done,
    a_charge_whose_answer_was_lost_is_answered_when_asked_again,
    books_that_are_wrong_are_found_out,
    the_service_describes_its_routes_and_is_ready,
);

async fn a_charge_is_made_once_and_always_answered_the_same(place: Place) {
    let it = start(place).await;
    let first = it.step("/payments/charge", "charge-card.do@o", charge("o", "12.50")).await;
    assert_eq!(first.status, 200);
    assert!(first.body["paymentId"].is_string());
    for (field, value) in [("orderId", "o"), ("amount", "12.50"), ("status", "charged")] {
        assert_eq!(first.body[field], value);
    }
    for _ in 0..3 {
        assert_eq!(it.step("/payments/charge", "charge-card.do@o", charge("o", 12.5)).await, first);
    }
    let found = it.get("/payments/order/o").await.body;
    assert_eq!((&found["charged"], &found["refunded"]), (&json!("12.50"), &json!("0.00")));
    assert_eq!(found["entries"].as_array().unwrap().len(), 1);
    for key in ["charge-card.do@o", "charge-card.undo@o"] {
        let looked_up = it.get(&format!("/payments/lookup?key={key}")).await.body;
        assert_eq!(looked_up, json!({"state": "applied", "payment": first.body}));
    }
    let unknown = it.get("/payments/lookup?key=charge-card.do@x").await.body;
    assert_eq!(unknown, json!({"state": "notApplied"}));
    let nothing = it.get("/payments/order/x").await.body;
    assert_eq!(nothing, json!({"orderId": "x", "charged": "0.00", "refunded": "0.00", "entries": []}));
    let told = it.end().await;
    let kinds: Vec<_> = told.iter().map(|event| &*event.kind).collect();
    assert_eq!(kinds, ["payment.completed", "payment.received"]);
    assert_eq!(told[0].data["amount"], "12.50");
    assert_eq!(told[0].data, told[1].data);
}

async fn a_refund_is_made_once_however_often_it_comes(place: Place) {
    let it = start(place).await;
    let charged = it.step("/payments/charge", "charge-card.do@o", charge("o", "12.50")).await;
    for _ in 0..3 {
        let refunded = it.step("/payments/refund", "charge-card.undo@o", json!({"orderId": "o"})).await;
        let expected = json!({"orderId": "o", "refunded": "12.50", "status": "refunded"});
        assert_eq!((refunded.status, refunded.body), (200, expected));
    }
    let found = it.get("/payments/order/o").await.body;
    assert_eq!((&found["charged"], &found["refunded"]), (&json!("12.50"), &json!("12.50")));
    let entries = found["entries"].as_array().unwrap();
    let kinds: Vec<_> = entries.iter().map(|entry| (&entry["kind"], &entry["amount"])).collect();
    assert_eq!(kinds, [(&json!("charge"), &json!("12.50")), (&json!("refund"), &json!("-12.50"))]);
    // No second charge, and nobody is told that there is one.
    assert_eq!(charged.status, 200);
    let late = it.step("/payments/charge", "charge-card.do@o", charge("o", "12.50")).await;
    assert_eq!((late.status, late.error()), (409, "already_compensated"));
    assert_eq!(it.get("/payments/order/o").await.body, found);
    let looked_up = it.get("/payments/lookup?key=charge-card.do@o").await.body;
    assert_eq!(looked_up, json!({"state": "compensated"}));
    let audit = it.get("/_audit").await.body;
    let order = json!([{"orderId": "o", "charged": "12.50", "refunded": "12.50", "charges": 1}]);
    assert_eq!((&audit["ok"], &audit["orders"], &audit["taken"]), (&json!(true), &order, &json!("0.00")));
    let told = it.end().await;
    assert_eq!(count(&told, "payment.refunded", "o"), 1);
}

async fn a_declined_card_stays_declined_for_the_order(place: Place) {
    let it = start(place).await;
    behave(&it, "u", "decline").await;
    let first = it.step("/payments/charge", "charge-card.do@o", charge("o", "5")).await;
    assert_eq!((first.status, first.error()), (402, "card_declined"));
    behave(&it, "u", "ok").await;
    assert_eq!(it.step("/payments/charge", "charge-card.do@o", charge("o", "5")).await, first);
    let looked_up = it.get("/payments/lookup?key=charge-card.do@o").await.body;
    assert_eq!(looked_up, json!({"state": "rejected", "answer": first.body}));
    let refunded = it.step("/payments/refund", "charge-card.undo@o", json!({"orderId": "o"})).await;
    assert_eq!((refunded.status, &refunded.body["refunded"]), (200, &json!("0.00")));
    // Another order of the same user pays.
    assert_eq!(it.step("/payments/charge", "charge-card.do@o2", charge("o2", "5")).await.status, 200);
    let told = it.end().await;
    assert_eq!((count(&told, "payment.failed", "o"), count(&told, "payment.refunded", "o")), (1, 0));
    let failed = told.iter().find(|event| event.kind == "payment.failed").unwrap();
    assert_eq!(failed.data["reason"], "card_declined");
}

async fn a_charge_that_comes_after_its_refund_is_refused(place: Place) {
    let it = start(place).await;
    let refunded = it.step("/payments/refund", "charge-card.undo@o", json!({"orderId": "o"})).await;
    assert_eq!((refunded.status, &refunded.body["refunded"]), (200, &json!("0.00")));
    for _ in 0..2 {
        let late = it.step("/payments/charge", "charge-card.do@o", charge("o", "5")).await;
        assert_eq!((late.status, late.body), (409, json!({"error": "already_compensated"})));
    }
    let audit = it.get("/_audit").await.body;
    assert_eq!((&audit["ok"], &audit["taken"]), (&json!(true), &json!("0.00")));
    assert_eq!(it.end().await, []);
}

async fn an_order_is_charged_under_one_key_alone(place: Place) {
    let it = start(place).await;
    assert_eq!(it.step("/payments/charge", "charge-card.do@o", charge("o", "5")).await.status, 200);
    for _ in 0..2 {
        let second = it.step("/payments/charge", "charge-again.do@o", charge("o", "5")).await;
        assert_eq!((second.status, second.error()), (409, "already_charged"));
    }
    let audit = it.get("/_audit").await.body;
    assert_eq!(
        (&audit["ok"], &audit["taken"], &audit["charged"]),
        (&json!(true), &json!("5.00"), &json!("5.00"))
    );
}

async fn a_key_is_for_one_charge(place: Place) {
    let it = start(place).await;
    it.step("/payments/charge", "charge-card.do@o", charge("o", "5")).await;
    for other in [charge("o", "6"), charge("x", "5")] {
        assert_eq!(it.step("/payments/charge", "charge-card.do@o", other).await.status, 422);
    }
    let other = it.step("/payments/refund", "charge-card.undo@o", json!({"orderId": "x"})).await;
    assert_eq!(other.status, 422);
    let audit = it.get("/_audit").await.body;
    assert_eq!((&audit["ok"], &audit["taken"]), (&json!(true), &json!("5.00")));
}

async fn wrong_requests_are_refused_before_anything_is_done(place: Place) {
    let it = start(place).await;
    let post = async |path: &str, key: Option<&str>, body: Value| match key {
        Some(key) => it.step(path, key, body).await,
        None => it.post(path, body).await,
    };
    for key in [None, Some("o"), Some("charge-card.undo@o")] {
        let answer = post("/payments/charge", key, charge("o", "1")).await;
        assert_eq!(answer.status, 400, "{key:?}");
        assert!(answer.error().contains("Idempotency-Key"), "{answer:?}");
    }
    let refund = post("/payments/refund", Some("charge-card.do@o"), json!({"orderId": "o"})).await;
    assert_eq!(refund.status, 400);
    let good = Some("charge-card.do@o");
    for amount in [
        json!("0"),
        json!("0.00"),
        json!("-1"),
        json!(-0.01),
        json!("1.005"),
        json!("x"),
        json!(null),
        json!(1e300),
        json!("10000000000.01"),
        json!("92233720368547758.07"),
        json!(9_223_372_036_854_775_807_i64),
    ] {
        let answer = post("/payments/charge", good, charge("o", amount.clone())).await;
        assert_eq!(answer.status, 400, "{amount}");
        assert!(!answer.error().is_empty());
    }
    for body in [
        json!({}),
        charge("", "1"),
        charge("a\nb", "1"),
        charge(&"x".repeat(201), "1"),
        json!({"orderId": "o", "userId": "", "amount": "1"}),
    ] {
        assert_eq!(post("/payments/charge", good, body.clone()).await.status, 400, "{body}");
    }
    // Money moves by POST alone.
    for path in ["/payments/charge", "/payments/refund"] {
        assert_eq!(it.get(path).await.status, 405, "{path}");
    }
    for path in ["/payments/lookup", "/payments/lookup?key=o"] {
        assert_eq!(it.get(path).await.status, 400, "{path}");
    }
    let twice = it.get("/payments/lookup?key=%FF&%FF=").await;
    assert_eq!((twice.status, twice.error()), (400, "`key` is no key of a saga's step"));
    let odd = it.get("/payments/order/%FF").await;
    assert_eq!((odd.status, odd.error()), (400, "Malformed path"));
    let odd = it.put("/payments/cards/%FF", json!({"behaviour": "ok"})).await;
    assert_eq!((odd.status, odd.error()), (400, "Malformed path"));
    assert_eq!(it.put("/payments/cards/u", json!({"behaviour": "generous"})).await.status, 400);
    assert_eq!(it.get("/_audit").await.body["charged"], "0.00");
    assert_eq!(
        it.step("/payments/charge", "charge-card.do@o", charge("o", "10000000000.00")).await.status,
        200
    );
    let wrong = it.get("/_audit?limit=many").await;
    assert!(wrong.status == 400 && !wrong.error().is_empty(), "{wrong:?}");
    // Only for those who show a token.
    let open = http::Request::get("/_audit").body(axum::body::Body::empty()).unwrap();
    assert_eq!(it.send(open).await.status, 401);
}

async fn a_charge_whose_answer_was_lost_is_answered_when_asked_again(place: Place) {
    let it = start(place).await;
    it.put("/_faults", json!({"effectThenFailPercent": 100})).await;
    assert_eq!(it.step("/payments/charge", "charge-card.do@o", charge("o", "5")).await.status, 500);
    it.call(http::Method::DELETE, "/_faults", "").await;
    assert_eq!(it.step("/payments/charge", "charge-card.do@o", charge("o", "5")).await.status, 200);
    let found = it.get("/payments/order/o").await.body;
    assert_eq!(found["charged"], "5.00");
    assert_eq!(it.get("/_audit").await.body["ok"], true);
}

async fn books_that_are_wrong_are_found_out(place: Place) {
    let it = start(place).await;
    for order in ["a", "b"] {
        it.step("/payments/charge", &format!("charge-card.do@{order}"), charge(order, "5")).await;
    }
    assert_eq!(it.get("/_audit").await.body["ok"], true);
    // What no request can do.
    let db = Db::open(it.context.place(order_payments::NAME), order_payments::MIGRATIONS).await.unwrap();
    let change =
        async |sql: &'static str| db.write(async move |tx| tx.execute(sql, &[]).await).await.map(drop);
    let changed: Result<_, DbError> = async {
        change("drop index entry_charge").await?;
        change(
            "insert into entry (payment_id, order_id, key, amount, at)
             select payment_id, order_id, 'other', amount, at from entry where order_id = 'a'",
        )
        .await?;
        change(
            "insert into entry (payment_id, order_id, key, amount, at)
             select payment_id, order_id, key, -amount - 1, at from entry where order_id = 'b'",
        )
        .await
    }
    .await;
    changed.unwrap();
    let audit = it.get("/_audit").await.body;
    assert_eq!((&audit["ok"], &audit["chargedTwice"]), (&json!(false), &json!(["a"])));
    assert_eq!(audit["overRefunded"], json!(["b"]));
    assert_eq!(audit["unsettled"], json!(["charge-card.do@b", "other"]));
    let sums: Vec<_> =
        audit["orders"].as_array().unwrap().iter().map(|order| order["charged"].clone()).collect();
    assert_eq!(sums, ["10.00", "5.00"]);
    assert_eq!(
        (&audit["charged"], &audit["refunded"], &audit["taken"]),
        (&json!("15.00"), &json!("5.01"), &json!("10.00"))
    );

    // Another sum than the ledger's, money that the ledger does not know of, and more of it than anybody reads.
    let changed: Result<_, DbError> = async {
        change("update psp_capture set minor_units = 499 where reference = 'charge-card.do@a'").await?;
        change("delete from entry where order_id = 'b'").await
    }
    .await;
    changed.unwrap();
    let audit = it.get("/_audit").await.body;
    assert_eq!(audit["unsettled"], json!(["charge-card.do@a", "charge-card.do@b", "other"]));
    let many = async move |tx: &order_kit::Tx<'_>| {
        for number in 10..40 {
            let sql = format!(
                "insert into psp_capture (reference, shopper, minor_units, outcome, voided)
                 values ('a{number}', 'u', 1, 'captured', 0)"
            );
            tx.execute(&sql, &[]).await?;
        }
        Ok::<_, DbError>(())
    };
    db.write(many).await.unwrap();
    let audit = it.get("/_audit").await.body;
    let first: Vec<_> = (10..30).map(|number| format!("a{number}")).collect();
    assert_eq!((&audit["unsettled"], &audit["taken"]), (&json!(first), &json!("10.29")));
}

async fn the_service_describes_its_routes_and_is_ready(place: Place) {
    let it = start(place).await;
    let api = it.get("/openapi.json").await.body;
    let paths: Vec<_> = api["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        paths,
        [
            "/payments/cards/{userId}",
            "/payments/charge",
            "/payments/lookup",
            "/payments/order/{orderId}",
            "/payments/refund"
        ]
    );
    let ready = it.get("/health/ready").await;
    assert_eq!((ready.status, &ready.body["status"]), (200, &json!("ok")));
    for check in ["database", "messageQueue"] {
        assert_eq!(ready.body["checks"][check]["status"], "ok");
    }
}
