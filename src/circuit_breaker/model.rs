//! The windows and the breaker against naive models that keep every event and recompute everything from them.
//!
//! Each suite has twins of its model with one rule changed; a suite that does not tell a twin from the breaker would not
//! find that fault in the breaker either.

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*, sample::Index};

use super::{
    CircuitBreaker, Class, Config, Mode, State, Totals, Verdict,
    core::Core,
    machine::{InFlight, Rules},
    window::{Mark, Shape, Sums, Window},
};
use crate::{
    event::Identity,
    property::{catches, holds},
};

// === windows

#[derive(Debug, Clone)]
enum Put {
    Good(u64),
    One(bool, bool),
    Advance(u64),
    /// A good call that is told of late, so many buckets ago.
    Behind(u64),
    AlsoFailed(Index),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum WindowMutant {
    None,
    OneLonger,
    OneShorter,
    SurvivesAGap,
    CountsExpired,
    FailsTwice,
    SlowIsFailed,
}

fn puts() -> impl Strategy<Value = Vec<Put>> {
    vec(
        prop_oneof![
            3 => (0..6u64).prop_map(Put::Good),
            4 => any::<(bool, bool)>().prop_map(|(failed, slow)| Put::One(failed, slow)),
            2 => prop_oneof![4 => 0..3u64, 1 => 3..12u64, 1 => 1_000..2_000u64].prop_map(Put::Advance),
            1 => (0..6u64).prop_map(Put::Behind),
            2 => any::<Index>().prop_map(Put::AlsoFailed),
        ],
        0..60,
    )
}

fn shapes() -> impl Strategy<Value = Shape> {
    prop_oneof![
        (1..12u64).prop_map(Shape::Count),
        (1..6u64).prop_map(|buckets| Shape::Time { width: 1, buckets }),
    ]
}

/// Every call: its bucket, and whether it failed and was slow.
fn window_agrees(shape: Shape, puts: Vec<Put>, mutant: WindowMutant) -> Result<(), TestCaseError> {
    use WindowMutant::*;
    let mut window = Window::new(shape, 0, 0);
    let mut all: Vec<(u64, bool, bool)> = Vec::new();
    let mut slow_ones: Vec<Mark> = Vec::new();
    let (mut now, mut last) = (0, 0);
    for put in puts {
        let mut good = |all: &mut Vec<_>, n: u64, epoch: u64| {
            all.extend((0..n).map(|_| (epoch, false, false)));
            let seq = all.len() as u64;
            window.good(Mark { seq, epoch }, n);
        };
        match put {
            Put::Good(n) => good(&mut all, n, now),
            // A count window knows no buckets.
            Put::Behind(by) => good(&mut all, 1, now.saturating_sub(by)),
            Put::One(failed, slow) => {
                all.push((now, failed || (slow && mutant == SlowIsFailed), slow));
                let mark = Mark { seq: all.len() as u64, epoch: now };
                window.one(mark, failed, slow);
                if slow && !failed {
                    slow_ones.push(mark);
                }
            }
            Put::Advance(by) => {
                now += by;
                window.advance(now);
            }
            Put::AlsoFailed(_) if slow_ones.is_empty() => {}
            Put::AlsoFailed(which) => {
                let mark = slow_ones.swap_remove(which.index(slow_ones.len()));
                window.also_failed(mark);
                all[mark.seq as usize - 1].1 = true;
                if mutant == FailsTwice {
                    all.push((now, true, false));
                }
            }
        }
        let off = |size: u64| match mutant {
            OneLonger => size + 1,
            OneShorter => size - 1,
            _ => size,
        };
        let inside: Vec<_> = match shape {
            Shape::Count(size) => {
                let skip = all.len().saturating_sub(off(size) as usize);
                all.iter().skip(skip).collect()
            }
            Shape::Time { buckets, .. } => {
                let oldest = match mutant {
                    SurvivesAGap if now - last > buckets => 0,
                    CountsExpired => 0,
                    _ => (now + 1).saturating_sub(off(buckets)),
                };
                all.iter().filter(|call| call.0 >= oldest).collect()
            }
        };
        last = now;
        let expected = Sums {
            calls: inside.len() as u64,
            failed: inside.iter().filter(|call| call.1).count() as u64,
            slow: inside.iter().filter(|call| call.2).count() as u64,
        };
        prop_assert_eq!(window.sums(), expected);
        match (&window, shape) {
            (Window::Count(count), Shape::Count(size)) => {
                prop_assert!(count.remembered() as u64 <= size, "memory grows");
            }
            (Window::Time(time), Shape::Time { buckets, .. }) => {
                prop_assert_eq!(time.remembered() as u64, buckets, "memory grows");
            }
            _ => prop_assert!(false, "another kind of window"),
        }
    }
    Ok(())
}

#[test]
fn windows_agree_with_a_list_of_all_calls() {
    holds((shapes(), puts()), |(shape, puts)| window_agrees(shape, puts, WindowMutant::None));
}

#[test]
fn the_window_suite_catches_every_twin() {
    use WindowMutant::*;
    let mutants = [OneLonger, OneShorter, SurvivesAGap, CountsExpired, FailsTwice, SlowIsFailed];
    catches(&mutants, || (shapes(), puts()), |mutant, (shape, puts)| window_agrees(shape, puts, mutant));
}

// === the breaker

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mutant {
    None,
    GreaterInsteadOfAtLeast,
    MinimumIgnored,
    LateCounts,
    LateProbeCounts,
    CancelledProbeCloses,
    CancelledProbeKeepsItsPlace,
    LapsedProbeIsNotHeard,
    LapsedProbeIsHeardWhole,
    LeaseNeverEnds,
    OneProbeTooMany,
    WindowSurvivesClosing,
    WaitNeverGrows,
    WaitResetsWhenHalfOpen,
    SuccessNeverTrips,
    SuccessLeavesTheRun,
    SuccessLeavesTheRow,
    RowKnowsNoTime,
    RowEndsAtItsTime,
    RowCountsFromItsFirst,
    RampSkipsAStep,
    RampAdmitsAll,
    ObservedCallsCount,
    ForcedClosedTrips,
    DisabledCounts,
    SlowEndsTwice,
    SlowProbesAreLost,
    OldRulesStay,
    ChangeForgets,
    ChangeMakesCallsLate,
    ChangeEndsTheRun,
    JudgedProbesStay,
    MarkCarriesTheWindow,
    BucketsMoveToTheirBeginning,
    LongerWindowRemembersMore,
    MoreFailuresAreRemembered,
    LongerRowRemembersMore,
}

const MUTANTS: [Mutant; 36] = {
    use Mutant::*;
    [
        GreaterInsteadOfAtLeast,
        MinimumIgnored,
        LateCounts,
        LateProbeCounts,
        CancelledProbeCloses,
        CancelledProbeKeepsItsPlace,
        LapsedProbeIsNotHeard,
        LapsedProbeIsHeardWhole,
        LeaseNeverEnds,
        OneProbeTooMany,
        WindowSurvivesClosing,
        WaitNeverGrows,
        WaitResetsWhenHalfOpen,
        SuccessNeverTrips,
        SuccessLeavesTheRun,
        SuccessLeavesTheRow,
        RowKnowsNoTime,
        RowEndsAtItsTime,
        RowCountsFromItsFirst,
        RampSkipsAStep,
        RampAdmitsAll,
        ObservedCallsCount,
        ForcedClosedTrips,
        DisabledCounts,
        SlowEndsTwice,
        SlowProbesAreLost,
        OldRulesStay,
        ChangeForgets,
        ChangeMakesCallsLate,
        ChangeEndsTheRun,
        JudgedProbesStay,
        MarkCarriesTheWindow,
        BucketsMoveToTheirBeginning,
        LongerWindowRemembersMore,
        MoreFailuresAreRemembered,
        LongerRowRemembersMore,
    ]
};

#[derive(Debug, Clone)]
enum Step {
    /// A call begins on one of the threads.
    Begin(usize),
    /// A call ends on one of the threads.
    End(usize, Index, Class),
    /// A call begins and ends.
    Whole(usize, Class),
    /// Many good calls, one after the other.
    Good(usize, u32),
    /// A call in flight looks at the clock.
    Look(usize, Index),
    Advance(Duration),
    Mode(Mode),
    Reset,
    /// Other rules.
    Reconfigure(Box<Config>),
    Check,
}

const MS: Duration = Duration::from_millis(1);
const THREADS: usize = 3;

fn classes() -> impl Strategy<Value = Class> {
    prop_oneof![
        6 => Just(Class::Success),
        6 => Just(Class::Failure),
        2 => Just(Class::Ignored),
        1 => (1..400u32).prop_map(|ms| Class::OpenFor(MS * ms)),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let thread = || prop_oneof![4 => Just(0), 1 => 0..THREADS];
    let step = prop_oneof![
        6 => thread().prop_map(Step::Begin),
        8 => (thread(), any::<Index>(), classes()).prop_map(|(on, which, class)| Step::End(on, which, class)),
        14 => (thread(), classes()).prop_map(|(on, class)| Step::Whole(on, class)),
        4 => (thread(), 1..12u32).prop_map(|(on, n)| Step::Good(on, n)),
        2 => (thread(), any::<Index>()).prop_map(|(on, which)| Step::Look(on, which)),
        8 => prop_oneof![
            2 => 1..30u32, 2 => 30..250u32, 1 => 250..3_000u32
        ].prop_map(|ms| Step::Advance(MS * ms)),
        1 => prop_oneof![
            4 => Just(Mode::Normal), 1 => Just(Mode::ObserveOnly), 1 => Just(Mode::ForcedOpen),
            1 => Just(Mode::ForcedClosed), 1 => Just(Mode::Disabled),
        ].prop_map(Step::Mode),
        1 => Just(Step::Reset),
        2 => configs().prop_map(|config| Step::Reconfigure(Box::new(config))),
        2 => Just(Step::Check),
    ];
    // Chance alone seldom changes the rules between the discovery that a call is slow and its failure.
    let slow_meanwhile = (any::<Index>(), 50..400u32, configs()).prop_map(|(which, ms, config)| {
        vec![
            Step::Begin(0),
            Step::Advance(MS * ms),
            Step::Look(0, which),
            Step::Reconfigure(Box::new(config)),
            Step::End(0, which, Class::Failure),
        ]
    });
    let scene = prop_oneof![40 => step.prop_map(|step| vec![step]), 1 => slow_meanwhile];
    vec(scene, 0..32).prop_map(|scenes| scenes.concat())
}

fn configs() -> impl Strategy<Value = Config> {
    let window = prop_oneof![
        (1..12u32).prop_map(|calls| CircuitBreaker::config().count_window(calls)),
        (1..5u32).prop_map(|buckets| CircuitBreaker::config().time_window(MS * 400, buckets)),
    ];
    let rates = prop_oneof![Just(None), (1..=10u8).prop_map(|tenths| Some(f64::from(tenths) / 10.0))];
    let rules = (
        window,
        1..8u32,
        rates,
        proptest::option::of((1..=10u8).prop_map(|tenths| f64::from(tenths) / 10.0)),
        proptest::option::of(1..4u32),
        proptest::option::of((1..5u32, 1..8u32)),
        proptest::option::of((1..4u32, 0..4u32)),
    );
    let recovery = (
        1..4u32,
        proptest::option::of((1..=10u8).prop_map(|tenths| f64::from(tenths) / 10.0)),
        proptest::option::of(1..4u32),
        any::<u64>(),
    );
    (rules, recovery).prop_map(
        |((config, minimum, failed, slow, in_a_row, within, of_last), (probes, verdict, ramp, seed))| {
            let mut config = config
                .failure_rate(failed)
                .open_wait(MS * 100, 2.0, MS * 500)
                .open_for_max(MS * 300)
                .probes(probes)
                .probe_timeout(MS * 400)
                .immediate_close()
                .seed(seed);
            // A minimum above a count window is refused; then its own default holds.
            if config.clone().minimum_calls(minimum).rules().is_ok() {
                config = config.minimum_calls(minimum);
            }
            if let Some(rate) = slow {
                config = config.slow_rate(rate, MS * 50);
            }
            if let Some(most) = in_a_row {
                config = config.consecutive_failures(most);
            }
            if let Some((failures, ms)) = within {
                config = config.consecutive_failures_within(failures, MS * 20 * ms);
            }
            if let Some((failures, more)) = of_last {
                config = config.failures_of_last(failures, failures + more);
            }
            if let Some(rate) = verdict {
                config = config.probe_verdict(Verdict::Rate(rate));
            }
            if let Some(results) = ramp {
                config = config.ramp(results);
            }
            config
        },
    )
}

/// A call in flight: what the breaker and what the model know of it.
#[derive(Debug, Clone)]
struct Flying {
    ticket: u64,
    started: Option<Instant>,
    mark: Option<Mark>,
    heard: bool,
    model: Token,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Token {
    /// The number of the state it was admitted in; `None` if nobody listens.
    round: Option<u64>,
    probe: u64,
    /// `None` if slow calls were of no interest then.
    started: Option<Duration>,
    /// Its number and the bucket that it was counted in, once it was found slow in flight.
    slow: Option<(u64, u64)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Closed,
    Open(Duration),
    HalfOpen { given: Vec<(u64, Duration)>, results: Vec<bool> },
    Recovering { share: f64, results: Vec<(bool, bool)>, credit: f64, last: Duration },
}

/// A call that has ended, or was found slow in flight.
#[derive(Debug, Clone, Copy)]
struct Seen {
    number: u64,
    /// When that was, or the latest that it can have been if the window had other buckets then.
    at: Duration,
    failed: bool,
    slow: bool,
    /// Not a call, but the failure of one that a time window has counted as slow.
    belated: bool,
}

/// Keeps everything since the breaker was last empty. A change of the rules keeps
///
/// * the calls that were in the window, in the order in which they ended; of calls from a count window, a time window takes
///   it that they ended just now; of calls from a time window, a count window takes it that the failed ones came last;
/// * as many failures as the rule "n of the last m" has asked for;
/// * as many times of the present row of failures as the rule "n in a row within a while" has asked for;
/// * the run of failures, the state, its end, who is in flight, the ramp's results, and how often it has opened;
/// * the results of probes, but for the last that the new rules ask for; good ones go first.
///
/// A call that was found slow before and fails afterwards has failed in the bucket of the same number, or the present one
/// if there is none of that number yet; in a count window, if its number is that of a bad call.
struct Model {
    rules: Rules,
    mutant: Mutant,
    mode: Mode,
    phase: Phase,
    round: u64,
    probe: u64,
    now: Duration,
    calls: Vec<Seen>,
    /// How many calls were counted in all.
    numbers: u64,
    /// The numbers of those that failed.
    failures: BTreeSet<u64>,
    /// How far a mark has carried the window, which none may.
    carried: u64,
    /// Whether each call that ended failed, in the order of their ends.
    ends: Vec<bool>,
    /// When the failures of the present row ended.
    row: Vec<Duration>,
    openings: i32,
    totals: Totals,
    /// The wait that the breaker must have drawn from this range.
    drawn: Option<(Duration, Duration)>,
}

impl Model {
    fn new(rules: Rules, mutant: Mutant) -> Self {
        Model {
            rules,
            mutant,
            mode: Mode::Normal,
            phase: Phase::Closed,
            round: 0,
            probe: 0,
            now: Duration::ZERO,
            calls: Vec::new(),
            numbers: 0,
            failures: BTreeSet::new(),
            carried: 0,
            ends: Vec::new(),
            row: Vec::new(),
            openings: 0,
            totals: Totals::default(),
            drawn: None,
        }
    }

    fn decides(&self) -> bool {
        matches!(self.mode, Mode::Normal | Mode::ObserveOnly)
    }

    fn state(&self) -> State {
        match (self.mode, &self.phase) {
            (Mode::ForcedOpen, _) => State::ForcedOpen,
            (Mode::ForcedClosed, _) => State::ForcedClosed,
            (Mode::Disabled, _) => State::Disabled,
            (_, Phase::Closed) => State::Closed,
            (_, Phase::Open(until)) if self.now < *until => State::Open,
            (_, Phase::Open(_) | Phase::HalfOpen { .. }) => State::HalfOpen,
            (_, Phase::Recovering { .. }) => State::Recovering,
        }
    }

    fn inside(&self) -> Vec<Seen> {
        match self.rules.shape {
            Shape::Count(size) => {
                let skip = self.calls.len().saturating_sub(size as usize);
                self.calls[skip..].to_vec()
            }
            Shape::Time { buckets, .. } => {
                let now = self.bucket(self.now).max(self.carried);
                self.calls.iter().filter(|call| self.bucket(call.at) + buckets > now).copied().collect()
            }
        }
    }

    fn bucket(&self, at: Duration) -> u64 {
        self.rules.shape.epoch(at.as_nanos() as u64)
    }

    /// The call that was found slow has failed as well.
    fn fails_too(&mut self, (number, bucket): (u64, u64)) {
        match self.rules.shape {
            Shape::Count(_) => {
                let known = self.calls.iter_mut().find(|call| call.number == number);
                if let Some(call) = known.filter(|call| call.failed || call.slow) {
                    call.failed = true;
                }
            }
            Shape::Time { width, .. } => {
                let present = self.bucket(self.now);
                if self.mutant == Mutant::MarkCarriesTheWindow {
                    self.carried = self.carried.max(bucket);
                }
                let at = Duration::from_nanos(bucket.min(present) * width);
                self.calls.push(Seen { number, at, failed: true, slow: false, belated: true });
            }
        }
    }

    fn reconfigure(&mut self, rules: Rules) {
        if self.mutant == Mutant::OldRulesStay {
            return;
        }
        if rules.shape != self.rules.shape {
            self.keep_calls(rules.shape);
        }
        let kept = |rules: &Rules| rules.of_last.map_or(0, |(failures, _)| failures as usize);
        let most = match self.mutant {
            Mutant::MoreFailuresAreRemembered => usize::MAX,
            _ => kept(&self.rules).min(kept(&rules)),
        };
        while self.failures.len() > most {
            self.failures.pop_first();
        }
        let kept = |rules: &Rules| rules.within.map_or(0, |(failures, _)| failures as usize);
        let most = match self.mutant {
            Mutant::LongerRowRemembersMore => usize::MAX,
            _ => kept(&self.rules).min(kept(&rules)),
        };
        self.row.drain(..self.row.len().saturating_sub(most));
        if let Phase::HalfOpen { results, .. } = &mut self.phase {
            let most = rules.probes as usize - 1;
            if results.len() > most && self.mutant != Mutant::JudgedProbesStay {
                // The bad ones first, which stay.
                results.sort_by_key(|bad| !bad);
                results.truncate(most);
            }
        }
        match self.mutant {
            Mutant::ChangeForgets => self.forget(),
            Mutant::ChangeMakesCallsLate => self.round += 1,
            Mutant::ChangeEndsTheRun => {
                self.ends.clear();
                self.row.clear();
            }
            _ => {}
        }
        self.rules = rules;
    }

    fn keep_calls(&mut self, shape: Shape) {
        let mut inside = match self.mutant {
            Mutant::LongerWindowRemembersMore => self.calls.clone(),
            _ => self.inside(),
        };
        match (self.rules.shape, shape) {
            (Shape::Count(_), Shape::Count(_)) => {}
            (Shape::Count(_), Shape::Time { .. }) => inside.iter_mut().for_each(|call| call.at = self.now),
            (Shape::Time { width, .. }, Shape::Time { .. }) => {
                for call in &mut inside {
                    let beginning = self.bucket(call.at) * width;
                    let end = match self.mutant {
                        Mutant::BucketsMoveToTheirBeginning => beginning,
                        _ => beginning + width - 1,
                    };
                    call.at = Duration::from_nanos(end).min(self.now);
                }
            }
            (Shape::Time { .. }, Shape::Count(size)) => {
                let calls = inside.iter().filter(|call| !call.belated).count().min(size as usize);
                let failed = inside.iter().filter(|call| call.failed).count();
                let slow = inside.iter().filter(|call| call.slow).count();
                let number = |back: usize| self.numbers - back as u64;
                inside = (0..calls)
                    .rev()
                    .map(|back| Seen {
                        number: number(back),
                        at: self.now,
                        failed: back < failed,
                        slow: back < slow,
                        belated: false,
                    })
                    .collect();
            }
        }
        self.calls = inside;
        self.carried = 0;
    }

    fn go(&mut self, phase: Phase) {
        self.phase = phase;
        self.round += 1;
    }

    fn forget(&mut self) {
        self.calls.clear();
        self.failures.clear();
        self.carried = 0;
        self.ends.clear();
        self.row.clear();
    }

    fn open(&mut self) {
        let growth = match self.mutant {
            Mutant::WaitNeverGrows => 1.0,
            _ => self.rules.wait_growth.powi(self.openings),
        };
        let longest = self.rules.wait.mul_f64(growth).min(self.rules.wait_max);
        self.drawn = Some((longest.mul_f64(1.0 - self.rules.wait_jitter), longest));
        self.openings += 1;
        // Until the breaker says what it has drawn.
        self.go(Phase::Open(self.now + longest));
    }

    fn recovered(&mut self) {
        self.openings = 0;
        self.go(Phase::Closed);
        if self.mutant != Mutant::WindowSurvivesClosing {
            self.forget();
        }
    }

    fn begin(&mut self) -> Option<Token> {
        let started = self.rules.slow_after.map(|_| self.now);
        let token = |round, probe| Token { round, probe, started, slow: None };
        match self.mode {
            Mode::Disabled if self.mutant == Mutant::DisabledCounts => {
                return Some(token(Some(self.round), 0));
            }
            Mode::Disabled => return Some(token(None, 0)),
            Mode::ForcedOpen => {
                self.totals.refused += 1;
                return None;
            }
            _ => {}
        }
        if let Phase::Open(until) = self.phase {
            if self.now >= until {
                if self.mutant == Mutant::WaitResetsWhenHalfOpen {
                    self.openings = 0;
                }
                self.go(Phase::HalfOpen { given: Vec::new(), results: Vec::new() });
            }
        }
        let now = self.now;
        let extra = usize::from(self.mutant == Mutant::OneProbeTooMany);
        let all = self.mutant == Mutant::RampAdmitsAll;
        let endless = self.mutant == Mutant::LeaseNeverEnds;
        let admitted = match &mut self.phase {
            Phase::Closed => true,
            Phase::Open(_) => false,
            Phase::HalfOpen { given, results } => {
                given.retain(|lease| endless || now < lease.1);
                let free = given.len() + results.len() < self.rules.probes as usize + extra;
                if free {
                    self.probe += 1;
                    given.push((self.probe, now + self.rules.probe_timeout));
                }
                free
            }
            Phase::Recovering { share, credit, last, .. } => {
                *credit = (*credit + *share).min(1.0);
                let admitted = *credit >= 1.0 || now - *last >= MS * 100 || all;
                if admitted {
                    *credit = (*credit - 1.0).max(0.0);
                    *last = now;
                }
                admitted
            }
        };
        if admitted {
            return Some(Token { round: Some(self.round), probe: self.probe, started, slow: None });
        }
        self.totals.refused += 1;
        (self.mode == Mode::ObserveOnly).then(|| Token {
            round: (self.mutant == Mutant::ObservedCallsCount).then_some(self.round),
            probe: self.probe,
            started,
            slow: None,
        })
    }

    fn end(&mut self, token: Token, class: Class, in_flight: bool) -> Option<(u64, u64)> {
        token.round?;
        let mutant = self.mutant;
        let good =
            class == Class::Success && !self.is_slow(token) || mutant == Mutant::LapsedProbeIsHeardWhole;
        let lapsed = good && mutant != Mutant::LapsedProbeIsNotHeard;
        let current = match (&mut self.phase, self.mode) {
            (_, Mode::ForcedOpen) | (Phase::Open(_), _) => false,
            (_, Mode::Disabled) => mutant == Mutant::DisabledCounts,
            (Phase::HalfOpen { given, .. }, _) => {
                let at = given
                    .iter()
                    .position(|lease| lease.0 == token.probe || (mutant == Mutant::LateProbeCounts));
                let keep = mutant == Mutant::CancelledProbeKeepsItsPlace && class == Class::Ignored;
                if let Some(at) = at.filter(|_| token.round == Some(self.round) && !keep) {
                    given.remove(at);
                }
                (at.is_some() || lapsed) && token.round == Some(self.round)
            }
            (Phase::Closed | Phase::Recovering { .. }, _) => {
                token.round == Some(self.round) || mutant == Mutant::LateCounts
            }
        };
        if !current {
            self.totals.late += 1;
            return None;
        }
        let failed = match class {
            Class::Ignored => {
                self.totals.neutral += 1;
                if mutant == Mutant::CancelledProbeCloses && self.state() == State::HalfOpen {
                    self.recovered();
                }
                return None;
            }
            Class::Success => {
                self.totals.succeeded += u64::from(!in_flight);
                false
            }
            Class::Failure | Class::OpenFor(_) => {
                self.totals.failed += 1;
                true
            }
        };
        let slow = self.is_slow(token);
        let known = token.slow.filter(|_| mutant != Mutant::SlowEndsTwice);
        if known.is_none() {
            self.totals.slow += u64::from(slow);
        }
        let mut mark = known;
        if self.phase == Phase::Closed {
            if known.is_none() {
                self.numbers += 1;
                self.calls.push(Seen { number: self.numbers, at: self.now, failed, slow, belated: false });
                mark = Some((self.numbers, self.bucket(self.now)));
            }
            if let (Some(known), true) = (known, failed) {
                self.fails_too(known);
            }
            if let (Some((number, _)), true) = (mark, failed) {
                self.failures.insert(number);
            }
            if !in_flight && (failed || mutant != Mutant::SuccessLeavesTheRun) {
                self.ends.push(failed);
                match failed {
                    true => self.row.push(self.now),
                    false if mutant == Mutant::SuccessLeavesTheRow => {}
                    false => self.row.clear(),
                }
            }
        } else if in_flight && mutant != Mutant::SlowProbesAreLost {
            // How it ends is not heard.
            self.totals.late += 1;
        }
        if let Class::OpenFor(wait) = class {
            if self.mode != Mode::ForcedClosed {
                self.go(Phase::Open(self.now + wait.min(self.rules.hint_max)));
                return None;
            }
        }
        self.judge(failed, slow);
        mark.filter(|_| in_flight)
    }

    fn is_slow(&self, token: Token) -> bool {
        let lasted = token.started.map(|started| self.now - started);
        lasted.zip(self.rules.slow_after).is_some_and(|(lasted, after)| lasted >= after)
    }

    fn judge(&mut self, failed: bool, slow: bool) {
        let rules = self.rules.clone();
        match &mut self.phase {
            Phase::Open(_) => {}
            Phase::Closed => {
                let shielded = self.mode == Mode::ForcedClosed && self.mutant != Mutant::ForcedClosedTrips;
                let passed_over = self.mutant == Mutant::SuccessNeverTrips && !failed && !slow;
                if !shielded && !passed_over && self.is_bad() {
                    self.open();
                }
            }
            Phase::HalfOpen { results, .. } => {
                results.push(failed || slow);
                let bad = results.iter().filter(|bad| **bad).count();
                let all = results.len() >= rules.probes as usize;
                let opens = match rules.verdict {
                    Verdict::FirstFailure => bad > 0,
                    Verdict::Rate(rate) => bad as f64 / f64::from(rules.probes) >= rate,
                };
                match (opens, all, rules.ramp) {
                    (true, _, _) => self.open(),
                    (false, false, _) => {}
                    (false, true, None) => self.recovered(),
                    (false, true, Some(_)) => self.go(Phase::Recovering {
                        share: 0.125,
                        results: Vec::new(),
                        credit: 1.0,
                        last: self.now,
                    }),
                }
            }
            Phase::Recovering { share, results, .. } => {
                results.push((failed, slow));
                let needed = f64::from(rules.ramp.unwrap_or(1));
                let of = |which: fn(&(bool, bool)) -> bool| {
                    results.iter().filter(|result| which(result)).count() as f64
                };
                let (failures, slows) = (of(|result| result.0), of(|result| result.1));
                let by_failures = failures > 0.0 && failures / needed >= rules.failure_rate.unwrap_or(0.5);
                let by_slows = slows > 0.0 && rules.slow_rate.is_some_and(|rate| slows / needed >= rate);
                if by_failures || by_slows {
                    self.open();
                } else if results.len() as f64 >= needed {
                    results.clear();
                    *share *= match self.mutant {
                        Mutant::RampSkipsAStep => 4.0,
                        _ => 2.0,
                    };
                    if *share >= 1.0 {
                        self.recovered();
                    }
                }
            }
        }
    }

    fn in_a_row(&self) -> usize {
        self.ends.iter().rev().take_while(|failed| **failed).count()
    }

    /// The failures of the present row that the rule for rows within a while counts.
    fn within(&self) -> usize {
        let Some((most, time)) = self.rules.within else { return 0 };
        let young = |at: &&Duration| match self.mutant {
            Mutant::RowKnowsNoTime => true,
            Mutant::RowEndsAtItsTime => self.now - **at < time,
            Mutant::RowCountsFromItsFirst => self.now - self.row[0] <= time,
            _ => self.now - **at <= time,
        };
        self.row.iter().filter(young).count().min(most as usize)
    }

    fn is_bad(&self) -> bool {
        let inside = self.inside();
        let calls = inside.iter().filter(|call| !call.belated).count();
        let met = |rate: Option<f64>, which: fn(&Seen) -> bool| {
            let bad = inside.iter().filter(|call| which(call)).count() as f64;
            let share = bad / calls as f64;
            rate.is_some_and(|rate| match self.mutant {
                Mutant::GreaterInsteadOfAtLeast => share > rate,
                _ => share >= rate,
            })
        };
        let enough = calls as u64 >= self.rules.minimum || self.mutant == Mutant::MinimumIgnored;
        let by_rate = enough
            && (met(self.rules.failure_rate, |call| call.failed)
                || met(self.rules.slow_rate, |call| call.slow));
        let of_last = self.rules.of_last.is_some_and(|(failures, calls)| {
            let recent = self.failures.iter().filter(|number| **number + u64::from(calls) > self.numbers);
            recent.count() >= failures as usize
        });
        let in_a_row = self.rules.consecutive.is_some_and(|most| self.in_a_row() >= most as usize);
        let within = self.rules.within.is_some_and(|(most, _)| self.within() >= most as usize);
        by_rate || of_last || in_a_row || within
    }

    fn set_mode(&mut self, mode: Mode) {
        if mode == self.mode {
            return;
        }
        let before = self.decides();
        let forgets = matches!(self.mode, Mode::ForcedOpen | Mode::Disabled);
        self.mode = mode;
        if before && self.decides() {
            return;
        }
        if forgets {
            self.forget();
        }
        self.openings = 0;
        self.go(Phase::Closed);
    }
}

/// Threads that do what they are told, one at a time: each counts in its own slot.
struct Crew {
    doors: Vec<mpsc::Sender<Job>>,
    done: mpsc::Receiver<()>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Crew {
    fn new() -> Self {
        let (report, done) = mpsc::channel();
        let doors = (1..THREADS)
            .map(|_| {
                let (door, jobs) = mpsc::channel::<Job>();
                let report = report.clone();
                thread::spawn(move || {
                    for job in jobs {
                        job();
                        if report.send(()).is_err() {
                            break;
                        }
                    }
                });
                door
            })
            .collect();
        Crew { doors, done }
    }

    fn run<T: Send + 'static>(&self, on: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
        if on == 0 {
            return work();
        }
        let (result, answer) = mpsc::channel();
        let job = Box::new(move || drop(result.send(work())));
        self.doors[on - 1].send(job).unwrap();
        self.done.recv().unwrap();
        answer.recv().unwrap()
    }
}

fn breaker_agrees(
    crew: &Crew,
    config: &Config,
    steps: Vec<Step>,
    mutant: Mutant,
) -> Result<(), TestCaseError> {
    let base = Instant::now();
    let rules = config.rules().unwrap();
    let seed = config.seed_value();
    let id = Identity::new("model");
    let core = Arc::new(Core::new(rules.clone(), seed, false, None, id, base));
    let mut model = Model::new(rules, mutant);
    let mut flying: Vec<Flying> = Vec::new();

    let begin = |on: usize, model: &mut Model| -> Result<Option<Flying>, TestCaseError> {
        let at = base + model.now;
        let shared = core.clone();
        let ticket = crew.run(on, move || shared.acquire(|| at).ok());
        let token = model.begin();
        prop_assert_eq!(ticket.is_some(), token.is_some(), "admission in {:?}", model.phase);
        Ok(ticket.zip(token).map(|(ticket, model)| Flying {
            ticket,
            started: core.slow_after().map(|_| at),
            mark: None,
            heard: true,
            model,
        }))
    };
    let end = |on: usize, call: Flying, class: Class, model: &mut Model| {
        let at = base + model.now;
        let shared = core.clone();
        crew.run(on, move || match call.mark {
            _ if !call.heard => {}
            Some(mark) => shared.settle_slow(call.ticket, mark, class, at),
            None => shared.settle(call.ticket, class, call.started, || at),
        });
        if call.heard {
            model.end(call.model, class, false);
        }
    };
    for step in steps {
        match step {
            Step::Begin(on) => flying.extend(begin(on, &mut model)?),
            Step::End(..) | Step::Look(..) if flying.is_empty() => {}
            Step::End(on, which, class) => {
                let call = flying.swap_remove(which.index(flying.len()));
                end(on, call, class, &mut model);
            }
            Step::Whole(on, class) => {
                if let Some(call) = begin(on, &mut model)? {
                    end(on, call, class, &mut model);
                }
            }
            Step::Good(on, n) => {
                for _ in 0..n {
                    if let Some(call) = begin(on, &mut model)? {
                        end(on, call, Class::Success, &mut model);
                    }
                    adopt(&core, &mut model, base)?;
                }
            }
            Step::Look(on, which) => {
                let at = which.index(flying.len());
                let call = &mut flying[at];
                prop_assert_eq!(core.slow_after(), model.rules.slow_after);
                if model.is_slow(call.model) && call.mark.is_none() && call.heard {
                    let (shared, ticket, now) = (core.clone(), call.ticket, base + model.now);
                    match crew.run(on, move || shared.slow_in_flight(ticket, now)) {
                        InFlight::Unknown => prop_assert!(false, "there is a threshold"),
                        InFlight::Counted(mark) => call.mark = Some(mark),
                        InFlight::Settled => call.heard = false,
                    }
                    let known = model.end(call.model, Class::Success, true);
                    call.model.slow = known;
                }
            }
            Step::Advance(by) => model.now += by,
            Step::Mode(mode) => {
                core.set_mode(mode, base + model.now);
                model.set_mode(mode);
            }
            Step::Reset => {
                core.reset(base + model.now);
                model.forget();
                model.openings = 0;
                model.go(Phase::Closed);
            }
            Step::Reconfigure(config) => {
                let rules = config.rules().unwrap();
                core.reconfigure(rules.clone(), false, base + model.now);
                model.reconfigure(rules);
            }
            Step::Check => numbers_agree(&core, &model, base)?,
        }
        adopt(&core, &mut model, base)?;
    }
    numbers_agree(&core, &model, base)
}

/// What the breaker says of itself is what the model has counted.
fn numbers_agree(core: &Core, model: &Model, base: Instant) -> Result<(), TestCaseError> {
    let snapshot = core.snapshot(base + model.now);
    prop_assert_eq!(snapshot.totals, model.totals);
    let inside = model.inside();
    let counts = snapshot.counts;
    prop_assert_eq!(counts.calls, inside.iter().filter(|call| !call.belated).count() as u64);
    prop_assert_eq!(counts.failures, inside.iter().filter(|call| call.failed).count() as u64);
    prop_assert_eq!(counts.slow, inside.iter().filter(|call| call.slow).count() as u64);
    prop_assert_eq!(counts.consecutive_failures, model.in_a_row() as u64);
    prop_assert_eq!(counts.consecutive_failures_within, model.within() as u64);
    if let (Phase::Recovering { share, .. }, true) = (&model.phase, model.decides()) {
        prop_assert_eq!(snapshot.share, *share);
    }
    Ok(())
}

/// The states agree; a wait that was drawn lies where it may, and is the model's from now on.
fn adopt(core: &Core, model: &mut Model, base: Instant) -> Result<(), TestCaseError> {
    let now = base + model.now;
    if let Some((shortest, longest)) = model.drawn.take() {
        if model.decides() {
            let until = core.retry_at(now);
            prop_assert!(until.is_some(), "the breaker did not open");
            let until = until.unwrap() - base;
            let wait = until - model.now;
            prop_assert!(wait >= shortest && wait <= longest, "{wait:?} of {longest:?}");
            model.phase = Phase::Open(until);
        }
    }
    prop_assert_eq!(core.state(now), model.state());
    Ok(())
}

#[test]
fn the_breaker_agrees_with_a_model_that_keeps_every_call() {
    let crew = Crew::new();
    holds((configs(), steps()), |(config, steps)| breaker_agrees(&crew, &config, steps, Mutant::None));
}

#[test]
fn the_breaker_suite_catches_every_twin() {
    let crew = Crew::new();
    catches(
        &MUTANTS,
        || (configs(), steps()),
        |mutant, (config, steps)| breaker_agrees(&crew, &config, steps, mutant),
    );
}
