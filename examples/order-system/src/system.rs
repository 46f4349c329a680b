//! All services in one process, each with its own listener and its own data.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::Duration,
};

use futures::future::join_all;
use order_broker::Broker;
use order_gateway::{
    Instances, RegistryClient,
    registry::{self, Instance},
};
use order_kit::{
    BoxError, Context,
    auth::ServiceTokens,
    context::{Locate, Ports, SERVICES, known},
    env::{self, Env},
    server::Door,
};
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

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
    pub(crate) fn set(&self, name: &'static str, address: SocketAddr) {
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

/// What each group of services has for what it does last, once the time for what is in flight is over; and the process for its spans, and for
/// its threads.
pub(crate) const LAST: Duration = Duration::from_millis(400);

/// How long the end of a process takes at most, whatever hangs: 10 s unless something else is set. Three groups of services end in turn, and
/// what one takes is missing to the next.
pub fn longest_end(env: &Env) -> Duration {
    in_flight(env) + 5 * LAST
}

/// How long what is in flight has.
pub(crate) fn in_flight(env: &Env) -> Duration {
    env.ms(env::SHUTDOWN_DELAY_MS) + env.ms(env::SHUTDOWN_GRACE_MS)
}

/// One service that runs.
struct Running {
    part: &'static str,
    address: SocketAddr,
    /// By gRPC.
    grpc: Option<(&'static str, SocketAddr)>,
    context: Context,
    door: Door,
    server: JoinHandle<()>,
}

impl Running {
    /// Each of its addresses, and what listens there.
    fn there(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        [Some((self.part, self.address)), self.grpc].into_iter().flatten()
    }
}

/// What a part is known as by gRPC, and its port for that.
type ByGrpc = (&'static str, TcpListener);

/// A system that runs.
pub struct System {
    broker: Arc<dyn Broker>,
    table: Arc<Table>,
    /// The gateway's, if it is here; else what is known of it.
    instances: Arc<Instances>,
    locate: Arc<dyn Locate>,
    /// Of a gateway elsewhere, if one is known.
    registry: Option<Arc<RegistryClient>>,
    options: Options,
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
        let gateway = match options.env.get(env::GATEWAY_URL) {
            _ if options.parts.contains(&order_gateway::NAME) => None,
            // On a machine of its own nobody else is at 127.0.0.1: names are what there is.
            None if alone && !env::local(&options.env) => None,
            set => Some(set.unwrap_or_else(|| otherwise.locate(order_gateway::NAME))),
        };
        let (locate, registry): (Arc<dyn Locate>, _) = match gateway {
            None => (instances.clone(), None),
            Some(gateway) => {
                let tokens = ServiceTokens::of(&options.env);
                let client = Arc::new(RegistryClient::new(&gateway, &tokens, otherwise));
                (client.clone(), Some(client))
            }
        };
        let mut system = System { broker, table, instances, locate, registry, options, running: Vec::new() };
        // First all ports, so that each service knows where the others will be.
        let mut listeners = Vec::new();
        for part in system.options.parts.clone() {
            let listener = system.listen(part, env::PORT).await?;
            let grpc = match services::by_grpc(part) {
                Some(known) => Some((known.name, system.listen(known.name, env::GRPC_PORT).await?)),
                None => None,
            };
            listeners.push((part, listener, grpc));
        }
        // Then all of them answer, if only that they are not ready; and who asks others is built behind those, and the gateway last.
        let mut parts = Vec::new();
        for (part, listener, grpc) in listeners {
            system.answer(part, listener, grpc.as_ref())?;
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

    /// On the port that the variable says, if one part is all there is; else on the documented one, moved by the base.
    async fn listen(&self, name: &'static str, variable: &str) -> Result<TcpListener, BoxError> {
        let port = match self.options.env.get(variable) {
            Some(port) if self.options.parts.len() == 1 => port.parse()?,
            // What has no documented port takes a free one.
            _ => known(name).map_or(0, |it| it.port(self.options.port_base)),
        };
        let listener = services::listen(&self.options.env, name, port).await?;
        self.table.set(name, listener.local_addr()?);
        Ok(listener)
    }

    /// Opens the port of a part that is still to be built.
    fn answer(
        &mut self,
        part: &'static str,
        listener: TcpListener,
        grpc: Option<&ByGrpc>,
    ) -> Result<(), BoxError> {
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
        let grpc = match grpc {
            Some((name, listener)) => Some((*name, listener.local_addr()?)),
            None => None,
        };
        let running = Running { part, address, grpc, context, door, server };
        running.there().for_each(|(name, address)| self.table.set(name, address));
        self.running.push(running);
        Ok(())
    }

    /// Builds it: its database is brought up to date and its queues are consumed. Then it does its work, and others are told of it.
    async fn build(&self, part: &'static str, grpc: Option<ByGrpc>) -> Result<(), BoxError> {
        let running = self.running(part);
        running.door.open(services::build(&running.context, &self.instances).await?);
        if let Some((_, listener)) = grpc {
            services::serve_grpc(&running.context, listener);
        }
        self.announce(running);
        Ok(())
    }

    fn running(&self, part: &str) -> &Running {
        let running = self.running.iter().find(|it| it.part == part);
        running.unwrap_or_else(|| panic!("{part} does not run here"))
    }

    /// Says in the registry that instances are there, by HTTP and by gRPC, again and again, until they end.
    fn announce(&self, running: &Running) {
        let instances = running.there().map(|(name, address)| self.instance(name, address)).collect();
        let stop = running.context.stop().clone();
        match &self.registry {
            Some(registry) => running.context.spawn(registry.clone().run(instances, stop)),
            None => running.context.spawn(registry::keep(self.instances.clone(), instances, stop)),
        }
    }

    fn instance(&self, part: &'static str, address: SocketAddr) -> Instance {
        let name = self.options.env.get(env::SERVICE_NAME).unwrap_or_else(|| part.to_owned());
        let host = match address.ip() {
            all if all.is_unspecified() => self.options.env.get_or_default(env::ADVERTISED_HOST),
            one => one.to_string(),
        };
        Instance {
            service: part.to_owned(),
            host,
            port: address.port(),
            id: format!("{name}-{}-{}", std::process::id(), address.port()),
        }
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

    /// What was started, and where: each by HTTP, and then, under a name of its own, by gRPC.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        self.running.iter().flat_map(Running::there)
    }

    /// How it was started.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Ends one service in order, as SIGTERM does.
    pub async fn stop_part(&mut self, part: &str) {
        if let Some(index) = self.running.iter().position(|it| it.part == part) {
            let by = Instant::now() + in_flight(&self.options.env) + LAST;
            let Running { context, server, .. } = self.running.remove(index);
            end(&[context], server, by).await;
        }
    }

    /// Starts one anew, on a port of its own choice that the others are told of.
    ///
    /// # Errors
    ///
    /// As of [`start`](System::start).
    pub async fn start_part(&mut self, part: &'static str) -> Result<(), BoxError> {
        let listener = services::listen(&self.options.env, part, 0).await?;
        let grpc = match services::by_grpc(part) {
            Some(known) => Some((known.name, services::listen(&self.options.env, known.name, 0).await?)),
            None => None,
        };
        self.answer(part, listener, grpc.as_ref())?;
        self.build(part, grpc).await
    }

    /// Ends all services in order: the gateway first, so that nothing new comes in; then those that ask others; then the others. Those that
    /// do not ask each other end at the same time, and all of them have one time together for what is in flight.
    pub async fn stop(self) {
        let mut by = Instant::now() + in_flight(&self.options.env);
        let (gateway, rest): (Vec<_>, Vec<_>) =
            self.running.into_iter().partition(|it| it.part == order_gateway::NAME);
        let (ask, asked): (Vec<_>, Vec<_>) = rest.into_iter().partition(|it| ASK.contains(&it.part));
        for together in [gateway, ask, asked] {
            by += if together.is_empty() { Duration::ZERO } else { LAST };
            let ends = together.into_iter().map(|it| async move { end(&[it.context], it.server, by).await });
            join_all(ends).await;
        }
    }
}

/// Ends a server in order, and with it all that runs beside it; what is not over by then is left.
pub(crate) async fn end(contexts: &[Context], mut server: JoinHandle<()>, by: Instant) {
    contexts.iter().for_each(|it| it.stop().cancel());
    if timeout_at(by - LAST, &mut server).await.is_err() {
        // Its connections end with it, and who waits for the last answer to be given need not.
        server.abort();
    }
    let finished = contexts.iter().map(|it| async move {
        if timeout_at(by, it.finished()).await.is_err() {
            tracing::warn!(service = it.name(), "something still ran at the end of the grace");
        }
    });
    join_all(finished).await;
}

/// The names of the documented services.
pub fn documented() -> impl Iterator<Item = &'static str> {
    SERVICES.iter().map(|it| it.name)
}
