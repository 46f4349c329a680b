//! The server around a service's routes: health, metrics, policies, faults, the service token, spans, the caller's deadline, limits, and
//! an orderly end.

use std::{net::SocketAddr, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use tokio::time::Instant;

use crate::{
    Context, Service,
    client::{STARTING, told_deadline},
    context::Page,
    env,
    error::{ApiError, Json},
    extract::{Path, Query},
    fault::{Faults, Verdict},
    health::{self, Check, Status},
    metric, telemetry, trace,
};

pub use crate::{
    door::Door,
    serve::{HEAD_TIMEOUT, serve, serve_with, serve_within},
};

/// The largest body that a service takes, unless it says otherwise.
pub const BODY_LIMIT: usize = 256 * 1024;
/// How long a client may take for a whole request, and a service for the answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Who may call the routes of a service. What the kit adds is for operators, who come from this machine or show a token as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Whoever shows a service token.
    Services,
    /// Everybody: the gateway, and a monolith that this machine alone reaches.
    Everybody,
}

#[derive(Clone)]
struct Around {
    context: Context,
    checks: Arc<[Check]>,
    access: Access,
}

impl Around {
    fn of(context: &Context) -> Self {
        Around { context: context.clone(), checks: Arc::new([]), access: Access::Services }
    }
}

/// The whole router of a service.
pub fn router(context: &Context, service: Service, access: Access) -> Router {
    let around = Around { context: context.clone(), checks: service.checks.into(), access };
    let (routes, api) = service.routes.split_for_parts();
    let routes =
        breakable(context, routes).layer(middleware::from_fn_with_state(around.clone(), known_callers));
    let routes = routes
        .merge(operators(context))
        .merge(open(around.clone(), api))
        .route("/health", get(live).with_state(around))
        .fallback(|| std::future::ready(ApiError::not_found("No such route")))
        .method_not_allowed_fallback(|| {
            std::future::ready(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"))
        });
    telemetry::watch(context);
    // Not in `watched`: what a gateway passes on stays as it is.
    surrounded(Around { access, ..Around::of(context) }, routes.layer(middleware::map_response(in_json)))
}

/// Routes that the context's faults concern.
pub fn breakable(context: &Context, routes: Router) -> Router {
    routes.layer(middleware::from_fn_with_state(Around::of(context), faulty))
}

/// What operators may look at and set, with a service token: policies and faults.
pub fn operators(context: &Context) -> Router {
    let around = Around::of(context);
    Router::new()
        .route("/_policies", get(policies))
        .route("/_audit", get(audit))
        .route("/_traces", get(traces))
        .route("/_traces/{traceId}", get(spans))
        .route("/_faults", get(show_faults).put(set_faults).delete(clear_faults))
        .layer(middleware::from_fn_with_state(around.clone(), token_needed))
        .with_state(around)
}

/// What everybody may ask: whether the service lives and is ready, its metrics, its description and that of its events. `/health` itself is
/// left out, for a server that says more there.
pub fn probes(context: &Context, checks: Vec<Check>, api: utoipa::openapi::OpenApi) -> Router {
    open(Around { checks: checks.into(), ..Around::of(context) }, api)
}

/// Needs a service token for all of these routes.
pub fn for_services(context: &Context, routes: Router) -> Router {
    routes.layer(middleware::from_fn_with_state(Around::of(context), token_needed))
}

/// With what surrounds every request: its span and log line, the caller's deadline, and a limit for the bodies that a handler reads as a
/// whole. A handler that passes a body on as a stream has no limit.
pub fn watched(context: &Context, routes: Router) -> Router {
    surrounded(Around { access: Access::Everybody, ..Around::of(context) }, routes)
}

fn surrounded(around: Around, routes: Router) -> Router {
    routes.layer(DefaultBodyLimit::max(BODY_LIMIT)).layer(middleware::from_fn_with_state(around, traced))
}

fn open(around: Around, mut api: utoipa::openapi::OpenApi) -> Router {
    // What there is otherwise is of the library that writes descriptions.
    api.info = utoipa::openapi::Info::new(around.context.name(), env!("CARGO_PKG_VERSION"));
    let api = serde_json::to_string(&api).unwrap_or_default();
    let events = around.context.told();
    let mut routes = health_and_metrics(around).route("/openapi.json", text("application/json", api));
    if let Some(events) = events {
        routes = routes.route("/events.json", text("application/schema+json", events));
    }
    routes
}

fn health_and_metrics(around: Around) -> Router {
    Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(around)
}

/// Always the same.
fn text<S: Clone + Send + Sync + 'static>(kind: &'static str, text: String) -> MethodRouter<S> {
    let text = Bytes::from(text);
    get(async move || ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], text))
}

/// What a service answers while it is being built: that it lives, that it is not ready and why, and nothing else yet.
pub(crate) fn early(context: &Context) -> Router {
    let building = context.clone();
    let starting = Check::required("starting", move || {
        std::future::ready(Err(format!("it waits for {}", building.waits_for())))
    });
    let around = Around { checks: Arc::new([starting]), ..Around::of(context) };
    let routes = health_and_metrics(around.clone())
        .route("/health", get(live).with_state(around.clone()))
        .fallback(|| {
            let starting = [(STARTING.clone(), HeaderValue::from_static("1"))];
            std::future::ready((starting, ApiError::unavailable("Starting")))
        });
    surrounded(around, routes)
}

async fn live(State(around): State<Around>) -> Response {
    Json(serde_json::json!({
        "status": "ok",
        "service": around.context.name(),
        "uptime": around.context.uptime().as_secs(),
        "timestamp": crate::iso(crate::now_ms()),
    }))
    .into_response()
}

async fn ready(State(around): State<Around>) -> Response {
    let Around { context, checks, .. } = around;
    let mut ready = health::ready(context.name(), context.uptime(), &checks).await;
    if context.stop().is_cancelled() {
        ready.status = Status::Unhealthy;
    }
    let degraded = context.env().get_or_default(env::READY_DEGRADED_STATUS) == "503";
    let status = match ready.status {
        Status::Ok => StatusCode::OK,
        Status::Degraded if !degraded => StatusCode::OK,
        Status::Degraded | Status::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(ready)).into_response()
}

async fn metrics(State(around): State<Around>) -> Response {
    around.context.measure().await;
    match telemetry::init(around.context.env()) {
        Ok(telemetry) => {
            let kind = HeaderValue::from_static("text/plain; version=0.0.4");
            ([(header::CONTENT_TYPE, kind)], telemetry.metrics()).into_response()
        }
        Err(error) => ApiError::internal(error).into_response(),
    }
}

async fn policies(State(around): State<Around>) -> Response {
    Json(around.context.policies().snapshots()).into_response()
}

async fn audit(State(around): State<Around>, Query(page): Query<Page>) -> Result<Response, ApiError> {
    let nothing = || ApiError::not_found("Nothing to audit");
    let answer = around.context.audit(page).await.ok_or_else(nothing)??;
    Ok(Json(answer).into_response())
}

/// What traces are looked for by.
#[derive(Debug, Deserialize)]
struct Wanted {
    #[serde(rename = "order.id")]
    order: String,
}

/// The traces of an order that this process still remembers: the newest first, and no more than [`telemetry::MOST_TRACES`].
async fn traces(Query(wanted): Query<Wanted>) -> Response {
    let trace = |trace: String| serde_json::json!({ "traceId": trace, "spans": telemetry::spans(&trace) });
    let traces: Vec<_> = telemetry::traces_of(&wanted.order).into_iter().map(trace).collect();
    Json(serde_json::json!({ "traces": traces })).into_response()
}

/// The spans of a trace that this process still remembers.
async fn spans(Path(trace): Path<String>) -> Response {
    Json(serde_json::json!({ "traceId": trace, "spans": telemetry::spans(&trace) })).into_response()
}

async fn show_faults(State(around): State<Around>) -> Response {
    let (faults, since) = around.context.faults().get();
    let held = around.context.faults().held();
    Json(serde_json::json!({ "faults": faults, "since": since.map(crate::iso), "held": held }))
        .into_response()
}

async fn set_faults(State(around): State<Around>, Json(faults): Json<Faults>) -> Response {
    tracing::warn!(?faults, "faults are switched on");
    around.context.faults().set(faults);
    show_faults(State(around)).await
}

async fn clear_faults(State(around): State<Around>) -> Response {
    around.context.faults().set(Faults::default());
    show_faults(State(around)).await
}

/// What axum itself refuses, in plain text, is said as everything else is.
async fn in_json(response: Response) -> Response {
    let error = response.status().is_client_error() || response.status().is_server_error();
    let plain = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !error || !plain {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = axum::body::to_bytes(body, 4096).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let reason = parts.status.canonical_reason().unwrap_or("Error");
    let mut response =
        ApiError::new(parts.status, if text.is_empty() { reason } else { &text }).into_response();
    for (name, value) in &parts.headers {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

async fn token_needed(
    State(around): State<Around>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if around.context.tokens().accepts(request.headers()) {
        Ok(next.run(request).await)
    } else {
        Err(ApiError::unauthorized("A service token is needed"))
    }
}

async fn known_callers(state: State<Around>, request: Request, next: Next) -> Result<Response, ApiError> {
    match state.access {
        Access::Everybody => Ok(next.run(request).await),
        Access::Services => token_needed(state, request, next).await,
    }
}

async fn faulty(State(around): State<Around>, request: Request, next: Next) -> Response {
    let (verdict, wait) = around.context.faults().next();
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
    let broken = || ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error").into_response();
    match verdict {
        Verdict::Pass => next.run(request).await,
        Verdict::Fail => broken(),
        Verdict::EffectThenFail => {
            next.run(request).await;
            broken()
        }
        Verdict::Reject => ApiError::new(StatusCode::TOO_MANY_REQUESTS, "Too many requests").into_response(),
        Verdict::Hang => hang(&around.context).await,
        Verdict::EffectThenHang => {
            // In a task of its own, so that a caller who goes away does not stop it.
            let _ = tokio::spawn(next.run(request)).await;
            hang(&around.context).await
        }
    }
}

/// As long as the service runs: nobody is to wait at its end for what was never meant to come.
async fn hang(context: &Context) -> Response {
    context.stop().cancelled().await;
    ApiError::unavailable("Service unavailable").into_response()
}

/// A span for each request, part of the caller's trace; its correlation id; and the caller's deadline for everything within.
async fn traced(State(around): State<Around>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let watching = ["/metrics", "/ready", "/_policies"];
    let quiet =
        route.as_deref().is_some_and(|route| route.starts_with("/health") || watching.contains(&route));
    if quiet {
        return next.run(request).await;
    }
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let (parent, correlation, told) = {
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        (
            header(trace::TRACEPARENT).map(str::to_owned),
            header(trace::CORRELATION_ID)
                .filter(|id| id.len() <= 128)
                .map_or_else(crate::new_id, str::to_owned),
            told_deadline(request.headers()),
        )
    };
    let span = trace::span_in(parent.as_deref(), || {
        tracing::info_span!(
            "http.server", otel.kind = "server", otel.name = %format_args!("{method} {}", route.as_deref().unwrap_or("?")),
            http.request.method = %method, http.route = route, url.path = path,
            http.response.status_code = tracing::field::Empty, otel.status_code = tracing::field::Empty,
        )
    });
    let limit = told.unwrap_or(REQUEST_TIMEOUT).min(REQUEST_TIMEOUT);
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|it| it.0.ip().to_string());
    let work = async {
        let work = AssertUnwindSafe(next.run(request)).catch_unwind();
        let work = mainstay::deadline::within((began + limit).into_std(), work);
        let response = match tokio::time::timeout(limit, work).await {
            Ok(Ok(response)) => response,
            // It has been printed.
            Ok(Err(_)) => ApiError::internal("a request panicked").into_response(),
            Err(_) => ApiError::new(StatusCode::GATEWAY_TIMEOUT, "Not done in time").into_response(),
        };
        let (status, took) = (response.status(), began.elapsed());
        let span = tracing::Span::current();
        span.record("http.response.status_code", status.as_u16());
        if status.is_server_error() {
            span.record("otel.status_code", "ERROR");
        }
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(target: telemetry::ACCESS, %method, path, status = status.as_u16(), ms, client, "request")
            };
        }
        // One line for each request: of what passed a gateway, the gateway's.
        match around.access {
            Access::Everybody => line!(info),
            Access::Services => line!(debug),
        }
        metrics::histogram!(metric::HTTP_REQUEST_SECONDS, "service" => around.context.name(),
            "route" => route.unwrap_or_default(), "status" => status_text(status))
        .record(took.as_secs_f64());
        response
    };
    trace::work(around.context.name(), correlation, parent.as_deref(), span, work).await
}

/// Without an allocation for those that come often.
fn status_text(status: StatusCode) -> std::borrow::Cow<'static, str> {
    match status.as_u16() {
        200 => "200".into(),
        201 => "201".into(),
        202 => "202".into(),
        404 => "404".into(),
        other => other.to_string().into(),
    }
}
