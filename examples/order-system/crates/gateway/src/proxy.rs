//! From the gateway's paths to those of services, and back.

use std::{net::SocketAddr, time::Duration};

use axum::{
    body::Body,
    extract::{ConnectInfo, Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Limited};
use order_kit::{ApiError, Json, context::Known, trace};

use crate::{
    Gateway, NAME, behind,
    cache::{self, Key},
    headers,
    strangler::{self, Compared, To},
    token::{self, Needs, Shown},
    upstream::{Outgoing, Trouble, Upstream},
};

/// Who answers where no service does.
pub const MONOLITH: &str = "monolith";
/// How much of a shadow answer is read.
const SHADOW_BODY: usize = 256 * 1024;
/// How long a shadow request may take.
const SHADOW_TIME: Duration = Duration::from_secs(15);

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The service; `None`: something that only a monolith may have.
    pub service: Option<&'static Known>,
    /// The path and query that the other side is to see, byte for byte as they came.
    pub path: &'a str,
}

/// What a path and query ask for. Only the first name is looked at. A path with `.` or `..` as a segment, however it is written, asks for
/// nothing: services and whatever stands between may read it in different ways. The same holds for what only operators may ask for.
pub fn target(path_and_query: &str) -> Option<Target<'_>> {
    let api = path_and_query.strip_prefix("/api").filter(|path| path.starts_with('/'));
    let path = api.unwrap_or(path_and_query);
    let only_path = path.split('?').next().unwrap_or(path);
    let mut segments = only_path.split('/').skip(1);
    let name = segments.next()?;
    let dots = |segment: &str| {
        let plain = segment.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
        plain.split(['/', '\\']).any(|part| part == "." || part == "..")
    };
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !plain || segments.any(dots) {
        return None;
    }
    Some(Target { service: api.and_then(|_| behind().find(|known| known.name == name)), path })
}

/// Where a request goes.
struct Way<'a> {
    upstream: &'a Upstream,
    by: &'static str,
    /// Whom to ask as well.
    shadow: Option<&'a Upstream>,
}

/// Passes a request on.
pub async fn handle(State(gateway): State<Gateway>, mut request: Request) -> Result<Response, ApiError> {
    let asked = request.uri().path_and_query().map_or("/", |it| it.as_str()).to_owned();
    let nothing = || ApiError::not_found("No such route");
    let Target { service, path } = target(&asked).ok_or_else(nothing)?;
    if service.is_none() && gateway.0.monolith.is_none() {
        return Err(nothing());
    }
    let shown = request.extensions_mut().remove().unwrap_or_else(|| gateway.0.tokens.read(request.headers()));
    let needs = token::needs(request.method(), path.split('?').next().unwrap_or(path));
    let who = match shown {
        Shown::Token(claims) if claims.satisfy(needs) => Some(claims),
        Shown::Token(_) => return Err(ApiError::forbidden("The token is not for this")),
        // What is none of the services' is never open: the monolith may mean something else by it.
        Shown::Nothing if needs == Needs::Nothing && service.is_some() => None,
        Shown::Nothing => return Err(ApiError::unauthorized("A token is needed")),
        Shown::Worthless => return Err(ApiError::unauthorized("The token does not hold")),
    };
    let method = request.method().clone();
    let subject = who.as_ref().map(|who| who.sub.as_str());
    let way = gateway.way(service, path, subject, method.is_safe()).ok_or_else(nothing)?;
    let _forget = if method.is_safe() { None } else { gateway.0.cache.forget_after(path) };
    let looked_up = cache::concerns(&method, path, request.headers()).then(|| {
        let key = Key { by: way.by, path: path.to_owned() };
        (gateway.0.cache.get(&key), key)
    });
    let ticket = match looked_up {
        Some((Ok(response), _)) => return Ok(served(response, way.by)),
        Some((Err(ticket), key)) => Some((ticket, key)),
        None => None,
    };

    let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|it| it.0.ip());
    let (mut parts, body) = request.into_parts();
    let from = headers::From { client, secure: gateway.0.secure, who: who.as_ref() };
    headers::to_service(&mut parts.headers, from);
    let shadow = way.shadow.filter(|_| method == Method::GET && body.is_end_stream()).map(|other| {
        let mut headers = parts.headers.clone();
        headers.insert(HeaderName::from_static("x-shadow"), HeaderValue::from_static("1"));
        let body = Body::empty();
        (other.clone(), Outgoing { method: Method::GET, path: path.to_owned(), headers, body })
    });
    let outgoing = Outgoing { method, path: path.to_owned(), headers: parts.headers, body };
    let mut response = match way.upstream.send(outgoing).await {
        Ok(response) => response,
        Err(trouble) => return Ok(served(unavailable(service, &trouble), way.by)),
    };
    if asked.len() != path.len() {
        below_api(&mut response);
    }
    let fresh = cache::fresh(response.status(), response.headers());
    if ticket.is_some() || shadow.is_some() {
        let whole;
        (response, whole) = match read_small(response).await {
            Ok(read) => read,
            Err(trouble) => return Ok(served(unavailable(service, &trouble), way.by)),
        };
        if let (Some((other, outgoing)), Some(known)) = (shadow, service) {
            gateway.compare(known.name, other, outgoing, response.status(), whole.clone());
        }
        if let Some((ticket, key)) = ticket {
            if let (Some(fresh), Some(whole)) = (fresh, whole) {
                gateway.0.cache.put(ticket, key, response.headers(), &whole, fresh);
            }
            response.headers_mut().insert(&headers::CACHE, HeaderValue::from_static("miss"));
        }
    }
    Ok(served(response, way.by))
}

impl Gateway {
    fn way(
        &self,
        service: Option<&'static Known>,
        path: &str,
        subject: Option<&str>,
        reads: bool,
    ) -> Option<Way<'_>> {
        let monolith = self.0.monolith.as_ref();
        let Some(service) = service else {
            return Some(Way { upstream: monolith?, by: MONOLITH, shadow: None });
        };
        // Whoever is known sees the same side for the same thing; who is not is spread request by request.
        let unknown = trace::correlation();
        let who = subject.or(unknown.as_deref()).unwrap_or_default();
        let thing = path.split('?').next().unwrap_or(path);
        let (to, shadow) = self.0.strangler.decide(service.name, &format!("{who} {thing}"), reads);
        let side = |to| match to {
            To::New => Some((self.0.upstreams.get(service.name)?, service.name)),
            To::Legacy => Some((monolith?, MONOLITH)),
        };
        let (upstream, by) = side(to)?;
        let shadow = if shadow { side(to.other()).map(|(other, _)| other) } else { None };
        Some(Way { upstream, by, shadow })
    }

    /// Asks the other side and compares, beside everything else: whoever asked has his answer.
    fn compare(
        &self,
        service: &'static str,
        other: Upstream,
        outgoing: Outgoing,
        status: StatusCode,
        body: Option<Bytes>,
    ) {
        let Ok(place) = self.0.shadows.clone().try_acquire_owned() else {
            return self.0.strangler.compared(service, Compared::Skipped);
        };
        let gateway = self.clone();
        let stop = self.0.context.stop().clone();
        let path = outgoing.path.clone();
        let ask = async move {
            let answer = other.send_aside(outgoing).await.ok()?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), SHADOW_BODY).collect().await.ok()?;
            Some((status, body.to_bytes()))
        };
        let correlation = trace::correlation().unwrap_or_else(order_kit::new_id);
        self.0.context.spawn(trace::with_correlation(NAME, correlation, async move {
            let _place = place;
            let answer = tokio::select! {
                answer = tokio::time::timeout(SHADOW_TIME, ask) => answer.ok().flatten(),
                () = stop.cancelled() => return,
            };
            let compared = match answer {
                None => Compared::Failed,
                Some((other, text))
                    if other == status && body.is_none_or(|body| strangler::same(&body, &text)) =>
                {
                    Compared::Same
                }
                Some((other, _)) => {
                    let (status, other) = (status.as_u16(), other.as_u16());
                    tracing::warn!(
                        service,
                        path,
                        status,
                        other,
                        "the other side would have answered in another way"
                    );
                    Compared::Different
                }
            };
            gateway.0.strangler.compared(service, compared);
        }));
    }
}

fn served(mut response: Response, by: &'static str) -> Response {
    response.headers_mut().insert(&headers::SERVED_BY, HeaderValue::from_static(by));
    response
}

/// Where something is to be found at a service, it is to be found below `/api` here.
fn below_api(response: &mut Response) {
    let headers = response.headers_mut();
    let Some(location) = headers.get(header::LOCATION).and_then(|location| location.to_str().ok()) else {
        return;
    };
    if location.starts_with('/')
        && !location.starts_with("//")
        && let Ok(location) = HeaderValue::from_str(&format!("/api{location}"))
    {
        headers.insert(header::LOCATION, location);
    }
}

/// Reads a body that says that it is small, and gives it back with the response; others stay streams.
async fn read_small(response: Response) -> Result<(Response, Option<Bytes>), Trouble> {
    if response.body().size_hint().exact().is_none_or(|size| size > cache::BODY) {
        return Ok((response, None));
    }
    let (parts, body) = response.into_parts();
    let body = body
        .collect()
        .await
        .map_err(|error| Trouble::Connection { text: error.to_string(), sent: true })?
        .to_bytes();
    Ok((Response::from_parts(parts, Body::from(body.clone())), Some(body)))
}

/// What the client is told when there is no answer.
fn unavailable(service: Option<&Known>, trouble: &Trouble) -> Response {
    let service = service.map_or(MONOLITH, |known| known.singular);
    tracing::warn!(service, error = %trouble, "a request could not be passed on");
    let (status, message) = trouble.tell();
    let error = match status {
        StatusCode::SERVICE_UNAVAILABLE => "Service unavailable",
        StatusCode::GATEWAY_TIMEOUT => "Service timed out",
        _ => "Bad request",
    };
    let body = serde_json::json!({ "error": error, "service": service, "message": message });
    let mut response = (status, Json(body)).into_response();
    if let Some(after) = trouble.retry_after() {
        let seconds = u64::try_from(after.as_millis().div_ceil(1_000).max(1)).unwrap_or(u64::MAX);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_goes_and_the_rest_stays_byte_for_byte() {
        let seen = |asked| {
            let Target { service, path } = target(asked)?;
            Some((service.map_or(MONOLITH, |it| it.singular), path.to_owned()))
        };
        assert_eq!(seen("/api/users/1?x=a%20b"), Some(("user", "/users/1?x=a%20b".into())));
        assert_eq!(seen("/api/orders"), Some(("order", "/orders".into())));
        assert_eq!(seen("/api/orders?limit=1"), Some(("order", "/orders?limit=1".into())));
        assert_eq!(seen("/api/users//%2F?/../"), Some(("user", "/users//%2F?/../".into())));
        assert_eq!(seen("/api/reports/1"), Some((MONOLITH, "/reports/1".into())));
        assert_eq!(seen("/users/1"), Some((MONOLITH, "/users/1".into())));
        assert_eq!(seen("/api/gateway/x"), Some((MONOLITH, "/gateway/x".into())));
        for nothing in [
            "/",
            "/api/",
            "/api/users/../_faults",
            "/api/users/%2e%2E/_faults",
            "/api/users/..%2f_faults",
            "/api/./users",
            "/api//users",
            "/_faults",
            "/api/_faults",
            "/api/%5ffaults",
            "/a/./b",
            "/api/users/x%5c..%5cy",
        ] {
            assert_eq!(seen(nothing), None, "{nothing}");
        }
    }
}
