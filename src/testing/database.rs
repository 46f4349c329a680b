//! The business database of one run: it is on the simulated device beside the journal, and work is done in its transactions.

use std::{any::TypeId, collections::BTreeMap, error, fmt, sync::Arc};

use rusqlite::{
    Connection,
    backup::{Backup, StepResult},
    ffi,
};

use super::{business::Business, case::Loss, seen::Seen};
use crate::{
    saga::{
        Entry, Failure, Transact,
        journal::{AnyJob, Refusal, Work},
        memory::{Beside, Saved},
        sqlite::{InTransaction, WorkGuard, alone},
    },
    sync::{Mutex, lock},
};

/// Makes the database of a run.
pub(super) type Make = dyn Fn() -> rusqlite::Result<Connection> + Send + Sync;

/// What has to be so in it at the end.
pub(super) type Audit = dyn Fn(&Connection, &Seen) -> Result<(), Box<dyn error::Error>> + Send + Sync;

/// Has a row for each piece of work of which the transaction was committed.
const TABLE: &str = "CREATE TABLE mainstay_testing (step TEXT NOT NULL, net INTEGER NOT NULL)";
const NOTE: &str = "INSERT INTO mainstay_testing VALUES (?1, ?2)";
const NET: &str = "SELECT step, sum(net) FROM mainstay_testing GROUP BY step";

/// The database; gone when it was audited.
pub(super) struct Database {
    open: Mutex<Option<Open>>,
    audit: Arc<Audit>,
}

struct Open {
    connection: Connection,
    guard: WorkGuard,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").finish_non_exhaustive()
    }
}

impl Database {
    pub(super) fn new(make: &Make, audit: Arc<Audit>) -> rusqlite::Result<Self> {
        let connection = make()?;
        connection.execute_batch(TABLE)?;
        let guard = WorkGuard::install(&connection)?;
        Ok(Database { open: Mutex::new(Some(Open { connection, guard })), audit })
    }

    fn with<T>(&self, what: impl FnOnce(&mut Open) -> T) -> T {
        what(lock(&self.open).as_mut().unwrap_or_else(|| panic!("the run is over")))
    }
}

impl Beside for Database {
    fn does(&self, job: TypeId) -> bool {
        job == TypeId::of::<InTransaction>()
    }

    fn work(&self, work: &Work) -> Result<Entry, Refusal> {
        match &*lock(&self.open) {
            Some(open) => alone(&open.connection, &open.guard, work),
            None => Err(work.failed(Failure::unstarted("the run is over"))),
        }
    }

    fn save(&self) -> Saved {
        let saved = self.with(|open| {
            let mut image = Connection::open_in_memory()?;
            copy(&open.connection, &mut image)?;
            Ok::<_, rusqlite::Error>(image)
        });
        Arc::new(Mutex::new(saved.unwrap_or_else(|error| panic!("the database cannot be copied: {error}"))))
    }

    fn crash(&self, last: Option<Saved>) {
        let Some(last) = last.and_then(|saved| saved.downcast::<Mutex<Connection>>().ok()) else { return };
        let restored = self.with(|open| copy(&lock(&last), &mut open.connection));
        restored.unwrap_or_else(|error| panic!("the database cannot be put back: {error}"));
    }
}

fn copy(from: &Connection, to: &mut Connection) -> rusqlite::Result<()> {
    match Backup::new(from, to)?.step(-1)? {
        StepResult::Done => Ok(()),
        other => {
            let why = format!("another connection is at work on it: {other:?}");
            Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), Some(why)))
        }
    }
}

impl Business for Database {
    fn counted(&self, job: AnyJob, step: &Arc<str>, net: i64) -> AnyJob {
        let step = step.clone();
        followed(job, |job| job.and(move |tx| Ok(tx.execute(NOTE, (&*step, net)).map(drop)?)))
    }

    fn failing(&self, job: AnyJob, how: Loss) -> AnyJob {
        followed(job, move |job| {
            job.and(move |_| match how {
                // Without the report of a panic that nobody has planned.
                Loss::Panic => std::panic::resume_unwind(Box::new("planned")),
                Loss::Error | Loss::Timeout => Err(Failure::unknown("planned")),
            })
        })
    }

    fn twice(&self, job: AnyJob, again: AnyJob) -> AnyJob {
        match again.downcast::<InTransaction>() {
            Ok(again) => followed(job, |job| job.with(again)),
            Err(_) => job,
        }
    }

    fn net(&self) -> BTreeMap<String, i64> {
        let net = self.with(|open| {
            let mut select = open.connection.prepare(NET)?;
            select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()
        });
        net.unwrap_or_else(|error| panic!("the database cannot be read: {error}"))
    }

    fn audit(&self, seen: &Seen) -> Result<(), String> {
        match lock(&self.open).take() {
            Some(open) => (self.audit)(&open.connection, seen).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}

/// More in the transaction of the work.
fn followed(job: AnyJob, by: impl FnOnce(InTransaction) -> InTransaction) -> AnyJob {
    match job.downcast() {
        Ok(job) => Transact::<(), _>::new(by(job)).into_job(),
        // No orchestrator over this store has such work.
        Err(foreign) => foreign,
    }
}
