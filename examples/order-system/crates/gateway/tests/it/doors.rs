//! Who may come in, how often, and from which page.

use http::{Method, StatusCode};
use order_gateway::token::Claims;
use order_kit::env;

use crate::support::{Running, TOKEN, env, gateway, mirror};

#[tokio::test]
async fn a_token_is_needed_except_for_what_is_open() {
    let (gateway, _users) = Running::before(env().with(env::JWT_SECRET, "chosen"), "users", mirror()).await;
    let at = |path: &'static str, value: String| gateway.send_owned(Method::GET, path, value);
    for value in
        ["", "Bearer nonsense", "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1MSIsImV4cCI6OTk5OTk5OTk5OX0."]
    {
        let answer = at("/api/users/1", value.to_owned()).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{value}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert!(answer.json()["error"].is_string());
    }
    assert_eq!(at("/api/users/1", format!("Bearer {}", gateway.token("u1"))).await.status, StatusCode::OK);
    let open = gateway.send(Method::POST, "/api/users", &[("x-user-id", "root")], "{}").await;
    assert_eq!(open.status, StatusCode::OK);
    assert_eq!(open.json()["headers"].get("x-user-id"), None);
    let none = gateway.send(Method::POST, "/auth/token", &[], r#"{"userId":"u1"}"#).await;
    assert_ne!(none.status, StatusCode::OK, "a secret was chosen: no tokens for whoever asks");
}

#[tokio::test]
async fn the_development_issuer_makes_tokens_that_hold() {
    let (gateway, _users) = Running::before(env(), "users", mirror()).await;
    let made = gateway.send(Method::POST, "/auth/token", &[], r#"{"userId":"u9","tenant":"t1"}"#).await;
    let token = made.json()["token"].as_str().unwrap().to_owned();
    let seen = gateway.send_owned(Method::GET, "/api/users/1", format!("Bearer {token}")).await.json();
    let headers = &seen["headers"];
    assert_eq!(
        (&headers["x-user-id"], &headers["x-tenant"], &headers["x-plan"]),
        (&"u9".into(), &"t1".into(), &"free".into())
    );
    let bad = gateway.send(Method::POST, "/auth/token", &[], r#"{"userId":""}"#).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn some_things_need_a_role_whoever_serves_them() {
    // One behind the gateway, and one that only a monolith may have.
    let monolith = crate::support::fake(mirror()).await;
    let legacy = env().with(env::LEGACY_URL, format!("http://{}", monolith.address));
    let (gateway, _payments) =
        Running::before(legacy.with(env::STRANGLE, "payments"), "payments", mirror()).await;
    let (customer, clerk) = (gateway.token("u1"), gateway.staff_token("clerk"));
    let (admin, service) = (gateway.staff_token("admin"), gateway.staff_token("service"));
    for path in ["/api/payments/charge?x=1", "/api/payments", "/payments/charge", "/api/inventory/7"] {
        let ask = async |token: &str| {
            let token = if token.is_empty() { String::new() } else { format!("Bearer {token}") };
            gateway.send_owned(Method::POST, path, token).await
        };
        assert_eq!(ask("").await.status, StatusCode::UNAUTHORIZED, "{path}");
        for token in [&customer, &clerk] {
            let refused = ask(token).await;
            assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path}");
            assert_eq!(refused.json(), serde_json::json!({ "error": "The token is not for this" }));
        }
        for token in [&admin, &service] {
            assert_eq!(ask(token).await.status, StatusCode::OK, "{path}");
        }
    }
    let made = gateway.send(Method::POST, "/auth/token", &[], r#"{"userId":"u9","roles":["service"]}"#).await;
    let token = made.json()["token"].as_str().unwrap().to_owned();
    let passed = gateway.send_owned(Method::GET, "/api/payments/1", format!("Bearer {token}")).await;
    assert_eq!(passed.status, StatusCode::OK);
}

#[tokio::test]
async fn one_too_many_is_told_when_to_come_back() {
    let limits = env().with(env::RATE_LIMIT, "3/15m").with(env::RATE_LIMIT_PLANS, "gold=5/15m");
    let (gateway, _users) = Running::before(limits, "users", mirror()).await;
    let gold = Claims { tenant: Some("t1".into()), plan: Some("gold".into()), ..Claims::of("u1") };
    let gold = format!("Bearer {}", gateway.token_of(&gold));
    for left in ["2", "1", "0"] {
        let answer = gateway.get("/api/users/1").await;
        assert_eq!((answer.status, answer.header("ratelimit-remaining")), (StatusCode::OK, Some(left)));
    }
    let refused = gateway.get("/api/users/1").await;
    assert_eq!(
        (refused.status, refused.header("ratelimit-limit")),
        (StatusCode::TOO_MANY_REQUESTS, Some("3"))
    );
    let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((890..=900).contains(&after) && refused.header("ratelimit-reset").is_some(), "{after}");
    let bare = gateway.send(Method::GET, "/api/users/1", &[], "").await;
    assert_eq!(bare.status, StatusCode::TOO_MANY_REQUESTS, "guessing tokens is limited too");
    let of_gold = gateway.send_owned(Method::GET, "/api/users/1", gold).await;
    assert_eq!((of_gold.status, of_gold.header("ratelimit-limit")), (StatusCode::OK, Some("5")));
    let health = gateway.send(Method::GET, "/health", &[], "").await;
    assert_eq!((health.status, health.header("ratelimit-limit")), (StatusCode::OK, None));
}

#[tokio::test]
async fn pages_of_other_origins_get_nothing() {
    let env = env().with(env::CORS_ORIGINS, "http://shop.example, http://localhost:8080");
    let (gateway, _users) = Running::before(env, "users", mirror()).await;
    let ask = async |origin: &str| {
        let headers = [("origin", origin), ("access-control-request-method", "PUT")];
        gateway.send(Method::OPTIONS, "/api/users/1", &headers, "").await
    };
    let allowed = ask("http://shop.example").await;
    assert_eq!(allowed.status, StatusCode::NO_CONTENT);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("http://shop.example"));
    assert!(allowed.header("access-control-allow-methods").unwrap().contains("PUT"));
    assert!(allowed.header("access-control-allow-headers").unwrap().contains("authorization"));
    for other in ["http://shop.example.evil", "http://shop.exampl", "null", "https://shop.example"] {
        let answer = ask(other).await;
        assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("access-control")), "{other}");
        assert_eq!(answer.header("vary"), Some("origin"));
    }
    // Also on answers, those that are no success included.
    let refused = gateway.send(Method::GET, "/api/users/1", &[("origin", "http://localhost:8080")], "").await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert_eq!(refused.header("access-control-allow-origin"), Some("http://localhost:8080"));
}

#[tokio::test]
async fn operators_show_a_token() {
    let gateway = gateway(env()).await;
    for path in ["/_policies", "/_faults", "/_routes"] {
        let none = gateway.get(path).await;
        assert_eq!(none.status, StatusCode::UNAUTHORIZED, "{path}");
        let some = gateway.send(Method::GET, path, &[("x-service-token", TOKEN)], "").await;
        assert_eq!(some.status, StatusCode::OK, "{path}");
    }
    let wrong = gateway.send(Method::PATCH, "/health", &[], "").await;
    assert_eq!(
        (wrong.status, &wrong.json()["error"]),
        (StatusCode::METHOD_NOT_ALLOWED, &"Method not allowed".into())
    );
    assert_eq!(gateway.get("/no/such").await.status, StatusCode::NOT_FOUND);
    let api = gateway.send(Method::GET, "/openapi.json", &[], "").await.json();
    assert!(
        api["paths"].get("/discover/{service}").is_some() && api["paths"].get("/_routes/{service}").is_some()
    );
}
