//! Orders that a durable saga moves on.
//!
//! `create-order` → `reserve-stock` → `charge-card` → `confirm-order` (no way back behind it) → `commit-stock`. Orders whose user could not
//! be validated when they were accepted follow a definition of their own, with `validate-user` behind the first step.

use std::{collections::HashSet, sync::Arc, time::Duration};

use mainstay::{
    ConfigError, Event, Retry,
    saga::{
        AskError, Cause, Failure, Opening, Orchestrator, Order as Decision, Record, Saga, SagaId, StartError,
        StartOptions, Step, StoreError,
        journal::{Head, Phase, Query, Stored},
        postgres::Postgres,
        sqlite::Sqlite,
        was_begun,
    },
};
use order_kit::{
    BoxError, Context,
    db::Place,
    env, now_ms,
    prune::{self, Keep},
};
use tokio::sync::{mpsc, watch};

use crate::{
    NAME, place,
    steps::{Purchase, Steps},
    store::{CONFIRM, CREATE, Decided, Order, Store},
};

/// How often what is stuck is tried anew, and the same for those who can't wait.
const STUCK_AGAIN: Duration = Duration::from_secs(30);
const STUCK_AGAIN_FAST: Duration = Duration::from_secs(3);
/// How many orders are moved on at once; the queues before the inventory and payments have room for all of them. More are accepted, and started
/// in their turn. Were they started, most would be refused and ask again and again, and what that costs would be missing where orders are
/// finished: a moment of too much load would never end.
pub(crate) const MOST_AT_ONCE: usize = 1_000;
/// While many orders are moved on at once, what they have come to is written down so often at most: fewer syncs, and what is saved is there for
/// the services on the same machine.
const COMMIT_INTERVAL: Duration = Duration::from_millis(5);
/// How long what runs may take when the service ends.
const GRACE: Duration = Duration::from_secs(5);
/// How long the file of a process that is just ending is waited for.
const HANDOVER: Duration = Duration::from_secs(5);
/// How many sagas that are over are forgotten in one transaction of the journal.
const SAGAS_AT_ONCE: usize = 100;

type OrderSaga = Saga<Purchase>;

/// Where the orchestrator is, for steps that look their own saga up; nowhere before it has started and when it has ended.
type Whereabouts = watch::Sender<Option<Orchestrator>>;

/// What moves orders on. Clones are the same.
#[derive(Clone)]
pub(crate) struct Engine {
    orchestrator: Orchestrator,
    plain: OrderSaga,
    unvalidated: OrderSaga,
    deadline: Duration,
}

/// The policies of a step: tried again as long as nobody knows, with waits of up to three seconds. What was not begun does not count; it is
/// tried again when that is of use, where somebody has said when, and otherwise within a second.
macro_rules! patient {
    ($step:expr, $attempts:expr) => {
        mainstay::stack($step)
            .retry(
                Retry::exponential(Duration::from_millis(100))
                    .cap(Duration::from_secs(3))
                    .max_attempts($attempts)
                    .no_budget()
                    .idempotent()
                    .when(was_begun),
            )
            .timeout(Duration::from_secs(10))
            .build()?
    };
}

/// Enough for as long as an order may take, so that an outage is waited out. The saga's deadline ends it.
const UNTIL_THE_DEADLINE: u32 = 1_000;
/// What has to happen is tried for about a minute until a person is told.
const UNTIL_STUCK: u32 = 20;

type Undo = mainstay::Stack![Retry, mainstay::Timeout];

/// A compensation is tried for about ten seconds until a person is told; and then again and again.
fn undo(fast: bool) -> Result<Undo, ConfigError> {
    let (first, longest) = if fast { (20, 200) } else { (100, 3_000) };
    let again = Retry::exponential(Duration::from_millis(first)).cap(Duration::from_millis(longest));
    let again = again.max_attempts(8).no_budget().idempotent();
    mainstay::stack("undo").retry(again).timeout(Duration::from_secs(10)).build()
}

fn define(
    steps: &Arc<Steps>,
    whereabouts: &Whereabouts,
    validated: bool,
    fast: bool,
) -> Result<OrderSaga, BoxError> {
    let name = if validated { "order" } else { "order-of-unvalidated-user" };
    let mut saga = Saga::define::<Purchase>(name, 1);
    let [create, cancel, validate, reserve, release, charge, refund, confirm, commit] =
        std::array::from_fn(|_| steps.clone());
    let whereabouts = whereabouts.clone();
    let created = saga
        .step(CREATE, (), move |step: Step<Purchase>, ()| {
            let steps = create.clone();
            async move { steps.create(step).await }
        })
        .undo_through(undo(fast)?)
        .compensate(move |step, (), _| {
            let (steps, whereabouts) = (cancel.clone(), whereabouts.subscribe());
            async move {
                let reason = reason_of_this(&step, whereabouts).await?;
                steps.cancel(step, &reason).await
            }
        });
    let validated = if validated {
        created
    } else {
        saga.read_only("validate-user", created, move |step, ()| {
            let steps = validate.clone();
            async move { steps.validate(step).await }
        })
        .through(patient!("validate-user", UNTIL_THE_DEADLINE))
        .add()
    };
    let reserved = saga
        .step("reserve-stock", validated, move |step, ()| {
            let steps = reserve.clone();
            async move { steps.reserve(step).await }
        })
        .through(patient!("reserve-stock", UNTIL_THE_DEADLINE))
        .undo_through(undo(fast)?)
        .compensate(move |step, (), _| {
            let steps = release.clone();
            async move { steps.release(step).await }
        });
    let charged = saga
        .step("charge-card", reserved, move |step, ()| {
            let steps = charge.clone();
            async move { steps.charge(step).await }
        })
        .through(patient!("charge-card", UNTIL_THE_DEADLINE))
        .undo_through(undo(fast)?)
        .compensate(move |step, (), _| {
            let steps = refund.clone();
            async move { steps.refund(step).await }
        });
    let confirmed = saga
        .pivot(CONFIRM, charged, move |step, _receipt| {
            let steps = confirm.clone();
            async move { steps.confirm(step).await }
        })
        .through(patient!(CONFIRM, UNTIL_STUCK))
        .add();
    saga.retriable("commit-stock", confirmed, move |step, ()| {
        let steps = commit.clone();
        async move { steps.commit(step).await }
    })
    .through(patient!("commit-stock", UNTIL_STUCK))
    .add();
    Ok(saga.build(())?)
}

/// Why the saga of this step was turned round: what its journal says, so that another process knows it, too.
async fn reason_of_this(
    step: &Step<Purchase>,
    mut whereabouts: watch::Receiver<Option<Orchestrator>>,
) -> Result<String, Failure> {
    let orchestrator = whereabouts.wait_for(Option::is_some).await?.clone();
    let orchestrator = orchestrator.ok_or_else(|| Failure::unknown("the orchestrator has ended"))?;
    let stored = orchestrator.load(step.saga().as_str()).await?;
    Ok(stored.as_ref().and_then(reason).unwrap_or_else(|| "cancelled".to_owned()))
}

/// Why a saga was turned round, as a word for programs.
fn reason(stored: &Stored) -> Option<String> {
    stored.entries.iter().find_map(|entry| match entry.record().ok()? {
        Record::Aborted { cause, .. } => Some(match cause {
            Cause::Rejected { error, .. } => error,
            Cause::Cancelled { reason } => reason,
            Cause::Deadline => "timed_out".to_owned(),
            Cause::Unknown { step, .. } => match step.as_str() {
                "charge-card" => "payment_unavailable".to_owned(),
                _ => "inventory_unavailable".to_owned(),
            },
            _ => "cancelled".to_owned(),
        }),
        Record::Ordered {
            order: Decision::Reject { reason, .. } | Decision::Compensate { reason }, ..
        } => Some(reason),
        _ => None,
    })
}

impl Engine {
    /// Opens the journal and takes up what was left in it. Ends with the service. Moves `at_once` orders on at the same time. `turned` is
    /// told of each order whose saga has ended without completing.
    pub(crate) async fn start(
        context: &Context,
        steps: &Arc<Steps>,
        deadline: Duration,
        at_once: usize,
        turned: mpsc::UnboundedSender<String>,
    ) -> Result<Self, BoxError> {
        order_kit::telemetry::sagas_are_of(NAME);
        let whereabouts = Whereabouts::new(None);
        let fast = context.env().get(env::POLICY_FAST).is_some();
        let plain = define(steps, &whereabouts, true, fast)?;
        let unvalidated = define(steps, &whereabouts, false, fast)?;
        let journeys = steps.journeys.clone();
        let orchestrator = open(context)
            .await?
            .register(&plain)
            .register(&unvalidated)
            .max_live(at_once)
            .commit_interval(COMMIT_INTERVAL)
            .stuck_retry(Some(if fast { STUCK_AGAIN_FAST } else { STUCK_AGAIN }))
            .observe(mainstay::observe::Tracing)
            .observe(mainstay::observe::Metrics)
            .observe(move |event: &Event<'_>| {
                let Event::SagaPhase { saga, to, note, .. } = event else { return };
                match to {
                    Phase::Completed => journeys.end(saga, Ok(())),
                    Phase::Compensated | Phase::Abandoned => {
                        journeys.end(saga, Err(note));
                        // Nobody listens any more when the service ends; the next start looks at all that is open.
                        let _ = turned.send((*saga).to_owned());
                    }
                    _ => {}
                }
            })
            .start()
            .await?;
        whereabouts.send_replace(Some(orchestrator.clone()));
        let (keep, forgetful) = (Keep::of(context.env()), orchestrator.clone());
        prune::in_batches(context, "the journal", move || {
            let orchestrator = forgetful.clone();
            async move {
                let forgotten = orchestrator.forget(keep.steps.total(), SAGAS_AT_ONCE).await?;
                Ok::<_, StoreError>(forgotten == SAGAS_AT_ONCE)
            }
        });
        let (stop, ending) = (context.stop().clone(), orchestrator.clone());
        context.spawn(async move {
            stop.cancelled().await;
            ending.shutdown(GRACE).await;
            // The steps know the orchestrator and it knows them.
            whereabouts.send_replace(None);
        });
        Ok(Engine { orchestrator, plain, unvalidated, deadline })
    }

    /// Starts the order's saga; again changes nothing. It may take what is left of the order's time, however long the start was waited for.
    pub(crate) async fn begin(&self, order: &Order) -> Result<(), StartError> {
        let saga = if order.user_known { &self.plain } else { &self.unvalidated };
        let options = StartOptions::default().deadline(left(self.deadline, order.created_at, now_ms()));
        self.orchestrator.start_with(saga, &order.id, &Purchase::of(order), options).await.map(drop)
    }

    /// Asks that the order's saga be turned round, unless that is no longer possible.
    pub(crate) async fn cancel(&self, order: &str, reason: &str) -> Result<(), AskError> {
        self.orchestrator.cancel(order, reason).await.map(drop)
    }

    /// Has an order cancelled, unless that is no longer possible. One whose saga there was no room for yet is cancelled by itself: nothing has
    /// happened to it that would have to be undone. Should its saga begin at this very moment, that is turned round where it would confirm the order.
    pub(crate) async fn call_off(&self, store: &Store, order: &Order, reason: &str) -> Result<(), BoxError> {
        match self.begin(order).await {
            Ok(()) => Ok(self.cancel(&order.id, reason).await?),
            Err(StartError::Busy(_)) => match store.cancel(&order.id, reason).await? {
                Decided::Done => Ok(()),
                Decided::Otherwise => Ok(self.cancel(&order.id, reason).await?),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Has what is stuck or parked tried once more.
    pub(crate) async fn retry(&self, order: &str, by: &str) -> Result<(), AskError> {
        self.orchestrator.order(order, by, Decision::Retry { step: None }).await.map(drop)
    }

    /// The order's saga with all its records.
    pub(crate) async fn load(&self, order: &str) -> Result<Option<Stored>, AskError> {
        self.orchestrator.load(order).await
    }

    /// Why the order's saga ended as it did, if it is over and was not completed.
    pub(crate) async fn turned_round(&self, order: &str) -> Result<Option<String>, AskError> {
        let phase = self.orchestrator.status(order).await?.and_then(|status| status.phase);
        if !matches!(phase, Some(Phase::Compensated | Phase::Abandoned)) {
            return Ok(None);
        }
        let stored = self.load(order).await?;
        Ok(Some(stored.as_ref().and_then(reason).unwrap_or_else(|| "abandoned".to_owned())))
    }

    /// The sagas that wait for a person.
    pub(crate) async fn attention(&self) -> Result<Vec<Head>, StoreError> {
        let phases = vec![Phase::Stuck, Phase::Parked];
        self.orchestrator.list(Query { phases, limit: 100, ..Query::default() }).await
    }

    /// Sagas behind an id, in the order of their ids.
    pub(crate) async fn page(&self, after: &str, limit: usize) -> Result<Vec<Head>, BoxError> {
        let after = if after.is_empty() { None } else { Some(SagaId::new(after)?) };
        Ok(self.orchestrator.list(Query { after, limit, ..Query::default() }).await?)
    }

    /// Which sagas with ids behind `after`, up to this id, are under way.
    pub(crate) async fn under_way(&self, after: &str, to: &str) -> Result<HashSet<String>, BoxError> {
        let phases = vec![Phase::Running, Phase::Waiting, Phase::Unwinding, Phase::Stuck, Phase::Parked];
        let mut query = Query { phases, limit: 1_000, ..Query::default() };
        query.after = if after.is_empty() { None } else { Some(SagaId::new(after)?) };
        let mut ids = HashSet::new();
        loop {
            let page = self.orchestrator.list(query.clone()).await?;
            query.after = page.last().map(|head| head.id.clone());
            let whole = page.len() == query.limit;
            ids.extend(page.iter().map(|head| head.id.to_string()).take_while(|id| id.as_str() <= to));
            if !whole || query.after.as_ref().is_none_or(|last| last.as_str() >= to) {
                return Ok(ids);
            }
        }
    }

    /// Whether the journal has failed for good.
    pub(crate) fn failed(&self) -> bool {
        self.orchestrator.failed()
    }
}

/// What is left at `now` of the time that an order has from when it was accepted.
fn left(deadline: Duration, created_at: i64, now: i64) -> Duration {
    deadline.saturating_sub(Duration::from_millis(u64::try_from(now.saturating_sub(created_at)).unwrap_or(0)))
}

async fn open(context: &Context) -> Result<Opening, BoxError> {
    match place(context, "orders-saga") {
        Place::Postgres { url, schema } => {
            Ok(Orchestrator::open(Postgres::connect(&url).schema(&schema).await?))
        }
        Place::Sqlite(path) => {
            let until = tokio::time::Instant::now() + HANDOVER;
            loop {
                match Sqlite::open(&path) {
                    Ok(journal) => return Ok(Orchestrator::open(journal)),
                    Err(StoreError::InUse(_)) if tokio::time::Instant::now() < until => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_its_time_from_when_it_was_accepted() {
        let (deadline, accepted) = (Duration::from_secs(300), 1_000_000);
        for (now, rest) in
            [(accepted, 300), (accepted + 299_000, 1), (accepted + 300_000, 0), (accepted + 900_000, 0)]
        {
            assert_eq!(left(deadline, accepted, now), Duration::from_secs(rest), "{now}");
        }
        assert_eq!(left(deadline, accepted, accepted - 7_000), deadline, "another process's clock is behind");
    }
}
