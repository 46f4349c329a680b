//! Owns sagas: starts them, takes up what others have left, hands them what comes from outside, and keeps its lease.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{
    definition::{Definition, Inputs, Saga},
    driver::{Driver, Ledger, Mail, Stop},
    handle::{Handle, Outcome},
    journal::{
        Ask, Begin, Claim, DefinitionId, Head, Journal, Phase, Query, Refusal, Request, Requested,
        StoreError, Stored,
    },
    machine::Machine,
    record::{Cause, Incarnation, InvalidId, Order, Payload, Record, SagaId, Timestamp},
    writer::{WriteError, Writer},
};
use crate::{
    Bulkhead,
    bulkhead::OwnedPermit,
    error::{ConfigError, Refused},
    event::{Event, Identity, Observer},
    limit::not_zero,
    sync::{Mutex, lock},
    time,
};

/// How many sagas are taken up at once.
const CLAIM: usize = 256;

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
#[must_use = "an orchestrator does nothing until it is started"]
pub struct Opening {
    journal: Arc<dyn Journal>,
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
    /// Adds a definition: its sagas can be started and are taken up. Register the versions that still have sagas side by side.
    pub fn register<I, R: Inputs>(mut self, saga: &Saga<I, R>) -> Self {
        self.definitions.push(saga.definition.clone());
        self
    }

    /// Adds a listener for what happens to the sagas.
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
    pub fn max_live(mut self, sagas: usize) -> Self {
        self.settings.max_live = sagas;
        self
    }

    /// The largest input in bytes of JSON; a larger one is refused.
    pub fn max_input(mut self, bytes: usize) -> Self {
        self.settings.max_input = bytes;
        self
    }

    /// The largest output of a step in bytes of JSON. The effect of a step with a larger one is not lost: its outcome is unknown.
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

    /// Starts it, on the current tokio runtime: registers it in the store, and begins to take up what was left there.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when a setting is impossible, two definitions have the same name and version, or the store fails.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with time enabled.
    pub async fn start(self) -> Result<Orchestrator, OpenError> {
        let Opening { journal, definitions, settings, identity } = self;
        not_zero(settings.lease, "saga.lease")?;
        not_zero(settings.poll, "saga.poll")?;
        not_zero(settings.stuck_retry.unwrap_or(Duration::MAX), "saga.stuck_retry")?;
        let admission = Bulkhead::new(settings.max_live)?;
        let mut known: HashMap<DefinitionId, Arc<Definition>> = HashMap::new();
        for definition in definitions {
            let id = definition.shape.id.clone();
            let twin = known.keys().find(|other| (&other.name, other.version) == (&id.name, id.version));
            if twin.is_some_and(|twin| *twin != id) {
                return Err(OpenError::Twice { name: id.name, version: id.version });
            }
            known.insert(id, definition);
        }

        let by = incarnation();
        let asked = time::now();
        journal.heartbeat(&by, settings.lease).await?;
        let now = journal.now().await?;
        let writer = Writer::start(journal.clone())
            .map_err(|error| StoreError::Unavailable(format!("its writer cannot be started: {error}")))?;
        let inner = Arc::new(Inner {
            journal,
            writer,
            by,
            definitions: known,
            settings,
            identity,
            admission,
            live: Mutex::default(),
            lost: Mutex::default(),
            blocked: Mutex::default(),
            clock: Mutex::new((now, time::now())),
            leased_until: Mutex::new(asked),
            lapses: AtomicU64::new(0),
            unsure: AtomicBool::new(false),
            nudge: Notify::new(),
            moved: Notify::new(),
            draining: AtomicBool::new(false),
            closed: watch::Sender::new(false),
            swept: watch::Sender::new(false),
        });
        inner.extend_lease(asked);
        tokio::spawn(keep(inner.clone()));
        Ok(Orchestrator(Arc::new(Owner(inner))))
    }
}

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
        Opening {
            journal: Arc::new(journal),
            definitions: Vec::new(),
            settings: Settings {
                lease: Duration::from_secs(10),
                poll: Duration::from_millis(250),
                max_live: 10_000,
                max_input: 256 * 1024,
                max_output: 256 * 1024,
                max_recoveries: 5,
                stuck_retry: Some(Duration::from_secs(300)),
            },
            identity: Identity::new("saga"),
        }
    }

    /// Starts a saga. When this returns, the saga will end: it is durable.
    ///
    /// The same `id` with the same input is the same saga, however often it is started.
    ///
    /// # Errors
    ///
    /// [`StartError`]; only after [`StartError::Store`] is it not known whether it has begun: start it again.
    ///
    /// # Cancel safety
    ///
    /// The saga may have begun when the future is dropped.
    pub async fn start<I: Serialize, R: Inputs>(
        &self,
        saga: &Saga<I, R>,
        id: &str,
        input: &I,
    ) -> Result<Handle<R>, StartError> {
        self.start_with(saga, id, input, StartOptions::default()).await
    }

    /// As [`start`](Self::start), with a deadline, a tag, or locks.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_with<I: Serialize, R: Inputs>(
        &self,
        saga: &Saga<I, R>,
        id: &str,
        input: &I,
        options: StartOptions,
    ) -> Result<Handle<R>, StartError> {
        let inner = &self.0.0;
        let id = SagaId::new(id)?;
        let input = Payload::encode(input).map_err(|error| StartError::Input(error.to_string()))?;
        let (bytes, most) = (input.as_str().len(), inner.settings.max_input);
        if bytes > most {
            return Err(StartError::Input(format!("it has {bytes} bytes of JSON, allowed are {most}")));
        }
        inner.begin(saga.definition.clone(), id.clone(), input, options).await?;
        Ok(Handle::new(self.clone(), saga.clone(), id))
    }

    /// Starts a saga and waits until it is over, or until it is stuck or waits for a person.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    ///
    /// # Cancel safety
    ///
    /// A saga that has begun goes on when the future is dropped.
    pub async fn run<I: Serialize, R: Inputs>(
        &self,
        saga: &Saga<I, R>,
        id: &str,
        input: &I,
    ) -> Result<Outcome<R::Values>, StartError> {
        let handle = self.start(saga, id, input).await?;
        Ok(handle.settled().await?)
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
    /// Of two messages with the same `message` id at the same saga the second changes nothing. It is durable when this returns. A message
    /// that nobody waits for any more is dropped.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn signal<T: Serialize + ?Sized>(
        &self,
        saga: &str,
        step: &str,
        message: &str,
        payload: &T,
    ) -> Result<Requested, AskError> {
        let payload = Payload::encode(payload).map_err(|error| AskError::Payload(error.to_string()))?;
        let ask = Ask::Signal { step: step.to_owned(), payload };
        self.ask(saga, format!("signal:{step}:{message}"), "signal".to_owned(), ask).await
    }

    /// Turns a saga round, unless a step has happened or may have that cannot be undone. Durable when this returns, obeyed soon after.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn cancel(&self, saga: &str, reason: &str) -> Result<Requested, AskError> {
        self.order(saga, "cancel", Order::Cancel { reason: reason.to_owned() }).await
    }

    /// Leaves a person's decision with a saga. It becomes a record of the saga if it can be followed where the saga then stands.
    ///
    /// # Errors
    ///
    /// [`AskError`].
    pub async fn order(&self, saga: &str, by: &str, order: Order) -> Result<Requested, AskError> {
        let name = format!("order:{:032x}", random());
        self.ask(saga, name, by.to_owned(), Ask::Order(order)).await
    }

    async fn ask(&self, saga: &str, id: String, by: String, ask: Ask) -> Result<Requested, AskError> {
        let inner = &self.0.0;
        let request = Request { id, saga: SagaId::new(saga)?, by, ask };
        let requested = inner.journal.request(request).await?;
        inner.nudge.notify_one();
        Ok(requested)
    }

    /// A saga's row; from memory, without the store, while it is worked on here.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn status(&self, saga: &str) -> Result<Option<Status>, AskError> {
        let inner = &self.0.0;
        let id = SagaId::new(saga)?;
        if let Some(status) = inner.status(&id) {
            return Ok(Some(status));
        }
        let stored = inner.journal.load(&id).await?;
        Ok(stored.map(|stored| Status::of(&stored.head, None)))
    }

    /// A saga with all its records.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn load(&self, saga: &str) -> Result<Option<Stored>, AskError> {
        let id = SagaId::new(saga)?;
        Ok(self.0.0.journal.load(&id).await?)
    }

    /// The sagas in the store, a page at a time in the order of their ids.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn list(&self, query: Query) -> Result<Vec<Head>, StoreError> {
        self.0.0.journal.list(query).await
    }

    /// The sagas that nobody can work on here, each with the reason: damaged, not fitting the code, or of a definition that is not
    /// registered. They are as they were found.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn blocked(&self) -> Result<Vec<(SagaId, String)>, StoreError> {
        let inner = &self.0.0;
        let mut blocked: Vec<_> =
            lock(&inner.blocked).iter().map(|(id, why)| (id.clone(), why.clone())).collect();
        let phases = Phase::ALL.into_iter().filter(|phase| !phase.is_terminal()).collect();
        let mut query = Query { phases, limit: 1_000, ..Query::default() };
        loop {
            let heads = inner.journal.list(query.clone()).await?;
            let Some(last) = heads.last() else { break };
            query.after = Some(last.id.clone());
            for head in heads {
                if !inner.definitions.contains_key(&head.definition) {
                    let DefinitionId { name, version, digest } = &head.definition;
                    let why = format!(
                        "definition {name:?} version {version} with digest {digest} is not registered"
                    );
                    blocked.push((head.id, why));
                }
            }
        }
        blocked.sort();
        Ok(blocked)
    }

    /// Deletes sagas that ended more than `age` ago, at most `limit` of them; how many it were.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn forget(&self, age: Duration, limit: usize) -> Result<usize, StoreError> {
        let now = self.0.0.now();
        let before = Timestamp(now.0.saturating_sub(Timestamp(0).after(age).0));
        self.0.0.journal.forget(before, limit).await
    }

    /// How many sagas it works on now.
    pub fn live(&self) -> usize {
        lock(&self.0.0.live).len()
    }

    /// Who it is in the store.
    pub fn incarnation(&self) -> &Incarnation {
        &self.0.0.by
    }

    /// Waits until it has once looked at everything that was left in the store.
    pub async fn recovered(&self) {
        let mut swept = self.0.0.swept.subscribe();
        // An orchestrator that is closed never will.
        let _ = swept.wait_for(|swept| *swept).await;
    }

    /// Ends it in order: nothing new is begun, attempts that run may finish within `grace`, its sagas are let go and can be taken up at
    /// once by others. What is not over then is dropped, as in a crash.
    pub async fn shutdown(self, grace: Duration) {
        let inner = &self.0.0;
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
        if let Err(error) = inner.journal.leave(&inner.by).await {
            inner.identity.emit(&Event::SagaStoreFailed { error: &error });
        }
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0.0
    }
}

/// What a saga may be started with.
#[derive(Debug, Clone, Default)]
pub struct StartOptions {
    deadline: Option<Duration>,
    tag: String,
    locks: Vec<String>,
}

impl StartOptions {
    /// When the saga is turned round, if it can be: so long after its start. Behind a pivot it goes on, and the listeners are told.
    pub fn deadline(mut self, after: Duration) -> Self {
        self.deadline = Some(after);
        self
    }

    /// Free text to find it by.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = tag.into();
        self
    }

    /// A *semantic lock*: no other saga that asks for this key begins until this one is over. All of a saga's locks are taken
    /// with its first record, or none.
    pub fn lock(mut self, key: impl Into<String>) -> Self {
        self.locks.push(key.into());
        self
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
    pub(crate) finished: Option<(Arc<[Option<Payload>]>, Option<Cause>)>,
}

impl Status {
    pub(crate) fn of(head: &Head, blocked: Option<String>) -> Self {
        Status { phase: Some(head.phase), note: head.note.clone(), blocked, finished: None }
    }
}

/// What an orchestrator's tasks share.
pub(crate) struct Inner {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) writer: Writer,
    pub(crate) by: Incarnation,
    pub(crate) definitions: HashMap<DefinitionId, Arc<Definition>>,
    pub(crate) settings: Settings,
    pub(crate) identity: Identity,
    admission: Bulkhead,
    live: Mutex<HashMap<SagaId, Live>>,
    /// Owned, and not driven: to be read anew.
    lost: Mutex<Vec<SagaId>>,
    blocked: Mutex<HashMap<SagaId, String>>,
    /// The store's time at an instant of this process.
    clock: Mutex<(Timestamp, Instant)>,
    leased_until: Mutex<Instant>,
    /// How often it was prolonged after it had run out.
    lapses: AtomicU64,
    /// A claim had no answer: there may be sagas that are owned and not known.
    unsure: AtomicBool,
    /// Something was left in the store.
    nudge: Notify,
    /// A saga is no longer live.
    pub(crate) moved: Notify,
    draining: AtomicBool,
    closed: watch::Sender<bool>,
    swept: watch::Sender<bool>,
}

struct Live {
    mail: mpsc::UnboundedSender<Mail>,
    status: watch::Receiver<Status>,
}

/// A saga's place among those that are driven. It is free again when this is dropped, whatever became of the driver.
pub(crate) struct Seat {
    inner: Arc<Inner>,
    id: SagaId,
    /// Whether the saga is over or somebody else's, so that nobody has to look after it here.
    pub(crate) done: bool,
    _permit: OwnedPermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.inner.live).remove(&self.id);
        if !self.done {
            lock(&self.inner.lost).push(self.id.clone());
            self.inner.nudge.notify_one();
        }
        self.inner.moved.notify_waiters();
    }
}

impl Inner {
    /// The store's time, as far as it was asked.
    pub(crate) fn now(&self) -> Timestamp {
        let (at, seen) = *lock(&self.clock);
        at.after(time::now().saturating_duration_since(seen))
    }

    pub(crate) fn status(&self, id: &SagaId) -> Option<Status> {
        if let Some(live) = lock(&self.live).get(id) {
            return Some(live.status.borrow().clone());
        }
        let blocked = lock(&self.blocked).get(id).cloned()?;
        Some(Status { blocked: Some(blocked), ..Status::default() })
    }

    pub(crate) fn watch(&self, id: &SagaId) -> Option<watch::Receiver<Status>> {
        lock(&self.live).get(id).map(|live| live.status.clone())
    }

    fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    fn close(&self) {
        self.closed.send_replace(true);
        self.nudge.notify_one();
        // Their drivers find that nobody can write to them.
        let live = std::mem::take(&mut *lock(&self.live));
        drop(live);
    }

    fn extend_lease(&self, asked: Instant) {
        // A tenth less than it was given: two clocks measure it.
        let mut until = lock(&self.leased_until);
        if time::now() >= *until {
            self.lapses.fetch_add(1, Relaxed);
        }
        *until = time::later(asked, self.settings.lease.mul_f64(0.9));
    }

    pub(crate) fn has_lease(&self) -> bool {
        time::now() < *lock(&self.leased_until)
    }

    pub(crate) fn lapses(&self) -> u64 {
        self.lapses.load(Relaxed)
    }

    /// Waits until it is sure that nobody else takes its sagas for abandoned. Nothing is begun without. How often it was not so: each time
    /// somebody may have taken them.
    pub(crate) async fn holds_lease(&self) -> Result<u64, Stop> {
        loop {
            if self.is_closed() {
                return Err(Stop::Closed);
            }
            if self.has_lease() {
                return Ok(self.lapses());
            }
            tokio::time::sleep(self.settings.poll).await;
        }
    }

    // === sagas

    fn seat(
        self: &Arc<Self>,
        id: &SagaId,
        permit: OwnedPermit,
    ) -> Option<(Seat, watch::Sender<Status>, mpsc::UnboundedReceiver<Mail>)> {
        let (mail, letters) = mpsc::unbounded_channel();
        let (status, seen) = watch::channel(Status::default());
        match lock(&self.live).entry(id.clone()) {
            Slot::Occupied(_) => return None,
            Slot::Vacant(slot) => slot.insert(Live { mail, status: seen }),
        };
        Some((Seat { inner: self.clone(), id: id.clone(), done: false, _permit: permit }, status, letters))
    }

    async fn begin(
        self: &Arc<Self>,
        definition: Arc<Definition>,
        id: SagaId,
        input: Payload,
        options: StartOptions,
    ) -> Result<(), StartError> {
        if self.is_closed() || self.draining.load(Relaxed) {
            return Err(StartError::Closed);
        }
        if !self.definitions.contains_key(&definition.shape.id) {
            return Err(StartError::Unregistered(definition.shape.id.clone()));
        }
        let permit = self.admission.try_acquire().map_err(StartError::Busy)?.into_owned();
        let now = self.now();
        // It is among the live ones before its beginning can be seen in the store, so that nobody here takes it for abandoned.
        let Some((mut seat, status, mail)) = self.seat(&id, permit) else {
            return self.same(&definition, &id, &input).await;
        };
        let machine = Machine::new(definition.shape.clone());
        let mut ledger = Ledger::new(self.clone(), id.clone(), machine, (1, 0, 0), now, status);
        let begin = Begin { definition: definition.shape.id.clone(), tag: options.tag, locks: options.locks };
        let deadline = options.deadline.map(|after| now.after(after));
        let (told, begun) = oneshot::channel();
        let (inner, driven) = (self.clone(), definition.clone());
        let record = Record::Begun { input: input.clone(), deadline };
        // A task of its own: what was queued is looked after, even if nobody waits for it any more.
        tokio::spawn(async move {
            let answer = ledger.begin(begin, record).await;
            match &answer {
                Ok(()) => {
                    let _ = told.send(answer);
                    drive(inner, Driver::new(ledger, driven, mail, seat, false)).await;
                }
                Err(error) => {
                    seat.done = matches!(error, WriteError::Refused(_));
                    drop((seat, ledger, mail));
                    let _ = told.send(answer);
                }
            }
        });
        let ended = || WriteError::Store(StoreError::Unavailable("the runtime has ended".to_owned()));
        match begun.await.unwrap_or_else(|_| Err(ended())) {
            Ok(()) => Ok(()),
            Err(WriteError::Refused(Refusal::Locked { key, holder })) => {
                Err(StartError::Locked { key, holder })
            }
            Err(WriteError::Refused(_)) => self.same(&definition, &id, &input).await,
            // It may have begun, and then it is looked after.
            Err(WriteError::Store(error)) => {
                self.identity.emit(&Event::SagaStoreFailed { error: &error });
                Err(StartError::Store(error))
            }
        }
    }

    /// Whether the saga that exists is the one that was to be started.
    async fn same(&self, definition: &Definition, id: &SagaId, input: &Payload) -> Result<(), StartError> {
        let Some(stored) = self.journal.load(id).await? else {
            // It is just being started, by somebody else who is told what becomes of it.
            return Err(StartError::Store(StoreError::Unavailable(
                "the same saga is just being started".to_owned(),
            )));
        };
        let begun = stored.entries.first().and_then(|entry| entry.record().ok());
        let equal = |a: &Payload, b: &Payload| {
            let value = |payload: &Payload| payload.decode::<serde_json::Value>().ok();
            a == b || value(a) == value(b)
        };
        match begun {
            Some(Record::Begun { input: first, .. })
                if stored.head.definition.name == definition.shape.id.name && equal(&first, input) =>
            {
                Ok(())
            }
            _ => Err(StartError::Different { id: id.clone() }),
        }
    }

    /// Drives a saga that was claimed.
    fn adopt(self: &Arc<Self>, stored: Stored, permit: OwnedPermit) {
        let id = stored.head.id.clone();
        let Some((mut seat, status, mail)) = self.seat(&id, permit) else {
            // Its last driver is just leaving.
            lock(&self.lost).push(id);
            self.nudge.notify_one();
            return;
        };
        let Head { epoch, len, crc, created, recoveries, ref definition, .. } = stored.head;
        let Some(definition) = self.definitions.get(definition).cloned() else {
            return;
        };
        let machine = match fold(&stored, &definition) {
            Ok(machine) => machine,
            Err(why) => {
                seat.done = true;
                self.block(&definition.shape.id.name, id, why);
                return;
            }
        };
        status.send_replace(Status::of(&stored.head, None));
        let mut ledger = Ledger::new(self.clone(), id, machine, (epoch, len, crc), created, status);
        let inner = self.clone();
        let most = self.settings.max_recoveries;
        tokio::spawn(async move {
            if recoveries > most && !ledger.machine.is_held() {
                let reason = format!(
                    "{recoveries} orchestrators have died at it without recording anything; it may be the cause"
                );
                if let Err(stop) = ledger.park(reason).await {
                    inner.stopped(&definition.shape.id.name, &ledger.id.clone(), &mut seat, stop);
                    return;
                }
            }
            let driver = Driver::new(ledger, definition, mail, seat, true);
            drive(inner, driver).await;
        });
    }

    fn block(&self, definition: &str, id: SagaId, why: String) {
        self.identity.emit(&Event::SagaBlocked { definition, saga: id.as_str(), why: &why });
        lock(&self.blocked).insert(id, why);
    }

    fn stopped(&self, definition: &str, id: &SagaId, seat: &mut Seat, stop: Stop) {
        match stop {
            Stop::Released | Stop::Closed => seat.done = true,
            // An append of its own that was not made leaves a gap, and the saga its own: it is asked for once more.
            Stop::Fenced => {}
            Stop::Blocked(why) => {
                seat.done = true;
                self.block(definition, id.clone(), why);
            }
            Stop::Lost(error) => self.identity.emit(&Event::SagaStoreFailed { error: &error }),
        }
    }

    // === the keeper's work

    fn claim(&self, only: Option<SagaId>, limit: usize) -> Claim {
        Claim {
            by: self.by.clone(),
            definitions: self.definitions.keys().cloned().collect(),
            except: lock(&self.blocked).keys().cloned().collect(),
            only,
            limit,
        }
    }

    async fn round(self: &Arc<Self>) -> Result<(), StoreError> {
        let asked = time::now();
        self.journal.heartbeat(&self.by, self.settings.lease).await?;
        self.extend_lease(asked);
        let now = self.journal.now().await?;
        *lock(&self.clock) = (now, time::now());
        if self.draining.load(Relaxed) {
            return Ok(());
        }
        if self.unsure.swap(false, Relaxed) {
            self.look_for_own().await.inspect_err(|_| self.unsure.store(true, Relaxed))?;
        }
        let mut lost = std::mem::take(&mut *lock(&self.lost)).into_iter();
        while let Some(id) = lost.next() {
            if lock(&self.live).contains_key(&id) {
                lock(&self.lost).push(id);
                continue;
            }
            let Ok(permit) = self.admission.try_acquire() else {
                lock(&self.lost).push(id);
                continue;
            };
            let permit = permit.into_owned();
            match self.journal.claim(self.claim(Some(id.clone()), 1)).await {
                Ok(claimed) => {
                    if let Some(stored) = claimed.into_iter().next() {
                        self.adopt(stored, permit);
                    }
                }
                Err(error) => {
                    lock(&self.lost).extend([id].into_iter().chain(lost));
                    return Err(error);
                }
            }
        }
        loop {
            let free = self.settings.max_live.saturating_sub(self.admission.in_use());
            let limit = free.min(CLAIM);
            if limit == 0 {
                break;
            }
            let claimed = self.journal.claim(self.claim(None, limit)).await;
            let claimed = claimed.inspect_err(|_| self.unsure.store(true, Relaxed))?;
            let all = claimed.len() < limit;
            for stored in claimed {
                match self.admission.try_acquire() {
                    Ok(permit) => self.adopt(stored, permit.into_owned()),
                    Err(_) => lock(&self.lost).push(stored.head.id),
                }
            }
            if all {
                break;
            }
            tokio::task::yield_now().await;
        }
        for request in self.journal.requests(&self.by).await? {
            let mail = lock(&self.live).get(&request.saga).map(|live| live.mail.clone());
            if let Some(mail) = mail {
                let _ = mail.send(Mail::Request(request));
            }
        }
        self.swept.send_replace(true);
        Ok(())
    }
}

impl Inner {
    /// Finds what it owns in the store and nobody drives: a claim was made whose answer was lost.
    async fn look_for_own(&self) -> Result<(), StoreError> {
        let phases = Phase::ALL.into_iter().filter(|phase| !phase.is_terminal()).collect();
        let mut query = Query { phases, limit: 1_000, ..Query::default() };
        loop {
            let heads = self.journal.list(query.clone()).await?;
            let Some(last) = heads.last() else { return Ok(()) };
            query.after = Some(last.id.clone());
            let own = heads.into_iter().filter(|head| head.owner.as_ref() == Some(&self.by));
            let mut lost = lock(&self.lost);
            for head in own.filter(|head| !lock(&self.live).contains_key(&head.id)) {
                if !lost.contains(&head.id) {
                    lost.push(head.id);
                }
            }
        }
    }
}

async fn drive(inner: Arc<Inner>, mut driver: Driver) {
    let name = driver.ledger.machine.shape().id.name.clone();
    let id = driver.ledger.id.clone();
    match driver.run().await {
        Ok(()) => driver.seat.done = true,
        Err(stop) => inner.stopped(&name, &id, &mut driver.seat, stop),
    }
}

/// Keeps the lease and looks after what comes, until the orchestrator is closed.
async fn keep(inner: Arc<Inner>) {
    let mut closed = inner.closed.subscribe();
    loop {
        if let Err(error) = inner.round().await {
            inner.identity.emit(&Event::SagaStoreFailed { error: &error });
        }
        let pause = inner.settings.poll.min(inner.settings.lease / 3);
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => return,
            () = inner.nudge.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The machine that a saga's records make.
fn fold(stored: &Stored, definition: &Definition) -> Result<Machine, String> {
    stored.verify().map_err(|corrupt| corrupt.to_string())?;
    let mut machine = Machine::new(definition.shape.clone());
    for entry in &stored.entries {
        let record =
            entry.record().map_err(|error| format!("record {} cannot be read: {error}", entry.seq))?;
        machine.apply(&record).map_err(|illegal| format!("record {}: {illegal}", entry.seq))?;
    }
    match machine.input() {
        Some(_) => Ok(machine),
        None => Err("it has no beginning".to_owned()),
    }
}

fn random() -> u128 {
    let half = |salt: u8| u128::from(RandomState::new().hash_one(salt));
    half(0) << 64 | half(1)
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

/// Why a saga was not started.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartError {
    /// The id is impossible.
    Id(InvalidId),
    /// The input is too large, or has no JSON.
    Input(String),
    /// The definition is not registered with this orchestrator.
    Unregistered(DefinitionId),
    /// There is a saga with this id that was started otherwise.
    Different {
        /// The id.
        id: SagaId,
    },
    /// Another saga has a lock that this one needs.
    Locked {
        /// The lock.
        key: String,
        /// Who has it.
        holder: SagaId,
    },
    /// It works on as many sagas as it may. Nothing has begun.
    Busy(Refused),
    /// It is being shut down. Nothing has begun.
    Closed,
    /// The store has failed. Whether the saga has begun is not known: start it again with the same id.
    Store(StoreError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Id(error) => error.fmt(f),
            StartError::Input(why) => write!(f, "the input is not possible: {why}"),
            StartError::Unregistered(DefinitionId { name, version, .. }) => {
                write!(f, "the definition {name:?} version {version} is not registered as it is")
            }
            StartError::Different { id } => {
                write!(f, "there is a saga {id} with another definition or input")
            }
            StartError::Locked { key, holder } => write!(f, "the lock {key:?} is held by saga {holder}"),
            StartError::Busy(refused) => refused.fmt(f),
            StartError::Closed => f.write_str("the orchestrator is being shut down"),
            StartError::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

impl From<InvalidId> for StartError {
    fn from(error: InvalidId) -> Self {
        StartError::Id(error)
    }
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        StartError::Store(error)
    }
}

/// Why something could not be asked of a saga.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AskError {
    /// The id is impossible.
    Id(InvalidId),
    /// There is no saga with this id.
    Missing(SagaId),
    /// What was sent has no JSON, or what came of the saga is not what was expected.
    Payload(String),
    /// The store.
    Store(StoreError),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AskError::Id(error) => error.fmt(f),
            AskError::Missing(id) => write!(f, "there is no saga {id}"),
            AskError::Payload(why) => write!(f, "the payload is not possible: {why}"),
            AskError::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for AskError {}

impl From<InvalidId> for AskError {
    fn from(error: InvalidId) -> Self {
        AskError::Id(error)
    }
}

impl From<StoreError> for AskError {
    fn from(error: StoreError) -> Self {
        AskError::Store(error)
    }
}

/// A saga was started and its end waited for.
impl From<AskError> for StartError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Id(error) => StartError::Id(error),
            AskError::Store(error) => StartError::Store(error),
            AskError::Missing(id) => StartError::Store(StoreError::Io(format!("saga {id} has vanished"))),
            AskError::Payload(why) => StartError::Store(StoreError::Io(why)),
        }
    }
}
