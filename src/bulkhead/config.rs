//! The settings of a bulkhead.

use std::{fmt, sync::Arc, time::Duration};

use super::{Bulkhead, Inner, Permits, shared::Shared};
use crate::{
    error::{ConfigError, Name},
    event::{Identity, Observer},
    limit::not_zero,
};

/// Settings of a [`Bulkhead`].
///
/// | setting | default | allowed |
/// |---|---|---|
/// | `limit` | none: it is the one thing to decide | 1 or more |
/// | `queue` | none: refuse at once | a length of 1 or more, a wait above zero |
/// | `name` | the stack's, or `bulkhead` | |
///
/// With the feature `serde`, the same in a file, checked in the same way when it is read:
///
/// ```
/// # #[cfg(feature = "serde")] {
/// let config: mainstay::bulkhead::Config = serde_json::from_str(
///     r#"{ "limit": 20, "queue": { "length": 10, "max_wait": "100ms" }, "name": "payments" }"#,
/// )?;
/// let bulkhead = config.build().expect("was checked when it was read");
/// # assert_eq!((bulkhead.limit(), &**bulkhead.name()), (20, "payments"));
/// # }
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "File", into = "File")
)]
#[must_use = "settings do nothing until they are built"]
pub struct Config {
    limit: usize,
    queue: Option<Queue>,
    id: Identity,
}

/// Who may wait for a permit, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Queue {
    /// How many calls may wait at once.
    pub length: usize,
    /// How long each may wait.
    #[cfg_attr(feature = "serde", serde(with = "crate::human"))]
    pub max_wait: Duration,
}

impl Config {
    /// A bulkhead of `limit` permits that refuses at once.
    pub fn new(limit: usize) -> Self {
        Config { limit, queue: None, id: Identity::new("bulkhead") }
    }

    /// Lets up to `length` calls wait, each for at most `max_wait`, first come first served.
    ///
    /// A queue evens out short bursts. Keep both small: a long wait is work for a caller who may be gone. `length` calls
    /// that wait in front of `limit` permits are served in about `length / limit` × the latency, and 100 ms
    /// is plenty for most.
    pub fn queue(mut self, length: usize, max_wait: Duration) -> Self {
        self.queue = Some(Queue { length, max_wait });
        self
    }

    /// Names the bulkhead in events, metrics and errors.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.id.set_name(name.into());
        self
    }

    /// Adds a listener for [`Event::Refused`](crate::Event::Refused).
    pub fn observe(mut self, observer: impl Observer + 'static) -> Self {
        self.id.observe(Arc::new(observer));
        self
    }

    /// The bulkhead.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] when the limit, the queue's length or its wait is zero.
    pub fn build(self) -> Result<Bulkhead, ConfigError> {
        self.check()?;
        let room = self.queue.map_or(0, |queue| queue.length);
        Ok(Bulkhead(Arc::new(Inner {
            id: self.id,
            permits: Permits::Own { shared: Shared::new(self.limit, room), queue: self.queue },
        })))
    }

    fn check(&self) -> Result<(), ConfigError> {
        check_limit(self.limit)?;
        let Some(Queue { length, max_wait }) = self.queue else {
            return Ok(());
        };
        ConfigError::unless(length > 0, "bulkhead.queue.length", length, "1 or more")?;
        not_zero(max_wait, "bulkhead.queue.max_wait")
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn keyed(mut self, key: &dyn fmt::Display) -> Self {
        self.id.set_key(key);
        self
    }

    pub(super) fn inherit(mut self, stack: &Identity) -> Self {
        self.id.inherit(stack);
        self
    }
}

pub(super) fn check_limit(limit: usize) -> Result<(), ConfigError> {
    ConfigError::unless(limit > 0, "bulkhead.limit", limit, "1 or more")
}

/// The settings as they stand in a file.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    limit: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<Queue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Name>,
}

#[cfg(feature = "serde")]
impl TryFrom<File> for Config {
    type Error = ConfigError;

    fn try_from(file: File) -> Result<Self, ConfigError> {
        let mut config = Config::new(file.limit);
        config.queue = file.queue;
        if let Some(name) = file.name {
            config = config.name(name);
        }
        config.check()?;
        Ok(config)
    }
}

#[cfg(feature = "serde")]
impl From<Config> for File {
    fn from(config: Config) -> Self {
        File { limit: config.limit, queue: config.queue, name: config.id.given_name().cloned() }
    }
}
