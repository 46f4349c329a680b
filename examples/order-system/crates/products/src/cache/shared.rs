//! A cache in Redis, which all instances share.
//!
//! Under `product:ID` stands `{"version": …, "product": {…}}`, for an hour; or, for a minute after a change, only its version.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use mainstay::{BoxedStack, CircuitBreaker, Error};
use order_kit::{BoxError, Context, client::policies, env};
use redis::{
    Client, Cmd, FromRedisValue, RedisError,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use serde::{Deserialize, Serialize};

use super::{CHANGE_TTL, Cache, Kept, TTL};
use crate::{repository::Versioned, wire::Product};

/// How long Redis may take. A product is read from the database in less than that.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long Redis is left alone when it does not answer; and how often it is told of changes that it has missed.
const AWAY: Duration = Duration::from_secs(2);

/// Sets a value unless the one that is there is of a later version. What cannot be read is replaced.
const KEEP: &str = "
local old = redis.call('GET', KEYS[1])
if old then
  local read, kept = pcall(cjson.decode, old)
  local version = read and type(kept) == 'table' and tonumber(kept.version)
  if version and version > tonumber(ARGV[2]) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
return 1
";

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    version: i64,
    /// Not there: it has changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    product: Option<Product>,
}

/// Copies in Redis.
pub(crate) struct Shared {
    redis: ConnectionManager,
    prefix: String,
    stack: BoxedStack<redis::Value, RedisError>,
    /// Changes that Redis has not heard of, by id. Until it has, nothing that it says of them counts.
    untold: Mutex<HashMap<String, i64>>,
}

impl Shared {
    /// Connects when it is first asked.
    pub(crate) fn open(context: &Context, url: &str) -> Result<Arc<Self>, BoxError> {
        // The error of a wrong address holds the address.
        let client = Client::open(url).map_err(|_| "REDIS_URL is no address of a Redis")?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(PATIENCE))
            .set_number_of_retries(1);
        let redis = ConnectionManager::new_lazy_with_config(client, config)?;
        let name = context.policy_name("redis");
        let config = CircuitBreaker::config()
            .name(name.clone())
            .consecutive_failures(5)
            .open_wait(AWAY, 1.0, AWAY)
            .observe(mainstay::observe::Tracing)
            .observe(mainstay::observe::Metrics);
        let breaker = policies::build(config, context.env())?;
        context.policies().add(&breaker);
        let stack = mainstay::stack(name).circuit_breaker(breaker).timeout(PATIENCE).build()?.boxed();
        let prefix = context.env().get_or_default(env::REDIS_KEY_PREFIX);
        let shared = Arc::new(Shared { redis, prefix, stack, untold: Mutex::default() });
        let (telling, stop) = (shared.clone(), context.stop().clone());
        context.spawn(async move {
            while stop.run_until_cancelled(tokio::time::sleep(AWAY / 4)).await.is_some() {
                telling.tell_all().await;
            }
        });
        Ok(shared)
    }

    /// Whether Redis answers.
    pub(crate) async fn ping(&self) -> Result<(), String> {
        let pong: Option<String> = self.ask(&redis::cmd("PING")).await;
        pong.map(drop).ok_or_else(|| "the cache does not answer".to_owned())
    }

    /// `None` if there is no answer, for whatever reason.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Option<T> {
        let attempt = || {
            let mut redis = self.redis.clone();
            async move { redis.send_packed_command(command).await }
        };
        let answer = self.stack.call(attempt).await;
        match answer {
            Ok(value) => T::from_redis_value(value).ok(),
            Err(Error::Refused(_)) => None,
            Err(Error::Inner(error)) => {
                tracing::warn!(error = %error.category(), "the cache does not answer");
                None
            }
        }
    }

    fn key(&self, id: &str) -> String {
        format!("{}product:{id}", self.prefix)
    }

    fn untold(&self) -> MutexGuard<'_, HashMap<String, i64>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether Redis has it now, or something newer.
    async fn keep(&self, id: &str, entry: &Entry, ttl: Duration) -> bool {
        let Ok(json) = serde_json::to_string(entry) else { return false };
        let mut command = redis::cmd("EVAL");
        command.arg(KEEP).arg(1).arg(self.key(id)).arg(json).arg(entry.version).arg(ttl.as_secs());
        self.ask::<i64>(&command).await.is_some()
    }

    /// Tells Redis of a change, and remembers it if it is not heard.
    async fn tell(&self, id: &str, version: i64) -> bool {
        let told = self.keep(id, &Entry { version, product: None }, CHANGE_TTL).await;
        let mut untold = self.untold();
        if told && untold.get(id).is_some_and(|waiting| *waiting <= version) {
            untold.remove(id);
        }
        told
    }

    async fn tell_all(&self) {
        let waiting: Vec<(String, i64)> = self.untold().iter().map(|(id, it)| (id.clone(), *it)).collect();
        for (id, version) in waiting {
            if !self.tell(&id, version).await {
                return;
            }
        }
    }
}

impl Cache for Shared {
    fn get<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Kept> {
        async move {
            if let Some(version) = self.untold().get(id).copied() {
                return Kept::Changed(version);
            }
            let mut command = redis::cmd("GET");
            command.arg(self.key(id));
            let json = self.ask::<Option<String>>(&command).await.flatten();
            match json.and_then(|json| serde_json::from_str(&json).ok()) {
                Some(Entry { version, product: Some(product) }) => Kept::Copy(Versioned { version, product }),
                Some(Entry { version, product: None }) => Kept::Changed(version),
                None => Kept::Nothing,
            }
        }
        .boxed()
    }

    fn put<'a>(&'a self, copy: &'a Versioned) -> BoxFuture<'a, ()> {
        async move {
            let entry = Entry { version: copy.version, product: Some(copy.product.clone()) };
            self.keep(&copy.product.id, &entry, TTL).await;
        }
        .boxed()
    }

    fn changed<'a>(&'a self, id: &'a str, version: i64) -> BoxFuture<'a, ()> {
        async move {
            // Before Redis is asked: if this is dropped, or Redis away, it is told later.
            self.untold().entry(id.to_owned()).and_modify(|it| *it = version.max(*it)).or_insert(version);
            self.tell(id, version).await;
        }
        .boxed()
    }
}
