//! The threads of a SQLite file: one that writes, two that read.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use futures::executor::block_on;
use mainstay::saga::{barrier, inbox, outbox};
use rusqlite::{
    Connection,
    TransactionBehavior::{Deferred, Immediate},
    config::DbConfig,
};
use tokio::sync::oneshot;

use super::{DbError, Job, Told, Tx, WAITING, refuse, too_many, tx::On};

const READERS: usize = 2;
/// How many pieces of work share a commit at most.
const BATCH: usize = 128;
const BUSY: Duration = Duration::from_secs(10);

pub(super) struct Pool {
    write: mpsc::SyncSender<Job>,
    read: mpsc::SyncSender<Job>,
}

impl Pool {
    pub(super) async fn open(path: PathBuf, migrations: &'static [&'static str]) -> Result<Self, DbError> {
        let (ready, opened) = oneshot::channel();
        let (write, jobs) = mpsc::sync_channel::<Job>(WAITING);
        let file = path.clone();
        spawn("db-write", move || match prepare(&file, migrations) {
            Ok(connection) => {
                let _ = ready.send(Ok(()));
                writer(connection, &jobs);
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        });
        opened.await.map_err(|_| DbError::Unavailable("the writer's thread has gone".to_owned()))??;
        let (read, jobs) = mpsc::sync_channel::<Job>(WAITING);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..READERS {
            let mut connection = connect(&path)?;
            let jobs = jobs.clone();
            spawn("db-read", move || {
                loop {
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    read_one(&mut connection, job);
                }
            });
        }
        Ok(Pool { write, read })
    }

    pub(super) fn write(&self, job: Job) {
        hand_over(&self.write, job);
    }

    pub(super) fn read(&self, job: Job) {
        hand_over(&self.read, job);
    }
}

fn hand_over(to: &mpsc::SyncSender<Job>, job: Job) {
    match to.try_send(job) {
        // If its thread died, the caller hears that the work was given up.
        Ok(()) | Err(mpsc::TrySendError::Disconnected(_)) => {}
        Err(mpsc::TrySendError::Full(job)) => refuse(job, too_many()),
    }
}

pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(work) {
        tracing::error!(%error, "a thread could not be started");
    }
}

/// Whether the file can be opened, or could be made.
pub(super) fn reachable(path: &Path) -> Result<(), DbError> {
    if path.exists() {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(1))?;
        return Ok(connection.query_row("select count(*) from sqlite_master", [], |_| Ok(()))?);
    }
    let folder = path.ancestors().skip(1).find(|folder| folder.as_os_str().is_empty() || folder.exists());
    match folder {
        Some(folder) if folder.as_os_str().is_empty() || folder.is_dir() => Ok(()),
        _ => Err(DbError::Unavailable("its folder cannot be made".to_owned())),
    }
}

pub(super) fn connect(path: &Path) -> Result<Connection, DbError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(64);
    // A parameter as a limit would have its statement planned anew each time it is bound.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    order_broker::into_wal(&connection, BUSY)?;
    // Each work has a savepoint, and what it would take to go back there is kept aside: in memory, since nobody needs it after a crash.
    connection.execute_batch(
        "pragma synchronous = full; pragma foreign_keys = on; pragma wal_autocheckpoint = 4000;
         pragma temp_store = memory;",
    )?;
    Ok(connection)
}

fn prepare(path: &Path, migrations: &[&str]) -> Result<Connection, DbError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| DbError::Unavailable(error.to_string()))?;
    }
    let mut connection = connect(path)?;
    let tx = connection.transaction_with_behavior(Immediate)?;
    barrier::sqlite::install(&tx)?;
    outbox::sqlite::install(&tx)?;
    inbox::sqlite::install(&tx)?;
    let done: i64 = tx.query_row("pragma user_version", [], |row| row.get(0))?;
    let done = usize::try_from(done).unwrap_or(0);
    if done > migrations.len() {
        return Err(DbError::Statement("the database is of a newer version".to_owned()));
    }
    for migration in &migrations[done..] {
        tx.execute_batch(&migration.replace("{serial}", "integer primary key autoincrement"))?;
    }
    tx.execute_batch(&format!("pragma user_version = {}", migrations.len()))?;
    tx.commit()?;
    Ok(connection)
}

/// Takes what has come, and commits it together.
fn writer(mut connection: Connection, jobs: &mpsc::Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let batch: Vec<Job> = std::iter::once(first).chain(jobs.try_iter().take(BATCH - 1)).collect();
        let tx = match connection.transaction_with_behavior(Immediate) {
            Ok(tx) => tx,
            Err(error) => {
                for job in batch {
                    refuse(job, unavailable(&error));
                }
                continue;
            }
        };
        let mut told = Vec::with_capacity(batch.len());
        let mut batch = batch.into_iter();
        for job in batch.by_ref() {
            told.extend(write_one(&tx, job));
            // A full disk, or a statement that ends transactions: SQLite has taken all of it back, and what came now would be
            // committed by itself, statement by statement.
            if tx.is_autocommit() {
                break;
            }
        }
        let ended = if tx.is_autocommit() { Err(lost()) } else { tx.commit().map_err(DbError::from) };
        for told in told {
            let ended = ended.as_ref().map_err(|error| DbError::Unavailable(error.to_string()));
            (told.tell)(ended.copied());
        }
        for job in batch {
            refuse(job, lost());
        }
    }
}

fn lost() -> DbError {
    DbError::Unavailable("the transaction that the work was part of has been taken back".to_owned())
}

/// The work in a savepoint of its own; nothing is left of work that failed or panicked.
fn write_one(tx: &rusqlite::Transaction<'_>, job: Job) -> Option<Told> {
    let run = |sql: &str| tx.prepare_cached(sql)?.execute([]).map(drop);
    if let Err(error) = run("savepoint work") {
        refuse(job, unavailable(&error));
        return None;
    }
    let told = catch_unwind(AssertUnwindSafe(|| {
        let tx = Tx(On::Sqlite(tx));
        block_on(job(Ok(&tx)))
    }));
    let keep = told.as_ref().is_ok_and(|told| told.keep);
    let ended = if keep { Ok(()) } else { run("rollback to work") }.and_then(|()| run("release work"));
    match (ended, told) {
        (Ok(()), Ok(told)) => Some(told),
        (Err(error), Ok(told)) => {
            (told.tell)(Err(DbError::Unavailable(error.to_string())));
            None
        }
        // The panic has been printed; its caller hears that the work was given up.
        (_, Err(_)) => None,
    }
}

fn read_one(connection: &mut Connection, job: Job) {
    let tx = match connection.transaction_with_behavior(Deferred) {
        Ok(tx) => tx,
        Err(error) => return refuse(job, unavailable(&error)),
    };
    let told = catch_unwind(AssertUnwindSafe(|| {
        let tx = Tx(On::Sqlite(&tx));
        block_on(job(Ok(&tx)))
    }));
    drop(tx);
    if let Ok(told) = told {
        (told.tell)(Ok(()));
    }
}

fn unavailable(error: &rusqlite::Error) -> DbError {
    DbError::Unavailable(error.to_string())
}
