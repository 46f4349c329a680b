//! One service's database: a SQLite file, or a schema in PostgreSQL. The same statements run on both.
//!
//! Work is an async closure over a [`Tx`]: [`Db::write`] runs it in a transaction that is durable when the call returns, [`Db::read`] in
//! one that sees a single state. Statements are written once, in the SQL that both understand: parameters `$1`, types `text` and
//! `bigint`, `on conflict`, `returning`; `{serial}` in a migration is a key that counts by itself.
//!
//! In SQLite one thread writes, and what comes while it is busy shares its next commit: each piece of work is a savepoint of its
//! own, and one forced write pays for all. In PostgreSQL some connections take turns.
//!
//! A dropped call does not take its work back: what was handed over is done or not done as a whole. What has not begun when its
//! caller goes is not begun, so that after a standstill nobody is served who has given up; and with [`WAITING`] pieces of work before it
//! none is taken in.

use std::{path::PathBuf, sync::Arc};

use futures::{FutureExt, future::LocalBoxFuture};
use tokio::sync::oneshot;

mod postgres;
mod relay;
mod row;
mod sqlite;
mod tx;

pub use relay::{Publish, run_relay};
pub use row::{Row, Value};
pub use tx::Tx;

/// How many pieces of work may wait for a connection. More than there are sagas at once, each of which may want to write.
pub const WAITING: usize = 16_384;

/// Where a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file, with its `-wal` beside it.
    Sqlite(PathBuf),
    /// A schema, made if it is not there.
    Postgres {
        /// `postgres://user@host/database`.
        url: String,
        /// Which schema.
        schema: String,
    },
}

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The database cannot be reached, or is full, or has gone in the midst of it.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// A statement was refused for breaking a unique constraint.
    #[error("not unique: {0}")]
    NotUnique(String),
    /// Anything else that is wrong with a statement, or with what it read.
    #[error("{0}")]
    Statement(String),
}

/// A database; clones are the same.
#[derive(Clone)]
pub struct Db {
    place: Place,
    workers: Workers,
}

#[derive(Clone)]
enum Workers {
    Sqlite(Arc<sqlite::Pool>),
    Postgres(Arc<postgres::Pool>),
}

/// One piece of work on a worker's connection, and then what tells the caller, after the commit.
type Job = Box<dyn for<'t> FnOnce(Result<&'t Tx<'t>, DbError>) -> LocalBoxFuture<'t, Told> + Send>;

/// Whether the work's own writes are to be kept, and the answer to hand over when that has happened (or could not).
struct Told {
    keep: bool,
    tell: Box<dyn FnOnce(Result<(), DbError>)>,
}

impl Db {
    /// Opens it, and brings it up to date: each migration runs once, in order, and is never changed afterwards.
    ///
    /// # Errors
    ///
    /// [`DbError::Unavailable`] if it cannot be reached, [`DbError::Statement`] if a migration fails.
    pub async fn open(place: Place, migrations: &'static [&'static str]) -> Result<Self, DbError> {
        let workers = match &place {
            Place::Sqlite(path) => {
                Workers::Sqlite(Arc::new(sqlite::Pool::open(path.clone(), migrations).await?))
            }
            Place::Postgres { url, schema } => {
                Workers::Postgres(Arc::new(postgres::Pool::open(url, schema, migrations).await?))
            }
        };
        Ok(Db { place, workers })
    }

    /// Whether the place can be reached; nothing is made there.
    ///
    /// # Errors
    ///
    /// That it cannot.
    pub async fn reachable(place: &Place) -> Result<(), DbError> {
        match place {
            Place::Sqlite(path) => sqlite::reachable(path),
            Place::Postgres { url, schema } => postgres::connect(url, schema).await.map(drop),
        }
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Runs the work in a transaction. It is committed when the work is `Ok`, and durable when this returns.
    ///
    /// # Errors
    ///
    /// The work's, with nothing of it kept; or the database's.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
        F: for<'t> AsyncFnOnce(&'t Tx<'t>) -> Result<T, E> + Send + 'static,
    {
        let (job, answer) = job(work);
        match &self.workers {
            Workers::Sqlite(pool) => pool.write(job),
            Workers::Postgres(pool) => pool.write(job),
        }
        answered(answer).await
    }

    /// Runs the work where it sees one state of the database; it must not write.
    ///
    /// # Errors
    ///
    /// The work's, or the database's.
    pub async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
        F: for<'t> AsyncFnOnce(&'t Tx<'t>) -> Result<T, E> + Send + 'static,
    {
        let (job, answer) = job(work);
        match &self.workers {
            Workers::Sqlite(pool) => pool.read(job),
            Workers::Postgres(pool) => pool.read(job),
        }
        answered(answer).await
    }

    /// Whether it answers: for a health check. The text names no place.
    ///
    /// # Errors
    ///
    /// That it does not.
    pub async fn ping(&self) -> Result<(), String> {
        let answer = self.read(async |tx| tx.query("select 1", &[]).await.map(|_| ())).await;
        answer.map_err(|_: DbError| "the database does not answer".to_owned())
    }
}

/// What came of the work; that it was given up, if its thread did not get to say so.
async fn answered<T, E: From<DbError>>(answer: oneshot::Receiver<Result<T, E>>) -> Result<T, E> {
    answer.await.unwrap_or_else(|_| Err(E::from(DbError::Unavailable("the work was given up".to_owned()))))
}

/// Tells the job's caller that nothing came of it.
fn refuse(job: Job, error: DbError) {
    // Without a transaction there is nothing that it could wait for.
    if let Some(told) = job(Err(error)).now_or_never() {
        (told.tell)(Ok(()));
    }
}

fn too_many() -> DbError {
    DbError::Unavailable("too much work waits for the database".to_owned())
}

/// The work as a job for a worker's thread, and where its answer arrives.
fn job<T, E, F>(work: F) -> (Job, oneshot::Receiver<Result<T, E>>)
where
    T: Send + 'static,
    E: From<DbError> + Send + 'static,
    F: for<'t> AsyncFnOnce(&'t Tx<'t>) -> Result<T, E> + Send + 'static,
{
    let (tell, answer) = oneshot::channel();
    let around = crate::trace::carried();
    let job: Job = Box::new(move |tx| {
        Box::pin(async move {
            let result = match tx {
                Ok(_) if tell.is_closed() => {
                    Err(E::from(DbError::Unavailable("nobody waits for it".to_owned())))
                }
                Ok(tx) => around.with(work(tx)).await,
                Err(error) => Err(E::from(error)),
            };
            Told {
                keep: result.is_ok(),
                tell: Box::new(move |ended| {
                    // Whoever asked may have gone.
                    let _ = tell.send(result.and_then(|value| ended.map(|()| value).map_err(E::from)));
                }),
            }
        })
    });
    (job, answer)
}
