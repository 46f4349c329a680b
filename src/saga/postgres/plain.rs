//! The appends that most appends are: one entry to a saga that goes on, by its owner, who keeps it.
//!
//! They begin nothing, end nothing, answer no request and let nothing go, so that a third of the columns, one list for a saga and its
//! entry, and one join are enough.

use std::borrow::Cow;

use super::rounds::{Parameters, clean, signed};
use crate::saga::{Timestamp, journal::Append};

/// The part of a statement that appends them. It needs `me` in front of it; its columns are the parameters that are named here.
/// What it answers with as `n` is counted from behind `$offset`.
macro_rules! plain {
    ($by:literal, $offset:literal, $saga:literal, $epoch:literal, $seq:literal, $at:literal, $crc:literal, $phase:literal,
        $note:literal, $wake:literal, $kind:literal, $step:literal, $data:literal) => {
        concat!(
            "plain AS (
    UPDATE @.saga SET len = saga.len + 1, crc = item.crc, phase = item.phase, note = item.note, wake = item.wake, recoveries = 0
    FROM unnest(", $saga, "::text[], ", $epoch, "::bigint[], ", $seq, "::bigint[], ", $at, "::bigint[], ", $crc,
            "::bigint[], ", $phase, "::text[], ", $note, "::text[], ", $wake, "::bigint[], ", $kind, "::text[], ", $step,
            "::text[], ", $data, "::text[]) WITH ORDINALITY
        AS item (saga, epoch, seq, at, crc, phase, note, wake, kind, step, data, n)
    WHERE EXISTS (SELECT FROM me) AND saga.id = ANY (", $saga, ") AND saga.id = item.saga
        AND saga.owner = ", $by, "::text AND saga.epoch = item.epoch AND saga.len = item.seq
    RETURNING ", $offset, "::bigint + item.n AS n, saga.number, item.seq, item.epoch, item.at, item.kind, item.step, item.data,
        item.crc
), plain_entries AS (
    INSERT INTO @.saga_event (saga, seq, epoch, at, author, kind, step, data, crc)
    SELECT number, seq, epoch, at, ", $by, ", kind, step, data, crc FROM plain
)"
        )
    };
}
pub(super) use plain;

/// The statement for a batch that has no others.
pub(super) const PLAIN: &str = concat!(
    "
WITH me AS MATERIALIZED (
    SELECT id FROM @.writer WHERE id = $1 AND session = $2 FOR SHARE
), ",
    plain!("$3", "$4", "$5", "$6", "$7", "$8", "$9", "$10", "$11", "$12", "$13", "$14", "$15"),
    "
SELECT n FROM plain UNION ALL SELECT 0 WHERE NOT EXISTS (SELECT FROM me)"
);

/// Such items as columns.
#[derive(Default)]
pub(super) struct Plain<'a> {
    by: &'a str,
    offset: i64,
    saga: Vec<&'a str>,
    epoch: Vec<i64>,
    seq: Vec<i64>,
    at: Vec<i64>,
    crc: Vec<i64>,
    phase: Vec<&'static str>,
    note: Vec<Cow<'a, str>>,
    wake: Vec<Option<i64>>,
    kind: Vec<Cow<'a, str>>,
    step: Vec<Option<Cow<'a, str>>>,
    data: Vec<&'a str>,
}

impl<'a> Plain<'a> {
    /// Whether an item is one, if all of them are by the same.
    pub(super) fn is(item: &Append, by: &str) -> bool {
        let Append { begin, entries, phase, release, answers, .. } = item;
        let [entry] = &**entries else { return false };
        let goes_on = begin.is_none() && !phase.is_terminal() && !release && answers.is_empty();
        goes_on && item.by.as_str() == by && entry.by == item.by && entry.epoch == item.epoch
    }

    /// For items behind `offset` others.
    pub(super) fn new(by: &'a str, offset: usize) -> Self {
        Plain { by, offset: offset as i64, ..Plain::default() }
    }

    /// Adds an item that [is](Plain::is) one.
    pub(super) fn push(&mut self, item: &'a Append) {
        for entry in &item.entries {
            self.saga.push(item.saga.as_str());
            self.epoch.push(signed(item.epoch));
            self.seq.push(signed(entry.seq));
            self.at.push(signed(entry.at.0));
            self.crc.push(entry.crc.into());
            self.phase.push(item.phase.as_str());
            self.note.push(clean(&item.note));
            self.wake.push(item.wake.map(|Timestamp(at)| signed(at)));
            self.kind.push(clean(&entry.kind));
            self.step.push(entry.step.as_deref().map(clean));
            self.data.push(&entry.data);
        }
    }

    /// For [`plain!`], in its order.
    pub(super) fn parameters(&self) -> Parameters<'_> {
        vec![
            &self.by,
            &self.offset,
            &self.saga,
            &self.epoch,
            &self.seq,
            &self.at,
            &self.crc,
            &self.phase,
            &self.note,
            &self.wake,
            &self.kind,
            &self.step,
            &self.data,
        ]
    }
}
