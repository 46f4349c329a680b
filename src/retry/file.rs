//! A retry in a file: the same settings under the same names, checked when they are read.
//!
//! ```toml
//! [retry]
//! backoff = { exponential = "50ms" }
//! max_attempts = 4
//! cap = "2s"
//! budget = { ratio = 0.2 }
//! ```

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{
    budget::BudgetConfig,
    config::{Config, Funding},
};
use crate::{
    backoff::{Jitter, Schedule, Shape},
    human,
};

#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    backoff: Backoff,
    factor: f64,
    #[serde(with = "human::option", skip_serializing_if = "Option::is_none")]
    cap: Option<Duration>,
    jitter: Jitter,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(with = "human::option", skip_serializing_if = "Option::is_none")]
    total_time: Option<Duration>,
    idempotent: bool,
    repeat_refusals: bool,
    #[serde(with = "human")]
    hint_window: Duration,
    #[serde(with = "human")]
    throttle_base: Duration,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<BudgetConfig>,
    no_budget: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Backoff {
    Constant(#[serde(with = "human")] Duration),
    Linear(#[serde(with = "human")] Duration),
    Exponential(#[serde(with = "human")] Duration),
    Sequence(Vec<Wait>),
}

#[derive(Serialize, Deserialize)]
struct Wait(#[serde(with = "human")] Duration);

impl Default for File {
    fn default() -> Self {
        File::from(&Config::default())
    }
}

impl<W, C> From<&Config<W, C>> for File {
    fn from(config: &Config<W, C>) -> Self {
        let plain = &config.plain;
        let schedule = &plain.schedule;
        let (budget, no_budget) = match &plain.funding {
            Funding::Own(settings) if *settings == BudgetConfig::default() => (None, false),
            Funding::Own(settings) => (Some(*settings), false),
            Funding::Shared(budget) => (Some(budget.settings()), false),
            Funding::Unlimited => (None, true),
        };
        File {
            name: config.id.given_name().map(|name| name.to_string()),
            backoff: match &schedule.shape {
                Shape::Constant(wait) => Backoff::Constant(*wait),
                Shape::Linear(step) => Backoff::Linear(*step),
                Shape::Exponential(base) => Backoff::Exponential(*base),
                Shape::Sequence(waits) => Backoff::Sequence(waits.iter().copied().map(Wait).collect()),
            },
            factor: schedule.factor,
            cap: schedule.cap,
            jitter: schedule.jitter,
            max_attempts: plain.max_attempts,
            total_time: plain.total_time,
            idempotent: plain.idempotent,
            repeat_refusals: plain.repeat_refusals,
            hint_window: plain.hint_window,
            throttle_base: plain.throttle_base,
            budget,
            no_budget,
            seed: plain.seed,
        }
    }
}

impl From<File> for Config {
    fn from(file: File) -> Self {
        let mut config = Config::new(Schedule {
            shape: match file.backoff {
                Backoff::Constant(wait) => Shape::Constant(wait),
                Backoff::Linear(step) => Shape::Linear(step),
                Backoff::Exponential(base) => Shape::Exponential(base),
                Backoff::Sequence(waits) => Shape::Sequence(waits.iter().map(|w| w.0).collect()),
            },
            factor: file.factor,
            cap: file.cap,
            jitter: file.jitter,
        });
        config.plain.max_attempts = file.max_attempts;
        config.plain.total_time = file.total_time;
        config.plain.idempotent = file.idempotent;
        config.plain.repeat_refusals = file.repeat_refusals;
        config.plain.hint_window = file.hint_window;
        config.plain.throttle_base = file.throttle_base;
        config.plain.seed = file.seed;
        config.plain.funding = match file.budget {
            _ if file.no_budget => Funding::Unlimited,
            Some(settings) => Funding::Own(settings),
            None => Funding::Own(BudgetConfig::default()),
        };
        match file.name {
            Some(name) => config.name(name),
            None => config,
        }
    }
}

/// Reads settings and checks them as [`build`](Config::build) does.
impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let file = File::deserialize(deserializer)?;
        if file.no_budget && file.budget.is_some() {
            return Err(D::Error::custom(
                "retry.no_budget = true is not possible: allowed is false beside retry.budget",
            ));
        }
        let config = Config::from(file);
        config.plain.check().map_err(D::Error::custom)?;
        Ok(config)
    }
}

/// Writes what a file can say: predicates, request copies and listeners are left out, and a shared budget is written
/// as its settings.
impl<W, C> Serialize for Config<W, C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        File::from(self).serialize(serializer)
    }
}
