//! Appends: a batch is one statement and so one commit, however many sagas it is about.

use std::{collections::HashSet, sync::Arc};

use tokio_postgres::Row;

use super::{
    link::{Link, Session, Trouble},
    plain::plain,
    read::saga_id,
    rounds::{Round, choose},
    schema::Sql,
};
use crate::{
    saga::journal::{Append, Refusal, StoreError},
    sync::{Mutex, lock},
};

/// Appends at most one item to each of some sagas, and answers with the accepted ones.
///
/// * `me`: this connection is still the one that writes for its journal. If not, nothing happens, and the answer is NULL.
/// * `moved`: the sagas' rows that are where the items say. Only their owner changes them, so that no two appends wait for each other
///   here; a claim may come first, and then the row no longer is where the item says.
/// * `begun`: new sagas whose locks are free, in the order of their ids.
/// * `accepted`: both; everything behind it writes what else the accepted items say, locks in the order of their keys.
/// * `plain`: the items that need less, which are most; see [`Plain`](super::plain::Plain). A batch that has no others is sent
///   as [`PLAIN`](super::plain::PLAIN).
///
/// What the snapshot does not show, since another transaction is just writing it, a primary key refuses: then nothing at all is
/// written, and the statement is sent again. With all of them in one order, two that begin the same do not lock each other out.
pub(super) const APPEND: &str = concat!("
WITH me AS MATERIALIZED (
    SELECT id FROM @.writer WHERE id = $1 AND session = $2 FOR SHARE
), item AS MATERIALIZED (
    SELECT generate_subscripts($3::text[], 1)::bigint AS n, unnest($3::text[]) AS saga, unnest($4::text[]) AS by,
        unnest($5::bigint[]) AS epoch, unnest($6::bool[]) AS fresh, unnest($7::text[]) AS definition,
        unnest($8::bigint[]) AS version, unnest($9::text[]) AS digest, unnest($10::text[]) AS tag, unnest($11::bigint[]) AS seq,
        unnest($12::bigint[]) AS added, unnest($13::bigint[]) AS crc, unnest($14::bigint[]) AS begun,
        unnest($15::bigint[]) AS ended, unnest($16::text[]) AS phase, unnest($17::bool[]) AS ending, unnest($18::text[]) AS note,
        unnest($19::bigint[]) AS wake, unnest($20::bool[]) AS released
), moved AS (
    UPDATE @.saga SET len = saga.len + item.added, crc = coalesce(item.crc, saga.crc), phase = item.phase, note = item.note,
        wake = CASE WHEN NOT ending THEN item.wake END, owner = CASE WHEN NOT ending AND NOT released THEN saga.owner END,
        recoveries = CASE WHEN item.added = 0 THEN saga.recoveries ELSE 0 END,
        finished = CASE WHEN ending THEN coalesce(ended, (SELECT at FROM @.saga_event WHERE saga_event.saga = saga.number
            ORDER BY saga_event.seq DESC LIMIT 1), saga.created) END
    FROM item WHERE EXISTS (SELECT FROM me) AND saga.id = ANY ($3) AND saga.id = item.saga AND NOT fresh
        AND saga.owner = item.by AND saga.epoch = item.epoch AND (item.seq IS NULL OR item.seq = saga.len)
    RETURNING item.n, saga.number, ending
), wanted AS MATERIALIZED (
    SELECT * FROM unnest($22::bigint[], $23::text[]) AS wanted (n, key)
), begun AS (
    INSERT INTO @.saga (id, definition, version, digest, phase, note, epoch, owner, len, crc, wake, created, finished, recoveries,
        tag)
    SELECT saga, definition, version, digest, phase, note, epoch, CASE WHEN NOT ending AND NOT released THEN by END, added,
        coalesce(crc, 0), CASE WHEN NOT ending THEN wake END, coalesce(begun, ~),
        CASE WHEN ending THEN coalesce(ended, ~) END, 0, tag
    FROM item WHERE fresh AND EXISTS (SELECT FROM me) AND coalesce(seq, 0) = 0
        AND saga NOT IN (SELECT id FROM @.saga WHERE id = ANY ($21))
        AND n NOT IN (SELECT n FROM wanted WHERE key IN (SELECT key FROM @.semantic_lock WHERE key = ANY ($23)))
    ORDER BY n RETURNING number, id
), accepted AS MATERIALIZED (
    SELECT n, number, ending FROM moved
    UNION ALL SELECT item.n, begun.number, item.ending FROM begun JOIN item ON item.saga = begun.id
), entries AS (
    INSERT INTO @.saga_event (saga, seq, epoch, at, author, kind, step, data, crc)
    SELECT accepted.number, entry.seq, entry.epoch, entry.at, entry.author, entry.kind, entry.step, entry.data, entry.crc
    FROM (SELECT unnest($24::bigint[]) AS n, unnest($25::bigint[]) AS seq, unnest($26::bigint[]) AS epoch,
        unnest($27::bigint[]) AS at, unnest($28::text[]) AS author, unnest($29::text[]) AS kind, unnest($30::text[]) AS step,
        unnest($31::text[]) AS data, unnest($32::bigint[]) AS crc) AS entry
    JOIN accepted ON accepted.n = entry.n
), locked AS (
    INSERT INTO @.semantic_lock (key, saga) SELECT wanted.key, accepted.number FROM wanted JOIN accepted USING (n)
    WHERE NOT ending ORDER BY wanted.key COLLATE \"C\"
), freed AS (
    DELETE FROM @.semantic_lock WHERE saga = ANY (ARRAY (SELECT number FROM accepted WHERE ending))
), given AS MATERIALIZED (
    SELECT accepted.number, given.id FROM unnest($33::bigint[], $34::text[]) AS given (n, id) JOIN accepted USING (n)
), answered AS (
    UPDATE @.signal SET ask = NULL FROM given
    WHERE signal.saga = ANY (ARRAY (SELECT number FROM given)) AND signal.saga = given.number AND signal.id = given.id
        AND signal.ask IS NOT NULL
), dropped AS (
    DELETE FROM @.signal WHERE saga = ANY (ARRAY (SELECT number FROM accepted WHERE ending)) AND ask IS NOT NULL
        AND NOT EXISTS (SELECT FROM given WHERE given.number = signal.saga AND given.id = signal.id)
), ",
    plain!("$35", "$36", "$37", "$38", "$39", "$40", "$41", "$42", "$43", "$44"),
    "
SELECT CASE WHEN EXISTS (SELECT FROM me) THEN ARRAY (SELECT n FROM accepted UNION ALL SELECT n FROM plain) END"
);

/// Why items were not accepted. One that would be accepted by now, `open`, is to be sent again.
pub(super) const REFUSED: &str = "
WITH conflict AS MATERIALIZED (
    SELECT DISTINCT ON (wanted.n) wanted.n, held.key, held.saga FROM unnest($7::bigint[], $8::text[]) AS wanted (n, key)
    JOIN @.semantic_lock AS held ON held.key = wanted.key AND held.key = ANY ($8) ORDER BY wanted.n, held.key
)
SELECT item.n, CASE
    WHEN fresh AND saga.id IS NOT NULL THEN 'exists'
    WHEN NOT fresh AND saga.id IS NULL THEN 'missing'
    WHEN NOT fresh AND (saga.epoch <> item.epoch OR saga.owner IS DISTINCT FROM item.by) THEN 'fenced'
    WHEN item.seq <> coalesce(saga.len, 0) THEN 'gap'
    WHEN conflict.n IS NOT NULL THEN 'locked'
    ELSE 'open' END,
    saga.epoch, saga.len, conflict.key, coalesce((SELECT id FROM @.saga WHERE saga.number = conflict.saga), '?')
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bool[], $6::bigint[])
    AS item (n, saga, by, epoch, fresh, seq)
LEFT JOIN @.saga ON saga.id = item.saga AND saga.id = ANY ($2)
LEFT JOIN conflict ON conflict.n = item.n";

/// Which items of a batch are written, found out when its answer was lost: by the last entry of each, or, of an item without
/// entries, by what it says about its saga.
pub(super) const WRITTEN: &str = "
SELECT item.n FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], $8::text[],
    $9::bigint[], $10::bool[]) AS item (n, saga, by, epoch, seq, crc, phase, note, wake, gone)
JOIN @.saga ON saga.id = item.saga AND saga.id = ANY ($2)
WHERE CASE WHEN seq IS NOT NULL THEN EXISTS (
    SELECT FROM @.saga_event AS entry WHERE entry.saga = saga.number AND entry.seq = item.seq AND entry.epoch = item.epoch
        AND entry.crc = item.crc AND entry.author = item.by
) ELSE saga.epoch = item.epoch AND saga.phase = item.phase AND saga.note = item.note
    AND saga.wake IS NOT DISTINCT FROM item.wake
    AND saga.owner IS NOT DISTINCT FROM CASE WHEN NOT gone THEN item.by END
    AND NOT EXISTS (
        SELECT FROM unnest($11::bigint[], $12::text[]) AS given (n, id) JOIN @.signal USING (id)
        WHERE given.n = item.n AND signal.saga = saga.number AND signal.ask IS NOT NULL
    )
END";

/// After so many refusals by a primary key, each item is sent for itself, and after as many again it is the one to blame.
const SUSPICIOUS: u32 = 3;

/// How far a batch has come.
struct Progress {
    answers: Vec<Option<Result<(), Refusal>>>,
    /// What was sent without an answer, and may be done.
    doubtful: Vec<usize>,
    /// The locks that items of this batch have got.
    locked: HashSet<String>,
    /// How often something was there that the snapshot did not show, and how often for an item by itself.
    taken: u32,
    blamed: u32,
}

/// Appends a batch; see [`Journal::append`](crate::saga::journal::Journal::append).
pub(super) async fn append(
    link: &Link,
    writer: &str,
    batch: &[Append],
) -> Result<Vec<Result<(), Refusal>>, StoreError> {
    let progress = Mutex::new(Progress {
        answers: batch.iter().map(|_| None).collect(),
        doubtful: Vec::new(),
        locked: HashSet::new(),
        taken: 0,
        blamed: 0,
    });
    link.persist(|session| attempt(session, writer, batch, &progress)).await?;
    let answers = std::mem::take(&mut lock(&progress).answers);
    Ok(answers.into_iter().flatten().collect())
}

/// Does what is left of a batch.
async fn attempt(
    session: Arc<Session>,
    writer: &str,
    batch: &[Append],
    shared: &Mutex<Progress>,
) -> Result<(), Trouble> {
    let doubtful = lock(shared).doubtful.clone();
    if !doubtful.is_empty() {
        // Nothing that an earlier connection has sent can take effect any more: this one has taken its place.
        let round = Round::new(batch, doubtful);
        let rows = session.client.query(session.statement(Sql::Written), &round.evidence()).await?;
        let mut progress = lock(shared);
        for row in rows {
            progress.accept(batch, round.place(row.try_get(0)?)?);
        }
        progress.doubtful.clear();
    }
    loop {
        let next = lock(shared).next(batch);
        let Some(items) = next else { return Ok(()) };
        let round = Round::divided(batch, items);
        lock(shared).doubtful.clone_from(&round.items);
        let (statement, parameters) = round.statement(&writer, &session.name);
        let sent = session.client.query_one(session.statement(statement), &parameters).await;
        let refused = {
            let mut progress = lock(shared);
            let row = match sent.map_err(Trouble::from) {
                Ok(row) => row,
                Err(Trouble::Lost(why)) => return Err(Trouble::Lost(why)),
                Err(trouble) => {
                    progress.doubtful.clear();
                    if matches!(trouble, Trouble::Taken(_)) && progress.blame(batch, &round.items) {
                        continue;
                    }
                    return Err(trouble);
                }
            };
            progress.doubtful.clear();
            progress.blamed = 0;
            let Some(accepted): Option<Vec<i64>> = row.try_get(0)? else {
                return Err(Trouble::Lost("another connection writes for this journal".to_owned()));
            };
            for n in accepted {
                progress.accept(batch, round.place(n)?);
            }
            round.items.iter().copied().filter(|&at| progress.answers[at].is_none()).collect()
        };
        refuse(&session, batch, refused, shared).await?;
    }
}

/// Finds out why these items were not accepted.
async fn refuse(
    session: &Session,
    batch: &[Append],
    items: Vec<usize>,
    progress: &Mutex<Progress>,
) -> Result<(), Trouble> {
    if items.is_empty() {
        return Ok(());
    }
    let round = Round::new(batch, items);
    let rows = session.client.query(session.statement(Sql::Refused), &round.questions()).await?;
    let mut progress = lock(progress);
    for row in rows {
        let at = round.place(row.try_get(0)?)?;
        progress.answers[at] = refusal(&row)?.map(Err);
    }
    Ok(())
}

impl Progress {
    fn accept(&mut self, batch: &[Append], at: usize) {
        self.answers[at] = Some(Ok(()));
        self.locked.extend(batch[at].begin.iter().flat_map(|begin| &begin.locks).cloned());
    }

    /// What goes into the next statement; `None` when all are answered.
    fn next(&self, batch: &[Append]) -> Option<Vec<usize>> {
        let open = (0..batch.len()).filter(|&at| self.answers[at].is_none());
        let items = match self.taken < SUSPICIOUS {
            true => choose(batch, open, &self.locked),
            false => open.take(1).collect(),
        };
        (!items.is_empty()).then_some(items)
    }

    /// Something was there that the snapshot did not show: mostly what another transaction had just written, which the next
    /// snapshot shows. If it is an entry that the saga's row does not count, that item alone is refused; whether it was.
    fn blame(&mut self, batch: &[Append], items: &[usize]) -> bool {
        self.taken += 1;
        self.locked.clear();
        if self.taken <= SUSPICIOUS {
            return false;
        }
        self.blamed += 1;
        match items {
            [at] if self.blamed >= SUSPICIOUS => {
                self.blamed = 0;
                self.answers[*at] = Some(Err(Refusal::Fenced { epoch: batch[*at].epoch }));
                true
            }
            _ => false,
        }
    }
}

/// Why the row's item was refused; `None` if it would not be now.
fn refusal(row: &Row) -> Result<Option<Refusal>, Trouble> {
    let unsigned = |at: usize| -> Result<u64, Trouble> {
        Ok(row.try_get::<_, Option<i64>>(at)?.and_then(|value| u64::try_from(value).ok()).unwrap_or(0))
    };
    Ok(Some(match row.try_get(1)? {
        "exists" => Refusal::Exists,
        "missing" => Refusal::Missing,
        "fenced" => Refusal::Fenced { epoch: unsigned(2)? },
        "gap" => Refusal::Gap { expected: unsigned(3)? },
        "locked" => Refusal::Locked { key: row.try_get(4)?, holder: saga_id(row.try_get(5)?) },
        _ => return Ok(None),
    }))
}
