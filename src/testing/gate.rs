//! The store as an orchestrator sees it that can be stopped: every operation waits for its owner to be alive.

use std::{any::TypeId, sync::Arc, time::Duration};

use super::{
    check::{Bug, LEASE},
    world::World,
};
use crate::{
    saga::{
        Incarnation, SagaId, Timestamp,
        journal::{
            Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
            Requested, StoreError, Stored,
        },
        memory::{Memory, Operation},
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

    /// An operation that changes the store: a place. Whether it has changed nothing worth one is said by `idle`.
    async fn change<'a, T>(
        &'a self,
        operation: Operation,
        idle: fn(&T) -> bool,
        change: impl FnOnce() -> Pending<'a, T>,
    ) -> Result<T, StoreError> {
        self.world.alive(self.life).await;
        let (place, before, after) = lock(&self.world.state).enter(operation, &self.store);
        self.world.stop(before, self.life).await;
        let answer = change().await;
        // Nothing else changes what a crash would leave of the saga.
        if matches!(operation, Operation::Append | Operation::Claim | Operation::Forget) {
            self.world.probe().await;
        }
        self.world.stop(after, self.life).await;
        self.world.alive(self.life).await;
        lock(&self.world.state).exit(&place, operation, answer.as_ref().is_ok_and(idle));
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

    /// A claim behind a cache that hears of it when it is written, and gives nothing that it takes for older than what it has heard.
    fn cached(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        Box::pin(async move {
            let written = Memory::restore(&self.store.snapshot()).claim(claim.clone()).await?;
            let Some(epoch) = written.iter().map(|stored| stored.head.epoch).max() else {
                return self.store.claim(claim).await;
            };
            let old = {
                let cached = &mut lock(&self.world.state).cached;
                let old = epoch <= *cached;
                *cached = epoch.max(*cached);
                old
            };
            if old { Ok(Vec::new()) } else { self.store.claim(claim).await }
        })
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

/// Beginnings without locks.
fn unlocked(mut batch: Vec<Append>) -> Vec<Append> {
    batch.iter_mut().filter_map(|item| item.begin.as_mut()).for_each(|begin| begin.locks.clear());
    batch
}

fn never<T>(_: &T) -> bool {
    false
}

impl Journal for Gate {
    fn now(&self) -> Pending<'_, Timestamp> {
        Box::pin(self.through(self.store.now()))
    }

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        Box::pin(self.change(Operation::Append, never, || {
            if batch.iter().any(|item| item.begin.is_none()) {
                self.world.passed.send_modify(|passed| *passed += 1);
            }
            self.store.append(match self.world.bug {
                Some(Bug::NoFence) => self.unfenced(batch),
                Some(Bug::NoLocks) => unlocked(batch),
                Some(Bug::WorkApart) => self.apart(batch, false),
                Some(Bug::WorkUnfenced) => self.apart(batch, true),
                _ => batch,
            })
        }))
    }

    fn does(&self, job: TypeId) -> bool {
        self.store.does(job)
    }

    fn blocks(&self) -> bool {
        false
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(self.change(Operation::Heartbeat, |()| true, move || self.store.heartbeat(&by, lease)))
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(self.change(Operation::Leave, never, move || self.store.leave(&by)))
    }

    fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(self.change(Operation::Announce, never, move || self.store.announce(&by, presence)))
    }

    fn orchestrators(&self) -> Pending<'_, Vec<Registered>> {
        Box::pin(self.through(self.store.orchestrators()))
    }

    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        Box::pin(async move {
            let by = claim.by.clone();
            let claiming = self.change(Operation::Claim, Vec::is_empty, || match self.world.bug {
                Some(Bug::ClaimCached) => self.cached(claim),
                _ => self.store.claim(claim),
            });
            match self.world.bug {
                Some(Bug::ClaimHeld) => {
                    self.world.alive(self.life).await;
                    self.store.heartbeat(&by, LEASE * 1_000).await?;
                    let claimed = claiming.await;
                    self.store.heartbeat(&by, LEASE).await?;
                    claimed
                }
                Some(Bug::ClaimUnsynced) => {
                    self.store.acknowledge_unsynced(true);
                    let claimed = claiming.await;
                    self.store.acknowledge_unsynced(false);
                    claimed
                }
                _ => claiming.await,
            }
        })
    }

    fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>> {
        Box::pin(self.through(self.store.load(saga)))
    }

    fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
        Box::pin(self.through(self.store.list(query)))
    }

    fn request(&self, request: Request) -> Pending<'_, Requested> {
        Box::pin(self.change(Operation::Request, never, || self.store.request(request)))
    }

    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
        Box::pin(self.through(self.store.requests(by)))
    }

    fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize> {
        let by = by.to_owned();
        Box::pin(self.change(Operation::Forget, never, move || self.store.forget(&by, before, limit)))
    }

    fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>> {
        Box::pin(self.through(self.store.forgotten(limit)))
    }
}
