//! What the story promises, judged by what was measured.

use std::collections::HashSet;
use std::time::Duration;

use mainstay::Kind;

use crate::services::Fault;
use crate::story::Phase;
use crate::tape::{Call, Events, Outcome, percentile};

/// While payment is at fault it may get at most this many calls per order.
const MOST_UPSTREAM: f64 = 1.1;
/// The user call's p99 may be at most this many times its healthy value ...
const MOST_SLOWDOWN: u32 = 2;
/// ... but a p99 below this is never held against it. The healthy value is a few milliseconds, and so is one
/// time slice that the scheduler gives to somebody else; a call that waits for payment is late by hundreds.
const NEGLIGIBLE: Duration = Duration::from_millis(20);
/// An order that the open breaker turns away is answered within this time (p99).
const QUICK: Duration = Duration::from_millis(20);
/// Once a fault is gone, full service is back within this time ...
const RECOVERY: Duration = Duration::from_secs(2);
/// ... which means that from then on this share of the orders is charged at once.
const FULL_SERVICE: f64 = 0.99;
/// A machine on which a call to nobody in particular takes longer than this (p99) has no time for a shop.
const STARVED: Duration = Duration::from_millis(100);

/// What is still there when everything should be over.
pub struct LeftOver {
    pub orders: usize,
    pub permits: usize,
    pub requests: usize,
    pub tasks: usize,
}

/// A promise, and what was found.
pub struct Verdict {
    pub kept: bool,
    pub promise: String,
    pub found: String,
}

pub fn judge(story: &[Phase], events: &Events, left: &LeftOver) -> Vec<Verdict> {
    vec![
        upstream_load(story, events),
        user_latency(story, events),
        fallback_latency(story, events),
        recovery(story, events),
        nothing_left(left),
    ]
}

fn upstream_load(story: &[Phase], events: &Events) -> Verdict {
    let ratios = faults(story).map(|phase| upstream_per_order(phase, events)).collect::<Vec<_>>();
    Verdict {
        kept: ratios.iter().all(|ratio| *ratio <= MOST_UPSTREAM),
        promise: format!("payment gets at most {MOST_UPSTREAM} x the offered load while it is at fault"),
        found: each(story, ratios.iter().map(|ratio| format!("{ratio:.2} x"))),
    }
}

fn user_latency(story: &[Phase], events: &Events) -> Verdict {
    // A call that failed took for ever.
    let took = |call: &Call| if call.outcome == Outcome::Good { call.took } else { Duration::MAX };
    let p99 = |phase: &Phase| p99(phase, &events.users.calls, took);
    let healthy = p99(&story[0]);
    let limit = |phase: &Phase| {
        let allowed = healthy?.saturating_mul(MOST_SLOWDOWN).max(NEGLIGIBLE);
        Some(allowed.max(slow_machine(phase, events)))
    };
    let worst = story[1..].iter().max_by_key(|phase| p99(phase)).expect("the story goes on");
    Verdict {
        kept: story.iter().all(|phase| p99(phase).is_some() && p99(phase) <= limit(phase)),
        promise: format!(
            "the user call's p99 stays within {MOST_SLOWDOWN} x its healthy value, or {}",
            ms(Some(NEGLIGIBLE)),
        ),
        found: format!(
            "healthy {}, at worst {} ({} at {:.0} s, limit {})",
            ms(healthy),
            ms(p99(worst)),
            worst.name,
            worst.from.as_secs_f64(),
            ms(limit(worst)),
        ),
    }
}

fn fallback_latency(story: &[Phase], events: &Events) -> Verdict {
    let turned_away = |phase: &Phase| {
        let open = Outcome::Fallback(Some(Kind::CircuitOpen));
        let orders = events.orders.iter().filter(|order| phase.contains(order.due) && order.outcome == open);
        percentile(0.99, orders.map(|order| order.took))
    };
    let found = faults(story).map(|phase| (turned_away(phase), QUICK.max(slow_machine(phase, events))));
    let found = found.collect::<Vec<_>>();
    Verdict {
        kept: found.iter().all(|(p99, limit)| p99.is_some_and(|p99| p99 <= *limit)),
        promise: format!(
            "once the breaker is open, orders are answered in fallback within {} (p99)",
            ms(Some(QUICK))
        ),
        found: each(
            story,
            found.iter().map(|(p99, limit)| match p99 {
                None => "never: it did not open".into(),
                Some(late) if *late > QUICK => format!("{} (limit {})", ms(*p99), ms(Some(*limit))),
                Some(_) => ms(*p99),
            }),
        ),
    }
}

fn recovery(story: &[Phase], events: &Events) -> Verdict {
    let after_faults = story.windows(2).filter(|pair| pair[0].fault != Fault::None).map(|pair| &pair[1]);
    let found = after_faults.map(|phase| time_to_full_service(phase, events)).collect::<Vec<_>>();
    Verdict {
        kept: found.iter().all(|time| time.is_some_and(|time| time <= RECOVERY)),
        promise: format!("full service is back within {} s once the fault is gone", RECOVERY.as_secs()),
        found: each(
            story,
            found.iter().map(|time| match time {
                Some(time) => format!("{:.2} s", time.as_secs_f64()),
                None => "never".into(),
            }),
        ),
    }
}

fn nothing_left(left: &LeftOver) -> Verdict {
    let LeftOver { orders, permits, requests, tasks } = left;
    Verdict {
        kept: [orders, permits, requests, tasks] == [&0; 4],
        promise: "at the end no permit and no task is left".into(),
        found: format!(
            "{permits} permits, {tasks} tasks, {orders} unanswered orders, {requests} requests at payment"
        ),
    }
}

/// How many calls payment got for each order that was offered.
pub fn upstream_per_order(phase: &Phase, events: &Events) -> f64 {
    let count = |times: &[Duration]| times.iter().filter(|at| phase.contains(**at)).count() as f64;
    count(&events.payments.upstream) / count(&events.offered).max(1.0)
}

pub fn p99(phase: &Phase, calls: &[Call], took: impl Fn(&Call) -> Duration) -> Option<Duration> {
    percentile(0.99, calls.iter().filter(|call| phase.contains(call.due)).map(took))
}

/// What calls that have nothing to do with the shop took in the worst phase (p99), if that is too long to judge
/// the shop by: policies that wait for 200 ms cannot tell a starved machine from a slow service.
pub fn starved(story: &[Phase], events: &Events) -> Option<Duration> {
    let worst = story.iter().filter_map(|phase| p99(phase, &events.control, |call| call.took)).max()?;
    (worst > STARVED).then_some(worst)
}

/// What is no slower than this is not held against the shop: calls that have nothing to do with it are slow too.
fn slow_machine(phase: &Phase, events: &Events) -> Duration {
    MOST_SLOWDOWN * p99(phase, &events.control, |call| call.took).unwrap_or_default()
}

/// The time from the beginning of the phase to the moment from which on the orders got full service.
fn time_to_full_service(phase: &Phase, events: &Events) -> Option<Duration> {
    let good = events.orders.iter().filter(|order| order.outcome == Outcome::Good);
    let good: HashSet<Duration> = good.map(|order| order.due).collect();
    let mut best = None;
    let (mut served, mut offered) = (0, 0);
    for due in events.offered.iter().rev().filter(|due| phase.contains(**due)) {
        offered += 1;
        served += usize::from(good.contains(due));
        if served as f64 >= FULL_SERVICE * f64::from(offered) {
            best = Some(*due - phase.from);
        }
    }
    best
}

fn faults(story: &[Phase]) -> impl Iterator<Item = &Phase> {
    story.iter().filter(|phase| phase.fault != Fault::None)
}

/// "fails 0.21 x, hangs 0.11 x, is slow 0.13 x"
fn each(story: &[Phase], values: impl Iterator<Item = String>) -> String {
    let named = faults(story).zip(values).map(|(phase, value)| {
        let short = phase.name.trim_start_matches("payment ");
        format!("{short} {value}")
    });
    named.collect::<Vec<_>>().join(", ")
}

pub fn ms(duration: Option<Duration>) -> String {
    if duration == Some(Duration::MAX) {
        return "for ever".into();
    }
    match duration.map(|duration| 1000.0 * duration.as_secs_f64()) {
        None => "-".into(),
        Some(ms) if ms < 9.95 => format!("{ms:.1} ms"),
        Some(ms) => format!("{ms:.0} ms"),
    }
}
