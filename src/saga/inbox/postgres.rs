//! The inbox in a database of `tokio-postgres`.
//!
//! ```no_run
//! use mainstay::saga::inbox::{self, Accepted};
//!
//! # async fn example(client: &mut tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
//! let tx = client.transaction().await?;
//! if inbox::postgres::accept(&tx, "shipping", "message-1").await? == Accepted::First {
//!     tx.execute("insert into shipment values ('order-17')", &[]).await?;
//! }
//! tx.commit().await?; // and only now acknowledge
//! # Ok(())
//! # }
//! ```

use std::time::Duration;

use tokio_postgres::{Error, GenericClient, Transaction, types::Type};

use super::{Accepted, sql};
use crate::saga::participant::{rows, seconds};

/// Creates the table `mainstay_inbox`, if it is not there.
///
/// # Errors
///
/// The database's.
pub async fn install(client: &impl GenericClient) -> Result<(), Error> {
    client.batch_execute(sql::INSTALL).await
}

/// Accepts a message in the caller's transaction.
///
/// # Errors
///
/// The database's; SQLSTATE 40001 for the second of two deliveries under repeatable read and serializable.
pub async fn accept(tx: &Transaction<'_>, consumer: &str, message: &str) -> Result<Accepted, Error> {
    let inserted = tx.execute_typed(sql::ACCEPT, &[(&consumer, Type::TEXT), (&message, Type::TEXT)]).await?;
    Ok(if inserted == 1 { Accepted::First } else { Accepted::Duplicate })
}

/// Forgets at most `limit` messages that were accepted longer than `keep` ago; how many it were.
///
/// # Errors
///
/// The database's.
pub async fn prune(client: &impl GenericClient, keep: Duration, limit: usize) -> Result<u64, Error> {
    client.execute_typed(sql::PRUNE, &[(&seconds(keep), Type::FLOAT8), (&rows(limit), Type::INT8)]).await
}
