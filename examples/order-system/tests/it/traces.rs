//! What a trace of an order shows when the whole system is one process, and what all that is said of an order has in common.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use http::{HeaderMap, Method};
use order_broker::{Queue, Topology};
use order_kit::{
    BoxError,
    env::{self, Env},
    events::{EXCHANGE, Envelope},
    trace::CORRELATION_ID,
};
use order_system::{
    remote::{Answer, Remote},
    seed::{Seed, seed},
    system::{Options, System, broker_address},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    journeys::STAGE,
    operations::{program_and_lines, terminated},
};

const SOON: Duration = Duration::from_secs(20);

/// Orders a cup through the gateway, as its first user.
async fn order(remote: &mut Remote, seed: &Seed, correlation: &str) -> Result<String, BoxError> {
    let user = &seed.users[0].1;
    remote.log_in(user).await?;
    let headers = [(CORRELATION_ID, correlation), ("content-type", "application/json")];
    let headers: HeaderMap =
        headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    let body = json!({ "userId": user, "items": [{ "productId": seed.products[1].1, "quantity": 1 }] });
    let taken =
        remote.send(Method::POST, "gateway", "/api/orders", headers, body.to_string()).await?.expect(202)?;
    taken.json()["id"].as_str().map(str::to_owned).ok_or_else(|| "no id".into())
}

/// The spans of the one trace in which there is something of the order.
async fn spans(remote: &Remote, order: &str) -> Result<Vec<Value>, BoxError> {
    let found = remote.get("orders", &format!("/_traces?order.id={order}")).await?.expect(200)?.json();
    let traces = found["traces"].as_array().cloned().unwrap_or_default();
    assert!(traces.len() <= 1, "the order has one trace: {traces:?}");
    Ok(traces.first().and_then(|trace| trace["spans"].as_array().cloned()).unwrap_or_default())
}

/// Each as `service: name, within NAME`.
fn told(spans: &[Value]) -> Vec<String> {
    let names: BTreeMap<_, _> = spans.iter().map(|it| (it["spanId"].as_str(), &it["name"])).collect();
    let mut told: Vec<String> = spans
        .iter()
        .map(|it| {
            let word = |it: &Value| it.as_str().unwrap_or("?").to_owned();
            let within = names.get(&it["parentSpanId"].as_str()).map_or("nothing".to_owned(), |it| word(it));
            format!("{}: {} within {within}", word(&it["attributes"]["service"]), word(&it["name"]))
        })
        .collect();
    told.sort();
    told
}

/// What there is of an order that was confirmed, but for how users were asked.
const ORDERED: &[&str] = &[
    "analytics: analytics order.confirmed within process-order",
    "analytics: analytics order.created within saveOrder",
    // The gateway has no routes of others.
    "gateway: POST ? within nothing",
    "gateway: POST orders within POST ?",
    "inventory: POST /inventory/commit within POST inventory",
    "inventory: POST /inventory/reserve within POST inventory",
    "notifications: notifications order.confirmed within process-order",
    "notifications: notifications order.created within saveOrder",
    "orders: GET product within createOrder",
    "orders: POST /orders within POST orders",
    "orders: POST inventory within process-order",
    "orders: POST inventory within process-order",
    "orders: POST payment within process-order",
    "orders: createOrder within POST /orders",
    "orders: orders.read order.confirmed within process-order",
    "orders: orders.read order.created within saveOrder",
    "orders: orders.read order.paid within process-order",
    "orders: process-order within createOrder",
    "orders: saveOrder within createOrder",
    "orders: validateUser within createOrder",
    "payments: POST /payments/charge within POST payment",
    "products: GET /products/{id} within GET product",
];
/// Users are asked by orders, and by notifications for the address.
const ASKED_BY_HTTP: &[&str] = &[
    "notifications: GET user within notifications order.created",
    "orders: GET user within validateUser",
    "users: GET /users/{id} within GET user",
    "users: GET /users/{id} within GET user",
    "users: getUser within GET /users/{id}",
    "users: getUser within GET /users/{id}",
];
const ASKED_BY_GRPC: &[&str] = &[
    "notifications: UserService/GetUser within notifications order.created",
    "orders: UserService/GetUser within validateUser",
    "users: UserService/GetUser within UserService/GetUser",
    "users: UserService/GetUser within UserService/GetUser",
    "users: getUser within UserService/GetUser",
    "users: getUser within UserService/GetUser",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_spans_of_an_order_are_one_trace_that_its_id_finds() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    for (transport, asked) in [("http", ASKED_BY_HTTP), ("grpc", ASKED_BY_GRPC)] {
        let data = tempfile::tempdir()?;
        let options = Options::alone(data.path()).with(env::USER_TRANSPORT, transport);
        let system = System::start(options).await?;
        let mut remote = Remote::to(&system);
        let seed = seed(&remote).await?;
        let id = order(&mut remote, &seed, "my-order").await?;
        let mut expected = [ORDERED, asked].concat();
        expected.sort_unstable();
        let end = Instant::now() + SOON;
        let spans = loop {
            let spans = spans(&remote, &id).await?;
            if told(&spans) == expected || Instant::now() > end {
                break spans;
            }
            sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(told(&spans), expected, "{transport}");
        let user = &seed.users[0].1;
        let known = json!({ "userId": user, "service": "users", "correlation_id": "my-order" });
        for span in spans.iter().filter(|span| span["name"] == "getUser") {
            assert_eq!(span["attributes"], known, "{transport}");
        }
        let unknown = remote.get("orders", "/_traces?order.id=unknown").await?.expect(200)?.json();
        assert_eq!(unknown, json!({ "traces": [] }));
        system.stop().await;
    }
    Ok(())
}

/// In one process, whose broker is listened to from outside it.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_said_of_an_order_has_the_correlation_id_of_its_request() -> Result<(), BoxError> {
    const MINE: &str = "my-own-correlation-id";
    const ALL: &str = "test.all";
    const EVENTS: &[&str] = &[
        "inventory.reserved",
        "order.confirmed",
        "order.created",
        "order.paid",
        "payment.completed",
        "payment.received",
    ];
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let broker = order_broker::open(&broker_address(&Env::empty(), data.path())).await?;
    broker.declare(&Topology::new(EXCHANGE).queue(Queue::new(ALL).bind("#"))).await?;
    let variables = [(env::LOG, "info,access=debug")];
    let (child, mut remote, _, lines) =
        program_and_lines(&["up", "--port-base", "0"], data.path(), &variables, "ready after").await?;
    let seed = seed(&remote).await?;
    let id = order(&mut remote, &seed, MINE).await?;

    let (mut events, end) = (Vec::new(), Instant::now() + SOON);
    let mut consumer = broker.consume(ALL, 100).await?;
    while events.len() < EVENTS.len() {
        let delivery =
            timeout_at(end, consumer.next()).await.map_err(|_| format!("no more: {events:?}"))??;
        let message = delivery.message();
        if message.key == id {
            let envelope: Envelope = serde_json::from_str(&message.body)?;
            let said = (envelope.metadata.correlation_id.as_str(), message.headers[CORRELATION_ID].as_str());
            assert_eq!(said, (MINE, MINE), "{message:?}");
            events.push(envelope.kind);
        }
        delivery.ack().await?;
    }
    events.sort();
    assert_eq!(events, EVENTS);

    let known = remote.get("orders", "/_events").await?.expect(200)?.json();
    let known: Vec<_> =
        known["events"].as_array().into_iter().flatten().filter(|it| it["data"]["orderId"] == *id).collect();
    assert_eq!(known.len(), 3, "created, confirmed, paid: {known:?}");
    assert!(known.iter().all(|event| event["metadata"]["correlationId"] == MINE), "{known:?}");

    // The last who hear of it: their spans end with their work.
    let all = ORDERED.len() + ASKED_BY_HTTP.len();
    let enough = |it: &Answer| it.json()["traces"][0]["spans"].as_array().is_some_and(|it| it.len() == all);
    remote.until(SOON, "orders", &format!("/_traces?order.id={id}"), enough).await?;
    for span in spans(&remote, &id).await? {
        assert_eq!(span["attributes"]["correlation_id"], MINE, "{span}");
    }

    assert_eq!(terminated(child).await?, Some(0));
    let lines = lines.lock().unwrap();
    let lines: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mine: Vec<_> = lines.iter().filter(|line| line["correlation_id"] == MINE).collect();
    let told: BTreeSet<_> = mine.iter().filter_map(|line| line["service"].as_str()).collect();
    assert_eq!(told, ["gateway", "inventory", "orders", "payments", "products", "users"].into(), "{mine:?}");
    let trace = &mine[0]["trace_id"];
    for line in lines.iter().filter(|line| line["trace_id"] == *trace) {
        assert_eq!(line["correlation_id"], MINE, "{line}");
    }
    // The library knows no such id: its lines name the saga, which is named after the order.
    let others = |line: &&Value| line["target"] != "mainstay" && line.to_string().contains(&id);
    for line in lines.iter().filter(others) {
        assert_eq!(line["correlation_id"], MINE, "{line}");
    }
    Ok(())
}
