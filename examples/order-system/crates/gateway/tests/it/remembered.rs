//! What is the same for everybody is asked for once.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use axum::{
    Router,
    extract::Path,
    response::IntoResponse,
    routing::{get, post},
};
use http::{Method, StatusCode};

use crate::support::{Running, env};

#[tokio::test]
async fn the_second_time_nobody_is_asked_until_something_is_written() {
    let asked = Arc::new(AtomicU32::new(0));
    let counts = asked.clone();
    let products = Router::new()
        .route(
            "/products/{id}",
            get(move |Path(id): Path<String>| {
                let asked = counts.fetch_add(1, SeqCst) + 1;
                async move {
                    let body = axum::Json(serde_json::json!({ "id": id, "asked": asked }));
                    if id == "secret" {
                        ([("cache-control", "private")], body).into_response()
                    } else {
                        body.into_response()
                    }
                }
            })
            .put(async || "written"),
        )
        .route("/products", post(async || (StatusCode::CREATED, [("location", "/products/9")])));
    let (gateway, _fake) = Running::before(env(), "products", products).await;
    let ask = async |path: &str| gateway.send(Method::GET, path, &[], "").await;
    let (first, second) = (ask("/api/products/1").await, ask("/api/products/1").await);
    assert_eq!((first.header("x-cache"), first.header("age")), (Some("miss"), None));
    assert_eq!((second.header("x-cache"), second.header("age")), (Some("hit"), Some("0")));
    assert_eq!((&first.body, first.header("x-served-by")), (&second.body, second.header("x-served-by")));
    assert_eq!(ask("/api/products/1?a").await.json()["asked"], 2);
    for _ in 0..2 {
        assert_eq!(ask("/api/products/secret").await.header("x-cache"), Some("miss"));
    }
    assert_eq!(asked.load(SeqCst), 4);
    let token = format!("Bearer {}", gateway.staff_token("admin"));
    let written = gateway.send_owned(Method::PUT, "/api/products/1", token.clone()).await;
    assert_eq!((written.status, written.header("x-cache")), (StatusCode::OK, None));
    assert_eq!(ask("/api/products/1").await.json()["asked"], 5);
    let made = gateway.send_owned(Method::POST, "/api/products", token).await;
    assert_eq!(made.header("location"), Some("/api/products/9"), "where it is to be found here");
    assert_eq!(ask("/api/products/1").await.json()["asked"], 6);
}
