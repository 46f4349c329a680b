use super::*;
use crate::property::{catches, holds};
use proptest::{prelude::*, test_runner::TestCaseError};

const SECOND: Duration = Duration::from_secs(1);

fn shared(config: BudgetConfig) -> (Shared, Instant) {
    config.check().unwrap();
    let now = time::now();
    (Shared::new(config, now), now)
}

/// `count` successes on the thread that has the slot `index`.
fn succeed(shared: &Shared, index: usize, count: u64) {
    let slot = shared.successes.get(index).expect("at least four slots");
    slot.store(slot.load(Relaxed) + count, Relaxed);
}

#[test]
fn a_new_budget_holds_three_tokens_or_its_capacity() {
    let start = |min| shared(Budget::config().min(min)).0.snapshot(time::now()).available;
    assert_eq!(start(0), 0.0);
    assert_eq!(start(1), 1.0);
    assert_eq!(start(3), 3.0);
    assert_eq!(start(50), 3.0);
}

#[test]
fn steady_traffic_is_estimated_right_however_often_one_looks() {
    for look_every in [1u64, 7, 100, 1_000, 20_000] {
        let (shared, start) = shared(Budget::config());
        let mut at = start;
        // A success every millisecond for a minute.
        for n in 1..=60_000 {
            succeed(&shared, 0, 1);
            at = start + Duration::from_millis(n);
            if n % look_every == 0 {
                shared.drain(at);
            }
        }
        let traffic = shared.snapshot(at).traffic;
        assert!((2_985.0..=3_001.0).contains(&traffic), "{look_every}: {traffic}");
    }
}

#[test]
fn successes_of_long_ago_are_not_taken_for_traffic_of_now() {
    let (shared, start) = shared(Budget::config());
    // A thousand successes in a hundred seconds, and nobody looked: thirty in three.
    succeed(&shared, 0, 1_000);
    let snapshot = shared.snapshot(start + 100 * SECOND);
    assert_eq!(snapshot.traffic, 30.0);
    assert_eq!(snapshot.capacity, 3.0);
    assert_eq!(snapshot.available, 3.0);
}

#[test]
fn what_is_saved_is_lost_when_the_traffic_that_justified_it_ends() {
    let (shared, start) = shared(Budget::config());
    succeed(&shared, 0, 900);
    shared.drain(start + SECOND);
    assert_eq!(shared.snapshot(start + SECOND).available, 90.0);
    assert_eq!(shared.snapshot(start + 2 * SECOND).available, 60.0);
    assert_eq!(shared.snapshot(start + 9 * SECOND).available, 1.0);
}

#[test]
fn looking_leaves_no_trace() {
    let (shared, start) = shared(Budget::config());
    succeed(&shared, 1, 900);
    let later = start + 2 * SECOND;
    let before = shared.snapshot(later);
    for ms in 0..2_000 {
        shared.snapshot(start + Duration::from_millis(ms));
    }
    assert_eq!(shared.snapshot(later), before);
}

#[test]
fn a_thread_brings_the_estimate_up_to_date_by_itself() {
    let budget = Budget::new();
    for _ in 0..DRAIN - 1 {
        budget.deposit();
    }
    assert_eq!(lock(&budget.0.ledger).bucket.traffic, 0);
    budget.deposit();
    assert!(lock(&budget.0.ledger).bucket.traffic > 0);
}

#[test]
fn threads_without_a_slot_are_counted_too() {
    let (shared, start) = shared(Budget::config().min(100));
    shared.overflow.fetch_add(5, Relaxed);
    assert_eq!(shared.snapshot(start).available, 3.5);
    shared.drain(start);
    assert_eq!(shared.snapshot(start).available, 3.5, "once");
}

#[test]
fn counts_of_any_size_saturate() {
    let (shared, start) = shared(Budget::config().ratio(1.0).min(u32::MAX).max(u32::MAX));
    for slot in 0..3 {
        succeed(&shared, slot, u64::MAX);
    }
    shared.drain(start + SECOND);
    let snapshot = shared.snapshot(start + 2 * SECOND);
    assert_eq!(snapshot.available, f64::from(u32::MAX));
    let (longest, start) = self::shared(Budget::config().window(Duration::MAX));
    longest.drain(start + SECOND);
    // A clock that goes back changes nothing.
    assert!(longest.withdraw(start, true));
}

// === against a model that remembers everything ===

#[derive(Debug, Clone)]
enum Event {
    /// So many nanoseconds pass.
    Wait(u64),
    /// Successes on a thread.
    Successes(usize, u64),
    /// A thread brings the estimate up to date.
    Drain,
    /// A call's first retry, or a later one, asks for a token.
    Retry { first: bool },
}

#[derive(Debug, Clone)]
struct Case {
    ratio: u64,
    window: u64,
    min: u32,
    max: u32,
    events: Vec<Event>,
}

impl Case {
    fn config(&self) -> BudgetConfig {
        Budget::config()
            .ratio(self.ratio as f64 / 1_000.0)
            .window(Duration::from_nanos(self.window))
            .min(self.min)
            .max(self.max)
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let event = prop_oneof![
        2 => (0..12u64).prop_map(Event::Wait),
        1 => (0..1_000u64).prop_map(Event::Wait),
        4 => (0..3usize, prop_oneof![1..4u64, 1..80u64])
            .prop_map(|(slot, count)| Event::Successes(slot, count)),
        1 => Just(Event::Drain),
        4 => any::<bool>().prop_map(|first| Event::Retry { first }),
    ];
    let ratio = prop_oneof![Just(100), Just(600), 0..=1_000u64];
    let events = prop::collection::vec(event, 1..24);
    (ratio, 1..20u64, 0..5u32, 0..20u32, events).prop_map(|(ratio, window, min, more, events)| Case {
        ratio,
        window,
        min,
        max: (min + more).max(1),
        events,
    })
}

/// An exact fraction.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Fraction(i128, i128);

impl Fraction {
    fn new(up: i128, down: i128) -> Self {
        let (mut a, mut b) = (up, down);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let common = a.max(1);
        Fraction(up / common, down / common)
    }

    fn times(self, up: u64, down: u64) -> Self {
        let scaled = Fraction::new(i128::from(up), i128::from(down));
        Fraction::new(self.0 * scaled.0, self.1 * scaled.1)
    }

    fn plus(self, other: Fraction) -> Self {
        Fraction::new(self.0 * other.1 + other.0 * self.1, self.1 * other.1)
    }

    fn floor(self) -> i128 {
        self.0.div_euclid(self.1)
    }
}

/// What is to be seen after all these events, computed from the first one on.
#[derive(Debug, PartialEq)]
struct Expected {
    /// The answer to the last event, if it asked for a token.
    paid: Option<bool>,
    /// In thousandths.
    tokens: i128,
    traffic: i128,
    /// The traffic as it would be without any rounding, and how many roundings there were.
    exact_traffic: Fraction,
    roundings: i128,
}

fn model(case: &Case, events: &[Event]) -> Expected {
    let thousand = |count: u64| Fraction::new(i128::from(count) * 1_000, 1);
    let capacity = |traffic: i128| {
        (traffic * i128::from(case.ratio) / 1_000)
            .clamp(i128::from(case.min) * 1_000, i128::from(case.max) * 1_000)
    };
    let mut seen = Expected {
        paid: None,
        tokens: capacity(0).min(3_000),
        traffic: 0,
        exact_traffic: Fraction(0, 1),
        roundings: 0,
    };
    let (mut gap, mut waiting) = (0u64, 0u64);
    for event in events {
        seen.paid = None;
        let failed_calls = match event {
            Event::Wait(time) => {
                gap += time;
                continue;
            }
            Event::Successes(_, count) => {
                waiting += count;
                continue;
            }
            Event::Drain | Event::Retry { first: false } => 0,
            Event::Retry { first: true } => 1,
        };
        let (left, share) =
            if gap < case.window { (case.window - gap, (1, 1)) } else { (0, (case.window, gap.max(1))) };
        let new = thousand(waiting).times(share.0, share.1);
        let before = Fraction::new(seen.traffic, 1).times(left, case.window);
        seen.traffic = before.floor() + new.floor() + thousand(failed_calls).floor();
        seen.exact_traffic =
            seen.exact_traffic.times(left, case.window).plus(new).plus(thousand(failed_calls));
        seen.roundings += 2;
        // One success after another.
        for _ in 0..waiting {
            seen.tokens = (seen.tokens + i128::from(case.ratio)).min(capacity(seen.traffic));
        }
        seen.tokens = seen.tokens.min(capacity(seen.traffic));
        (gap, waiting) = (0, 0);
        if let Event::Retry { .. } = event {
            let pays = seen.tokens >= 1_000;
            seen.tokens -= if pays { 1_000 } else { 0 };
            seen.paid = Some(pays);
        }
    }
    seen
}

/// Bugs that the property must notice.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mutant {
    AFractionBuysARetry,
    FundedByRequests,
    TrafficNeverFades,
    OldSuccessesCountInFull,
    NoCapacity,
    CapacityForgetsTheMinimum,
    OneSlotIsForgotten,
    SuccessesCountTwice,
    StartsFull,
    FractionsAreLost,
    RefusalCostsToo,
    LaterRetriesAreTraffic,
}

const MUTANTS: [Mutant; 12] = [
    Mutant::AFractionBuysARetry,
    Mutant::FundedByRequests,
    Mutant::TrafficNeverFades,
    Mutant::OldSuccessesCountInFull,
    Mutant::NoCapacity,
    Mutant::CapacityForgetsTheMinimum,
    Mutant::OneSlotIsForgotten,
    Mutant::SuccessesCountTwice,
    Mutant::StartsFull,
    Mutant::FractionsAreLost,
    Mutant::RefusalCostsToo,
    Mutant::LaterRetriesAreTraffic,
];

/// The real thing, or one with a bug, at a time of its own.
struct Subject {
    shared: Shared,
    at: Instant,
    mutant: Option<Mutant>,
}

impl Subject {
    fn new(config: BudgetConfig, mutant: Option<Mutant>) -> Self {
        let at = time::now();
        let shared = Shared::new(config, at);
        let subject = Subject { shared, at, mutant };
        subject.spoil(Mutant::StartsFull, |bucket| bucket.tokens = bucket.capacity());
        subject.spoil(Mutant::CapacityForgetsTheMinimum, |bucket| bucket.min = 0);
        subject
    }

    /// Does harm to the bucket if that is this subject's bug.
    fn spoil(&self, bug: Mutant, harm: impl FnOnce(&mut Bucket)) {
        if self.mutant == Some(bug) {
            harm(&mut lock(&self.shared.ledger).bucket);
        }
    }

    fn look(&self, look: impl FnOnce() -> Option<bool>) -> Option<bool> {
        {
            let mut ledger = lock(&self.shared.ledger);
            match self.mutant {
                Some(Mutant::TrafficNeverFades) => ledger.bucket.at = self.at,
                Some(Mutant::OldSuccessesCountInFull) => {
                    let window = Duration::from_nanos(ledger.bucket.window);
                    ledger.bucket.at = ledger.bucket.at.max(self.at - window);
                }
                Some(Mutant::OneSlotIsForgotten) => {
                    ledger.seen[1] = self.shared.successes.get(1).unwrap().load(Relaxed);
                }
                Some(Mutant::NoCapacity) => {
                    ledger.bucket.min = u64::MAX;
                    ledger.bucket.max = u64::MAX;
                }
                _ => {}
            }
        }
        let paid = look();
        self.spoil(Mutant::FractionsAreLost, |bucket| bucket.tokens -= bucket.tokens % ONE);
        if self.mutant == Some(Mutant::SuccessesCountTwice) {
            let mut ledger = lock(&self.shared.ledger);
            ledger.seen[0] = ledger.seen[0].saturating_sub(1);
        }
        paid
    }

    /// The answer, if a token was asked for.
    fn happen(&mut self, event: &Event) -> Option<bool> {
        match *event {
            Event::Wait(time) => {
                self.at += Duration::from_nanos(time);
                None
            }
            Event::Successes(slot, count) => {
                succeed(&self.shared, slot, count);
                None
            }
            Event::Drain => self.look(|| {
                self.shared.drain(self.at);
                None
            }),
            Event::Retry { first } => self.look(|| {
                self.spoil(Mutant::FundedByRequests, |bucket| {
                    bucket.tokens = (bucket.tokens + bucket.ratio).min(bucket.capacity());
                });
                self.spoil(Mutant::AFractionBuysARetry, |bucket| {
                    if bucket.tokens >= ONE / 2 {
                        bucket.tokens = bucket.tokens.max(ONE);
                    }
                });
                let first = first || self.mutant == Some(Mutant::LaterRetriesAreTraffic);
                let paid = self.shared.withdraw(self.at, first);
                if !paid {
                    self.spoil(Mutant::RefusalCostsToo, |bucket| {
                        bucket.tokens = bucket.tokens.saturating_sub(ONE / 10);
                    });
                }
                Some(paid)
            }),
        }
    }
}

/// After every event: the same answer, tokens and traffic as the model; no token from nowhere; an estimate
/// that is off by the rounding at most.
fn property(mutant: Option<Mutant>, case: &Case) -> Result<(), TestCaseError> {
    let mut subject = Subject::new(case.config(), mutant);
    for (index, event) in case.events.iter().enumerate() {
        let paid = subject.happen(event);
        let expected = model(case, &case.events[..=index]);
        prop_assert_eq!(paid, expected.paid, "event {}", index);
        let bucket = lock(&subject.shared.ledger).bucket;
        prop_assert_eq!(i128::from(bucket.tokens), expected.tokens, "tokens, event {}", index);
        prop_assert_eq!(i128::from(bucket.traffic), expected.traffic, "traffic, event {}", index);
        let exact = expected.exact_traffic.floor();
        let estimate = i128::from(bucket.traffic);
        prop_assert!(
            estimate <= exact && exact - estimate <= expected.roundings,
            "estimated {}, exactly {}",
            estimate,
            exact
        );
    }
    Ok(())
}

#[test]
fn the_budget_is_exactly_what_a_replay_of_every_event_says() {
    holds(cases(), |case| property(None, &case));
}

#[test]
fn planted_bugs_in_the_budget_are_noticed() {
    catches(&MUTANTS, cases, |mutant, case| property(Some(mutant), &case));
}
