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
    postgres: Option<(String, String)>,
    amqp: bool,
}

/// Those that the environment names; `None`, and said so, if one is missing.
pub fn servers(test: &str) -> Option<Servers> {
    let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (postgres, amqp, redis) =
        (named("MAINSTAY_TEST_POSTGRES"), named("MAINSTAY_TEST_AMQP"), named("MAINSTAY_TEST_REDIS"));
    let (Some(postgres), Some(amqp), Some(redis)) = (postgres, amqp, redis) else {
        eprintln!("SKIPPED {test}: MAINSTAY_TEST_POSTGRES, MAINSTAY_TEST_AMQP and MAINSTAY_TEST_REDIS are not all set");
        return None;
    };
    let own = format!("it_{}_", order_kit::new_id().replace('-', ""));
    let variables = vec![
        (env::DATABASE_URL.to_owned(), postgres.clone()),
        ("DATABASE_SCHEMA_PREFIX".to_owned(), own.clone()),
        (env::RABBITMQ_URL.to_owned(), format!("{amqp}?prefix={own}")),
        (env::REDIS_URL.to_owned(), redis),
        ("REDIS_PREFIX".to_owned(), own.clone()),
    ];
    Some(Servers { variables, postgres: Some((postgres, own)), amqp: true })
}

impl Servers {
    /// SQLite files, and nothing else.
    pub fn embedded() -> Self {
        Servers { variables: Vec::new(), postgres: None, amqp: false }
    }

    /// Leaves nothing behind.
    pub async fn clean(self) -> Result<(), BoxError> {
        if self.amqp {
            let (_, address) = self.variables.iter().find(|(name, _)| name == env::RABBITMQ_URL).ok_or("no broker")?;
            order_broker::amqp::delete_all(address).await?;
        }
        if let Some((url, prefix)) = self.postgres {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            let schemas = client
                .query("select nspname from pg_namespace where starts_with(nspname, $1)", &[&prefix])
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
        Ok(Front { remote: Remote::to(&system), prefix: "/api", shape: Shape::OneProcess(Box::new(system)), _data: data })
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
    Play { variables: servers.variables.clone(), program: env!("CARGO_BIN_EXE_order-system").into() }
}
