//! Which pages of other origins may call the gateway from a browser, and read the answers.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use order_kit::env::{self, Env};

/// What a page may send.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";
/// With which headers.
const HEADERS: &str = "authorization, content-type, idempotency-key, prefer, traceparent, x-correlation-id, x-request-timeout-ms";
/// What it may read besides what every page may.
const EXPOSED: &str = "location, retry-after, ratelimit-limit, ratelimit-remaining, ratelimit-reset, age, x-cache, x-fallback, x-served-by";
/// For how many seconds a browser need not ask again.
const MAX_AGE: &str = "600";

/// The origins that may.
#[derive(Debug, Clone)]
pub struct Origins(Arc<[String]>);

impl Origins {
    /// As the environment says.
    pub fn of(env: &Env) -> Self {
        let origins = env.get_or_default(env::CORS_ORIGINS);
        let origins = origins.split(',').map(|origin| origin.trim().trim_end_matches('/').to_owned());
        Origins(origins.filter(|origin| !origin.is_empty()).collect())
    }

    fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        self.0.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }
}

/// Answers what browsers ask before a request, and says in answers who may read them. What services say of it is not passed on.
pub async fn shared(State(origins): State<Origins>, request: Request, next: Next) -> Response {
    let allowed = origins.allowed(request.headers());
    let preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response =
        if preflight { StatusCode::NO_CONTENT.into_response() } else { next.run(request).await };
    let headers = response.headers_mut();
    let told: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
    for name in told {
        headers.remove(name);
    }
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if preflight {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(HEADERS));
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        } else {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        }
    }
    response
}
