//! Everything that only looks.
//!
//! What is damaged is handed on as it was found, for `Stored::verify` to notice: one bad saga must not hide the others.

use rusqlite::{Connection, ErrorCode, OptionalExtension, Result, Row, params_from_iter, types::Value};

use super::write::int;
use crate::saga::{
    Entry, Incarnation, SagaId, Timestamp,
    journal::{Ask, DefinitionId, Head, Phase, Query, Registered, Request, Stored},
};

const HEAD: &str =
    "SELECT number, id, definition, version, digest, phase, note, epoch, owner, len, crc, wake, created,
                    finished, recoveries, tag FROM saga";

/// A text, readable or not.
fn text(row: &Row<'_>, column: usize) -> Result<String> {
    Ok(String::from_utf8_lossy(row.get_ref(column)?.as_bytes().unwrap_or_default()).into_owned())
}

fn number(row: &Row<'_>, column: usize) -> Result<u64> {
    Ok(row.get::<_, i64>(column)?.max(0) as u64)
}

fn instant(row: &Row<'_>, column: usize) -> Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(|at| Timestamp(at.max(0) as u64)))
}

/// A head and its number; none when its id or phase is not possible.
fn head(row: &Row<'_>) -> Result<Option<(i64, Head)>> {
    let (Ok(id), Some(phase)) = (SagaId::new(&text(row, 1)?), Phase::from_text(&text(row, 5)?)) else {
        return Ok(None);
    };
    let definition = DefinitionId { name: text(row, 2)?, version: row.get(3)?, digest: text(row, 4)? };
    let owner = row.get_ref(8)?.as_bytes_or_null()?.map(String::from_utf8_lossy);
    let mut head = Head::new(id, definition, Timestamp(number(row, 12)?));
    head.phase = phase;
    head.note = text(row, 6)?;
    head.epoch = number(row, 7)?;
    head.owner = owner.map(|owner| Incarnation::from_text(&owner));
    head.len = number(row, 9)?;
    head.crc = number(row, 10)? as u32;
    head.wake = instant(row, 11)?;
    head.finished = instant(row, 13)?;
    head.recoveries = u32::try_from(number(row, 14)?).unwrap_or(u32::MAX);
    head.tag = text(row, 15)?;
    Ok(Some((row.get(0)?, head)))
}

fn entries(connection: &Connection, number: i64) -> Result<Vec<Entry>> {
    let mut select = connection.prepare_cached(
        "SELECT seq, epoch, at, author, kind, step, data, crc FROM saga_event WHERE saga = ?1 ORDER BY seq",
    )?;
    let mut rows = select.query([number])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let step = row.get_ref(5)?.as_bytes_or_null()?.map(|step| String::from_utf8_lossy(step).into_owned());
        entries.push(Entry {
            seq: self::number(row, 0)?,
            epoch: self::number(row, 1)?,
            at: Timestamp(self::number(row, 2)?),
            by: Incarnation::from_text(&text(row, 3)?),
            kind: text(row, 4)?,
            step,
            data: text(row, 6)?,
            crc: self::number(row, 7)? as u32,
        });
    }
    Ok(entries)
}

fn stored(connection: &Connection, number: i64, head: Head) -> Result<Stored> {
    let entries = match entries(connection, number) {
        Ok(entries) => entries,
        // Pages that make no sense are this saga's misfortune; without entries it does not verify.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(Stored { head, entries })
}

pub(super) fn numbered(connection: &Connection, number: i64) -> Result<Option<Stored>> {
    let mut select = connection.prepare_cached(&format!("{HEAD} WHERE number = ?1"))?;
    let found = select.query_row([number], head).optional()?.flatten();
    found.map(|(number, head)| stored(connection, number, head)).transpose()
}

/// One saga, with head and entries of the same moment: within a transaction.
pub(super) fn load(connection: &Connection, saga: &SagaId) -> Result<Option<Stored>> {
    let mut select = connection.prepare_cached(&format!("{HEAD} WHERE id = ?1"))?;
    let found = select.query_row([saga.as_str()], head).optional()?.flatten();
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
    if !query.phases.is_empty() {
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
    let rows = select.query_map(params_from_iter(values), head)?;
    rows.filter_map(|row| row.map(|found| found.map(|(_, head)| head)).transpose()).collect()
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
        let ask: std::result::Result<Ask, _> = serde_json::from_str(&text(row, 3)?);
        // One that cannot be read is as good as none; its row stays for people to look at.
        if let (Ok(saga), Ok(ask)) = (SagaId::new(&text(row, 1)?), ask) {
            requests.push(Request { id: text(row, 0)?, saga, by: text(row, 2)?, ask });
        }
    }
    Ok(requests)
}

pub(super) fn orchestrators(connection: &Connection) -> Result<Vec<Registered>> {
    let mut select = connection
        .prepare_cached("SELECT incarnation, until, says FROM orchestrator ORDER BY incarnation")?;
    let rows = select.query_map([], |row| {
        let says = row.get_ref(2)?.as_bytes_or_null()?.map(String::from_utf8_lossy);
        Ok(Registered::from_text(&text(row, 0)?, Timestamp(number(row, 1)?), says.as_deref()))
    })?;
    rows.collect()
}
