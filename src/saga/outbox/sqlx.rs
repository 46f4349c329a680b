//! The outbox in a database of `sqlx`, on PostgreSQL, for any number of relays.
//!
//! The table is that of `outbox::postgres`, and so are the locks, that of a relay on the keys that it takes and that of [`append`] on topic
//! and key until the caller's transaction ends: relays and transactions of both clients can work side by side. Transactions that append
//! to several keys do so in the same order of keys, or may deadlock, which Postgres finds out and one of them is told.
//!
//! A relay is given a transaction, which it commits, and holds it while it publishes, so give the publisher a time limit. A relay that is
//! dropped is rolled back.
//!
//! # Example
//!
//! ```no_run
//! use std::time::Duration;
//! use mainstay::saga::outbox::{self, Message, Relay, Unsent};
//!
//! # async fn publish(_: Message) -> Result<(), std::io::Error> { Ok(()) }
//! # async fn example(pool: sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
//! outbox::sqlx::install(&pool).await?;
//!
//! let mut tx = pool.begin().await?;
//! sqlx::query("insert into orders values ('order-17')").execute(&mut *tx).await?;
//! outbox::sqlx::append(&mut tx, "orders", "order-17", &"confirmed").await?;
//! tx.commit().await?;
//!
//! let relay = Relay::new().batch(200);
//! loop {
//!     let publisher = async |message| publish(message).await.map_err(Unsent::unavailable);
//!     if outbox::sqlx::relay(pool.begin().await?, &relay, publisher).await?.is_idle() {
//!         tokio::time::sleep(Duration::from_millis(500)).await;
//!     }
//! }
//! # }
//! ```

use std::time::Duration;

use serde::Serialize;
use sqlx::{Error, Executor, PgExecutor, Postgres, Row, Transaction, postgres::PgRow};

use super::{AppendError, Message, Parked, Relay, Relayed, Unsent, round, sql};
use crate::saga::participant::{rows, seconds};

/// Creates the table `mainstay_outbox`, if it is not there. Needs Postgres 13.
///
/// # Errors
///
/// The database's.
pub async fn install(database: impl PgExecutor<'_>) -> Result<(), Error> {
    database.execute(sql::INSTALL).await.map(drop)
}

/// Appends an event in the caller's transaction, behind those of the same topic and key. Its [`Message::id`].
///
/// # Errors
///
/// [`AppendError`].
pub async fn append<T: Serialize + ?Sized>(
    tx: &mut Transaction<'_, Postgres>,
    topic: &str,
    key: &str,
    payload: &T,
) -> Result<String, AppendError<Error>> {
    let payload = serde_json::to_string(payload).map_err(AppendError::Payload)?;
    Ok(sqlx::query_scalar(sql::APPEND).bind(topic).bind(key).bind(payload).fetch_one(&mut **tx).await?)
}

/// One round: publishes what is due and not in the hands of another relay, marks it, and commits.
///
/// The transaction must not have done anything before.
///
/// # Errors
///
/// The database's. What was published in a round whose marking failed is published again.
pub async fn relay(
    mut tx: Transaction<'_, Postgres>,
    relay: &Relay,
    publisher: impl AsyncFnMut(Message) -> Result<(), Unsent>,
) -> Result<Relayed, Error> {
    let messages = claim(&mut tx, relay).await?;
    let (fates, relayed) = round::publish(relay, messages, publisher).await;
    mark(tx, fates).await?;
    Ok(relayed)
}

/// Like [`relay`], for a publisher that is faster with many at once: it is given the first message of every key, then the second of each
/// whose first was sent, and so on, and answers for each in its place. What it does not answer for counts as unavailable; a panic
/// refuses all that it was given.
///
/// # Errors
///
/// As of [`relay`].
pub async fn relay_many(
    mut tx: Transaction<'_, Postgres>,
    relay: &Relay,
    publisher: impl AsyncFnMut(Vec<Message>) -> Vec<Result<(), Unsent>>,
) -> Result<Relayed, Error> {
    let messages = claim(&mut tx, relay).await?;
    let (fates, relayed) = round::publish_many(relay, messages, publisher).await;
    mark(tx, fates).await?;
    Ok(relayed)
}

/// Writes what has become of the messages of a round, and commits; with none, there is nothing to write.
async fn mark(mut tx: Transaction<'_, Postgres>, fates: Vec<(i64, round::Fate)>) -> Result<(), Error> {
    let (sent, refused) = round::marks(fates);
    if !sent.is_empty() {
        sqlx::query(sql::SENT).bind(sent).execute(&mut *tx).await?;
    }
    for (row, reason, wait) in refused {
        sqlx::query(sql::REFUSED).bind(row).bind(reason).bind(wait).execute(&mut *tx).await?;
    }
    tx.commit().await
}

/// The first unsent messages of some keys, locked, and those that follow them.
async fn claim(tx: &mut Transaction<'_, Postgres>, relay: &Relay) -> Result<Vec<(i64, Message)>, Error> {
    // Each statement has to see what other relays have committed before it.
    tx.execute("set transaction isolation level read committed").await?;
    let batch = rows(relay.batch);
    let first: Vec<i64> =
        sqlx::query_scalar(sql::FIRST).bind(relay.skip_parked).bind(batch).fetch_all(&mut **tx).await?;
    if first.is_empty() {
        return Ok(Vec::new());
    }
    let found =
        sqlx::query(sql::BATCH).bind(first).bind(relay.skip_parked).bind(batch).fetch_all(&mut **tx).await?;
    found.iter().map(|row| Ok((row.try_get(0)?, message(row, 1)?))).collect()
}

/// The parked messages, the oldest first, at most `limit`.
///
/// # Errors
///
/// The database's.
pub async fn parked(database: impl PgExecutor<'_>, limit: usize) -> Result<Vec<Parked>, Error> {
    let found = sqlx::query(sql::PARKED).bind(rows(limit)).fetch_all(database).await?;
    found.iter().map(|row| Ok(Parked { message: message(row, 0)?, reason: row.try_get(5)? })).collect()
}

/// Gives a parked message its attempts anew, in its old place. Whether there was one.
///
/// # Errors
///
/// The database's.
pub async fn release(database: impl PgExecutor<'_>, id: &str) -> Result<bool, Error> {
    Ok(sqlx::query(sql::RELEASE).bind(id).execute(database).await?.rows_affected() == 1)
}

/// Deletes a parked message: it is never published, and those behind it go on. Whether there was one.
///
/// # Errors
///
/// The database's.
pub async fn discard(database: impl PgExecutor<'_>, id: &str) -> Result<bool, Error> {
    Ok(sqlx::query(sql::DISCARD).bind(id).execute(database).await?.rows_affected() == 1)
}

/// Deletes at most `limit` messages that were sent longer than `keep` ago; how many it were. They serve people alone.
///
/// # Errors
///
/// The database's.
pub async fn prune(database: impl PgExecutor<'_>, keep: Duration, limit: usize) -> Result<u64, Error> {
    let pruned = sqlx::query(sql::PRUNE).bind(seconds(keep)).bind(rows(limit)).execute(database).await?;
    Ok(pruned.rows_affected())
}

fn message(row: &PgRow, from: usize) -> Result<Message, Error> {
    Ok(Message {
        id: row.try_get(from)?,
        topic: row.try_get(from + 1)?,
        key: row.try_get(from + 2)?,
        payload: serde_json::from_str(row.try_get(from + 3)?)
            .map_err(|error| Error::ColumnDecode { index: "payload".to_owned(), source: error.into() })?,
        refusals: u32::try_from(row.try_get::<i32, _>(from + 4)?).unwrap_or(0),
    })
}
