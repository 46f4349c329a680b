//! A service is added to a system that runs, and nobody else knows of it.

use std::{process::Stdio, time::Duration};

use order_kit::env;
use order_system::{
    remote::{Answer, Remote},
    seed::{Seed, seed},
    system::{Options, System},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

const SOON: Duration = Duration::from_secs(20);

/// `order-system serve loyalty`, as a process of its own.
struct Loyalty {
    process: Child,
    said: Lines<BufReader<ChildStdout>>,
    remote: Remote,
}

impl Loyalty {
    async fn start(system: &System, arguments: &[&str]) -> Self {
        let options = system.options();
        let mut process = Command::new(env!("CARGO_BIN_EXE_order-system"))
            .args(["serve", "loyalty", "--port-base", "0", "--data"])
            .arg(&options.data)
            .args(arguments)
            .env(env::GATEWAY_URL, system.url("gateway"))
            .env(env::ORDER_SERVICE_URL, system.url("orders"))
            .env(env::LOG, "off")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("it starts");
        let mut said = BufReader::new(process.stdout.take().expect("what it says")).lines();
        let line = said.next_line().await.expect("a line").expect("where it listens");
        let url = line.strip_prefix("loyalty ").expect("where it listens").to_owned();
        let remote = Remote::of([("loyalty".to_owned(), url)].into(), &options.env);
        Loyalty { process, said, remote }
    }

    /// Waits until so many orders are counted, and gives all that it counts.
    async fn counted(&self, orders: u64) -> Value {
        let there = |answer: &Answer| answer.json()["orders"] == orders;
        self.remote.until(SOON, "loyalty", "/counters", there).await.expect("they are counted").json()
    }
}

/// Orders a teapot of 24.90 and waits until it is paid for.
async fn order(remote: &Remote, seed: &Seed) {
    let body =
        json!({ "userId": seed.users[0].1, "items": [{ "productId": seed.products[0].1, "quantity": 1 }] });
    let taken = remote.post("orders", "/orders", body).await.unwrap().expect(202).unwrap();
    let path = format!("/orders/{}", taken.json()["id"].as_str().unwrap());
    remote.until(SOON, "orders", &path, |answer| answer.json()["status"] == "confirmed").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_later_hears_what_comes_then_and_with_replay_what_was() {
    let _stage = crate::journeys::STAGE.lock().await;
    let data = tempfile::tempdir().unwrap();
    let system = System::start(Options::alone(data.path()).with(env::RATE_LIMIT, "off")).await.unwrap();
    let remote = Remote::to(&system);
    let seed = seed(&remote).await.unwrap();
    order(&remote, &seed).await;
    order(&remote, &seed).await;

    let mut from_now_on = Loyalty::start(&system, &[]).await;
    order(&remote, &seed).await;
    assert_eq!(from_now_on.counted(1).await, json!({ "points": 24, "orders": 1 }));
    // Its queue is there while it is not.
    from_now_on.process.kill().await.unwrap();
    order(&remote, &seed).await;

    let mut from_the_start = Loyalty::start(&system, &["--replay"]).await;
    let said = from_the_start.said.next_line().await.unwrap().unwrap();
    assert_eq!(from_the_start.counted(4).await, json!({ "points": 96, "orders": 4 }));
    // The one that came by the queue meanwhile may have been counted by either.
    assert!(
        said.starts_with("replayed: 2 counted, 2 known already,")
            || said.starts_with("replayed: 3 counted, 1 known already,"),
        "{said}"
    );
    system.stop().await;
}
