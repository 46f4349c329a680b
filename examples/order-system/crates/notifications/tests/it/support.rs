//! A service with its broker and, where one is needed, users that answer what a test wants.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, RawQuery},
    response::IntoResponse,
    routing::get,
};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use order_broker::{Broker, Message};
use order_kit::{
    BoxError, Context, Service,
    auth::SERVICE_TOKEN,
    context::Ports,
    env::{self, Env},
    events::{Envelope, Metadata},
    server::{Access, router},
};
use serde_json::{Value, json};
use tower::ServiceExt;

/// A broker, and a folder or schemas for the databases of services that share it.
pub struct World {
    pub broker: Arc<dyn Broker>,
    env: Env,
    folder: tempfile::TempDir,
    schemas: Option<Schemas>,
}

struct Schemas {
    url: String,
    prefix: String,
}

/// Where databases are in a test.
#[derive(Clone, Copy, Debug)]
pub enum On {
    Sqlite,
    Postgres,
}

impl World {
    pub async fn new() -> Self {
        World {
            broker: order_broker::open("memory:").await.unwrap(),
            env: Env::empty(),
            folder: tempfile::tempdir().unwrap(),
            schemas: None,
        }
    }

    /// `None`, and a word about it, if there is no such database here.
    pub async fn on(on: On, test: &str) -> Option<Self> {
        let mut world = World::new().await;
        if let On::Postgres = on {
            let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
                eprintln!("skipped: {test} on PostgreSQL: MAINSTAY_TEST_POSTGRES is not set");
                return None;
            };
            let prefix = format!("test_{}_", order_kit::new_id().replace('-', ""));
            world.env = world.env.with(env::DATABASE_URL, &url).with("DATABASE_SCHEMA_PREFIX", &prefix);
            world.schemas = Some(Schemas { url, prefix });
        }
        Some(world)
    }

    pub fn with_users(mut self, users: &Users) -> Self {
        self.env = self.env.with(env::USER_SERVICE_URL, &users.url);
        self
    }

    /// With orders that have stored these events, and show two of them at a time.
    pub async fn with_orders(mut self, stored: Vec<Envelope>) -> Self {
        let page = move |RawQuery(query): RawQuery| {
            let after =
                query.as_deref().and_then(|it| it.split(['=', '&']).nth(1)?.parse().ok()).unwrap_or(0);
            let events = &stored[after..stored.len().min(after + 2)];
            let next = (after + 2 < stored.len()).then_some(after + 2);
            std::future::ready(axum::Json(json!({ "events": events, "next": next })))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.env =
            self.env.with(env::ORDER_SERVICE_URL, format!("http://{}", listener.local_addr().unwrap()));
        let routes = Router::new().route("/_events", get(page));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        self
    }

    pub fn context(&self, name: &'static str) -> Context {
        Context::new(name, self.env.clone(), self.folder.path(), self.broker.clone(), Arc::new(Ports(1)))
    }

    pub async fn start<F>(&self, name: &'static str, build: impl FnOnce(Context) -> F) -> Running
    where
        F: Future<Output = Result<Service, BoxError>>,
    {
        let context = self.context(name);
        let service = build(context.clone()).await.unwrap();
        Running { router: router(&context, service, Access::Services), context }
    }

    pub async fn publish(&self, event: &Envelope) {
        let message = Message {
            id: event.id.clone(),
            topic: event.kind.clone(),
            key: event.metadata.correlation_id.clone(),
            body: serde_json::to_string(event).unwrap(),
            headers: BTreeMap::new(),
        };
        self.broker.publish(vec![message]).await.remove(0).unwrap();
    }

    /// Waits until nothing is left to be handled in a queue.
    pub async fn settled(&self, queue: &str) {
        until(queue, async || self.broker.stats(queue).await.unwrap().backlog() == 0).await;
    }

    pub async fn dead(&self, queue: &str) -> u64 {
        self.broker.stats(queue).await.unwrap().dead
    }

    /// Leaves nothing behind.
    pub async fn end(self, services: impl IntoIterator<Item = Running>) {
        for service in services {
            service.context.stop().cancel();
            service.context.finished().await;
        }
        let Some(Schemas { url, prefix }) = self.schemas else { return };
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        for name in ["notifications", "analytics", "loyalty"] {
            client.batch_execute(&format!("drop schema if exists \"{prefix}{name}\" cascade")).await.unwrap();
        }
    }
}

/// A service that runs.
pub struct Running {
    context: Context,
    router: Router,
}

impl Running {
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        let request = Request::get(path).header(&SERVICE_TOKEN, "internal-dev-token").body(Body::empty());
        let response = self.router.clone().oneshot(request.unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// What was sent about an order, without the times.
    pub async fn sent(&self, order: &str) -> Vec<(String, String, Value)> {
        let (status, sent) = self.get(&format!("/sent?order={order}")).await;
        assert_eq!(status, StatusCode::OK);
        let text = |mail: &Value, field: &str| mail[field].as_str().unwrap().to_owned();
        sent.as_array()
            .unwrap()
            .iter()
            .map(|it| (text(it, "kind"), text(it, "status"), it["to"].clone()))
            .collect()
    }
}

pub fn event(kind: &str, key: &str, data: Value) -> Envelope {
    Envelope {
        id: order_kit::new_id(),
        kind: kind.to_owned(),
        data,
        metadata: Metadata {
            timestamp: order_kit::iso(order_kit::now_ms()),
            version: order_kit::events::VERSION.to_owned(),
            source: "test".to_owned(),
            correlation_id: key.to_owned(),
            traceparent: None,
        },
    }
}

pub fn order(kind: &str, order: &str, user: &str, total: &str) -> Envelope {
    let data = json!({
        "orderId": order, "userId": user, "total": total, "timestamp": "2026-11-26T04:00:00.000Z",
        "items": [{ "productId": "p1", "quantity": 1, "price": total }],
        "reason": (kind == "order.cancelled").then_some("card_declined"),
    });
    event(kind, order, data)
}

pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within 20 s"));
}

/// A service of users: everybody exists but `nobody`.
pub struct Users {
    pub url: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    calls: AtomicU64,
    failing: AtomicU32,
    paths: Mutex<Vec<String>>,
}

impl Users {
    pub async fn start() -> Self {
        let state = Arc::new(State::default());
        let shared = state.clone();
        let answer = move |Path(id): Path<String>| {
            shared.calls.fetch_add(1, Ordering::SeqCst);
            shared.paths.lock().unwrap().push(id.clone());
            let failing =
                shared.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            let response = match (failing, id.as_str()) {
                (Ok(_), _) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
                (_, "nobody") => {
                    (StatusCode::NOT_FOUND, axum::Json(json!({ "error": "User not found" }))).into_response()
                }
                _ => axum::Json(json!({ "id": id, "name": "Alice", "email": format!("{id}@example.com"), "createdAt": "" }))
                    .into_response(),
            };
            std::future::ready(response)
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new()
            .route("/users/{id}", get(answer))
            .route("/health", get(|| std::future::ready(axum::Json(json!({ "status": "ok" })))));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Users { url, state }
    }

    pub fn fail(&self, requests: u32) {
        self.state.failing.store(requests, Ordering::SeqCst);
    }

    pub fn calls(&self) -> u64 {
        self.state.calls.load(Ordering::SeqCst)
    }

    pub fn asked(&self) -> Vec<String> {
        self.state.paths.lock().unwrap().clone()
    }
}
