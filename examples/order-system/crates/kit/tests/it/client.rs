//! The client against a server that does what a test wants, over real connections.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Path, State},
    response::IntoResponse,
    routing::{any, get},
};
use http::{HeaderMap, StatusCode};
use order_kit::{
    ApiError, Context,
    client::{CallError, Client, DEADLINE, Options},
    env::{self, Env},
    health::Check,
    resolve::Names,
    server::{Access, Door, router, serve},
};
use serde_json::json;

use crate::support::{Dropped, Served, context, memory, service};

#[derive(Clone, Default)]
struct Upstream {
    calls: Arc<AtomicU32>,
    cancelled: Dropped,
    deadlines: Arc<Mutex<Vec<u64>>>,
}

impl Upstream {
    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }
}

async fn answer(State(it): State<Upstream>, Path(code): Path<u16>, headers: HeaderMap) -> impl IntoResponse {
    it.calls.fetch_add(1, Ordering::SeqCst);
    let told: Option<u64> =
        headers.get(&DEADLINE).and_then(|ms| ms.to_str().ok()).and_then(|ms| ms.parse().ok());
    it.deadlines.lock().unwrap().extend(told);
    (StatusCode::from_u16(code).unwrap(), axum::Json(json!({ "error": "said" })))
}

async fn never(State(it): State<Upstream>) {
    it.calls.fetch_add(1, Ordering::SeqCst);
    let _guard = it.cancelled.guard();
    std::future::pending().await
}

fn routes(it: &Upstream) -> Router {
    Router::new().route("/answer/{code}", any(answer)).route("/never", any(never)).with_state(it.clone())
}

/// One that does not look at how much time its caller has: with the kit's server around it, either may be the first to say that it is over.
async fn upstream_without_a_clock() -> (Upstream, String) {
    let it = Upstream::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let routes = routes(&it);
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (it, url)
}

async fn upstream() -> (Upstream, Served) {
    let it = Upstream::default();
    let routes = routes(&it);
    // Of services alone, so that the client's token is needed.
    let context = context("users", Env::empty(), memory().await);
    (it, Served::start(context, service(routes, Vec::new()), Access::Services).await)
}

async fn caller(served: &Served, env: Env) -> Context {
    context("orders", env.with(env::USER_SERVICE_URL, format!("{}/", served.url)), memory().await)
}

async fn client(served: &Served, options: Options) -> Client {
    Client::new(&caller(served, Env::empty()).await, "user", options).unwrap()
}

#[tokio::test]
async fn a_thousand_unknown_users_open_nothing() {
    let (upstream, served) = upstream().await;
    let client = client(&served, Options::default()).await;
    for _ in 0..1_000 {
        let reply = client.get("/answer/404").await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.error().as_deref()), (404, Some("said")));
    }
    assert_eq!((upstream.calls(), client.is_open()), (1_000, false));
}

#[tokio::test]
async fn after_five_failures_nobody_is_asked() {
    let (upstream, served) = upstream().await;
    let client = client(&served, Options { attempts: 1, ..Options::default() }).await;
    for _ in 0..5 {
        let failed = client.get("/answer/500").await.unwrap_err();
        assert!(
            matches!(failed, CallError::Status { status, .. } if status == 500) && failed.may_have_happened()
        );
    }
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let began = Instant::now();
        let refused = client.get("/answer/200").await.unwrap_err();
        fastest = fastest.min(began.elapsed());
        assert!(matches!(refused, CallError::Refused(_)) && !refused.may_have_happened());
        assert!(refused.retry_after().is_some_and(|after| after > Duration::from_secs(25)), "{refused:?}");
        let answer = ApiError::from(refused);
        assert!(answer.status == 503 && answer.retry_after.is_some());
    }
    assert_eq!((upstream.calls(), client.is_open()), (5, true));
    assert!(fastest < Duration::from_millis(1), "{fastest:?}");
}

#[tokio::test]
async fn breakers_that_are_off_let_everything_through() {
    let (upstream, served) = upstream().await;
    let context = caller(&served, Env::empty().with(env::BREAKERS, "off")).await;
    let client = Client::new(&context, "user", Options { attempts: 1, ..Options::default() }).unwrap();
    for _ in 0..30 {
        client.get("/answer/500").await.unwrap_err();
    }
    assert_eq!(upstream.calls(), 30);
}

#[tokio::test]
async fn who_is_not_answered_in_time_is_told_in_time_and_the_other_side_hears_of_it() {
    let (upstream, url) = upstream_without_a_clock().await;
    let context = context("orders", Env::empty().with(env::USER_SERVICE_URL, url), memory().await);
    let options = Options { deadline: Duration::from_millis(200), ..Options::default() };
    let client = Client::new(&context, "user", options).unwrap();
    client.get("/answer/200").await.unwrap();
    let began = Instant::now();
    let late = client.get("/never").await.unwrap_err();
    let took = began.elapsed();
    assert!(matches!(late, CallError::Refused(_)) && late.may_have_happened(), "{late:?}");
    assert!(took >= Duration::from_millis(199) && took < Duration::from_millis(600), "{took:?}");
    upstream.cancelled.wait().await;
}

#[tokio::test]
async fn only_what_may_be_repeated_is() {
    let (upstream, served) = upstream().await;
    let client = client(&served, Options::default()).await;
    let asked = async |key: Option<&str>| {
        let before = upstream.calls();
        client.post("/answer/503", key, &json!({})).await.unwrap_err();
        upstream.calls() - before
    };
    assert_eq!(asked(None).await, 1);
    assert!(asked(Some("key-1")).await > 1);
    let before = upstream.calls();
    let declined = client.post("/answer/402", Some("key-2"), &json!({})).await.unwrap();
    assert_eq!((declined.status.as_u16(), upstream.calls() - before), (402, 1), "a word is a word");
}

#[tokio::test]
async fn a_service_that_fails_is_not_buried_under_repetitions() {
    let (upstream, served) = upstream().await;
    let context = caller(&served, Env::empty().with(env::BREAKERS, "off")).await;
    let client = Client::new(&context, "user", Options::default()).unwrap();
    for _ in 0..20 {
        let calls = (0..20).map(|_| client.get("/answer/500"));
        for answer in futures::future::join_all(calls).await {
            answer.unwrap_err();
        }
    }
    let per_call = f64::from(upstream.calls()) / 400.0;
    assert!((1.0..=1.2).contains(&per_call), "{per_call}");
}

#[tokio::test]
async fn whoever_asked_is_told_when_to_ask_again() {
    let busy = async || {
        (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "17")], axum::Json(json!({ "error": "said" })))
    };
    let dated = async || (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")]);
    let routes = Router::new().route("/busy", get(busy)).route("/dated", get(dated));
    let served = Served::open("users", Env::empty(), routes).await;
    let client = client(&served, Options { attempts: 1, ..Options::default() }).await;
    let told = async |path: &str| {
        let answer = ApiError::from(client.get(path).await.unwrap_err()).into_response();
        (answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap().to_owned())
    };
    assert_eq!(told("/busy").await, (503, "17".to_owned()), "as the service says");
    assert_eq!(told("/dated").await, (503, "1".to_owned()), "it names no seconds");
    served.context.stop().cancel();
    served.serving.await.unwrap();
    assert_eq!(told("/busy").await, (503, "1".to_owned()), "nobody is there to say it");
}

#[tokio::test]
async fn who_cannot_be_reached_has_seen_nothing() {
    let (_, served) = upstream().await;
    let client = client(&served, Options { attempts: 1, ..Options::default() }).await;
    served.context.stop().cancel();
    served.serving.await.unwrap();
    let away = client.post("/answer/200", None, &json!({})).await.unwrap_err();
    assert!(matches!(away, CallError::Connection { sent: false, .. }), "{away:?}");
    assert!(!away.may_have_happened());
}

#[tokio::test]
async fn the_time_that_is_left_shrinks_from_hop_to_hop() {
    let (upstream, served) = upstream().await;
    let caller = caller(&served, Env::empty()).await;
    let client = Client::new(&caller, "user", Options::default()).unwrap();
    let over = Dropped::default();
    let hop = {
        let (client, over) = (client.clone(), over.clone());
        async move |Path(ms): Path<u64>| {
            let _guard = over.guard();
            // The time that goes by is what this is about.
            tokio::time::sleep(Duration::from_millis(ms)).await;
            client
                .get("/answer/200")
                .await
                .map(|reply| reply.status.as_u16().to_string())
                .map_err(ApiError::from)
        }
    };
    let middle = service(Router::new().route("/hop/{ms}", get(hop)), Vec::new());
    let middle = Served::start(caller, middle, Access::Services).await;
    let outer = context("gateway", Env::empty().with(env::ORDER_SERVICE_URL, &middle.url), memory().await);
    let options = Options { deadline: Duration::from_millis(1_500), ..Options::default() };
    let outer = Client::new(&outer, "order", options).unwrap();
    outer.get("/hop/60").await.unwrap();
    over.wait().await;
    let told = *upstream.deadlines.lock().unwrap().last().unwrap();
    assert!((1..=1_440).contains(&told), "{told}");
    client.get("/answer/200").await.unwrap();
    let told = *upstream.deadlines.lock().unwrap().last().unwrap();
    assert!((4_500..=5_000).contains(&told), "{told}: a call that nobody waits for has its own time");

    // A budget that is spent before the hop: the last service is not asked at all.
    let before = upstream.calls();
    let options = Options { deadline: Duration::from_millis(200), ..Options::default() };
    let hurried = context("gateway", Env::empty().with(env::ORDER_SERVICE_URL, &middle.url), memory().await);
    Client::new(&hurried, "order", options).unwrap().get("/hop/400").await.unwrap_err();
    over.wait().await;
    assert_eq!(upstream.calls(), before);
}

/// A port that was free a moment ago, and on which nobody listens.
fn nobody() -> String {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("http://{port}")
}

#[tokio::test]
async fn a_service_that_is_only_starting_is_asked_again_and_not_left_alone() {
    let it = Upstream::default();
    let users = context("users", Env::empty(), memory().await);
    let door = Door::new(&users);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(serve(users.clone(), door.router(), listener));
    let orders = context("orders", Env::empty().with(env::USER_SERVICE_URL, url), memory().await);
    let client = Client::new(&orders, "user", Options { attempts: 1, ..Options::default() }).unwrap();
    for _ in 0..20 {
        let starting = client.get("/answer/200").await.unwrap_err();
        assert!(matches!(starting, CallError::Starting) && !starting.may_have_happened(), "{starting:?}");
        assert_eq!(starting.retry_after(), Some(Duration::from_secs(1)));
    }
    assert!(!client.is_open());
    assert_eq!(client.alive().await, Ok(()), "it lives");
    door.open(router(&users, service(routes(&it), Vec::new()), Access::Services));
    assert_eq!(client.get("/answer/200").await.unwrap().status, 200);
    assert_eq!(it.calls(), 1);
}

#[tokio::test]
async fn a_service_is_well_that_lives_and_whose_calls_do_not_fail() {
    let it = Upstream::default();
    let users = context("users", Env::empty(), memory().await);
    // Whoever asked whether it is ready would wait for what it needs itself.
    let needs = vec![Check::required("database", std::future::pending)];
    let served = Served::start(users, service(routes(&it), needs), Access::Services).await;
    let orders = context("orders", Env::empty().with(env::USER_SERVICE_URL, &served.url), memory().await);
    let client = Client::new(&orders, "user", Options { attempts: 1, ..Options::default() }).unwrap();
    let began = Instant::now();
    for _ in 0..10 {
        assert_eq!(client.alive().await, Ok(()));
    }
    assert!(began.elapsed() < Duration::from_secs(1), "no check is waited for: {:?}", began.elapsed());
    for _ in 0..5 {
        client.get("/answer/500").await.unwrap_err();
    }
    assert!(client.alive().await.unwrap_err().contains("left alone"));

    let away = context("orders", Env::empty().with(env::USER_SERVICE_URL, nobody()), memory().await);
    let away = Client::new(&away, "user", Options::default()).unwrap();
    for _ in 0..10 {
        assert_eq!(away.alive().await, Err("it does not answer".to_owned()), "without an address");
    }
    assert!(!away.is_open(), "what health checks see says nothing to the policies");
}

#[tokio::test]
async fn each_address_of_a_name_is_asked_in_its_turn() {
    let hosts = Arc::new(Mutex::new(Vec::new()));
    let seen = |address: &'static str| {
        let hosts = hosts.clone();
        Router::new().route(
            "/who",
            any(async move |headers: HeaderMap| {
                let host = headers[http::header::HOST].to_str().unwrap().to_owned();
                hosts.lock().unwrap().push((address, host));
            }),
        )
    };
    let first = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = first.local_addr().unwrap().port();
    let second = tokio::net::TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    for (listener, address) in [(first, "127.0.0.1"), (second, "127.0.0.2")] {
        let routes = seen(address);
        tokio::spawn(async move { axum::serve(listener, routes).await });
    }
    let names = Names::new(|host| {
        assert_eq!(host, "users.shop");
        std::future::ready(Ok(vec![[127, 0, 0, 1].into(), [127, 0, 0, 2].into()]))
    });
    let base = format!("users.shop:{port}");
    let env = Env::empty().with(env::USER_SERVICE_URL, format!("http://{base}/"));
    let context = context("orders", env, memory().await);
    let client = Client::with_names(&context, "user", Options::default(), names).unwrap();
    for _ in 0..4 {
        client.get("/who").await.unwrap();
    }
    let mut seen = hosts.lock().unwrap().clone();
    assert!(seen.iter().all(|(_, host)| *host == base), "{seen:?}");
    seen.sort();
    let addresses: Vec<&str> = seen.iter().map(|(address, _)| *address).collect();
    assert_eq!(addresses, ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]);
}
