//! The journal in PostgreSQL: shared by any number of orchestrators on any number of machines.
//!
//! # Example
//!
//! ```no_run
//! use std::time::Duration;
//! use mainstay::saga::{journal::{Journal, Query}, postgres::Postgres};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), mainstay::saga::journal::StoreError> {
//! let journal = Postgres::connect("postgres://orders@db.internal/orders")
//!     .schema("order_sagas")
//!     .patience(Duration::from_secs(5))
//!     .await?;
//! for head in journal.list(Query::default()).await? {
//!     println!("{} is {}", head.id, head.phase);
//! }
//! # Ok(()) }
//! ```
//!
//! # Semantics
//!
//! The tables are those of `docs/saga-format.md`, in a schema of their own, which is made with them when it is not there,
//! unless it [has to be](Connect::existing). Who may not make it can have it made by somebody else: then nothing but `SELECT`, `INSERT`,
//! `UPDATE` and `DELETE` on its tables is needed.
//!
//! | | how |
//! |---|---|
//! | an append | one statement, one commit and one round trip for the whole batch. It takes two when two items begin with the same lock, or when there is more than 16 MiB |
//! | the check | in that statement: a row is changed where owner, epoch and length are those of the item, and what is refused leaves the rest as it is. Why something was refused is asked in a second round trip |
//! | durable | a commit is answered when its log is flushed. Where `synchronous_commit` is `off` it is turned on for the journal's connections; any other setting is left as it is. A server with `fsync = off` promises nothing |
//! | leases | end by the server's clock, whatever the clocks of the orchestrators say |
//! | claims | step over rows that another claim has in hand. They wait for nobody, and never take a saga twice |
//! | work of a step | in a transaction with a connection of its own, which locks the saga's row before and writes the entry behind it; other appends go on beside it. See [`in_transaction`] |
//! | an answer that was lost | found out before the call returns: the next connection first makes sure that nothing that was sent before it can still take effect, then looks which items are written, then sends the others |
//!
//! Connections: one that writes, on which appends follow each other without waiting for the answer of the one before; one that reads, so
//! that reading does not wait for a writer that hangs; one for claims and for forgetting; one for the lease and the clock, which a row
//! that somebody else has locked must not hold up. Each is made when it is first needed and made
//! anew when it has broken. Steps that have [work](in_transaction) for a transaction have up to [`TRANSACTIONS`] more.
//!
//! What holds for servers that only speak Postgres's protocol: needed are statements with several changes
//! (`WITH .. INSERT .. UPDATE ..`), `FOR UPDATE SKIP LOCKED` and identity columns; nothing is written in PL/pgSQL. The suite has run
//! against PostgreSQL 15. A pooler between has to keep a session on its server connection ("session pooling").
//!
//! Texts cannot have the character NUL there. Ids have none and JSON writes it otherwise; in notes, tags, names of locks and the like it is
//! stored as `␀`.
//!
//! # Sharing
//!
//! Clones share the connections. Any number of journals, in any number of processes, may use one schema.
//!
//! # Cancel safety
//!
//! A future that is dropped leaves nothing half done: what it asked for is done or not. A claim that is dropped while its commit is on
//! the way may own sagas that nobody knows of until the owner's lease ends, or until the owner claims them by name.
//!
//! # Errors
//!
//! | | when |
//! |---|---|
//! | [`Unavailable`](StoreError::Unavailable) | the server did not answer, or answered that it cannot now, for as long as the [patience](Connect::patience) lasts; with the last reason |
//! | [`Absent`](StoreError::Absent) | there is no such database, user, or schema any more, no tables where they [have to be](Connect::existing), the password is wrong, or the two sides do not agree on encryption: a certificate that does not verify, a server without TLS |
//! | [`Format`](StoreError::Format) | the tables are of a later version |
//! | [`Full`](StoreError::Full) | the server's disk is full |
//! | [`Io`](StoreError::Io) | the server refuses for any other reason |
//!
//! Broken connections, deadlocks and the like are no errors but reasons to try again. [`Poisoned`](StoreError::Poisoned) never comes: a
//! server that cannot flush its log stops by itself, and recovers from the log.
//!
//! # Panics
//!
//! When used outside of a tokio runtime with I/O and time enabled.
//!
//! # Damage
//!
//! A row that makes no sense, or that the server cannot read, is its own saga's misfortune. With damaged entries a saga is claimed and loaded, and
//! does not [verify](Stored::verify). A saga whose own row is damaged is claimed by nobody and stays as it is; it is listed with what is
//! wrong as its note, as [stuck](super::journal::Phase::Stuck) when its phase is none, and under the nearest possible id when its id is
//! none.
//!
//! Where the server cannot read a page of these rows, the sagas on it stay as they are, and a listing that comes to it fails with what the
//! server says. Claims go around up to 64 such pages, for a minute before they try them again, and read the whole table meanwhile; PostgreSQL can do
//! that from version 14 on. Appends to the other sagas go on as ever.
//!
//! Where it cannot read a page of the table `signal`, nothing that is asked of any saga is handed over as long as that lasts. Sagas that are
//! due or orphaned are taken up without, found as above, and go on as if nothing were asked; those that are not due wait for their time. What
//! is asked of them stays, and is looked at when it can be read. Only those whose own requests lie on that page may fail to be asked or to end.
//!
//! # Cost
//!
//! Four connections, and those of transactions with work. An append of one entry costs a round trip and a flush of the server's log; the
//! entries of a batch share both. What that comes to beside the server's own insert is measured by the test `measure` of `tests/saga_journal_postgres`, and for whole sagas
//! by the benchmark `saga`.

mod append;
mod claim;
mod link;
mod plain;
mod read;
mod request;
mod rounds;
mod schema;
mod work;

use std::{
    any::TypeId,
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

/// The client, version 0.7, whose transactions the work of steps is given.
pub use tokio_postgres;
use tokio_postgres::{
    Config, NoTls, Socket,
    tls::{MakeTlsConnect, TlsConnect},
};

pub use work::{InTransaction, TRANSACTIONS, Working, in_transaction};

use self::{
    claim::Unreadable,
    link::{Dial, Link, Place, describe},
    schema::{Schema, Sql},
    work::Lanes,
};
use super::{
    Incarnation, SagaId, Timestamp,
    journal::{
        Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
        Requested, StoreError, Stored,
    },
};
use crate::{chance::Chance, sync::Mutex};

/// The schema that is used unless another one is named.
pub const DEFAULT_SCHEMA: &str = "mainstay_saga";

/// How long a call goes on trying unless that is set.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);

/// A journal in a PostgreSQL database; see the [module](self).
#[derive(Clone)]
pub struct Postgres {
    links: Arc<Links>,
}

struct Links {
    place: Arc<Place>,
    writer: Link,
    reader: Link,
    claimer: Link,
    /// For what has to be in time, whatever the others wait for.
    lease: Link,
    unreadable: Mutex<Option<Unreadable>>,
    lanes: Lanes,
}

/// How to connect; awaiting it does.
#[must_use = "it connects when it is awaited"]
pub struct Connect {
    config: Result<Config, StoreError>,
    dial: Box<dyn Dial>,
    schema: String,
    existing: bool,
    patience: Duration,
}

impl Postgres {
    /// A journal in the database at this address: `postgres://user:password@host:port/database?option=value`, or
    /// `key=value` pairs, both as libpq has them. Without encryption; see [`connect_with`](Postgres::connect_with).
    ///
    /// # Errors
    ///
    /// When the builder is awaited: [`Absent`](StoreError::Absent) when the address makes no sense, names no database, the
    /// user is refused, encryption is not agreed upon, or there are no tables where they [have to be](Connect::existing);
    /// [`Format`](StoreError::Format) when the tables are of a later version;
    /// [`Unavailable`](StoreError::Unavailable) when the database could not be reached within the
    /// [patience](Connect::patience).
    pub fn connect(url: &str) -> Connect {
        let config = url.parse().map_err(|error| StoreError::Absent(describe(&error)));
        Connect::new(config, Box::new(NoTls))
    }

    /// The same with a caller's settings and a caller's TLS connector, as the crates `tokio-postgres-rustls`,
    /// `postgres-native-tls` and `postgres-openssl` provide it.
    pub fn connect_with<T>(config: Config, tls: T) -> Connect
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send,
        T::Stream: Send + 'static,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Connect::new(Ok(config), Box::new(tls))
    }
}

impl Connect {
    fn new(config: Result<Config, StoreError>, dial: Box<dyn Dial>) -> Self {
        let schema = DEFAULT_SCHEMA.to_owned();
        Connect { config, dial, schema, existing: false, patience: DEFAULT_PATIENCE }
    }

    /// The schema that the tables are in, made when it is not there unless it has to [exist](Connect::existing); [`DEFAULT_SCHEMA`] unless
    /// set.
    pub fn schema(mut self, name: &str) -> Self {
        name.clone_into(&mut self.schema);
        self
    }

    /// Makes no tables and no schema where there are none: that is [`Absent`](StoreError::Absent), with the schema's name. For whoever
    /// looks at a store, and would see an empty one where a name is mistaken.
    pub fn existing(mut self) -> Self {
        self.existing = true;
        self
    }

    /// How long a call goes on trying while the database does not answer, before it fails with
    /// [`Unavailable`](StoreError::Unavailable); [`DEFAULT_PATIENCE`] unless set, at least 10 ms. A connection that says nothing
    /// for half of it is given up, and another one made: also the one that prolongs an orchestrator's lease, which should therefore be no
    /// shorter than this.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience.max(Duration::from_millis(10));
        self
    }

    async fn open(self) -> Result<Postgres, StoreError> {
        let mut config = self.config?;
        if config.get_application_name().is_none() {
            config.application_name("mainstay");
        }
        let chance = Chance::new(None);
        let writer = Place::nonce(&chance);
        let schema = Schema::new(&self.schema)?;
        let place =
            Arc::new(Place { dial: self.dial, config, schema, patience: self.patience, chance, writer });
        let links = Links {
            writer: Link::new(&place, true),
            reader: Link::new(&place, false),
            claimer: Link::new(&place, false),
            lease: Link::new(&place, false),
            unreadable: Mutex::new(None),
            lanes: Lanes::new(&place),
            place,
        };
        links.writer.prepare(self.existing).await?;
        Ok(Postgres { links: Arc::new(links) })
    }
}

impl IntoFuture for Connect {
    type Output = Result<Postgres, StoreError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the address, which may have a password in it.
        f.debug_struct("Connect")
            .field("schema", &self.schema)
            .field("existing", &self.existing)
            .field("patience", &self.patience)
            .finish()
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = &self.links.place;
        f.debug_struct("Postgres").field("schema", &place.schema).field("patience", &place.patience).finish()
    }
}

impl Journal for Postgres {
    fn now(&self) -> Pending<'_, Timestamp> {
        Box::pin(self.links.lease.persist(|session| async move {
            let row = session.client.query_one(session.statement(Sql::Now), &[]).await?;
            Ok(Timestamp(u64::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0)))
        }))
    }

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(batch.len());
            // Each item with work comes when those before it are answered.
            for items in batch.chunk_by(|one, next| one.work.is_none() && next.work.is_none()) {
                match items {
                    [item @ Append { work: Some(work), .. }] => {
                        answers.push(self.links.lanes.append(item, work).await?);
                    }
                    _ => {
                        let Links { place, writer, .. } = &*self.links;
                        answers.extend(append::append(writer, &place.writer, items).await?);
                    }
                }
            }
            Ok(answers)
        })
    }

    fn does(&self, job: TypeId) -> bool {
        Lanes::does(job)
    }

    fn blocks(&self) -> bool {
        false
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        let (by, lease) =
            (by.clone(), i64::try_from(lease.as_millis()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4));
        Box::pin(async move {
            let (by, lease) = (by.as_str(), &lease);
            let heartbeat = |session: Arc<link::Session>| async move {
                session.client.execute(session.statement(Sql::Heartbeat), &[&by, lease]).await?;
                Ok(())
            };
            self.links.lease.persist(heartbeat).await
        })
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(async move {
            let by = by.as_str();
            let leave = |session: Arc<link::Session>| async move {
                session.client.execute(session.statement(Sql::Leave), &[&by]).await?;
                Ok(())
            };
            self.links.lease.persist(leave).await
        })
    }

    fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()> {
        let (by, says) = (by.clone(), rounds::clean(&presence.to_text()).into_owned());
        Box::pin(async move {
            let (by, says) = (by.as_str(), &says);
            let announce = |session: Arc<link::Session>| async move {
                session.client.execute(session.statement(Sql::Announce), &[&by, says]).await?;
                Ok(())
            };
            self.links.lease.persist(announce).await
        })
    }

    fn orchestrators(&self) -> Pending<'_, Vec<Registered>> {
        Box::pin(self.links.reader.persist(read::orchestrators))
    }

    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        let Links { claimer, place, unreadable, .. } = &*self.links;
        Box::pin(async move { claim::claim(claimer, place, unreadable, &claim).await })
    }

    fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>> {
        let saga = saga.clone();
        Box::pin(async move {
            let saga = saga.as_str();
            self.links.reader.persist(|session| read::load(session, saga)).await
        })
    }

    fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
        Box::pin(async move { self.links.reader.persist(|session| read::list(session, &query)).await })
    }

    fn request(&self, request: Request) -> Pending<'_, Requested> {
        Box::pin(async move {
            let again = AtomicBool::new(false);
            let leave = |session| request::request(session, &request, again.swap(true, Relaxed));
            self.links.writer.persist(leave).await
        })
    }

    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
        let by = by.clone();
        Box::pin(async move { self.links.reader.persist(|session| request::requests(session, &by)).await })
    }

    fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize> {
        let by = rounds::clean(by).into_owned();
        Box::pin(async move {
            self.links.claimer.persist(|session| claim::forget(session, &by, before, limit)).await
        })
    }

    fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>> {
        Box::pin(self.links.reader.persist(move |session| read::forgotten(session, limit)))
    }
}
