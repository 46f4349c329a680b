use metrics::{counter, gauge};

use crate::{Event, Observer};

/// Counts events through the `metrics` facade.
///
/// | name | type | labels |
/// |---|---|---|
/// | `mainstay_refused_total` | counter | `policy`, `kind` |
/// | `mainstay_retries_total` | counter | `policy` |
/// | `mainstay_gave_up_total` | counter | `policy`, `why` |
/// | `mainstay_fell_back_total` | counter | `policy`, `instead_of` |
/// | `mainstay_circuit_transitions_total` | counter | `policy`, `to` |
/// | `mainstay_circuit_state` | gauge | `policy`; 0 closed, 1 recovering, 2 half-open, 3 open |
/// | `mainstay_saga_open` | gauge | `definition`, `phase` of running, waiting, unwinding, stuck, parked: sagas in the store that are not over |
/// | `mainstay_saga_oldest_seconds` | gauge | `definition`: the age of the oldest of these; 0 without any |
/// | `mainstay_saga_open_blocked` | gauge | `definition`: how many of them this process has and cannot work on |
/// | `mainstay_saga_unregistered` | gauge | sagas in the store whose definition is not registered in this process |
/// | `mainstay_saga_live` | gauge | how many sagas this process works on |
/// | `mainstay_saga_max_live` | gauge | how many it may |
/// | `mainstay_saga_claims_held_seconds` | gauge | for how long it has taken up nothing since it works on as many as it may; 0 otherwise |
/// | `mainstay_saga_records_total` | counter | `definition`, `kind` |
/// | `mainstay_saga_entered_total` | counter | `definition`, `phase`: how often this process has brought a saga into it |
/// | `mainstay_saga_age_seconds` | histogram | `definition`, `phase`: the age at which a saga came into it; for the last ones its duration |
/// | `mainstay_saga_blocked_total` | counter | `definition` |
/// | `mainstay_saga_waits_total` | counter | `definition`: how often a step was not let begin |
/// | `mainstay_saga_overdue_total` | counter | `definition`: sagas whose deadline, or that of a step, came too late to turn them round; again each time that one is taken up |
/// | `mainstay_saga_orders_refused_total` | counter | `definition`: orders and messages that could not be followed |
/// | `mainstay_saga_store_failures_total` | counter | |
///
/// The `saga` rows with the feature of that name; the first four of them are those of `saga::Orchestrator::census`: every process
/// counts the whole store, so they are not to be added up, but for the blocked ones, of which each counts its own. The next three
/// are set every lease, and as soon as claims are held up. Starts that were refused for want of a place are in
/// `mainstay_refused_total` with the policy `saga`. The label `policy` is the name without the key of a [`Keyed`](crate::Keyed)
/// policy, so its values are as many as there are policies in the program. The state gauge is set only for policies without a
/// key: one number cannot say the state of many. It has a value from the breaker's first transition on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Metrics;

impl Observer for Metrics {
    fn on_event(&self, event: &Event<'_>) {
        match *event {
            Event::Transition { name, to, .. } => {
                let policy = name.base().to_owned();
                counter!("mainstay_circuit_transitions_total", "policy" => policy.clone(), "to" => to.as_str())
                    .increment(1);
                if name.key().is_none() {
                    gauge!("mainstay_circuit_state", "policy" => policy).set(to.level());
                }
            }
            Event::Refused { refused, observed: false } => {
                let policy = refused.full_name().base().to_owned();
                counter!("mainstay_refused_total", "policy" => policy, "kind" => refused.kind().as_str())
                    .increment(1);
            }
            Event::Refused { observed: true, .. } => {}
            Event::Retried { name, .. } => {
                counter!("mainstay_retries_total", "policy" => name.base().to_owned()).increment(1);
            }
            Event::GaveUp { name, why, .. } => {
                counter!("mainstay_gave_up_total", "policy" => name.base().to_owned(), "why" => why.as_str())
                    .increment(1);
            }
            Event::FellBack { name, instead_of } => {
                let instead_of = instead_of.map_or("failed", |kind| kind.as_str());
                counter!("mainstay_fell_back_total", "policy" => name.base().to_owned(), "instead_of" => instead_of)
                    .increment(1);
            }
            #[cfg(feature = "saga")]
            Event::SagaPhase { definition, to, age, .. } => saga_phase(definition, to, age),
            #[cfg(feature = "saga")]
            Event::SagaRecord { definition, record, .. } => {
                let definition = definition.to_owned();
                counter!("mainstay_saga_records_total", "definition" => definition, "kind" => record.kind())
                    .increment(1);
            }
            #[cfg(feature = "saga")]
            Event::SagaBlocked { definition, .. } => {
                counter!("mainstay_saga_blocked_total", "definition" => definition.to_owned()).increment(1);
            }
            #[cfg(feature = "saga")]
            Event::SagaCensus { census } => saga_census(census),
            #[cfg(feature = "saga")]
            Event::SagaLive { live, max_live, held } => {
                gauge!("mainstay_saga_live").set(live as f64);
                gauge!("mainstay_saga_max_live").set(max_live as f64);
                gauge!("mainstay_saga_claims_held_seconds").set(held.map_or(0.0, |held| {
                    // Above zero from the first moment on.
                    held.as_secs_f64().max(0.001)
                }));
            }
            #[cfg(feature = "saga")]
            Event::SagaStoreFailed { .. } => counter!("mainstay_saga_store_failures_total").increment(1),
            #[cfg(feature = "saga")]
            Event::SagaWaits { definition, .. } => {
                counter!("mainstay_saga_waits_total", "definition" => definition.to_owned()).increment(1);
            }
            #[cfg(feature = "saga")]
            Event::SagaOverdue { definition, .. } => {
                counter!("mainstay_saga_overdue_total", "definition" => definition.to_owned()).increment(1);
            }
            #[cfg(feature = "saga")]
            Event::SagaOrderRefused { definition, .. } => {
                let definition = definition.to_owned();
                counter!("mainstay_saga_orders_refused_total", "definition" => definition).increment(1);
            }
        }
    }
}

#[cfg(feature = "saga")]
fn saga_census(census: &crate::saga::Census) {
    for open in &census.definitions {
        let definition = open.definition.clone();
        for (phase, sagas) in open.phases() {
            gauge!("mainstay_saga_open", "definition" => definition.clone(), "phase" => phase.as_str())
                .set(sagas as f64);
        }
        gauge!("mainstay_saga_open_blocked", "definition" => definition.clone()).set(open.blocked as f64);
        gauge!("mainstay_saga_oldest_seconds", "definition" => definition)
            .set(census.age(open).as_secs_f64());
    }
    gauge!("mainstay_saga_unregistered").set(census.unregistered as f64);
}

#[cfg(feature = "saga")]
fn saga_phase(definition: &str, to: crate::saga::journal::Phase, age: std::time::Duration) {
    let definition = definition.to_owned();
    counter!("mainstay_saga_entered_total", "definition" => definition.clone(), "phase" => to.as_str())
        .increment(1);
    metrics::histogram!("mainstay_saga_age_seconds", "definition" => definition, "phase" => to.as_str())
        .record(age.as_secs_f64());
}
