//! The barrier on a transaction of `rusqlite`.
//!
//! The transaction has to be immediate, which means that it has the write lock from its beginning
//! (`transaction_with_behavior(Immediate)`), and is refused otherwise: one that reads first and writes later fails, under load and
//! not before, with `SQLITE_BUSY_SNAPSHOT`, which no waiting helps against.

/// The client, version 0.40, whose transactions these functions take.
pub use rusqlite;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionState, params};
use serde::{Serialize, de::DeserializeOwned};

use super::{Action, Compensation, Error, Lookup, Retention, row};
use crate::saga::{
    Direction, Key,
    participant::{milliseconds, rows},
};

/// Creates the table `mainstay_barrier`, if it is not there.
///
/// # Errors
///
/// The database's.
pub fn install(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "create table if not exists mainstay_barrier (
             saga text not null,
             step text not null,
             phase text not null check (phase in ('do', 'undo')),
             state text not null,
             result text,
             at integer not null,
             primary key (saga, step, phase)
         ) strict, without rowid;
         create index if not exists mainstay_barrier_at on mainstay_barrier (at);",
    )
}

/// Runs an action's business in the caller's transaction, unless it was done before or is refused, and stores its result there.
///
/// See the [module's page](super). The caller commits; after an `Err` it rolls back, and if it does not, the claim and
/// what the closure wrote are undone nevertheless, while what it wrote itself is kept.
///
/// # Errors
///
/// [`Error`].
pub fn action<T, E>(
    tx: &Transaction<'_>,
    key: &Key,
    business: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
) -> Result<Action<T>, Error<E, rusqlite::Error>>
where
    T: Serialize + DeserializeOwned,
{
    let answer = action_or_rejection(tx, key, |tx| business(tx).map(Ok::<T, row::Never>))?;
    Ok(answer.map(|answer| answer.unwrap_or_else(|never| match never {})))
}

/// Like [`action`], for one that may be rejected for good: an `Ok(Err(rejection))` is stored and is the answer from then on.
///
/// # Errors
///
/// [`Error`].
pub fn action_or_rejection<T, R, E>(
    tx: &Transaction<'_>,
    key: &Key,
    business: impl FnOnce(&Transaction<'_>) -> Result<Result<T, R>, E>,
) -> Result<Action<Result<T, R>>, Error<E, rusqlite::Error>>
where
    T: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    check(tx, key, Direction::Do)?;
    // Nobody can take the row between the look and the insert: the transaction has the write lock.
    if let Some((state, result)) = find(tx, key, Direction::Do)? {
        return row::repeated(&state, result.as_deref()).map_err(Error::Result);
    }
    let unfinished = Unfinished::begin(tx)?;
    let answer = business(tx).map_err(Error::Inner)?;
    let (state, result) = row::finished(&answer).map_err(Error::Result)?;
    insert(tx, key, Direction::Do, state, Some(&result))?;
    unfinished.finish()?;
    Ok(Action::Done(answer))
}

/// Runs a compensation's business in the caller's transaction, with the result that the action had stored, if there is something to undo.
///
/// See the [module's page](super), and [`action`] for what becomes of the transaction.
///
/// # Errors
///
/// [`Error`].
pub fn compensation<T, E>(
    tx: &Transaction<'_>,
    key: &Key,
    business: impl FnOnce(&Transaction<'_>, T) -> Result<(), E>,
) -> Result<Compensation, Error<E, rusqlite::Error>>
where
    T: DeserializeOwned,
{
    check(tx, key, Direction::Undo)?;
    if find(tx, key, Direction::Undo)?.is_some() {
        return Ok(Compensation::Repeated);
    }
    let unfinished = Unfinished::begin(tx)?;
    let to_undo = match find(tx, key, Direction::Do)? {
        Some((state, result)) => row::to_undo(&state, result.as_deref()).map_err(Error::Result)?,
        None => {
            insert(tx, key, Direction::Do, row::REFUSED, None)?;
            None
        }
    };
    let state = if to_undo.is_some() { row::UNDONE } else { row::NOTHING };
    insert(tx, key, Direction::Undo, state, None)?;
    let compensation = match to_undo {
        Some(result) => {
            business(tx, result).map_err(Error::Inner)?;
            Compensation::Undone
        }
        None => Compensation::Nothing,
    };
    unfinished.finish()?;
    Ok(compensation)
}

/// What is known about an action, given its key or its compensation's.
///
/// # Errors
///
/// [`Error::Database`] and [`Error::Result`].
pub fn lookup<T: DeserializeOwned>(
    connection: &Connection,
    key: &Key,
) -> Result<Lookup<T>, Error<std::convert::Infallible, rusqlite::Error>> {
    let mut statement = connection
        .prepare_cached("select phase, state, result from mainstay_barrier where saga = ?1 and step = ?2")?;
    let mut rows = statement.query(params![key.saga().as_str(), key.step()])?;
    let (mut action, mut compensated) = (None, false);
    while let Some(row) = rows.next()? {
        if row.get_ref(0)?.as_str().is_ok_and(|phase| phase == Direction::Do.as_str()) {
            action = Some((row.get(1)?, row.get(2)?));
        } else {
            compensated = true;
        }
    }
    row::lookup(action, compensated).map_err(Error::Result)
}

/// Deletes at most `limit` rows, all of sagas that have had no arrival here for longer than `retention`; how many it were.
///
/// Call it until it says 0. The time is that of the machine that runs SQLite.
///
/// # Errors
///
/// The database's.
pub fn prune(connection: &Connection, retention: Retention, limit: usize) -> rusqlite::Result<usize> {
    connection.execute(
        "delete from mainstay_barrier where (saga, step, phase) in (
             select saga, step, phase from mainstay_barrier as old
             where at < cast(unixepoch('subsec') * 1000 as integer) - ?1 and not exists (
                 select 1 from mainstay_barrier as late
                 where late.saga = old.saga and late.at >= cast(unixepoch('subsec') * 1000 as integer) - ?1
             )
             order by at limit ?2
         )",
        params![milliseconds(retention.total()), rows(limit)],
    )
}

impl<E> From<rusqlite::Error> for Error<E, rusqlite::Error> {
    fn from(error: rusqlite::Error) -> Self {
        Error::Database(error)
    }
}

fn check<E>(tx: &Transaction<'_>, key: &Key, wanted: Direction) -> Result<(), Error<E, rusqlite::Error>> {
    if key.phase() != wanted {
        return Err(Error::WrongDirection(key.clone()));
    }
    if tx.transaction_state::<&str>(None)? != TransactionState::Write {
        return Err(Error::NotImmediate);
    }
    Ok(())
}

/// State and result of a row, if it is there.
fn find(
    tx: &Transaction<'_>,
    key: &Key,
    phase: Direction,
) -> rusqlite::Result<Option<(String, Option<String>)>> {
    tx.prepare_cached(
        "select state, result from mainstay_barrier where saga = ?1 and step = ?2 and phase = ?3",
    )?
    .query_row(params![key.saga().as_str(), key.step(), phase.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
    .optional()
}

/// Writes a row, which is not there.
fn insert(
    tx: &Transaction<'_>,
    key: &Key,
    phase: Direction,
    state: &str,
    result: Option<&str>,
) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "insert into mainstay_barrier (saga, step, phase, state, result, at)
         values (?1, ?2, ?3, ?4, ?5, cast(unixepoch('subsec') * 1000 as integer))",
    )?
    .execute(params![key.saga().as_str(), key.step(), phase.as_str(), state, result])
    .map(drop)
}

/// A savepoint that undoes what was done since, unless it is finished: whatever ends the call, and whatever becomes of
/// the transaction.
struct Unfinished<'a> {
    tx: &'a Transaction<'a>,
    finished: bool,
}

impl<'a> Unfinished<'a> {
    fn begin(tx: &'a Transaction<'_>) -> rusqlite::Result<Self> {
        tx.prepare_cached("savepoint mainstay_barrier")?.execute([])?;
        Ok(Unfinished { tx, finished: false })
    }

    fn finish(mut self) -> rusqlite::Result<()> {
        self.tx.prepare_cached("release mainstay_barrier")?.execute([])?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // It fails only where SQLite has ended the whole transaction by itself.
            let _ = self.tx.execute_batch("rollback to mainstay_barrier; release mainstay_barrier");
        }
    }
}
