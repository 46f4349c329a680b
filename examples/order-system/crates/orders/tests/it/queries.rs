//! The side that is asked, and what stands in for the user service.

use axum::Router;
use http::{Method, StatusCode};
use order_kit::{
    Context,
    server::{Access, router},
};
use serde_json::{Value, json};

use crate::world::{Mood, World, event, eventually, publish, send};

async fn instance(world: &World) -> (Context, Router) {
    let context = world.context_of("orders-read");
    let service = order_orders::build_read(context.clone()).await.unwrap();
    let router = router(&context, service, Access::Services);
    (context, router)
}

async fn rows(router: &Router, user: &str) -> Value {
    let answer = send(router, Method::GET, &format!("/orders/user/{user}"), &[], None).await;
    assert_eq!(answer.status, StatusCode::OK);
    answer.body
}

fn changed(id: &str, version: i64, status: &str) -> Value {
    json!({
        "orderId": id, "userId": "ada", "items": [{ "productId": "lamp", "quantity": 1, "price": "0.10" }],
        "total": "0.10", "timestamp": format!("2026-01-01T00:00:0{version}.000Z"), "status": status,
        "version": version, "createdAt": "2026-01-01T00:00:00.000Z",
    })
}

#[tokio::test]
async fn the_newest_wins_however_often_and_in_whatever_order_events_come() {
    let world = World::new().await;
    let (context, router) = instance(&world).await;
    let mut naive_is_wrong = false;
    for seed in 0..20_u64 {
        let id = format!("order-{seed:02}");
        let mut deliveries: Vec<(&str, i64, &str)> = [
            ("order.created", 1, "pending"),
            ("order.updated", 2, "waiting_payment"),
            ("order.confirmed", 3, "confirmed"),
            ("order.paid", 3, "confirmed"),
        ]
        .repeat(5);
        // Fisher-Yates with a small generator: the same order for the same seed.
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for at in (1..deliveries.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            deliveries.swap(at, (state >> 33) as usize % (at + 1));
        }
        // What a side that believes the last one would say.
        naive_is_wrong |= deliveries.last().unwrap().2 != "confirmed";
        for (kind, version, status) in deliveries {
            publish(&*world.broker, event(kind, &id, changed(&id, version, status))).await;
        }
    }
    assert!(naive_is_wrong, "the deliveries show nothing");
    world.publish("order.shipped", "order-00", json!({ "whatever": true })).await;
    eventually("all is read", async || {
        world.broker.stats(order_orders::ORDERS_QUEUE).await.unwrap().backlog() == 0
    })
    .await;
    let rows = rows(&router, "ada").await;
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 20);
    for row in rows {
        let id = row["orderId"].as_str().unwrap();
        assert_eq!(
            *row,
            json!({
                "orderId": id, "userId": "ada", "summary": format!("Order #{id} - 0.10"), "itemCount": 1,
                "createdAt": "2026-01-01T00:00:00.000Z", "status": "confirmed",
            })
        );
    }
    let dead = world.broker.dead_letters(order_orders::ORDERS_QUEUE, 10).await.unwrap();
    assert!(dead.is_empty(), "an event of a kind that nobody knows is no failure: {dead:?}");
    context.stop().cancel();
    world.end().await;
}

#[tokio::test]
async fn queries_are_answered_without_the_side_that_accepts_and_by_more_than_one() {
    let world = World::new().await;
    let id = world.order("ada", 3).await;
    world.over(&id).await;
    let order = world.decided(&id).await;
    eventually("the row is there", async || rows(&world.router, "ada").await[0]["status"] == "confirmed")
        .await;
    world.end().await;
    let (first, one) = instance(&world).await;
    let (second, two) = instance(&world).await;
    let expected = json!([{
        "orderId": id, "userId": "ada", "summary": format!("Order #{id} - 0.30"), "itemCount": 1,
        "createdAt": order["createdAt"], "status": "confirmed",
    }]);
    assert_eq!((rows(&one, "ada").await, rows(&two, "ada").await), (expected.clone(), expected));
    let placed = send(&one, Method::POST, "/orders", &[], Some(json!({}))).await;
    assert_eq!(placed.status, StatusCode::NOT_FOUND, "nothing is accepted there");
    first.stop().cancel();
    second.stop().cancel();
}

#[tokio::test]
async fn the_read_side_is_rebuilt_from_events() {
    let world = World::new().await;
    world.neighbours.declined.lock().unwrap().insert("eve".to_owned());
    for user in ["ada", "eve", "ada", "eve"] {
        let id = world.order(user, 1).await;
        world.over(&id).await;
    }
    eventually("all is read", async || {
        let (ada, eve) = (rows(&world.router, "ada").await, rows(&world.router, "eve").await);
        let all = |rows: &Value, status: &str| {
            let rows = rows.as_array().unwrap();
            rows.len() == 2 && rows.iter().all(|row| row["status"] == status)
        };
        all(&ada, "confirmed") && all(&eve, "cancelled")
    })
    .await;
    let before = (rows(&world.router, "ada").await, rows(&world.router, "eve").await);
    world.end().await;
    for file in ["orders-read.db", "orders-read.db-wal", "orders-read.db-shm"] {
        let _ = std::fs::remove_file(world.data().join(file));
    }
    for _ in 0..2 {
        assert!(order_orders::rebuild(world.context_of("orders")).await.unwrap() >= 10);
        let (context, router) = instance(&world).await;
        assert_eq!((rows(&router, "ada").await, rows(&router, "eve").await), before);
        context.stop().cancel();
    }
}

#[tokio::test]
async fn a_rebuild_that_fails_on_its_way_leaves_the_lists_as_they_were() {
    let world = World::new().await;
    let id = world.order("ada", 1).await;
    world.over(&id).await;
    eventually("all is read", async || rows(&world.router, "ada").await[0]["status"] == "confirmed").await;
    let before = rows(&world.router, "ada").await;
    world.end().await;
    let file = rusqlite::Connection::open(world.data().join("orders.db")).unwrap();
    let spoil = |from: &str, to: &str| {
        let sql = "update order_event set envelope = replace(envelope, ?1, ?2) where seq = (select max(seq) from order_event)";
        assert_eq!(file.execute(sql, [from, to]).unwrap(), 1);
    };
    spoil("\"version\":", "\"vision\":");
    let failed = order_orders::rebuild(world.context_of("orders")).await;
    assert!(failed.is_err(), "{failed:?}");
    let (context, router) = instance(&world).await;
    assert_eq!(rows(&router, "ada").await, before);
    context.stop().cancel();
    spoil("\"vision\":", "\"version\":");
    order_orders::rebuild(world.context_of("orders")).await.unwrap();
    let (context, router) = instance(&world).await;
    assert_eq!(rows(&router, "ada").await, before);
    context.stop().cancel();
}

#[tokio::test]
async fn details_name_the_user_or_say_that_they_cannot() {
    let world = World::new().await;
    let (known, stranger) = (world.order("ada", 1).await, world.order("stranger-1", 1).await);
    let details = async |id: &str| world.get(&format!("/orders/{id}/details")).await;
    let well = details(&known).await;
    assert_eq!((&well.body["user"]["name"], &well.body["id"]), (&json!("Name of ada"), &json!(known)));
    assert!(!well.headers.contains_key("x-fallback"));

    world.neighbours.set("users", Mood::Failing);
    let recent = details(&stranger).await;
    assert_eq!((recent.status, &recent.headers["x-fallback"]), (StatusCode::OK, &"user".parse().unwrap()));
    assert_eq!(
        recent.body["user"]["name"], "Name of stranger-1",
        "the last good value, though no event named it"
    );

    // Somebody has another name since. An older event that comes late changes nothing, even if the clock of who said it was ahead.
    let heard = |kind: &str, name: &str, revision: i64, timestamp: &str| {
        let user =
            json!({ "id": "ada", "name": name, "email": "a@b", "createdAt": "now", "revision": revision });
        let mut message = event(kind, "ada", user);
        let mut envelope: Value = serde_json::from_str(&message.body).unwrap();
        envelope["metadata"]["timestamp"] = json!(timestamp);
        message.body = envelope.to_string();
        message
    };
    let older = heard("user.updated", "Old", 9, "2026-01-01T12:00:00.000Z");
    let newer = heard("user.updated", "New", 10, "2026-01-01T11:00:00.000Z");
    let first = heard("user.created", "First", 2, "2026-01-01T13:00:00.000Z");
    for message in [newer.clone(), newer, older, first] {
        publish(&*world.broker, message).await;
    }
    eventually("it is heard", async || {
        world.broker.stats(order_orders::USERS_QUEUE).await.unwrap().backlog() == 0
            && details(&known).await.body["user"]["name"] == "New"
    })
    .await;
    assert_eq!(details(&known).await.headers["x-fallback"], "user");
    assert_eq!(details("none").await.status, StatusCode::NOT_FOUND);
    world.end().await;
}

#[tokio::test]
async fn a_user_of_whom_nobody_has_heard_has_a_default_name() {
    let world = World::new().await;
    world.neighbours.set("users", Mood::Failing);
    world.neighbours.set("charge", Mood::Failing);
    let id = world.order("ada", 1).await;
    let answer = world.get(&format!("/orders/{id}/details")).await;
    assert_eq!(answer.headers["x-fallback"], "user");
    assert_eq!(answer.body["user"], json!({ "id": "ada", "name": "Unknown (service unavailable)" }));
    world.end().await;
}

#[tokio::test]
async fn a_user_who_does_not_exist_is_not_one_whose_service_is_away() {
    let world = World::new().await;
    world.neighbours.set("users", Mood::Failing);
    let id = world.order("nobody-1", 1).await;
    world.neighbours.set("users", Mood::Well);
    // The breaker may have to close first.
    eventually("the service answers", async || {
        let answer = world.get(&format!("/orders/{id}/details")).await;
        answer.body["user"] == json!({ "id": "nobody-1", "name": "Unknown user" })
            && !answer.headers.contains_key("x-fallback")
    })
    .await;
    world.end().await;
}
