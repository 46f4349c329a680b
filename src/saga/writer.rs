//! One queue in front of a journal: what comes while a batch is being forced to disk goes together into the next one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use super::journal::{Append, Journal, Refusal, StoreError};
use crate::time;

/// The most appends that one batch has.
const BATCH: usize = 1_024;

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

    /// Queues an append. It is made whether or not anybody waits for the answer; those of one saga are made in the order in which
    /// they were queued.
    pub(crate) fn append(&self, append: Append) -> Written {
        let (answer, written) = oneshot::channel();
        // Without a writer there is nobody to answer, and the caller is told so.
        let _ = self.0.send(Some(Job { append, answer }));
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
            next.extend(std::iter::from_fn(|| jobs.try_recv().ok()).take(BATCH - next.len()));
        }
        pace.begin(next.len());
        let queued = next.len();
        let (appends, answers): (Vec<_>, Vec<_>) =
            next.drain(..).map_while(|job| job.map(|Job { append, answer }| (append, answer))).unzip();
        let closed = appends.len() < queued;
        if closed && appends.is_empty() {
            return;
        }
        // A transaction of its own may take its time. What the same saga has queued before is answered by then; behind it nothing is.
        let apart = !journal.blocks() && appends.iter().any(|append| append.work.is_some());
        let (appends, answers, apart) =
            if apart { parted(appends, answers) } else { (appends, answers, Vec::new()) };
        write_batch(&*journal, appends, answers).await;
        for Job { append, answer } in apart {
            let journal = journal.clone();
            tokio::spawn(async move { write_batch(&*journal, vec![append], vec![answer]).await });
        }
        if closed {
            return;
        }
    }
}

/// Those without work, and those with.
fn parted(
    appends: Vec<Append>,
    answers: Vec<oneshot::Sender<Answer>>,
) -> (Vec<Append>, Vec<oneshot::Sender<Answer>>, Vec<Job>) {
    let jobs = appends.into_iter().zip(answers).map(|(append, answer)| Job { append, answer });
    let (apart, rest): (Vec<Job>, Vec<Job>) = jobs.partition(|job| job.append.work.is_some());
    let (appends, answers) = rest.into_iter().map(|Job { append, answer }| (append, answer)).unzip();
    (appends, answers, apart)
}

async fn write_batch(journal: &dyn Journal, appends: Vec<Append>, answers: Vec<oneshot::Sender<Answer>>) {
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
