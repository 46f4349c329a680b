//! One service under test: built as in production, called through its router, with a broker in memory and a database of its own. For
//! the tests of any service: `#[path = "../../../kit/tests/support/service.rs"] mod service;`
#![allow(dead_code, missing_docs)]

use std::{borrow::Borrow, io::Write, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use futures::FutureExt;
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use order_broker::{Broker, Queue, Switched, Topology};
use order_kit::{
    BoxError, Context, Service,
    auth::SERVICE_TOKEN,
    client::IDEMPOTENCY_KEY,
    context::Ports,
    env::{self, Env},
    events::{EXCHANGE, Envelope},
    health,
    server::{Access, router},
};
use serde_json::Value;
use tower::ServiceExt;

/// The queue that hears everything.
const ALL: &str = "test.all";
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs each test on SQLite, and on PostgreSQL where there is one.
#[macro_export]
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::service::Place::Sqlite).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if let Some(place) = $crate::service::Place::postgres(stringify!($test)) {
                    super::$test(place).await;
                }
            })*
        }
    };
}

/// Where a test's data is.
#[derive(Debug, Clone)]
pub enum Place {
    Sqlite,
    Postgres { url: String, prefix: String },
}

impl Place {
    /// None, and says so where nobody captures it, when there is no server to test with.
    pub fn postgres(test: &str) -> Option<Self> {
        let url = server(test, "MAINSTAY_TEST_POSTGRES")?;
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), test);
        Some(Place::Postgres { url, prefix: format!("order_test_{random:016x}_") })
    }

    fn env(&self, env: Env) -> Env {
        match self {
            Place::Sqlite => env,
            Place::Postgres { url, prefix } => {
                env.with(env::DATABASE_URL, url).with("DATABASE_SCHEMA_PREFIX", prefix)
            }
        }
    }
}

/// Where a server is. None, and says so where nobody captures it, when there is none to test with.
pub fn server(test: &str, variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok();
    if url.is_none() {
        // In one piece, so that tests at the same time do not write into each other's lines.
        let line = format!("skipped: {test}: {variable} is not set\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    url
}

/// A service that runs.
pub struct Bench {
    pub context: Context,
    pub router: Router,
    pub data: Arc<tempfile::TempDir>,
    broker: Arc<dyn Broker>,
    _clean: Clean,
}

struct Clean {
    place: Place,
    service: &'static str,
    context: Context,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    /// The same as JSON, which every answer is.
    pub body: Value,
}

impl Answer {
    pub fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// Runs a check on SQLite, and on PostgreSQL where there is one.
pub async fn everywhere<F>(
    name: &'static str,
    build: impl Fn(Context) -> F,
    test: &str,
    check: impl AsyncFn(&Bench),
) where
    F: Future<Output = Result<Service, BoxError>>,
{
    for place in [Some(Place::Sqlite), Place::postgres(test)].into_iter().flatten() {
        let bench = Bench::start(place, name, Env::empty(), &build).await;
        let checked = AssertUnwindSafe(check(&bench)).catch_unwind().await;
        bench.end().await;
        if let Err(panic) = checked {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Bench {
    /// Builds the service and begins to hear everything that it tells.
    pub async fn start<F>(
        place: Place,
        name: &'static str,
        env: Env,
        build: impl FnOnce(Context) -> F,
    ) -> Self
    where
        F: Future<Output = Result<Service, BoxError>>,
    {
        Bench::start_in(Arc::new(tempfile::tempdir().unwrap()), place, name, env, build).await
    }

    /// The same on the files of another.
    pub async fn start_in<F>(
        data: Arc<tempfile::TempDir>,
        place: Place,
        name: &'static str,
        env: Env,
        build: impl FnOnce(Context) -> F,
    ) -> Self
    where
        F: Future<Output = Result<Service, BoxError>>,
    {
        let broker = order_broker::open("memory:").await.unwrap();
        broker.declare(&Topology::new(EXCHANGE).queue(Queue::new(ALL).bind("#"))).await.unwrap();
        let context = Context::new(name, place.env(env), data.path(), broker.clone(), Arc::new(Ports(3000)));
        let clean = Clean { place, service: name, context: context.clone() };
        let service = build(context.clone()).await.unwrap();
        let router = router(&context, service, Access::Services);
        Bench { context, router, data, broker, _clean: clean }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, Body::empty()).await
    }

    pub async fn put(&self, path: &str, body: impl Borrow<Value>) -> Answer {
        self.call(Method::PUT, path, body.borrow().to_string()).await
    }

    pub async fn post(&self, path: &str, body: impl Borrow<Value>) -> Answer {
        self.call(Method::POST, path, body.borrow().to_string()).await
    }

    /// Asks for a step of a saga, under its key.
    pub async fn step(&self, path: &str, key: &str, body: impl Borrow<Value>) -> Answer {
        let request = self.request(Method::POST, path).header(&IDEMPOTENCY_KEY, key);
        self.send(request.body(body.borrow().to_string().into()).unwrap()).await
    }

    pub async fn call(&self, method: Method, path: &str, body: impl Into<Body>) -> Answer {
        self.send(self.request(method, path).body(body.into()).unwrap()).await
    }

    /// With the service token; a body is said to be JSON.
    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(&SERVICE_TOKEN, self.context.tokens().send())
            .header("content-type", "application/json")
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let (status, body) = (parts.status, body.collect().await.unwrap().to_bytes());
        let text = String::from_utf8_lossy(&body).into_owned();
        let body = serde_json::from_str(&text)
            .unwrap_or_else(|_| panic!("{status} with a body that is no JSON: {text}"));
        Answer { status: status.as_u16(), headers: parts.headers, text, body }
    }

    /// Publishes an event as another service would; the same id each time it is published.
    pub async fn tell(&self, id: &str, kind: &str, order: &str, data: Value) {
        let envelope = serde_json::json!({
            "id": id, "type": kind, "data": data,
            "metadata": {"timestamp": "", "version": "1.0", "source": "test", "correlationId": order},
        });
        let message = order_broker::Message {
            id: id.to_owned(),
            topic: kind.to_owned(),
            key: order.to_owned(),
            body: envelope.to_string(),
            headers: Default::default(),
        };
        for published in self.broker.publish(vec![message]).await {
            published.unwrap();
        }
    }

    /// Waits until a queue of the service has nothing left; how many dead letters it has.
    pub async fn handled(&self, queue: &str) -> u64 {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let stats = self.broker.stats(queue).await.unwrap();
            if stats.backlog() == 0 {
                return stats.dead;
            }
            assert!(tokio::time::Instant::now() < end, "still to be handled: {stats:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends the service in order; everything that it has told, itself and by whoever played the others.
    pub async fn end(self) -> Vec<Envelope> {
        self.context.stop().cancel();
        tokio::time::timeout(PATIENCE, self.context.finished()).await.expect("the service ends");
        let mut told = Vec::new();
        let mut consumer = self.broker.consume(ALL, 100).await.unwrap();
        while self.broker.stats(ALL).await.unwrap().backlog() > 0 {
            for delivery in consumer.next_batch(100).await.unwrap() {
                told.push(serde_json::from_str(&delivery.message().body).unwrap());
                delivery.ack().await.unwrap();
            }
        }
        told
    }
}

/// Holds that the service is ready without a broker, as long as its events do not move orders on.
pub async fn needs_its_broker_in_choreography_alone<F>(name: &'static str, build: impl Fn(Context) -> F)
where
    F: Future<Output = Result<Service, BoxError>>,
{
    for (style, status) in
        [("orchestrated", health::Status::Degraded), ("choreography", health::Status::Unhealthy)]
    {
        let data = tempfile::tempdir().unwrap();
        let broker = Switched::new(order_broker::open("memory:").await.unwrap());
        let env = Env::empty().with(env::SAGA_STYLE, style);
        let ports = Arc::new(Ports(3000));
        let context = Context::new(name, env, data.path(), Arc::new(broker.clone()), ports);
        let service = build(context.clone()).await.unwrap();
        broker.set_away(true);
        let ready = health::ready(name, Duration::ZERO, &service.checks).await;
        assert_eq!(ready.status, status, "{style}: {ready:?}");
        context.stop().cancel();
        context.finished().await;
    }
}

/// How many events of this kind there are about an order.
pub fn count(told: &[Envelope], kind: &str, order: &str) -> usize {
    told.iter().filter(|event| event.kind == kind && event.data["orderId"] == order).count()
}

/// Every answer that the description promises, as `METHOD /path status`; and for `{…}` in a path whatever stands there.
pub fn described(api: &Value) -> std::collections::BTreeSet<String> {
    let mut all = std::collections::BTreeSet::new();
    for (path, methods) in api["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            for status in operation["responses"].as_object().unwrap().keys() {
                all.insert(format!("{} {path} {status}", method.to_uppercase()));
            }
        }
    }
    all
}

impl Drop for Clean {
    fn drop(&mut self) {
        self.context.stop().cancel();
        let Place::Postgres { url, prefix } = &self.place else { return };
        let (url, schema) = (url.clone(), format!("{prefix}{}", self.service));
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (client, connection) =
                    tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
                tokio::spawn(connection);
                client
                    .batch_execute(&format!(
                        "set client_min_messages to warning; drop schema if exists \"{schema}\" cascade"
                    ))
                    .await
                    .unwrap();
            });
        });
        let _ = dropped.join();
    }
}
