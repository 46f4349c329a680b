//! What whoever operates the system does: the commands, the start and the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, routing::post};
use order_broker::{Message, Topology};
use order_kit::{
    BoxError,
    env::{self, Env},
};
use order_system::{
    chaos, messages,
    monolith::Monolith,
    remote::{Answer, Remote},
    saga::{self, What},
    seed::seed,
    services,
    system::{Options, System, longest_end},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

use crate::{journeys::STAGE, shapes::servers};

const SOON: Duration = Duration::from_secs(20);

async fn system(data: &std::path::Path, variables: &[(&str, &str)]) -> Result<System, BoxError> {
    let options = Options::alone(data).with(env::RATE_LIMIT, "off").with(env::POLICY_FAST, "1");
    System::start(variables.iter().fold(options, |options, (name, value)| options.with(name, *value))).await
}

/// Orders one of the second product, at order-service itself.
async fn order(remote: &Remote, user: &str, product: &str) -> Result<String, BoxError> {
    let body = json!({ "userId": user, "items": [{ "productId": product, "quantity": 1 }] });
    let taken = remote.post("orders", "/orders", body).await?.expect(202)?.json();
    taken["id"].as_str().map(str::to_owned).ok_or_else(|| format!("no id in {taken}").into())
}

#[tokio::test(flavor = "multi_thread")]
async fn saga_lists_shows_and_retries_what_is_stuck() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let system = system(data.path(), &[]).await?;
    let remote = Remote::to(&system);
    let seed = seed(&remote).await?;
    let (user, product) = (&seed.users[1].1, &seed.products[1].1);
    remote
        .put("payments", &format!("/payments/cards/{user}"), json!({ "behaviour": "decline" }))
        .await?
        .expect(200)?;
    // The goods are reserved while the card waits, and cannot be released.
    remote.put("payments", "/_faults", json!({ "latencyMs": 600 })).await?.expect(200)?;
    let id = order(&remote, user, product).await?;
    let reserved = format!("/inventory/reservations/{id}");
    remote.until(SOON, "inventory", &reserved, |answer| answer.status == 200).await?;
    remote.put("inventory", "/_faults", json!({ "failPercent": 100 })).await?.expect(200)?;
    remote.until(SOON, "orders", "/orders/attention", |answer| answer.text.contains(&id)).await?;

    let list = saga::run(&What::List, &remote).await?;
    assert!(list.starts_with(&format!("{id}  stuck  ")) && list.ends_with("1 wait for a person\n"), "{list}");
    remote.call(http::Method::DELETE, "inventory", "/_faults", None).await?.expect(200)?;
    saga::run(&What::Retry { id: id.clone() }, &remote).await?;
    let over = |answer: &Answer| answer.json()["status"] == "cancelled";
    remote.until(SOON, "orders", &format!("/orders/{id}"), over).await?;
    let list = saga::run(&What::List, &remote).await?;
    assert_eq!(list, "0 wait for a person\n");

    let shown = saga::run(&What::Show { id: id.clone() }, &remote).await?;
    let timeline = remote.get("orders", &format!("/orders/{id}/timeline")).await?.expect(200)?.json();
    let counted = timeline["steps"].as_array().ok_or("no steps")?.iter();
    let counted: Vec<_> =
        counted.filter(|step| step["attempts"].is_u64() && step["step"].is_string()).collect();
    assert!(!counted.is_empty(), "{timeline}");
    for step in counted {
        let (name, attempts) = (step["step"].as_str().unwrap_or_default(), step["attempts"].to_string());
        let row = |line: &str| {
            let mut words = line.split_whitespace();
            words.next() == Some(name) && words.nth(1) == Some(&attempts)
        };
        assert!(shown.lines().any(row), "{name} {attempts} in {shown}");
    }
    for what in [What::Show { id: "nobody".to_owned() }, What::Retry { id: "nobody".to_owned() }] {
        assert!(
            saga::run(&what, &remote).await.is_err_and(|error| error.to_string().contains("404")),
            "{what:?}"
        );
    }
    // What chaos looks for in the end.
    assert_eq!(chaos::lost(&remote, &[id, "never-stored".to_owned()]).await?, ["never-stored"]);
    system.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_start_did_not_come_to_is_made_by_the_next() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let system = system(data.path(), &[]).await?;
    let remote = Remote::to(&system);
    let bob = json!({ "name": "Bob Brown", "email": "bob@example.com" });
    let bob = remote.post("users", "/users", bob).await?.expect(201)?.json();
    let cup = json!({ "name": "Cup", "price": "0.10" });
    let cup = remote.post("products", "/products", cup).await?.expect(201)?.json();
    let first = seed(&remote).await?;
    assert_eq!((first.users.len(), first.products.len()), (3, 3));
    assert_eq!((&json!(first.users[1].1), &json!(first.products[1].1)), (&bob["id"], &cup["id"]));
    for (_, product) in &first.products {
        remote.get("inventory", &format!("/inventory/{product}")).await?.expect(200)?;
    }
    // However much has come since.
    for number in 0..100 {
        let user = json!({ "name": "Somebody", "email": format!("{number}@example.com") });
        remote.post("users", "/users", user).await?.expect(201)?;
        remote
            .post("products", "/products", json!({ "name": "Thing", "price": "1.00" }))
            .await?
            .expect(201)?;
    }
    assert_eq!(seed(&remote).await?, first);
    system.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_queue_of_a_service_is_known_to_whoever_looks_for_it() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let mut declared = BTreeMap::new();
    for style in ["orchestrated", "choreography"] {
        let data = tempfile::tempdir()?;
        // Users make theirs in the broker of a monolith, which here is the same.
        let broker = format!("sqlite:{}", data.path().join("broker.db").display());
        let options = Options::alone(data.path()).with(env::SAGA_STYLE, style);
        let mut options = options.with(env::LEGACY_RABBITMQ_URL, broker);
        options.parts.push("loyalty");
        let system = System::start(options).await?;
        let queues = system.broker().topology().await?.queues;
        declared.extend(queues.into_iter().map(|queue| (queue.name.clone(), queue)));
        system.stop().await;
    }
    let known: BTreeMap<_, _> =
        services::topology().queues.into_iter().map(|queue| (queue.name.clone(), queue)).collect();
    assert_eq!(known, declared);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_others_are_found_and_put_back_with_servers() {
    let Some(servers) = servers("dead_letters_of_others_are_found_and_put_back_with_servers") else { return };
    let env = servers.variables.iter().fold(Env::empty(), |env, (name, value)| env.with(name, value.clone()));
    let seen = dead_letters(&env).await;
    servers.clean().await.expect("nothing is left");
    seen.expect("they are found");
}

async fn dead_letters(env: &Env) -> Result<(), BoxError> {
    let data = tempfile::tempdir()?;
    let analytics = order_notifications::analytics::queue();
    let (name, topic) = (analytics.name.clone(), analytics.bindings[0].clone());
    let theirs = order_broker::open(&env.get_or_default(env::RABBITMQ_URL)).await?;
    theirs.declare(&Topology::new(order_kit::events::EXCHANGE).queue(analytics)).await?;
    let message = |id: &str| Message {
        id: id.to_owned(),
        topic: topic.clone(),
        key: "order".to_owned(),
        body: "{}".to_owned(),
        headers: BTreeMap::new(),
    };
    for answer in theirs.publish(vec![message("one"), message("two")]).await {
        answer?;
    }
    let mut consumer = theirs.consume(&name, 1).await?;
    for _ in 0..2 {
        consumer.next().await?.reject("it cannot be read".to_owned()).await?;
    }
    drop(consumer);

    let ours = messages::open(env, data.path()).await?;
    let found: Vec<String> = ours.topology().await?.queues.into_iter().map(|queue| queue.name).collect();
    assert!(found.iter().eq([&name]), "what is not there is not made");
    messages::topology(&*ours).await?;
    let dead = ours.dead_letters(&name, 10).await?;
    let ids: BTreeSet<&str> = dead.iter().map(|letter| letter.message.id.as_str()).collect();
    assert_eq!(ids, ["one", "two"].into());
    assert_eq!(messages::settle(&*ours, &name, vec!["one".to_owned()], true).await?, 1);
    assert_eq!(messages::settle(&*ours, &name, Vec::new(), false).await?, 1);
    let mut consumer = theirs.consume(&name, 1).await?;
    let delivery = tokio::time::timeout(SOON, consumer.next()).await??;
    assert_eq!(delivery.message().id, "one");
    delivery.ack().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monolith_shows_the_policies_of_its_parts() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let monolith = Monolith::start(0, data.path(), Env::empty()).await?;
    let remote = Remote::of([("it".to_owned(), monolith.url())].into(), &Env::empty());
    let policies = remote.get("it", "/_policies").await?.expect(200)?.json();
    let policies = policies.as_array().ok_or("no list")?;
    let named = |it: &serde_json::Value| (it["policy"].to_string(), it["name"].to_string());
    let names: BTreeSet<_> = policies.iter().map(named).collect();
    assert_eq!(names.len(), policies.len(), "each has a name of its own: {names:?}");
    let metrics = remote.get("it", "/metrics").await?.expect(200)?.text;
    for policy in ["orders.user", "notifications.user", "orders.payment"] {
        let gauge = format!("policy_circuit_state{{service=\"monolith\",policy=\"{policy}\"}} 0");
        assert!(metrics.lines().any(|line| line == gauge), "{gauge} in {metrics}");
    }
    monolith.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_prints_where_an_order_stands_until_it_is_over() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let system = system(data.path(), &[]).await?;
    let remote = Remote::to(&system);
    let seed = seed(&remote).await?;
    let grpc = remote.url("orders.grpc").to_owned();
    let found = remote.get("gateway", "/discover/orders.grpc").await?.expect(200)?.json();
    assert!(grpc.ends_with(&format!(":{}", found[0]["port"])), "{grpc}: {found}");
    let watch = |id: &str| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_order-system"));
        let program = program.args(["watch", id]).env(env::ORDER_GRPC_URL, &grpc).kill_on_drop(true);
        program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    // It goes nowhere until it is watched.
    remote.put("inventory", "/_faults", json!({ "failPercent": 100 })).await?.expect(200)?;
    let id = order(&remote, &seed.users[0].1, &seed.products[0].1).await?;
    let mut watched = watch(&id)?;
    let mut said = BufReader::new(watched.stdout.take().ok_or("no output")?).lines();
    let mut line = async || tokio::time::timeout(SOON, said.next_line()).await.expect("in time");
    let first = line().await?.ok_or("nothing was said")?;
    assert!(first.contains("pending"), "{first}");
    remote.call(http::Method::DELETE, "inventory", "/_faults", None).await?.expect(200)?;
    let mut last = first;
    while let Some(next) = line().await? {
        last = next;
    }
    assert!(last.trim_end().ends_with("  confirmed"), "{last}");
    assert!(watched.wait().await?.success());
    let refused = watch("nothing")?.wait_with_output().await?;
    assert!(!refused.status.success());
    assert_eq!(String::from_utf8(refused.stderr)?, "order-system: Order not found\n");
    system.stop().await;
    Ok(())
}

/// The program, with the addresses in what it prints until that line, and that.
pub async fn program(
    arguments: &[&str],
    data: &std::path::Path,
    variables: &[(&str, &str)],
    until: &str,
) -> Result<(Child, Remote, Vec<String>), BoxError> {
    let (child, remote, said, _) = program_and_lines(arguments, data, variables, until).await?;
    Ok((child, remote, said))
}

/// The same with what it prints from then on.
pub async fn program_and_lines(
    arguments: &[&str],
    data: &std::path::Path,
    variables: &[(&str, &str)],
    until: &str,
) -> Result<(Child, Remote, Vec<String>, Arc<Mutex<Vec<String>>>), BoxError> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_order-system"))
        .args(arguments)
        .arg("--data")
        .arg(data)
        .envs(variables.iter().copied())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let (mut urls, mut said) = (BTreeMap::new(), Vec::new());
    while let Some(line) = tokio::time::timeout(SOON, lines.next_line()).await?? {
        if let Some((part, url)) = line.split_once("http://").filter(|_| !line.contains("curl")) {
            let url = url.split_whitespace().next().unwrap_or_default();
            urls.insert(part.trim().to_owned(), format!("http://{url}"));
        }
        let last = line.starts_with(until);
        said.push(line);
        if last {
            let later = Arc::new(Mutex::new(Vec::new()));
            let written = later.clone();
            tokio::spawn(async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    written.lock().unwrap().push(line);
                }
            });
            return Ok((child, Remote::of(urls, &Env::empty()), said, later));
        }
    }
    Err("it has ended".into())
}

pub async fn terminated(mut child: Child) -> Result<Option<i32>, BoxError> {
    let pid = child.id().ok_or("it has ended")?.to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().await?.success());
    Ok(tokio::time::timeout(Duration::from_secs(12), child.wait()).await??.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_ends_the_program_well_and_loses_no_order() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let quick = [(env::POLICY_FAST, "1")];
    let (child, remote, _) = program(&["up", "--port-base", "0"], data.path(), &quick, "ready after").await?;
    let ids = |list: Answer| list.json()[0]["id"].as_str().unwrap_or_default().to_owned();
    let user = ids(remote.get("users", "/users?limit=1").await?.expect(200)?);
    let product = ids(remote.get("products", "/products?limit=1").await?.expect(200)?);
    let taken = Arc::new(Mutex::new(Vec::new()));
    let customers: Vec<_> = (0..4)
        .map(|_| {
            let (remote, user, product, taken) =
                (remote.clone(), user.clone(), product.clone(), taken.clone());
            // Until nobody answers any more.
            tokio::spawn(async move {
                while let Ok(id) = order(&remote, &user, &product).await {
                    taken.lock().unwrap().push(id);
                }
            })
        })
        .collect();
    while taken.lock().unwrap().len() < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(terminated(child).await?, Some(0));
    for customer in customers {
        customer.await?;
    }
    let taken = taken.lock().unwrap().clone();
    let system = system(data.path(), &[]).await?;
    let lost = chaos::lost(&Remote::to(&system), &taken).await?;
    system.stop().await;
    assert!(lost.is_empty(), "of {} are lost: {lost:?}", taken.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_are_sent_before_the_program_ends() -> Result<(), BoxError> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let take =
        post(async move |body: Bytes| kept.lock().unwrap().push(String::from_utf8_lossy(&body).into_owned()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let collector = format!("http://{}", listener.local_addr()?);
    let serving = tokio::spawn(axum::serve(listener, Router::new().route("/v1/traces", take)).into_future());
    let data = tempfile::tempdir()?;
    let variables = [(env::OTEL_EXPORTER_OTLP_ENDPOINT, collector.as_str()), (env::TRACE_SAMPLE, "1")];
    let (child, remote, _) =
        program(&["serve", "users", "--port-base", "0"], data.path(), &variables, "users http").await?;
    remote.get("users", "/users/the-last-one").await?.expect(404)?;
    assert_eq!(terminated(child).await?, Some(0));
    serving.abort();
    let seen = seen.lock().unwrap();
    assert!(seen.iter().any(|spans| spans.contains("/users/the-last-one")), "{seen:?}");
    Ok(())
}

/// A request whose body does not come.
async fn unfinished(url: &str, request: &str) -> Result<TcpStream, BoxError> {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).await?;
    let token = env::declared(env::INTERNAL_TOKEN).ok_or("no token")?.default;
    let head = format!(
        "{request} HTTP/1.1\r\nhost: x\r\nx-service-token: {token}\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await?;
    Ok(stream)
}

/// One in each of the groups that end in turn.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_never_end_hold_up_the_program_for_one_grace() -> Result<(), BoxError> {
    const GRACE: Duration = Duration::from_secs(4);
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let grace = GRACE.as_millis().to_string();
    let variables = [(env::SHUTDOWN_GRACE_MS, grace.as_str())];
    let (child, remote, _) =
        program(&["up", "--port-base", "0"], data.path(), &variables, "ready after").await?;
    let mut waiting = Vec::new();
    for (part, request) in
        [("gateway", "POST /auth/token"), ("orders", "POST /orders"), ("users", "POST /users")]
    {
        waiting.push(unfinished(remote.url(part), request).await?);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    assert_eq!(terminated(child).await?, Some(0));
    let took = began.elapsed();
    assert!(took >= GRACE, "they are waited for: {took:?}");
    // It is 2 s more at most; the rest is for a machine that does other things. In turn they would take three graces.
    assert!(took < GRACE * 2, "{took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_never_ends_holds_up_nobody_for_long() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let variables = [(env::SHUTDOWN_GRACE_MS, "1000")];
    let system = system(data.path(), &variables).await?;
    for part in ["gateway", "orders", "users"] {
        system.context(part).spawn(std::future::pending());
    }
    let longest = longest_end(&system.options().env);
    assert_eq!(longest, Duration::from_secs(3));
    let began = Instant::now();
    system.stop().await;
    let took = began.elapsed();
    // The rest is for a machine that does other things.
    assert!(took < longest * 3, "{took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_do_not_ask_each_other_end_at_once() -> Result<(), BoxError> {
    const GRACE: Duration = Duration::from_secs(1);
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let system = system(data.path(), &[(env::SHUTDOWN_GRACE_MS, "1000")]).await?;
    // In each a request whose body does not come.
    let mut waiting = Vec::new();
    for (part, request) in [
        ("users", "POST /users"),
        ("products", "POST /products"),
        ("payments", "PUT /payments/cards/x"),
        ("inventory", "PUT /inventory/x"),
    ] {
        waiting.push(unfinished(&system.url(part), request).await?);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let began = Instant::now();
    system.stop().await;
    let took = began.elapsed();
    assert!(took >= GRACE, "each is waited for: {took:?}");
    assert!(took < GRACE * 3, "one after another they would take four graces: {took:?}");
    Ok(())
}
