//! Ownership: leases, claims, and forgetting what is over.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio_postgres::{Row, types::ToSql};

use super::{
    link::{Link, Place, Session, Trouble, together},
    read,
    rounds::signed,
    schema::Sql,
};
use crate::{
    saga::{
        Timestamp,
        journal::{Claim, Phase, StoreError, Stored},
    },
    sync::{Mutex, lock},
    time,
};

/// A lease from now on, by the database's clock.
pub(super) const HEARTBEAT: &str = "INSERT INTO @.orchestrator (incarnation, until) VALUES ($1, ~ + $2)
ON CONFLICT (incarnation) DO UPDATE SET until = excluded.until";

/// The end of a lease.
pub(super) const LEAVE: &str =
    "UPDATE @.orchestrator SET until = least(until, ~), says = NULL WHERE incarnation = $1";

/// What an orchestrator says of itself.
pub(super) const ANNOUNCE: &str = "UPDATE @.orchestrator SET says = $2 WHERE incarnation = $1";

/// Whether a row makes sense so far that its saga can be claimed. What cannot be read, or counted on from, stays as it is.
macro_rules! sound {
    () => {
        "
        AND (definition, version, digest) IN (SELECT * FROM definitions) AND id <> ALL ($5) AND phase = ANY ($8)
        AND epoch BETWEEN 0 AND 9223372036854775806 AND len BETWEEN 0 AND 9223372036854775806 AND crc BETWEEN 0 AND 4294967295
        AND recoveries BETWEEN 0 AND 4294967294 AND created >= 0 AND coalesce(wake, 0) >= 0
        AND substring(id FROM '[[:cntrl:]]') IS NULL"
    };
}

/// Takes sagas whose rows are sound. `due` have no owner and their time has come, `asked` have none and are asked for something, `orphaned` have one
/// whose lease is over, `named` are those that are named, in one order, since a claim waits for another
/// one there. Each looks at the rows by an index of its own, and steps over those that another claim has in
/// hand. A row that was changed meanwhile is looked at again before it is taken.
pub(super) const CLAIM: &str = concat!(
    "
WITH RECURSIVE clock AS MATERIALIZED (
    SELECT ~ AS now
), owners (owner) AS (
    (SELECT min(owner) FROM @.saga WHERE owner IS NOT NULL AND finished IS NULL)
    UNION ALL
    SELECT (SELECT min(saga.owner) FROM @.saga WHERE saga.owner > owners.owner AND saga.owner IS NOT NULL AND finished IS NULL)
    FROM owners WHERE owner IS NOT NULL
), dead AS MATERIALIZED (
    SELECT owner FROM owners WHERE owner IS NOT NULL AND NOT EXISTS (SELECT FROM @.orchestrator
        WHERE incarnation = owners.owner AND until > (SELECT now FROM clock))
), definitions AS MATERIALIZED (
    SELECT * FROM unnest($2::text[], $3::bigint[], $4::text[])
), due AS MATERIALIZED (
    SELECT id, wake FROM @.saga WHERE $7::text[] IS NULL
        AND owner IS NULL AND finished IS NULL AND wake <= (SELECT now FROM clock)",
    sound!(),
    "
    ORDER BY wake, id LIMIT $6 FOR UPDATE SKIP LOCKED
), asked AS MATERIALIZED (
    SELECT id, wake FROM @.saga WHERE $7::text[] IS NULL
        AND owner IS NULL AND finished IS NULL AND number IN (SELECT saga FROM @.signal WHERE ask IS NOT NULL)",
    sound!(),
    "
    ORDER BY wake NULLS FIRST, id LIMIT $6 FOR UPDATE SKIP LOCKED
), orphaned AS MATERIALIZED (
    SELECT id, wake FROM @.saga WHERE $7::text[] IS NULL
        AND owner IN (SELECT owner FROM dead) AND owner IS NOT NULL AND finished IS NULL",
    sound!(),
    "
    ORDER BY wake NULLS FIRST, id LIMIT $6 FOR UPDATE SKIP LOCKED
), named AS MATERIALIZED (
    SELECT id, wake FROM @.saga WHERE id = ANY ($7) AND finished IS NULL
        AND (owner IS NULL OR owner = $1 OR owner IN (SELECT owner FROM dead))",
    sound!(),
    "
    ORDER BY id FOR UPDATE
), chosen AS MATERIALIZED (
    SELECT id, wake FROM due UNION SELECT id, wake FROM asked UNION SELECT id, wake FROM orphaned
    UNION SELECT id, wake FROM named ORDER BY wake NULLS FIRST, id LIMIT $6
)
UPDATE @.saga SET owner = $1, epoch = epoch + 1, recoveries = recoveries
    + CASE WHEN owner IS NULL OR owner = $1 AND $7 IS NOT NULL THEN 0 ELSE 1 END
WHERE id = ANY (ARRAY (SELECT id FROM chosen)) RETURNING id, epoch"
);

/// Takes sagas whose rows are sound, of those on the pages from `$7` on and before `$9`: for a table of which the server cannot read
/// all. `$10` are asked for something. An index would lead it to any page. So the rows are looked at where they lie, and what they say of their ends is asked in
/// a way that no index knows. Prepared when it is needed: other servers that speak the protocol have no pages.
const CLAIM_PAGES: &str = concat!(
    "
WITH definitions AS MATERIALIZED (
    SELECT * FROM unnest($2::text[], $3::bigint[], $4::text[])
), chosen AS MATERIALIZED (
    SELECT ctid FROM @.saga WHERE ctid >= format('(%s,0)', $7::bigint)::tid AND ctid < format('(%s,0)', $9::bigint)::tid
        AND num_nulls(finished) = 1 AND CASE
            WHEN owner IS NULL THEN wake <= ~ OR number = ANY ($10)
            ELSE NOT EXISTS (SELECT FROM @.orchestrator WHERE incarnation = owner AND until > ~) END",
    sound!(),
    "
    ORDER BY wake NULLS FIRST, id LIMIT $6 FOR UPDATE SKIP LOCKED
)
UPDATE @.saga SET owner = $1, epoch = epoch + 1, recoveries = recoveries + CASE WHEN owner IS NULL THEN 0 ELSE 1 END
WHERE ctid = ANY (ARRAY (SELECT ctid FROM chosen)) RETURNING id, epoch"
);

/// The sagas that are asked for something.
const ASKED: &str = "SELECT DISTINCT saga FROM @.signal WHERE ask IS NOT NULL";

/// How many pages the table has.
const SIZE: &str = "SELECT pg_relation_size($1::text::regclass) / current_setting('block_size')::bigint";

/// As many pages as a table can have.
const PAGES: i64 = u32::MAX as i64;

/// At most so many pages that cannot be read are stepped over: with more of them the damage is elsewhere, or everywhere.
const UNREADABLE: usize = 64;

/// So long it is not tried again whether they can be read.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The server could not read all rows of sagas.
pub(super) struct Unreadable {
    /// The pages that it could not read; `None` when there is no way around them.
    pages: Option<BTreeSet<i64>>,
    /// So long this is believed.
    until: Instant,
}

/// Whose these sagas are. It waits for the transaction that may have claimed them: its rows are locked, whatever they say.
pub(super) const CLAIMED: &str =
    "SELECT id, owner, epoch FROM @.saga WHERE id = ANY ($1) ORDER BY id FOR UPDATE";

/// Deletes sagas that are over, and leases and writers that are long past, and notes who said so.
pub(super) const FORGET: &str = "
WITH old AS MATERIALIZED (
    SELECT number FROM @.saga WHERE finished IS NOT NULL AND finished >= 0 AND finished < $1
    ORDER BY finished, id LIMIT $2 FOR UPDATE SKIP LOCKED
), entries AS (
    DELETE FROM @.saga_event WHERE saga = ANY (ARRAY (SELECT number FROM old))
), signals AS (
    DELETE FROM @.signal WHERE saga = ANY (ARRAY (SELECT number FROM old))
), locks AS (
    DELETE FROM @.semantic_lock WHERE saga = ANY (ARRAY (SELECT number FROM old))
), leases AS (
    DELETE FROM @.orchestrator WHERE until < ~ - 86400000
), writers AS (
    DELETE FROM @.writer WHERE since < ~ - 604800000
), gone AS (
    DELETE FROM @.saga WHERE number = ANY (ARRAY (SELECT number FROM old)) RETURNING number
), noted AS (
    INSERT INTO @.saga_audit (author, day, before, sagas, at) SELECT $3, ~ / 86400000, $1, count(*), ~ FROM gone HAVING count(*) > 0
    ON CONFLICT (author, day) DO UPDATE SET before = greatest(saga_audit.before, excluded.before),
        sagas = saga_audit.sagas + excluded.sagas, at = excluded.at
)
SELECT count(*) FROM gone";

/// Cuts a connection that is left within a transaction, so that the server undoes it.
struct Within<'a>(Option<&'a Session>);

impl Drop for Within<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.0 {
            session.cut();
        }
    }
}

/// Takes sagas; see [`Journal::claim`](crate::saga::journal::Journal::claim).
pub(super) async fn claim(
    link: &Link,
    place: &Place,
    unreadable: &Mutex<Option<Unreadable>>,
    claim: &Claim,
) -> Result<Vec<Stored>, StoreError> {
    lock(unreadable).take_if(|known| known.until <= time::now());
    // What was to be committed when the connection broke.
    let doubtful = Mutex::new(Vec::new());
    // The server could not read some of them: each is read by itself.
    let apart = AtomicBool::new(false);
    link.persist(|session| attempt(session, place, claim, unreadable, &doubtful, &apart)).await
}

async fn attempt(
    session: Arc<Session>,
    place: &Place,
    claim: &Claim,
    unreadable: &Mutex<Option<Unreadable>>,
    doubtful: &Mutex<Vec<Stored>>,
    apart: &AtomicBool,
) -> Result<Vec<Stored>, Trouble> {
    let _turn = session.turn.lock().await;
    let client = &session.client;
    let by = claim.by.as_str();
    let ids: Vec<String> = lock(doubtful).iter().map(|stored| stored.head.id.to_string()).collect();
    if !ids.is_empty() {
        let rows = client.query(session.statement(Sql::Claimed), &[&ids]).await?;
        let mut ours = std::mem::take(&mut *lock(doubtful));
        let mut held = HashSet::new();
        for row in &rows {
            if row.try_get::<_, Option<&str>>(1)? == Some(by) {
                held.insert((row.try_get::<_, &str>(0)?, row.try_get::<_, i64>(2)?));
            }
        }
        ours.retain(|stored| held.contains(&(stored.head.id.as_str(), signed(stored.head.epoch))));
        if !ours.is_empty() {
            return Ok(ours);
        }
    }
    let names: Vec<&str> = claim.definitions.iter().map(|definition| &*definition.name).collect();
    let versions: Vec<i64> = claim.definitions.iter().map(|definition| definition.version.into()).collect();
    let digests: Vec<&str> = claim.definitions.iter().map(|definition| &*definition.digest).collect();
    let except: Vec<&str> = claim.except.iter().map(|id| id.as_str()).collect();
    let limit = i64::try_from(claim.limit).unwrap_or(i64::MAX);
    let only: Option<Vec<&str>> = claim.only.as_ref().map(|only| only.iter().map(|id| id.as_str()).collect());
    let phases = Phase::ALL.map(Phase::as_str);
    let parameters: [&(dyn ToSql + Sync); 8] =
        [&by, &names, &versions, &digests, &except, &limit, &only, &&phases[..]];

    let mut within = Within(Some(&session));
    let around = lock(unreadable).as_ref().and_then(|known| known.pages.clone()).filter(|_| only.is_none());
    let rows = if let Some(around) = around {
        client.batch_execute("BEGIN").await?;
        let taken = take_around(&session, place, &parameters, limit, around, unreadable).await;
        if let (Err(Trouble::Damaged(_)), Some(known)) = (&taken, &mut *lock(unreadable)) {
            known.pages = None;
        }
        taken?
    } else {
        let answers = together(vec![
            Box::pin(async { client.batch_execute("BEGIN").await.map(|()| Vec::new()) }) as _,
            Box::pin(async { client.query(session.statement(Sql::Claim), &parameters).await }),
        ])
        .await
        .into_iter()
        .collect::<Result<Vec<_>, _>>();
        match answers.map_err(Trouble::from) {
            Ok(mut answers) => answers.pop().unwrap_or_default(),
            Err(Trouble::Damaged(why)) if only.is_none() && lock(unreadable).is_none() => {
                let until = time::later(time::now(), REMEMBERED);
                *lock(unreadable) = Some(Unreadable { pages: Some(BTreeSet::new()), until });
                return Err(Trouble::Undone(why));
            }
            Err(trouble) => return Err(trouble),
        }
    };
    let ids = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<&str>, _>>()?;
    let mut taken = if ids.is_empty() {
        Vec::new()
    } else if apart.load(Relaxed) {
        each(&session, &ids).await?
    } else {
        match read::stored(&session, &ids).await {
            Err(Trouble::Damaged(why)) => {
                apart.store(true, Relaxed);
                return Err(Trouble::Undone(why));
            }
            read => read?,
        }
    };
    taken.sort_by(|one, other| (one.head.wake, &one.head.id).cmp(&(other.head.wake, &other.head.id)));
    lock(doubtful).clone_from(&taken);
    client.batch_execute("COMMIT").await?;
    within.0 = None;
    Ok(taken)
}

/// Takes what is on the pages that the server can read, within a transaction, and notes those that it cannot. What it takes first is
/// not what is due first.
async fn take_around(
    session: &Session,
    place: &Place,
    parameters: &[&(dyn ToSql + Sync); 8],
    limit: i64,
    mut around: BTreeSet<i64>,
    unreadable: &Mutex<Option<Unreadable>>,
) -> Result<Vec<Row>, Trouble> {
    let client = &session.client;
    let statement = client.prepare(&place.schema.sql(CLAIM_PAGES)).await?;
    let asked = asked(session, place).await?;
    let mut taken = Vec::new();
    // The table as it is, so that no half of it is looked at twice; and what may have come behind it.
    let size: i64 = client.query_one(SIZE, &[&place.schema.sql("@.saga")]).await?.try_get(0)?;
    let (mut ranges, mut next) = (Vec::new(), 0);
    for page in &around {
        ranges.push((next, *page));
        next = page + 1;
    }
    ranges.extend([(next, size.max(next)), (size.max(next), PAGES)]);
    while let Some((from, to)) = ranges.pop() {
        let room = limit.saturating_sub(i64::try_from(taken.len()).unwrap_or(i64::MAX));
        if room <= 0 {
            break;
        }
        if from == to {
            continue;
        }
        let [by, names, versions, digests, except, _, _, phases] = *parameters;
        let parameters = [by, names, versions, digests, except, &room, &from, phases, &to, &asked];
        client.batch_execute("SAVEPOINT pages").await?;
        match client.query(&statement, &parameters).await.map_err(Trouble::from) {
            Ok(rows) => {
                taken.extend(rows);
                client.batch_execute("RELEASE SAVEPOINT pages").await?;
            }
            Err(Trouble::Damaged(why)) => {
                client.batch_execute("ROLLBACK TO SAVEPOINT pages").await?;
                let middle = from + (to - from) / 2;
                if middle > from {
                    ranges.extend([(from, middle), (middle, to)]);
                } else if around.len() < UNREADABLE {
                    around.insert(from);
                    // At once: should the search take longer than it may, the next one goes on from here.
                    if let Some(Unreadable { pages: Some(pages), .. }) = &mut *lock(unreadable) {
                        pages.insert(from);
                    }
                } else {
                    return Err(Trouble::Damaged(why));
                }
            }
            Err(trouble) => return Err(trouble),
        }
    }
    Ok(taken)
}

/// The sagas that are asked for something, read within a transaction; none where the server cannot read that: the others are taken even so.
async fn asked(session: &Session, place: &Place) -> Result<Vec<i64>, Trouble> {
    let client = &session.client;
    client.batch_execute("SAVEPOINT asked").await?;
    match client.query(&place.schema.sql(ASKED), &[]).await.map_err(Trouble::from) {
        Ok(rows) => Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?),
        Err(Trouble::Damaged(_)) => {
            client.batch_execute("ROLLBACK TO SAVEPOINT asked").await?;
            Ok(Vec::new())
        }
        Err(trouble) => Err(trouble),
    }
}

/// Reads them one by one within a transaction, those without their entries whose entries the server cannot read.
async fn each(session: &Session, ids: &[&str]) -> Result<Vec<Stored>, Trouble> {
    let mut read = Vec::with_capacity(ids.len());
    for id in ids {
        session.client.batch_execute("SAVEPOINT one").await?;
        match read::stored(session, &[id]).await {
            Ok(found) => read.extend(found),
            Err(Trouble::Damaged(_)) => {
                session.client.batch_execute("ROLLBACK TO SAVEPOINT one").await?;
                read.extend(read::alone(session, id).await?);
            }
            Err(trouble) => return Err(trouble),
        }
    }
    Ok(read)
}

/// Forgets what is over; see [`Journal::forget`](crate::saga::journal::Journal::forget).
pub(super) async fn forget(
    session: Arc<Session>,
    by: &str,
    before: Timestamp,
    limit: usize,
) -> Result<usize, Trouble> {
    let _turn = session.turn.lock().await;
    let before = signed(before.0);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let row = session.client.query_one(session.statement(Sql::Forget), &[&before, &limit, &by]).await?;
    Ok(usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0))
}
