//! The server around a service's routes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    routing::{get, post},
};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use order_kit::{
    ApiError, Json,
    auth::SERVICE_TOKEN,
    client::DEADLINE,
    env::{self, Env},
    health::Check,
    server::{Access, BODY_LIMIT, Door, router, serve_within},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};
use tower::ServiceExt;

use crate::support::{Dropped, Served, context, get as fetch, memory, service, until};

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Numbered {
    number: u32,
}

async fn app(access: Access, env: Env, checks: Vec<Check>) -> (order_kit::Context, Router) {
    let routes = Router::new()
        .route("/named", post(async |Json(named): Json<Named>| named.name))
        .route("/numbered/{n}", get(async |axum::extract::Path(n): axum::extract::Path<u32>| n.to_string()))
        .route(
            "/asked",
            get(async |axum::extract::Query(it): axum::extract::Query<Numbered>| it.number.to_string()),
        )
        .route(
            "/panics",
            get(async || {
                if true {
                    panic!("on purpose")
                }
            }),
        )
        .route("/breaks", get(async || ApiError::internal("select * from secrets at 10.0.0.1")))
        .route("/sleeps", get(async || tokio::time::sleep(Duration::from_secs(10)).await))
        .route(
            "/left",
            get(async || {
                let left = mainstay::deadline::remaining().map_or(0, |left| left.as_millis());
                left.to_string()
            }),
        );
    let context = context("users", env, memory().await);
    let router = router(&context, service(routes, checks), access);
    (context, router)
}

async fn ask(router: &Router, request: Request<Body>) -> (StatusCode, Value) {
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let said = serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body)));
    (status, said)
}

fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json")
}

async fn ask_for(router: &Router, method: &str, path: &str, body: &str) -> (u16, Value) {
    let (status, said) = ask(router, request(method, path).body(Body::from(body.to_owned())).unwrap()).await;
    (status.as_u16(), said)
}

#[tokio::test]
async fn whatever_is_refused_is_refused_in_json() {
    let (_, app) = app(Access::Everybody, Env::empty(), Vec::new()).await;
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(BODY_LIMIT));
    let cases = [
        ("GET", "/nowhere", "", 404, "No such route"),
        ("DELETE", "/named", "", 405, "Method not allowed"),
        ("POST", "/named", "{", 400, "Malformed JSON"),
        ("POST", "/named", "{}", 400, "missing field `name`"),
        ("POST", "/named", r#"{"name":1}"#, 400, "expected a string"),
        ("POST", "/named", &large, 413, "The body is too large"),
        ("GET", "/numbered/x", "", 400, "x"),
        ("GET", "/asked?number=x", "", 400, "number"),
        ("GET", "/_traces", "", 401, "A service token is needed"),
        ("GET", "/panics", "", 500, "Internal server error"),
        ("GET", "/breaks", "", 500, "Internal server error"),
    ];
    for (method, path, body, status, part) in cases {
        let (got, said) = ask_for(&app, method, path, body).await;
        let error = said["error"].as_str().unwrap_or_default();
        assert!(got == status && error.contains(part), "{method} {path}: {got} {said}");
        assert!(!error.contains("secrets"), "{said}");
    }
    assert_eq!(ask_for(&app, "POST", "/named", r#"{"name":"A","more":1}"#).await.0, 200);
    let untyped = Request::post("/named").body(Body::from("{}")).unwrap();
    assert_eq!(ask(&app, untyped).await.0, 400);
    let head = ask(&app, request("HEAD", "/numbered/x").body(Body::empty()).unwrap()).await;
    assert_eq!(head, (StatusCode::BAD_REQUEST, json!("")), "the answer to HEAD has no body");
}

#[tokio::test]
async fn routes_are_for_services_and_the_kits_own_for_operators() {
    let (_, app) = app(Access::Services, Env::empty().with(env::INTERNAL_TOKEN, "new,old"), Vec::new()).await;
    let with = async |path: &str, token: Option<&str>| {
        let request =
            token.into_iter().fold(request("GET", path), |it, token| it.header(&SERVICE_TOKEN, token));
        ask(&app, request.body(Body::empty()).unwrap()).await.0.as_u16()
    };
    let traces = ["/_traces?order.id=o1", "/_traces/0af7651916cd43dd8448eb211c80319c"];
    for path in ["/numbered/1", "/_policies", "/_faults"].into_iter().chain(traces) {
        let answers = [
            with(path, None).await,
            with(path, Some("wrong")).await,
            with(path, Some("old")).await,
            with(path, Some("new")).await,
        ];
        assert_eq!(answers, [401, 401, 200, 200], "{path}");
    }
    for path in ["/health", "/health/live", "/health/ready", "/ready", "/openapi.json"] {
        assert_eq!(with(path, None).await, 200, "{path}");
    }
}

#[tokio::test]
async fn a_service_that_is_being_built_lives_is_not_ready_and_does_nothing() {
    let (context, built) = app(Access::Everybody, Env::empty(), Vec::new()).await;
    let door = Door::new(&context);
    let served = door.router();
    context.wait_for("its database");
    for path in ["/health/ready", "/ready"] {
        let (status, said) = ask_for(&served, "GET", path, "").await;
        assert_eq!((status, &said["status"], &said["service"]), (503, &json!("unhealthy"), &json!("users")));
        let waits = json!({ "starting": { "status": "fail", "error": "it waits for its database" } });
        assert_eq!(said["checks"], waits);
    }
    for path in ["/health", "/health/live"] {
        let (status, said) = ask_for(&served, "GET", path, "").await;
        assert_eq!((status, &said["status"], &said["service"]), (200, &json!("ok"), &json!("users")));
    }
    for (method, path) in
        [("GET", "/numbered/1"), ("POST", "/named"), ("GET", "/_policies"), ("GET", "/openapi.json")]
    {
        let response =
            served.clone().oneshot(request(method, path).body(Body::empty()).unwrap()).await.unwrap();
        let header = |name: &str| response.headers().get(name).and_then(|it| it.to_str().ok());
        let said = (response.status().as_u16(), header("retry-after"), header("x-starting"));
        assert_eq!(said, (503, Some("1"), Some("1")), "{method} {path}");
    }
    door.open(built);
    assert_eq!(ask_for(&served, "GET", "/numbered/1", "").await, (200, json!(1)));
    assert_eq!(ask_for(&served, "GET", "/health/ready", "").await.0, 200);
    assert_eq!(ask_for(&served, "GET", "/nowhere", "").await.0, 404);
}

fn check(required: bool, answer: Result<(), &'static str>) -> Check {
    let ask = move || std::future::ready(answer.map_err(str::to_owned));
    if required { Check::required("database", ask) } else { Check::optional("userService", ask) }
}

#[tokio::test]
async fn a_service_lives_while_what_it_needs_is_away() {
    let away = Err("away");
    for (checks, env, ready, status) in [
        (vec![check(true, Ok(())), check(false, Ok(()))], Env::empty(), 200, "ok"),
        (vec![check(true, Ok(())), check(false, away)], Env::empty(), 200, "degraded"),
        (vec![check(false, away)], Env::empty().with(env::READY_DEGRADED_STATUS, "503"), 503, "degraded"),
        (vec![check(true, away), check(false, away)], Env::empty(), 503, "unhealthy"),
        (vec![check(false, away), check(true, away)], Env::empty(), 503, "unhealthy"),
    ] {
        let (context, app) = app(Access::Services, env, checks).await;
        let (got, said) = ask_for(&app, "GET", "/health/ready", "").await;
        assert_eq!((got, &said["status"], &said["service"]), (ready, &json!(status), &json!("users")));
        assert_eq!(ask_for(&app, "GET", "/ready", "").await.0, ready);
        let (live, said) = ask_for(&app, "GET", "/health", "").await;
        assert_eq!((live, &said["status"]), (200, &json!("ok")));
        context.stop().cancel();
        assert_eq!(ask_for(&app, "GET", "/ready", "").await.0, 503, "it is about to end");
        assert_eq!(ask_for(&app, "GET", "/health", "").await.0, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_works_longer_than_the_caller_waits() {
    let (_, app) = app(Access::Everybody, Env::empty(), Vec::new()).await;
    let within = async |path: &str, ms: Option<&str>| {
        let began = tokio::time::Instant::now();
        let request = ms.into_iter().fold(request("GET", path), |it, ms| it.header(&DEADLINE, ms));
        let (status, said) = ask(&app, request.body(Body::empty()).unwrap()).await;
        (status.as_u16(), began.elapsed().as_millis(), said)
    };
    let (status, took, said) = within("/sleeps", Some("50")).await;
    assert_eq!((status, said), (504, json!({ "error": "Not done in time" })));
    assert!((50..=51).contains(&took), "{took}");
    let (status, took, _) = within("/sleeps", None).await;
    assert!(status == 200 && (10_000..=10_001).contains(&took), "{status} {took}");
    assert_eq!(within("/sleeps", Some("0")).await.0, 504);
    assert_eq!(within("/left", Some("250")).await.2, json!(250));
    assert_eq!(
        within("/left", Some("99999999")).await.2,
        json!(30_000),
        "and no longer than the server does"
    );
    assert_eq!(within("/left", Some("soon")).await.2, json!(30_000));
}

#[tokio::test(start_paused = true)]
async fn faults_are_switched_on_and_off() {
    let (context, app) = app(Access::Everybody, Env::empty(), Vec::new()).await;
    let faults = async |method: &str, body: &str| {
        let request = request(method, "/_faults").header(&SERVICE_TOKEN, "internal-dev-token");
        ask(&app, request.body(Body::from(body.to_owned())).unwrap()).await
    };
    let statuses = async |n: usize| {
        let mut statuses = Vec::new();
        for _ in 0..n {
            statuses.push(ask_for(&app, "GET", "/numbered/1", "").await.0);
        }
        statuses
    };
    let (status, said) = faults("PUT", r#"{"failPercent":50}"#).await;
    assert!(status == 200 && said["since"].is_string(), "{said}");
    assert_eq!(statuses(4).await, [200, 500, 200, 500]);
    assert_eq!(ask_for(&app, "GET", "/health", "").await.0, 200, "the kit's own routes have none");
    faults("PUT", r#"{"reject":true}"#).await;
    assert_eq!(statuses(1).await, [429]);
    faults("PUT", r#"{"hang":true}"#).await;
    let began = tokio::time::Instant::now();
    assert_eq!(statuses(1).await, [504]);
    assert_eq!(began.elapsed().as_secs(), 30, "until the server's limit");
    faults("DELETE", "").await;
    assert_eq!(statuses(2).await, [200, 200]);
    assert_eq!(faults("PUT", r#"{"failPercentage":50}"#).await.0, 400, "a fault that does not exist");
    faults("PUT", r#"{"hang":true}"#).await;
    context.stop().cancel();
    assert_eq!(statuses(1).await, [503], "nobody waits at the end for what never comes");
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let _ =
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut read)).await.expect("it is cut");
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn a_client_that_does_not_say_what_it_wants_is_cut() {
    let (context, app) = app(Access::Everybody, Env::empty(), Vec::new()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(serve_within(context.clone(), app, listener, Duration::from_millis(60)));
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /numbered/1 HTTP/1.1\r\nHost: h").await.unwrap();
    let mut quick = TcpStream::connect(address).await.unwrap();
    quick.write_all(b"GET /numbered/1 HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    assert!(read_to_end(&mut quick).await.starts_with("HTTP/1.1 200"));
    assert!(!read_to_end(&mut slow).await.contains("200"));
    read_to_end(&mut silent).await;
    context.stop().cancel();
    serving.await.unwrap();
}

/// More than the buffers between hold, so that whoever sends it is still at it when the answer is there.
#[tokio::test]
async fn whoever_still_sends_when_the_answer_is_there_sees_it() {
    let routes = Router::new().route("/named", post(async |Json(named): Json<Named>| named.name));
    let served = Served::open("users", Env::empty(), routes).await;
    let mut client = TcpStream::connect(served.address()).await.unwrap();
    let length = 15 * 1024 * 1024;
    let head = format!(
        "POST /named HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(&vec![b' '; length]).await.expect("all of it is taken");
    // On the same connection, which is as good as new.
    client.write_all(b"GET /health HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    let answers = read_to_end(&mut client).await;
    assert!(answers.starts_with("HTTP/1.1 413") && answers.contains("HTTP/1.1 200"), "{answers}");
}

#[tokio::test]
async fn at_the_end_what_is_in_flight_is_finished_and_what_is_idle_holds_up_nobody() {
    let env = Env::empty().with(env::SHUTDOWN_DELAY_MS, "150");
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, waits) = (begun.clone(), go_on.clone());
    let slow = move || {
        let (told, waits) = (told.clone(), waits.clone());
        async move {
            told.notify_one();
            waits.notified().await;
        }
    };
    let routes = Router::new().route("/slow", get(slow));
    let served = Served::open("users", env, routes).await;
    // Idle: one that has been used and is kept, and one that never was.
    let mut idle = TcpStream::connect(served.address()).await.unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let mut some = [0; 8];
    idle.read_exact(&mut some).await.unwrap();
    let _unused = TcpStream::connect(served.address()).await.unwrap();
    let url = format!("{}/slow", served.url);
    let in_flight = tokio::spawn(async move { fetch(&url).await.0 });
    begun.notified().await;
    assert_eq!(fetch(&format!("{}/ready", served.url)).await.0, 200);
    served.context.stop().cancel();
    let began = Instant::now();
    let (ready, said) = fetch(&format!("{}/ready", served.url)).await;
    assert_eq!((ready.as_u16(), &said["status"]), (503, &json!("unhealthy")), "said before the door is shut");
    assert_eq!(fetch(&format!("{}/health", served.url)).await.0, 200);
    until("the door is shut", async || TcpStream::connect(served.address()).await.is_err()).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(150), "{took:?}");
    assert!(!in_flight.is_finished());
    go_on.notify_one();
    assert_eq!(in_flight.await.unwrap(), 200);
    served.serving.await.unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "what is idle is not waited for: {took:?}");
}

#[tokio::test]
async fn what_takes_longer_than_the_grace_is_cut() {
    let env = Env::empty().with(env::SHUTDOWN_GRACE_MS, "60");
    let (dropped, begun) = (Dropped::default(), Arc::new(Notify::new()));
    let (held, told) = (dropped.clone(), begun.clone());
    let forever = move || {
        let (guard, told) = (held.guard(), told.clone());
        async move {
            told.notify_one();
            std::future::pending::<()>().await;
            drop(guard);
        }
    };
    let served = Served::open("users", env, Router::new().route("/forever", get(forever))).await;
    let mut stream = TcpStream::connect(served.address()).await.unwrap();
    stream.write_all(b"GET /forever HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    begun.notified().await;
    served.context.stop().cancel();
    let began = Instant::now();
    served.serving.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    dropped.wait().await;
    assert_eq!(read_to_end(&mut stream).await, "");
}
