//! All services in one process, each with its own listener and its own data.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::Duration,
};

use order_broker::Broker;
use order_gateway::{
    Instances, RegistryClient,
    registry::{self, Instance},
};
use order_kit::{
    BoxError, Context,
    auth::ServiceTokens,
    context::{Known, Locate, Ports, SERVICES, known},
    env::{self, Env},
    server::Door,
};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::services;

/// How a system is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// The gateway's port; the others follow. 0: free ports.
    pub port_base: u16,
    /// Where everybody's data is.
    pub data: PathBuf,
    /// The settings.
    pub env: Env,
    /// Which services; the rest is elsewhere.
    pub parts: Vec<&'static str>,
}

impl Options {
    /// Everything, on free ports, with nothing of the process's environment: for tests and demonstrations.
    pub fn alone(data: &Path) -> Self {
        Options { port_base: 0, data: data.to_owned(), env: Env::empty(), parts: services::ALL.to_vec() }
    }

    /// With a setting.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env = self.env.with(name, value);
        self
    }
}

/// Where services are, as the system itself knows.
#[derive(Debug, Default)]
pub struct Table(RwLock<BTreeMap<&'static str, String>>);

impl Table {
    fn set(&self, name: &'static str, address: SocketAddr) {
        self.0
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(name, format!("http://{address}"));
    }
}

impl Locate for Table {
    fn locate(&self, service: &str) -> String {
        let table = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Nobody listens on port 9, so that an unknown service is one that cannot be reached.
        known(service)
            .and_then(|it| table.get(it.name).cloned())
            .unwrap_or_else(|| "http://127.0.0.1:9".to_owned())
    }

    fn lost(&self, _: &str, _: &str) {}
}

/// Those that ask others. They are built when these are there, and end before them.
const ASK: [&str; 5] = ["orders", "orders-read", "notifications", "analytics", "loyalty"];

/// One service that runs.
struct Running {
    part: &'static str,
    address: SocketAddr,
    context: Context,
    door: Door,
    server: JoinHandle<()>,
}

/// A system that runs.
pub struct System {
    broker: Arc<dyn Broker>,
    table: Arc<Table>,
    /// The gateway's, if it is here; else what is known of it.
    instances: Arc<Instances>,
    locate: Arc<dyn Locate>,
    /// Of a gateway elsewhere.
    registry: Option<Arc<RegistryClient>>,
    options: Options,
    /// Where users listen for gRPC, once they do: a new start is where the others look for it.
    grpc: Option<SocketAddr>,
    running: Vec<Running>,
}

impl std::fmt::Debug for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.running.iter().map(|it| (it.part, it.address))).finish()
    }
}

/// The broker's address, with the data's folder where it has none of its own.
pub fn broker_address(env: &Env, data: &Path) -> String {
    match env.get_or_default(env::RABBITMQ_URL).as_str() {
        "sqlite:" => format!("sqlite:{}", data.join("broker.db").display()),
        other => other.to_owned(),
    }
}

impl System {
    /// Starts all parts; it is ready when this returns.
    ///
    /// # Errors
    ///
    /// A port that is taken, data that cannot be opened, a setting that is none.
    pub async fn start(options: Options) -> Result<Self, BoxError> {
        std::fs::create_dir_all(&options.data)?;
        let broker = order_broker::open(&broker_address(&options.env, &options.data)).await?;
        System::start_with(options, broker).await
    }

    /// The same with a broker that is there already.
    ///
    /// # Errors
    ///
    /// As of [`start`](System::start).
    pub async fn start_with(options: Options, broker: Arc<dyn Broker>) -> Result<Self, BoxError> {
        let secrets: &[&str] = match options.parts.contains(&order_gateway::NAME) {
            true => &[env::INTERNAL_TOKEN, env::JWT_SECRET],
            false => &[env::INTERNAL_TOKEN],
        };
        env::guarded(&options.env, secrets)?;
        std::fs::create_dir_all(&options.data)?;
        order_kit::telemetry::init(&options.env)?;
        let table = Arc::new(Table::default());
        let alone = options.parts.len() == 1;
        // One service of many finds the others at the documented ports, until the registry says more.
        let otherwise: Arc<dyn Locate> = match options.port_base {
            base if alone => Arc::new(Ports(if base == 0 { 3000 } else { base })),
            _ => table.clone(),
        };
        let instances = Arc::new(Instances::new(registry::TTL, otherwise.clone()));
        let (locate, registry): (Arc<dyn Locate>, _) = if options.parts.contains(&order_gateway::NAME) {
            (instances.clone(), None)
        } else {
            let set = options.env.get(env::GATEWAY_URL);
            let gateway = set.unwrap_or_else(|| otherwise.locate(order_gateway::NAME));
            let client = Arc::new(RegistryClient::new(&gateway, &ServiceTokens::of(&options.env), otherwise));
            (client.clone(), Some(client))
        };
        let mut system =
            System { broker, table, instances, locate, registry, options, grpc: None, running: Vec::new() };
        // First all ports, so that each service knows where the others will be.
        let mut listeners = Vec::new();
        for part in system.options.parts.clone() {
            let (listener, grpc) = (system.listen(part).await?, system.listen_for_grpc(part).await?);
            system.table.set(part, listener.local_addr()?);
            listeners.push((part, listener, grpc));
        }
        let elsewhere = || match system.options.port_base {
            0 => services::grpc_port(3000),
            base => services::grpc_port(base),
        };
        let url = system.grpc.map_or_else(
            || format!("http://127.0.0.1:{}", elsewhere()),
            |address| format!("http://{address}"),
        );
        system.options.env = services::with_grpc(system.options.env, url);
        // Then all of them answer, if only that they are not ready; and who asks others is built behind those, and the gateway last.
        let mut parts = Vec::new();
        for (part, listener, grpc) in listeners {
            system.answer(part, listener)?;
            parts.push((part, grpc));
        }
        parts.sort_by_key(|(part, _)| (*part == order_gateway::NAME, ASK.contains(part)));
        for (part, grpc) in parts {
            if let Err(error) = system.build(part, grpc).await {
                system.stop().await;
                return Err(format!("{part}: {error}").into());
            }
        }
        Ok(system)
    }

    async fn listen(&self, part: &'static str) -> Result<TcpListener, BoxError> {
        let host = self.options.env.get_or_default(env::HOST);
        let offset = known(part).map_or(0, |Known { offset, .. }| *offset);
        let port = match (self.options.env.get(env::PORT), self.options.port_base) {
            (Some(port), _) if self.options.parts.len() == 1 => port.parse()?,
            (_, 0) => 0,
            // What has no documented port takes a free one.
            (_, _) if known(part).is_none() => 0,
            (_, base) => base + offset,
        };
        TcpListener::bind((host.as_str(), port))
            .await
            .map_err(|error| format!("port {port} for {part}: {error}").into())
    }

    /// The second listener of users; none of others.
    async fn listen_for_grpc(&mut self, part: &'static str) -> Result<Option<TcpListener>, BoxError> {
        if part != "users" {
            return Ok(None);
        }
        let port =
            self.grpc.map_or_else(|| services::grpc_port(self.options.port_base), |address| address.port());
        let listener = services::listen_for_grpc(&self.options.env, port).await?;
        self.grpc = Some(listener.local_addr()?);
        Ok(Some(listener))
    }

    /// Opens the port of a part that is still to be built.
    fn answer(&mut self, part: &'static str, listener: TcpListener) -> Result<(), BoxError> {
        let address = listener.local_addr()?;
        let context = Context::new(
            part,
            self.options.env.clone(),
            &self.options.data,
            self.broker.clone(),
            self.locate.clone(),
        );
        let door = Door::new(&context);
        let router = door.router();
        let server = if part == order_gateway::NAME {
            let context = context.clone();
            tokio::spawn(async move {
                if let Err(error) = order_gateway::serve(context, router, listener).await {
                    tracing::error!(%error, "the gateway cannot serve");
                }
            })
        } else {
            tokio::spawn(order_kit::server::serve(context.clone(), router, listener))
        };
        self.table.set(part, address);
        self.running.push(Running { part, address, context, door, server });
        Ok(())
    }

    /// Builds it: its database is brought up to date and its queues are consumed. Then it does its work, and others are told of it.
    async fn build(&self, part: &'static str, grpc: Option<TcpListener>) -> Result<(), BoxError> {
        let Running { address, context, door, .. } = self.running(part);
        door.open(services::build(context, &self.instances).await?);
        self.announce(part, *address, context);
        if let Some(listener) = grpc {
            services::serve_grpc(context, listener);
        }
        Ok(())
    }

    fn running(&self, part: &str) -> &Running {
        let running = self.running.iter().find(|it| it.part == part);
        running.unwrap_or_else(|| panic!("{part} does not run here"))
    }

    /// Says in the registry that an instance is there, again and again, until it ends.
    fn announce(&self, part: &'static str, address: SocketAddr, context: &Context) {
        let name = self.options.env.get(env::SERVICE_NAME).unwrap_or_else(|| part.to_owned());
        let host = match address.ip() {
            all if all.is_unspecified() => self.options.env.get_or_default(env::ADVERTISED_HOST),
            one => one.to_string(),
        };
        let instance = Instance {
            service: part.to_owned(),
            host,
            port: address.port(),
            id: format!("{name}-{}-{}", std::process::id(), address.port()),
        };
        let stop = context.stop().clone();
        if let Some(registry) = &self.registry {
            context.spawn(registry.clone().run(vec![instance], stop));
            return;
        }
        context.spawn(registry::keep(self.instances.clone(), vec![instance], stop));
    }

    /// The base URL of a part: `http://127.0.0.1:3002`.
    ///
    /// # Panics
    ///
    /// If it does not run here.
    pub fn url(&self, part: &str) -> String {
        format!("http://{}", self.running(part).address)
    }

    /// Its context: its faults and policies.
    ///
    /// # Panics
    ///
    /// If it does not run here.
    pub fn context(&self, part: &str) -> &Context {
        &self.running(part).context
    }

    /// The broker.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.broker
    }

    /// What was started, and where.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        self.running.iter().map(|it| (it.part, it.address))
    }

    /// How it was started.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Ends one service in order, as SIGTERM does.
    pub async fn stop_part(&mut self, part: &str) {
        if let Some(index) = self.running.iter().position(|it| it.part == part) {
            end(self.running.remove(index)).await;
        }
    }

    /// Starts one anew, on a port of its own choice that the others are told of.
    ///
    /// # Errors
    ///
    /// As of [`start`](System::start).
    pub async fn start_part(&mut self, part: &'static str) -> Result<(), BoxError> {
        let listener = TcpListener::bind((self.options.env.get_or_default(env::HOST).as_str(), 0)).await?;
        let grpc = self.listen_for_grpc(part).await?;
        self.answer(part, listener)?;
        self.build(part, grpc).await
    }

    /// Ends all services in order: the gateway first, so that nothing new comes in; then those that ask others; then the others. Those that
    /// do not ask each other end at the same time, so that three graces are the longest that it takes.
    pub async fn stop(self) {
        let (gateway, rest): (Vec<_>, Vec<_>) =
            self.running.into_iter().partition(|it| it.part == order_gateway::NAME);
        let (ask, asked): (Vec<_>, Vec<_>) = rest.into_iter().partition(|it| ASK.contains(&it.part));
        for together in [gateway, ask, asked] {
            futures::future::join_all(together.into_iter().map(end)).await;
        }
    }
}

async fn end(running: Running) {
    running.context.stop().cancel();
    let _ = running.server.await;
    if tokio::time::timeout(Duration::from_secs(10), running.context.finished()).await.is_err() {
        tracing::warn!(service = running.part, "something still ran at the end of the grace");
    }
}

/// The names of the documented services.
pub fn documented() -> impl Iterator<Item = &'static str> {
    SERVICES.iter().map(|it| it.name)
}
