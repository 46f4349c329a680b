//! Figures: how many orders there were, what became of them, and what they are worth.

use std::{collections::BTreeMap, time::Duration};

use axum::extract::State;
use order_broker::Queue;
use order_kit::{
    ApiError, BoxError, Cents, Context, Db, Json, Service,
    db::DbError,
    events::{self, Envelope, Trouble},
};
use serde::{Deserialize, Serialize};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::wire::{ORDER_CANCELLED, ORDER_CONFIRMED, ORDER_CREATED, Order};

/// The service's name.
pub const NAME: &str = "analytics";

const PARALLEL: u16 = 8;

const MIGRATIONS: &[&str] = &["create table counter (
    kind text primary key,
    events bigint not null,
    total bigint not null
)"];

/// Of one kind of event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Figures {
    /// How many there were.
    pub events: i64,
    /// What the orders are worth together.
    pub total: Cents,
}

/// What it wants to hear.
pub fn queue() -> Queue {
    Queue::new(NAME)
        .bind(ORDER_CREATED)
        .bind(ORDER_CONFIRMED)
        .bind(ORDER_CANCELLED)
        .max_attempts(200)
        .backoff(Duration::from_millis(100), Duration::from_secs(5))
}

/// Builds the service.
///
/// # Errors
///
/// A database that cannot be opened, or a queue that cannot be.
pub async fn build(context: Context) -> Result<Service, BoxError> {
    let db = context.open_db(MIGRATIONS).await?;
    let handler = db.clone();
    events::consume(&context, queue(), PARALLEL, move |event| count(handler.clone(), event)).await?;
    Ok(Service {
        routes: OpenApiRouter::new().routes(routes!(counters)).with_state(db.clone()),
        checks: crate::checks(&context, &db),
    })
}

async fn count(db: Db, event: Envelope) -> Result<(), Trouble> {
    let total = event.data::<Order>()?.total()?;
    db.write(async move |tx| {
        if tx.inbox(NAME, &event.id).await? {
            tx.execute(
                "insert into counter (kind, events, total) values ($1, 1, $2)
                 on conflict (kind) do update set events = counter.events + 1, total = counter.total + excluded.total",
                &[event.kind.into(), total.into()],
            )
            .await?;
        }
        Ok::<_, Trouble>(())
    })
    .await
}

/// The figures, by the kind of event.
#[utoipa::path(get, path = "/counters", responses((status = 200, body = BTreeMap<String, Figures>)))]
async fn counters(State(db): State<Db>) -> Result<Json<BTreeMap<String, Figures>>, ApiError> {
    let rows = db.read(async |tx| tx.query("select kind, events, total from counter", &[]).await).await?;
    let figures = rows
        .iter()
        .map(|row| Ok((row.text(0)?, Figures { events: row.int(1)?, total: Cents(row.int(2)?) })))
        .collect::<Result<_, DbError>>()?;
    Ok(Json(figures))
}
