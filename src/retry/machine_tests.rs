use super::*;
use crate::{
    backoff::Jitter,
    property::{catches, holds},
};
use proptest::{prelude::*, test_runner::TestCaseError};

const MS: Duration = Duration::from_millis(1);

fn rules() -> Rules {
    Rules {
        schedule: Schedule::exponential(10 * MS).jitter(Jitter::None),
        throttle_base: 1_000 * MS,
        hint_window: 5_000 * MS,
        attempts: 3,
        total_time: None,
        idempotent: false,
    }
}

fn ended(attempt: u32, verdict: Verdict) -> Ended {
    Ended {
        attempt,
        verdict,
        unanswered: false,
        repeatable: true,
        elapsed: Duration::ZERO,
        left: None,
        random: [0, 0],
    }
}

fn decide(rules: &Rules, ended: Ended) -> Decision {
    rules.decide(ended, &mut 0)
}

#[test]
fn what_is_final_is_final_even_if_it_could_be_repeated() {
    assert_eq!(decide(&rules(), ended(1, Verdict::Stop)), Decision::Done);
}

#[test]
fn the_first_attempt_counts_as_one() {
    let again = |attempt| decide(&rules(), ended(attempt, Verdict::Again));
    assert_eq!(again(1), Decision::After(10 * MS));
    assert_eq!(again(2), Decision::After(20 * MS));
    assert_eq!(again(3), Decision::GiveUp(GaveUp::Attempts));
}

#[test]
fn a_sequence_ends_with_its_last_wait() {
    let mut rules = rules();
    rules.schedule = Schedule::sequence([MS]).jitter(Jitter::None);
    assert_eq!(rules.last_attempt(), 2);
    assert_eq!(decide(&rules, ended(1, Verdict::Again)), Decision::After(MS));
    assert_eq!(decide(&rules, ended(2, Verdict::Again)), Decision::GiveUp(GaveUp::Backoff));
}

#[test]
fn what_cannot_be_started_again_is_not() {
    let consumed = Ended { repeatable: false, ..ended(1, Verdict::Again) };
    assert_eq!(decide(&rules(), consumed), Decision::GiveUp(GaveUp::NotRepeatable));
}

#[test]
fn an_attempt_without_an_answer_is_unknown_whatever_the_verdict() {
    for verdict in [Verdict::Again, Verdict::Unknown, Verdict::After(MS), Verdict::Throttled(None)] {
        let hung = Ended { unanswered: true, ..ended(1, verdict) };
        assert_eq!(decide(&rules(), hung), Decision::GiveUp(GaveUp::NotIdempotent));
        let safe = Rules { idempotent: true, ..rules() };
        assert!(matches!(decide(&safe, hung), Decision::After(_)));
    }
}

#[test]
fn at_the_very_deadline_it_is_too_late() {
    let left = |left| decide(&rules(), Ended { left: Some(left), ..ended(1, Verdict::Again) });
    assert_eq!(left(10 * MS), Decision::GiveUp(GaveUp::Deadline));
    assert_eq!(left(10 * MS + Duration::from_nanos(1)), Decision::After(10 * MS));
}

#[test]
fn work_and_wait_together_stay_below_the_total_time() {
    let rules = Rules { total_time: Some(100 * MS), ..rules() };
    let after = |elapsed| decide(&rules, Ended { elapsed, ..ended(1, Verdict::Again) });
    assert_eq!(after(89 * MS), Decision::After(10 * MS));
    assert_eq!(after(90 * MS), Decision::GiveUp(GaveUp::TotalTime));
    assert_eq!(after(Duration::MAX), Decision::GiveUp(GaveUp::TotalTime));
}

#[test]
fn a_bool_is_a_verdict() {
    assert_eq!(Verdict::from(true), Verdict::Again);
    assert_eq!(Verdict::from(false), Verdict::Stop);
}

/// Bugs that the property must notice.
#[derive(Debug, Clone, Copy)]
enum Mutant {
    OneAttemptMore,
    OneAttemptLess,
    TotalCountsSleepOnly,
    TotalAtEquality,
    DeadlineAtEquality,
    RepeatsUnknown,
    TrustsTheVerdictOfAHungAttempt,
    RepeatsWhatIsConsumed,
    HintHasNoLid,
    HintBeforeTheBackoff,
    HintIgnored,
    HintJitterLeavesTheWindow,
    HintJitterGoesDown,
    ThrottleIsLikeAnyFailure,
    StopIsAgain,
}

const MUTANTS: [Mutant; 15] = [
    Mutant::OneAttemptMore,
    Mutant::OneAttemptLess,
    Mutant::TotalCountsSleepOnly,
    Mutant::TotalAtEquality,
    Mutant::DeadlineAtEquality,
    Mutant::RepeatsUnknown,
    Mutant::TrustsTheVerdictOfAHungAttempt,
    Mutant::RepeatsWhatIsConsumed,
    Mutant::HintHasNoLid,
    Mutant::HintBeforeTheBackoff,
    Mutant::HintIgnored,
    Mutant::HintJitterLeavesTheWindow,
    Mutant::HintJitterGoesDown,
    Mutant::ThrottleIsLikeAnyFailure,
    Mutant::StopIsAgain,
];

/// The real thing, or one with a bug.
fn subject(mutant: Option<Mutant>, rules: &Rules, ended: Ended, previous: &mut u64) -> Decision {
    let (mut rules, mut ended) = (rules.clone(), ended);
    let hinted = matches!(ended.verdict, Verdict::After(_) | Verdict::Throttled(Some(_)));
    let nanosecond = Duration::from_nanos(1);
    match mutant {
        Some(Mutant::OneAttemptMore) => rules.attempts += 1,
        Some(Mutant::OneAttemptLess) => rules.attempts -= 1,
        Some(Mutant::TotalCountsSleepOnly) => ended.elapsed = Duration::ZERO,
        Some(Mutant::TotalAtEquality) => {
            rules.total_time = rules.total_time.map(|total| total + nanosecond);
        }
        Some(Mutant::DeadlineAtEquality) => ended.left = ended.left.map(|left| left + nanosecond),
        Some(Mutant::RepeatsUnknown) if ended.verdict == Verdict::Unknown => {
            ended.verdict = Verdict::Again;
        }
        Some(Mutant::TrustsTheVerdictOfAHungAttempt) => ended.unanswered = false,
        Some(Mutant::RepeatsWhatIsConsumed) => ended.repeatable = true,
        Some(Mutant::HintHasNoLid) => rules.hint_window = Duration::MAX,
        Some(Mutant::HintIgnored) => rules.hint_window = Duration::ZERO,
        Some(Mutant::ThrottleIsLikeAnyFailure) => rules.throttle_base = Duration::ZERO,
        Some(Mutant::StopIsAgain) if ended.verdict == Verdict::Stop => {
            ended.verdict = Verdict::Again;
        }
        _ => {}
    }
    let decision = rules.decide(ended, previous);
    match (mutant, decision, ended.verdict) {
        (Some(Mutant::HintBeforeTheBackoff), Decision::After(_), Verdict::After(hint)) => {
            Decision::After(hint)
        }
        (Some(Mutant::HintJitterLeavesTheWindow), Decision::After(delay), _) if hinted => {
            Decision::After(delay + delay / 20)
        }
        (Some(Mutant::HintJitterGoesDown), Decision::After(delay), _) if hinted => {
            Decision::After(delay - delay / 20)
        }
        _ => decision,
    }
}

#[derive(Debug, Clone)]
struct Case {
    rules: Rules,
    ended: Ended,
}

fn cases() -> impl Strategy<Value = Case> {
    // Few different durations, so that equality happens.
    let ms = |max: u32| (0..=max).prop_map(|ms| ms * MS);
    let jitter =
        prop_oneof![Just(Jitter::None), Just(Jitter::Full), Just(Jitter::Equal), Just(Jitter::Decorrelated)];
    let schedule = prop_oneof![
        ms(8).prop_map(Schedule::constant),
        ms(8).prop_map(Schedule::linear),
        prop::collection::vec(ms(8), 1..4).prop_map(Schedule::sequence),
    ];
    let rules = ((schedule, jitter), ms(6), ms(8), 1..6u32, prop::option::of(ms(20)), any::<bool>())
        .prop_map(|((schedule, jitter), throttle_base, hint_window, attempts, total_time, idempotent)| {
            Rules {
                schedule: schedule.jitter(jitter),
                throttle_base,
                hint_window,
                attempts,
                total_time,
                idempotent,
            }
        });
    let verdict = prop_oneof![
        1 => Just(Verdict::Stop),
        2 => Just(Verdict::Again),
        1 => Just(Verdict::Unknown),
        2 => ms(30).prop_map(Verdict::After),
        2 => prop::option::of(ms(30)).prop_map(Verdict::Throttled),
    ];
    let random = || prop_oneof![any::<u64>(), Just(0), Just(u64::MAX)];
    let ended = (
        1..7u32,
        verdict,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.9),
        ms(20),
        prop::option::of(ms(20)),
        [random(), random()],
    )
        .prop_map(|(attempt, verdict, unanswered, repeatable, elapsed, left, random)| Ended {
            attempt,
            verdict,
            unanswered,
            repeatable,
            elapsed,
            left,
            random,
        });
    (rules, ended).prop_map(|(rules, ended)| Case { rules, ended })
}

/// It goes on exactly if nothing forbids it, names something that does if not, and the delay honours the hint.
fn property(mutant: Option<Mutant>, case: &Case) -> Result<(), TestCaseError> {
    let Case { rules, ended } = case;
    let decision = subject(mutant, rules, *ended, &mut 0);
    if ended.verdict == Verdict::Stop {
        prop_assert_eq!(decision, Decision::Done);
        return Ok(());
    }
    let (floor, hint) = match ended.verdict {
        Verdict::After(hint) => (Duration::ZERO, Some(hint)),
        Verdict::Throttled(hint) => (rules.throttle_base, hint),
        _ => (Duration::ZERO, None),
    };
    // What the schedule says is another property's business; here it is taken as given.
    let backoff =
        rules.schedule.delay(ended.attempt - 1, floor, &mut 0, ended.random[0]).map(Duration::from_nanos);
    // The range of delays that are allowed.
    let range = backoff.map(|backoff| match hint {
        None => (backoff, backoff),
        Some(hint) => {
            let lid = backoff + rules.hint_window;
            let from = hint.max(backoff).min(lid);
            let jitter = if rules.schedule.jitter == Jitter::None { Duration::ZERO } else { from / 10 };
            (from, (from + jitter).min(lid))
        }
    });
    let unsafe_to_repeat = (ended.verdict == Verdict::Unknown || ended.unanswered) && !rules.idempotent;
    let past = |delay: Duration| {
        let total = rules.total_time.is_some_and(|total| ended.elapsed + delay >= total);
        (total, ended.left.is_some_and(|left| delay >= left))
    };
    match decision {
        Decision::Done => return Err(TestCaseError::fail("done, but it should be repeated")),
        Decision::After(delay) => {
            prop_assert!(!unsafe_to_repeat && ended.repeatable);
            prop_assert!(ended.attempt < rules.attempts);
            let Some((from, to)) = range else {
                return Err(TestCaseError::fail("the sequence has ended"));
            };
            prop_assert!(from <= delay && delay <= to, "{:?} not in {:?}..={:?}", delay, from, to);
            prop_assert_eq!(past(delay), (false, false));
        }
        Decision::GiveUp(why) => {
            let justified = match why {
                GaveUp::NotIdempotent => unsafe_to_repeat,
                GaveUp::Attempts => ended.attempt >= rules.attempts,
                GaveUp::NotRepeatable => !ended.repeatable,
                GaveUp::Backoff => backoff.is_none(),
                GaveUp::TotalTime => range.is_some_and(|(_, to)| past(to).0),
                GaveUp::Deadline => range.is_some_and(|(_, to)| past(to).1),
                GaveUp::Budget => false,
            };
            prop_assert!(justified, "{:?} is not so", why);
        }
    }
    Ok(())
}

#[test]
fn it_goes_on_exactly_if_nothing_forbids_it() {
    holds(cases(), |case| property(None, &case));
}

#[test]
fn planted_bugs_in_the_decision_are_noticed() {
    catches(&MUTANTS, cases, |mutant, case| property(Some(mutant), &case));
}
