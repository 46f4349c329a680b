//! Everything behind one address, without a gateway: what the services were before they were services. Each keeps its own data all the same.
//! Where users are asked by gRPC they have a port of their own for that, as everywhere.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use order_kit::{
    ApiError, BoxError, Context, Service,
    context::Locate,
    env::{self, Env},
    server::{Access, Door, router, serve},
};
use tokio::{net::TcpListener, task::JoinHandle};
use utoipa_axum::router::OpenApiRouter;

use crate::{services, system::broker_address};

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

/// Whoever is asked for, it is the monolith.
struct Here(String);

impl Locate for Here {
    fn locate(&self, _: &str) -> String {
        self.0.clone()
    }

    fn lost(&self, _: &str, _: &str) {}
}

impl Monolith {
    /// Starts it; it is ready when this returns.
    ///
    /// # Errors
    ///
    /// A port that is taken, data that cannot be opened, a setting that is none.
    pub async fn start(port: u16, data: &Path, mut env: Env) -> Result<Self, BoxError> {
        order_kit::env::guarded(&env, &[order_kit::env::INTERNAL_TOKEN])?;
        std::fs::create_dir_all(data)?;
        order_kit::telemetry::init(&env)?;
        // It is what others leave: listening to itself it would take what is for them.
        env = env.with(env::LEGACY_RABBITMQ_URL, "");
        let broker = order_broker::open(&broker_address(&env, data)).await?;
        let listener = TcpListener::bind((env.get_or_default(env::HOST).as_str(), port)).await?;
        let address = listener.local_addr()?;
        let mut grpc = None;
        if env.get_or_default(env::USER_TRANSPORT) == "grpc" {
            let listener = services::listen_for_grpc(&env, services::grpc_port(port)).await?;
            env = services::with_grpc(env, format!("http://{}", listener.local_addr()?));
            grpc = Some(listener);
        }
        let here: Arc<dyn Locate> = Arc::new(Here(format!("http://{address}")));
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
            // Of checks with one name, that of a part says what all need.
            for check in service.checks {
                if all.checks.iter().all(|known| known.name() != check.name()) {
                    all.checks.push(check);
                }
            }
            if part == "users"
                && let Some(listener) = grpc.take()
            {
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
        door.open(router(&whole, all, Access::Everybody));
        Ok(Monolith { address, contexts, server })
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it in order.
    pub async fn stop(self) {
        for context in &self.contexts {
            context.stop().cancel();
        }
        let _ = self.server.await;
        for context in self.contexts {
            if tokio::time::timeout(Duration::from_secs(10), context.finished()).await.is_err() {
                tracing::warn!(part = context.name(), "something still ran at the end of the grace");
            }
        }
    }
}

/// `monolith`: until it is told to end.
///
/// # Errors
///
/// As of [`Monolith::start`].
pub async fn run(port: u16, data: &Path) -> Result<(), BoxError> {
    let monolith = Monolith::start(port, data, Env::process()).await?;
    println!("monolith       {}", monolith.url());
    crate::cli::end_of_program().await;
    monolith.stop().await;
    Ok(())
}
