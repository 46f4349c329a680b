//! The gateway: the one door of the order system.
//!
//! It knows services by name and nothing of what they do: no order, no user, no price. What belongs together of several services is put
//! together by a service, not here.
//!
//! - [`proxy`]: `/api/NAME/…` goes to the service of that name as `/NAME/…`, as a stream, through the policies of [`upstream`];
//! - [`token`]: who a request is from;
//! - [`registry`]: which instances there are; [`resolve`]: what names mean;

pub mod body;
pub mod headers;
pub mod proxy;
pub mod registry;
pub mod resolve;
pub mod token;
pub mod upstream;

use std::{collections::BTreeMap, sync::Arc};

pub use self::registry::{Instances, Registry, RegistryClient};
use self::{
    resolve::Names,
    token::Tokens,
    upstream::{Side, Upstream},
};
use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use order_kit::{
    BoxError, Context, Json,
    context::{Known, SERVICES},
    server,
};

/// As in [`SERVICES`].
pub const NAME: &str = "gateway";

/// What requests need on their way. Clones are the same.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    context: Context,
    registry: Arc<Instances>,
    upstreams: BTreeMap<&'static str, Upstream>,
    tokens: Tokens,
    /// Whether the listener speaks TLS.
    secure: bool,
}

/// The services behind the gateway.
fn behind() -> impl Iterator<Item = &'static Known> {
    SERVICES.iter().filter(|known| known.name != NAME)
}

/// The gateway's whole router. `registry` is the one that it keeps, and that the context's `locate` should ask.
///
/// # Errors
///
/// A setting that cannot be.
pub async fn build(context: Context, registry: Arc<Instances>) -> Result<Router, BoxError> {
    let names = Names::system();
    let mut upstreams = BTreeMap::new();
    for known in behind() {
        let side = Side::Service(known.name);
        upstreams.insert(known.name, Upstream::new(&context, side, names.clone())?);
    }
    let tokens = Tokens::of(context.env());
    if tokens.issues() {
        tracing::warn!(
            "POST /auth/token makes tokens for whoever asks: set JWT_SECRET for anything but development"
        );
    }
    let (registry_routes, api) = registry::routes::routes(&context, registry.clone());
    let inner = Inner { secure: false, context: context.clone(), registry, upstreams, tokens };
    let gateway = Gateway(Arc::new(inner));
    let routes = Router::new().fallback(proxy::handle).with_state(gateway.clone());
    let routes = server::breakable(&context, routes)
        .merge(registry_routes)
        .merge(server::operators(&context))
        .merge(server::probes(&context, Vec::new(), api))
        .route("/health", get(health).with_state(gateway));
    Ok(server::watched(&context, routes))
}

/// From memory: nobody is asked.
async fn health(State(gateway): State<Gateway>) -> Response {
    let services = gateway.0.upstreams.iter().map(|(name, upstream)| {
        let instances = gateway.0.registry.instances(name).len();
        serde_json::json!({ "name": name, "breaker": upstream.state(), "instances": instances })
    });
    Json(serde_json::json!({
        "status": "ok",
        "service": NAME,
        "uptime": gateway.0.context.uptime().as_secs(),
        "timestamp": order_kit::iso(order_kit::now_ms()),
        "services": services.collect::<Vec<_>>(),
    }))
    .into_response()
}
