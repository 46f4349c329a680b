//! Rows as heads, entries and requests.

use std::sync::Arc;

use tokio_postgres::{Row, types::FromSql};

use super::{
    link::{Session, Trouble},
    rounds::clean,
    schema::Sql,
};
use crate::saga::{
    Entry, Incarnation, SagaId, Timestamp,
    journal::{DefinitionId, Head, Phase, Query, Registered, StoreError, Stored},
};

/// Some sagas with their entries, all of one moment.
pub(super) const STORED: &str = "
SELECT saga.id, saga.definition, saga.version, saga.digest, saga.phase, saga.note, saga.epoch, saga.owner, saga.len, saga.crc,
    saga.wake, saga.created, saga.finished, saga.recoveries, saga.tag, entry.seq, entry.epoch, entry.at, entry.author, entry.kind,
    entry.step, entry.data, entry.crc
FROM @.saga LEFT JOIN LATERAL (
    SELECT * FROM @.saga_event WHERE saga_event.saga = saga.number ORDER BY seq
) AS entry ON true WHERE saga.id = ANY ($1) ORDER BY saga.id, entry.seq";

/// Heads in the order of their ids, among those that are not over.
pub(super) const LIST_OPEN: &str = "
SELECT id, definition, version, digest, phase, note, epoch, owner, len, crc, wake, created, finished, recoveries, tag FROM @.saga
WHERE id > $1 AND phase = ANY ($2) AND ($3::text IS NULL OR definition = $3) AND ($4::text IS NULL OR tag = $4)
    AND finished IS NULL ORDER BY id LIMIT $5";

/// Heads in the order of their ids.
pub(super) const LIST_ALL: &str = "
SELECT id, definition, version, digest, phase, note, epoch, owner, len, crc, wake, created, finished, recoveries, tag FROM @.saga
WHERE id > $1 AND phase = ANY ($2) AND ($3::text IS NULL OR definition = $3) AND ($4::text IS NULL OR tag = $4)
ORDER BY id LIMIT $5";

/// Who has registered.
pub(super) const ORCHESTRATORS: &str =
    "SELECT incarnation, until, says FROM @.orchestrator ORDER BY incarnation";

/// Who has registered; see [`Journal::orchestrators`](crate::saga::journal::Journal::orchestrators).
pub(super) async fn orchestrators(session: Arc<Session>) -> Result<Vec<Registered>, Trouble> {
    let rows = session.client.query(session.statement(Sql::Orchestrators), &[]).await?;
    let registered = |row: &Row| -> Result<Registered, Trouble> {
        Ok(Registered::from_text(row.try_get(0)?, Timestamp(unsigned(row, 1)?), row.try_get(2)?))
    };
    rows.iter().map(registered).collect()
}

/// The sagas of these names, in the order of their ids.
pub(super) async fn stored(session: &Session, ids: &[&str]) -> Result<Vec<Stored>, Trouble> {
    let rows = session.client.query(session.statement(Sql::Stored), &[&ids]).await?;
    let mut found: Vec<Stored> = Vec::new();
    for row in rows {
        let id: &str = row.try_get(0)?;
        if found.last().is_none_or(|last| last.head.id.as_str() != id) {
            found.push(Stored { head: head(&row)?, entries: Vec::new() });
        }
        if let (Some(last), Some(entry)) = (found.last_mut(), entry(&row)?) {
            last.entries.push(entry);
        }
    }
    Ok(found)
}

/// Heads; see [`Journal::list`](crate::saga::journal::Journal::list).
pub(super) async fn list(session: Arc<Session>, query: &Query) -> Result<Vec<Head>, Trouble> {
    let asked = if query.phases.is_empty() { &Phase::ALL[..] } else { &query.phases };
    let phases: Vec<&str> = asked.iter().map(|phase| phase.as_str()).collect();
    let sql = if asked.iter().any(|phase| phase.is_terminal()) { Sql::ListAll } else { Sql::ListOpen };
    let after = query.after.as_ref().map_or("", |id| id.as_str());
    let definition = query.definition.as_deref().map(clean);
    let tag = query.tag.as_deref().map(clean);
    let limit = if query.limit == 0 { 100 } else { i64::try_from(query.limit).unwrap_or(i64::MAX) };
    let rows =
        session.client.query(session.statement(sql), &[&after, &phases, &definition, &tag, &limit]).await?;
    rows.iter().map(head).collect()
}

pub(super) fn saga_id(text: &str) -> Result<SagaId, Trouble> {
    SagaId::new(text).map_err(|error| Trouble::Final(StoreError::Io(error.to_string())))
}

/// What the column holds, where a negative number makes no sense.
fn unsigned(row: &Row, at: usize) -> Result<u64, Trouble> {
    optional(row, at)?.ok_or_else(|| senseless(row, at))
}

fn optional(row: &Row, at: usize) -> Result<Option<u64>, Trouble> {
    let value: Option<i64> = row.try_get(at)?;
    value.map(u64::try_from).transpose().map_err(|_| senseless(row, at))
}

fn small<T: TryFrom<u64>>(row: &Row, at: usize) -> Result<T, Trouble> {
    T::try_from(unsigned(row, at)?).map_err(|_| senseless(row, at))
}

fn senseless(row: &Row, at: usize) -> Trouble {
    let id: &str = row.try_get(0).unwrap_or("?");
    let column = row.columns().get(at).map_or("?", |column| column.name());
    Trouble::Final(StoreError::Io(format!("saga {id:?} has a {column} that makes no sense")))
}

fn head(row: &Row) -> Result<Head, Trouble> {
    let text = |at| -> Result<String, Trouble> { Ok(row.try_get(at)?) };
    let definition = DefinitionId { name: text(1)?, version: small(row, 2)?, digest: text(3)? };
    let created = Timestamp(unsigned(row, 11)?);
    let mut head = Head::new(saga_id(row.try_get(0)?)?, definition, created);
    head.phase = Phase::from_text(row.try_get(4)?).ok_or_else(|| senseless(row, 4))?;
    head.note = text(5)?;
    head.epoch = unsigned(row, 6)?;
    head.owner = row.try_get::<_, Option<&str>>(7)?.map(Incarnation::from_text);
    head.len = unsigned(row, 8)?;
    head.crc = small(row, 9)?;
    head.wake = optional(row, 10)?.map(Timestamp);
    head.finished = optional(row, 12)?.map(Timestamp);
    head.recoveries = small(row, 13)?;
    head.tag = text(14)?;
    Ok(head)
}

/// The entry behind a head; none when the saga has no entries.
fn entry(row: &Row) -> Result<Option<Entry>, Trouble> {
    let Some(seq) = optional(row, 15)? else { return Ok(None) };
    fn get<'a, T: FromSql<'a>>(row: &'a Row, at: usize) -> Result<T, Trouble> {
        Ok(row.try_get(at)?)
    }
    Ok(Some(Entry {
        seq,
        epoch: unsigned(row, 16)?,
        at: Timestamp(unsigned(row, 17)?),
        by: Incarnation::from_text(get(row, 18)?),
        kind: get(row, 19)?,
        step: get(row, 20)?,
        data: get(row, 21)?,
        crc: small(row, 22)?,
    }))
}
