//! Sagas for people, and for programs as JSON. Nothing here writes, except that `gc` forgets.

use std::{
    io::{self, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mainstay::saga::{
    Phase, Timestamp,
    journal::{Head, Journal, Query, Stored},
    view::{Diagram, Timeline},
};
use serde_json::{Value, json};

use crate::Error;

/// How many heads are read at once.
const PAGE: usize = 500;
/// How many sagas are forgotten at once, so that the store is never blocked for long.
const FORGET: usize = 200;
/// A saga whose time has come so long ago has nobody who works on it.
const IDLE: Duration = Duration::from_secs(60);

pub async fn list(store: &dyn Journal, query: &Query, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let heads = heads(store, query).await?;
    Ok(print(&heads, store.now().await?, json, out, |head| head.note.clone())?)
}

pub async fn stuck(store: &dyn Journal, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let phases = Phase::ALL.into_iter().filter(|phase| !phase.is_terminal()).collect();
    let mut heads = heads(store, &Query { phases, ..Query::default() }).await?;
    let now = store.now().await?;
    heads.retain(|head| matches!(head.phase, Phase::Stuck | Phase::Parked) || is_idle(head, now));
    Ok(print(&heads, now, json, out, |head| why(head, now))?)
}

/// Whether its time has come, and nobody has taken it up.
fn is_idle(head: &Head, now: Timestamp) -> bool {
    head.owner.is_none() && head.wake.is_some_and(|wake| now.since(wake) > IDLE)
}

fn why(head: &Head, now: Timestamp) -> String {
    if is_idle(head, now) {
        let (name, version) = (&head.definition.name, head.definition.version);
        return format!(
            "nobody works on it: does an orchestrator run that knows {name} v{version}? {}",
            head.note
        );
    }
    head.note.clone()
}

async fn heads(store: &dyn Journal, query: &Query) -> Result<Vec<Head>, Error> {
    let most = if query.limit == 0 { usize::MAX } else { query.limit };
    let mut all: Vec<Head> = Vec::new();
    let mut query = query.clone();
    while all.len() < most {
        query.limit = PAGE.min(most - all.len());
        let page = store.list(query.clone()).await?;
        let Some(last) = page.last() else { break };
        query.after = Some(last.id.clone());
        let is_last = page.len() < query.limit;
        all.extend(page);
        if is_last {
            break;
        }
    }
    Ok(all)
}

fn print(
    heads: &[Head],
    now: Timestamp,
    json: bool,
    out: &mut impl Write,
    note: impl Fn(&Head) -> String,
) -> io::Result<()> {
    if json {
        return heads.iter().try_for_each(|head| writeln!(out, "{}", value(head)));
    }
    let mut table = vec![["id", "phase", "definition", "age", "records", "note"].map(str::to_owned)];
    for head in heads {
        table.push([
            head.id.to_string(),
            head.phase.to_string(),
            format!("{} v{}", head.definition.name, head.definition.version),
            span(now.since(head.created)),
            head.len.to_string(),
            one_line(&note(head)),
        ]);
    }
    let width = |at: usize| table.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for row in &table {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// How many sagas are damaged.
pub async fn check(store: &dyn Journal, out: &mut impl Write) -> Result<usize, Error> {
    let (mut read, mut damaged) = (0, 0);
    for head in heads(store, &Query::default()).await? {
        // It may have been forgotten meanwhile.
        let Some(stored) = store.load(&head.id).await? else { continue };
        read += 1;
        let unreadable = || {
            let found = stored.entries.iter().find_map(|entry| Some((entry.seq, entry.record().err()?)));
            found.map(|(seq, error)| format!("record {seq} cannot be read: {error}"))
        };
        if let Some(why) = stored.verify().err().map(|corrupt| corrupt.to_string()).or_else(unreadable) {
            damaged += 1;
            writeln!(out, "{}: {}", head.id, one_line(&why))?;
        }
    }
    writeln!(out, "{read} sagas read, {damaged} damaged")?;
    Ok(damaged)
}

pub fn show(stored: &Stored, now: Timestamp, json: bool, out: &mut impl Write) -> io::Result<()> {
    let Stored { head, entries } = stored;
    let damage = stored.verify().err().map(|corrupt| corrupt.to_string());
    let diagram = diagram(stored);
    if json {
        let mut shown = value(head);
        shown["damage"] = json!(damage);
        shown["input"] = input(stored);
        let steps = diagram.states().map(|(path, state)| json!({ "step": path, "state": state.as_str() }));
        shown["steps"] = Value::Array(steps.collect());
        return writeln!(out, "{shown}");
    }
    let since = |at: Timestamp| format!("{} ({} ago)", date(at), span(now.since(at)));
    let definition = &head.definition;
    let mut lines = vec![
        ("saga", head.id.to_string()),
        ("phase", head.phase.to_string()),
        ("note", one_line(&head.note)),
        ("definition", format!("{} v{}, digest {}", definition.name, definition.version, definition.digest)),
        ("created", since(head.created)),
        ("finished", head.finished.map(since).unwrap_or_default()),
        ("wakes", head.wake.map(date).unwrap_or_default()),
        ("owner", head.owner.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("epoch", head.epoch.to_string()),
        ("recoveries", if head.recoveries == 0 { String::new() } else { head.recoveries.to_string() }),
        ("tag", one_line(&head.tag)),
        ("records", entries.len().to_string()),
        ("damage", damage.unwrap_or_default()),
        ("input", one_line(&input(stored).to_string())),
    ];
    for (path, state) in diagram.states() {
        lines.push(("step", format!("{path}: {}", state.as_str())));
    }
    lines.retain(|(_, value)| !value.is_empty());
    lines.iter().try_for_each(|(name, value)| writeln!(out, "{name:<11} {value}"))
}

pub fn timeline(stored: &Stored, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let timeline = Timeline::of(stored);
    if json {
        writeln!(out, "{}", serde_json::to_string(&timeline)?)?;
    } else {
        write!(out, "{timeline}")?;
    }
    Ok(())
}

pub fn diagram(stored: &Stored) -> Diagram {
    Diagram::of(stored)
}

/// How many sagas were forgotten.
pub async fn gc(store: &dyn Journal, age: Duration, limit: usize) -> Result<usize, Error> {
    let now = store.now().await?;
    let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let before = Timestamp(now.0.saturating_sub(age));
    let most = if limit == 0 { usize::MAX } else { limit };
    let mut forgotten = 0;
    while forgotten < most {
        let at_once = FORGET.min(most - forgotten);
        let some = store.forget(before, at_once).await?;
        forgotten += some;
        if some < at_once {
            break;
        }
    }
    Ok(forgotten)
}

fn input(stored: &Stored) -> Value {
    let first = stored.entries.first().and_then(|entry| entry.record().ok());
    match first {
        Some(mainstay::saga::Record::Begun { input, .. }) => input.decode().unwrap_or(Value::Null),
        _ => Value::Null,
    }
}

fn value(head: &Head) -> Value {
    json!({
        "id": head.id.as_str(),
        "phase": head.phase.as_str(),
        "note": head.note,
        "definition": head.definition.name,
        "version": head.definition.version,
        "digest": head.definition.digest,
        "epoch": head.epoch,
        "owner": head.owner.as_ref().map(|owner| owner.as_str()),
        "records": head.len,
        "wake": head.wake,
        "created": head.created,
        "finished": head.finished,
        "recoveries": head.recoveries,
        "tag": head.tag,
    })
}

fn date(at: Timestamp) -> String {
    let time: SystemTime = UNIX_EPOCH + Duration::from_millis(at.0.min(253_402_300_799_000));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// The two largest units of a duration.
fn span(time: Duration) -> String {
    let whole = humantime::format_duration(Duration::from_secs(time.as_secs())).to_string();
    whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A text that stays on its line, whatever is in it.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
