//! The store as an orchestrator sees it that can be stopped: every operation waits for its owner to be alive.

use std::{any::TypeId, sync::Arc, time::Duration};

use super::{
    case::{Edge, Fault, Place},
    check::Bug,
    world::World,
};
use crate::{
    saga::{
        Incarnation, SagaId, Timestamp,
        journal::{
            Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
            Requested, StoreError, Stored,
        },
        memory::{self, Memory, Operation},
    },
    sync::lock,
};

/// The store as one orchestrator sees it.
pub(super) struct Gate {
    pub(super) world: Arc<World>,
    pub(super) store: Memory,
    pub(super) life: u32,
}

impl Gate {
    async fn through<T>(&self, operation: Pending<'_, T>) -> Result<T, StoreError> {
        self.world.alive(self.life).await;
        let answer = operation.await;
        self.world.alive(self.life).await;
        answer
    }

    /// The entries of somebody else put behind what is there: what a store without a fence does.
    fn unfenced(&self, batch: Vec<Append>) -> Vec<Append> {
        let renew = |mut item: Append| {
            let Some(stored) = self.store.stored(&item.saga).filter(|_| item.begin.is_none()) else {
                return item;
            };
            let Some(owner) = stored.head.owner else { return item };
            if owner == item.by {
                return item;
            }
            let mut crc = stored.head.crc;
            for (seq, entry) in (stored.head.len..).zip(&mut item.entries) {
                (entry.seq, entry.epoch) = (seq, stored.head.epoch);
                entry.crc = entry.checksum(&item.saga, crc);
                crc = entry.crc;
            }
            (item.by, item.epoch) = (owner, stored.head.epoch);
            item
        };
        batch.into_iter().map(renew).collect()
    }

    /// The work is done in a transaction of its own, before the one that records it; `stale`: only where that will be refused, since nobody has
    /// looked at the owner before.
    fn apart(&self, batch: Vec<Append>, stale: bool) -> Vec<Append> {
        let Some(business) = &self.world.business else { return batch };
        let split = |mut item: Append| {
            let owner = self.store.stored(&item.saga).and_then(|stored| stored.head.owner);
            if stale && owner.as_ref() == Some(&item.by) {
                return item;
            }
            // What has failed says so once more.
            if let Some(Ok(entry)) = item.work.as_ref().map(|work| business.work(work)) {
                (item.work, item.entries) = (None, vec![entry]);
            }
            item
        };
        batch.into_iter().map(split).collect()
    }
}

fn lost() -> StoreError {
    StoreError::Unavailable("planned".to_owned())
}

impl Journal for Gate {
    fn now(&self) -> Pending<'_, Timestamp> {
        Box::pin(self.through(self.store.now()))
    }

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        Box::pin(async move {
            self.world.alive(self.life).await;
            let (before, after) = {
                let mut state = lock(&self.world.state);
                let number = state.appends;
                let place = Place::Append(number);
                state.appends += 1;
                state.trace.push(place.clone());
                let plan = |fault: memory::Fault| self.store.fault(Operation::Append, 0, fault);
                for (edge, fault) in [
                    (Edge::Before, memory::Fault::Fail(lost())),
                    (Edge::After, memory::Fault::LoseAnswer(lost())),
                ] {
                    if state.fires(|planned| *planned == Fault::Store(number, edge)) {
                        plan(fault);
                    }
                }
                if state.fires(|planned| *planned == Fault::Unsynced(number)) {
                    state.dead = state.life;
                    plan(memory::Fault::CrashUnsynced);
                }
                (state.stops(&place, Edge::Before), state.stops(&place, Edge::After))
            };
            if batch.iter().any(|item| item.begin.is_none()) {
                self.world.passed.send_modify(|passed| *passed += 1);
            }
            self.world.stop(before, self.life).await;
            let batch = match self.world.bug {
                Some(Bug::NoFence) => self.unfenced(batch),
                Some(Bug::WorkApart) => self.apart(batch, false),
                Some(Bug::WorkUnfenced) => self.apart(batch, true),
                _ => batch,
            };
            let answer = self.store.append(batch).await;
            self.world.stop(after, self.life).await;
            self.world.alive(self.life).await;
            answer
        })
    }

    fn does(&self, job: TypeId) -> bool {
        self.store.does(job)
    }

    fn blocks(&self) -> bool {
        false
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        Box::pin(self.through(self.store.heartbeat(by, lease)))
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        Box::pin(self.through(self.store.leave(by)))
    }

    fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()> {
        Box::pin(self.through(self.store.announce(by, presence)))
    }

    fn orchestrators(&self) -> Pending<'_, Vec<Registered>> {
        Box::pin(self.through(self.store.orchestrators()))
    }

    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        Box::pin(async move {
            self.world.alive(self.life).await;
            let number = {
                let mut state = lock(&self.world.state);
                state.claims += 1;
                state.claims - 1
            };
            for (edge, fault) in [
                (Edge::Before, memory::Fault::Fail(lost())),
                (Edge::After, memory::Fault::LoseAnswer(lost())),
            ] {
                if lock(&self.world.state).fires(|planned| *planned == Fault::Claim(number, edge)) {
                    self.store.fault(Operation::Claim, 0, fault);
                }
            }
            self.through(self.store.claim(claim)).await
        })
    }

    fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>> {
        Box::pin(self.through(self.store.load(saga)))
    }

    fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
        Box::pin(self.through(self.store.list(query)))
    }

    fn request(&self, request: Request) -> Pending<'_, Requested> {
        Box::pin(self.through(self.store.request(request)))
    }

    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
        Box::pin(self.through(self.store.requests(by)))
    }

    fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize> {
        Box::pin(self.through(self.store.forget(by, before, limit)))
    }

    fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>> {
        Box::pin(self.through(self.store.forgotten(limit)))
    }
}
