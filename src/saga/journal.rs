//! What a store of sagas has to do, and nothing of how.
//!
//! The same tables stand behind every implementation (see `docs/saga-format.md`): a saga's *head*, its *entries*, who the
//! *orchestrators* are, *requests* from outside, and *locks*. One conformance suite holds all implementations to what is
//! said here.

use std::{any::TypeId, fmt, future::Future, pin::Pin, time::Duration};

pub use super::transact::{AnyJob, Job, Work};
use super::{
    orchestrator::random,
    record::{Entry, Incarnation, Order, Payload, SagaId, Timestamp},
};

/// A future of a journal.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A store of sagas.
///
/// # What it promises
///
/// * What `append` has accepted survives the death of the process and of the machine. What it has refused, or what had no
///   answer because the process died, may or may not be there; entries of one [`Append`] are there all or none.
/// * An [`Append`] is accepted only from the saga's present owner, under the present epoch, and right behind the last entry; and
///   checked in the same transaction that writes it.
/// * Dropping any of its futures harms nothing: what was asked may or may not be done.
/// * After an I/O error while making something durable it refuses everything ([`StoreError::Poisoned`]) until it is opened anew,
///   since what is on the disk is then not known.
pub trait Journal: Send + Sync + 'static {
    /// The present by the clock that leases are measured with.
    fn now(&self) -> Pending<'_, Timestamp>;

    /// Appends to any number of sagas, with one forced write for all. The answers are in the order of the batch.
    ///
    /// A saga may come more than once: its items are then taken in their order, each behind the one before it. Of two that begin
    /// with the same lock the first one gets it.
    ///
    /// It may be called while earlier batches have no answer yet, but not with a saga that is in one of these.
    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>>;

    /// Whether it does work of the type `job`, a [`Job`], in the transaction of an [`Append`]; none unless a store says so.
    fn does(&self, job: TypeId) -> bool {
        let _none = job;
        false
    }

    /// Whether its futures do their work while they are polled, and so keep the polling thread busy. An orchestrator then has threads of its
    /// own that poll them, each one after the other: one for appends, one for what its lease depends on, one for other changes, one for
    /// looks.
    ///
    /// Where they do not, an append with [`work`](Append::work) is asked for by itself, and others meanwhile.
    fn blocks(&self) -> bool;

    /// Registers an orchestrator or prolongs its lease: until `now + lease` its sagas are not claimed by others.
    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()>;

    /// Ends an orchestrator's lease, and forgets what it has announced: its sagas may be claimed.
    fn leave(&self, by: &Incarnation) -> Pending<'_, ()>;

    /// Replaces what an orchestrator that is registered says of itself, for people who look at the store. Nothing else follows from
    /// it; of one that is not registered it is dropped.
    fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()>;

    /// The orchestrators that have registered, with what they say, in the order of their incarnations; also those whose lease is over,
    /// for some time.
    fn orchestrators(&self) -> Pending<'_, Vec<Registered>>;

    /// Takes sagas that need attention and makes `claim.by` their owner under the next epoch. Those without a `wake` come
    /// first, then those with the oldest.
    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>>;

    /// One saga whole, whoever owns it.
    fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>>;

    /// Heads in the order of their ids.
    fn list(&self, query: Query) -> Pending<'_, Vec<Head>>;

    /// Leaves a request at a saga for its owner. It is durable when this has answered.
    fn request(&self, request: Request) -> Pending<'_, Requested>;

    /// The requests that wait at sagas whose owner is `by`, in the order of their arrival.
    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>>;

    /// Deletes at most `limit` sagas that ended before `before`, with all that belongs to them; how many it were. In the same transaction
    /// it is noted that `by` did so, in one row for each `by` and day.
    fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize>;

    /// What was forgotten, at most `limit` rows, the last ones first.
    fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>>;

    /// What is wrong with the store as a whole, beside what [`Stored::verify`] says of single sagas; reads all of it. Nothing, where the
    /// store looks after itself.
    fn check(&self) -> Pending<'_, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// Where a saga stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Going forward.
    Running,
    /// Going forward, and waiting for a timer or a signal.
    Waiting,
    /// Undoing what was done.
    Unwinding,
    /// Something that has to succeed does not.
    Stuck,
    /// Waiting for a person.
    Parked,
    /// Every step has happened.
    Completed,
    /// Every step that may have happened was undone.
    Compensated,
    /// A person has given it up.
    Abandoned,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Phase; 8] = [
        Phase::Running,
        Phase::Waiting,
        Phase::Unwinding,
        Phase::Stuck,
        Phase::Parked,
        Phase::Completed,
        Phase::Compensated,
        Phase::Abandoned,
    ];

    /// Whether nothing can happen to the saga any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Completed | Phase::Compensated | Phase::Abandoned)
    }

    /// The phase as a short stable word, as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Running => "running",
            Phase::Waiting => "waiting",
            Phase::Unwinding => "unwinding",
            Phase::Stuck => "stuck",
            Phase::Parked => "parked",
            Phase::Completed => "completed",
            Phase::Compensated => "compensated",
            Phase::Abandoned => "abandoned",
        }
    }

    /// The phase with this word.
    pub fn from_text(word: &str) -> Option<Self> {
        Phase::ALL.into_iter().find(|phase| phase.as_str() == word)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Which definition a saga follows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct DefinitionId {
    /// The definition's name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// What its structure comes to.
    pub digest: String,
}

/// A saga without its entries: one row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Head {
    /// Its name.
    pub id: SagaId,
    /// What it follows.
    pub definition: DefinitionId,
    /// Where it stands.
    pub phase: Phase,
    /// What there is to say about its phase: the error it is stuck at, why it was turned round.
    pub note: String,
    /// How often it has changed hands.
    pub epoch: u64,
    /// Whose it is.
    pub owner: Option<Incarnation>,
    /// How many entries it has.
    pub len: u64,
    /// The checksum of its last entry.
    pub crc: u32,
    /// When it needs attention again; `None` for not before a request comes. Immediately while it has an owner who died.
    pub wake: Option<Timestamp>,
    /// When it began.
    pub created: Timestamp,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// How often it was claimed from an owner whose lease had run out, since its last entry.
    pub recoveries: u32,
    /// Free text to find it by.
    pub tag: String,
    /// What of the row or of the entries cannot be read, as far as that is seen without checksums. What is not readable has a stand-in
    /// then: for an impossible id a possible one, for an impossible phase [`Phase::Stuck`]; and the note says the same.
    pub damage: Option<String>,
}

impl Head {
    /// A new saga's, before its first entry is counted.
    pub fn new(id: SagaId, definition: DefinitionId, created: Timestamp) -> Self {
        Head {
            id,
            definition,
            phase: Phase::Running,
            note: String::new(),
            epoch: 1,
            owner: None,
            len: 0,
            crc: 0,
            wake: None,
            created,
            finished: None,
            recoveries: 0,
            tag: String::new(),
            damage: None,
        }
    }
}

/// A saga with its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its row.
    pub head: Head,
    /// Its entries as they were found, in the order of `seq`; whether they make sense is for the reader to say.
    pub entries: Vec<Entry>,
}

impl Stored {
    /// Whether the entries are whole: numbered from 0 without gaps, each with the checksum that follows from the one
    /// before it, and as many as the head counts, up to its checksum and its epoch.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn verify(&self) -> Result<(), Corrupt> {
        if let Some(damage) = &self.head.damage {
            return Err(Corrupt::Unreadable(damage.clone()));
        }
        let (mut previous, mut epoch) = (0, 0);
        for (expected, entry) in (0..).zip(&self.entries) {
            if entry.seq != expected {
                return Err(Corrupt::Gap { expected, found: entry.seq });
            }
            if entry.checksum(&self.head.id, previous) != entry.crc {
                return Err(Corrupt::Checksum { seq: entry.seq });
            }
            previous = entry.crc;
            epoch = epoch.max(entry.epoch);
        }
        let found = self.entries.len() as u64;
        if found != self.head.len {
            return Err(Corrupt::Length { counted: self.head.len, found });
        }
        if previous != self.head.crc {
            return Err(Corrupt::Head);
        }
        // It only grows, and what was accepted came from an owner that it had.
        if epoch > self.head.epoch {
            return Err(Corrupt::Epoch { head: self.head.epoch, found: epoch });
        }
        Ok(())
    }
}

/// What is left of sagas that were forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// Who said so.
    pub by: String,
    /// They had ended before that.
    pub before: Timestamp,
    /// How many they were.
    pub sagas: u64,
    /// When the last of them went.
    pub at: Timestamp,
}

/// What is wrong with the entries of a saga.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Corrupt {
    /// Something cannot be read; see [`Head::damage`].
    Unreadable(String),
    /// An entry is missing, or there is one too many.
    Gap {
        /// What comes next.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The entry, or the one before it, is not what was written.
    Checksum {
        /// Which.
        seq: u64,
    },
    /// Entries are missing at the end, or were added without the head.
    Length {
        /// How many the head counts.
        counted: u64,
        /// How many there are.
        found: u64,
    },
    /// The head has another checksum than the last entry.
    Head,
    /// The head says that it has changed hands less often than an entry says.
    Epoch {
        /// What the head says.
        head: u64,
        /// What the entry says.
        found: u64,
    },
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Corrupt::Unreadable(damage) => f.write_str(damage),
            Corrupt::Gap { expected, found } => {
                write!(f, "entry {expected} is missing: {found} is in its place")
            }
            Corrupt::Checksum { seq } => write!(f, "entry {seq} does not have the checksum of what it says"),
            Corrupt::Length { counted, found } => {
                write!(f, "there are {found} entries where {counted} were written")
            }
            Corrupt::Head => f.write_str("the last entry does not have the checksum that the head says"),
            Corrupt::Epoch { head, found } => {
                write!(f, "the head is at epoch {head}, and an entry of epoch {found} was accepted")
            }
        }
    }
}

impl std::error::Error for Corrupt {}

/// A new saga's own part of its first [`Append`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// What it follows.
    pub definition: DefinitionId,
    /// Free text to find it by.
    pub tag: String,
    /// Locks that it holds until it ends; claimed all or none.
    pub locks: Vec<String>,
}

/// Entries for one saga, and what its row says with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// Which saga.
    pub saga: SagaId,
    /// Who writes. With `begin` the owner from now on; otherwise it has to be the owner.
    pub by: Incarnation,
    /// Under which ownership; 1 with `begin`.
    pub epoch: u64,
    /// The saga is new.
    pub begin: Option<Begin>,
    /// What is appended; may be empty, when only the row changes. The first one's `seq` has to be the row's `len`.
    pub entries: Vec<Entry>,
    /// Work that makes the only entry: it is done in the same transaction, behind the checks. If it fails, whatever it did is rolled
    /// back, and the answer is [`Failed`](Refusal::Failed). `entries` is empty then.
    pub work: Option<Work>,
    /// Where the saga then stands. A terminal phase sets `finished` to the last entry's `at`, lets the locks go and
    /// drops the requests that still wait. It ends the ownership and the `wake` too, whatever `release` and `wake` say, so that
    /// nothing is appended to a saga that is over.
    pub phase: Phase,
    /// What there is to say about it.
    pub note: String,
    /// When it needs attention.
    pub wake: Option<Timestamp>,
    /// Whether the writer lets it go: it has no owner then, and is claimed when `wake` comes or a request waits.
    pub release: bool,
    /// The requests that these entries answer, by their `id`; they are gone afterwards.
    pub answers: Vec<String>,
}

/// Why an [`Append`] was not accepted. Nothing of it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Somebody else owns the saga, or has owned it in between.
    Fenced {
        /// The saga's epoch.
        epoch: u64,
    },
    /// A saga with this id has begun before.
    Exists,
    /// There is no saga with this id.
    Missing,
    /// It does not follow the last entry.
    Gap {
        /// What the first entry's `seq` has to be.
        expected: u64,
    },
    /// Another saga has the lock.
    Locked {
        /// Which lock.
        key: String,
        /// Who has it.
        holder: SagaId,
    },
    /// Its work has failed, and was rolled back.
    Failed {
        /// What it said.
        why: String,
    },
    /// Its work is for another kind of store.
    Foreign {
        /// Which.
        store: String,
    },
    /// Its work has ended the transaction that it was given. Nothing was recorded, and what it did is not known.
    Ended,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Fenced { epoch } => write!(f, "another orchestrator owns the saga, in epoch {epoch}"),
            Refusal::Exists => f.write_str("a saga with this id has begun before"),
            Refusal::Missing => f.write_str("there is no saga with this id"),
            Refusal::Gap { expected } => write!(f, "the next entry is {expected}"),
            Refusal::Locked { key, holder } => write!(f, "the lock {key:?} is held by saga {holder}"),
            Refusal::Failed { why } => write!(f, "its work was rolled back: {why}"),
            Refusal::Foreign { store } => {
                write!(f, "its work is for a journal in {store}, and the orchestrator's is another")
            }
            Refusal::Ended => {
                f.write_str("its work has ended the transaction that it was given: what it did is not known")
            }
        }
    }
}

impl std::error::Error for Refusal {}

/// Which sagas an orchestrator takes.
///
/// A saga is taken when it is not over, follows one of `definitions`, is not in `except`, and
/// * has no owner, and its `wake` has come or a request waits at it; or
/// * has an owner whose lease has run out or who is unknown; this counts as a recovery.
///
/// When `only` is set, those sagas alone are looked at, and one is taken too if it has no owner and neither `wake` nor a request says
/// so, or if `by` itself is its owner and has lost sight of it. Neither counts as a recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Who takes them.
    pub by: Incarnation,
    /// What it can work on.
    pub definitions: Vec<DefinitionId>,
    /// What it does not want: sagas that it has found to be unreadable.
    pub except: Vec<SagaId>,
    /// These sagas alone.
    pub only: Option<Vec<SagaId>>,
    /// The most it takes at once.
    pub limit: usize,
}

/// What an orchestrator says of itself; see [`Journal::announce`].
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Presence {
    /// How long its lease is, in milliseconds.
    pub lease_ms: u64,
    /// What it can work on.
    pub definitions: Vec<DefinitionId>,
    /// The sagas that it cannot work on, each with the reason; at most [`Presence::MOST`], the first ones in the order of their ids.
    pub blocked: Vec<(SagaId, String)>,
}

impl Presence {
    /// The most blocked sagas that are named.
    pub const MOST: usize = 1_000;

    /// As it is stored.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| unreachable!("names, numbers and texts have a JSON"))
    }
}

/// An orchestrator that has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registered {
    /// Who it is.
    pub by: Incarnation,
    /// Until when its sagas are left alone: it is alive if that is later than [`Journal::now`].
    pub until: Timestamp,
    /// What it says of itself; `None` when it has said nothing yet, has left, or a later version has said it.
    pub presence: Option<Presence>,
}

impl Registered {
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn from_text(by: &str, until: Timestamp, says: Option<&str>) -> Self {
        let presence = says.and_then(|text| serde_json::from_str(text).ok());
        Registered { by: Incarnation::from_text(by), until, presence }
    }
}

/// Which heads a listing shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Only these phases; all when empty.
    pub phases: Vec<Phase>,
    /// Only this definition.
    pub definition: Option<String>,
    /// Only this tag.
    pub tag: Option<String>,
    /// Only ids behind this one: the last of the page before.
    pub after: Option<SagaId>,
    /// The most it shows; 0 for 100.
    pub limit: usize,
}

/// Something from outside that a saga's owner shall take up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its own name: of two with the same name at the same saga the second changes nothing, also after the first was answered, until
    /// the saga is forgotten.
    pub id: String,
    /// Where it is left.
    pub saga: SagaId,
    /// Who asks.
    pub by: String,
    /// What for.
    pub ask: Ask,
}

impl Request {
    /// A person's decision, under a name that is not used again.
    ///
    /// A reason of more than 4 KiB is cut, as it is in the record.
    pub fn order(saga: SagaId, by: &str, order: Order) -> Self {
        let id = format!("order:{:032x}", random());
        Request { id, saga, by: by.to_owned(), ask: Ask::Order(order.shortened()) }
    }

    /// A message for a step, under the name that the sender has given it, so that it counts once.
    pub fn signal(saga: SagaId, by: &str, step: &str, message: &str, payload: Payload) -> Self {
        // Neither of the two has a control character.
        let id = format!("signal:{step}\u{1f}{message}");
        Request { id, saga, by: by.to_owned(), ask: Ask::Signal { step: step.to_owned(), payload } }
    }
}

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ask {
    /// A message for a step that waits for it, now or later.
    Signal {
        /// Which step.
        step: String,
        /// What it says.
        payload: Payload,
    },
    /// A person's decision.
    Order(Order),
}

/// What became of leaving a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Requested {
    /// It waits for the owner.
    Left,
    /// One with the same id was left before, and still waits or was answered; whether the saga is over or not. What the answer was it does
    /// not say: the saga's records do, where a [`Refused`](super::Record::Refused) one says that it could not be followed.
    Known,
    /// The saga is over.
    Over(Phase),
    /// There is no such saga. So says a store; an [`Orchestrator`](super::Orchestrator) says
    /// [`AskError::Missing`](super::AskError::Missing) instead.
    Missing,
}

/// Why a store could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// It does not answer, or said no for now. What was asked may or may not be done.
    Unavailable(String),
    /// Another process has it for itself.
    InUse(String),
    /// There is nothing at the place that was named.
    Absent(String),
    /// It is of a format that this version does not know.
    Format {
        /// What was found.
        found: String,
        /// What this version knows.
        known: String,
    },
    /// There is no room left.
    Full(String),
    /// The device failed, or what it holds makes no sense.
    Io(String),
    /// An earlier write failed; the store has to be opened anew.
    Poisoned,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Unavailable(why) => write!(f, "the saga store does not answer: {why}"),
            StoreError::InUse(why) => write!(f, "the saga store is in use by another process: {why}"),
            StoreError::Absent(what) => write!(f, "there is no saga store: {what}"),
            StoreError::Format { found, known } => {
                write!(f, "the saga store has format {found}, this version knows {known}")
            }
            StoreError::Full(why) => write!(f, "the saga store is full: {why}"),
            StoreError::Io(why) => write!(f, "the saga store failed: {why}"),
            StoreError::Poisoned => f.write_str("the saga store failed before and has to be opened anew"),
        }
    }
}

impl std::error::Error for StoreError {}
