//! The service from outside: over REST without a socket, over gRPC on one of this machine's ports.

#[path = "../../../kit/tests/support/rig.rs"]
#[allow(dead_code, reason = "each service needs a part of it")]
mod service;

mod events;
mod grpc;
mod input;
mod rest;
mod transport;

use order_kit::{context::Build, env::Env};
use service::Running;

const BUILD: Build = |context| Box::pin(order_users::build(context));

async fn everywhere(test: &str, check: impl AsyncFn(&Running)) {
    service::everywhere(order_users::NAME, BUILD, test, check).await;
}

async fn start() -> Running {
    Running::start(order_users::NAME, BUILD, Env::empty()).await
}

fn person(name: &str, email: &str) -> serde_json::Value {
    serde_json::json!({ "name": name, "email": email })
}
