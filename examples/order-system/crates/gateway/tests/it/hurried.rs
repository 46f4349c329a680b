//! What clients do to themselves is no fault of the service.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, extract::ConnectInfo};
use http::{Method, StatusCode};
use order_gateway::upstream::PATIENCE;
use order_kit::{client::IDLE, server::HEAD_TIMEOUT};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::task::AbortOnDropHandle;

use crate::support::{Fake, Running, TOKEN, env, gateway, mirror, standing_clock};

/// A service that says when it is asked and answers after so long.
async fn slow(after: Duration) -> (Running, Fake, mpsc::UnboundedReceiver<()>) {
    let (asked, asks) = mpsc::unbounded_channel();
    let service = Router::new().fallback(move || {
        let asked = asked.clone();
        async move {
            asked.send(()).unwrap();
            tokio::time::sleep(after).await;
            "ok"
        }
    });
    let (gateway, fake) = Running::before(env(), "products", service).await;
    (gateway, fake, asks)
}

#[tokio::test]
async fn clients_in_a_hurry_do_not_open_the_breaker_for_others() {
    let _clock = standing_clock();
    let (gateway, _fake, mut asks) = slow(Duration::from_millis(40)).await;
    let mut ask = async |headers: &[(&str, &str)], ms: u64| {
        let answer = gateway.send(Method::GET, "/api/products", headers, "");
        let passes = async {
            asks.recv().await.unwrap();
            tokio::time::advance(Duration::from_millis(ms + 2)).await;
        };
        tokio::join!(answer, passes).0
    };
    for _ in 0..6 {
        let hurried = ask(&[("x-request-timeout-ms", "5")], 5).await;
        assert_eq!(hurried.status, StatusCode::GATEWAY_TIMEOUT);
    }
    assert_eq!(ask(&[], 40).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_service_that_says_itself_that_the_time_is_over_has_not_failed() {
    let _clock = standing_clock();
    let over = Router::new().fallback(async || (StatusCode::GATEWAY_TIMEOUT, [("retry-after", "1")]));
    let (gateway, _fake) = Running::before(env(), "products", over).await;
    let ask =
        async |ms| gateway.send(Method::GET, "/api/products", &[("x-request-timeout-ms", ms)], "").await;
    for _ in 0..6 {
        assert_eq!(ask("5").await.json()["error"], "Service timed out");
    }
    for _ in 0..5 {
        assert!(ask("20000").await.body.is_empty(), "what the service said");
    }
    assert_eq!(
        ask("20000").await.json()["error"],
        "Service unavailable",
        "nothing explains these: it is open"
    );
}

#[tokio::test]
async fn a_service_that_is_slow_fails_however_much_time_its_clients_have() {
    let _clock = standing_clock();
    let (gateway, fake, mut asks) = slow(Duration::from_secs(3_600)).await;
    for _ in 0..5 {
        gateway.register("products", fake.address);
        let answer = gateway.send(Method::GET, "/api/products", &[("x-request-timeout-ms", "25000")], "");
        let passes = async {
            asks.recv().await.unwrap();
            tokio::time::advance(PATIENCE + Duration::from_millis(2)).await;
        };
        assert_eq!(tokio::join!(answer, passes).0.status, StatusCode::GATEWAY_TIMEOUT);
    }
    let refused = gateway.send(Method::GET, "/api/products", &[], "").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(asks.try_recv().is_err(), "nobody was asked");
}

/// What is answered within the next seconds.
async fn answer(stream: &TcpStream) -> String {
    for _ in 0..20 {
        settle().await;
        let mut part = [0; 1_024];
        if let Ok(read) = stream.try_read(&mut part) {
            return String::from_utf8_lossy(&part[..read]).into_owned();
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    panic!("no answer")
}

/// What is on its way over a connection arrives.
async fn settle() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_client_that_sends_a_byte_now_and_then_is_the_clients_fault() {
    let _clock = standing_clock();
    let (gateway, fake) = Running::before(env(), "users", mirror()).await;
    for (length, byte, places) in
        [("content-length: 1000", " ", 0), ("transfer-encoding: chunked", "1\r\n \r\n", 6)]
    {
        gateway.register("users", fake.address);
        let mut clients = Vec::new();
        for _ in 0..6 {
            let mut client = TcpStream::connect(gateway.address).await.unwrap();
            let head = format!(
                "POST /api/users HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n{length}\r\n\r\n"
            );
            client.write_all(head.as_bytes()).await.unwrap();
            clients.push(client);
        }
        for _ in 0..14 {
            settle().await;
            tokio::time::advance(Duration::from_secs(1)).await;
            for client in &mut clients {
                client.write_all(byte.as_bytes()).await.unwrap();
            }
        }
        settle().await;
        let policies =
            gateway.send(Method::GET, "/_policies", &[("x-service-token", TOKEN)], "").await.json();
        let bulkhead = policies
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["name"] == "users" && it.get("in_use").is_some());
        assert_eq!(bulkhead.unwrap()["in_use"], places, "{length}");
        for client in &clients {
            let answer = answer(client).await;
            assert!(answer.starts_with("HTTP/1.1 408"), "{length}: {answer}");
        }
        gateway.register("users", fake.address);
        let other = gateway.send(Method::POST, "/api/users", &[], "{}").await;
        assert_eq!(other.status, StatusCode::OK, "{length}");
    }
}

#[tokio::test]
async fn a_connection_is_given_up_before_the_service_does() {
    let _clock = standing_clock();
    let gateway = gateway(env()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let peer = Router::new().fallback(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string());
    let service = peer.into_make_service_with_connect_info::<SocketAddr>();
    let _serving = AbortOnDropHandle::new(tokio::spawn(async { axum::serve(listener, service).await }));
    let ask = async || {
        gateway.register("products", address);
        let answer = gateway.send(Method::GET, "/api/products", &[], "").await;
        settle().await;
        answer.body
    };
    let first = ask().await;
    tokio::time::advance(IDLE - Duration::from_secs(1)).await;
    assert_eq!(ask().await, first, "it is used again");
    tokio::time::advance(IDLE + Duration::from_secs(1)).await;
    assert!(IDLE + Duration::from_secs(1) < HEAD_TIMEOUT);
    assert_ne!(ask().await, first);
}
