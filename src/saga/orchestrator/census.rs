//! One pass over all sagas in the store that are not over: how many there are, and which of them were lost sight of here. It is made
//! beside the keeper, for which it would be long.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{Inner, inner::Left, watched::Here};
use crate::{
    event::Event,
    saga::{
        journal::{Head, Phase, Query, StoreError},
        record::Timestamp,
    },
    sync::lock,
    time,
};

/// How many heads are read at once.
const PAGE: usize = 1_000;

/// After so many leases it looks through the store: what is open there, and what it owns and nobody drives.
const LOOK: u32 = 6;

/// A look through the whole store is made so seldom that it takes at most one part in this many of the time.
const SHARE: u32 = 20;

/// When the store is looked through.
pub(super) struct Looks {
    /// When it is even if nothing calls for it.
    at: Instant,
    /// Not before, whatever calls for it: the store has failed at the last one.
    not_before: Instant,
    /// A claim had no answer, or a look did not come to its end: there may be sagas that are owned and not known.
    unsure: bool,
    /// One look at a time.
    under_way: bool,
    /// How often in a row the store has failed at it.
    failed: u32,
    /// One look has come to its end.
    looked: bool,
    /// What was asked of sagas was handed to those that were taken up.
    handed_out: bool,
}

impl Looks {
    /// The first one is to be made at once.
    pub(super) fn new(now: Instant) -> Self {
        Looks {
            at: now,
            not_before: now,
            unsure: false,
            under_way: false,
            failed: 0,
            looked: false,
            handed_out: false,
        }
    }

    /// A claim had no answer. The look that is under way may have passed by what it got: another one has to be made.
    pub(super) fn unsure(&mut self) {
        self.unsure = true;
    }

    /// Whether one is to begin now.
    fn begin(&mut self, now: Instant) -> bool {
        let due = self.unsure || now >= self.at;
        if self.under_way || !due || now < self.not_before {
            return false;
        }
        self.under_way = true;
        self.unsure = false;
        true
    }
}

/// A look that is under way, until this is dropped, whatever became of it.
struct Look {
    inner: Arc<Inner>,
    began: Instant,
    left: Left,
    _here: Here,
}

impl Look {
    async fn run(mut self) {
        let inner = self.inner.clone();
        let mut closed = inner.closed.subscribe();
        let done = tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => return,
            done = inner.look_through() => done,
        };
        match done {
            Ok(()) => self.left = Left::Done,
            Err(error) => {
                self.left = Left::store(&error);
                inner.store_failed(&error);
            }
        }
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        let (inner, now) = (&self.inner, time::now());
        let took = now.saturating_duration_since(self.began);
        let (lease, poll) = (inner.settings.lease, inner.settings.poll);
        let mut looks = lock(&inner.looks);
        looks.under_way = false;
        if self.left == Left::Store {
            // From its beginning, and at first in the next round. A page that the store does not come to an end with is likely to stay so.
            looks.unsure = true;
            let pause = poll.saturating_mul(2_u32.saturating_pow(looks.failed) - 1);
            looks.failed = looks.failed.saturating_add(1);
            looks.not_before = time::later(now, pause.min(lease.saturating_mul(LOOK)).max(took));
            return;
        }
        // At damage, the next look is likely to end there too.
        let leases = if self.left == Left::Done { LOOK } else { 1 };
        looks.at = time::later(now, lease.saturating_mul(leases).max(took.saturating_mul(SHARE)));
        looks.failed = 0;
        looks.looked = true;
        if looks.handed_out {
            inner.swept.send_replace(true);
        }
    }
}

/// The sagas that are not over, as they were last counted in the store; see [`Orchestrator::census`](super::Orchestrator::census).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Census {
    /// When they were counted, by the store's clock.
    pub at: Timestamp,
    /// One for each name of a registered definition, all its versions together, in the order of the names; also of those without sagas.
    pub definitions: Vec<OpenSagas>,
    /// Sagas of definitions that are not registered here in the same name, version and structure. Another orchestrator may work on them;
    /// those whose name is registered here are counted there too.
    pub unregistered: u64,
}

/// The sagas of one name that are not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OpenSagas {
    /// The name of the definition.
    pub definition: String,
    /// How many are going forward.
    pub running: u64,
    /// How many wait for a timer or a signal.
    pub waiting: u64,
    /// How many are being undone.
    pub unwinding: u64,
    /// How many are stuck.
    pub stuck: u64,
    /// How many wait for a person.
    pub parked: u64,
    /// How many of all these are this orchestrator's own and cannot be worked on.
    pub blocked: u64,
    /// When the oldest of them began; `None` when there is none.
    pub oldest: Option<Timestamp>,
}

impl Census {
    /// How old the oldest saga of a definition was when it was counted; zero when there is none.
    pub fn age(&self, of: &OpenSagas) -> Duration {
        of.oldest.map_or(Duration::ZERO, |oldest| self.at.since(oldest))
    }
}

impl OpenSagas {
    fn new(definition: &str) -> Self {
        let definition = definition.to_owned();
        OpenSagas {
            definition,
            running: 0,
            waiting: 0,
            unwinding: 0,
            stuck: 0,
            parked: 0,
            blocked: 0,
            oldest: None,
        }
    }

    /// How many are in each phase that is not the last one; `blocked` is none of them.
    pub fn phases(&self) -> [(Phase, u64); 5] {
        [
            (Phase::Running, self.running),
            (Phase::Waiting, self.waiting),
            (Phase::Unwinding, self.unwinding),
            (Phase::Stuck, self.stuck),
            (Phase::Parked, self.parked),
        ]
    }

    fn count(&mut self, head: &Head, blocked: bool) {
        match head.phase {
            Phase::Running => self.running += 1,
            Phase::Waiting => self.waiting += 1,
            Phase::Unwinding => self.unwinding += 1,
            Phase::Stuck => self.stuck += 1,
            Phase::Parked => self.parked += 1,
            // It was not asked for.
            Phase::Completed | Phase::Compensated | Phase::Abandoned => return,
        }
        self.blocked += u64::from(blocked);
        self.oldest = Some(self.oldest.map_or(head.created, |oldest| oldest.min(head.created)));
    }
}

impl Inner {
    /// Begins to look through the store if it is time to. Neither how long that takes nor whether it fails is of any account to what is
    /// taken up and handed out meanwhile.
    pub(super) fn look_if_due(self: &Arc<Self>) {
        let Some(here) = lock(&self.here).clone() else { return };
        let began = time::now();
        if !lock(&self.looks).begin(began) {
            return;
        }
        tokio::spawn(Look { inner: self.clone(), began, left: Left::Store, _here: here }.run());
    }

    /// What was asked was handed to those that were taken up: with the first look, it has seen all that was left in the store.
    pub(super) fn handed_out(&self) {
        let mut looks = lock(&self.looks);
        looks.handed_out = true;
        if looks.looked {
            self.swept.send_replace(true);
        }
    }

    /// Counts what is not over, tells the listeners, and finds what it owns in the store and nobody drives: a claim was made whose
    /// answer was lost. What is claimed while it looks may be among them, and is no longer when it is driven.
    async fn look_through(&self) -> Result<(), StoreError> {
        let names = self.definitions.keys().map(|id| (id.name.clone(), OpenSagas::new(&id.name)));
        let mut counted: BTreeMap<String, OpenSagas> = names.collect();
        let mut unregistered = 0;
        let phases = Phase::ALL.into_iter().filter(|phase| !phase.is_terminal()).collect();
        let mut query = Query { phases, limit: PAGE, ..Query::default() };
        loop {
            let heads = self.journal()?.list(query.clone()).await?;
            let Some(last) = heads.last() else { break };
            query.after = Some(last.id.clone());
            for head in heads {
                let own = head.owner.as_ref() == Some(&self.by);
                let blocked = own && lock(&self.blocked).contains_key(&head.id);
                if let Some(open) = counted.get_mut(&head.definition.name) {
                    open.count(&head, blocked);
                }
                unregistered += u64::from(!self.definitions.contains_key(&head.definition));
                let known = blocked
                    || lock(&self.live).contains_key(&head.id)
                    || lock(&self.lost).contains_key(&head.id);
                if own && !known {
                    self.look_after(head.id);
                }
            }
            // A store that answers at once lets others have their turn nevertheless.
            tokio::task::yield_now().await;
        }
        // Half a count is none: only what was read to its end is told.
        let census = Census { at: self.now(), definitions: counted.into_values().collect(), unregistered };
        *lock(&self.census) = Some(census.clone());
        self.identity.emit(&Event::SagaCensus { census: &census });
        Ok(())
    }
}
