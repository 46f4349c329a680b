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
    // No index on the time: it would be one more page in each commit, for what `prune` can find by walking. There was one once.
    // The time in front of the result, so that who walks need not read the results.
    connection.execute_batch(
        "create table if not exists mainstay_barrier (
             saga text not null,
             step text not null,
             phase text not null check (phase in ('do', 'undo')),
             state text not null,
             at integer not null,
             result text,
             primary key (saga, step, phase)
         ) strict, without rowid;
         drop index if exists mainstay_barrier_at;",
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
    Ok(row::certain(answer))
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
        let compensated = state == row::DONE && find(tx, key, Direction::Undo)?.is_some();
        return row::repeated(&state, result.as_deref(), compensated).map_err(Error::Result);
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
/// Cost: it walks through the table from the beginning until it has found so many, a read of some thousand rows after the other, each
/// followed by a short transaction if any of them are old. A large `limit` therefore is one walk, a small one as many as it takes. Within a
/// transaction of the caller's all of it is done under the caller's lock; that is what [`Pruning`] is for.
///
/// # Errors
///
/// The database's.
pub fn prune(connection: &Connection, retention: Retention, limit: usize) -> rusqlite::Result<usize> {
    let (mut pruning, mut rows) = (Pruning::new(retention), 0);
    while rows < limit {
        let piece = pruning.piece(connection, limit - rows)?;
        rows += piece.rows;
        if !piece.more {
            break;
        }
    }
    Ok(rows)
}

/// [`prune`] in pieces, each of which ends soon: for one that works within a transaction, or that has other things to do on the same connection.
///
/// It is kept from one piece to the next, since it knows how far it has come. One that is lost costs no more than a walk from the beginning.
///
/// # Example
///
/// ```
/// use mainstay::saga::barrier::{Retention, sqlite::{self, Pruning}};
///
/// # fn main() -> rusqlite::Result<()> {
/// # let connection = rusqlite::Connection::open_in_memory()?;
/// # sqlite::install(&connection)?;
/// let mut pruning = Pruning::new(Retention::default());
/// while pruning.piece(&connection, 500)?.more {
///     // What else there is to do.
/// }
/// // And some hours later from the beginning, with the same one.
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Pruning {
    retention: Retention,
    /// The last saga that was looked at. No saga has an empty id.
    place: String,
}

/// What came of a piece of a [`Pruning`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "there may be more"]
pub struct Pruned {
    /// How many rows were deleted.
    pub rows: usize,
    /// Whether there is more of the table to look at. If not, the next piece is the first one again.
    pub more: bool,
}

impl Pruning {
    /// How many rows are looked at in a piece, and the rest of the last one's saga.
    const LOOK: i64 = 4_000;

    /// At the beginning of the table.
    pub fn new(retention: Retention) -> Self {
        Pruning { retention, place: String::new() }
    }

    /// Looks at some thousand rows more, and deletes those that are old, at most `limit`, which is taken for 1 if it is 0.
    ///
    /// The look needs no write lock; the lock is taken if there is something to delete, and what has arrived in between is seen then.
    ///
    /// # Errors
    ///
    /// The database's, after which the next call tries the same piece again. In a transaction of the caller's that is not immediate,
    /// `SQLITE_BUSY_SNAPSHOT`.
    pub fn piece(&mut self, connection: &Connection, limit: usize) -> rusqlite::Result<Pruned> {
        // One at least, or it would never come to the end.
        let limit = rows(limit.max(1));
        let old = Old::find(connection, self, limit)?;
        let pruned = Pruned { rows: old.delete(connection, limit)?, more: !old.over };
        self.place = if old.over { String::new() } else { old.place };
        Ok(pruned)
    }
}

/// What a piece of a walk has found.
struct Old {
    /// Sagas whose last arrival was before this time.
    before: i64,
    sagas: Vec<String>,
    /// Where the walk goes on, unless it is over.
    place: String,
    over: bool,
}

impl Old {
    fn find(connection: &Connection, walk: &Pruning, limit: i64) -> rusqlite::Result<Self> {
        let before = connection
            .prepare_cached("select cast(unixepoch('subsec') * 1000 as integer) - ?1")?
            .query_row([milliseconds(walk.retention.total())], |row| row.get(0))?;
        let mut old = Old { before, sagas: Vec::new(), place: walk.place.clone(), over: false };
        let (mut seen, mut found) = (0, 0);
        // In the order of the primary key, so that each saga is told as soon as it is read.
        let mut statement = connection.prepare_cached(
            "select saga, max(at), count(*) from mainstay_barrier where saga > ?1 group by saga order by saga",
        )?;
        let mut rows = statement.query([&walk.place])?;
        while seen < Pruning::LOOK && found < limit {
            let Some(row) = rows.next()? else {
                old.over = true;
                break;
            };
            let (saga, last, count): (String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            seen += count;
            if last < before {
                found += count;
                old.sagas.push(saga.clone());
            }
            // One of which something will be left is looked at again.
            if found <= limit {
                old.place = saga;
            }
        }
        Ok(old)
    }

    /// Deletes at most so many rows of those sagas, and none of one that has had an arrival since.
    fn delete(&self, connection: &Connection, limit: i64) -> rusqlite::Result<usize> {
        if self.sagas.is_empty() {
            return Ok(0);
        }
        let unfinished = Unfinished::begin(connection)?;
        let mut left = limit;
        for saga in &self.sagas {
            let deleted = connection
                .prepare_cached(
                    "delete from mainstay_barrier where (saga, step, phase) in (
                         select saga, step, phase from mainstay_barrier where saga = ?1 limit ?3
                     ) and not exists (select 1 from mainstay_barrier where saga = ?1 and at >= ?2)",
                )?
                .execute(params![saga, self.before, left])?;
            left -= rows(deleted);
        }
        unfinished.finish()?;
        Ok(usize::try_from(limit - left).unwrap_or(usize::MAX))
    }
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
    tx: &'a Connection,
    finished: bool,
}

impl<'a> Unfinished<'a> {
    fn begin(tx: &'a Connection) -> rusqlite::Result<Self> {
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
