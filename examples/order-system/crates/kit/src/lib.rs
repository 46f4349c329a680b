//! What every service of the order system has in common: settings, databases, calls to other services, messages, health, and the
//! server around its routes.
//!
//! A service is a crate with a name and one function, `build`, which takes a [`Context`] and returns a [`Service`]: its routes and
//! what runs beside them. The kit knows no business: nothing here names an order, a user or a payment.

pub mod auth;
mod cache;
pub mod client;
pub mod context;
pub mod db;
mod door;
pub mod env;
pub mod error;
pub mod events;
pub mod extract;
pub mod fault;
pub mod health;
pub mod metric;
pub mod money;
mod object;
pub mod prefer;
pub mod prune;
pub mod resolve;
mod rest;
mod serve;
pub mod server;
pub mod step;
pub mod telemetry;
pub mod told;
pub mod trace;

pub use cache::Cache;
pub use context::{Context, Service};
pub use db::{Db, Tx};
pub use error::{ApiError, Json};
pub use money::Cents;

/// What ends a service before it has begun.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Milliseconds since 1970, by the machine's clock.
pub fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A time as RFC 3339 in UTC, with milliseconds: `2026-11-26T03:40:00.000Z`.
pub fn iso(ms: i64) -> String {
    use time::{OffsetDateTime, macros::format_description};
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|at| at.format(format).ok())
        .unwrap_or_default()
}

/// Milliseconds since 1970 of a time in RFC 3339; none, if it is no such time.
pub fn ms(text: &str) -> Option<i64> {
    use time::{OffsetDateTime, format_description::well_known::Rfc3339};
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
}

/// An id that is unique and sorts by time.
pub fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
