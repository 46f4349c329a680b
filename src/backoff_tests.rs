use super::*;
use crate::property::{catches, holds};
use proptest::{prelude::*, test_runner::TestCaseError};

const NS: Duration = Duration::from_nanos(1);

#[test]
fn a_random_number_covers_both_ends_and_nothing_else() {
    assert_eq!(between(3, 5, 0), 3);
    assert_eq!(between(3, 5, u64::MAX / 2), 4);
    assert_eq!(between(3, 5, u64::MAX), 5);
    assert_eq!(between(7, 7, u64::MAX), 7);
    assert_eq!(between(0, u64::MAX, u64::MAX), u64::MAX);
}

#[test]
fn waits_longer_than_floating_point_can_hold_are_exact() {
    let odd = Duration::from_nanos((1 << 60) + 1);
    let schedule = Schedule::exponential(odd).cap(Duration::MAX);
    assert_eq!(schedule.wait(0, Duration::ZERO), Some((1 << 60) + 1));
    assert_eq!(schedule.wait(100, Duration::ZERO), Some(u64::MAX), "saturates");
}

#[test]
fn without_a_cap_the_longest_wait_given_is_allowed() {
    let minute = Duration::from_secs(60);
    assert_eq!(Schedule::constant(minute).limit(), time::nanos(minute));
    assert_eq!(Schedule::linear(NS).limit(), time::nanos(DEFAULT_CAP));
    assert_eq!(Schedule::sequence([NS, minute]).limit(), time::nanos(minute));
}

/// A schedule, what it is asked, and a second cap to compare with.
#[derive(Debug, Clone)]
struct Case {
    shape: Shape,
    /// In eighths, so that the exact waits are fractions that the model can hold.
    factor: u8,
    cap: u64,
    other_cap: u64,
    jitter: Jitter,
    floor: u64,
    randoms: Vec<u64>,
}

impl Case {
    fn schedule(&self, cap: u64) -> Schedule {
        Schedule::new(self.shape.clone())
            .factor(f64::from(self.factor) / 8.0)
            .cap(Duration::from_nanos(cap))
            .jitter(self.jitter)
    }

    fn floor(&self) -> Duration {
        Duration::from_nanos(self.floor)
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let wait = prop_oneof![0..50u64, 0..10_000_000_000u64, Just(1 << 40)];
    let duration = wait.clone().prop_map(Duration::from_nanos);
    let shape = prop_oneof![
        duration.clone().prop_map(Shape::Constant),
        duration.clone().prop_map(Shape::Linear),
        duration.clone().prop_map(Shape::Exponential),
        prop::collection::vec(duration, 1..12).prop_map(|waits| Shape::Sequence(waits.into())),
    ];
    let jitter =
        prop_oneof![Just(Jitter::Full), Just(Jitter::None), Just(Jitter::Equal), Just(Jitter::Decorrelated)];
    let cap = prop_oneof![0..100u64, 0..20_000_000_000u64, Just(u64::MAX)];
    let random = prop_oneof![any::<u64>(), Just(0), Just(u64::MAX)];
    let floor = prop_oneof![3 => Just(0u64), 1 => 0..2_000_000_000u64];
    let randoms = prop::collection::vec(random, 1..12);
    (shape, 8..=80u8, cap.clone(), cap, jitter, floor, randoms).prop_map(
        |(shape, factor, cap, other_cap, jitter, floor, randoms)| Case {
            shape,
            factor,
            cap,
            other_cap,
            jitter,
            floor,
            randoms,
        },
    )
}

/// The wait as a whole number and whether that is exact, from the definition, in integers.
fn model(case: &Case, step: usize) -> Option<(u64, bool)> {
    let given = |wait: &Duration| wait.as_nanos().max(u128::from(case.floor));
    let (wait, exact) = match &case.shape {
        Shape::Constant(wait) => (given(wait), true),
        Shape::Linear(wait) => (given(wait) * (step as u128 + 1), true),
        Shape::Exponential(wait) => {
            let up = u128::from(case.factor).pow(step as u32);
            // At most 41 bits, times 7 bits eleven times.
            let wait = (given(wait) * up) >> (3 * step);
            (wait, case.factor.is_power_of_two())
        }
        Shape::Sequence(waits) => (given(waits.get(step)?), true),
    };
    Some((u64::try_from(wait.min(u128::from(case.cap))).unwrap(), exact))
}

/// Bugs that the property must notice.
#[derive(Debug, Clone, Copy)]
enum Mutant {
    JitterBeyondTheCap,
    WholeSecondsOnly,
    LosesItsUpperEnd,
    LosesItsLowerEnd,
    GrowsOneStepLate,
    PowersOfTheBase,
    NoCap,
    NoFloor,
    EqualIsFull,
    NoMemory,
    SequenceRepeatsItsLast,
}

const MUTANTS: [Mutant; 11] = [
    Mutant::JitterBeyondTheCap,
    Mutant::WholeSecondsOnly,
    Mutant::LosesItsUpperEnd,
    Mutant::LosesItsLowerEnd,
    Mutant::GrowsOneStepLate,
    Mutant::PowersOfTheBase,
    Mutant::NoCap,
    Mutant::NoFloor,
    Mutant::EqualIsFull,
    Mutant::NoMemory,
    Mutant::SequenceRepeatsItsLast,
];

/// The real thing, or one with a bug.
fn delay(
    mutant: Option<Mutant>,
    schedule: &Schedule,
    step: u32,
    floor: Duration,
    previous: &mut u64,
    random: u64,
) -> Option<u64> {
    let mut schedule = schedule.clone();
    let mut normal = |schedule: &Schedule, step, floor, random| schedule.delay(step, floor, previous, random);
    match mutant {
        None => normal(&schedule, step, floor, random),
        Some(Mutant::JitterBeyondTheCap) => {
            let delay = normal(&schedule, step, floor, random)?;
            Some(delay.saturating_add(between(0, delay / 4, random)))
        }
        Some(Mutant::WholeSecondsOnly) => {
            let delay = normal(&schedule, step, floor, random)?;
            Some(if delay > 1_000_000_000 { delay / 1_000_000_000 * 1_000_000_000 } else { delay })
        }
        Some(Mutant::LosesItsUpperEnd) => {
            let delay = normal(&schedule, step, floor, random)?;
            Some(delay.saturating_sub(u64::from(random == u64::MAX)))
        }
        Some(Mutant::LosesItsLowerEnd) => normal(&schedule, step, floor, random.max(1 << 40)),
        Some(Mutant::GrowsOneStepLate) => normal(&schedule, step.saturating_sub(1), floor, random),
        Some(Mutant::PowersOfTheBase) => {
            if let Shape::Exponential(base) = schedule.shape {
                schedule.factor = (base.as_millis() as f64).max(1.0);
            }
            normal(&schedule, step, floor, random)
        }
        Some(Mutant::NoCap) => {
            schedule.cap = Some(Duration::MAX);
            normal(&schedule, step, floor, random)
        }
        Some(Mutant::NoFloor) => normal(&schedule, step, Duration::ZERO, random),
        Some(Mutant::EqualIsFull) => {
            if schedule.jitter == Jitter::Equal {
                schedule.jitter = Jitter::Full;
            }
            normal(&schedule, step, floor, random)
        }
        Some(Mutant::NoMemory) => {
            *previous = 0;
            schedule.delay(step, floor, previous, random)
        }
        Some(Mutant::SequenceRepeatsItsLast) => {
            let step = schedule.len().map_or(step, |len| step.min(len - 1));
            normal(&schedule, step, floor, random)
        }
    }
}

/// Each delay is within its bounds, the bounds are reached, and a larger cap never makes it shorter.
fn property(mutant: Option<Mutant>, case: &Case) -> Result<(), TestCaseError> {
    let schedule = case.schedule(case.cap);
    let other = case.schedule(case.other_cap);
    let (mut previous, mut other_previous, mut last_wait) = (0, 0, 0);
    for (step, &random) in case.randoms.iter().enumerate() {
        let before = previous;
        let got = delay(mutant, &schedule, step as u32, case.floor(), &mut previous, random);
        let Some((wait, exact)) = model(case, step) else {
            prop_assert_eq!(got, None, "a sequence ends after its last wait");
            return Ok(());
        };
        let Some(got) = got else {
            return Err(TestCaseError::fail("the schedule ended early"));
        };
        let first = model(case, 0).map_or(0, |(first, _)| first);
        let (low, high) = match case.jitter {
            Jitter::Full => (0, wait),
            Jitter::None => (wait, wait),
            Jitter::Equal => (wait - wait / 2, wait),
            Jitter::Decorrelated => {
                let low = if matches!(case.shape, Shape::Sequence(_)) { wait } else { first };
                let from = if step == 0 { low } else { before };
                (low, from.saturating_mul(3).min(case.cap).max(low))
            }
        };
        // What went through floating point may be off by its rounding, once per factor.
        let off = if exact || case.jitter == Jitter::Decorrelated { 0 } else { 1 + (wait >> 48) };
        prop_assert!(got <= case.cap, "{} is beyond the cap {}", got, case.cap);
        prop_assert!(
            low.saturating_sub(off) <= got && got <= high.saturating_add(off),
            "{} is outside {}..={}",
            got,
            low,
            high
        );
        if random == 0 {
            prop_assert!(got.abs_diff(low) <= off, "{} and not the lowest, {}", got, low);
        }
        if random == u64::MAX {
            prop_assert!(got.abs_diff(high) <= off, "{} and not the highest, {}", got, high);
        }

        let other = delay(mutant, &other, step as u32, case.floor(), &mut other_previous, random);
        let in_order = match other {
            Some(other) => (got <= other) == (case.cap <= case.other_cap) || got == other,
            None => false,
        };
        prop_assert!(in_order, "{} and {:?} for caps in the other order", got, other);

        let now = schedule.wait(step as u32, case.floor());
        if !matches!(case.shape, Shape::Sequence(_)) {
            prop_assert!(now >= Some(last_wait), "waits got shorter");
            last_wait = now.unwrap_or(0);
        }
    }
    Ok(())
}

#[test]
fn every_delay_is_within_the_bounds_of_its_jitter_and_its_cap() {
    holds(cases(), |case| property(None, &case));
}

#[test]
fn planted_bugs_in_the_backoff_are_noticed() {
    catches(&MUTANTS, cases, |mutant, case| property(Some(mutant), &case));
}

#[test]
fn nothing_overflows_whatever_the_settings() {
    let duration = || (any::<u64>(), 0..1_000_000_000u32).prop_map(|(s, n)| Duration::new(s, n));
    let factor = prop_oneof![1.0..1e300f64, Just(f64::MAX), Just(1.0), Just(1.0 + f64::EPSILON)];
    let all = (duration(), duration(), factor, any::<u64>(), 0..2_000u32, 0..4u8);
    holds(all, |(base, cap, factor, random, step, jitter)| {
        let jitter = [Jitter::Full, Jitter::None, Jitter::Equal, Jitter::Decorrelated][usize::from(jitter)];
        for schedule in [Schedule::linear(base), Schedule::exponential(base)] {
            let schedule = schedule.cap(cap).factor(factor).jitter(jitter);
            let mut previous = random;
            let delay = schedule.delay(step, base, &mut previous, random);
            prop_assert!(delay.is_some_and(|delay| delay <= time::nanos(cap)));
        }
        Ok(())
    });
}
