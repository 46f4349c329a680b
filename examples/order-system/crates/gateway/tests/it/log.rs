//! One line for each request, and nothing in it that is not for readers of logs.

use std::sync::{Arc, Mutex};

use http::Method;
use order_kit::telemetry;

use crate::support::{Running, TOKEN, env, mirror};

#[tokio::test]
async fn every_request_is_one_line_without_a_token() {
    let lines: Arc<Mutex<Vec<u8>>> = Arc::default();
    let writer = lines.clone();
    let output = Arc::new(move |line: &[u8]| writer.lock().unwrap().extend_from_slice(line));
    let (subscriber, _provider) = telemetry::tracing_to(&env(), output).expect("the settings can be");
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

    let all = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
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
