//! What goes through, how, and what happens when it does not.

use std::time::{Duration, Instant};

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use axum::{Router, response::IntoResponse, routing::get};
use http::{Method, StatusCode};

use crate::support::{Running, env, gateway, mirror};

#[tokio::test]
async fn method_path_query_and_body_arrive_as_they_were_sent() {
    let (gateway, fake) = Running::before(env(), "users", mirror()).await;
    let seen = gateway.get("/api/users/1?x=a%20b&y=%2F").await.json();
    assert_eq!(seen["asked"], "/users/1?x=a%20b&y=%2F");
    let token = format!("Bearer {}", gateway.token("u7"));
    let headers = [
        ("authorization", token.as_str()),
        ("connection", "x-private"),
        ("x-private", "1"),
        ("x-user-id", "root"),
        ("x-service-token", "guess"),
        ("x-forwarded-for", "127.0.0.9"),
        ("x-request-timeout-ms", "2000"),
        ("idempotency-key", "k1"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-correlation-id", "order-9"),
    ];
    let seen = gateway.send(Method::PUT, "/api/users/1", &headers, r#"{"name":"Ann"}"#).await.json();
    assert_eq!((&seen["method"], &seen["body"]), (&"PUT".into(), &r#"{"name":"Ann"}"#.into()));
    let header = |name: &str| seen["headers"][name].as_str();
    assert_eq!(header("host"), Some(fake.address.to_string().as_str()));
    assert_eq!((header("x-forwarded-for"), header("x-forwarded-proto")), (Some("127.0.0.1"), Some("http")));
    assert_eq!(header("x-forwarded-host"), Some(gateway.address.to_string().as_str()));
    assert_eq!((header("x-user-id"), header("x-service-token")), (Some("u7"), Some(crate::support::TOKEN)));
    assert_eq!((header("authorization"), header("x-private"), header("connection")), (None, None, None));
    assert_eq!((header("idempotency-key"), header("x-correlation-id")), (Some("k1"), Some("order-9")));
    let left: u64 = header("x-request-timeout-ms").unwrap().parse().unwrap();
    assert!(left < 2_000 && left > 500, "the deadline shrinks on its way: {left}");
}

#[tokio::test]
async fn a_dead_service_is_said_to_be_so_at_once_and_without_its_address() {
    let gateway = gateway(env()).await;
    let begun = Instant::now();
    let answer = gateway.get("/api/users/1").await;
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let body = answer.json();
    assert_eq!((&body["error"], &body["service"]), (&"Service unavailable".into(), &"user".into()));
    assert!(!answer.body.windows(4).any(|part| part == b"127."), "{body}");
    assert_eq!(answer.header("x-served-by"), Some("users"));
}

#[tokio::test]
async fn an_instance_that_is_gone_costs_no_request() {
    let (gateway, first) = Running::before(env(), "users", mirror()).await;
    let second = crate::support::fake(mirror()).await;
    gateway.register("users", second.address);
    for _ in 0..4 {
        assert_eq!(gateway.get("/api/users/1").await.status, StatusCode::OK);
    }
    drop(first);
    let token = format!("Bearer {}", gateway.token("u7"));
    for _ in 0..4 {
        // A POST as well: nothing of it was sent.
        let headers = [("authorization", token.as_str())];
        let answer = gateway.send(Method::POST, "/api/users/1", &headers, "{}").await;
        assert_eq!(answer.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn health_is_from_memory() {
    let gateway = gateway(env()).await;
    let answer = gateway.send(Method::GET, "/health", &[], "").await;
    let body = answer.json();
    assert_eq!((answer.status, &body["status"]), (StatusCode::OK, &"ok".into()));
    let names: Vec<_> =
        body["services"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["inventory", "notifications", "orders", "payments", "products", "users"]);
    assert!(body["timestamp"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn failures_open_the_breaker_of_their_service_alone() {
    let broken = Router::new().fallback(async || StatusCode::INTERNAL_SERVER_ERROR.into_response());
    let (gateway, _users) = Running::before(env(), "users", broken).await;
    let orders = crate::support::fake(Router::new().route("/orders/1", get(async || "ok"))).await;
    gateway.register("orders", orders.address);
    for _ in 0..5 {
        assert_eq!(gateway.get("/api/users/1").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
    let refused = gateway.get("/api/users/1").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&after), "{after}");
    assert_eq!(gateway.get("/api/orders/1").await.status, StatusCode::OK);
    let policies =
        gateway.send(Method::GET, "/_policies", &[("x-service-token", crate::support::TOKEN)], "").await;
    let policies = policies.json().to_string();
    assert!(policies.contains(r#""name":"users""#) && policies.contains("open"), "{policies}");
}

#[tokio::test]
async fn breakers_that_are_off_let_everything_through() {
    let broken = Router::new().fallback(async || StatusCode::INTERNAL_SERVER_ERROR.into_response());
    let env = env().with(order_kit::env::BREAKERS, "off");
    let (gateway, _users) = Running::before(env, "users", broken).await;
    for _ in 0..30 {
        assert_eq!(gateway.get("/api/users/1").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}

#[tokio::test]
async fn a_read_is_repeated_and_a_write_is_not() {
    let asked = Arc::new(AtomicU32::new(0));
    let counts = asked.clone();
    let shaky = Router::new().fallback(move || {
        let first = counts.fetch_add(1, SeqCst).is_multiple_of(2);
        async move { if first { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK } }
    });
    let (gateway, _fake) = Running::before(env(), "users", shaky).await;
    assert_eq!(gateway.get("/api/users/1").await.status, StatusCode::OK);
    assert_eq!(asked.load(SeqCst), 2);
    let token = format!("Bearer {}", gateway.token("u1"));
    let written = gateway.send_owned(Method::POST, "/api/users/1", token).await;
    assert_eq!((written.status, asked.load(SeqCst)), (StatusCode::SERVICE_UNAVAILABLE, 3));
}

#[tokio::test]
async fn what_a_service_says_of_its_answer_arrives() {
    let marked = Router::new().fallback(async || {
        let headers =
            [("x-fallback", "user"), ("connection", "x-inner"), ("x-inner", "1"), ("set-cookie", "a=b")];
        (StatusCode::IM_A_TEAPOT, headers, "as it is")
    });
    let (gateway, _fake) = Running::before(env(), "orders", marked).await;
    let answer = gateway.get("/api/orders/1/details").await;
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::IM_A_TEAPOT, &b"as it is"[..]));
    assert_eq!((answer.header("x-fallback"), answer.header("set-cookie")), (Some("user"), Some("a=b")));
    assert_eq!((answer.header("x-inner"), answer.header("connection")), (None, None));
}

#[tokio::test]
async fn a_write_that_may_have_been_seen_is_sent_nowhere_else() {
    let gateway = gateway(env()).await;
    let seen = Arc::new(AtomicU32::new(0));
    for _ in 0..2 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        gateway.register("users", listener.local_addr().unwrap());
        let seen = seen.clone();
        tokio::spawn(async move {
            // Reads a request and hangs up.
            while let Ok((mut stream, _)) = listener.accept().await {
                let read = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4_096]).await;
                seen.fetch_add(u32::from(read.is_ok_and(|bytes| bytes > 0)), SeqCst);
            }
        });
    }
    let token = format!("Bearer {}", gateway.token("u1"));
    // Without a body nothing of it is left to be looked at.
    let answer = gateway.send_owned(Method::POST, "/api/users/1", token).await;
    assert_eq!((answer.status, seen.load(SeqCst)), (StatusCode::SERVICE_UNAVAILABLE, 1));
    assert_eq!(gateway.get("/api/users/1").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(seen.load(SeqCst) > 2, "a read is repeated, as often as the budget of retries allows");
}
