//! What clients do to themselves is no fault of the service.

use std::time::Duration;

use axum::Router;
use http::{Method, StatusCode};
use order_gateway::upstream::PATIENCE;
use tokio::sync::mpsc;

use crate::support::{Fake, Running, env, standing_clock};

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
        let hurried = ask(&[("x-request-timeout-ms", "5")], 6).await;
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
