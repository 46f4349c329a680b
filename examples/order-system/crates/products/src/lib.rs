//! Products: what can be ordered, and at what price. Read far more often than written, and therefore through a cache: in this process, or
//! in Redis where `REDIS_URL` names one.

mod cache;
mod catalog;
mod repository;
mod routes;
pub mod wire;

use order_kit::{BoxError, Context, Service, health::Check};

use catalog::Catalog;

/// As in the kit's list of services.
pub const NAME: &str = "products";

/// Opens the database and the cache, and returns the routes.
///
/// # Errors
///
/// A database that cannot be opened, or a `REDIS_URL` that is none. A Redis that is away is no reason not to start.
pub async fn build(context: Context) -> Result<Service, BoxError> {
    let catalog = Catalog::open(&context).await?;
    let db = catalog.db().clone();
    let mut checks = vec![Check::required("database", move || {
        let db = db.clone();
        async move { db.ping().await }
    })];
    if catalog.shares_cache() {
        let catalog = catalog.clone();
        checks.push(Check::optional("redis", move || {
            let catalog = catalog.clone();
            async move { catalog.check_cache().await }
        }));
    }
    Ok(Service { routes: routes::routes(catalog), checks })
}
