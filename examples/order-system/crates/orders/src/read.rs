//! The side that is asked: one row for each order in a database of its own, made of the orders' events alone.
//!
//! It can run where orders are not accepted, any number of times; and be thrown away and [rebuilt](rebuild).

use std::sync::Arc;

use axum::extract::State;
use http::HeaderMap;
use order_broker::Queue;
use order_kit::{
    ApiError, BoxError, Context, Db, Json, Service, Tx,
    auth::may_see,
    db::{DbError, Row},
    error::ErrorBody,
    events::{self, Envelope, Trouble},
    extract::Path,
    iso, now_ms,
};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    checks,
    order::Status,
    place,
    store::{self, Store},
    wire::{CANCELLED, CONFIRMED, CREATED, OrderEvent, Revised, UPDATED, USER_CREATED, USER_UPDATED, User},
};

/// The queue of the events of orders.
pub const ORDERS_QUEUE: &str = "orders.read";
/// The queue of the events of users.
pub const USERS_QUEUE: &str = "orders.users";
/// Who rebuilds holds this.
const REBUILD: &str = "orders-read.rebuild";
/// How many of a user's orders are shown at most.
const MOST: i64 = 500;
/// How many events are read at once when the read side is rebuilt.
const PAGE: i64 = 500;
/// An order that was accepted so long before a rebuild was begun is among its events, whatever the clocks and the commits.
const SETTLED_MS: i64 = 60_000;

const MIGRATIONS: &[&str] = &[
    "
create table order_view (
    order_id text primary key,
    user_id text not null,
    summary text not null,
    item_count bigint not null,
    created_at text not null,
    status text not null,
    version bigint not null
);
create index order_view_of_user on order_view (user_id, order_id);
create table user_replica (
    id text primary key,
    name text not null,
    email text,
    event text not null
);
",
    "
create table order_rebuilt (
    order_id text primary key,
    user_id text not null,
    summary text not null,
    item_count bigint not null,
    created_at text not null,
    status text not null,
    version bigint not null
);
create table rebuild (one bigint primary key, name text not null);
",
    // What was known goes by the clocks of those who said it: whatever is heard next is taken for newer.
    "
alter table user_replica drop column event;
alter table user_replica add column revision bigint not null default 0;
",
];

/// Where rows of orders are.
#[derive(Debug, Clone, Copy)]
enum Table {
    /// What is asked.
    View,
    /// What becomes that when it is complete.
    Rebuilt,
}

/// An order, as its customer sees it in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderRow {
    /// Which order.
    pub order_id: String,
    /// Whose.
    pub user_id: String,
    /// `Order #ID - TOTAL`.
    pub summary: String,
    /// How many lines it has.
    pub item_count: i64,
    /// When it was accepted.
    pub created_at: String,
    /// Where it stands.
    pub status: Status,
}

/// The read side's database.
#[derive(Clone)]
pub(crate) struct ReadStore(Db);

impl ReadStore {
    pub(crate) async fn open(context: &Context) -> Result<Self, DbError> {
        context.wait_for("its read database");
        Ok(ReadStore(Db::open(place(context, "orders-read"), MIGRATIONS).await?))
    }

    pub(crate) fn db(&self) -> &Db {
        &self.0
    }

    /// Takes events of orders in. Of each order the newest holds, in whatever order and however often they come.
    pub(crate) async fn apply(&self, events: Vec<OrderEvent>) -> Result<(), DbError> {
        let work = async move |tx: &Tx<'_>| {
            for event in &events {
                upsert(tx, Table::View, event).await?;
            }
            Ok::<_, DbError>(())
        };
        self.0.write(work).await
    }

    /// Begins to make the list anew, beside the one that is asked; its name. What another rebuild has made so far is thrown away.
    async fn begin_rebuild(&self) -> Result<String, DbError> {
        let name = order_kit::new_id();
        let mine = name.clone();
        let work = async move |tx: &Tx<'_>| {
            tx.lock(REBUILD).await?;
            let begin = "insert into rebuild (one, name) values (1, $1) on conflict (one) do update set name = excluded.name";
            tx.execute(begin, &[mine.into()]).await?;
            tx.execute("delete from order_rebuilt", &[]).await.map(drop)
        };
        self.0.write(work).await.map(|()| name)
    }

    /// Takes events into the list that is made.
    async fn go_on(&self, rebuild: &str, events: Vec<OrderEvent>) -> Result<(), DbError> {
        let rebuild = rebuild.to_owned();
        let work = async move |tx: &Tx<'_>| {
            still(tx, rebuild).await?;
            for event in &events {
                upsert(tx, Table::Rebuilt, event).await?;
            }
            Ok::<_, DbError>(())
        };
        self.0.write(work).await
    }

    /// Puts the list that was made in the place of the one that is asked. What that has heard meanwhile stays: newer states of orders, and
    /// orders accepted since `began`.
    async fn finish_rebuild(&self, rebuild: &str, began: String) -> Result<(), DbError> {
        let rebuild = rebuild.to_owned();
        let work = async move |tx: &Tx<'_>| {
            still(tx, rebuild).await?;
            let made = "select 1 from order_rebuilt as made where made.order_id = order_view.order_id";
            let clear = format!(
                "delete from order_view where exists ({made} and made.version >= order_view.version) \
                 or (created_at < $1 and not exists ({made}))"
            );
            tx.execute(&clear, &[began.into()]).await?;
            let columns = "order_id, user_id, summary, item_count, created_at, status, version";
            let fill = format!(
                "insert into order_view ({columns}) select {columns} from order_rebuilt where true \
                 on conflict (order_id) do nothing"
            );
            tx.execute(&fill, &[]).await?;
            tx.execute("delete from order_rebuilt", &[]).await.map(drop)
        };
        self.0.write(work).await
    }

    async fn of_user(&self, user: String) -> Result<Vec<OrderRow>, DbError> {
        let work = async move |tx: &Tx<'_>| {
            let sql = "select order_id, user_id, summary, item_count, created_at, status from order_view \
                       where user_id = $1 order by order_id desc limit $2";
            tx.query(sql, &[user.into(), MOST.into()]).await?.iter().map(of_row).collect()
        };
        self.0.read(work).await
    }

    /// Takes a user's event in; an older one than is known changes nothing.
    pub(crate) async fn remember(&self, heard: Revised) -> Result<(), DbError> {
        let work = async move |tx: &Tx<'_>| {
            let sql = "insert into user_replica (id, name, email, revision) values ($1, $2, $3, $4) \
                       on conflict (id) do update set name = excluded.name, email = excluded.email, revision = excluded.revision \
                       where excluded.revision > user_replica.revision";
            let Revised { user: User { id, name, email }, revision } = heard;
            tx.execute(sql, &[id.into(), name.into(), email.into(), revision.into()]).await.map(drop)
        };
        self.0.write(work).await
    }

    /// A user, as the event with the greatest revision says.
    pub(crate) async fn user(&self, id: &str) -> Result<Option<User>, DbError> {
        let id = id.to_owned();
        let work = async move |tx: &Tx<'_>| {
            let sql = "select id, name, email from user_replica where id = $1";
            let user =
                |row: Row| Ok(User { id: row.text(0)?, name: row.text(1)?, email: row.maybe_text(2)? });
            tx.first(sql, &[id.into()]).await?.map(user).transpose()
        };
        self.0.read(work).await
    }
}

/// That nobody has begun another rebuild since. Holds others off until the transaction ends.
async fn still(tx: &Tx<'_>, rebuild: String) -> Result<(), DbError> {
    tx.lock(REBUILD).await?;
    match tx.first("select 1 from rebuild where name = $1", &[rebuild.into()]).await? {
        Some(_) => Ok(()),
        None => Err(DbError::Statement("another rebuild has been begun".to_owned())),
    }
}

async fn upsert(tx: &Tx<'_>, table: Table, event: &OrderEvent) -> Result<(), DbError> {
    macro_rules! into {
        ($table:literal) => {
            concat!(
                "insert into ",
                $table,
                " (order_id, user_id, summary, item_count, created_at, status, version) ",
                "values ($1, $2, $3, $4, $5, $6, $7) on conflict (order_id) do update set ",
                "user_id = excluded.user_id, summary = excluded.summary, item_count = excluded.item_count, ",
                "created_at = excluded.created_at, status = excluded.status, version = excluded.version ",
                "where excluded.version > ",
                $table,
                ".version"
            )
        };
    }
    let sql = match table {
        Table::View => into!("order_view"),
        Table::Rebuilt => into!("order_rebuilt"),
    };
    let values = [
        (&event.order_id).into(),
        (&event.user_id).into(),
        format!("Order #{} - {}", event.order_id, event.total).into(),
        i64::try_from(event.items.len()).unwrap_or(i64::MAX).into(),
        (&event.created_at).into(),
        event.status.as_str().into(),
        event.version.into(),
    ];
    tx.execute(sql, &values).await.map(drop)
}

fn of_row(row: &Row) -> Result<OrderRow, DbError> {
    Ok(OrderRow {
        order_id: row.text(0)?,
        user_id: row.text(1)?,
        summary: row.text(2)?,
        item_count: row.int(3)?,
        created_at: row.text(4)?,
        status: row.text(5)?.parse().map_err(|error| DbError::Statement(format!("an order: {error}")))?,
    })
}

/// What an event says of an order; nothing, if it says nothing new or is of a kind that nobody here knows.
fn of_event(envelope: &Envelope) -> Result<Option<OrderEvent>, Trouble> {
    match envelope.kind.as_str() {
        CREATED | UPDATED | CONFIRMED | CANCELLED => envelope.data().map(Some),
        // `order.paid` says what `order.confirmed` has said.
        _ => Ok(None),
    }
}

fn orders_queue() -> Queue {
    Queue::new(ORDERS_QUEUE).bind("order.*")
}

fn users_queue() -> Queue {
    Queue::new(USERS_QUEUE).bind("user.*")
}

/// What the read side wants to hear.
pub fn queues() -> [Queue; 2] {
    [orders_queue(), users_queue()]
}

/// Listens to orders and users.
pub(crate) async fn listen(context: &Context, read: &ReadStore) -> Result<(), BoxError> {
    let store = read.clone();
    events::consume(context, orders_queue(), 16, move |envelope| {
        let store = store.clone();
        async move {
            match of_event(&envelope)? {
                Some(event) => Ok(store.apply(vec![event]).await?),
                None => Ok(()),
            }
        }
    })
    .await?;
    let store = read.clone();
    events::consume(context, users_queue(), 4, move |envelope| {
        let store = store.clone();
        async move {
            if matches!(envelope.kind.as_str(), USER_CREATED | USER_UPDATED) {
                store.remember(envelope.data()?).await?;
            }
            Ok(())
        }
    })
    .await?;
    Ok(())
}

/// The routes that the read side answers.
pub(crate) fn routes(read: ReadStore) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(of_user)).with_state(Arc::new(read))
}

/// A user's orders, the newest first.
#[utoipa::path(get, path = "/orders/user/{userId}", params(("userId" = String, Path, description = "The user")), responses(
    (status = 200, description = "The newest 500; none, if there is no such user", body = Vec<OrderRow>),
    (status = 404, description = "Another user asks", body = ErrorBody),
    (status = 503, description = "The read side's database does not answer", body = ErrorBody),
))]
async fn of_user(
    State(read): State<Arc<ReadStore>>,
    Path(user): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Vec<OrderRow>>, ApiError> {
    if !may_see(&headers, &user) {
        return Err(ApiError::not_found("User not found"));
    }
    Ok(Json(read.of_user(user).await?))
}

/// The read side as a service of its own: nothing but the queries, for as many instances as are wanted.
///
/// # Errors
///
/// A database that cannot be opened.
pub async fn build_read(context: Context) -> Result<Service, BoxError> {
    let read = ReadStore::open(&context).await?;
    listen(&context, &read).await?;
    Ok(Service { routes: routes(read.clone()), checks: checks(&context, &[("readDatabase", read.db())]) })
}

/// Makes the read side anew from the events that the orders' database has kept; how many they were. Lists stay as they are until it is
/// complete, and then change at once; what is heard meanwhile is kept. Of two at the same time the one that was begun last ends well.
///
/// # Errors
///
/// A database that cannot be read or written, or an event that makes no sense: lists are as they were, and doing it again is right.
pub async fn rebuild(context: Context) -> Result<u64, BoxError> {
    let store = Store::new(Db::open(place(&context, crate::NAME), store::MIGRATIONS).await?);
    let read = ReadStore::open(&context).await?;
    let began = iso(now_ms() - SETTLED_MS);
    let rebuild = read.begin_rebuild().await?;
    let (mut after, mut count) = (0, 0);
    loop {
        let page = store.events(after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        count += page.len() as u64;
        let events: Result<Vec<_>, Trouble> = page.iter().map(|kept| of_event(&kept.envelope)).collect();
        read.go_on(&rebuild, events?.into_iter().flatten().collect()).await?;
    }
    read.finish_rebuild(&rebuild, began).await?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use order_kit::{Cents, db::Place, events::Metadata};

    use super::*;
    use crate::wire::PAID;

    fn event(order: &str, version: i64, status: Status, created_at: &str) -> OrderEvent {
        OrderEvent {
            order_id: order.to_owned(),
            user_id: "ada".to_owned(),
            items: Vec::new(),
            total: Cents(100),
            timestamp: created_at.to_owned(),
            status,
            reason: None,
            version,
            created_at: created_at.to_owned(),
        }
    }

    async fn statuses(read: &ReadStore) -> Vec<(String, Status)> {
        let rows = read.of_user("ada".to_owned()).await.unwrap();
        rows.into_iter().map(|row| (row.order_id, row.status)).rev().collect()
    }

    #[tokio::test]
    async fn what_is_heard_during_a_rebuild_is_kept_and_what_never_was_goes() {
        use Status::{Cancelled, Confirmed, Pending};
        let folder = tempfile::tempdir().unwrap();
        let read = ReadStore(Db::open(Place::Sqlite(folder.path().join("it.db")), MIGRATIONS).await.unwrap());
        let (before, since) = ("2026-01-01T00:00:00.000Z", "2026-01-02T00:00:00.000Z");
        let heard = [("a", 1, Cancelled), ("b", 1, Pending), ("phantom", 1, Pending)];
        read.apply(heard.map(|(id, version, status)| event(id, version, status, before)).to_vec())
            .await
            .unwrap();

        let rebuild = read.begin_rebuild().await.unwrap();
        let kept = [("a", 1, Pending), ("b", 1, Pending), ("c", 1, Pending)];
        let kept = kept.map(|(id, version, status)| event(id, version, status, before));
        read.go_on(&rebuild, kept.to_vec()).await.unwrap();
        read.apply(vec![event("b", 2, Confirmed, before), event("d", 1, Pending, since)]).await.unwrap();
        let meanwhile = statuses(&read).await;
        assert_eq!(meanwhile.len(), 4, "nothing has changed yet: {meanwhile:?}");
        read.finish_rebuild(&rebuild, since.to_owned()).await.unwrap();
        let rows = [("a", Pending), ("b", Confirmed), ("c", Pending), ("d", Pending)];
        assert_eq!(statuses(&read).await, rows.map(|(id, status)| (id.to_owned(), status)));
    }

    #[tokio::test]
    async fn of_two_rebuilds_the_older_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let read = ReadStore(Db::open(Place::Sqlite(folder.path().join("it.db")), MIGRATIONS).await.unwrap());
        let at = "2026-01-01T00:00:00.000Z";
        read.apply(vec![event("a", 1, Status::Pending, at)]).await.unwrap();
        let older = read.begin_rebuild().await.unwrap();
        read.go_on(&older, vec![event("a", 1, Status::Pending, at)]).await.unwrap();
        let newer = read.begin_rebuild().await.unwrap();
        let late = read.finish_rebuild(&older, at.to_owned()).await;
        assert!(matches!(late, Err(DbError::Statement(why)) if why.contains("another rebuild")));
        assert!(read.go_on(&older, Vec::new()).await.is_err());
        assert_eq!(statuses(&read).await.len(), 1);
        read.go_on(&newer, vec![event("a", 2, Status::Confirmed, at)]).await.unwrap();
        read.finish_rebuild(&newer, at.to_owned()).await.unwrap();
        assert_eq!(statuses(&read).await, [("a".to_owned(), Status::Confirmed)]);
    }

    #[tokio::test]
    async fn what_was_known_by_the_clock_gives_way_to_what_is_heard_next() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Sqlite(folder.path().join("it.db"));
        let before = Db::open(place.clone(), &MIGRATIONS[..2]).await.unwrap();
        let work = async |tx: &Tx<'_>| {
            let sql = "insert into user_replica (id, name, event) values ('ada', 'Old', '2099-01-01T00:00:00.000Z x')";
            tx.execute(sql, &[]).await
        };
        assert_eq!(before.write(work).await.unwrap_or_else(|error: DbError| panic!("{error}")), 1);
        drop(before);
        let read = ReadStore(Db::open(place, MIGRATIONS).await.unwrap());
        assert_eq!(read.user("ada").await.unwrap().unwrap().name, "Old");
        for (name, revision) in [("New", 2), ("Older", 1)] {
            let user = User { id: "ada".to_owned(), name: name.to_owned(), email: None };
            read.remember(Revised { user, revision }).await.unwrap();
            assert_eq!(read.user("ada").await.unwrap().unwrap().name, "New");
        }
    }

    #[test]
    fn the_second_name_of_an_event_writes_nothing() {
        let event = |kind: &str| Envelope {
            id: "e".to_owned(),
            kind: kind.to_owned(),
            data: serde_json::json!({
                "orderId": "o", "userId": "u", "items": [], "total": "1.00", "timestamp": "t",
                "status": "confirmed", "version": 2, "createdAt": "t",
            }),
            metadata: Metadata {
                timestamp: "t".to_owned(),
                version: "1".to_owned(),
                source: "orders".to_owned(),
                correlation_id: "c".to_owned(),
                traceparent: None,
            },
        };
        assert_eq!(of_event(&event(CONFIRMED)).unwrap().unwrap().version, 2);
        assert_eq!(of_event(&event(PAID)).unwrap(), None);
    }
}
