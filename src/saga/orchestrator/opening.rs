//! What an orchestrator can be told, and how it starts.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};

use super::{
    Orchestrator, Owner,
    census::Looks,
    inner::{Inner, Listeners},
    keeper::{beat, keep},
    off_thread::OffThread,
    ramp::Ramp,
    random,
    waiters::Waiters,
    watched::{Gone, Watched},
};
use crate::{
    Bulkhead,
    error::ConfigError,
    event::{Identity, Observer},
    limit::not_zero,
    saga::{
        definition::{Definition, Inputs, Saga},
        journal::{DefinitionId, Journal, StoreError},
        record::Incarnation,
        writer::Writer,
    },
    sync::Mutex,
    time,
};

/// The longest interval between commits: more would be taken for a store that hangs.
const MOST_BETWEEN: Duration = Duration::from_secs(1);

/// What an orchestrator can be told.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) lease: Duration,
    pub(crate) poll: Duration,
    pub(crate) max_live: usize,
    pub(crate) max_input: usize,
    pub(crate) max_output: usize,
    pub(crate) max_recoveries: u32,
    pub(crate) stuck_retry: Option<Duration>,
    pub(crate) ramp: (usize, Duration),
    pub(crate) commit_interval: Duration,
}

/// An orchestrator in the making; see [`Orchestrator::open`].
///
/// | setting | default | allowed |
/// |---|---|---|
/// | [`lease`](Opening::lease) | 10 s | above zero |
/// | [`poll`](Opening::poll) | 250 ms | above zero |
/// | [`max_live`](Opening::max_live) | 10,000 | 1 or more |
/// | [`max_input`](Opening::max_input), [`max_output`](Opening::max_output) | 256 KiB | |
/// | [`max_recoveries`](Opening::max_recoveries) | 5 | |
/// | [`stuck_retry`](Opening::stuck_retry) | every 5 minutes | above zero |
/// | [`recovery_ramp`](Opening::recovery_ramp) | 256, doubled every 250 ms | 1 or more; above zero |
/// | [`commit_interval`](Opening::commit_interval) | zero | up to 1 s |
#[must_use = "an orchestrator does nothing until it is started"]
pub struct Opening {
    journal: Arc<dyn Journal>,
    let_go: Gone,
    definitions: Vec<Arc<Definition>>,
    settings: Settings,
    identity: Identity,
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Opening {
    pub(super) fn new(journal: impl Journal) -> Self {
        let (journal, let_go) = Watched::new(journal);
        Opening {
            journal: Arc::new(journal),
            let_go,
            definitions: Vec::new(),
            settings: Settings {
                lease: Duration::from_secs(10),
                poll: Duration::from_millis(250),
                max_live: 10_000,
                max_input: 256 * 1024,
                max_output: 256 * 1024,
                max_recoveries: 5,
                stuck_retry: Some(Duration::from_secs(300)),
                ramp: (256, Duration::from_millis(250)),
                commit_interval: Duration::ZERO,
            },
            identity: Identity::new("saga"),
        }
    }

    /// Adds a definition: its sagas can be started and are taken up. Register the versions that still have sagas side by side.
    pub fn register<I, R: Inputs>(mut self, saga: &Saga<I, R>) -> Self {
        self.definitions.push(saga.definition.clone());
        self
    }

    /// Adds a listener for what happens to the sagas. One that panics misses the event, and nothing else comes of it.
    pub fn observe(mut self, observer: impl Observer + 'static) -> Self {
        self.identity.observe(Arc::new(observer));
        self
    }

    /// For how long others leave its sagas alone when nothing is heard of it. It says something three times in that time, and stops
    /// working when it could not.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// How often it looks for sagas whose time has come, and for requests that other processes have left.
    pub fn poll(mut self, every: Duration) -> Self {
        self.settings.poll = every;
        self
    }

    /// The most sagas that it works on at once; starting more is refused. Those that wait for time or a message do not count.
    ///
    /// Those that only wait to try again count, until seven eighths of the places are taken; from then on they make room. While all are taken
    /// nothing else is taken up either, which [`Event::SagaLive`](crate::Event::SagaLive) tells.
    pub fn max_live(mut self, sagas: usize) -> Self {
        self.settings.max_live = sagas;
        self
    }

    /// The largest input in bytes of JSON; a larger one is refused.
    pub fn max_input(mut self, bytes: usize) -> Self {
        self.settings.max_input = bytes;
        self
    }

    /// The largest output of a step in bytes of JSON. The effect of a step with a larger one is not lost: its outcome is unknown, as of one
    /// whose output cannot be read again; and to know that, each output is read once more before it is recorded. Work in the journal's
    /// transaction is rolled back instead, and rejected.
    pub fn max_output(mut self, bytes: usize) -> Self {
        self.settings.max_output = bytes;
        self
    }

    /// How often a saga is taken over from an orchestrator that died at it, without anything being recorded in between; then it is
    /// taken for the cause, and parked.
    pub fn max_recoveries(mut self, times: u32) -> Self {
        self.settings.max_recoveries = times;
        self
    }

    /// How often what is stuck is tried again without being told; `None` for never.
    pub fn stuck_retry(mut self, every: Option<Duration>) -> Self {
        self.settings.stuck_retry = every;
        self
    }

    /// How fast sagas go on that were left over by others, or whose time has come: in each period of `every` at most twice as many as in
    /// the one before, and never fewer than `sagas`. Those that were just started do not wait, nor does what is asked of a saga.
    ///
    /// After a crash its participants do not meet all sagas at once: with the default, 10,000 have all gone on after 1.25 s.
    pub fn recovery_ramp(mut self, sagas: usize, every: Duration) -> Self {
        self.settings.ramp = (sagas, every);
        self
    }

    /// The least time from the beginning of one forced write to the beginning of the next. What comes in between is written together, so
    /// that many sagas at once cost fewer writes to the disk and less processor, and each step takes up to so much longer.
    ///
    /// Behind a write of one append nobody waits: a saga that is alone is as fast as with zero. Zero is best where the store has nothing
    /// else to do. A few milliseconds pay where sagas share disk and processors with others; what they saved in one system is in
    /// `docs/performance.md`. The same idea is `commit_delay` in PostgreSQL, and `linger.ms` in Kafka.
    pub fn commit_interval(mut self, interval: Duration) -> Self {
        self.settings.commit_interval = interval;
        self
    }

    /// Starts it, on the current tokio runtime: registers it in the store, and begins to take up what was left there.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when a setting is impossible, two definitions have the same name and version, or the store fails.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with time enabled.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped there is no orchestrator, and nothing was taken up. Its registration may be left in the store, until its lease is
    /// over; the store itself is let go soon after.
    pub async fn start(self) -> Result<Orchestrator, OpenError> {
        let Opening { journal, let_go, definitions, settings, identity } = self;
        not_zero(settings.lease, "saga.lease")?;
        not_zero(settings.poll, "saga.poll")?;
        not_zero(settings.stuck_retry.unwrap_or(Duration::MAX), "saga.stuck_retry")?;
        let (first, every) = settings.ramp;
        ConfigError::unless(first > 0, "saga.recovery_ramp.sagas", first, "1 or more")?;
        not_zero(every, "saga.recovery_ramp.every")?;
        let interval = settings.commit_interval;
        ConfigError::unless(interval <= MOST_BETWEEN, "saga.commit_interval", interval, "at most 1 s")?;
        let admission = Bulkhead::config(settings.max_live).name(identity.name().clone()).build()?;
        let mut known: HashMap<DefinitionId, Arc<Definition>> = HashMap::new();
        for definition in definitions {
            let id = definition.shape.id.clone();
            let twin = known.keys().find(|other| (&other.name, other.version) == (&id.name, id.version));
            if twin.is_some_and(|twin| *twin != id) {
                return Err(OpenError::Twice { name: id.name, version: id.version });
            }
            for (node, code) in definition.shape.nodes.iter().zip(&definition.code) {
                if let Some((_, store)) = code.jobs.iter().find(|(job, _)| !journal.does(*job)) {
                    return Err(OpenError::Transaction {
                        definition: id.name,
                        step: node.path.clone(),
                        store: (*store).to_owned(),
                    });
                }
            }
            known.insert(id, definition);
        }

        let by = incarnation();
        let no_thread = |error| StoreError::Unavailable(format!("it cannot be given a thread: {error}"));
        let writer = Writer::start(journal.clone(), interval).map_err(no_thread)?;
        let (here, gone) = tokio::sync::mpsc::channel(1);
        let journal = match journal.blocks() {
            true => Arc::new(OffThread::start(journal, here.downgrade()).map_err(no_thread)?),
            false => journal,
        };
        let asked = time::now();
        journal.heartbeat(&by, settings.lease).await?;
        let now = journal.now().await?;
        let inner = Arc::new(Inner {
            journal: Mutex::new(Some(journal)),
            writer,
            by,
            definitions: known,
            settings,
            identity: Listeners(identity),
            admission,
            places: Mutex::default(),
            live: Mutex::default(),
            lost: Mutex::default(),
            blocked: Mutex::default(),
            vain: Mutex::default(),
            announced: Mutex::default(),
            clock: Mutex::new((now, time::now())),
            leased_until: Mutex::new(asked),
            lapses: AtomicU64::new(0),
            looks: Mutex::new(Looks::new(asked)),
            census: Mutex::default(),
            ramp: Mutex::new(Ramp::new(first, every)),
            nudge: Notify::new(),
            beat: Notify::new(),
            moved: Notify::new(),
            waiters: Waiters::default(),
            recorded: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            here: Mutex::new(Some(here)),
            gone: tokio::sync::Mutex::new(gone),
            let_go: tokio::sync::Mutex::new(let_go),
            closed: watch::Sender::new(false),
            swept: watch::Sender::new(false),
        });
        inner.extend_lease(asked);
        tokio::spawn(beat(inner.clone()));
        tokio::spawn(keep(inner.clone()));
        Ok(Orchestrator(Arc::new(Owner(inner))))
    }
}

fn incarnation() -> Incarnation {
    Incarnation::from_text(&format!("{}-{:032x}", std::process::id(), random()))
}

/// Why an orchestrator could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// A setting is outside its range.
    Setting(ConfigError),
    /// Two different definitions have the same name and version.
    Twice {
        /// The name.
        name: String,
        /// The version.
        version: u32,
    },
    /// A step has work for the transaction of another kind of store than the journal's.
    Transaction {
        /// The definition.
        definition: String,
        /// The step.
        step: String,
        /// For what store its work is.
        store: String,
    },
    /// The store.
    Store(StoreError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Setting(error) => error.fmt(f),
            OpenError::Twice { name, version } => {
                write!(
                    f,
                    "two different definitions are named {name:?} version {version}: give the newer another version"
                )
            }
            OpenError::Transaction { definition, step, store } => write!(
                f,
                "step {step:?} of {definition:?} is to be done in a transaction of the journal, which would have to be in {store}"
            ),
            OpenError::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {}

impl From<ConfigError> for OpenError {
    fn from(error: ConfigError) -> Self {
        OpenError::Setting(error)
    }
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        OpenError::Store(error)
    }
}
