//! The registry over HTTP.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State},
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use http::StatusCode;
use order_kit::{ApiError, Context, Json, extract::Path, server};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Heard, Instance, Instances, Registry};

/// What a heartbeat says.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Heartbeat {
    /// The service's name.
    pub service: String,
    /// Which instance it is.
    pub id: String,
}

/// That the registry knows the instance.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Beaten {
    known: bool,
}

/// The routes, with their description. Whoever registers shows a service token; who asks shows one too, or is on this machine.
pub fn routes(context: &Context, registry: Arc<Instances>) -> (Router, utoipa::openapi::OpenApi) {
    let (write, mut api) = OpenApiRouter::new()
        .routes(routes!(register))
        .routes(routes!(heartbeat))
        .routes(routes!(deregister))
        .with_state(registry.clone())
        .split_for_parts();
    let (read, more) =
        OpenApiRouter::new().routes(routes!(discover)).with_state(registry.clone()).split_for_parts();
    let read = read
        .route("/discover", get(all).with_state(registry))
        .layer(middleware::from_fn_with_state(context.clone(), near_or_known));
    api.merge(more);
    (server::for_services(context, write).merge(read), api)
}

async fn near_or_known(
    State(context): State<Context>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let near =
        request.extensions().get::<ConnectInfo<SocketAddr>>().is_some_and(|it| it.0.ip().is_loopback());
    if near || context.tokens().accepts(request.headers()) {
        Ok(next.run(request).await)
    } else {
        Err(ApiError::unauthorized("A service token is needed"))
    }
}

/// An instance is there, for as long as it says so again.
#[utoipa::path(post, path = "/registry/register", request_body = Instance, responses((status = 201, body = Instance), (status = 400), (status = 503)))]
async fn register(
    State(registry): State<Arc<Instances>>,
    Json(instance): Json<Instance>,
) -> Result<(StatusCode, Json<Instance>), ApiError> {
    let fits = |text: &str| !text.is_empty() && text.len() <= 128;
    let host =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(&byte));
    if !fits(&instance.service) || !fits(&instance.id) || !fits(&instance.host) || !host(&instance.host) {
        return Err(ApiError::bad_request("Invalid service, host or id"));
    }
    if instance.port == 0 || instance.base().parse::<http::Uri>().is_err() {
        return Err(ApiError::bad_request("Invalid host or port"));
    }
    registry.register(instance.clone()).map_err(|full| ApiError::unavailable(full.to_string()))?;
    Ok((StatusCode::CREATED, Json(instance)))
}

/// An instance is still there. 404: it is not known any more and has to register.
#[utoipa::path(post, path = "/registry/heartbeat", request_body = Heartbeat, responses((status = 200, body = Beaten), (status = 400), (status = 404)))]
async fn heartbeat(
    State(registry): State<Arc<Instances>>,
    Json(beat): Json<Heartbeat>,
) -> Result<Json<Beaten>, ApiError> {
    if registry.heartbeat(&beat.service, &beat.id) {
        Ok(Json(Beaten { known: true }))
    } else {
        Err(ApiError::not_found("Instance not found"))
    }
}

/// An instance goes.
#[utoipa::path(delete, path = "/registry/{service}/{id}", params(("service" = String, Path, description = "The service"), ("id" = String, Path, description = "The instance")), responses((status = 204), (status = 404)))]
async fn deregister(
    State(registry): State<Arc<Instances>>,
    Path((service, id)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    if registry.deregister(&service, &id) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::not_found("Instance not found"))
    }
}

/// The instances of a service.
#[utoipa::path(get, path = "/discover/{service}", params(("service" = String, Path, description = "The service")), responses((status = 200, body = Vec<Heard>), (status = 404)))]
async fn discover(
    State(registry): State<Arc<Instances>>,
    Path(service): Path<String>,
) -> Result<Json<Vec<Heard>>, ApiError> {
    let instances = registry.heard(&service);
    if instances.is_empty() {
        return Err(ApiError::not_found(format!("Service {service} not found")));
    }
    Ok(Json(instances))
}

/// The instances of all services.
async fn all(State(registry): State<Arc<Instances>>) -> Json<Vec<Heard>> {
    Json(registry.services().iter().flat_map(|service| registry.heard(service)).collect())
}
