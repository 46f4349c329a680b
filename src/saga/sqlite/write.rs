//! Everything that changes tables: one transaction each.

use std::{collections::HashSet, time::Duration};

use rusqlite::{CachedStatement, Connection, OptionalExtension, Result, Row, Transaction, ffi, params};

use super::{
    read,
    work::{Guard, Over},
};
use crate::saga::{
    Incarnation, SagaId, Timestamp,
    journal::{Append, Begin, Claim, Phase, Presence, Refusal, Request, Requested, Stored},
};

/// How long the row of a dead orchestrator stays, for people to see.
const MOURNING: Duration = Duration::from_secs(24 * 3_600);

/// A number of ours as SQLite has it. Nothing reaches 2^63 honestly.
pub(super) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn instant(at: Option<Timestamp>) -> Option<i64> {
    at.map(|at| int(at.0))
}

// --- appends ---

/// What a check has found, so that the write need not look again.
struct Place {
    number: i64,
    len: u64,
    same_phase: bool,
    wake: Option<i64>,
}

/// The statements that every item needs, looked up once for a batch.
struct Statements<'c> {
    connection: &'c Connection,
    select: CachedStatement<'c>,
    entry: CachedStatement<'c>,
    update: CachedStatement<'c>,
}

/// The items of a batch in their order, within a transaction. Whether anything was written.
pub(super) fn append(
    connection: &Transaction<'_>,
    batch: &[Append],
    now: Timestamp,
    guard: &Guard,
) -> std::result::Result<(Vec<std::result::Result<(), Refusal>>, bool), Over> {
    let mut statements = Statements {
        connection,
        select: connection
            .prepare_cached("SELECT number, epoch, owner, len, phase, wake FROM saga WHERE id = ?1")?,
        entry: connection.prepare_cached(
            "INSERT INTO saga_event (saga, seq, epoch, at, author, kind, step, data, crc)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?,
        // The common case, which names no column that an index has.
        update: connection.prepare_cached(
            "UPDATE saga SET note = ?2, len = ?3, crc = coalesce(?4, crc), recoveries = iif(?4 IS NULL, recoveries, 0)
             WHERE number = ?1",
        )?,
    };
    let mut answers = Vec::with_capacity(batch.len());
    let mut written = false;
    for item in batch {
        let answer = match statements.check(item)? {
            Err(refusal) => Err(refusal),
            Ok(place) => match item.work.as_ref().map(|work| guard.run(connection, work)).transpose()? {
                Some(Err(refusal)) => Err(refusal),
                Some(Ok(entry)) => {
                    let item = Append { entries: vec![entry], work: None, ..item.clone() };
                    statements.write(&item, place, now)?;
                    Ok(())
                }
                None => {
                    statements.write(item, place, now)?;
                    Ok(())
                }
            },
        };
        written |= answer.is_ok();
        answers.push(answer);
    }
    Ok((answers, written))
}

impl Statements<'_> {
    fn write(&mut self, item: &Append, place: Option<Place>, now: Timestamp) -> Result<()> {
        match (place, &item.begin) {
            (Some(place), _) => self.go_on(item, &place),
            (None, Some(begin)) => self.begin(item, begin, now),
            // The check has refused it as missing.
            (None, None) => Ok(()),
        }
    }

    fn check(&mut self, item: &Append) -> Result<std::result::Result<Option<Place>, Refusal>> {
        let found = self.select.query_row([item.saga.as_str()], |row| {
            let owner = row.get_ref(2)?.as_str_or_null()?;
            let fenced = row.get::<_, i64>(1)? != int(item.epoch) || owner != Some(item.by.as_str());
            if fenced {
                return Ok(Err(Refusal::Fenced { epoch: row.get::<_, i64>(1)? as u64 }));
            }
            let phase = row.get_ref(4)?.as_str()?;
            Ok(Ok(Place {
                number: row.get(0)?,
                len: row.get::<_, i64>(3)? as u64,
                same_phase: phase == item.phase.as_str(),
                wake: row.get(5)?,
            }))
        });
        let place = match (found.optional()?, &item.begin) {
            (Some(_), Some(_)) => return Ok(Err(Refusal::Exists)),
            (None, None) => return Ok(Err(Refusal::Missing)),
            (Some(Err(refusal)), None) => return Ok(Err(refusal)),
            (Some(Ok(place)), None) => Some(place),
            (None, Some(_)) => None,
        };
        let expected = place.as_ref().map_or(0, |place| place.len);
        let behind = item.work.iter().any(|work| work.seq() != expected);
        if behind || (expected..).zip(&item.entries).any(|(seq, entry)| entry.seq != seq) {
            return Ok(Err(Refusal::Gap { expected }));
        }
        for key in item.begin.iter().flat_map(|begin| &begin.locks) {
            let mut holder = self.connection.prepare_cached(
            "SELECT saga.id FROM semantic_lock JOIN saga ON saga.number = semantic_lock.saga WHERE key = ?1",
        )?;
            let holder: Option<String> = holder.query_row([key], |row| row.get(0)).optional()?;
            if let Some(holder) = holder.and_then(|holder| SagaId::new(&holder).ok()) {
                return Ok(Err(Refusal::Locked { key: key.clone(), holder }));
            }
        }
        Ok(Ok(place))
    }

    fn begin(&mut self, item: &Append, begin: &Begin, now: Timestamp) -> Result<()> {
        let connection = self.connection;
        let over = item.phase.is_terminal();
        let created = item.entries.first().map_or(now, |entry| entry.at);
        let finished = item.entries.last().map_or(created, |entry| entry.at);
        let mut insert = connection.prepare_cached(
        "INSERT INTO saga (id, definition, version, digest, phase, note, epoch, owner, len, crc, wake, created, finished,
         recoveries, tag) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, 0, ?14)",
    )?;
        let number = insert.insert(params![
            item.saga.as_str(),
            begin.definition.name,
            begin.definition.version,
            begin.definition.digest,
            item.phase.as_str(),
            item.note,
            int(item.epoch),
            (!over && !item.release).then_some(item.by.as_str()),
            item.entries.len() as i64,
            item.entries.last().map_or(0, |entry| entry.crc),
            instant(item.wake.filter(|_| !over)),
            int(created.0),
            instant(over.then_some(finished)),
            begin.tag,
        ])?;
        self.entries(number, item)?;
        if !over {
            for key in &begin.locks {
                let mut lock = connection.prepare_cached(
                    "INSERT INTO semantic_lock (key, saga) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                )?;
                lock.execute(params![key, number])?;
            }
        }
        Ok(())
    }

    fn go_on(&mut self, item: &Append, place: &Place) -> Result<()> {
        let connection = self.connection;
        let over = item.phase.is_terminal();
        let owner = (!over && !item.release).then_some(item.by.as_str());
        let wake = instant(item.wake.filter(|_| !over));
        let number = place.number;
        self.entries(number, item)?;
        let len = int(place.len + item.entries.len() as u64);
        let crc = item.entries.last().map(|entry| entry.crc);
        // The check has found that `item.by` is the owner.
        if place.same_phase && owner.is_some() && wake == place.wake {
            self.update.execute(params![number, item.note, len, crc])?;
        } else {
            let finished = match item.entries.last() {
                _ if !over => None,
                Some(last) => Some(last.at.0 as i64),
                None => Some(last(connection, number)?),
            };
            let mut update = connection.prepare_cached(
            "UPDATE saga SET note = ?2, len = ?3, crc = coalesce(?4, crc), recoveries = iif(?4 IS NULL, recoveries, 0),
             phase = ?5, owner = ?6, wake = ?7, finished = ?8 WHERE number = ?1",
        )?;
            update.execute(params![
                number,
                item.note,
                len,
                crc,
                item.phase.as_str(),
                owner,
                wake,
                finished
            ])?;
        }
        for id in &item.answers {
            let mut answer =
                connection.prepare_cached("UPDATE signal SET ask = NULL WHERE saga = ?1 AND id = ?2")?;
            answer.execute(params![number, id])?;
        }
        if over {
            connection.prepare_cached("DELETE FROM semantic_lock WHERE saga = ?1")?.execute([number])?;
            let mut drop =
                connection.prepare_cached("DELETE FROM signal WHERE saga = ?1 AND ask IS NOT NULL")?;
            drop.execute([number])?;
        }
        Ok(())
    }

    fn entries(&mut self, number: i64, item: &Append) -> Result<()> {
        for entry in &item.entries {
            self.entry.execute(params![
                number,
                int(entry.seq),
                int(entry.epoch),
                int(entry.at.0),
                entry.by.as_str(),
                entry.kind,
                entry.step,
                entry.data,
                entry.crc,
            ])?;
        }
        Ok(())
    }
}

/// When the last entry was written, or the saga began.
fn last(connection: &Connection, number: i64) -> Result<i64> {
    connection.query_row(
        "SELECT coalesce((SELECT at FROM saga_event WHERE saga = ?1 ORDER BY seq DESC LIMIT 1), created)
         FROM saga WHERE number = ?1",
        [number],
        |row| row.get(0),
    )
}

// --- ownership ---

pub(super) fn heartbeat(
    connection: &Connection,
    by: &Incarnation,
    now: Timestamp,
    lease: Duration,
) -> Result<()> {
    let mut beat = connection.prepare_cached(
        "INSERT INTO orchestrator (incarnation, until) VALUES (?1, ?2)
         ON CONFLICT DO UPDATE SET until = excluded.until",
    )?;
    beat.execute(params![by.as_str(), int(now.after(lease).0)])?;
    let mut bury = connection.prepare_cached("DELETE FROM orchestrator WHERE until < ?1")?;
    bury.execute([int(now.0).saturating_sub(MOURNING.as_millis() as i64)])?;
    Ok(())
}

pub(super) fn leave(connection: &Connection, by: &Incarnation, now: Timestamp) -> Result<()> {
    let mut leave = connection.prepare_cached(
        "UPDATE orchestrator SET until = min(until, ?2), says = NULL WHERE incarnation = ?1",
    )?;
    leave.execute(params![by.as_str(), int(now.0)])?;
    Ok(())
}

pub(super) fn announce(connection: &Connection, by: &Incarnation, presence: &Presence) -> Result<()> {
    let mut say = connection.prepare_cached("UPDATE orchestrator SET says = ?2 WHERE incarnation = ?1")?;
    say.execute(params![by.as_str(), presence.to_text()])?;
    Ok(())
}

/// A saga that can be claimed: its wake, which it is, and whether it is a recovery.
type Due = (Option<i64>, i64, bool);

/// `how` is `Look::OneByOne` where an index cannot be read; in a transaction of its own, since a page that was met damaged stays so until the
/// transaction ends.
pub(super) fn claim(
    connection: &Connection,
    claim: &Claim,
    now: Timestamp,
    how: Look,
) -> Result<Vec<Stored>> {
    if claim.limit == 0 || claim.definitions.is_empty() {
        return Ok(Vec::new());
    }
    let mut living = connection.prepare_cached("SELECT incarnation FROM orchestrator WHERE until > ?1")?;
    let living: HashSet<String> = living.query_map([int(now.0)], |row| row.get(0))?.collect::<Result<_>>()?;
    let lives = |owner: &str| living.contains(owner);
    let mut due = match (&claim.only, how) {
        (_, Look::OneByOne) => one_by_one(connection, claim, now, lives)?,
        (Some(only), Look::ByIndex) => named(connection, claim, only, lives)?,
        (None, Look::ByIndex) => everywhere(connection, claim, now, lives)?,
    };
    due.sort_unstable();
    due.dedup();
    let mut taken = Vec::with_capacity(due.len().min(claim.limit));
    for (_, number, recovery) in due {
        if taken.len() == claim.limit {
            break;
        }
        match take(connection, claim, number, recovery) {
            // The statement is undone, and the next one may lie on other pages.
            Err(error) if how == Look::OneByOne && read::is_corrupt(&error) => {}
            stored => taken.extend(stored?),
        }
    }
    Ok(taken)
}

/// How sagas are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    ByIndex,
    OneByOne,
}

fn take(connection: &Connection, claim: &Claim, number: i64, recovery: bool) -> Result<Option<Stored>> {
    let mut take = connection.prepare_cached(
        "UPDATE saga SET owner = ?2, epoch = epoch + 1, recoveries = recoveries + ?3 WHERE number = ?1",
    )?;
    take.execute(params![number, claim.by.as_str(), recovery])?;
    read::numbered(connection, number)
}

/// What every select below begins with, for `wanted` to judge.
pub(super) const COLUMNS: &str =
    "SELECT number, wake, id, definition, version, digest, owner, phase FROM saga";

/// Where to look for sagas that can be claimed. Each has an index that it walks in order, from the first one on.
pub(super) const AWAKE: &str =
    "WHERE owner IS NULL AND finished IS NULL AND wake IS NOT NULL AND wake <= ?1 ORDER BY wake";
pub(super) const ASKED: &str = "WHERE owner IS NULL AND finished IS NULL AND (wake IS NULL OR wake > ?1)
     AND number IN (SELECT saga FROM signal WHERE ask IS NOT NULL) ORDER BY wake";
pub(super) const DEAD: &str = "WHERE owner = ?1 AND owner IS NOT NULL AND finished IS NULL ORDER BY wake";
/// From owner to owner, however many sagas each of them has.
pub(super) const OWNERS: &str =
    "SELECT owner FROM saga WHERE owner IS NOT NULL AND owner > ?1 ORDER BY owner LIMIT 1";

fn wanted(claim: &Claim, row: &Row<'_>) -> Result<bool> {
    let text = |column| row.get_ref(column).map(|value| value.as_bytes().unwrap_or_default());
    let (id, name, digest) = (text(2)?, text(3)?, text(5)?);
    // What cannot be read is nobody's.
    let Ok(version) = row.get::<_, i64>(4) else { return Ok(false) };
    let known = claim.definitions.iter().any(|known| {
        known.name.as_bytes() == name
            && i64::from(known.version) == version
            && known.digest.as_bytes() == digest
    });
    let readable = std::str::from_utf8(text(7)?).is_ok_and(|phase| Phase::from_text(phase).is_some());
    // They are in their order, since there may be thousands.
    let unwanted = claim.except.binary_search_by(|except| except.as_str().as_bytes().cmp(id)).is_ok();
    Ok(known && readable && !unwanted)
}

/// The first `limit` rows that the claim wants.
fn pick(
    connection: &Connection,
    claim: &Claim,
    condition: &str,
    parameters: impl rusqlite::Params,
    recovery: bool,
    due: &mut Vec<Due>,
) -> Result<()> {
    let mut select = connection.prepare_cached(&format!("{COLUMNS} {condition}"))?;
    let mut rows = select.query(parameters)?;
    let mut left = claim.limit;
    while let Some(row) = rows.next()? {
        if wanted(claim, row)? {
            due.push((row.get(1).unwrap_or(None), row.get(0)?, recovery));
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    Ok(())
}

fn named(
    connection: &Connection,
    claim: &Claim,
    only: &[SagaId],
    lives: impl Fn(&str) -> bool,
) -> Result<Vec<Due>> {
    let mut select = connection.prepare_cached(&format!("{COLUMNS} WHERE id = ?1 AND finished IS NULL"))?;
    let mut due = Vec::new();
    for id in only {
        let found = select.query_row([id.as_str()], |row| {
            let recovery = match row.get_ref(6)?.as_str_or_null()? {
                None => false,
                Some(owner) if owner == claim.by.as_str() => false,
                Some(owner) if lives(owner) => return Ok(None),
                Some(_) => true,
            };
            let wanted = wanted(claim, row)?;
            Ok(if wanted { Some((row.get(1).unwrap_or(None), row.get(0)?, recovery)) } else { None })
        });
        due.extend(found.optional()?.flatten());
    }
    Ok(due)
}

fn everywhere(
    connection: &Connection,
    claim: &Claim,
    now: Timestamp,
    lives: impl Fn(&str) -> bool,
) -> Result<Vec<Due>> {
    let mut due = Vec::new();
    pick(connection, claim, AWAKE, [int(now.0)], false, &mut due)?;
    pick(connection, claim, ASKED, [int(now.0)], false, &mut due)?;
    let mut owner = String::new();
    loop {
        let next: Option<String> =
            connection.prepare_cached(OWNERS)?.query_row([&owner], |row| row.get(0)).optional()?;
        let Some(next) = next else { break };
        if next <= owner {
            let why = "the index of the owners is not in its order".to_owned();
            return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(why)));
        }
        if !lives(&next) {
            pick(connection, claim, DEAD, [&next], true, &mut due)?;
        }
        owner = next;
    }
    Ok(due)
}

/// As `everywhere` and `named`, where a page or an index cannot be read: every row by its number. Requests wake nobody then.
fn one_by_one(
    connection: &Connection,
    claim: &Claim,
    now: Timestamp,
    lives: impl Fn(&str) -> bool,
) -> Result<Vec<Due>> {
    let mut select = connection.prepare_cached(&format!("{COLUMNS} WHERE number = ?1"))?;
    let mut due = Vec::new();
    for number in read::numbers(connection)? {
        let found = select.query_row([number], |row| {
            let text = |column| row.get_ref(column).map(|value| value.as_bytes().unwrap_or_default());
            let only = claim.only.as_ref();
            let over =
                std::str::from_utf8(text(7)?).ok().and_then(Phase::from_text).is_none_or(Phase::is_terminal);
            if over
                || only.is_some_and(|only| !only.iter().any(|id| Ok(id.as_str().as_bytes()) == text(2)))
                || !wanted(claim, row)?
            {
                return Ok(None);
            }
            let wake: Option<i64> = row.get(1).unwrap_or(None);
            Ok(match row.get_ref(6)?.as_str_or_null() {
                Ok(None) if only.is_some() || wake.is_some_and(|wake| wake <= int(now.0)) => {
                    Some((wake, number, false))
                }
                Ok(Some(owner)) if only.is_some() && owner == claim.by.as_str() => {
                    Some((wake, number, false))
                }
                Ok(Some(owner)) if !lives(owner) => Some((wake, number, true)),
                _ => None,
            })
        });
        match found.optional() {
            Err(error) if read::is_corrupt(&error) => {}
            found => due.extend(found?.flatten()),
        }
    }
    Ok(due)
}

// --- requests ---

pub(super) fn request(connection: &Connection, request: &Request) -> Result<Requested> {
    let mut select = connection.prepare_cached("SELECT number, phase FROM saga WHERE id = ?1")?;
    let found = select.query_row([request.saga.as_str()], |row| {
        Ok((row.get::<_, i64>(0)?, Phase::from_text(&row.get::<_, String>(1)?)))
    });
    let Some((number, phase)) = found.optional()? else { return Ok(Requested::Missing) };
    let mut known = connection.prepare_cached("SELECT 1 FROM signal WHERE saga = ?1 AND id = ?2")?;
    if known.exists(params![number, request.id])? {
        return Ok(Requested::Known);
    }
    if let Some(phase) = phase.filter(|phase| phase.is_terminal()) {
        return Ok(Requested::Over(phase));
    }
    let ask = serde_json::to_string(&request.ask)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    let mut leave =
        connection.prepare_cached("INSERT INTO signal (saga, id, author, ask) VALUES (?1, ?2, ?3, ?4)")?;
    leave.execute(params![number, request.id, request.by, ask])?;
    Ok(Requested::Left)
}

/// Within a transaction.
pub(super) fn forget(
    connection: &Connection,
    by: &str,
    now: Timestamp,
    before: Timestamp,
    limit: usize,
) -> Result<usize> {
    let mut forget = connection.prepare_cached(
        "DELETE FROM saga WHERE number IN (SELECT number FROM saga WHERE finished IS NOT NULL AND finished < ?1
         ORDER BY finished LIMIT ?2)",
    )?;
    let count = forget.execute(params![int(before.0), int(limit as u64)])?;
    if count > 0 {
        let mut note = connection.prepare_cached(
            "INSERT INTO saga_audit (author, day, before, sagas, at) VALUES (?1, ?4 / 86400000, ?2, ?3, ?4)
             ON CONFLICT (author, day) DO UPDATE SET before = max(before, excluded.before),
                 sagas = sagas + excluded.sagas, at = excluded.at",
        )?;
        note.execute(params![by, int(before.0), int(count as u64), int(now.0)])?;
    }
    Ok(count)
}
