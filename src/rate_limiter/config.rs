//! The settings of a rate limiter.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    Inner, RateLimiter,
    machine::{Machine, Rules},
};
use crate::{
    error::{ConfigError, Name},
    event::{Identity, Observer},
    limit::not_zero,
    sync::Mutex,
    time::{self, Scale},
};

/// The most places that a sliding window may have: it remembers each.
const MAX_TIMES: u32 = 1_000_000;

/// How admissions are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case", deny_unknown_fields)
)]
#[non_exhaustive]
pub enum Algorithm {
    /// At most `limit` in *any* stretch of time as long as the window. Exact; remembers the time of each, 8 bytes
    /// in a ring that grows with the most that were taken in one window.
    #[default]
    SlidingWindow,
    /// At most `limit` in each window. A window begins with the first call after the last one has ended. Around the end of one
    /// there can be up to twice the limit in a stretch as long as the window.
    FixedWindow,
    /// A bucket of `burst` tokens, full at the beginning, into which `limit` tokens flow evenly in each `window`. In any stretch of
    /// time at most `burst` and what flows in during it.
    TokenBucket {
        /// How many tokens it holds.
        burst: u32,
    },
}

/// Settings of a [`RateLimiter`].
///
/// | setting | default | allowed |
/// |---|---|---|
/// | `limit` | none: it is the one thing to decide | 1 or more; up to 1,000,000 for a sliding window |
/// | `window` | none | above zero |
/// | `fixed_window`, `token_bucket` | a sliding window | a burst of 1 or more |
/// | `name` | the stack's, or `rate_limiter` | |
///
/// With the feature `serde`, the same in a file, checked in the same way when it is read:
///
/// ```
/// # #[cfg(feature = "serde")] {
/// let config: mainstay::rate_limiter::Config = serde_json::from_str(
///     r#"{ "limit": 50, "window": "1s", "algorithm": { "token_bucket": { "burst": 20 } }, "name": "partner" }"#,
/// )?;
/// let limiter = config.build().expect("was checked when it was read");
/// # assert_eq!((limiter.quota().limit, limiter.name()), (20, "partner"));
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
    limit: u32,
    window: Duration,
    algorithm: Algorithm,
    id: Identity,
}

impl Config {
    /// At most `limit` calls in any stretch of time as long as `window`.
    pub fn new(limit: u32, window: Duration) -> Self {
        Config { limit, window, algorithm: Algorithm::SlidingWindow, id: Identity::new("rate_limiter") }
    }

    /// Counts in windows that follow one another, in a few bytes whatever the limit is; see
    /// [`Algorithm::FixedWindow`].
    pub fn fixed_window(mut self) -> Self {
        self.algorithm = Algorithm::FixedWindow;
        self
    }

    /// Lets `burst` calls through at once, and `limit` in each `window` from then on; see [`Algorithm::TokenBucket`].
    pub fn token_bucket(mut self, burst: u32) -> Self {
        self.algorithm = Algorithm::TokenBucket { burst };
        self
    }

    /// Names the limiter in events, metrics and errors.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.id.set_name(name.into());
        self
    }

    /// Adds a listener for [`Event::Refused`](crate::Event::Refused).
    pub fn observe(mut self, observer: impl Observer + 'static) -> Self {
        self.id.observe(Arc::new(observer));
        self
    }

    /// The limiter.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Setting`] when the limit, the window or the burst is zero, or a sliding window has a limit above 1,000,000.
    pub fn build(self) -> Result<RateLimiter, ConfigError> {
        let rules = self.rules()?;
        Ok(RateLimiter(Arc::new(Inner {
            id: self.id,
            scale: Scale::new(time::now()),
            machine: Mutex::new(Machine::new(rules)),
        })))
    }

    /// What the machine goes by, checked.
    pub(super) fn rules(&self) -> Result<Rules, ConfigError> {
        let &Config { limit, window, algorithm, .. } = self;
        ConfigError::unless(limit > 0, "rate_limiter.limit", limit, "1 or more")?;
        not_zero(window, "rate_limiter.window")?;
        match algorithm {
            Algorithm::SlidingWindow => ConfigError::unless(
                limit <= MAX_TIMES,
                "rate_limiter.limit",
                limit,
                "1 to 1000000 for a sliding window",
            )?,
            Algorithm::FixedWindow => {}
            Algorithm::TokenBucket { burst } => {
                ConfigError::unless(burst > 0, "rate_limiter.burst", burst, "1 or more")?;
            }
        }
        Ok(Rules { algorithm, limit, window: time::nanos(window) })
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

/// The settings as they stand in a file.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    limit: u32,
    #[serde(with = "crate::human")]
    window: Duration,
    #[serde(default)]
    algorithm: Algorithm,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Name>,
}

#[cfg(feature = "serde")]
impl TryFrom<File> for Config {
    type Error = ConfigError;

    fn try_from(file: File) -> Result<Self, ConfigError> {
        let mut config = Config::new(file.limit, file.window);
        config.algorithm = file.algorithm;
        if let Some(name) = file.name {
            config = config.name(name);
        }
        config.rules()?;
        Ok(config)
    }
}

#[cfg(feature = "serde")]
impl From<Config> for File {
    fn from(config: Config) -> Self {
        File {
            limit: config.limit,
            window: config.window,
            algorithm: config.algorithm,
            name: config.id.given_name().cloned(),
        }
    }
}
