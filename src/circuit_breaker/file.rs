//! A breaker in a file: the same settings under the same names, checked when they are read.
//!
//! ```toml
//! [circuit_breaker]
//! window = { count = 20 }
//! no_failure_rate = true
//! consecutive_failures = 5
//! immediate_close = true
//! ```
//!
//! What is not set is left out. The two settings that are on unless told otherwise are switched off by a field of their own, since
//! not every format has a `null`; where there is one it does the same.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::config::{Config, OfLast, Settings, SlowRate, Verdict, Window, Within};
use crate::{
    error::{ConfigError, Name},
    human,
};

#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Name>,
    window: Window,
    #[serde(skip_serializing_if = "Option::is_none")]
    minimum_calls: Option<u32>,
    #[serde(deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    failure_rate: Option<Option<f64>>,
    no_failure_rate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    slow_rate: Option<SlowRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consecutive_failures: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consecutive_failures_within: Option<Within>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failures_of_last: Option<OfLast>,
    probes: u32,
    probe_verdict: Verdict,
    #[serde(with = "human")]
    probe_timeout: Duration,
    #[serde(with = "human")]
    open_wait: Duration,
    open_wait_growth: f64,
    open_wait_jitter: f64,
    #[serde(with = "human")]
    open_wait_max: Duration,
    #[serde(with = "human")]
    open_for_max: Duration,
    #[serde(deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    ramp: Option<Option<u32>>,
    immediate_close: bool,
    count_cancelled_as_failure: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
}

/// A field that is there, if only as a `null`: the outer `None` is one that is not.
fn said<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Default for File {
    fn default() -> Self {
        let mut file = File::from(&Settings::default());
        (file.failure_rate, file.ramp) = (None, None);
        file
    }
}

impl From<&Settings> for File {
    fn from(settings: &Settings) -> Self {
        let Settings { failure_rate, ramp, .. } = *settings;
        File {
            name: settings.name.clone(),
            window: settings.window,
            minimum_calls: settings.minimum_calls,
            failure_rate: failure_rate.map(Some),
            no_failure_rate: failure_rate.is_none(),
            slow_rate: settings.slow_rate,
            consecutive_failures: settings.consecutive_failures,
            consecutive_failures_within: settings.consecutive_failures_within,
            failures_of_last: settings.failures_of_last,
            probes: settings.probes,
            probe_verdict: settings.probe_verdict,
            probe_timeout: settings.probe_timeout,
            open_wait: settings.open_wait,
            open_wait_growth: settings.open_wait_growth,
            open_wait_jitter: settings.open_wait_jitter,
            open_wait_max: settings.open_wait_max,
            open_for_max: settings.open_for_max,
            ramp: ramp.map(Some),
            immediate_close: ramp.is_none(),
            count_cancelled_as_failure: settings.count_cancelled_as_failure,
            seed: settings.seed,
        }
    }
}

impl TryFrom<File> for Settings {
    type Error = ConfigError;

    fn try_from(file: File) -> Result<Self, ConfigError> {
        let default = Settings::default();
        let contradicts =
            |said: bool, off: bool, field, allowed| ConfigError::unless(!(said && off), field, off, allowed);
        contradicts(
            matches!(file.failure_rate, Some(Some(_))),
            file.no_failure_rate,
            "circuit_breaker.no_failure_rate",
            "false beside circuit_breaker.failure_rate",
        )?;
        contradicts(
            matches!(file.ramp, Some(Some(_))),
            file.immediate_close,
            "circuit_breaker.immediate_close",
            "false beside circuit_breaker.ramp",
        )?;
        Ok(Settings {
            name: file.name,
            window: file.window,
            minimum_calls: file.minimum_calls,
            failure_rate: if file.no_failure_rate {
                None
            } else {
                file.failure_rate.unwrap_or(default.failure_rate)
            },
            slow_rate: file.slow_rate,
            consecutive_failures: file.consecutive_failures,
            consecutive_failures_within: file.consecutive_failures_within,
            failures_of_last: file.failures_of_last,
            probes: file.probes,
            probe_verdict: file.probe_verdict,
            probe_timeout: file.probe_timeout,
            open_wait: file.open_wait,
            open_wait_growth: file.open_wait_growth,
            open_wait_jitter: file.open_wait_jitter,
            open_wait_max: file.open_wait_max,
            open_for_max: file.open_for_max,
            ramp: if file.immediate_close { None } else { file.ramp.unwrap_or(default.ramp) },
            count_cancelled_as_failure: file.count_cancelled_as_failure,
            seed: file.seed,
        })
    }
}

/// Reads settings and checks them as [`build`](Config::build) does.
impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let settings = Settings::try_from(File::deserialize(deserializer)?).map_err(D::Error::custom)?;
        let config = Config::from(settings);
        config.rules().map_err(D::Error::custom)?;
        Ok(config)
    }
}

/// Writes what a file can say: the classifier, the listeners and what is restored are left out.
impl<C> Serialize for Config<C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        File::from(&self.settings).serialize(serializer)
    }
}
