//! Everything behind one address, without a gateway: what the services were before they were services. Each keeps its own data all the same.
//! Who is asked by gRPC has a port of its own for that, as everywhere.
//!
//! Nobody stands before it and looks at tokens of users. So its routes are everybody's on this machine alone; where others come in they are
//! for whoever shows a service token, as a gateway does with `LEGACY_TOKEN`.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc};

use order_kit::{
    ApiError, BoxError, Context, Service,
    context::{GRPC, Known, LISTENERS, SERVICES},
    env::{self, Env},
    server::{Access, Door, router, serve},
};
use tokio::{task::JoinHandle, time::Instant};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    services,
    system::{LAST, Table, broker_address, end, in_flight},
};

/// What is in it.
const PARTS: [&str; 7] =
    ["users", "orders", "products", "payments", "inventory", "notifications", "analytics"];

/// One that runs.
pub struct Monolith {
    address: SocketAddr,
    contexts: Vec<Context>,
    server: JoinHandle<()>,
}

impl std::fmt::Debug for Monolith {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Monolith({})", self.address)
    }
}

impl Monolith {
    /// Starts it; it is ready when this returns.
    ///
    /// # Errors
    ///
    /// A port that is taken, data that cannot be opened, a setting that is none.
    pub async fn start(port: u16, data: &Path, mut env: Env) -> Result<Self, BoxError> {
        env::guarded(&env, &[env::INTERNAL_TOKEN])?;
        let access = if env::local(&env) { Access::Everybody } else { Access::Services };
        std::fs::create_dir_all(data)?;
        order_kit::telemetry::init(&env)?;
        // It is what others leave: listening to itself it would take what is for them.
        env = env.with(env::LEGACY_RABBITMQ_URL, "");
        let broker = order_broker::open(&broker_address(&env, data)).await?;
        let listener = services::listen(&env, "monolith", port).await?;
        let address = listener.local_addr()?;
        // Whoever is asked for, it is the monolith.
        let here = Arc::new(Table::default());
        SERVICES.iter().chain(LISTENERS).for_each(|it| here.set(it.name, address));
        let mut grpc = BTreeMap::new();
        for known in GRPC {
            let listener = services::listen(&env, known.name, known.port(port)).await?;
            here.set(known.name, listener.local_addr()?);
            grpc.insert(known.name, listener);
        }
        let whole = Context::new("monolith", env, data, broker, here);
        let door = Door::new(&whole);
        let server = tokio::spawn(serve(whole.clone(), door.router(), listener));
        let mut all = Service { routes: OpenApiRouter::new(), checks: Vec::new() };
        let mut contexts = vec![whole.clone()];
        let mut books = Vec::new();
        for part in PARTS {
            let context = whole.part(part);
            let service = match services::build_service(&context).await {
                Ok(service) => service,
                Err(error) => {
                    contexts.iter().for_each(|it| it.stop().cancel());
                    return Err(format!("{part}: {error}").into());
                }
            };
            all.routes = all.routes.merge(service.routes);
            all.checks.extend(service.checks);
            if let Some(listener) = services::by_grpc(part).and_then(|it| grpc.remove(it.name)) {
                services::serve_grpc(&context, listener);
            }
            books.push(context.clone());
            contexts.push(context);
        }
        whole.audited(move |page| {
            let of = books.iter().find(|it| Some(it.name()) == page.of.as_deref()).cloned();
            async move {
                let of = of.ok_or_else(|| ApiError::not_found("Whose books?"))?;
                of.audit(page).await.unwrap_or_else(|| Err(ApiError::not_found("No books are kept")))
            }
        });
        door.open(router(&whole, all, access));
        Ok(Monolith { address, contexts, server })
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where a part is by gRPC, `orders.grpc` say.
    pub fn grpc_url(&self, name: &str) -> String {
        self.contexts[0].locate(name)
    }

    /// Ends it in order.
    pub async fn stop(self) {
        let by = Instant::now() + in_flight(self.contexts[0].env()) + LAST;
        end(&self.contexts, self.server, by).await;
    }
}

/// `monolith`: until it is told to end. By when its spans are to be sent.
///
/// # Errors
///
/// As of [`Monolith::start`].
pub async fn run(port: u16, data: &Path) -> Result<Instant, BoxError> {
    let monolith = Monolith::start(port, data, Env::process()).await?;
    let end = crate::cli::end_of_program();
    println!("monolith       {}", monolith.url());
    for Known { name, .. } in GRPC {
        println!("{name:<14} {}", monolith.grpc_url(name));
    }
    end.await;
    let by = crate::cli::spans_by();
    monolith.stop().await;
    Ok(by)
}
