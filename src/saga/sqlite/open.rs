//! How a store is found, checked, made and kept from others.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::{Sqlite, work::Guard};
use crate::saga::journal::StoreError;

/// `mssa`, in the header of the file.
const APPLICATION: i64 = 0x6d73_7361;
/// The version of the format, in the header of the file.
const FORMAT: i64 = 1;
/// How many pages the write-ahead log has before they are moved into the database: 16 MiB. A page that changes often is then moved
/// once for many commits.
const LOG: i64 = 4_096;
/// The first SQLite whose write-ahead log cannot be reset under a reader (3.51.3).
const OLDEST: i32 = 3_051_003;

/// The entries lie in the order of their arrival, not saga by saga, so that a batch of them changes few pages.
pub(super) const SCHEMA: &str = "
CREATE TABLE saga (
    number     INTEGER PRIMARY KEY,
    id         TEXT NOT NULL UNIQUE,
    definition TEXT NOT NULL,
    version    INTEGER NOT NULL,
    digest     TEXT NOT NULL,
    phase      TEXT NOT NULL,
    note       TEXT NOT NULL,
    epoch      INTEGER NOT NULL,
    owner      TEXT,
    len        INTEGER NOT NULL,
    crc        INTEGER NOT NULL,
    wake       INTEGER,
    created    INTEGER NOT NULL,
    finished   INTEGER,
    recoveries INTEGER NOT NULL,
    tag        TEXT NOT NULL
) STRICT;
CREATE INDEX saga_owned ON saga (owner, wake) WHERE owner IS NOT NULL;
CREATE INDEX saga_asleep ON saga (wake) WHERE owner IS NULL AND finished IS NULL AND wake IS NOT NULL;
CREATE INDEX saga_open ON saga (id) WHERE finished IS NULL;
CREATE INDEX saga_finished ON saga (finished) WHERE finished IS NOT NULL;
CREATE INDEX saga_attention ON saga (id) WHERE phase IN ('stuck', 'parked');
CREATE INDEX saga_tagged ON saga (tag, id) WHERE tag <> '';
CREATE TABLE saga_event (
    saga   INTEGER NOT NULL REFERENCES saga (number) ON DELETE CASCADE,
    seq    INTEGER NOT NULL,
    epoch  INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    author TEXT NOT NULL,
    kind   TEXT NOT NULL,
    step   TEXT,
    data   TEXT NOT NULL,
    crc    INTEGER NOT NULL,
    PRIMARY KEY (saga, seq)
) STRICT;
CREATE TABLE orchestrator (
    incarnation TEXT PRIMARY KEY,
    until       INTEGER NOT NULL,
    says        TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE signal (
    number INTEGER PRIMARY KEY,
    saga   INTEGER NOT NULL REFERENCES saga (number) ON DELETE CASCADE,
    id     TEXT NOT NULL,
    author TEXT NOT NULL,
    ask    TEXT,
    UNIQUE (saga, id)
) STRICT;
CREATE INDEX signal_waiting ON signal (saga) WHERE ask IS NOT NULL;
CREATE TABLE semantic_lock (
    key  TEXT PRIMARY KEY,
    saga INTEGER NOT NULL REFERENCES saga (number) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX semantic_lock_saga ON semantic_lock (saga);
CREATE TABLE saga_audit (
    number INTEGER PRIMARY KEY,
    author TEXT NOT NULL,
    day    INTEGER NOT NULL,
    before INTEGER NOT NULL,
    sagas  INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    UNIQUE (author, day)
) STRICT;
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('format', '1');
";

/// Where a store is and how it is used; see [`Sqlite::at`].
#[derive(Debug, Clone)]
#[must_use = "nothing is opened before `open`"]
pub struct Settings {
    path: PathBuf,
    pub(super) use_as: Use,
    existing: bool,
    busy_timeout: Duration,
    max_pages: Option<u32>,
}

/// Who may have the store open at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// No other orchestrator.
    Exclusive,
    /// Other orchestrators on this machine that share it too.
    Shared,
    /// Anybody: it only looks, asks and forgets.
    Tool,
}

/// What was opened.
pub(super) struct Opened {
    pub(super) writer: Connection,
    pub(super) reader: Connection,
    /// Holds the lock on the file beside the database as long as it lives.
    pub(super) guard: Option<Connection>,
    pub(super) authority: Guard,
}

impl Settings {
    pub(super) fn at(path: PathBuf) -> Self {
        Settings {
            path,
            use_as: Use::Exclusive,
            existing: false,
            busy_timeout: Duration::from_secs(5),
            max_pages: None,
        }
    }

    /// Lets several processes of this machine work on the store, each of whose sagas are safe from the others as long as its
    /// lease lasts. All of them have to say so.
    ///
    /// Without it there is one orchestrator process, and the next one takes over at once what it left.
    pub fn shared(mut self) -> Self {
        self.use_as = Use::Shared;
        self
    }

    /// Makes no store where there is none.
    pub fn existing(mut self) -> Self {
        self.existing = true;
        self
    }

    /// For looking at a store, leaving requests and forgetting, beside the orchestrator that may run: nothing is appended or
    /// claimed, and no lock is held. Implies [`existing`](Settings::existing).
    pub fn tool(mut self) -> Self {
        self.use_as = Use::Tool;
        self.existing()
    }

    /// How long an operation waits for a lock that another process holds before it gives up with
    /// [`Unavailable`](StoreError::Unavailable). 5 s if nothing is said.
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// The most pages of 4 KiB that the database may have; beyond that the store is [`Full`](StoreError::Full). SQLite's own limit, about
    /// 16 TiB, if nothing is said.
    pub fn max_pages(mut self, pages: u32) -> Self {
        self.max_pages = Some(pages);
        self
    }

    /// Opens the store, or makes an empty one where there is none. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// * [`InUse`](StoreError::InUse): another orchestrator has it, or shares it while this one wants it for itself, or the other
    ///   way round.
    /// * [`Absent`](StoreError::Absent): there is none and none is to be made, or not even the folder.
    /// * [`Format`](StoreError::Format): it is no store of sagas, or one of a later version; or SQLite itself is older than 3.51.3.
    /// * [`Unavailable`](StoreError::Unavailable): it may not be written, or another process blocks it.
    /// * [`Full`](StoreError::Full), [`Io`](StoreError::Io): the device.
    pub fn open(mut self) -> Result<Sqlite, StoreError> {
        if rusqlite::version_number() < OLDEST {
            let found = format!("SQLite {}", rusqlite::version());
            return Err(StoreError::Format { found, known: "SQLite 3.51.3 or later".into() });
        }
        let place = || self.path.display().to_string();
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if folder.is_some_and(|folder| !folder.is_dir()) || (self.existing && !self.path.is_file()) {
            return Err(StoreError::Absent(place()));
        }
        // One database has one owner, by whatever name it is opened.
        self.path = resolved(self.path);
        let place = || self.path.display().to_string();
        let guard = self.lock()?;
        let writer = self.connect()?;
        prepare(&writer, self.existing, self.busy_timeout).map_err(|error| error.into_store(&place()))?;
        let told = |error| failure(&error, &place());
        if let Some(pages) = self.max_pages {
            writer.pragma_update(None, "max_page_count", pages).map_err(told)?;
        }
        if self.use_as == Use::Exclusive {
            // Whoever has worked on it before is dead, or this process would not have got the lock.
            writer.execute("DELETE FROM orchestrator", []).map_err(told)?;
        }
        let reader = self.connect()?;
        reader.pragma_update(None, "query_only", true).map_err(told)?;
        let authority = Guard::install(&writer).map_err(told)?;
        Ok(Sqlite::over(Opened { writer, reader, guard, authority }, self.use_as))
    }

    fn connect(&self) -> Result<Connection, StoreError> {
        let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        flags.set(OpenFlags::SQLITE_OPEN_CREATE, !self.existing);
        let open = || {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(self.busy_timeout)?;
            connection.set_prepared_statement_cache_capacity(64);
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            connection.pragma_update(None, "trusted_schema", false)?;
            connection.pragma_update(None, "cache_size", -32_768)?;
            connection.pragma_update(None, "wal_autocheckpoint", LOG)?;
            Ok(connection)
        };
        open().map_err(|error: rusqlite::Error| failure(&error, &self.path.display().to_string()))
    }

    /// Takes the lock on the file beside the database: alone, or with others who share.
    ///
    /// It is SQLite's own lock on an empty database, which exists wherever SQLite does and dies with the process.
    fn lock(&self) -> Result<Option<Connection>, StoreError> {
        let take = match self.use_as {
            Use::Exclusive => "BEGIN EXCLUSIVE",
            Use::Shared => "BEGIN; SELECT count(*) FROM sqlite_schema",
            Use::Tool => return Ok(None),
        };
        let path = beside(&self.path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let lock = || {
            let guard = Connection::open_with_flags(&path, flags)?;
            guard.busy_timeout(Duration::ZERO)?;
            guard.execute_batch(take)?;
            Ok(guard)
        };
        lock().map(Some).map_err(|error: rusqlite::Error| {
            if is_locked(&error) {
                StoreError::InUse(self.path.display().to_string())
            } else {
                failure(&error, &path.display().to_string())
            }
        })
    }
}

/// The path without links, also of a file that is still to be made.
fn resolved(mut path: PathBuf) -> PathBuf {
    // As many links as an operating system follows.
    for _ in 0..40 {
        if let Ok(real) = path.canonicalize() {
            return real;
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match path.read_link() {
            Ok(target) => path = folder.join(target),
            Err(_) => {
                let (Ok(folder), Some(name)) = (folder.canonicalize(), path.file_name()) else { break };
                return folder.join(name);
            }
        }
    }
    path
}

/// `sagas.db` has `sagas.db-owner` beside it.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(OsString::from("-owner"));
    name.into()
}

/// Why a file cannot be used.
enum Unusable {
    Sql(rusqlite::Error),
    Format(String),
    Empty,
}

impl From<rusqlite::Error> for Unusable {
    fn from(error: rusqlite::Error) -> Self {
        Unusable::Sql(error)
    }
}

impl Unusable {
    fn into_store(self, place: &str) -> StoreError {
        match self {
            Unusable::Sql(error) => failure(&error, place),
            Unusable::Format(found) => StoreError::Format { found, known: format!("{FORMAT}") },
            Unusable::Empty => StoreError::Absent(format!("{place} is empty")),
        }
    }
}

/// Checks the format before anything is changed, and makes the tables where there is nothing.
fn prepare(connection: &Connection, existing: bool, patience: Duration) -> Result<(), Unusable> {
    // Of one state: another process may be making the tables.
    let look = rusqlite::Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    let new = is_new(&look)?;
    drop(look);
    if new {
        if existing {
            return Err(Unusable::Empty);
        }
        wal(connection, patience)?;
        let mut changed = rusqlite::Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        // Another process may have been faster.
        if is_new(&changed)? {
            changed.execute_batch(SCHEMA)?;
            changed.pragma_update(None, "application_id", APPLICATION)?;
            changed.pragma_update(None, "user_version", FORMAT)?;
        }
        changed.set_drop_behavior(rusqlite::DropBehavior::Rollback);
        changed.commit()?;
    } else {
        wal(connection, patience)?;
    }
    Ok(())
}

/// Whether another connection has what is needed.
fn is_locked(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Whether there is nothing yet.
fn is_new(connection: &Connection) -> Result<bool, Unusable> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (application, format) = (number("application_id")?, number("user_version")?);
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (application, format, tables) {
        (0, 0, 0) => Ok(true),
        (APPLICATION, FORMAT, _) => Ok(false),
        (APPLICATION, other, _) => Err(Unusable::Format(other.to_string())),
        _ => Err(Unusable::Format("of another application".into())),
    }
}

/// Where several open a new file at once, SQLite refuses all but one without asking their busy handlers, since of two that wait for each
/// other one has to give way. So it is asked again, each millisecond, for as long as said.
fn wal(connection: &Connection, patience: Duration) -> Result<(), Unusable> {
    let mut left = patience.as_millis();
    let mode: String = loop {
        match connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0)) {
            Err(error) if left > 0 && is_locked(&error) => {
                std::thread::sleep(Duration::from_millis(1));
                left -= 1;
            }
            done => break done?,
        }
    };
    if mode != "wal" {
        return Err(Unusable::Format(format!("in journal mode {mode}, which cannot be changed to WAL")));
    }
    Ok(())
}

/// What an error of SQLite means to whoever uses the store.
pub(super) fn failure(error: &rusqlite::Error, place: &str) -> StoreError {
    let what = format!("{place}: {error}");
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed) => {
            StoreError::Unavailable(format!("{place} is locked by another process"))
        }
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            StoreError::Unavailable(what)
        }
        Some(ErrorCode::DiskFull) => StoreError::Full(what),
        Some(ErrorCode::NotADatabase) => {
            StoreError::Format { found: format!("{place} is no SQLite database"), known: format!("{FORMAT}") }
        }
        _ => StoreError::Io(what),
    }
}

/// Whether what is on the disk is unknown after this error of a write. It is known after one that has met damage: the transaction is
/// rolled back, and sagas on other pages go on.
pub(super) fn poisons(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::SystemIoFailure | ErrorCode::NotADatabase))
}
