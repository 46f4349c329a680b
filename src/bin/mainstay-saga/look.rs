//! Sagas for people, and for programs as JSON. Nothing here writes, except that `gc` forgets.

use std::{
    io::{self, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mainstay::saga::{
    Phase, Timestamp,
    journal::{Forgotten, Head, Journal, Query, Stored},
    view::{Diagram, Timeline},
};
use serde_json::{Value, json};

use crate::{
    Error,
    attention::{Attention, Owner, Present, Trouble, damage},
};

/// How many heads are read at once.
const PAGE: usize = 500;
/// How many sagas are forgotten at once, so that the store is never blocked for long.
const FORGET: usize = 200;
/// The present, with those who work on the store.
pub async fn present(store: &dyn Journal) -> Result<Present, Error> {
    let orchestrators = store.orchestrators().await?;
    Ok(Present { now: store.now().await?, orchestrators })
}

/// Heads that were asked for, if not of `None` then of one version.
pub async fn list(
    store: &dyn Journal,
    query: &Query,
    version: Option<u32>,
    json: bool,
    out: &mut impl Write,
) -> Result<(), Error> {
    let heads = heads(store, query, version).await?;
    let present = present(store).await?;
    if json {
        heads.iter().try_for_each(|head| {
            writeln!(out, "{}", value(head, present.of_head(head).as_ref(), &present))
        })?;
        return Ok(());
    }
    let mut rows = vec![["id", "phase", "definition", "age", "records", "note"].map(str::to_owned)];
    for head in &heads {
        let note = match present.of_head(head) {
            // Of these the note says it already.
            None | Some(Attention { trouble: Trouble::Stuck | Trouble::Parked, .. }) => head.note.clone(),
            Some(Attention { trouble, why }) => format!("{}: {why}", trouble.as_str()),
        };
        let [id, phase, definition, age, records] = row(head, present.now);
        rows.push([id, phase, definition, age, records, one_line(&note)]);
    }
    Ok(table(&rows, out)?)
}

/// What needs a person. Reads every saga that is not over, one after the other.
pub async fn stuck(store: &dyn Journal, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let phases = Phase::ALL.into_iter().filter(|phase| !phase.is_terminal()).collect();
    let heads = heads(store, &Query { phases, ..Query::default() }, None).await?;
    let titles = ["id", "phase", "definition", "age", "records", "trouble", "why", "what to do"];
    let mut rows = vec![titles.map(str::to_owned)];
    let mut present = self::present(store).await?;
    for head in heads {
        let Some(stored) = store.load(&head.id).await? else { continue };
        let mut found = present.of(&stored);
        if found.as_ref().is_some_and(|found| found.trouble == Trouble::Orphaned) {
            // Its owner may have come since.
            present = self::present(store).await?;
            found = present.of(&stored);
        }
        let Some(found) = found else { continue };
        if json {
            writeln!(out, "{}", value(&stored.head, Some(&found), &present))?;
        }
        let [id, phase, definition, age, records] = row(&stored.head, present.now);
        let Attention { trouble, why } = &found;
        let (trouble, todo) = (trouble.as_str().to_owned(), trouble.advice().to_owned());
        rows.push([id, phase, definition, age, records, trouble, one_line(why), todo]);
    }
    if !json {
        table(&rows, out)?;
    }
    Ok(())
}

async fn heads(store: &dyn Journal, query: &Query, version: Option<u32>) -> Result<Vec<Head>, Error> {
    let most = if query.limit == 0 { usize::MAX } else { query.limit };
    let mut all: Vec<Head> = Vec::new();
    let mut query = query.clone();
    while all.len() < most {
        // What a page has of another version is left out behind the store.
        query.limit = if version.is_some() { PAGE } else { PAGE.min(most - all.len()) };
        let page = store.list(query.clone()).await?;
        let Some(last) = page.last() else { break };
        query.after = Some(last.id.clone());
        let is_last = page.len() < query.limit;
        all.extend(page.into_iter().filter(|head| version.is_none_or(|it| it == head.definition.version)));
        if is_last {
            break;
        }
    }
    all.truncate(most);
    Ok(all)
}

fn row(head: &Head, now: Timestamp) -> [String; 5] {
    [
        head.id.to_string(),
        head.phase.to_string(),
        format!("{} v{}", head.definition.name, head.definition.version),
        span(now.since(head.created)),
        head.len.to_string(),
    ]
}

fn table<const N: usize>(rows: &[[String; N]], out: &mut impl Write) -> io::Result<()> {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// How many sagas are damaged, and what else is.
pub async fn check(store: &dyn Journal, out: &mut impl Write) -> Result<usize, Error> {
    let (mut read, mut damaged) = (0, 0);
    for head in heads(store, &Query::default(), None).await? {
        let why = match (store.load(&head.id).await?, head.damage) {
            (Some(stored), _) => damage(&stored),
            (None, Some(damage)) => Some(damage),
            // It was forgotten meanwhile.
            (None, None) => continue,
        };
        read += 1;
        if let Some(why) = why {
            damaged += 1;
            writeln!(out, "{}: {}", head.id, one_line(&why))?;
        }
    }
    let wrong = store.check().await?;
    for what in &wrong {
        writeln!(out, "the store: {}", one_line(what))?;
    }
    writeln!(out, "{read} sagas read, {damaged} damaged")?;
    Ok(damaged + wrong.len())
}

pub fn show(stored: &Stored, present: &Present, json: bool, out: &mut impl Write) -> io::Result<()> {
    let Stored { head, entries } = stored;
    let (now, found) = (present.now, present.of(stored));
    let damage = stored.verify().err().map(|corrupt| corrupt.to_string());
    let diagram = diagram(stored);
    if json {
        let mut shown = value(head, found.as_ref(), present);
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
        (
            "owner",
            head.owner.as_ref().map(|owner| format!("{owner}: {}", present.owner(head))).unwrap_or_default(),
        ),
        ("epoch", head.epoch.to_string()),
        ("recoveries", if head.recoveries == 0 { String::new() } else { head.recoveries.to_string() }),
        ("tag", one_line(&head.tag)),
        ("records", entries.len().to_string()),
        ("damage", damage.unwrap_or_default()),
        (
            "trouble",
            found
                .as_ref()
                .map(|found| format!("{}: {}", found.trouble.as_str(), one_line(&found.why)))
                .unwrap_or_default(),
        ),
        ("what to do", found.as_ref().map(|found| found.trouble.advice().to_owned()).unwrap_or_default()),
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
pub async fn gc(store: &dyn Journal, by: &str, age: Duration, limit: usize) -> Result<usize, Error> {
    let now = store.now().await?;
    let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let before = Timestamp(now.0.saturating_sub(age));
    let most = if limit == 0 { usize::MAX } else { limit };
    let mut forgotten = 0;
    while forgotten < most {
        let at_once = FORGET.min(most - forgotten);
        let some = store.forget(by, before, at_once).await?;
        forgotten += some;
        if some < at_once {
            break;
        }
    }
    Ok(forgotten)
}

/// What was forgotten, the last first.
pub async fn audit(store: &dyn Journal, json: bool, out: &mut impl Write) -> Result<(), Error> {
    let mut rows = vec![["at", "by", "sagas", "that had ended before"].map(str::to_owned)];
    for Forgotten { by, before, sagas, at } in store.forgotten(usize::MAX).await? {
        if json {
            writeln!(out, "{}", json!({ "at": at.0, "by": by, "sagas": sagas, "before": before.0 }))?;
        }
        rows.push([date(at), one_line(&by), sagas.to_string(), date(before)]);
    }
    if !json {
        table(&rows, out)?;
    }
    Ok(())
}

fn input(stored: &Stored) -> Value {
    let first = stored.entries.first().and_then(|entry| entry.record().ok());
    match first {
        Some(mainstay::saga::Record::Begun { input, .. }) => input.decode().unwrap_or(Value::Null),
        _ => Value::Null,
    }
}

fn value(head: &Head, found: Option<&Attention>, present: &Present) -> Value {
    let owner = match present.owner(head) {
        Owner::None => Value::Null,
        owner => json!(owner == Owner::Alive),
    };
    json!({
        "id": head.id.as_str(),
        "phase": head.phase.as_str(),
        "note": head.note,
        "definition": head.definition.name,
        "version": head.definition.version,
        "digest": head.definition.digest,
        "epoch": head.epoch,
        "owner": head.owner.as_ref().map(|owner| owner.as_str()),
        "owner_lives": owner,
        "trouble": found.map(|found| found.trouble.as_str()),
        "why": found.map(|found| &found.why),
        "todo": found.map(|found| found.trouble.advice()),
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
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
