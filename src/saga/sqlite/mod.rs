//! The embedded store: one SQLite database, which every acknowledgement has reached.
//!
//! # Example
//!
//! ```no_run
//! use mainstay::saga::{journal::{Journal, Query}, sqlite::Sqlite};
//!
//! # async fn example() -> Result<(), mainstay::saga::journal::StoreError> {
//! let store = Sqlite::open("sagas.db")?;              // for one orchestrator process
//! let shared = Sqlite::at("shared.db").shared().open()?;   // for several on one machine
//! let tool = Sqlite::open_existing("sagas.db")?;      // to look at it while they run
//! for head in tool.list(Query::default()).await? {
//!     println!("{} is {}", head.id, head.phase);
//! }
//! # Ok(()) }
//! ```
//!
//! # Semantics
//!
//! * The database is in WAL mode with `synchronous=FULL`: a batch of appends is one transaction and one sync, and is
//!   answered when that has succeeded. Its format is in `docs/saga-format.md`; the `sqlite3` shell reads it.
//! * The [work](in_transaction) of a step is done in that transaction, in a savepoint of its own. It shares the sync, and all other
//!   sagas wait for it.
//! * One connection writes. Another one reads, so that a status is told while a write waits for the disk.
//! * Without [`shared`](Settings::shared) one process at a time works on it. The lock is the operating system's and ends with the process, and
//!   whoever gets it knows that all orchestrators of before are dead: what they left is claimed at once, without waiting for leases.
//! * Leases and wakes are measured with the wall clock. If it is set back, leases last longer, if it is set forward, sagas
//!   change hands early; epochs keep both from doing harm.
//!
//! # Sharing
//!
//! Clones are the same store. Writes happen one after the other; so do reads.
//!
//! # Cancel safety
//!
//! Every operation is done in one poll: a future that was not polled to its end has done nothing.
//!
//! # Errors
//!
//! [`Full`](StoreError::Full): nothing of the batch was written, and the store goes on when there is room.
//! [`Unavailable`](StoreError::Unavailable): another process has held the lock of the database for too long; nothing was written.
//! [`Io`](StoreError::Io) in a write: what is on the disk is not known; everything after it is [`Poisoned`](StoreError::Poisoned), until the
//! store is opened anew. [`InUse`](StoreError::InUse): a [`tool`](Settings::tool) was asked to append, to claim or to hold a lease.
//!
//! # Cost
//!
//! Futures block the thread that polls them ([`blocks`](Journal::blocks) says so). An append takes a sync and about 0.1 ms.
//!
//! The SQLite that `rusqlite` brings along is compiled to sync with `fsync`, and to take one lock for the page caches of all connections of
//! a process. In a service with several databases it pays to build it otherwise, by this variable of the build's environment:
//! `LIBSQLITE3_FLAGS="-DHAVE_FDATASYNC=1 -USQLITE_ENABLE_MEMORY_MANAGEMENT -DSQLITE_DEFAULT_MEMSTATUS=0"`. The options are explained
//! in [SQLite's documentation](https://sqlite.org/compile.html).

mod open;
mod read;
#[cfg(test)]
mod tests;
mod work;
mod write;

use std::{
    any::TypeId,
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

pub use open::Settings;
/// The client, version 0.40, whose transactions the work of steps is given.
pub use rusqlite;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
pub(crate) use work::{Guard as WorkGuard, alone};
pub use work::{InTransaction, in_transaction};

use self::{
    open::{Opened, Use, failure, poisons},
    work::{Guard, Over},
};
use super::{
    Incarnation, SagaId, Timestamp,
    journal::{
        Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
        Requested, StoreError, Stored,
    },
    transact::Work,
};
use crate::sync::{Mutex, lock};

/// How much work has a transaction of its own after a transaction with several was spoilt.
const APART: usize = 1_000;

/// A store of sagas in a file; see the [module](self).
#[derive(Clone)]
pub struct Sqlite(Arc<Shared>);

struct Shared {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
    // Held to the last: while the connections above live, nobody else may begin.
    _guard: Mutex<Option<Connection>>,
    authority: Guard,
    use_as: Use,
    poisoned: AtomicBool,
    /// How much work is still to be kept apart.
    apart: AtomicUsize,
    path: PathBuf,
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite")
            .field("path", &self.0.path)
            .field("use", &self.0.use_as)
            .field("poisoned", &self.0.poisoned)
            .finish_non_exhaustive()
    }
}

impl Sqlite {
    /// Opens a store for one orchestrator process, and makes it if there is none. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// Those of [`Settings::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Sqlite::at(path).open()
    }

    /// Opens a store that is there, to look at it, to leave requests and to forget: see [`Settings::tool`]. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// Those of [`Settings::open`].
    pub fn open_existing(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Sqlite::at(path).tool().open()
    }

    /// A store that is still to be opened.
    pub fn at(path: impl AsRef<Path>) -> Settings {
        Settings::at(path.as_ref().to_owned())
    }

    fn over(opened: Opened, use_as: Use) -> Self {
        let path = opened.writer.path().unwrap_or_default().into();
        Sqlite(Arc::new(Shared {
            writer: Mutex::new(opened.writer),
            reader: Mutex::new(opened.reader),
            _guard: Mutex::new(opened.guard),
            authority: opened.authority,
            use_as,
            poisoned: AtomicBool::new(false),
            apart: AtomicUsize::new(0),
            path,
        }))
    }

    fn now() -> Timestamp {
        Timestamp(crate::time::wall().as_millis() as u64)
    }

    fn whole(&self) -> Result<(), StoreError> {
        if self.0.poisoned.load(SeqCst) { Err(StoreError::Poisoned) } else { Ok(()) }
    }

    /// What an error means; after a failed write of the device the store is done for.
    fn failed(&self, error: &rusqlite::Error, writing: bool) -> StoreError {
        if writing && poisons(error) {
            self.0.poisoned.store(true, SeqCst);
        }
        failure(error, &self.0.path.display().to_string())
    }

    /// One transaction: `work` says whether there is anything to commit.
    fn write<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<(T, bool)>,
    ) -> Result<T, StoreError> {
        self.transact(|tx| Ok(work(tx)?)).map_err(|over| self.over_with(over))
    }

    fn transact<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<(T, bool), Over>) -> Result<T, Over> {
        let connection = lock(&self.0.writer);
        // Behind the lock: another thread may have failed while this one waited.
        self.whole().map_err(Over::Store)?;
        let write = || {
            let tx = Transaction::new_unchecked(&connection, TransactionBehavior::Immediate)?;
            let (answer, written) = work(&tx)?;
            if written {
                tx.commit()?
            } else {
                tx.rollback()?
            }
            Ok(answer)
        };
        let done = write();
        // What has failed is rolled back when it is dropped; if that has failed, too, nobody knows.
        if done.is_err() && !connection.is_autocommit() && connection.execute_batch("ROLLBACK").is_err() {
            self.0.poisoned.store(true, SeqCst);
        }
        done
    }

    fn over_with(&self, over: Over) -> StoreError {
        match over {
            Over::Sql(error) => self.failed(&error, true),
            Over::Store(error) => error,
            Over::Ended => StoreError::Io("the transaction has ended too early".to_owned()),
        }
    }

    /// A batch in one transaction; for a while after work has spoilt one, in as many as there is work.
    fn append_all(&self, batch: &[Append]) -> Result<Vec<Result<(), Refusal>>, StoreError> {
        self.orchestrates()?;
        let work = batch.iter().filter(|item| item.work.is_some()).count();
        let apart = self.0.apart.load(SeqCst);
        if work < 2 || apart == 0 {
            return self.append_together(batch);
        }
        self.0.apart.store(apart.saturating_sub(work), SeqCst);
        let mut answers = Vec::with_capacity(batch.len());
        for part in batch.split_inclusive(|item| item.work.is_some()) {
            answers.extend(self.append_together(part)?);
        }
        Ok(answers)
    }

    /// A batch in one transaction. Work that has spoilt all of it has been begun, and is not begun a second time; then the others are
    /// written. Which of several it was is not known: none is blamed, and the next ones are kept apart until it is.
    fn append_together(&self, batch: &[Append]) -> Result<Vec<Result<(), Refusal>>, StoreError> {
        let work = || batch.iter().filter_map(|item| item.work.as_ref());
        let mut tries = work().count();
        loop {
            let over = match self.transact(|tx| write::append(tx, batch, Sqlite::now(), &self.0.authority)) {
                Ok(answers) => return Ok(answers),
                Err(over) => over,
            };
            let spoilt = match &over {
                Over::Ended => true,
                // A constraint that is looked at when the transaction ends.
                Over::Sql(error) => error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation),
                Over::Store(_) => false,
            };
            if !spoilt || tries == 0 {
                return Err(self.over_with(over));
            }
            tries -= 1;
            if work().count() > 1 {
                self.0.apart.store(APART, SeqCst);
                work().for_each(Work::excuse);
            }
        }
    }

    fn orchestrates(&self) -> Result<(), StoreError> {
        if self.0.use_as == Use::Tool {
            let place = self.0.path.display();
            return Err(StoreError::InUse(format!("{place} was opened by a tool, to look at it")));
        }
        Ok(())
    }

    /// What only an orchestrator does.
    fn own<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<(T, bool)>) -> Result<T, StoreError> {
        self.orchestrates()?;
        self.write(work)
    }

    fn read<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        self.whole()?;
        let mut connection = lock(&self.0.reader);
        let read = || {
            let moment = connection.transaction()?;
            work(&moment)
        };
        read().map_err(|error: rusqlite::Error| self.failed(&error, false))
    }
}

impl Journal for Sqlite {
    fn now(&self) -> Pending<'_, Timestamp> {
        Box::pin(async { Ok(Sqlite::now()) })
    }

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        Box::pin(async move { self.append_all(&batch) })
    }

    fn does(&self, job: TypeId) -> bool {
        job == TypeId::of::<InTransaction>()
    }

    fn blocks(&self) -> bool {
        true
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(async move {
            self.own(|connection| {
                write::heartbeat(connection, &by, Sqlite::now(), lease).map(|()| ((), true))
            })
        })
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(async move {
            self.own(|connection| write::leave(connection, &by, Sqlite::now()).map(|()| ((), true)))
        })
    }

    fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(async move {
            self.own(|connection| write::announce(connection, &by, &presence).map(|()| ((), true)))
        })
    }

    fn orchestrators(&self) -> Pending<'_, Vec<Registered>> {
        Box::pin(async move { self.read(read::orchestrators) })
    }

    fn claim(&self, mut claim: Claim) -> Pending<'_, Vec<Stored>> {
        // Each row is looked for among them, under the write lock.
        claim.except.sort_unstable();
        Box::pin(async move {
            self.orchestrates()?;
            let claimed = |how| {
                self.transact(|tx| {
                    let taken = write::claim(tx, &claim, Sqlite::now(), how)?;
                    let any = !taken.is_empty();
                    Ok((taken, any))
                })
            };
            match claimed(write::Look::ByIndex) {
                Err(Over::Sql(error)) if read::is_corrupt(&error) => claimed(write::Look::OneByOne),
                claimed => claimed,
            }
            .map_err(|over| self.over_with(over))
        })
    }

    fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>> {
        let saga = saga.clone();
        Box::pin(async move { self.read(|connection| read::load(connection, &saga)) })
    }

    fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
        Box::pin(async move { self.read(|connection| read::list(connection, &query)) })
    }

    fn request(&self, request: Request) -> Pending<'_, Requested> {
        Box::pin(async move {
            self.write(|connection| {
                let requested = write::request(connection, &request)?;
                Ok((requested, requested == Requested::Left))
            })
        })
    }

    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
        let by = by.clone();
        Box::pin(async move { self.read(|connection| read::requests(connection, &by)) })
    }

    fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize> {
        let by = by.to_owned();
        Box::pin(async move {
            let forgotten = self.transact(|tx| {
                let count = write::forget(tx, &by, Sqlite::now(), before, limit)?;
                Ok((count, count > 0))
            });
            forgotten.map_err(|over| self.over_with(over))
        })
    }

    fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>> {
        Box::pin(async move { self.read(|connection| read::forgotten(connection, limit)) })
    }

    fn check(&self) -> Pending<'_, Vec<String>> {
        Box::pin(async move { self.read(read::check) })
    }
}
