//! The program `mainstay-saga`, beside a running orchestrator.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::saga::{
    Entry, Failure, Incarnation, Orchestrator, Outcome, Output, Payload, Phase, Record, Saga, SagaId, Step,
    Timestamp, Unknown,
    journal::{Append, Begin, DefinitionId, Journal, Presence, StoreError},
    sqlite::Sqlite,
};
use serde_json::Value;

/// A directory that goes when it is dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mainstay-cli-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("sagas.db")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the program said.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

async fn say(store: &Path, line: &str) -> Said {
    words(store, line.split_whitespace().map(str::to_owned).collect()).await
}

async fn words(store: &Path, words: Vec<String>) -> Said {
    let store = format!("sqlite:{}", store.display());
    run(["--store", &store].into_iter().chain(words.iter().map(String::as_str)).collect()).await
}

async fn run(words: Vec<&str>) -> Said {
    run_with(words, &[]).await
}

async fn run_with(words: Vec<&str>, variables: &[(&str, &str)]) -> Said {
    let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
    let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
    let variables: Vec<(String, String)> = variables.iter().map(owned).collect();
    let output = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay-saga"));
        command.env_remove("MAINSTAY_SAGA_STORE").env_remove("MAINSTAY_SAGA_SCHEMA");
        command.env("USER", "ada").envs(variables).args(words).output().unwrap()
    });
    let output = output.await.unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn orchestrate<R: mainstay::saga::Inputs>(store: &Path, saga: &Saga<u32, R>) -> Orchestrator {
    let store = Sqlite::open(store).unwrap();
    let opening = Orchestrator::open(store).register(saga).poll(Duration::from_millis(20));
    opening.start().await.unwrap()
}

/// `first`, whose undo works only when it is told so, and `second`, which is rejected.
fn stuck(works: &Arc<AtomicBool>) -> Saga<u32> {
    let works = works.clone();
    let mut saga = Saga::define::<u32>("stuck", 1);
    let again = mainstay::Retry::exponential(Duration::from_millis(1)).max_attempts(2).no_budget();
    let undo = mainstay::stack("undo").retry(again.idempotent()).build().unwrap();
    let first =
        saga.step("first", (), |_, ()| async { Ok(1_u32) }).undo_through(undo).compensate(move |_, (), _| {
            let works = works.load(SeqCst);
            async move { if works { Ok(()) } else { Err(Failure::unknown("no\x1b[31m")) } }
        });
    saga.step("second", first, |_, _| async { Err::<(), _>(Failure::rejected("declined")) })
        .without_compensation("it does nothing");
    saga.build(()).unwrap()
}

/// `ask`, which waits for a person when nobody knows what came of it, and always fails.
fn parked() -> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>("parked", 1);
    let first = saga
        .step("ask", (), |_: Step<u32>, ()| async { Err::<u32, _>(Failure::unknown("lost")) })
        .on_unknown(Unknown::Park)
        .without_compensation("it does nothing");
    saga.build(first).unwrap()
}

fn waiting() -> Saga<u32, Output<Option<String>>> {
    let mut saga = Saga::define::<u32>("waiting", 1);
    let approved = saga.signal::<String, _>("approval", (), None);
    saga.build(approved).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stuck_is_found_looked_at_and_settled() {
    let directory = Directory::new("stuck");
    let works = Arc::new(AtomicBool::new(false));
    let saga = stuck(&works);
    let file = directory.file();
    let orchestrator = orchestrate(&file, &saga).await;
    let retried = orchestrator.start(&saga, "s-1", &1).await.unwrap();
    let by_hand = orchestrator.start(&saga, "s-2", &2).await.unwrap();
    for handle in [&retried, &by_hand] {
        let held = handle.settled().await.unwrap();
        assert!(matches!(held, Outcome::Held { phase: Some(Phase::Stuck), .. }), "{held:?}");
    }

    let found = say(&file, "stuck").await;
    assert_eq!(found.code, 0, "{found:?}");
    let lines: Vec<&str> = found.out.lines().collect();
    assert_eq!(lines.len(), 3, "{found:?}");
    assert!(lines[1].starts_with("s-1  stuck  stuck v1"), "{found:?}");
    assert!(!found.out.contains('\x1b'), "what a service says does not reach the terminal as it is");
    let found = say(&file, "stuck --json").await;
    let heads: Vec<Value> = found.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (heads.len(), heads[1]["id"].as_str(), heads[1]["phase"].as_str()),
        (2, Some("s-2"), Some("stuck"))
    );

    let shown = say(&file, "show s-1").await;
    assert!(shown.out.contains("phase       stuck\n"), "{shown:?}");
    assert!(shown.out.contains("step        first: stuck\nstep        second: rejected\n"), "{shown:?}");
    let shown: Value = serde_json::from_str(&say(&file, "show --json s-1").await.out).unwrap();
    assert_eq!((&shown["input"], &shown["damage"]), (&Value::from(1), &Value::Null));
    assert_eq!(shown["steps"][0]["state"], "stuck");
    let timeline = say(&file, "timeline s-1").await;
    assert!(timeline.out.contains("second was rejected: declined (clean: second)"), "{timeline:?}");
    let timeline: Value = serde_json::from_str(&say(&file, "timeline s-1 --json").await.out).unwrap();
    assert_eq!(timeline["rows"][1]["step"], "first");
    assert!(say(&file, "dot s-1").await.out.starts_with("digraph \"stuck v1: s-1 stuck\" {\n"));
    assert!(say(&file, "mermaid s-1").await.out.contains("flowchart LR\n"));

    works.store(true, SeqCst);
    let said = say(&file, "retry s-1 first").await;
    assert!(said.code == 0 && said.out.starts_with("recorded as 4; the saga is now "), "{said:?}");
    assert!(matches!(retried.finished().await.unwrap(), Outcome::Compensated(_)));
    works.store(false, SeqCst);
    let mut line: Vec<String> =
        "undone s-2 first --by grace --reason".split(' ').map(str::to_owned).collect();
    line.push("sent it back".to_owned());
    let said = words(&file, line).await;
    assert_eq!(
        (said.code, &*said.out),
        (0, "recorded as 4; the saga is now compensated: second was rejected: declined\n")
    );
    assert!(matches!(by_hand.finished().await.unwrap(), Outcome::Compensated(_)));
    let timeline = say(&file, "timeline s-2").await;
    assert!(timeline.out.contains("grace: is undone: sent it back"), "{timeline:?}");

    let said = say(&file, "retry s-2").await;
    assert_eq!((said.code, &*said.err), (1, "mainstay-saga: refused: the saga is over, compensated\n"));
    let said = say(&file, "list --phase compensated --definition stuck --limit 1").await;
    assert_eq!(said.out.lines().count(), 2, "{said:?}");
    assert_eq!(say(&file, "list --definition other").await.out.lines().count(), 1);
    let ended = say(&file, "list --definition stuck --json").await.out.lines().count();
    assert_eq!(say(&file, "list --version 1 --limit 1 --json").await.out.lines().count(), ended.min(1));
    assert_eq!(say(&file, "list --version 9 --json").await.out, "");
    assert_eq!(say(&file, "list --open --definition stuck --json").await.out, "", "they are over");
    assert_eq!(say(&file, "gc --older-than 1h").await.out, "0 sagas forgotten\n");
    assert_eq!(say(&file, "gc --older-than 0s --limit 1 --by grace").await.out, "1 sagas forgotten\n");
    let said = say(&file, "audit").await;
    assert!(said.out.lines().nth(1).is_some_and(|line| line.contains("  grace  1  ")), "{said:?}");
    assert_eq!(said.out.lines().count(), 2, "nothing that was not forgotten: {said:?}");
    assert_eq!(say(&file, "list --json").await.out.lines().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_is_resolved_and_what_makes_no_sense_is_refused() {
    let directory = Directory::new("parked");
    let (saga, file) = (parked(), directory.file());
    let orchestrator = orchestrate(&file, &saga).await;
    let handle = orchestrator.start(&saga, "p", &1).await.unwrap();
    assert!(matches!(handle.settled().await.unwrap(), Outcome::Held { phase: Some(Phase::Parked), .. }));

    let refused = say(&file, "undone p ask --reason none").await;
    assert!(refused.code == 1 && refused.out.is_empty(), "{refused:?}");
    let why = "refused: the order cannot be followed: the step has not to be undone; the saga is parked";
    assert!(refused.err.contains(why), "{refused:?}");
    let refused = say(&file, "retry p nowhere --by grace").await;
    assert!(refused.code == 1 && refused.err.contains("\"nowhere\", which does not exist"), "{refused:?}");
    let refused = say(&file, "signal p ask m 1").await;
    assert!(refused.code == 1 && refused.err.contains("no step \"ask\" waits for a message"), "{refused:?}");
    // Whoever comes later sees it too.
    let timeline: Value = serde_json::from_str(&say(&file, "timeline p --json").await.out).unwrap();
    let rows = timeline["rows"].as_array().unwrap().iter();
    let refused: Vec<&str> =
        rows.filter(|row| row["kind"] == "refused").map(|row| row["outcome"].as_str().unwrap()).collect();
    let expected = [
        ("the step has not to be undone (", "ada: is undone: none"),
        ("\"nowhere\", which does not exist (", "grace: try again"),
        ("no step \"ask\" waits for a message (", "ada: message 1"),
    ];
    assert_eq!(refused.len(), expected.len(), "{refused:?}");
    for (said, (why, what)) in refused.iter().zip(expected) {
        assert!(said.contains(why) && said.contains(what), "{said}");
    }

    let said = say(&file, "resolve p ask --output 7").await;
    assert!(said.code == 0 && said.out.ends_with("; the saga is now completed\n"), "{said:?}");
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(7));

    for (order, end) in
        [("reject p-2 ask --reason no", "compensated"), ("abandon p-3 --reason no", "abandoned")]
    {
        let id = order.split(' ').nth(1).unwrap();
        orchestrator.run(&saga, id, &1).await.unwrap();
        let said = say(&file, order).await;
        assert!(said.code == 0 && said.out.contains(&format!("the saga is now {end}")), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_read_is_refused_however_often_it_is_left() {
    let directory = Directory::new("unread");
    let (saga, file) = (waiting(), directory.file());
    let orchestrator = orchestrate(&file, &saga).await;
    let handle = orchestrator.start(&saga, "w", &1).await.unwrap();
    let why = "mainstay-saga: refused: this code cannot read it, and it waits for code that can: invalid type: integer";
    for _ in 0..2 {
        let said = say(&file, "signal w approval m-1 7").await;
        assert!(said.code == 1 && said.out.is_empty() && said.err.starts_with(why), "{said:?}");
    }
    let said = say(&file, "signal w approval m-2 7 --wait 1s").await;
    assert!(said.code == 1 && said.out.is_empty() && said.err.contains("invalid type: integer"), "{said:?}");
    // A name that was used for something else says nothing of this.
    let known = say(&file, "signal w approval m-1 8").await;
    assert!(known.code == 0 && known.out.contains("left before"), "{known:?}");
    orchestrator.signal("w", "approval", "right", "yes").await.unwrap();
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(Some("yes".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_takes_up_stays_and_is_obeyed_later() {
    let directory = Directory::new("later");
    let (saga, file) = (waiting(), directory.file());
    let orchestrator = orchestrate(&file, &saga).await;
    for id in ["w-1", "w-2"] {
        orchestrator.start(&saga, id, &1).await.unwrap();
    }
    orchestrator.shutdown(Duration::from_secs(5)).await;

    let left = say(&file, "signal w-1 approval m-1 \"yes\" --wait 100ms").await;
    assert_eq!(left.code, 3, "{left:?}");
    assert!(left.out.contains("no orchestrator has taken it up yet. It stays"), "{left:?}");
    let left = say(&file, "cancel w-2 --reason late --wait 100ms").await;
    assert_eq!(left.code, 3, "{left:?}");
    assert_eq!(say(&file, "check").await.out, "2 sagas read, 0 damaged\n");
    let known = say(&file, "signal w-1 approval m-1 \"no\" --wait 100ms").await;
    assert!(known.code == 0 && known.out.contains("left before"), "{known:?}");

    let orchestrator = loop {
        // The one before lets the file go when its last task has ended.
        match Sqlite::open(&file) {
            Ok(store) => break Orchestrator::open(store).register(&saga).start().await.unwrap(),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let handle = orchestrator.handle(&saga, "w-1").unwrap();
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(Some("yes".to_owned())));
    let handle = orchestrator.handle(&saga, "w-2").unwrap();
    assert!(
        matches!(handle.finished().await.unwrap(), Outcome::Compensated(why) if why.to_string() == "cancelled: late")
    );

    let handle = orchestrator.start(&saga, "w-3", &1).await.unwrap();
    let said = say(&file, "signal w-3 approval m-1 \"yes\"").await;
    assert!(said.code == 0 && said.out.starts_with("recorded as 1; "), "{said:?}");
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(Some("yes".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_said_on_the_other_stream_with_a_code() {
    let directory = Directory::new("wrong");
    let file = directory.file();
    for (line, code, why) in [
        ("list", 1, "there is no saga store"),
        ("dance", 2, "there is no command \"dance\""),
        ("show", 2, "the id of a saga is missing"),
        ("cancel x", 2, "--reason is missing"),
    ] {
        let said = say(&file, line).await;
        assert!((said.code, &*said.out) == (code, "") && said.err.contains(why), "{line}: {said:?}");
    }
    drop(Sqlite::open(&file).unwrap());
    let said = say(&file, "retry nobody").await;
    assert_eq!((said.code, &*said.err), (1, "mainstay-saga: there is no saga nobody\n"));
    assert!(say(&file, "--help").await.out.starts_with("mainstay-saga --store STORE COMMAND\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_and_does_not_hide_the_rest() {
    let directory = Directory::new("damage");
    let (saga, file) = (waiting(), directory.file());
    let orchestrator = orchestrate(&file, &saga).await;
    for id in ["w-1", "w-2"] {
        orchestrator.start(&saga, id, &1).await.unwrap();
    }
    orchestrator.shutdown(Duration::from_secs(5)).await;
    let database = rusqlite::Connection::open(&file).unwrap();
    let change = "update saga_event set data = replace(data, '1', '2') where saga = 2 and seq = 0";
    assert_eq!(database.execute(change, []).unwrap(), 1);

    let checked = say(&file, "check").await;
    assert_eq!(checked.code, 1, "{checked:?}");
    let expected = "w-2: entry 0 does not have the checksum of what it says\n2 sagas read, 1 damaged\n";
    assert_eq!(checked.out, expected);
    assert!(say(&file, "show w-2").await.out.contains("damage      entry 0 does not"));
    assert!(say(&file, "timeline w-2").await.out.contains("\ndamaged: entry 0 does not"));
}

fn definition(name: &str, digest: &str) -> DefinitionId {
    DefinitionId { name: name.to_owned(), version: 1, digest: digest.to_owned() }
}

/// Puts a saga into a store by hand: whose it is, what it follows, where it stands, and when it was to be over.
async fn put(
    store: &Sqlite,
    id: &str,
    owner: Option<&str>,
    definition: DefinitionId,
    (phase, wake, deadline): (Phase, Option<Timestamp>, Option<Timestamp>),
) {
    let (saga, by) = (SagaId::new(id).unwrap(), Incarnation::from_text(owner.unwrap_or("somebody")));
    let record = Record::Begun { input: Payload::encode(&1).unwrap(), deadline };
    let entry = Entry::new(&saga, 0, 0, 1, store.now().await.unwrap(), &by, &record).unwrap();
    let begin = Some(Begin { definition, tag: String::new(), locks: Vec::new() });
    let (entries, note, release, answers) = (vec![entry], String::new(), owner.is_none(), Vec::new());
    let append =
        Append { saga, by, epoch: 1, begin, entries, phase, note, wake, release, answers, work: None };
    assert_eq!(store.append(vec![append]).await.unwrap(), [Ok(())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_needs_a_person_is_listed_with_the_reason_and_what_to_do() {
    let directory = Directory::new("attention");
    let file = directory.file();
    let store = Sqlite::open(&file).unwrap();
    let now = store.now().await.unwrap();
    let ago = |seconds: u64| Some(Timestamp(now.0 - 1_000 * seconds));
    for (by, lease, blocked) in [("alive", 3_600, &["blocked", "elsewhere"][..]), ("dead", 0, &["orphan"])] {
        let by = Incarnation::from_text(by);
        store.heartbeat(&by, Duration::from_secs(lease)).await.unwrap();
        let mut says = Presence::default();
        says.lease_ms = 5;
        says.definitions = vec![definition("order", "d")];
        let blocked = blocked.iter().map(|id| (SagaId::new(id).unwrap(), "it has no\nsense".to_owned()));
        says.blocked = blocked.collect();
        store.announce(&by, says).await.unwrap();
    }
    // Another one is alive and works on what the first one could not.
    store.heartbeat(&Incarnation::from_text("other"), Duration::from_secs(3_600)).await.unwrap();
    store.announce(&Incarnation::from_text("other"), Presence::default()).await.unwrap();
    let order = || definition("order", "d");
    let running = (Phase::Running, None, None);
    let waiting = (Phase::Waiting, None, None);
    put(&store, "blocked", Some("alive"), order(), running).await;
    put(&store, "changed", None, definition("order", "e"), waiting).await;
    put(&store, "elsewhere", Some("other"), order(), running).await;
    put(&store, "fine", Some("alive"), order(), (Phase::Running, None, Some(now.after(Duration::MAX)))).await;
    put(&store, "foreign", None, definition("offer", "d"), waiting).await;
    put(&store, "gone", Some("nobody"), order(), running).await;
    put(&store, "idle", None, order(), (Phase::Waiting, ago(120), None)).await;
    put(&store, "orphan", Some("dead"), order(), running).await;
    put(&store, "over", Some("alive"), order(), (Phase::Completed, None, ago(120))).await;
    put(&store, "overdue", Some("alive"), order(), (Phase::Unwinding, None, ago(120))).await;
    put(&store, "parked", Some("alive"), order(), (Phase::Parked, None, ago(120))).await;
    put(&store, "waiting", None, order(), (Phase::Waiting, ago(1), ago(1))).await;
    // So that the lease of the dead one is over by more than three times its length.
    tokio::time::sleep(Duration::from_millis(30)).await;

    let found = say(&file, "stuck --json").await;
    let found: Vec<Value> = found.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = [
        ("blocked", "blocked", "it has no\nsense", "deploy code"),
        (
            "changed",
            "unknown definition",
            "order v1 has changed: no living orchestrator has it with digest e, but with d",
            "register",
        ),
        ("foreign", "unknown definition", "no living orchestrator has the definition offer v1", "register"),
        ("gone", "orphaned", "its owner is gone", "start an orchestrator"),
        ("idle", "idle", "does an orchestrator run that has order v1?", "start an orchestrator"),
        ("orphan", "orphaned", "its owner's lease ran out", "start an orchestrator"),
        ("overdue", "overdue", "its deadline was 12", "cancel or compensate"),
        ("parked", "parked", "", "find out"),
    ];
    let ids: Vec<&str> = found.iter().map(|saga| saga["id"].as_str().unwrap()).collect();
    assert_eq!(ids, expected.map(|(id, ..)| id));
    for (saga, (id, trouble, why, todo)) in found.iter().zip(expected) {
        assert_eq!(saga["trouble"], trouble, "{saga}");
        assert!(saga["why"].as_str().unwrap().contains(why), "{saga}");
        assert!(saga["todo"].as_str().unwrap().contains(todo), "{id}: {saga}");
    }
    assert_eq!(
        (&found[0]["owner_lives"], &found[5]["owner_lives"]),
        (&Value::Bool(true), &Value::Bool(false))
    );

    let found = say(&file, "stuck").await;
    assert_eq!(found.out.lines().count(), 1 + expected.len(), "{found:?}");
    let line = found.out.lines().nth(1).unwrap();
    assert!(line.contains("  it has no sense  ") && line.contains("  deploy code that"), "{found:?}");
    let shown = say(&file, "show orphan").await;
    assert!(shown.out.contains("owner       dead: its lease ran out 0 s ago\n"), "{shown:?}");
    assert!(shown.out.contains("trouble     orphaned: its owner's lease"), "{shown:?}");
    let listed = say(&file, "list").await;
    assert_eq!(listed.out.lines().count(), 13, "{listed:?}");
    assert!(listed.out.contains("blocked: it has no sense\n"), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_that_cannot_be_read_is_shown_as_blocked_and_can_be_given_up() {
    let directory = Directory::new("blocked");
    let (saga, file) = (waiting(), directory.file());
    let orchestrator = orchestrate(&file, &saga).await;
    for id in ["w-1", "w-2"] {
        orchestrator.start(&saga, id, &1).await.unwrap();
    }
    orchestrator.shutdown(Duration::from_secs(5)).await;
    let database = rusqlite::Connection::open(&file).unwrap();
    let change = "update saga_event set data = replace(data, '1', '2') where saga = 2 and seq = 0";
    assert_eq!(database.execute(change, []).unwrap(), 1);
    drop(database);

    let orchestrator = orchestrate(&file, &saga).await;
    let left = say(&file, "cancel w-2 --reason no --wait 300ms").await;
    assert_eq!(left.code, 3, "{left:?}");
    let why = "the saga is blocked, so that only `abandon` is obeyed: entry 0 does not have the checksum";
    assert!(left.out.contains(why), "{left:?}");
    let found = say(&file, "stuck").await;
    assert!(found.out.lines().nth(1).is_some_and(|line| line.starts_with("w-2  waiting")), "{found:?}");
    assert!(found.out.contains("  damaged  entry 0 does not"), "{found:?}");
    let said = say(&file, "abandon w-2 --reason settled").await;
    assert_eq!((said.code, &*said.out), (0, "recorded as 1; the saga is now abandoned: settled\n"));
    let handle = orchestrator.handle(&saga, "w-2").unwrap();
    assert_eq!(handle.finished().await.unwrap(), Outcome::Abandoned("settled".to_owned()));
    assert_eq!(say(&file, "stuck").await.out.lines().count(), 1);
    // What is damaged stays so.
    assert_eq!(say(&file, "check").await.code, 1);
    assert!(say(&file, "timeline w-2").await.out.contains("ada: give up: settled"));
}

/// Needs a server, which `MAINSTAY_TEST_POSTGRES` names.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_postgres_is_reached_by_its_address() {
    let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
        eprintln!("skipped: MAINSTAY_TEST_POSTGRES is not set");
        return;
    };
    let schema = format!("mainstay_cli_{}", std::process::id());
    let store = mainstay::saga::postgres::Postgres::connect(&url).schema(&schema).await.unwrap();
    let saga = waiting();
    let opening = Orchestrator::open(store).register(&saga).poll(Duration::from_millis(20));
    let orchestrator = opening.start().await.unwrap();
    let handle = orchestrator.start(&saga, "w", &1).await.unwrap();
    let said =
        run(vec!["--store", &url, "--schema", &schema, "signal", "w", "approval", "m", "\"yes\""]).await;
    assert!(said.code == 0 && said.out.starts_with("recorded as 1; "), "{said:?}");
    assert_eq!(handle.finished().await.unwrap(), Outcome::Completed(Some("yes".to_owned())));
    let said = run(vec!["--store", &format!("postgres:{url}"), "--schema", &schema, "list"]).await;
    assert!(said.code == 0 && said.out.contains("w   completed"), "{said:?}");
    orchestrator.shutdown(Duration::from_secs(5)).await;

    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(&format!("drop schema {schema} cascade")).await.unwrap();
}

/// A schema that is mistaken would have nothing that needs a person. Needs a server, which `MAINSTAY_TEST_POSTGRES` names.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_postgres_that_is_not_there_is_not_made() {
    let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
        eprintln!("skipped: MAINSTAY_TEST_POSTGRES is not set");
        return;
    };
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let named = |what: &str| format!("mainstay_cli_{what}_{}", std::process::id());
    let (absent, empty, there) = (named("absent"), named("empty"), named("there"));
    let drop =
        [&absent, &empty, &there].map(|name| format!("drop schema if exists {name} cascade")).join("; ");
    client.batch_execute(&drop).await.unwrap();
    client.batch_execute(&format!("create schema {empty}")).await.unwrap();
    let postgres = |schema: &str| mainstay::saga::postgres::Postgres::connect(&url).schema(schema);
    postgres(&there).await.unwrap();

    let mut wrong = Vec::new();
    for schema in [&absent, &empty] {
        let none = StoreError::Absent(format!("no tables of sagas in the schema {schema:?}"));
        let opened = postgres(schema).existing().await.map(|_| ());
        if opened != Err(none.clone()) {
            wrong.push(format!("existing in {schema}: {opened:?}"));
        }
        let problem =
            format!("mainstay-saga: {none}; another one is named by --schema S, or MAINSTAY_SAGA_SCHEMA\n");
        for command in ["stuck --json", "check", "list", "audit", "show x", "retry x", "gc --older-than 30d"]
        {
            let words = ["--store", &url].into_iter().chain(command.split(' ')).collect();
            let said = run_with(words, &[("MAINSTAY_SAGA_SCHEMA", schema)]).await;
            if (said.code, &*said.out, &*said.err) != (1, "", &problem) {
                wrong.push(format!("{command} in {schema}: {said:?}"));
            }
        }
    }
    // What is said counts before the variable.
    let words = vec!["--store", &url, "--schema", &there, "check"];
    for (words, schema) in [(words, &absent), (vec!["--store", &url, "check"], &there)] {
        let said = run_with(words, &[("MAINSTAY_SAGA_SCHEMA", schema)]).await;
        if (said.code, &*said.out) != (0, "0 sagas read, 0 damaged\n") {
            wrong.push(format!("check with {schema} in the variable: {said:?}"));
        }
    }
    if let Err(error) = postgres(&there).existing().await {
        wrong.push(format!("existing in {there}: {error}"));
    }
    let made = "select count(*) from pg_class join pg_namespace on pg_namespace.oid = relnamespace where nspname = $1";
    let schemas = "select count(*) from pg_namespace where nspname = $1";
    for (query, schema) in [(schemas, &absent), (made, &empty)] {
        let found: i64 = client.query_one(query, &[schema]).await.unwrap().get(0);
        if found != 0 {
            wrong.push(format!("{schema} was made"));
        }
    }
    client.batch_execute(&drop).await.unwrap();
    assert_eq!(wrong, Vec::<String>::new());
}
