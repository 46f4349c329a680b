//! The store as one orchestrator sees it: it can stand still, die, and be lied to, and what it appends is watched.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::saga::{
    Incarnation, SagaId, StoreError, Timestamp,
    journal::{
        Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
        Requested, Stored,
    },
};
use tokio::sync::watch;

/// One run of one orchestrator, and what is wrong with it.
pub struct Life {
    pub held: watch::Sender<bool>,
    pub dead: AtomicBool,
    pub heartbeats_fail: AtomicBool,
    pub answers_lost: AtomicBool,
}

impl Life {
    pub fn new() -> Arc<Self> {
        Arc::new(Life {
            held: watch::Sender::new(false),
            dead: AtomicBool::new(false),
            heartbeats_fail: AtomicBool::new(false),
            answers_lost: AtomicBool::new(false),
        })
    }

    /// Goes on only while it lives and does not stand still.
    pub async fn alive(&self) {
        let mut held = self.held.subscribe();
        let _ = held.wait_for(|held| !held).await;
        if self.dead.load(SeqCst) {
            pending::<()>().await;
        }
    }
}

/// What was seen of appends under an epoch that was over when they were sent to the store.
#[derive(Debug, Default)]
pub struct Stale {
    pub refused: AtomicU64,
    pub accepted: AtomicU64,
}

/// Chance with a seed.
pub struct Chance(Mutex<u64>);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Chance(Mutex::new(seed))
    }

    /// Below `end`, by SplitMix64.
    pub fn below(&self, end: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    pub fn percent(&self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

pub struct Gate {
    /// A connection of its own.
    pub store: Arc<dyn Journal>,
    /// Another one, to look.
    pub viewer: Arc<dyn Journal>,
    pub life: Arc<Life>,
    pub stale: Arc<Stale>,
    pub chance: Arc<Chance>,
    /// The planted fault: the store takes anything, from anybody.
    pub unfenced: bool,
}

impl Gate {
    async fn ask<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: FnOnce(&dyn Journal) -> Pending<'_, T> + Send + 'static,
    {
        self.life.alive().await;
        let answer = ask(&self.store, work).await;
        self.life.alive().await;
        answer
    }

    /// Which items come from one who is no longer the owner.
    async fn stale(&self, batch: &[Append]) -> Result<Vec<bool>, StoreError> {
        let mut stale = Vec::new();
        for item in batch {
            let id = item.saga.clone();
            let stored = match item.begin {
                None => ask(&self.viewer, move |journal| stored(journal, id)).await?,
                Some(_) => None,
            };
            stale.push(stored.is_some_and(|stored| stored.head.epoch > item.epoch));
        }
        Ok(stale)
    }

    /// The entries of somebody else put behind what is there: what a store without a fence does.
    async fn renew(&self, mut item: Append) -> Result<Append, StoreError> {
        let id = item.saga.clone();
        let Some(found) = ask(&self.viewer, move |journal| stored(journal, id)).await? else {
            return Ok(item);
        };
        let Some(owner) = found.head.owner.filter(|owner| *owner != item.by && item.begin.is_none()) else {
            return Ok(item);
        };
        let mut crc = found.head.crc;
        for (seq, entry) in (found.head.len..).zip(&mut item.entries) {
            (entry.seq, entry.epoch) = (seq, found.head.epoch);
            entry.crc = entry.checksum(&item.saga, crc);
            crc = entry.crc;
        }
        (item.by, item.epoch) = (owner, found.head.epoch);
        Ok(item)
    }
}

/// A store in memory is asked in place, one on a disk on a thread that may be blocked.
pub async fn ask<T, W>(store: &Arc<dyn Journal>, work: W) -> Result<T, StoreError>
where
    T: Send + 'static,
    W: FnOnce(&dyn Journal) -> Pending<'_, T> + Send + 'static,
{
    if !store.blocks() {
        return work(&**store).await;
    }
    let (store, runtime) = (store.clone(), tokio::runtime::Handle::current());
    tokio::task::spawn_blocking(move || runtime.block_on(work(&*store))).await.unwrap()
}

fn stored(journal: &dyn Journal, id: SagaId) -> Pending<'_, Option<Stored>> {
    Box::pin(async move { journal.load(&id).await })
}

impl Journal for Gate {
    fn now(&self) -> Pending<'_, Timestamp> {
        Box::pin(self.ask(|journal| journal.now()))
    }

    fn append(&self, mut batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        Box::pin(async move {
            self.life.alive().await;
            let stale = self.stale(&batch).await?;
            if self.unfenced {
                let mut renewed = Vec::new();
                for item in batch {
                    renewed.push(self.renew(item).await?);
                }
                batch = renewed;
            }
            let answers = ask(&self.store, |journal| journal.append(batch)).await?;
            for (stale, answer) in stale.iter().zip(&answers) {
                if *stale {
                    let count = if answer.is_ok() { &self.stale.accepted } else { &self.stale.refused };
                    count.fetch_add(1, SeqCst);
                }
            }
            self.life.alive().await;
            if self.life.answers_lost.load(SeqCst) && self.chance.percent(30) {
                return Err(StoreError::Unavailable("its answer was lost".to_owned()));
            }
            Ok(answers)
        })
    }

    fn blocks(&self) -> bool {
        false
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(async move {
            if self.life.heartbeats_fail.load(SeqCst) {
                return Err(StoreError::Unavailable("no heartbeat comes through".to_owned()));
            }
            self.ask(move |journal| journal.heartbeat(&by, lease)).await
        })
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(self.ask(move |journal| journal.leave(&by)))
    }

    fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(self.ask(move |journal| journal.announce(&by, presence)))
    }

    fn orchestrators(&self) -> Pending<'_, Vec<Registered>> {
        Box::pin(self.ask(|journal| journal.orchestrators()))
    }

    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        Box::pin(self.ask(|journal| journal.claim(claim)))
    }

    fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>> {
        let saga = saga.clone();
        Box::pin(self.ask(move |journal| stored(journal, saga)))
    }

    fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
        Box::pin(self.ask(|journal| journal.list(query)))
    }

    fn request(&self, request: Request) -> Pending<'_, Requested> {
        Box::pin(self.ask(|journal| journal.request(request)))
    }

    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
        let by = by.clone();
        Box::pin(self.ask(move |journal| journal.requests(&by)))
    }

    fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize> {
        let by = by.to_owned();
        Box::pin(self.ask(move |journal| journal.forget(&by, before, limit)))
    }

    fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>> {
        Box::pin(self.ask(move |journal| journal.forgotten(limit)))
    }
}
