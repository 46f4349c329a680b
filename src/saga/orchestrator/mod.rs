//! Owns sagas: starts them, answers what is asked about them, and hands them what comes from outside.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    definition::{Definition, Inputs, Saga},
    driver::Mail,
    handle::{Handle, Outcome},
    journal::{DefinitionId, Head, Journal, Phase, Query, Request, Requested, StoreError, Stored},
    machine::Machine,
    record::{Cause, Incarnation, InvalidId, Order, Payload, SagaId, Timestamp},
};
use crate::sync::lock;

mod census;
mod error;
mod inner;
mod keeper;
mod off_thread;
mod opening;
mod ramp;
mod starting;
mod waiters;
mod watched;

pub use census::{Census, OpenSagas};
pub use error::{AskError, InvalidText, StartError};
pub(crate) use inner::{Inner, Seat, fold};
pub use opening::{OpenError, Opening};
use starting::Input;
pub(crate) use waiters::Waiter;

/// The most locks of one saga.
const MOST_LOCKS: usize = 64;

/// The longest path of a step that anything is asked of, in bytes.
const LONGEST_PATH: usize = 1_024;

/// Runs sagas; see the [module](super).
///
/// Cloning shares it. When the last clone is dropped it stops where it is, as if it had crashed; see
/// [`shutdown`](Orchestrator::shutdown).
#[derive(Clone)]
pub struct Orchestrator(Arc<Owner>);

struct Owner(Arc<Inner>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for Orchestrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orchestrator")
            .field("incarnation", &self.0.0.by)
            .field("live", &lock(&self.0.0.live).len())
            .finish_non_exhaustive()
    }
}

impl Orchestrator {
    /// Begins an orchestrator of the sagas in `journal`.
    pub fn open(journal: impl Journal) -> Opening {
        Opening::new(journal)
    }

    /// Starts a saga. When this returns, the saga will end: it is durable.
    ///
    /// The same `id` with the same input is the same saga, however often it is started; also if it was started with another version of
    /// the definition, and then only its outcome cannot be had through this handle.
    ///
    /// An input is the same if it has the same JSON, in whatever order the members of its objects come; or if what this code reads in the
    /// stored one has it. So a field that was added since, with a `default`, makes no difference while it has its default. A `HashSet` comes
    /// in another order each time: take a `BTreeSet`.
    ///
    /// # Errors
    ///
    /// [`StartError`]; only after [`StartError::Store`] is it not known whether it has begun: start it again. After
    /// [`StartError::Unreadable`] it is not known whether what has begun is the same.
    ///
    /// # Cancel safety
    ///
    /// The saga may have begun when the future is dropped, and then it goes on. Started again, it is the same.
    pub async fn start<I: Serialize + DeserializeOwned, R: Inputs>(
        &self,
        saga: &Saga<I, R>,
        id: &str,
        input: &I,
    ) -> Result<Handle<R>, StartError> {
        self.start_with(saga, id, input, StartOptions::default()).await
    }

    /// As [`start`](Self::start), with a deadline, a tag, or locks. They are of the first start: where the saga has begun before, those of this one
    /// are not looked at, and it is no error that they differ.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    ///
    /// # Cancel safety
    ///
    /// As of [`start`](Self::start). While it waits for its locks, nothing has begun.
    pub async fn start_with<I: Serialize + DeserializeOwned, R: Inputs>(
        &self,
        saga: &Saga<I, R>,
        id: &str,
        input: &I,
        options: StartOptions,
    ) -> Result<Handle<R>, StartError> {
        let inner = &self.0.0;
        let id = SagaId::new(id)?;
        options.check()?;
        let input = Input::new(input, inner.settings.max_input).map_err(StartError::Input)?;
        inner.start(saga.definition.clone(), id.clone(), input, options).await?;
        Ok(Handle::new(self.clone(), saga.clone(), id))
    }

    /// Starts a saga and waits until it is over, or until it is stuck or waits for a person.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start), and what comes of waiting: [`StartError::OtherDefinition`], [`StartError::Output`],
    /// [`StartError::Forgotten`], and [`StartError::Store`], after which it may be run again, since that is the same saga.
    ///
    /// # Cancel safety
    ///
    /// A saga that has begun goes on when the future is dropped.
    pub async fn run<I: Serialize + DeserializeOwned, R: Inputs>(
        &self,
        saga: &Saga<I, R>,
        id: &str,
        input: &I,
    ) -> Result<Outcome<R::Values>, StartError> {
        let handle = self.start(saga, id, input).await?;
        handle.settled().await.map_err(StartError::of_waiting)
    }

    /// A saga that was started before, here or elsewhere.
    ///
    /// # Errors
    ///
    /// [`InvalidId`]. Whether there is such a saga is seen when it is asked something.
    pub fn handle<I, R: Inputs>(&self, saga: &Saga<I, R>, id: &str) -> Result<Handle<R>, InvalidId> {
        Ok(Handle::new(self.clone(), saga.clone(), SagaId::new(id)?))
    }

    /// Leaves a message for the step `step` of a saga, which waits for it or will; see [`Builder::signal`](super::Builder::signal).
    ///
    /// The message id has at most [`InvalidText::MAX`] bytes and no control characters. Of two messages with the same `message` id at the same saga the second changes nothing. It is durable when this returns. A message
    /// that nobody waits for any more is dropped. Whether the message fits is looked at here when this orchestrator has the saga's definition,
    /// which costs reading the saga while it is not driven here; otherwise its driver refuses it, with [`Record::Refused`](super::Record::Refused)
    /// in the saga's journal for the first eight of a saga, and an event for each. Where the driver's code is older, and cannot read what this
    /// one can, the message is not lost: it waits for code that can read it, as long as its step waits. At most eight of a saga do so.
    ///
    /// # Errors
    ///
    /// [`AskError`]: [`Missing`](AskError::Missing) when there is no such saga, and never [`Requested::Missing`]; [`Step`](AskError::Step) when
    /// none of its steps with this name waits for a message, [`Payload`](AskError::Payload) when it is too large or the step could not read it.
    ///
    /// # Cancel safety
    ///
    /// The message may have been left when the future is dropped. Left again under its id, it counts once.
    pub async fn signal<T: Serialize + ?Sized>(
        &self,
        saga: &str,
        step: &str,
        message: &str,
        payload: &T,
    ) -> Result<Requested, AskError> {
        let payload = Payload::encode(payload).map_err(|error| AskError::Payload(error.to_string()))?;
        InvalidText::check("the message id", message, InvalidText::MAX)?;
        InvalidText::check("the step", step, LONGEST_PATH)?;
        self.0.0.fits(&payload)?;
        let id = SagaId::new(saga)?;
        if let Some(definition) = self.definition_of(&id).await? {
            let Some(code) = definition.message_of(step) else {
                return Err(AskError::Step { saga: id, step: step.to_owned() });
            };
            code.accepts_message(&payload).map_err(AskError::Payload)?;
        }
        self.ask(Request::signal(id, self.0.0.by.as_str(), step, message, payload)).await
    }

    /// Turns a saga round, unless a step has happened or may have that cannot be undone. Durable when this returns, obeyed soon after. A
    /// saga that waits for a person as a whole is turned round too.
    ///
    /// The record says that this orchestrator has asked, by its [incarnation](Self::incarnation). In somebody's name it is
    /// asked with [`order`](Self::order) and [`Order::Cancel`].
    ///
    /// # Errors
    ///
    /// [`AskError`]; [`Missing`](AskError::Missing) when there is no such saga, and never [`Requested::Missing`].
    ///
    /// # Cancel safety
    ///
    /// As of [`order`](Self::order).
    pub async fn cancel(&self, saga: &str, reason: &str) -> Result<Requested, AskError> {
        self.order(saga, self.0.0.by.as_str(), Order::Cancel { reason: reason.to_owned() }).await
    }

    /// Leaves a decision of `by`, a person mostly, with a saga. A reason of more than 4 KiB is cut. It becomes a record of the saga:
    /// [`Ordered`](super::Record::Ordered) if it can be followed where the saga then stands, [`Refused`](super::Record::Refused) with the
    /// reason if it cannot.
    ///
    /// While this version cannot make sense of a saga's records, the only order that is followed is [`Order::Abandon`]. Others wait
    /// until it can.
    ///
    /// # Errors
    ///
    /// [`AskError`]; [`Missing`](AskError::Missing) when there is no such saga, and never [`Requested::Missing`];
    /// [`Payload`](AskError::Payload) when an output is too large.
    ///
    /// # Cancel safety
    ///
    /// The order may have been left when the future is dropped; it is followed then, after the next [`poll`](Opening::poll). Left again it
    /// is a second order, which is followed or refused where the saga stands by then.
    pub async fn order(&self, saga: &str, by: &str, order: Order) -> Result<Requested, AskError> {
        InvalidText::check("the name of who decides", by, InvalidText::MAX)?;
        match &order {
            Order::Retry { step: Some(step) }
            | Order::Complete { step, .. }
            | Order::Reject { step, .. }
            | Order::Undone { step, .. } => InvalidText::check("the step", step, LONGEST_PATH)?,
            _ => {}
        }
        if let Order::Complete { output, .. } = &order {
            self.0.0.fits(output)?;
        }
        self.ask(Request::order(SagaId::new(saga)?, by, order.shortened())).await
    }

    async fn ask(&self, request: Request) -> Result<Requested, AskError> {
        let inner = &self.0.0;
        let saga = request.saga.clone();
        let requested = inner.journal()?.request(request).await?;
        if requested == Requested::Missing {
            return Err(AskError::Missing(saga));
        }
        // This one can be read.
        lock(&inner.vain).remove(&saga);
        inner.nudge.notify_one();
        Ok(requested)
    }

    /// What a saga follows, if that is registered here.
    async fn definition_of(&self, id: &SagaId) -> Result<Option<Arc<Definition>>, AskError> {
        let inner = &self.0.0;
        if let Some((_, definition)) = inner.watch(id) {
            return Ok(Some(definition));
        }
        let stored = inner.journal()?.load(id).await?.ok_or_else(|| AskError::Missing(id.clone()))?;
        Ok(inner.definitions.get(&stored.head.definition).cloned())
    }

    /// A saga's row; from memory, without the store, while it is worked on here. `None` when there is no such saga.
    ///
    /// # Errors
    ///
    /// [`AskError::Id`] and [`AskError::Store`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn status(&self, saga: &str) -> Result<Option<Status>, AskError> {
        let inner = &self.0.0;
        let id = SagaId::new(saga)?;
        if let Some(status) = inner.status(&id) {
            return Ok(Some(status));
        }
        let stored = inner.journal()?.load(&id).await?;
        Ok(stored.map(|stored| Status::of(&stored.head, None)))
    }

    /// A saga with all its records. `None` when there is no such saga.
    ///
    /// # Errors
    ///
    /// [`AskError::Id`] and [`AskError::Store`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn load(&self, saga: &str) -> Result<Option<Stored>, AskError> {
        let id = SagaId::new(saga)?;
        Ok(self.0.0.journal()?.load(&id).await?)
    }

    /// The sagas in the store, a page at a time in the order of their ids.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn list(&self, query: Query) -> Result<Vec<Head>, StoreError> {
        self.0.0.journal()?.list(query).await
    }

    /// The sagas that nobody can work on here, each with the reason: damaged, not fitting the code, or of a definition that is not
    /// registered. They are as they were found.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn blocked(&self) -> Result<Vec<(SagaId, String)>, StoreError> {
        let inner = &self.0.0;
        let mut blocked: Vec<_> = lock(&inner.blocked)
            .iter()
            .map(|(id, blocked)| (id.clone(), blocked.status.blocked.clone().unwrap_or_default()))
            .collect();
        let phases = Phase::ALL.into_iter().filter(|phase| !phase.is_terminal()).collect();
        let mut query = Query { phases, limit: 1_000, ..Query::default() };
        loop {
            let heads = inner.journal()?.list(query.clone()).await?;
            let Some(last) = heads.last() else { break };
            query.after = Some(last.id.clone());
            for head in heads {
                if let Some(damage) = head.damage {
                    blocked.push((head.id, damage));
                } else if !inner.definitions.contains_key(&head.definition) {
                    let DefinitionId { name, version, digest } = &head.definition;
                    let why = format!(
                        "definition {name:?} version {version} with digest {digest} is not registered"
                    );
                    blocked.push((head.id, why));
                }
            }
        }
        blocked.sort();
        blocked.dedup_by(|a, b| a.0 == b.0);
        Ok(blocked)
    }

    /// Deletes sagas that ended more than `age` ago, at most `limit` of them; how many it were. The store notes that this orchestrator did so
    /// ([`Journal::forgotten`](crate::saga::journal::Journal::forgotten)).
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    ///
    /// # Cancel safety
    ///
    /// The sagas may have been deleted when the future is dropped, all of them or none.
    pub async fn forget(&self, age: Duration, limit: usize) -> Result<usize, StoreError> {
        let now = self.0.0.now();
        let before = Timestamp(now.0.saturating_sub(Timestamp(0).after(age).0));
        self.0.0.journal()?.forget(self.0.0.by.as_str(), before, limit).await
    }

    /// How many sagas it works on now.
    pub fn live(&self) -> usize {
        lock(&self.0.0.live).len()
    }

    /// How many sagas in the store are not over, by definition and phase, and since when the oldest of them is not: as it was last counted, by
    /// one pass over their rows. `None` until the first.
    ///
    /// It is counted when the orchestrator starts, and again every 6 leases, a minute with the default, or less often, so that it
    /// takes no more than a twentieth of the time. Nothing else waits for that; while the store fails at it, it is tried again less and less
    /// often. Each orchestrator counts the whole store, so that the numbers of several are the same, not
    /// parts of a sum. A saga that begins or ends meanwhile may be missing or still there; none is counted twice.
    ///
    /// Asks memory, not the store.
    pub fn census(&self) -> Option<Census> {
        lock(&self.0.0.census).clone()
    }

    /// Whether its store has failed so that nothing can be recorded any more: it was [`Poisoned`](StoreError::Poisoned). Starts are
    /// refused with that then, and nothing goes on, while what the store has locked stays locked. Shut it down, and open store and
    /// orchestrator anew. It is noticed with the next heartbeat at the latest, after a third of a lease.
    pub fn failed(&self) -> bool {
        self.0.0.poisoned.load(Relaxed)
    }

    /// Who it is in the store.
    pub fn incarnation(&self) -> &Incarnation {
        &self.0.0.by
    }

    /// Waits until it has once looked at everything that was left in the store.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn recovered(&self) {
        let mut swept = self.0.0.swept.subscribe();
        // An orchestrator that is closed never will.
        let _ = swept.wait_for(|swept| *swept).await;
    }

    /// Ends it in order: nothing new is begun, attempts that run may finish within `grace`, its sagas are let go and can be taken up at
    /// once by others. What is not over then is dropped, as in a crash.
    ///
    /// When this returns, nothing of it has the store any more, which can be opened anew, unless the store does not answer for as
    /// long as a lease. Clones and handles that are left can ask nothing any more.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped it stops where it is, as when its last clone is dropped; others may have its sagas when its lease is
    /// over.
    pub async fn shutdown(self, grace: Duration) {
        let inner = &self.0.0;
        let _closing = Closing(inner);
        inner.draining.store(true, Relaxed);
        for seat in lock(&inner.live).values() {
            let _ = seat.mail.send(Mail::Drain);
        }
        let emptied = async {
            loop {
                let moved = inner.moved.notified();
                if lock(&inner.live).is_empty() {
                    return;
                }
                moved.await;
            }
        };
        let _ = tokio::time::timeout(grace, emptied).await;
        inner.close();
        // A store that does not answer is waited for no longer than until others may have the sagas.
        let most = inner.settings.lease;
        let _ = tokio::time::timeout(most, async { inner.gone.lock().await.recv().await }).await;
        let _ = tokio::time::timeout(most, inner.release_blocked()).await;
        inner.writer.close();
        let journal = lock(&inner.journal).take();
        if let Some(journal) = journal {
            let left = tokio::time::timeout(most, journal.leave(&inner.by)).await;
            if let Ok(Err(error)) = left {
                inner.store_failed(&error);
            }
        }
        let _ = tokio::time::timeout(most, async { inner.let_go.lock().await.recv().await }).await;
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0.0
    }
}

/// Closes it when whoever shuts it down waits no longer.
struct Closing<'a>(&'a Inner);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What a saga may be started with.
#[derive(Debug, Clone, Default)]
pub struct StartOptions {
    deadline: Option<Duration>,
    tag: String,
    locks: Vec<String>,
    patience: Duration,
}

impl StartOptions {
    /// When the saga is turned round, if it can be: so long after its start. Behind a pivot it goes on, and the listeners are told.
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = Some(after);
        self
    }

    /// Free text to find it by, of at most [`InvalidText::MAX`] bytes without control characters.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = tag.into();
        self
    }

    /// A *semantic lock*: no other saga that asks for this key begins until this one is over. All of a saga's locks are taken
    /// with its first record, or none; see also [`wait_for_locks`](Self::wait_for_locks). At most 64, each of at most [`InvalidText::MAX`] bytes without control characters.
    pub fn lock(mut self, key: impl Into<String>) -> Self {
        self.locks.push(key.into());
        self
    }

    /// How long the start waits for its locks while others hold them; not at all unless set, and then it is refused with
    /// [`StartError::Locked`]. Of several that wait any may be the next. Where the holder is driven by another process, its end is seen in
    /// the store, after at most 10 s.
    pub fn wait_for_locks(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    fn check(&self) -> Result<(), InvalidText> {
        InvalidText::check("the tag", &self.tag, InvalidText::MAX)?;
        if self.locks.len() > MOST_LOCKS {
            return Err(InvalidText::too_many("locks", MOST_LOCKS));
        }
        self.locks.iter().try_for_each(|key| InvalidText::check("the lock", key, InvalidText::MAX))
    }
}

/// Where a saga stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Status {
    /// Its phase; `None` while its beginning is being recorded.
    pub phase: Option<Phase>,
    /// What there is to say about it.
    pub note: String,
    /// Why nobody can work on it, if so.
    pub blocked: Option<String>,
    pub(crate) finished: Option<Finished>,
}

/// How a saga has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) outputs: Arc<[Option<Payload>]>,
    pub(crate) cause: Option<Cause>,
}

impl Finished {
    pub(crate) fn of(machine: &Machine) -> Self {
        Finished { outputs: machine.outputs().into(), cause: machine.cause().cloned() }
    }
}

impl Status {
    pub(crate) fn of(head: &Head, blocked: Option<String>) -> Self {
        Status { phase: Some(head.phase), note: head.note.clone(), blocked, finished: None }
    }
}

pub(super) fn random() -> u128 {
    let half = |salt: u8| u128::from(RandomState::new().hash_one(salt));
    half(0) << 64 | half(1)
}
