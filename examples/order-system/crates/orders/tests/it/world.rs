//! The service with neighbours that are played: users, products, inventory and payments, with the barrier's promise and no database.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use order_broker::{Broker, Message, PublishError};
use order_kit::{
    Context,
    context::Ports,
    env::{self, Env},
    events::{self, Envelope, Metadata},
    server::{Access, router},
};
use serde_json::{Value, json};
use tower::ServiceExt;

/// How a neighbour behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// 500, and no effect.
    Failing,
    /// 500, and the effect is there.
    EffectThenFail,
    /// No answer, and no effect.
    Hanging,
}

/// What is asked of the neighbours, and what they say.
#[derive(Debug)]
pub struct Neighbours {
    pub moods: Mutex<BTreeMap<&'static str, Mood>>,
    /// Stock that is left, in one pot.
    pub stock: Mutex<i64>,
    /// Answers by key, as a barrier keeps them.
    answers: Mutex<BTreeMap<String, (StatusCode, Value)>>,
    /// Every request with a key, in its order.
    calls: Mutex<Vec<String>>,
    /// What has had an effect: `charge ID`, `refund ID`.
    ledger: Mutex<Vec<String>>,
    pub users_asked: AtomicU64,
    pub products_asked: AtomicU64,
    /// Users whose cards are declined.
    pub declined: Mutex<BTreeSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Neighbours {
    pub fn set(&self, path: &'static str, mood: Mood) {
        lock(&self.moods).insert(path, mood);
    }

    pub fn mood(&self, path: &str) -> Mood {
        lock(&self.moods).get(path).copied().unwrap_or(Mood::Well)
    }

    /// The keys that were shown, in their order, each as often as it was.
    pub fn calls(&self) -> Vec<String> {
        lock(&self.calls).clone()
    }

    /// How often something of an order has had an effect.
    pub fn effects(&self, what: &str, order: &str) -> usize {
        lock(&self.ledger).iter().filter(|line| **line == format!("{what} {order}")).count()
    }

    async fn ask(&self, what: &'static str, headers: &HeaderMap, body: Value) -> Response {
        let key = headers["idempotency-key"].to_str().unwrap().to_owned();
        lock(&self.calls).push(key.clone());
        let mood = self.mood(what);
        match mood {
            Mood::Failing => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            Mood::Hanging => std::future::pending().await,
            Mood::Well | Mood::EffectThenFail => {}
        }
        let (status, answer) = self.once(what, &key, &body);
        match mood {
            Mood::EffectThenFail => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            _ => (status, Json(answer)).into_response(),
        }
    }

    pub fn once(&self, what: &str, key: &str, body: &Value) -> (StatusCode, Value) {
        let mut answers = lock(&self.answers);
        if let Some(answer) = answers.get(key) {
            return answer.clone();
        }
        let order = body["orderId"].as_str().unwrap();
        let done = |step: &str| {
            answers.get(&format!("{step}.do@{order}")).is_some_and(|(status, _)| status.is_success())
        };
        let ok = (StatusCode::OK, json!({ "orderId": order }));
        let (answer, effect) = match what {
            "reserve" => {
                let pieces: i64 = body["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|item| item["quantity"].as_i64().unwrap())
                    .sum();
                let mut stock = lock(&self.stock);
                if *stock < pieces {
                    ((StatusCode::CONFLICT, json!({ "error": "out_of_stock" })), false)
                } else {
                    *stock -= pieces;
                    ((StatusCode::OK, json!({ "orderId": order, "reserved": true, "pieces": pieces })), true)
                }
            }
            "release" => {
                let reserved = done("reserve-stock");
                if reserved {
                    let (_, answer) = &answers[&format!("reserve-stock.do@{order}")];
                    *lock(&self.stock) += answer["pieces"].as_i64().unwrap();
                }
                (ok, reserved)
            }
            "charge" if lock(&self.declined).contains(body["userId"].as_str().unwrap()) => {
                ((StatusCode::PAYMENT_REQUIRED, json!({ "error": "card_declined" })), false)
            }
            "charge" => {
                let receipt = json!({ "paymentId": format!("payment of {order}"), "amount": body["amount"] });
                ((StatusCode::OK, receipt), true)
            }
            "refund" => (ok, done("charge-card")),
            _ => (ok, true),
        };
        if effect {
            lock(&self.ledger).push(format!("{what} {order}"));
        }
        answers.insert(key.to_owned(), answer.clone());
        answer
    }
}

async fn user(State(all): State<Arc<Neighbours>>, Path(id): Path<String>) -> Response {
    all.users_asked.fetch_add(1, SeqCst);
    match all.mood("users") {
        Mood::Well if id.starts_with("nobody") => {
            (StatusCode::NOT_FOUND, Json(json!({ "error": "User not found" }))).into_response()
        }
        Mood::Well => {
            let user =
                json!({ "id": id, "name": format!("Name of {id}"), "email": "a@b", "createdAt": "now" });
            Json(user).into_response()
        }
        Mood::Hanging => std::future::pending().await,
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Users' own; nobody else is asked how he is.
async fn alive(State(all): State<Arc<Neighbours>>) -> Response {
    match all.mood("users") {
        Mood::Well => Json(json!({ "status": "ok" })).into_response(),
        Mood::Hanging => std::future::pending().await,
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn product(State(all): State<Arc<Neighbours>>, Path(id): Path<String>) -> Response {
    all.products_asked.fetch_add(1, SeqCst);
    match all.mood("products") {
        Mood::Well if id.starts_with("no-") => StatusCode::NOT_FOUND.into_response(),
        Mood::Well => {
            let price = match id.as_str() {
                "dear" => "10000000000.01",
                "gift" => "0.00",
                _ => "0.10",
            };
            Json(json!({ "id": id, "name": id, "price": price })).into_response()
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

macro_rules! asks {
    ($what:literal) => {
        post(async |State(all): State<Arc<Neighbours>>, headers: HeaderMap, Json(body): Json<Value>| {
            all.ask($what, &headers, body).await
        })
    };
}

/// Everybody on one port.
async fn play() -> (Arc<Neighbours>, String) {
    let all = Arc::new(Neighbours {
        moods: Mutex::default(),
        stock: Mutex::new(1_000_000),
        answers: Mutex::default(),
        calls: Mutex::default(),
        ledger: Mutex::default(),
        users_asked: AtomicU64::new(0),
        products_asked: AtomicU64::new(0),
        declined: Mutex::default(),
    });
    let routes = Router::new()
        .route("/health", get(alive))
        .route("/users/{id}", get(user))
        .route("/products/{id}", get(product))
        .route("/inventory/reserve", asks!("reserve"))
        .route("/inventory/release", asks!("release"))
        .route("/inventory/commit", asks!("commit"))
        .route("/payments/charge", asks!("charge"))
        .route("/payments/refund", asks!("refund"))
        .with_state(all.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    (all, base)
}

/// The service and whom it asks.
pub struct World {
    pub neighbours: Arc<Neighbours>,
    pub broker: Arc<dyn Broker>,
    pub context: Context,
    pub router: Router,
    access: Access,
    env: Env,
    data: Arc<tempfile::TempDir>,
}

impl World {
    pub async fn new() -> Self {
        Self::with(|env| env).await
    }

    pub async fn with(set: impl FnOnce(Env) -> Env) -> Self {
        Self::on(order_broker::open("memory:").await.unwrap(), set).await
    }

    pub async fn on(broker: Arc<dyn Broker>, set: impl FnOnce(Env) -> Env) -> Self {
        let (neighbours, base) = play().await;
        let env = [
            env::USER_SERVICE_URL,
            env::PRODUCT_SERVICE_URL,
            env::INVENTORY_SERVICE_URL,
            env::PAYMENT_SERVICE_URL,
        ]
        .into_iter()
        .fold(Env::empty(), |env, variable| env.with(variable, &base));
        let env = set(env.with(env::POLICY_FAST, "1"));
        let data = Arc::new(tempfile::tempdir().unwrap());
        let access = Access::Services;
        let (context, router) = built(&env, &data, &broker, access).await;
        World { neighbours, broker, context, router, access, env, data }
    }

    /// Ends the service in order, and starts it again on the same data.
    pub async fn restart(&mut self) {
        self.end().await;
        (self.context, self.router) = built(&self.env, &self.data, &self.broker, self.access).await;
    }

    pub async fn end(&self) {
        self.context.stop().cancel();
        self.context.finished().await;
    }

    /// The same with another setting.
    pub async fn restart_with(&mut self, name: &str, value: &str) {
        self.set(name, value);
        self.restart().await;
    }

    /// Another setting, for the next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env = self.env.clone().with(name, value);
    }

    /// The same as in a monolith, whose routes are everybody's.
    pub async fn restart_for_everybody(&mut self) {
        self.access = Access::Everybody;
        self.restart().await;
    }

    /// Publishes an event of some service.
    pub async fn publish(&self, kind: &str, key: &str, data: Value) {
        publish(&*self.broker, event(kind, key, data)).await;
    }

    /// Another service's context on the same data and broker.
    pub fn context_of(&self, name: &'static str) -> Context {
        Context::new(name, self.env.clone(), self.data.path(), self.broker.clone(), Arc::new(Ports(3_000)))
    }

    pub fn data(&self) -> &std::path::Path {
        self.data.path()
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        send(&self.router, method, path, headers, body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, &[], Some(body)).await
    }

    /// Places an order of some pieces; its id.
    pub async fn order(&self, user: &str, pieces: i64) -> String {
        let answer = self.post("/orders", order_of(user, pieces)).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        answer.body["id"].as_str().unwrap().to_owned()
    }

    /// The order when it is decided.
    pub async fn decided(&self, id: &str) -> Value {
        let path = format!("/orders/{id}");
        let answer = self.send(Method::GET, &path, &[("prefer", "wait=20")], None).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.body
    }

    /// Waits until the order stands so.
    pub async fn until(&self, id: &str, status: &str) {
        eventually(&format!("{id} is {status}"), async || {
            self.get(&format!("/orders/{id}")).await.body["status"] == status
        })
        .await;
    }

    /// Waits until nothing is under way for the order, and returns its timeline's phase.
    pub async fn over(&self, id: &str) -> String {
        let mut phase = String::new();
        eventually(&format!("{id} is over"), async || {
            phase =
                self.get(&format!("/orders/{id}/timeline")).await.body["phase"].as_str().unwrap().to_owned();
            ["completed", "compensated", "confirmed", "cancelled"].contains(&phase.as_str())
        })
        .await;
        phase
    }
}

async fn built(
    env: &Env,
    data: &tempfile::TempDir,
    broker: &Arc<dyn Broker>,
    access: Access,
) -> (Context, Router) {
    let context =
        Context::new(order_orders::NAME, env.clone(), data.path(), broker.clone(), Arc::new(Ports(3_000)));
    let service = order_orders::build(context.clone()).await.unwrap();
    let router = router(&context, service, access);
    (context, router)
}

/// One line of so many pieces at 0.10.
pub fn order_of(user: &str, pieces: i64) -> Value {
    json!({ "userId": user, "items": [{ "productId": "lamp", "quantity": pieces }] })
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

pub async fn send(
    router: &Router,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Value>,
) -> Answer {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("x-service-token", "internal-dev-token")
        .header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = body.map_or_else(String::new, |body| body.to_string());
    let request = request.body(axum::body::Body::from(body)).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer { status: parts.status, headers: parts.headers, body }
}

/// Asks until it is so, for twenty seconds at most.
pub async fn eventually(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    while !so().await {
        assert!(tokio::time::Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An event with a fresh id.
pub fn event(kind: &str, key: &str, data: Value) -> Message {
    let envelope = Envelope {
        id: order_kit::new_id(),
        kind: kind.to_owned(),
        data,
        metadata: Metadata {
            timestamp: order_kit::iso(order_kit::now_ms()),
            version: events::VERSION.to_owned(),
            source: "somebody".to_owned(),
            correlation_id: key.to_owned(),
            traceparent: None,
        },
    };
    let body = serde_json::to_string(&envelope).unwrap();
    Message { id: envelope.id, ..Message::new(kind, key, body) }
}

pub async fn publish(broker: &dyn Broker, message: Message) {
    for answer in broker.publish(vec![message]).await {
        // What nobody wants is nobody's loss.
        assert!(matches!(answer, Ok(()) | Err(PublishError::Unroutable { .. })), "{answer:?}");
    }
}
