//! Makes a step idempotent at the service whose database it changes: the participant's side of a saga.
//!
//! An orchestrator repeats what had no answer, and requests are delayed on their way. At the participant this shows as one of
//! three anomalies:
//!
//! * **Duplicate**: an action or a compensation arrives twice, perhaps at the same time. It must have one effect, and every
//!   arrival must get the same answer.
//! * **Empty rollback**: a compensation arrives although its action never ran here, since the request was lost or the service was down. It
//!   must succeed and do nothing.
//! * **Hanging**: the delayed action arrives after its compensation. It must be refused, for as long as it can arrive; its effect
//!   would be undone by nobody.
//!
//! The barrier is one table beside the participant's own, and a unique key. An action claims its row in the business
//! transaction and leaves its result there; a compensation claims *the action's row* first. If it could, the action never ran, and now
//! never will.
//!
//! [`sqlite`] works on a transaction of `rusqlite`, [`postgres`] on one of `tokio-postgres`, [`mod@sqlx`] on one of `sqlx` with PostgreSQL. All have
//! the same functions and the same rows; where the saga's journal is kept plays no part.
//!
//! # Example
//!
#![cfg_attr(feature = "sqlite", doc = "```")]
#![cfg_attr(not(feature = "sqlite"), doc = "```ignore")]
//! use mainstay::saga::{Key, barrier::{self, Action, Compensation}};
//! use rusqlite::{Connection, TransactionBehavior::Immediate};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut database = Connection::open_in_memory()?;
//! barrier::sqlite::install(&database)?;
//! database.execute_batch("create table account (id, balance); insert into account values ('ada', 100)")?;
//!
//! // What arrives: a key, and what to do. The same request a second time does nothing and has the same answer.
//! let charge: Key = "charge.do@order-17".parse()?;
//! for repeated in [false, true] {
//!     let tx = database.transaction_with_behavior(Immediate)?;
//!     let charged = barrier::sqlite::action(&tx, &charge, |tx| {
//!         tx.execute("update account set balance = balance - 30 where id = 'ada'", [])?;
//!         Ok::<_, rusqlite::Error>("receipt 1".to_owned())
//!     })?;
//!     tx.commit()?;
//!     let receipt = "receipt 1".to_owned();
//!     assert_eq!(charged, if repeated { Action::Repeated(receipt) } else { Action::Done(receipt) });
//! }
//!
//! // The compensation is given what the action had stored.
//! let refund: Key = "charge.undo@order-17".parse()?;
//! let tx = database.transaction_with_behavior(Immediate)?;
//! let refunded = barrier::sqlite::compensation(&tx, &refund, |tx, receipt: String| {
//!     assert_eq!(receipt, "receipt 1");
//!     tx.execute("update account set balance = balance + 30 where id = 'ada'", []).map(drop)
//! })?;
//! tx.commit()?;
//! assert_eq!(refunded, Compensation::Undone);
//!
//! let balance: i64 = database.query_row("select balance from account", [], |row| row.get(0))?;
//! assert_eq!(balance, 100);
//! # Ok(())
//! # }
//! ```
//!
//! # Semantics
//!
//! | arrives | found | the closure | answer |
//! |---|---|---|---|
//! | action | nothing | runs; its result is stored | [`Action::Done`] |
//! | action | the action's result | does not run | [`Action::Repeated`], with the result |
//! | action | the action's result, and the compensation's row | does not run | [`Action::Refused`]: it was undone |
//! | action | the action's rejection, also after a compensation | does not run | [`Action::Repeated`], with the rejection |
//! | action | the action's row, taken by the compensation | does not run | [`Action::Refused`] |
//! | compensation | nothing | does not run; the action's row is taken | [`Compensation::Nothing`] |
//! | compensation | the action's result | runs with the result | [`Compensation::Undone`] |
//! | compensation | the action's rejection | does not run | [`Compensation::Nothing`] |
//! | compensation | the compensation's row | does not run | [`Compensation::Repeated`] |
//!
//! * **One transaction.** The barrier's rows are written in the caller's transaction and become visible with its commit. A
//!   crash before it leaves neither the effect nor the rows.
//! * **An `Err` stores nothing.** What the closure wrote is undone together with the claim, even if the caller commits
//!   nevertheless; the next arrival is a first one. What must be remembered is no `Err`: a *rejection* ("no such card") that
//!   shall be the answer for good is returned as `Ok(Err(rejection))` to `action_or_rejection`. It says that there was no effect, and so
//!   there is nothing to compensate.
//! * **At the same time.** The second of two arrivals waits until the first one's transaction has ended: for
//!   the write lock in SQLite, for the row in Postgres. After a commit it finds what was stored, after a rollback it is the first.
//! * **Keys.** The scope of a key is the table. Two orchestrators whose sagas may have the same ids need two schemas, or ids that differ.
//! * **To verify** an action whose answer was lost there is `lookup`: the row is there if and only if the effect is. That it is *not*
//!   there does not mean that the request cannot come yet; what makes sure of that is the compensation. Under its key it may be sent again
//!   all the same ([`Verified::Resend`]).
//! * **Isolation.** A saga is not isolated: others see what its steps did before it ends. Locks against that are claimed with the
//!   saga's begin and held in its journal, not here.
//!
//! # Retention
//!
//! `prune` deletes the rows of sagas whose last arrival here is longer ago than a [`Retention`]: the longest time
//! from a step of a saga to the end of that saga, plus the longest time for which a request can be on its way. Rows that are deleted too early
//! are forgotten effects: a compensation would find nothing and undo nothing, a late action would run. And as long as rows are there, the id of their saga
//! is not to be used for another one, whatever the journal has forgotten: what was done for the first is answered as done and is not done for the second,
//! and what was undone is refused. In SQLite it walks through the
//! table, since an index for it would cost each transaction a page; in Postgres it has an index that is next to nothing.
//!
//! # Cancel safety
//!
//! A future of [`postgres`] that is dropped, and a closure that panics, leave a transaction that cannot be committed as if
//! nothing had happened: it stores nothing, as after an `Err`. [`mod@sqlx`] gives the transaction back with an
//! answer only.
//!
//! # Errors
//!
//! [`Error`]: the closure's own, the database's, a result that is not what was asked for, and two kinds of misuse.
//!
//! # Panics
//!
//! None of its own.
//!
//! # Cost
//!
//! In SQLite an action costs a look-up and an insert, one that was done before two look-ups, and a compensation costs two look-ups and one insert, or two when there is nothing to
//! undo; all are of one page, within a savepoint. In Postgres an action costs one insert and one update of the same row, a compensation
//! two inserts and a read, and each of them is a round trip and is planned anew, which is felt beside a business of a few short
//! statements. `postgres::Barrier` has its statements prepared: `action_within` costs about two thirds of that. Its `action` has no round
//! trip of its own either, since a look-up and an insert travel with the statements that are there anyway, and the look-up
//! can be left out. The test `saga_barrier_cost` measures all of them.

#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(any(feature = "postgres", feature = "sqlx"))]
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;
#[cfg(feature = "sqlx")]
pub mod sqlx;

use std::{fmt, time::Duration};

use super::{
    key::Key,
    record::Payload,
    step::{Failure, Verified},
};

/// Why an action without an effect will never have one.
pub(crate) const COMPENSATED: &str = "it was compensated, or its compensation came first";

/// What came of an action that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a refused action did nothing"]
pub enum Action<T> {
    /// It is the first: it was done, and this is its result.
    Done(T),
    /// It was done before, and this was its result.
    Repeated(T),
    /// Its compensation came first, or has undone it since. It has no effect and never will.
    Refused,
}

impl<T> Action<T> {
    /// The result, whether now or before; none when it was refused.
    pub fn result(self) -> Option<T> {
        match self {
            Action::Done(result) | Action::Repeated(result) => Some(result),
            Action::Refused => None,
        }
    }

    /// The same as what a step says.
    ///
    /// # Errors
    ///
    /// [`Failure::rejected`] when it was refused: it has no effect and never will, and there is nothing to undo.
    pub fn into_result(self) -> Result<T, Failure> {
        self.result().ok_or_else(|| Failure::rejected(COMPENSATED))
    }

    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "sqlx"))]
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Action<U> {
        match self {
            Action::Done(result) => Action::Done(change(result)),
            Action::Repeated(result) => Action::Repeated(change(result)),
            Action::Refused => Action::Refused,
        }
    }
}

/// What came of a compensation that arrived. Whichever it is, the action has no effect now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compensation {
    /// It is the first, and has undone the action.
    Undone,
    /// There was nothing to undo: the action never ran and now never will, or it was rejected.
    Nothing,
    /// It came before.
    Repeated,
}

/// What is known about an action: what a step that verifies asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup<T> {
    /// It was done, with this result, and not undone.
    Applied(T),
    /// It was rejected for good, with this answer.
    Rejected(Payload),
    /// It has not been done. Its request may be about to be, or on its way.
    NotApplied,
    /// It was undone, or is refused for good.
    Compensated,
}

impl<T> Lookup<T> {
    /// The same as what a step says that verifies.
    ///
    /// What was rejected, with the text that is stored or its JSON, and what was compensated is [`Verified::Rejected`]: the row is there,
    /// and whatever arrives behind it has no effect. Where there is no row the request may be on its way; the barrier makes one of it and
    /// of another one under the same key, so it is [`Verified::Resend`].
    ///
    /// [`Verified::NotApplied`] is said by none: it would mean that no request can arrive any more, which a barrier cannot know.
    pub fn into_verified(self) -> Verified<T> {
        match self {
            Lookup::Applied(result) => Verified::Applied(result),
            Lookup::Rejected(answer) => {
                Verified::Rejected(answer.decode().unwrap_or_else(|_| answer.as_str().to_owned()))
            }
            Lookup::Compensated => Verified::Rejected(COMPENSATED.to_owned()),
            Lookup::NotApplied => Verified::Resend,
        }
    }
}

/// How long the rows of a saga are kept: longer than any of its requests can still arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The longest time from a step of a saga to the end of the saga, waits and people included.
    pub longest_saga: Duration,
    /// The longest time for which a request can be on its way: how long the transport delivers again.
    pub longest_delivery: Duration,
}

impl Retention {
    /// Both together.
    pub fn total(self) -> Duration {
        self.longest_saga.saturating_add(self.longest_delivery)
    }
}

/// A saga of 60 days, and 30 days of delivering again.
impl Default for Retention {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Retention { longest_saga: 60 * DAY, longest_delivery: 30 * DAY }
    }
}

/// Why a barrier could not do what it was asked. Nothing of it is stored, whether the transaction is committed or not.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error<E, D> {
    /// The closure said so.
    Inner(E),
    /// The database said so.
    Database(D),
    /// A result cannot be written as JSON, or what was stored is not the JSON of what was asked for.
    Result(serde_json::Error),
    /// The key of an action came with a compensation, or the other way round.
    WrongDirection(Key),
    /// An SQLite transaction that does not have the write lock: it was not begun as immediate.
    NotImmediate,
}

impl<E: fmt::Display, D: fmt::Display> fmt::Display for Error<E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Inner(error) => error.fmt(f),
            Error::Database(error) => write!(f, "the barrier's table: {error}"),
            Error::Result(error) => write!(f, "the stored result of a step: {error}"),
            Error::WrongDirection(key) => write!(f, "{key} is not the key for this direction"),
            Error::NotImmediate => f.write_str("a barrier needs a transaction that was begun as immediate"),
        }
    }
}

impl<E, D> std::error::Error for Error<E, D>
where
    E: std::error::Error + 'static,
    D: std::error::Error + 'static,
{
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Inner(error) => error.source(),
            Error::Database(error) => Some(error),
            Error::Result(error) => Some(error),
            Error::WrongDirection(_) | Error::NotImmediate => None,
        }
    }
}

/// What the rows say, the same for every client.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "sqlx"))]
mod row {
    use serde::{
        Deserialize, Serialize,
        de::{DeserializeOwned, Error as _, IgnoredAny},
    };
    use serde_json::Error;

    use super::{Action, Lookup};

    /// The action was done, with the result beside it.
    pub(super) const DONE: &str = "done";
    /// The action was rejected, with the answer beside it.
    pub(super) const REJECTED: &str = "rejected";
    /// The compensation has taken the action's row: the action is refused.
    pub(super) const REFUSED: &str = "refused";
    /// The compensation has undone the action.
    pub(super) const UNDONE: &str = "undone";
    /// The compensation found nothing to undo.
    pub(super) const NOTHING: &str = "nothing";

    /// The rejection of an action that has none.
    #[derive(Serialize, Deserialize)]
    pub(super) enum Never {}

    /// The answer to an action that has no rejection.
    pub(super) fn certain<T>(answer: Action<Result<T, Never>>) -> Action<T> {
        answer.map(|answer| answer.unwrap_or_else(|never| match never {}))
    }

    /// State and result of an action's row when it is done. Its claim says `DONE` and has no result.
    pub(super) fn finished<T: Serialize, R: Serialize>(
        answer: &Result<T, R>,
    ) -> Result<(&'static str, String), Error> {
        Ok(match answer {
            Ok(result) => (DONE, serde_json::to_string(result)?),
            Err(rejection) => (REJECTED, serde_json::to_string(rejection)?),
        })
    }

    /// The answer to an action that finds its row, with its compensation's row beside it or not.
    pub(super) fn repeated<T: DeserializeOwned, R: DeserializeOwned>(
        state: &str,
        result: Option<&str>,
        compensated: bool,
    ) -> Result<Action<Result<T, R>>, Error> {
        let result = result.unwrap_or("null");
        Ok(match state {
            // Whoever was told of the result would go forward on what is not there any more.
            DONE if compensated => Action::Refused,
            DONE => Action::Repeated(Ok(serde_json::from_str(result)?)),
            REJECTED => Action::Repeated(Err(serde_json::from_str(result)?)),
            REFUSED => Action::Refused,
            other => return Err(Error::custom(format!("an action cannot be {other}"))),
        })
    }

    /// The result that a compensation undoes, out of the action's row; none when there is nothing to undo.
    pub(super) fn to_undo<T: DeserializeOwned>(
        state: &str,
        result: Option<&str>,
    ) -> Result<Option<T>, Error> {
        // Whether it was undone before is told by the row of the compensation, when that is claimed.
        Ok(match repeated(state, result, false)? {
            Action::Done(Ok(result)) | Action::Repeated(Ok(result)) => Some(result),
            Action::Done(Err(IgnoredAny)) | Action::Repeated(Err(IgnoredAny)) | Action::Refused => None,
        })
    }

    /// What the rows of a step come to.
    pub(super) fn lookup<T: DeserializeOwned>(
        action: Option<(String, Option<String>)>,
        compensated: bool,
    ) -> Result<Lookup<T>, Error> {
        let Some((state, result)) = action else {
            return Ok(Lookup::NotApplied);
        };
        Ok(match repeated(&state, result.as_deref(), compensated)? {
            Action::Refused => Lookup::Compensated,
            Action::Done(Err(rejection)) | Action::Repeated(Err(rejection)) => Lookup::Rejected(rejection),
            Action::Done(Ok(result)) | Action::Repeated(Ok(result)) => Lookup::Applied(result),
        })
    }
}
