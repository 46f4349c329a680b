//! What `order-system top` shows of a system in trouble.

use std::time::{Duration, Instant};

use order_broker::Message;
use order_kit::{context::known, env};
use order_system::{
    remote::Remote,
    seed::seed,
    services,
    system::{Options, System},
};
use serde_json::json;
use tokio::{net::TcpListener, process::Command};

const SOON: Duration = Duration::from_secs(30);

/// A frame, as the program prints it into a pipe, and how long that took.
async fn frame(urls: &[(&str, String)]) -> (String, Duration) {
    let began = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_order-system"))
        .args(["top", "--once"])
        .envs(urls.iter().map(|(variable, url)| (*variable, url)))
        .output()
        .await
        .expect("it runs");
    assert!(output.status.success(), "{output:?}");
    (String::from_utf8(output.stdout).expect("text"), began.elapsed())
}

fn has(frame: &str, wanted: &[&str]) -> bool {
    frame.lines().any(|line| {
        let mut cells = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
        wanted.iter().all(|wanted| cells.next().is_some_and(|cell| cell.starts_with(wanted)))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn one_look_shows_what_is_broken() {
    let _stage = crate::journeys::STAGE.lock().await;
    let data = tempfile::tempdir().unwrap();
    let mut system = System::start(Options::alone(data.path())).await.unwrap();
    let mut remote = Remote::to(&system);
    let seed = seed(&remote).await.unwrap();
    remote.log_in(&seed.users[0].1).await.unwrap();

    // Somebody who takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = |name: &'static str| (known(name).unwrap().variable, system.url(name));
    let mut urls: Vec<_> = services::ALL.iter().copied().filter(|it| *it != "inventory").map(url).collect();
    urls.push((env::INVENTORY_SERVICE_URL, format!("http://{}", silent.local_addr().unwrap())));

    remote.put("payments", "/_faults", json!({ "failPercent": 100 })).await.unwrap().expect(200).unwrap();
    let body =
        json!({ "userId": seed.users[0].1, "items": [{ "productId": seed.products[0].1, "quantity": 1 }] });
    for _ in 0..6 {
        remote.post("gateway", "/api/orders", body.clone()).await.unwrap().expect(202).unwrap();
    }
    let unreadable = Message::new("order.created", "nobody", "no event");
    system.broker().publish(vec![unreadable]).await.remove(0).unwrap();
    system.stop_part("analytics").await;

    let wanted: [&[&str]; 8] = [
        &["gateway", "ok"],
        &["orders", "user", "closed", "0.0 %", "0/20", "0/1000"],
        &["! orders", "payment", "open"],
        &["! analytics", "no answer"],
        &["! inventory", "no answer"],
        &["! notifications", "notifications", "0", "1"],
        &["gateway", "plan-free[user", "-", "-", "-", "-", "-", "94/100"],
        &["sagas: 6 in flight, 0 need attention"],
    ];
    let end = Instant::now() + SOON;
    let (last, took) = loop {
        let (frame, took) = frame(&urls).await;
        if wanted.iter().all(|wanted| has(&frame, wanted)) || Instant::now() > end {
            break (frame, took);
        }
    };
    for wanted in wanted {
        assert!(has(&last, wanted), "no {wanted:?} in\n{last}");
    }
    assert!(!last.contains('\x1b'), "plain text");
    assert!(!has(&last, &["! users"]), "{last}");
    assert!(took < Duration::from_secs(10), "who is silent holds up nobody: {took:?}");
    system.stop().await;
}
