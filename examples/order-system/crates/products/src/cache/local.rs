//! A cache in this process.

use std::time::Duration;

use futures::{FutureExt, future::BoxFuture};
use tokio::time::Instant;

use super::{CHANGE_TTL, Cache, Kept};
use crate::repository::Versioned;

const MOST: u64 = 10_000;
/// How long a copy is good: another instance's change does not come here.
pub(crate) const TTL: Duration = Duration::from_secs(10);

/// Keeps the products that are asked for most, 10,000 at most.
pub(crate) struct Local {
    entries: moka::future::Cache<String, Entry>,
}

#[derive(Clone)]
struct Entry {
    kept: Kept,
    /// By the clock that tests can move; the entry's place in memory is freed by the cache's own.
    until: Instant,
}

impl Entry {
    fn version(&self) -> i64 {
        match &self.kept {
            Kept::Copy(it) => it.version,
            Kept::Changed(version) => *version,
            Kept::Nothing => 0,
        }
    }
}

impl Local {
    pub(crate) fn new() -> Self {
        Local { entries: moka::future::Cache::builder().max_capacity(MOST).time_to_live(CHANGE_TTL).build() }
    }

    /// Replaces what is there, unless that is newer.
    async fn keep(&self, id: &str, new: Entry) {
        let newer = |old: Option<moka::Entry<String, Entry>>| {
            let old = old.map(moka::Entry::into_value).filter(|old| old.until > Instant::now());
            let new = new.clone();
            std::future::ready(match old {
                Some(old) if old.version() > new.version() => old,
                _ => new,
            })
        };
        self.entries.entry_by_ref(id).and_upsert_with(newer).await;
    }
}

impl Cache for Local {
    fn get<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Kept> {
        async move {
            let entry = self.entries.get(id).await.filter(|entry| entry.until > Instant::now());
            entry.map_or(Kept::Nothing, |entry| entry.kept)
        }
        .boxed()
    }

    fn put<'a>(&'a self, copy: &'a Versioned) -> BoxFuture<'a, ()> {
        let new = Entry { kept: Kept::Copy(copy.clone()), until: Instant::now() + TTL };
        self.keep(&copy.product.id, new).boxed()
    }

    fn changed<'a>(&'a self, id: &'a str, version: i64) -> BoxFuture<'a, ()> {
        self.keep(id, Entry { kept: Kept::Changed(version), until: Instant::now() + CHANGE_TTL }).boxed()
    }
}
