//! Five policies put together by hand from the leanest parts: tokio's timeout
//! and semaphore, backon's retry (which has no budget), failsafe's breaker on
//! consecutive failures, and a `match` as the fallback.

use backon::Retryable;
use failsafe::futures::CircuitBreaker;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::operation::{CallError, Operation, PendsOnce, REQUEST, ReadyCall};
use crate::row::{Form, Rows, What};
use crate::settings::{DEADLINE, FALLBACK, LIMIT, TIMEOUT};
use crate::worker::answered;
use crate::{failsafe_rows, retry_rows};

const COMPOSED: &str = "tokio + backon + failsafe";

struct Composed<B> {
    breaker: B,
    permits: Semaphore,
}

impl<B: CircuitBreaker> Composed<B> {
    async fn attempt<O: Operation>(&self) -> Result<u64, CallError> {
        let _permit = self.permits.try_acquire().map_err(|_| CallError::Refused)?;
        timeout(TIMEOUT, O::start(REQUEST)).await.map_err(|_| CallError::Refused)?
    }

    async fn guarded<O: Operation>(&self) -> Result<u64, CallError> {
        let attempts =
            (|| self.attempt::<O>()).retry(retry_rows::backon()).when(|error| *error == CallError::Failed);
        self.breaker.call(attempts).await.map_err(|_| CallError::Refused)
    }

    async fn call<O: Operation>(&self) -> Result<u64, CallError> {
        Ok(self.guarded::<O>().await.unwrap_or(FALLBACK))
    }

    async fn call_in_time<O: Operation>(&self) -> Result<u64, CallError> {
        match timeout(DEADLINE, self.guarded::<O>()).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Ok(FALLBACK),
        }
    }
}

fn composed() -> &'static Composed<impl CircuitBreaker + Send + Sync> {
    Box::leak(Box::new(Composed { breaker: failsafe_rows::consecutive(), permits: Semaphore::new(LIMIT) }))
}

pub fn rows(rows: &mut Rows) {
    let form = Form::Wrapper;
    let note = "no budget, no window";

    rows.add_noted(What::Five, COMPOSED, form, note, || {
        let composed = composed();
        move || answered(|| composed.call::<ReadyCall>())
    });
    rows.add_noted(What::FiveDeadline, COMPOSED, form, note, || {
        let composed = composed();
        move || answered(|| composed.call_in_time::<ReadyCall>())
    });
    rows.add_noted(What::FivePending, COMPOSED, form, note, || {
        let composed = composed();
        move || answered(|| composed.call::<PendsOnce>())
    });
}
