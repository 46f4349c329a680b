//! A store in memory that behaves like one on a disk: the store of tests.
//!
//! # Example
//!
//! ```
//! use mainstay::saga::{Incarnation, journal::{Journal, Query}, memory::{Fault, Memory, Operation}};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let store = Memory::new();
//! assert!(store.list(Query::default()).await.unwrap().is_empty());
//!
//! // The second append from now is written, and its process dies before it hears of it.
//! store.fault(Operation::Append, 1, Fault::CrashAfter);
//! // .. drive sagas until `store.dead().await` ..
//! let store = store.reopen();
//! assert_eq!(store.counts().forced, 0);
//! # }
//! ```
//!
//! # Semantics
//!
//! * A *device* holds the tables. A `Memory` is a *connection* to it; clones are the same connection, [`Memory::connect`]
//!   makes another one, as another process has it.
//! * What is written reaches the disk when it is synced, which is before it is answered. [`Memory::crash`] cuts the power:
//!   what was not synced is gone, and every connection is dead. [`Memory::kill`] ends one connection, as the death of its process
//!   does, and loses nothing.
//! * A dead connection answers nothing any more: its futures stay pending for ever. A test sees that by
//!   [`Memory::dead`], drops what used the connection, and goes on with [`Memory::reopen`].
//! * [`Memory::acknowledge_unsynced`] makes a store that breaks its promise: it answers first, and syncs when
//!   [`Memory::sync`] is called. Tests that claim to notice lost acknowledgements are to be run against it.
//! * Time is that of tokio's clock, paused or not, on top of a fixed date; [`Memory::set_clock`] makes it jump.
//!
//! # Sharing
//!
//! Any number of tasks and threads may use a connection; operations happen one after the other.
//!
//! # Cancel safety
//!
//! An operation is done in one poll, except where a fault makes it stall. A future that is dropped in a stall has done
//! nothing before [`Fault::Stall`], and has written without a sync in [`Fault::StallUnsynced`].
//!
//! # Errors
//!
//! Only those that were asked for.
//!
//! # Cost
//!
//! A saga takes about 0.5 KiB and each entry about 0.2 KiB. A clone of the device by [`Memory::snapshot`] shares the sagas and
//! copies a pointer for each.

mod beside;
mod faults;
mod rows;

use std::{
    any::TypeId,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

pub(crate) use beside::{Beside, Saved};
pub use faults::{Counts, Fault, Operation};
use tokio::sync::Notify;

use self::{faults::Planned, rows::Rows};
use super::{
    Incarnation, SagaId, Timestamp,
    journal::{
        Append, Claim, Forgotten, Head, Journal, Pending, Presence, Query, Refusal, Registered, Request,
        Requested, StoreError, Stored,
    },
};
use crate::sync::{Mutex, lock};

/// The date at which every new device begins: 2026-01-01 00:00:00 UTC.
const BEGIN: Timestamp = Timestamp(1_767_225_600_000);

/// A store in memory, with faults; see the [module](self).
#[derive(Debug, Clone)]
pub struct Memory {
    device: Arc<Mutex<Device>>,
    connection: Arc<Connection>,
}

/// What a disk holds, to begin from it again any number of times. A clone is the same image.
#[derive(Debug, Clone)]
pub struct Image {
    rows: Arc<Rows>,
    taken: Timestamp,
}

#[derive(Debug)]
struct Device {
    rows: Rows,
    /// What does the work of steps. Without it the store is one that does none.
    beside: Option<Arc<dyn Beside>>,
    counts: Counts,
    connections: Vec<Arc<Connection>>,
    acknowledges_unsynced: bool,
    begin: Timestamp,
    since: Instant,
}

#[derive(Debug, Default)]
struct Connection {
    dead: AtomicBool,
    poisoned: AtomicBool,
    died: Notify,
    planned: Mutex<Planned>,
}

impl Connection {
    fn die(&self) {
        self.dead.store(true, SeqCst);
        self.died.notify_waiters();
    }

    fn is_dead(&self) -> bool {
        self.dead.load(SeqCst)
    }
}

impl Device {
    fn now(&self) -> Timestamp {
        self.begin.after(crate::time::now().saturating_duration_since(self.since))
    }

    fn connect(&mut self) -> Arc<Connection> {
        self.connections.retain(|connection| !connection.is_dead());
        let connection = Arc::new(Connection::default());
        self.connections.push(connection.clone());
        connection
    }

    fn crash(&mut self, keep: usize) {
        let last = self.rows.revert(keep);
        if let Some(beside) = &self.beside {
            beside.crash(last);
        }
        for connection in self.connections.drain(..) {
            connection.die();
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory::new()
    }
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Memory::over(Rows::default(), BEGIN)
    }

    /// A store with what an image holds. Its clock goes on where the image was taken; faults and counts begin anew.
    pub fn restore(image: &Image) -> Self {
        Memory::over(Rows::clone(&image.rows), image.taken)
    }

    fn over(rows: Rows, begin: Timestamp) -> Self {
        let mut device = Device {
            rows,
            beside: None,
            counts: Counts::default(),
            connections: Vec::new(),
            acknowledges_unsynced: false,
            begin,
            since: crate::time::now(),
        };
        let connection = device.connect();
        Memory { device: Arc::new(Mutex::new(device)), connection }
    }

    /// Puts a database on the device, for the work of steps. An [`Image`] is without it.
    pub(crate) fn put_beside(&self, database: Arc<dyn Beside>) {
        lock(&self.device).beside = Some(database);
    }

    // --- faults ---

    /// Lets the operation behind the next `skip` ones of its kind on this connection go wrong; once. Faults add up: each counts
    /// for itself, and when two meet the second one waits for the next operation.
    pub fn fault(&self, operation: Operation, skip: u64, fault: Fault) {
        lock(&self.connection.planned).plan(Some(operation), skip, fault);
    }

    /// Lets the operation behind the next `skip` ones of any kind on this connection go wrong; see [`fault`](Memory::fault).
    pub fn fault_any(&self, skip: u64, fault: Fault) {
        lock(&self.connection.planned).plan(None, skip, fault);
    }

    /// How many faults have not come yet: 0 shows that a test has met what it planned.
    pub fn planned_faults(&self) -> usize {
        lock(&self.connection.planned).len()
    }

    /// Forgets the faults that have not come yet.
    pub fn clear_faults(&self) {
        lock(&self.connection.planned).clear();
    }

    /// Whether the device answers before it syncs, and so loses in a [`crash`](Memory::crash) what it has acknowledged since
    /// the last [`sync`](Memory::sync). It is the planted bug that a test of durability has to notice.
    pub fn acknowledge_unsynced(&self, unsynced: bool) {
        lock(&self.device).acknowledges_unsynced = unsynced;
    }

    /// Brings everything that was written to the disk.
    pub fn sync(&self) {
        lock(&self.device).rows.sync();
    }

    /// Flips one bit in the data of an entry, on the disk; whether there is such an entry. Every bit of its ASCII characters can
    /// be had by counting `bit` up from 0, 7 for each.
    pub fn corrupt(&self, saga: &SagaId, seq: u64, bit: usize) -> bool {
        lock(&self.device).rows.corrupt(saga, seq, bit)
    }

    /// Loses the entries of a saga from the `len`-th on, while its head still counts them; how many it were.
    pub fn truncate(&self, saga: &SagaId, len: usize) -> usize {
        lock(&self.device).rows.truncate(saga, len)
    }

    /// Sets the device's clock, as a person or a time server does; it goes on from there. Leases, wakes and durable timers go by it.
    pub fn set_clock(&self, now: Timestamp) {
        let mut device = lock(&self.device);
        device.begin = now;
        device.since = crate::time::now();
    }

    // --- processes ---

    /// Another connection to the same device, as another process has it; without faults. It works on a device that is
    /// otherwise dead, too.
    pub fn connect(&self) -> Self {
        let connection = lock(&self.device).connect();
        Memory { device: self.device.clone(), connection }
    }

    /// Ends this connection and its clones, as the death of the process does. Nothing is lost, and what was not answered is
    /// not answered any more.
    pub fn kill(&self) {
        self.connection.die();
    }

    /// Cuts the power: what was not synced is gone, every connection is dead.
    pub fn crash(&self) {
        lock(&self.device).crash(0);
    }

    /// Cuts the power when the disk had got only the first `changes` operations, or items of batches, of those that were
    /// not synced.
    pub fn crash_keeping(&self, changes: usize) {
        lock(&self.device).crash(changes);
    }

    /// Ends this connection and makes another one, as a process does that is started again.
    pub fn reopen(&self) -> Self {
        self.kill();
        self.connect()
    }

    /// Waits until this connection is dead.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn dead(&self) {
        let mut died = std::pin::pin!(self.connection.died.notified());
        died.as_mut().enable();
        if !self.connection.is_dead() {
            died.await;
        }
    }

    /// Whether this connection is dead.
    pub fn is_dead(&self) -> bool {
        self.connection.is_dead()
    }

    // --- looking ---

    /// What the disk holds: what a [`crash`](Memory::crash) would leave.
    pub fn snapshot(&self) -> Image {
        let device = lock(&self.device);
        let mut rows = device.rows.clone();
        rows.revert(0);
        Image { rows: Arc::new(rows), taken: device.now() }
    }

    /// What was counted on the device, by all connections.
    pub fn counts(&self) -> Counts {
        lock(&self.device).counts.clone()
    }

    /// Counts from 0 again.
    pub fn reset_counts(&self) {
        lock(&self.device).counts = Counts::default();
    }

    /// One saga as it is written, synced or not. It is no operation: not counted, not stalled, and answered on a dead connection.
    pub fn stored(&self, saga: &SagaId) -> Option<Stored> {
        lock(&self.device).rows.stored(saga)
    }

    /// The ids of all sagas in their order; no operation, like [`stored`](Memory::stored).
    pub fn sagas(&self) -> Vec<SagaId> {
        lock(&self.device).rows.ids()
    }

    // --- how an operation goes ---

    /// Counts an operation and looks what is to go wrong in it. A dead connection never comes back.
    async fn meet(&self, operation: Operation) -> Result<Option<Fault>, StoreError> {
        self.live().await;
        *lock(&self.device).counts.operations.entry(operation).or_default() += 1;
        if self.connection.poisoned.load(SeqCst) {
            return Err(StoreError::Poisoned);
        }
        let fault = lock(&self.connection.planned).next(operation);
        match fault {
            Some(Fault::Fail(error)) => Err(error),
            Some(Fault::CrashBefore) => {
                self.crash();
                pending().await
            }
            Some(Fault::Stall(time)) => {
                tokio::time::sleep(time).await;
                self.live().await;
                Ok(None)
            }
            fault => Ok(fault),
        }
    }

    /// Goes on only while the connection lives.
    async fn live(&self) {
        if self.connection.is_dead() {
            pending::<()>().await;
        }
    }

    /// Syncs what was written for an operation and answers, or does not.
    async fn settle<T>(&self, fault: Option<Fault>, answer: T) -> Result<T, StoreError> {
        match fault {
            Some(Fault::CrashUnsynced) => {
                self.crash();
                pending().await
            }
            Some(Fault::FailSync) => {
                self.connection.poisoned.store(true, SeqCst);
                return Err(StoreError::Io("the simulated device has failed to sync".into()));
            }
            Some(Fault::StallUnsynced(time)) => {
                tokio::time::sleep(time).await;
                self.live().await;
            }
            _ => {}
        }
        {
            let mut device = lock(&self.device);
            if !device.acknowledges_unsynced {
                device.rows.sync();
            }
        }
        match fault {
            Some(Fault::LoseAnswer(error)) => Err(error),
            Some(Fault::CrashAfter) => {
                self.crash();
                pending().await
            }
            _ => Ok(answer),
        }
    }

    async fn write<T>(
        &self,
        operation: Operation,
        work: impl FnOnce(&mut Device, Timestamp) -> T,
    ) -> Result<T, StoreError> {
        let fault = self.meet(operation).await?;
        let answer = {
            let mut device = lock(&self.device);
            let now = device.now();
            // Without a fault nobody can see the time between writing and syncing, and nothing has to be taken back.
            if fault.is_some() || device.acknowledges_unsynced {
                device.rows.hold(true);
            }
            if operation != Operation::Append {
                device.counts.forced_others += 1;
            }
            work(&mut device, now)
        };
        self.settle(fault, answer).await
    }

    async fn read<T>(&self, operation: Operation, work: impl FnOnce(&Rows) -> T) -> Result<T, StoreError> {
        let fault = self.meet(operation).await?;
        let answer = work(&lock(&self.device).rows);
        match fault {
            None => Ok(answer),
            fault => self.settle(fault, answer).await,
        }
    }
}

impl Journal for Memory {
    fn now(&self) -> Pending<'_, Timestamp> {
        Box::pin(async move {
            self.live().await;
            Ok(lock(&self.device).now())
        })
    }

    fn append(&self, batch: Vec<Append>) -> Pending<'_, Vec<Result<(), Refusal>>> {
        Box::pin(self.write(Operation::Append, move |device, now| {
            let Device { rows, beside, counts, .. } = device;
            let accepted = counts.accepted;
            let append = |item: Append| match rows.append(item, now, beside.as_deref()) {
                Ok(kinds) => {
                    counts.accepted += 1;
                    kinds.iter().for_each(|kind| counts.entry(kind));
                    Ok(())
                }
                Err(refusal) => {
                    counts.refused += 1;
                    Err(refusal)
                }
            };
            let answers = batch.into_iter().map(append).collect();
            counts.forced += u64::from(counts.accepted > accepted);
            answers
        }))
    }

    fn does(&self, job: TypeId) -> bool {
        lock(&self.device).beside.as_ref().is_some_and(|beside| beside.does(job))
    }

    fn blocks(&self) -> bool {
        false
    }

    fn heartbeat(&self, by: &Incarnation, lease: Duration) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(self.write(Operation::Heartbeat, move |device, now| {
            device.rows.lease(&by, now.after(lease));
        }))
    }

    fn leave(&self, by: &Incarnation) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(self.write(Operation::Leave, move |device, now| device.rows.leave(&by, now)))
    }

    fn announce(&self, by: &Incarnation, presence: Presence) -> Pending<'_, ()> {
        let by = by.clone();
        Box::pin(self.write(Operation::Announce, move |device, _| device.rows.announce(&by, presence)))
    }

    fn orchestrators(&self) -> Pending<'_, Vec<Registered>> {
        Box::pin(self.read(Operation::Orchestrators, Rows::orchestrators))
    }

    fn claim(&self, claim: Claim) -> Pending<'_, Vec<Stored>> {
        Box::pin(self.write(Operation::Claim, move |device, now| device.rows.claim(&claim, now)))
    }

    fn load(&self, saga: &SagaId) -> Pending<'_, Option<Stored>> {
        let saga = saga.clone();
        Box::pin(self.read(Operation::Load, move |rows| rows.stored(&saga)))
    }

    fn list(&self, query: Query) -> Pending<'_, Vec<Head>> {
        Box::pin(self.read(Operation::List, move |rows| rows.list(&query)))
    }

    fn request(&self, request: Request) -> Pending<'_, Requested> {
        Box::pin(self.write(Operation::Request, move |device, _| device.rows.request(request)))
    }

    fn requests(&self, by: &Incarnation) -> Pending<'_, Vec<Request>> {
        let by = by.clone();
        Box::pin(self.read(Operation::Requests, move |rows| rows.requests(&by)))
    }

    fn forget(&self, by: &str, before: Timestamp, limit: usize) -> Pending<'_, usize> {
        let by = by.to_owned();
        let forget = move |device: &mut Device, now| device.rows.forget(by, now, before, limit);
        Box::pin(self.write(Operation::Forget, forget))
    }

    fn forgotten(&self, limit: usize) -> Pending<'_, Vec<Forgotten>> {
        Box::pin(self.read(Operation::Forgotten, move |rows| rows.forgotten(limit)))
    }
}
