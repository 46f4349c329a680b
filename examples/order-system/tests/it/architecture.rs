//! Who may know whom.

use std::{collections::BTreeMap, path::Path, process::Command};

use serde_json::Value;

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

/// What services may share: no business, but the kit, the broker, and one contract by gRPC.
const SHARED: [&str; 3] = ["order-kit", "order-broker", "order-users-grpc"];

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

#[test]
fn the_library_knows_nothing_of_all_this() {
    assert!(packages()["mainstay"].iter().all(|it| !it.starts_with("order-")));
}
