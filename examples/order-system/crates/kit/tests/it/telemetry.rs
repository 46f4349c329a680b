//! One trace over all hops, from a caller through two services and a queue, as whoever looks at it sees it.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    routing::{get, post},
};
use http::HeaderMap;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value},
    trace::v1::Span,
};
use order_broker::{Broker, Queue, Topology};
use order_kit::{
    ApiError, Db,
    auth::SERVICE_TOKEN,
    client::{Client, Options},
    env::{self, Env},
    events::{self, Trouble, consume, emit, start_relay},
    server::Access,
    telemetry::{self, tracing_to},
    trace::{CORRELATION_ID, TRACEPARENT},
};
use prost::Message as _;
use serde_json::{Value, json};

use crate::support::{Served, Somewhere, context, get as fetch, memory, send, service, until};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn given(trace: &str) -> HeaderMap {
    let pairs =
        [(TRACEPARENT, format!("00-{trace}-b7ad6b7169203331-01")), (CORRELATION_ID, "order-7".to_owned())];
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// Spans, each with the `service.name` of its resource.
type Collected = Arc<Mutex<Vec<(String, Span)>>>;

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|it| it.key == key)?;
    match found.value.clone()?.value? {
        any_value::Value::StringValue(text) => Some(text),
        other => Some(format!("{:?}", AnyValue { value: Some(other) })),
    }
}

/// A collector that keeps what it is sent.
async fn collector() -> (String, Collected) {
    let spans = Collected::default();
    let take = async |State(spans): State<Collected>, headers: HeaderMap, body: Bytes| {
        assert_eq!(headers["content-type"], "application/x-protobuf");
        let request = ExportTraceServiceRequest::decode(body).expect("protobuf");
        for of_resource in request.resource_spans {
            let resource = of_resource.resource.expect("a resource");
            let service = text(&resource.attributes, "service.name").expect("its name");
            let taken = of_resource.scope_spans.into_iter().flat_map(|it| it.spans);
            spans.lock().unwrap().extend(taken.map(|span| (service.clone(), span)));
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let routes = Router::new().route("/v1/traces", post(take)).with_state(spans.clone());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (url, spans)
}

type Lines = Arc<Mutex<Vec<Value>>>;

fn lines() -> (Lines, telemetry::Output) {
    let lines = Lines::default();
    let written = lines.clone();
    let output = move |line: &[u8]| {
        assert_eq!(line.last(), Some(&b'\n'));
        written.lock().unwrap().push(serde_json::from_slice(line).expect("a line is one JSON object"));
    };
    (lines, Arc::new(output))
}

/// Gateway → orders → an event → a listener.
struct Journey {
    gateway: Served,
    orders: Served,
    broker: Arc<dyn Broker>,
    somewhere: Somewhere,
    db: Db,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Journey {
    async fn new() -> Self {
        let broker = memory().await;
        broker.declare(&Topology::new(events::EXCHANGE).queue(Queue::new("raw").bind("#"))).await.unwrap();
        let somewhere = Somewhere::sqlite();
        let db = Db::open(somewhere.place.clone(), &[]).await.unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));

        let orders = context("orders", Env::empty(), broker.clone());
        let listener = heard.clone();
        consume(&orders, Queue::new("listener").bind("order.created"), 1, move |event| {
            tracing::info!(order = event.data["n"].as_u64(), "heard");
            listener.lock().unwrap().push(event.id);
            std::future::ready(Ok::<_, Trouble>(()))
        })
        .await
        .unwrap();
        start_relay(&orders, &db);
        let place = {
            let db = db.clone();
            async move || {
                tracing::info!("placed");
                db.write(async |tx| {
                    emit(tx, "orders", "order.created", "o1", &json!({ "n": 1 })).await.map(drop)
                })
                .await?;
                Ok::<_, ApiError>("placed")
            }
        };
        let orders = Served::start(
            orders,
            service(Router::new().route("/place", post(place)), Vec::new()),
            Access::Services,
        )
        .await;

        let gateway =
            context("gateway", Env::empty().with(env::ORDER_SERVICE_URL, &orders.url), broker.clone());
        let client = Client::new(&gateway, "order", Options::default()).unwrap();
        let forward = async move || {
            let reply = client.post("/place", None, &json!({})).await?;
            Ok::<_, ApiError>(reply.status.as_u16().to_string())
        };
        let routes = Router::new().route("/api/place", post(forward));
        let gateway = Served::start(gateway, service(routes, Vec::new()), Access::Everybody).await;
        Journey { gateway, orders, broker, somewhere, db, heard }
    }

    async fn go(&self, headers: HeaderMap) {
        let heard = self.heard.lock().unwrap().len();
        let url = format!("{}/api/place", self.gateway.url);
        let (status, _) = send("POST", &url, headers).await;
        assert_eq!(status, 200);
        until("the event is heard", async || self.heard.lock().unwrap().len() > heard).await;
    }

    /// The headers of the message, as they are in the queue.
    async fn message(&self) -> std::collections::BTreeMap<String, String> {
        let delivery = self.broker.consume("raw", 1).await.unwrap().next().await.unwrap();
        let headers = delivery.message().headers.clone();
        delivery.ack().await.unwrap();
        headers
    }

    async fn end(self) {
        for served in [self.gateway, self.orders] {
            served.context.stop().cancel();
            served.serving.await.unwrap();
            served.context.finished().await;
        }
        drop(self.db);
        self.somewhere.end().await;
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_trace_goes_over_services_and_queues_to_a_collector() {
    let (endpoint, collected) = collector().await;
    let (lines, output) = lines();
    let settings = Env::empty().with(env::OTEL_EXPORTER_OTLP_ENDPOINT, endpoint).with(env::LOG, "info");
    let (dispatch, provider) = tracing_to(&settings, output).unwrap();
    let _here = tracing::dispatcher::set_default(&dispatch);
    let journey = Journey::new().await;
    journey.go(given(TRACE)).await;
    let message = journey.message().await;
    journey.end().await;
    let flushed = provider.clone();
    tokio::task::spawn_blocking(move || flushed.force_flush()).await.unwrap().unwrap();

    let spans = collected.lock().unwrap().clone();
    let (services, spans): (Vec<String>, Vec<Span>) =
        spans.into_iter().filter(|(_, it)| hex(&it.trace_id) == TRACE).unzip();
    let one = |name: &str, kind: i32| {
        let named: Vec<_> = spans.iter().filter(|it| it.name == name && it.kind == kind).collect();
        assert_eq!(named.len(), 1, "{name}: {:?}", spans.iter().map(|it| &it.name).collect::<Vec<_>>());
        named[0]
    };
    // Server, client and consumer, as the protocol numbers them.
    let path = [
        one("POST /api/place", 2),
        one("POST order", 3),
        one("POST /place", 2),
        one("listener order.created", 5),
    ];
    assert_eq!(hex(&path[0].parent_span_id), "b7ad6b7169203331", "the caller's span");
    for (child, parent) in path.iter().skip(1).zip(&path) {
        assert_eq!(child.parent_span_id, parent.span_id, "{} is within {}", child.name, parent.name);
    }
    assert_eq!(spans.len(), 4);
    assert!(text(&path[1].attributes, "http.response.status_code").unwrap().contains("200"));
    let whose = |span: &Span| {
        let at = spans.iter().position(|it| it.span_id == span.span_id).unwrap();
        assert_eq!(text(&span.attributes, "service").as_ref(), Some(&services[at]), "{}", span.name);
        services[at].as_str()
    };
    assert_eq!(
        path.map(whose),
        ["gateway", "gateway", "orders", "orders"],
        "in one process, each by its name"
    );

    let parent = format!("00-{TRACE}-{}-01", hex(&path[2].span_id));
    assert_eq!(
        (message[TRACEPARENT].as_str(), message[CORRELATION_ID].as_str()),
        (parent.as_str(), "order-7")
    );

    let lines = lines.lock().unwrap();
    for (service, message) in [("orders", "placed"), ("orders", "heard"), ("gateway", "request")] {
        let line = lines.iter().find(|line| line["message"] == message && line["service"] == service);
        let line = line.unwrap_or_else(|| panic!("{service} {message}: {lines:?}"));
        assert_eq!(
            (&line["trace_id"], &line["correlation_id"]),
            (&json!(TRACE), &json!("order-7")),
            "{line}"
        );
        assert!(line["timestamp"].is_string() && line["level"] == "INFO");
    }
    let requests = lines.iter().filter(|line| line["message"] == "request").count();
    assert_eq!(requests, 1, "a request is told of once, where it came in: {lines:?}");
}

/// A name for the process, and spans of which nobody says whose they are.
#[tokio::test]
async fn a_processs_own_name_is_for_all_its_spans_and_sagas_are_of_whoever_moves_them_on() {
    telemetry::sagas_are_of("orders");
    for (name, expected) in [(None, ["orders", "order-system"]), (Some("eu-1"), ["eu-1", "eu-1"])] {
        let (endpoint, collected) = collector().await;
        let settings = Env::empty().with(env::OTEL_EXPORTER_OTLP_ENDPOINT, endpoint);
        let settings = name.into_iter().fold(settings, |it, name| it.with(env::SERVICE_NAME, name));
        let (_, output) = lines();
        let (dispatch, provider) = tracing_to(&settings, output).unwrap();
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::info_span!(target: "mainstay", "saga.step").in_scope(|| {});
            tracing::info_span!(target: "order_kit", "something").in_scope(|| {});
        });
        tokio::task::spawn_blocking(move || provider.force_flush()).await.unwrap().unwrap();
        let mut spans: Vec<_> = collected
            .lock()
            .unwrap()
            .iter()
            .map(|(service, span)| (span.name.clone(), service.clone()))
            .collect();
        spans.sort();
        let services: Vec<_> = spans.iter().map(|(_, service)| service.as_str()).collect();
        assert_eq!(services, expected, "{spans:?}");
    }
}

#[tokio::test]
async fn without_a_collector_a_trace_can_be_looked_at_for_a_while() {
    const OTHER: &str = "1af7651916cd43dd8448eb211c80319c";
    let (_, output) = lines();
    let (dispatch, _provider) = tracing_to(&Env::empty().with(env::LOG, "off"), output).unwrap();
    let _here = tracing::dispatcher::set_default(&dispatch);
    let journey = Journey::new().await;
    journey.go(given(OTHER)).await;
    let client = {
        let context = context(
            "outside",
            Env::empty().with(env::ORDER_SERVICE_URL, &journey.orders.url),
            memory().await,
        );
        Client::new(&context, "order", Options::default()).unwrap()
    };
    let reply = client.get(&format!("/_traces/{OTHER}")).await.unwrap();
    let said: Value = reply.json().unwrap();
    let spans = said["spans"].as_array().unwrap();
    let kinds: Vec<_> = spans.iter().map(|span| span["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[..3], ["server", "client", "server"], "{said}");
    assert_eq!(spans[1]["parentSpanId"], spans[0]["spanId"]);
    assert_eq!(spans[2]["parentSpanId"], spans[1]["spanId"]);
    let services: Vec<_> = spans.iter().map(|span| &span["attributes"]["service"]).collect();
    assert_eq!(services[..3], ["gateway", "gateway", "orders"]);
    let unknown = client.get("/_traces/ffffffffffffffffffffffffffffffff").await.unwrap();
    assert_eq!(unknown.json::<Value>().unwrap()["spans"], json!([]));
    journey.end().await;
}

#[tokio::test]
async fn without_spans_the_callers_trace_is_handed_on() {
    const OTHER: &str = "2af7651916cd43dd8448eb211c80319c";
    let (lines, output) = lines();
    let (dispatch, _provider) = tracing_to(&Env::empty().with(env::TRACE_SAMPLE, "0"), output).unwrap();
    let _here = tracing::dispatcher::set_default(&dispatch);
    let journey = Journey::new().await;
    journey.go(given(OTHER)).await;
    let message = journey.message().await;
    journey.end().await;
    assert_eq!(message[TRACEPARENT], given(OTHER)[TRACEPARENT].to_str().unwrap());
    assert_eq!(message[CORRELATION_ID], "order-7");
    assert!(telemetry::spans(OTHER).is_empty());
    let lines = lines.lock().unwrap();
    let heard = lines.iter().find(|line| line["message"] == "heard").unwrap();
    assert_eq!((&heard["trace_id"], &heard["correlation_id"]), (&json!(OTHER), &json!("order-7")));
}

#[tokio::test]
async fn a_trace_that_the_caller_does_not_keep_is_handed_on_and_no_span_is_made() {
    const OTHER: &str = "3af7651916cd43dd8448eb211c80319c";
    let (lines, output) = lines();
    let (dispatch, _provider) = tracing_to(&Env::empty(), output).unwrap();
    let _here = tracing::dispatcher::set_default(&dispatch);
    let journey = Journey::new().await;
    let mut headers = given(OTHER);
    let unkept = headers[TRACEPARENT].to_str().unwrap().replace("-01", "-00");
    headers.insert(TRACEPARENT, unkept.parse().unwrap());
    journey.go(headers).await;
    let message = journey.message().await;
    journey.end().await;
    assert_eq!(message[TRACEPARENT], unkept);
    assert!(telemetry::spans(OTHER).is_empty());
    let lines = lines.lock().unwrap();
    let heard = lines.iter().find(|line| line["message"] == "heard").unwrap();
    assert_eq!(heard["trace_id"], OTHER);
}

#[tokio::test]
async fn a_trace_is_kept_as_its_beginning_says_whatever_the_share_is_here() {
    const OTHER: &str = "4af7651916cd43dd8448eb211c80319c";
    let (lines, output) = lines();
    let seldom = Env::empty().with(env::TRACE_SAMPLE, "0.000000001");
    let (dispatch, _provider) = tracing_to(&seldom, output).unwrap();
    let _here = tracing::dispatcher::set_default(&dispatch);
    let journey = Journey::new().await;
    journey.go(given(OTHER)).await;
    // The caller keeps it.
    until("what each hop has done is kept", async || telemetry::spans(OTHER).len() >= 3).await;
    // Nobody has begun it: it is not drawn here, and all that follow know.
    lines.lock().unwrap().clear();
    let mut headers = given(OTHER);
    headers.remove(TRACEPARENT);
    journey.message().await;
    journey.go(headers).await;
    let message = journey.message().await;
    journey.end().await;
    let begun = &message[TRACEPARENT];
    assert!(begun.ends_with("-00") && !begun.contains(OTHER), "{begun}");
    assert!(telemetry::spans(&begun[3..35]).is_empty());
    let lines = lines.lock().unwrap();
    let heard = lines.iter().find(|line| line["message"] == "heard").unwrap();
    assert_eq!(heard["trace_id"], begun[3..35]);
}

#[tokio::test]
async fn the_share_and_the_filter_are_checked() {
    for (name, value) in [(env::TRACE_SAMPLE, "2"), (env::TRACE_SAMPLE, "some"), (env::LOG, "a=b=c")] {
        let (_, output) = lines();
        assert!(tracing_to(&Env::empty().with(name, value), output).is_err(), "{name}={value}");
    }
    let (written, output) = lines();
    let (dispatch, _provider) = tracing_to(&Env::empty().with(env::LOG, "warn"), output).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        tracing::info!("not this");
        let error: &(dyn std::error::Error + 'static) = &std::fmt::Error;
        tracing::warn!(target: "order_kit", text = "é\"\n", n = 1, on = true, share = 0.5, error, "this");
    });
    let written = written.lock().unwrap();
    assert_eq!(written.len(), 1);
    let line = &written[0];
    assert_eq!(
        (&line["message"], &line["text"], &line["n"], &line["on"], &line["share"], &line["level"]),
        (&json!("this"), &json!("é\"\n"), &json!(1), &json!(true), &json!(0.5), &json!("WARN"))
    );
    assert!(line["error"].is_string() && line.get("trace_id").is_none());
}

#[tokio::test]
async fn operators_alone_see_traces() {
    let served =
        Served::open("users", Env::empty(), Router::new().route("/", get(|| std::future::ready("")))).await;
    let (status, _) = fetch(&format!("{}/_traces/{TRACE}", served.url)).await;
    assert_eq!((status.as_u16(), SERVICE_TOKEN.as_str()), (401, "x-service-token"));
}
