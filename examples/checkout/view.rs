//! The live view: what each stack and each of its policies did during the last second.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _, stdout};
use std::time::Duration;

use mainstay::Kind;
use mainstay::circuit_breaker::State;

use crate::checks::{self, Verdict, ms};
use crate::services::Fault;
use crate::story::Phase;
use crate::tape::{Events, Fact, Gauges, Leg, Outcome, percentile};

const SECOND: Duration = Duration::from_secs(1);
/// Cells of the line that shows the story so far.
const CELLS: usize = 72;

pub struct View {
    in_place: bool,
    colour: bool,
    drawn: usize,
}

impl View {
    /// Redraws in place on a terminal, and prints a line per second elsewhere.
    pub fn new() -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let in_place = stdout().is_terminal() && !dumb;
        Self { in_place, colour: in_place && !set("NO_COLOR"), drawn: 0 }
    }

    /// How often it wants to be shown.
    pub fn interval(&self) -> Duration {
        if self.in_place { Duration::from_millis(200) } else { SECOND }
    }

    pub fn show(&mut self, story: &[Phase], events: &Events, now: Duration) {
        let Some(phase) = story.iter().find(|phase| phase.contains(now)) else { return };
        let text = match self.in_place {
            true => self.page(story, phase, events, now),
            false => line(phase, events, now),
        };
        let mut out = stdout().lock();
        if self.drawn > 0 {
            drop(write!(out, "\x1b[{}A", self.drawn));
        }
        if self.in_place {
            self.drawn = text.lines().count();
            drop(write!(out, "{}", text.replace('\n', "\x1b[K\n")));
        } else {
            drop(write!(out, "{text}"));
        }
        drop(out.flush());
    }

    fn page(&self, story: &[Phase], phase: &Phase, events: &Events, now: Duration) -> String {
        let end = story.last().map_or(now, |last| last.until);
        let mut page = String::new();
        let name =
            self.paint(if phase.fault == Fault::None { GREEN } else { RED }, &format!("{:22}", phase.name));
        let marks = [(GREEN, "█ charged"), (YELLOW, "▄ fallback"), (RED, "▁ failed")];
        let key = marks.map(|(colour, mark)| self.paint(colour, mark)).join("   ");
        let _ = writeln!(page, "\n {:>4.1} of {:.0} s   {name}{key}", now.as_secs_f64(), end.as_secs_f64());
        let _ = writeln!(page, " {}", self.timeline(events, now, end));
        let _ = writeln!(
            page,
            "\n {:22}{:>8}{:>8}{:>10}{:>8}{:>10}{:>9}",
            "", "calls/s", "ok", "fallback", "failed", "upstream", "p99"
        );
        self.stack(&mut page, "users", &LastSecond::of(&events.users, now));
        self.stack(&mut page, "payments", &LastSecond::of(&events.payments, now));
        page
    }

    fn stack(&self, page: &mut String, name: &str, last: &LastSecond) {
        let cell = |count: usize, colour, width: usize| match count {
            0 => format!("{count:>width$}"),
            _ => self.paint(colour, &format!("{count:>width$}")),
        };
        let _ = writeln!(
            page,
            "\n {}{:>8}{}{}{}{:>10}{:>9}",
            self.paint(BOLD, &format!("{name:22}")),
            last.finished,
            cell(last.good, GREEN, 8),
            cell(last.fallback, YELLOW, 10),
            cell(last.failed, RED, 8),
            last.upstream,
            ms(last.p99),
        );
        let Some(gauges) = last.gauges else { return };
        let (colour, state) = match gauges.breaker {
            State::Closed => (GREEN, "closed"),
            State::HalfOpen => (YELLOW, "half-open"),
            State::Recovering => (YELLOW, "recovering"),
            State::Open => (RED, "open"),
            other => (BOLD, other.as_str()),
        };
        let state = self.paint(colour, &format!("{state:22}"));
        let in_use = format!("{} of {} in use", gauges.in_use, gauges.limit);
        let budget = format!("{:.1} in its budget", gauges.budget);
        let open = last.refused(Kind::CircuitOpen);
        let full = last.refused(Kind::BulkheadFull) + last.refused(Kind::QueueTimeout);
        let late = last.refused(Kind::TimedOut);
        let too_late = last.refused(Kind::DeadlineExceeded);
        let (retried, spent) = (last.count(Fact::Retried), last.count(Fact::BudgetSpent));
        let _ = writeln!(page, "   deadline            {:22}gave up {too_late:>4}/s", "");
        let _ = writeln!(page, "   circuit breaker     {state}refused {open:>4}/s");
        let _ =
            writeln!(page, "   retry               {budget:22}retried {retried:>4}/s, refused {spent:>4}/s");
        let _ = writeln!(page, "   bulkhead            {in_use:22}refused {full:>4}/s");
        let _ = writeln!(page, "   timeout             {:22}gave up {late:>4}/s", "");
    }

    /// The story so far, a cell per moment, in the colour of most of its answers.
    fn timeline(&self, events: &Events, now: Duration, end: Duration) -> String {
        let mut cells = [[0_u32; 3]; CELLS];
        let cell =
            |at: Duration| ((at.as_secs_f64() / end.as_secs_f64() * CELLS as f64) as usize).min(CELLS - 1);
        for order in &events.orders {
            let kind = match order.outcome {
                Outcome::Good => 0,
                Outcome::Fallback(_) => 1,
                Outcome::Failed => 2,
            };
            cells[cell(order.due)][kind] += 1;
        }
        let mut line = String::new();
        for (index, [good, fallback, failed]) in cells.into_iter().enumerate() {
            let (colour, mark) = match index {
                _ if index > cell(now) => (DIM, "·"),
                _ if failed > good.max(fallback) => (RED, "▁"),
                _ if fallback > good => (YELLOW, "▄"),
                _ => (GREEN, "█"),
            };
            line += &self.paint(colour, mark);
        }
        line
    }

    /// What happened in each phase, and whether the promises were kept.
    pub fn summary(&self, story: &[Phase], events: &Events, verdicts: &[Verdict]) {
        let counts = "orders     good  fallback   failed   upstream";
        println!("\n phase                seconds   {counts}   payment p99   user p99   control");
        for phase in story {
            let orders: Vec<_> = events.orders.iter().filter(|order| phase.contains(order.due)).collect();
            let count =
                |wanted: fn(&Outcome) -> bool| orders.iter().filter(|order| wanted(&order.outcome)).count();
            println!(
                " {:18}{:>4.1} - {:<4.1}{:>9}{:>9}{:>10}{:>9}{:>9.2} x{:>14}{:>11}{:>10}",
                phase.name,
                phase.from.as_secs_f64(),
                phase.until.as_secs_f64(),
                events.offered.iter().filter(|due| phase.contains(**due)).count(),
                count(|outcome| matches!(outcome, Outcome::Good)),
                count(|outcome| matches!(outcome, Outcome::Fallback(_))),
                count(|outcome| matches!(outcome, Outcome::Failed)),
                checks::upstream_per_order(phase, events),
                ms(checks::p99(phase, &events.payments.calls, |call| call.took)),
                ms(checks::p99(phase, &events.users.calls, |call| call.took)),
                ms(checks::p99(phase, &events.control, |call| call.took)),
            );
        }
        println!(
            " control: calls that have nothing to do with the shop. What is slow there is this machine.\n"
        );
        for Verdict { kept, promise, found } in verdicts {
            let mark = if *kept { self.paint(GREEN, "kept  ") } else { self.paint(RED, "BROKEN") };
            println!(" {mark}  {promise}\n         {found}");
        }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

/// The same for a log file: one line.
fn line(phase: &Phase, events: &Events, now: Duration) -> String {
    let (users, payments) = (LastSecond::of(&events.users, now), LastSecond::of(&events.payments, now));
    let gauges = match payments.gauges {
        Some(Gauges { breaker, in_use, limit, budget }) => {
            format!("breaker {breaker:?}, bulkhead {in_use}/{limit}, budget {budget:.1}, ")
        }
        None => String::new(),
    };
    format!(
        "{:>3.0} s {:15} | payments {:>3}/s: ok {:>3}, fallback {:>3}, failed {} \
         (refused: {} open, {} full, {} late), upstream {:>3}, {gauges}p99 {} | users {}/s: ok {}, p99 {}\n",
        now.as_secs_f64(),
        phase.name,
        payments.finished,
        payments.good,
        payments.fallback,
        payments.failed,
        payments.refused(Kind::CircuitOpen),
        payments.refused(Kind::BulkheadFull) + payments.refused(Kind::QueueTimeout),
        payments.refused(Kind::TimedOut) + payments.refused(Kind::DeadlineExceeded),
        payments.upstream,
        ms(payments.p99),
        users.finished,
        users.good,
        ms(users.p99),
    )
}

/// What happened on a leg within the last second, and how its policies stand.
#[derive(Default)]
struct LastSecond {
    finished: usize,
    good: usize,
    fallback: usize,
    failed: usize,
    upstream: usize,
    p99: Option<Duration>,
    facts: Vec<Fact>,
    gauges: Option<Gauges>,
}

impl LastSecond {
    fn of(leg: &Leg, now: Duration) -> Self {
        let begin = now.saturating_sub(SECOND);
        // Everything is written down when it happens, so the latest is at the end.
        let recent = || leg.calls.iter().rev().take_while(|call| call.done() >= begin);
        let mut sum = Self {
            upstream: leg.upstream.iter().rev().take_while(|at| **at >= begin).count(),
            p99: percentile(0.99, recent().map(|call| call.took)),
            facts: leg.facts.iter().rev().take_while(|(at, _)| *at >= begin).map(|(_, fact)| *fact).collect(),
            gauges: leg.gauges.last().map(|(_, gauges)| *gauges),
            ..Self::default()
        };
        for call in recent() {
            sum.finished += 1;
            match call.outcome {
                Outcome::Good => sum.good += 1,
                Outcome::Fallback(_) => sum.fallback += 1,
                Outcome::Failed => sum.failed += 1,
            }
        }
        sum
    }

    fn count(&self, wanted: Fact) -> usize {
        self.facts.iter().filter(|fact| **fact == wanted).count()
    }

    fn refused(&self, by: Kind) -> usize {
        self.count(Fact::Refused(by))
    }
}
