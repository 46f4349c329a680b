//! The files with which the system is deployed say what the program understands.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use order_kit::{
    BoxError,
    context::{GRPC, SERVICES},
    env::{self, Env},
};
use order_system::{
    monolith::Monolith,
    processes::free_ports,
    remote::Remote,
    system::{Options, System, longest_end},
};
use serde_json::Value;
use serde_norway as yaml;

fn file(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents(name: &str) -> Vec<Value> {
    use serde::Deserialize;
    yaml::Deserializer::from_str(&file(name))
        .map(|document| Value::deserialize(document).expect(name))
        .collect()
}

fn known_variables() -> BTreeSet<&'static str> {
    env::VARIABLES.iter().map(|it| it.name).collect()
}

#[test]
fn the_image_builds_what_seldom_changes_first_and_runs_as_nobody_in_particular() {
    let text = file("Dockerfile");
    let at = |needle: &str| text.find(needle).unwrap_or_else(|| panic!("no `{needle}`"));
    assert!(at("COPY Cargo.toml Cargo.lock") < at("cargo build"), "manifests come first");
    assert!(at("cargo build") < at("COPY . ."), "and what they name is built before the sources are there");
    let builds = text.matches("cargo build").count();
    assert_eq!(text.matches("cargo build --release --locked").count(), builds);
    let user = text.lines().filter_map(|line| line.strip_prefix("USER ")).next_back().expect("a user");
    assert!(!["root", "0", "0:0"].contains(&user), "{user}");
    for image in text.lines().filter_map(|line| line.strip_prefix("FROM ")) {
        let tag = image.split_whitespace().next().and_then(|image| image.split_once(':')).map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| tag != "latest" && tag.contains('.')), "{image} is not pinned");
    }
    assert!(text.contains("EXPOSE"));
    // A crate whose manifest is not copied would be built without its dependencies.
    let crates = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("crates");
    for entry in std::fs::read_dir(crates).expect("crates") {
        let name = entry.expect("an entry").file_name().into_string().expect("text");
        assert!(text.contains(&format!("COPY examples/order-system/crates/{name}/Cargo.toml ")), "{name}");
    }
}

/// The image listens for other machines; who starts it as it is would have a system that everybody has the keys of.
#[tokio::test]
async fn nothing_listens_for_other_machines_with_secrets_that_everybody_knows() {
    assert!(file("Dockerfile").contains("ENV HOST=0.0.0.0"));
    let data = tempfile::tempdir().expect("a folder");
    let open = Options::alone(data.path()).with(env::HOST, "0.0.0.0");
    let why = System::start(open.clone()).await.expect_err("it listens").to_string();
    assert!(why.contains(env::INTERNAL_TOKEN) && why.contains(env::JWT_SECRET), "{why}");
    let users = Options { parts: vec!["users"], ..open.clone() };
    let why = System::start(users).await.expect_err("it listens").to_string();
    assert!(why.contains(env::INTERNAL_TOKEN) && !why.contains(env::JWT_SECRET), "{why}");
    let why = Monolith::start(0, data.path(), open.env).await.expect_err("it listens").to_string();
    assert!(why.contains(env::INTERNAL_TOKEN), "{why}");
}

/// No gateway looks at the tokens of users before it, so that otherwise anybody could charge cards.
#[tokio::test(flavor = "multi_thread")]
async fn a_monolith_that_others_reach_is_for_services() -> Result<(), BoxError> {
    for (host, unknown, known) in [("0.0.0.0", 401, 404), ("127.0.0.1", 404, 404)] {
        let data = tempfile::tempdir()?;
        let env = Env::empty().with(env::HOST, host).with(env::INTERNAL_TOKEN, "chosen");
        let monolith = Monolith::start(0, data.path(), env.clone()).await?;
        for (shown, status) in [(Env::empty(), unknown), (env, known)] {
            let remote = Remote::of([("users".to_owned(), monolith.url())].into(), &shown);
            let answer = remote.get("users", "/users/nobody").await?;
            assert_eq!(answer.status.as_u16(), status, "{host}: {}", answer.text);
            let health = remote.get("users", "/health").await?;
            assert_eq!(health.status.as_u16(), 200, "{host} is alive for everybody");
        }
        monolith.stop().await;
    }
    Ok(())
}

#[test]
fn compose_names_only_variables_that_are_read_and_gives_each_service_its_own_database() {
    let compose = documents("compose.yaml").remove(0);
    let services = compose["services"].as_object().expect("services");
    let mut databases = BTreeSet::new();
    for (name, service) in services {
        let ours = service["command"][0] == "serve" || service.get("<<").is_some();
        assert!(service.get("healthcheck").is_some() || name == "jaeger", "{name} has no health check");
        if !ours {
            let image = service["image"].as_str().unwrap_or_default();
            assert!(image.contains(':') && !image.ends_with(":latest"), "{name}: {image} is not pinned");
            continue;
        }
        for variable in
            service["environment"].as_object().expect("an environment").keys().filter(|name| *name != "<<")
        {
            assert!(known_variables().contains(variable.as_str()), "{name}: nobody reads {variable}");
        }
        if let Some(url) = service["environment"]["DATABASE_URL"].as_str() {
            assert!(databases.insert(url.to_owned()), "{name} shares a database");
            let init = file("postgres/init.sql");
            let (role, database) = (
                url.split(['/', ':']).nth(3).unwrap_or_default(),
                url.rsplit('/').next().unwrap_or_default(),
            );
            assert!(init.contains(&format!("create role {role} ")), "{role}");
            assert!(init.contains(&format!("create database {database} owner {role};")), "{database}");
        }
        // The gateway's registry says to others where each is; 127.0.0.1 is where they are themselves.
        assert_eq!(service["environment"]["ADVERTISED_HOST"], *name);
        for (needed, how) in service["depends_on"].as_object().expect("what it needs") {
            assert!(services.contains_key(needed), "{name} needs {needed}");
            assert_eq!(how["condition"], "service_healthy", "{name} needs {needed}");
        }
    }
    assert_eq!(compose["x-common"]["GATEWAY_URL"], "http://gateway:3000");
    let patience = compose["x-service"]["stop_grace_period"].as_str().expect("a time").trim_end_matches('s');
    assert!(Duration::from_secs(patience.parse().expect("seconds")) > longest_end(&Env::empty()));
    for variable in compose["x-common"].as_object().expect("x-common").keys() {
        assert!(known_variables().contains(variable.as_str()), "nobody reads {variable}");
    }
    for service in SERVICES {
        assert!(services.contains_key(service.name), "{}", service.name);
    }
    assert!(databases.len() >= 6);
}

/// The values below a key of this name, wherever it stands.
fn values<'a>(document: &'a Value, key: &str) -> Vec<&'a Value> {
    match document {
        Value::Object(map) => {
            let below = map.values().flat_map(|value| values(value, key));
            map.get(key).into_iter().chain(below).collect()
        }
        Value::Array(all) => all.iter().flat_map(|value| values(value, key)).collect(),
        _ => Vec::new(),
    }
}

/// A default that stands in a file is known to everybody, and the guard knows only its own.
#[test]
fn compose_has_no_secrets_of_its_own_where_other_machines_come_in() {
    let compose = documents("compose.yaml").remove(0);
    for secret in [env::INTERNAL_TOKEN, env::JWT_SECRET] {
        let values = values(&compose, secret);
        assert!(!values.is_empty(), "{secret}");
        for value in values {
            let value = value.as_str().unwrap_or_default();
            let needed = value.strip_prefix(&format!("${{{secret}:?")).and_then(|it| it.strip_suffix('}'));
            assert!(needed.is_some_and(|why| !why.is_empty()), "{secret}: {value}");
        }
    }
    assert!(compose["services"]["gateway"]["environment"].get(env::JWT_SECRET).is_some());
}

#[test]
fn kubernetes_asks_for_life_and_readiness_apart_and_waits_long_enough() {
    let documents = documents("kubernetes/services.yaml");
    let of_kind = |kind: &str| documents.iter().filter(move |it| it["kind"] == kind).collect::<Vec<_>>();
    let deployments = of_kind("Deployment");
    assert!(deployments.len() >= SERVICES.len());
    for deployment in deployments {
        let name = &deployment["metadata"]["name"];
        let spec = &deployment["spec"]["template"]["spec"];
        let container = &spec["containers"][0];
        assert_eq!(deployment["spec"]["replicas"], 3, "{name}");
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/health", "{name}");
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/health/ready", "{name}");
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{name}");
        let variables = container["env"].as_array().expect("variables");
        for variable in variables {
            let variable = variable["name"].as_str().unwrap_or_default();
            assert!(known_variables().contains(variable), "{name}: nobody reads {variable}");
        }
        // Each of several gateways would have a registry of its own, so names are all that services go by.
        for absent in [env::GATEWAY_URL, env::ADVERTISED_HOST] {
            assert!(!variables.iter().any(|it| it["name"] == absent), "{name}: {absent}");
        }
        let grace = Duration::from_secs(spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(30));
        let set = |env: Env, variable: &str| {
            let found = variables.iter().find(|it| it["name"] == variable);
            env.with(variable, found.and_then(|it| it["value"].as_str()).expect(variable))
        };
        let env = [env::SHUTDOWN_GRACE_MS, env::SHUTDOWN_DELAY_MS].into_iter().fold(Env::empty(), set);
        assert!(grace > longest_end(&env), "{name}");
        let port = container["ports"][0]["containerPort"].as_u64();
        if let Some(known) = SERVICES.iter().find(|it| *name == it.name) {
            assert_eq!(port, Some(3_000 + u64::from(known.offset)), "{name}");
        }
    }
    for known in GRPC {
        let named = |it: &&Value| it["metadata"]["name"] == known.name.trim_end_matches(".grpc");
        let port = Some(u64::from(known.port(3_000)));
        let container = of_kind("Deployment").into_iter().find(named).expect(known.name);
        let container = &container["spec"]["template"]["spec"]["containers"][0]["ports"][1];
        assert_eq!((container["name"].as_str(), container["containerPort"].as_u64()), (Some("grpc"), port));
        let service = &of_kind("Service").into_iter().find(named).expect(known.name)["spec"]["ports"][1];
        assert_eq!((service["name"].as_str(), service["port"].as_u64()), (Some("grpc"), port));
        assert!(file("Dockerfile").contains(&known.port(3_000).to_string()), "{}", known.name);
    }
    let scaler = of_kind("HorizontalPodAutoscaler")[0];
    assert!(scaler["spec"]["metrics"][0].to_string().contains("queue"), "by the length of a queue");
}

/// As in a pod: 127.0.0.1 is nobody there but the pod itself.
#[tokio::test]
async fn who_listens_for_other_machines_asks_for_a_registry_only_where_it_is_told_to() {
    let asks = async |host: &str, told: bool, patience: Duration| {
        let data = tempfile::tempdir().expect("a folder");
        let base = free_ports().expect("free ports");
        let registry = tokio::net::TcpListener::bind(("127.0.0.1", base)).await.expect("it is free");
        let mut options = Options { parts: vec!["users"], port_base: base, ..Options::alone(data.path()) }
            .with(env::HOST, host)
            .with(env::DEV_TOKENS, "1");
        if told {
            options = options.with(env::GATEWAY_URL, format!("http://127.0.0.1:{base}"));
        }
        let users = System::start(options).await.expect("it starts");
        let asked = tokio::time::timeout(patience, registry.accept()).await.is_ok();
        users.stop().await;
        asked
    };
    let long = Duration::from_secs(20);
    assert!(asks("127.0.0.1", false, long).await, "the gateway is on this machine");
    assert!(asks("0.0.0.0", true, long).await);
    assert!(!asks("0.0.0.0", false, Duration::from_millis(500)).await);
}

#[test]
fn the_pipeline_has_a_line_for_each_service() {
    let pipeline = documents("ci.yaml").remove(0);
    let services = pipeline["jobs"]["service"]["strategy"]["matrix"]["service"].as_array().expect("services");
    for known in SERVICES {
        assert!(services.iter().any(|it| *it == known.name), "{}", known.name);
    }
}
