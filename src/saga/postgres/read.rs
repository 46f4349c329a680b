//! Rows as heads, entries and requests.
//!
//! What is damaged is handed on as far as it can be read, so that it does not verify, and its head says what is wrong: one bad saga
//! must not hide the others.

use std::{error::Error, fmt, sync::Arc};

use tokio_postgres::{
    Row,
    types::{FromSql, ToSql, Type},
};

use super::{
    link::{Session, Trouble},
    rounds::clean,
    schema::Sql,
};
use crate::saga::{
    Entry, Incarnation, SagaId, Timestamp,
    journal::{DefinitionId, Forgotten, Head, Phase, Query, Registered, StoreError, Stored},
};

/// Some sagas with their entries, all of one moment.
pub(super) const STORED: &str = "
SELECT saga.id, saga.definition, saga.version, saga.digest, saga.phase, saga.note, saga.epoch, saga.owner, saga.len, saga.crc,
    saga.wake, saga.created, saga.finished, saga.recoveries, saga.tag, entry.seq, entry.epoch, entry.at, entry.author, entry.kind,
    entry.step, entry.data, entry.crc
FROM @.saga LEFT JOIN LATERAL (
    SELECT * FROM @.saga_event WHERE saga_event.saga = saga.number ORDER BY seq
) AS entry ON true WHERE saga.id = ANY ($1) ORDER BY saga.id, entry.seq";

/// A select of heads; `$rest` is what stands behind `WHERE`.
macro_rules! heads {
    ($($rest:literal),+) => {
        concat!("
SELECT id, definition, version, digest, phase, note, epoch, owner, len, crc, wake, created, finished, recoveries, tag FROM @.saga
WHERE ", $($rest),+)
    };
}

/// Heads in the order of their ids, among those of which `$index` is true. A phase that is none of `$6` is asked for too.
macro_rules! listing {
    ($index:literal) => {
        heads!(
            "id > $1 AND (phase = ANY ($2) OR phase <> ALL ($6)) AND ($3::text IS NULL OR definition = $3)
    AND ($4::text IS NULL OR tag = $4) AND ",
            $index,
            " ORDER BY id LIMIT $5"
        )
    };
}

/// A head alone, for a saga whose entries the server cannot read.
pub(super) const HEAD: &str = heads!("id = $1");

/// Among those that are not over.
pub(super) const LIST_OPEN: &str = listing!("finished IS NULL");

/// Among all.
pub(super) const LIST_ALL: &str = listing!("true");

/// Among those that are stuck or parked, or whose phase is none: what the index for them says has to be said again.
pub(super) const LIST_ATTENTION: &str =
    listing!("phase NOT IN ('running', 'waiting', 'unwinding', 'completed', 'compensated', 'abandoned')");

/// Among those with this tag, which is not empty.
pub(super) const LIST_TAGGED: &str = listing!("tag = $4 AND tag <> ''");

/// What was forgotten.
pub(super) const FORGOTTEN: &str =
    "SELECT author, before, sagas, at FROM @.saga_audit ORDER BY at DESC, number DESC LIMIT $1";

/// Who has registered.
pub(super) const ORCHESTRATORS: &str =
    "SELECT incarnation, until, says FROM @.orchestrator ORDER BY incarnation";

/// Who has registered; see [`Journal::orchestrators`](crate::saga::journal::Journal::orchestrators).
pub(super) async fn orchestrators(session: Arc<Session>) -> Result<Vec<Registered>, Trouble> {
    let rows = session.client.query(session.statement(Sql::Orchestrators), &[]).await?;
    let registered = |row: &Row| {
        let mut fields = Fields::of(row);
        let (by, until) = (fields.text(0), Timestamp(fields.number(1)));
        let says = fields.get::<Text>(2).map(|Text(says)| says);
        Registered::from_text(&by, until, says.as_deref())
    };
    Ok(rows.iter().map(registered).collect())
}

/// What was forgotten; see [`Journal::forgotten`](crate::saga::journal::Journal::forgotten).
pub(super) async fn forgotten(session: Arc<Session>, limit: usize) -> Result<Vec<Forgotten>, Trouble> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = session.client.query(session.statement(Sql::Forgotten), &[&limit]).await?;
    let note = |row: &Row| {
        let mut fields = Fields::of(row);
        Forgotten {
            by: fields.text(0),
            before: Timestamp(fields.number(1)),
            sagas: fields.number(2),
            at: Timestamp(fields.number(3)),
        }
    };
    Ok(rows.iter().map(note).collect())
}

/// The sagas of these names, in the order of their ids.
pub(super) async fn stored(session: &Session, ids: &[&str]) -> Result<Vec<Stored>, Trouble> {
    let rows = session.client.query(session.statement(Sql::Stored), &[&ids]).await?;
    let mut found: Vec<Stored> = Vec::new();
    for row in &rows {
        let Some(head) = head(row) else { continue };
        if found.last().is_none_or(|last| last.head.id != head.id) {
            found.push(Stored { head, entries: Vec::new() });
        }
        if let Some(Stored { head, entries }) = found.last_mut() {
            entries.extend(entry(row, &head.id, entries.last()));
        }
    }
    Ok(found)
}

/// A saga as `stored` gives it, without its entries where the server cannot read them: then it does not verify.
pub(super) async fn alone(session: &Session, id: &str) -> Result<Option<Stored>, Trouble> {
    let row = session.client.query_opt(session.statement(Sql::Head), &[&id]).await?;
    let head = row.as_ref().and_then(head);
    Ok(head.map(|head| Stored { head, entries: Vec::new() }))
}

/// One saga; see [`Journal::load`](crate::saga::journal::Journal::load).
pub(super) async fn load(session: Arc<Session>, id: &str) -> Result<Option<Stored>, Trouble> {
    match stored(&session, &[id]).await {
        Ok(mut found) => Ok(found.pop()),
        Err(Trouble::Damaged(_)) => alone(&session, id).await,
        Err(trouble) => Err(trouble),
    }
}

/// Heads; see [`Journal::list`](crate::saga::journal::Journal::list).
pub(super) async fn list(session: Arc<Session>, query: &Query) -> Result<Vec<Head>, Trouble> {
    let asked = if query.phases.is_empty() { &Phase::ALL[..] } else { &query.phases };
    let phases: Vec<&str> = asked.iter().map(|phase| phase.as_str()).collect();
    let sql = if query.tag.as_ref().is_some_and(|tag| !tag.is_empty()) {
        Sql::ListTagged
    } else if asked.iter().all(|phase| matches!(phase, Phase::Stuck | Phase::Parked)) {
        Sql::ListAttention
    } else if asked.iter().any(|phase| phase.is_terminal()) {
        Sql::ListAll
    } else {
        Sql::ListOpen
    };
    let after = query.after.as_ref().map_or("", |id| id.as_str());
    let definition = query.definition.as_deref().map(clean);
    let tag = query.tag.as_deref().map(clean);
    let limit = if query.limit == 0 { 100 } else { i64::try_from(query.limit).unwrap_or(i64::MAX) };
    // A saga whose phase is none is shown as stuck.
    let known = asked.contains(&Phase::Stuck).then(|| Phase::ALL.map(Phase::as_str).to_vec());
    let parameters: [&(dyn ToSql + Sync); 6] = [&after, &phases, &definition, &tag, &limit, &known];
    let rows = session.client.query(session.statement(sql), &parameters).await?;
    let heads: Vec<Head> = rows.iter().filter_map(head).collect();
    // Whoever asks for page after page of an index that is damaged would never come to an end.
    let ids = rows.iter().filter_map(|row| row.try_get::<_, &str>(0).ok());
    match query.after.iter().map(|id| id.as_str()).chain(ids).is_sorted_by(|one, next| one < next) {
        true => Ok(heads),
        false => {
            let why = "an index of the sagas' ids is not in its order; REINDEX makes it anew";
            Err(Trouble::Final(StoreError::Io(why.to_owned())))
        }
    }
}

/// A text, also of bytes that are none.
struct Text(String);

impl FromSql<'_> for Text {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Text(String::from_utf8_lossy(raw).into_owned()))
    }

    fn accepts(of: &Type) -> bool {
        <&str as FromSql>::accepts(of)
    }
}

/// The columns of a row, and the first of them that makes no sense.
struct Fields<'a> {
    row: &'a Row,
    wrong: Option<String>,
}

impl<'a> Fields<'a> {
    fn of(row: &'a Row) -> Self {
        Fields { row, wrong: None }
    }

    fn get<T: FromSql<'a>>(&mut self, at: usize) -> Option<T> {
        self.row.try_get(at).unwrap_or_else(|_| self.complain(at, "unreadable"))
    }

    /// Nothing, for the column at `at`, which holds `what`.
    fn complain<T>(&mut self, at: usize, what: impl fmt::Display) -> Option<T> {
        let column = self.row.columns().get(at).map_or("?", |column| column.name());
        self.wrong.get_or_insert_with(|| format!("its {column} makes no sense: {what}"));
        None
    }

    /// A number or none; none too for one that is not possible.
    fn optional<T: TryFrom<i64>>(&mut self, at: usize) -> Option<T> {
        let value: i64 = self.get(at)?;
        T::try_from(value).map_or_else(|_| self.complain(at, value), Some)
    }

    /// A number; 0 for one that is not possible.
    fn number<T: TryFrom<i64> + Default>(&mut self, at: usize) -> T {
        if let Some(value) = self.optional(at) {
            return value;
        }
        self.complain(at, "nothing").unwrap_or_default()
    }

    fn text(&mut self, at: usize) -> String {
        match self.get(at) {
            Some(Text(text)) => text,
            None => self.complain(at, "nothing").unwrap_or_default(),
        }
    }
}

/// A head; where its row makes no sense, the note says what is wrong, too. None when the row cannot be named at all.
fn head(row: &Row) -> Option<Head> {
    let mut fields = Fields::of(row);
    let id: &str = row.try_get(0).ok()?;
    if SagaId::new(id).is_err() {
        fields.complain::<()>(0, format_args!("{id:?}"));
    }
    let id = saga_id(id);
    let definition = DefinitionId { name: fields.text(1), version: fields.number(2), digest: fields.text(3) };
    let phase = fields.text(4);
    let phase = Phase::from_text(&phase).or_else(|| fields.complain(4, format_args!("{phase:?}")));
    let note = fields.text(5);
    let mut head = Head::new(id, definition, Timestamp(fields.number(11)));
    head.phase = phase.unwrap_or(Phase::Stuck);
    head.epoch = fields.number(6);
    head.owner = fields.get(7).map(|Text(owner)| Incarnation::from_text(&owner));
    head.len = fields.number(8);
    head.crc = fields.number(9);
    head.wake = fields.optional(10).map(Timestamp);
    head.finished = fields.optional(12).map(Timestamp);
    head.recoveries = fields.number(13);
    head.tag = fields.text(14);
    // From there a claim cannot count on.
    for (at, last) in [(6, i64::MAX), (8, i64::MAX), (13, u32::MAX.into())] {
        if fields.get(at) == Some(last) {
            fields.complain::<()>(at, last);
        }
    }
    head.note = fields.wrong.clone().unwrap_or(note);
    head.damage = fields.wrong;
    Some(head)
}

/// The id, or in place of one that is not possible the nearest behind it: a listing that goes on from there shows no row twice.
pub(super) fn saga_id(id: &str) -> SagaId {
    let most = SagaId::MAX - '\u{10ffff}'.len_utf8();
    let possible = SagaId::new(id).or_else(|_| {
        let mut chars = id.char_indices();
        let bad = chars.find(|&(at, c)| c.is_control() || at + c.len_utf8() > most);
        let filler = match bad.map(|(_, c)| c) {
            None => "?",
            Some(..' ') => " ",
            Some('\u{7f}'..='\u{9f}') => "\u{a0}",
            Some(_) => "\u{10ffff}",
        };
        SagaId::new(&format!("{}{filler}", &id[..bad.map_or(0, |(at, _)| at)]))
    });
    possible.unwrap_or_else(|_| unreachable!("it is short and has no control character"))
}

/// The entry behind a head; none when the saga has no entries. One that makes no sense has not the checksum of what it says.
fn entry(row: &Row, saga: &SagaId, before: Option<&Entry>) -> Option<Entry> {
    let mut fields = Fields::of(row);
    let _some: i64 = fields.get(15)?;
    let mut entry = Entry {
        seq: fields.number(15),
        epoch: fields.number(16),
        at: Timestamp(fields.number(17)),
        by: Incarnation::from_text(&fields.text(18)),
        kind: fields.text(19),
        step: fields.get(20).map(|Text(step)| step),
        data: fields.text(21),
        crc: fields.number(22),
    };
    if fields.wrong.is_some() {
        entry.crc = !entry.checksum(saga, before.map_or(0, |before| before.crc));
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_none_has_one_right_behind_it() {
        let long = "x".repeat(SagaId::MAX + 1);
        let wide = "ä".repeat(SagaId::MAX);
        for none in ["a\u{11}b", "\n", "a\u{7f}", "a\u{80}c", "ä\u{9f}", &long, &wide] {
            let id = saga_id(none);
            assert!(id.as_str() > none, "{none:?}: a page that begins behind {id} has it again");
            let common = none.char_indices().zip(id.as_str().chars()).find(|((_, a), b)| a != b);
            let next = common.map_or(none, |((at, _), _)| &none[..at]);
            assert!(next.len() + 4 >= id.as_str().len(), "{none:?} and {id} begin alike");
        }
        assert_eq!(saga_id("a b").as_str(), "a b");
        assert_eq!(saga_id("a\tb").as_str(), "a ");
        assert_eq!(saga_id("").as_str(), "?");
    }
}
