//! What is no order, and whom nobody lets in.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{World, order_of};

fn lines(count: usize, quantity: i64) -> Value {
    json!({ "userId": "ada", "items": vec![json!({ "productId": "lamp", "quantity": quantity }); count] })
}

#[tokio::test]
async fn what_is_no_order_is_refused_and_not_kept() {
    let world = World::new().await;
    for (status, error, body) in [
        (400, "Invalid quantity: 1 to 10000 are possible", lines(1, 0)),
        (400, "Invalid quantity: 1 to 10000 are possible", lines(1, -1)),
        (400, "Invalid quantity: 1 to 10000 are possible", lines(1, 10_001)),
        (400, "Invalid quantity: 1 to 10000 are possible", lines(2, 6_000)),
        (400, "An order needs items", lines(0, 1)),
        (400, "An order has at most 100 items", lines(101, 1)),
        (400, "Invalid userId", order_of("a/../b", 1)),
        (400, "Invalid userId", order_of("", 1)),
        (
            400,
            "The total is too large",
            json!({ "userId": "ada", "items": [{ "productId": "dear", "quantity": 1 }] }),
        ),
        (
            400,
            "An order costs something",
            json!({ "userId": "ada", "items": [{ "productId": "gift", "quantity": 1 }] }),
        ),
        (422, "Unknown user", order_of("nobody", 1)),
        (
            422,
            "Unknown product",
            json!({ "userId": "ada", "items": [{ "productId": "no-such", "quantity": 1 }] }),
        ),
    ] {
        let answer = world.post("/orders", body.clone()).await;
        assert_eq!((answer.status.as_u16(), answer.body["error"].as_str()), (status, Some(error)), "{body}");
    }
    for body in [
        json!({}),
        json!([]),
        json!({ "userId": 7, "items": [] }),
        json!({ "userId": "ada" }),
        json!({ "userId": "ada", "items": [{ "productId": "lamp", "quantity": 1.5 }] }),
        json!({ "userId": "ada", "items": [{ "productId": "lamp", "quantity": "1" }] }),
        json!({ "userId": "ada", "items": [{ "quantity": 1 }] }),
    ] {
        assert_eq!(world.post("/orders", body.clone()).await.status, StatusCode::BAD_REQUEST, "{body}");
    }
    assert_eq!(world.get("/_audit").await.body["orders"], json!([]));
    world.end().await;
}

#[tokio::test]
async fn an_address_that_cannot_be_read_is_refused_in_the_services_words() {
    let world = World::new().await;
    let get = ["/orders/%FF", "/orders/%FF/details", "/orders/%FF/timeline", "/orders/user/%FF"];
    let post = ["/orders/%FF/cancel", "/orders/%FF/retry"];
    let asked = get.map(|path| (Method::GET, path)).into_iter().chain(post.map(|path| (Method::POST, path)));
    for (method, path) in asked {
        let answer = world.send(method, path, &[], None).await;
        assert_eq!(
            (answer.status, &answer.body),
            (StatusCode::BAD_REQUEST, &json!({ "error": "Malformed path" })),
            "{path}"
        );
    }
    let audit = world.get("/_audit?limit=x").await;
    assert_eq!(
        (audit.status, &audit.body),
        (StatusCode::BAD_REQUEST, &json!({ "error": "Malformed query" }))
    );
    world.end().await;
}
