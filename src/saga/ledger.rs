//! A saga's journal as its owner sees it: what is recorded, in which order, and what is told of it.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::sync::watch;

use super::{
    journal::{AnyJob, Append, Begin, Refusal, StoreError, Work},
    machine::Machine,
    orchestrator::{Finished, Inner, Status},
    record::{Entry, Payload, Record, SagaId, Timestamp},
    step::Failure,
    writer::{WriteError, Written},
};
use crate::{event::Event, time};

/// Why a driver has stopped before the saga was over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It waits for time or a message, and nothing of it is in memory.
    Released,
    /// Somebody else has the saga.
    Fenced,
    /// Nobody knows what of it is stored.
    Lost(StoreError),
    /// What is stored makes no sense to the code. Nothing was changed.
    Blocked(String),
    /// The orchestrator ends.
    Closed,
}

impl From<WriteError> for Stop {
    fn from(error: WriteError) -> Self {
        match error {
            // A gap after a refused append of one's own means the same as being fenced: the saga is to be read anew.
            WriteError::Refused(_) => Stop::Fenced,
            WriteError::Store(error) => Stop::Lost(error),
        }
    }
}

/// What has become of work.
#[derive(Debug)]
pub(crate) enum Transacted {
    /// It was done, and that is recorded.
    Recorded,
    /// It was rolled back.
    Failed(Failure),
    /// It has taken itself out of the transaction, in which nothing was recorded; what it did nobody knows.
    Unknown(String),
}

/// A saga's journal as its owner sees it: its machine, and where the next entry goes.
pub(crate) struct Ledger {
    pub(crate) inner: Arc<Inner>,
    pub(crate) id: SagaId,
    pub(crate) epoch: u64,
    len: u64,
    crc: u32,
    pub(crate) machine: Machine,
    created: Timestamp,
    status: watch::Sender<Status>,
    /// How often the lease had run out when the saga was asked for.
    pub(crate) lapses: u64,
    /// Whether something is queued of which nobody has waited for the answer, nor for that of something behind it.
    noted: bool,
}

impl Ledger {
    pub(crate) fn new(
        inner: Arc<Inner>,
        id: SagaId,
        machine: Machine,
        (epoch, len, crc): (u64, u64, u32),
        created: Timestamp,
        status: watch::Sender<Status>,
        lapses: u64,
    ) -> Self {
        Ledger { inner, id, epoch, len, crc, machine, created, status, lapses, noted: false }
    }

    /// Applies records and queues them, as one entry each, all or none.
    fn queue(
        &mut self,
        records: &[Record],
        begin: Option<Begin>,
        answers: Vec<String>,
        release: Option<Option<Timestamp>>,
    ) -> Result<Written, Stop> {
        let at = self.inner.now();
        let mut entries = Vec::with_capacity(records.len());
        for record in records {
            // The machine has been asked before; were it not legal, a fault of this crate would be on its way to the disk.
            self.machine.apply(record, at).map_err(|illegal| Stop::Blocked(illegal.to_string()))?;
            let by = &self.inner.by;
            let entry = Entry::new(&self.id, self.len, self.crc, self.epoch, at, by, record)
                .map_err(|error| Stop::Blocked(error.to_string()))?;
            self.len += 1;
            self.crc = entry.crc;
            entries.push(entry);
        }
        let phase = self.machine.phase();
        let append = Append {
            saga: self.id.clone(),
            by: self.inner.by.clone(),
            epoch: self.epoch,
            begin,
            entries,
            work: None,
            phase,
            note: self.machine.note().to_owned(),
            wake: release.flatten(),
            release: release.is_some(),
            answers,
        };
        Ok(self.append(append))
    }

    fn append(&self, append: Append) -> Written {
        let writer = &self.inner.writer;
        if self.noted { writer.append(append) } else { writer.append_beside(append) }
    }

    /// Records the saga's beginning, and waits until that is durable.
    pub(crate) async fn begin(&mut self, begin: Begin, record: Record) -> Result<(), WriteError> {
        let records = [record.shortened()];
        let written = match self.queue(&records, Some(begin), Vec::new(), None) {
            Ok(written) => written,
            Err(stop) => unreachable!("a saga may begin: {stop:?}"),
        };
        written.wait().await?;
        self.inner.recorded.fetch_add(1, Relaxed);
        self.publish(&records);
        Ok(())
    }

    /// Records and waits until that is durable. Only then anything may follow from it.
    pub(crate) async fn commit(&mut self, record: Record) -> Result<(), Stop> {
        self.answer(vec![record], Vec::new()).await
    }

    /// As `commit`, and takes the requests in `answers` away.
    pub(crate) async fn answer(&mut self, records: Vec<Record>, answers: Vec<String>) -> Result<(), Stop> {
        let records = shortened(records);
        let written = self.queue(&records, None, answers, None)?;
        written.wait().await?;
        self.noted = false;
        self.inner.recorded.fetch_add(1, Relaxed);
        self.publish(&records);
        Ok(())
    }

    /// Records what only has to be durable before the saga's end: losing it costs doing something a second time, which is harmless.
    /// What ends the saga is durable before anybody hears of it; and everything before it, since nothing is accepted behind a gap.
    pub(crate) async fn note(&mut self, record: Record) -> Result<(), Stop> {
        let records = [record.shortened()];
        let written = self.queue(&records, None, Vec::new(), None)?;
        self.noted = true;
        if self.machine.phase().is_terminal() {
            written.wait().await?;
        }
        self.publish(&records);
        Ok(())
    }

    /// Has work done and what comes of it recorded, in one transaction of the store, and waits until that is durable. If it was not
    /// recorded, the saga is as before; so it is when `keeps` says no to its output. From `given_up` on it is better if it is not recorded.
    ///
    /// Nothing else may be queued meanwhile: where the next entry goes is known afterwards.
    pub(crate) async fn transact(
        &mut self,
        job: AnyJob,
        keeps: impl Fn(&Payload) -> Result<(), String> + Send + Sync + 'static,
        record: impl Fn(Payload) -> Record + Send + Sync + 'static,
        given_up: impl Future<Output = ()>,
    ) -> Result<Transacted, Stop> {
        // Where the saga stands then does not depend on what comes of it.
        let (mut after, at) = (self.machine.clone(), self.inner.now());
        after.apply(&record(Payload::null()), at).map_err(|illegal| Stop::Blocked(illegal.to_string()))?;
        let (saga, by, asked) = (self.id.clone(), self.inner.by.clone(), time::now());
        let (seq, crc, epoch) = (self.len, self.crc, self.epoch);
        let work = Work::new(job, seq, move |output| {
            keeps(&output).map_err(Failure::rejected)?;
            let record = record(output);
            // The work may have taken its time, which is none of what is behind it.
            let at = at.after(time::now().saturating_duration_since(asked));
            let entry = Entry::new(&saga, seq, crc, epoch, at, &by, &record)?;
            Ok((record, entry))
        });
        let append = Append {
            saga: self.id.clone(),
            by: self.inner.by.clone(),
            epoch,
            begin: None,
            entries: Vec::new(),
            work: Some(work.clone()),
            phase: after.phase(),
            note: after.note().to_owned(),
            wake: None,
            release: false,
            answers: Vec::new(),
        };
        let written = self.append(append);
        let mut written = pin!(written.wait());
        let done = tokio::select! {
            biased;
            done = &mut written => done,
            () = given_up => {
                work.give_up();
                written.await
            }
        };
        match done {
            Ok(()) => {}
            Err(WriteError::Refused(Refusal::Failed { why })) => {
                return Ok(Transacted::Failed(work.failure().unwrap_or_else(|| Failure::unknown(why))));
            }
            Err(WriteError::Refused(refusal @ Refusal::Ended)) => {
                return Ok(Transacted::Unknown(refusal.to_string()));
            }
            Err(WriteError::Refused(refusal @ Refusal::Foreign { .. })) => {
                return Err(Stop::Blocked(refusal.to_string()));
            }
            Err(error) => return Err(error.into()),
        }
        let Some((record, entry)) = work.recorded() else {
            // A store that does not know of work has taken the append for one without entries.
            return Err(Stop::Blocked("the journal has done no work, and says that it has".to_owned()));
        };
        self.machine.apply(&record, entry.at).map_err(|illegal| Stop::Blocked(illegal.to_string()))?;
        (self.len, self.crc) = (seq + 1, entry.crc);
        self.noted = false;
        self.publish(&[record]);
        Ok(Transacted::Recorded)
    }

    /// Lets the saga as a whole wait for a person.
    pub(crate) async fn park(&mut self, reason: String) -> Result<(), Stop> {
        self.commit(Record::Parked { step: None, reason }).await
    }

    /// Lets the saga go until `wake`.
    pub(crate) async fn release(&mut self, wake: Option<Timestamp>) -> Result<(), Stop> {
        let written = self.queue(&[], None, Vec::new(), Some(wake))?;
        Ok(written.wait().await?)
    }

    /// Shows what is so, and tells the listeners what has changed.
    fn publish(&self, records: &[Record]) {
        let phase = self.machine.phase();
        let from = self.status.borrow().phase;
        let finished = phase.is_terminal().then(|| Finished::of(&self.machine));
        let note = self.machine.note().to_owned();
        self.status.send_replace(Status { phase: Some(phase), note, blocked: None, finished });
        let definition = &self.machine.shape().id.name;
        for record in records {
            self.inner.identity.emit(&Event::SagaRecord { definition, saga: self.id.as_str(), record });
        }
        if from != Some(phase) {
            self.inner.identity.emit(&Event::SagaPhase {
                definition,
                saga: self.id.as_str(),
                from,
                to: phase,
                note: self.machine.note(),
                age: self.inner.now().since(self.created),
            });
        }
    }
}

/// Texts come from outside and may be of any length.
fn shortened(records: Vec<Record>) -> Vec<Record> {
    records.into_iter().map(Record::shortened).collect()
}
