//! The gateway's own routes: its health, tokens in development, and where requests go.

use axum::{Router, extract::State, routing::get};
use http::StatusCode;
use order_kit::{ApiError, Json, extract::Path};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Gateway, NAME,
    registry::Registry,
    strangler::{Route, Shown, Wrong},
    token::Claims,
};

/// How many roles a token has at most.
const MOST_ROLES: usize = 16;

/// Who wants a token.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
struct Wanted {
    /// The subject.
    user_id: String,
    /// The customer.
    #[serde(default)]
    tenant: Option<String>,
    /// What the customer pays for; `free` if it is not said.
    #[serde(default)]
    plan: Option<String>,
    /// What that one may do beside what everybody may: `admin`, `service`.
    #[serde(default)]
    roles: Vec<String>,
}

/// A token that was made.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Made {
    /// For `Authorization: Bearer`.
    token: String,
}

pub(crate) fn auth(gateway: &Gateway) -> (Router<Gateway>, utoipa::openapi::OpenApi) {
    // Where nobody may ask for tokens there is no such route.
    let routes = OpenApiRouter::new();
    let routes = if gateway.0.tokens.issues() { routes.routes(routes!(make_token)) } else { routes };
    routes.split_for_parts()
}

pub(crate) fn operators(gateway: &Gateway) -> (Router, utoipa::openapi::OpenApi) {
    let routes = OpenApiRouter::new().routes(routes!(show_routes)).routes(routes!(set_route));
    routes.with_state(gateway.clone()).split_for_parts()
}

pub(crate) fn health(gateway: &Gateway) -> Router {
    Router::new().route("/health", get(show_health)).with_state(gateway.clone())
}

/// A token for whoever asks, in development.
#[utoipa::path(post, path = "/auth/token", request_body = Wanted, responses((status = 200, body = Made), (status = 400), (status = 429, description = "Too many requests from one address")))]
async fn make_token(
    State(gateway): State<Gateway>,
    Json(wanted): Json<Wanted>,
) -> Result<Json<Made>, ApiError> {
    let Wanted { user_id, tenant, plan, roles } = wanted;
    let fits = |text: &String| {
        !text.is_empty() && text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let whose = [Some(&user_id), tenant.as_ref(), plan.as_ref()];
    if roles.len() > MOST_ROLES || !whose.into_iter().flatten().chain(&roles).all(fits) {
        return Err(ApiError::bad_request("Invalid userId, tenant, plan or roles"));
    }
    let plan = plan.or_else(|| Some("free".to_owned()));
    let token = gateway.0.tokens.issue(&Claims { tenant, plan, roles, ..Claims::of(&user_id) });
    let token = token.ok_or_else(|| ApiError::internal("a token could not be made"))?;
    Ok(Json(Made { token }))
}

/// Where the requests of each service go.
#[utoipa::path(get, path = "/_routes", responses((status = 200, body = Vec<Shown>)))]
async fn show_routes(State(gateway): State<Gateway>) -> Json<Vec<Shown>> {
    Json(gateway.0.strangler.show())
}

/// Sets where the requests of a service go, from now on.
#[utoipa::path(put, path = "/_routes/{service}", params(("service" = String, Path, description = "The service")), request_body = Route, responses((status = 200, body = Shown), (status = 400), (status = 404), (status = 409)))]
async fn set_route(
    State(gateway): State<Gateway>,
    Path(service): Path<String>,
    Json(route): Json<Route>,
) -> Result<Json<Shown>, ApiError> {
    let shown = gateway.0.strangler.set(&service, route).map_err(|wrong| {
        let status = match wrong {
            Wrong::Service => StatusCode::NOT_FOUND,
            Wrong::Percent => StatusCode::BAD_REQUEST,
            Wrong::NoMonolith => StatusCode::CONFLICT,
        };
        ApiError::new(status, wrong.to_string())
    })?;
    // What one side said is not to be taken for the other's.
    gateway.0.cache.clear();
    tracing::warn!(service, ?route, "requests go another way");
    Ok(Json(shown))
}

/// From memory: nobody is asked.
async fn show_health(State(gateway): State<Gateway>) -> Json<serde_json::Value> {
    let services = gateway.0.upstreams.iter().map(|(name, upstream)| {
        let instances = gateway.0.registry.instances(name).len();
        serde_json::json!({ "name": name, "breaker": upstream.state(), "instances": instances })
    });
    Json(serde_json::json!({
        "status": "ok",
        "service": NAME,
        "uptime": gateway.0.context.uptime().as_secs(),
        "timestamp": order_kit::iso(order_kit::now_ms()),
        "services": services.collect::<Vec<_>>(),
    }))
}
