//! The statements for Postgres, the same for every client.

/// One message is one transaction. The lock, since `if not exists` is no protection against two at the same time.
pub(super) const INSTALL: &str = "select pg_advisory_xact_lock(hashtext('mainstay'), hashtext('install'));
     create table if not exists mainstay_inbox (
         consumer text not null,
         message text not null,
         at timestamptz not null default now(),
         primary key (consumer, message)
     );
     create index if not exists mainstay_inbox_at on mainstay_inbox using brin (at)";

/// Consumer and message, as texts.
pub(super) const ACCEPT: &str =
    "insert into mainstay_inbox (consumer, message) values ($1, $2) on conflict do nothing";

/// Seconds as a double, and the most rows as a bigint.
pub(super) const PRUNE: &str = "delete from mainstay_inbox where (consumer, message) in (
         select consumer, message from mainstay_inbox
         where at < now() - make_interval(secs => $1) order by at limit $2
     )";
