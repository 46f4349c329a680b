use tracing::{Level, event};

use crate::{Event, Observer, circuit_breaker::State};

/// Writes events as `tracing` records with the target `mainstay`.
///
/// | event | level | fields |
/// |---|---|---|
/// | transition to open | WARN | `policy`, `from`, `to`, `calls`, `failures`, `slow` |
/// | other transition | INFO | the same |
/// | gave up | WARN | `policy`, `attempts`, `why` |
/// | fell back | INFO | `policy`, `instead_of` |
/// | saga stuck, parked, abandoned, blocked or overdue; its store failed; no place for those that are due | WARN | `definition`, `saga`, `note` and more |
/// | other phase of a saga | INFO | `definition`, `saga`, `from`, `to`, `age_ms` |
/// | record of a saga, step that waits, order that was refused | DEBUG | `definition`, `saga`, `kind`, `step` / `why` |
/// | refused, retried | DEBUG | `policy`, `kind`, `observed` / `policy`, `attempt`, `delay_ms` |
///
/// ```
/// let stack = mainstay::stack("payments").observe(mainstay::observe::Tracing).bulkhead(20).build()?;
/// # Ok::<_, mainstay::ConfigError>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Tracing;

impl Observer for Tracing {
    fn on_event(&self, event: &Event<'_>) {
        match *event {
            Event::Transition { name, from, to, counts } => {
                let fields = (counts.calls, counts.failures, counts.slow);
                // The level of a record is a constant, hence two of them.
                macro_rules! record {
                    ($level:expr) => {
                        event!(
                            target: "mainstay",
                            $level,
                            policy = &**name,
                            from = from.as_str(),
                            to = to.as_str(),
                            calls = fields.0,
                            failures = fields.1,
                            slow = fields.2,
                            "circuit breaker changed its state"
                        )
                    };
                }
                if to == State::Open { record!(Level::WARN) } else { record!(Level::INFO) }
            }
            Event::Refused { refused, observed } => event!(
                target: "mainstay",
                Level::DEBUG,
                policy = refused.name(),
                kind = refused.kind().as_str(),
                observed,
                "refused"
            ),
            Event::Retried { name, attempt, delay } => event!(
                target: "mainstay",
                Level::DEBUG,
                policy = &**name,
                attempt,
                delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                "retrying"
            ),
            Event::GaveUp { name, attempts, why } => event!(
                target: "mainstay",
                Level::WARN,
                policy = &**name,
                attempts,
                why = why.as_str(),
                "gave up retrying"
            ),
            Event::FellBack { name, instead_of } => event!(
                target: "mainstay",
                Level::INFO,
                policy = &**name,
                instead_of = instead_of.map_or("failed", |kind| kind.as_str()),
                "fell back"
            ),
            #[cfg(feature = "saga")]
            _ => saga(event),
        }
    }
}

#[cfg(feature = "saga")]
fn saga(event: &Event<'_>) {
    use crate::saga::journal::Phase;
    match *event {
        Event::SagaPhase { definition, saga, from, to, note, age } => {
            let from = from.map_or("new", Phase::as_str);
            let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            macro_rules! record {
                ($level:expr) => {
                    event!(target: "mainstay", $level, definition, saga, from, to = to.as_str(), note, age_ms, "saga")
                };
            }
            match to {
                Phase::Stuck | Phase::Parked | Phase::Abandoned => record!(Level::WARN),
                _ => record!(Level::INFO),
            }
        }
        Event::SagaRecord { definition, saga, record } => event!(
            target: "mainstay",
            Level::DEBUG,
            definition,
            saga,
            kind = record.kind(),
            step = record.step(),
            "saga record"
        ),
        Event::SagaWaits { definition, saga, step, why, .. } => {
            event!(target: "mainstay", Level::DEBUG, definition, saga, step, why, "saga step waits")
        }
        Event::SagaOverdue { definition, saga, step, by } => {
            let by_ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
            event!(target: "mainstay", Level::WARN, definition, saga, step, by_ms, "saga goes on behind its deadline")
        }
        Event::SagaOrderRefused { definition, saga, why } => {
            event!(target: "mainstay", Level::DEBUG, definition, saga, why, "order to a saga refused")
        }
        Event::SagaBlocked { definition, saga, why } => {
            event!(target: "mainstay", Level::WARN, definition, saga, why, "saga blocked")
        }
        Event::SagaLive { live, max_live, held: Some(held) } => {
            let held_ms = u64::try_from(held.as_millis()).unwrap_or(u64::MAX);
            event!(target: "mainstay", Level::WARN, live, max_live, held_ms, "no place for sagas that are due")
        }
        Event::SagaStoreFailed { error } => {
            event!(target: "mainstay", Level::WARN, %error, "saga store failed")
        }
        _ => {}
    }
}
