//! What is remembered against repetition is forgotten when nothing can be repeated any more, so that the tables of a service are as long as
//! its memory and not as its life.
//!
//! | what | goes | since then |
//! |---|---|---|
//! | the steps of a saga, in the barrier | `LONGEST_SAGA_MS` and `LONGEST_DELIVERY_MS` together after the saga's last request here | the saga is over, and none of its requests is on its way: nothing comes late, and nothing is to be undone |
//! | a message, in the inbox | `LONGEST_DELIVERY_MS` after it was accepted | it is not delivered again |
//! | an event, in the outbox | `KEEP_SENT_MS` after it was published | it serves people alone. What was not published stays |
//! | a saga that is over, in a journal | as the steps | its id is not started again |
//!
//! So the two longest times are promises of whoever sets them. A saga that waits for a person counts from its last step to the day on which
//! somebody sees to it, and a dead letter until it is replayed: what comes after that is done a second time, or finds nothing to undo.
//! A service that may be given old events at any time opens its database by [`Db::open`], and nothing of it goes.

use std::{
    fmt::Display,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mainstay::saga::barrier::{Retention, sqlite::Pruning};

use crate::{
    Context, Db, Tx,
    db::DbError,
    env::{self, Env},
};

/// How many rows of a table go at once: few enough that nobody waits long for them.
pub const BATCH: usize = 500;
/// The rest between two batches, for those whose work is more urgent.
const REST: Duration = Duration::from_millis(20);

/// How long what is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The steps of sagas, in the barrier; and messages in the inbox as long as their deliveries take.
    pub steps: Retention,
    /// Published events, in the outbox.
    pub sent: Duration,
}

impl Keep {
    /// As the settings say.
    pub fn of(env: &Env) -> Self {
        let steps = Retention {
            longest_saga: env.ms(env::LONGEST_SAGA_MS),
            longest_delivery: env.ms(env::LONGEST_DELIVERY_MS),
        };
        Keep { steps, sent: env.ms(env::KEEP_SENT_MS) }
    }
}

/// Prunes the barrier, the inbox and the outbox of a service's database until the service ends.
pub fn start(context: &Context, db: &Db) {
    let (db, keep) = (db.clone(), Keep::of(context.env()));
    let walk = Arc::new(Mutex::new(Pruning::new(keep.steps)));
    in_batches(context, "a database", move || {
        let (db, walk) = (db.clone(), walk.clone());
        async move {
            let mut place = walk.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let batch = async move |tx: &Tx<'_>| {
                let more = tx.prune(&keep, &mut place, BATCH).await?;
                Ok::<_, DbError>((more, place))
            };
            // It has come no further than what is committed.
            let (more, place) = db.write(batch).await?;
            *walk.lock().unwrap_or_else(PoisonError::into_inner) = place;
            Ok::<_, DbError>(more)
        }
    });
}

/// Takes batches away until the service ends: one after the other as long as there may be more, which is what `batch` answers, and then
/// again every `PRUNE_EVERY_MS`. One that fails is made up for by the next.
pub fn in_batches<F, E>(context: &Context, of: &'static str, batch: impl FnMut() -> F + Send + 'static)
where
    F: Future<Output = Result<bool, E>> + Send,
    E: Display + Send,
{
    let every = context.env().ms(env::PRUNE_EVERY_MS).max(REST);
    let (stop, service) = (context.stop().clone(), context.name());
    context.spawn(async move {
        stop.run_until_cancelled_owned(forever(service, of, every, batch)).await;
    });
}

async fn forever<F, E>(service: &str, of: &str, every: Duration, mut batch: impl FnMut() -> F)
where
    F: Future<Output = Result<bool, E>>,
    E: Display,
{
    loop {
        let rest = match batch().await {
            Ok(true) => REST,
            Ok(false) => every,
            Err(error) => {
                tracing::warn!(%error, service, of, "what is old could not be taken away");
                every
            }
        };
        tokio::time::sleep(rest).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::VecDeque};

    use tokio::time::Instant;

    use super::*;

    #[test]
    fn unless_something_is_set_the_helpers_own_times_hold() {
        let keep = Keep::of(&Env::empty());
        assert_eq!(keep.steps, Retention::default());
        assert_eq!(keep.steps.longest_delivery, mainstay::saga::inbox::KEEP);
        let set = Env::empty().with(env::LONGEST_SAGA_MS, "7").with(env::KEEP_SENT_MS, "9");
        let keep = Keep::of(&set);
        assert_eq!((keep.steps.longest_saga.as_millis(), keep.sent.as_millis()), (7, 9));
    }

    #[tokio::test(start_paused = true)]
    async fn batches_follow_each_other_while_there_is_more_and_then_the_next_time_is_waited_for() {
        let (began, every) = (Instant::now(), Duration::from_secs(60));
        let answers = RefCell::new(VecDeque::from([Ok(true), Ok(true), Ok(false), Err("away"), Ok(true)]));
        let times = RefCell::new(Vec::new());
        let batch = || {
            times.borrow_mut().push(began.elapsed().as_millis());
            let next = answers.borrow_mut().pop_front();
            async move { next.unwrap_or(Ok(false)) }
        };
        let _ = tokio::time::timeout(Duration::from_secs(200), forever("it", "it", every, batch)).await;
        assert_eq!(*times.borrow(), [0, 20, 40, 60_040, 120_040, 120_060, 180_060]);
    }
}
