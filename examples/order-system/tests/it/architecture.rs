//! Who may know whom, and whose data is whose.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use order_kit::env::Env;
use order_system::monolith::Monolith;
use serde_json::Value;

use crate::{
    journeys::STAGE,
    shapes::{Servers, play},
};

/// The packages of the system, and which others of it each depends on.
fn packages() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo says JSON");
    let packages = metadata["packages"].as_array().expect("packages").iter();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    packages
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies").iter();
            let real = dependencies.filter(|it| it["kind"].is_null());
            (name(package), real.map(name).collect())
        })
        .collect()
}

/// What services may share: no business, but the kit, the broker, and the contracts by gRPC.
const SHARED: [&str; 3] = ["order-kit", "order-broker", "order-grpc"];

#[test]
fn no_service_knows_another() {
    let packages = packages();
    let services: Vec<&String> = packages
        .keys()
        .filter(|name| {
            name.starts_with("order-") && *name != "order-system" && !SHARED.contains(&name.as_str())
        })
        .collect();
    assert!(services.len() >= 7, "{services:?}");
    for service in services {
        for dependency in &packages[service] {
            let foreign = dependency.starts_with("order-") && !SHARED.contains(&dependency.as_str());
            assert!(!foreign, "{service} depends on {dependency}");
        }
    }
}

#[test]
fn what_is_shared_knows_no_service() {
    let packages = packages();
    for shared in SHARED {
        let other =
            packages[shared].iter().find(|it| it.starts_with("order-") && !SHARED.contains(&it.as_str()));
        assert_eq!(other, None, "{shared}");
    }
}

/// The files of Rust below a folder.
fn sources(folder: &Path, all: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|it| it == "rs") {
            all.push(path);
        }
    }
}

/// Whether axum's own extractor of paths or of queries is used, which refuses in words of its own and in plain text.
fn refuses_in_its_own_way(source: &str) -> bool {
    let imports = source.split("use axum::").skip(1).filter_map(|rest| rest.split(';').next());
    let mut words = imports.flat_map(|import| import.split(|it: char| !it.is_alphanumeric() && it != '_'));
    words.any(|word| ["Path", "Query", "RawPathParams"].contains(&word))
        || ["axum::extract::Path", "axum::extract::Query"].iter().any(|path| source.contains(path))
}

#[test]
fn every_service_refuses_an_address_as_the_kit_does() {
    assert!(refuses_in_its_own_way("use axum::{\n    Router,\n    extract::{Path, State},\n};"));
    assert!(!refuses_in_its_own_way("use axum::extract::State;\nuse order_kit::extract::Path;"));
    let mut all = Vec::new();
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates");
    for entry in std::fs::read_dir(&crates).expect("crates") {
        sources(&entry.expect("an entry").path().join("src"), &mut all);
    }
    assert!(all.len() > 80, "{}", all.len());
    for path in all.iter().filter(|path| !path.ends_with("kit/src/extract.rs")) {
        let source = std::fs::read_to_string(path).expect("a file");
        assert!(!refuses_in_its_own_way(&source), "{}", path.display());
    }
}

#[test]
fn the_library_knows_nothing_of_all_this() {
    assert!(packages()["mainstay"].iter().all(|it| !it.starts_with("order-")));
}

/// The files of databases among these.
fn databases<'a>(paths: impl Iterator<Item = &'a Path>) -> BTreeSet<String> {
    let name = |path: &Path| path.file_name()?.to_str()?.strip_suffix(".db").map(str::to_owned);
    paths.filter_map(name).collect()
}

/// What a service has files for beside its own name.
fn own(part: &str) -> BTreeSet<String> {
    let more: &[&str] = if part == "orders" { &["orders-read", "orders-saga"] } else { &[] };
    let own = if part == "gateway" { None } else { Some(part) };
    own.into_iter().chain(more.iter().copied()).map(str::to_owned).collect()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn each_process_opens_its_own_files_and_no_other() {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir().expect("a folder");
    let play = play(&Servers::embedded());
    let processes = order_system::demo::start_processes(&play, data.path()).await.expect("they start");
    let mut held = BTreeMap::new();
    for (part, pid) in processes.pids() {
        let open = order_system::processes::databases(pid.expect("a process")).expect("its files");
        held.insert(part, databases(open.iter().map(std::path::PathBuf::as_path)));
    }
    processes.stop().await;
    for (part, mut files) in held {
        assert!(files.remove("broker") || part == "gateway", "{part} has no broker");
        assert_eq!(files, own(part), "{part}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parts_of_a_monolith_keep_their_data_apart() {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir().expect("a folder");
    let monolith = Monolith::start(0, data.path(), Env::empty()).await.expect("it starts");
    monolith.stop().await;
    let files: Vec<_> = std::fs::read_dir(data.path())
        .expect("its data")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    let parts = ["users", "orders", "products", "payments", "inventory", "notifications", "analytics"];
    let expected: BTreeSet<String> =
        parts.iter().flat_map(|part| own(part)).chain(["broker".to_owned()]).collect();
    assert_eq!(databases(files.iter().map(std::path::PathBuf::as_path)), expected);
}
