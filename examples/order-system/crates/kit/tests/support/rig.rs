//! A service as a test has it: built with nothing around it, called without a socket, on a database of its own that is gone afterwards.
//! Service crates include this file in their tests.

use std::{io::Write, panic::AssertUnwindSafe, sync::Arc};

use axum::{Router, body::Body};
use futures::FutureExt;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use order_kit::{
    Context, auth,
    context::{Build, Ports},
    env::{self, Env},
    server::{Access, router},
};
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;

/// A service that runs.
pub struct Running {
    pub context: Context,
    router: Router,
    pub data: Arc<TempDir>,
}

/// What it has answered.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The text in `error`, which is all that an error says.
    pub fn error(&self) -> String {
        let body = self.json();
        let fields = body.as_object().unwrap_or_else(|| panic!("no object: {body}"));
        assert_eq!(fields.len(), 1, "an error says one thing: {body}");
        body["error"].as_str().unwrap_or_else(|| panic!("no text in `error`: {body}")).to_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

impl Running {
    /// Starts it with these settings, on SQLite unless they say otherwise.
    pub async fn start(name: &'static str, build: Build, env: Env) -> Self {
        Running::start_in(name, build, env, Arc::new(TempDir::new().unwrap())).await
    }

    /// Starts it on the data of another.
    pub async fn start_in(name: &'static str, build: Build, env: Env, data: Arc<TempDir>) -> Self {
        let broker = order_broker::open("memory:").await.unwrap();
        let context = Context::new(name, env, data.path(), broker, Arc::new(Ports(3000)));
        let service = build(context.clone()).await.unwrap();
        let router = router(&context, service, Access::Services);
        Running { context, router, data }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::PUT, path, body.to_string()).await
    }

    /// A request with the service token; with a body it is said to be JSON.
    pub async fn call(&self, method: Method, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(&auth::SERVICE_TOKEN, self.context.tokens().send())
            .header(header::CONTENT_TYPE, "application/json");
        self.send(request.body(body.into()).unwrap()).await
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    pub async fn end(self) {
        self.context.stop().cancel();
        self.context.finished().await;
    }
}

/// Runs the check on SQLite, and on a schema of its own in the PostgreSQL of `MAINSTAY_TEST_POSTGRES`; says so if there is none.
pub async fn everywhere(name: &'static str, build: Build, test: &str, check: impl AsyncFn(&Running)) {
    let running = Running::start(name, build, Env::empty()).await;
    check(&running).await;
    running.end().await;
    let Some(schema) = Schema::new(test) else { return };
    let running = Running::start(name, build, schema.env()).await;
    let checked = AssertUnwindSafe(check(&running)).catch_unwind().await;
    running.end().await;
    schema.drop(name).await;
    if let Err(panic) = checked {
        std::panic::resume_unwind(panic);
    }
}

/// A schema in the PostgreSQL of `MAINSTAY_TEST_POSTGRES`.
pub struct Schema {
    pub url: String,
    prefix: String,
}

impl Schema {
    /// `None`, and a word about it, if there is no server.
    pub fn new(test: &str) -> Option<Self> {
        let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
            skipped(test, "MAINSTAY_TEST_POSTGRES");
            return None;
        };
        Some(Schema { url, prefix: format!("test_{}_", order_kit::new_id().replace('-', "")) })
    }

    pub fn env(&self) -> Env {
        Env::empty()
            .with(env::DATABASE_URL, self.url.clone())
            .with("DATABASE_SCHEMA_PREFIX", self.prefix.clone())
    }

    pub async fn drop(self, name: &str) {
        let (client, connection) = tokio_postgres::connect(&self.url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let drop = format!("drop schema if exists \"{}{name}\" cascade", self.prefix);
        client.batch_execute(&drop).await.unwrap();
    }
}

/// Says that a part of a test was not run; past the harness, which would keep it to itself.
pub fn skipped(test: &str, variable: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {variable} is not set");
}

/// Bodies that no route takes, with what is wrong with them.
pub fn bad_bodies() -> Vec<(&'static str, Vec<u8>, StatusCode)> {
    let bad = StatusCode::BAD_REQUEST;
    vec![
        ("nothing", b"".to_vec(), bad),
        ("half an object", b"{\"name\":\"Al".to_vec(), bad),
        ("no JSON", b"name=Alice".to_vec(), bad),
        ("a list", b"[]".to_vec(), bad),
        ("a list in the order of fields", b"[\"Alice\",\"alice@example.org\"]".to_vec(), bad),
        ("another", b"[\"Teapot\",\"12.50\"]".to_vec(), bad),
        ("null", b"null".to_vec(), bad),
        ("a text", b"\"Alice\"".to_vec(), bad),
        ("two values", b"{}{}".to_vec(), bad),
        ("no UTF-8", b"{\"name\":\"\xff\xfe\"}".to_vec(), bad),
        ("a number too large", b"{\"name\":1e999}".to_vec(), bad),
        ("deep nesting", [b"{\"name\":".as_slice(), &vec![b'['; 100_000]].concat(), bad),
        ("too much", vec![b' '; 300 * 1024], StatusCode::PAYLOAD_TOO_LARGE),
    ]
}

/// Words that stand in errors of databases, drivers and this code, and in no answer.
pub fn leaks_nothing(answer: &Answer) {
    let text = answer.text.to_lowercase();
    for word in [
        "select ",
        "insert ",
        "update ",
        "from users",
        "from product",
        "table",
        "struct ",
        "sqlite",
        "postgres",
        "redis",
        "127.0.0.1",
        "/tmp",
        ".db",
        "::",
        "panick",
        "connection",
    ] {
        assert!(!text.contains(word), "`{word}` in {}", answer.text);
    }
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

/// Stands before a server, so that a test can take it away.
pub struct Proxy {
    address: std::net::SocketAddr,
    open: tokio::sync::watch::Sender<bool>,
}

impl Proxy {
    /// In front of the server of a URL with a host and a port.
    pub async fn to_url(url: &str) -> Self {
        let server = authority(url).to_owned();
        Proxy::to(server).await
    }

    pub async fn to(server: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, is_open) = tokio::sync::watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (server, mut is_open) = (server.clone(), is_open.clone());
                tokio::spawn(async move {
                    if !*is_open.borrow_and_update() {
                        return;
                    }
                    let Ok(mut far) = tokio::net::TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = is_open.changed() => {}
                    }
                });
            }
        });
        Proxy { address, open }
    }

    /// The URL with the proxy in the server's place.
    pub fn url(&self, url: &str) -> String {
        url.replacen(authority(url), &self.address.to_string(), 1)
    }

    /// Ends all connections and makes no more.
    pub fn cut(&self) {
        self.open.send_replace(false);
    }

    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}

/// `host:port` of `scheme://user:password@host:port/more`.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |it| it.1);
    let rest = rest.split(['/', '?']).next().unwrap_or(rest);
    rest.rsplit_once('@').map_or(rest, |it| it.1)
}

/// Chance that is the same in every run.
pub struct Chance(pub u64);

impl Chance {
    pub fn below(&mut self, limit: u64) -> u64 {
        // Splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..self.below(24)).map(|_| self.below(256) as u8).collect()
    }

    /// Any bytes, as an address may hold them.
    pub fn escaped(&mut self) -> String {
        self.bytes().iter().map(|byte| format!("%{byte:02X}")).collect()
    }

    fn value(&mut self) -> Value {
        match self.below(8) {
            0 => Value::Null,
            1 => (self.below(2) == 0).into(),
            2 => (self.below(u64::MAX) as i64).into(),
            3 => (self.below(1_000_000) as f64 / 997.0).into(),
            4 => vec![self.below(9)].into(),
            5 => format!("{}@", String::from_utf8_lossy(&self.bytes())).into(),
            6 => format!("-{}.{}", self.below(1_000), self.below(1_000)).into(),
            _ => String::from_utf8_lossy(&self.bytes()).into(),
        }
    }

    /// An object with some of these fields; once in a while something else.
    pub fn body(&mut self, fields: &[&str]) -> Vec<u8> {
        if self.below(8) == 0 {
            return self.bytes();
        }
        let mut body = serde_json::Map::new();
        for field in fields {
            if self.below(8) != 0 {
                body.insert((*field).to_owned(), self.value());
            }
        }
        Value::from(body).to_string().into_bytes()
    }
}
