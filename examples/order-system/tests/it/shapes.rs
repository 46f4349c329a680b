//! The shapes in which the system runs, and the servers that may be behind it.

use std::{collections::BTreeMap, path::Path};

use order_kit::{
    BoxError,
    env::{self, Env},
};
use order_system::{
    demo::Play,
    monolith::Monolith,
    processes::Processes,
    remote::Remote,
    system::{Options, System},
};
use tempfile::TempDir;

/// Real servers, in places of their own, of which nothing is left.
pub struct Servers {
    pub variables: Vec<(String, String)>,
    /// The database, and what the schemas' names begin with.
    postgres: Option<(String, String)>,
    /// Redis, and what the keys begin with.
    redis: Option<(String, String)>,
    vhost: Option<String>,
}

/// Those that the environment names; `None`, and said so, if one is missing.
pub fn servers(test: &str) -> Option<Servers> {
    let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (postgres, amqp, redis) =
        (named("MAINSTAY_TEST_POSTGRES"), named("MAINSTAY_TEST_AMQP"), named("MAINSTAY_TEST_REDIS"));
    let (Some(postgres), Some(amqp), Some(redis)) = (postgres, amqp, redis) else {
        eprintln!(
            "SKIPPED {test}: MAINSTAY_TEST_POSTGRES, MAINSTAY_TEST_AMQP and MAINSTAY_TEST_REDIS are not all set"
        );
        return None;
    };
    let own = format!("it_{}_", order_kit::new_id().replace('-', ""));
    let user = amqp
        .split_once("://")
        .and_then(|(_, rest)| rest.split([':', '@']).next())
        .unwrap_or("guest")
        .to_owned();
    let (host, _) = amqp.rsplit_once('/').unwrap_or((&amqp, ""));
    let made = rabbitmqctl(&["add_vhost", &own])
        && rabbitmqctl(&["set_permissions", "-p", &own, &user, ".*", ".*", ".*"]);
    assert!(made, "a virtual host of RabbitMQ can be made with rabbitmqctl");
    let variables = vec![
        (env::DATABASE_URL.to_owned(), postgres.clone()),
        ("DATABASE_SCHEMA_PREFIX".to_owned(), own.clone()),
        (env::RABBITMQ_URL.to_owned(), format!("{host}/{own}")),
        (env::REDIS_URL.to_owned(), redis.clone()),
        ("REDIS_KEY_PREFIX".to_owned(), own.clone()),
    ];
    let redis = Some((redis, own.clone()));
    Some(Servers { variables, postgres: Some((postgres, own.clone())), redis, vhost: Some(own) })
}

fn rabbitmqctl(arguments: &[&str]) -> bool {
    let output = std::process::Command::new("rabbitmqctl").arg("-q").args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

impl Servers {
    /// SQLite files, and nothing else.
    pub fn embedded() -> Self {
        Servers { variables: Vec::new(), postgres: None, redis: None, vhost: None }
    }

    /// Leaves nothing behind.
    pub async fn clean(self) -> Result<(), BoxError> {
        if let Some(vhost) = self.vhost {
            assert!(rabbitmqctl(&["delete_vhost", &vhost]), "the virtual host goes");
        }
        if let Some((url, prefix)) = self.redis {
            let mut redis = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
            let all = format!("{prefix}*");
            let keys: Vec<String> = redis::cmd("KEYS").arg(all).query_async(&mut redis).await?;
            if !keys.is_empty() {
                redis::cmd("DEL").arg(keys).exec_async(&mut redis).await?;
            }
        }
        if let Some((url, prefix)) = self.postgres {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            let schemas = client
                .query(
                    "select nspname::text from pg_namespace where starts_with(nspname::text, $1)",
                    &[&prefix],
                )
                .await?;
            for schema in schemas {
                let schema: String = schema.get(0);
                client.batch_execute(&format!("drop schema \"{schema}\" cascade")).await?;
            }
        }
        Ok(())
    }
}

/// A system that runs, as seen from in front of it.
pub enum Shape {
    OneProcess(Box<System>),
    Monolith(Box<Monolith>),
    Processes(Box<Processes>),
}

/// Whoever talks to it, and how paths begin there.
pub struct Front {
    pub remote: Remote,
    pub prefix: &'static str,
    shape: Shape,
    _data: TempDir,
}

fn set(env: Env, variables: &[(String, String)]) -> Env {
    variables.iter().fold(env, |env, (name, value)| env.with(name, value.clone()))
}

impl Front {
    pub async fn one_process(servers: &Servers) -> Result<Self, BoxError> {
        let data = tempfile::tempdir()?;
        let options = options(data.path(), servers);
        let system = System::start(options).await?;
        Ok(Front {
            remote: Remote::to(&system),
            prefix: "/api",
            shape: Shape::OneProcess(Box::new(system)),
            _data: data,
        })
    }

    pub async fn monolith(servers: &Servers) -> Result<Self, BoxError> {
        let data = tempfile::tempdir()?;
        let env = set(Env::empty().with(env::POLICY_FAST, "1"), &servers.variables);
        let monolith = Monolith::start(0, data.path(), env.clone()).await?;
        let url = |name: &str| (name.to_owned(), monolith.url());
        let names = ["gateway", "users", "orders", "products", "payments", "inventory", "notifications"];
        let remote = Remote::of(names.map(url).into_iter().collect::<BTreeMap<_, _>>(), &env);
        Ok(Front { remote, prefix: "", shape: Shape::Monolith(Box::new(monolith)), _data: data })
    }

    pub async fn processes(servers: &Servers) -> Result<Self, BoxError> {
        let data = tempfile::tempdir()?;
        let processes = order_system::demo::start_processes(&play(servers), data.path()).await?;
        let remote = processes.remote();
        Ok(Front { remote, prefix: "/api", shape: Shape::Processes(Box::new(processes)), _data: data })
    }

    pub async fn end(self) {
        match self.shape {
            Shape::OneProcess(system) => system.stop().await,
            Shape::Monolith(monolith) => monolith.stop().await,
            Shape::Processes(processes) => processes.stop().await,
        }
    }
}

fn options(data: &Path, servers: &Servers) -> Options {
    let options = Options::alone(data).with(env::RATE_LIMIT, "off").with(env::POLICY_FAST, "1");
    servers.variables.iter().fold(options, |options, (name, value)| options.with(name, value.clone()))
}

/// How journeys are played by a test.
pub fn play(servers: &Servers) -> Play {
    Play {
        variables: servers.variables.clone(),
        program: env!("CARGO_BIN_EXE_order-system").into(),
        timed: false,
    }
}
