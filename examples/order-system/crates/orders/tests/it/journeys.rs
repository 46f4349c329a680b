//! What becomes of orders, whatever becomes of the neighbours.

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use order_kit::env;
use serde_json::json;

use crate::world::{Mood, World, eventually, order_of};

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

#[tokio::test]
async fn an_order_is_accepted_at_once_while_nobody_hears_of_the_payment_service() {
    let world = World::new().await;
    world.neighbours.set("charge", Mood::Hanging);
    let mut fastest = Duration::MAX;
    let mut id = String::new();
    for _ in 0..20 {
        let began = Instant::now();
        id = world.order("ada", 1).await;
        fastest = fastest.min(began.elapsed());
    }
    // The fastest, since this machine does other things, too.
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
    world.until(&id, "waiting_payment").await;
    world.end().await;
}

#[tokio::test]
async fn who_hangs_holds_the_calls_of_its_own_bulkhead_and_nobody_elses() {
    const ORDERS: usize = 30;
    let world = World::new().await;
    world.neighbours.set("charge", Mood::Hanging);
    let mut id = String::new();
    for _ in 0..ORDERS {
        id = world.order("ada", 1).await;
    }
    let bulkheads = async || {
        let policies = world.get("/_policies").await.body;
        let of = |name: &str| {
            let named =
                |policy: &&serde_json::Value| policy["policy"] == "bulkhead" && policy["name"] == name;
            let found = policies.as_array().unwrap().iter().find(named).unwrap();
            ["in_use", "waiting", "limit"].map(|number| found[number].as_u64().unwrap())
        };
        [of("payment"), of("user"), of("inventory")]
    };
    // Who waits gives up after a second and comes again, so it is not said how many do.
    eventually("ten calls, a queue, and nobody else's places are taken", async || {
        let [[charging, waiting, limit], user, inventory] = bulkheads().await;
        (charging, limit) == (10, 10) && waiting > 0 && user == [0, 0, 20] && inventory == [0, 0, 20]
    })
    .await;
    // Users are asked as before, and another order is accepted.
    let began = Instant::now();
    assert_eq!(world.get(&format!("/orders/{id}/details")).await.body["user"]["name"], "Name of ada");
    world.order("ada", 1).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    world.end().await;
}

#[tokio::test]
async fn three_lines_of_ten_cents_are_thirty() {
    let world = World::new().await;
    let items = ["a", "b", "a"].map(|product| json!({ "productId": product, "quantity": 1 }));
    let answer = world.post("/orders", json!({ "userId": "ada", "items": items, "unknown": true })).await;
    let order = world.decided(answer.body["id"].as_str().unwrap()).await;
    assert_eq!(order["total"], "0.30");
    assert_eq!(order["items"].as_array().unwrap().len(), 3);
    // Two products, asked for once each.
    assert_eq!(world.neighbours.products_asked.load(SeqCst), 2);
    world.end().await;
}

#[tokio::test]
async fn a_charge_whose_answer_is_lost_is_made_once() {
    let world = World::new().await;
    world.neighbours.set("charge", Mood::EffectThenFail);
    let id = world.order("ada", 1).await;
    world.until(&id, "waiting_payment").await;
    assert_eq!(world.neighbours.effects("charge", &id), 1);
    world.neighbours.set("charge", Mood::Well);
    assert_eq!(world.decided(&id).await["status"], "confirmed");
    assert_eq!((world.neighbours.effects("charge", &id), world.neighbours.effects("refund", &id)), (1, 0));
    world.end().await;
}

#[tokio::test]
async fn whoever_cannot_be_validated_may_order_and_is_validated_later() {
    let world = World::new().await;
    world.neighbours.set("users", Mood::Failing);
    let (ada, nobody) = (world.order("ada", 1).await, world.order("nobody", 1).await);
    world.neighbours.set("users", Mood::Well);
    assert_eq!(world.decided(&ada).await["status"], "confirmed");
    let order = world.decided(&nobody).await;
    assert_eq!(
        (order["status"].as_str(), order["reason"].as_str()),
        (Some("cancelled"), Some("unknown_user"))
    );
    assert!(world.neighbours.calls().iter().all(|key| !key.ends_with(&nobody)), "nobody was asked for it");
    world.end().await;
}

#[tokio::test]
async fn without_users_orders_are_degraded_and_take_orders_all_the_same() {
    let mut world = World::new().await;
    for (mood, status, said) in [
        (Mood::Well, "ok", "ok"),
        (Mood::Failing, "degraded", "fail"),
        (Mood::Hanging, "degraded", "timeout"),
    ] {
        world.neighbours.set("users", mood);
        let began = Instant::now();
        let ready = world.get("/health/ready").await;
        assert!(began.elapsed() < Duration::from_secs(2), "{mood:?}: {:?}", began.elapsed());
        assert_eq!(
            (ready.status, ready.body["status"].as_str()),
            (StatusCode::OK, Some(status)),
            "{ready:?}"
        );
        let checks = &ready.body["checks"];
        for check in ["database", "readDatabase", "messageQueue", "sagas"] {
            assert_eq!(checks[check]["status"], "ok", "{check}");
        }
        assert_eq!(checks["userService"]["status"], said);
        assert_eq!(checks["userService"]["error"].is_string(), said != "ok");
    }
    assert_eq!(world.neighbours.users_asked.load(SeqCst), 0, "nobody is asked for a user");
    world.neighbours.set("users", Mood::Failing);
    world.order("ada", 1).await;
    world.restart_with(env::READY_DEGRADED_STATUS, "503").await;
    assert_eq!(world.get("/health/ready").await.status, StatusCode::SERVICE_UNAVAILABLE, "if that is wanted");
    world.end().await;
}

#[tokio::test]
async fn without_prices_nothing_is_accepted() {
    let world = World::new().await;
    world.neighbours.set("products", Mood::Failing);
    let answer = world.post("/orders", order_of("ada", 1)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(world.get("/_audit").await.body["orders"], json!([]));
    world.end().await;
}

#[tokio::test]
async fn a_clients_key_is_one_order() {
    let world = World::new().await;
    let post =
        async |body| world.send(Method::POST, "/orders", &[("idempotency-key", "k 1")], Some(body)).await;
    let at_once = futures::future::join_all((0..8).map(|_| post(order_of("ada", 2)))).await;
    let id = at_once[0].body["id"].clone();
    for answer in at_once {
        assert_eq!((answer.status, &answer.body["id"]), (StatusCode::ACCEPTED, &id));
    }
    // Known before anybody is asked for a price.
    world.neighbours.set("products", Mood::Failing);
    assert_eq!(post(order_of("ada", 2)).await.body["id"], id);
    assert_eq!(post(order_of("ada", 3)).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    // Of another user it is another key.
    world.neighbours.set("products", Mood::Well);
    let of_eve = post(order_of("eve", 2)).await;
    assert_eq!(of_eve.status, StatusCode::ACCEPTED, "{of_eve:?}");
    assert_ne!(of_eve.body["id"], id);
    assert_eq!(post(order_of("eve", 2)).await.body["id"], of_eve.body["id"]);
    assert_eq!(post(order_of("eve", 3)).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(world.get("/_audit").await.body["orders"].as_array().unwrap().len(), 2);
    world.end().await;
}

#[tokio::test]
async fn a_customer_may_cancel_until_the_order_is_confirmed() {
    let world = World::new().await;
    let confirmed = world.order("ada", 1).await;
    world.decided(&confirmed).await;
    assert_eq!(
        world.post(&format!("/orders/{confirmed}/cancel"), json!(null)).await.status,
        StatusCode::CONFLICT
    );

    world.neighbours.set("charge", Mood::Failing);
    let waiting = world.order("ada", 5).await;
    world.until(&waiting, "waiting_payment").await;
    assert_eq!(
        world.post(&format!("/orders/{waiting}/cancel"), json!(null)).await.status,
        StatusCode::ACCEPTED
    );
    let order = world.decided(&waiting).await;
    assert_eq!(order["reason"], "cancelled_by_customer");
    assert_eq!(*world.neighbours.stock.lock().unwrap(), 999_999);
    assert_eq!(world.post("/orders/none/cancel", json!(null)).await.status, StatusCode::NOT_FOUND);
    world.end().await;
}

#[tokio::test]
async fn a_checkout_waits_for_the_end() {
    let world = World::new().await;
    let answer = world.post("/orders/checkout", order_of("ada", 1)).await;
    assert_eq!((answer.status.as_u16(), &answer.body["success"]), (200, &json!(true)));
    assert_eq!(answer.body["order"]["status"], "confirmed");
    world.neighbours.declined.lock().unwrap().insert("eve".to_owned());
    let answer = world.post("/orders/checkout", order_of("eve", 1)).await;
    assert_eq!((answer.status.as_u16(), &answer.body["error"]), (402, &json!("card_declined")));
    *world.neighbours.stock.lock().unwrap() = 0;
    let answer = world.post("/orders/checkout", order_of("ada", 1)).await;
    assert_eq!((answer.status.as_u16(), &answer.body["error"]), (409, &json!("out_of_stock")));
    assert_eq!(
        world.get("/orders/checkout").await.status,
        StatusCode::METHOD_NOT_ALLOWED,
        "a GET charges nobody"
    );
    world.end().await;
}

#[tokio::test]
async fn another_process_goes_on_where_one_has_ended() {
    let mut world = World::new().await;
    world.neighbours.set("charge", Mood::Failing);
    let id = world.order("ada", 1).await;
    world.until(&id, "waiting_payment").await;
    world.restart().await;
    world.neighbours.set("charge", Mood::Well);
    assert_eq!(world.decided(&id).await["status"], "confirmed");
    assert_eq!((world.neighbours.effects("reserve", &id), world.neighbours.effects("charge", &id)), (1, 1));
    world.over(&id).await;
    let timeline = world.get(&format!("/orders/{id}/timeline")).await.body;
    let processes: std::collections::BTreeSet<&str> =
        timeline["steps"].as_array().unwrap().iter().map(|step| step["process"].as_str().unwrap()).collect();
    assert_eq!(processes.len(), 2);
    world.end().await;
}

#[tokio::test]
async fn an_order_whose_saga_was_never_started_is_found() {
    // Without a saga nobody moves it on: as if the process had died right behind the commit.
    let mut world = World::with(|env| env.with(env::SAGA_STYLE, "choreography")).await;
    let id = world.order("ada", 1).await;
    world.restart_with(env::SAGA_STYLE, "orchestrated").await;
    assert_eq!(world.decided(&id).await["status"], "confirmed");
    assert_eq!(world.neighbours.effects("charge", &id), 1);
    world.end().await;
}

/// Measures; run it alone, in release: `cargo test --release -p order-orders --test it -- --ignored --nocapture how_many`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and says nothing on a machine that is busy"]
async fn how_many_orders_a_second() {
    let world = World::new().await;
    let began = Instant::now();
    let mut orders = Vec::new();
    for _ in 0..30 {
        orders.extend(futures::future::join_all((0..100).map(|_| world.order("ada", 1))).await);
    }
    let accepted = began.elapsed();
    for id in &orders {
        assert_eq!(world.decided(id).await["status"], "confirmed");
    }
    let per_second = |time: Duration| orders.len() as f64 / time.as_secs_f64();
    println!("{:.0} accepted, {:.0} confirmed a second", per_second(accepted), per_second(began.elapsed()));
    world.end().await;
}
