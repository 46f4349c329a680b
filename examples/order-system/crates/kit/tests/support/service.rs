//! One service under test: built as in production, called through its router, with a broker in memory and a database of its own. For
//! the tests of any service: `#[path = "../../../kit/tests/support/service.rs"] mod service;`
#![allow(dead_code, missing_docs)]

use std::{io::Write, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{Method, Request};
use http_body_util::BodyExt;
use order_broker::{Broker, Queue, Topology};
use order_kit::{
    BoxError, Context, Service,
    auth::SERVICE_TOKEN,
    client::IDEMPOTENCY_KEY,
    context::Ports,
    env::{self, Env},
    events::{EXCHANGE, Envelope},
    server::{Access, router},
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
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
        let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
            // In one piece, so that tests at the same time do not write into each other's lines.
            let line = format!("skipped: {test} on PostgreSQL: MAINSTAY_TEST_POSTGRES is not set\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            return None;
        };
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

/// A service that runs.
pub struct Bench {
    pub context: Context,
    pub router: Router,
    broker: Arc<dyn Broker>,
    _clean: Clean,
}

struct Clean {
    place: Place,
    service: &'static str,
    stop: CancellationToken,
    _data: tempfile::TempDir,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
    pub retry_after: Option<String>,
}

impl Answer {
    pub fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
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
        let data = tempfile::tempdir().unwrap();
        let broker = order_broker::open("memory:").await.unwrap();
        broker.declare(&Topology::new(EXCHANGE).queue(Queue::new(ALL).bind("#"))).await.unwrap();
        let context = Context::new(name, place.env(env), data.path(), broker.clone(), Arc::new(Ports(3000)));
        let clean = Clean { place, service: name, stop: context.stop().clone(), _data: data };
        let service = build(context.clone()).await.unwrap();
        let router = router(&context, service, Access::Services);
        Bench { context, router, broker, _clean: clean }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None, None).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, None, Some(body)).await
    }

    pub async fn post(&self, path: &str, key: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Some(key), Some(body)).await
    }

    pub async fn send(&self, method: Method, path: &str, key: Option<&str>, body: Option<Value>) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(&SERVICE_TOKEN, self.context.tokens().send())
            .header("content-type", "application/json");
        if let Some(key) = key {
            request = request.header(&IDEMPOTENCY_KEY, key);
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.raw(request.body(body).unwrap()).await
    }

    pub async fn raw(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let retry_after =
            response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body)
            .unwrap_or_else(|_| panic!("{status} with a body that is no JSON: {body:?}"));
        Answer { status: status.as_u16(), body, retry_after }
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

/// How many events of this kind there are about an order.
pub fn count(told: &[Envelope], kind: &str, order: &str) -> usize {
    told.iter().filter(|event| event.kind == kind && event.data["orderId"] == order).count()
}

impl Drop for Clean {
    fn drop(&mut self) {
        self.stop.cancel();
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
