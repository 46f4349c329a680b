//! A journal that blocks whoever polls it, asked from threads that may be blocked.

use std::{
    any::TypeId,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use tokio::{runtime::Handle, sync::oneshot};

use super::watched::{Here, WhileHere};
use crate::saga::{
    attempt::message,
    journal::{
        Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
        Requested, StoreError, Stored,
    },
    record::{Incarnation, SagaId, Timestamp},
};

/// Every operation on a thread of the orchestrator's own: the runtime's pool for blocking work is also that of the steps, and when they all wait
/// there, a heartbeat behind them would come too late. Appends have a thread of their own, see
/// [`Writer`](crate::saga::writer::Writer), and do not come this way.
///
/// What has begun there goes on when nobody waits for it any more. So it is among what an end waits for: a heartbeat or a claim behind
/// the word that the orchestrator has left would keep sagas from others for as long as a lease.
pub(super) struct OffThread {
    journal: Arc<dyn Journal>,
    here: WhileHere,
    /// What the lease depends on.
    lease: Lane,
    /// What changes something else.
    changes: Lane,
    /// What only looks.
    looks: Lane,
}

/// A thread that does one thing after the other, until nobody can ask it any more.
struct Lane(mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl Lane {
    fn start(name: &str) -> io::Result<Self> {
        let (sender, jobs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let thread = thread::Builder::new().name(name.to_owned());
        thread.spawn(move || jobs.into_iter().for_each(|job| job()))?;
        Ok(Lane(sender))
    }
}

impl OffThread {
    pub(super) fn start(journal: Arc<dyn Journal>, here: WhileHere) -> io::Result<Self> {
        let [lease, changes, looks] = ["saga-lease", "saga-changes", "saga-looks"].map(Lane::start);
        Ok(OffThread { journal, here, lease: lease?, changes: changes?, looks: looks? })
    }

    fn run<'a, T, W>(&'a self, lane: &'a Lane, work: W) -> Pending<'a, T>
    where
        T: Send + 'static,
        W: FnOnce(&dyn Journal) -> Pending<'_, T> + Send + 'static,
    {
        let journal = self.journal.clone();
        let here: Option<Here> = self.here.upgrade();
        Box::pin(async move {
            let runtime = Handle::current();
            let (answer, answered) = oneshot::channel();
            let job = move || {
                // What waits for the thread is not done any more when nobody waits for it.
                if answer.is_closed() {
                    return;
                }
                let done = catch_unwind(AssertUnwindSafe(|| runtime.block_on(work(&*journal))));
                let panicked = |panic: Box<_>| StoreError::Unavailable(message(&*panic));
                drop((journal, here));
                let _ = answer.send(done.unwrap_or_else(|panic| Err(panicked(panic))));
            };
            let _ = lane.0.send(Box::new(job));
            let ended = || StoreError::Unavailable("its thread has ended".to_owned());
            answered.await.unwrap_or_else(|_| Err(ended()))
        })
    }
}

impl Journal for OffThread {
    fn now(&self) -> Pending<'_, Timestamp> {
        self.run(&self.lease, |journal| journal.now())
    }

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        self.run(&self.changes, |journal| journal.append(batch))
    }

    fn does(&self, job: TypeId) -> bool {
        self.journal.does(job)
    }

    fn blocks(&self) -> bool {
        false
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        let by = by.clone();
        self.run(&self.lease, move |journal| journal.heartbeat(&by, lease))
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        let by = by.clone();
        self.run(&self.lease, move |journal| journal.leave(&by))
    }

    fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()> {
        let by = by.clone();
        self.run(&self.changes, move |journal| journal.announce(&by, presence))
    }

    fn orchestrators(&self) -> Pending<'_, Vec<Registered>> {
        self.run(&self.looks, |journal| journal.orchestrators())
    }

    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        self.run(&self.changes, |journal| journal.claim(claim))
    }

    fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>> {
        let saga = saga.clone();
        self.run(&self.looks, move |journal| journal.load(&saga))
    }

    fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
        self.run(&self.looks, |journal| journal.list(query))
    }

    fn request(&self, request: Request) -> Pending<'_, Requested> {
        self.run(&self.changes, |journal| journal.request(request))
    }

    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
        let by = by.clone();
        self.run(&self.looks, move |journal| journal.requests(&by))
    }

    fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize> {
        let by = by.to_owned();
        self.run(&self.changes, move |journal| journal.forget(&by, before, limit))
    }

    fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>> {
        self.run(&self.looks, move |journal| journal.forgotten(limit))
    }

    fn check(&self) -> Pending<'_, Vec<String>> {
        self.run(&self.looks, move |journal| journal.check())
    }
}
