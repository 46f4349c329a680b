//! Places for databases that leave nothing behind, and servers on ports of their own.

use std::{sync::Arc, time::Duration};

use axum::Router;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client as Http, rt::TokioExecutor};
use order_broker::Broker;
use order_kit::{
    Context, Service,
    context::Ports,
    db::Place,
    env::Env,
    health::Check,
    server::{Access, router, serve},
};
use serde_json::Value;
use tokio::{sync::Notify, task::JoinHandle};
use utoipa_axum::router::OpenApiRouter;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A place for one database.
pub struct Somewhere {
    pub place: Place,
    folder: Option<tempfile::TempDir>,
}

impl Somewhere {
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Somewhere { place: Place::Sqlite(folder.path().join("below").join("it.db")), folder: Some(folder) }
    }

    pub fn postgres(test: &str) -> Option<Self> {
        let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
            eprintln!("skipped: {test} on PostgreSQL: MAINSTAY_TEST_POSTGRES is not set");
            return None;
        };
        let schema = format!("test_kit_{}", order_kit::new_id().replace('-', ""));
        Some(Somewhere { place: Place::Postgres { url, schema }, folder: None })
    }

    /// All that there are here.
    pub fn all(test: &str) -> Vec<Self> {
        [Some(Somewhere::sqlite()), Somewhere::postgres(test)].into_iter().flatten().collect()
    }

    pub async fn end(self) {
        if let Place::Postgres { url, schema } = &self.place {
            admin(url)
                .await
                .batch_execute(&format!("drop schema if exists \"{schema}\" cascade"))
                .await
                .unwrap();
        }
        drop(self.folder);
    }
}

/// A connection beside the kit's.
pub async fn admin(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub async fn memory() -> Arc<dyn Broker> {
    order_broker::open("memory:").await.unwrap()
}

pub fn context(name: &'static str, env: Env, broker: Arc<dyn Broker>) -> Context {
    Context::new(
        name,
        env,
        &std::env::temp_dir().join("order-kit-tests-keep-nothing-here"),
        broker,
        Arc::new(Ports(1)),
    )
}

pub fn service(routes: Router, checks: Vec<Check>) -> Service {
    Service { routes: OpenApiRouter::from(routes), checks }
}

/// A service behind a port.
pub struct Served {
    pub url: String,
    pub context: Context,
    pub serving: JoinHandle<()>,
}

impl Served {
    pub async fn start(context: Context, service: Service, access: Access) -> Self {
        let router = router(&context, service, access);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(serve(context.clone(), router, listener));
        Served { url, context, serving }
    }

    /// Open to everybody.
    pub async fn open(name: &'static str, env: Env, routes: Router) -> Self {
        let context = context(name, env, memory().await);
        Served::start(context, service(routes, Vec::new()), Access::Everybody).await
    }

    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }
}

/// A request without policies, and without a span.
pub async fn send(method: &str, url: &str, headers: HeaderMap) -> (StatusCode, Bytes) {
    let http: Http<_, Empty<Bytes>> = Http::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(method).uri(url).body(Empty::new()).unwrap();
    *request.headers_mut() = headers;
    let response = http.request(request).await.unwrap();
    let status = response.status();
    (status, response.into_body().collect().await.unwrap().to_bytes())
}

pub async fn get(url: &str) -> (StatusCode, Value) {
    let (status, body) = send("GET", url, HeaderMap::new()).await;
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// Says when what held it is dropped, once for each time that somebody waits.
#[derive(Clone, Default)]
pub struct Dropped(Arc<Notify>);

impl Dropped {
    pub fn guard(&self) -> impl Drop + Send + use<> {
        struct Guard(Dropped);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.0.notify_one();
            }
        }
        Guard(self.clone())
    }

    pub async fn wait(&self) {
        let dropped = tokio::time::timeout(PATIENCE, self.0.notified()).await;
        dropped.expect("it was dropped");
    }
}

pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}: not within 20 s"));
}
