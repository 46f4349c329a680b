//! Which services there are, and how each is built.

use std::{path::Path, sync::Arc};

use axum::Router;
use order_broker::Topology;
use order_gateway::Instances;
use order_kit::{
    BoxError, Context, Service,
    context::{Known, Ports, known},
    env::{self, Env},
    server::{Access, router},
};
use tokio::net::TcpListener;

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

/// The queues that services have, in either style: what there can be in a broker. Not all of them are there.
pub fn topology() -> Topology {
    let queues = [
        order_notifications::queue(),
        order_notifications::analytics::queue(),
        order_notifications::loyalty::queue(),
        order_orders::choreography_queue(),
        order_payments::queue(),
        order_inventory::queue(),
        order_users::moving::queue(),
    ];
    let all = queues.into_iter().chain(order_orders::read_queues());
    all.fold(Topology::new(order_kit::events::EXCHANGE), Topology::queue)
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

/// Listens for what is known by that name.
///
/// # Errors
///
/// A port that is taken.
pub async fn listen(env: &Env, name: &str, port: u16) -> Result<TcpListener, BoxError> {
    TcpListener::bind((env.get_or_default(env::HOST).as_str(), port))
        .await
        .map_err(|error| format!("port {port} for {name}: {error}").into())
}

/// As what a part is known by gRPC, if it is asked so.
pub fn by_grpc(part: &str) -> Option<&'static Known> {
    known(&format!("{part}.grpc"))
}

/// Serves a part by gRPC beside its routes, until its context's stop.
pub fn serve_grpc(context: &Context, listener: TcpListener) {
    let service = context.clone();
    context.spawn(async move {
        let part = service.name();
        let served = match part {
            "orders" => order_orders::serve_grpc(service, listener).await,
            _ => order_users::serve_grpc(service, listener).await,
        };
        if let Err(error) = served {
            tracing::error!(%error, part, "it cannot be asked by gRPC");
        }
    });
}

/// A context for a part that is worked on from outside, beside services that may run.
async fn beside(part: &'static str, env: &Env, data: &Path) -> Result<Context, BoxError> {
    let broker = order_broker::open("memory:").await?;
    Ok(Context::new(part, env.clone(), data, broker, Arc::new(Ports(3000))))
}

/// Makes the read side of orders anew, from the events that order-service has kept.
///
/// # Errors
///
/// A database that cannot be opened.
pub async fn rebuild(env: &Env, data: &Path) -> Result<(), BoxError> {
    let events = order_orders::rebuild(beside("orders", env, data).await?).await?;
    println!("the read side was made anew from {events} events");
    Ok(())
}

/// Measures users by gRPC and by HTTP, and prints both.
///
/// # Errors
///
/// That they could not be asked.
pub async fn compare_transports(calls: u32) -> Result<(), BoxError> {
    let compared = order_users::transport::compare(calls as usize).await?;
    println!("{compared:#?}");
    Ok(())
}
