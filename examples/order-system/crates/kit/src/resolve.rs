//! Names of machines in base URLs, looked up again when what is known is old.
//!
//! A pooled connection lives for as long as it is used, so a name that is only looked up for new connections is never looked up again
//! under load. Here the name is looked up for requests, at most once in [`TTL`] and beside them, and the connections belong to addresses. Where a name has
//! several addresses they take turns.

use std::{
    borrow::Cow,
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderValue, Uri};
use tokio::time::Instant;

/// For how long an answer holds.
pub const TTL: Duration = Duration::from_secs(5);
/// How many names are known at most.
const NAMES: usize = 256;

type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
type Lookup = dyn Fn(String) -> Answer + Send + Sync;

/// What names mean. Clones are the same.
#[derive(Clone)]
pub struct Names {
    lookup: Arc<Lookup>,
    known: Arc<Mutex<HashMap<String, Known>>>,
}

struct Known {
    addresses: Vec<IpAddr>,
    until: Instant,
    turn: usize,
}

impl Names {
    /// As the machine looks them up.
    pub fn system() -> Self {
        Names::new(async |host| {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }

    /// By another way to look them up.
    pub fn new<F>(lookup: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        Names { lookup: Arc::new(move |host| Box::pin(lookup(host))), known: Arc::default() }
    }

    /// An address of the host. Nobody waits for what is known to be looked up again: until there is an answer, what was known holds.
    ///
    /// # Errors
    ///
    /// That nothing is known of it.
    pub async fn address(&self, host: &str, port: u16) -> io::Result<SocketAddr> {
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = literal.parse::<IpAddr>() {
            return Ok((ip, port).into());
        }
        if let Some((ip, old)) = self.known(host) {
            if old {
                let (names, host) = (self.clone(), host.to_owned());
                tokio::spawn(async move { names.look_up(&host).await });
            }
            return Ok((ip, port).into());
        }
        self.look_up(host).await;
        let known = self.known(host).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok((known.0, port).into())
    }

    async fn look_up(&self, host: &str) {
        match (self.lookup)(host.to_owned()).await {
            Ok(addresses) if !addresses.is_empty() => {
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                if known.len() >= NAMES {
                    known.clear();
                }
                let entry = Known { addresses, until: Instant::now() + TTL, turn: 0 };
                known.insert(host.to_owned(), entry);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, host, "a name could not be looked up"),
        }
    }

    /// The base URL with an address in place of the name, without a slash at its end, and what the header `Host` is to say.
    ///
    /// `localhost` stays as it is: it never moves, and may mean two addresses of which a service has one.
    ///
    /// # Errors
    ///
    /// That nothing is known of the name; of the kind `InvalidInput`, that the base is no URL.
    pub async fn resolved<'a>(&self, base: &'a str) -> io::Result<(Cow<'a, str>, HeaderValue)> {
        let wrong = |error: String| io::Error::new(io::ErrorKind::InvalidInput, error);
        let uri: Uri = base.parse().map_err(|error: http::uri::InvalidUri| wrong(error.to_string()))?;
        let named = uri.authority().ok_or_else(|| wrong("no host".to_owned()))?;
        let header = HeaderValue::from_str(named.as_str()).map_err(|error| wrong(error.to_string()))?;
        if named.host() == "localhost" {
            return Ok((base.trim_end_matches('/').into(), header));
        }
        let address = self.address(named.host(), named.port_u16().unwrap_or(80)).await?;
        let (scheme, path) = (uri.scheme_str().unwrap_or("http"), uri.path().trim_end_matches('/'));
        Ok((format!("{scheme}://{address}{path}").into(), header))
    }

    /// The address whose turn it is, and whether it is time to look the name up again; that is said to one who asks, and not again for as long
    /// as an answer holds.
    fn known(&self, host: &str) -> Option<(IpAddr, bool)> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.get_mut(host)?;
        let now = Instant::now();
        let old = entry.until <= now;
        if old {
            entry.until = now + TTL;
        }
        entry.turn += 1;
        Some((entry.addresses[entry.turn % entry.addresses.len()], old))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering::SeqCst};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_name_is_looked_up_again_after_its_time() {
        let asked = Arc::new(AtomicU8::new(0));
        let names = Names::new({
            let asked = asked.clone();
            move |_| {
                let times = asked.fetch_add(1, SeqCst) + 1;
                async move {
                    match times {
                        3 => Err(io::Error::from(io::ErrorKind::TimedOut)),
                        4 => std::future::pending().await,
                        times => Ok(vec![[10, 0, 0, times].into()]),
                    }
                }
            }
        });
        let address = async || names.address("users", 3001).await.unwrap().to_string();
        assert_eq!((address().await, address().await), ("10.0.0.1:3001".into(), "10.0.0.1:3001".into()));
        let mut holds = "10.0.0.1:3001";
        // An answer, an error, no answer at all, and an answer again.
        for (times, then) in
            [(2, "10.0.0.2:3001"), (3, "10.0.0.2:3001"), (4, "10.0.0.2:3001"), (5, "10.0.0.5:3001")]
        {
            tokio::time::advance(TTL).await;
            assert_eq!((address().await.as_str(), address().await.as_str()), (holds, holds), "nobody waits");
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(address().await, then);
            assert_eq!(asked.load(SeqCst), times, "one looks it up");
            holds = then;
        }
    }

    #[tokio::test]
    async fn addresses_take_turns_and_are_not_looked_up() {
        let names = Names::new(|_| std::future::ready(Ok(vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()])));
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(names.address("users", 1).await.unwrap().ip());
        }
        assert!(seen[0] != seen[1] && seen[0] == seen[2] && seen[1] == seen[3]);
        let never = Names::new(|_| std::future::ready(Err(io::Error::from(io::ErrorKind::NotFound))));
        assert_eq!(never.address("127.0.0.1", 80).await.unwrap().to_string(), "127.0.0.1:80");
        assert_eq!(never.address("[::1]", 80).await.unwrap().to_string(), "[::1]:80");
        assert!(never.address("nowhere", 80).await.is_err());
        for (base, at, host) in [
            ("http://localhost:3001/", "http://localhost:3001", "localhost:3001"),
            ("http://127.0.0.1:3001/v1/", "http://127.0.0.1:3001/v1", "127.0.0.1:3001"),
            ("http://[::1]", "http://[::1]:80", "[::1]"),
        ] {
            let (said, header) = never.resolved(base).await.unwrap();
            assert_eq!((&*said, header.to_str().unwrap()), (at, host));
        }
        assert_eq!(never.resolved("/users").await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(never.resolved("http://nowhere").await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
