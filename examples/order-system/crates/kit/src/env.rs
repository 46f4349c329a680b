//! Settings by environment, each declared once: its name, what it does and its default, so that `doctor` can list them and a test can
//! see that no file names one that nobody reads.

use std::{collections::BTreeMap, sync::Arc};

/// One variable that the system reads.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it does, in one line.
    pub what: &'static str,
    /// What holds if it is not set; empty: nothing does.
    pub default: &'static str,
    /// Not to be printed.
    pub secret: bool,
}

macro_rules! variables {
    ($($(#[$secret:ident])? $name:ident = $default:literal: $what:literal;)*) => {
        /// All of them, in the order in which `doctor` prints them.
        pub const VARIABLES: &[Variable] = &[$(Variable {
            name: stringify!($name), what: $what, default: $default, secret: variables!(@ $($secret)?),
        }),*];
        $(
            #[doc = $what]
            pub const $name: &str = stringify!($name);
        )*
    };
    (@) => { false };
    (@ secret) => { true };
}

variables! {
    #[secret] DATABASE_URL = "sqlite:": "Where services keep their data: `sqlite:` (files below --data) or `postgres://…`; each service has a file or schema of its own";
    #[secret] RABBITMQ_URL = "sqlite:": "The broker: `sqlite:` (one file below --data), `memory:` or `amqp://…`";
    #[secret] REDIS_URL = "": "A cache that instances share: `redis://…`; without it each process has its own";
    OTEL_EXPORTER_OTLP_ENDPOINT = "": "Where spans go, over HTTP: `http://collector:4318`; without it they stay in memory";
    #[secret] INTERNAL_TOKEN = "internal-dev-token": "What services show each other in `X-Service-Token`; two of them, separated by a comma, while one replaces the other: the first is sent, both are accepted";
    #[secret] JWT_SECRET = "dev-secret-change-me": "The key of the tokens that the gateway accepts (HS256)";
    SERVICE_NAME = "": "The name under which a process registers and its spans are collected; by default each service's";
    HOST = "127.0.0.1": "The address on which services listen; one that other machines reach needs an INTERNAL_TOKEN, and at the gateway a JWT_SECRET, that are not the defaults, and a monolith there wants X-Service-Token of whoever asks";
    ADVERTISED_HOST = "127.0.0.1": "The address or name under which others reach a process whose HOST is all of its addresses, as the registry tells them";
    PORT = "": "The port of the one service that a process serves; by default the service's documented one";
    GRPC_PORT = "": "The same by gRPC, where the service is asked so";
    USER_SERVICE_URL = "": "Where users are; by default the registry, then 127.0.0.1 and the documented port";
    ORDER_SERVICE_URL = "": "Where orders are";
    PRODUCT_SERVICE_URL = "": "Where products are";
    PAYMENT_SERVICE_URL = "": "Where payments are";
    INVENTORY_SERVICE_URL = "": "Where the inventory is";
    NOTIFICATION_SERVICE_URL = "": "Where notifications are";
    ANALYTICS_SERVICE_URL = "": "Where the figures are";
    LOYALTY_SERVICE_URL = "": "Where the points are";
    GATEWAY_URL = "": "Where the gateway is, which keeps the registry; by default 127.0.0.1 and the documented port. A process of one service whose HOST other machines reach asks for no registry without it";
    USER_GRPC_URL = "": "Where users are by gRPC; by default the registry, then 127.0.0.1 and the documented port";
    ORDER_GRPC_URL = "": "Where orders are by gRPC: `order-system watch` asks there";
    USER_TRANSPORT = "http": "How orders and notifications ask for users: `http` or `grpc`";
    SAGA_STYLE = "orchestrated": "Who moves an order on: `orchestrated` (a durable saga) or `choreography` (services hear each other's events)";
    ORDER_DEADLINE_MS = "600000": "How long an order may take until it is confirmed; then it is cancelled as `timed_out`";
    GATEWAY_TLS_CERT = "": "A PEM file with the gateway's certificates; with it and the key the gateway speaks https";
    GATEWAY_TLS_KEY = "": "A PEM file with the gateway's key";
    CORS_ORIGINS = "http://localhost:8080": "The origins that browsers may call the gateway from, separated by commas";
    RATE_LIMIT = "100/15m": "Requests of one client address at the gateway, in any such time; `off`: no limits at all";
    RATE_LIMIT_PLANS = "free=100/15m,gold=10000/15m": "Requests of one tenant, by the plan in its token";
    DEV_TOKENS = "": "`1`: this is for development: the gateway makes tokens for whoever asks, also with a JWT_SECRET that is not the default, and secrets that everybody knows will do on any HOST";
    STRANGLE = "": "With LEGACY_URL: the services whose routes the gateway takes to the new system, separated by commas";
    LEGACY_URL = "": "The monolith behind the gateway; what is not in STRANGLE goes there. `serve users --backfill` fills users from it";
    #[secret] LEGACY_TOKEN = "": "What the gateway, and users that are filled, show the monolith in `X-Service-Token`; without it nothing, since INTERNAL_TOKEN is for services. A monolith that other machines reach wants its INTERNAL_TOKEN";
    #[secret] LEGACY_RABBITMQ_URL = "": "The monolith's broker, `sqlite:FILE` or `amqp://…`: with it users keep in step with the users of the monolith, by its events";
    READY_DEGRADED_STATUS = "200": "What `/health/ready` answers when only an optional check fails: 200 or 503";
    DATABASE_SCHEMA_PREFIX = "": "What stands before the names of the schemas in PostgreSQL, so that two systems can share a database";
    LONGEST_SAGA_MS = "5184000000": "The longest time from a step of a saga to the saga's end, waits and people included (60 days): what undoes a step is remembered for so long";
    LONGEST_DELIVERY_MS = "2592000000": "The longest time for which a request or a message can be on its way, deliveries anew and replayed dead letters included (30 days): what was handled is remembered for so long";
    KEEP_SENT_MS = "86400000": "How long published events stay in the outbox, for whoever looks (a day)";
    PRUNE_EVERY_MS = "60000": "How often what needs not be remembered any longer is taken away";
    REDIS_KEY_PREFIX = "": "What stands before the keys in Redis, so that two systems can share one";
    SHUTDOWN_DELAY_MS = "0": "How long a process that was told to end still takes new connections, while it already says that it is not ready: as long as a load balancer needs to notice. Meant for a process of one service: of several the later ones have less time left";
    SHUTDOWN_GRACE_MS = "8000": "How long a process that was told to end waits for what is in flight; two seconds later it has ended, whatever hangs";
    LOG = "info": "What is logged, as `tracing` directives";
    TRACE_SAMPLE = "1": "Which share of the traces that begin here is kept, from 0 to 1; what a caller has begun is kept if the caller keeps it. 0: no spans are made at all";
    BREAKERS = "on": "`off`: breakers let everything through, to see what they are for";
    POLICY_FAST = "": "`1`: breakers wait 3 s rather than 30 s, so that a person need not";
}

/// The environment as a service sees it: the process's, with what was set on top.
#[derive(Debug, Clone, Default)]
pub struct Env {
    set: Arc<BTreeMap<String, String>>,
    /// Without the process's environment: for tests.
    alone: bool,
}

impl Env {
    /// The process's environment.
    pub fn process() -> Self {
        Env::default()
    }

    /// Nothing but what is set: for tests.
    pub fn empty() -> Self {
        Env { alone: true, ..Env::default() }
    }

    /// With a value in front of what the process has.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.set).insert(name.to_owned(), value.into());
        self
    }

    /// What somebody has set, and not to nothing.
    pub fn get(&self, name: &str) -> Option<String> {
        let value = self.set.get(name).cloned();
        let value = if self.alone { value } else { value.or_else(|| std::env::var(name).ok()) };
        value.filter(|value| !value.is_empty())
    }

    /// A number of milliseconds: what is set, if it is one, or the declared default.
    pub fn ms(&self, name: &str) -> std::time::Duration {
        let declared = declared(name).map_or("", |it| it.default);
        let ms = self.get(name).and_then(|set| set.parse().ok()).or_else(|| declared.parse().ok());
        std::time::Duration::from_millis(ms.unwrap_or(0))
    }

    /// What is set, or the declared default.
    pub fn get_or_default(&self, name: &str) -> String {
        self.get(name).unwrap_or_else(|| declared(name).map(|it| it.default.to_owned()).unwrap_or_default())
    }
}

/// Whether services listen where this machine alone reaches them.
pub fn local(env: &Env) -> bool {
    let host = env.get_or_default(HOST);
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// Whether the secrets will do for the address: where other machines can come in, a default that stands in the documentation is none.
///
/// # Errors
///
/// What is to be set.
pub fn guarded(env: &Env, secrets: &[&str]) -> Result<(), String> {
    let host = env.get_or_default(HOST);
    if local(env) || env.get(DEV_TOKENS).is_some_and(|value| value == "1") {
        return Ok(());
    }
    let known = |name: &&&str| {
        let default = declared(name).map_or("", |it| it.default);
        // Of several, each opens the door.
        env.get_or_default(name).split(',').any(|secret| secret.trim() == default)
    };
    let known: Vec<&str> = secrets.iter().filter(known).copied().collect();
    match known.as_slice() {
        [] => Ok(()),
        known => Err(format!(
            "{HOST}={host} is open to other machines, and everybody knows the default of {}: set another, or {DEV_TOKENS}=1 where that is meant",
            known.join(" and of ")
        )),
    }
}

/// The variable of that name.
pub fn declared(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|it| it.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_other_machines_come_in_known_secrets_are_none() {
        let secrets = &[INTERNAL_TOKEN, JWT_SECRET];
        let env = |pairs: &[(&str, &str)]| {
            pairs.iter().fold(Env::empty(), |env, (name, value)| env.with(name, *value))
        };
        let chosen = [(INTERNAL_TOKEN, "chosen"), (JWT_SECRET, "chosen")];
        for host in ["127.0.0.1", "127.8.0.1", "::1", "localhost", ""] {
            assert_eq!(guarded(&env(&[(HOST, host)]), secrets), Ok(()), "{host}");
        }
        for host in ["0.0.0.0", "::", "192.0.2.1", "localhost.example", "node"] {
            let open = env(&[(HOST, host)]);
            let why = guarded(&open, secrets).unwrap_err();
            assert!(why.contains(INTERNAL_TOKEN) && why.contains(JWT_SECRET) && why.contains(host), "{why}");
            let chosen = chosen.iter().fold(open.clone(), |env, (name, value)| env.with(name, *value));
            assert_eq!(guarded(&chosen, secrets), Ok(()), "{host}");
            let why = guarded(&chosen.clone().with(INTERNAL_TOKEN, "new, internal-dev-token"), secrets)
                .unwrap_err();
            assert!(!why.contains(JWT_SECRET), "{why}");
            guarded(&chosen.with(JWT_SECRET, "dev-secret-change-me"), secrets).unwrap_err();
            assert_eq!(guarded(&open.clone().with(DEV_TOKENS, "1"), secrets), Ok(()));
            guarded(&open.with(DEV_TOKENS, "0"), secrets).unwrap_err();
        }
    }
}
