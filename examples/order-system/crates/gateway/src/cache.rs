//! Answers that are the same for everybody, remembered for seconds.
//!
//! Which requests that concerns is said here ([`REMEMBERED`]), how long a service may say in `Cache-Control`. What is private, sets a
//! cookie, stands in for something else or is no success is not remembered. A write through the gateway makes it forget what it concerns.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use tokio::time::Instant;

use crate::headers;

/// Services of which a single thing, `/NAME/ID`, is remembered. All of these are [open](crate::token::ROUTES) to everybody.
pub const REMEMBERED: &[&str] = &["products"];
/// For how long, if the service does not say.
pub const TTL: Duration = Duration::from_secs(5);
/// For how long at most, whatever it says.
const LONGEST: Duration = Duration::from_secs(60);
/// How large a body may be.
pub const BODY: u64 = 64 * 1024;
/// How many answers, and how many bytes of bodies.
const MOST: (usize, usize) = (1_000, 8 * 1024 * 1024);

/// What is remembered.
#[derive(Debug, Default)]
pub struct Cache(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, Entry>,
    bytes: usize,
    /// How often something was forgotten: what was asked before that is not remembered after it.
    writes: u64,
}

/// Who answers, and the path and query that were asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// A service, or the monolith.
    pub by: &'static str,
    /// The path and the query.
    pub path: String,
}

#[derive(Debug)]
struct Entry {
    headers: HeaderMap,
    body: Bytes,
    stored: Instant,
    /// How old it was when it came.
    age: Duration,
    fresh: Duration,
}

/// What was known when an answer was looked for: it is to be shown when one is to be remembered.
#[derive(Debug, Clone, Copy)]
pub struct Ticket(u64);

/// Whether an answer to this may be remembered, and a remembered one given.
pub fn concerns(method: &Method, path: &str, headers: &HeaderMap) -> bool {
    let special = [
        header::RANGE,
        header::IF_NONE_MATCH,
        header::IF_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
    ];
    let asks_anew = directives(headers).any(|(name, _)| name == "no-cache" || name == "no-store");
    method == Method::GET
        && single(path)
        && !asks_anew
        && !special.iter().any(|name| headers.contains_key(name))
}

/// `/NAME/ID` of a name that is remembered.
fn single(path: &str) -> bool {
    let path = path.split('?').next().unwrap_or(path);
    let mut segments = path.split('/').skip(1);
    let (name, id, more) = (segments.next(), segments.next(), segments.next());
    name.is_some_and(|name| REMEMBERED.contains(&name))
        && id.is_some_and(|id| !id.is_empty())
        && more.is_none()
}

/// For how long an answer may be remembered, and how old it is already.
pub fn fresh(status: StatusCode, headers: &HeaderMap) -> Option<(Duration, Duration)> {
    let never = [header::SET_COOKIE.as_str(), header::VARY.as_str(), "x-fallback"];
    if status != StatusCode::OK || never.iter().any(|name| headers.contains_key(*name)) {
        return None;
    }
    let said: HashMap<String, String> = directives(headers).collect();
    if ["private", "no-store", "no-cache"].iter().any(|name| said.contains_key(*name)) {
        return None;
    }
    let seconds = match said.get("s-maxage").or_else(|| said.get("max-age")) {
        Some(seconds) => Duration::from_secs(seconds.parse().ok()?),
        None => TTL,
    };
    let age = headers.get(header::AGE).and_then(|age| age.to_str().ok()?.parse().ok()).unwrap_or(0);
    let age = Duration::from_secs(age);
    let fresh = seconds.min(LONGEST);
    (fresh > age).then_some((fresh, age))
}

fn directives(headers: &HeaderMap) -> impl Iterator<Item = (String, String)> {
    let values = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|directive| {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        (name.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned())
    })
}

impl Cache {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered, or a ticket to remember what comes.
    pub fn get(&self, key: &Key) -> Result<Response<Body>, Ticket> {
        let mut state = self.state();
        let found = state.entries.get(key).map(|entry| {
            let age = entry.age + entry.stored.elapsed();
            (age < entry.fresh).then(|| {
                let mut response = Response::new(Body::from(entry.body.clone()));
                *response.headers_mut() = entry.headers.clone();
                response.headers_mut().insert(header::AGE, HeaderValue::from(age.as_secs()));
                response.headers_mut().insert(&headers::CACHE, HeaderValue::from_static("hit"));
                response
            })
        });
        match found {
            Some(Some(response)) => Ok(response),
            Some(None) => {
                state.remove(key);
                Err(Ticket(state.writes))
            }
            None => Err(Ticket(state.writes)),
        }
    }

    /// Remembers an answer, unless something was written since the ticket was given.
    pub fn put(
        &self,
        ticket: Ticket,
        key: Key,
        headers: &HeaderMap,
        body: &Bytes,
        (fresh, age): (Duration, Duration),
    ) {
        let mut state = self.state();
        if state.writes != ticket.0 {
            return;
        }
        state.remove(&key);
        while state.entries.len() >= MOST.0 || state.bytes + body.len() > MOST.1 {
            let oldest = state.entries.iter().min_by_key(|(_, entry)| entry.stored);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
            state.remove(&oldest);
        }
        state.bytes += body.len();
        let entry =
            Entry { headers: headers.clone(), body: body.clone(), stored: Instant::now(), age, fresh };
        state.entries.insert(key, entry);
    }

    /// Forgets what a write to this path concerns, when the guard is dropped: when the write is over, however it ends. `None` where nothing
    /// can be remembered.
    pub fn forget_after<'a>(&'a self, path: &'a str) -> Option<Forget<'a>> {
        let path = path.split('?').next().unwrap_or(path);
        let name = path.split('/').nth(1).unwrap_or_default();
        REMEMBERED.contains(&name).then(|| Forget { cache: self, path })
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut state = self.state();
        *state = State { writes: state.writes + 1, ..State::default() };
    }
}

impl State {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.body.len();
        }
    }
}

/// Forgets at its end.
#[derive(Debug)]
#[must_use = "what is dropped at once forgets at once"]
pub struct Forget<'a> {
    cache: &'a Cache,
    path: &'a str,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let below = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let mut state = self.cache.state();
        state.writes += 1;
        let concerned: Vec<Key> = state
            .entries
            .keys()
            .filter(|key| {
                let path = key.path.split('?').next().unwrap_or_default();
                below(path, self.path) || below(self.path, path)
            })
            .cloned()
            .collect();
        concerned.iter().for_each(|key| state.remove(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> Key {
        Key { by: "products", path: path.to_owned() }
    }

    fn remember(cache: &Cache, path: &str, size: usize) {
        if let Err(ticket) = cache.get(&key(path)) {
            cache.put(ticket, key(path), &HeaderMap::new(), &vec![b'x'; size].into(), (TTL, Duration::ZERO));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_remembered_for_its_time_and_says_its_age() {
        let cache = Cache::default();
        remember(&cache, "/products/1?a=1", 3);
        assert!(cache.get(&key("/products/1")).is_err(), "the query counts");
        tokio::time::advance(TTL - Duration::from_secs(1)).await;
        let hit = cache.get(&key("/products/1?a=1")).unwrap();
        assert_eq!(
            (hit.headers()["age"].to_str().unwrap(), &hit.headers()["x-cache"]),
            ("4", &"hit".parse().unwrap())
        );
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(cache.get(&key("/products/1?a=1")).is_err());
        assert_eq!(cache.state().bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_forgets_what_it_concerns_and_what_was_asked_before_it() {
        let cache = Cache::default();
        for path in ["/products/1", "/products/1?x", "/products/2"] {
            remember(&cache, path, 3);
        }
        let Err(early) = cache.get(&key("/products/3")) else { panic!() };
        drop(cache.forget_after("/products/1/part?y"));
        assert!(cache.get(&key("/products/1")).is_err() && cache.get(&key("/products/1?x")).is_err());
        assert!(cache.get(&key("/products/2")).is_ok());
        // Read before the write, remembered after it: it may be the old one.
        cache.put(early, key("/products/3"), &HeaderMap::new(), &Bytes::new(), (TTL, Duration::ZERO));
        assert!(cache.get(&key("/products/3")).is_err());
        drop(cache.forget_after("/products"));
        assert!(cache.get(&key("/products/2")).is_err(), "a write to all of them");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_to_something_else_forgets_nothing() {
        let cache = Cache::default();
        remember(&cache, "/products/1", 3);
        let Err(ticket) = cache.get(&key("/products/2")) else { panic!() };
        for path in ["/orders", "/orders/products", "/productsx/1", "/", ""] {
            assert!(cache.forget_after(path).is_none(), "{path}");
        }
        cache.put(ticket, key("/products/2"), &HeaderMap::new(), &Bytes::new(), (TTL, Duration::ZERO));
        assert!(cache.get(&key("/products/1")).is_ok() && cache.get(&key("/products/2")).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_grow_without_end() {
        let cache = Cache::default();
        for id in 0..3_000 {
            remember(&cache, &format!("/products/{id}"), 1);
        }
        assert_eq!(cache.state().entries.len(), MOST.0);
        assert!(cache.get(&key("/products/2999")).is_ok());
        for id in 0..200 {
            remember(&cache, &format!("/products/large-{id}"), 64 * 1024);
        }
        let state = cache.state();
        assert!(state.bytes <= MOST.1);
        assert_eq!(state.bytes, state.entries.values().map(|entry| entry.body.len()).sum::<usize>());
    }

    #[test]
    fn only_what_everybody_may_see_is_remembered() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
                .collect()
        };
        let seconds = |pairs: &[(&'static str, &'static str)]| {
            fresh(StatusCode::OK, &headers(pairs)).map(|it| it.0.as_secs())
        };
        assert_eq!(seconds(&[]), Some(5));
        assert_eq!(seconds(&[("cache-control", "public, max-age=2")]), Some(2));
        assert_eq!(seconds(&[("cache-control", "max-age=2, s-maxage=\"3\"")]), Some(3));
        assert_eq!(seconds(&[("cache-control", "max-age=9999")]), Some(60));
        for never in [
            ("cache-control", "private"),
            ("cache-control", "no-store"),
            ("cache-control", "max-age=0"),
            ("cache-control", "max-age=soon"),
            ("set-cookie", "a=b"),
            ("vary", "accept-language"),
            ("x-fallback", "stale"),
            ("age", "5"),
        ] {
            assert_eq!(seconds(&[never]), None, "{never:?}");
        }
        assert_eq!(fresh(StatusCode::NOT_FOUND, &HeaderMap::new()), None);
        let asks = |path: &str, pairs: &[(&'static str, &'static str)]| {
            concerns(&Method::GET, path, &headers(pairs))
        };
        assert!(asks("/products/1", &[]) && asks("/products/1?x", &[]));
        assert!(!asks("/products", &[]) && !asks("/products/", &[]) && !asks("/products/1/x", &[]));
        assert!(!asks("/users/1", &[]) && !asks("/products/1", &[("cache-control", "no-cache")]));
        assert!(!asks("/products/1", &[("range", "bytes=0-1")]));
        for name in REMEMBERED {
            assert!(
                crate::token::needs(&Method::GET, &format!("/{name}/1")) == crate::token::Needs::Nothing,
                "{name} is not for everybody"
            );
        }
    }
}
