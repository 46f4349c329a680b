//! The outbox in a database of `rusqlite`.
//!
//! One relay is enough. Since a database has one writer, the relay holds no transaction while it publishes; a second relay at the same
//! time publishes the same messages once more, each of them in order.

use rusqlite::{Connection, Transaction, TransactionBehavior::Immediate, params};
use serde::Serialize;

use super::{AppendError, Message, Parked, Relay, Relayed, Unsent, round};
use crate::saga::{
    Payload,
    participant::{milliseconds, rows},
};

/// The present by the machine's clock, in milliseconds since 1970.
const NOW: &str = "cast(unixepoch('subsec') * 1000 as integer)";

/// Creates the table `mainstay_outbox`, if it is not there.
///
/// # Errors
///
/// The database's.
pub fn install(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "create table if not exists mainstay_outbox (
             id integer primary key autoincrement,
             message text not null unique default (lower(hex(randomblob(16)))),
             topic text not null,
             key text not null,
             payload text not null,
             at integer not null default ({NOW}),
             attempts integer not null default 0,
             due integer not null default 0,
             reason text,
             parked integer,
             sent integer
         ) strict;
         create index if not exists mainstay_outbox_order on mainstay_outbox (topic, key, id) where sent is null;
         create index if not exists mainstay_outbox_unsent on mainstay_outbox (id) where sent is null;
         create index if not exists mainstay_outbox_sent on mainstay_outbox (sent) where sent is not null;"
    ))
}

/// Appends an event in the caller's transaction, behind those of the same topic and key. Its [`Message::id`].
///
/// # Errors
///
/// [`AppendError`].
pub fn append<T: Serialize + ?Sized>(
    tx: &Transaction<'_>,
    topic: &str,
    key: &str,
    payload: &T,
) -> Result<String, AppendError<rusqlite::Error>> {
    let payload = serde_json::to_string(payload).map_err(AppendError::Payload)?;
    let insert = "insert into mainstay_outbox (topic, key, payload) values (?1, ?2, ?3) returning message";
    Ok(tx.query_row(insert, [topic, key, &payload], |row| row.get(0))?)
}

/// One round: publishes what is due, and marks it. The connection is used in front of the first and behind the last
/// message, and blocks the thread there.
///
/// # Errors
///
/// The database's. What was published in a round whose marking failed is published again.
pub async fn relay(
    connection: &mut Connection,
    relay: &Relay,
    publisher: impl AsyncFnMut(Message) -> Result<(), Unsent>,
) -> rusqlite::Result<Relayed> {
    let messages = due(connection, relay)?;
    if messages.is_empty() {
        return Ok(Relayed::default());
    }
    let (fates, relayed) = round::publish(relay, messages, publisher).await;
    mark(connection, fates)?;
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
    connection: &mut Connection,
    relay: &Relay,
    publisher: impl AsyncFnMut(Vec<Message>) -> Vec<Result<(), Unsent>>,
) -> rusqlite::Result<Relayed> {
    let messages = due(connection, relay)?;
    if messages.is_empty() {
        return Ok(Relayed::default());
    }
    let (fates, relayed) = round::publish_many(relay, messages, publisher).await;
    mark(connection, fates)?;
    Ok(relayed)
}

/// Writes what has become of the messages of a round.
fn mark(connection: &mut Connection, fates: Vec<(i64, round::Fate)>) -> rusqlite::Result<()> {
    let tx = connection.transaction_with_behavior(Immediate)?;
    {
        let mut sent = tx.prepare(&format!("update mainstay_outbox set sent = {NOW} where id = ?1"))?;
        let mut refused = tx.prepare(&format!(
            "update mainstay_outbox set attempts = attempts + 1, reason = ?2,
                 due = {NOW} + coalesce(?3, 0), parked = case when ?3 is null then {NOW} end
             where id = ?1 and sent is null"
        ))?;
        for (row, fate) in fates {
            match fate {
                round::Fate::Sent => sent.execute([row])?,
                round::Fate::Wait { time, reason } => {
                    refused.execute(params![row, reason, milliseconds(time)])?
                }
                round::Fate::Parked { reason } => refused.execute(params![row, reason, None::<i64>])?,
            };
        }
    }
    tx.commit()
}

fn due(connection: &Connection, relay: &Relay) -> rusqlite::Result<Vec<(i64, Message)>> {
    // Read once: between two rows of a query it goes on, and a message could overtake one that was not due a moment before.
    let now: i64 = connection.query_row(&format!("select {NOW}"), [], |row| row.get(0))?;
    let mut statement = connection.prepare(
        "select id, message, topic, key, payload, attempts from mainstay_outbox as this
         where sent is null and parked is null and due <= ?1 and not exists (
             select 1 from mainstay_outbox as earlier
             where earlier.topic = this.topic and earlier.key = this.key and earlier.sent is null
                 and earlier.id < this.id and (earlier.due > ?1 or (earlier.parked is not null and not ?2))
         )
         order by id limit ?3",
    )?;
    let found = statement.query_map(params![now, relay.skip_parked, rows(relay.batch)], |row| {
        Ok((row.get(0)?, message(row, 1)?))
    })?;
    found.collect()
}

/// The parked messages, the oldest first, at most `limit`.
///
/// # Errors
///
/// The database's.
pub fn parked(connection: &Connection, limit: usize) -> rusqlite::Result<Vec<Parked>> {
    let mut statement = connection.prepare(
        "select message, topic, key, payload, attempts, coalesce(reason, '') from mainstay_outbox
         where sent is null and parked is not null order by id limit ?1",
    )?;
    let found = statement
        .query_map([rows(limit)], |row| Ok(Parked { message: message(row, 0)?, reason: row.get(5)? }))?;
    found.collect()
}

/// Gives a parked message its attempts anew, in its old place. Whether there was one.
///
/// # Errors
///
/// The database's.
pub fn release(connection: &Connection, id: &str) -> rusqlite::Result<bool> {
    let release = "update mainstay_outbox set parked = null, attempts = 0, due = 0
                   where message = ?1 and parked is not null and sent is null";
    Ok(connection.execute(release, [id])? == 1)
}

/// Deletes a parked message: it is never published, and those behind it go on. Whether there was one.
///
/// # Errors
///
/// The database's.
pub fn discard(connection: &Connection, id: &str) -> rusqlite::Result<bool> {
    let discard = "delete from mainstay_outbox where message = ?1 and parked is not null and sent is null";
    Ok(connection.execute(discard, [id])? == 1)
}

/// Deletes at most `limit` messages that were sent longer than `keep` ago; how many it were. They serve people alone.
///
/// # Errors
///
/// The database's.
pub fn prune(connection: &Connection, keep: std::time::Duration, limit: usize) -> rusqlite::Result<usize> {
    connection.execute(
        &format!(
            "delete from mainstay_outbox where id in (
                 select id from mainstay_outbox where sent is not null and sent < {NOW} - ?1 order by sent limit ?2
             )"
        ),
        params![milliseconds(keep), rows(limit)],
    )
}

fn message(row: &rusqlite::Row<'_>, from: usize) -> rusqlite::Result<Message> {
    let payload: String = row.get(from + 3)?;
    Ok(Message {
        id: row.get(from)?,
        topic: row.get(from + 1)?,
        key: row.get(from + 2)?,
        payload: serde_json::from_str::<Payload>(&payload).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(from + 3, rusqlite::types::Type::Text, Box::new(error))
        })?,
        refusals: row.get(from + 4)?,
    })
}
