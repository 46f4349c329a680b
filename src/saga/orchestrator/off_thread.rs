//! A journal that blocks whoever polls it, asked from threads that may be blocked.

use std::{any::TypeId, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    task::{AbortHandle, spawn_blocking},
};

use super::watched::{Here, WhileHere};
use crate::saga::{
    journal::{
        Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
        Requested, StoreError, Stored,
    },
    record::{Incarnation, SagaId, Timestamp},
};

/// Every operation on a thread of the runtime's pool for blocking work. Appends have a thread of their own, see
/// [`Writer`](crate::saga::writer::Writer), and do not come this way.
///
/// What has begun there goes on when nobody waits for it any more. So it is among what an end waits for: a heartbeat or a claim behind
/// the word that the orchestrator has left would keep sagas from others for as long as a lease.
pub(super) struct OffThread {
    pub(super) journal: Arc<dyn Journal>,
    pub(super) here: WhileHere,
}

impl OffThread {
    fn run<T, W>(&self, work: W) -> Pending<'_, T>
    where
        T: Send + 'static,
        W: FnOnce(&dyn Journal) -> Pending<'_, T> + Send + 'static,
    {
        let journal = self.journal.clone();
        let here: Option<Here> = self.here.upgrade();
        Box::pin(async move {
            let runtime = Handle::current();
            let job = spawn_blocking(move || {
                let _here = here;
                runtime.block_on(work(&*journal))
            });
            let _given_up = GivenUp(job.abort_handle());
            job.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
        })
    }
}

/// What waits for a thread is not done any more when nobody waits for it.
struct GivenUp(AbortHandle);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Journal for OffThread {
    fn now(&self) -> Pending<'_, Timestamp> {
        self.run(|journal| journal.now())
    }

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        self.run(|journal| journal.append(batch))
    }

    fn does(&self, job: TypeId) -> bool {
        self.journal.does(job)
    }

    fn blocks(&self) -> bool {
        false
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        let by = by.clone();
        self.run(move |journal| journal.heartbeat(&by, lease))
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        let by = by.clone();
        self.run(move |journal| journal.leave(&by))
    }

    fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()> {
        let by = by.clone();
        self.run(move |journal| journal.announce(&by, presence))
    }

    fn orchestrators(&self) -> Pending<'_, Vec<Registered>> {
        self.run(|journal| journal.orchestrators())
    }

    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        self.run(|journal| journal.claim(claim))
    }

    fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>> {
        let saga = saga.clone();
        self.run(move |journal| journal.load(&saga))
    }

    fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
        self.run(|journal| journal.list(query))
    }

    fn request(&self, request: Request) -> Pending<'_, Requested> {
        self.run(|journal| journal.request(request))
    }

    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
        let by = by.clone();
        self.run(move |journal| journal.requests(&by))
    }

    fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize> {
        let by = by.to_owned();
        self.run(move |journal| journal.forget(&by, before, limit))
    }

    fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>> {
        self.run(move |journal| journal.forgotten(limit))
    }

    fn check(&self) -> Pending<'_, Vec<String>> {
        self.run(move |journal| journal.check())
    }
}
