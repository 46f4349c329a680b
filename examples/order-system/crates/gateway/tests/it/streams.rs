//! Bodies pass through as they come, and what nobody waits for any more is ended.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request, routing::any};
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, mpsc},
    time::timeout,
};

use crate::support::{Running, env, mirror};

const SOON: Duration = Duration::from_secs(5);

/// A connection on which a request was begun.
async fn begin(gateway: &Running, head: &str) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let token = gateway.token("u1");
    let head = format!("{head}\r\nhost: gateway\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Reads until the text is there.
async fn until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = Vec::new();
    timeout(SOON, async {
        while !String::from_utf8_lossy(&seen).contains(text) {
            let mut part = [0; 1_024];
            let read = stream.read(&mut part).await.unwrap();
            assert!(read > 0, "the end came before {text:?}: {:?}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&part[..read]);
        }
    })
    .await
    .unwrap_or_else(|_| panic!("no {text:?}"));
    String::from_utf8_lossy(&seen).into_owned()
}

#[tokio::test]
async fn a_large_body_arrives_as_it_was_sent() {
    let whole = Router::new().fallback(async |request: Request| {
        axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap()
    });
    let (gateway, _fake) = Running::before(env(), "orders", whole).await;
    let json = serde_json::json!({ "notes": "é".repeat(512 * 1024) }).to_string();
    assert!(json.len() > 1024 * 1024);
    let token = format!("Bearer {}", gateway.token("u1"));
    let answer = gateway.send(Method::POST, "/api/orders", &[("authorization", &token)], json.clone()).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, json.len()));
    assert!(answer.body == json);
}

/// Eight mebibytes, of which no service takes more than a small part.
fn too_much() -> Bytes {
    Bytes::from(vec![b' '; 8 * 1024 * 1024])
}

#[tokio::test]
async fn a_service_that_answers_early_is_heard() {
    let json = async |order_kit::Json(_): order_kit::Json<serde_json::Value>| "taken";
    let small =
        Router::new().route("/orders", any(json)).layer(axum::extract::DefaultBodyLimit::max(64 * 1024));
    let (gateway, _fake) = Running::before(env(), "orders", small).await;
    let token = format!("Bearer {}", gateway.token("u1"));
    for _ in 0..20 {
        let answer =
            gateway.send(Method::POST, "/api/orders", &[("authorization", &token)], too_much()).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{:?}", answer.body);
    }
}

/// One that answers as soon as it sees the head, and closes what still comes.
#[tokio::test]
async fn a_service_that_answers_at_once_and_goes_is_heard() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = crate::support::gateway(env()).await;
    gateway.register("orders", listener.local_addr().unwrap());
    let hasty = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            until(&mut stream, "\r\n\r\n").await;
            let answer =
                "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 5\r\nconnection: close\r\n\r\nlarge";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let token = format!("Bearer {}", gateway.token("u1"));
    for _ in 0..50 {
        let answer =
            gateway.send(Method::POST, "/api/orders", &[("authorization", &token)], too_much()).await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::PAYLOAD_TOO_LARGE, &b"large"[..]));
    }
    hasty.abort();
}

#[tokio::test]
async fn a_service_that_goes_without_an_answer_is_unavailable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = crate::support::gateway(env()).await;
    gateway.register("orders", listener.local_addr().unwrap());
    let mute = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            until(&mut stream, "\r\n\r\n").await;
        }
    });
    let token = format!("Bearer {}", gateway.token("u1"));
    let answer = gateway.send(Method::POST, "/api/orders", &[("authorization", &token)], too_much()).await;
    assert_eq!(
        (answer.status, &answer.json()["service"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"order".into())
    );
    mute.abort();
}

#[tokio::test]
async fn a_service_sees_the_first_part_before_the_last_is_sent() {
    let (seen, mut sees) = mpsc::unbounded_channel();
    let upload = Router::new().fallback(move |request: Request| async move {
        let mut parts = request.into_body().into_data_stream();
        let mut length = 0;
        while let Some(part) = parts.next().await {
            let part = part.unwrap();
            length += part.len();
            seen.send(part).unwrap();
        }
        length.to_string()
    });
    let (gateway, _fake) = Running::before(env(), "orders", upload).await;
    let mut client = begin(&gateway, "POST /api/orders HTTP/1.1\r\ntransfer-encoding: chunked").await;
    client.write_all(b"5\r\nfirst\r\n").await.unwrap();
    let first = timeout(SOON, sees.recv()).await.expect("nothing came before the end").unwrap();
    assert_eq!(first, "first");
    client.write_all(b"4\r\nlast\r\n0\r\n\r\n").await.unwrap();
    assert!(until(&mut client, "\r\n\r\n9").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_sees_the_first_part_before_the_last_is_sent() {
    let go_on = Arc::new(Notify::new());
    let waits = go_on.clone();
    let download = Router::new().fallback(move || {
        let waits = waits.clone();
        async move {
            let first = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"first"))]);
            let last = futures::stream::once(async move {
                waits.notified().await;
                Ok(Bytes::from_static(b"last"))
            });
            Body::from_stream(first.chain(last))
        }
    });
    let (gateway, _fake) = Running::before(env(), "orders", download).await;
    let mut client = begin(&gateway, "GET /api/orders HTTP/1.1").await;
    assert!(!until(&mut client, "first").await.contains("last"));
    go_on.notify_one();
    until(&mut client, "last").await;
}

/// Says when it is dropped.
struct Drops(mpsc::UnboundedSender<&'static str>);

impl Drop for Drops {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_work_for_it() {
    let (said, mut says) = mpsc::unbounded_channel();
    let slow = Router::new().route(
        "/orders/{how}",
        any(move |axum::extract::Path(how): axum::extract::Path<String>| {
            let said = said.clone();
            async move {
                let drops = Drops(said.clone());
                said.send("begun").unwrap();
                if how == "head" {
                    std::future::pending::<()>().await;
                }
                let first = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"first"))]);
                let never = futures::stream::once(async move {
                    let _drops = drops;
                    std::future::pending().await
                });
                Body::from_stream(first.chain(never))
            }
        }),
    );
    let (gateway, _fake) = Running::before(env(), "orders", slow).await;
    for how in ["head", "body"] {
        let mut client = begin(&gateway, &format!("GET /api/orders/{how} HTTP/1.1")).await;
        assert_eq!(timeout(SOON, says.recv()).await.unwrap(), Some("begun"));
        if how == "body" {
            until(&mut client, "first").await;
        }
        drop(client);
        assert_eq!(timeout(SOON, says.recv()).await.expect("the work goes on"), Some("dropped"));
    }
}

#[tokio::test]
async fn silence_is_a_504_that_names_the_service() {
    let silent = Router::new().fallback(async || std::future::pending::<StatusCode>().await);
    let (gateway, _fake) = Running::before(env(), "users", silent).await;
    let token = format!("Bearer {}", gateway.token("u1"));
    let headers = [("authorization", token.as_str()), ("x-request-timeout-ms", "200")];
    let answer = gateway.send(Method::GET, "/api/users/1", &headers, "").await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(answer.json()["service"], "user");
}

#[tokio::test]
async fn a_body_that_breaks_is_the_clients_fault() {
    let (gateway, _fake) = Running::before(env(), "users", mirror()).await;
    for _ in 0..6 {
        let mut client = begin(&gateway, "POST /api/users HTTP/1.1\r\ntransfer-encoding: chunked").await;
        client.write_all(b"5\r\nfirst\r\nno chunk at all\r\n").await.unwrap();
        let mut all = Vec::new();
        let _ = timeout(SOON, client.read_to_end(&mut all)).await.expect("it hangs");
        assert!(!String::from_utf8_lossy(&all).starts_with("HTTP/1.1 200"));
    }
    assert_eq!(gateway.get("/api/users/1").await.status, StatusCode::OK, "its breaker is closed");
}
