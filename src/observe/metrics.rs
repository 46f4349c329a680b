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
///
/// The label `policy` is the name without the key of a [`Keyed`](crate::Keyed) policy, so its values are as
/// many as there are policies in the program. The state gauge is set only for policies without a key: one number
/// cannot say the state of many. It has a value from the breaker's first transition on.
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
        }
    }
}
