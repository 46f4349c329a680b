use proptest::prelude::*;

use super::*;
use crate::property::{catches, holds};

const SLIDING: Algorithm = Algorithm::SlidingWindow;
const FIXED: Algorithm = Algorithm::FixedWindow;

fn bucket(burst: u32) -> Algorithm {
    Algorithm::TokenBucket { burst }
}

fn machine(algorithm: Algorithm, limit: u32, window: u64) -> Machine {
    Machine::new(Rules { algorithm, limit, window })
}

/// Whether so many were admitted one by one, and the next one not.
fn admits_exactly(machine: &mut Machine, count: u32, now: u64) -> bool {
    (0..count).all(|_| machine.take(1, now).is_ok()) && machine.take(1, now).is_err()
}

#[test]
fn a_place_of_a_sliding_window_is_free_exactly_one_window_after_it_was_taken() {
    let mut machine = machine(SLIDING, 2, 100);
    assert!(machine.take(1, 10).is_ok());
    assert!(machine.take(1, 40).is_ok());
    assert_eq!(machine.take(1, 60), Err(Some(50)));
    assert_eq!(machine.take(1, 109), Err(Some(1)));
    assert!(machine.take(1, 110).is_ok());
    assert_eq!(machine.take(1, 110), Err(Some(30)), "the next is free when the second is a window old");
}

#[test]
fn the_ring_of_a_sliding_window_grows_with_what_is_used_and_never_beyond_the_limit() {
    let room = |machine: &Machine| match &machine.used {
        Used::Times(times) => times.capacity(),
        used => panic!("{used:?}"),
    };
    let mut machine = machine(SLIDING, 10_000, 100);
    assert_eq!(room(&machine), 0, "nobody has come");
    machine.left(50);
    assert!(machine.take(10_001, 50).is_err());
    assert_eq!(room(&machine), 0, "nobody was let in");
    assert!(machine.take(1, 50).is_ok());
    assert_eq!(room(&machine), 8);
    let mut grown = 0;
    for _ in 1..10_000 {
        let before = room(&machine);
        assert!(machine.take(1, 60).is_ok());
        grown += u32::from(room(&machine) > before);
    }
    assert_eq!((room(&machine), grown), (10_000, 11));
    assert!(admits_exactly(&mut machine, 10_000, 200));
    assert_eq!(room(&machine), 10_000, "what has gone leaves its room to others");
    // All at once; and other settings.
    let mut machine = self::machine(SLIDING, 1_000, 100);
    assert!(machine.take(900, 0).is_ok());
    assert_eq!(room(&machine), 900);
    machine.reconfigure(Rules { algorithm: SLIDING, limit: 1_000_000, window: 100 }, 0);
    assert_eq!(room(&machine), 900);
    machine.reconfigure(Rules { algorithm: SLIDING, limit: 10, window: 100 }, 100);
    assert_eq!(room(&machine), 10);
}

#[test]
fn a_hundred_in_a_quarter_of_an_hour_and_never_one_more() {
    const MINUTE: u64 = 60_000_000_000;
    let mut machine = machine(SLIDING, 100, 15 * MINUTE);
    // Fifty at the end of the first five minutes, fifty in the tenth.
    assert!((0..50).all(|_| machine.take(1, 5 * MINUTE).is_ok()));
    assert!(admits_exactly(&mut machine, 50, 10 * MINUTE));
    assert_eq!(machine.take(1, 15 * MINUTE), Err(Some(5 * MINUTE)), "no new window has begun");
    assert!(admits_exactly(&mut machine, 50, 20 * MINUTE));
    assert!(admits_exactly(&mut machine, 50, 25 * MINUTE));
}

#[test]
fn a_fixed_window_begins_with_its_first_call_and_ends_a_window_later() {
    let mut machine = machine(FIXED, 2, 100);
    assert!(admits_exactly(&mut machine, 2, 70));
    assert_eq!(machine.take(1, 169), Err(Some(1)));
    assert!(admits_exactly(&mut machine, 2, 170));
}

#[test]
fn a_bucket_holds_its_burst_and_fills_evenly() {
    // Three tokens in ten nanoseconds.
    let mut machine = machine(bucket(4), 3, 10);
    assert!(admits_exactly(&mut machine, 4, 0));
    assert_eq!(machine.take(1, 0), Err(Some(4)), "a token takes three and a third");
    assert!(machine.take(1, 4).is_ok());
    assert_eq!(machine.take(1, 4), Err(Some(3)), "two tenths are there already");
    assert!(admits_exactly(&mut machine, 4, 1_000));
}

#[test]
fn several_places_are_taken_together_or_not_at_all() {
    for algorithm in [SLIDING, FIXED, bucket(5)] {
        let mut machine = machine(algorithm, 5, 100);
        assert!(machine.take(4, 0).is_ok());
        assert!(machine.take(2, 0).is_err());
        assert_eq!(machine.left(0).remaining, 1, "{algorithm:?}: the refused call has taken something");
        assert!(machine.take(1, 0).is_ok());
        assert_eq!(machine.take(6, 0), Err(None), "{algorithm:?}: there are never six");
        assert!(machine.take(5, 1_000).is_ok());
    }
}

#[test]
fn what_is_given_back_can_be_taken_by_another_at_once() {
    for algorithm in [SLIDING, FIXED, bucket(3)] {
        let mut machine = machine(algorithm, 3, 100);
        let reserved = machine.take(2, 7).unwrap();
        assert!(machine.take(1, 7).is_ok());
        assert!(machine.take(1, 7).is_err());
        machine.give_back(reserved, 7);
        assert!(admits_exactly(&mut machine, 2, 7), "{algorithm:?}");
    }
}

#[test]
fn a_place_that_is_given_back_late_takes_none_from_anybody_else() {
    for algorithm in [SLIDING, FIXED, bucket(2)] {
        let mut machine = machine(algorithm, 2, 100);
        let reserved = machine.take(1, 0).unwrap();
        assert!(machine.take(2, 200).is_ok());
        machine.give_back(reserved, 200);
        assert!(machine.take(1, 200).is_err(), "{algorithm:?}: there were three");
    }
}

#[test]
fn a_bucket_gives_back_what_has_not_flowed_in_since() {
    // A token each ten nanoseconds. Without the reservation the bucket would have run over in the first six.
    let mut machine = machine(bucket(10), 1, 10);
    let reserved = machine.take(1, 0).unwrap();
    assert!(machine.take(9, 6).is_ok());
    // Six tenths of a token are there, and four are given back.
    machine.give_back(reserved, 6);
    assert!(machine.take(1, 6).is_ok());
    assert_eq!(machine.take(1, 6), Err(Some(10)), "six tenths were given twice");
}

#[test]
fn the_time_until_all_is_free_is_known() {
    let mut sliding = machine(SLIDING, 3, 100);
    sliding.take(1, 10).unwrap();
    sliding.take(1, 30).unwrap();
    assert_eq!(sliding.left(50), Left { limit: 3, remaining: 1, reset: 80 });
    assert_eq!(sliding.left(130), Left { limit: 3, remaining: 3, reset: 0 });
    let mut fixed = machine(FIXED, 3, 100);
    fixed.take(1, 10).unwrap();
    fixed.take(1, 30).unwrap();
    assert_eq!(fixed.left(50), Left { limit: 3, remaining: 1, reset: 60 });
    let mut bucket = machine(bucket(4), 2, 100);
    bucket.take(3, 10).unwrap();
    assert_eq!(bucket.left(70), Left { limit: 4, remaining: 2, reset: 90 });
}

#[test]
fn durations_and_counts_of_any_size_saturate() {
    for (algorithm, limit) in [(SLIDING, 1), (FIXED, u32::MAX), (bucket(u32::MAX), 1), (bucket(1), u32::MAX)]
    {
        let mut machine = machine(algorithm, limit, u64::MAX);
        let all = capacity(algorithm, limit);
        let receipt = machine.take(all, 5).unwrap();
        assert!(machine.take(1, i64::MAX as u64 - 1).is_err() || algorithm == bucket(1));
        assert!(machine.take(u32::MAX, u64::MAX).is_err() || algorithm == bucket(u32::MAX));
        machine.left(u64::MAX);
        machine.give_back(receipt, u64::MAX);
        assert!(machine.left(u64::MAX).remaining <= all);
    }
}

#[test]
fn a_clock_that_goes_back_stands_still() {
    for algorithm in [SLIDING, FIXED, bucket(2)] {
        let mut machine = machine(algorithm, 2, 100);
        let reserved = machine.take(1, 500).unwrap();
        assert!(machine.take(1, 100).is_ok());
        assert!(machine.take(1, 0).is_err());
        machine.give_back(reserved, 0);
        assert_eq!(machine.left(0).remaining, 1);
    }
}

#[test]
fn other_rules_keep_what_is_taken() {
    let algorithms = [SLIDING, FIXED, bucket(10)];
    for (before, after) in algorithms.iter().flat_map(|&a| algorithms.map(|b| (a, b))) {
        let mut machine = machine(before, 10, 100);
        let reserved = machine.take(3, 50).unwrap();
        machine.take(3, 50).unwrap();
        machine.reconfigure(Rules { algorithm: after, limit: 8, window: 200 }, 50);
        let all = capacity(after, 8);
        assert_eq!(machine.left(50).remaining, all - 6, "{before:?} to {after:?}");
        machine.give_back(reserved, 50);
        let left = machine.left(50).remaining;
        let same = before == after && !matches!(after, Algorithm::TokenBucket { .. });
        assert_eq!(left, if same { all - 3 } else { all - 6 }, "{before:?} to {after:?}");
    }
}

#[test]
fn a_smaller_limit_and_the_old_one_again_give_nobody_a_place() {
    for algorithm in [SLIDING, FIXED] {
        let mut machine = machine(algorithm, 10, 100);
        machine.take(8, 0).unwrap();
        machine.reconfigure(Rules { algorithm, limit: 3, window: 100 }, 10);
        assert_eq!(machine.take(1, 10), Err(Some(90)), "{algorithm:?}");
        assert_eq!(machine.left(10).remaining, 0);
        machine.reconfigure(Rules { algorithm, limit: 10, window: 100 }, 20);
        assert_eq!(machine.left(20).remaining, 2, "{algorithm:?}");
    }
}

// === against a model that remembers every admission ===

#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many nanoseconds pass.
    Wait(u64),
    /// A call comes for so many places, having read the clock so long ago.
    Take { cost: u32, late: u64 },
    /// One of those that have not said yet whether they begin gives its places back.
    GiveBack(usize),
    /// One of them begins.
    Start(usize),
    /// Another limit and window, where the model can say what that means.
    Reconfigure { limit: u32, window: u64 },
}

#[derive(Debug, Clone)]
struct Case {
    rules: Rules,
    steps: Vec<Step>,
}

fn cases() -> impl Strategy<Value = Case> {
    let algorithm = prop_oneof![Just(SLIDING), Just(FIXED), (1..6_u32).prop_map(bucket)];
    let step = prop_oneof![
        4 => (0..9_u64).prop_map(Step::Wait),
        8 => (prop_oneof![6 => Just(1), 2 => 0..7_u32], prop_oneof![4 => Just(0), 1 => 0..5_u64])
            .prop_map(|(cost, late)| Step::Take { cost, late }),
        3 => any::<usize>().prop_map(Step::GiveBack),
        1 => any::<usize>().prop_map(Step::Start),
        1 => (1..6_u32, 1..20_u64).prop_map(|(limit, window)| Step::Reconfigure { limit, window }),
    ];
    (algorithm, 1..6_u32, 1..20_u64, proptest::collection::vec(step, 0..30)).prop_map(
        |(algorithm, limit, window, steps)| Case { rules: Rules { algorithm, limit, window }, steps },
    )
}

/// A bug put into the machine on purpose. The property must find each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    OneMoreThanTheLimit,
    WindowEndsTooEarly,
    WindowEndsTooLate,
    RefusedCallsTakePlaces,
    ManyCountAsOne,
    WaitIsTooShort,
    WaitIsTooLong,
    NothingIsGivenBack,
    IsGivenBackTwice,
    LatecomerGetsAnotherPlace,
    BucketGivesBackInFull,
    BucketRunsOver,
    OtherRulesForget,
    RemainingIsTooHigh,
    ResetIsTheWait,
}

struct Subject {
    machine: Machine,
    mutant: Mutant,
}

impl Subject {
    fn new(rules: Rules, mutant: Mutant) -> Self {
        let mut subject = Subject { machine: Machine::new(rules), mutant };
        subject.machine.rules = subject.tampered(rules);
        subject
    }

    fn tampered(&self, mut rules: Rules) -> Rules {
        match self.mutant {
            Mutant::OneMoreThanTheLimit => match &mut rules.algorithm {
                Algorithm::TokenBucket { burst } => *burst += 1,
                _ => rules.limit += 1,
            },
            Mutant::WindowEndsTooEarly => rules.window = (rules.window - 1).max(1),
            Mutant::WindowEndsTooLate => rules.window += 1,
            _ => {}
        }
        rules
    }

    fn take(&mut self, cost: u32, now: u64) -> Result<Receipt, Option<u64>> {
        let runs_over = self.mutant == Mutant::BucketRunsOver;
        if let (true, Used::Bucket { parts, at }) = (runs_over, &mut self.machine.used) {
            let over = *parts + flow(now.saturating_sub(*at), &self.machine.rules);
            let taken = self.machine.take(cost, now);
            if let (Ok(_), Used::Bucket { parts, .. }) = (&taken, &mut self.machine.used) {
                *parts = over - tokens(cost, &self.machine.rules);
            }
            return taken;
        }
        let counted = if self.mutant == Mutant::ManyCountAsOne { cost.min(1) } else { cost };
        let taken = self.machine.take(counted, now);
        match (self.mutant, taken) {
            (Mutant::RefusedCallsTakePlaces, Err(_)) => {
                if let Used::Times(times) = &mut self.machine.used {
                    times.push_back(self.machine.now);
                    times.pop_front();
                }
                if let Used::Window { began, .. } = &mut self.machine.used {
                    *began = self.machine.now;
                }
                taken
            }
            (Mutant::WaitIsTooShort, Err(Some(wait))) => Err(Some(wait - 1)),
            (Mutant::WaitIsTooLong, Err(Some(wait))) => Err(Some(wait + 1)),
            _ => taken,
        }
    }

    fn give_back(&mut self, receipt: Receipt, now: u64) {
        match (self.mutant, &mut self.machine.used) {
            (Mutant::NothingIsGivenBack, _) => return,
            (Mutant::IsGivenBackTwice, _) => self.machine.give_back(receipt, now),
            (Mutant::LatecomerGetsAnotherPlace, Used::Times(times)) => {
                times.pop_back();
                return;
            }
            (Mutant::LatecomerGetsAnotherPlace, Used::Window { used, .. }) => {
                *used = used.saturating_sub(receipt.cost);
                return;
            }
            (Mutant::BucketGivesBackInFull, Used::Bucket { parts, .. }) => {
                *parts = (*parts + tokens(receipt.cost, &self.machine.rules)).min(full(&self.machine.rules));
                return;
            }
            _ => {}
        }
        self.machine.give_back(receipt, now);
    }

    fn reconfigure(&mut self, rules: Rules, now: u64) {
        if self.mutant == Mutant::OtherRulesForget {
            self.machine.used = Used::new(&rules, 0, now);
        }
        let rules = self.tampered(rules);
        self.machine.reconfigure(rules, now);
    }

    fn left(&self, now: u64) -> Left {
        let mut machine = self.machine.clone();
        let left = machine.left(now);
        match self.mutant {
            Mutant::RemainingIsTooHigh => Left { remaining: left.remaining + 1, ..left },
            Mutant::ResetIsTheWait => match machine.take(left.limit, now) {
                Err(Some(_)) if left.remaining > 0 => {
                    Left { reset: machine.take(left.remaining, now).map_or(0, |_| 0), ..left }
                }
                _ => left,
            },
            _ => left,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Log {
    Took {
        at: u64,
        cost: u32,
        back: bool,
    },
    /// What was taken by the entry with this number.
    Back {
        of: usize,
        at: u64,
    },
}

/// Every admission, and what there is computed from all of them each time.
struct Model {
    rules: Rules,
    log: Vec<Log>,
    /// Entries that a shorter window has forgotten.
    forgotten: Vec<usize>,
}

impl Model {
    /// What is left at `t`, in parts of places, of which each has as many as the window has nanoseconds.
    fn parts_left(&self, t: u64) -> i128 {
        let Rules { algorithm, limit, window } = self.rules;
        let place = i128::from(window);
        match algorithm {
            Algorithm::SlidingWindow => place * (i128::from(limit) - self.in_window(t)),
            Algorithm::FixedWindow => place * (i128::from(limit) - self.in_fixed_window(t)),
            Algorithm::TokenBucket { burst } => {
                // Nanosecond by nanosecond.
                let (mut parts, mut entries) = (i128::from(burst) * place, self.log.iter().peekable());
                for now in 0..=t {
                    if now > 0 {
                        parts = (parts + i128::from(limit)).min(i128::from(burst) * place);
                    }
                    while let Some(entry) = entries.next_if(|entry| entry.at() == now) {
                        parts += match *entry {
                            Log::Took { cost, .. } => -place * i128::from(cost),
                            Log::Back { of, .. } => {
                                let Log::Took { at, cost, .. } = self.log[of] else { unreachable!() };
                                (place * i128::from(cost) - i128::from(now - at) * i128::from(limit)).max(0)
                            }
                        };
                        parts = parts.min(i128::from(burst) * place);
                    }
                }
                parts
            }
        }
    }

    fn in_window(&self, t: u64) -> i128 {
        let counts = |(index, entry): (usize, &Log)| match *entry {
            Log::Took { at, cost, back: false }
                if t - at < self.rules.window && !self.forgotten.contains(&index) =>
            {
                i128::from(cost)
            }
            _ => 0,
        };
        self.log.iter().enumerate().map(counts).sum()
    }

    fn in_fixed_window(&self, t: u64) -> i128 {
        let (mut began, mut inside) = (0, Vec::new());
        let over = |began: u64, now: u64| now - began >= self.rules.window;
        for (index, entry) in self.log.iter().enumerate() {
            if over(began, entry.at()) {
                inside.clear();
            }
            match *entry {
                Log::Took { at, cost, .. } => {
                    if inside.iter().map(|&(_, cost)| cost).sum::<u32>() == 0 {
                        began = at;
                    }
                    inside.push((index, cost));
                }
                Log::Back { of, .. } => inside.retain(|&(index, _)| index != of),
            }
        }
        if over(began, t) { 0 } else { inside.iter().map(|&(_, cost)| i128::from(cost)).sum() }
    }

    fn left(&self, t: u64) -> u32 {
        u32::try_from(self.parts_left(t).div_euclid(i128::from(self.rules.window)).max(0)).unwrap()
    }

    fn all(&self) -> u32 {
        capacity(self.rules.algorithm, self.rules.limit)
    }

    /// How long it takes from `t` on until so many places are free if nobody comes, tried out.
    fn until(&self, t: u64, places: u32) -> Option<u64> {
        let parts = i128::from(places) * i128::from(self.rules.window);
        let now = self.parts_left(t);
        (0..200).find(|&wait| match self.rules.algorithm {
            Algorithm::TokenBucket { .. } => now + i128::from(wait) * i128::from(self.rules.limit) >= parts,
            _ => self.parts_left(t + wait) >= parts,
        })
    }
}

impl Log {
    fn at(&self) -> u64 {
        match *self {
            Log::Took { at, .. } | Log::Back { at, .. } => at,
        }
    }
}

/// The promise itself, from nothing but the calls that were admitted and did not give their places back.
fn keeps_its_promise(rules: Rules, log: &[Log]) -> Result<(), TestCaseError> {
    let used: Vec<(u64, u32)> = log
        .iter()
        .filter_map(|entry| match *entry {
            Log::Took { at, cost, back: false } => Some((at, cost)),
            _ => None,
        })
        .collect();
    for (index, &(from, _)) in used.iter().enumerate() {
        let mut sum = 0;
        for &(at, cost) in &used[index..] {
            sum += cost;
            match rules.algorithm {
                Algorithm::SlidingWindow => {
                    prop_assert!(
                        at - from >= rules.window || sum <= rules.limit,
                        "{sum} from {from} to {at}"
                    );
                }
                Algorithm::FixedWindow => prop_assert!(at - from >= rules.window || sum <= 2 * rules.limit),
                Algorithm::TokenBucket { burst } => {
                    let allowed = u64::from(burst) * rules.window + (at - from) * u64::from(rules.limit);
                    prop_assert!(u64::from(sum) * rules.window <= allowed, "{sum} from {from} to {at}");
                }
            }
        }
    }
    Ok(())
}

fn follows_the_model(case: &Case, mutant: Mutant) -> Result<(), TestCaseError> {
    let mut subject = Subject::new(case.rules, mutant);
    let mut model = Model { rules: case.rules, log: Vec::new(), forgotten: Vec::new() };
    let mut undecided: Vec<(usize, Receipt)> = Vec::new();
    let (mut now, mut latest, mut same_rules) = (0, 0, true);
    for &step in &case.steps {
        match step {
            Step::Wait(nanos) => now += nanos,
            Step::Take { cost, late } => {
                let read = now.saturating_sub(late);
                latest = read.max(latest);
                let expected =
                    if i128::from(cost) * i128::from(model.rules.window) <= model.parts_left(latest) {
                        Ok(())
                    } else if cost > model.all() {
                        Err(None)
                    } else {
                        Err(model.until(latest, cost))
                    };
                let taken = subject.take(cost, read);
                prop_assert_eq!(taken.map(drop), expected, "{} at {}", cost, latest);
                if let Ok(receipt) = taken {
                    undecided.push((model.log.len(), receipt));
                    model.log.push(Log::Took { at: latest, cost, back: false });
                }
            }
            Step::GiveBack(which) if !undecided.is_empty() => {
                let (of, receipt) = undecided.swap_remove(which % undecided.len());
                latest = latest.max(now);
                subject.give_back(receipt, now);
                model.log.push(Log::Back { of, at: latest });
                if let Log::Took { back, .. } = &mut model.log[of] {
                    *back = true;
                }
            }
            Step::Start(which) if !undecided.is_empty() => {
                undecided.swap_remove(which % undecided.len());
            }
            Step::Reconfigure { limit, window } if model.rules.algorithm == SLIDING => {
                latest = latest.max(now);
                let over = |entry: &Log| latest - entry.at() >= model.rules.window;
                let gone = (0..model.log.len()).filter(|&index| over(&model.log[index]));
                model.forgotten.extend(gone);
                model.rules = Rules { algorithm: SLIDING, limit, window };
                same_rules = false;
                subject.reconfigure(model.rules, now);
            }
            _ => {}
        }
        let (left, present) = (subject.left(now), latest.max(now));
        prop_assert_eq!(left.limit, model.all(), "limit");
        prop_assert_eq!(left.remaining, model.left(present), "left at {}", present);
        prop_assert_eq!(Some(left.reset), model.until(present, model.all()), "reset at {}", present);
    }
    if same_rules {
        keeps_its_promise(case.rules, &model.log)?;
    }
    Ok(())
}

#[test]
fn the_machine_does_what_a_model_does_that_remembers_every_admission() {
    holds(cases(), |case| follows_the_model(&case, Mutant::None));
}

#[test]
fn the_model_finds_every_planted_bug() {
    let mutants = [
        Mutant::OneMoreThanTheLimit,
        Mutant::WindowEndsTooEarly,
        Mutant::WindowEndsTooLate,
        Mutant::RefusedCallsTakePlaces,
        Mutant::ManyCountAsOne,
        Mutant::WaitIsTooShort,
        Mutant::WaitIsTooLong,
        Mutant::NothingIsGivenBack,
        Mutant::IsGivenBackTwice,
        Mutant::LatecomerGetsAnotherPlace,
        Mutant::BucketGivesBackInFull,
        Mutant::BucketRunsOver,
        Mutant::OtherRulesForget,
        Mutant::RemainingIsTooHigh,
        Mutant::ResetIsTheWait,
    ];
    catches(&mutants, cases, |mutant, case| follows_the_model(&case, mutant));
}
