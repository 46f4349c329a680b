//! What is exported, and what the dashboard asks for.

use std::{collections::BTreeSet, time::Duration};

use axum::{Router, routing::get};
use order_broker::Queue;
use order_kit::{
    ApiError, Db,
    client::{Client, Options},
    db::DbError,
    env::{self, Env},
    events::{Trouble, consume, emit, start_relay},
    metric::{self, Kind, METRICS},
    telemetry,
};
use serde_json::Value;

use crate::support::{Served, Somewhere, context, memory, send, until};

const DASHBOARD: &str = include_str!("../../../../deploy/grafana/dashboard.json");

/// All queries below a value.
fn queries(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            into.extend(map.get("expr").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| queries(value, into));
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, into)),
        _ => {}
    }
}

/// The figures that a query asks for, and the labels that it names.
fn asked(query: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    const FUNCTIONS: &[&str] = &[
        "sum",
        "rate",
        "increase",
        "max",
        "min",
        "histogram_quantile",
        "clamp_min",
        "by",
        "without",
        "or",
        "vector",
    ];
    let (mut figures, mut labels) = (BTreeSet::new(), BTreeSet::new());
    let mut text = query;
    let mut in_labels = false;
    while let Some(next) = text.chars().next() {
        let word: String =
            text.chars().take_while(|it| it.is_ascii_alphanumeric() || "_:".contains(*it)).collect();
        if next == '"' {
            let end = text[1..].find('"').expect("a text ends") + 2;
            text = &text[end..];
        } else if next == '[' {
            text = &text[text.find(']').expect("a time ends")..];
        } else if word.is_empty() || next.is_ascii_digit() {
            in_labels = if next == '{' { true } else { in_labels && !"})".contains(next) };
            text = &text[word.len().max(next.len_utf8())..];
        } else {
            text = &text[word.len()..];
            if word == "by" || word == "without" {
                in_labels = true;
            } else if in_labels {
                labels.insert(word);
            } else if !FUNCTIONS.contains(&word.as_str()) {
                figures.insert(word);
            }
        }
    }
    (figures, labels)
}

/// What is wrong with a dashboard.
fn complaints(dashboard: &str) -> Vec<String> {
    let dashboard: Value = serde_json::from_str(dashboard).expect("JSON");
    let mut all = Vec::new();
    queries(&dashboard, &mut all);
    assert!(all.len() >= 10, "it asks for something");
    let mut complaints = Vec::new();
    for query in all {
        let (figures, labels) = asked(&query);
        let known: Vec<_> = figures.iter().filter_map(|name| metric::known(name)).collect();
        if figures.is_empty() || known.len() < figures.len() {
            complaints.push(format!("no such figure: {query}"));
        }
        for label in labels.iter().filter(|label| *label != "le") {
            if !known.iter().all(|metric| metric.labels.contains(&label.as_str())) {
                complaints.push(format!("no label {label}: {query}"));
            }
        }
    }
    complaints
}

#[test]
fn the_dashboard_asks_for_what_is_there() {
    assert_eq!(complaints(DASHBOARD), Vec::<String>::new());
    let broken = DASHBOARD.replacen("http_request_seconds_bucket", "http_requests_seconds_bucket", 1);
    assert_eq!(complaints(&broken).len(), 1, "the check sees a wrong name");
    let broken = DASHBOARD.replacen("by (le, service)", "by (le, servant)", 1);
    assert_eq!(complaints(&broken).len(), 1, "and a wrong label");
}

/// What is exported and on no panel would be seen by nobody.
#[test]
fn the_dashboard_shows_every_figure() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut all = Vec::new();
    queries(&dashboard, &mut all);
    let asked = all.iter().flat_map(|query| asked(query).0);
    let shown: BTreeSet<_> = asked.filter_map(|name| metric::known(&name)).map(|it| it.name).collect();
    // The same state is there with the name of its service: `policy_circuit_state`.
    let twice = [metric::CIRCUIT_STATE];
    let missing: Vec<_> = METRICS
        .iter()
        .map(|it| it.name)
        .filter(|name| !shown.contains(name) && !twice.contains(name))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn each_figure_is_declared_once() {
    let names: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), METRICS.len());
    for metric in METRICS {
        assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
    }
    assert!(metric::known("http_request_seconds_count").is_some());
    assert!(metric::known("events_handled_total_count").is_none());
}

#[tokio::test]
async fn the_kits_own_figures_are_exported() {
    // The first to ask sets it up for the process.
    telemetry::init(&Env::empty().with(env::LOG, "off")).unwrap();
    let routes = Router::new()
        .route("/it", get(|| std::future::ready("it")))
        .route("/broken", get(|| std::future::ready(ApiError::unavailable("broken"))));
    let served = Served::open("users", Env::empty(), routes).await;
    let broker = memory().await;
    let context = context(
        "figures",
        Env::empty().with(env::USER_SERVICE_URL, &served.url).with(env::ORDER_SERVICE_URL, &served.url),
        broker.clone(),
    );
    let client = Client::new(&context, "user", Options::default()).unwrap();
    client.get("/it").await.unwrap();
    let left_alone = Client::new(&context, "order", Options::default()).unwrap();
    while !left_alone.is_open() {
        left_alone.get("/broken").await.unwrap_err();
    }
    left_alone.get("/it").await.unwrap_err();
    consume(&context, Queue::new("figures").bind("#"), 1, |_| std::future::ready(Ok::<_, Trouble>(())))
        .await
        .unwrap();
    let somewhere = Somewhere::sqlite();
    let db = Db::open(somewhere.place.clone(), &[]).await.unwrap();
    start_relay(&context, &db);
    let emitted = db.write(async |tx| emit(tx, "it", "it", "it", "it").await.map(drop)).await;
    emitted.unwrap_or_else(|error: DbError| panic!("{error}"));
    context
        .policies()
        .add(&mainstay::RateLimiter::config(100, Duration::from_secs(60)).name("it").build().unwrap());
    telemetry::watch(&context);
    context.measured(|| async { metric::sagas("figures", 3, 1) });
    // As when its own `/metrics` are asked for.
    context.measure().await;
    let text = async || {
        let (_, body) = send("GET", &format!("{}/metrics", served.url), http::HeaderMap::new()).await;
        String::from_utf8(body.to_vec()).unwrap()
    };
    until("the event is handled", async || text().await.contains("events_handled_total{queue=\"figures\""))
        .await;
    let text = text().await;
    // Of sagas, and of the gateway: their own tests see those.
    let others = ["mainstay_saga_", "gateway_"];
    let own = METRICS.iter().filter(|metric| !others.iter().any(|whose| metric.name.starts_with(whose)));
    for metric in own {
        let help = format!("# HELP {} {}", metric.name, metric.what);
        assert!(metric.name.starts_with("mainstay_") || text.contains(&help), "{}", metric.name);
        let sample = if metric.kind == Kind::Histogram {
            format!("{}_bucket{{", metric.name)
        } else {
            format!("{}{{", metric.name)
        };
        let sample = text.lines().find(|line| line.starts_with(&sample));
        let sample = sample.unwrap_or_else(|| panic!("{} has no value", metric.name));
        for label in metric.labels {
            assert!(sample.contains(&format!("{label}=\"")), "{label}: {sample}");
        }
    }
    assert!(text.contains("policy_circuit_state{service=\"figures\",policy=\"user\"} 0"));
    assert!(text.contains("sagas_in_flight{service=\"figures\"} 3"));
    assert!(text.contains("policy_limit_remaining{service=\"figures\",policy=\"it\"} 100"));
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let value = line.rsplit_once(' ').map(|(_, value)| value.parse::<f64>());
        assert!(matches!(value, Some(Ok(_))), "{line}");
    }
    context.stop().cancel();
    context.finished().await;
    drop(db);
    somewhere.end().await;
}
