//! The pages say what is there: the tests that they name, the code that they show, the routes and the events in their tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use order_kit::{
    context::{SERVICES, known},
    env,
};
use order_system::{
    remote::Remote,
    services::PARTS,
    system::{Options, System},
};

use crate::journeys::STAGE;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All sources at a path, a file or a folder.
fn sources(path: &Path, found: &mut Vec<(PathBuf, String)>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a folder") {
            sources(&entry.expect("an entry").path(), found);
        }
    } else if path.extension().is_some_and(|it| it == "rs") {
        found.push((path.to_owned(), fs::read_to_string(path).expect("text")));
    }
}

// === Tests that are named ===

/// Where tests of this name are: `kit` and its like, `it`, or a file of the library.
fn place(name: &str) -> Option<PathBuf> {
    let system = Path::new("examples/order-system");
    let path = match name {
        "it" => system.join("tests/it"),
        file if file.starts_with("tests/") => PathBuf::from(file),
        part => system.join("crates").join(part),
    };
    let simple = name.bytes().all(|it| it.is_ascii_lowercase() || b"_-/.".contains(&it));
    (simple && root().join(&path).exists()).then_some(path)
}

/// The pairs of a place and a test in `` `kit`: `one`, `two`; `it`: `three` ``.
fn named(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in text.lines() {
        let parts: Vec<&str> = line.split('`').collect();
        let mut here = None;
        for at in (1..parts.len()).step_by(2) {
            let (before, code, behind) = (parts[at - 1], parts[at], parts.get(at + 1).unwrap_or(&""));
            if *behind == ": " && place(code).is_some() {
                here = Some(code);
            } else if let Some(place) = here.filter(|_| before == ": " || before == ", ") {
                found.push((place.to_owned(), code.to_owned()));
            } else {
                here = None;
            }
        }
    }
    found
}

/// Whether this source has a test of that name: under an attribute, or in the list of a macro that makes tests.
fn has_test(source: &str, name: &str, listed: &BTreeSet<&str>) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let function = |line: &&str| {
        let rest = line.split_once("fn ").map_or("", |(_, rest)| rest);
        rest.strip_prefix(name).is_some_and(|rest| rest.starts_with(['(', '<']))
    };
    let attribute = |at: usize| {
        let mut above = lines[..at].iter().rev().take_while(|line| line.starts_with('#'));
        above.any(|line| line.starts_with("#[test") || line.starts_with("#[tokio::test"))
    };
    let is_test = |at: usize| function(&lines[at]) && (attribute(at) || listed.contains(name));
    let made = |line: &&str| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(": ") && rest.ends_with(';'))
    };
    (0..lines.len()).any(is_test) || lines.iter().any(made)
}

/// The words that stand in a list, each with a comma behind it or as the last.
fn listed(source: &str) -> BTreeSet<&str> {
    let word = |it: &&str| {
        !it.is_empty() && it.bytes().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'_')
    };
    let lines = source.lines().map(|line| line.trim().trim_start_matches("on_both!(").trim_end_matches(");"));
    lines
        .filter(|line| line.split(',').map(str::trim).all(|it| it.is_empty() || word(&it)))
        .flat_map(|line| line.split(',').map(str::trim))
        .filter(word)
        .collect()
}

fn exists(at: &str, test: &str) -> bool {
    let mut found = Vec::new();
    sources(&root().join(place(at).expect("a place")), &mut found);
    let (module, name) = test.split_once("::").map_or((None, test), |(module, name)| (Some(module), name));
    let listed: BTreeSet<&str> = found.iter().flat_map(|(_, source)| listed(source)).collect();
    found.iter().any(|(path, source)| {
        module.is_none_or(|module| path.file_stem().is_some_and(|stem| stem == module))
            && has_test(source, name, &listed)
    })
}

const PAGES: [&str; 4] = [
    "docs/tutorial-mistakes.md",
    "docs/from-tutorials.md",
    "examples/order-system/README.md",
    "examples/order-system/docs/contract.md",
];

#[test]
fn every_test_that_a_page_names_exists() {
    let mut count = 0;
    for page in PAGES {
        for (place, test) in named(&read(page)) {
            assert!(exists(&place, &test), "{page}: there is no test `{test}` in `{place}`");
            count += 1;
        }
    }
    assert!(count > 150, "{count}");
    assert!(!exists("it", "docs::every_test_that_a_page_names"), "part of a name is none");
    assert!(!exists("it", "contract::every_test_that_a_page_names_exists"), "it is elsewhere");
    assert!(!exists("kit", "emit"), "a function is no test");
}

#[test]
fn every_line_of_a_table_of_tests_names_one_or_says_that_there_is_none() {
    for page in ["docs/tutorial-mistakes.md", "docs/from-tutorials.md"] {
        let mut within = false;
        for line in read(page).lines() {
            within = line.starts_with('|') && (within || line.ends_with("| shown by |"));
            let heading = line.ends_with("| shown by |") || line.starts_with("|---");
            if within && !heading {
                let cell = line.trim_end_matches('|').rsplit('|').next().expect("a cell").trim();
                assert!(!named(cell).is_empty() || cell.starts_with("no test"), "{page}: {line}");
            }
        }
    }
}

// === Code that is shown ===

#[test]
fn what_a_page_shows_of_a_file_is_in_it() {
    let page = read("docs/from-tutorials.md");
    let blocks: Vec<&str> =
        page.split("\n```rs\n").skip(1).map(|it| it.split("\n```").next().expect("an end")).collect();
    assert!(blocks.len() >= 4, "{}", blocks.len());
    for block in blocks {
        let (path, code) = block.split_once('\n').expect("a path, and code");
        let mut source = read(path.trim_start_matches("// "));
        for line in code.lines() {
            let at = source
                .find(line)
                .unwrap_or_else(|| panic!("{path}: not there, or not in this order: {line}"));
            source.drain(..at);
        }
    }
}

// === Routes and events ===

/// The lines of the table under a heading, each with its cells.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let text = page.split(heading).nth(1).unwrap_or_else(|| panic!("no {heading}"));
    let rows =
        text.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.skip(2).map(cells).collect()
}

fn contract() -> String {
    read("examples/order-system/docs/contract.md")
}

/// What stands in backticks.
fn codes(cell: &str) -> impl Iterator<Item = String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// The statuses that a text speaks of.
fn statuses(text: &str) -> BTreeSet<u16> {
    let words = text.split(|it: char| !it.is_ascii_alphanumeric());
    words
        .filter(|it| it.len() == 3)
        .filter_map(|it| it.parse().ok())
        .filter(|it| (200..600).contains(it))
        .collect()
}

type Routes = BTreeMap<String, BTreeSet<u16>>;

/// Every part on a port of its own.
async fn system(style: &str) -> (tempfile::TempDir, System) {
    let data = tempfile::tempdir().expect("a folder");
    let options = Options { parts: PARTS.to_vec(), ..Options::alone(data.path()) };
    let system = System::start(options.with(env::SAGA_STYLE, style)).await.expect("it starts");
    (data, system)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_of_routes_are_what_the_services_say_of_themselves() {
    let _stage = STAGE.lock().await;
    let (_data, system) = system("orchestrated").await;
    let remote = Remote::to(&system);
    let (mut behind, mut own) = (Routes::new(), Routes::new());
    for part in PARTS {
        let api = remote.get(part, "/openapi.json").await.expect("an answer").json();
        let public = SERVICES.iter().any(|it| it.name == *part && it.name != order_gateway::NAME);
        for (path, methods) in api["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("methods") {
                let answers = operation["responses"].as_object().expect("responses");
                let answers = answers.keys().filter_map(|status| status.parse().ok()).collect();
                let method = method.to_uppercase();
                if public && path.split('/').nth(1) == Some(part) {
                    behind.insert(format!("{method} /api{path}"), answers);
                } else {
                    own.insert(format!("{part} {method} {path}"), answers);
                }
            }
        }
    }
    system.stop().await;
    let page = contract();
    let first = |cell: &str| codes(cell).next().unwrap_or_else(|| panic!("no path in {cell}"));
    let documented = |row: Vec<String>| (format!("{} {}", row[0], first(&row[1])), statuses(&row[3]));
    let through: Routes = table(&page, "## Routes through the gateway").into_iter().map(documented).collect();
    same(&through, &behind);
    let documented =
        |row: Vec<String>| (format!("{} {} {}", row[0], row[1], first(&row[2])), statuses(&row[3]));
    same(&table(&page, "## Routes of one service").into_iter().map(documented).collect(), &own);
}

fn same(documented: &Routes, said: &Routes) {
    for (route, answers) in said {
        assert_eq!(documented.get(route), Some(answers), "{route}: the page, and what the service says");
    }
    for route in documented.keys() {
        assert!(said.contains_key(route), "{route} is on the page, and no service has it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_checks_names_those_of_each_service() {
    let _stage = STAGE.lock().await;
    let (_data, system) = system("orchestrated").await;
    let remote = Remote::to(&system);
    let mut said = BTreeMap::new();
    for part in PARTS.iter().filter(|part| **part != order_gateway::NAME) {
        let ready = remote.get(part, "/health/ready").await.expect("an answer").json();
        let checks: BTreeSet<String> = ready["checks"].as_object().expect("checks").keys().cloned().collect();
        said.insert((*part).to_owned(), checks);
    }
    system.stop().await;
    let mut documented = BTreeMap::new();
    for row in table(&contract(), "## Readiness") {
        // Redis is asked where it is set.
        let checks = codes(&row[1]).chain(codes(&row[2])).filter(|check| check != "redis");
        let checks: BTreeSet<String> = checks.collect();
        documented.extend(row[0].split(", ").map(|part| (part.to_owned(), checks.clone())));
    }
    assert_eq!(documented, said);
}

/// What services tell others: the constants of their messages that begin with what they are called by.
fn told() -> BTreeMap<String, &'static str> {
    let mut told = BTreeMap::new();
    for service in SERVICES {
        let path = format!("examples/order-system/crates/{}/src/wire.rs", service.name);
        let Ok(source) = fs::read_to_string(root().join(path)) else { continue };
        let values = source.lines().filter_map(|line| line.split_once(": &str = \"")?.1.strip_suffix("\";"));
        let begins = format!("{}.", service.singular);
        told.extend(
            values.filter(|it| it.starts_with(&begins)).map(|event| (event.to_owned(), service.name)),
        );
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_events_is_what_services_tell_and_queues_want() {
    let rows = table(&contract(), "## Events");
    let publishers: BTreeMap<String, String> =
        rows.iter().map(|row| (codes(&row[0]).next().expect("an event"), row[1].clone())).collect();
    let told = told();
    assert_eq!(publishers.keys().collect::<Vec<_>>(), told.keys().collect::<Vec<_>>());
    for (event, service) in told {
        let publisher = &publishers[&event];
        assert!(publisher == service || publisher == "nobody yet", "{event}: {publisher}, {service}");
    }
    for style in ["orchestrated", "choreography"] {
        let _stage = STAGE.lock().await;
        let (_data, system) = system(style).await;
        let topology = system.broker().topology().await.expect("what was declared");
        system.stop().await;
        for row in &rows {
            let event = codes(&row[0]).next().expect("an event");
            let heard =
                if style == "choreography" { &row[2] } else { row[2].split("saga:").next().unwrap_or("") };
            let documented: BTreeSet<String> = codes(heard).collect();
            let wants: BTreeSet<String> = topology.route(&event).map(|queue| queue.name.clone()).collect();
            assert_eq!(documented, wants, "{event}, {style}: the page, and the broker");
        }
    }
}

#[test]
fn the_tour_names_every_service_and_its_port() {
    let tour = read("examples/order-system/README.md");
    for part in PARTS.iter().filter_map(|part| known(part)) {
        let port = format!(":{}", 3_000 + part.offset);
        let line =
            tour.lines().find(|line| line.contains(&port)).unwrap_or_else(|| panic!("{port} is not named"));
        assert!(line.contains(part.name), "{port} is not said to be of {}: {line}", part.name);
    }
}
