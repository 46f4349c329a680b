//! How a batch is laid out for the statement that appends it.

use std::{borrow::Cow, collections::HashSet};

use tokio_postgres::types::ToSql;

use super::{link::Trouble, plain::Plain, schema::Sql};
use crate::saga::{
    Timestamp,
    journal::{Append, StoreError},
};

/// What one statement carries at most, in bytes, unless one item alone has more.
const ROOM: usize = 16 << 20;

/// What a statement is sent with.
pub(super) type Parameters<'a> = Vec<&'a (dyn ToSql + Sync)>;

/// Some items of a batch, at most one for each saga, as columns.
#[derive(Default)]
pub(super) struct Round<'a> {
    /// Their places in the batch, in the order of their sagas.
    pub(super) items: Vec<usize>,
    numbers: Vec<i64>,
    saga: Vec<&'a str>,
    by: Vec<&'a str>,
    epoch: Vec<i64>,
    fresh: Vec<bool>,
    definition: Vec<Option<Cow<'a, str>>>,
    version: Vec<Option<i64>>,
    digest: Vec<Option<Cow<'a, str>>>,
    tag: Vec<Option<Cow<'a, str>>>,
    seq: Vec<Option<i64>>,
    added: Vec<i64>,
    crc: Vec<Option<i64>>,
    begun: Vec<Option<i64>>,
    ended: Vec<Option<i64>>,
    phase: Vec<&'static str>,
    ending: Vec<bool>,
    note: Vec<Cow<'a, str>>,
    wake: Vec<Option<i64>>,
    released: Vec<bool>,
    wanted: (Vec<i64>, Vec<Cow<'a, str>>),
    starting: Vec<&'a str>,
    entries: Entries<'a>,
    answers: (Vec<i64>, Vec<Cow<'a, str>>),
    /// For the question whether it was written: the wake that the row has then, the last entry's number, and whether
    /// there is no owner then.
    woken: Vec<Option<i64>>,
    last: Vec<Option<i64>>,
    gone: Vec<bool>,
    /// Those of the items, the last ones, that are laid out apart.
    plain: Plain<'a>,
}

#[derive(Default)]
struct Entries<'a> {
    n: Vec<i64>,
    seq: Vec<i64>,
    epoch: Vec<i64>,
    at: Vec<i64>,
    by: Vec<&'a str>,
    kind: Vec<Cow<'a, str>>,
    step: Vec<Option<Cow<'a, str>>>,
    data: Vec<&'a str>,
    crc: Vec<i64>,
}

impl<'a> Round<'a> {
    /// Lays out these items of a batch.
    pub(super) fn new(batch: &'a [Append], mut items: Vec<usize>) -> Self {
        // The order of the sagas is that in which their rows are written, so that two batches never wait for each other.
        // It is stable, for the items of one saga.
        items.sort_by(|&one, &other| batch[one].saga.cmp(&batch[other].saga));
        let mut round = Round::default();
        for (n, &at) in (1..).zip(&items) {
            round.push(n, &batch[at]);
        }
        round.items = items;
        round
    }

    /// Lays out these items of a batch, the plain ones apart and behind the others.
    pub(super) fn divided(batch: &'a [Append], items: Vec<usize>) -> Self {
        let by = items.first().map_or("", |&at| batch[at].by.as_str());
        let (mut plain, others): (Vec<_>, Vec<_>) =
            items.into_iter().partition(|&at| Plain::is(&batch[at], by));
        let mut round = Round::new(batch, others);
        round.plain = Plain::new(by, round.items.len());
        plain.sort_by(|&one, &other| batch[one].saga.cmp(&batch[other].saga));
        for &at in &plain {
            round.plain.push(&batch[at]);
        }
        round.items.extend(plain);
        round
    }

    fn push(&mut self, n: i64, item: &'a Append) {
        let Append { saga, by, epoch, begin, entries, phase, note, wake, release, answers, .. } = item;
        let ending = phase.is_terminal();
        let whole = entries.windows(2).all(|pair| pair[0].seq.checked_add(1) == Some(pair[1].seq));
        self.numbers.push(n);
        self.saga.push(saga.as_str());
        self.by.push(by.as_str());
        self.epoch.push(signed(*epoch));
        self.fresh.push(begin.is_some());
        let begin = begin.as_ref();
        self.definition.push(begin.map(|begin| clean(&begin.definition.name)));
        self.version.push(begin.map(|begin| begin.definition.version.into()));
        self.digest.push(begin.map(|begin| clean(&begin.definition.digest)));
        self.tag.push(begin.map(|begin| clean(&begin.tag)));
        // Entries with a gap among them follow nothing.
        self.seq.push(entries.first().map(|entry| if whole { signed(entry.seq) } else { -1 }));
        self.added.push(entries.len() as i64);
        self.crc.push(entries.last().map(|entry| entry.crc.into()));
        self.begun.push(entries.first().map(|entry| signed(entry.at.0)));
        self.ended.push(entries.last().map(|entry| signed(entry.at.0)));
        self.phase.push(phase.as_str());
        self.ending.push(ending);
        self.note.push(clean(note));
        let wake = wake.map(|Timestamp(at)| signed(at));
        self.wake.push(wake);
        self.released.push(*release);
        self.woken.push(wake.filter(|_| !ending));
        self.last.push(entries.last().map(|entry| signed(entry.seq)));
        self.gone.push(ending || *release);
        let mut wanted: Vec<&String> = begin.iter().flat_map(|begin| &begin.locks).collect();
        wanted.sort();
        wanted.dedup();
        for key in wanted {
            self.wanted.0.push(n);
            self.wanted.1.push(clean(key));
        }
        if begin.is_some() {
            self.starting.push(saga.as_str());
        }
        for entry in entries {
            self.entries.n.push(n);
            self.entries.seq.push(signed(entry.seq));
            self.entries.epoch.push(signed(entry.epoch));
            self.entries.at.push(signed(entry.at.0));
            self.entries.by.push(entry.by.as_str());
            self.entries.kind.push(clean(&entry.kind));
            self.entries.step.push(entry.step.as_deref().map(clean));
            self.entries.data.push(&entry.data);
            self.entries.crc.push(entry.crc.into());
        }
        for id in answers {
            self.answers.0.push(n);
            self.answers.1.push(clean(id));
        }
    }

    /// The place in the batch of the `n`-th item.
    pub(super) fn place(&self, n: i64) -> Result<usize, Trouble> {
        let item = usize::try_from(n).ok().and_then(|n| self.items.get(n.checked_sub(1)?));
        item.copied().ok_or_else(|| {
            Trouble::Final(StoreError::Io(format!("the database answers for item {n}, which there is not")))
        })
    }

    /// What appends them, and with which parameters.
    pub(super) fn statement<'p>(&'p self, writer: &'p &str, session: &'p String) -> (Sql, Parameters<'p>) {
        let (sql, mut parameters) = match self.saga.is_empty() {
            true => (Sql::Plain, vec![writer as _, session as _]),
            false => (Sql::Append, self.parameters(writer, session)),
        };
        parameters.extend(self.plain.parameters());
        (sql, parameters)
    }

    /// For [`APPEND`](super::append::APPEND), up to the plain items.
    fn parameters<'p>(&'p self, writer: &'p &str, session: &'p String) -> Parameters<'p> {
        vec![
            writer,
            session,
            &self.saga,
            &self.by,
            &self.epoch,
            &self.fresh,
            &self.definition,
            &self.version,
            &self.digest,
            &self.tag,
            &self.seq,
            &self.added,
            &self.crc,
            &self.begun,
            &self.ended,
            &self.phase,
            &self.ending,
            &self.note,
            &self.wake,
            &self.released,
            &self.starting,
            &self.wanted.0,
            &self.wanted.1,
            &self.entries.n,
            &self.entries.seq,
            &self.entries.epoch,
            &self.entries.at,
            &self.entries.by,
            &self.entries.kind,
            &self.entries.step,
            &self.entries.data,
            &self.entries.crc,
            &self.answers.0,
            &self.answers.1,
        ]
    }

    /// For [`REFUSED`](super::append::REFUSED).
    pub(super) fn questions(&self) -> Parameters<'_> {
        vec![
            &self.numbers,
            &self.saga,
            &self.by,
            &self.epoch,
            &self.fresh,
            &self.seq,
            &self.wanted.0,
            &self.wanted.1,
        ]
    }

    /// For [`WRITTEN`](super::append::WRITTEN).
    pub(super) fn evidence(&self) -> Parameters<'_> {
        vec![
            &self.numbers,
            &self.saga,
            &self.by,
            &self.epoch,
            &self.last,
            &self.crc,
            &self.phase,
            &self.note,
            &self.woken,
            &self.gone,
            &self.answers.0,
            &self.answers.1,
        ]
    }
}

/// The next items that one statement can take: not two that begin with the same lock, of which the first one has to have it, unless
/// an item of the same batch has it already; and not two of one saga.
pub(super) fn choose(
    batch: &[Append],
    open: impl Iterator<Item = usize>,
    locked: &HashSet<String>,
) -> Vec<usize> {
    let mut items = Vec::new();
    let mut sagas: HashSet<&str> = HashSet::new();
    let mut keys: HashSet<&str> = HashSet::new();
    let mut filled = 0;
    for at in open {
        let item = &batch[at];
        let locks: Vec<&str> = item.begin.iter().flat_map(|begin| &begin.locks).map(|key| &**key).collect();
        let free =
            locks.iter().all(|key| !keys.contains(key)) || locks.iter().any(|key| locked.contains(*key));
        // What has to wait keeps those behind it from overtaking, too.
        keys.extend(locks);
        if !sagas.insert(item.saga.as_str()) || !free {
            continue;
        }
        filled += size(item);
        if filled > ROOM && !items.is_empty() {
            break;
        }
        items.push(at);
    }
    items
}

/// About how many bytes an item takes on the wire.
fn size(item: &Append) -> usize {
    let entries = item.entries.iter().map(|entry| entry.data.len() + 200).sum::<usize>();
    entries + item.note.len() + 300
}

/// A number as the database has it; what does not fit is more than anything that happens.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Text as the database can hold it: it refuses the character NUL, for which `␀` is put.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    match text.contains('\0') {
        true => text.replace('\0', "\u{2400}").into(),
        false => text.into(),
    }
}
