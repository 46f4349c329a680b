//! The tables, and the statements over them.

use std::fmt::Write as _;

use tokio_postgres::Client;

use super::link::Trouble;
use crate::saga::journal::StoreError;

/// The format that this version writes and reads; see `docs/saga-format.md`.
pub(super) const FORMAT: &str = "1";

/// The names of the tables in one schema.
#[derive(Debug, Clone)]
pub(super) struct Schema {
    name: String,
    quoted: String,
}

impl Schema {
    /// Checks the name of a schema; any name is quoted, so that it means what it says.
    pub(super) fn new(name: &str) -> Result<Self, StoreError> {
        if name.is_empty() || name.len() > 63 || name.chars().any(char::is_control) {
            let why = format!("a schema cannot be called {name:?}: 1 to 63 bytes without control characters");
            return Err(StoreError::Absent(why));
        }
        Ok(Schema { name: name.to_owned(), quoted: format!("\"{}\"", name.replace('"', "\"\"")) })
    }

    /// A statement's text, with the schema in place of every `@` and the present, in milliseconds, in place of every `~`.
    pub(super) fn sql(&self, text: &str) -> String {
        // The name comes last, since it may have such characters itself.
        text.replace('~', "(extract(epoch FROM clock_timestamp()) * 1000)::bigint").replace('@', &self.quoted)
    }

    /// Makes what is not there yet, unless it has to be there, and checks the format of what is.
    pub(super) async fn prepare(&self, client: &Client, existing: bool) -> Result<(), Trouble> {
        let there = "SELECT to_regclass($1) IS NOT NULL";
        let meta = format!("{}.meta", self.quoted);
        if !client.query_one(there, &[&meta]).await?.get::<_, bool>(0) {
            if existing {
                let none = format!("no tables of sagas in the schema {:?}", self.name);
                return Err(Trouble::Final(StoreError::Absent(none)));
            }
            self.create(client).await?;
        }
        let format = self.sql("SELECT value FROM @.meta WHERE name = 'format'");
        let found: String = match client.query_opt(&format, &[]).await? {
            Some(row) => row.try_get(0)?,
            None => "none".to_owned(),
        };
        if found != FORMAT {
            return Err(Trouble::Final(StoreError::Format { found, known: FORMAT.to_owned() }));
        }
        Ok(())
    }

    async fn create(&self, client: &Client) -> Result<(), Trouble> {
        // The lock's key is any number that nobody else is likely to use, and one for each name of a schema.
        let key = i64::from(crc32fast::hash(self.name.as_bytes())) | 0x6d61_696e << 32;
        let mut script = format!("BEGIN; SELECT pg_advisory_xact_lock({key});");
        let schema = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
        if client.query_opt(schema, &[&self.name]).await?.is_none() {
            // Two that come here at once are put in order by the lock; the second finds the schema.
            script.push_str(&self.sql("CREATE SCHEMA IF NOT EXISTS @;"));
        }
        script.push_str(&self.sql(TABLES));
        let _ = write!(script, "INSERT INTO {}.meta VALUES ('format', '{FORMAT}')", self.quoted);
        script.push_str(" ON CONFLICT DO NOTHING; COMMIT");
        client.batch_execute(&script).await?;
        Ok(())
    }
}

/// The tables of `docs/saga-format.md`, and `writer`, which only this store has. Text is compared byte by byte, as Rust does it. A
/// `saga` row is updated in place by most appends: its pages keep room for that, and no index holds what changes then. Rows refer
/// to each other without foreign keys, which would be checked row by row.
const TABLES: &str = r#"
CREATE TABLE IF NOT EXISTS @.meta (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE IF NOT EXISTS @.saga (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    definition text NOT NULL,
    version bigint NOT NULL,
    digest text NOT NULL,
    phase text NOT NULL,
    note text NOT NULL,
    epoch bigint NOT NULL,
    owner text COLLATE "C",
    len bigint NOT NULL,
    crc bigint NOT NULL,
    wake bigint,
    created bigint NOT NULL,
    finished bigint,
    recoveries bigint NOT NULL,
    tag text NOT NULL
) WITH (fillfactor = 60);
CREATE INDEX IF NOT EXISTS saga_due ON @.saga (wake, id) WHERE owner IS NULL AND finished IS NULL;
CREATE INDEX IF NOT EXISTS saga_owned ON @.saga (owner, wake) WHERE owner IS NOT NULL AND finished IS NULL;
CREATE INDEX IF NOT EXISTS saga_open ON @.saga (id) WHERE finished IS NULL;
CREATE INDEX IF NOT EXISTS saga_over ON @.saga (finished, id) WHERE finished IS NOT NULL;
CREATE INDEX IF NOT EXISTS saga_attention ON @.saga (id)
    WHERE phase NOT IN ('running', 'waiting', 'unwinding', 'completed', 'compensated', 'abandoned');
CREATE INDEX IF NOT EXISTS saga_tagged ON @.saga (tag, id) WHERE tag <> '';
CREATE TABLE IF NOT EXISTS @.saga_event (
    saga bigint NOT NULL,
    seq bigint NOT NULL,
    epoch bigint NOT NULL,
    at bigint NOT NULL,
    author text NOT NULL,
    kind text NOT NULL,
    step text,
    data text NOT NULL,
    crc bigint NOT NULL,
    PRIMARY KEY (saga, seq)
);
CREATE TABLE IF NOT EXISTS @.orchestrator (
    incarnation text COLLATE "C" PRIMARY KEY,
    until bigint NOT NULL,
    says text
);
CREATE TABLE IF NOT EXISTS @.signal (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    saga bigint NOT NULL,
    id text COLLATE "C" NOT NULL,
    author text NOT NULL,
    ask text,
    UNIQUE (saga, id)
);
CREATE INDEX IF NOT EXISTS signal_waiting ON @.signal (saga) WHERE ask IS NOT NULL;
CREATE TABLE IF NOT EXISTS @.semantic_lock (
    key text COLLATE "C" PRIMARY KEY,
    saga bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS semantic_lock_saga ON @.semantic_lock (saga);
CREATE TABLE IF NOT EXISTS @.saga_audit (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    author text NOT NULL,
    day bigint NOT NULL,
    before bigint NOT NULL,
    sagas bigint NOT NULL,
    at bigint NOT NULL,
    UNIQUE (author, day)
);
CREATE TABLE IF NOT EXISTS @.writer (
    id text COLLATE "C" PRIMARY KEY,
    session text NOT NULL,
    since bigint NOT NULL
);
"#;

/// Every statement that is prepared on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Sql {
    Now,
    Append,
    Plain,
    Refused,
    Written,
    Heartbeat,
    Leave,
    Announce,
    Orchestrators,
    Claim,
    Claimed,
    Stored,
    Head,
    ListOpen,
    ListAll,
    ListAttention,
    ListTagged,
    Request,
    Requests,
    Forget,
    Forgotten,
}

impl Sql {
    pub(super) const ALL: [Sql; 21] = [
        Sql::Now,
        Sql::Append,
        Sql::Plain,
        Sql::Refused,
        Sql::Written,
        Sql::Heartbeat,
        Sql::Leave,
        Sql::Announce,
        Sql::Orchestrators,
        Sql::Claim,
        Sql::Claimed,
        Sql::Stored,
        Sql::Head,
        Sql::ListOpen,
        Sql::ListAll,
        Sql::ListAttention,
        Sql::ListTagged,
        Sql::Request,
        Sql::Requests,
        Sql::Forget,
        Sql::Forgotten,
    ];

    /// Its text, for [`Schema::sql`].
    pub(super) fn text(self) -> &'static str {
        match self {
            Sql::Now => "SELECT ~",
            Sql::Append => super::append::APPEND,
            Sql::Plain => super::plain::PLAIN,
            Sql::Refused => super::append::REFUSED,
            Sql::Written => super::append::WRITTEN,
            Sql::Heartbeat => super::claim::HEARTBEAT,
            Sql::Leave => super::claim::LEAVE,
            Sql::Announce => super::claim::ANNOUNCE,
            Sql::Orchestrators => super::read::ORCHESTRATORS,
            Sql::Claim => super::claim::CLAIM,
            Sql::Claimed => super::claim::CLAIMED,
            Sql::Stored => super::read::STORED,
            Sql::Head => super::read::HEAD,
            Sql::ListOpen => super::read::LIST_OPEN,
            Sql::ListAll => super::read::LIST_ALL,
            Sql::ListAttention => super::read::LIST_ATTENTION,
            Sql::ListTagged => super::read::LIST_TAGGED,
            Sql::Request => super::request::REQUEST,
            Sql::Requests => super::request::REQUESTS,
            Sql::Forget => super::claim::FORGET,
            Sql::Forgotten => super::read::FORGOTTEN,
        }
    }
}

/// Makes a connection the one that writes for its journal. It waits for a statement of the connection before it that is still at
/// work; a statement that has not begun by then finds its session gone.
pub(super) const REGISTER: &str = "INSERT INTO @.writer (id, session, since) VALUES ($1, $2, ~)
ON CONFLICT (id) DO UPDATE SET session = excluded.session, since = excluded.since";

/// What a new connection is set to, where the database knows the setting: an acknowledgement means that it is on the disk
/// whatever the role's default is, one snapshot for each statement, an end for what its client has left, which is after `$1`
/// milliseconds, and one plan for each statement that fits also when the tables' statistics say that they are empty. For the
/// connection that writes, where `$2` is `off`, that is: rows by an index from a list, then joined to the items by hash.
pub(super) const SETTINGS: &str = "
SELECT set_config(wanted.name, wanted.value, false) FROM (VALUES
    ('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
        ELSE current_setting('synchronous_commit') END),
    ('default_transaction_isolation', 'read committed'),
    ('default_transaction_read_only', 'off'),
    ('default_transaction_deferrable', 'off'),
    ('plan_cache_mode', 'force_generic_plan'),
    ('enable_seqscan', 'off'),
    ('enable_nestloop', $2),
    ('jit', 'off'),
    ('statement_timeout', $1),
    ('idle_in_transaction_session_timeout', $1)
) AS wanted (name, value) JOIN pg_settings ON pg_settings.name = wanted.name";
