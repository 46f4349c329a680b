//! The outbox in a database of `tokio-postgres`, for any number of relays.
//!
//! A relay locks the first unsent message of each key that it takes, with `skip locked`, and thereby the key: another one sees a
//! first message that is locked, and later ones that are not first. It holds its transaction while it publishes, so give the
//! publisher a time limit.
//!
//! [`append`] takes an advisory lock on topic and key until the caller's transaction ends: two transactions that append to one key
//! do so one after the other, so that the order of the rows is the order of the commits. Transactions that append to several
//! keys do so in the same order of keys, or may deadlock, which Postgres finds out and one of them is told.
//!
//! # Example
//!
//! ```no_run
//! use std::time::Duration;
//! use mainstay::saga::outbox::{self, Message, Relay, Unsent};
//!
//! # async fn publish(_: Message) -> Result<(), std::io::Error> { Ok(()) }
//! # async fn example(mut client: tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
//! outbox::postgres::install(&client).await?;
//!
//! let tx = client.transaction().await?;
//! tx.execute("insert into orders values ('order-17')", &[]).await?;
//! outbox::postgres::append(&tx, "orders", "order-17", &"confirmed").await?;
//! tx.commit().await?;
//!
//! let relay = Relay::new().batch(200);
//! loop {
//!     let publisher = async |message| publish(message).await.map_err(Unsent::unavailable);
//!     if outbox::postgres::relay(&mut client, &relay, publisher).await?.is_idle() {
//!         tokio::time::sleep(Duration::from_millis(500)).await;
//!     }
//! }
//! # }
//! ```

use serde::Serialize;
use tokio_postgres::{Client, Error, GenericClient, IsolationLevel, Row, Transaction, types::Type};

use super::{AppendError, Message, Parked, Relay, Relayed, Unsent, round, sql};
use crate::saga::{
    Payload,
    participant::{rows, seconds},
};

/// Creates the table `mainstay_outbox`, if it is not there. Needs Postgres 13.
///
/// # Errors
///
/// The database's.
pub async fn install(client: &impl GenericClient) -> Result<(), Error> {
    client.batch_execute(sql::INSTALL).await
}

/// Appends an event in the caller's transaction, behind those of the same topic and key. Its [`Message::id`].
///
/// # Errors
///
/// [`AppendError`].
pub async fn append<T: Serialize + ?Sized>(
    tx: &Transaction<'_>,
    topic: &str,
    key: &str,
    payload: &T,
) -> Result<String, AppendError<Error>> {
    let payload = serde_json::to_string(payload).map_err(AppendError::Payload)?;
    let row = tx
        .query_typed_one(sql::APPEND, &[(&topic, Type::TEXT), (&key, Type::TEXT), (&payload, Type::TEXT)])
        .await?;
    Ok(row.try_get(0)?)
}

/// One round: publishes what is due and not in the hands of another relay, and marks it.
///
/// # Errors
///
/// The database's. What was published in a round whose marking failed is published again.
pub async fn relay(
    client: &mut Client,
    relay: &Relay,
    publisher: impl AsyncFnMut(Message) -> Result<(), Unsent>,
) -> Result<Relayed, Error> {
    let Some((tx, messages)) = begin(client, relay).await? else { return Ok(Relayed::default()) };
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
    client: &mut Client,
    relay: &Relay,
    publisher: impl AsyncFnMut(Vec<Message>) -> Vec<Result<(), Unsent>>,
) -> Result<Relayed, Error> {
    let Some((tx, messages)) = begin(client, relay).await? else { return Ok(Relayed::default()) };
    let (fates, relayed) = round::publish_many(relay, messages, publisher).await;
    mark(tx, fates).await?;
    Ok(relayed)
}

/// A transaction that holds what is due and not in the hands of another relay; nothing, if nothing is.
async fn begin<'c>(
    client: &'c mut Client,
    relay: &Relay,
) -> Result<Option<(Transaction<'c>, Vec<(i64, Message)>)>, Error> {
    // Each statement has to see what other relays have committed before it.
    let tx = client.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().await?;
    let messages = claim(&tx, relay).await?;
    if messages.is_empty() {
        tx.rollback().await?;
        return Ok(None);
    }
    Ok(Some((tx, messages)))
}

/// Writes what has become of the messages of a round, and commits.
async fn mark(tx: Transaction<'_>, fates: Vec<(i64, round::Fate)>) -> Result<(), Error> {
    let (sent, refused) = round::marks(fates);
    tx.execute_typed(sql::SENT, &[(&sent, Type::INT8_ARRAY)]).await?;
    for (row, reason, wait) in refused {
        tx.execute_typed(sql::REFUSED, &[(&row, Type::INT8), (&reason, Type::TEXT), (&wait, Type::FLOAT8)])
            .await?;
    }
    tx.commit().await
}

/// The first unsent messages of some keys, locked, and those that follow them.
async fn claim(tx: &Transaction<'_>, relay: &Relay) -> Result<Vec<(i64, Message)>, Error> {
    let batch = rows(relay.batch);
    let first = tx.query_typed(sql::FIRST, &[(&relay.skip_parked, Type::BOOL), (&batch, Type::INT8)]).await?;
    if first.is_empty() {
        return Ok(Vec::new());
    }
    let first: Vec<i64> = first.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let found = tx
        .query_typed(
            sql::BATCH,
            &[(&first, Type::INT8_ARRAY), (&relay.skip_parked, Type::BOOL), (&batch, Type::INT8)],
        )
        .await?;
    found.iter().map(|row| Ok((row.try_get(0)?, message(row, 1)?))).collect()
}

/// The parked messages, the oldest first, at most `limit`.
///
/// # Errors
///
/// The database's.
pub async fn parked(client: &impl GenericClient, limit: usize) -> Result<Vec<Parked>, Error> {
    let found = client.query_typed(sql::PARKED, &[(&rows(limit), Type::INT8)]).await?;
    found.iter().map(|row| Ok(Parked { message: message(row, 0)?, reason: row.try_get(5)? })).collect()
}

/// Gives a parked message its attempts anew, in its old place. Whether there was one.
///
/// # Errors
///
/// The database's.
pub async fn release(client: &impl GenericClient, id: &str) -> Result<bool, Error> {
    Ok(client.execute_typed(sql::RELEASE, &[(&id, Type::TEXT)]).await? == 1)
}

/// Deletes a parked message: it is never published, and those behind it go on. Whether there was one.
///
/// # Errors
///
/// The database's.
pub async fn discard(client: &impl GenericClient, id: &str) -> Result<bool, Error> {
    Ok(client.execute_typed(sql::DISCARD, &[(&id, Type::TEXT)]).await? == 1)
}

/// Deletes at most `limit` messages that were sent longer than `keep` ago; how many it were. They serve people alone.
///
/// # Errors
///
/// The database's.
pub async fn prune(
    client: &impl GenericClient,
    keep: std::time::Duration,
    limit: usize,
) -> Result<u64, Error> {
    client.execute_typed(sql::PRUNE, &[(&seconds(keep), Type::FLOAT8), (&rows(limit), Type::INT8)]).await
}

fn message(row: &Row, from: usize) -> Result<Message, Error> {
    Ok(Message {
        id: row.try_get(from)?,
        topic: row.try_get(from + 1)?,
        key: row.try_get(from + 2)?,
        payload: row.try_get::<_, Json>(from + 3)?.0,
        refusals: u32::try_from(row.try_get::<_, i32>(from + 4)?).unwrap_or(0),
    })
}

/// A text column as a payload, so that a text that is no JSON is an error of its column.
struct Json(Payload);

impl<'a> tokio_postgres::types::FromSql<'a> for Json {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Json(serde_json::from_str(<&str as tokio_postgres::types::FromSql<'_>>::from_sql(kind, raw)?)?))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TEXT
    }
}
