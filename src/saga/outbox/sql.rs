//! The statements for Postgres, the same for every client. Numbers of rows are bigints.

/// One message is one transaction. The lock, since `if not exists` is no protection against two at the same time.
pub(super) const INSTALL: &str = "select pg_advisory_xact_lock(hashtext('mainstay'), hashtext('install'));
     create table if not exists mainstay_outbox (
         id bigint primary key generated always as identity,
         message text not null unique default gen_random_uuid()::text,
         topic text not null,
         key text not null,
         payload json not null,
         at timestamptz not null default now(),
         attempts int not null default 0,
         due timestamptz not null default '-infinity',
         reason text,
         parked timestamptz,
         sent timestamptz
     );
     create index if not exists mainstay_outbox_order on mainstay_outbox (topic, key, id) where sent is null;
     create index if not exists mainstay_outbox_unsent on mainstay_outbox (id) where sent is null;
     create index if not exists mainstay_outbox_sent on mainstay_outbox (sent) where sent is not null";

/// Topic, key and payload, as texts. The lock is taken before the row gets its number.
pub(super) const APPEND: &str = "insert into mainstay_outbox (topic, key, payload)
     select $1, $2, $3::json from (
         select pg_advisory_xact_lock(hashtext('mainstay_outbox'), hashtext($1 || '/' || $2))
     ) as in_order
     returning message";

/// Whether parked messages are skipped, and the most rows. The first unsent messages of some keys, locked.
///
/// Each row looks for the nearest one in front of it. As a `not exists` that is a join, in which the server may compare all rows of a
/// key with each other, or walk anew from the first one for each. Compared instead of `is null`, of which the server would believe that it
/// is hardly ever so, and plan for a walk through all.
pub(super) const FIRST: &str = "select id from mainstay_outbox as this
     where sent is null and parked is null and due <= now() and coalesce((
         select earlier.id from mainstay_outbox as earlier
         where earlier.topic = this.topic and earlier.key = this.key and earlier.sent is null
             and earlier.id < this.id and (earlier.parked is null or not $1)
         order by earlier.id desc limit 1
     ), this.id) >= this.id
     order by id limit $2 for update skip locked";

/// The ids of those, whether parked messages are skipped, and the most rows. These messages and those that follow them.
///
/// Of each key so many as a batch has at most, up to the first one that stops it: read once, however many are behind.
pub(super) const BATCH: &str = "select id, message, topic, key, payload::text, attempts from mainstay_outbox
     where id in (
         select line.id from mainstay_outbox as first
         cross join lateral (
             select id, bool_or(stops) over (order by id) as stopped from (
                 select this.id, this.due > now() or (this.parked is not null and not $2) as stops
                 from mainstay_outbox as this
                 where this.topic = first.topic and this.key = first.key and this.sent is null and (
                     this.due > now() or (this.parked is not null and not $2)
                     or (this.parked is null and this.id >= first.id)
                 )
                 order by this.id limit $3
             ) as this
         ) as line
         where first.id = any($1) and not line.stopped
         order by line.id limit $3
     )
     order by id";

/// Ids.
pub(super) const SENT: &str = "update mainstay_outbox set sent = clock_timestamp() where id = any($1)";

/// An id, the reason as a text, and the seconds to wait as a double; without them it is parked.
pub(super) const REFUSED: &str = "update mainstay_outbox set attempts = attempts + 1, reason = $2,
         due = clock_timestamp() + make_interval(secs => coalesce($3, 0)),
         parked = case when $3 is null then clock_timestamp() end
     where id = $1";

/// The most rows.
pub(super) const PARKED: &str =
    "select message, topic, key, payload::text, attempts, coalesce(reason, '') from mainstay_outbox
     where sent is null and parked is not null order by id limit $1";

/// A message's own name, as a text.
pub(super) const RELEASE: &str = "update mainstay_outbox set parked = null, attempts = 0, due = '-infinity'
     where message = $1 and parked is not null and sent is null";

/// A message's own name, as a text.
pub(super) const DISCARD: &str =
    "delete from mainstay_outbox where message = $1 and parked is not null and sent is null";

/// Seconds as a double, and the most rows.
pub(super) const PRUNE: &str = "delete from mainstay_outbox where id in (
         select id from mainstay_outbox where sent is not null and sent < now() - make_interval(secs => $1)
         order by sent limit $2
     )";
