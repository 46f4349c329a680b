//! Answers of other services that hold for a moment.

use std::{fmt, panic::resume_unwind, sync::Arc, time::Duration};

use moka::ops::compute::Op;
use tracing::Instrument;

use crate::trace;

/// Values that are believed for some time, and asked for once however many want the same one meanwhile. Full, it forgets what is asked for
/// least.
pub struct Cache<T>(moka::future::Cache<String, T>);

impl<T> fmt::Debug for Cache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

impl<T: Clone + Send + Sync + 'static> Cache<T> {
    /// Of so many values at most, each for so long.
    pub fn new(ttl: Duration, most: u64) -> Self {
        Cache(moka::future::Cache::builder().time_to_live(ttl).max_capacity(most).build())
    }

    /// What is believed, if anything is.
    pub async fn get(&self, key: &str) -> Option<T> {
        self.0.get(key).await
    }

    /// Believes it from now on.
    pub async fn put(&self, key: &str, value: T) {
        self.0.insert(key.to_owned(), value).await;
    }

    /// Believes from now on what `change` makes of what is believed. Nothing happens if nothing is, or if that makes nothing of it. Changes
    /// of one key are made one after another.
    pub async fn change(&self, key: &str, change: impl FnOnce(T) -> Option<T> + Send) {
        let changed = |known: Option<moka::Entry<String, T>>| {
            let value = known.and_then(|it| change(it.into_value()));
            std::future::ready(value.map_or(Op::Nop, Op::Put))
        };
        self.0.entry_by_ref(key).and_compute_with(changed).await;
    }

    /// The value, or what comes of `ask`, which is remembered unless it is an error; an error is everybody's who has waited for it.
    ///
    /// The question is a task of its own: whoever asked first may have little time left, or go away, and the others shall not fail for it.
    ///
    /// # Errors
    ///
    /// What `ask` says.
    ///
    /// # Panics
    ///
    /// If `ask` does, for whoever asked first; the next one's question is asked then.
    pub async fn get_or<E, F>(&self, key: &str, ask: F) -> Result<T, Arc<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let asked = async {
            match tokio::spawn(trace::carried().with(ask).in_current_span()).await {
                Ok(answer) => answer,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    // The runtime is ending.
                    Err(_) => std::future::pending().await,
                },
            }
        };
        self.0.try_get_with_by_ref(key, asked).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use futures::future::join_all;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    /// Answers after a second of the paused clock.
    async fn slow(asked: Arc<AtomicU32>, answer: Result<u32, &'static str>) -> Result<u32, &'static str> {
        asked.fetch_add(1, Relaxed);
        tokio::time::sleep(Duration::from_secs(1)).await;
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_asked_once_however_many_want_to_know() {
        let (cache, asked) = (Cache::new(HOUR, 10), Arc::new(AtomicU32::new(0)));
        let all = join_all((0..100).map(|_| cache.get_or("a", slow(asked.clone(), Ok(7))))).await;
        assert!(all.iter().all(|answer| *answer == Ok(7)));
        assert_eq!(asked.load(Relaxed), 1);
        assert_eq!(cache.get_or("a", slow(asked.clone(), Ok(8))).await, Ok(7));
        assert_eq!(asked.load(Relaxed), 1);
        assert_eq!((cache.get("a").await, cache.get("b").await), (Some(7), None));
    }

    #[tokio::test]
    async fn only_what_is_believed_is_changed() {
        let cache = Cache::new(HOUR, 10);
        cache.change("a", |it: u32| Some(it + 1)).await;
        assert_eq!(cache.get("a").await, None);
        cache.put("a", 1).await;
        cache.change("a", |it| Some(it + 1)).await;
        cache.change("a", |_| None).await;
        assert_eq!(cache.get("a").await, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_everybodys_who_waits_and_nobodys_after() {
        let (cache, asked) = (Cache::new(HOUR, 10), Arc::new(AtomicU32::new(0)));
        let began = tokio::time::Instant::now();
        let all = join_all((0..100).map(|_| cache.get_or("a", slow(asked.clone(), Err("away"))))).await;
        assert!(all.iter().all(|answer| answer.as_ref().is_err_and(|error| **error == "away")));
        assert_eq!((asked.load(Relaxed), began.elapsed().as_secs()), (1, 1), "they do not ask one by one");
        assert_eq!(cache.get_or("a", slow(asked.clone(), Ok(7))).await, Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_goes_away_or_has_little_time_keeps_nobody_from_an_answer() {
        let (cache, asked) = (Cache::new(HOUR, 10), Arc::new(AtomicU32::new(0)));
        let hasty = async {
            let soon = Duration::from_millis(100);
            let ask = cache.get_or("a", slow(asked.clone(), Ok(7)));
            assert!(tokio::time::timeout(soon, ask).await.is_err());
        };
        let patient = async {
            tokio::task::yield_now().await;
            let ask = cache.get_or("a", slow(asked.clone(), Ok(7)));
            tokio::time::timeout(Duration::from_secs(3), ask).await
        };
        let ((), answer) = futures::join!(hasty, patient);
        assert_eq!(answer, Ok(Ok(7)));

        let deadline =
            mainstay::deadline::within(mainstay::deadline::after(Duration::from_millis(10)), async {
                cache
                    .get_or("b", async { Ok::<_, &str>(u32::from(mainstay::deadline::current().is_some())) })
                    .await
            });
        assert_eq!(deadline.await, Ok(0), "the first one's deadline is not the others'");
    }
}
