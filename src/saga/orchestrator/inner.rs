//! What an orchestrator's tasks share: who is driven here, who was lost, what cannot be worked on.

use std::{
    collections::{HashMap, hash_map::Entry as Slot},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, watch};

use super::{
    AskError, Census, Status,
    census::Looks,
    opening::Settings,
    ramp::Ramp,
    waiters::Waiters,
    watched::{Gone, Here, shut_down},
};
use crate::{
    Bulkhead,
    bulkhead::OwnedPermit,
    event::{Event, Identity},
    observe::span,
    saga::{
        definition::Definition,
        driver::{Driver, Mail},
        journal::{Append, DefinitionId, Head, Journal, Presence, Request, StoreError, Stored},
        ledger::{Ledger, Stop},
        machine::Machine,
        record::{Incarnation, Payload, SagaId, Timestamp},
        writer::Writer,
    },
    sync::{Mutex, lock},
    time,
};

/// The longest pause before a saga that was lost is read anew.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The longest pause before a saga is claimed again that was claimed for nothing.
const LONGEST_VAIN: Duration = Duration::from_secs(60);

/// What an orchestrator's tasks share.
pub(crate) struct Inner {
    /// None when it was let go.
    pub(super) journal: Mutex<Option<Arc<dyn Journal>>>,
    pub(crate) writer: Writer,
    pub(crate) by: Incarnation,
    pub(crate) definitions: HashMap<DefinitionId, Arc<Definition>>,
    pub(crate) settings: Settings,
    pub(crate) identity: Listeners,
    pub(super) admission: Bulkhead,
    pub(super) places: Mutex<Places>,
    pub(super) live: Mutex<HashMap<SagaId, Live>>,
    /// Owned, and not driven: to be read anew.
    pub(super) lost: Mutex<HashMap<SagaId, Lost>>,
    pub(super) blocked: Mutex<HashMap<SagaId, Blocked>>,
    /// Claimed, and let go without anything having been done.
    pub(super) vain: Mutex<HashMap<SagaId, Vain>>,
    /// What it has last said of itself in the store, and how often the lease had run out by then.
    pub(super) announced: Mutex<Option<(u64, Presence)>>,
    /// The store's time at an instant of this process.
    pub(super) clock: Mutex<(Timestamp, Instant)>,
    pub(super) leased_until: Mutex<Instant>,
    /// How often it was prolonged after it had run out.
    pub(super) lapses: AtomicU64,
    pub(super) looks: Mutex<Looks>,
    /// What was there at the last look.
    pub(super) census: Mutex<Option<Census>>,
    /// When what was left over may go on.
    pub(super) ramp: Mutex<Ramp>,
    /// Something was left in the store.
    pub(super) nudge: Notify,
    /// The lease may be over for others: a saga was taken although it was held.
    pub(super) beat: Notify,
    /// A saga is no longer live.
    pub(super) moved: Notify,
    pub(crate) waiters: Waiters,
    /// How often something was recorded of any saga: while that goes on, it is not the store as a whole that fails.
    pub(crate) recorded: AtomicU64,
    pub(super) draining: AtomicBool,
    /// The store has to be opened anew before anything can be recorded.
    pub(super) poisoned: AtomicBool,
    /// Held by the keeper, by every driver, and by what either has left on another thread.
    pub(super) here: Mutex<Option<Here>>,
    /// Tells that none of them is there any more.
    pub(super) gone: tokio::sync::Mutex<Gone>,
    /// Tells that nobody has the journal any more.
    pub(super) let_go: tokio::sync::Mutex<Gone>,
    pub(super) closed: watch::Sender<bool>,
    pub(super) swept: watch::Sender<bool>,
}

/// What is known of the places for sagas, beside how many are taken.
#[derive(Default)]
pub(super) struct Places {
    /// How many are about to become free: one that makes room makes it for all that have seen the crowd.
    leaving: usize,
    /// Since when it takes up none, as there is no place.
    pub(super) full_since: Option<Instant>,
    /// When that was last told, and whether it was so.
    pub(super) told: Option<(Instant, bool)>,
}

pub(super) struct Live {
    pub(super) mail: mpsc::UnboundedSender<Mail>,
    pub(super) status: watch::Receiver<Status>,
    pub(super) definition: Arc<Definition>,
}

/// Who is told what happens. A listener that panics has been told; neither the keeper nor a driver ends with it.
pub(crate) struct Listeners(pub(super) Identity);

impl Listeners {
    pub(crate) fn emit(&self, event: &Event<'_>) {
        self.0.emit_guarded(event);
    }
}

/// A saga that is to be read anew.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lost {
    not_before: Instant,
    trouble: Trouble,
}

/// A saga that was claimed for nothing.
pub(super) struct Vain {
    /// How often in a row.
    times: u32,
    /// Until when it is not claimed again.
    not_before: Instant,
}

/// How often a saga was lost without anything having been recorded in between.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Trouble {
    /// How many entries it had.
    pub(super) len: u64,
    /// How often it was lost.
    pub(super) times: u32,
    /// How often it may have been the cause itself.
    blamed: u32,
    /// How much had been recorded of all sagas when it was last taken up.
    recorded: u64,
}

/// A saga that cannot be worked on.
pub(super) struct Blocked {
    pub(super) status: Status,
    /// Under which ownership it was found to be so.
    epoch: u64,
    /// Its records make sense, so that a person's order can be followed.
    pub(super) obeys: bool,
    /// It is so damaged that it cannot even be given up.
    pub(super) hopeless: bool,
}

/// How a driver has left its saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// It is over or somebody else's: nobody has to look after it here.
    Done,
    /// The store knows whose it is.
    Fenced,
    /// The store as a whole has failed.
    Store,
    /// An append of this saga has failed, or its driver has panicked.
    Failed,
}

impl Left {
    pub(super) fn store(error: &StoreError) -> Self {
        match error {
            StoreError::Unavailable(_)
            | StoreError::InUse(_)
            | StoreError::Full(_)
            | StoreError::Absent(_)
            | StoreError::Poisoned => Left::Store,
            _ => Left::Failed,
        }
    }
}

/// A saga's place among those that are driven. It is free again when this is dropped, whatever became of the driver.
pub(crate) struct Seat {
    inner: Arc<Inner>,
    id: SagaId,
    pub(super) left: Left,
    pub(super) trouble: Trouble,
    /// Whether it is about to become free for the sake of others.
    leaving: bool,
    _permit: OwnedPermit,
    _here: Option<Here>,
}

impl Seat {
    /// Whether so many sixteenths of the places are taken by those that stay, and this one is therefore to become free.
    pub(crate) fn leaves(&mut self, sixteenths: usize) -> bool {
        let inner = &self.inner;
        let mut places = lock(&inner.places);
        let stay = inner.admission.in_use().saturating_sub(places.leaving);
        // One that is alone makes room for nobody.
        let crowd = stay > 1 && stay.saturating_mul(16) >= inner.settings.max_live.saturating_mul(sixteenths);
        if crowd && !self.leaving {
            self.leaving = true;
            places.leaving += 1;
        }
        crowd
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.leaving {
            lock(&self.inner.places).leaving -= 1;
        }
        lock(&self.inner.live).remove(&self.id);
        if self.left != Left::Done {
            self.inner.lose(self.id.clone(), self.trouble, self.left);
        } else if lock(&self.inner.lost).contains_key(&self.id) {
            self.inner.nudge.notify_one();
        }
        self.inner.moved.notify_waiters();
        self.inner.waiters.tell(&self.id);
    }
}

impl Inner {
    /// The journal, until it is let go.
    pub(crate) fn journal(&self) -> Result<Arc<dyn Journal>, StoreError> {
        lock(&self.journal).clone().ok_or_else(shut_down)
    }

    /// The store's time, as far as it was asked.
    pub(crate) fn now(&self) -> Timestamp {
        let (at, seen) = *lock(&self.clock);
        at.after(time::now().saturating_duration_since(seen))
    }

    pub(crate) fn status(&self, id: &SagaId) -> Option<Status> {
        if let Some(live) = lock(&self.live).get(id) {
            return Some(live.status.borrow().clone());
        }
        lock(&self.blocked).get(id).map(|blocked| blocked.status.clone())
    }

    /// Why another orchestrator, which lives, cannot work on a saga of its own, as far as it says so.
    pub(crate) async fn blocked_at(
        &self,
        owner: &Incarnation,
        id: &SagaId,
    ) -> Result<Option<String>, StoreError> {
        let registered = self.journal()?.orchestrators().await?;
        let owner = registered.into_iter().find(|one| one.by == *owner && one.until > self.now());
        let blocked = owner.and_then(|owner| owner.presence).map(|presence| presence.blocked);
        Ok(blocked.into_iter().flatten().find(|(blocked, _)| blocked == id).map(|(_, why)| why))
    }

    /// Its status while it is driven here, and the definition that it follows.
    pub(crate) fn watch(&self, id: &SagaId) -> Option<(watch::Receiver<Status>, Arc<Definition>)> {
        lock(&self.live).get(id).map(|live| (live.status.clone(), live.definition.clone()))
    }

    /// Whether a payload from outside may become an output.
    pub(crate) fn fits(&self, payload: &Payload) -> Result<(), AskError> {
        let (bytes, most) = (payload.as_str().len(), self.settings.max_output);
        if bytes <= most {
            return Ok(());
        }
        Err(AskError::Payload(format!("it has {bytes} bytes of JSON, allowed are {most}")))
    }

    /// Tells that the store has failed, and keeps in mind when it will not work again.
    pub(super) fn store_failed(&self, error: &StoreError) {
        if *error == StoreError::Poisoned {
            self.poisoned.store(true, Relaxed);
        }
        self.identity.emit(&Event::SagaStoreFailed { error });
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    pub(super) fn close(&self) {
        self.closed.send_replace(true);
        drop(lock(&self.here).take());
        self.nudge.notify_one();
        // Their drivers find that nobody can write to them.
        let live = std::mem::take(&mut *lock(&self.live));
        for id in live.keys() {
            self.waiters.tell(id);
        }
        drop(live);
    }

    pub(super) fn extend_lease(&self, asked: Instant) {
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

    /// Waits until it is sure that nobody else takes its sagas for abandoned. Nothing is begun without. How often it was not so:
    /// each time somebody may have taken them.
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

    pub(super) fn seat(
        self: &Arc<Self>,
        id: &SagaId,
        definition: &Arc<Definition>,
        permit: OwnedPermit,
        mut trouble: Trouble,
    ) -> Option<(Seat, watch::Sender<Status>, mpsc::UnboundedReceiver<Mail>)> {
        let (mail, letters) = mpsc::unbounded_channel();
        let (status, seen) = watch::channel(Status::default());
        let left = Left::Failed;
        trouble.recorded = self.recorded.load(Relaxed);
        match lock(&self.live).entry(id.clone()) {
            Slot::Occupied(_) => return None,
            Slot::Vacant(slot) => {
                // Under the same lock as those that are told of an end: nobody is left out.
                if self.draining.load(Relaxed) {
                    let _ = mail.send(Mail::Drain);
                }
                slot.insert(Live { mail, status: seen, definition: definition.clone() })
            }
        };
        self.waiters.tell(id);
        let here = lock(&self.here).clone();
        let (inner, id) = (self.clone(), id.clone());
        Some((
            Seat { inner, id, left, trouble, leaving: false, _permit: permit, _here: here },
            status,
            letters,
        ))
    }

    /// A saga is to be read anew: at once when the store only has to say whose it is, otherwise after a pause that grows.
    pub(super) fn lose(&self, id: SagaId, mut trouble: Trouble, left: Left) {
        let doublings = trouble.times.saturating_sub(u32::from(left == Left::Fenced));
        let pause = match (left, trouble.times) {
            (Left::Fenced, 0) => Duration::ZERO,
            _ => self.settings.poll.saturating_mul(2_u32.saturating_pow(doublings)),
        };
        trouble.times += 1;
        trouble.blamed += u32::from(left == Left::Failed);
        let not_before = time::later(time::now(), pause.min(LONGEST_PAUSE.max(self.settings.poll)));
        lock(&self.lost).insert(id, Lost { not_before, trouble });
        self.nudge.notify_one();
    }

    /// Somebody has to look whether a saga is owned here and driven by nobody: at once.
    pub(super) fn look_after(&self, id: SagaId) {
        self.look_later(id);
        self.nudge.notify_one();
    }

    /// The same when the keeper comes by.
    pub(super) fn look_later(&self, id: SagaId) {
        let lost = Lost { not_before: time::now(), trouble: Trouble::default() };
        lock(&self.lost).entry(id).or_insert(lost);
    }

    /// A saga was let go, `in_vain` if nothing was done for it: a request waits at it that only a later version can read, mostly, and would
    /// have it claimed at every look. From the second time on the pauses grow, but end when it is due, after `rest`.
    pub(crate) fn let_go(&self, id: &SagaId, in_vain: bool, rest: Option<Duration>) {
        let mut vain = lock(&self.vain);
        if !in_vain {
            vain.remove(id);
            return;
        }
        let now = time::now();
        let claimed = vain.entry(id.clone()).or_insert(Vain { times: 0, not_before: now });
        if claimed.times > 0 {
            let pause = self.settings.poll.saturating_mul(2_u32.saturating_pow(claimed.times));
            let pause = pause.min(LONGEST_VAIN).min(rest.unwrap_or(Duration::MAX));
            claimed.not_before = time::later(now, pause);
        }
        claimed.times = claimed.times.saturating_add(1);
    }

    /// The sagas that are not to be claimed yet since nothing would come of it.
    pub(super) fn vain(&self) -> Vec<SagaId> {
        let now = time::now();
        let mut vain = lock(&self.vain);
        vain.retain(|_, vain| now < time::later(vain.not_before, 2 * LONGEST_VAIN));
        vain.iter().filter(|(_, vain)| now < vain.not_before).map(|(id, _)| id.clone()).collect()
    }

    /// Those whose time to be read anew has come.
    pub(super) fn due_lost(&self) -> Vec<(SagaId, Trouble)> {
        let now = time::now();
        let lost = lock(&self.lost);
        let due = lost.iter().filter(|(_, lost)| lost.not_before <= now);
        due.map(|(id, lost)| (id.clone(), lost.trouble)).collect()
    }

    /// Drives a saga that was claimed.
    pub(super) fn adopt(
        self: &Arc<Self>,
        stored: Stored,
        permit: OwnedPermit,
        asked: Vec<Request>,
        lapses: u64,
    ) {
        let id = stored.head.id.clone();
        let Some(definition) = self.definitions.get(&stored.head.definition).cloned() else {
            // A store gives nothing that was not asked for.
            let why = "its definition is not registered".to_owned();
            let Head { epoch, ref definition, .. } = stored.head;
            self.block(&definition.name, id, epoch, Status::of(&stored.head, Some(why)), false);
            return;
        };
        let lost = lock(&self.lost).remove(&id);
        let trouble = lost.map(|lost| lost.trouble).filter(|trouble| trouble.len == stored.head.len);
        let trouble = trouble.unwrap_or(Trouble { len: stored.head.len, ..Trouble::default() });
        let Some((mut seat, status, mail)) = self.seat(&id, &definition, permit, trouble) else {
            // Its last driver is leaving, and the keeper looks again then; not before, or it would claim its own again and again when
            // a jump of the store's clock has ended its lease.
            self.look_later(id);
            self.beat.notify_one();
            return;
        };
        let Head { epoch, len, crc, created, recoveries, .. } = stored.head;
        let machine = match fold(&stored, &definition) {
            Ok(machine) => machine,
            Err(why) => {
                seat.left = Left::Done;
                self.block(&definition.shape.id.name, id, epoch, Status::of(&stored.head, Some(why)), false);
                return;
            }
        };
        status.send_replace(Status::of(&stored.head, None));
        let mut ledger = Ledger::new(self.clone(), id, machine, (epoch, len, crc), created, status, lapses);
        asked.into_iter().for_each(|request| self.hand_over(request));
        let inner = self.clone();
        let most = self.settings.max_recoveries;
        tokio::spawn(async move {
            if recoveries.saturating_add(trouble.blamed) > most && !ledger.machine.is_held() {
                let reason = match trouble.blamed {
                    0 => format!(
                        "{recoveries} orchestrators have died at it without recording anything; it may be the cause"
                    ),
                    times => format!(
                        "{times} times nothing could be recorded of it, {recoveries} orchestrators have died at it; it may be the cause"
                    ),
                };
                if let Err(stop) = ledger.park(reason).await {
                    inner.stopped(&definition.shape.id.name, (&ledger.id.clone(), epoch), &mut seat, stop);
                    return;
                }
            } else if trouble.times > 0 {
                // Nothing is asked of a participant before it is seen that the store takes anything at all of this saga. If it does, and
                // then not what came of it, the saga is the cause.
                if let Err(stop) = ledger.answer(Vec::new(), Vec::new()).await {
                    inner.stopped(&definition.shape.id.name, (&ledger.id.clone(), epoch), &mut seat, stop);
                    return;
                }
            }
            let turn = lock(&inner.ramp).place(time::now());
            let driver = Driver::new(ledger, definition, mail, seat, true);
            drive(inner, driver, turn).await;
        });
    }

    fn block(&self, definition: &str, id: SagaId, epoch: u64, status: Status, obeys: bool) {
        let why = status.blocked.as_deref().unwrap_or_default();
        self.identity.emit(&Event::SagaBlocked { definition, saga: id.as_str(), why });
        lock(&self.blocked).insert(id.clone(), Blocked { status, epoch, obeys, hopeless: false });
        self.waiters.tell(&id);
    }

    /// Lets go what cannot be worked on, or each orderly end would count as a death at it.
    pub(super) async fn release_blocked(&self) {
        let blocked = std::mem::take(&mut *lock(&self.blocked));
        let released: Vec<_> = blocked
            .into_iter()
            .filter_map(|(saga, Blocked { status, epoch, .. })| {
                let phase = status.phase?;
                Some(self.writer.append(Append {
                    saga,
                    by: self.by.clone(),
                    epoch,
                    begin: None,
                    entries: Vec::new(),
                    phase,
                    note: status.note,
                    wake: Some(Timestamp(0)),
                    release: true,
                    answers: Vec::new(),
                    work: None,
                }))
            })
            .collect();
        for written in released {
            // What is refused has another owner, and what the store could not do counts as a death.
            let _ = written.wait().await;
        }
    }

    fn stopped(&self, definition: &str, (id, epoch): (&SagaId, u64), seat: &mut Seat, stop: Stop) {
        match stop {
            Stop::Released | Stop::Closed => seat.left = Left::Done,
            // An append of its own that was not made leaves a gap, and the saga its own: it is asked for once more.
            Stop::Fenced => {
                seat.left = Left::Fenced;
                self.beat.notify_one();
            }
            Stop::Blocked(why) => {
                seat.left = Left::Done;
                let last = lock(&self.live).get(id).map(|live| live.status.borrow().clone());
                let status = Status { blocked: Some(why), ..last.unwrap_or_default() };
                self.block(definition, id.clone(), epoch, status, true);
            }
            Stop::Lost(error) => {
                // A saga is the cause only if something else can be recorded.
                let others = self.recorded.load(Relaxed) > seat.trouble.recorded;
                seat.left = if others { Left::store(&error) } else { Left::Store };
                self.store_failed(&error);
            }
        }
    }
}

pub(super) async fn drive(inner: Arc<Inner>, mut driver: Driver, turn: Duration) {
    let name = driver.ledger.machine.shape().id.name.clone();
    let (id, epoch) = (driver.ledger.id.clone(), driver.ledger.epoch);
    let span = span::saga(&name, &id, epoch);
    match span.within(driver.run(turn)).await {
        Ok(()) => driver.seat.left = Left::Done,
        Err(stop) => inner.stopped(&name, (&id, epoch), &mut driver.seat, stop),
    }
}

/// The machine that a saga's records make.
pub(crate) fn fold(stored: &Stored, definition: &Definition) -> Result<Machine, String> {
    stored.verify().map_err(|corrupt| corrupt.to_string())?;
    let mut machine = Machine::new(definition.shape.clone());
    for entry in &stored.entries {
        let record =
            entry.record().map_err(|error| format!("record {} cannot be read: {error}", entry.seq))?;
        machine.apply(&record, entry.at).map_err(|illegal| format!("record {}: {illegal}", entry.seq))?;
    }
    match machine.input() {
        Some(_) => Ok(machine),
        None => Err("it has no beginning".to_owned()),
    }
}
