use std::collections::BTreeSet;

use futures::future::join_all;
use http::{Method, Request};
use order_kit::env::Env;
use serde_json::{Value, json};

use crate::{
    everywhere,
    hostile::{Proxy, leaks_nothing},
    person,
    service::{Bench, Place, described},
    start,
};

#[tokio::test]
async fn a_user_is_made_read_and_changed() {
    everywhere("a_user_is_made_read_and_changed", async |users| {
        let made = users.post("/users", &person("Alice", "alice@example.com")).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let alice = made.body;
        let fields: BTreeSet<_> = alice.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, BTreeSet::from(["createdAt", "email", "id", "name"]));
        assert_eq!((&alice["name"], &alice["email"]), (&json!("Alice"), &json!("alice@example.com")));
        let path = format!("/users/{}", alice["id"].as_str().unwrap());
        assert_eq!(users.get(&path).await.body, alice);

        let changed = users.put(&path, &json!({ "name": "Alice Smith", "age": 7 })).await;
        assert_eq!(changed.status, 200);
        let mut expected = alice.clone();
        expected["name"] = json!("Alice Smith");
        assert_eq!((changed.body, users.get(&path).await.body), (expected.clone(), expected.clone()));
        let same = users.put(&path, &json!({})).await;
        assert_eq!((same.status, same.body), (200, expected));
    })
    .await;
}

#[tokio::test]
async fn what_is_no_user_is_refused_with_the_documented_words() {
    everywhere("what_is_no_user_is_refused_with_the_documented_words", async |users| {
        let refused = users.post("/users", &person("A", "x")).await;
        assert_eq!((refused.status, refused.error()), (400, "Invalid email"));
        let refused = users.post("/users", &person("A", "a@x")).await;
        assert_eq!((refused.status, refused.error()), (400, "Invalid name"));
        for method in [Method::GET, Method::PUT] {
            let unknown = users.call(method, "/users/nobody", "{}").await;
            assert_eq!((unknown.status, unknown.error()), (404, "User not found"));
        }
        assert_eq!(users.get("/users").await.body, json!([]));
    })
    .await;
}

#[tokio::test]
async fn no_two_users_have_the_same_address_however_it_is_written() {
    everywhere("no_two_users_have_the_same_address_however_it_is_written", async |users| {
        let alice = users.post("/users", &person("Alice", "alice@example.com")).await.body;
        let taken = users.post("/users", &person("Alicia", "Alice@Example.com")).await;
        assert_eq!((taken.status, taken.error()), (409, "Email already exists"));
        let bob = users.post("/users", &person("Bob", "bob@example.com")).await.body;
        let path = format!("/users/{}", bob["id"].as_str().unwrap());
        let taken = users.put(&path, &json!({ "email": "alice@example.com", "name": "Alice" })).await;
        assert_eq!((taken.status, taken.error()), (409, "Email already exists"));
        assert_eq!(users.get(&path).await.body, bob, "nothing of a refused change is kept");
        let own = format!("/users/{}", alice["id"].as_str().unwrap());
        let upper = users.put(&own, &json!({ "email": "ALICE@example.com" })).await;
        assert_eq!(upper.status, 200, "one's own address is not taken");
    })
    .await;
}

#[tokio::test]
async fn of_many_who_ask_for_one_address_at_once_one_gets_it() {
    everywhere("of_many_who_ask_for_one_address_at_once_one_gets_it", async |users| {
        let asked = (0..20).map(|n| {
            let body = person(&format!("Alice {n}"), "alice@example.com");
            async move { users.post("/users", &body).await.status }
        });
        let mut answers = join_all(asked).await;
        answers.sort_unstable();
        assert_eq!(answers, [vec![201], vec![409; 19]].concat());
        assert_eq!(users.get("/users").await.body.as_array().unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn the_newest_are_listed_first_and_no_more_than_asked_for() {
    everywhere("the_newest_are_listed_first_and_no_more_than_asked_for", async |users| {
        for n in 0..5 {
            users.post("/users", &person(&format!("User {n}"), &format!("{n}@example.com"))).await;
        }
        let names = |list: Value| -> Vec<String> {
            list.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(users.get("/users?limit=2").await.body), ["User 4", "User 3"]);
        assert_eq!(names(users.get("/users").await.body).len(), 5);
        assert_eq!(names(users.get("/users?limit=0").await.body).len(), 0);
        assert_eq!(names(users.get("/users?limit=4294967295").await.body).len(), 5);
        for bad in ["limit=-1", "limit=many", "limit=", "limit=4294967296", "limit=1&limit=2"] {
            let refused = users.get(&format!("/users?{bad}")).await;
            assert_eq!(refused.status, 400, "{bad}");
            assert_eq!(refused.error(), "Malformed query");
        }
    })
    .await;
}

#[tokio::test]
async fn one_is_found_by_the_address_however_it_is_written() {
    everywhere("one_is_found_by_the_address_however_it_is_written", async |users| {
        let alice = users.post("/users", &person("Alice", "Alice+x@example.com")).await.body;
        users.post("/users", &person("Bob", "bob@example.com")).await;
        let found = async |email: &str| users.get(&format!("/users?email={email}")).await.body;
        assert_eq!(found("alice%2BX@example.com").await, json!([alice]));
        assert_eq!(found("alice@example.com").await, json!([]));
        assert_eq!(found("").await, json!([]));
    })
    .await;
}

#[tokio::test]
async fn a_user_is_shown_to_that_user_to_services_and_to_who_works_here() {
    let users = start().await;
    let alice = users.post("/users", &person("Alice", "alice@example.com")).await.body;
    let id = alice["id"].as_str().unwrap();
    let who = |user: &'static str, roles: &'static str| vec![("x-user-id", user), ("x-roles", roles)];
    for (headers, status) in [
        (vec![], 200),
        (vec![("x-user-id", id)], 200),
        (who("bob", ""), 404),
        (who("bob", "administrator,clerk"), 404),
        (who("bob", "clerk,admin"), 200),
        (who("shop", "service"), 200),
    ] {
        let mut request = Request::get(format!("/users/{id}"));
        for (name, value) in headers.iter().chain(&[("x-service-token", users.context.tokens().send())]) {
            request = request.header(*name, *value);
        }
        let answer = users.send(request.body(axum::body::Body::empty()).unwrap()).await;
        assert_eq!(answer.status, status, "{headers:?}");
        assert_eq!(answer.status == 200, answer.body == alice);
        assert!(answer.status == 200 || answer.error() == "User not found", "as if there were none");
    }
    users.end().await;
}

/// Every answer that the description promises is seen, and no other.
#[tokio::test]
async fn the_description_says_what_the_routes_do() {
    let users = start().await;
    let mut seen = BTreeSet::new();
    let mut ask = async |method: Method, route: &str, path: &str, body: String| {
        let answer = users.call(method.clone(), path, body).await;
        seen.insert(format!("{method} {route} {}", answer.status));
        answer
    };
    let alice = person("Alice", "alice@example.com").to_string();
    let made = ask(Method::POST, "/users", "/users", alice.clone()).await.body;
    let one = format!("/users/{}", made["id"].as_str().unwrap());
    ask(Method::POST, "/users", "/users", alice.clone()).await;
    ask(Method::POST, "/users", "/users", "{".to_owned()).await;
    ask(Method::POST, "/users", "/users", " ".repeat(300 * 1024)).await;
    ask(Method::GET, "/users", "/users", String::new()).await;
    ask(Method::GET, "/users", "/users?limit=x", String::new()).await;
    ask(Method::GET, "/users/{id}", &one, String::new()).await;
    ask(Method::GET, "/users/{id}", "/users/nobody", String::new()).await;
    ask(Method::GET, "/users/{id}", "/users/%FF", String::new()).await;
    ask(Method::PUT, "/users/{id}", &one, "{}".to_owned()).await;
    ask(Method::PUT, "/users/{id}", &one, "{\"email\":\"x\"}".to_owned()).await;
    ask(Method::PUT, "/users/{id}", "/users/nobody", "{}".to_owned()).await;
    ask(Method::PUT, "/users/{id}", &one, " ".repeat(300 * 1024)).await;
    ask(Method::POST, "/users", "/users", person("Bob", "bob@example.com").to_string()).await;
    ask(Method::PUT, "/users/{id}", &one, "{\"email\":\"bob@example.com\"}".to_owned()).await;
    ask(Method::GET, "/_users", "/_users", String::new()).await;
    ask(Method::GET, "/_users", "/_users?after=x", String::new()).await;
    let request = Request::get("/_users").body(axum::body::Body::empty()).unwrap();
    seen.insert(format!("GET /_users {}", users.send(request).await.status));
    let api = users.get("/openapi.json").await.body;
    assert_eq!(seen, described(&api));
    assert_eq!(api["paths"]["/users"]["get"]["parameters"][0]["in"], json!("query"));
    users.end().await;
}

#[tokio::test]
async fn whoever_shows_no_token_learns_nothing() {
    let users = start().await;
    let request = Request::get("/users/nobody").body(axum::body::Body::empty()).unwrap();
    assert_eq!(users.send(request).await.status, 401);
    users.end().await;
}

#[tokio::test]
async fn readiness_names_the_database_and_the_queue() {
    let users = start().await;
    let ready = users.get("/health/ready").await;
    assert_eq!(ready.status, 200);
    let checks = ready.body["checks"].clone();
    assert_eq!(checks, json!({ "database": { "status": "ok" }, "messageQueue": { "status": "ok" } }));
    users.end().await;
}

/// The text of SQLite's error holds the statement; the answer must not.
#[tokio::test]
async fn a_broken_database_is_an_error_that_tells_nothing() {
    let users = start().await;
    let file = users.data.path().join("users.db");
    rusqlite::Connection::open(file).unwrap().execute_batch("drop table users").unwrap();
    let body = person("Alice", "alice@example.com");
    for answer in [
        users.get("/users/nobody").await,
        users.get("/users").await,
        users.post("/users", &body).await,
        users.put("/users/nobody", &body).await,
    ] {
        assert_eq!(answer.status, 500);
        assert_eq!(answer.error(), "Internal server error");
        leaks_nothing(&answer);
    }
    users.end().await;
}

/// Behind a proxy, so that it can go away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_has_gone_is_unavailable_and_comes_back() {
    let test = "a_database_that_has_gone_is_unavailable_and_comes_back";
    let Some(Place::Postgres { url, prefix }) = Place::postgres(test) else { return };
    let proxy = Proxy::to_url(&url).await;
    let place = Place::Postgres { url: proxy.url(&url), prefix };
    let users = Bench::start(place, order_users::NAME, Env::empty(), order_users::build).await;
    let body = person("Alice", "alice@example.com");
    assert_eq!(users.post("/users", &body).await.status, 201);
    proxy.cut();
    for answer in [users.get("/users/nobody").await, users.post("/users", &body).await] {
        assert_eq!((answer.status, answer.error()), (503, "Service unavailable"));
        assert!(answer.header("retry-after").is_some());
        leaks_nothing(&answer);
    }
    let ready = users.get("/health/ready").await;
    assert_eq!(ready.status, 503);
    leaks_nothing_but_names(&ready.text);
    assert_eq!(users.get("/health").await.status, 200, "the process lives");
    proxy.mend();
    assert_eq!(users.post("/users", &body).await.status, 409, "what was there is there");
    users.end().await;
}

fn leaks_nothing_but_names(text: &str) {
    assert!(!text.contains("127.0.0.1") && !text.contains("postgres"), "{text}");
}
