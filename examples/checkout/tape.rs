//! The tape: everything that was measured, with the time at which it happened. The live view, the checks and
//! the plot read nothing else.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use mainstay::circuit_breaker::State;
use mainstay::{Event, GaveUp, Kind, Observer};
use tokio::time::Instant;

/// What became of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Good,
    Fallback(InsteadOf),
    Failed,
}

/// What a fallback replaced: the refusal of a policy, or an error of the service itself.
pub type InsteadOf = Option<Kind>;

/// One finished call. `due` is when it was *meant* to begin: under an open load a late start is part of the
/// latency, else a system that stalls its clients would look fast (coordinated omission).
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub due: Duration,
    pub took: Duration,
    pub outcome: Outcome,
}

impl Call {
    pub fn done(&self) -> Duration {
        self.due + self.took
    }
}

/// What a policy reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    Refused(Kind),
    Retried,
    /// It would have been retried, but the budget was spent.
    BudgetSpent,
    Breaker(State),
}

/// What the policies of one stack say about themselves at one instant.
#[derive(Clone, Copy, Debug)]
pub struct Gauges {
    pub breaker: State,
    pub in_use: usize,
    pub limit: usize,
    pub budget: f64,
}

/// The shop's calls to one of the services behind it.
#[derive(Debug, Default)]
pub struct Leg {
    pub calls: Vec<Call>,
    /// When a request reached the service.
    pub upstream: Vec<Duration>,
    pub facts: Vec<(Duration, Fact)>,
    pub gauges: Vec<(Duration, Gauges)>,
}

#[derive(Debug, Default)]
pub struct Events {
    /// When an order was due to arrive, whether or not it was ever answered.
    pub offered: Vec<Duration>,
    /// Whole orders, as the customer sees them.
    pub orders: Vec<Call>,
    pub users: Leg,
    pub payments: Leg,
    /// Calls that have nothing to do with the shop, see [`control`](crate::load::control).
    pub control: Vec<Call>,
}

#[derive(Default)]
pub struct Tape {
    start: OnceLock<Instant>,
    events: Mutex<Events>,
}

impl Tape {
    /// Begins to record, a moment from now. What happened before is not recorded.
    pub fn start(&self) {
        self.start.get_or_init(|| clock() + Duration::from_millis(100));
    }

    /// The instant at which the tape shows `at`.
    pub fn instant(&self, at: Duration) -> Instant {
        *self.start.get().expect("the tape was started") + at
    }

    pub fn now(&self) -> Duration {
        clock().saturating_duration_since(self.instant(Duration::ZERO))
    }

    pub fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().expect("nothing panics while it writes on the tape")
    }

    /// Writes something down, with the time, once the story has begun.
    pub fn note(&self, write: impl FnOnce(&mut Events, Duration)) {
        if let Some(at) = self.start.get().and_then(|start| clock().checked_duration_since(*start)) {
            write(&mut self.events(), at);
        }
    }

    /// Writes down a call that is now done.
    pub fn finish(&self, due: Duration, outcome: Outcome, list: impl FnOnce(&mut Events) -> &mut Vec<Call>) {
        self.note(|events, now| {
            let took = now.saturating_sub(due);
            list(events).push(Call { due, took, outcome });
        });
    }

    /// The finished recording.
    pub fn take(&self) -> Events {
        std::mem::take(&mut self.events())
    }
}

/// The one place where the example reads the clock.
#[allow(clippy::disallowed_methods)]
fn clock() -> Instant {
    Instant::now()
}

/// Writes down what the policies of one leg report.
#[derive(Clone)]
pub struct Listener {
    pub tape: Arc<Tape>,
    pub leg: fn(&mut Events) -> &mut Leg,
}

impl Observer for Listener {
    fn on_event(&self, event: &Event<'_>) {
        let fact = match event {
            Event::Refused { refused, .. } => Fact::Refused(refused.kind()),
            Event::Retried { .. } => Fact::Retried,
            Event::GaveUp { why: GaveUp::Budget, .. } => Fact::BudgetSpent,
            Event::Transition { to, .. } => Fact::Breaker(*to),
            _ => return,
        };
        self.tape.note(|events, at| (self.leg)(events).facts.push((at, fact)));
    }
}

/// The smallest value that at least `share` of the values do not exceed.
pub fn percentile(share: f64, values: impl IntoIterator<Item = Duration>) -> Option<Duration> {
    let mut values: Vec<_> = values.into_iter().collect();
    let rank = (share * values.len() as f64).ceil() as usize;
    let index = rank.clamp(1, values.len().max(1)) - 1;
    (!values.is_empty()).then(|| *values.select_nth_unstable(index).1)
}
