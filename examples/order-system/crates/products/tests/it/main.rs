//! The service from outside, without a socket.

#[path = "../../../kit/tests/support/hostile.rs"]
mod hostile;
#[path = "../../../kit/tests/support/service.rs"]
mod service;

mod input;
mod redis;
mod rest;

use order_kit::env::Env;
use service::{Answer, Bench, Place};

async fn everywhere(test: &str, check: impl AsyncFn(&Bench)) {
    service::everywhere(order_products::NAME, order_products::build, test, check).await;
}

async fn start() -> Bench {
    Bench::start(Place::Sqlite, order_products::NAME, Env::empty(), order_products::build).await
}

fn offer(name: &str, price: &str) -> serde_json::Value {
    serde_json::json!({ "name": name, "price": price })
}

/// The path of a product that was just made.
fn path_of(made: &Answer) -> String {
    assert_eq!(made.status, 201, "{}", made.text);
    format!("/products/{}", made.body["id"].as_str().unwrap())
}
