//! A service leaves the monolith: the commands that lead requests, and users that take their data along.

use std::{
    process::{Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Json, Router, extract::RawQuery, routing::get};
use order_kit::{
    BoxError,
    env::{self, Env},
};
use order_system::{
    monolith::Monolith,
    remote::Remote,
    system::{Options, System},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::Command,
};

use crate::journeys::STAGE;

const SOON: Duration = Duration::from_secs(20);

/// The program with these arguments, until it ends.
async fn said(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output, BoxError> {
    let program = Command::new(env!("CARGO_BIN_EXE_order-system"))
        .args(arguments)
        .env(env::LOG, "off")
        .envs(variables.iter().copied())
        .kill_on_drop(true)
        .output();
    Ok(tokio::time::timeout(SOON, program).await??)
}

/// It must fail, and say why in one line.
async fn refused(arguments: &[&str], variables: &[(&str, &str)]) -> Result<String, BoxError> {
    let output = said(arguments, variables).await?;
    let why = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {why}");
    assert_eq!(why.lines().count(), 1, "{arguments:?}: {why}");
    Ok(why)
}

async fn users(remote: &Remote) -> Result<Value, BoxError> {
    let routes = remote.get("gateway", "/_routes").await?.expect(200)?.json();
    let users = routes.as_array().and_then(|routes| routes.iter().find(|it| it["service"] == "users"));
    let users = users.ok_or("no route of users")?;
    Ok(json!([users["to"], users["canaryPercent"], users["shadow"]]))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_led_by_commands_while_the_gateway_runs() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let (data, old) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let monolith = Monolith::start(0, old.path(), Env::empty()).await?;
    let options = Options::alone(data.path()).with(env::RATE_LIMIT, "off");
    let options = options.with(env::LEGACY_URL, monolith.url()).with(env::STRANGLE, "products");
    let system = System::start(options).await?;
    let mut remote = Remote::to(&system);
    remote.log_in("somebody").await?;
    let gateway = system.url("gateway");
    let at = [(env::GATEWAY_URL, gateway.as_str())];
    for (command, then) in [
        ("canary users 10%", json!(["legacy", 10, false])),
        ("shadow users", json!(["legacy", 10, true])),
        ("canary users 25", json!(["legacy", 25, true])),
        ("shadow users --off", json!(["legacy", 25, false])),
        ("strangle users", json!(["new", null, false])),
        ("shadow users", json!(["new", null, true])),
        ("rollback users", json!(["legacy", null, false])),
    ] {
        let output = said(&command.split(' ').collect::<Vec<_>>(), &at).await?;
        let printed = String::from_utf8(output.stdout)?;
        assert!(output.status.success(), "{command}");
        let line = printed.lines().nth(1).unwrap_or_default();
        let to = if then[0] == "new" { "service" } else { "monolith" };
        assert!(line.starts_with("users ") && line.contains(to), "{command}: {printed}");
        assert_eq!(users(&remote).await?, then, "{command}");
        let by = remote.get("gateway", "/api/users/nobody").await?;
        if then[1].is_null() {
            let side = if to == "service" { "users" } else { to };
            assert_eq!(by.header("x-served-by"), Some(side), "{command}");
        }
    }
    let routes = String::from_utf8(said(&["routes"], &at).await?.stdout)?;
    let goes_to = |service: &str| {
        let line = routes.lines().find(|line| line.starts_with(service)).unwrap_or_default();
        line.split_whitespace().nth(1).map(str::to_owned)
    };
    assert_eq!(
        (goes_to("users").as_deref(), goes_to("products").as_deref()),
        (Some("monolith"), Some("service")),
        "{routes}"
    );

    for (command, why) in [
        ("canary users 150%", "150%"),
        ("canary users ten", "ten"),
        ("canary nobody 10%", "`nobody`"),
        ("shadow user", "users"),
        ("strangle gateway", "`gateway`"),
        ("rollback ../users", "`../users`"),
    ] {
        let said = refused(&command.split(' ').collect::<Vec<_>>(), &at).await?;
        assert!(said.contains(why), "{command}: {said}");
    }
    assert_eq!(users(&remote).await?, json!(["legacy", null, false]), "nothing was changed");
    let stranger = [at[0], (env::INTERNAL_TOKEN, "another")];
    assert!(refused(&["rollback", "users"], &stranger).await?.contains(env::INTERNAL_TOKEN));
    let away = [(env::GATEWAY_URL, "http://127.0.0.1:9")];
    assert!(refused(&["routes"], &away).await?.contains("http://127.0.0.1:9 does not answer"));
    system.stop().await;
    monolith.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_monolith_has_leaves_none() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let mut options = Options::alone(data.path());
    options.parts = vec!["gateway"];
    let system = System::start(options).await?;
    let gateway = system.url("gateway");
    let why = refused(&["canary", "users", "10%"], &[(env::GATEWAY_URL, gateway.as_str())]).await?;
    assert!(why.contains(env::LEGACY_URL), "{why}");
    system.stop().await;

    let data = data.path().to_str().ok_or("no text")?;
    let serve = |service| ["serve", service, "--backfill", "--port-base", "0", "--data", data];
    let why = refused(&serve("users"), &[]).await?;
    assert!(why.contains("could not be taken in") && why.contains(env::LEGACY_URL), "{why}");
    assert!(refused(&serve("orders"), &[]).await?.contains("--backfill is for users"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monolith_does_not_take_what_is_for_those_who_leave_it() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let broker = format!("sqlite:{}", data.path().join("broker.db").display());
    let env = Env::empty().with(env::LEGACY_RABBITMQ_URL, &broker);
    let monolith = Monolith::start(0, data.path(), env).await?;
    let queues = order_broker::open(&broker).await?.topology().await?.queues;
    monolith.stop().await;
    assert!(!queues.is_empty() && queues.iter().all(|queue| queue.name != order_users::moving::queue().name));
    Ok(())
}

/// A monolith that answers the first page; the others when it is let.
struct Slow {
    url: String,
    /// What it was asked for.
    asked: Arc<Mutex<Vec<String>>>,
    goes_on: Arc<AtomicBool>,
}

async fn slow_monolith(count: i64) -> Result<Slow, BoxError> {
    let (asked, goes_on) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
    let (seen, free) = (asked.clone(), goes_on.clone());
    let page = async move |RawQuery(query): RawQuery| {
        let query = query.unwrap_or_default();
        let after: i64 = query.split(['=', '&']).nth(1).and_then(|it| it.parse().ok()).unwrap_or(-1);
        seen.lock().unwrap().push(query);
        if after > 0 && !free.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        let user = |n: i64| {
            json!({ "id": format!("u{n}"), "name": "Somebody", "email": format!("{n}@example.com"),
                    "createdAt": "2019-02-03T04:05:06.789Z", "revision": n })
        };
        let last = (after + 100).min(count);
        let users: Vec<_> = (after + 1..=last).map(user).collect();
        Json(json!({ "users": users, "next": (last < count).then_some(last) }))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(axum::serve(listener, Router::new().route("/_users", get(page))).into_future());
    Ok(Slow { url, asked, goes_on })
}

#[tokio::test(flavor = "multi_thread")]
async fn users_killed_while_they_are_filled_go_on_where_they_were() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let (data, old) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let Slow { url, asked, goes_on } = slow_monolith(230).await?;
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_order-system"))
            .args(["serve", "users", "--backfill", "--port-base", "0", "--data"])
            .arg(data.path())
            .env(env::LEGACY_URL, &url)
            .env(env::LEGACY_TOKEN, "for-legacy")
            .env(env::LEGACY_RABBITMQ_URL, format!("sqlite:{}", old.path().join("broker.db").display()))
            .env(env::LOG, "off")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    };
    let mut users = start()?;
    let end = tokio::time::Instant::now() + SOON;
    while asked.lock().unwrap().len() < 2 {
        assert!(tokio::time::Instant::now() < end, "the second page is asked for");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    users.kill().await?;
    goes_on.store(true, SeqCst);
    let mut users = start()?;
    let mut lines = BufReader::new(users.stdout.take().ok_or("no output")?).lines();
    let mut filled = None;
    while let Some(line) = tokio::time::timeout(SOON, lines.next_line()).await?? {
        if line.starts_with("backfilled:") {
            filled = Some(line);
            break;
        }
    }
    assert_eq!(filled.as_deref(), Some("backfilled: 130 taken in, 0 known already, 0 refused"));
    let asked = asked.lock().unwrap().clone();
    let after: Vec<_> = asked.iter().filter_map(|query| query.split(['=', '&']).nth(1)).collect();
    assert_eq!(after, ["0", "100", "100", "200"]);
    users.kill().await?;
    Ok(())
}
