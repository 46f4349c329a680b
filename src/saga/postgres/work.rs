//! The work of transactional steps: each in a transaction of its own, beside the appends.

use std::{any::TypeId, future::Future, pin::Pin, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::Semaphore, time::timeout};
use tokio_postgres::{Row, SimpleQueryMessage, Statement, Transaction, types::ToSql};

use super::{
    link::{Driver, Place, Trouble, describe, persevere},
    rounds::{clean, signed},
};
use crate::{
    saga::{
        Entry, Failure, Payload, Transact,
        attempt::Caught,
        journal::{Append, Job, Refusal, StoreError, Work},
    },
    sync::{Mutex, lock},
};

/// The future of some work.
pub type Working<'a, O> = Pin<Box<dyn Future<Output = Result<O, Failure>> + Send + 'a>>;

/// What this journal does in its transactions; see [`in_transaction`].
pub struct InTransaction(Box<Act>);

type Act = dyn for<'a> FnOnce(&'a Transaction<'a>) -> Working<'a, Payload> + Send;

impl std::fmt::Debug for InTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InTransaction")
    }
}

impl Job for InTransaction {
    const STORE: &'static str = "PostgreSQL";
}

/// The answer of an action whose effect is to be made in the database of the journal, in the transaction that records the step: either both
/// are there afterwards or neither, whatever crashes.
///
/// ```
/// use mainstay::saga::{Failure, Saga, postgres};
///
/// let mut order = Saga::define::<i32>("order", 1);
/// let left = order
///     .step("reserve-stock", (), |step, ()| async move {
///         Ok(postgres::in_transaction(move |tx| {
///             Box::pin(async move {
///                 let take = "UPDATE stock SET left = left - $1 WHERE left >= $1 RETURNING left";
///                 match tx.query_opt(take, &[step.input()]).await? {
///                     Some(row) => Ok(row.try_get::<_, i32>(0)?),
///                     None => Err(Failure::rejected("sold out")),
///                 }
///             })
///         }))
///     })
///     .compensate_in_transaction(|step, (), _left| async move {
///         Ok(postgres::in_transaction(move |tx| {
///             Box::pin(async move {
///                 tx.execute("UPDATE stock SET left = left + $1", &[step.input()]).await?;
///                 Ok(())
///             })
///         }))
///     });
/// let order = order.build(left)?;
/// # Ok::<(), mainstay::saga::DefinitionError>(())
/// ```
///
/// The transaction has a connection of its own, of which there are at most [`TRANSACTIONS`] for a journal, at `read committed`. It begins with a lock on
/// the saga's row, so that nobody takes the saga meanwhile. It may take as long as the journal's [patience](super::Connect::patience); then
/// its connection is cut, and the server, whose statement and idle timeouts are as long, rolls it back. When the work fails or panics it is rolled back, too. Settings
/// are to be changed with `SET LOCAL`, since the connection is used again.
///
/// Work that ends the transaction by SQL of its own, whatever it says afterwards, leaves its saga parked at the step, for a person to look at: what
/// it did is not known. So does work that leaves nothing of the savepoint `mainstay_work`, with which the transaction begins.
pub fn in_transaction<O, F>(work: F) -> Transact<O, InTransaction>
where
    O: Serialize + DeserializeOwned + Send + 'static,
    F: for<'a> FnOnce(&'a Transaction<'a>) -> Working<'a, O> + Send + 'static,
{
    Transact::new(InTransaction(Box::new(|tx| {
        let work = work(tx);
        Box::pin(async move { Payload::encode(&work.await?).map_err(Failure::from) })
    })))
}

/// The most transactions with work that a journal has at once; each has a connection, made when it is needed.
pub const TRANSACTIONS: usize = 4;

/// Locks a saga's row, so that it stays whose it is, and says where it stands and in which transaction this is. Requests may be left
/// at it meanwhile, which takes the same lock.
const FENCE: &str = "SELECT number, epoch, owner, len, txid_current() FROM @.saga WHERE id = $1 FOR SHARE";

/// Appends the entry that the work has made, if the transaction is still the one that has locked the row.
const RECORD: &str = "
WITH moved AS (
    UPDATE @.saga SET len = len + 1, crc = $4, phase = $5, note = $6, recoveries = 0, wake = NULL,
        owner = CASE WHEN NOT $7::bool THEN owner END, finished = CASE WHEN $7::bool THEN $8::bigint END
    WHERE number = $1 AND owner = $10 AND epoch = $9 AND len = $3 AND txid_current() = $2 RETURNING number
), freed AS (
    DELETE FROM @.semantic_lock WHERE $7::bool AND saga IN (SELECT number FROM moved)
), dropped AS (
    DELETE FROM @.signal WHERE $7::bool AND saga IN (SELECT number FROM moved) AND ask IS NOT NULL
)
INSERT INTO @.saga_event (saga, seq, epoch, at, author, kind, step, data, crc)
SELECT number, $3, $9, $8, $10, $11, $12, $13, $4 FROM moved";

/// What the work is rolled back to. Whatever ends the transaction ends it, too.
const SAVEPOINT: &str = "SAVEPOINT mainstay_work";

/// Goes back there, and says in which transaction that is.
const ROLLBACK: &str = "ROLLBACK TO SAVEPOINT mainstay_work; SELECT txid_current()";

/// What the server says when that cannot be: there is no such savepoint, or no transaction.
const GONE: [&str; 2] = ["3B001", "25P01"];

/// What has become of a transaction; nothing of one that is too old or that this server has not seen, which was a replica when it was begun.
const BECAME: &str = "SELECT CASE WHEN $1 <= txid_current() THEN txid_status($1) END";

/// Whether an entry is there.
const FOUND: &str = "SELECT EXISTS (SELECT FROM @.saga_event AS entry JOIN @.saga ON entry.saga = saga.number
    WHERE saga.id = $1 AND entry.seq = $2 AND entry.epoch = $3 AND entry.crc = $4 AND entry.author = $5)";

/// What a connection for work is set to; see [`SETTINGS`](super::schema::SETTINGS), of which this is what is not about plans.
const SETTINGS: &str = "
SELECT set_config(wanted.name, wanted.value, false) FROM (VALUES
    ('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
        ELSE current_setting('synchronous_commit') END),
    ('default_transaction_isolation', 'read committed'),
    ('default_transaction_read_only', 'off'),
    ('default_transaction_deferrable', 'off'),
    ('statement_timeout', $1),
    ('idle_in_transaction_session_timeout', $1)
) AS wanted (name, value) JOIN pg_settings ON pg_settings.name = wanted.name";

/// A connection for work. The server rolls back what it has not committed when this is dropped.
struct Lane {
    client: tokio_postgres::Client,
    fence: Statement,
    record: Statement,
    found: Statement,
    _driver: Driver,
}

/// The connections for work.
pub(super) struct Lanes {
    place: Arc<Place>,
    free: Semaphore,
    idle: Mutex<Vec<Lane>>,
}

/// How far a transaction has come.
enum Reached {
    /// Nothing was done.
    NotBegun(String),
    Answered(Result<(), Refusal>),
    /// The work has ended the transaction, and what else it has done to the connection is not known either.
    Ended,
    /// The connection was given up before the work could be seen to be rolled back: what it said is its failure, unless it had ended the
    /// transaction by then.
    Cut(i64, Failure),
    /// The commit has no answer.
    Doubtful(Entry),
}

impl Lanes {
    pub(super) fn new(place: &Arc<Place>) -> Self {
        Lanes { place: place.clone(), free: Semaphore::new(TRANSACTIONS), idle: Mutex::new(Vec::new()) }
    }

    pub(super) fn does(job: TypeId) -> bool {
        job == TypeId::of::<InTransaction>()
    }

    /// Does the work of an append and records what comes of it.
    pub(super) async fn append(&self, item: &Append, work: &Work) -> Result<Result<(), Refusal>, StoreError> {
        let Ok(Ok(_permit)) = timeout(self.place.patience, self.free.acquire()).await else {
            let why = format!("all {TRANSACTIONS} connections for transactions are in use");
            return Ok(Err(work.failed(Failure::unstarted(why))));
        };
        let until = crate::time::later(crate::time::now(), self.place.patience);
        // Any connection that has lain idle may have broken.
        loop {
            let mut lane = self.lane().await?;
            match lane.transact(&self.place, item, work).await {
                Reached::NotBegun(why) if crate::time::now() >= until => {
                    return Err(StoreError::Unavailable(why));
                }
                Reached::NotBegun(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                Reached::Answered(answer) => {
                    if !lane.client.is_closed() {
                        lock(&self.idle).push(lane);
                    }
                    return Ok(answer);
                }
                Reached::Ended => return Ok(Err(Refusal::Ended)),
                Reached::Cut(transaction, failure) => {
                    drop(lane);
                    return Ok(Err(match self.was_committed(transaction).await? {
                        true => Refusal::Ended,
                        false => work.failed(failure),
                    }));
                }
                Reached::Doubtful(entry) => {
                    drop(lane);
                    return self.find_out(item, &entry, work).await;
                }
            }
        }
    }

    /// A connection that lies idle, or a new one.
    async fn lane(&self) -> Result<Lane, StoreError> {
        let idle = lock(&self.idle).pop();
        match idle.filter(|lane| !lane.client.is_closed()) {
            Some(lane) => Ok(lane),
            None => persevere(&self.place, || Lane::open(&self.place)).await,
        }
    }

    /// Whether a transaction was committed in which nothing was recorded.
    async fn was_committed(&self, transaction: i64) -> Result<bool, StoreError> {
        let look = || async {
            let (client, _driver) = self.place.dial().await?;
            let became: Option<String> = client.query_one(BECAME, &[&transaction]).await?.try_get(0)?;
            match became.as_deref() {
                // The server has not noticed yet that the connection is gone, or is still at a statement, which has its limit.
                Some("in progress") => Err(Trouble::Undone("the transaction is not over yet".to_owned())),
                became => Ok(became == Some("committed")),
            }
        };
        persevere(&self.place, look).await
    }

    /// Whether the transaction was committed. It has the row's lock until it is over, so that whoever gets that knows.
    async fn find_out(
        &self,
        item: &Append,
        entry: &Entry,
        work: &Work,
    ) -> Result<Result<(), Refusal>, StoreError> {
        let look = || async {
            let mut lane = Lane::open(&self.place).await?;
            let tx = lane.client.transaction().await?;
            tx.query(&lane.fence, &[&item.saga.as_str()]).await?;
            // A statement of its own, which sees what was committed before the lock was free.
            let (seq, epoch, crc) = (signed(entry.seq), signed(entry.epoch), i64::from(entry.crc));
            let saga = item.saga.as_str();
            let row = tx.query_one(&lane.found, &[&saga, &seq, &epoch, &crc, &entry.by.as_str()]).await?;
            Ok::<bool, Trouble>(row.try_get(0)?)
        };
        Ok(match persevere(&self.place, look).await? {
            true => Ok(()),
            false => {
                Err(work.failed(Failure::unknown("the connection was lost, and the transaction rolled back")))
            }
        })
    }
}

impl Lane {
    async fn open(place: &Place) -> Result<Self, Trouble> {
        let (client, driver) = place.dial().await?;
        let limit = place.patience.as_millis().clamp(1, 86_400_000).to_string();
        client.query(SETTINGS, &[&limit]).await?;
        let fence = client.prepare(&place.schema.sql(FENCE)).await?;
        let record = client.prepare(&place.schema.sql(RECORD)).await?;
        let found = client.prepare(&place.schema.sql(FOUND)).await?;
        Ok(Lane { client, fence, record, found, _driver: driver })
    }

    async fn transact(&mut self, place: &Place, item: &Append, work: &Work) -> Reached {
        let Lane { client, fence, record, .. } = self;
        let begin = async {
            let tx = client.transaction().await?;
            let saga: &[&(dyn ToSql + Sync)] = &[&item.saga.as_str()];
            let (row, ()) = tokio::try_join!(tx.query_opt(&*fence, saga), tx.batch_execute(SAVEPOINT))?;
            Ok::<_, tokio_postgres::Error>((tx, row))
        };
        let (tx, row) = match timeout(place.silence(), begin).await {
            Ok(Ok(begun)) => begun,
            Ok(Err(error)) => return Reached::NotBegun(describe(&error)),
            Err(_) => return Reached::NotBegun("no answer in time".to_owned()),
        };
        // Whatever returns before the commit drops the transaction, and that rolls it back.
        let (number, transaction) = match check(row, item, work) {
            Ok(Ok(place)) => place,
            Ok(Err(refusal)) => return Reached::Answered(Err(refusal)),
            Err(error) => return Reached::NotBegun(describe(&error)),
        };
        let job = match work.take::<InTransaction>() {
            Ok(job) => job,
            Err(refusal) => return Reached::Answered(Err(refusal)),
        };
        let doing = async {
            let entry = work.made((job.0)(&tx).await?)?;
            let ending = item.phase.is_terminal();
            let written = tx
                .execute(
                    &*record,
                    &[
                        &number,
                        &transaction,
                        &signed(entry.seq),
                        &i64::from(entry.crc),
                        &item.phase.as_str(),
                        &clean(&item.note),
                        &ending,
                        &signed(entry.at.0),
                        &signed(entry.epoch),
                        &entry.by.as_str(),
                        &entry.kind,
                        &entry.step.as_deref().map(clean),
                        &entry.data,
                    ],
                )
                .await?;
            Ok::<_, Failure>((written, entry))
        };
        let failure = match timeout(place.patience, Caught(doing)).await {
            Ok(Ok(Ok((1, entry)))) => return commit(place, tx, entry, work).await,
            Ok(Ok(Ok(_))) => return Reached::Ended,
            Ok(Ok(Err(failure))) => failure,
            Ok(Err(panic)) => Failure::unknown(format!("panicked: {panic}")),
            Err(_) => {
                let why = format!("its transaction took longer than {:?}", place.patience);
                return Reached::Cut(transaction, Failure::unknown(why));
            }
        };
        match timeout(place.silence(), tx.simple_query(ROLLBACK)).await {
            Ok(Ok(said)) if is_in(&said, transaction) => Reached::Answered(Err(work.failed(failure))),
            Ok(Ok(_)) => Reached::Ended,
            Ok(Err(error)) if error.code().is_some_and(|code| GONE.contains(&code.code())) => Reached::Ended,
            Ok(Err(_)) | Err(_) => Reached::Cut(transaction, failure),
        }
    }
}

/// Whether the server says that it is in this transaction.
fn is_in(said: &[SimpleQueryMessage], transaction: i64) -> bool {
    said.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0) == Some(transaction.to_string().as_str()),
        _ => false,
    })
}

async fn commit(place: &Place, tx: Transaction<'_>, entry: Entry, work: &Work) -> Reached {
    match timeout(place.silence(), tx.commit()).await {
        Ok(Ok(())) => Reached::Answered(Ok(())),
        Ok(Err(error)) => match Trouble::from(error) {
            Trouble::Lost(_) => Reached::Doubtful(entry),
            // The server has said that it has rolled it back: a constraint that is looked at last, mostly.
            Trouble::Undone(why) | Trouble::Taken(why) | Trouble::Damaged(why) => {
                Reached::Answered(Err(work.failed(Failure::unknown(why))))
            }
            Trouble::Final(error) => Reached::Answered(Err(work.failed(Failure::unknown(error)))),
        },
        Err(_) => Reached::Doubtful(entry),
    }
}

/// Whether the row is where the item says; its number, and that of the transaction.
fn check(
    row: Option<Row>,
    item: &Append,
    work: &Work,
) -> Result<Result<(i64, i64), Refusal>, tokio_postgres::Error> {
    let Some(row) = row else { return Ok(Err(Refusal::Missing)) };
    let unsigned = |at: usize| row.try_get::<_, i64>(at).map(|value| u64::try_from(value).unwrap_or(0));
    let (epoch, len) = (unsigned(1)?, unsigned(3)?);
    let owner: Option<&str> = row.try_get(2)?;
    if epoch != item.epoch || owner != Some(item.by.as_str()) {
        return Ok(Err(Refusal::Fenced { epoch }));
    }
    if len != work.seq() {
        return Ok(Err(Refusal::Gap { expected: len }));
    }
    Ok(Ok((row.try_get(0)?, row.try_get(4)?)))
}
