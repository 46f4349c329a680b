//! A gateway on a port of its own, and services to put behind it.

use std::{net::SocketAddr, sync::Arc};

use axum::Router;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use order_gateway::{
    Instances, Registry,
    registry::Instance,
    token::{Claims, Tokens},
};
use order_kit::{
    Context,
    context::Ports,
    env::{self, Env},
};
use tokio::net::TcpListener;

/// A token of services.
pub const TOKEN: &str = "between-services";

/// A gateway that listens.
pub struct Running {
    pub address: SocketAddr,
    pub registry: Arc<Instances>,
    pub context: Context,
    http: Http<HttpConnector, Full<Bytes>>,
    _data: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.context.stop().cancel();
    }
}

pub fn env() -> Env {
    Env::empty().with(env::INTERNAL_TOKEN, TOKEN)
}

/// While it is there, time passes only by `tokio::time::advance`: a paused clock runs ahead while nothing is to be done, also when a
/// connection has something to say in a moment, so something always is.
pub fn standing_clock() -> tokio_util::task::AbortOnDropHandle<()> {
    tokio::time::pause();
    tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    }))
}

/// Starts a gateway. Services that are not registered are where nobody listens.
pub async fn gateway(env: Env) -> Running {
    let data = tempfile::tempdir().unwrap();
    let registry = Arc::new(Instances::new(order_gateway::registry::TTL, Arc::new(Ports(1))));
    let broker = order_broker::open("memory:").await.unwrap();
    let context = Context::new(order_gateway::NAME, env, data.path(), broker, registry.clone());
    let router = order_gateway::build(context.clone(), registry.clone()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(order_gateway::serve(context.clone(), router, listener));
    let http = Http::builder(TokioExecutor::new()).build_http();
    Running { address, registry, context, http, _data: data }
}

/// A service that listens until its task is aborted.
pub struct Fake {
    pub address: SocketAddr,
    pub task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves a router on a port of its own.
pub async fn fake(router: Router) -> Fake {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    Fake { address, task }
}

impl Running {
    /// Puts a service behind the gateway.
    pub fn register(&self, service: &str, at: SocketAddr) {
        let (host, port) = (at.ip().to_string(), at.port());
        let instance = Instance { service: service.into(), host, port, id: format!("{service}-{port}") };
        self.registry.register(instance).unwrap();
    }

    /// A gateway with one service behind it.
    pub async fn before(env: Env, service: &str, router: Router) -> (Running, Fake) {
        let (running, fake) = (gateway(env).await, fake(router).await);
        running.register(service, fake.address);
        (running, fake)
    }

    /// A token of the development issuer's kind.
    pub fn token(&self, sub: &str) -> String {
        self.token_of(&Claims::of(sub))
    }

    /// Of somebody who works here.
    pub fn staff_token(&self, role: &str) -> String {
        self.token_of(&Claims { roles: vec![role.to_owned()], ..Claims::of("u1") })
    }

    pub fn token_of(&self, claims: &Claims) -> String {
        let env = Env::empty().with(env::DEV_TOKENS, "1");
        let env = env.with(env::JWT_SECRET, self.context.env().get_or_default(env::JWT_SECRET));
        Tokens::of(&env).issue(claims).unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[("authorization", &format!("Bearer {}", self.token("u1")))], "").await
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        send(&self.http, self.address, method, path, headers, body).await
    }
}

impl Running {
    /// A request with that `Authorization`, or none if it is empty.
    pub async fn send_owned(&self, method: Method, path: &str, authorization: String) -> Answer {
        let headers = [("authorization", authorization.as_str())];
        let headers = if authorization.is_empty() { &headers[..0] } else { &headers[..] };
        self.send(method, path, headers, "").await
    }
}

/// An answer, read as a whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

async fn send(
    http: &Http<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let mut request = Request::new(Full::new(body.into()));
    *request.method_mut() = method;
    *request.uri_mut() = format!("http://{address}{path}").parse().unwrap();
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request.headers_mut().entry(header::CONTENT_TYPE).or_insert("application/json".parse().unwrap());
    let response: Response<_> = http.request(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}

/// Says what it was asked: method, path and query, headers, and the body's length.
pub fn mirror() -> Router {
    Router::new().fallback(async |request: axum::extract::Request| {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let headers: std::collections::BTreeMap<String, String> = parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        axum::Json(serde_json::json!({
            "method": parts.method.as_str(), "asked": parts.uri.to_string(), "headers": headers, "length": body.len(),
            "body": String::from_utf8_lossy(&body[..body.len().min(1_000)]),
        }))
    })
}
