//! A journal of which is known when nobody has it any more.

use std::{any::TypeId, convert::Infallible, time::Duration};

use tokio::sync::mpsc;

use crate::saga::{
    journal::{
        Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
        Requested, StoreError, Stored,
    },
    record::{Incarnation, SagaId, Timestamp},
};

/// Ends when everything that holds the other end is gone.
pub(crate) type Gone = mpsc::Receiver<Infallible>;
/// Held by what is waited for.
pub(crate) type Here = mpsc::Sender<Infallible>;
/// Becomes what is waited for, as long as something is.
pub(super) type WhileHere = mpsc::WeakSender<Infallible>;

/// The journal, and behind it in the order of dropping what tells that it is gone.
pub(super) struct Watched<J> {
    journal: J,
    _here: Here,
}

impl<J: Journal> Watched<J> {
    pub(super) fn new(journal: J) -> (Self, Gone) {
        let (here, gone) = mpsc::channel(1);
        (Watched { journal, _here: here }, gone)
    }
}

impl<J: Journal> Journal for Watched<J> {
    fn now(&self) -> Pending<'_, Timestamp> {
        self.journal.now()
    }

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        self.journal.append(batch)
    }

    fn does(&self, job: TypeId) -> bool {
        self.journal.does(job)
    }

    fn blocks(&self) -> bool {
        self.journal.blocks()
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        self.journal.heartbeat(by, lease)
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        self.journal.leave(by)
    }

    fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()> {
        self.journal.announce(by, presence)
    }

    fn orchestrators(&self) -> Pending<'_, Vec<Registered>> {
        self.journal.orchestrators()
    }

    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        self.journal.claim(claim)
    }

    fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>> {
        self.journal.load(saga)
    }

    fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
        self.journal.list(query)
    }

    fn request(&self, request: Request) -> Pending<'_, Requested> {
        self.journal.request(request)
    }

    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
        self.journal.requests(by)
    }

    fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize> {
        self.journal.forget(by, before, limit)
    }

    fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>> {
        self.journal.forgotten(limit)
    }

    fn check(&self) -> Pending<'_, Vec<String>> {
        self.journal.check()
    }
}

/// What an orchestrator that has been shut down says.
pub(super) fn shut_down() -> StoreError {
    StoreError::Unavailable("the orchestrator was shut down".to_owned())
}
