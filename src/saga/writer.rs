//! One queue in front of a journal: what comes while a batch is being forced to disk goes together into the next one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::journal::{Append, Journal, Refusal, StoreError};
use crate::time;

/// The most appends that one batch has.
const BATCH: usize = 1_024;

/// So many full batches are under way at most: while the answers of one are on their way back and its sagas go on, a store that is
/// reached over a network has the next one already. One that is not full gains by waiting, since it saves a forced write for others.
const MOST: u32 = 2;

/// Why an append was not made, or perhaps not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// It was not.
    Refused(Refusal),
    /// Nobody knows.
    Store(StoreError),
}

type Answer = Result<(), WriteError>;

struct Job {
    append: Append,
    /// Whether what its saga has queued before may have no answer yet.
    follows: bool,
    answer: oneshot::Sender<Answer>,
}

/// The sending end; cloning shares the queue. The queue ends with the last of them, or when it is closed.
#[derive(Clone)]
pub(crate) struct Writer(mpsc::UnboundedSender<Option<Job>>);

impl Writer {
    /// Starts to write to `journal`, on a thread of its own if the journal blocks the one that polls it. Where several come at once,
    /// batches begin `interval` after each other at the earliest.
    pub(crate) fn start(journal: Arc<dyn Journal>, interval: Duration) -> std::io::Result<Self> {
        let (sender, jobs) = mpsc::unbounded_channel();
        let pace = Pace { interval, next: None };
        if journal.blocks() {
            let runtime = tokio::runtime::Handle::current();
            std::thread::Builder::new()
                .name("saga-writer".to_owned())
                .spawn(move || runtime.block_on(write(journal, jobs, pace)))?;
        } else {
            tokio::spawn(write(journal, jobs, pace));
        }
        Ok(Writer(sender))
    }

    /// Queues an append, behind all that is queued. It is made whether or not anybody waits for the answer.
    pub(crate) fn append(&self, append: Append) -> Written {
        self.queue(append, true)
    }

    /// The same for a saga of which all that was queued is answered. It need not be behind what others have queued.
    pub(crate) fn append_beside(&self, append: Append) -> Written {
        self.queue(append, false)
    }

    fn queue(&self, append: Append, follows: bool) -> Written {
        let (answer, written) = oneshot::channel();
        // Without a writer there is nobody to answer, and the caller is told so.
        let _ = self.0.send(Some(Job { append, follows, answer }));
        Written(written)
    }

    /// Ends the queue behind what is in it; the journal is let go then.
    pub(crate) fn close(&self) {
        let _ = self.0.send(None);
    }
}

/// The answer to an append.
#[must_use = "an append that nobody waits for may have been refused"]
pub(crate) struct Written(oneshot::Receiver<Answer>);

impl Written {
    pub(crate) async fn wait(self) -> Answer {
        self.0.await.unwrap_or_else(|_| {
            let why = "its writer has ended".to_owned();
            Err(WriteError::Store(StoreError::Unavailable(why)))
        })
    }
}

/// Whether no append can be the cause.
fn is_of_all(error: &StoreError) -> bool {
    use StoreError::{Absent, Full, InUse, Poisoned, Unavailable};
    matches!(error, Unavailable(_) | InUse(_) | Absent(_) | Full(_) | Poisoned)
}

/// When a batch may begin.
struct Pace {
    interval: Duration,
    /// Unless one may at any time.
    next: Option<Instant>,
}

impl Pace {
    /// What is left to wait, once.
    fn rest(&mut self) -> Option<Duration> {
        let rest = self.next.take()?.saturating_duration_since(time::now());
        (!rest.is_zero()).then_some(rest)
    }

    /// A batch of so many begins. Behind one alone nobody is held up: it may be of a saga that is the only one.
    fn begin(&mut self, appends: usize) {
        self.next =
            (appends > 1 && !self.interval.is_zero()).then(|| time::later(time::now(), self.interval));
    }
}

async fn write(journal: Arc<dyn Journal>, mut jobs: mpsc::UnboundedReceiver<Option<Job>>, mut pace: Pace) {
    // A journal that blocks is polled here and nowhere else, and where batches keep an interval none goes beside another.
    let one_by_one = journal.blocks() || !pace.interval.is_zero();
    let places = Arc::new(Semaphore::new(MOST as usize));
    let mut next = Vec::new();
    loop {
        if jobs.recv_many(&mut next, BATCH).await == 0 {
            return;
        }
        if let Some(rest) = pace.rest().filter(|_| next.len() < BATCH) {
            // This thread is the writer's own where the journal blocks, and needs no timer of a runtime that may be about to end.
            match journal.blocks() {
                true => std::thread::sleep(rest),
                false => tokio::time::sleep(rest).await,
            }
        }
        let alone = one_by_one || next.len() < BATCH || next.iter().flatten().any(|job| job.follows);
        let place = places.clone().acquire_many_owned(if alone { MOST } else { 1 }).await;
        // What has come meanwhile.
        let room = BATCH - next.len();
        next.extend(std::iter::from_fn(|| jobs.try_recv().ok()).take(room));
        pace.begin(next.len());
        let queued = next.len();
        let batch: Vec<Job> = next.drain(..).map_while(|job| job).collect();
        let closed = batch.len() < queued;
        if alone {
            write_all(&journal, batch).await;
        } else {
            let journal = journal.clone();
            tokio::spawn(async move {
                write_all(&journal, batch).await;
                drop(place);
            });
        }
        if closed {
            return;
        }
    }
}

async fn write_all(journal: &Arc<dyn Journal>, batch: Vec<Job>) {
    // A transaction of its own may take its time. What the same saga has queued before is answered by then; behind it nothing is.
    let is_apart = |job: &Job| !journal.blocks() && job.append.work.is_some();
    let (apart, batch) = match batch.iter().any(is_apart) {
        true => batch.into_iter().partition(is_apart),
        false => (Vec::new(), batch),
    };
    write_batch(&**journal, batch).await;
    for job in apart {
        let journal = journal.clone();
        tokio::spawn(async move { write_batch(&*journal, vec![job]).await });
    }
}

async fn write_batch(journal: &dyn Journal, batch: Vec<Job>) {
    let (appends, answers): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|Job { append, answer, .. }| (append, answer)).unzip();
    if appends.is_empty() {
        return;
    }
    // A batch of one is not tried twice.
    let again = if appends.len() > 1 { appends.clone() } else { Vec::new() };
    match journal.append(appends).await {
        Ok(results) => {
            for (answer, result) in answers.into_iter().zip(results) {
                let _ = answer.send(result.map_err(WriteError::Refused));
            }
        }
        Err(error) if again.is_empty() || is_of_all(&error) => {
            for answer in answers {
                let _ = answer.send(Err(WriteError::Store(error.clone())));
            }
        }
        // One of them may be the cause. What was written nevertheless is refused as a repetition, and read anew by its owner.
        Err(_) => {
            for (append, answer) in again.into_iter().zip(answers) {
                let _ = answer.send(match journal.append(vec![append]).await {
                    Ok(mut results) => results.pop().unwrap_or(Ok(())).map_err(WriteError::Refused),
                    Err(error) => Err(WriteError::Store(error)),
                });
            }
        }
    }
}
