//! The message broker of the order system: one trait, [`Broker`], and the places that keep the messages.
//!
//! | address | what it is | survives |
//! |---|---|---|
//! | `memory:` | queues in this process, for tests and demonstrations | nothing |
//! | `sqlite:FILE` | one file that any number of processes of one machine share | `kill -9`, power loss |
//! | `amqp://user:password@host:port/vhost` | RabbitMQ | `kill -9`, power loss, loss of this machine |
//!
//! What holds on all of them is said once, at [`Broker`]; where one of them cannot keep a promise, it says so at its own type.

mod amqp;
mod broker;
#[cfg(feature = "conformance")]
pub mod conformance;
mod delivery;
mod error;
mod memory;
mod message;
mod sqlite;
mod switched;
mod topic;
mod topology;

pub use amqp::Amqp;
pub use broker::{Broker, Consumer, Stats, Which};
pub use delivery::{Delivery, Fate, MAX_RETURNS, Settle, Settlement, ack_all};
pub use error::{BrokerError, PublishError};
pub use memory::Memory;
pub use message::{DeadLetter, Message};
pub use sqlite::{Sqlite, into_wal};
pub use switched::Switched;
pub use topic::matches;
pub use topology::{Backoff, Queue, Topology};

/// A future behind a pointer, so that the traits here can be used as `dyn`.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The broker at this address, see the table [above](crate).
///
/// # Errors
///
/// [`BrokerError::BadAddress`] if it is none, [`BrokerError::Unreachable`] if the file cannot be opened. RabbitMQ need not be there yet:
/// the broker connects by itself, and [`Broker::check`] tells whether it has.
pub async fn open(address: &str) -> Result<std::sync::Arc<dyn Broker>, BrokerError> {
    match address.split_once(':') {
        Some(("memory", _)) => Ok(std::sync::Arc::new(Memory::new())),
        Some(("amqp" | "amqps", _)) => Ok(std::sync::Arc::new(Amqp::new(address)?)),
        Some(("sqlite", file)) if !file.is_empty() => Ok(std::sync::Arc::new(Sqlite::open(file).await?)),
        _ => Err(BrokerError::BadAddress {
            address: amqp::without_password(address),
            reason: "it starts with neither `memory:`, `sqlite:` nor `amqp://`".to_owned(),
        }),
    }
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
