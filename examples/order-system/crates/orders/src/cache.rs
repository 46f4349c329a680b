//! Answers of other services that hold for a moment.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Values that are believed for some time. Full, it forgets what is out of date, and then everything.
#[derive(Debug)]
pub(crate) struct Cache<T> {
    ttl: Duration,
    most: usize,
    values: Mutex<HashMap<String, (Instant, T)>>,
}

impl<T: Clone> Cache<T> {
    pub(crate) fn new(ttl: Duration, most: usize) -> Self {
        Cache { ttl, most, values: Mutex::default() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<T> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, value) = values.get(key)?;
        (since.elapsed() < self.ttl).then(|| value.clone())
    }

    pub(crate) fn put(&self, key: &str, value: T) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if values.len() >= self.most && !values.contains_key(key) {
            values.retain(|_, (since, _)| since.elapsed() < self.ttl);
            if values.len() >= self.most {
                values.clear();
            }
        }
        values.insert(key.to_owned(), (Instant::now(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_value_holds_for_its_time_and_there_are_never_too_many() {
        let cache = Cache::new(Duration::from_secs(5), 2);
        cache.put("a", 1);
        tokio::time::advance(Duration::from_millis(4_999)).await;
        assert_eq!(cache.get("a"), Some(1));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(cache.get("a"), None);
        for key in ["b", "c", "d", "e"] {
            cache.put(key, 2);
            assert!(cache.values.lock().unwrap().len() <= 2);
        }
        assert_eq!(cache.get("e"), Some(2));
    }
}
