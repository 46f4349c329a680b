//! Products from the cache, and from the database where the cache has none.

use std::sync::Arc;

use order_kit::{ApiError, BoxError, Context, Db, db::DbError, env};

use crate::{
    cache::{Cache, Cached, From, Local, Shared},
    repository::Products,
    wire::{NewProduct, Product, ProductChange},
};

/// The service's products; clones are the same.
#[derive(Clone)]
pub(crate) struct Catalog {
    products: Products,
    cached: Cached,
    /// If the cache is one that other instances share.
    shared: Option<Arc<Shared>>,
}

impl Catalog {
    pub(crate) async fn open(context: &Context) -> Result<Self, BoxError> {
        let products = Products::open(context).await?;
        let shared = match context.env().get(env::REDIS_URL) {
            Some(url) => Some(Shared::open(context, &url)?),
            None => None,
        };
        let cache: Arc<dyn Cache> = match &shared {
            Some(shared) => shared.clone(),
            None => Arc::new(Local::new()),
        };
        Ok(Catalog { products, cached: Cached::new(cache), shared })
    }

    pub(crate) fn db(&self) -> &Db {
        self.products.db()
    }

    pub(crate) fn shares_cache(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether the shared cache answers; the text names no place.
    pub(crate) async fn check_cache(&self) -> Result<(), String> {
        match &self.shared {
            Some(shared) => shared.ping().await,
            None => Ok(()),
        }
    }

    pub(crate) async fn create(&self, new: NewProduct) -> Result<Product, ApiError> {
        self.products.create(new).await
    }

    pub(crate) async fn find(&self, id: &str) -> Result<Option<(Product, From)>, ApiError> {
        let load = async { self.products.find(id.to_owned()).await.map_err(ApiError::from) };
        Ok(self.cached.get(id, load).await?.map(|(it, from)| (it.product, from)))
    }

    pub(crate) async fn list(&self, limit: i64, name: Option<String>) -> Result<Vec<Product>, DbError> {
        self.products.list(limit, name).await
    }

    pub(crate) async fn update(
        &self,
        id: String,
        change: ProductChange,
    ) -> Result<Option<Product>, ApiError> {
        let Catalog { products, cached, .. } = self.clone();
        // Apart from the request: a caller who hangs up after the commit must not leave the old product in the cache.
        let work = tokio::spawn(async move {
            let updated = products.update(id, change).await?;
            if let Some(it) = &updated {
                cached.changed(&it.product.id, it.version).await;
            }
            Ok(updated.map(|it| it.product))
        });
        work.await.map_err(ApiError::internal)?
    }
}
