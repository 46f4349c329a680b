//! Where orders are kept. Each change of an order, its event in the outbox and its line in the list of all events are one transaction.

use mainstay::saga::{
    Direction, InvalidKey, Key, SagaId,
    barrier::{Action, Compensation},
};
use order_kit::{
    Cents, Context, Db, Tx,
    db::{DbError, Row},
    events::{self, Envelope},
    iso, now_ms,
};

use crate::{
    NAME,
    order::{Item, Status},
    place,
    waiters::Waiters,
    wire::{CANCELLED, CONFIRMED, CREATED, OrderEvent, PAID, UPDATED},
};

/// The step that accepts an order, and whose compensation cancels it.
pub(crate) const CREATE: &str = "create-order";
/// The step that decides.
pub(crate) const CONFIRM: &str = "confirm-order";

pub(crate) const MIGRATIONS: &[&str] = &[
    "
create table orders (
    id text primary key,
    user_id text not null,
    items text not null,
    total bigint not null,
    status text not null,
    reason text,
    user_known bigint not null,
    correlation text not null,
    traceparent text,
    version bigint not null,
    created_at bigint not null,
    updated_at bigint not null
);
create index orders_open on orders (id) where status in ('pending', 'waiting_payment');
create table client_key (key text primary key, order_id text not null);
create table order_event (
    seq {serial},
    order_id text not null,
    version bigint not null,
    kind text not null,
    envelope text not null
);
create index order_event_of on order_event (order_id, seq);
",
    CLIENT_KEYS,
];

/// A key is its user's own: what another one sends is nothing to it.
const CLIENT_KEYS: &str = "
create table users_key (
    user_id text not null,
    key text not null,
    order_id text not null,
    primary key (user_id, key)
);
insert into users_key (user_id, key, order_id)
    select orders.user_id, client_key.key, client_key.order_id
    from client_key join orders on orders.id = client_key.order_id;
drop table client_key;
alter table users_key rename to client_key;
";

const COLUMNS: &str = "id, user_id, items, total, status, reason, user_known, correlation, traceparent, version, created_at, updated_at";

/// An order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) user_id: String,
    pub(crate) items: Vec<Item>,
    pub(crate) total: Cents,
    pub(crate) status: Status,
    pub(crate) reason: Option<String>,
    /// Whether the user was known when it was accepted; if not, that is still to be asked.
    pub(crate) user_known: bool,
    pub(crate) correlation: String,
    pub(crate) traceparent: Option<String>,
    pub(crate) version: i64,
    pub(crate) created_at: i64,
    pub(crate) updated_at: i64,
}

/// An event as it is kept.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) seq: i64,
    pub(crate) envelope: Envelope,
}

/// What became of an order that was to be kept under a client's key.
#[derive(Debug)]
pub(crate) enum Placed {
    New,
    /// The user has sent the key with that one.
    Known(Order),
}

/// What became of an order that was to be confirmed or cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decided {
    /// It is now, or was by the same request before.
    Done,
    /// It stands elsewhere for good.
    Otherwise,
}

#[derive(Clone)]
pub(crate) struct Store {
    db: Db,
    waiters: Waiters,
}

/// The key of a step of an order's saga; the same whether a saga or events move the order on.
pub(crate) fn key(step: &str, direction: Direction, order: &str) -> Result<Key, DbError> {
    let invalid = |error: String| DbError::Statement(error);
    let id = SagaId::new(order).map_err(|error| invalid(error.to_string()))?;
    Key::new(&id, step, direction).map_err(|error: InvalidKey| invalid(error.to_string()))
}

impl Store {
    /// That of a service, the same for everything that the service serves.
    pub(crate) async fn of(context: &Context) -> Result<Self, DbError> {
        let open = async { Db::open(place(context, NAME), MIGRATIONS).await.map(Store::new) };
        context.shared(open).await
    }

    pub(crate) fn new(db: Db) -> Self {
        Store { db, waiters: Waiters::default() }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Keeps a new order. The saga's first step is done by this: its row in the barrier is what its compensation looks for.
    pub(crate) async fn place(&self, order: Order, client_key: Option<String>) -> Result<Placed, DbError> {
        let key = key(CREATE, Direction::Do, &order.id)?;
        let work = async move |tx: &Tx<'_>| {
            if let Some(client_key) = client_key {
                let insert = "insert into client_key (user_id, key, order_id) values ($1, $2, $3) on conflict do nothing";
                let values = [(&order.user_id).into(), (&client_key).into(), (&order.id).into()];
                if tx.execute(insert, &values).await? == 0 {
                    let known = of_client_key(tx, &order.user_id, &client_key).await?;
                    let gone = || DbError::Statement(format!("nothing is kept under the key {client_key}"));
                    return known.map(Placed::Known).ok_or_else(gone);
                }
            }
            let insert = async |tx: &Tx<'_>| {
                insert(tx, &order).await?;
                emit(tx, CREATED, &order).await?;
                Ok::<_, DbError>(Ok::<(), String>(()))
            };
            match tx.once(&key, insert).await? {
                Action::Done(_) => Ok(Placed::New),
                Action::Repeated(_) | Action::Refused => {
                    Err(DbError::NotUnique(format!("there is an order {} already", key.saga())))
                }
            }
        };
        self.db.write(work).await
    }

    pub(crate) async fn find(&self, id: &str) -> Result<Option<Order>, DbError> {
        let id = id.to_owned();
        self.db.read(async move |tx: &Tx<'_>| find(tx, &id).await).await
    }

    /// Where an order has come since that version, in its order: of each later one, its first event.
    pub(crate) async fn changes(&self, id: &str, after: i64) -> Result<Vec<OrderEvent>, DbError> {
        let id = id.to_owned();
        let work = async move |tx: &Tx<'_>| {
            let sql =
                "select seq, envelope from order_event where order_id = $1 and version > $2 order by seq";
            let rows = tx.query(sql, &[id.into(), after.into()]).await?;
            let unreadable = |error| DbError::Statement(format!("a kept event: {error}"));
            let change = |row| kept(row)?.envelope.data().map_err(unreadable);
            rows.iter().map(change).collect()
        };
        let mut changes: Vec<OrderEvent> = self.db.read(work).await?;
        // `order.paid` says again what `order.confirmed` has said.
        changes.dedup_by_key(|change| change.version);
        Ok(changes)
    }

    /// What a user has ordered under a key.
    pub(crate) async fn of_client_key(&self, user: &str, key: &str) -> Result<Option<Order>, DbError> {
        let (user, key) = (user.to_owned(), key.to_owned());
        self.db.read(async move |tx: &Tx<'_>| of_client_key(tx, &user, &key).await).await
    }

    /// Confirms an order that is open, once.
    pub(crate) async fn confirm(&self, id: &str) -> Result<Decided, DbError> {
        let (order, key) = (id.to_owned(), key(CONFIRM, Direction::Do, id)?);
        let work = async move |tx: &Tx<'_>| {
            let confirm = async |tx: &Tx<'_>| {
                let Some(order) = change(tx, &order, Status::Confirmed, None).await? else {
                    return Ok(Err("it is not open any more".to_owned()));
                };
                emit(tx, CONFIRMED, &order).await?;
                emit(tx, PAID, &order).await?;
                Ok::<_, DbError>(Ok::<(), String>(()))
            };
            tx.once(&key, confirm).await
        };
        let confirmed = match self.db.write(work).await? {
            Action::Done(Ok(())) | Action::Repeated(Ok(())) => Decided::Done,
            Action::Done(Err(_)) | Action::Repeated(Err(_)) | Action::Refused => Decided::Otherwise,
        };
        self.waiters.wake(id);
        Ok(confirmed)
    }

    /// Cancels an order that is open, once: the compensation of its acceptance.
    pub(crate) async fn cancel(&self, id: &str, reason: &str) -> Result<Decided, DbError> {
        let (order, key, reason) = (id.to_owned(), key(CREATE, Direction::Undo, id)?, reason.to_owned());
        let work = async move |tx: &Tx<'_>| {
            let cancel = async |tx: &Tx<'_>, (): ()| {
                if let Some(order) = change(tx, &order, Status::Cancelled, Some(reason)).await? {
                    emit(tx, CANCELLED, &order).await?;
                }
                Ok::<_, DbError>(())
            };
            // What confirms waits for the order's row, and so does this.
            let undone = tx.undo_once(&key, cancel).await?;
            let status = find(tx, &order).await?.map(|order| order.status);
            Ok::<_, DbError>((undone, status))
        };
        let (undone, status) = self.db.write(work).await?;
        self.waiters.wake(id);
        Ok(match (undone, status) {
            (Compensation::Undone | Compensation::Repeated, Some(Status::Cancelled)) => Decided::Done,
            _ => Decided::Otherwise,
        })
    }

    /// Says of a pending order that it waits for the payment service.
    pub(crate) async fn wait_for_payment(&self, id: &str) -> Result<(), DbError> {
        let order = id.to_owned();
        let work = async move |tx: &Tx<'_>| {
            let pending = find(tx, &order).await?.is_some_and(|order| order.status == Status::Pending);
            if pending && let Some(order) = change(tx, &order, Status::WaitingPayment, None).await? {
                emit(tx, UPDATED, &order).await?;
            }
            Ok::<_, DbError>(())
        };
        self.db.write(work).await?;
        self.waiters.wake(id);
        Ok(())
    }

    /// Open orders with ids behind `after` that were accepted before `before`, in the order of their ids.
    pub(crate) async fn open(&self, after: &str, before: i64, limit: i64) -> Result<Vec<Order>, DbError> {
        let sql = format!(
            "select {COLUMNS} from orders where status in ('pending', 'waiting_payment') and id > $1 and created_at < $2 \
             order by id limit $3"
        );
        let after = after.to_owned();
        let work = async move |tx: &Tx<'_>| {
            let rows = tx.query(&sql, &[after.into(), before.into(), limit.into()]).await?;
            rows.iter().map(of_row).collect()
        };
        self.db.read(work).await
    }

    /// How many are open.
    pub(crate) async fn count_open(&self) -> Result<u64, DbError> {
        let work = async |tx: &Tx<'_>| {
            let sql = "select count(*) from orders where status in ('pending', 'waiting_payment')";
            let row = tx.first(sql, &[]).await?;
            row.map_or(Ok(0), |row| Ok(row.int(0)?.unsigned_abs()))
        };
        self.db.read(work).await
    }

    /// All orders with ids behind `after`, in the order of their ids.
    pub(crate) async fn page(&self, after: &str, limit: i64) -> Result<Vec<Order>, DbError> {
        let sql = format!("select {COLUMNS} from orders where id > $1 order by id limit $2");
        let after = after.to_owned();
        let work = async move |tx: &Tx<'_>| {
            let rows = tx.query(&sql, &[after.into(), limit.into()]).await?;
            rows.iter().map(of_row).collect()
        };
        self.db.read(work).await
    }

    /// Events behind a place in the list of all, in their order.
    pub(crate) async fn events(&self, after: i64, limit: i64) -> Result<Vec<Kept>, DbError> {
        let work = async move |tx: &Tx<'_>| {
            let sql = "select seq, envelope from order_event where seq > $1 order by seq limit $2";
            let rows = tx.query(sql, &[after.into(), limit.into()]).await?;
            rows.iter().map(kept).collect()
        };
        self.db.read(work).await
    }

    /// The events of one order, in their order.
    pub(crate) async fn events_of(&self, id: &str) -> Result<Vec<Kept>, DbError> {
        let id = id.to_owned();
        let work = async move |tx: &Tx<'_>| {
            let sql = "select seq, envelope from order_event where order_id = $1 order by seq";
            let rows = tx.query(sql, &[id.into()]).await?;
            rows.iter().map(kept).collect()
        };
        self.db.read(work).await
    }
}

async fn find(tx: &Tx<'_>, id: &str) -> Result<Option<Order>, DbError> {
    let sql = format!("select {COLUMNS} from orders where id = $1");
    tx.first(&sql, &[id.into()]).await?.map(|row| of_row(&row)).transpose()
}

async fn of_client_key(tx: &Tx<'_>, user: &str, key: &str) -> Result<Option<Order>, DbError> {
    let sql = "select order_id from client_key where user_id = $1 and key = $2";
    match tx.first(sql, &[user.into(), key.into()]).await? {
        Some(row) => find(tx, &row.text(0)?).await,
        None => Ok(None),
    }
}

async fn insert(tx: &Tx<'_>, order: &Order) -> Result<(), DbError> {
    let sql =
        format!("insert into orders ({COLUMNS}) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)");
    let items = serde_json::to_string(&order.items).map_err(|error| DbError::Statement(error.to_string()))?;
    let values = [
        (&order.id).into(),
        (&order.user_id).into(),
        items.into(),
        order.total.into(),
        order.status.as_str().into(),
        order.reason.clone().into(),
        order.user_known.into(),
        (&order.correlation).into(),
        order.traceparent.clone().into(),
        order.version.into(),
        order.created_at.into(),
        order.updated_at.into(),
    ];
    tx.execute(&sql, &values).await.map(drop)
}

/// Moves an order that is open; `None` if it is not. Nothing moves one that is not.
async fn change(
    tx: &Tx<'_>,
    id: &str,
    status: Status,
    reason: Option<String>,
) -> Result<Option<Order>, DbError> {
    let sql = format!(
        "update orders set status = $1, reason = $2, updated_at = $3, version = version + 1 \
         where id = $4 and status in ('pending', 'waiting_payment') returning {COLUMNS}"
    );
    let values = [status.as_str().into(), reason.into(), now_ms().into(), id.into()];
    tx.first(&sql, &values).await?.map(|row| of_row(&row)).transpose()
}

/// Puts an event into the outbox, and into the list of all events.
async fn emit(tx: &Tx<'_>, kind: &str, order: &Order) -> Result<(), DbError> {
    let text = events::emit(tx, NAME, kind, &order.id, &order.event()).await?;
    tx.execute(
        "insert into order_event (order_id, version, kind, envelope) values ($1, $2, $3, $4)",
        &[(&order.id).into(), order.version.into(), kind.into(), text.into()],
    )
    .await
    .map(drop)
}

fn of_row(row: &Row) -> Result<Order, DbError> {
    let unreadable = |error: &dyn std::fmt::Display| DbError::Statement(format!("an order: {error}"));
    Ok(Order {
        id: row.text(0)?,
        user_id: row.text(1)?,
        items: serde_json::from_str(&row.text(2)?).map_err(|error| unreadable(&error))?,
        total: Cents(row.int(3)?),
        status: row.text(4)?.parse().map_err(|error| unreadable(&error))?,
        reason: row.maybe_text(5)?,
        user_known: row.int(6)? != 0,
        correlation: row.text(7)?,
        traceparent: row.maybe_text(8)?,
        version: row.int(9)?,
        created_at: row.int(10)?,
        updated_at: row.int(11)?,
    })
}

fn kept(row: &Row) -> Result<Kept, DbError> {
    let envelope = serde_json::from_str(&row.text(1)?);
    let envelope = envelope.map_err(|error| DbError::Statement(format!("a kept event: {error}")))?;
    Ok(Kept { seq: row.int(0)?, envelope })
}

impl Order {
    /// As its events tell it.
    pub(crate) fn event(&self) -> OrderEvent {
        OrderEvent {
            order_id: self.id.clone(),
            user_id: self.user_id.clone(),
            items: self.items.clone(),
            total: self.total,
            timestamp: iso(self.updated_at),
            status: self.status,
            reason: self.reason.clone(),
            version: self.version,
            created_at: iso(self.created_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use order_kit::db::Place;

    use super::*;

    fn order(id: &str, user: &str) -> Order {
        Order {
            id: id.to_owned(),
            user_id: user.to_owned(),
            items: Vec::new(),
            total: Cents(0),
            status: Status::Pending,
            reason: None,
            user_known: true,
            correlation: id.to_owned(),
            traceparent: None,
            version: 1,
            created_at: 0,
            updated_at: 0,
        }
    }

    async fn keys_stay_with_their_users(place: Place) {
        let old = Db::open(place.clone(), &MIGRATIONS[..1]).await.unwrap();
        let kept = async |tx: &Tx<'_>| {
            insert(tx, &order("o1", "ada")).await?;
            let sql = "insert into client_key (key, order_id) values ('1', 'o1'), ('lost', 'gone')";
            tx.execute(sql, &[]).await
        };
        assert_eq!(old.write(kept).await.unwrap(), 2);
        drop(old);
        let store = Store::new(Db::open(place, MIGRATIONS).await.unwrap());
        assert_eq!(store.of_client_key("ada", "1").await.unwrap().unwrap().id, "o1");
        assert_eq!(store.of_client_key("eve", "1").await.unwrap(), None);
        assert_eq!(store.of_client_key("ada", "lost").await.unwrap(), None);
        let placed = store.place(order("o2", "eve"), Some("1".to_owned())).await.unwrap();
        assert!(matches!(placed, Placed::New), "{placed:?}");
        let again = store.place(order("o3", "ada"), Some("1".to_owned())).await.unwrap();
        assert!(matches!(&again, Placed::Known(known) if known.id == "o1"), "{again:?}");
    }

    #[tokio::test]
    async fn keys_of_before_stay_with_the_users_who_sent_them() {
        let folder = tempfile::tempdir().unwrap();
        keys_stay_with_their_users(Place::Sqlite(folder.path().join("it.db"))).await;
        let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else { return };
        let schema = format!("test_keys_{}_{:x}", std::process::id(), now_ms());
        keys_stay_with_their_users(Place::Postgres { url: url.clone(), schema: schema.clone() }).await;
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&format!("drop schema \"{schema}\" cascade")).await.unwrap();
    }
}
