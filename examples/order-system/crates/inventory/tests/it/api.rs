//! The documented answers, and that one order moves stock once.

use order_kit::{Db, db::DbError, env::Env};
use serde_json::{Value, json};

use crate::{
    on_both,
    service::{Bench, Place, count},
};

async fn start(place: Place) -> Bench {
    Bench::start(place, order_inventory::NAME, Env::empty(), order_inventory::build).await
}

fn wanted(order: &str, items: &[(&str, i64)]) -> Value {
    let items: Vec<_> =
        items.iter().map(|(product, quantity)| json!({"productId": product, "quantity": quantity})).collect();
    json!({"orderId": order, "items": items})
}

fn level(product: &str, on_hand: i64, reserved: i64) -> Value {
    json!({"productId": product, "onHand": on_hand, "reserved": reserved, "available": on_hand - reserved})
}

on_both!(
    a_reservation_holds_and_a_commit_decrements_once,
    a_release_frees_once_however_often_it_comes,
    what_is_not_there_is_refused_for_good_and_holds_nothing,
    a_reservation_that_comes_after_its_release_is_refused,
    what_left_the_shelf_is_not_released_and_what_was_released_is_not_committed,
    a_key_is_for_one_thing,
    wrong_requests_are_refused_before_anything_is_done,
    the_shelf_cannot_hold_less_than_what_is_held,
    an_effect_whose_answer_was_lost_is_answered_when_asked_again,
    an_event_alone_decrements_nothing,
    books_that_are_wrong_are_found_out,
    the_service_describes_its_routes_and_is_ready,
);

async fn a_reservation_holds_and_a_commit_decrements_once(place: Place) {
    let it = start(place).await;
    assert_eq!(it.put("/inventory/p1", json!({"quantity": 10})).await.body, level("p1", 10, 0));
    it.put("/inventory/p2", json!({"quantity": 5})).await;
    let wanted = wanted("o1", &[("p2", 1), ("p1", 2), ("p2", 2)]);
    let first = it.step("/inventory/reserve", "reserve-stock.do@o1", wanted.clone()).await;
    let items = json!([{"productId": "p1", "quantity": 2}, {"productId": "p2", "quantity": 3}]);
    assert_eq!(
        (first.status, &first.body),
        (200, &json!({"orderId": "o1", "reserved": true, "items": items}))
    );
    for _ in 0..3 {
        assert_eq!(it.step("/inventory/reserve", "reserve-stock.do@o1", wanted.clone()).await, first);
    }
    assert_eq!(it.get("/inventory/p1").await.body, level("p1", 10, 2));
    assert_eq!(it.get("/inventory/p2").await.body, level("p2", 5, 3));
    for _ in 0..3 {
        let committed = it.step("/inventory/commit", "commit-stock.do@o1", json!({"orderId": "o1"})).await;
        assert_eq!((committed.status, &committed.body["committed"]), (200, &json!(true)));
    }
    assert_eq!(it.get("/inventory/p1").await.body, level("p1", 8, 0));
    assert_eq!(it.get("/inventory/p2").await.body, level("p2", 2, 0));
    let reservation = it.get("/inventory/reservations/o1").await.body;
    assert_eq!((&reservation["state"], &reservation["items"]), (&json!("committed"), &items));
    assert_eq!(it.get("/_audit").await.body["ok"], true);
    let told = it.end().await;
    assert_eq!((count(&told, "inventory.reserved", "o1"), told.len()), (1, 1));
}

async fn a_release_frees_once_however_often_it_comes(place: Place) {
    let it = start(place).await;
    it.put("/inventory/p", json!({"quantity": 10})).await;
    it.step("/inventory/reserve", "reserve-stock.do@o", wanted("o", &[("p", 4)])).await;
    it.step("/inventory/reserve", "reserve-stock.do@other", wanted("other", &[("p", 4)])).await;
    for _ in 0..3 {
        let released = it.step("/inventory/release", "reserve-stock.undo@o", json!({"orderId": "o"})).await;
        assert_eq!((released.status, released.body), (200, json!({"orderId": "o", "released": true})));
        assert_eq!(it.get("/inventory/p").await.body, level("p", 10, 4));
    }
    assert_eq!(it.get("/inventory/reservations/o").await.body["state"], "released");
    let told = it.end().await;
    assert_eq!(count(&told, "inventory.released", "o"), 1);
}

async fn what_is_not_there_is_refused_for_good_and_holds_nothing(place: Place) {
    let it = start(place).await;
    it.put("/inventory/a", json!({"quantity": 10})).await;
    it.put("/inventory/b", json!({"quantity": 1})).await;
    let order = wanted("o", &[("a", 3), ("b", 2)]);
    let refused = it.step("/inventory/reserve", "reserve-stock.do@o", order.clone()).await;
    let expected =
        json!({"error": "out_of_stock", "orderId": "o", "productId": "b", "requested": 2, "available": 1});
    assert_eq!((refused.status, &refused.body), (409, &expected));
    assert_eq!(it.get("/inventory/a").await.body, level("a", 10, 0));
    // There is more by then, and the answer stays.
    it.put("/inventory/b", json!({"quantity": 100})).await;
    assert_eq!(it.step("/inventory/reserve", "reserve-stock.do@o", order).await, refused);
    assert_eq!(it.get("/inventory/reservations/o").await.body["state"], "refused");
    // Nothing to release; and a product that nobody knows is out of stock.
    assert_eq!(
        it.step("/inventory/release", "reserve-stock.undo@o", json!({"orderId": "o"})).await.status,
        200
    );
    let unknown =
        it.step("/inventory/reserve", "reserve-stock.do@o2", wanted("o2", &[("a", 1), ("none", 1)])).await;
    assert_eq!(
        (unknown.status, unknown.error(), &unknown.body["available"]),
        (409, "out_of_stock", &json!(0))
    );
    assert_eq!(it.get("/inventory/a").await.body, level("a", 10, 0));
    let told = it.end().await;
    assert_eq!(
        (count(&told, "inventory.reservation.failed", "o"), count(&told, "inventory.released", "o")),
        (1, 0)
    );
}

async fn a_reservation_that_comes_after_its_release_is_refused(place: Place) {
    let it = start(place).await;
    it.put("/inventory/p", json!({"quantity": 10})).await;
    assert_eq!(
        it.step("/inventory/release", "reserve-stock.undo@o", json!({"orderId": "o"})).await.status,
        200
    );
    for _ in 0..2 {
        let late = it.step("/inventory/reserve", "reserve-stock.do@o", wanted("o", &[("p", 1)])).await;
        assert_eq!((late.status, late.error()), (409, "already_compensated"));
    }
    assert_eq!(it.get("/inventory/p").await.body, level("p", 10, 0));
    assert_eq!(it.get("/inventory/reservations/o").await.status, 404);
    assert_eq!(it.end().await, []);
}

async fn what_left_the_shelf_is_not_released_and_what_was_released_is_not_committed(place: Place) {
    let it = start(place).await;
    it.put("/inventory/p", json!({"quantity": 10})).await;
    let commit = async |order: &str| {
        it.step("/inventory/commit", &format!("commit-stock.do@{order}"), json!({"orderId": order})).await
    };
    let release = async |order: &str| {
        it.step("/inventory/release", &format!("reserve-stock.undo@{order}"), json!({"orderId": order})).await
    };
    let early = commit("o").await;
    assert_eq!((early.status, early.error()), (409, "not_reserved"));
    it.step("/inventory/reserve", "reserve-stock.do@o", wanted("o", &[("p", 3)])).await;
    assert_eq!(commit("o").await.status, 200);
    for _ in 0..2 {
        let refused = release("o").await;
        assert_eq!((refused.status, refused.error()), (409, "already_committed"));
    }
    it.step("/inventory/reserve", "reserve-stock.do@o2", wanted("o2", &[("p", 3)])).await;
    assert_eq!(release("o2").await.status, 200);
    for _ in 0..2 {
        let refused = commit("o2").await;
        assert_eq!((refused.status, refused.error()), (409, "already_compensated"));
    }
    assert_eq!(it.get("/inventory/p").await.body, level("p", 7, 0));
}

async fn a_key_is_for_one_thing(place: Place) {
    let it = start(place).await;
    it.put("/inventory/p", json!({"quantity": 10})).await;
    it.step("/inventory/reserve", "reserve-stock.do@o", wanted("o", &[("p", 1)])).await;
    let other = it.step("/inventory/reserve", "reserve-stock.do@o", wanted("o", &[("p", 2)])).await;
    assert_eq!(other.status, 422);
    let other = it.step("/inventory/release", "reserve-stock.undo@o", json!({"orderId": "x"})).await;
    assert_eq!(other.status, 422);
    let other = it.step("/inventory/reserve", "again.do@o", wanted("o", &[("p", 1)])).await;
    assert_eq!((other.status, other.error()), (409, "already_reserved"));
    assert_eq!(it.get("/inventory/p").await.body, level("p", 10, 1));
}

async fn wrong_requests_are_refused_before_anything_is_done(place: Place) {
    let it = start(place).await;
    it.put("/inventory/p", json!({"quantity": 100_000})).await;
    let reserve = async |key: Option<&str>, body: Value| match key {
        Some(key) => it.step("/inventory/reserve", key, body).await,
        None => it.post("/inventory/reserve", body).await,
    };
    let good = Some("reserve-stock.do@o");
    for key in [None, Some("o"), Some("reserve-stock.undo@o")] {
        let answer = reserve(key, wanted("o", &[("p", 1)])).await;
        assert_eq!(answer.status, 400, "{key:?}");
        assert!(answer.error().contains("Idempotency-Key"), "{answer:?}");
    }
    for path in ["/inventory/%FF", "/inventory/reservations/%FF"] {
        let odd = it.get(path).await;
        assert_eq!((odd.status, odd.error()), (400, "Malformed path"), "{path}");
    }
    let many: Vec<_> = (0..101).map(|_| ("p", 1)).collect();
    for body in [
        wanted("o", &[]),
        wanted("o", &many),
        wanted("o", &[("p", 0)]),
        wanted("o", &[("p", -1)]),
        wanted("o", &[("p", 10_001)]),
        wanted("o", &[("", 1)]),
        wanted("", &[("p", 1)]),
        wanted("a\nb", &[("p", 1)]),
        wanted(&"x".repeat(201), &[("p", 1)]),
        json!({"orderId": "o"}),
        json!({"orderId": "o", "items": [{"productId": "p", "quantity": 1.5}]}),
        json!({"orderId": "o", "items": [{"productId": "p", "quantity": "1"}]}),
    ] {
        let answer = reserve(good, body.clone()).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(!answer.error().is_empty());
    }
    // The sum of what stands there twice may be more than a line may have.
    assert_eq!(reserve(good, wanted("o", &[("p", 10_000), ("p", 10_000)])).await.status, 200);
    assert_eq!(it.get("/inventory/p").await.body["reserved"], 20_000);
    for quantity in [json!(-1), json!(1_000_000_001), json!("x"), json!(null)] {
        assert_eq!(it.put("/inventory/p", json!({"quantity": quantity})).await.status, 400);
    }
    for path in ["/inventory/none", "/inventory/reservations/none"] {
        assert_eq!(it.get(path).await.status, 404);
    }
    let release = json!({"orderId": "o"});
    assert_eq!(it.step("/inventory/release", "reserve-stock.do@o", release.clone()).await.status, 400);
    assert_eq!(it.step("/inventory/commit", "reserve-stock.undo@o", release).await.status, 400);
}

async fn the_shelf_cannot_hold_less_than_what_is_held(place: Place) {
    let it = start(place).await;
    it.put("/inventory/p", json!({"quantity": 10})).await;
    it.step("/inventory/reserve", "reserve-stock.do@o", wanted("o", &[("p", 4)])).await;
    assert_eq!(it.put("/inventory/p", json!({"quantity": 3})).await.status, 409);
    assert_eq!(it.put("/inventory/p", json!({"quantity": 4})).await.body, level("p", 4, 4));
    let audit = it.get("/_audit").await.body;
    assert_eq!(audit["ok"], true, "{audit}");
    assert_eq!(audit["products"][0]["received"], 4);
}

async fn an_effect_whose_answer_was_lost_is_answered_when_asked_again(place: Place) {
    let it = start(place).await;
    it.put("/inventory/p", json!({"quantity": 10})).await;
    it.put("/_faults", json!({"effectThenFailPercent": 100})).await;
    let lost = it.step("/inventory/reserve", "reserve-stock.do@o", wanted("o", &[("p", 3)])).await;
    assert_eq!(lost.status, 500);
    it.call(http::Method::DELETE, "/_faults", "").await;
    let again = it.step("/inventory/reserve", "reserve-stock.do@o", wanted("o", &[("p", 3)])).await;
    assert_eq!(again.status, 200);
    assert_eq!(it.get("/inventory/p").await.body, level("p", 10, 3));
}

async fn an_event_alone_decrements_nothing(place: Place) {
    let it = start(place).await;
    it.put("/inventory/p", json!({"quantity": 10})).await;
    let data = json!({"orderId": "o", "userId": "u", "total": "1.00", "items": [{"productId": "p", "quantity": 3, "price": "1.00"}]});
    for kind in ["order.created", "order.confirmed"] {
        it.tell(kind, kind, "o", data.clone()).await;
    }
    assert!(it.context.broker().stats("inventory.saga").await.is_err(), "nobody made a queue");
    assert_eq!(it.get("/inventory/p").await.body, level("p", 10, 0));
    assert_eq!(it.get("/inventory/reservations/o").await.status, 404);
}

async fn books_that_are_wrong_are_found_out(place: Place) {
    let it = start(place).await;
    for product in ["lost", "right", "unheld"] {
        it.put(&format!("/inventory/{product}"), json!({"quantity": 10})).await;
    }
    it.step("/inventory/reserve", "reserve-stock.do@o", wanted("o", &[("unheld", 2), ("right", 2)])).await;
    assert_eq!(it.get("/_audit").await.body["ok"], true);
    // What no request can do.
    let db =
        Db::open(it.context.place(order_inventory::NAME), order_inventory::stock::MIGRATIONS).await.unwrap();
    for sql in [
        "update stock set on_hand = on_hand - 1 where product_id = 'lost'",
        "update stock set reserved = reserved - 1 where product_id = 'unheld'",
    ] {
        let changed: Result<_, DbError> = db.write(async move |tx| tx.execute(sql, &[]).await).await;
        assert_eq!(changed.unwrap(), 1);
    }
    let audit = it.get("/_audit").await.body;
    assert_eq!(audit["ok"], false);
    let products = audit["products"].as_array().unwrap();
    let right: Vec<_> = products.iter().map(|it| (it["productId"].as_str().unwrap(), &it["ok"])).collect();
    assert_eq!(right, [("lost", &json!(false)), ("right", &json!(true)), ("unheld", &json!(false))]);
}

async fn the_service_describes_its_routes_and_is_ready(place: Place) {
    let it = start(place).await;
    let api = it.get("/openapi.json").await.body;
    let paths: Vec<_> = api["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        paths,
        [
            "/inventory/commit",
            "/inventory/release",
            "/inventory/reservations/{orderId}",
            "/inventory/reserve",
            "/inventory/{productId}"
        ]
    );
    let ready = it.get("/health/ready").await;
    assert_eq!((ready.status, &ready.body["status"]), (200, &json!("ok")));
    for check in ["database", "messageQueue"] {
        assert_eq!(ready.body["checks"][check]["status"], "ok");
    }
}
