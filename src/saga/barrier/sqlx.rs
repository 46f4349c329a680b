//! The barrier on a transaction of `sqlx`, on PostgreSQL.
//!
//! The table and its rows are those of `barrier::postgres`: one service may use both clients, and two services on one database may
//! use one each. So are the rules: the table is found by the connection's `search_path`, and every isolation level will do; under repeatable
//! read and serializable the second of two simultaneous arrivals is told of a serialization failure (SQLSTATE 40001) and repeated like
//! any transaction that was told so. A compensation counts for an action that was done as soon as it is committed; for a transaction of those levels,
//! if it was when that took its snapshot, with its first statement.
//!
//! # The transaction is given away, and given back
//!
//! [`action`] and [`compensation`] take the transaction by value and return it with their answer, to be committed. After an `Err`,
//! after a panic of the closure, and when the future is dropped there is none: it is rolled back, by `sqlx` itself. So there is nothing that could
//! be committed with a claim and half of its effect, and it costs no statement to be sure of that:
//!
//! ```compile_fail,E0382
//! # use mainstay::saga::{Key, barrier};
//! # async fn charge(pool: &sqlx::PgPool, key: Key) -> Result<(), sqlx::Error> {
//! let tx = pool.begin().await?;
//! let charged = barrier::sqlx::action(tx, &key, async |_| Err::<(), _>(sqlx::Error::RowNotFound)).await;
//! tx.commit().await // it is not here any more
//! # }
//! ```
//!
//! A rollback that nobody waited for is sent ahead of the next statement on the connection, or when the connection goes back to its pool. Until
//! then the server holds the transaction's locks.
//!
//! # Example
//!
//! ```no_run
//! use mainstay::saga::{Key, barrier::{self, Action}};
//!
//! # async fn charge(pool: &sqlx::PgPool, key: Key) -> Result<(), Box<dyn std::error::Error>> {
//! barrier::sqlx::install(pool).await?;
//!
//! let (tx, charged) = barrier::sqlx::action(pool.begin().await?, &key, async |tx| {
//!     sqlx::query("update account set balance = balance - 30 where id = 'ada'").execute(&mut **tx).await?;
//!     Ok::<_, sqlx::Error>("receipt 1".to_owned())
//! }).await?;
//! tx.commit().await?;
//! match charged {
//!     Action::Done(receipt) | Action::Repeated(receipt) => println!("{receipt}"),
//!     Action::Refused => println!("it was compensated before it came"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Features of `sqlx`
//!
//! Of `sqlx`'s own features `postgres` and `runtime-tokio` are on. Whatever else a service needs, TLS for instance, it turns on where it
//! depends on `sqlx`. Beside this crate's features `sqlite` and `cli` it has to be without `sqlx`'s default features, `migrate` and `sqlite`, which ask for
//! another SQLite: two cannot be linked together, and cargo refuses to choose.
//!
//! # Cost
//!
//! As with [`postgres`](super#cost), a round trip for each statement; the first time on a connection one more, since `sqlx` prepares it
//! there, and each time where its cache of statements is off. Nothing like `postgres::Barrier`, which needs no round trip, is there: `sqlx` sends one statement
//! after the other, and counts its transactions by itself.

/// The client, version 0.8, whose transactions these functions take.
pub use sqlx;

use serde::{Serialize, de::DeserializeOwned};
use sqlx::{PgExecutor, Postgres, Row, Transaction, postgres::PgRow};

use super::{Action, Compensation, Error, Lookup, Retention, row, sql};
use crate::saga::{
    Direction, Key,
    participant::{rows, seconds},
};

/// Creates the table `mainstay_barrier`, if it is not there.
///
/// # Errors
///
/// The database's.
pub async fn install(database: impl PgExecutor<'_>) -> Result<(), sqlx::Error> {
    database.execute(sql::INSTALL).await.map(drop)
}

/// Runs an action's business in the caller's transaction, unless it was done before or is refused, and stores its result there.
///
/// See the [module's page](super). The caller commits the transaction that comes back. After an `Err`, or when the future was dropped,
/// it is rolled back.
///
/// # Errors
///
/// [`Error`]; [`sqlx::Error::RowNotFound`] when the closure has ended the transaction, with a `rollback` of its own for instance.
pub async fn action<'c, T, E>(
    tx: Transaction<'c, Postgres>,
    key: &Key,
    business: impl AsyncFnOnce(&mut Transaction<'_, Postgres>) -> Result<T, E>,
) -> Result<(Transaction<'c, Postgres>, Action<T>), Error<E, sqlx::Error>>
where
    T: Serialize + DeserializeOwned,
{
    let business = async |tx: &mut Transaction<'_, Postgres>| business(tx).await.map(Ok::<T, row::Never>);
    let (tx, answer) = action_or_rejection(tx, key, business).await?;
    Ok((tx, row::certain(answer)))
}

/// Like [`action`], for one that may be rejected for good: an `Ok(Err(rejection))` is stored and is the answer from then on.
///
/// # Errors
///
/// As of [`action`].
pub async fn action_or_rejection<'c, T, R, E>(
    mut tx: Transaction<'c, Postgres>,
    key: &Key,
    business: impl AsyncFnOnce(&mut Transaction<'_, Postgres>) -> Result<Result<T, R>, E>,
) -> Result<(Transaction<'c, Postgres>, Action<Result<T, R>>), Error<E, sqlx::Error>>
where
    T: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    let answer = act(&mut tx, key, business).await;
    or_rolled_back(tx, answer).await
}

async fn act<'c, T, R, E>(
    tx: &mut Transaction<'c, Postgres>,
    key: &Key,
    business: impl AsyncFnOnce(&mut Transaction<'_, Postgres>) -> Result<Result<T, R>, E>,
) -> Result<Action<Result<T, R>>, Error<E, sqlx::Error>>
where
    T: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    check(key, Direction::Do)?;
    if !claim(tx, key, Direction::Do, row::DONE).await? {
        let row = read(tx, key, sql::ANSWER).await?;
        return row::repeated(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?).map_err(Error::Result);
    }
    let answer = business(tx).await.map_err(Error::Inner)?;
    let (state, result) = row::finished(&answer).map_err(Error::Result)?;
    let finished = sqlx::query(sql::FINISH)
        .bind(key.saga().as_str())
        .bind(key.step())
        .bind(state)
        .bind(result)
        .execute(&mut **tx)
        .await?;
    if finished.rows_affected() == 1 {
        Ok(Action::Done(answer))
    } else {
        Err(sqlx::Error::RowNotFound.into())
    }
}

/// Runs a compensation's business in the caller's transaction, with the result that the action had stored, if there is something to undo.
///
/// See the [module's page](super), and [`action`] for what becomes of the transaction.
///
/// # Errors
///
/// As of [`action`].
pub async fn compensation<'c, T, E>(
    mut tx: Transaction<'c, Postgres>,
    key: &Key,
    business: impl AsyncFnOnce(&mut Transaction<'_, Postgres>, T) -> Result<(), E>,
) -> Result<(Transaction<'c, Postgres>, Compensation), Error<E, sqlx::Error>>
where
    T: DeserializeOwned,
{
    let answer = undo(&mut tx, key, business).await;
    or_rolled_back(tx, answer).await
}

async fn undo<'c, T, E>(
    tx: &mut Transaction<'c, Postgres>,
    key: &Key,
    business: impl AsyncFnOnce(&mut Transaction<'_, Postgres>, T) -> Result<(), E>,
) -> Result<Compensation, Error<E, sqlx::Error>>
where
    T: DeserializeOwned,
{
    check(key, Direction::Undo)?;
    let to_undo = if claim(tx, key, Direction::Do, row::REFUSED).await? {
        None
    } else {
        let row = read(tx, key, sql::READ).await?;
        row::to_undo(row.try_get(0)?, row.try_get(1)?).map_err(Error::Result)?
    };
    let state = if to_undo.is_some() { row::UNDONE } else { row::NOTHING };
    if !claim(tx, key, Direction::Undo, state).await? {
        return Ok(Compensation::Repeated);
    }
    let Some(result) = to_undo else { return Ok(Compensation::Nothing) };
    business(tx, result).await.map_err(Error::Inner)?;
    // The claim is gone if the closure has ended the transaction. And where it has passed over an error of the database the transaction
    // has failed, and its commit would be a rollback without an error: this is refused then.
    sqlx::query(sql::CLAIMED)
        .bind(key.saga().as_str())
        .bind(key.step())
        .bind(Direction::Undo.as_str())
        .fetch_one(&mut **tx)
        .await?;
    Ok(Compensation::Undone)
}

/// What is known about an action, given its key or its compensation's: what was committed, and what this connection's own
/// transaction did.
///
/// # Errors
///
/// [`Error::Database`] and [`Error::Result`].
pub async fn lookup<T: DeserializeOwned>(
    database: impl PgExecutor<'_>,
    key: &Key,
) -> Result<Lookup<T>, Error<std::convert::Infallible, sqlx::Error>> {
    let rows =
        sqlx::query(sql::LOOKUP).bind(key.saga().as_str()).bind(key.step()).fetch_all(database).await?;
    let (mut action, mut compensated) = (None, false);
    for row in rows {
        if row.try_get::<&str, _>(0)? == Direction::Do.as_str() {
            action = Some((row.try_get(1)?, row.try_get(2)?));
        } else {
            compensated = true;
        }
    }
    row::lookup(action, compensated).map_err(Error::Result)
}

/// Deletes at most `limit` rows, all of sagas that have had no arrival here for longer than `retention`; how many it were.
///
/// Call it until it says 0. The time is that of the database.
///
/// Cost: each call passes once over all rows that are old, and those that are not of their sagas: choose a large `limit`.
///
/// # Errors
///
/// The database's.
pub async fn prune(
    database: impl PgExecutor<'_>,
    retention: Retention,
    limit: usize,
) -> Result<u64, sqlx::Error> {
    let pruned =
        sqlx::query(sql::PRUNE).bind(seconds(retention.total())).bind(rows(limit)).execute(database).await?;
    Ok(pruned.rows_affected())
}

impl<E> From<sqlx::Error> for Error<E, sqlx::Error> {
    fn from(error: sqlx::Error) -> Self {
        Error::Database(error)
    }
}

/// The transaction goes back to the caller with the answer; after an error it does not, and its locks are let go at once.
async fn or_rolled_back<'c, A, E>(
    tx: Transaction<'c, Postgres>,
    answer: Result<A, Error<E, sqlx::Error>>,
) -> Result<(Transaction<'c, Postgres>, A), Error<E, sqlx::Error>> {
    match answer {
        Ok(answer) => Ok((tx, answer)),
        Err(error) => {
            // If it fails there is no connection any more, and no transaction either.
            let _ = tx.rollback().await;
            Err(error)
        }
    }
}

fn check<E>(key: &Key, wanted: Direction) -> Result<(), Error<E, sqlx::Error>> {
    if key.phase() == wanted { Ok(()) } else { Err(Error::WrongDirection(key.clone())) }
}

/// Whether the row was free. Waits for a transaction that has claimed it and is not over.
async fn claim(
    tx: &mut Transaction<'_, Postgres>,
    key: &Key,
    phase: Direction,
    state: &str,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(sql::CLAIM)
        .bind(key.saga().as_str())
        .bind(key.step())
        .bind(phase.as_str())
        .bind(state)
        .execute(&mut **tx)
        .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Reads by a statement that finds the action's row, which is there.
async fn read(
    tx: &mut Transaction<'_, Postgres>,
    key: &Key,
    statement: &'static str,
) -> Result<PgRow, sqlx::Error> {
    sqlx::query(statement).bind(key.saga().as_str()).bind(key.step()).fetch_one(&mut **tx).await
}
