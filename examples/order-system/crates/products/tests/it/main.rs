//! The service from outside, without a socket.

#[path = "../../../kit/tests/support/rig.rs"]
#[allow(dead_code, reason = "each service needs a part of it")]
mod service;

mod input;
mod redis;
mod rest;

use order_kit::{context::Build, env::Env};
use service::{Answer, Running};

const BUILD: Build = |context| Box::pin(order_products::build(context));

async fn everywhere(test: &str, check: impl AsyncFn(&Running)) {
    service::everywhere(order_products::NAME, BUILD, test, check).await;
}

async fn start() -> Running {
    Running::start(order_products::NAME, BUILD, Env::empty()).await
}

fn offer(name: &str, price: &str) -> serde_json::Value {
    serde_json::json!({ "name": name, "price": price })
}

/// The path of a product that was just made.
fn path_of(made: &Answer) -> String {
    assert_eq!(made.status, http::StatusCode::CREATED, "{}", made.text);
    format!("/products/{}", made.json()["id"].as_str().unwrap())
}
