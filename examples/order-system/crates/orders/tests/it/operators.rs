//! What operators see and do.

use std::sync::Arc;

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use http::{Method, StatusCode};
use order_kit::{
    Context,
    context::Ports,
    env::{self, Env},
};
use serde_json::json;
use tower::ServiceExt;

use crate::world::{Mood, World, eventually, order_of};

#[tokio::test]
async fn a_compensation_that_fails_is_shown_tried_again_and_never_forgotten() {
    let world = World::new().await;
    world.neighbours.declined.lock().unwrap().insert("eve".to_owned());
    world.neighbours.set("release", Mood::Failing);
    let id = world.order("eve", 3).await;
    eventually("it is shown", async || {
        let list = world.get("/orders/attention").await.body;
        list.as_array().unwrap().iter().any(|saga| saga["orderId"] == *id && saga["phase"] == "stuck")
    })
    .await;
    assert_ne!(world.get(&format!("/orders/{id}")).await.body["status"], "confirmed");

    world.neighbours.set("release", Mood::Well);
    let retry = world
        .send(Method::POST, &format!("/orders/{id}/retry"), &[("x-operator", "grace")], Some(json!(null)))
        .await;
    assert_eq!(retry.status, StatusCode::ACCEPTED);
    assert_eq!(world.over(&id).await, "compensated");
    let order = world.decided(&id).await;
    assert_eq!(order["reason"], "card_declined", "why it was turned round, not what went wrong then");
    assert_eq!(*world.neighbours.stock.lock().unwrap(), 1_000_000);
    assert_eq!(world.neighbours.effects("release", &id), 1);
    let timeline = world.get(&format!("/orders/{id}/timeline")).await.body;
    let said = |kind: &str, what: &str| {
        let steps = timeline["steps"].as_array().unwrap().iter();
        steps.filter(|step| step["kind"] == kind).any(|step| step["outcome"].as_str().unwrap().contains(what))
    };
    assert!(said("aborted", "card_declined") && said("stuck", "inventory"), "{timeline}");
    assert_eq!(world.get("/orders/attention").await.body, json!([]));
    world.end().await;
}

#[tokio::test]
async fn operators_show_a_token_even_where_everybody_may_order() {
    let mut world = World::new().await;
    world.restart_for_everybody().await;
    let id = world.order("ada", 1).await;
    world.over(&id).await;
    let service = world.router.clone();
    for (method, path) in [
        (Method::GET, "/_audit".to_owned()),
        (Method::GET, "/orders/attention".to_owned()),
        (Method::GET, "/_events".to_owned()),
        (Method::POST, format!("/orders/{id}/retry")),
    ] {
        let request =
            http::Request::builder().method(method).uri(&path).body(axum::body::Body::empty()).unwrap();
        let answer = service.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
    let request =
        http::Request::builder().uri(format!("/orders/{id}")).body(axum::body::Body::empty()).unwrap();
    assert_eq!(service.oneshot(request).await.unwrap().status(), StatusCode::OK);
    world.end().await;
}

/// With promises that no saga takes longer than a second, so that those that are over are old a second later.
#[tokio::test]
async fn a_saga_that_is_forgotten_is_over_and_is_not_begun_anew() {
    let mut world = World::new().await;
    let done = world.order("ada", 1).await;
    assert_eq!(world.over(&done).await, "completed");
    world.neighbours.set("charge", Mood::Failing);
    let open = world.order("ada", 1).await;
    world.until(&open, "waiting_payment").await;
    for (name, ms) in [
        (env::ORDER_DEADLINE_MS, "1000"),
        (env::LONGEST_SAGA_MS, "1000"),
        (env::LONGEST_DELIVERY_MS, "0"),
        (env::PRUNE_EVERY_MS, "0"),
    ] {
        world.set(name, ms);
    }
    world.restart().await;
    eventually("it is forgotten", async || {
        let timeline = world.get(&format!("/orders/{done}/timeline")).await.body;
        timeline["steps"] == json!([]) && timeline["note"] == "it has no saga, or none any more"
    })
    .await;
    let timeline = world.get(&format!("/orders/{open}/timeline")).await.body;
    assert!(timeline["steps"].as_array().unwrap().len() > 1, "what is not over is not forgotten: {timeline}");

    let orders = world.get("/_audit").await.body["orders"].clone();
    let over =
        |id: &str| orders.as_array().unwrap().iter().find(|it| it["id"] == *id).unwrap()["over"].clone();
    assert_eq!((over(&done), over(&open)), (json!(true), json!(false)));

    let retry = world.send(Method::POST, &format!("/orders/{done}/retry"), &[], Some(json!(null))).await;
    assert_eq!((retry.status, &retry.body["error"]), (StatusCode::CONFLICT, &json!("The order is over")));
    let charge = format!("charge-card.do@{done}");
    assert_eq!(world.neighbours.calls().iter().filter(|key| **key == charge).count(), 1);
    world.end().await;
}

#[tokio::test]
async fn a_step_that_would_be_forgotten_before_its_order_is_late_is_a_mistake() {
    let data = tempfile::tempdir().unwrap();
    let env = Env::empty().with(env::LONGEST_SAGA_MS, "599999");
    let broker = order_broker::open("memory:").await.unwrap();
    let context = Context::new(order_orders::NAME, env, data.path(), broker, Arc::new(Ports(1)));
    let refused = order_orders::build(context).await.unwrap_err().to_string();
    assert_eq!(refused, "LONGEST_SAGA_MS is 599999, less than ORDER_DEADLINE_MS, which is 600000");
}

#[tokio::test]
async fn the_audit_shows_all_orders_a_page_at_a_time() {
    let world = World::new().await;
    world.neighbours.declined.lock().unwrap().insert("eve".to_owned());
    let mut ids = Vec::new();
    for user in ["ada", "eve", "ada", "eve", "ada"] {
        let id = world.order(user, 2).await;
        world.over(&id).await;
        ids.push(id);
    }
    world.neighbours.set("charge", Mood::Failing);
    ids.push(world.order("ada", 2).await);
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let page = world.get(&format!("/_audit?limit=4&after={after}")).await.body;
        let page = page["orders"].as_array().unwrap().clone();
        let Some(last) = page.last() else { break };
        after = last["id"].as_str().unwrap().to_owned();
        seen.extend(page);
    }
    let shown: Vec<&str> = seen.iter().map(|order| order["id"].as_str().unwrap()).collect();
    assert_eq!(shown, ids);
    let over: Vec<bool> = seen.iter().map(|order| order["over"].as_bool().unwrap()).collect();
    assert_eq!(over, [true, true, true, true, true, false]);
    assert_eq!((&seen[1]["status"], &seen[1]["total"]), (&json!("cancelled"), &json!("0.20")));
    assert_eq!(world.get("/_audit?limit=x").await.status, StatusCode::BAD_REQUEST);
    world.end().await;
}

/// The headers with which the gateway asks for a user.
fn of(user: &str) -> [(&str, &str); 1] {
    [("x-user-id", user)]
}

#[tokio::test]
async fn an_order_is_its_users_and_a_service_may_see_all() {
    let world = World::new().await;
    let placed = world.send(Method::POST, "/orders", &of("ada"), Some(order_of("ada", 1))).await;
    assert_eq!(placed.status, StatusCode::ACCEPTED);
    let id = placed.body["id"].as_str().unwrap().to_owned();
    world.over(&id).await;
    for path in ["/orders", "/orders/checkout"] {
        let answer = world.send(Method::POST, path, &of("eve"), Some(order_of("ada", 1))).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
    }
    eventually("it is in the list", async || world.get("/orders/user/ada").await.body[0]["orderId"] == *id)
        .await;
    for (method, path, status) in [
        (Method::GET, format!("/orders/{id}"), StatusCode::OK),
        (Method::GET, format!("/orders/{id}/details"), StatusCode::OK),
        (Method::GET, format!("/orders/{id}/timeline"), StatusCode::OK),
        (Method::GET, "/orders/user/ada".to_owned(), StatusCode::OK),
        (Method::POST, format!("/orders/{id}/cancel"), StatusCode::CONFLICT),
    ] {
        let asked = |headers: &'static [(&str, &str)]| world.send(method.clone(), &path, headers, None);
        assert_eq!(asked(&[("x-user-id", "eve")]).await.status, StatusCode::NOT_FOUND, "{method} {path}");
        assert_eq!(asked(&[("x-user-id", "")]).await.status, StatusCode::NOT_FOUND, "{method} {path}");
        assert_eq!(asked(&[("x-user-id", "ada")]).await.status, status, "{method} {path}");
        assert_eq!(asked(&[]).await.status, status, "{method} {path}");
    }
    let (path, headers) = (format!("/orders/{id}"), [("x-user-id", "eve"), ("prefer", "wait=1")]);
    assert_eq!(world.send(Method::GET, &path, &headers, None).await.status, StatusCode::NOT_FOUND);
    for (method, path) in
        [(Method::GET, "/orders/attention".to_owned()), (Method::POST, format!("/orders/{id}/retry"))]
    {
        let answer = world.send(method, &path, &of("ada"), None).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}: the gateway's token makes no operator");
    }
    world.end().await;
}

#[tokio::test]
async fn a_customer_sees_what_has_happened_and_not_what_services_say_to_each_other() {
    let world = World::new().await;
    world.neighbours.declined.lock().unwrap().insert("eve".to_owned());
    world.neighbours.set("release", Mood::Failing);
    let id = world.order("eve", 3).await;
    let path = format!("/orders/{id}/timeline");
    eventually("it is stuck", async || world.get(&path).await.body["phase"] == "stuck").await;
    let operators = world.get(&path).await.body.to_string();
    assert!(operators.contains("lamp") && operators.contains("circuit open"), "{operators}");
    let stuck = world.send(Method::GET, &path, &of("eve"), None).await.body;
    world.neighbours.set("release", Mood::Well);
    world.send(Method::POST, &format!("/orders/{id}/retry"), &[], None).await;
    world.over(&id).await;
    let over = world.send(Method::GET, &path, &of("eve"), None).await.body;
    for timeline in [&stuck, &over] {
        let text = timeline.to_string();
        assert!(!text.contains("lamp") && !text.contains("circuit") && !text.contains("inventory"), "{text}");
        let steps = timeline["steps"].as_array().unwrap();
        let reserved = steps.iter().find(|step| step["step"] == "reserve-stock").unwrap();
        assert_eq!((&reserved["outcome"], &reserved["attempts"]), (&json!("done"), &json!(1)));
        assert!(reserved["ms"].is_u64() && reserved["process"].as_str().is_some_and(|it| !it.is_empty()));
    }
    let said = |kind: &str| over["steps"].as_array().unwrap().iter().any(|step| step["outcome"] == kind);
    assert!(said("it is cancelled: card_declined") && said("undone"), "{over}");
    world.end().await;
}

#[tokio::test]
async fn only_so_many_wait_at_once_and_the_next_are_told_how_it_stands() {
    let world = World::new().await;
    world.neighbours.set("charge", Mood::Hanging);
    let id = world.order("ada", 1).await;
    let path = format!("/orders/{id}");
    let began = std::time::Instant::now();
    let ask = || world.send(Method::GET, &path, &[("prefer", "wait=20")], None);
    let mut asked: FuturesUnordered<_> = (0..60).map(|_| ask()).collect();
    for _ in 0..12 {
        let answer = asked.next().await.unwrap();
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers.get("preference-applied"), None);
    }
    assert!(began.elapsed().as_secs() < 15, "nobody has waited");
    assert!(asked.next().now_or_never().is_none(), "the others wait");
    drop(asked);
    world.neighbours.set("charge", Mood::Well);
    let answer = world.send(Method::GET, &path, &[("prefer", "wait=1")], None).await;
    assert_eq!(answer.headers["preference-applied"], "wait=1", "their places are free again");
    world.end().await;
}

#[tokio::test]
async fn what_was_said_of_orders_is_kept_for_those_who_come_later() {
    let world = World::new().await;
    world.neighbours.declined.lock().unwrap().insert("eve".to_owned());
    let mut expected = Vec::new();
    for (user, kinds) in [
        ("ada", &["order.created", "order.confirmed", "order.paid"][..]),
        ("eve", &["order.created", "order.cancelled"]),
    ] {
        let id = world.order(user, 2).await;
        world.over(&id).await;
        expected.extend(kinds.iter().map(|kind| (id.clone(), (*kind).to_owned())));
    }
    for limit in [1, 2, 5, 500] {
        let (mut after, mut seen) = (json!(0), Vec::new());
        while !after.is_null() {
            let page = world.get(&format!("/_events?after={after}&limit={limit}")).await.body;
            let events = page["events"].as_array().unwrap();
            assert!(events.len() <= limit);
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            seen.extend(events.iter().map(|it| (text(&it["data"]["orderId"]), text(&it["type"]))));
            // Said of an order whose payment takes long, on a machine that does.
            seen.retain(|(_, kind)| kind != "order.updated");
            after = page["next"].clone();
        }
        assert_eq!(seen, expected, "{limit} at a time");
    }
    assert_eq!(world.get("/_events?after=x").await.status, StatusCode::BAD_REQUEST);
    world.end().await;
}
