//! What `order-system doctor` says of settings that are right and of some that are not.

use order_kit::env::{self, VARIABLES};
use order_system::system::{Options, System};
use tokio::process::Command;

use crate::journeys::STAGE;

#[tokio::test(flavor = "multi_thread")]
async fn doctor_lists_every_variable_and_asks_what_each_names() {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir().expect("a folder");
    let parts = vec!["gateway", "users"];
    let system = System::start(Options { parts, ..Options::alone(data.path()) }).await.expect("it starts");
    // A port that was free a moment ago, and is no longer listened on.
    let nobody =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let (users, nowhere) = (system.url("users"), format!("http://{nobody}"));
    let (_, grpc) = system.parts().find(|(name, _)| *name == "users.grpc").expect("it listens");
    let grpc = format!("http://{grpc}");
    let answers = [
        (env::GATEWAY_URL, system.url("gateway"), "ok", "gateway answers"),
        (env::USER_SERVICE_URL, users.clone(), "ok", "users answers"),
        (env::USER_GRPC_URL, grpc, "ok", "it accepts connections"),
        (env::PRODUCT_SERVICE_URL, users, "FAIL", "what answers there is users"),
        (env::ORDER_SERVICE_URL, nowhere.clone(), "FAIL", "Connection refused"),
        (env::ANALYTICS_SERVICE_URL, nowhere.clone(), "FAIL", "Connection refused"),
        (env::LEGACY_URL, nowhere, "FAIL", "Connection refused"),
        (env::RABBITMQ_URL, format!("amqp://guest:k3y@{nobody}/%2f"), "FAIL", "Connection refused"),
    ];
    let output = Command::new(env!("CARGO_BIN_EXE_order-system"))
        .args(["doctor", "--data"])
        .arg(data.path())
        .env_clear()
        .envs(answers.iter().map(|(name, value, ..)| (name, value)))
        .output()
        .await
        .expect("it runs");
    system.stop().await;
    assert!(!output.status.success(), "something is wrong");
    let said = String::from_utf8(output.stdout).expect("text") + &String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("k3y"), "{said}");
    for (name, _, verdict, what) in &answers {
        let verdicts = said.lines().filter(|line| line.starts_with("ok ") || line.starts_with("FAIL "));
        let about: Vec<&str> = verdicts.filter(|line| line.contains(&format!(" {name}: "))).collect();
        assert_eq!(about.len(), 1, "{name} in one line: {said}");
        assert!(about[0].starts_with(verdict) && about[0].contains(what), "{name}: {about:?}");
    }
    for variable in VARIABLES {
        let at = said.lines().position(|line| line.split_whitespace().next() == Some(variable.name));
        let at = at.unwrap_or_else(|| panic!("{} is not listed", variable.name));
        let mut lines = said.lines().skip(at);
        let (line, what) = (lines.next().expect("a line"), lines.next().expect("a second one"));
        let set = answers.iter().any(|(name, ..)| *name == variable.name);
        let source = match variable.default {
            _ if set => "set",
            "" => "-",
            _ => "default",
        };
        assert_eq!(line.split_whitespace().nth(1), Some(source), "{line}");
        let whole = format!("{line} {what}");
        assert!(whole.contains(variable.what) && whole.contains(variable.default), "{whole}");
    }
}
