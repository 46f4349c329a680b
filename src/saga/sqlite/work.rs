//! The work of transactional steps, within the transaction of a batch.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use rusqlite::{
    Connection, Transaction, TransactionBehavior,
    hooks::{AuthAction, AuthContext, Authorization},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    saga::{
        Entry, Failure, Payload, Transact, attempt,
        journal::{Job, Refusal, StoreError, Work},
    },
    sync::{Mutex, lock},
};

/// What this journal does in its transactions; see [`in_transaction`].
pub struct InTransaction(Box<Act>);

type Act = dyn FnOnce(&Transaction<'_>) -> Result<Payload, Failure> + Send;

impl std::fmt::Debug for InTransaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InTransaction")
    }
}

impl InTransaction {
    /// The same with more behind it, in the same transaction.
    pub(crate) fn and(
        self,
        more: impl FnOnce(&Transaction<'_>) -> Result<(), Failure> + Send + 'static,
    ) -> Self {
        InTransaction(Box::new(move |tx| {
            let output = (self.0)(tx)?;
            more(tx)?;
            Ok(output)
        }))
    }

    /// Both in one transaction; what comes of the first.
    pub(crate) fn with(self, other: InTransaction) -> Self {
        self.and(move |tx| (other.0)(tx).map(drop))
    }
}

impl Job for InTransaction {
    const STORE: &'static str = "SQLite";
}

/// The answer of an action whose effect is to be made in the database of the journal, in the transaction that records the step: either both
/// are there afterwards or neither, whatever crashes.
///
/// ```
/// use mainstay::saga::{Failure, Saga, sqlite};
///
/// let mut order = Saga::define::<u32>("order", 1);
/// let left = order
///     .step("reserve-stock", (), |step, ()| async move {
///         Ok(sqlite::in_transaction(move |tx| {
///             let taken = tx.execute("UPDATE stock SET left = left - ?1 WHERE left >= ?1", [step.input()])?;
///             if taken == 0 {
///                 return Err(Failure::rejected("sold out"));
///             }
///             Ok(tx.query_row("SELECT left FROM stock", [], |row| row.get::<_, u32>(0))?)
///         }))
///     })
///     .compensate_in_transaction(|step, (), _left| async move {
///         Ok(sqlite::in_transaction(move |tx| {
///             tx.execute("UPDATE stock SET left = left + ?1", [step.input()])?;
///             Ok(())
///         }))
///     });
/// let order = order.build(left)?;
/// # Ok::<(), mainstay::saga::DefinitionError>(())
/// ```
///
/// `work` runs on the thread that writes the journal, and keeps every other saga waiting: it should change a few rows, and talk to nobody. When it
/// fails or panics, all that it did is rolled back, and nobody else's. When the time limit of its attempt is over, 30 s unless the step's
/// [policies](crate::saga::Adding::through) say otherwise, the statement that runs then is interrupted, and each later one that is not short; what
/// is not SQL cannot be. Work that has not begun by then is not begun.
///
/// Within it transactions can neither be begun nor ended, by whatever SQL, nor can the journal's own tables be changed: SQLite answers
/// `not authorized`. Where a conflict clause or a trigger rolls the whole transaction back (`OR ROLLBACK`, `RAISE(ROLLBACK, ..)`), or a
/// deferred foreign key is violated at the commit, the step has failed. Other work of the same batch is tried again, which is not counted,
/// and has a transaction of its own for a while; what is recorded of other sagas is not touched.
///
/// A saga with such steps is tested by [`Check::database`](crate::testing::Check::database).
pub fn in_transaction<O, F>(work: F) -> Transact<O, InTransaction>
where
    O: Serialize + DeserializeOwned + Send + 'static,
    F: FnOnce(&Transaction<'_>) -> Result<O, Failure> + Send + 'static,
{
    Transact::new(InTransaction(Box::new(|tx| Payload::encode(&work(tx)?).map_err(Failure::from))))
}

/// What the work is rolled back to.
const SAVEPOINT: &str = "mainstay_work";

/// The tables that work does not change.
const OURS: [&str; 7] =
    ["saga", "saga_event", "orchestrator", "signal", "semantic_lock", "saga_audit", "meta"];

/// After so many instructions of SQLite's machine it is looked whether anybody waits for the work yet: some microseconds.
const INSTRUCTIONS: i32 = 1_000;

/// Keeps work from what is not its own, and from going on for ever, while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    at_work: Arc<AtomicBool>,
    /// What runs.
    work: Arc<Mutex<Option<Work>>>,
}

impl Guard {
    pub(crate) fn install(connection: &Connection) -> rusqlite::Result<Self> {
        let at_work = Arc::new(AtomicBool::new(false));
        let watched = at_work.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            let denied = watched.load(Relaxed)
                && match context.action {
                    AuthAction::Transaction { .. } => true,
                    AuthAction::Savepoint { savepoint_name, .. } => {
                        savepoint_name.eq_ignore_ascii_case(SAVEPOINT)
                    }
                    // It would outlive the work, and nothing could be recorded any more.
                    AuthAction::Pragma { pragma_name, pragma_value: Some(_) } => {
                        pragma_name.eq_ignore_ascii_case("query_only")
                    }
                    AuthAction::Insert { table_name }
                    | AuthAction::Update { table_name, .. }
                    | AuthAction::Delete { table_name }
                    | AuthAction::DropTable { table_name }
                    | AuthAction::AlterTable { table_name, .. } => {
                        OURS.iter().any(|ours| ours.eq_ignore_ascii_case(table_name))
                    }
                    _ => false,
                };
            if denied { Authorization::Deny } else { Authorization::Allow }
        }))?;
        // Where a conflict has ended the transaction, each later statement of the work would be one of its own.
        let watched = at_work.clone();
        connection.commit_hook(Some(move || watched.load(Relaxed)))?;
        let work: Arc<Mutex<Option<Work>>> = Arc::default();
        let running = work.clone();
        let given_up = move || lock(&running).as_ref().is_some_and(Work::is_given_up);
        connection.progress_handler(INSTRUCTIONS, Some(given_up))?;
        Ok(Guard { at_work, work })
    }

    /// Does work, in a savepoint. What is to be answered if it has failed; an error if the transaction is over with it.
    pub(super) fn run(&self, tx: &Transaction<'_>, work: &Work) -> Result<Result<Entry, Refusal>, Over> {
        let job = match work.take::<InTransaction>() {
            Ok(job) => job,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let run = |sql: &str| tx.prepare_cached(&format!("{sql} {SAVEPOINT}"))?.execute([]).map(drop);
        run("SAVEPOINT")?;
        *lock(&self.work) = Some(work.clone());
        self.at_work.store(true, Relaxed);
        let done = catch_unwind(AssertUnwindSafe(|| (job.0)(tx)));
        self.at_work.store(false, Relaxed);
        *lock(&self.work) = None;
        let done = done.unwrap_or_else(|panic| {
            Err(Failure::unknown(format!("panicked: {}", attempt::message(&*panic))))
        });
        if tx.is_autocommit() {
            let said = done.err().map(|failure| format!(": {failure}")).unwrap_or_default();
            let _ = work.failed(Failure::unknown(format!("it has rolled the whole transaction back{said}")));
            return Err(Over::Ended);
        }
        match done.and_then(|output| work.made(output)) {
            Ok(entry) => {
                run("RELEASE")?;
                Ok(Ok(entry))
            }
            Err(failure) => {
                run("ROLLBACK TO")?;
                run("RELEASE")?;
                Ok(Err(work.failed(failure)))
            }
        }
    }
}

/// Does work in a transaction of its own, on a connection with its guard, as the journal does: the entry that comes of it, committed or
/// rolled back.
pub(crate) fn alone(connection: &Connection, guard: &Guard, work: &Work) -> Result<Entry, Refusal> {
    let done = || -> Result<_, Over> {
        let tx = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        let done = guard.run(&tx, work)?;
        if done.is_ok() {
            tx.commit()?
        } else {
            tx.rollback()?
        }
        Ok(done)
    };
    match done() {
        Ok(done) => done,
        // It was begun, or cannot be: it says what became of it.
        Err(over) => match work.take::<InTransaction>() {
            Err(refusal) => Err(refusal),
            Ok(_) => Err(work.failed(Failure::unstarted(format!("no transaction was begun: {over:?}")))),
        },
    }
}

/// Why a batch cannot go on.
#[derive(Debug)]
pub(super) enum Over {
    /// The transaction has been rolled back by work that it had.
    Ended,
    /// SQLite says so.
    Sql(rusqlite::Error),
    /// Nothing was begun.
    Store(StoreError),
}

impl From<rusqlite::Error> for Over {
    fn from(error: rusqlite::Error) -> Self {
        Over::Sql(error)
    }
}
