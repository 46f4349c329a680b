//! The decisions of a circuit breaker: a value that is told what happened and when, and says what follows.
//!
//! ```text
//!                  a rule is met                      the wait is over, and a call comes
//!      ┌────────┐ ───────────────▶ ┌──────┐ ─────────────────────────────▶ ┌───────────┐
//!      │ Closed │                  │ Open │ ◀───────────────────────────── │ Half-open │
//!      └────────┘                  └──────┘        the probes failed        └───────────┘
//!          ▲                           ▲                                          │
//!          │ every step was passed     │ a step was failed      the probes passed │
//!          └──────────────────── ┌────────────┐ ◀──────────────────────────────────┘
//!                                │ Recovering │      (straight to Closed if asked for)
//!                                └────────────┘
//! ```
//!
//! Every admission carries a *ticket*, the generation it was given in. Each state, and each single probe, is a generation
//! of its own; a result whose ticket is not current changes nothing.

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

use super::{
    Class, Counts, Mode, Snapshot, State, Totals,
    config::Verdict,
    window::{Mark, Shape, Sums, Window},
};
use crate::{chance, time};

/// The rules, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rules {
    pub(crate) shape: Shape,
    pub(crate) failure_rate: Option<f64>,
    /// The rate; the threshold is in `slow_after`.
    pub(crate) slow_rate: Option<f64>,
    pub(crate) slow_after: Option<Duration>,
    pub(crate) consecutive: Option<u32>,
    /// Failures in a row, and the time within which they end.
    pub(crate) within: Option<(u32, Duration)>,
    /// Failures, of the last calls.
    pub(crate) of_last: Option<(u32, u32)>,
    pub(crate) minimum: u64,
    pub(crate) probes: u32,
    pub(crate) verdict: Verdict,
    pub(crate) probe_timeout: Duration,
    pub(crate) wait: Duration,
    pub(crate) wait_growth: f64,
    /// The share of a wait that is left to chance.
    pub(crate) wait_jitter: f64,
    pub(crate) wait_max: Duration,
    pub(crate) hint_max: Duration,
    /// Results per step of the ramp.
    pub(crate) ramp: Option<u32>,
}

/// What trips the breaker, for a person.
impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |rate: f64| (rate * 1e4).round() / 1e2;
        let window = match self.shape {
            Shape::Count(calls) => format!("of the last {calls} calls"),
            Shape::Time { width, buckets } => {
                format!("of the calls in {:?}", Duration::from_nanos(width.saturating_mul(buckets)))
            }
        };
        let mut trips = Vec::new();
        if let Some(rate) = self.failure_rate {
            trips.push(format!("{}% failed {window}", percent(rate)));
        }
        if let (Some(rate), Some(after)) = (self.slow_rate, self.slow_after) {
            trips.push(format!("{}% slower than {after:?} {window}", percent(rate)));
        }
        if let Some(failures) = self.consecutive {
            trips.push(format!("{failures} failures in a row"));
        }
        if let Some((failures, time)) = self.within {
            trips.push(format!("{failures} failures in a row within {time:?}"));
        }
        if let Some((failures, calls)) = self.of_last {
            trips.push(format!("{failures} of {calls} failed"));
        }
        match trips.is_empty() {
            true => f.write_str("opens when told to"),
            false => write!(f, "opens at {}", trips.join(" or ")),
        }
    }
}

/// The rate that judges a ramp whose breaker has no failure rate of its own.
const HALF: f64 = 0.5;
/// The share of calls that the first step of a ramp admits, in eighths; it doubles with each step.
const FIRST_SHARE: u32 = 1;
const WHOLE: u32 = 8;
/// However small the share, a ramp admits a call when the last was this long ago: at ten calls a second and less there
/// is no stampede to fear.
const TRICKLE: Duration = Duration::from_millis(100);

/// What becomes of a call that wants to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It starts, and reports with this ticket.
    Granted(u64),
    /// It does not, and has a chance after this long, where that is known.
    Refused(Option<Duration>),
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) class: Class,
    pub(crate) slow: bool,
}

/// What is known of a call that is slow before it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InFlight {
    /// Slow calls are no longer of interest: nothing was counted.
    Unknown,
    /// It was counted here, and may still fail.
    Counted(Mark),
    /// Nothing that it does later counts.
    Settled,
}

/// A change of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) counts: Counts,
}

#[derive(Debug)]
enum Phase {
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        given: Vec<Lease>,
        judged: Sums,
    },
    Recovering {
        share: u32,
        judged: Sums,
        /// Eighths of an admission that were saved up.
        credit: u32,
        last: Instant,
    },
}

/// A probe that has not reported yet.
#[derive(Debug, Clone, Copy)]
struct Lease {
    ticket: u64,
    until: Instant,
}

#[derive(Debug)]
pub(crate) struct Machine {
    rules: Rules,
    /// What `window` epochs count from.
    base: Instant,
    mode: Mode,
    phase: Phase,
    generation: u64,
    /// The oldest ticket that counts while closed or recovering.
    valid_from: u64,
    window: Window,
    /// The number of the last call that was counted.
    seq: u64,
    consecutive: u64,
    /// When the latest failures of the present row ended: as many as `within` needs.
    row: VecDeque<Instant>,
    /// The numbers of the latest failures: as many as `of_last` needs.
    recent: VecDeque<u64>,
    /// How often it has opened since it was closed.
    openings: u32,
    totals: Totals,
}

impl Machine {
    /// Closed and empty. The generation begins at 1: ticket 0 is never current.
    pub(crate) fn new(rules: Rules, base: Instant) -> Self {
        Machine {
            window: Window::new(rules.shape, 0, 0),
            rules,
            base,
            mode: Mode::Normal,
            phase: Phase::Closed,
            generation: 1,
            valid_from: 1,
            seq: 0,
            consecutive: 0,
            row: VecDeque::new(),
            recent: VecDeque::new(),
            openings: 0,
            totals: Totals::default(),
        }
    }

    // --- questions

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn openings(&self) -> u32 {
        self.openings
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// The bucket of the window that holds `now`.
    pub(crate) fn epoch(&self, now: Instant) -> u64 {
        self.rules.shape.epoch(self.nanos(now))
    }

    fn nanos(&self, at: Instant) -> u64 {
        time::nanos(at.saturating_duration_since(self.base))
    }

    /// The state at `now`: an open breaker whose wait is over is half-open, whether or not a call has come yet.
    pub(crate) fn state(&self, now: Instant) -> State {
        match self.mode {
            Mode::ForcedOpen => State::ForcedOpen,
            Mode::ForcedClosed => State::ForcedClosed,
            Mode::Disabled => State::Disabled,
            Mode::Normal | Mode::ObserveOnly => match self.phase {
                Phase::Closed => State::Closed,
                Phase::Open { until } if now < until => State::Open,
                Phase::Open { .. } | Phase::HalfOpen { .. } => State::HalfOpen,
                Phase::Recovering { .. } => State::Recovering,
            },
        }
    }

    /// When the wait of an open breaker is over, as long as it is not half-open.
    pub(crate) fn open_until(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { until } if matches!(self.mode, Mode::Normal | Mode::ObserveOnly) => Some(until),
            _ => None,
        }
    }

    /// The share of calls that is admitted at `now`.
    pub(crate) fn share(&self, now: Instant) -> f64 {
        match (self.state(now), &self.phase) {
            (State::Closed | State::ForcedClosed | State::Disabled, _) => 1.0,
            (State::Recovering, Phase::Recovering { share, .. }) => f64::from(*share) / f64::from(WHOLE),
            _ => 0.0,
        }
    }

    /// The earliest instant at which a call would be admitted, if that is not now.
    pub(crate) fn retry_at(&self, now: Instant) -> Option<Instant> {
        if !matches!(self.mode, Mode::Normal | Mode::ObserveOnly) {
            return None;
        }
        let at = match &self.phase {
            Phase::Closed => return None,
            Phase::Open { until } => *until,
            Phase::HalfOpen { given, judged } => {
                let free = given.len() as u64 + judged.calls < u64::from(self.rules.probes);
                let first = given.iter().map(|lease| lease.until).min();
                first.filter(|_| !free)?
            }
            Phase::Recovering { share, credit, last, .. } => {
                if credit + share >= WHOLE {
                    return None;
                }
                time::later(*last, TRICKLE)
            }
        };
        (at > now).then_some(at)
    }

    /// What the window holds at `now`.
    pub(crate) fn counts(&mut self, now: Instant) -> Counts {
        self.window.advance(self.epoch(now));
        let sums = self.window.sums();
        Counts {
            calls: sums.calls,
            failures: sums.failed,
            slow: sums.slow,
            consecutive_failures: self.consecutive,
            consecutive_failures_within: self.consecutive_within(now),
        }
    }

    /// Whether results are counted in the window: then good ones may be counted by the dozen.
    pub(crate) fn counts_successes(&self) -> bool {
        matches!(self.phase, Phase::Closed)
            && matches!(self.mode, Mode::Normal | Mode::ObserveOnly | Mode::ForcedClosed)
    }

    /// Whether the next good call may trip the breaker, as far as the present bucket goes: it does when it completes the
    /// minimum of a window that is bad enough, and when a rule is met already that was not in force before. Otherwise a
    /// good call only dilutes, and ends a row of failures.
    pub(crate) fn needs_every_success(&self) -> bool {
        if self.mode == Mode::ForcedClosed {
            return false;
        }
        let sums = self.window.sums();
        let completed = Sums { calls: self.rules.minimum, ..sums };
        (sums.calls < self.rules.minimum && self.rate_is_met(completed)) || self.is_met_by_share()
    }

    // --- facts

    /// `n` calls that were neither failed nor slow ended in the bucket `epoch`. Decides nothing.
    pub(crate) fn successes(&mut self, epoch: u64, n: u64) {
        self.seq += n;
        self.totals.succeeded += n;
        self.end_row();
        let mark = self.mark(epoch);
        self.window.good(mark, n);
    }

    /// `n` results came too late to count.
    pub(crate) fn late(&mut self, n: u64) {
        self.totals.late += n;
    }

    /// A call wants to start.
    pub(crate) fn admit(&mut self, now: Instant) -> (Admission, Option<Transition>) {
        match self.mode {
            Mode::Disabled => return (Admission::Granted(0), None),
            Mode::ForcedOpen => return (Admission::Refused(None), None),
            Mode::ForcedClosed | Mode::Normal | Mode::ObserveOnly => {}
        }
        let mut transition = None;
        if let Phase::Open { until } = self.phase {
            if now < until {
                return (Admission::Refused(Some(until.saturating_duration_since(now))), None);
            }
            let half_open = Phase::HalfOpen { given: Vec::new(), judged: Sums::default() };
            transition = Some(self.go(State::Open, half_open, now));
        }
        let admission = match &mut self.phase {
            Phase::Closed => Admission::Granted(self.generation),
            Phase::Open { .. } => Admission::Refused(None),
            Phase::HalfOpen { given, judged } => {
                given.retain(|lease| now < lease.until);
                if given.len() as u64 + judged.calls < u64::from(self.rules.probes) {
                    self.generation += 1;
                    given.push(Lease {
                        ticket: self.generation,
                        until: time::later(now, self.rules.probe_timeout),
                    });
                    Admission::Granted(self.generation)
                } else {
                    let first = given.iter().map(|lease| lease.until).min();
                    let lease = first.map(|until| until.saturating_duration_since(now));
                    // The probes will most likely have been judged long before their leases end.
                    Admission::Refused(lease.map(|lease| lease.min(self.rules.wait)))
                }
            }
            Phase::Recovering { share, credit, last, .. } => {
                *credit = (*credit + *share).min(WHOLE);
                let since = now.saturating_duration_since(*last);
                if *credit >= WHOLE || since >= TRICKLE {
                    *credit = credit.saturating_sub(WHOLE);
                    *last = now;
                    Admission::Granted(self.generation)
                } else {
                    Admission::Refused(Some(TRICKLE - since))
                }
            }
        };
        (admission, transition)
    }

    /// A call has ended.
    pub(crate) fn settle(
        &mut self,
        ticket: u64,
        report: Report,
        now: Instant,
        random: u64,
    ) -> Option<Transition> {
        let bad = self.take(ticket, report)?;
        let closed = matches!(self.phase, Phase::Closed);
        if closed {
            self.seq += 1;
            let mark = self.mark(self.epoch(now));
            self.window.advance(mark.epoch);
            self.window.one(mark, bad.failed > 0, bad.slow > 0);
            self.outcome(mark.seq, bad.failed > 0, now);
        }
        match report.class {
            Class::OpenFor(wait) if self.mode != Mode::ForcedClosed => {
                Some(self.open_for(wait.min(self.rules.hint_max), now))
            }
            _ if closed => self.trip(now, random),
            _ => self.judge(bad, now, random),
        }
    }

    /// The call of `ticket` is slow already, though it has not ended. What it does later is told with
    /// [`settle_slow`](Self::settle_slow), if it got a mark.
    pub(crate) fn slow_in_flight(
        &mut self,
        ticket: u64,
        now: Instant,
        random: u64,
    ) -> (InFlight, Option<Transition>) {
        if self.rules.slow_rate.is_none() {
            return (InFlight::Unknown, None);
        }
        let slow = Report { class: Class::Success, slow: true };
        let Some(bad) = self.take(ticket, slow) else {
            return (InFlight::Settled, None);
        };
        // It has not succeeded yet.
        self.totals.succeeded -= 1;
        if !matches!(self.phase, Phase::Closed) {
            // How it ends is not heard.
            self.totals.late += 1;
            return (InFlight::Settled, self.judge(bad, now, random));
        }
        self.seq += 1;
        let mark = self.mark(self.epoch(now));
        self.window.one(mark, false, true);
        (InFlight::Counted(mark), self.trip(now, random))
    }

    /// The call that was counted as slow at `mark` has ended. It is counted once: a failure is added to what is known of it.
    pub(crate) fn settle_slow(
        &mut self,
        ticket: u64,
        mark: Mark,
        class: Class,
        now: Instant,
        random: u64,
    ) -> Option<Transition> {
        if !self.counts_successes() || ticket < self.valid_from || ticket > self.generation {
            self.totals.late += 1;
            return None;
        }
        self.window.advance(self.epoch(now));
        match class {
            Class::Ignored => {
                self.totals.neutral += 1;
                None
            }
            Class::Success => {
                self.totals.succeeded += 1;
                self.outcome(mark.seq, false, now);
                self.trip(now, random)
            }
            Class::Failure | Class::OpenFor(_) => {
                self.totals.failed += 1;
                self.window.also_failed(mark);
                self.outcome(mark.seq, true, now);
                match class {
                    Class::OpenFor(wait) if self.mode != Mode::ForcedClosed => {
                        Some(self.open_for(wait.min(self.rules.hint_max), now))
                    }
                    _ => self.trip(now, random),
                }
            }
        }
    }

    // --- orders

    /// Changes who decides. What was learned is kept where it still means something.
    pub(crate) fn set_mode(&mut self, mode: Mode, now: Instant) -> Option<Transition> {
        if mode == self.mode {
            return None;
        }
        let from = self.state(now);
        let counts = self.counts(now);
        let decides = |mode| matches!(mode, Mode::Normal | Mode::ObserveOnly);
        if !(decides(mode) && decides(self.mode)) {
            // A breaker that was open by force or out of service knows nothing recent.
            if matches!(self.mode, Mode::ForcedOpen | Mode::Disabled) {
                self.forget(now);
            }
            self.close();
        }
        self.mode = mode;
        let to = self.state(now);
        (from != to).then_some(Transition { from, to, counts })
    }

    /// Closed, with nothing remembered but the totals; the mode stays.
    pub(crate) fn reset(&mut self, now: Instant) -> Option<Transition> {
        let from = self.state(now);
        let counts = self.counts(now);
        self.forget(now);
        self.close();
        let to = self.state(now);
        (from != to).then_some(Transition { from, to, counts })
    }

    /// Other rules from now on, on the same evidence; what they mean for it is decided at the next result.
    pub(crate) fn reconfigure(&mut self, rules: Rules, now: Instant) {
        let nanos = self.nanos(now);
        self.window.advance(self.rules.shape.epoch(nanos));
        if rules.shape != self.rules.shape {
            self.window.reshape(self.rules.shape, rules.shape, self.seq, nanos);
        }
        if let Phase::Closed = self.phase {
            // Tickets stay valid, but successes are no longer counted into old buckets unseen.
            self.generation += 1;
        }
        if let Phase::HalfOpen { judged, .. } = &mut self.phase {
            // One more result decides, or a breaker that has all the results it now asks for would wait for ever.
            judged.calls = judged.calls.min(u64::from(rules.probes) - 1);
            judged.failed = judged.failed.min(judged.calls);
        }
        self.rules = rules;
        self.trim();
    }

    /// Takes over what an earlier breaker knew.
    pub(crate) fn restore(&mut self, snapshot: &Snapshot, now: Instant) {
        let Snapshot { mode, state, counts, openings, .. } = *snapshot;
        let wait = snapshot.remaining_wait.unwrap_or(Duration::ZERO);
        self.mode = mode;
        self.openings = openings;
        let calls = counts.calls.min(u64::from(u32::MAX));
        self.consecutive = counts.consecutive_failures.min(u64::from(u32::MAX));
        // A row may be longer than the window.
        self.seq = calls.max(self.consecutive);
        let mark = self.mark(self.epoch(now));
        self.window = Window::new(self.rules.shape, self.seq, mark.epoch);
        let sums = Sums { calls, failed: counts.failures.min(calls), slow: counts.slow.min(calls) };
        self.window.load(mark, sums);
        for back in (0..self.consecutive.min(self.recent_len())).rev() {
            self.recent.push_back(self.seq - back);
        }
        // How far apart they were is not known; that they were close enough is.
        let row = counts.consecutive_failures_within.min(self.consecutive).min(self.row_len());
        self.row.extend((0..row).map(|_| now));
        if matches!(state, State::Open | State::HalfOpen | State::Recovering) {
            let longest = self.rules.wait_max.max(self.rules.hint_max);
            self.generation += 1;
            self.phase = Phase::Open { until: time::later(now, wait.min(longest)) };
        }
    }

    // --- steps

    fn mark(&self, epoch: u64) -> Mark {
        Mark { seq: self.seq, epoch }
    }

    /// Checks the ticket of a result and adds it to the totals; `None` if it must change nothing.
    fn take(&mut self, ticket: u64, report: Report) -> Option<Sums> {
        if ticket == 0 {
            return None;
        }
        let current = match (&mut self.phase, self.mode) {
            (_, Mode::ForcedOpen | Mode::Disabled) | (Phase::Open { .. }, _) => false,
            (Phase::HalfOpen { given, .. }, _) => {
                let at = given.iter().position(|lease| lease.ticket == ticket);
                // One that has lost its place may have met what was there when it began, and is heard only with what is good: or calls that
                // are well and take longer than a lease would keep the breaker half-open for ever.
                let good = report.class == Class::Success && !(report.slow && self.rules.slow_rate.is_some());
                let lapsed = good && self.valid_from < ticket && ticket <= self.generation;
                at.map(|at| given.swap_remove(at)).is_some() || lapsed
            }
            (Phase::Closed | Phase::Recovering { .. }, _) => {
                (self.valid_from..=self.generation).contains(&ticket)
            }
        };
        if !current {
            self.totals.late += 1;
            return None;
        }
        let failed = match report.class {
            Class::Ignored => {
                self.totals.neutral += 1;
                return None;
            }
            Class::Success => {
                self.totals.succeeded += 1;
                false
            }
            Class::Failure | Class::OpenFor(_) => {
                self.totals.failed += 1;
                true
            }
        };
        let slow = report.slow && self.rules.slow_rate.is_some();
        self.totals.slow += u64::from(slow);
        Some(Sums { calls: 1, failed: failed.into(), slow: slow.into() })
    }

    /// Keeps the runs of failures: the call `seq` has failed or not.
    fn outcome(&mut self, seq: u64, failed: bool, now: Instant) {
        if !failed {
            self.end_row();
            return;
        }
        self.consecutive += 1;
        self.row.push_back(now);
        let at = self.recent.partition_point(|&other| other < seq);
        self.recent.insert(at, seq);
        self.trim();
    }

    fn end_row(&mut self) {
        self.consecutive = 0;
        self.row.clear();
    }

    fn row_len(&self) -> u64 {
        self.rules.within.map_or(0, |(failures, _)| failures.into())
    }

    fn recent_len(&self) -> u64 {
        self.rules.of_last.map_or(0, |(failures, _)| failures.into())
    }

    fn trim(&mut self) {
        while self.row.len() as u64 > self.row_len() {
            self.row.pop_front();
        }
        while self.recent.len() as u64 > self.recent_len() {
            self.recent.pop_front();
        }
    }

    /// The failures of the present row that are not too old for the rule `within`, up to as many as it asks for.
    fn consecutive_within(&self, now: Instant) -> u64 {
        let Some((_, time)) = self.rules.within else { return 0 };
        self.row.iter().filter(|&&at| now.saturating_duration_since(at) <= time).count() as u64
    }

    fn rate_is_met(&self, sums: Sums) -> bool {
        // Divided, not multiplied: 3 of 30 is exactly the 0.1 that somebody wrote, 0.1 times 30 is more than 3.
        let met = |rate: Option<f64>, bad: u64| {
            rate.is_some_and(|rate| bad > 0 && bad as f64 / sums.calls as f64 >= rate)
        };
        met(self.rules.failure_rate, sums.failed) || met(self.rules.slow_rate, sums.slow)
    }

    /// Whether a rule is met that one good call does not undo.
    fn is_met_by_share(&self) -> bool {
        let sums = self.window.sums();
        let by_rate = sums.calls >= self.rules.minimum && self.rate_is_met(sums);
        let of_last = self.rules.of_last.is_some_and(|(failures, calls)| {
            self.recent.len() as u64 >= u64::from(failures) && self.recent[0] + u64::from(calls) > self.seq
        });
        by_rate || of_last
    }

    /// Whether the rules are met by what the closed breaker has seen.
    fn is_met(&self, now: Instant) -> bool {
        let in_a_row = self.rules.consecutive.is_some_and(|most| self.consecutive >= u64::from(most));
        let within =
            self.rules.within.is_some_and(|(most, _)| self.consecutive_within(now) >= u64::from(most));
        self.is_met_by_share() || in_a_row || within
    }

    /// Opens if the rules are met.
    fn trip(&mut self, now: Instant, random: u64) -> Option<Transition> {
        (self.mode != Mode::ForcedClosed && self.is_met(now)).then(|| self.open(now, random))
    }

    /// Judges a result outside the closed state.
    fn judge(&mut self, bad: Sums, now: Instant, random: u64) -> Option<Transition> {
        let from = self.state(now);
        let rate = self.rules.failure_rate.unwrap_or(HALF);
        let (ramp, slow_rate) = (self.rules.ramp, self.rules.slow_rate);
        match &mut self.phase {
            Phase::Closed | Phase::Open { .. } => None,
            Phase::HalfOpen { judged, .. } => {
                let probes = u64::from(self.rules.probes);
                // One bad call is one, however many ways it was bad in.
                judged.calls += 1;
                judged.failed += u64::from(bad.failed + bad.slow > 0);
                let failed = match self.rules.verdict {
                    Verdict::FirstFailure => judged.failed > 0,
                    Verdict::Rate(rate) => judged.failed as f64 / probes as f64 >= rate,
                };
                if failed {
                    Some(self.open(now, random))
                } else if judged.calls < probes {
                    None
                } else if ramp.is_some() {
                    let first_step = Phase::Recovering {
                        share: FIRST_SHARE,
                        judged: Sums::default(),
                        credit: WHOLE,
                        last: now,
                    };
                    Some(self.go(from, first_step, now))
                } else {
                    Some(self.recovered(from, now))
                }
            }
            Phase::Recovering { share, judged, .. } => {
                let needed = u64::from(ramp.unwrap_or(1));
                judged.calls += 1;
                judged.failed += bad.failed;
                judged.slow += bad.slow;
                // No later result can save a step that has this many failures.
                let beyond = |rate: f64, bad: u64| bad as f64 / needed as f64 >= rate && bad > 0;
                if beyond(rate, judged.failed) || slow_rate.is_some_and(|rate| beyond(rate, judged.slow)) {
                    return Some(self.open(now, random));
                }
                if judged.calls < needed {
                    return None;
                }
                *judged = Sums::default();
                *share *= 2;
                (*share >= WHOLE).then(|| self.recovered(from, now))
            }
        }
    }

    /// Opens for a while that grows with each time since it was closed.
    fn open(&mut self, now: Instant, random: u64) -> Transition {
        let growth = self.rules.wait_growth.powf(f64::from(self.openings.min(10_000)));
        let max = self.rules.wait_max.as_secs_f64();
        let longest = (self.rules.wait.as_secs_f64() * growth).min(max);
        // Breakers of many clients that opened together shall not probe together.
        let jitter = self.rules.wait_jitter;
        let wait = longest * (1.0 - jitter + jitter * chance::fraction(random));
        let wait = Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX).min(self.rules.wait_max);
        self.openings = self.openings.saturating_add(1);
        self.open_for(wait, now)
    }

    fn open_for(&mut self, wait: Duration, now: Instant) -> Transition {
        let until = time::later(now, wait);
        self.go(self.state(now), Phase::Open { until }, now)
    }

    fn recovered(&mut self, from: State, now: Instant) -> Transition {
        let transition = self.go(from, Phase::Closed, now);
        self.forget(now);
        self.openings = 0;
        transition
    }

    fn go(&mut self, from: State, phase: Phase, now: Instant) -> Transition {
        let counts = self.counts(now);
        self.phase = phase;
        self.generation += 1;
        self.valid_from = self.generation;
        // Not `state()`: an open breaker with a wait of nothing has been open all the same.
        let to = match self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
            Phase::Recovering { .. } => State::Recovering,
        };
        Transition { from, to, counts }
    }

    fn close(&mut self) {
        self.phase = Phase::Closed;
        self.generation += 1;
        self.valid_from = self.generation;
        self.openings = 0;
    }

    fn forget(&mut self, now: Instant) {
        self.window = Window::new(self.rules.shape, self.seq, self.epoch(now));
        self.end_row();
        self.recent.clear();
    }
}
