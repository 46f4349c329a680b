//! What whoever calls the system may rely on, in all its shapes: one process, a monolith, a process for each service; with SQLite files, and
//! with PostgreSQL, RabbitMQ and Redis.

use std::time::Duration;

use http::{HeaderMap, Method};
use order_kit::{BoxError, env};
use order_system::{
    audit::settled,
    remote::{Answer, Remote},
};
use serde_json::{Value, json};

use crate::shapes::{Front, Servers, servers};

const SOON: Duration = Duration::from_secs(20);

macro_rules! contract {
    ($($name:ident: $shape:ident, $servers:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let Some(servers) = $servers(stringify!($name)) else { return };
            let _stage = crate::journeys::STAGE.lock().await;
            let front = Front::$shape(&servers).await.expect("it starts");
            let kept = suite(&front).await;
            front.end().await;
            servers.clean().await.expect("nothing is left");
            kept.expect("the contract is kept");
        }
    )*};
}

/// The same for whoever calls, when services ask for users by gRPC; and that they do, by nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn one_process_with_files_and_users_by_grpc() {
    let mut servers = Servers::embedded();
    servers.variables.push((env::USER_TRANSPORT.to_owned(), "grpc".to_owned()));
    let _stage = crate::journeys::STAGE.lock().await;
    let front = Front::one_process(&servers).await.expect("it starts");
    let (before, kept) = (figures(&front.remote).await, suite(&front).await);
    // Mails are written beside everything else.
    let mailed = |answer: &Answer| {
        calls(&answer.text, "notifications", "user.grpc")
            > before.as_ref().map_or(0, |it| calls(it, "notifications", "user.grpc"))
    };
    let mailed = front.remote.until(SOON, "notifications", "/metrics", mailed).await;
    let after = figures(&front.remote).await;
    front.end().await;
    kept.expect("the contract is kept");
    mailed.expect("notifications ask by gRPC");
    let (before, after) = (before.expect("figures"), after.expect("figures"));
    for service in ["orders", "notifications"] {
        let more = |to| calls(&after, service, to) - calls(&before, service, to);
        assert!(more("user.grpc") > 0, "{service} asks by gRPC");
        assert_eq!(more("user"), 0, "{service} asks by HTTP as well");
    }
}

/// What the process has counted; other tests in it have counted before.
async fn figures(remote: &Remote) -> Result<String, BoxError> {
    Ok(remote.get("orders", "/metrics").await?.expect(200)?.text)
}

/// How many calls there were from one service to another, whatever came of them.
fn calls(figures: &str, service: &str, to: &str) -> u64 {
    let series = format!("http_call_seconds_count{{service=\"{service}\",to=\"{to}\",");
    let counts = figures.lines().filter(|line| line.starts_with(&series));
    counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

fn embedded(_: &str) -> Option<Servers> {
    Some(Servers::embedded())
}

contract! {
    one_process_with_files: one_process, embedded;
    a_monolith_with_files: monolith, embedded;
    processes_with_files: processes, embedded;
    one_process_with_servers: one_process, servers;
    a_monolith_with_servers: monolith, servers;
    processes_with_servers: processes, servers;
}

/// Somebody who talks to the system through its one door.
#[derive(Clone)]
struct Caller {
    remote: Remote,
    prefix: &'static str,
}

impl Caller {
    async fn get(&self, path: &str) -> Result<Answer, BoxError> {
        self.remote.get("gateway", &format!("{}{path}", self.prefix)).await
    }

    async fn post(&self, path: &str, body: Value) -> Result<Answer, BoxError> {
        self.remote.post("gateway", &format!("{}{path}", self.prefix), body).await
    }

    async fn put(&self, path: &str, body: Value) -> Result<Answer, BoxError> {
        self.remote.put("gateway", &format!("{}{path}", self.prefix), body).await
    }

    async fn text(&self, path: &str, body: &str) -> Result<Answer, BoxError> {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/json".parse()?);
        let path = format!("{}{path}", self.prefix);
        self.remote.send(Method::POST, "gateway", &path, headers, body.to_owned()).await
    }

    async fn over(&self, order: &str) -> Result<Value, BoxError> {
        let path = format!("{}/orders/{order}", self.prefix);
        let over = |answer: &Answer| {
            ["confirmed", "cancelled"].contains(&answer.json()["status"].as_str().unwrap_or(""))
        };
        Ok(self.remote.until(SOON, "gateway", &path, over).await?.json())
    }
}

fn id(answer: &Answer) -> Result<String, BoxError> {
    answer.json()["id"].as_str().map(str::to_owned).ok_or_else(|| format!("no id in {answer:?}").into())
}

async fn suite(front: &Front) -> Result<(), BoxError> {
    let mut caller = Caller { remote: front.remote.clone(), prefix: front.prefix };
    // Whoever signs up needs no token; everybody else does, where there is a gateway.
    let new = json!({ "name": "Alice", "email": "alice@example.com" });
    let alice = caller.post("/users", new.clone()).await?.expect(201)?;
    let user = id(&alice)?;
    let mut staff = caller.clone();
    if front.prefix == "/api" {
        assert_eq!(caller.get(&format!("/users/{user}")).await?.status, 401);
        caller.remote.log_in(&user).await?;
        staff.remote.log_in_as("the-shop", &["admin"]).await?;
        only_for_staff(&caller).await?;
    }
    users(&caller, &alice, &user, new).await?;
    let product = products(&caller, &staff).await?;
    staff.put(&format!("/inventory/{product}"), json!({ "quantity": 100 })).await?.expect(200)?;
    let (renamed, order) = orders(&caller, &staff, &user, &product).await?;
    bad_orders(&caller, &user, &product).await?;
    let audited = settled(&caller.remote, SOON).await?;
    assert!(audited.print(), "the audit is green");
    // Last, since it leaves breakers open.
    what_others_keep(&renamed, &order, "Robert").await
}

/// The new name of whoever has placed this order has come to what orders keep of users, by the event: it is said while users fail. As last
/// asked for they would still have the old one.
async fn what_others_keep(caller: &Caller, order: &str, name: &str) -> Result<(), BoxError> {
    // A monolith fails as a whole. There the first of so many requests is let through, which is ours; what it asks of users is the second.
    let share = if caller.prefix == "/api" { 100 } else { 99 };
    let end = tokio::time::Instant::now() + SOON;
    loop {
        caller.remote.put("users", "/_faults", json!({ "failPercent": share })).await?.expect(200)?;
        let details = caller.get(&format!("/orders/{order}/details")).await?;
        let kept = details.status == 200 && details.header("x-fallback") == Some("user");
        if kept && details.json()["user"]["name"] == name {
            break;
        }
        if tokio::time::Instant::now() >= end {
            return Err(format!("orders did not hear of {name}: {} {}", details.status, details.text).into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    caller.remote.call(Method::DELETE, "users", "/_faults", None).await?.expect(200).map(drop)
}

/// What a customer may not do, though the token holds.
async fn only_for_staff(customer: &Caller) -> Result<(), BoxError> {
    for (method, path) in [
        (Method::POST, "/products"),
        (Method::POST, "/payments/charge"),
        (Method::POST, "/payments/refund"),
        (Method::PUT, "/payments/cards/somebody"),
        (Method::GET, "/inventory/anything"),
        (Method::PUT, "/inventory/anything"),
        (Method::POST, "/inventory/release"),
        (Method::GET, "/orders/attention"),
        (Method::POST, "/orders/any/retry"),
    ] {
        let path = format!("{}{path}", customer.prefix);
        let answer = customer.remote.call(method, "gateway", &path, Some(json!({}))).await?;
        assert_eq!(answer.status, 403, "{path}");
        clean(&answer);
    }
    // What services ask each other has no way in at all.
    assert_eq!(customer.get("/_events").await?.status, 404);
    Ok(())
}

async fn users(caller: &Caller, alice: &Answer, user: &str, new: Value) -> Result<(), BoxError> {
    let fields = alice.json();
    let mut names: Vec<&String> = fields.as_object().ok_or("no object")?.keys().collect();
    names.sort();
    assert_eq!(names, ["createdAt", "email", "id", "name"]);
    let found = caller.get(&format!("/users/{user}")).await?.expect(200)?;
    assert_eq!(found.json(), fields);
    let again = caller.post("/users", new).await?.expect(409)?;
    assert!(again.json()["error"].is_string());
    let unknown = caller.get("/users/nobody").await?.expect(404)?;
    assert_eq!(unknown.json(), json!({ "error": "User not found" }));
    for (body, error) in [
        (json!({ "name": "A", "email": "x" }), "Invalid email"),
        (json!({ "name": "A", "email": "x@y" }), "Invalid name"),
    ] {
        let refused = caller.post("/users", body).await?.expect(400)?;
        assert_eq!(refused.json(), json!({ "error": error }));
    }
    Ok(())
}

async fn products(caller: &Caller, staff: &Caller) -> Result<String, BoxError> {
    let made = staff.post("/products", json!({ "name": "Cup", "price": "0.10" })).await?.expect(201)?;
    let product = id(&made)?;
    let found = caller.get(&format!("/products/{product}")).await?.expect(200)?;
    assert_eq!((&found.json()["name"], &found.json()["price"]), (&json!("Cup"), &json!("0.10")));
    assert_eq!(
        caller.get("/products/nothing").await?.expect(404)?.json(),
        json!({ "error": "Product not found" })
    );
    staff.post("/products", json!({ "name": "Cup", "price": "-1" })).await?.expect(400)?;
    Ok(product)
}

/// What becomes of orders. Answers whoever has another name since, and his order.
async fn orders(
    caller: &Caller,
    staff: &Caller,
    user: &str,
    product: &str,
) -> Result<(Caller, String), BoxError> {
    let body = json!({ "userId": user, "items": [{ "productId": product, "quantity": 3 }] });
    let taken = caller.post("/orders", body.clone()).await?.expect(202)?;
    let order = id(&taken)?;
    assert!(taken.header("location").is_some_and(|at| at.ends_with(&format!("/orders/{order}"))));
    let over = caller.over(&order).await?;
    assert_eq!((&over["status"], &over["total"]), (&json!("confirmed"), &json!("0.30")), "{over}");
    let details = caller.get(&format!("/orders/{order}/details")).await?.expect(200)?;
    assert_eq!(details.json()["user"]["name"], "Alice");
    // From the read side, which hears of it a moment later.
    let path = format!("{}/orders/user/{user}", caller.prefix);
    let there = |answer: &Answer| answer.json().as_array().is_some_and(|rows| rows.len() == 1);
    let rows = caller.remote.until(SOON, "gateway", &path, there).await?.json();
    assert_eq!((&rows[0]["orderId"], &rows[0]["itemCount"]), (&json!(order), &json!(1)));
    assert_eq!(rows[0]["summary"], format!("Order #{order} - 0.30"));
    let waited = caller.post("/orders/checkout", body).await?;
    assert_eq!((waited.status.as_u16(), &waited.json()["success"]), (200, &json!(true)), "{waited:?}");
    // Too much of it.
    let much = json!({ "userId": user, "items": [{ "productId": product, "quantity": 500 }] });
    let order = id(&caller.post("/orders", much).await?.expect(202)?)?;
    let over = caller.over(&order).await?;
    assert_eq!((&over["status"], &over["reason"]), (&json!("cancelled"), &json!("out_of_stock")), "{over}");
    // A card that is declined.
    let bob = id(&caller
        .post("/users", json!({ "name": "Bob", "email": "bob@example.com" }))
        .await?
        .expect(201)?)?;
    staff.put(&format!("/payments/cards/{bob}"), json!({ "behaviour": "decline" })).await?.expect(200)?;
    let body = json!({ "userId": bob, "items": [{ "productId": product, "quantity": 1 }] });
    let mut his = Caller { remote: caller.remote.clone(), prefix: caller.prefix };
    if caller.prefix == "/api" {
        assert_eq!(caller.post("/orders", body.clone()).await?.status, 403, "Alice does not order for Bob");
        his.remote.log_in(&bob).await?;
    }
    let order = id(&his.post("/orders", body).await?.expect(202)?)?;
    let over = his.over(&order).await?;
    assert_eq!((&over["status"], &over["reason"]), (&json!("cancelled"), &json!("card_declined")), "{over}");
    let left = staff.get(&format!("/inventory/{product}")).await?.expect(200)?.json();
    assert_eq!(left["onHand"].as_i64().unwrap_or(0) - left["reserved"].as_i64().unwrap_or(0), 94);
    caller.get("/orders/unknown").await?.expect(404)?;
    if caller.prefix == "/api" {
        caller.get(&format!("/orders/{order}")).await?.expect(404)?;
    }
    let name = json!({ "name": "Robert" });
    if caller.prefix == "/api" {
        caller.put(&format!("/users/{bob}"), name.clone()).await?.expect(404)?;
        caller.get(&format!("/users/{bob}")).await?.expect(404)?;
        caller.get("/users").await?.expect(403)?;
    }
    staff.get("/users").await?.expect(200)?;
    staff.get(&format!("/users/{bob}")).await?.expect(200)?;
    his.put(&format!("/users/{bob}"), name).await?.expect(200)?;
    Ok((his, order))
}

async fn bad_orders(caller: &Caller, user: &str, product: &str) -> Result<(), BoxError> {
    let item = |quantity: Value| json!({ "userId": user, "items": [{ "productId": product, "quantity": quantity }] });
    let stranger = if caller.prefix == "/api" { 403 } else { 422 };
    let refused = [
        (item(json!(0)), 400),
        (item(json!(-1)), 400),
        (item(json!(1_000_000_000)), 400),
        (item(json!("2")), 400),
        (item(json!(1.5)), 400),
        (json!({ "userId": user, "items": [] }), 400),
        (json!({ "userId": user }), 400),
        (json!({}), 400),
        (json!([]), 400),
        (json!({ "userId": 7, "items": 7 }), 400),
        // Behind the gateway it is another user, be there one or not.
        (json!({ "userId": "nobody", "items": [{ "productId": product, "quantity": 1 }] }), stranger),
        (json!({ "userId": user, "items": [{ "productId": "nothing", "quantity": 1 }] }), 422),
    ];
    for (body, status) in refused {
        let answer = caller.post("/orders", body.clone()).await?;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.text);
        clean(&answer);
    }
    for text in ["", "{", "null", "{\"userId\":}", "\u{0}"] {
        let answer = caller.text("/orders", text).await?;
        assert_eq!(answer.status.as_u16(), 400, "{text:?}: {}", answer.text);
        clean(&answer);
    }
    let huge = format!("{{\"userId\":\"{}\"}}", "x".repeat(300 * 1024));
    // So much that the answer is there before all of it is sent.
    let vast = format!("{{\"userId\":\"{}\"}}", "x".repeat(8 * 1024 * 1024));
    for text in [&huge, &vast] {
        for path in ["/orders", "/orders/checkout"] {
            let answer = caller.text(path, text).await?;
            assert_eq!(answer.status.as_u16(), 413, "{}", answer.text);
            clean(&answer);
        }
    }
    Ok(())
}

/// An error is for whoever asked: `{"error": …}`, and nothing of how it is made.
fn clean(answer: &Answer) {
    assert!(answer.json()["error"].is_string(), "{answer:?}");
    let text = answer.text.to_lowercase();
    for word in ["select ", "insert ", "sqlite", "postgres", "127.0.0.1", "panicked", ".rs:", "/tmp/"] {
        assert!(!text.contains(word), "{word} in {}", answer.text);
    }
}
