//! The inbox in a database of `sqlx`, on PostgreSQL. The table is that of `inbox::postgres`.
//!
//! ```no_run
//! use mainstay::saga::inbox::{self, Accepted};
//!
//! # async fn example(pool: &sqlx::PgPool) -> Result<(), sqlx::Error> {
//! let mut tx = pool.begin().await?;
//! if inbox::sqlx::accept(&mut tx, "shipping", "message-1").await? == Accepted::First {
//!     sqlx::query("insert into shipment values ('order-17')").execute(&mut *tx).await?;
//! }
//! tx.commit().await?; // and only now acknowledge
//! # Ok(())
//! # }
//! ```

use std::time::Duration;

use sqlx::{Error, PgExecutor, Postgres, Transaction};

use super::{Accepted, sql};
use crate::saga::participant::{rows, seconds};

/// Creates the table `mainstay_inbox`, if it is not there.
///
/// # Errors
///
/// The database's.
pub async fn install(database: impl PgExecutor<'_>) -> Result<(), Error> {
    database.execute(sql::INSTALL).await.map(drop)
}

/// Accepts a message in the caller's transaction.
///
/// # Errors
///
/// The database's; SQLSTATE 40001 for the second of two deliveries under repeatable read and serializable.
pub async fn accept(
    tx: &mut Transaction<'_, Postgres>,
    consumer: &str,
    message: &str,
) -> Result<Accepted, Error> {
    let inserted = sqlx::query(sql::ACCEPT).bind(consumer).bind(message).execute(&mut **tx).await?;
    Ok(if inserted.rows_affected() == 1 { Accepted::First } else { Accepted::Duplicate })
}

/// Forgets at most `limit` messages that were accepted longer than `keep` ago; how many it were.
///
/// # Errors
///
/// The database's.
pub async fn prune(database: impl PgExecutor<'_>, keep: Duration, limit: usize) -> Result<u64, Error> {
    let pruned = sqlx::query(sql::PRUNE).bind(seconds(keep)).bind(rows(limit)).execute(database).await?;
    Ok(pruned.rows_affected())
}
