//! Every route that a service describes, asked as it is described, answers as it is described.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use http::{HeaderMap, Method};
use order_kit::env;
use order_system::{
    remote::{Answer, Remote},
    services::PARTS,
    system::{Options, System},
};
use serde_json::{Value, json};

use crate::{journeys::STAGE, schema::complaint};

const SOON: Duration = Duration::from_secs(20);

/// Whoever asks, with what the services say of themselves.
struct Driver {
    remote: Remote,
    apis: BTreeMap<&'static str, Value>,
    driven: BTreeSet<String>,
}

impl Driver {
    async fn new(remote: Remote) -> Self {
        let mut apis = BTreeMap::new();
        for part in PARTS {
            let api = remote.get(part, "/openapi.json").await.expect("an answer");
            assert_eq!(api.status, 200, "{part}");
            apis.insert(*part, api.json());
        }
        Driver { remote, apis, driven: BTreeSet::new() }
    }

    /// `PUT /users/{id}`, with what stands for what is in braces.
    async fn ask(
        &mut self,
        part: &'static str,
        route: &str,
        places: &[&str],
        body: Value,
        status: u16,
    ) -> Value {
        self.ask_with(part, route, places, &[], body, status).await
    }

    /// A step of a saga, under its key.
    async fn step(&mut self, part: &'static str, route: &str, key: &str, body: Value) -> Value {
        self.ask_with(part, route, &[], &[("idempotency-key", key)], body, 200).await
    }

    async fn ask_with(
        &mut self,
        part: &'static str,
        route: &str,
        places: &[&str],
        headers: &[(&'static str, &str)],
        body: Value,
        status: u16,
    ) -> Value {
        let (method, path) = route.split_once(' ').expect("a method and a path");
        // What stands behind a `?` is no part of the described path.
        let described = path.split('?').next().unwrap_or(path);
        let api = &self.apis[part];
        let operation = &api["paths"][described][method.to_lowercase()];
        assert!(operation.is_object(), "{part} does not describe {route}");
        let whole = places.iter().fold(path.to_owned(), |path, place| {
            let (before, rest) = path.split_once('{').expect("a place");
            format!("{before}{place}{}", rest.split_once('}').expect("its end").1)
        });
        let mut given: HeaderMap = headers
            .iter()
            .map(|(name, value)| ((*name).parse().expect("a name"), value.parse().expect("a value")))
            .collect();
        let wanted = &operation["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(wanted.is_null(), body.is_null(), "{part} {route}: whether there is a body");
        if !body.is_null() {
            assert_eq!(complaint(api, wanted, &body), None, "{part} {route}: what is sent");
            given.insert("content-type", "application/json".parse().expect("a type"));
        }
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let method: Method = method.parse().expect("a method");
        let answer = self.remote.send(method, part, &whole, given, text).await.expect("an answer");
        assert_eq!(answer.status, status, "{part} {route}: {answer:?}");
        let response = &operation["responses"][answer.status.as_str()];
        assert!(response.is_object(), "{part} {route}: {} is not described", answer.status);
        let said = answer.json();
        match response["content"]["application/json"].get("schema") {
            Some(schema) => assert_eq!(complaint(api, schema, &said), None, "{part} {route}: the answer"),
            None => assert_eq!(answer.text, "", "{part} {route}: a body is not described"),
        }
        self.driven.insert(format!("{part} {} {described}", route.split(' ').next().expect("a method")));
        said
    }

    /// Waits until it is so, and gives the answer.
    async fn until(&self, part: &str, path: &str, so: impl Fn(&Value) -> bool) {
        let so = |answer: &Answer| so(&answer.json());
        self.remote.until(SOON, part, path, so).await.expect("it comes about");
    }

    /// What is described and was not asked.
    fn left(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (part, api) in &self.apis {
            for (path, methods) in api["paths"].as_object().expect("paths") {
                all.extend(
                    methods
                        .as_object()
                        .expect("methods")
                        .keys()
                        .map(|it| format!("{part} {} {path}", it.to_uppercase())),
                );
            }
        }
        assert!(all.len() >= 40, "{all:?}");
        all.into_iter().filter(|route| !self.driven.contains(route)).collect()
    }
}

fn id(value: &Value) -> String {
    value["id"].as_str().unwrap_or_else(|| panic!("no id in {value}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_route_answers_as_it_is_documented() {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir().expect("a folder");
    let options = Options { parts: PARTS.to_vec(), ..Options::alone(data.path()) };
    // A monolith that nobody asks: without one there is nowhere else for requests to go.
    let options = options.with(env::LEGACY_URL, "http://127.0.0.1:9").with(env::POLICY_FAST, "1");
    let system = System::start(options).await.expect("it starts");
    let mut it = Driver::new(Remote::to(&system)).await;
    let (alice, bob) = users(&mut it).await;
    let cup = products(&mut it).await;
    inventory(&mut it, &cup).await;
    payments(&mut it, &alice, &bob).await;
    let order = orders(&mut it, &alice, &bob, &cup).await;
    listeners(&mut it, &alice, &order).await;
    gateway(&mut it, &alice).await;
    let metrics = it.remote.get("orders", "/metrics").await.expect("figures").text;
    system.stop().await;
    assert_eq!(it.left(), Vec::<String>::new(), "described, and not asked here");
    // The dashboard asks for these as well, which nothing but a saga has.
    for figure in order_kit::metric::METRICS.iter().filter(|it| it.name.starts_with("mainstay_saga_")) {
        assert!(metrics.contains(&format!("\n{}", figure.name)), "{} is not exported", figure.name);
    }
}

async fn users(it: &mut Driver) -> (String, String) {
    let person = |name: &str, email: &str| json!({ "name": name, "email": email });
    let alice = id(&it.ask("users", "POST /users", &[], person("Alice", "alice@example.com"), 201).await);
    let bob = id(&it.ask("users", "POST /users", &[], person("Bob", "bob@example.com"), 201).await);
    it.ask("users", "GET /users?limit=5", &[], Value::Null, 200).await;
    it.ask("users", "GET /users/{id}", &[&alice], Value::Null, 200).await;
    it.ask("users", "PUT /users/{id}", &[&alice], json!({ "name": "Alice A." }), 200).await;
    it.ask("users", "GET /_users?after=0&limit=5", &[], Value::Null, 200).await;
    (alice, bob)
}

async fn products(it: &mut Driver) -> String {
    let cup =
        id(&it.ask("products", "POST /products", &[], json!({ "name": "Cup", "price": "0.10" }), 201).await);
    it.ask("products", "GET /products?limit=5", &[], Value::Null, 200).await;
    it.ask("products", "GET /products/{id}", &[&cup], Value::Null, 200).await;
    it.ask("products", "PUT /products/{id}", &[&cup], json!({ "price": "2.00" }), 200).await;
    cup
}

async fn inventory(it: &mut Driver, cup: &str) {
    let of = |order: &str| json!({ "orderId": order });
    let wanted = |order: &str| json!({ "orderId": order, "items": [{ "productId": cup, "quantity": 1 }] });
    it.ask("inventory", "PUT /inventory/{productId}", &[cup], json!({ "quantity": 100 }), 200).await;
    it.ask("inventory", "GET /inventory/{productId}", &[cup], Value::Null, 200).await;
    it.step("inventory", "POST /inventory/reserve", "reserve-stock.do@one", wanted("one")).await;
    it.ask("inventory", "GET /inventory/reservations/{orderId}", &["one"], Value::Null, 200).await;
    it.step("inventory", "POST /inventory/commit", "commit-stock.do@one", of("one")).await;
    it.step("inventory", "POST /inventory/reserve", "reserve-stock.do@two", wanted("two")).await;
    it.step("inventory", "POST /inventory/release", "reserve-stock.undo@two", of("two")).await;
}

async fn payments(it: &mut Driver, alice: &str, bob: &str) {
    let charge = json!({ "orderId": "one", "userId": alice, "amount": "1.00" });
    it.step("payments", "POST /payments/charge", "charge-card.do@one", charge).await;
    it.ask("payments", "GET /payments/lookup?key=charge-card.do@one", &[], Value::Null, 200).await;
    it.step("payments", "POST /payments/refund", "charge-card.undo@one", json!({ "orderId": "one" })).await;
    it.ask("payments", "GET /payments/order/{orderId}", &["one"], Value::Null, 200).await;
    it.ask("payments", "PUT /payments/cards/{userId}", &[bob], json!({ "behaviour": "decline" }), 200).await;
}

/// The order that is confirmed.
async fn orders(it: &mut Driver, alice: &str, bob: &str, cup: &str) -> String {
    let wanted = |user: &str| json!({ "userId": user, "items": [{ "productId": cup, "quantity": 2 }] });
    let order = id(&it.ask("orders", "POST /orders", &[], wanted(alice), 202).await);
    let path = format!("/orders/{order}");
    it.until("orders", &path, |order| order["status"] == "confirmed").await;
    it.ask("orders", "GET /orders/{id}", &[&order], Value::Null, 200).await;
    it.ask("orders", "GET /orders/{id}/details", &[&order], Value::Null, 200).await;
    it.until("orders", &format!("{path}/timeline"), |timeline| timeline["phase"] == "completed").await;
    it.ask("orders", "GET /orders/{id}/timeline", &[&order], Value::Null, 200).await;
    it.ask("orders", "POST /orders/checkout", &[], wanted(alice), 200).await;
    it.ask("orders", "POST /orders/checkout", &[], wanted(bob), 402).await;
    for part in ["orders", "orders-read"] {
        it.until(part, &format!("/orders/user/{alice}"), |rows| {
            rows.as_array().is_some_and(|it| it.len() == 2)
        })
        .await;
        it.ask(part, "GET /orders/user/{userId}", &[alice], Value::Null, 200).await;
    }
    // One that waits, so that there is something to try anew and to cancel.
    it.remote.put("payments", "/_faults", json!({ "failPercent": 100 })).await.expect("an answer");
    let waits = id(&it.ask("orders", "POST /orders", &[], wanted(alice), 202).await);
    it.until("orders", &format!("/orders/{waits}"), |order| order["status"] == "waiting_payment").await;
    it.ask("orders", "POST /orders/{id}/retry", &[&waits], Value::Null, 202).await;
    it.ask("orders", "POST /orders/{id}/cancel", &[&waits], Value::Null, 202).await;
    it.until("orders", "/orders/attention", |waiting| waiting[0]["orderId"] == *waits).await;
    it.ask("orders", "GET /orders/attention", &[], Value::Null, 200).await;
    it.remote.put("payments", "/_faults", json!({})).await.expect("an answer");
    it.until("orders", &format!("/orders/{waits}"), |order| order["status"] == "cancelled").await;
    it.ask("orders", "GET /_events?after=0&limit=100", &[], Value::Null, 200).await;
    order
}

async fn listeners(it: &mut Driver, alice: &str, order: &str) {
    let sent = format!("/sent?order={order}");
    it.until("notifications", &sent, |mails| mails.as_array().is_some_and(|it| it.len() == 2)).await;
    it.ask("notifications", &format!("GET {sent}"), &[], Value::Null, 200).await;
    it.until("loyalty", "/counters", |counters| counters["orders"] == 2).await;
    it.ask("loyalty", "GET /counters", &[], Value::Null, 200).await;
    it.ask("loyalty", "GET /points/{userId}", &[alice], Value::Null, 200).await;
    it.until("analytics", "/counters", |counters| counters["order.cancelled"]["events"] == 2).await;
    it.ask("analytics", "GET /counters", &[], Value::Null, 200).await;
}

async fn gateway(it: &mut Driver, alice: &str) {
    let wanted = json!({ "userId": alice, "tenant": "shop", "plan": "gold", "roles": ["admin"] });
    it.ask("gateway", "POST /auth/token", &[], wanted, 200).await;
    let route = json!({ "to": "legacy", "canaryPercent": 10, "shadow": true });
    it.ask("gateway", "PUT /_routes/{service}", &["users"], route, 200).await;
    it.ask("gateway", "GET /_routes", &[], Value::Null, 200).await;
    // Of a service that nobody asks.
    let instance = json!({ "service": "nobody", "host": "127.0.0.1", "port": 9, "id": "one" });
    it.ask("gateway", "POST /registry/register", &[], instance, 201).await;
    it.ask("gateway", "POST /registry/heartbeat", &[], json!({ "service": "nobody", "id": "one" }), 200)
        .await;
    it.ask("gateway", "GET /discover/{service}", &["nobody"], Value::Null, 200).await;
    it.ask("gateway", "DELETE /registry/{service}/{id}", &["nobody", "one"], Value::Null, 204).await;
}
