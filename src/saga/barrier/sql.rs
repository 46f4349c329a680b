//! The statements for Postgres, the same for every client. Parameters are texts where nothing else is said.

/// One message is one transaction. The lock, since `if not exists` is no protection against two at the same time.
/// No `check` on the phase: Postgres would read and compile it anew at each insert, which makes that half as dear again.
pub(super) const INSTALL: &str = "select pg_advisory_xact_lock(hashtext('mainstay'), hashtext('install'));
     create table if not exists mainstay_barrier (
         saga text collate \"C\" not null,
         step text collate \"C\" not null,
         phase text collate \"C\" not null,
         state text not null,
         result json,
         at timestamptz not null default now(),
         primary key (saga, step, phase)
     );
     create index if not exists mainstay_barrier_at on mainstay_barrier using brin (at)";

/// Saga, step, phase, state. Waits for a transaction that has claimed the row and is not over.
pub(super) const CLAIM: &str =
    "insert into mainstay_barrier (saga, step, phase, state) values ($1, $2, $3, $4) on conflict do nothing";

/// Saga, step, phase. Whether the row is there.
#[cfg(feature = "sqlx")]
pub(super) const CLAIMED: &str = "select from mainstay_barrier where saga = $1 and step = $2 and phase = $3";

/// Saga, step. State and result of the action's row, and whether its compensation's row is there: in one statement, so that both are of one moment.
pub(super) const ANSWER: &str = "select state, result::text, exists (
         select from mainstay_barrier where saga = $1 and step = $2 and phase = 'undo'
     ) from mainstay_barrier where saga = $1 and step = $2 and phase = 'do'";

/// Saga, step. State and result of the action's row, for a compensation.
pub(super) const READ: &str =
    "select state, result::text from mainstay_barrier where saga = $1 and step = $2 and phase = 'do'";

/// Saga, step, state, result.
pub(super) const FINISH: &str = "update mainstay_barrier set state = $3, result = $4::text::json
     where saga = $1 and step = $2 and phase = 'do'";

/// Saga, step.
pub(super) const LOOKUP: &str =
    "select phase, state, result::text from mainstay_barrier where saga = $1 and step = $2";

/// Seconds as a double, and the most rows as a bigint.
pub(super) const PRUNE: &str = "delete from mainstay_barrier where (saga, step, phase) in (
         select saga, step, phase from mainstay_barrier as old
         where at < now() - make_interval(secs => $1) and not exists (
             select 1 from mainstay_barrier as late
             where late.saga = old.saga and late.at >= now() - make_interval(secs => $1)
         )
         order by at limit $2
     )";
