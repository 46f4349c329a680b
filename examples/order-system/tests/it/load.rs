//! What `order-system load` says of a run.

use order_system::load::{Report, table};
use tokio::process::Command;

async fn load(arguments: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_order-system"));
    let output = command.arg("load").args(arguments).output().await.expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.success(), text(output.stdout), text(output.stderr))
}

fn figure<'a>(report: &'a Report, name: &str) -> &'a str {
    report.figures.iter().find(|figure| figure.0 == name).map_or("", |figure| &figure.1)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_counted_and_every_order_audited() {
    let _stage = crate::journeys::STAGE.lock().await;
    let (well, report, said) = load(&["--json", "--rps", "40", "--for", "1", "--mix", "25"]).await;
    assert!(well, "{report} {said}");
    let report: Report = serde_json::from_str(&report).expect("a report");
    assert!(report.green);
    assert_eq!(figure(&report, "orders accepted"), "10");
    assert_eq!((figure(&report, "answers: 202"), figure(&report, "answers: 200")), ("10", "30"));
    assert_eq!(report.audit[0], "audit: 10 orders: 10 confirmed, 0 cancelled, 0 open");
    let memory: Vec<u64> = figure(&report, "memory at each quarter, MiB")
        .split(", ")
        .map(|it| it.parse().expect("a number"))
        .collect();
    assert!(memory.len() == 4 && memory.iter().all(|it| *it > 0), "{memory:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_compared_are_two_processes_of_which_one_has_the_setting() {
    let _stage = crate::journeys::STAGE.lock().await;
    let rest = ["--rps", "10", "--for", "1", "--compare"];
    // With a limit of three nearly all is refused; without one nothing is.
    let (well, shown, said) = load(&[&rest[..], &["rate_limit=3/1m"]].concat()).await;
    assert!(well, "{shown} {said}");
    let row = |name: &str| {
        let cells = shown.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        cells.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("orders accepted")[0], "10", "{shown}");
    assert!(row("orders accepted")[1].parse::<u32>().expect("a number") <= 3, "{shown}");
    assert_eq!(row("answers: 429")[0], "-", "{shown}");
    assert_eq!(row("audit  "), ["green", "green"], "{shown}");
}

#[tokio::test]
async fn a_variable_that_nobody_reads_is_refused() {
    for arguments in [["--compare", "brakers=off"], ["--set", "BREAKERS"]] {
        let (well, _, said) = load(&arguments).await;
        assert!(!well && (said.contains("BRAKERS") || said.contains("NAME=VALUE")), "{said}");
    }
}

#[test]
fn a_figure_that_one_report_lacks_is_no_figure_of_another() {
    let report = |figures: &[(&str, &str)]| Report {
        figures: figures.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        audit: Vec::new(),
        green: true,
    };
    let table =
        table(&[("a", &report(&[("x", "1"), ("z", "3")])), ("b", &report(&[("x", "4"), ("y", "5")]))]);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [vec!["a", "b"], vec!["x", "1", "4"], vec!["z", "3", "-"], vec!["y", "-", "5"]]);
}
