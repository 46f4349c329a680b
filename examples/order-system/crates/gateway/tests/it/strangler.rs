//! From the monolith to services, and back.

use std::time::Duration;

use axum::{Router, extract::Path, routing::get};
use http::{Method, StatusCode};
use order_kit::env;

use crate::support::{Answer, Running, TOKEN, env, fake, gateway, mirror};

/// A gateway with a monolith and the users that have left it.
async fn two_sides(users: Router, monolith: Router, strangled: &str) -> (Running, [crate::support::Fake; 2]) {
    let monolith = fake(monolith).await;
    let env = env()
        .with(env::LEGACY_URL, format!("http://{}", monolith.address))
        .with(env::STRANGLE, strangled)
        .with(env::RATE_LIMIT, "off");
    let (gateway, users) = (gateway(env).await, fake(users).await);
    gateway.register("users", users.address);
    (gateway, [users, monolith])
}

/// Asks as one who works here.
async fn as_staff(gateway: &Running, path: &str) -> Answer {
    gateway.send_owned(Method::GET, path, format!("Bearer {}", gateway.staff_token("admin"))).await
}

async fn set(gateway: &Running, service: &str, route: &str) -> StatusCode {
    let path = format!("/_routes/{service}");
    gateway.send(Method::PUT, &path, &[("x-service-token", TOKEN)], route.to_owned()).await.status
}

async fn routes(gateway: &Running) -> serde_json::Value {
    let all = gateway.send(Method::GET, "/_routes", &[("x-service-token", TOKEN)], "").await.json();
    all.as_array().unwrap().iter().find(|route| route["service"] == "users").unwrap().clone()
}

#[tokio::test]
async fn the_monolith_is_shown_no_token_of_services() {
    let monolith = fake(mirror()).await;
    let legacy =
        env().with(env::LEGACY_URL, format!("http://{}", monolith.address)).with(env::STRANGLE, "users");
    for (env, token) in
        [(legacy.clone(), None), (legacy.with(env::LEGACY_TOKEN, "for-legacy"), Some("for-legacy"))]
    {
        let (gateway, _users) = Running::before(env, "users", mirror()).await;
        let shown = async |path: &str| {
            let seen = as_staff(&gateway, path).await.json();
            seen["headers"].get("x-service-token").map(|token| token.as_str().unwrap().to_owned())
        };
        assert_eq!(shown("/api/users/1").await.as_deref(), Some(TOKEN));
        assert_eq!(shown("/api/orders/1").await.as_deref(), token);
        assert_eq!(shown("/legacy").await.as_deref(), token);
    }
}

#[tokio::test]
async fn a_shadow_request_shows_what_is_for_the_side_that_it_goes_to() {
    let (seen, mut sees) = tokio::sync::mpsc::unbounded_channel();
    let side = |name: &'static str| {
        let seen = seen.clone();
        Router::new().fallback(move |headers: http::HeaderMap| async move {
            let token = headers.get("x-service-token").map(|token| token.to_str().unwrap().to_owned());
            seen.send((name, headers.contains_key("x-shadow"), token)).unwrap();
        })
    };
    let (gateway, _sides) = two_sides(side("users"), side("monolith"), "users").await;
    for (to, shadow) in [("new", "monolith"), ("legacy", "users")] {
        let route = format!(r#"{{"to":"{to}","shadow":true}}"#);
        assert_eq!(set(&gateway, "users", &route).await, StatusCode::OK);
        gateway.get("/api/users/1").await;
        for _ in 0..2 {
            let (name, shadowed, token) = sees.recv().await.unwrap();
            assert_eq!(shadowed, name == shadow);
            assert_eq!(token.as_deref(), (name == "users").then_some(TOKEN), "{name}");
        }
    }
}

#[tokio::test]
async fn what_has_left_the_monolith_is_served_by_its_service() {
    let (gateway, _sides) = two_sides(mirror(), mirror(), "users").await;
    let by = async |path: &str| {
        let answer = as_staff(&gateway, path).await;
        let asked = answer.json()["asked"].as_str().map(str::to_owned);
        (answer.header("x-served-by").map(str::to_owned).unwrap(), asked.unwrap())
    };
    assert_eq!(by("/api/users/1").await, ("users".into(), "/users/1".into()));
    assert_eq!(by("/api/orders/1?x").await, ("monolith".into(), "/orders/1?x".into()));
    assert_eq!(by("/api/reports/1").await, ("monolith".into(), "/reports/1".into()));
    assert_eq!(by("/legacy/page").await, ("monolith".into(), "/legacy/page".into()));
    let bare = gateway.send(Method::GET, "/legacy/page", &[], "").await;
    assert_eq!(bare.status, StatusCode::UNAUTHORIZED);
    // What no service has is not known to ask whose it is: the mails of others, say.
    for path in ["/sent?order=1", "/api/sent?order=1", "/counters", "/api/reports/1", "/legacy/page"] {
        assert_eq!(gateway.get(path).await.status, StatusCode::FORBIDDEN, "{path}");
    }
    for path in ["/api/users/1", "/api/orders/1", "/users/1"] {
        assert_eq!(gateway.get(path).await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(
        gateway.get("/api/_faults").await.status,
        StatusCode::NOT_FOUND,
        "the monolith's operators are elsewhere"
    );
    assert_eq!(set(&gateway, "users", r#"{"to":"legacy"}"#).await, StatusCode::OK);
    assert_eq!(by("/api/users/1").await.0, "monolith", "back by one call");
    assert_eq!(set(&gateway, "nobody", r#"{"to":"new"}"#).await, StatusCode::NOT_FOUND);
    assert_eq!(set(&gateway, "users", r#"{"to":"new","canaryPercent":101}"#).await, StatusCode::BAD_REQUEST);
    assert_eq!(set(&gateway, "users", r#"{"to":"elsewhere"}"#).await, StatusCode::BAD_REQUEST);
    let none = gateway.send(Method::PUT, "/_routes/users", &[], r#"{"to":"new"}"#).await;
    assert_eq!(none.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_canary_is_its_share() {
    let (gateway, _sides) = two_sides(mirror(), mirror(), "").await;
    assert_eq!(set(&gateway, "users", r#"{"to":"legacy","canaryPercent":10}"#).await, StatusCode::OK);
    let mut new = 0;
    for id in 0..1_000 {
        let answer = gateway.get(&format!("/api/users/{id}")).await;
        new += i32::from(answer.header("x-served-by") == Some("users"));
    }
    assert!((70..=130).contains(&new), "{new}");
    let shown = routes(&gateway).await;
    assert_eq!((&shown["new"], &shown["legacy"]), (&new.into(), &(1_000 - new).into()));
    let token = format!("Bearer {}", gateway.token("u1"));
    for id in 0..100 {
        let path = format!("/api/users/{id}");
        let answer = gateway.send(Method::PUT, &path, &[("authorization", &token)], "{}").await;
        assert_eq!(answer.header("x-served-by"), Some("monolith"), "changes are made on one side");
    }
}

#[tokio::test]
async fn a_shadow_is_compared_and_never_answered() {
    let new = Router::new().route(
        "/users/{id}",
        get(async |Path(id): Path<String>| axum::Json(serde_json::json!({ "id": id, "name": "Ann" }))),
    );
    let old = Router::new().route(
        "/users/{id}",
        get(async |Path(id): Path<String>| match id.as_str() {
            "2" => axum::Json(serde_json::json!({ "name": "Bob", "id": id })),
            _ => axum::Json(serde_json::json!({ "name": "Ann", "id": id })),
        }),
    );
    let (gateway, sides) = two_sides(new, old, "users").await;
    assert_eq!(set(&gateway, "users", r#"{"to":"new","shadow":true}"#).await, StatusCode::OK);
    for id in ["1", "2"] {
        let answer = gateway.get(&format!("/api/users/{id}")).await;
        assert_eq!((answer.header("x-served-by"), &answer.json()["name"]), (Some("users"), &"Ann".into()));
    }
    let counted = async |matches: u64, mismatches: u64, failed: u64| {
        let until = async {
            loop {
                let shown = routes(&gateway).await;
                let of = |name: &str| shown[name].as_u64().unwrap();
                if (of("shadowMatches"), of("shadowMismatches"), of("shadowFailed"))
                    == (matches, mismatches, failed)
                {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), until).await.is_ok()
    };
    assert!(counted(1, 1, 0).await, "{:?}", routes(&gateway).await);
    let [_users, monolith] = sides;
    drop(monolith);
    assert_eq!(gateway.get("/api/users/1").await.status, StatusCode::OK, "the other side is of no concern");
    assert!(counted(1, 1, 1).await, "{:?}", routes(&gateway).await);
}
