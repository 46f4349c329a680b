//! What a service is given when it is built, and what it gives back.

use std::{
    any::{Any, TypeId},
    collections::{BTreeSet, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use mainstay::{Name, Registry};
use order_broker::Broker;
use serde::{Deserialize, Serialize};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    BoxError,
    auth::ServiceTokens,
    db::{Db, DbError, Place},
    env::{self, Env},
    error::ApiError,
    fault::Switch,
    health::Check,
    told::{self, Told},
};

/// A service's name, documented port and the variable that says where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its name, as in its folder and its data.
    pub name: &'static str,
    /// As callers and error bodies call it.
    pub singular: &'static str,
    /// The documented port, as an offset from 3000.
    pub offset: u16,
    /// The variable with its base URL.
    pub variable: &'static str,
}

/// All services, by their documented ports.
pub const SERVICES: &[Known] = &[
    Known { name: "gateway", singular: "gateway", offset: 0, variable: env::GATEWAY_URL },
    Known { name: "users", singular: "user", offset: 1, variable: env::USER_SERVICE_URL },
    Known { name: "orders", singular: "order", offset: 2, variable: env::ORDER_SERVICE_URL },
    Known { name: "products", singular: "product", offset: 3, variable: env::PRODUCT_SERVICE_URL },
    Known { name: "payments", singular: "payment", offset: 4, variable: env::PAYMENT_SERVICE_URL },
    Known { name: "inventory", singular: "inventory", offset: 5, variable: env::INVENTORY_SERVICE_URL },
    Known {
        name: "notifications",
        singular: "notification",
        offset: 6,
        variable: env::NOTIFICATION_SERVICE_URL,
    },
];

/// Those that only listen. Nobody needs them, so they are started when somebody wants them.
pub const LISTENERS: &[Known] = &[
    Known { name: "analytics", singular: "analytics", offset: 7, variable: env::ANALYTICS_SERVICE_URL },
    Known { name: "loyalty", singular: "loyalty", offset: 8, variable: env::LOYALTY_SERVICE_URL },
];

/// What services are by gRPC, each on a port of its own beside that of HTTP. Only other services ask there.
pub const GRPC: &[Known] = &[
    Known { name: "users.grpc", singular: "user.grpc", offset: 9, variable: env::USER_GRPC_URL },
    Known { name: "orders.grpc", singular: "order.grpc", offset: 10, variable: env::ORDER_GRPC_URL },
];

/// The service of that name, in either form.
pub fn known(name: &str) -> Option<&'static Known> {
    SERVICES.iter().chain(LISTENERS).chain(GRPC).find(|it| it.name == name || it.singular == name)
}

impl Known {
    /// Its port where that of the gateway is `base`: 50051 and those behind it by gRPC, as documented, where that one is as documented. 0,
    /// any free port, is so for all.
    pub fn port(&self, base: u16) -> u16 {
        match (base, (50_051..).zip(GRPC).find(|(_, it)| *it == self)) {
            (0, _) => 0,
            (3_000, Some((documented, _))) => documented,
            _ => base.saturating_add(self.offset),
        }
    }
}

/// Where instances of services are. The gateway has a registry behind it; without one the documented ports hold.
pub trait Locate: Send + Sync {
    /// The base URL of an instance, in turns: `http://127.0.0.1:3001`. `service` is a name of [`SERVICES`], in either form.
    fn locate(&self, service: &str) -> String;

    /// That no connection to this instance could be made or held: the next one should be another's.
    fn lost(&self, service: &str, base: &str);
}

/// The documented ports, moved by a base.
#[derive(Debug, Clone, Copy)]
pub struct Ports(pub u16);

impl Locate for Ports {
    fn locate(&self, service: &str) -> String {
        format!("http://127.0.0.1:{}", known(service).map_or(self.0, |it| it.port(self.0)))
    }

    fn lost(&self, _: &str, _: &str) {}
}

/// Which part of the books is asked for: so many entries behind a name, in the order of names.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Page {
    /// Whose books, where one process keeps those of several services.
    pub of: Option<String>,
    /// The last name of the page before.
    pub after: Option<String>,
    /// How many at most.
    pub limit: Option<u32>,
}

impl Page {
    /// How many at most: 500 unless something else is said, and never more than 10,000.
    pub fn limit(&self) -> i64 {
        i64::from(self.limit.unwrap_or(500).clamp(1, 10_000))
    }
}

/// What says whether a service's books are right.
type Audit = Box<dyn Fn(Page) -> BoxFuture<'static, Result<serde_json::Value, ApiError>> + Send + Sync>;

/// What sets figures that nobody keeps up to date.
type Measure = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// How long setting a figure may take: whoever asks for figures is not to wait for a broker that hangs.
const MEASURE: Duration = Duration::from_millis(500);

/// What a service is given. Clones are the same.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    name: &'static str,
    env: Env,
    data: PathBuf,
    broker: Arc<dyn Broker>,
    locate: Arc<dyn Locate>,
    tokens: ServiceTokens,
    policies: Registry,
    /// Whether the policies stand beside those of other parts.
    part: bool,
    faults: Switch,
    stop: CancellationToken,
    tasks: TaskTracker,
    serving: TaskTracker,
    started: Instant,
    shared: tokio::sync::Mutex<HashMap<TypeId, Box<dyn Any + Send + Sync>>>,
    audit: OnceLock<Audit>,
    measures: Arc<Mutex<Vec<Measure>>>,
    told: Arc<Mutex<Vec<Told>>>,
    /// What the service waits for while it is being built.
    waits_for: Arc<Mutex<&'static str>>,
    /// The queues that it is to consume, and does not at present.
    unattended: Arc<Mutex<BTreeSet<String>>>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({})", self.0.name)
    }
}

impl Context {
    /// For the service of that name, with its data below `data`.
    pub fn new(
        name: &'static str,
        env: Env,
        data: &Path,
        broker: Arc<dyn Broker>,
        locate: Arc<dyn Locate>,
    ) -> Self {
        Context(Arc::new(Inner {
            name,
            tokens: ServiceTokens::of(&env),
            env,
            data: data.to_owned(),
            broker,
            locate,
            policies: Registry::new(),
            part: false,
            faults: Switch::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            serving: TaskTracker::new(),
            started: Instant::now(),
            shared: tokio::sync::Mutex::default(),
            audit: OnceLock::new(),
            measures: Arc::default(),
            told: Arc::default(),
            waits_for: Arc::new(Mutex::new("its turn")),
            unattended: Arc::default(),
        }))
    }

    /// For a part that is served together with others: the same settings, neighbours, and policies, figures and events that are shown; data,
    /// faults and books of its own.
    #[must_use]
    pub fn part(&self, name: &'static str) -> Self {
        let whole = &self.0;
        Context(Arc::new(Inner {
            name,
            env: whole.env.clone(),
            data: whole.data.clone(),
            broker: whole.broker.clone(),
            locate: whole.locate.clone(),
            tokens: whole.tokens.clone(),
            policies: whole.policies.clone(),
            part: true,
            faults: Switch::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            serving: TaskTracker::new(),
            started: whole.started,
            shared: tokio::sync::Mutex::default(),
            audit: OnceLock::new(),
            measures: whole.measures.clone(),
            told: whole.told.clone(),
            waits_for: whole.waits_for.clone(),
            unattended: whole.unattended.clone(),
        }))
    }

    /// The service's name.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// The settings.
    pub fn env(&self) -> &Env {
        &self.0.env
    }

    /// The folder with everybody's data; a service opens its own file in it and no other.
    pub fn data(&self) -> &Path {
        &self.0.data
    }

    /// Opens the service's own database: `NAME.db` below the data, or the schema `NAME` where `DATABASE_URL` says. As long as the service runs
    /// it is [pruned](crate::prune).
    ///
    /// # Errors
    ///
    /// As of [`Db::open`].
    pub async fn open_db(&self, migrations: &'static [&'static str]) -> Result<Db, DbError> {
        self.wait_for("its database");
        let db = Db::open(self.place(self.name()), migrations).await?;
        crate::prune::start(self, &db);
        Ok(db)
    }

    /// Where data of that name belongs.
    pub fn place(&self, name: &str) -> Place {
        let url = self.env().get_or_default(env::DATABASE_URL);
        if url.starts_with("postgres") {
            let prefix = self.env().get_or_default(env::DATABASE_SCHEMA_PREFIX);
            Place::Postgres { url, schema: format!("{prefix}{name}") }
        } else {
            Place::Sqlite(self.data().join(format!("{name}.db")))
        }
    }

    /// What the parts of a service have in common that are served apart, by two protocols say: made by whoever asks first. There is
    /// one of each type.
    ///
    /// # Errors
    ///
    /// Why it could not be made; the next to ask tries again.
    pub async fn shared<T, E>(&self, make: impl Future<Output = Result<T, E>> + Send) -> Result<T, E>
    where
        T: Clone + Send + Sync + 'static,
    {
        let mut shared = self.0.shared.lock().await;
        if let Some(known) = shared.get(&TypeId::of::<T>()).and_then(|it| it.downcast_ref::<T>()) {
            return Ok(known.clone());
        }
        let made = make.await?;
        shared.insert(TypeId::of::<T>(), Box::new(made.clone()));
        Ok(made)
    }

    /// The broker that all services share.
    pub fn broker(&self) -> &Arc<dyn Broker> {
        &self.0.broker
    }

    /// The base URL of an instance of a service: what its variable says, or where the registry knows one.
    pub fn locate(&self, service: &str) -> String {
        let set = known(service).and_then(|it| self.env().get(it.variable));
        set.map(|url| url.trim_end_matches('/').to_owned()).unwrap_or_else(|| self.0.locate.locate(service))
    }

    /// That an instance did not answer.
    pub fn lost(&self, service: &str, base: &str) {
        self.0.locate.lost(service, base);
    }

    /// What services show each other.
    pub fn tokens(&self) -> &ServiceTokens {
        &self.0.tokens
    }

    /// As the service names its policies for calls of that one: `user`; of a part of a whole, whose policies stand beside those of other
    /// parts in lists and figures, `orders.user`.
    pub fn policy_name(&self, called: &'static str) -> Name {
        if self.0.part { format!("{}.{called}", self.name()).into() } else { called.into() }
    }

    /// All policies of the service, for `/_policies`.
    pub fn policies(&self) -> &Registry {
        &self.0.policies
    }

    /// Faults that are switched on.
    pub fn faults(&self) -> &Switch {
        &self.0.faults
    }

    /// Cancelled when the service is to end: no new work is begun, what is in hand is finished.
    pub fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Runs beside the routes. The service ends when all these have; each has to end soon after [`stop`](Context::stop).
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn(work);
    }

    /// As long as this is held, requests may still come in or be in hand.
    pub(crate) fn serving(&self) -> impl Drop + Send + use<> {
        self.0.serving.token()
    }

    /// Waits until nobody serves the service's routes; at once, if nobody ever has.
    pub(crate) async fn served(&self) {
        self.0.serving.close();
        self.0.serving.wait().await;
    }

    /// Waits for what was spawned.
    pub async fn finished(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Says how the service's books are audited, for `/_audit`. The first says it; whoever is later is not heard.
    pub fn audited<F, T>(&self, audit: impl Fn(Page) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
        T: Serialize,
    {
        let audit = move |page| {
            let audit = audit(page);
            async move { serde_json::to_value(audit.await?).map_err(ApiError::internal) }.boxed()
        };
        let _ = self.0.audit.set(Box::new(audit));
    }

    /// The same for books that are kept in one database.
    pub fn audited_in<F, T>(&self, db: &Db, audit: impl Fn(Db, Page) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
        T: Serialize,
    {
        let db = db.clone();
        self.audited(move |page| audit(db.clone(), page));
    }

    /// What the audit says; `None` if the service keeps no books.
    pub async fn audit(&self, page: Page) -> Option<Result<serde_json::Value, ApiError>> {
        match self.0.audit.get() {
            Some(audit) => Some(audit(page).await),
            None => None,
        }
    }

    /// Says what events the service publishes, for `/events.json`.
    pub fn tells(&self, told: Told) {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner).push(told);
    }

    /// The schema of these events; `None` if there are none.
    pub(crate) fn told(&self) -> Option<String> {
        told::schema(&self.0.told.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says how a figure is set that has to be looked up somewhere: that happens when the service's `/metrics` are asked for.
    pub fn measured<F>(&self, measure: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut measures = self.0.measures.lock().unwrap_or_else(PoisonError::into_inner);
        measures.push(Box::new(move || Box::pin(measure())));
    }

    /// Sets all these figures. One that takes longer than half a second stays as it was.
    pub async fn measure(&self) {
        let measures: Vec<_> = {
            let measures = self.0.measures.lock().unwrap_or_else(PoisonError::into_inner);
            measures.iter().map(|measure| tokio::time::timeout(MEASURE, measure())).collect()
        };
        futures::future::join_all(measures).await;
    }

    /// Says what the service waits for from now on, until it is built: `/health/ready` tells it.
    pub fn wait_for(&self, what: &'static str) {
        *self.0.waits_for.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    pub(crate) fn waits_for(&self) -> &'static str {
        *self.0.waits_for.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a queue that the service is to consume is consumed.
    pub(crate) fn attend(&self, queue: &str, attended: bool) {
        let mut unattended = self.0.unattended.lock().unwrap_or_else(PoisonError::into_inner);
        if attended {
            unattended.remove(queue);
        } else {
            unattended.insert(queue.to_owned());
        }
    }

    /// A queue that is not consumed and should be.
    pub(crate) fn unattended(&self) -> Option<String> {
        self.0.unattended.lock().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }

    /// Since the start.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }
}

/// A service that has been built: what the server is to serve.
pub struct Service {
    /// Its routes, with their description.
    pub routes: OpenApiRouter,
    /// What it needs.
    pub checks: Vec<Check>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service({} checks)", self.checks.len())
    }
}

/// What builds a service.
pub type Build = fn(Context) -> std::pin::Pin<Box<dyn Future<Output = Result<Service, BoxError>> + Send>>;
