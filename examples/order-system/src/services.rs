//! Which services there are, and how each is built.

use std::sync::Arc;

use axum::Router;
use order_gateway::Instances;
use order_kit::{
    BoxError, Context, Service,
    env::{self, Env},
    server::{Access, router},
};

/// Everything that `up` starts.
pub const ALL: &[&str] =
    &["gateway", "users", "orders", "products", "payments", "inventory", "notifications", "analytics"];

/// Everything that can be started.
pub const PARTS: &[&str] = &[
    "gateway",
    "users",
    "orders",
    "products",
    "payments",
    "inventory",
    "notifications",
    "analytics",
    "orders-read",
    "loyalty",
];

/// A service that needs no registry.
///
/// # Errors
///
/// Data that cannot be opened, a setting that is none, a name that is none.
pub async fn build_service(context: &Context) -> Result<Service, BoxError> {
    let context = context.clone();
    match context.name() {
        "users" => order_users::build(context).await,
        "orders" => order_orders::build(context).await,
        "orders-read" => order_orders::build_read(context).await,
        "products" => order_products::build(context).await,
        "payments" => order_payments::build(context).await,
        "inventory" => order_inventory::build(context).await,
        "notifications" => order_notifications::build(context).await,
        "analytics" => order_notifications::analytics::build(context).await,
        "loyalty" => order_notifications::loyalty::build(context).await,
        other => Err(format!("there is no service `{other}`").into()),
    }
}

/// Any service, with everything around its routes.
///
/// # Errors
///
/// As of [`build_service`].
pub async fn build(context: &Context, registry: &Arc<Instances>) -> Result<Router, BoxError> {
    if context.name() == order_gateway::NAME {
        return order_gateway::build(context.clone(), registry.clone()).await;
    }
    let service = build_service(context).await?;
    Ok(router(context, service, Access::Services))
}

/// The port of users by gRPC: the documented one, moved like the others.
pub fn grpc_port(port_base: u16) -> u16 {
    if port_base == 3000 { 50_051 } else { port_base.saturating_add(9) }
}

/// Where users are by gRPC.
pub fn grpc_address(env: &Env, port_base: u16) -> String {
    env.get(env::USER_GRPC_URL).unwrap_or_else(|| format!("http://127.0.0.1:{}", grpc_port(port_base)))
}
