//! Which instances of services there are: they say so themselves, again and again, and are forgotten when they stop.
//!
//! [`Instances`] keeps them in memory, in the gateway's process. Other processes have a [`RegistryClient`], which keeps a copy.
//!
//! # Other registries
//!
//! [`Registry`] is what an adapter for another registry would implement. None of its functions waits, because an address is needed in the
//! middle of every request: an adapter keeps a copy in memory that a task beside it keeps fresh, as [`RegistryClient`] does, and hands what
//! is to be written to that task.
//!
//! - **Consul**: `register` puts a service with the id and a check of the kind TTL (`PUT /v1/agent/service/register`), `heartbeat` passes it
//!   (`PUT /v1/agent/check/pass/service:ID`), `deregister` takes it away. The task reads `/v1/health/service/NAME?passing` as a blocking
//!   query with the index of the last answer.
//! - **etcd**: `register` puts `/services/NAME/ID` under a lease with the registry's time to live, `heartbeat` keeps the lease alive,
//!   `deregister` revokes it. The task reads the prefix once and watches it from that revision on.
//! - **Eureka**: `POST /eureka/apps/NAME`, `PUT /eureka/apps/NAME/ID` as heartbeat (404: register again), `DELETE`. The task reads
//!   `/eureka/apps/delta` every few seconds.
//! - **Kubernetes, compose**: no registry is needed. The base URL of a service has its name, and the gateway looks the name up again when
//!   what it knows is old; see [`resolve`](order_kit::resolve).
//!
//! `lost` stays local in all of them: that one process cannot reach an instance is no news for the others.

pub mod client;
pub mod routes;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use order_kit::context::{Locate, known};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::client::RegistryClient;

/// How long an instance is known after it has last been heard of.
pub const TTL: Duration = Duration::from_secs(10);
/// How many instances of one service, and how many services, are known at most.
const MOST: usize = 1_000;

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// The service's name.
    pub service: String,
    /// The machine, by name or address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Which instance it is.
    pub id: String,
}

impl Instance {
    /// Its base URL.
    pub fn base(&self) -> String {
        format!("http://{}:{}", self.host, self.port)
    }
}

/// What a registry does; see the [module](self) for how others would do it.
pub trait Registry: Locate {
    /// An instance is there. One with the same id, or at the same address, is replaced.
    ///
    /// # Errors
    ///
    /// That there is no room.
    fn register(&self, instance: Instance) -> Result<(), Full>;

    /// An instance is still there, and may be asked again if it was set aside. `false`: it is not known, and has to register.
    fn heartbeat(&self, service: &str, id: &str) -> bool;

    /// An instance goes. `false`: it was not known.
    fn deregister(&self, service: &str, id: &str) -> bool;

    /// The instances that are there; none if the service was never heard of, or not for long.
    fn instances(&self, service: &str) -> Vec<Instance>;
}

/// Says of instances in this process that they are there, until the stop; then that they are gone. For those in other processes there is
/// [`RegistryClient::run`].
pub async fn keep(registry: Arc<dyn Registry>, own: Vec<Instance>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        for instance in &own {
            if !registry.heartbeat(&instance.service, &instance.id)
                && let Err(full) = registry.register(instance.clone())
            {
                tracing::warn!(error = %full, service = instance.service, "an instance could not be registered");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(client::EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
    for Instance { service, id, .. } in &own {
        registry.deregister(service, id);
    }
}

/// There is no room for more instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room for more instances")]
pub struct Full;

/// The registry in memory.
pub struct Instances {
    ttl: Duration,
    services: Mutex<BTreeMap<String, Turn>>,
    /// For services that have no instance here.
    otherwise: Arc<dyn Locate>,
}

#[derive(Default)]
struct Turn {
    entries: Vec<Entry>,
    next: usize,
}

struct Entry {
    instance: Instance,
    heard: Instant,
    /// When no connection to it could be made, since it was last heard of.
    aside: Option<Instant>,
}

/// An instance, and when it was heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Heard {
    /// The instance.
    #[serde(flatten)]
    pub instance: Instance,
    /// How many milliseconds ago that was.
    pub heard_ms_ago: u64,
}

impl std::fmt::Debug for Instances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instances").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

impl Turn {
    fn expire(&mut self, ttl: Duration) {
        self.entries.retain(|entry| entry.heard.elapsed() < ttl);
    }

    /// The next in turn. With nobody left who can be reached, whoever is there is tried: it may be back.
    fn next(&mut self) -> Option<String> {
        let all_aside = self.entries.iter().all(|entry| entry.aside.is_some());
        let length = self.entries.len();
        let at = (0..length)
            .map(|step| (self.next + step) % length)
            .find(|&at| all_aside || self.entries[at].aside.is_none())?;
        self.next = at + 1;
        Some(self.entries[at].instance.base())
    }
}

/// The same name for both forms of a service's name.
fn canonical(service: &str) -> &str {
    known(service).map_or(service, |known| known.name)
}

impl Instances {
    /// Nobody yet. Services without an instance are looked for `otherwise`.
    pub fn new(ttl: Duration, otherwise: Arc<dyn Locate>) -> Self {
        Instances { ttl, services: Mutex::default(), otherwise }
    }

    fn with<X>(&self, service: &str, work: impl FnOnce(&mut Turn) -> X) -> Option<X> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = services.get_mut(canonical(service))?;
        turn.expire(self.ttl);
        Some(work(turn))
    }

    /// The services that have instances.
    pub fn services(&self) -> Vec<String> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.values_mut().for_each(|turn| turn.expire(self.ttl));
        services.retain(|_, turn| !turn.entries.is_empty());
        services.keys().cloned().collect()
    }

    /// The instances of a service, and when each was heard of.
    pub fn heard(&self, service: &str) -> Vec<Heard> {
        let heard = |entry: &Entry| Heard {
            instance: entry.instance.clone(),
            heard_ms_ago: u64::try_from(entry.heard.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        self.with(service, |turn| turn.entries.iter().map(heard).collect()).unwrap_or_default()
    }

    /// Takes over what another registry says. What it says nothing of is gone.
    pub(crate) fn take_over(&self, news: Vec<Heard>) {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let mut old = std::mem::take(&mut *services);
        let now = Instant::now();
        for Heard { instance, heard_ms_ago } in news {
            let name = canonical(&instance.service);
            let before = old.get_mut(name);
            let heard = now.checked_sub(Duration::from_millis(heard_ms_ago)).unwrap_or(now);
            let aside = before.as_ref().and_then(|turn| {
                let entry = turn.entries.iter().find(|entry| entry.instance == instance)?;
                entry.aside.filter(|at| heard <= *at)
            });
            let next = before.map_or(0, |turn| turn.next);
            let turn = services.entry(name.to_owned()).or_default();
            turn.next = next;
            turn.entries.push(Entry { instance, heard, aside });
        }
    }
}

impl Registry for Instances {
    fn register(&self, instance: Instance) -> Result<(), Full> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let name = canonical(&instance.service).to_owned();
        if services.len() >= MOST && !services.contains_key(&name) {
            return Err(Full);
        }
        let turn = services.entry(name).or_default();
        turn.expire(self.ttl);
        let fresh = Entry { instance: instance.clone(), heard: Instant::now(), aside: None };
        match turn.entries.iter().position(|entry| entry.instance.id == instance.id) {
            Some(at) => turn.entries[at] = fresh,
            None if turn.entries.len() >= MOST => return Err(Full),
            None => turn.entries.push(fresh),
        }
        // Whoever was at this address before is gone.
        let Instance { host, port, id, .. } = &instance;
        turn.entries.retain(|entry| {
            entry.instance.id == *id || (&entry.instance.host, entry.instance.port) != (host, *port)
        });
        Ok(())
    }

    fn heartbeat(&self, service: &str, id: &str) -> bool {
        let heard = self.with(service, |turn| {
            let entry = turn.entries.iter_mut().find(|entry| entry.instance.id == id)?;
            (entry.heard, entry.aside) = (Instant::now(), None);
            Some(())
        });
        heard.flatten().is_some()
    }

    fn deregister(&self, service: &str, id: &str) -> bool {
        let gone = self.with(service, |turn| {
            let before = turn.entries.len();
            turn.entries.retain(|entry| entry.instance.id != id);
            turn.entries.len() < before
        });
        gone.unwrap_or(false)
    }

    fn instances(&self, service: &str) -> Vec<Instance> {
        self.heard(service).into_iter().map(|heard| heard.instance).collect()
    }
}

impl Locate for Instances {
    fn locate(&self, service: &str) -> String {
        let next = self.with(service, Turn::next).flatten();
        next.unwrap_or_else(|| self.otherwise.locate(service))
    }

    fn lost(&self, service: &str, base: &str) {
        let found = self.with(service, |turn| {
            let mut found = turn.entries.iter_mut().filter(|entry| entry.instance.base() == base);
            found.next().map(|entry| entry.aside = Some(Instant::now()))
        });
        if found.flatten().is_none() {
            self.otherwise.lost(service, base);
        }
    }
}

#[cfg(test)]
mod tests {
    use order_kit::context::Ports;

    use super::*;

    fn instance(port: u16) -> Instance {
        Instance { service: "users".into(), host: "127.0.0.1".into(), port, id: format!("users-{port}") }
    }

    fn registry() -> Instances {
        Instances::new(TTL, Arc::new(Ports(3000)))
    }

    #[tokio::test(start_paused = true)]
    async fn three_heartbeats_are_one_entry_and_silence_is_the_end() {
        let registry = registry();
        registry.register(instance(1)).unwrap();
        for _ in 0..3 {
            tokio::time::advance(TTL / 2).await;
            assert!(registry.heartbeat("users", "users-1"));
        }
        registry.register(instance(1)).unwrap();
        assert_eq!(registry.instances("users"), [instance(1)]);
        assert_eq!(registry.instances("user"), [instance(1)], "by either name");
        tokio::time::advance(TTL - Duration::from_millis(1)).await;
        assert_eq!(registry.services(), ["users"]);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(registry.instances("users").is_empty() && registry.services().is_empty());
        assert!(!registry.heartbeat("users", "users-1"), "it has to register again");
        assert_eq!(registry.locate("users"), "http://127.0.0.1:3001", "the documented port");
    }

    #[tokio::test(start_paused = true)]
    async fn two_instances_take_turns_exactly() {
        let registry = registry();
        registry.register(instance(1)).unwrap();
        registry.register(instance(2)).unwrap();
        let all: Vec<String> = (0..100).map(|_| registry.locate("users")).collect();
        assert_eq!(all.iter().filter(|base| base.ends_with(":1")).count(), 50);
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_that_is_lost_is_set_aside_until_it_is_heard_of() {
        let registry = registry();
        registry.register(instance(1)).unwrap();
        registry.register(instance(2)).unwrap();
        registry.lost("user", "http://127.0.0.1:1");
        assert!((0..10).all(|_| registry.locate("users").ends_with(":2")));
        assert_eq!(registry.instances("users").len(), 2, "it is not forgotten");
        assert!(registry.heartbeat("users", "users-1"));
        assert!((0..2).any(|_| registry.locate("users").ends_with(":1")));
        registry.lost("users", "http://127.0.0.1:1");
        registry.lost("users", "http://127.0.0.1:2");
        let turns: Vec<String> = (0..2).map(|_| registry.locate("users")).collect();
        assert_ne!(turns[0], turns[1], "nobody can be reached: both are tried");
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_is_kept_until_the_stop() {
        let registry = Arc::new(registry());
        let stop = CancellationToken::new();
        let kept = tokio::spawn(keep(registry.clone(), vec![instance(1)], stop.clone()));
        tokio::time::sleep(10 * TTL).await;
        assert_eq!(registry.instances("users"), [instance(1)]);
        assert!(registry.deregister("users", "users-1"));
        tokio::time::sleep(TTL / 2).await;
        assert_eq!(registry.instances("users"), [instance(1)], "forgotten, and told again");
        stop.cancel();
        kept.await.unwrap();
        assert!(registry.instances("users").is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_one_instance() {
        let registry = registry();
        registry.register(instance(1)).unwrap();
        let again = Instance { id: "another process".into(), ..instance(1) };
        registry.register(again.clone()).unwrap();
        assert_eq!(registry.instances("users"), std::slice::from_ref(&again));
        assert!(!registry.deregister("users", "users-1"));
        assert!(registry.deregister("users", &again.id) && registry.instances("users").is_empty());
    }
}
