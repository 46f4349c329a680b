//! What the simulated device holds: the tables, and how to take back what was not synced.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::beside::{Beside, Saved};
use crate::saga::{
    Entry, Incarnation, SagaId, Timestamp,
    journal::{
        Append, Claim, Forgotten, Head, Job, Presence, Query, Refusal, Registered, Request, Requested, Stored,
    },
};

/// An entry in little space: the three texts in one.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    seq: u64,
    epoch: u64,
    at: Timestamp,
    by: Incarnation,
    crc: u32,
    kind: u32,
    step: Option<u32>,
    text: Box<str>,
}

impl Packed {
    fn new(entry: &Entry) -> Self {
        let step = entry.step.as_deref();
        Packed {
            seq: entry.seq,
            epoch: entry.epoch,
            at: entry.at,
            by: entry.by.clone(),
            crc: entry.crc,
            kind: entry.kind.len() as u32,
            step: step.map(|step| step.len() as u32),
            text: [&*entry.kind, step.unwrap_or(""), &*entry.data].concat().into(),
        }
    }

    fn entry(&self) -> Entry {
        let (kind, rest) = self.text.split_at(self.kind as usize);
        let (step, data) = rest.split_at(self.step.unwrap_or(0) as usize);
        Entry {
            seq: self.seq,
            epoch: self.epoch,
            at: self.at,
            by: self.by.clone(),
            kind: kind.to_owned(),
            step: self.step.map(|_| step.to_owned()),
            data: data.to_owned(),
            crc: self.crc,
        }
    }

    /// The same with one bit of an ASCII character of the data flipped, so that it stays text.
    fn flipped(&self, bit: usize) -> Self {
        let mut text = self.text.as_bytes().to_vec();
        let data = self.kind as usize + self.step.unwrap_or(0) as usize;
        let ascii: Vec<usize> = (data..text.len()).filter(|&at| text[at].is_ascii()).collect();
        if let Some(&at) = ascii.get((bit / 7) % ascii.len().max(1)) {
            text[at] ^= 1 << (bit % 7);
        }
        let text = String::from_utf8(text).map_or_else(|_| self.text.clone(), Into::into);
        Packed { text, ..self.clone() }
    }
}

/// All that belongs to one saga.
#[derive(Debug, Clone)]
pub(super) struct Row {
    head: Head,
    entries: Vec<Arc<Packed>>,
    locks: Vec<String>,
    waiting: Vec<(u64, Request)>,
    answered: Vec<String>,
}

impl Row {
    fn stored(&self) -> Stored {
        Stored {
            head: self.head.clone(),
            entries: self.entries.iter().map(|packed| packed.entry()).collect(),
        }
    }
}

/// An orchestrator that has registered: until when it is taken for alive, and what it says.
type Lease = (Timestamp, Option<Arc<Presence>>);

/// How a change is taken back.
#[derive(Debug, Clone)]
enum Undo {
    Saga(SagaId, Option<Arc<Row>>),
    Lease(Incarnation, Option<Lease>),
    Audit(Vec<Forgotten>),
    /// What the database beside held before it did work.
    Beside(Saved),
    /// Behind all that one operation, or one item of a batch, has changed.
    Mark,
}

/// The work of a store that does none.
enum NoWork {}

impl Job for NoWork {
    const STORE: &'static str = "memory";
}

/// The tables. A clone shares the sagas until one of the two changes them.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows {
    sagas: BTreeMap<SagaId, Arc<Row>>,
    open: BTreeSet<SagaId>,
    over: BTreeSet<(Timestamp, SagaId)>,
    asked: BTreeSet<SagaId>,
    locks: BTreeMap<String, SagaId>,
    leases: BTreeMap<Incarnation, Lease>,
    /// What was forgotten, the last one last.
    audit: Vec<Forgotten>,
    arrivals: u64,
    unsynced: Vec<Undo>,
    /// Whether changes can be taken back; only then they are written down.
    undoable: bool,
}

impl Rows {
    // --- the device ---

    /// From now on, whether changes reach the disk at once.
    pub(super) fn hold(&mut self, undoable: bool) {
        self.undoable = undoable;
    }

    /// Everything written so far is on the disk.
    pub(super) fn sync(&mut self) {
        self.unsynced.clear();
        self.undoable = false;
    }

    /// Takes back what was not synced, except the first `keep` changes. What the database beside held then, if it has changed since.
    pub(super) fn revert(&mut self, keep: usize) -> Option<Saved> {
        let marks = self.unsynced.iter().enumerate().filter(|(_, undo)| matches!(undo, Undo::Mark));
        let keep = match keep {
            0 => 0,
            _ => marks.map(|(at, _)| at + 1).nth(keep - 1).unwrap_or(self.unsynced.len()),
        };
        self.undoable = false;
        let mut beside = None;
        for undo in self.unsynced.split_off(keep).into_iter().rev() {
            match undo {
                Undo::Saga(id, before) => self.replace(id, before),
                Undo::Lease(by, Some(lease)) => drop(self.leases.insert(by, lease)),
                Undo::Lease(by, None) => drop(self.leases.remove(&by)),
                Undo::Audit(before) => self.audit = before,
                Undo::Beside(saved) => beside = Some(saved),
                Undo::Mark => {}
            }
        }
        self.unsynced.clear();
        beside
    }

    /// One operation, or one item of a batch, is complete.
    pub(super) fn mark(&mut self) {
        if self.undoable {
            self.unsynced.push(Undo::Mark);
        }
    }

    fn remember(&mut self, id: &SagaId) {
        if self.undoable {
            self.unsynced.push(Undo::Saga(id.clone(), self.sagas.get(id).cloned()));
        }
    }

    fn index(&mut self, row: &Row) {
        let id = &row.head.id;
        match row.head.finished {
            Some(at) => drop(self.over.insert((at, id.clone()))),
            None => drop(self.open.insert(id.clone())),
        }
        if !row.waiting.is_empty() {
            self.asked.insert(id.clone());
        }
        for key in &row.locks {
            self.locks.insert(key.clone(), id.clone());
        }
    }

    fn unindex(&mut self, row: &Row) {
        let id = &row.head.id;
        match row.head.finished {
            Some(at) => drop(self.over.remove(&(at, id.clone()))),
            None => drop(self.open.remove(id)),
        }
        self.asked.remove(id);
        for key in &row.locks {
            self.locks.remove(key);
        }
    }

    fn replace(&mut self, id: SagaId, row: Option<Arc<Row>>) {
        self.remember(&id);
        if let Some(before) = self.sagas.remove(&id) {
            self.unindex(&before);
        }
        if let Some(row) = row {
            self.index(&row);
            self.sagas.insert(id, row);
        }
    }

    fn edit(&mut self, id: &SagaId, edit: impl FnOnce(&mut Row)) {
        self.remember(id);
        let Some(row) = self.sagas.get_mut(id) else { return };
        let row = Arc::make_mut(row);
        let (asked, locks) = (!row.waiting.is_empty(), row.locks.clone());
        edit(row);
        // The common append changes no index.
        if row.head.finished.is_none() && asked != row.waiting.is_empty() {
            return;
        }
        let row = Arc::clone(&self.sagas[id]);
        self.open.remove(id);
        self.asked.remove(id);
        for key in &locks {
            self.locks.remove(key);
        }
        self.index(&row);
    }

    // --- appends ---

    /// Accepts an item and writes it, or changes nothing; of what kinds the entries are.
    pub(super) fn append(
        &mut self,
        item: Append,
        now: Timestamp,
        beside: Option<&dyn Beside>,
    ) -> Result<Vec<String>, Refusal> {
        self.check(&item)?;
        let item = self.worked(item, beside)?;
        let Append { saga, by, epoch, begin, entries, phase, note, wake, release, answers, .. } = item;
        if let Some(begin) = begin {
            let created = entries.first().map_or(now, |entry| entry.at);
            let mut head = Head::new(saga.clone(), begin.definition, created);
            head.tag = begin.tag;
            head.epoch = epoch;
            let row = Row {
                head,
                entries: Vec::new(),
                locks: begin.locks,
                waiting: Vec::new(),
                answered: Vec::new(),
            };
            self.replace(saga.clone(), Some(row.into()));
        }
        self.edit(&saga, |row| {
            for entry in &entries {
                row.head.crc = entry.crc;
                row.head.len += 1;
                row.head.recoveries = 0;
                row.entries.push(Arc::new(Packed::new(entry)));
            }
            row.head.phase = phase;
            row.head.note = note;
            row.head.wake = wake;
            row.head.owner = (!release).then_some(by);
            if !answers.is_empty() {
                let (done, waiting) = std::mem::take(&mut row.waiting)
                    .into_iter()
                    .partition(|(_, request)| answers.contains(&request.id));
                row.waiting = waiting;
                let done: Vec<(u64, Request)> = done;
                row.answered.extend(done.into_iter().map(|(_, request)| request.id));
            }
            if phase.is_terminal() {
                row.head.finished = Some(row.entries.last().map_or(row.head.created, |last| last.at));
                row.head.owner = None;
                row.head.wake = None;
                row.locks.clear();
                row.waiting.clear();
            }
        });
        self.mark();
        Ok(entries.into_iter().map(|entry| entry.kind).collect())
    }

    /// The item with the entry that its work makes: the work is done and committed then.
    fn worked(&mut self, mut item: Append, beside: Option<&dyn Beside>) -> Result<Append, Refusal> {
        let Some(work) = item.work.take() else { return Ok(item) };
        let Some(beside) = beside else { return work.take::<NoWork>().map(|none| match none {}) };
        if self.undoable {
            self.unsynced.push(Undo::Beside(beside.save()));
        }
        item.entries = vec![beside.work(&work)?];
        Ok(item)
    }

    fn check(&self, item: &Append) -> Result<(), Refusal> {
        let expected = match (self.sagas.get(&item.saga), &item.begin) {
            (Some(_), Some(_)) => return Err(Refusal::Exists),
            (None, None) => return Err(Refusal::Missing),
            (Some(row), None) => {
                if row.head.epoch != item.epoch || row.head.owner.as_ref() != Some(&item.by) {
                    return Err(Refusal::Fenced { epoch: row.head.epoch });
                }
                row.head.len
            }
            (None, Some(_)) => 0,
        };
        let behind = item.work.iter().any(|work| work.seq() != expected);
        if behind || (expected..).zip(&item.entries).any(|(seq, entry)| entry.seq != seq) {
            return Err(Refusal::Gap { expected });
        }
        for key in item.begin.iter().flat_map(|begin| &begin.locks) {
            if let Some(holder) = self.locks.get(key) {
                return Err(Refusal::Locked { key: key.clone(), holder: holder.clone() });
            }
        }
        Ok(())
    }

    // --- ownership ---

    pub(super) fn lease(&mut self, by: &Incarnation, until: Timestamp) {
        let says = self.leases.get(by).and_then(|(_, says)| says.clone());
        self.register(by, (until, says));
    }

    pub(super) fn leave(&mut self, by: &Incarnation, now: Timestamp) {
        if let Some(&(until, _)) = self.leases.get(by) {
            self.register(by, (until.min(now), None));
        }
    }

    pub(super) fn announce(&mut self, by: &Incarnation, presence: Presence) {
        if let Some(&(until, _)) = self.leases.get(by) {
            self.register(by, (until, Some(presence.into())));
        }
    }

    fn register(&mut self, by: &Incarnation, lease: Lease) {
        let before = self.leases.insert(by.clone(), lease);
        if self.undoable {
            self.unsynced.push(Undo::Lease(by.clone(), before));
        }
        self.mark();
    }

    pub(super) fn orchestrators(&self) -> Vec<Registered> {
        let shown = |(by, (until, says)): (&Incarnation, &Lease)| Registered {
            by: by.clone(),
            until: *until,
            presence: says.as_deref().cloned(),
        };
        self.leases.iter().map(shown).collect()
    }

    pub(super) fn claim(&mut self, claim: &Claim, now: Timestamp) -> Vec<Stored> {
        let mut due: Vec<(Option<Timestamp>, SagaId, bool)> = match &claim.only {
            Some(only) => {
                let open = only.iter().filter_map(|id| self.open.get(id));
                open.filter_map(|id| self.due(id, claim, now)).collect()
            }
            None => self.open.iter().filter_map(|id| self.due(id, claim, now)).collect(),
        };
        due.sort();
        due.dedup();
        due.truncate(claim.limit);
        let mut taken = Vec::with_capacity(due.len());
        for (_, id, recovery) in due {
            self.edit(&id, |row| {
                row.head.owner = Some(claim.by.clone());
                row.head.epoch += 1;
                row.head.recoveries = row.head.recoveries.saturating_add(recovery.into());
            });
            taken.extend(self.stored(&id));
        }
        self.mark();
        taken
    }

    /// Whether a saga is to be taken, and whether it is a recovery.
    fn due(&self, id: &SagaId, claim: &Claim, now: Timestamp) -> Option<(Option<Timestamp>, SagaId, bool)> {
        let head = &self.sagas.get(id)?.head;
        let recovery = match &head.owner {
            Some(owner) if claim.only.is_some() && *owner == claim.by => false,
            Some(owner) if self.leases.get(owner).is_some_and(|(until, _)| *until > now) => return None,
            Some(_) => true,
            None => {
                let awake = head.wake.is_some_and(|wake| wake <= now);
                if !awake && !self.asked.contains(id) && claim.only.is_none() {
                    return None;
                }
                false
            }
        };
        let wanted = claim.definitions.contains(&head.definition) && !claim.except.contains(id);
        wanted.then(|| (head.wake, id.clone(), recovery))
    }

    // --- requests ---

    pub(super) fn request(&mut self, request: Request) -> Requested {
        let Some(row) = self.sagas.get(&request.saga) else { return Requested::Missing };
        let waits = row.waiting.iter().any(|(_, waiting)| waiting.id == request.id);
        if waits || row.answered.contains(&request.id) {
            return Requested::Known;
        }
        if row.head.phase.is_terminal() {
            return Requested::Over(row.head.phase);
        }
        self.arrivals += 1;
        let number = self.arrivals;
        self.edit(&request.saga.clone(), |row| row.waiting.push((number, request)));
        self.mark();
        Requested::Left
    }

    pub(super) fn requests(&self, by: &Incarnation) -> Vec<Request> {
        let rows = self.asked.iter().filter_map(|id| self.sagas.get(id));
        let mut waiting: Vec<&(u64, Request)> =
            rows.filter(|row| row.head.owner.as_ref() == Some(by)).flat_map(|row| &row.waiting).collect();
        waiting.sort_by_key(|(number, _)| *number);
        waiting.into_iter().map(|(_, request)| request.clone()).collect()
    }

    // --- looking ---

    pub(super) fn stored(&self, id: &SagaId) -> Option<Stored> {
        self.sagas.get(id).map(|row| row.stored())
    }

    pub(super) fn ids(&self) -> Vec<SagaId> {
        self.sagas.keys().cloned().collect()
    }

    pub(super) fn list(&self, query: &Query) -> Vec<Head> {
        use std::ops::Bound::{Excluded, Unbounded};
        let shown = |head: &&Head| {
            (query.phases.is_empty() || query.phases.contains(&head.phase))
                && query.definition.as_ref().is_none_or(|name| *name == head.definition.name)
                && query.tag.as_ref().is_none_or(|tag| *tag == head.tag)
        };
        let after = query.after.clone().map_or(Unbounded, Excluded);
        let heads = self.sagas.range((after, Unbounded)).map(|(_, row)| &row.head).filter(shown);
        heads.take(if query.limit == 0 { 100 } else { query.limit }).cloned().collect()
    }

    pub(super) fn forget(&mut self, by: String, now: Timestamp, before: Timestamp, limit: usize) -> usize {
        let old: Vec<SagaId> = self
            .over
            .iter()
            .take_while(|(at, _)| *at < before)
            .take(limit)
            .map(|(_, id)| id.clone())
            .collect();
        for id in &old {
            self.replace(id.clone(), None);
        }
        if !old.is_empty() {
            if self.undoable {
                self.unsynced.push(Undo::Audit(self.audit.clone()));
            }
            let day = |at: Timestamp| at.0 / 86_400_000;
            let earlier = self.audit.iter().position(|noted| noted.by == by && day(noted.at) == day(now));
            let mut note = match earlier {
                Some(at) => self.audit.remove(at),
                None => Forgotten { by, before, sagas: 0, at: now },
            };
            note.sagas += old.len() as u64;
            note.before = note.before.max(before);
            note.at = now;
            self.audit.push(note);
        }
        self.mark();
        old.len()
    }

    pub(super) fn forgotten(&self, limit: usize) -> Vec<Forgotten> {
        self.audit.iter().rev().take(limit).cloned().collect()
    }

    // --- damage ---

    /// Flips a bit in the data of an entry; whether there is such an entry.
    pub(super) fn corrupt(&mut self, id: &SagaId, seq: u64, bit: usize) -> bool {
        let mut found = false;
        if let Some(row) = self.sagas.get_mut(id) {
            for packed in Arc::make_mut(row).entries.iter_mut().filter(|packed| packed.seq == seq) {
                *packed = Arc::new(packed.flipped(bit));
                found = true;
            }
        }
        found
    }

    /// Loses the entries from `len` on; how many it were.
    pub(super) fn truncate(&mut self, id: &SagaId, len: usize) -> usize {
        let Some(row) = self.sagas.get_mut(id) else { return 0 };
        let entries = &mut Arc::make_mut(row).entries;
        let before = entries.len();
        entries.truncate(len);
        before - entries.len()
    }
}
