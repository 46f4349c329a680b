//! How services start, and that each stands alone.

use std::time::Duration;

use order_kit::{
    Db,
    context::known,
    db::{DbError, Place},
    env::{self, Env},
};
use order_system::{
    processes,
    remote::{Answer, Remote},
    services,
    system::{Options, System},
};
use tokio::{process::Command, sync::oneshot, time::timeout};

use crate::{
    journeys::STAGE,
    operations::{program, terminated},
};

const SOON: Duration = Duration::from_secs(20);

/// Somebody else writes in the database, so that it cannot be brought up to date.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_answers_while_it_starts_and_does_nothing_before_it_is_ready() {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir().expect("a folder");
    let file = Place::Sqlite(data.path().join("users.db"));
    let blocker = Db::open(file, &[]).await.expect("a database");
    let ((begun, has_begun), (end, ended)) = (oneshot::channel(), oneshot::channel::<()>());
    let writing = tokio::spawn(async move {
        let work = async move |_: &order_kit::Tx<'_>| {
            let _ = begun.send(());
            let _ = ended.await;
            Ok::<_, DbError>(())
        };
        blocker.write(work).await
    });
    has_begun.await.expect("it writes");

    let port = processes::free_ports().expect("a port");
    let options = Options { parts: vec!["users"], ..Options::alone(data.path()) };
    let starting = tokio::spawn(System::start(options.with(env::PORT, port.to_string())));
    let at = |name: &str| (name.to_owned(), format!("http://127.0.0.1:{port}"));
    let remote = Remote::of([at("users")].into(), &Env::empty());
    let waits = |answer: &Answer| answer.json()["checks"]["starting"]["error"] == "it waits for its database";
    let ready = remote.until(SOON, "users", "/health/ready", waits).await.expect("it says what it waits for");
    assert_eq!((ready.status.as_u16(), &ready.json()["status"]), (503, &"unhealthy".into()));
    let lives = remote.get("users", "/health").await.expect("an answer");
    assert_eq!((lives.status.as_u16(), &lives.json()["service"]), (200, &"users".into()));
    let early = remote.get("users", "/users").await.expect("an answer");
    assert_eq!((early.status.as_u16(), early.header("retry-after")), (503, Some("1")), "{early:?}");
    assert!(!starting.is_finished(), "nobody says that it has started");

    end.send(()).expect("it waits");
    writing.await.expect("no panic").expect("it is written");
    let system = starting.await.expect("no panic").expect("it starts");
    let ready = remote.get("users", "/health/ready").await.expect("an answer");
    assert_eq!(ready.status, 200, "it is ready when the start has returned: {ready:?}");
    assert_eq!(remote.get("users", "/users").await.expect("an answer").status, 200);
    system.stop().await;
}

/// What a process has in memory, in KiB.
#[cfg(target_os = "linux")]
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a figure");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Also when it was built without optimizing, and while the machine does other things: ready within 2 s is for one that does not.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn everything_in_one_process_is_ready_soon_and_takes_little_memory() {
    const READY_MS: u64 = 30_000;
    const MEMORY_KIB: u64 = 150 * 1_024;
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir().expect("a folder");
    let (mut child, _, said) =
        program(&["up", "--port-base", "0"], data.path(), &[], "ready after").await.expect("it starts");
    let memory = resident(child.id().expect("a process"));
    let ready = said.last().and_then(|line| line.split(' ').nth(2)).and_then(|ms| ms.parse().ok());
    let ready: u64 = ready.unwrap_or_else(|| panic!("a time: {said:?}"));
    println!("ready after {ready} ms, with {} MiB", memory / 1_024);
    assert!(ready < READY_MS, "{ready} ms");
    assert!(memory < MEMORY_KIB, "{memory} KiB");
    child.kill().await.expect("it runs");
}

async fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().await;
    assert!(sent.expect("kill runs").success(), "{name}");
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_processes_name_themselves_and_one_that_stands_still_stops_no_other() {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir().expect("a folder");
    let base = processes::free_ports().expect("ports");
    let arguments = ["up", "--processes", "--port-base", &base.to_string()];
    let (child, remote, said) =
        program(&arguments, data.path(), &[], "ready after").await.expect("it starts");
    let mut pids = std::collections::BTreeMap::new();
    for part in services::ALL {
        let port = base + known(part).expect("a documented port").offset;
        assert_eq!(remote.url(part), format!("http://127.0.0.1:{port}"), "it is printed: {said:?}");
        let line = said.iter().find(|line| line.starts_with(part)).expect("a line");
        pids.insert(*part, line.rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect("a process"));
    }
    assert_eq!(said.iter().filter(|line| line.contains("http://")).count(), 8, "{said:?}");
    let names_itself = async |part: &str| {
        let answer = remote.get(part, "/health").await.expect("an answer");
        assert_eq!((answer.status.as_u16(), &answer.json()["service"]), (200, &part.into()), "{part}");
    };
    for part in services::ALL {
        names_itself(part).await;
    }

    signal("STOP", pids["users"]).await;
    for part in services::ALL.iter().filter(|part| **part != "users") {
        timeout(Duration::from_secs(2), names_itself(part)).await.expect("at once");
        let ready = remote.get(part, "/health/ready").await.expect("an answer");
        let state = &ready.json()["status"];
        let asks = ["orders", "notifications"].contains(part);
        assert_eq!(
            (ready.status.as_u16(), state),
            (200, &(if asks { "degraded" } else { "ok" }).into()),
            "{part}"
        );
    }
    let asked = timeout(Duration::from_millis(100), remote.get("users", "/health")).await;
    assert!(asked.is_err(), "it stands still: {asked:?}");
    signal("CONT", pids["users"]).await;
    names_itself("users").await;
    let well = |answer: &Answer| answer.json()["status"] == "ok";
    remote.until(SOON, "orders", "/health/ready", well).await.expect("nothing is away");
    assert_eq!(terminated(child).await.expect("it ends"), Some(0));
}
