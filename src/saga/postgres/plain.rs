//! The appends that most appends are: one entry to a saga that is running and goes on, by its owner, who keeps it.
//!
//! They begin nothing, end nothing, answer no request, let nothing go and have nothing to say to people, so that a quarter of the
//! columns, one list for a saga and its entry, and one join are enough.

use std::borrow::Cow;

use super::rounds::{Parameters, clean, signed};
use crate::saga::journal::{Append, Phase};

/// The part of a statement that appends them. It needs `me` in front of it; its columns are the parameters that are named here.
/// What it answers with as `n` is counted from behind `$offset`.
///
/// The lists are unnested side by side in a select list, which the server does row by row; in `FROM` it would first write each list
/// into a store of its own.
macro_rules! plain {
    ($by:literal, $offset:literal, $saga:literal, $epoch:literal, $seq:literal, $at:literal, $crc:literal, $kind:literal,
        $step:literal, $data:literal) => {
        concat!(
            "plain AS (
    UPDATE @.saga SET len = saga.len + 1, crc = item.crc, phase = 'running', note = '', wake = NULL, recoveries = 0
    FROM (SELECT unnest(", $saga, "::text[]) AS saga, unnest(", $epoch, "::bigint[]) AS epoch, unnest(", $seq,
            "::bigint[]) AS seq, unnest(", $at, "::bigint[]) AS at, unnest(", $crc, "::bigint[]) AS crc, unnest(", $kind,
            "::text[]) AS kind, unnest(", $step, "::text[]) AS step, unnest(", $data, "::text[]) AS data,
        generate_subscripts(", $saga, "::text[], 1) AS n) AS item
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
    plain!("$3", "$4", "$5", "$6", "$7", "$8", "$9", "$10", "$11", "$12"),
    "
SELECT CASE WHEN EXISTS (SELECT FROM me) THEN ARRAY (SELECT n FROM plain) END"
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
    kind: Vec<Cow<'a, str>>,
    step: Vec<Option<Cow<'a, str>>>,
    data: Vec<&'a str>,
}

impl<'a> Plain<'a> {
    /// Whether an item is one, if all of them are by the same.
    pub(super) fn is(item: &Append, by: &str) -> bool {
        let Append { begin, entries, phase, note, wake, release, answers, .. } = item;
        let [entry] = &**entries else { return false };
        let goes_on = begin.is_none() && *phase == Phase::Running && !release && wake.is_none();
        goes_on
            && note.is_empty()
            && answers.is_empty()
            && item.by.as_str() == by
            && entry.by == item.by
            && entry.epoch == item.epoch
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
            &self.kind,
            &self.step,
            &self.data,
        ]
    }
}
