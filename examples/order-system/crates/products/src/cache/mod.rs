//! The cache: a place that keeps copies ([`Cache`]), and what reads through it ([`Cached`]).
//!
//! A copy knows of which change of the product it is, and a place never replaces a copy by an older one. When a product changes, the place
//! remembers the number of the change instead of a copy, for longer than any request takes. So a slow reader that has read the product
//! before the change cannot put it back behind it.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use order_kit::ApiError;

use crate::repository::Versioned;

mod local;
mod shared;
#[cfg(test)]
mod tests;

pub(crate) use local::Local;
pub(crate) use shared::Shared;

/// How long a copy is good that all instances share.
pub(crate) const TTL: Duration = Duration::from_secs(3_600);
/// How long a change is remembered; no request takes half as long.
pub(crate) const CHANGE_TTL: Duration = Duration::from_secs(60);

/// What a cache has of a product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kept {
    /// A copy.
    Copy(Versioned),
    /// That it has changed, to this version.
    Changed(i64),
    /// Nothing.
    Nothing,
}

/// Keeps copies of products. None of this fails: a cache that is away has nothing and keeps nothing.
pub(crate) trait Cache: Send + Sync {
    fn get<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Kept>;

    /// Keeps a copy, unless it knows of a later version.
    fn put<'a>(&'a self, copy: &'a Versioned) -> BoxFuture<'a, ()>;

    /// Forgets copies older than this version, and takes none of them for a while.
    fn changed<'a>(&'a self, id: &'a str, version: i64) -> BoxFuture<'a, ()>;
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// A copy, or what another request has read at the same moment.
    Cache,
    /// This request has read the database.
    Database,
}

/// What one reading of many has found, and whether it needed the database for it.
#[derive(Debug, Clone)]
struct Found {
    it: Option<Versioned>,
    read: bool,
}

/// Reads through a cache: whoever misses the same product at the same time waits for one reading.
#[derive(Clone)]
pub(crate) struct Cached {
    cache: Arc<dyn Cache>,
    /// Readings that have begun; gone as soon as they have ended. A reading that began before a change is no answer to who comes after
    /// it: hence the version beside the id.
    readings: moka::future::Cache<(String, i64), Found>,
}

impl Cached {
    pub(crate) fn new(cache: Arc<dyn Cache>) -> Self {
        let readings =
            moka::future::Cache::builder().max_capacity(10_000).time_to_live(Duration::from_secs(1)).build();
        Cached { cache, readings }
    }

    /// The product, from the cache or by `load`.
    pub(crate) async fn get(
        &self,
        id: &str,
        load: impl Future<Output = Result<Option<Versioned>, ApiError>>,
    ) -> Result<Option<(Versioned, From)>, ApiError> {
        let version = match self.cache.get(id).await {
            Kept::Copy(it) => return Ok(Some((it, From::Cache))),
            Kept::Changed(version) => version,
            Kept::Nothing => 0,
        };
        let key = (id.to_owned(), version);
        let reading = async {
            // It may have come while this request was on its way here.
            if let Kept::Copy(it) = self.cache.get(id).await {
                return Ok(Found { it: Some(it), read: false });
            }
            let it = load.await?;
            if let Some(it) = &it {
                self.cache.put(it).await;
            }
            Ok(Found { it, read: true })
        };
        let entry = self.readings.entry(key.clone()).or_try_insert_with(reading).await;
        // The cache has it now, if it is to be kept.
        self.readings.invalidate(&key).await;
        let entry = entry.map_err(|error: Arc<ApiError>| (*error).clone())?;
        let first = entry.is_fresh();
        let Found { it, read } = entry.into_value();
        let from = if first && read { From::Database } else { From::Cache };
        Ok(it.map(|it| (it, from)))
    }

    /// To be called after the change is durable and before anybody is told of it.
    pub(crate) async fn changed(&self, id: &str, version: i64) {
        self.cache.changed(id, version).await;
    }
}
