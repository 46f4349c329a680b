//! Values that are remembered for a time, and only so many of them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// When it is full, the oldest makes room: all live equally long, so it is also the one that has the least left.
pub struct Cache<T> {
    ttl: Duration,
    most: usize,
    state: Mutex<State<T>>,
}

struct State<T> {
    values: HashMap<String, (Instant, T)>,
    /// By age. A key that was replaced stands here twice; only the entry with its time counts.
    ages: VecDeque<(Instant, String)>,
}

impl<T: Clone> Cache<T> {
    pub fn new(ttl: Duration, most: usize) -> Self {
        Cache { ttl, most, state: Mutex::new(State { values: HashMap::new(), ages: VecDeque::new() }) }
    }

    pub fn get(&self, key: &str) -> Option<T> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, value) = state.values.get(key)?;
        (since.elapsed() < self.ttl).then(|| value.clone())
    }

    pub fn put(&self, key: &str, value: T) {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        state.values.insert(key.to_owned(), (now, value));
        state.ages.push_back((now, key.to_owned()));
        while let Some((since, oldest)) = state.ages.front() {
            let current = state.values.get(oldest).is_some_and(|(at, _)| at == since);
            if current && now - *since < self.ttl && state.values.len() <= self.most {
                break;
            }
            if current {
                state.values.remove(oldest);
            }
            state.ages.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_forgets_what_is_old_and_what_is_too_much() {
        let cache = Cache::new(Duration::from_secs(60), 2);
        cache.put("a", 1);
        tokio::time::advance(Duration::from_secs(30)).await;
        cache.put("b", 2);
        cache.put("a", 3);
        assert_eq!((cache.get("a"), cache.get("b")), (Some(3), Some(2)));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(cache.get("a"), Some(3), "a new value has a new age");
        cache.put("c", 4);
        assert_eq!(
            (cache.get("a"), cache.get("b"), cache.get("c")),
            (Some(3), None, Some(4)),
            "the oldest made room"
        );
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((cache.get("a"), cache.get("c")), (None, Some(4)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_key_that_changes_all_the_time_fills_nothing() {
        let cache = Cache::new(Duration::from_secs(60), 10);
        for round in 0..10_000 {
            cache.put("a", round);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(cache.state.lock().unwrap().ages.len() <= 1, "what is out of date is not kept");
    }
}
