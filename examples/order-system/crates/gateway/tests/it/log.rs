//! One line for each request, and nothing in it that is not for readers of logs.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use http::Method;
use opentelemetry::trace::TracerProvider;
use tracing_subscriber::layer::SubscriberExt;

use crate::support::{Running, TOKEN, env, mirror};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn every_request_is_one_line_without_a_token() {
    let lines = Lines::default();
    let writer = lines.clone();
    let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
    let subscriber = tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(move || writer.clone()))
        .with(tracing_opentelemetry::layer().with_tracer(provider.tracer("test")));
    let subscriber = tracing::Dispatch::new(subscriber);
    // With a single one there is, what another test's thread reaches first is asked of that thread, and is off for all.
    let _another = tracing::Dispatch::new(tracing_subscriber::registry());
    let _here = tracing::dispatcher::set_default(&subscriber);

    let (gateway, _users) = Running::before(env(), "users", mirror()).await;
    let token = gateway.token("u1");
    let value = format!("Bearer {token}");
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let headers = [("authorization", value.as_str()), ("traceparent", &parent)];
    let asked = format!("/api/users/1?access_token={token}");
    let seen = gateway.send(Method::GET, &asked, &headers, "").await.json();
    assert!(seen["headers"]["traceparent"].as_str().unwrap().contains(trace), "one trace over both hops");
    gateway.send(Method::GET, "/api/users/2", &[("authorization", "Bearer worthless.token.here")], "").await;

    let all = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for secret in [&token, TOKEN, "worthless.token.here"] {
        assert!(!all.contains(secret), "{all}");
    }
    let requests: Vec<serde_json::Value> = all
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line that is no JSON"))
        .filter(|line: &serde_json::Value| line["message"] == "request")
        .collect();
    assert_eq!(requests.len(), 2, "{all}");
    let [first, second] = [&requests[0], &requests[1]];
    assert_eq!(
        (&first["method"], &first["path"], &first["status"]),
        (&"GET".into(), &"/api/users/1".into(), &200.into())
    );
    assert_eq!((&first["client"], &first["trace_id"]), (&"127.0.0.1".into(), &trace.into()));
    assert!(first["ms"].is_number());
    assert_eq!(second["status"], 401);
}
