//! What is done to the tables. Each function runs within the caller's transaction.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, TransactionBehavior, params};

use super::routes::Routes;
use crate::delivery::returned_too_often;
use crate::{DeadLetter, Fate, MAX_RETURNS, Message, Queue, Settlement, Stats, Which, unix_ms};

pub(super) type Result<T> = rusqlite::Result<T>;

const VERSION: i64 = 1;

const READY: i64 = 0;
const HELD: i64 = 1;
const BEHIND: i64 = 2;
const DELAYED: i64 = 3;

/// A message of a queue that is in somebody's hands.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) queue: i64,
    pub(super) holder: i64,
    pub(super) seq: i64,
}

/// Puts a file into WAL mode, which it stays in.
///
/// Where several open a new file at once, SQLite refuses all but one without asking their busy handlers, since of two that wait for each
/// other one has to give way. So it is asked again, for as long as said.
///
/// # Errors
///
/// The database's.
pub fn into_wal(connection: &Connection, patience: Duration) -> Result<()> {
    let began = std::time::Instant::now();
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error) if began.elapsed() < patience && is_busy(&error) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            done => return done,
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Opens the file and sees to its tables.
pub(super) fn open(path: &Path) -> Result<Connection> {
    let mut conn = Connection::open(path)?;
    // Other processes hold the lock for one group of statements and a sync. Asking again each millisecond keeps
    // the wait short; ten seconds of it mean that something is wrong.
    conn.busy_handler(Some(|tries| {
        std::thread::sleep(Duration::from_millis(1));
        tries < 10_000
    }))?;
    conn.set_prepared_statement_cache_capacity(64);
    // A parameter as a limit would have its statement planned anew each time it is bound.
    conn.set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    into_wal(&conn, Duration::from_secs(10))?;
    // A commit is on the disk before it is answered.
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "wal_autocheckpoint", 4000)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    match tx.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))? {
        VERSION => {}
        0 => tx.execute_batch(include_str!("schema.sql"))?,
        other => return Err(refusal(format!("its tables are of version {other}, not {VERSION}"))),
    }
    tx.commit()?;
    Ok(conn)
}

fn refusal(why: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_MISMATCH), Some(why))
}

/// A number that changes when somebody else commits to the file.
pub(super) fn data_version(conn: &Connection) -> Result<i64> {
    conn.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

// --- messages in, messages out ---

/// Puts the message into every queue that wants it, and answers which these are.
pub(super) fn publish<'a>(conn: &Connection, routes: &'a mut Routes, message: &Message) -> Result<&'a [i64]> {
    let queues = routes.of(&message.topic);
    if !queues.is_empty() {
        insert(conn, message, queues)?;
    }
    Ok(queues)
}

fn insert(conn: &Connection, message: &Message, queues: &[i64]) -> Result<()> {
    let seq = conn
        .prepare_cached("INSERT INTO messages (id, topic, key, headers, body) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .insert(params![message.id, message.topic, message.key, to_json(&message.headers)?, message.body])?;
    for queue in queues {
        let state = if lane_is_taken(conn, *queue, &message.key)? { BEHIND } else { READY };
        conn.prepare_cached("INSERT INTO deliveries (seq, queue, key, state) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![seq, queue, message.key, state])?;
    }
    Ok(())
}

/// Whether a message of this key is in the queue, in any state.
fn lane_is_taken(conn: &Connection, queue: i64, key: &str) -> Result<bool> {
    if key.is_empty() {
        return Ok(false);
    }
    conn.prepare_cached("SELECT 1 FROM deliveries WHERE queue = ?1 AND key = ?2 AND key <> '' LIMIT 1")?
        .exists(params![queue, key])
}

/// Whether something could be claimed.
pub(super) fn any_ready(conn: &Connection, queue: i64) -> Result<bool> {
    conn.prepare_cached("SELECT 1 FROM deliveries WHERE queue = ?1 AND state = ?2 LIMIT 1")?
        .exists(params![queue, READY])
}

/// When the first delayed message is due.
pub(super) fn next_due(conn: &Connection, queue: i64) -> Result<Option<u64>> {
    conn.prepare_cached("SELECT min(due) FROM deliveries WHERE queue = ?1 AND state = ?2")?
        .query_row(params![queue, DELAYED], |row| row.get(0))
}

/// Makes ready what was delayed until now. It has kept its number, so it comes before what was published later.
pub(super) fn wake(conn: &Connection, queue: i64, now: u64) -> Result<usize> {
    conn.prepare_cached(
        "UPDATE deliveries SET state = ?3, due = 0 WHERE queue = ?1 AND state = ?4 AND due <= ?2",
    )?
    .execute(params![queue, now, READY, DELAYED])
}

/// Takes the oldest ready messages of the queue.
pub(super) fn claim(
    conn: &Connection,
    queue: i64,
    holder: i64,
    limit: usize,
) -> Result<Vec<(Claim, Message, u32)>> {
    let mut taken: Vec<(i64, u32)> = conn
        .prepare_cached(
            "UPDATE deliveries SET state = ?4, holder = ?3
             WHERE queue = ?1 AND seq IN
                 (SELECT seq FROM deliveries WHERE queue = ?1 AND state = ?5 ORDER BY due, seq LIMIT ?2)
             RETURNING seq, 1 + failures + returns",
        )?
        .query_map(params![queue, limit as i64, holder, HELD, READY], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_>>()?;
    // RETURNING promises no order.
    taken.sort_unstable();
    let mut read =
        conn.prepare_cached("SELECT id, topic, key, headers, body FROM messages WHERE seq = ?1")?;
    taken
        .into_iter()
        .map(|(seq, attempt)| Ok((Claim { queue, holder, seq }, read.query_row([seq], message)?, attempt)))
        .collect()
}

fn message(row: &Row<'_>) -> Result<Message> {
    Ok(Message {
        id: row.get(0)?,
        topic: row.get(1)?,
        key: row.get(2)?,
        headers: from_json(row, 3)?,
        body: row.get(4)?,
    })
}

/// Settles what `claim` took. `None`: it was not this holder's any more.
pub(super) fn settle(
    conn: &Connection,
    settings: &Queue,
    claim: &Claim,
    key: &str,
    how: &Settlement,
) -> Result<Option<Fate>> {
    let Claim { queue, holder, seq } = *claim;
    if *how == Settlement::Ack {
        let gone = conn
            .prepare_cached(
                "DELETE FROM deliveries WHERE seq = ?1 AND queue = ?2 AND state = ?4 AND holder = ?3",
            )?
            .execute(params![seq, queue, holder, HELD])?;
        if gone == 0 {
            return Ok(None);
        }
        leave(conn, seq, queue, key)?;
        return Ok(Some(Fate::Done));
    }
    let counts: Option<(u32, u32)> = conn
        .prepare_cached(
            "UPDATE deliveries SET failures = failures + ?4, returns = returns + ?5
             WHERE seq = ?1 AND queue = ?2 AND state = ?6 AND holder = ?3
             RETURNING failures, returns",
        )?
        .query_row(
            params![
                seq,
                queue,
                holder,
                !matches!(how, Settlement::Return),
                matches!(how, Settlement::Return),
                HELD
            ],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    let Some((failures, returns)) = counts else { return Ok(None) };
    let dead = match how {
        Settlement::Reject(reason) => Some(reason.clone()),
        Settlement::Retry(reason) => (failures >= settings.max_attempts).then(|| reason.clone()),
        _ => (returns > MAX_RETURNS).then(returned_too_often),
    };
    if let Some(reason) = dead {
        die(conn, seq, queue, key, &reason, failures + returns)?;
        return Ok(Some(Fate::Dead));
    }
    let (state, due, wait) = match how {
        Settlement::Retry(_) => {
            let wait = settings.backoff.after(failures);
            (DELAYED, unix_ms().saturating_add(millis(wait)), wait)
        }
        _ => (READY, 0, Duration::ZERO),
    };
    conn.prepare_cached(
        "UPDATE deliveries SET state = ?3, due = ?4, holder = 0 WHERE seq = ?1 AND queue = ?2",
    )?
    .execute(params![seq, queue, state, due])?;
    Ok(Some(Fate::Again(wait)))
}

/// Gives back what was claimed and never seen by a handler: no return to be counted.
pub(super) fn unclaim(conn: &Connection, claim: &Claim) -> Result<()> {
    conn.prepare_cached(
        "UPDATE deliveries SET state = ?4, holder = 0
         WHERE seq = ?1 AND queue = ?2 AND holder = ?3 AND state = ?5",
    )?
    .execute(params![claim.seq, claim.queue, claim.holder, READY, HELD])
    .map(drop)
}

fn die(conn: &Connection, seq: i64, queue: i64, key: &str, reason: &str, count: u32) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO dead (queue, id, topic, key, headers, body, reason, count, since_ms)
         SELECT ?2, id, topic, key, headers, body, ?3, ?4, ?5 FROM messages WHERE seq = ?1",
    )?
    .execute(params![seq, queue, reason, count, unix_ms()])?;
    conn.prepare_cached("DELETE FROM deliveries WHERE seq = ?1 AND queue = ?2")?
        .execute(params![seq, queue])?;
    leave(conn, seq, queue, key)
}

/// The message has left this queue: the next one of its key may go, and after the last queue the message itself.
fn leave(conn: &Connection, seq: i64, queue: i64, key: &str) -> Result<()> {
    conn.prepare_cached(
        "DELETE FROM messages WHERE seq = ?1 AND NOT EXISTS (SELECT 1 FROM deliveries WHERE seq = ?1)",
    )?
    .execute([seq])?;
    if key.is_empty() {
        return Ok(());
    }
    conn.prepare_cached(
        "UPDATE deliveries SET state = ?3 WHERE queue = ?1 AND state = ?4 AND seq =
             (SELECT seq FROM deliveries WHERE queue = ?1 AND key = ?2 AND key <> '' ORDER BY seq LIMIT 1)",
    )?
    .execute(params![queue, key, READY, BEHIND])
    .map(drop)
}

// --- holders ---

pub(super) fn hold(conn: &Connection, id: i64, queue: i64, consumers: usize, expires: u64) -> Result<()> {
    conn.prepare_cached("INSERT INTO holders VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![id, queue, consumers as i64, expires])
        .map(drop)
}

/// Whether the holder was still known; if not, all that it held has returned.
pub(super) fn keep_holding(conn: &Connection, id: i64, consumers: usize, expires: u64) -> Result<bool> {
    let known = conn
        .prepare_cached("UPDATE holders SET consumers = ?2, expires = ?3 WHERE id = ?1")?
        .execute(params![id, consumers as i64, expires])?;
    Ok(known == 1)
}

pub(super) fn let_go(conn: &Connection, id: i64) -> Result<()> {
    conn.prepare_cached("DELETE FROM holders WHERE id = ?1")?.execute([id]).map(drop)
}

/// Takes back what silent holders of this queue hold, and answers how many messages that were.
pub(super) fn reap(conn: &Connection, queue: i64, settings: &Queue, now: u64) -> Result<usize> {
    let silent: Vec<i64> = conn
        .prepare_cached("DELETE FROM holders WHERE queue = ?1 AND expires < ?2 RETURNING id")?
        .query_map(params![queue, now], |row| row.get(0))?
        .collect::<Result<_>>()?;
    let mut returned = 0;
    for holder in silent {
        let held: Vec<(i64, String)> = conn
            .prepare_cached(
                "SELECT seq, key FROM deliveries WHERE queue = ?1 AND state = ?3 AND holder = ?2 ORDER BY seq",
            )?
            .query_map(params![queue, holder, HELD], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_>>()?;
        for (seq, key) in &held {
            settle(conn, settings, &Claim { queue, holder, seq: *seq }, key, &Settlement::Return)?;
        }
        returned += held.len();
    }
    Ok(returned)
}

// --- looking, and dead letters ---

pub(super) fn stats(conn: &Connection, queue: i64, now: u64) -> Result<Stats> {
    let mut stats = Stats::default();
    let mut by_state =
        conn.prepare_cached("SELECT state, count(*) FROM deliveries WHERE queue = ?1 GROUP BY state")?;
    let mut rows = by_state.query([queue])?;
    while let Some(row) = rows.next()? {
        let count: u64 = row.get(1)?;
        match row.get(0)? {
            HELD => stats.unacked += count,
            DELAYED => stats.delayed += count,
            _ => stats.ready += count,
        }
    }
    stats.dead = conn
        .prepare_cached("SELECT count(*) FROM dead WHERE queue = ?1")?
        .query_row([queue], |row| row.get(0))?;
    stats.consumers = conn
        .prepare_cached("SELECT coalesce(sum(consumers), 0) FROM holders WHERE queue = ?1 AND expires >= ?2")?
        .query_row(params![queue, now], |row| row.get(0))?;
    Ok(stats)
}

pub(super) fn dead_letters(conn: &Connection, queue: i64, limit: usize) -> Result<Vec<DeadLetter>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    conn.prepare_cached(
        "SELECT id, topic, key, headers, body, reason, count, since_ms
         FROM dead WHERE queue = ?1 ORDER BY n LIMIT ?2",
    )?
    .query_map(params![queue, limit], |row| {
        Ok(DeadLetter {
            message: message(row)?,
            reason: row.get(5)?,
            count: row.get(6)?,
            since_ms: row.get(7)?,
        })
    })?
    .collect()
}

/// Takes dead letters away, puts them back into the queue if they are to be replayed, and answers how many they were.
pub(super) fn take_dead(conn: &Connection, queue: i64, which: &Which, replay: bool) -> Result<u64> {
    let mut taken = 0;
    for (n, message) in conn
        .prepare_cached("SELECT id, topic, key, headers, body, n FROM dead WHERE queue = ?1 ORDER BY n")?
        .query_map([queue], |row| Ok((row.get::<_, i64>(5)?, message(row)?)))?
        .collect::<Result<Vec<_>>>()?
    {
        if which.has(&message.id) {
            conn.prepare_cached("DELETE FROM dead WHERE n = ?1")?.execute([n])?;
            if replay {
                insert(conn, &message, &[queue])?;
            }
            taken += 1;
        }
    }
    Ok(taken)
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> Result<T> {
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into())
    })
}

/// Whole milliseconds, no more than a column holds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(i64::MAX as u64 / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No test pulls the plug, so what makes a commit outlive it is looked at here.
    #[test]
    fn a_commit_is_on_the_disk() {
        let path = std::env::temp_dir().join(format!("order-broker-store-{}.db", uuid::Uuid::now_v7()));
        let conn = open(&path).unwrap();
        let setting =
            |name: &str| conn.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, String>(0));
        let synchronous: i64 = conn.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
        assert_eq!(synchronous, 2, "FULL");
        assert_eq!(setting("journal_mode").unwrap(), "wal");
        drop(conn);
        for end in ["", "-wal", "-shm"] {
            drop(std::fs::remove_file(format!("{}{end}", path.display())));
        }
    }

    /// Eight processes of a system start at once, and each opens the file that none of them has made yet.
    #[test]
    fn a_new_file_may_be_opened_by_many_at_once() {
        for _ in 0..40 {
            let path = std::env::temp_dir().join(format!("order-broker-store-{}.db", uuid::Uuid::now_v7()));
            let openers: Vec<_> = (0..8)
                .map(|_| {
                    let path = path.clone();
                    std::thread::spawn(move || open(&path).map(drop))
                })
                .collect();
            for opener in openers {
                opener.join().unwrap().unwrap();
            }
            for end in ["", "-wal", "-shm"] {
                drop(std::fs::remove_file(format!("{}{end}", path.display())));
            }
        }
    }
}
