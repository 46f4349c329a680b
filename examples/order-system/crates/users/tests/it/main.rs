//! The service from outside: over REST without a socket, over gRPC on one of this machine's ports.

#[path = "../../../kit/tests/support/hostile.rs"]
mod hostile;
#[path = "../../../kit/tests/support/service.rs"]
mod service;

mod events;
mod grpc;
mod input;
mod moving;
mod rest;
mod transport;

use order_kit::env::Env;
use service::{Bench, Place};

async fn everywhere(test: &str, check: impl AsyncFn(&Bench)) {
    service::everywhere(order_users::NAME, order_users::build, test, check).await;
}

async fn start() -> Bench {
    Bench::start(Place::Sqlite, order_users::NAME, Env::empty(), order_users::build).await
}

fn person(name: &str, email: &str) -> serde_json::Value {
    serde_json::json!({ "name": name, "email": email })
}
