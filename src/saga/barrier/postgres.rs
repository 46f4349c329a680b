//! The barrier on a transaction of `tokio-postgres`.
//!
//! The table is found by the connection's `search_path`. Every isolation level will do; under repeatable read and serializable
//! the second of two simultaneous arrivals is told of a serialization failure (SQLSTATE 40001) instead of the first one's result, and
//! is repeated like any transaction that was told so. A compensation counts for an action that was done as soon as it is committed; for a transaction of those
//! levels, if it was when that took its snapshot, with its first statement.
//!
//! Postgres turns the commit of a transaction in which a statement has failed into a rollback, and reports no error. A closure that passes
//! over such a failure is therefore told so here, behind its end: it has not done its business.
//!
//! # Example
//!
//! ```no_run
//! use mainstay::saga::{Key, barrier::{self, Action}};
//!
//! # async fn charge(client: &mut tokio_postgres::Client, key: Key) -> Result<(), Box<dyn std::error::Error>> {
//! barrier::postgres::install(client).await?;
//!
//! let tx = client.transaction().await?;
//! let charged = barrier::postgres::action(&tx, &key, async |tx| {
//!     tx.execute("update account set balance = balance - 30 where id = 'ada'", &[]).await?;
//!     Ok::<_, tokio_postgres::Error>("receipt 1".to_owned())
//! }).await?;
//! tx.commit().await?;
//! match charged {
//!     Action::Done(receipt) | Action::Repeated(receipt) => println!("{receipt}"),
//!     Action::Refused => println!("it was compensated before it came"),
//! }
//! # Ok(())
//! # }
//! ```

/// The client, version 0.7, whose transactions these functions take.
pub use tokio_postgres;

use std::{
    future::Future,
    pin::pin,
    task::{Context, Waker},
};

use serde::{Serialize, de::DeserializeOwned};
use tokio_postgres::{
    Client, GenericClient, Row, SimpleQueryMessage, Transaction,
    types::{ToSql, Type},
};

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
pub async fn install(client: &impl GenericClient) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(sql::INSTALL).await
}

/// Runs an action's business in the caller's transaction, unless it was done before or is refused, and stores its result there.
///
/// See the [module's page](super). The caller commits. After an `Err`, or when the future was dropped, the whole transaction can only be
/// rolled back: Postgres refuses every further statement, and a `commit` rolls back.
///
/// # Errors
///
/// [`Error`].
pub async fn action<T, E>(
    tx: &Transaction<'_>,
    key: &Key,
    business: impl AsyncFnOnce(&Transaction<'_>) -> Result<T, E>,
) -> Result<Action<T>, Error<E, tokio_postgres::Error>>
where
    T: Serialize + DeserializeOwned,
{
    let answer = action_or_rejection(tx, key, async |tx: &Transaction<'_>| {
        business(tx).await.map(Ok::<T, row::Never>)
    })
    .await?;
    Ok(row::certain(answer))
}

/// Like [`action`], for one that may be rejected for good: an `Ok(Err(rejection))` is stored and is the answer from then on.
///
/// # Errors
///
/// [`Error`].
pub async fn action_or_rejection<T, R, E>(
    tx: &Transaction<'_>,
    key: &Key,
    business: impl AsyncFnOnce(&Transaction<'_>) -> Result<Result<T, R>, E>,
) -> Result<Action<Result<T, R>>, Error<E, tokio_postgres::Error>>
where
    T: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    act(Step { tx, key, prepared: false }, business).await
}

/// Runs a compensation's business in the caller's transaction, with the result that the action had stored, if there is something to undo.
///
/// See the [module's page](super), and [`action`] for what becomes of the transaction.
///
/// # Errors
///
/// [`Error`].
pub async fn compensation<T, E>(
    tx: &Transaction<'_>,
    key: &Key,
    business: impl AsyncFnOnce(&Transaction<'_>, T) -> Result<(), E>,
) -> Result<Compensation, Error<E, tokio_postgres::Error>>
where
    T: DeserializeOwned,
{
    check(key, Direction::Undo)?;
    let step = Step { tx, key, prepared: false };
    let unfinished = Unfinished::begin(tx);
    let to_undo = if step.claim(Direction::Do, row::REFUSED).await? {
        None
    } else {
        let row = step.read(sql::READ).await?;
        row::to_undo(row.try_get(0)?, row.try_get(1)?).map_err(Error::Result)?
    };
    let state = if to_undo.is_some() { row::UNDONE } else { row::NOTHING };
    let compensation = if !step.claim(Direction::Undo, state).await? {
        Compensation::Repeated
    } else if let Some(result) = to_undo {
        business(tx, result).await.map_err(Error::Inner)?;
        // Where the closure has passed over an error of the database the transaction has failed, and its commit
        // would be a rollback without an error.
        tx.batch_execute("select").await?;
        Compensation::Undone
    } else {
        Compensation::Nothing
    };
    unfinished.finish();
    Ok(compensation)
}

/// The barrier with prepared statements: around whole transactions, where it costs no round trip of its own, or within the caller's.
///
/// The look for the action's row travels with the `begin`, the row with its result travels with the `commit`. The statements are
/// prepared on the connection, under names that begin with `mainstay_barrier`. With a pool they are prepared where it makes a connection;
/// any `Barrier` serves all connections that are. On one that is not, the answer is [`Error::Database`] (SQLSTATE 26000), and nothing is kept.
/// A pooler between that changes the server's connections from one transaction to the next is not for it.
///
/// It answers as [`action`](fn@action) does and writes the same rows, so that both can be used side by side. The difference: where it makes the
/// transaction, the row is there only with the result. Of two requests that arrive at the same time both closures may run, and the transaction of
/// the one that ends last is rolled back; it is answered what the other one has stored.
///
/// # Example
///
/// ```no_run
/// use mainstay::saga::{Key, barrier::postgres::Barrier};
///
/// # async fn charge(client: &mut tokio_postgres::Client, key: Key) -> Result<(), Box<dyn std::error::Error>> {
/// let barrier = Barrier::prepare(client).await?;         // once for a connection, and kept beside it
///
/// let charged = barrier.action(client, &key, async |tx| {
///     tx.execute("update account set balance = balance - 30 where id = 'ada'", &[]).await?;
///     Ok::<_, tokio_postgres::Error>("receipt 1".to_owned())
/// }).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Barrier {
    look_up: bool,
}

impl Barrier {
    /// Prepares the statements on a connection, unless they are. The table has to be there.
    ///
    /// # Errors
    ///
    /// The database's.
    pub async fn prepare(client: &Client) -> Result<Self, tokio_postgres::Error> {
        let there = "select from pg_prepared_statements where name = 'mainstay_barrier_find'";
        if client.query_typed_opt(there, &[]).await?.is_none() {
            client
                .batch_execute(&format!(
                    "prepare mainstay_barrier_store (text, text, text, text) as
                         insert into mainstay_barrier (saga, step, phase, state, result)
                         values ($1, $2, 'do', $3, $4::text::json);
                     prepare mainstay_barrier_find (text, text) as
                         select from mainstay_barrier where saga = $1 and step = $2 and phase = 'do';
                     prepare mainstay_barrier_answer (text, text) as {};
                     prepare mainstay_barrier_claim (text, text, text, text) as {};
                     prepare mainstay_barrier_finish (text, text, text, text) as {}",
                    sql::ANSWER,
                    sql::CLAIM,
                    sql::FINISH
                ))
                .await?;
        }
        Ok(Barrier { look_up: true })
    }

    /// Leaves out the look for the action's row, which is a third to a half of what the barrier costs.
    ///
    /// The answers and the rows are the same. But where the action was done before, or is refused, the closure runs nevertheless, and its
    /// transaction is rolled back: by the row that is there already, or by the closure's own failure over what it has done the first time. So
    /// it is for closures that do nothing but their transaction, and where requests seldom come twice: one that does costs a business
    /// and a rollback, and the locks of both.
    pub fn without_look_up(mut self) -> Self {
        self.look_up = false;
        self
    }

    /// A whole transaction around an action's business, unless it was done before or is refused; its result is stored with it.
    ///
    /// The transaction has the session's default isolation level. The closure is given the client within it, and must not end it.
    ///
    /// After an `Err` of the closure the transaction is rolled back. After an `Err` of the database it may have been
    /// committed; the same request once more finds out. A future that is dropped rolls back, unless the commit is on its way.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn action<T, E>(
        &self,
        client: &mut Client,
        key: &Key,
        business: impl AsyncFnOnce(&Client) -> Result<T, E>,
    ) -> Result<Action<T>, Error<E, tokio_postgres::Error>>
    where
        T: Serialize + DeserializeOwned,
    {
        let business = async |client: &Client| business(client).await.map(Ok::<T, row::Never>);
        let answer = self.action_or_rejection(client, key, business).await?;
        Ok(row::certain(answer))
    }

    /// Like [`action`](Barrier::action), for one that may be rejected for good: an `Ok(Err(rejection))` is stored and is the answer from
    /// then on. What the closure has written is committed with it.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn action_or_rejection<T, R, E>(
        &self,
        client: &mut Client,
        key: &Key,
        business: impl AsyncFnOnce(&Client) -> Result<Result<T, R>, E>,
    ) -> Result<Action<Result<T, R>>, Error<E, tokio_postgres::Error>>
    where
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        check(key, Direction::Do)?;
        let (client, open) = (&*client, Open(client));
        let arguments = arguments(key);
        let answer = format!("execute mainstay_barrier_answer({arguments})");
        if self.look_up {
            // Without a column: to bring the result along costs as much as to find the row, and as a rule there is none.
            let found =
                client.simple_query(&format!("begin; execute mainstay_barrier_find({arguments})")).await?;
            if found.iter().any(|told| matches!(told, SimpleQueryMessage::Row(_))) {
                if let Some(action) = stored(client.simple_query(&answer).await?)? {
                    return Ok(action);
                }
            }
        } else {
            client.batch_execute("begin").await?;
        }
        let error = match business(client).await {
            Ok(answer) => {
                let (state, result) = row::finished(&answer).map_err(Error::Result)?;
                let result = literal(&result);
                let store =
                    format!("execute mainstay_barrier_store({arguments}, '{state}', {result}); commit");
                match client.batch_execute(&store).await {
                    Ok(()) => {
                        // There is nothing to roll back.
                        std::mem::forget(open);
                        return Ok(Action::Done(answer));
                    }
                    Err(error) => Error::Database(error),
                }
            }
            Err(error) => Error::Inner(error),
        };
        // Over what the same request, or the compensation, has done here before, or meanwhile on another connection? The row is taken then;
        // or the business has failed, or passed over a failure.
        drop(open);
        match (error, client.simple_query(&answer).await.map(stored)) {
            (_, Ok(Ok(Some(action)))) => Ok(action),
            (Error::Database(_), Ok(Err(of_another_type))) => Err(of_another_type),
            (error, _) => Err(error),
        }
    }

    /// The same as the function [`action`](fn@action), in a transaction of the caller's, with statements that are prepared: it has the two round
    /// trips still, but costs about two thirds. [`without_look_up`](Barrier::without_look_up) makes no difference to it.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn action_within<T, E>(
        &self,
        tx: &Transaction<'_>,
        key: &Key,
        business: impl AsyncFnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<Action<T>, Error<E, tokio_postgres::Error>>
    where
        T: Serialize + DeserializeOwned,
    {
        let business = async |tx: &Transaction<'_>| business(tx).await.map(Ok::<T, row::Never>);
        let answer = self.action_or_rejection_within(tx, key, business).await?;
        Ok(row::certain(answer))
    }

    /// The same as the function [`action_or_rejection`](fn@action_or_rejection), in a transaction of the caller's, with statements that are prepared.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub async fn action_or_rejection_within<T, R, E>(
        &self,
        tx: &Transaction<'_>,
        key: &Key,
        business: impl AsyncFnOnce(&Transaction<'_>) -> Result<Result<T, R>, E>,
    ) -> Result<Action<Result<T, R>>, Error<E, tokio_postgres::Error>>
    where
        T: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
    {
        act(Step { tx, key, prepared: true }, business).await
    }
}

/// A transaction that is rolled back when this is dropped.
struct Open<'a>(&'a Client);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // On its way after the first poll, ahead of whatever is sent next; nobody waits for the answer.
        let rollback = pin!(self.0.batch_execute("rollback"));
        let _ = rollback.poll(&mut Context::from_waker(Waker::noop()));
    }
}

/// What an action is answered whose row is there.
type Answer<T, R> = Option<Action<Result<T, R>>>;

fn stored<T: DeserializeOwned, R: DeserializeOwned, E>(
    told: Vec<SimpleQueryMessage>,
) -> Result<Answer<T, R>, Error<E, tokio_postgres::Error>> {
    let row = told.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let Some(row) = row else { return Ok(None) };
    let (state, result) = (row.try_get(0)?.unwrap_or_default(), row.try_get(1)?);
    // This protocol has texts alone.
    let compensated = row.try_get(2)? == Some("t");
    row::repeated(state, result, compensated).map(Some).map_err(Error::Result)
}

/// The arguments that every statement begins with that is prepared.
fn arguments(key: &Key) -> String {
    format!("{}, {}", literal(key.saga().as_str()), literal(key.step()))
}

/// A text as a literal, whatever `standard_conforming_strings` says.
fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// What is known about an action, given its key or its compensation's: what was committed, and what this connection's own
/// transaction did.
///
/// # Errors
///
/// [`Error::Database`] and [`Error::Result`].
pub async fn lookup<T: DeserializeOwned>(
    client: &impl GenericClient,
    key: &Key,
) -> Result<Lookup<T>, Error<std::convert::Infallible, tokio_postgres::Error>> {
    let rows = client
        .query_typed(sql::LOOKUP, &[(&key.saga().as_str(), Type::TEXT), (&key.step(), Type::TEXT)])
        .await?;
    let (mut action, mut compensated) = (None, false);
    for row in rows {
        if row.try_get::<_, &str>(0)? == Direction::Do.as_str() {
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
    client: &impl GenericClient,
    retention: Retention,
    limit: usize,
) -> Result<u64, tokio_postgres::Error> {
    client
        .execute_typed(sql::PRUNE, &[(&seconds(retention.total()), Type::FLOAT8), (&rows(limit), Type::INT8)])
        .await
}

impl<E> From<tokio_postgres::Error> for Error<E, tokio_postgres::Error> {
    fn from(error: tokio_postgres::Error) -> Self {
        Error::Database(error)
    }
}

fn check<E>(key: &Key, wanted: Direction) -> Result<(), Error<E, tokio_postgres::Error>> {
    if key.phase() == wanted { Ok(()) } else { Err(Error::WrongDirection(key.clone())) }
}

/// A step in the caller's transaction.
struct Step<'a> {
    tx: &'a Transaction<'a>,
    key: &'a Key,
    /// Whether its statements are: Postgres reads and plans the others anew each time.
    prepared: bool,
}

impl Step<'_> {
    /// Whether the row was free. Waits for a transaction that has claimed it and is not over.
    async fn claim(&self, phase: Direction, state: &str) -> Result<bool, tokio_postgres::Error> {
        let phase = phase.as_str();
        if self.prepared {
            let claim =
                format!("execute mainstay_barrier_claim({}, '{phase}', '{state}')", arguments(self.key));
            let told = self.tx.simple_query(&claim).await?;
            return Ok(told.iter().any(|told| matches!(told, SimpleQueryMessage::CommandComplete(1))));
        }
        let inserted = self
            .tx
            .execute_typed(
                sql::CLAIM,
                &[
                    (&self.key.saga().as_str(), Type::TEXT),
                    (&self.key.step(), Type::TEXT),
                    (&phase, Type::TEXT),
                    (&state, Type::TEXT),
                ],
            )
            .await?;
        Ok(inserted == 1)
    }

    /// Reads by a statement that finds the action's row, which is there.
    async fn read(&self, statement: &str) -> Result<Row, tokio_postgres::Error> {
        let step =
            [(&self.key.saga().as_str() as &(dyn ToSql + Sync), Type::TEXT), (&self.key.step(), Type::TEXT)];
        self.tx.query_typed_one(statement, &step).await
    }

    /// Writes what came of the action into its row, which is claimed.
    async fn finish(&self, state: &str, result: &str) -> Result<(), tokio_postgres::Error> {
        if self.prepared {
            let (arguments, result) = (arguments(self.key), literal(result));
            let finish = format!("execute mainstay_barrier_finish({arguments}, '{state}', {result})");
            return self.tx.batch_execute(&finish).await;
        }
        self.tx
            .execute_typed(
                sql::FINISH,
                &[
                    (&self.key.saga().as_str(), Type::TEXT),
                    (&self.key.step(), Type::TEXT),
                    (&state, Type::TEXT),
                    (&result, Type::TEXT),
                ],
            )
            .await
            .map(drop)
    }
}

async fn act<T, R, E>(
    step: Step<'_>,
    business: impl AsyncFnOnce(&Transaction<'_>) -> Result<Result<T, R>, E>,
) -> Result<Action<Result<T, R>>, Error<E, tokio_postgres::Error>>
where
    T: Serialize + DeserializeOwned,
    R: Serialize + DeserializeOwned,
{
    check(step.key, Direction::Do)?;
    let unfinished = Unfinished::begin(step.tx);
    if !step.claim(Direction::Do, row::DONE).await? {
        let row = step.read(sql::ANSWER).await?;
        let action =
            row::repeated(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?).map_err(Error::Result)?;
        unfinished.finish();
        return Ok(action);
    }
    let answer = business(step.tx).await.map_err(Error::Inner)?;
    let (state, result) = row::finished(&answer).map_err(Error::Result)?;
    step.finish(state, &result).await?;
    unfinished.finish();
    Ok(Action::Done(answer))
}

/// Spoils the transaction unless it is finished: whatever ends the call, what was claimed is not committed without its
/// effect, nor the other way round. It costs nothing while all goes well, which a savepoint would.
struct Unfinished<'a> {
    tx: &'a Transaction<'a>,
    finished: bool,
}

impl<'a> Unfinished<'a> {
    fn begin(tx: &'a Transaction<'_>) -> Self {
        Unfinished { tx, finished: false }
    }

    fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.finished {
            // There is no such savepoint. The statement is on its way after the first poll, ahead of any that the caller
            // sends afterwards; nobody waits for the answer.
            let spoil =
                pin!(self.tx.batch_execute("rollback to savepoint mainstay_barrier_was_not_finished"));
            let _ = spoil.poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}
