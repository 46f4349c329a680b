//! From the gateway's paths to those of services, and back.

use std::net::SocketAddr;

use axum::{
    extract::{ConnectInfo, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use order_kit::{ApiError, Json, context::Known};

use crate::{
    Gateway, behind, headers,
    token::{self, Shown},
    upstream::{Outgoing, Trouble},
};

/// A request to a service: its name, and the path and query that it is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The service.
    pub service: &'static Known,
    /// From the name on, byte for byte as it came.
    pub path: &'a str,
}

/// What a path and query ask for. Only the name is looked at. A path with `.` or `..` as a segment is nothing: services and whatever
/// stands between may read it in different ways.
pub fn target(path_and_query: &str) -> Option<Target<'_>> {
    let path = path_and_query.strip_prefix("/api").filter(|path| path.starts_with('/'))?;
    let (only_path, _) = path.split_once('?').unwrap_or((path, ""));
    let mut segments = only_path.split('/').skip(1);
    let name = segments.next()?;
    let dots = |segment: &str| {
        let plain = segment.to_ascii_lowercase().replace("%2e", ".");
        plain == "." || plain == ".."
    };
    let service = behind().find(|known| known.name == name)?;
    (!segments.any(dots)).then_some(Target { service, path })
}

/// Passes a request on.
pub async fn handle(State(gateway): State<Gateway>, request: Request) -> Result<Response, ApiError> {
    let asked = request.uri().path_and_query().map_or("/", |it| it.as_str()).to_owned();
    let Some(Target { service, path }) = target(&asked) else {
        return Err(ApiError::not_found("No such route"));
    };
    let shown = gateway.0.tokens.read(request.headers());
    let open = token::is_open(request.method(), path.split('?').next().unwrap_or(path));
    let who = match shown {
        Shown::Token(claims) => Some(claims),
        Shown::Nothing if open => None,
        Shown::Nothing => return Err(ApiError::unauthorized("A token is needed")),
        Shown::Worthless => return Err(ApiError::unauthorized("The token does not hold")),
    };
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|it| it.0.ip());
    let (mut parts, body) = request.into_parts();
    let from = headers::From { client, secure: gateway.0.secure, who: who.as_ref() };
    headers::to_service(&mut parts.headers, from, gateway.0.context.tokens().send());
    let outgoing = Outgoing { method: parts.method, path: path.to_owned(), headers: parts.headers, body };
    let upstream = &gateway.0.upstreams[service.name];
    let mut response = match upstream.send(outgoing).await {
        Ok(response) => response,
        Err(trouble) => unavailable(service, &trouble),
    };
    response.headers_mut().insert(&headers::SERVED_BY, HeaderValue::from_static(service.name));
    Ok(response)
}

/// What the client is told when there is no answer.
fn unavailable(service: &Known, trouble: &Trouble) -> Response {
    tracing::warn!(service = service.name, error = %trouble, "a request could not be passed on");
    let (status, message) = trouble.tell();
    let error = match status {
        StatusCode::SERVICE_UNAVAILABLE => "Service unavailable",
        StatusCode::GATEWAY_TIMEOUT => "Service timed out",
        _ => "Bad request",
    };
    let body = serde_json::json!({ "error": error, "service": service.singular, "message": message });
    let mut response = (status, Json(body)).into_response();
    if let Some(after) = trouble.retry_after() {
        let seconds = after.as_millis().div_ceil(1_000).max(1);
        if let Ok(seconds) = HeaderValue::from_str(&seconds.to_string()) {
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_goes_and_the_rest_stays_byte_for_byte() {
        let seen = |asked| target(asked).map(|target| (target.service.singular, target.path.to_owned()));
        assert_eq!(seen("/api/users/1?x=a%20b"), Some(("user", "/users/1?x=a%20b".into())));
        assert_eq!(seen("/api/orders"), Some(("order", "/orders".into())));
        assert_eq!(seen("/api/orders?limit=1"), Some(("order", "/orders?limit=1".into())));
        assert_eq!(seen("/api/users//%2F?/../"), Some(("user", "/users//%2F?/../".into())));
        for nothing in [
            "/api",
            "/api/",
            "/api/gateway/x",
            "/apiusers/1",
            "/users/1",
            "/api/users/../_faults",
            "/api/users/%2e%2E/_faults",
            "/api/./users",
            "/api/Users/1",
            "/api//users",
        ] {
            assert_eq!(seen(nothing), None, "{nothing}");
        }
    }
}
