//! The gateway: the one door of the order system.
//!
//! It knows services by name and nothing of what they do: no order, no user, no price. What belongs together of several services is put
//! together by a service, not here.
//!
//! - [`proxy`]: `/api/NAME/…` goes to the service of that name as `/NAME/…`, as a stream, through the policies of [`upstream`];
//! - [`token`]: who a request is from; [`limits`]: how many it may send; [`cors`]: which pages may read the answers;
//! - [`cache`]: answers that are the same for everybody, for seconds;
//! - [`registry`]: which instances there are; [`resolve`](order_kit::resolve): what names mean;
//! - [`strangler`]: which requests still go to a monolith;
//! - [`serve`](mod@serve): the listener, with TLS.
//!
//! A client's address is the one its connection comes from: what it says in `X-Forwarded-For` is not believed.

pub mod body;
pub mod cache;
pub mod cors;
mod early;
pub mod headers;
pub mod limits;
mod own;
pub mod proxy;
pub mod registry;
pub mod serve;
pub mod strangler;
pub mod token;
pub mod upstream;

use std::{collections::BTreeMap, sync::Arc};

use axum::{Router, middleware};
use http::StatusCode;
use order_kit::{
    ApiError, BoxError, Context,
    context::{Known, SERVICES},
    resolve::Names,
    server,
};
use tokio::sync::Semaphore;

use self::{
    cache::Cache,
    cors::Origins,
    limits::Limits,
    strangler::Strangler,
    token::Tokens,
    upstream::{Side, Upstream},
};
pub use self::{
    registry::{Instances, Registry, RegistryClient},
    serve::serve,
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
    monolith: Option<Upstream>,
    strangler: Strangler,
    tokens: Tokens,
    limits: Limits,
    cache: Cache,
    /// Places for questions to the side that does not answer.
    shadows: Arc<Semaphore>,
    /// Whether the listener speaks TLS.
    secure: bool,
}

/// How many shadow requests are on their way at once.
const SHADOWS: usize = 16;

/// The services behind the gateway.
fn behind() -> impl Iterator<Item = &'static Known> {
    SERVICES.iter().filter(|known| known.name != NAME)
}

/// The gateway's whole router, for [`serve()`]. `registry` is the one that it keeps, and that the context's `locate` should ask.
///
/// # Errors
///
/// A setting that cannot be.
pub async fn build(context: Context, registry: Arc<Instances>) -> Result<Router, BoxError> {
    let env = context.env();
    let names = Names::system();
    let mut upstreams = BTreeMap::new();
    for known in behind() {
        let side = Side::Service(known.name);
        upstreams.insert(known.name, Upstream::new(&context, side, names.clone())?);
    }
    let strangler = Strangler::of(env)?;
    let monolith = strangler.legacy().map(|base| {
        let side = Side::Legacy(base.to_owned());
        Upstream::new(&context, side, names.clone())
    });
    let tokens = Tokens::of(env);
    if tokens.issues() {
        tracing::warn!(
            "POST /auth/token makes tokens for whoever asks: set JWT_SECRET for anything but development"
        );
    }
    let (limits, origins) = (Limits::of(env)?, Origins::of(env));
    limits.show_in(context.policies());
    let gateway = Gateway(Arc::new(Inner {
        registry: registry.clone(),
        upstreams,
        monolith: monolith.transpose()?,
        strangler,
        tokens,
        limits,
        cache: Cache::default(),
        shadows: Arc::new(Semaphore::new(SHADOWS)),
        secure: serve::tls_files(env)?.is_some(),
        context: context.clone(),
    }));
    let (registry_routes, mut api) = registry::routes::routes(&context, registry);
    let (auth, more) = own::auth(&gateway);
    api.merge(more);
    let (operators, more) = own::operators(&gateway);
    api.merge(more);
    let routes = auth
        .fallback(proxy::handle)
        .with_state(gateway.clone())
        .layer(middleware::from_fn_with_state(gateway.clone(), limits::limited))
        .layer(middleware::from_fn_with_state(origins, cors::shared));
    let routes = server::breakable(&context, routes)
        .merge(registry_routes)
        .merge(server::for_services(&context, operators))
        .merge(server::operators(&context))
        .merge(server::probes(&context, Vec::new(), api))
        .merge(own::health(&gateway))
        .method_not_allowed_fallback(|| {
            std::future::ready(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"))
        });
    Ok(server::watched(&context, routes))
}
