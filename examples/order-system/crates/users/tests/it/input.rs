//! Input that no client sends, but somebody.

use http::{Method, Request, header};
use order_kit::auth;
use serde_json::{Value, json};

use crate::{
    everywhere,
    hostile::{Chance, bad_bodies, leaks_nothing},
    person, start,
};

#[tokio::test]
async fn bad_bodies_are_refused_and_nothing_is_stored() {
    everywhere("bad_bodies_are_refused_and_nothing_is_stored", async |users| {
        let alice = users.post("/users", &person("Alice", "alice@example.com")).await.body;
        let path = format!("/users/{}", alice["id"].as_str().unwrap());
        for (what, body, status) in bad_bodies() {
            for (method, path) in [(Method::POST, "/users"), (Method::PUT, &path)] {
                let answer = users.call(method.clone(), path, body.clone()).await;
                assert_eq!(answer.status, status, "{method} {what}: {}", answer.text);
                assert!(!answer.error().is_empty());
                leaks_nothing(&answer);
            }
        }
        assert_eq!(users.get("/users").await.body, json!([alice]));
    })
    .await;
}

#[tokio::test]
async fn bad_fields_are_refused_and_nothing_is_stored() {
    let good = person("Alice", "alice@example.com");
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body
    };
    let without = |field: &str| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(field);
        body
    };
    let mut bad = vec![without("name"), without("email")];
    for wrong in [json!(null), json!(1), json!(true), json!(["Alice"]), json!({ "a": 1 })] {
        bad.extend([with("name", wrong.clone()), with("email", wrong)]);
    }
    for name in [
        "",
        "A",
        "  ",
        " A ",
        "Al\0ice",
        "Al\nice",
        "\u{7f}\u{7f}\u{7f}",
        &"x".repeat(101),
        &"é".repeat(50_000),
    ] {
        bad.push(with("name", json!(name)));
    }
    let long = format!("{}@example.com", "x".repeat(243));
    for email in ["", "x", "alice.example.com", "a\0@x", "a@x\r\nBcc: all@x", &long, &"@".repeat(100_000)] {
        bad.push(with("email", json!(email)));
    }
    everywhere("bad_fields_are_refused_and_nothing_is_stored", async |users| {
        for body in &bad {
            let answer = users.post("/users", body).await;
            assert_eq!(answer.status, 400, "{body}: {}", answer.text);
            assert!(answer.error().len() < 300, "an answer is not as long as what was sent");
            leaks_nothing(&answer);
        }
        assert_eq!(users.get("/users").await.body, json!([]));
        // The twins that are just good enough, so that the list above fails for what it says.
        for (name, email) in
            [("Al", "@".to_owned()), (&"é".repeat(100), format!("{}@example.com", "x".repeat(242)))]
        {
            let made = users.post("/users", &person(name, &email)).await;
            assert_eq!(made.status, 201, "{}", made.text);
        }
    })
    .await;
}

#[tokio::test]
async fn odd_addresses_find_nobody() {
    everywhere("odd_addresses_find_nobody", async |users| {
        for id in ["%00", "a%00b", "%27%20or%201=1--", "..%2F..%2Fetc", "%F0%9F%92%A9", &"x".repeat(10_000)] {
            for method in [Method::GET, Method::PUT] {
                let answer = users.call(method, &format!("/users/{id}"), "{}").await;
                assert_eq!((answer.status, answer.error()), (404, "User not found"), "{id}");
            }
        }
        for path in ["/users/%FF", "/users/%C3%28"] {
            let answer = users.get(path).await;
            assert_eq!((answer.status, answer.error()), (400, "Malformed path"));
        }
        for path in ["/users/", "/users/a/b", "/"] {
            assert_eq!(users.get(path).await.status, 404, "{path}");
        }
        for (method, path) in
            [(Method::DELETE, "/users/a"), (Method::PATCH, "/users"), (Method::POST, "/users/a")]
        {
            let answer = users.call(method, path, "{}").await;
            assert_eq!((answer.status, answer.error()), (405, "Method not allowed"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_not_said_to_be_json_is_refused() {
    let users = start().await;
    let request = Request::post("/users")
        .header(&auth::SERVICE_TOKEN, users.context.tokens().send())
        .header(header::CONTENT_TYPE, "text/plain")
        .body(person("Alice", "alice@example.com").to_string().into())
        .unwrap();
    assert_eq!(users.send(request).await.status, 400);
    users.end().await;
}

/// Bodies and addresses by chance, the same in every run: whatever they are, the service is not at fault.
#[tokio::test]
async fn whatever_is_sent_is_no_error_of_the_service() {
    let users = start().await;
    let mut chance = Chance(42);
    for _ in 0..1_000 {
        let (method, path) = match chance.below(4) {
            0 => (Method::POST, "/users".to_owned()),
            1 => (Method::GET, format!("/users/{}", chance.escaped())),
            2 => (Method::PUT, format!("/users/{}", chance.escaped())),
            _ => (Method::GET, format!("/users?limit={}", chance.escaped())),
        };
        let body = chance.body(&["name", "email"]);
        let answer = users.call(method.clone(), &path, body.clone()).await;
        let fault = answer.status >= 500;
        assert!(!fault, "{method} {path} {}: {}", String::from_utf8_lossy(&body), answer.text);
    }
    users.end().await;
}
