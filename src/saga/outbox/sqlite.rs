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
    Ok(tx.prepare_cached(insert)?.query_row([topic, key, &payload], |row| row.get(0))?)
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
    let round = Round::read(connection, relay)?;
    if round.is_empty() {
        return Ok(Relayed::default());
    }
    committed(connection, &round.publish(relay, publisher).await)
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
    let round = Round::read(connection, relay)?;
    if round.is_empty() {
        return Ok(Relayed::default());
    }
    committed(connection, &round.publish_many(relay, publisher).await)
}

fn committed(connection: &mut Connection, published: &Published) -> rusqlite::Result<Relayed> {
    let tx = connection.transaction_with_behavior(Immediate)?;
    let relayed = published.mark(&tx)?;
    tx.commit()?;
    Ok(relayed)
}

/// A round of [`relay`] in its three parts, for a program in which one connection does all the writing: a second one that writes takes the
/// first one's lock, and empties its cache.
///
/// ```
/// # use mainstay::saga::outbox::{self, Relay};
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// # let database = rusqlite::Connection::open_in_memory()?;
/// # outbox::sqlite::install(&database)?;
/// # let tx = database.unchecked_transaction()?;
/// # outbox::sqlite::append(&tx, "orders", "order-17", &"confirmed")?;
/// # tx.commit()?;
/// # let (reader, writer) = (&database, &database);
/// let relay = Relay::new();
/// let round = outbox::sqlite::Round::read(reader, &relay)?;
/// let published = round.publish(&relay, async |message| Ok(println!("{}", message.topic))).await;
/// // In any transaction of the connection that writes.
/// let relayed = published.mark(writer)?;
/// assert_eq!(relayed.sent, 1);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// # Ok::<_, std::io::Error>(())
/// ```
///
/// One round after the other: what is read again before the marks of the last round are committed is published again.
#[derive(Debug)]
#[must_use = "nothing is published yet"]
pub struct Round {
    messages: Vec<(i64, Message)>,
}

/// What has become of the messages of a [`Round`]. Dropped without [`mark`](Published::mark), they are published again.
#[derive(Debug)]
#[must_use = "what is not marked is published again"]
pub struct Published {
    fates: Vec<(i64, round::Fate)>,
    relayed: Relayed,
}

impl Round {
    /// What is due, at most [`batch`](Relay::batch) messages. Writes nothing.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn read(connection: &Connection, relay: &Relay) -> rusqlite::Result<Self> {
        // Read once: between two rows of a query it goes on, and a message could overtake one that was not due a moment before.
        let now: i64 =
            connection.prepare_cached(&format!("select {NOW}"))?.query_row([], |row| row.get(0))?;
        // A parameter alone as the limit has SQLite plan the query anew each time it is bound; a sum does not.
        let mut statement = connection.prepare_cached(
            "select id, message, topic, key, payload, attempts from mainstay_outbox as this
             where sent is null and parked is null and due <= ?1 and not exists (
                 select 1 from mainstay_outbox as earlier
                 where earlier.topic = this.topic and earlier.key = this.key and earlier.sent is null
                     and earlier.id < this.id and (earlier.due > ?1 or (earlier.parked is not null and not ?2))
             )
             order by id limit ?3 + 0",
        )?;
        let found = statement.query_map(params![now, relay.skip_parked, rows(relay.batch)], |row| {
            Ok((row.get(0)?, message(row, 1)?))
        })?;
        Ok(Round { messages: found.collect::<rusqlite::Result<_>>()? })
    }

    /// Whether nothing is due.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Publishes as [`relay`] does.
    pub async fn publish(
        self,
        relay: &Relay,
        publisher: impl AsyncFnMut(Message) -> Result<(), Unsent>,
    ) -> Published {
        let (fates, relayed) = round::publish(relay, self.messages, publisher).await;
        Published { fates, relayed }
    }

    /// Publishes as [`relay_many`] does.
    pub async fn publish_many(
        self,
        relay: &Relay,
        publisher: impl AsyncFnMut(Vec<Message>) -> Vec<Result<(), Unsent>>,
    ) -> Published {
        let (fates, relayed) = round::publish_many(relay, self.messages, publisher).await;
        Published { fates, relayed }
    }
}

impl Published {
    /// Writes it, in the caller's transaction if there is one. Writing it twice refuses a message once more than it was.
    ///
    /// # Errors
    ///
    /// The database's.
    pub fn mark(&self, connection: &Connection) -> rusqlite::Result<Relayed> {
        let mut sent =
            connection.prepare_cached(&format!("update mainstay_outbox set sent = {NOW} where id = ?1"))?;
        let mut refused = connection.prepare_cached(&format!(
            "update mainstay_outbox set attempts = attempts + 1, reason = ?2,
                 due = {NOW} + coalesce(?3, 0), parked = case when ?3 is null then {NOW} end
             where id = ?1 and sent is null"
        ))?;
        for (row, fate) in &self.fates {
            match fate {
                round::Fate::Sent => sent.execute([row])?,
                round::Fate::Wait { time, reason } => {
                    refused.execute(params![row, reason, milliseconds(*time)])?
                }
                round::Fate::Parked { reason } => refused.execute(params![row, reason, None::<i64>])?,
            };
        }
        Ok(self.relayed.clone())
    }
}

/// The parked messages, the oldest first, at most `limit`.
///
/// # Errors
///
/// The database's.
pub fn parked(connection: &Connection, limit: usize) -> rusqlite::Result<Vec<Parked>> {
    let mut statement = connection.prepare_cached(
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
