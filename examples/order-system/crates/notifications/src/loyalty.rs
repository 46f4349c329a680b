//! Points: whoever has ordered gets one for each whole unit of money. Added to a system that runs; nobody else knows of it.
//!
//! It gets what is published after its queue was made. [`replay`] has it ask orders for what was there before; an event that comes both
//! ways counts once.

use std::time::Duration;

use axum::extract::State;
use order_broker::{Queue, Topology};
use order_kit::{
    ApiError, BoxError, Cents, Context, Db, Json, Service,
    client::{Client, Options},
    db::DbError,
    events::{self, Envelope, Trouble},
    extract::Path,
};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::wire::{ORDER_CONFIRMED, Order};

/// The service's name.
pub const NAME: &str = "loyalty";

const PARALLEL: u16 = 8;
/// How many stored events are asked for at once.
const PAGE: usize = 100;

const MIGRATIONS: &[&str] = &["create table account (
    user_id text primary key,
    points bigint not null,
    orders bigint not null
)"];

/// What a user has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// Whose it is.
    pub user_id: String,
    /// One for each whole unit of money.
    pub points: i64,
    /// How many orders they come from.
    pub orders: i64,
}

/// What there is in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Counters {
    /// Of all users.
    pub points: i64,
    /// How many orders they come from.
    pub orders: i64,
}

/// What became of stored events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Counted now.
    pub counted: u64,
    /// Had been counted before.
    pub known: u64,
    /// Concern nothing here, or cannot be read.
    pub passed_over: u64,
}

/// What it wants to hear.
pub fn queue() -> Queue {
    Queue::new(NAME)
        .bind(ORDER_CONFIRMED)
        .max_attempts(200)
        .backoff(Duration::from_millis(100), Duration::from_secs(5))
}

/// Builds the service.
///
/// # Errors
///
/// A database that cannot be opened, or a queue that cannot be.
pub async fn build(context: Context) -> Result<Service, BoxError> {
    let db = open(&context).await?;
    let handler = db.clone();
    events::consume(&context, queue(), PARALLEL, move |event| {
        let db = handler.clone();
        async move { give(&db, event).await.map(drop) }
    })
    .await?;
    Ok(Service {
        routes: OpenApiRouter::new()
            .routes(routes!(account))
            .routes(routes!(counters))
            .with_state(db.clone()),
        checks: crate::checks(&context, &db),
    })
}

/// Not pruned: an event may be [replayed](replay) years after it was counted.
async fn open(context: &Context) -> Result<Db, DbError> {
    context.wait_for("its database");
    Db::open(context.place(NAME), MIGRATIONS).await
}

/// Some of the events that orders has stored.
#[derive(Debug, Deserialize)]
struct Stored {
    events: Vec<Envelope>,
    /// Behind which the next ones are; nothing after the last.
    next: Option<i64>,
}

/// Takes in what was published before the service had a queue: orders has stored it, and is asked for it page by page. The queue is made
/// first, if it is not there: it misses nothing from then on. To be called as often as one likes.
///
/// # Errors
///
/// That the queue cannot be made, orders cannot be asked, or the database cannot be written. What was taken in before stays.
pub async fn replay(context: &Context) -> Result<Replayed, BoxError> {
    context.broker().declare(&Topology::new(events::EXCHANGE).queue(queue())).await?;
    let db = open(context).await?;
    let orders = Client::new(context, "order", Options::default())?;
    let (mut replayed, mut after) = (Replayed::default(), Some(0));
    while let Some(behind) = after {
        let path = format!("/_events?after={behind}&limit={PAGE}");
        let page: Stored = orders.get(&path).await?.success()?.json()?;
        for event in page.events {
            take_in(&db, event, &mut replayed).await?;
        }
        after = page.next;
    }
    Ok(replayed)
}

async fn take_in(db: &Db, event: Envelope, replayed: &mut Replayed) -> Result<(), Trouble> {
    let (id, kind) = (event.id.clone(), event.kind.clone());
    if kind != ORDER_CONFIRMED {
        replayed.passed_over += 1;
        return Ok(());
    }
    match give(db, event).await {
        Ok(true) => replayed.counted += 1,
        Ok(false) => replayed.known += 1,
        Err(Trouble::Poison(why)) => {
            tracing::warn!(id, kind, why, "a stored event cannot be read");
            replayed.passed_over += 1;
        }
        Err(later @ Trouble::Later(_)) => return Err(later),
    }
    Ok(())
}

/// Whether the event was new.
async fn give(db: &Db, event: Envelope) -> Result<bool, Trouble> {
    let order: Order = event.data()?;
    let Cents(cents) = order.total()?;
    db.write(async move |tx| {
        let first = tx.inbox(NAME, &event.id).await?;
        if first {
            tx.execute(
                "insert into account (user_id, points, orders) values ($1, $2, 1)
                 on conflict (user_id) do update set points = account.points + excluded.points, orders = account.orders + 1",
                &[order.user_id.into(), cents.div_euclid(100).into()],
            )
            .await?;
        }
        Ok::<_, Trouble>(first)
    })
    .await
}

/// A user's points; whoever has not ordered yet has none.
#[utoipa::path(get, path = "/points/{userId}", params(("userId" = String, Path)), responses((status = 200, body = Account)))]
async fn account(State(db): State<Db>, Path(user_id): Path<String>) -> Result<Json<Account>, ApiError> {
    let user = user_id.clone();
    let row = db
        .read(async move |tx| {
            tx.first("select points, orders from account where user_id = $1", &[user.into()]).await
        })
        .await?;
    Ok(Json(match row {
        Some(row) => Account { user_id, points: row.int(0)?, orders: row.int(1)? },
        None => Account { user_id, ..Account::default() },
    }))
}

/// All points together.
#[utoipa::path(get, path = "/counters", responses((status = 200, body = Counters)))]
async fn counters(State(db): State<Db>) -> Result<Json<Counters>, ApiError> {
    let row = db
        .read(async |tx| {
            // A sum of numbers is a decimal in PostgreSQL.
            let sums = "select cast(coalesce(sum(points), 0) as bigint), cast(coalesce(sum(orders), 0) as bigint) from account";
            tx.first(sums, &[]).await
        })
        .await?;
    Ok(Json(match row {
        Some(row) => Counters { points: row.int(0)?, orders: row.int(1)? },
        None => Counters::default(),
    }))
}
