//! The inbox in a database of `rusqlite`.

use std::time::Duration;

use rusqlite::{Connection, Transaction, params};

use super::Accepted;
use crate::saga::participant::{milliseconds, rows};

/// Creates the table `mainstay_inbox`, if it is not there.
///
/// # Errors
///
/// The database's.
pub fn install(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "create table if not exists mainstay_inbox (
             consumer text not null,
             message text not null,
             at integer not null,
             primary key (consumer, message)
         ) strict, without rowid;
         create index if not exists mainstay_inbox_at on mainstay_inbox (at);",
    )
}

/// Accepts a message in the caller's transaction, which should be an immediate one.
///
/// # Errors
///
/// The database's; `SQLITE_BUSY_SNAPSHOT` in a transaction that is not immediate and has read before another one wrote.
pub fn accept(tx: &Transaction<'_>, consumer: &str, message: &str) -> rusqlite::Result<Accepted> {
    let inserted = tx
        .prepare_cached(
            "insert into mainstay_inbox (consumer, message, at)
             values (?1, ?2, cast(unixepoch('subsec') * 1000 as integer)) on conflict do nothing",
        )?
        .execute([consumer, message])?;
    Ok(if inserted == 1 { Accepted::First } else { Accepted::Duplicate })
}

/// Forgets at most `limit` messages that were accepted longer than `keep` ago; how many it were.
///
/// # Errors
///
/// The database's.
pub fn prune(connection: &Connection, keep: Duration, limit: usize) -> rusqlite::Result<usize> {
    connection.execute(
        "delete from mainstay_inbox where (consumer, message) in (
             select consumer, message from mainstay_inbox
             where at < cast(unixepoch('subsec') * 1000 as integer) - ?1 order by at limit ?2
         )",
        params![milliseconds(keep), rows(limit)],
    )
}
