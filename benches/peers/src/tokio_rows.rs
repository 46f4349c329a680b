//! tokio 1: `time::timeout` and `sync::Semaphore`, used as their
//! documentation shows, each around the call.

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::operation::{CallError, Operation, PendsOnce, REQUEST, ReadyCall};
use crate::row::{Form, Rows, What};
use crate::settings::{LIMIT, TIMEOUT};
use crate::worker::{answered, refused};

const TOKIO: &str = "tokio 1";

/// Refuses at once when no permit is free.
async fn limited(semaphore: &Semaphore) -> Result<u64, CallError> {
    let _permit = semaphore.try_acquire().map_err(|_| CallError::Refused)?;
    ReadyCall::start(REQUEST).await
}

async fn timed<O: Operation>() -> Result<u64, CallError> {
    timeout(TIMEOUT, O::start(REQUEST)).await.map_err(|_| CallError::Refused)?
}

fn semaphore(permits: usize) -> &'static Semaphore {
    Box::leak(Box::new(Semaphore::new(permits)))
}

pub fn rows(rows: &mut Rows) {
    let form = Form::Wrapper;

    rows.add_noted(What::BulkheadFree, TOKIO, form, "Semaphore::try_acquire", || {
        let semaphore = semaphore(LIMIT);
        move || answered(|| limited(semaphore))
    });

    rows.add_noted(What::BulkheadFull, TOKIO, form, "Semaphore::try_acquire", || {
        let semaphore = semaphore(LIMIT);
        semaphore.try_acquire_many(LIMIT as u32).expect("all permits are free").forget();
        move || refused(|| limited(semaphore))
    });

    rows.add_noted(What::Timeout, TOKIO, form, "time::timeout", || || answered(timed::<ReadyCall>));
    rows.add_noted(What::TimeoutPending, TOKIO, form, "time::timeout", || || answered(timed::<PendsOnce>));
}
