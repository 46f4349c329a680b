//! `top`: what every service says of itself, four times a second, on a terminal; or once, as plain text.
//!
//! Each service is asked by itself: one that does not answer is shown as such and holds up no other.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use order_kit::{BoxError, metric};
use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    cli,
    remote::{Answer, Remote},
    services,
};

/// How often it is looked.
const EVERY: Duration = Duration::from_millis(250);
/// How long a service may take to say all.
const PATIENCE: Duration = Duration::from_secs(1);
/// Takes a screen of its own, on which lines are cut rather than broken, without a cursor; and gives back what was there.
const ENTER: &str = "\x1b[?1049h\x1b[?7l\x1b[?25l\x1b[2J";
const LEAVE: &str = "\x1b[?25h\x1b[?7h\x1b[?1049l";

/// What a service says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
struct Service {
    /// `ok`, or what else, with what is wrong.
    health: String,
    uptime: u64,
    unsent: Option<u64>,
    /// By name: what is still to be handled, and dead letters.
    queues: BTreeMap<String, (u64, u64)>,
    policies: BTreeMap<String, Policy>,
    sagas: Option<Sagas>,
}

/// The policies of one name, side by side. Of pairs, the second is the limit.
#[derive(Debug, Clone, Default, PartialEq)]
struct Policy {
    breaker: Option<String>,
    failure_rate: Option<f64>,
    running: Option<(u64, u64)>,
    waiting: Option<(u64, u64)>,
    retry_budget: Option<f64>,
    remaining: Option<(u64, u64)>,
}

/// Those that are not over.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sagas {
    in_flight: u64,
    need_attention: u64,
}

/// Each service with what it says, or why that is not known.
type Seen = Vec<(&'static str, Result<Service, String>)>;

/// Looks until Ctrl-C or SIGTERM; once, if that is wanted or nobody sits at a terminal.
///
/// # Errors
///
/// Output that cannot be written.
pub async fn run(remote: &Remote, once: bool) -> Result<(), BoxError> {
    let mut out = io::stdout();
    if !once && out.is_terminal() {
        return Ok(live(remote, &mut out, cli::end_of_program()).await?);
    }
    let text = lines(&look(remote).await).join("\n");
    match writeln!(out, "{text}") {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Draws until it is to end. The terminal is given back however that comes.
async fn live(remote: &Remote, out: &mut impl Write, end: impl Future<Output = ()>) -> io::Result<()> {
    let seen = Arc::new(Mutex::new(look(remote).await));
    let mut looking = JoinSet::new();
    for (at, name) in parts().enumerate() {
        let (remote, seen) = (remote.clone(), seen.clone());
        looking.spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                let said = ask(&remote, name).await;
                seen.lock().unwrap_or_else(PoisonError::into_inner)[at].1 = said;
            }
        });
    }
    let mut screen = Screen::enter(out)?;
    let mut draw = interval(EVERY);
    draw.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            biased;
            () = &mut end => return Ok(()),
            _ = draw.tick() => {
                let now = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
                screen.draw(&lines(&now))?;
            }
        }
    }
}

/// A terminal that has been taken, and is given back when this is dropped.
struct Screen<'a, W: Write>(&'a mut W);

impl<'a, W: Write> Screen<'a, W> {
    fn enter(out: &'a mut W) -> io::Result<Self> {
        let screen = Screen(out);
        screen.0.write_all(ENTER.as_bytes())?;
        Ok(screen)
    }

    /// Each line at its own place: where there are too few, the last one takes those that are too many, and nothing scrolls.
    fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let mut frame = String::from("\x1b[H");
        for (row, line) in lines.iter().enumerate() {
            frame.push_str(&format!("\x1b[{};1H{line}\x1b[K", row + 1));
        }
        frame.push_str("\x1b[J");
        self.0.write_all(frame.as_bytes())?;
        self.0.flush()
    }
}

impl<W: Write> Drop for Screen<'_, W> {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.0.write_all(LEAVE.as_bytes());
        let _ = self.0.flush();
    }
}

/// Whom to ask.
fn parts() -> impl Iterator<Item = &'static str> {
    services::ALL.iter().copied().chain([order_notifications::loyalty::NAME])
}

/// Asks all at once.
async fn look(remote: &Remote) -> Seen {
    join_all(parts().map(async |name| (name, ask(remote, name).await))).await
}

async fn ask(remote: &Remote, name: &'static str) -> Result<Service, String> {
    let ask = futures::future::try_join3(
        remote.get(name, "/health/ready"),
        remote.get(name, "/metrics"),
        remote.get(name, "/_policies"),
    );
    match timeout(PATIENCE, ask).await {
        Ok(Ok((_, _, policies))) if policies.status == 401 => {
            Err("it does not know INTERNAL_TOKEN".to_owned())
        }
        Ok(Ok((ready, figures, policies))) => Ok(Service::of(name, &ready, &figures.text, &policies.json())),
        Ok(Err(_)) | Err(_) => Err("no answer".to_owned()),
    }
}

impl Service {
    fn of(name: &str, ready: &Answer, figures: &str, policies: &Value) -> Self {
        let ready = ready.json();
        let own =
            |figure| samples(figures, figure).filter(move |(labels, _)| label(labels, "service") == name);
        let mut queues: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for (labels, count) in own(metric::QUEUE_BACKLOG) {
            queues.entry(label(labels, "queue").to_owned()).or_default().0 = count as u64;
        }
        for (labels, count) in own(metric::QUEUE_DEAD) {
            queues.entry(label(labels, "queue").to_owned()).or_default().1 = count as u64;
        }
        let mut by_name: BTreeMap<String, Policy> = BTreeMap::new();
        for policy in policies.as_array().into_iter().flatten() {
            by_name.entry(text(&policy["name"]).to_owned()).or_default().add(policy);
        }
        Service {
            health: health(&ready),
            uptime: number(&ready["uptime"]),
            unsent: own(metric::OUTBOX_UNSENT).next().map(|(_, count)| count as u64),
            queues,
            policies: by_name,
            sagas: own(metric::SAGAS_IN_FLIGHT).next().map(|(_, in_flight)| Sagas {
                in_flight: in_flight as u64,
                need_attention: own(metric::SAGAS_ATTENTION).map(|(_, count)| count as u64).sum(),
            }),
        }
    }

    /// Whether somebody should look.
    fn is_troubled(&self) -> bool {
        self.health != "ok" || self.queues.values().any(|(_, dead)| *dead > 0)
    }
}

/// What is wrong is said by name.
fn health(ready: &Value) -> String {
    let failing = ready["checks"].as_object().into_iter().flatten().filter(|(_, it)| it["status"] != "ok");
    let failing: Vec<&str> = failing.map(|(name, _)| name.as_str()).collect();
    match (text(&ready["status"]), failing.join(", ")) {
        ("", _) => "unknown".to_owned(),
        (status, failing) if failing.is_empty() => status.to_owned(),
        (status, failing) => format!("{status}: {failing}"),
    }
}

impl Policy {
    fn add(&mut self, snapshot: &Value) {
        let pair = |of: &str, limit: &str| Some((number(&snapshot[of]), number(&snapshot[limit])));
        match text(&snapshot["policy"]) {
            "circuit_breaker" => {
                // The first unit of `12s 3ms` is enough to look at.
                let wait = snapshot["remaining_wait"].as_str().and_then(|wait| wait.split(' ').next());
                let wait = wait.map(|wait| format!(" {wait}"));
                self.breaker = Some(text(&snapshot["state"]).to_owned() + &wait.unwrap_or_default());
                self.failure_rate = snapshot["failure_rate"].as_f64();
            }
            "bulkhead" => {
                self.running = pair("in_use", "limit");
                self.waiting = pair("waiting", "queue_length");
            }
            "retry" => self.retry_budget = snapshot["budget"]["available"].as_f64(),
            "rate_limiter" => {
                let quota = &snapshot["quota"];
                self.remaining = Some((number(&quota["remaining"]), number(&quota["limit"])));
            }
            _ => {}
        }
    }

    fn is_troubled(&self) -> bool {
        let stops = self.breaker.as_ref().is_some_and(|it| !it.starts_with("closed") && it != "disabled");
        let full = self.running.is_some_and(|(running, limit)| running >= limit);
        stops || full || self.remaining.is_some_and(|(remaining, _)| remaining == 0)
    }
}

/// The series of a figure, as `/metrics` writes them: what stands between the braces, and the value.
fn samples<'a>(figures: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    figures.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
        Some((labels, value.parse().ok()?))
    })
}

fn label<'a>(labels: &'a str, name: &str) -> &'a str {
    let pairs = labels.split("\",").map(|pair| pair.trim_end_matches('"'));
    let mut values = pairs.filter_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\""));
    values.next().unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

/// One look. A line that somebody should look at begins with `!`.
fn lines(seen: &Seen) -> Vec<String> {
    // Loyalty is there when somebody wants it.
    let shown = |it: &&(&str, Result<Service, String>)| it.1.is_ok() || services::ALL.contains(&it.0);
    let seen: Vec<_> = seen.iter().filter(shown).collect();
    let well: Vec<_> = seen.iter().filter_map(|(name, it)| Some((*name, it.as_ref().ok()?))).collect();
    let mut lines = vec![format!("order-system  {}", order_kit::iso(order_kit::now_ms())), String::new()];

    let rows = seen.iter().map(|(name, said)| match said {
        Ok(it) => {
            let sum = |of: fn(&(u64, u64)) -> u64| it.queues.values().map(of).sum::<u64>();
            let queues = |sum| if it.queues.is_empty() { "-".to_owned() } else { u64::to_string(&sum) };
            let unsent = it.unsent.map_or_else(|| "-".to_owned(), |unsent| unsent.to_string());
            let uptime = format!("{} s", it.uptime);
            let (backlog, dead) = (queues(sum(|it| it.0)), queues(sum(|it| it.1)));
            (it.is_troubled(), vec![(*name).to_owned(), it.health.clone(), uptime, unsent, backlog, dead])
        }
        Err(why) => (true, vec![(*name).to_owned(), why.clone()]),
    });
    table(&mut lines, &["SERVICE", "HEALTH", "UP", "OUTBOX", "QUEUED", "DEAD"], rows);

    let sagas = well.iter().find_map(|(_, it)| it.sagas);
    let (mark, said) = match sagas {
        Some(Sagas { in_flight, need_attention }) => {
            (need_attention > 0, format!("{in_flight} in flight, {need_attention} need attention"))
        }
        None => (true, "unknown".to_owned()),
    };
    lines.push(format!("{} sagas: {said}", if mark { '!' } else { ' ' }));
    lines.push(String::new());

    let rows = well.iter().flat_map(|(name, it)| {
        it.policies.iter().map(|(policy, it)| {
            let percent = it.failure_rate.map(|rate| format!("{:.1} %", rate * 100.0));
            let pair = |pair: Option<(u64, u64)>| pair.map(|(some, of)| format!("{some}/{of}"));
            let cells = [
                Some((*name).to_owned()),
                Some(policy.clone()),
                it.breaker.clone(),
                percent,
                pair(it.running),
                pair(it.waiting),
                it.retry_budget.map(|budget| format!("{budget:.1}")),
                pair(it.remaining),
            ];
            (it.is_troubled(), cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned())).to_vec())
        })
    });
    let head = ["SERVICE", "POLICY", "BREAKER", "FAILED", "RUNNING", "WAITING", "RETRY BUDGET", "LIMIT LEFT"];
    table(&mut lines, &head, rows);

    let rows = well.iter().flat_map(|(name, it)| {
        it.queues.iter().map(|(queue, (backlog, dead))| {
            (*dead > 0, vec![(*name).to_owned(), queue.clone(), backlog.to_string(), dead.to_string()])
        })
    });
    table(&mut lines, &["SERVICE", "QUEUE", "QUEUED", "DEAD"], rows);
    lines.pop();
    lines
}

/// A table with an empty line behind it.
fn table(lines: &mut Vec<String>, head: &[&str], rows: impl Iterator<Item = (bool, Vec<String>)>) {
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    // What others say moves no cursor.
    let clean = |cell: String| cell.replace(char::is_control, "?");
    let rows: Vec<(bool, Vec<String>)> = [(false, head)]
        .into_iter()
        .chain(rows)
        .map(|(mark, cells)| (mark, cells.into_iter().map(clean).collect()))
        .collect();
    let columns = rows.iter().map(|(_, cells)| cells.len()).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|(_, cells)| cells.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for (mark, cells) in &rows {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        lines.push(format!("{} {}", if *mark { '!' } else { ' ' }, line.trim_end()));
    }
    lines.push(String::new());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(policies: &Value) -> Service {
        let figures = "# HELP queue_backlog of all\n\
            queue_backlog{service=\"orders\",queue=\"orders.read\"} 7\n\
            queue_backlog{service=\"payments\",queue=\"payments\"} 99\n\
            queue_dead{service=\"orders\",queue=\"orders.read\"} 0\n\
            queue_dead{service=\"orders\",queue=\"orders.users\"} 2\n\
            outbox_unsent{service=\"payments\"} 98\n\
            outbox_unsent{service=\"orders\"} 50\n\
            sagas_in_flight{service=\"orders\"} 6\n\
            sagas_attention{service=\"orders\"} 1\n";
        let ready = json!({
            "status": "degraded", "uptime": 12,
            "checks": { "database": { "status": "ok" }, "messageQueue": { "status": "fail" } },
        });
        let ready =
            Answer { status: http::StatusCode::OK, headers: http::HeaderMap::new(), text: ready.to_string() };
        Service::of("orders", &ready, figures, policies)
    }

    fn policies() -> Value {
        json!([
            { "policy": "circuit_breaker", "name": "user", "state": "open", "failure_rate": 0.625, "remaining_wait": "12s 3ms" },
            { "policy": "bulkhead", "name": "user", "limit": 20, "in_use": 3, "waiting": 1, "queue_length": 100 },
            { "policy": "retry", "name": "user", "budget": { "available": 9.25 } },
            { "policy": "retry", "name": "bare", "budget": null },
            { "policy": "circuit_breaker", "name": "fine", "state": "closed", "failure_rate": 0.0 },
            { "policy": "rate_limiter", "name": "client[\u{1b}[2J]", "quota": { "remaining": 0, "limit": 100 } },
            { "policy": "of tomorrow", "name": "fine" },
        ])
    }

    /// A line by its cells, whatever the widths are.
    fn cells(line: &str) -> Vec<&str> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
    }

    #[test]
    fn a_look_shows_everything_once_and_marks_what_is_wrong() {
        let down = || Err("no answer".to_owned());
        let seen = vec![("orders", Ok(said(&policies()))), ("payments", down()), ("loyalty", down())];
        let lines = lines(&seen);
        let has = |wanted: &[&str]| {
            let found = lines.iter().filter(|line| cells(line) == wanted).count();
            assert_eq!(found, 1, "{wanted:?} in\n{}", lines.join("\n"));
        };
        has(&["! orders", "degraded: messageQueue", "12 s", "50", "7", "2"]);
        has(&["! payments", "no answer"]);
        has(&["! sagas: 6 in flight, 1 need attention"]);
        has(&["! orders", "user", "open 12s", "62.5 %", "3/20", "1/100", "9.2", "-"]);
        has(&["orders", "fine", "closed", "0.0 %", "-", "-", "-", "-"]);
        has(&["orders", "bare", "-", "-", "-", "-", "-", "-"]);
        has(&["! orders", "client[?[2J]", "-", "-", "-", "-", "-", "0/100"]);
        has(&["orders", "orders.read", "7", "0"]);
        has(&["! orders", "orders.users", "0", "2"]);
        assert!(!lines.iter().any(|line| line.contains("loyalty")), "nobody needs it");
        assert!(!lines.iter().any(|line| line.contains('\x1b')));
    }

    #[test]
    fn without_orders_nobody_knows_of_sagas() {
        let lines = lines(&vec![("orders", Err("no answer".to_owned()))]);
        assert!(lines.contains(&"! sagas: unknown".to_owned()), "{lines:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_terminal_is_given_back() {
        let (remote, mut out) = (Remote::of(BTreeMap::new(), &order_kit::env::Env::empty()), Vec::new());
        live(&remote, &mut out, tokio::time::sleep(Duration::from_millis(1_001))).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with(ENTER) && text.ends_with(LEAVE), "{text:?}");
        let frames = text.matches("\x1b[H").count();
        assert_eq!(frames, 5, "at once, and four in a second");
        assert_eq!(text.matches("payments").count(), frames);
    }

    /// Also where nothing can be drawn any more.
    #[tokio::test(start_paused = true)]
    async fn a_terminal_that_breaks_is_given_back() {
        struct Breaks(Vec<u8>);
        impl Write for Breaks {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                if bytes.starts_with(b"\x1b[H") {
                    return Err(io::ErrorKind::Other.into());
                }
                self.0.extend(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let remote = Remote::of(BTreeMap::new(), &order_kit::env::Env::empty());
        let mut out = Breaks(Vec::new());
        live(&remote, &mut out, std::future::pending()).await.unwrap_err();
        assert_eq!(out.0, [ENTER, LEAVE].concat().as_bytes());
    }
}
