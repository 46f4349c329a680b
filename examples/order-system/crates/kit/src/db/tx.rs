//! A transaction in either database, with the helpers of `mainstay::saga` for participants.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use futures::FutureExt;
use mainstay::saga::{
    Key,
    barrier::{self, Action, Compensation, Lookup, sqlite::Pruning},
    inbox::{self, Accepted},
    outbox::{self, AppendError},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_postgres::{Statement, error::SqlState, types::ToSql};

use super::{DbError, Row, Value, row};
use crate::prune::Keep;

/// A transaction. Statements are answered in their order.
#[derive(Clone)]
pub struct Tx<'t>(pub(super) On<'t>);

#[derive(Clone)]
pub(super) enum On<'t> {
    Sqlite(&'t rusqlite::Transaction<'t>),
    Postgres(&'t tokio_postgres::Transaction<'t>, Statements),
}

/// What was prepared on one connection.
pub(super) type Statements = Rc<RefCell<HashMap<String, Statement>>>;

impl Tx<'_> {
    /// Runs a statement; how many rows it concerned.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn execute(&self, sql: &str, values: &[Value]) -> Result<u64, DbError> {
        match &self.0 {
            On::Sqlite(tx) => {
                let mut statement = tx.prepare_cached(&sqlite_sql(sql))?;
                Ok(statement.execute(rusqlite::params_from_iter(values))? as u64)
            }
            On::Postgres(tx, statements) => {
                let statement = prepared(tx, statements, sql).await?;
                Ok(tx.execute(&statement, &parameters(values)).await?)
            }
        }
    }

    /// Runs a statement; its rows.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn query(&self, sql: &str, values: &[Value]) -> Result<Vec<Row>, DbError> {
        match &self.0 {
            On::Sqlite(tx) => {
                let mut statement = tx.prepare_cached(&sqlite_sql(sql))?;
                let columns = statement.column_count();
                let rows = statement
                    .query_map(rusqlite::params_from_iter(values), |it| row::of_sqlite(it, columns))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            }
            On::Postgres(tx, statements) => {
                let statement = prepared(tx, statements, sql).await?;
                let rows = tx.query(&statement, &parameters(values)).await?;
                Ok(rows.iter().map(row::of_postgres).collect::<Result<_, _>>()?)
            }
        }
    }

    /// Runs a statement; its first row.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn first(&self, sql: &str, values: &[Value]) -> Result<Option<Row>, DbError> {
        Ok(self.query(sql, values).await?.into_iter().next())
    }

    /// Locks for the rest of the transaction: at most one holds a name. In SQLite there is one writer anyway.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn lock(&self, name: &str) -> Result<(), DbError> {
        if let On::Postgres(..) = self.0 {
            self.query(
                "select 1 from (select pg_advisory_xact_lock(hashtextextended($1, 0))) as held",
                &[name.into()],
            )
            .await?;
        }
        Ok(())
    }

    /// Puts an event into the outbox: it is published if, and only if, this transaction is committed. Its id.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn outbox<T: Serialize + ?Sized>(
        &self,
        topic: &str,
        key: &str,
        payload: &T,
    ) -> Result<String, DbError> {
        match &self.0 {
            On::Sqlite(tx) => outbox::sqlite::append(tx, topic, key, payload).map_err(appended),
            On::Postgres(tx, _) => outbox::postgres::append(tx, topic, key, payload).await.map_err(appended),
        }
    }

    /// Notes what has become of a round of the relay, which is read from a file of SQLite and from nothing else.
    pub(super) fn mark(&self, published: &outbox::sqlite::Published) -> Result<outbox::Relayed, DbError> {
        match &self.0 {
            On::Sqlite(tx) => Ok(published.mark(tx)?),
            On::Postgres(..) => unreachable!("PostgreSQL's relay marks in its own transaction"),
        }
    }

    /// Whether this consumer sees the message for the first time. If it does not, there is nothing to do.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn inbox(&self, consumer: &str, message: &str) -> Result<bool, DbError> {
        Ok(Accepted::First
            == match &self.0 {
                On::Sqlite(tx) => inbox::sqlite::accept(tx, consumer, message)?,
                On::Postgres(tx, _) => inbox::postgres::accept(tx, consumer, message).await?,
            })
    }

    /// Runs a saga step's business once for its key, however often it is asked for; a rejection (`Ok(Err(..))`) is kept like a result.
    ///
    /// # Errors
    ///
    /// The business's, with nothing kept; or the database's.
    pub async fn once<T, R, E>(
        &self,
        key: &Key,
        business: impl AsyncFnOnce(&Tx<'_>) -> Result<Result<T, R>, E>,
    ) -> Result<Action<Result<T, R>>, E>
    where
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: From<DbError>,
    {
        match &self.0 {
            On::Sqlite(tx) => {
                barrier::sqlite::action_or_rejection(tx, key, |tx| at_once(business(&Tx(On::Sqlite(tx)))))
                    .map_err(barred)
            }
            On::Postgres(tx, statements) => {
                let work = async |tx: &tokio_postgres::Transaction<'_>| {
                    business(&Tx(On::Postgres(tx, statements.clone()))).await
                };
                barrier::postgres::action_or_rejection(tx, key, work).await.map_err(barred)
            }
        }
    }

    /// How many events in the outbox are not published yet; those that were parked are among them.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn unsent(&self) -> Result<i64, DbError> {
        let row = self.first("select count(*) from mainstay_outbox where sent is null", &[]).await?;
        row.map_or(Ok(0), |row| row.int(0))
    }

    /// Undoes a saga step once, with the result that [`once`](Tx::once) has kept, if it has done anything.
    ///
    /// # Errors
    ///
    /// The business's, with nothing kept; or the database's.
    pub async fn undo_once<T, E>(
        &self,
        key: &Key,
        business: impl AsyncFnOnce(&Tx<'_>, T) -> Result<(), E>,
    ) -> Result<Compensation, E>
    where
        T: DeserializeOwned,
        E: From<DbError>,
    {
        match &self.0 {
            On::Sqlite(tx) => barrier::sqlite::compensation(tx, key, |tx, result| {
                at_once(business(&Tx(On::Sqlite(tx)), result))
            })
            .map_err(barred),
            On::Postgres(tx, statements) => {
                let work = async |tx: &tokio_postgres::Transaction<'_>, result: T| {
                    business(&Tx(On::Postgres(tx, statements.clone())), result).await
                };
                barrier::postgres::compensation(tx, key, work).await.map_err(barred)
            }
        }
    }

    /// What has become of a key.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn looked_up<T: DeserializeOwned>(&self, key: &Key) -> Result<Lookup<T>, DbError> {
        match &self.0 {
            On::Sqlite(tx) => {
                barrier::sqlite::lookup(tx, key).map_err(|error| DbError::Statement(error.to_string()))
            }
            On::Postgres(tx, _) => barrier::postgres::lookup(*tx, key)
                .await
                .map_err(|error| DbError::Statement(error.to_string())),
        }
    }

    /// Forgets what is older than it need be: at most `limit` rows each of the barrier, the inbox and the outbox. Whether there may be more.
    ///
    /// In SQLite the barrier is gone through in pieces, and `walk` is how far that has come.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn prune(&self, keep: &Keep, walk: &mut Pruning, limit: usize) -> Result<bool, DbError> {
        let Keep { steps, sent } = *keep;
        let delivery = steps.longest_delivery;
        let full = |rows: u64| rows >= limit as u64;
        Ok(match &self.0 {
            On::Sqlite(tx) => {
                let barrier = walk.piece(tx, limit)?;
                let inbox = inbox::sqlite::prune(tx, delivery, limit)? as u64;
                let outbox = outbox::sqlite::prune(tx, sent, limit)? as u64;
                barrier.more || full(inbox) || full(outbox)
            }
            On::Postgres(tx, _) => {
                let barrier = barrier::postgres::prune(*tx, steps, limit).await?;
                let inbox = inbox::postgres::prune(*tx, delivery, limit).await?;
                let outbox = outbox::postgres::prune(*tx, sent, limit).await?;
                full(barrier) || full(inbox) || full(outbox)
            }
        })
    }
}

/// SQLite never makes anybody wait but the thread.
fn at_once<T>(work: impl Future<Output = T>) -> T {
    work.now_or_never().expect("work in a transaction of SQLite waits for nothing but its statements")
}

fn sqlite_sql(sql: &str) -> String {
    sql.replace('$', "?")
}

fn parameters(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    values.iter().map(|value| value as _).collect()
}

async fn prepared(
    tx: &tokio_postgres::Transaction<'_>,
    statements: &Statements,
    sql: &str,
) -> Result<Statement, DbError> {
    let known = statements.borrow().get(sql).cloned();
    if let Some(statement) = known {
        return Ok(statement);
    }
    let statement = tx.prepare(sql).await?;
    statements.borrow_mut().insert(sql.to_owned(), statement.clone());
    Ok(statement)
}

impl From<rusqlite::Error> for DbError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{
            CannotOpen, ConstraintViolation, DatabaseBusy, DatabaseLocked, DiskFull, SystemIoFailure,
        };
        match error.sqlite_error_code() {
            Some(ConstraintViolation) if error.to_string().contains("UNIQUE") => {
                DbError::NotUnique(error.to_string())
            }
            Some(DatabaseBusy | DatabaseLocked | DiskFull | CannotOpen | SystemIoFailure) => {
                DbError::Unavailable(error.to_string())
            }
            _ => DbError::Statement(error.to_string()),
        }
    }
}

impl From<tokio_postgres::Error> for DbError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(said) if *said.code() == SqlState::UNIQUE_VIOLATION => DbError::NotUnique(said.to_string()),
            // Too many connections, shutting down, out of resources.
            Some(said) if ["53", "57", "58"].iter().any(|class| said.code().code().starts_with(class)) => {
                DbError::Unavailable(said.to_string())
            }
            Some(said) => DbError::Statement(said.to_string()),
            None => DbError::Unavailable(error.to_string()),
        }
    }
}

fn appended<D: Into<DbError>>(error: AppendError<D>) -> DbError {
    match error {
        AppendError::Database(error) => error.into(),
        AppendError::Payload(error) => DbError::Statement(error.to_string()),
        other => {
            DbError::Statement(format!("an event could not be kept: {}", std::any::type_name_of_val(&other)))
        }
    }
}

fn barred<E: From<DbError>, D: Into<DbError> + std::fmt::Debug>(error: barrier::Error<E, D>) -> E {
    match error {
        barrier::Error::Inner(error) => error,
        barrier::Error::Database(error) => E::from(error.into()),
        barrier::Error::Result(error) => {
            E::from(DbError::Statement(format!("the stored result of a step: {error}")))
        }
        barrier::Error::WrongDirection(key) => {
            E::from(DbError::Statement(format!("{key} is not the key for this direction")))
        }
        _ => E::from(DbError::Statement("the transaction does not have the write lock".to_owned())),
    }
}
