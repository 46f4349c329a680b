//! What operators see and do.

use http::{Method, StatusCode};
use serde_json::json;
use tower::ServiceExt;

use crate::world::{Mood, World, eventually};

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
