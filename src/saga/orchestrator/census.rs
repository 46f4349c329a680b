//! One pass over all sagas in the store that are not over: how many there are, and which of them were lost sight of here.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::Inner;
use crate::{
    event::Event,
    saga::{
        journal::{Head, Phase, Query, StoreError},
        record::Timestamp,
    },
    sync::lock,
};

/// How many heads are read at once.
const PAGE: usize = 1_000;

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
    /// Counts what is not over, tells the listeners, and finds what it owns in the store and nobody drives: a claim was made whose
    /// answer was lost.
    pub(super) async fn look_through(&self) -> Result<(), StoreError> {
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
        }
        // Half a count is none: only what was read to its end is told.
        let census = Census { at: self.now(), definitions: counted.into_values().collect(), unregistered };
        *lock(&self.census) = Some(census.clone());
        self.identity.emit(&Event::SagaCensus { census: &census });
        Ok(())
    }
}
