//! Work that a store does in the transaction that records what comes of it.

use std::{
    any::{Any, TypeId},
    fmt,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    attempt::Acted,
    journal::Refusal,
    record::{Entry, Payload, Record},
    step::Failure,
};
use crate::sync::{Mutex, lock};

/// What an action may answer with: its output, or a [`Transact`], out of whose transaction the output comes.
///
/// It is implemented for both, and for nothing else.
pub trait Answer: Send + 'static {
    /// What comes of the step.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    #[doc(hidden)]
    fn job() -> Option<(TypeId, &'static str)>;

    #[doc(hidden)]
    fn acted(self) -> Result<Acted<Payload>, Failure>;
}

impl<O: Serialize + DeserializeOwned + Send + 'static> Answer for O {
    type Output = O;

    fn job() -> Option<(TypeId, &'static str)> {
        None
    }

    fn acted(self) -> Result<Acted<Payload>, Failure> {
        let encoded = Payload::encode(&self);
        encoded.map(Acted::Done).map_err(|error| Failure::unknown(format!("its output has no JSON: {error}")))
    }
}

/// Work that is to be done in the transaction that records the step's completion, and out of which an `O` comes.
///
/// Made by `sqlite::in_transaction` and `postgres::in_transaction`, for the store that the orchestrator's journal is in.
#[must_use = "the work is done when an action has answered with it"]
pub struct Transact<O, J> {
    job: J,
    output: PhantomData<fn() -> O>,
}

impl<O, J: Job> Transact<O, J> {
    /// Work for a store that does a `J`, out of which the JSON of an `O` has to come.
    pub fn new(job: J) -> Self {
        Transact { job, output: PhantomData }
    }

    /// The work without its types, for an [`Append`](super::journal::Append).
    pub fn into_job(self) -> AnyJob {
        AnyJob { store: J::STORE, job: Box::new(self.job) }
    }
}

impl<O, J: Job> fmt::Debug for Transact<O, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transact").field("store", &J::STORE).finish_non_exhaustive()
    }
}

impl<O: Serialize + DeserializeOwned + Send + 'static, J: Job> Answer for Transact<O, J> {
    type Output = O;

    fn job() -> Option<(TypeId, &'static str)> {
        Some((TypeId::of::<J>(), J::STORE))
    }

    fn acted(self) -> Result<Acted<Payload>, Failure> {
        Ok(Acted::Job(self.into_job()))
    }
}

/// What one kind of store can do within a transaction of its own.
pub trait Job: Send + 'static {
    /// The kind of store, for people: `SQLite`.
    const STORE: &'static str;
}

/// Work for whatever store.
pub struct AnyJob {
    store: &'static str,
    job: Box<dyn Any + Send>,
}

impl AnyJob {
    /// The work, if it is a `J`.
    pub(crate) fn downcast<J: Job>(self) -> Result<J, AnyJob> {
        let AnyJob { store, job } = self;
        job.downcast().map(|job| *job).map_err(|job| AnyJob { store, job })
    }
}

impl fmt::Debug for AnyJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AnyJob").field(&self.store).finish()
    }
}

/// What an output becomes: the record, and the entry that goes into the journal.
type Make = Box<dyn Fn(Payload) -> Result<(Record, Entry), Failure> + Send + Sync>;

/// Work in an [`Append`](super::journal::Append): the store does it behind the checks, and appends the entry that comes of it, in one
/// transaction. Clones are the same work, and it is done at most once.
#[derive(Clone)]
pub struct Work(Arc<Inner>);

struct Inner {
    seq: u64,
    make: Make,
    state: Mutex<State>,
    given_up: AtomicBool,
}

enum State {
    /// Nobody has begun with it.
    Waiting(AnyJob),
    /// It was begun.
    Begun,
    /// This comes of it, if it was committed.
    Made(Record, Entry),
    /// It was rolled back.
    Failed(Failure),
}

impl Work {
    /// Work whose output `make` turns into the entry number `seq`.
    pub fn new(
        job: AnyJob,
        seq: u64,
        make: impl Fn(Payload) -> Result<(Record, Entry), Failure> + Send + Sync + 'static,
    ) -> Self {
        let (make, state) = (Box::new(make), Mutex::new(State::Waiting(job)));
        Work(Arc::new(Inner { seq, make, state, given_up: AtomicBool::new(false) }))
    }

    /// The number of the entry that comes of it, which has to be the saga's length.
    pub fn seq(&self) -> u64 {
        self.0.seq
    }

    /// Takes the work, to do it.
    ///
    /// # Errors
    ///
    /// What is to be answered: [`Foreign`](Refusal::Foreign) when it is for another kind of store; [`Failed`](Refusal::Failed) when
    /// it was begun before, in a transaction that was rolled back: if it had not been, the checks would have refused it; and when it is
    /// [given up](Self::is_given_up).
    pub fn take<J: Job>(&self) -> Result<J, Refusal> {
        if self.is_given_up() {
            return Err(self.failed(Failure::unstarted("its attempt was given up before it was begun")));
        }
        let mut state = lock(&self.0.state);
        match std::mem::replace(&mut *state, State::Begun) {
            State::Waiting(job) => job.downcast().map_err(|job| {
                let store = job.store.to_owned();
                *state = State::Waiting(job);
                Refusal::Foreign { store }
            }),
            State::Failed(failure) => {
                let why = failure.message().to_owned();
                *state = State::Failed(failure);
                Err(Refusal::Failed { why })
            }
            State::Begun | State::Made(..) => {
                drop(state);
                Err(self.failed(Failure::unknown("the transaction was rolled back")))
            }
        }
    }

    /// The entry that its output makes, for the same transaction.
    ///
    /// # Errors
    ///
    /// When the output is too large, or cannot be read again: the transaction has to be rolled back.
    pub fn made(&self, output: Payload) -> Result<Entry, Failure> {
        let (record, entry) = (self.0.make)(output)?;
        *lock(&self.0.state) = State::Made(record, entry.clone());
        Ok(entry)
    }

    /// It has failed, and all that it did was rolled back; what is to be answered.
    pub fn failed(&self, failure: Failure) -> Refusal {
        let why = failure.message().to_owned();
        *lock(&self.0.state) = State::Failed(failure);
        Refusal::Failed { why }
    }

    /// Other work may have spoilt the transaction: what this one did is rolled back, and it is not to blame.
    pub fn excuse(&self) {
        let mut state = lock(&self.0.state);
        if matches!(*state, State::Begun | State::Made(..)) {
            *state = State::Failed(Failure::unstarted("the transaction was rolled back with other work"));
        }
    }

    /// Whether the attempt that it is of has been given up, by its time limit mostly. What is recorded nevertheless counts; a store
    /// that others wait for interrupts it.
    pub fn is_given_up(&self) -> bool {
        self.0.given_up.load(Relaxed)
    }

    pub(crate) fn give_up(&self) {
        self.0.given_up.store(true, Relaxed);
    }

    /// What was recorded, once the append was accepted.
    pub(crate) fn recorded(&self) -> Option<(Record, Entry)> {
        match std::mem::replace(&mut *lock(&self.0.state), State::Begun) {
            State::Made(record, entry) => Some((record, entry)),
            _ => None,
        }
    }

    /// Why it was rolled back.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match std::mem::replace(&mut *lock(&self.0.state), State::Begun) {
            State::Failed(failure) => Some(failure),
            _ => None,
        }
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("seq", &self.0.seq).finish_non_exhaustive()
    }
}

impl PartialEq for Work {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Work {}
