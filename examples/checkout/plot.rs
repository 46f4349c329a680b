//! The story in one picture: what was asked, what was answered, what payment had to bear, and how long it
//! took.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use mainstay::circuit_breaker::State;
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::services::Fault;
use crate::story::Phase;
use crate::tape::{Call, Events, Fact, Outcome, percentile};
use crate::{Error, Options};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const SIZE: (u32, u32) = (1000, 800);
/// Where the time axis begins and ends, the same for every part.
const TIME: Range<i32> = 76..980;
/// Where the last part ends.
const BOTTOM: i32 = 756;
/// Font sizes; what is written is about four fifths of it.
const TEXT: u32 = 18;
const HEADING: u32 = 20;
/// Rates are counted over this long, percentiles over twice as long.
const BUCKET: Duration = Duration::from_millis(250);

const INK: RGBColor = RGBColor(0x1f, 0x29, 0x37);
const FAINT: RGBColor = RGBColor(0x6b, 0x72, 0x80);
const GRID: RGBColor = RGBColor(0xe5, 0xe7, 0xeb);
const SHADE: RGBColor = RGBColor(0xfe, 0xf2, 0xf0);
const FAULT: RGBColor = RGBColor(0xb4, 0x23, 0x18);
const GOOD: RGBColor = RGBColor(0x2f, 0x9e, 0x78);
const FALLBACK: RGBColor = RGBColor(0xf2, 0xb1, 0x34);
const FAILED: RGBColor = RGBColor(0xd6, 0x45, 0x45);
const RECOVERING: RGBColor = RGBColor(0xa7, 0xd9, 0xc5);
const UPSTREAM: RGBColor = RGBColor(0x4f, 0x5b, 0xd5);
const USER: RGBColor = RGBColor(0x1b, 0x83, 0xd1);
const PAYMENT: RGBColor = RGBColor(0xa0, 0x3a, 0x8f);

pub fn draw(file: &Path, story: &[Phase], events: &Events, options: &Options) -> Result<(), Error> {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let end = story.last().map_or(0.0, |phase| phase.until.as_secs_f64());
    let picture = Picture { root: &root, story, events, end };

    let title =
        if options.unprotected { "The same shop without mainstay" } else { "A shop protected by mainstay" };
    write(&root, title, (20, 32), 30, &INK, HPos::Left)?;
    let rate = options.rate;
    let subtitle =
        format!("{rate:.0} orders a second, whatever happens; meanwhile payment fails, hangs and is slow");
    write(&root, &subtitle, (20, 62), TEXT, &FAINT, HPos::Left)?;

    picture.phases(84..110)?;
    picture.answers(152..322, rate)?;
    picture.upstream(374..484, rate)?;
    picture.breaker(536..554)?;
    picture.latency(606..BOTTOM)?;
    root.present()?;
    Ok(())
}

struct Picture<'a, 'b> {
    root: &'a Area<'b>,
    story: &'a [Phase],
    events: &'a Events,
    end: f64,
}

impl Picture<'_, '_> {
    fn x(&self, at: Duration) -> i32 {
        let width = f64::from(TIME.end - TIME.start);
        TIME.start + (at.as_secs_f64() / self.end * width).round() as i32
    }

    /// The names of the phases in a band, and a shade under everything that happens while payment is at
    /// fault.
    fn phases(&self, band: Range<i32>) -> Result<(), Error> {
        for phase in self.story {
            let (left, right) = (self.x(phase.from), self.x(phase.until));
            let fault = phase.fault != Fault::None;
            if fault {
                self.root.draw(&Rectangle::new([(left, band.start), (right, BOTTOM)], SHADE.filled()))?;
            }
            let (colour, ink) = if fault { (FAULT, WHITE) } else { (GRID, INK) };
            self.root
                .draw(&Rectangle::new([(left + 1, band.start), (right - 1, band.end)], colour.filled()))?;
            let middle = ((left + right) / 2, (band.start + band.end) / 2);
            write(self.root, phase.name, middle, TEXT, &ink, HPos::Center)?;
        }
        Ok(())
    }

    /// What the customers got, stacked up to what they asked.
    fn answers(&self, at: Range<i32>, rate: f64) -> Result<(), Error> {
        let count = |wanted: fn(Outcome) -> bool| {
            let orders = self.events.orders.iter().filter(|order| wanted(order.outcome));
            self.rates(orders.map(|order| order.due))
        };
        let good = count(|outcome| outcome == Outcome::Good);
        let fallback = count(|outcome| matches!(outcome, Outcome::Fallback(_)));
        let failed = count(|outcome| outcome == Outcome::Failed);
        let panel =
            self.panel(at.clone(), 0.0..rate * 1.02, &self.ticks(rate), |tick| format!("{tick:.0}"))?;
        let mut floor = vec![0.0; good.len()];
        for (values, colour) in [(&good, GOOD), (&fallback, FALLBACK), (&failed, FAILED)] {
            let top: Vec<f64> = floor.iter().zip(values).map(|(floor, value)| floor + value).collect();
            let up = self.steps(&top, &panel);
            let down = self.steps(&floor, &panel);
            self.root.draw(&Polygon::new(
                up.into_iter().chain(down.into_iter().rev()).collect::<Vec<_>>(),
                colour.filled(),
            ))?;
            floor = top;
        }
        self.offered(&panel)?;
        let mut legend = vec![("charged at once", GOOD), ("fallback: charged later", FALLBACK)];
        if failed.iter().any(|rate| *rate > 0.0) {
            legend.push(("failed", FAILED));
        }
        self.heading(at.start, "Orders per second", &legend, true)
    }

    fn upstream(&self, at: Range<i32>, rate: f64) -> Result<(), Error> {
        let calls = self.rates(self.events.payments.upstream.iter().copied());
        let most = calls.iter().fold(rate, |most, rate| rate.max(most));
        let panel =
            self.panel(at.clone(), 0.0..most * 1.02, &self.ticks(rate), |tick| format!("{tick:.0}"))?;
        let line = self.steps(&calls, &panel);
        let mut area = line.clone();
        area.extend([(TIME.end, at.end), (TIME.start, at.end)]);
        self.root.draw(&Polygon::new(area, UPSTREAM.mix(0.18).filled()))?;
        self.root.draw(&PathElement::new(line, UPSTREAM.stroke_width(2)))?;
        self.offered(&panel)?;
        self.heading(
            at.start,
            "Calls that reach payment, per second",
            &[("upstream calls, retries included", UPSTREAM)],
            true,
        )
    }

    fn breaker(&self, at: Range<i32>) -> Result<(), Error> {
        let changes = self.events.payments.facts.iter().filter_map(|(at, fact)| match fact {
            Fact::Breaker(state) => Some((*at, *state)),
            _ => None,
        });
        let begins: Vec<_> = std::iter::once((Duration::ZERO, State::Closed)).chain(changes).collect();
        let ends = begins.iter().skip(1).map(|(at, _)| self.x(*at)).chain([TIME.end]);
        let states = begins.iter().zip(ends).map(|((from, state), end)| (self.x(*from), end, *state));
        // Half-open may be very short: it is drawn last, and wide enough to be seen.
        let (probing, lasting): (Vec<_>, Vec<_>) = states.partition(|(.., state)| *state == State::HalfOpen);
        for (left, right, state) in lasting.into_iter().chain(probing) {
            let colour = match state {
                State::Open => FAULT,
                State::HalfOpen => FALLBACK,
                State::Recovering => RECOVERING,
                _ => GOOD,
            };
            let corners = [(left, at.start), (right.max(left + 2).min(TIME.end), at.end)];
            self.root.draw(&Rectangle::new(corners, colour.filled()))?;
        }
        let legend = [("closed", GOOD), ("open", FAULT), ("half-open", FALLBACK), ("recovering", RECOVERING)];
        self.heading(at.start, "Circuit breaker of payment", &legend, false)
    }

    fn latency(&self, at: Range<i32>) -> Result<(), Error> {
        // On a logarithmic axis.
        let ticks = [0.1_f64, 1.0, 10.0, 100.0, 1000.0];
        let panel = self.panel(at.clone(), -1.0..3.1, &ticks.map(f64::log10), |tick| match tick {
            3.0.. => "1 s".into(),
            _ => format!("{} ms", 10_f64.powf(tick)),
        })?;
        for (calls, colour) in [(&self.events.payments.calls, PAYMENT), (&self.events.users.calls, USER)] {
            for line in self.percentiles(calls, &panel) {
                self.root.draw(&PathElement::new(line, colour.stroke_width(2)))?;
            }
        }
        self.heading(at.start, "Latency, p99", &[("payment call", PAYMENT), ("user call", USER)], false)?;
        let step =
            [1.0, 2.0, 5.0, 10.0, 60.0].into_iter().find(|step| self.end / step <= 15.0).unwrap_or(600.0);
        for tick in (0..).map(|tick| f64::from(tick) * step).take_while(|tick| *tick <= self.end + 0.01) {
            let x = self.x(Duration::from_secs_f64(tick));
            self.root.draw(&PathElement::new(vec![(x, at.end), (x, at.end + 5)], FAINT))?;
            write(self.root, &format!("{tick:.0} s"), (x, at.end + 18), TEXT, &FAINT, HPos::Center)?;
        }
        Ok(())
    }

    /// The grid and the scale of one part.
    fn panel(
        &self,
        rows: Range<i32>,
        values: Range<f64>,
        ticks: &[f64],
        label: impl Fn(f64) -> String,
    ) -> Result<Panel, Error> {
        let panel = Panel { rows, values };
        for tick in ticks {
            let y = panel.y(*tick);
            self.root.draw(&PathElement::new(vec![(TIME.start, y), (TIME.end, y)], GRID))?;
            write(self.root, &label(*tick), (TIME.start - 8, y), TEXT, &FAINT, HPos::Right)?;
        }
        Ok(panel)
    }

    fn ticks(&self, rate: f64) -> [f64; 3] {
        [0.0, rate / 2.0, rate]
    }

    fn offered(&self, panel: &Panel) -> Result<(), Error> {
        let offered = self.steps(&self.rates(self.events.offered.iter().copied()), panel);
        self.root.draw(&DashedPathElement::new(offered, 5, 4, INK.stroke_width(1)))?;
        Ok(())
    }

    /// What a part shows, above it: its name to the left, its colours to the right.
    fn heading(&self, top: i32, name: &str, legend: &[(&str, RGBColor)], offered: bool) -> Result<(), Error> {
        let y = top - 16;
        write(self.root, name, (TIME.start, y), HEADING, &INK, HPos::Left)?;
        let mut end = TIME.end;
        let mut entry = |label: &str| -> Result<i32, Error> {
            let left = end - (f64::from(TEXT) * 0.44 * label.len() as f64) as i32;
            write(self.root, label, (left, y), TEXT, &FAINT, HPos::Left)?;
            end = left - 44;
            Ok(left - 8)
        };
        for (label, colour) in legend.iter().rev() {
            let right = entry(label)?;
            self.root.draw(&Rectangle::new([(right - 14, y - 6), (right, y + 6)], colour.filled()))?;
        }
        if offered {
            let right = entry("offered")?;
            let line = [(right - 24, y), (right, y)];
            self.root.draw(&DashedPathElement::new(line, 5, 4, INK.stroke_width(1)))?;
        }
        Ok(())
    }

    /// Events per second, bucket by bucket.
    fn rates(&self, times: impl Iterator<Item = Duration>) -> Vec<f64> {
        let mut rates = vec![0.0; (self.end / BUCKET.as_secs_f64()).ceil() as usize];
        for at in times {
            if let Some(rate) = rates.get_mut((at.as_secs_f64() / BUCKET.as_secs_f64()) as usize) {
                *rate += 1.0;
            }
        }
        for (index, rate) in rates.iter_mut().enumerate() {
            // The last bucket may be cut off by the end of the story.
            let left = self.end - index as f64 * BUCKET.as_secs_f64();
            *rate /= left.min(BUCKET.as_secs_f64());
        }
        rates
    }

    /// A line with a level per bucket.
    fn steps(&self, rates: &[f64], panel: &Panel) -> Vec<(i32, i32)> {
        let edge = |index: usize| self.x(BUCKET * index as u32).min(TIME.end);
        let level =
            |(index, rate): (usize, &f64)| [(edge(index), panel.y(*rate)), (edge(index + 1), panel.y(*rate))];
        rates.iter().enumerate().flat_map(level).collect()
    }

    /// The p99 over time; a line ends where nothing was called.
    fn percentiles(&self, calls: &[Call], panel: &Panel) -> Vec<Vec<(i32, i32)>> {
        let window = 2 * BUCKET;
        let mut lines = vec![Vec::new()];
        for from in (0..).map(|index| window * index).take_while(|from| from.as_secs_f64() < self.end) {
            let due = calls.iter().filter(|call| (from..from + window).contains(&call.due));
            match percentile(0.99, due.map(|call| call.took)) {
                Some(p99) => {
                    let y = panel.y((1000.0 * p99.as_secs_f64()).log10());
                    lines.last_mut().expect("a line").push((self.x(from + window / 2).min(TIME.end), y));
                }
                None => lines.push(Vec::new()),
            }
        }
        lines.retain(|line| !line.is_empty());
        lines
    }
}

/// A part of the picture with a scale of its own.
struct Panel {
    rows: Range<i32>,
    values: Range<f64>,
}

impl Panel {
    fn y(&self, value: f64) -> i32 {
        let share = (value - self.values.start) / (self.values.end - self.values.start);
        let height = f64::from(self.rows.end - self.rows.start);
        self.rows.end - (share.clamp(0.0, 1.0) * height).round() as i32
    }
}

/// Text whose middle is at the height of `at`.
fn write(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    size: u32,
    colour: &RGBColor,
    anchor: HPos,
) -> Result<(), Error> {
    let font = ("Helvetica, Arial, sans-serif", size).into_font();
    let style = font.color(colour).pos(Pos::new(anchor, VPos::Center));
    area.draw(&Text::new(text, at, style))?;
    Ok(())
}
