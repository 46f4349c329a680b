//! One breaker, shared by its handles: the machine behind a lock, and in front of it what a healthy call needs without.
//!
//! # Why it is exact
//!
//! * `word` names the present generation and says how much attention a call needs. It is written under the lock only.
//! * A good result of the present generation, while `word` is `FAST`, adds one to a counter that this thread alone writes
//!   (see [`slots`](crate::slots)). The counter carries a tag: the generation and the bucket it counts for. A tag is changed by its
//!   thread, under the lock, after the count under it was collected.
//! * Everything that decides (a bad result, a first result in a bucket, a change of state) takes the lock and first
//!   *collects*: adds what all counters gained since they were last seen to the window, as calls that came before
//!   what is decided. Whatever happened before this call in the order of causes is therefore in the window.
//! * A success that is counted at the same time as a decision is taken comes after it: into the window if the breaker is still
//!   in that generation at the next collection, into the late ones if not.
//! * Only a success that completes the minimum of a bad window can trip. While that is possible `word` is `ARMED`, and
//!   successes take the lock.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    Class, Mode, Snapshot, State,
    machine::{Admission, InFlight, Machine, Report, Rules, Transition},
    window::{Mark, Shape},
};
use crate::{
    chance::Chance,
    error::{Hint, Kind, Refused},
    event::{Event, Identity},
    slots::Slots,
    sync::{
        Mutex, MutexGuard, Padded,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
        lock,
    },
    time::{self, Scale},
};

/// `word` is a generation and one of these.
const FLAGS: u32 = 3;
/// Closed: every call is admitted, good results go into the counters.
const FAST: u64 = 0;
/// Closed, but the next good result may matter.
const ARMED: u64 = 1;
/// Out of service: every call is admitted, none is counted.
const DISABLED: u64 = 2;
/// Refusing until `until`.
const OPEN: u64 = 3;
/// Ask the machine.
const ASK: u64 = 4;

/// `until` of a breaker that was opened by force.
const FOREVER: u64 = u64::MAX;

/// A counter is 16 bits of generation above, and 16 of count below. Which bucket it counts for stands beside it.
const COUNT: u64 = 0xffff;

fn tag(generation: u64) -> u64 {
    (generation & 0xffff) << 48
}

#[derive(Debug)]
pub(crate) struct Core {
    /// Read by every call, written by few.
    hot: Padded<Hot>,
    id: Identity,
    chance: Chance,
    cancelled_is_failure: AtomicBool,
    /// Whether a thread is telling the listeners.
    telling: AtomicBool,
    /// Refusals and neutral results of threads without a slot.
    rest: Rest,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Hot {
    word: AtomicU64,
    /// When an open breaker's wait is over.
    until: AtomicU64,
    /// How long a bucket is; 0 for a count window, which needs no clock.
    width: AtomicU64,
    /// From how long on a call is slow; 0 for never.
    slow_after: AtomicU64,
    /// What `until` and the epochs count on.
    scale: Scale,
    slots: Slots<Slot>,
}

/// What one thread has counted.
#[derive(Debug, Default)]
struct Slot {
    /// Good results, with their tag.
    good: AtomicU64,
    /// When the tag's bucket began.
    from: AtomicU64,
    rest: Rest,
}

/// Totals that decide nothing.
#[derive(Debug, Default)]
struct Rest {
    refused: AtomicU64,
    neutral: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    machine: Machine,
    /// The counters when they were last collected.
    seen: Vec<u64>,
    /// What the listeners have not heard yet.
    untold: VecDeque<Transition>,
}

impl Core {
    pub(crate) fn new(
        rules: Rules,
        seed: Option<u64>,
        cancelled_is_failure: bool,
        restore: Option<&Snapshot>,
        id: Identity,
        now: Instant,
    ) -> Self {
        let mut machine = Machine::new(rules, now);
        if let Some(snapshot) = restore {
            machine.restore(snapshot, now);
        }
        let slots = Slots::<Slot>::new();
        let seen = slots.iter().map(|_| 0).collect();
        let core = Core {
            hot: Padded(Hot {
                word: AtomicU64::new(0),
                until: AtomicU64::new(0),
                width: AtomicU64::new(0),
                slow_after: AtomicU64::new(0),
                scale: Scale::new(now),
                slots,
            }),
            id,
            chance: Chance::new(seed),
            cancelled_is_failure: AtomicBool::new(cancelled_is_failure),
            telling: AtomicBool::new(false),
            rest: Rest::default(),
            shared: Mutex::new(Shared { machine, seen, untold: VecDeque::new() }),
        };
        core.publish(&lock(&core.shared).machine);
        core
    }

    pub(crate) fn id(&self) -> &Identity {
        &self.id
    }

    // === admission

    /// A ticket for a call that may start. It has to be settled, once.
    #[inline]
    pub(crate) fn acquire(&self, now: impl FnOnce() -> Instant) -> Result<u64, Refused> {
        self.admit(now).map_err(|after| self.id.refuse(self.refusal(after)))
    }

    /// A ticket where no question is asked: the breaker is closed or out of service.
    #[inline(always)]
    pub(crate) fn ticket(&self) -> Option<u64> {
        let word = self.hot.word.load(Acquire);
        match word & ((1 << FLAGS) - 1) {
            FAST | ARMED => Some(word >> FLAGS),
            DISABLED => Some(0),
            _ => None,
        }
    }

    /// As [`acquire`](Self::acquire), but a refusal is counted and not yet [made](Self::refusal) or told.
    #[inline]
    pub(crate) fn admit(&self, now: impl FnOnce() -> Instant) -> Result<u64, Hint> {
        let word = self.hot.word.load(Acquire);
        match word & ((1 << FLAGS) - 1) {
            FAST | ARMED => Ok(word >> FLAGS),
            DISABLED => Ok(0),
            OPEN => {
                let until = self.hot.until.load(Relaxed);
                if until == FOREVER {
                    return Err(self.counted(Hint::NONE));
                }
                let now = now();
                let at = self.hot.scale.nanos(now);
                if at < until {
                    return Err(self.counted(Hint::nanos(until - at)));
                }
                self.ask(now)
            }
            _ => self.ask(now()),
        }
    }

    /// Whether a call would be refused now for being in an open breaker's wait.
    #[inline]
    pub(crate) fn is_shut(&self, now: impl FnOnce() -> Instant) -> bool {
        if self.hot.word.load(Acquire) & ((1 << FLAGS) - 1) != OPEN {
            return false;
        }
        let until = self.hot.until.load(Relaxed);
        until == FOREVER || self.hot.scale.nanos(now()) < until
    }

    #[cold]
    fn ask(&self, now: Instant) -> Result<u64, Hint> {
        let mut shared = lock(&self.shared);
        let (admission, transition) = shared.machine.admit(now);
        let observing = shared.machine.mode() == Mode::ObserveOnly;
        if let Admission::Granted(ticket) = admission {
            // A listener that panics does not take the probe with it.
            let unused = Unused(self, ticket);
            self.release(shared, transition);
            std::mem::forget(unused);
        } else {
            self.release(shared, transition);
        }
        match admission {
            Admission::Granted(ticket) => Ok(ticket),
            Admission::Refused(after) if observing => {
                let refused = Refused::unstarted(Kind::CircuitOpen, self.id.name(), after.into());
                bump(self.rest(), |rest| &rest.refused);
                self.id.emit(&Event::Refused { refused: &refused, observed: true });
                Ok(0)
            }
            Admission::Refused(after) => Err(self.counted(after.into())),
        }
    }

    #[inline]
    fn counted(&self, after: Hint) -> Hint {
        bump(self.rest(), |rest| &rest.refused);
        after
    }

    /// What a call is told that may come back `after` so long.
    #[inline]
    pub(crate) fn refusal(&self, after: Hint) -> Refused {
        Refused::unstarted(Kind::CircuitOpen, self.id.name(), after)
    }

    /// Where this thread counts, and whether it is alone in writing there.
    fn rest(&self) -> (&Rest, bool) {
        match self.hot.slots.mine() {
            Some((_, slot)) => (&slot.rest, true),
            None => (&self.rest, false),
        }
    }

    // === results

    /// From how long on a call is slow, if that is a rule.
    #[inline]
    pub(crate) fn slow_after(&self) -> Option<Duration> {
        match self.hot.slow_after.load(Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    pub(crate) fn cancelled(&self) -> Class {
        if self.cancelled_is_failure.load(Relaxed) { Class::Failure } else { Class::Ignored }
    }

    /// The call of `ticket` has ended; it began at `started`, if slow calls are of interest.
    #[inline]
    pub(crate) fn settle(
        &self,
        ticket: u64,
        class: Class,
        started: Option<Instant>,
        mut now: impl FnMut() -> Instant,
    ) {
        if ticket == 0 {
            return;
        }
        let mut end = None;
        let slow = started.is_some_and(|started| {
            let end = *end.insert(now());
            let lasted = end.saturating_duration_since(started);
            self.slow_after().is_some_and(|after| lasted >= after)
        });
        match class {
            Class::Success if !slow && self.counts(ticket, || *end.get_or_insert_with(&mut now)) => return,
            Class::Ignored => {
                let word = self.hot.word.load(Acquire);
                if word >> FLAGS == ticket && word & ((1 << FLAGS) - 1) <= ARMED {
                    bump(self.rest(), |rest| &rest.neutral);
                    return;
                }
            }
            _ => {}
        }
        let report = Report { class, slow };
        self.report(ticket, report, end.unwrap_or_else(now));
    }

    /// Counts a good result without the lock, if nothing depends on it.
    #[inline(always)]
    pub(crate) fn counts(&self, ticket: u64, now: impl FnOnce() -> Instant) -> bool {
        if self.hot.word.load(Acquire) != (ticket << FLAGS | FAST) {
            return false;
        }
        let Some((_, slot)) = self.hot.slots.mine() else {
            return false;
        };
        let good = slot.good.load(Relaxed);
        let width = self.hot.width.load(Relaxed);
        if width != 0 && self.hot.scale.nanos(now()).wrapping_sub(slot.from.load(Relaxed)) >= width {
            return false;
        }
        let counts = good >> 48 == ticket & 0xffff && good & COUNT < COUNT;
        if counts {
            slot.good.store(good + 1, Release);
        }
        counts
    }

    #[cold]
    fn report(&self, ticket: u64, report: Report, now: Instant) {
        let random = self.chance.next();
        let mut shared = self.collected();
        let transition = shared.machine.settle(ticket, report, now, random);
        if report.class == Class::Success {
            self.turn_counter(&mut shared, now);
        }
        self.release(shared, transition);
    }

    /// The call of `ticket` has been in flight for as long as makes it slow.
    #[cold]
    pub(crate) fn slow_in_flight(&self, ticket: u64, now: Instant) -> InFlight {
        if ticket == 0 {
            return InFlight::Settled;
        }
        let random = self.chance.next();
        let mut shared = self.collected();
        let (known, transition) = shared.machine.slow_in_flight(ticket, now, random);
        self.release(shared, transition);
        known
    }

    /// The call that was counted as slow at `mark` has ended.
    #[cold]
    pub(crate) fn settle_slow(&self, ticket: u64, mark: Mark, class: Class, now: Instant) {
        let random = self.chance.next();
        let mut shared = self.collected();
        let transition = shared.machine.settle_slow(ticket, mark, class, now, random);
        self.release(shared, transition);
    }

    // === orders and questions

    pub(crate) fn set_mode(&self, mode: Mode, now: Instant) {
        self.change(|machine| machine.set_mode(mode, now));
    }

    pub(crate) fn reset(&self, now: Instant) {
        self.change(|machine| machine.reset(now));
    }

    pub(crate) fn reconfigure(&self, rules: Rules, cancelled_is_failure: bool, now: Instant) {
        self.cancelled_is_failure.store(cancelled_is_failure, Relaxed);
        self.change(|machine| {
            machine.reconfigure(rules, now);
            None
        });
    }

    fn change(&self, order: impl FnOnce(&mut Machine) -> Option<Transition>) {
        let mut shared = self.collected();
        let transition = order(&mut shared.machine);
        self.release(shared, transition);
    }

    /// What this thread's counter holds.
    #[cfg(all(test, mainstay_loom))]
    pub(crate) fn counted_beside_the_lock(&self) -> u64 {
        let (_, slot) = self.hot.slots.mine().unwrap();
        slot.good.load(Relaxed) & COUNT
    }

    /// The rules in a few words.
    pub(crate) fn describe(&self) -> String {
        lock(&self.shared).machine.rules().to_string()
    }

    pub(crate) fn state(&self, now: Instant) -> State {
        lock(&self.shared).machine.state(now)
    }

    pub(crate) fn retry_at(&self, now: Instant) -> Option<Instant> {
        lock(&self.shared).machine.retry_at(now)
    }

    pub(crate) fn snapshot(&self, now: Instant) -> Snapshot {
        let mut shared = self.collected();
        let mut totals = shared.machine.totals();
        for rest in self.hot.slots.iter().map(|slot| &slot.rest).chain([&self.rest]) {
            totals.refused += rest.refused.load(Relaxed);
            totals.neutral += rest.neutral.load(Relaxed);
        }
        let counts = shared.machine.counts(now);
        let machine = &shared.machine;
        let until = machine.open_until();
        Snapshot {
            name: self.id.name().clone(),
            mode: machine.mode(),
            state: machine.state(now),
            share: machine.share(now),
            counts,
            failure_rate: counts.failure_rate(),
            slow_rate: counts.slow_rate(),
            remaining_wait: until
                .map(|until| until.saturating_duration_since(now))
                .filter(|wait| !wait.is_zero()),
            openings: machine.openings(),
            totals,
        }
    }

    // === inside the lock

    /// The lock, with everything in the window that was counted beside it.
    fn collected(&self) -> MutexGuard<'_, Shared> {
        let mut shared = lock(&self.shared);
        let Shared { machine, seen, .. } = &mut *shared;
        let generation = machine.generation();
        for (slot, seen) in self.hot.slots.iter().zip(seen) {
            let good = slot.good.load(Acquire);
            // The tag is the same: whoever changes it sets `seen`.
            let n = good - *seen;
            if n == 0 {
                continue;
            }
            *seen = good;
            if good >> 48 == generation & 0xffff && machine.counts_successes() {
                machine.successes(machine.rules().shape.epoch(slot.from.load(Relaxed)), n);
            } else {
                machine.late(n);
            }
        }
        shared
    }

    /// Lets this thread's counter count for the present generation and bucket from now on. Its last count was collected
    /// under this lock.
    fn turn_counter(&self, shared: &mut Shared, now: Instant) {
        let Some((index, slot)) = self.hot.slots.mine() else {
            return;
        };
        let machine = &shared.machine;
        let epoch = machine.epoch(now);
        let fresh = tag(machine.generation());
        let width = match machine.rules().shape {
            Shape::Count(_) => 0,
            Shape::Time { width, .. } => width,
        };
        slot.from.store(epoch.wrapping_mul(width), Relaxed);
        slot.good.store(fresh, Release);
        shared.seen[index] = fresh;
    }

    /// Shows the state to those who do not take the lock.
    fn publish(&self, machine: &Machine) {
        let mut until = 0;
        let flag = match (machine.mode(), machine.open_until()) {
            (Mode::Disabled, _) => DISABLED,
            (Mode::ForcedOpen, _) => {
                until = FOREVER;
                OPEN
            }
            (Mode::Normal, Some(at)) => {
                until = self.hot.scale.nanos(at).min(FOREVER - 1);
                OPEN
            }
            _ if machine.counts_successes() => {
                if machine.needs_every_success() {
                    ARMED
                } else {
                    FAST
                }
            }
            _ => ASK,
        };
        let rules = machine.rules();
        let width = match rules.shape {
            Shape::Count(_) => 0,
            Shape::Time { width, .. } => width,
        };
        let slow_after = rules.slow_after.map_or(0, time::nanos);
        // Only what has changed is written, so that other cores keep their copies.
        let set = |shown: &AtomicU64, value| {
            if shown.load(Relaxed) != value {
                shown.store(value, Release);
            }
        };
        set(&self.hot.until, until);
        set(&self.hot.width, width);
        set(&self.hot.slow_after, slow_after);
        set(&self.hot.word, machine.generation() << FLAGS | flag);
    }

    /// Ends a step: shows the state, lets the lock go, and tells the listeners.
    fn release(&self, mut shared: MutexGuard<'_, Shared>, transition: Option<Transition>) {
        self.publish(&shared.machine);
        let something_to_tell = transition.is_some();
        shared.untold.extend(transition);
        drop(shared);
        if something_to_tell {
            self.tell();
        }
    }

    /// Tells the listeners in the order in which things happened, or they would take an old state for the present one. One
    /// thread tells at a time, with no lock held; what happens meanwhile, also through a listener that calls back, it tells too.
    fn tell(&self) {
        struct Telling<'a>(&'a AtomicBool);

        impl Drop for Telling<'_> {
            fn drop(&mut self) {
                // A plain store would do: it comes after every swap that saw `true`. Loom does not know that.
                self.0.swap(false, AcqRel);
            }
        }

        let next = || lock(&self.shared).untold.pop_front();
        while !self.telling.swap(true, Acquire) {
            let telling = Telling(&self.telling);
            while let Some(Transition { from, to, counts }) = next() {
                self.id.emit(&Event::Transition { name: self.id.name(), from, to, counts });
            }
            drop(telling);
            // Somebody may have left more to tell since the last look.
            if lock(&self.shared).untold.is_empty() {
                break;
            }
        }
    }
}

/// A ticket that nobody has yet; dropped, it is settled as if there had been no call.
struct Unused<'a>(&'a Core, u64);

impl Drop for Unused<'_> {
    fn drop(&mut self) {
        self.0.settle(self.1, Class::Ignored, None, time::now);
    }
}

/// Adds one; with a plain store where nobody else writes.
fn bump((rest, alone): (&Rest, bool), which: fn(&Rest) -> &AtomicU64) {
    let total = which(rest);
    if alone {
        total.store(total.load(Relaxed) + 1, Relaxed);
    } else {
        total.fetch_add(1, Relaxed);
    }
}
