//! Everything that only looks.
//!
//! What is damaged is handed on as it was found, for `Stored::verify` to notice: one bad saga must not hide the others.

use rusqlite::{
    Connection, ErrorCode, OptionalExtension, Result, Row, params_from_iter,
    types::{Value, ValueRef},
};

use super::{open::SCHEMA, write::int};
use crate::saga::{
    Entry, Incarnation, SagaId, Timestamp,
    journal::{Ask, DefinitionId, Forgotten, Head, Phase, Query, Registered, Request, Stored},
};

const HEAD: &str =
    "SELECT number, id, definition, version, digest, phase, note, epoch, owner, len, crc, wake, created,
                    finished, recoveries, tag FROM saga";

/// One row, of which not every column may be what it should: a value that cannot be has a stand-in and is remembered.
struct Reader<'r, 's> {
    row: &'r Row<'s>,
    damage: Option<String>,
}

impl Reader<'_, '_> {
    fn damaged(&mut self, column: usize) {
        let row: &rusqlite::Statement<'_> = self.row.as_ref();
        let name = row.column_name(column).unwrap_or("?");
        self.damage.get_or_insert_with(|| format!("column {name} cannot be read"));
    }

    fn optional_text(&mut self, column: usize) -> Option<String> {
        match self.row.get_ref(column) {
            Ok(ValueRef::Null) => return None,
            Ok(ValueRef::Text(text)) => match std::str::from_utf8(text) {
                Ok(text) => return Some(text.to_owned()),
                Err(_) => self.damaged(column),
            },
            _ => self.damaged(column),
        }
        let bytes = self.row.get_ref(column).ok().and_then(|value| value.as_bytes().ok()).unwrap_or_default();
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    fn text(&mut self, column: usize) -> String {
        self.optional_text(column).unwrap_or_else(|| {
            self.damaged(column);
            String::new()
        })
    }

    fn optional_number(&mut self, column: usize) -> Option<u64> {
        match self.row.get_ref(column) {
            Ok(ValueRef::Null) => None,
            Ok(ValueRef::Integer(number)) if number >= 0 => Some(number as u64),
            _ => {
                self.damaged(column);
                None
            }
        }
    }

    fn number(&mut self, column: usize) -> u64 {
        let damaged = self.damage.is_some();
        let number = self.optional_number(column);
        if number.is_none() && self.damage.is_some() == damaged {
            self.damaged(column);
        }
        number.unwrap_or_default()
    }

    fn word(&mut self, column: usize) -> u32 {
        u32::try_from(self.number(column)).unwrap_or_else(|_| {
            self.damaged(column);
            0
        })
    }
}

/// The id of a row that has none.
fn stand_in(number: i64) -> SagaId {
    let id = SagaId::new(&format!("unreadable-row-{number}"));
    id.unwrap_or_else(|_| unreachable!("letters and digits make an id"))
}

/// A head and its number, also of a row that makes no sense.
fn head(row: &Row<'_>) -> Result<(i64, Head)> {
    let mut reader = Reader { row, damage: None };
    let number: i64 = row.get(0)?;
    let id = SagaId::new(&reader.text(1)).unwrap_or_else(|_| {
        reader.damaged(1);
        stand_in(number)
    });
    let definition = DefinitionId { name: reader.text(2), version: reader.word(3), digest: reader.text(4) };
    let mut head = Head::new(id, definition, Timestamp(reader.number(12)));
    head.phase = Phase::from_text(&reader.text(5)).unwrap_or_else(|| {
        reader.damaged(5);
        Phase::Stuck
    });
    head.note = reader.text(6);
    head.epoch = reader.number(7);
    head.owner = reader.optional_text(8).map(|owner| Incarnation::from_text(&owner));
    head.len = reader.number(9);
    head.crc = reader.word(10);
    head.wake = reader.optional_number(11).map(Timestamp);
    head.finished = reader.optional_number(13).map(Timestamp);
    head.recoveries = reader.word(14);
    head.tag = reader.text(15);
    if let Some(damage) = &reader.damage {
        head.note.clone_from(damage);
    }
    head.damage = reader.damage;
    Ok((number, head))
}

/// The entries that can be read, and why one behind them cannot.
fn entries(connection: &Connection, number: i64) -> Result<(Vec<Entry>, Option<String>)> {
    let mut select = connection.prepare_cached(
        "SELECT seq, epoch, at, author, kind, step, data, crc FROM saga_event WHERE saga = ?1 ORDER BY seq",
    )?;
    let mut rows = select.query([number])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let mut reader = Reader { row, damage: None };
        let entry = Entry {
            seq: reader.number(0),
            epoch: reader.number(1),
            at: Timestamp(reader.number(2)),
            by: Incarnation::from_text(&reader.text(3)),
            kind: reader.text(4),
            step: reader.optional_text(5),
            data: reader.text(6),
            crc: reader.word(7),
        };
        if let Some(damage) = reader.damage {
            let at = entries.len();
            return Ok((entries, Some(format!("entry {at}: {damage}"))));
        }
        entries.push(entry);
    }
    Ok((entries, None))
}

pub(super) fn is_corrupt(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
}

fn stored(connection: &Connection, number: i64, mut head: Head) -> Result<Stored> {
    let (entries, damage) = match entries(connection, number) {
        Ok(read) => read,
        // Pages that make no sense are this saga's misfortune.
        Err(error) if is_corrupt(&error) => (Vec::new(), Some(format!("its entries: {error}"))),
        Err(error) => return Err(error),
    };
    head.damage = head.damage.or(damage);
    Ok(Stored { head, entries })
}

pub(super) fn numbered(connection: &Connection, number: i64) -> Result<Option<Stored>> {
    let mut select = connection.prepare_cached(&format!("{HEAD} WHERE number = ?1"))?;
    let found = select.query_row([number], head).optional()?;
    found.map(|(number, head)| stored(connection, number, head)).transpose()
}

/// One saga, with head and entries of the same moment: within a transaction.
pub(super) fn load(connection: &Connection, saga: &SagaId) -> Result<Option<Stored>> {
    let mut select = connection.prepare_cached(&format!("{HEAD} WHERE id = ?1"))?;
    let found = select.query_row([saga.as_str()], head).optional()?;
    found.map(|(number, head)| stored(connection, number, head)).transpose()
}

/// The select for a listing, and what is bound to it.
pub(super) fn listing(query: &Query) -> (String, Vec<Value>) {
    let limit = if query.limit == 0 { 100 } else { query.limit };
    let mut sql = format!("{HEAD} WHERE true");
    let mut values: Vec<Value> = Vec::new();
    let mut bind = |sql: &mut String, condition: &str, value: &str| {
        values.push(value.to_owned().into());
        sql.push_str(condition);
        sql.push_str(&format!("?{}", values.len()));
    };
    let open = || Phase::ALL.into_iter().filter(|phase| !phase.is_terminal());
    if !query.phases.is_empty()
        && query.phases.len() == open().count()
        && open().all(|open| query.phases.contains(&open))
    {
        // Also those whose phase cannot be read.
        sql.push_str(" AND finished IS NULL");
    } else if !query.phases.is_empty() {
        sql.push_str(" AND phase IN (");
        for (at, phase) in query.phases.iter().enumerate() {
            bind(&mut sql, if at == 0 { "" } else { ", " }, phase.as_str());
        }
        sql.push(')');
        // Said again as the index for them says it, or SQLite does not see that it serves.
        if query.phases.iter().all(|phase| matches!(phase, Phase::Stuck | Phase::Parked)) {
            sql.push_str(" AND phase IN ('stuck', 'parked')");
        } else if query.phases.iter().all(|phase| !phase.is_terminal()) {
            sql.push_str(" AND finished IS NULL");
        }
    }
    if let Some(name) = &query.definition {
        bind(&mut sql, " AND definition = ", name);
    }
    if let Some(tag) = &query.tag {
        bind(&mut sql, " AND tag = ", tag);
        if !tag.is_empty() {
            sql.push_str(" AND tag <> ''");
        }
    }
    if let Some(after) = &query.after {
        bind(&mut sql, " AND id > ", after.as_str());
    }
    values.push(int(limit as u64).into());
    sql.push_str(&format!(" ORDER BY id LIMIT ?{}", values.len()));
    (sql, values)
}

pub(super) fn list(connection: &Connection, query: &Query) -> Result<Vec<Head>> {
    let (sql, values) = listing(query);
    let mut select = connection.prepare_cached(&sql)?;
    let listed = select.query_map(params_from_iter(values), head)?.collect::<Result<Vec<_>>>();
    let mut heads = match listed {
        Ok(heads) if are_in_order(&heads, query) => heads,
        Err(error) if !is_corrupt(&error) => return Err(error),
        _ => one_by_one(connection, query)?,
    };
    // Whoever asks for the next page says the last id of this one, so one that stands for another does not come last.
    heads.sort_by_key(|(number, head)| head.damage.is_none() || head.id != stand_in(*number));
    Ok(heads.into_iter().map(|(_, head)| head).collect())
}

/// Whether the rows come as they were asked for. An index whose keys are damaged, which SQLite does not notice, has another order, and whoever asks
/// for page after page would never come to an end.
fn are_in_order(heads: &[(i64, Head)], query: &Query) -> bool {
    let readable =
        heads.iter().filter(|(number, head)| head.id != stand_in(*number)).map(|(_, head)| &head.id);
    query.after.iter().chain(readable).is_sorted_by(|one, next| one < next)
}

/// The numbers of all rows there may be.
pub(super) fn numbers(connection: &Connection) -> Result<std::ops::RangeInclusive<i64>> {
    let last: Option<i64> = connection.query_row("SELECT max(number) FROM saga", [], |row| row.get(0))?;
    Ok(1..=last.unwrap_or(0))
}

/// As `list`, where a page or an index cannot be read: every row by its number. Slow, and what cannot be read is named.
fn one_by_one(connection: &Connection, query: &Query) -> Result<Vec<(i64, Head)>> {
    let mut select = connection.prepare_cached(&format!("{HEAD} WHERE number = ?1"))?;
    let mut heads = Vec::new();
    for number in numbers(connection)? {
        let found = match select.query_row([number], head) {
            Ok((_, head)) => head,
            Err(rusqlite::Error::QueryReturnedNoRows) => continue,
            Err(error) if is_corrupt(&error) => {
                let definition = DefinitionId { name: String::new(), version: 0, digest: String::new() };
                let mut head = Head::new(stand_in(number), definition, Timestamp(0));
                head.phase = Phase::Stuck;
                head.note = error.to_string();
                head.damage = Some(error.to_string());
                head
            }
            Err(error) => return Err(error),
        };
        let asked = (query.phases.is_empty() || query.phases.contains(&found.phase))
            && query.definition.as_ref().is_none_or(|name| *name == found.definition.name)
            && query.tag.as_ref().is_none_or(|tag| *tag == found.tag);
        let behind = query.after.as_ref().is_none_or(|after| found.id > *after);
        if behind && (asked || found.damage.is_some()) {
            heads.push((number, found));
        }
    }
    heads.sort_by(|(_, a), (_, b)| a.id.cmp(&b.id));
    heads.truncate(if query.limit == 0 { 100 } else { query.limit });
    Ok(heads)
}

/// What SQLite finds wrong with its file: pages, and indexes that do not fit their tables. And tables that are not as they were made, which SQLite
/// takes for meant.
pub(super) fn check(connection: &Connection) -> Result<Vec<String>> {
    let mut check = connection.prepare("PRAGMA integrity_check")?;
    let found = check.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>>>();
    let mut wrong = match found {
        Ok(found) => found.into_iter().filter(|line| line != "ok").collect(),
        Err(error) if is_corrupt(&error) => vec![error.to_string()],
        Err(error) => return Err(error),
    };
    let made = Connection::open_in_memory()?;
    made.execute_batch(SCHEMA)?;
    let mut tables = made.prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'table'")?;
    let mut same = connection.prepare(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1 AND sql = ?2)",
    )?;
    let mut rows = tables.query([])?;
    while let Some(row) = rows.next()? {
        let (name, sql): (String, String) = (row.get(0)?, row.get(1)?);
        if !same.query_row([&name, &sql], |row| row.get::<_, bool>(0))? {
            wrong.push(format!("the table {name} is not as it was made"));
        }
    }
    Ok(wrong)
}

pub(super) fn requests(connection: &Connection, by: &Incarnation) -> Result<Vec<Request>> {
    let mut select = connection.prepare_cached(
        "SELECT signal.id, saga.id, signal.author, signal.ask
         FROM signal INDEXED BY signal_waiting CROSS JOIN saga ON saga.number = signal.saga
         WHERE signal.ask IS NOT NULL AND saga.owner = ?1 ORDER BY signal.number",
    )?;
    let mut rows = select.query([by.as_str()])?;
    let mut requests = Vec::new();
    while let Some(row) = rows.next()? {
        let mut reader = Reader { row, damage: None };
        let ask: std::result::Result<Ask, _> = serde_json::from_str(&reader.text(3));
        // One that cannot be read is as good as none; its row stays for people to look at.
        if let (Ok(saga), Ok(ask)) = (SagaId::new(&reader.text(1)), ask) {
            requests.push(Request { id: reader.text(0), saga, by: reader.text(2), ask });
        }
    }
    Ok(requests)
}

pub(super) fn forgotten(connection: &Connection, limit: usize) -> Result<Vec<Forgotten>> {
    let mut select = connection.prepare_cached(
        "SELECT author, before, sagas, at FROM saga_audit ORDER BY at DESC, number DESC LIMIT ?1",
    )?;
    let rows = select.query_map([int(limit as u64)], |row| {
        let mut reader = Reader { row, damage: None };
        Ok(Forgotten {
            by: reader.text(0),
            before: Timestamp(reader.number(1)),
            sagas: reader.number(2),
            at: Timestamp(reader.number(3)),
        })
    })?;
    rows.collect()
}

pub(super) fn orchestrators(connection: &Connection) -> Result<Vec<Registered>> {
    let mut select = connection
        .prepare_cached("SELECT incarnation, until, says FROM orchestrator ORDER BY incarnation")?;
    let rows = select.query_map([], |row| {
        let mut reader = Reader { row, damage: None };
        let says = reader.optional_text(2);
        Ok(Registered::from_text(&reader.text(0), Timestamp(reader.number(1)), says.as_deref()))
    })?;
    rows.collect()
}
