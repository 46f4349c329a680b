//! Orders over REST: placed, looked at, cancelled; and what operators ask.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use mainstay::saga::{AskError, view::Timeline};
use order_kit::{
    ApiError, Cents, Context, Json,
    auth::{USER_ID, may_see},
    client::IDEMPOTENCY_KEY,
    context::Page,
    error::ErrorBody,
    events::Envelope,
    extract::{Path, Query},
    iso, new_id, now_ms, prefer,
    prune::Keep,
    trace,
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tracing::Instrument;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    MovedBy,
    order::{Item, NewOrder, Status, total},
    prices::Prices,
    read::ReadStore,
    store::{Decided, Order, Placed, Store},
    users::{Directory, Known},
    wire::User,
};

/// How long `checkout` waits for the order to be decided.
const CHECKOUT: Duration = Duration::from_secs(5);
/// The most that a reader may wait.
const LONGEST_WAIT: u64 = 25;
/// How many may wait at once for orders to be decided, by `checkout` and `Prefer` together; whoever comes then is told at once how the order
/// stands. Each holds one of the gateway's places for orders, and most of those are for others.
pub(crate) const MOST_WAITING: usize = 48;
/// How often it is looked whether another process has moved the order.
const LOOK: Duration = Duration::from_millis(250);
/// The longest key of a client, in bytes.
const LONGEST_KEY: usize = 200;
/// Which answer was not the real one.
static FALLBACK: HeaderName = HeaderName::from_static("x-fallback");
static PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// Who asks, for what stands in a saga's records.
static OPERATOR: HeaderName = HeaderName::from_static("x-operator");

/// What the routes work on.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) context: Context,
    pub(crate) store: Store,
    pub(crate) read: ReadStore,
    pub(crate) users: Directory,
    pub(crate) prices: Prices,
    pub(crate) moved_by: MovedBy,
    pub(crate) waiting: Arc<Semaphore>,
}

type Shared = State<Arc<App>>;

pub(crate) fn routes(app: App) -> OpenApiRouter {
    let (context, books) = (app.context.clone(), app.clone());
    context.audited(move |page| {
        let books = books.clone();
        async move { books.audit(page).await }
    });
    OpenApiRouter::new()
        .routes(routes!(place))
        .routes(routes!(checkout))
        .routes(routes!(attention))
        .routes(routes!(show))
        .routes(routes!(details))
        .routes(routes!(timeline))
        .routes(routes!(cancel))
        .routes(routes!(retry))
        .routes(routes!(events))
        .with_state(Arc::new(app))
}

/// An order, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderView {
    /// Which.
    pub id: String,
    /// Whose.
    pub user_id: String,
    /// Its lines.
    pub items: Vec<Item>,
    /// What it costs.
    pub total: Cents,
    /// Where it stands.
    pub status: Status,
    /// Why it was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was accepted.
    pub created_at: String,
    /// When it was moved on.
    pub updated_at: String,
}

impl OrderView {
    fn of(order: Order) -> Self {
        OrderView {
            created_at: iso(order.created_at),
            updated_at: iso(order.updated_at),
            id: order.id,
            user_id: order.user_id,
            items: order.items,
            total: order.total,
            status: order.status,
            reason: order.reason,
        }
    }
}

/// An order that was accepted.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Accepted {
    id: String,
    status: Status,
}

/// Places an order: accepted, and not yet decided.
#[utoipa::path(post, path = "/orders", request_body = NewOrder,
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeating the request under the same key of the same user is the same order")),
    responses(
    (status = 202, description = "Accepted; `Location` says where it can be looked at", body = Accepted),
    (status = 400, description = "A quantity, a number of items or a total that cannot be, or a body that cannot be read", body = ErrorBody),
    (status = 403, description = "A user orders for another one", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
    (status = 422, description = "An unknown user or product, or a key under which the user has ordered something else", body = ErrorBody),
    (status = 503, description = "The prices are not to be had; nothing was stored", body = ErrorBody),
))]
async fn place(
    State(app): Shared,
    headers: HeaderMap,
    Json(new): Json<NewOrder>,
) -> Result<Response, ApiError> {
    Ok(accepted(&app.place(&headers, new).await?))
}

/// What came of a checkout.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct CheckedOut {
    success: bool,
    order: OrderView,
}

/// Places an order, and waits up to 5 seconds until it is decided.
#[utoipa::path(post, path = "/orders/checkout", request_body = NewOrder, responses(
    (status = 200, description = "It is paid for", body = CheckedOut),
    (status = 202, description = "It is accepted, and not decided yet", body = Accepted),
    (status = 400, description = "As for `POST /orders`", body = ErrorBody),
    (status = 402, description = "`card_declined`", body = ErrorBody),
    (status = 403, description = "As for `POST /orders`", body = ErrorBody),
    (status = 409, description = "It was cancelled for another reason: `out_of_stock`", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
    (status = 422, description = "As for `POST /orders`", body = ErrorBody),
    (status = 503, description = "As for `POST /orders`", body = ErrorBody),
))]
async fn checkout(
    State(app): Shared,
    headers: HeaderMap,
    Json(new): Json<NewOrder>,
) -> Result<Response, ApiError> {
    let order = app.place(&headers, new).await?;
    let (order, _) = app.decided(&order.id, CHECKOUT).await?;
    match order.status {
        Status::Confirmed => {
            Ok(Json(CheckedOut { success: true, order: OrderView::of(order) }).into_response())
        }
        Status::Cancelled => {
            let reason = order.reason.unwrap_or_default();
            let status =
                if reason == "card_declined" { StatusCode::PAYMENT_REQUIRED } else { StatusCode::CONFLICT };
            Err(ApiError::new(status, reason))
        }
        Status::Pending | Status::WaitingPayment => Ok(accepted(&order)),
    }
}

/// An order. With `Prefer: wait=2` the answer waits up to that many seconds until it is decided, unless very many wait; `Preference-Applied`
/// says so.
#[utoipa::path(get, path = "/orders/{id}",
    params(("id" = String, Path, description = "The order"), ("Prefer" = Option<String>, Header, description = "`wait=SECONDS`")),
    responses(
    (status = 200, description = "The order", body = OrderView),
    (status = 404, description = "`Order not found`, or it is another user's", body = ErrorBody),
))]
async fn show(State(app): Shared, Path(id): Path<String>, headers: HeaderMap) -> Result<Response, ApiError> {
    let order = app.find_for(&headers, &id).await?;
    let Some(seconds) = prefer::wait(&headers).map(|seconds| seconds.min(LONGEST_WAIT)) else {
        return Ok(Json(OrderView::of(order)).into_response());
    };
    let (order, waited) = app.decided(&id, Duration::from_secs(seconds)).await?;
    let mut response = Json(OrderView::of(order)).into_response();
    if waited && let Ok(applied) = HeaderValue::from_str(&format!("wait={seconds}")) {
        response.headers_mut().insert(&PREFERENCE_APPLIED, applied);
    }
    Ok(response)
}

/// An order with who has ordered.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Details {
    #[serde(flatten)]
    order: OrderView,
    user: User,
}

/// An order with its user. If the user service does not answer, the user as last known, or nobody in particular, and the header
/// `x-fallback: user` says so. If it answers that there is no such user, the name is `Unknown user`.
#[utoipa::path(get, path = "/orders/{id}/details", params(("id" = String, Path, description = "The order")), responses(
    (status = 200, description = "The order and its user", body = Details),
    (status = 404, description = "`Order not found`, or it is another user's", body = ErrorBody),
))]
async fn details(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let order = OrderView::of(app.find_for(&headers, &id).await?);
    let user = match app.users.find(&order.user_id).await {
        // That there is none is an answer, too.
        Ok(found) => {
            let user = found.unwrap_or_else(|| nobody(&order.user_id, "Unknown user"));
            return Ok(Json(Details { order, user }).into_response());
        }
        Err(error) => {
            tracing::warn!(%error, "the user service does not answer");
            app.last_known(&order.user_id).await
        }
    };
    let mut response = Json(Details { order, user }).into_response();
    response.headers_mut().insert(&FALLBACK, HeaderValue::from_static("user"));
    Ok(response)
}

/// In the place of a user.
fn nobody(id: &str, name: &str) -> User {
    User { id: id.to_owned(), name: name.to_owned(), email: None }
}

/// What has happened to an order.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
struct TimelineView {
    order_id: String,
    /// `running`, `waiting`, `unwinding`, `stuck`, `parked`, `completed`, `compensated`, `abandoned`; of an order that events move on, its status.
    phase: String,
    /// What there is to say about that.
    note: String,
    steps: Vec<StepView>,
}

/// One record of it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
struct StepView {
    seq: u64,
    /// Milliseconds since the first record; nothing where events move the order on.
    at_ms: Option<u64>,
    step: Option<String>,
    /// `do` or `undo`.
    direction: Option<&'static str>,
    /// `begun`, `completed`, `aborted`, `undone`, `stuck` and others; of an order that events move on, the event.
    kind: String,
    attempts: Option<u32>,
    ms: Option<u64>,
    /// What came of it: for customers in words of this service, for operators as it was recorded.
    outcome: String,
    /// Who wrote it: begins with the number of the process.
    process: String,
    /// How often the order had changed hands.
    epoch: u64,
}

/// What has happened to an order, step by step.
#[utoipa::path(get, path = "/orders/{id}/timeline", params(("id" = String, Path, description = "The order")), responses(
    (status = 200, description = "A line for each record", body = TimelineView),
    (status = 404, description = "`Order not found`, or it is another user's", body = ErrorBody),
))]
async fn timeline(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<TimelineView>, ApiError> {
    let order = app.find_for(&headers, &id).await?;
    match &app.moved_by {
        MovedBy::Saga(engine, _) => {
            let stored = engine.load(&id).await.map_err(ApiError::internal)?;
            let waits = || TimelineView {
                order_id: id.clone(),
                phase: order.status.to_string(),
                note: match order.status.is_final() {
                    true => "it has no saga, or none any more".to_owned(),
                    false => "its saga has not begun".to_owned(),
                },
                steps: Vec::new(),
            };
            let mut timeline = stored.map_or_else(waits, |stored| of_saga(&id, Timeline::of(&stored)));
            if headers.contains_key(&USER_ID) {
                timeline.for_customers(order.reason.as_deref());
            }
            Ok(Json(timeline))
        }
        MovedBy::Events => {
            let kept = app.store.events_of(&id).await?;
            let step = |kept: crate::store::Kept| StepView {
                seq: kept.seq.unsigned_abs(),
                at_ms: None,
                step: None,
                direction: None,
                kind: kept.envelope.kind,
                attempts: None,
                ms: None,
                outcome: kept.envelope.metadata.timestamp,
                process: kept.envelope.metadata.source,
                epoch: 0,
            };
            let steps = kept.into_iter().map(step).collect();
            let note = order.reason.unwrap_or_default();
            Ok(Json(TimelineView { order_id: id, phase: order.status.to_string(), note, steps }))
        }
    }
}

impl TimelineView {
    /// Inputs, outputs and what other services have said in their errors are not for customers.
    fn for_customers(&mut self, reason: Option<&str>) {
        let reason = reason.unwrap_or_default();
        self.note = if self.phase == "completed" { String::new() } else { reason.to_owned() };
        for step in &mut self.steps {
            step.outcome = match step.kind.as_str() {
                "begun" => "the order was accepted".to_owned(),
                "completed" => "done".to_owned(),
                "undone" => "undone".to_owned(),
                "aborted" if reason.is_empty() => "it is cancelled".to_owned(),
                "aborted" => format!("it is cancelled: {reason}"),
                "stuck" | "parked" => "it is taken care of".to_owned(),
                "ordered" => "it was asked for".to_owned(),
                _ => String::new(),
            };
        }
    }
}

fn of_saga(order: &str, timeline: Timeline) -> TimelineView {
    let step = |row: mainstay::saga::view::Row| StepView {
        seq: row.seq,
        at_ms: Some(row.at_ms),
        step: row.step,
        direction: row.direction,
        kind: row.kind,
        attempts: row.attempts,
        ms: row.ms,
        outcome: row.outcome,
        process: row.process.to_string(),
        epoch: row.epoch,
    };
    TimelineView {
        order_id: order.to_owned(),
        phase: timeline.phase.to_string(),
        note: timeline.note,
        steps: timeline.rows.into_iter().map(step).collect(),
    }
}

/// Asks that an order be cancelled, which is possible until it is confirmed.
#[utoipa::path(post, path = "/orders/{id}/cancel", params(("id" = String, Path, description = "The order")), responses(
    (status = 202, description = "It is asked for, or was cancelled before: what comes of it is seen at the order", body = OrderView),
    (status = 404, description = "`Order not found`, or it is another user's", body = ErrorBody),
    (status = 409, description = "It is confirmed", body = ErrorBody),
))]
async fn cancel(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<OrderView>), ApiError> {
    const REASON: &str = "cancelled_by_customer";
    let order = app.find_for(&headers, &id).await?;
    let confirmed = || ApiError::conflict("The order is confirmed");
    match (order.status, &app.moved_by) {
        (Status::Cancelled, _) => return Ok((StatusCode::ACCEPTED, Json(OrderView::of(order)))),
        (Status::Confirmed, _) => return Err(confirmed()),
        (_, MovedBy::Saga(engine, _)) => {
            engine.call_off(&app.store, &order, REASON).await.map_err(not_now)?;
        }
        (_, MovedBy::Events) => {
            if app.store.cancel(&id, REASON).await? == Decided::Otherwise {
                return Err(confirmed());
            }
        }
    }
    Ok((StatusCode::ACCEPTED, Json(OrderView::of(app.find(&id).await?))))
}

fn not_now(error: impl std::fmt::Display) -> ApiError {
    tracing::warn!(%error, "a saga could not be asked");
    ApiError::unavailable("Service unavailable")
}

/// An order that waits for a person.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
struct Attention {
    order_id: String,
    /// `stuck` or `parked`.
    phase: String,
    /// What it is stuck at.
    note: String,
    /// When it was accepted.
    since: String,
}

/// The orders that wait for a person: what has to happen has failed too often. It is still tried again from time to time.
#[utoipa::path(get, path = "/orders/attention", responses(
    (status = 200, description = "At most 100", body = Vec<Attention>),
    (status = 401, description = "A service token is needed", body = ErrorBody),
    (status = 403, description = "A user asks", body = ErrorBody),
))]
async fn attention(State(app): Shared, headers: HeaderMap) -> Result<Json<Vec<Attention>>, ApiError> {
    app.operators_only(&headers)?;
    let MovedBy::Saga(engine, _) = &app.moved_by else { return Ok(Json(Vec::new())) };
    let heads = engine.attention().await.map_err(not_now)?;
    let attention = |head: mainstay::saga::journal::Head| Attention {
        order_id: head.id.to_string(),
        phase: head.phase.to_string(),
        note: head.note,
        since: iso(i64::try_from(head.created.0).unwrap_or(i64::MAX)),
    };
    Ok(Json(heads.into_iter().map(attention).collect()))
}

/// Has what an order is stuck at tried again now.
#[utoipa::path(post, path = "/orders/{id}/retry", params(("id" = String, Path, description = "The order")), responses(
    (status = 202, description = "It is asked for"),
    (status = 401, description = "A service token is needed", body = ErrorBody),
    (status = 403, description = "A user asks", body = ErrorBody),
    (status = 404, description = "`Order not found`, or it is another user's", body = ErrorBody),
    (status = 409, description = "No saga moves this order on, or none any more", body = ErrorBody),
))]
async fn retry(
    State(app): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    app.operators_only(&headers)?;
    let order = app.find(&id).await?;
    let MovedBy::Saga(engine, _) = &app.moved_by else {
        return Err(ApiError::conflict("No saga moves this order on"));
    };
    let by = headers.get(&OPERATOR).and_then(|by| by.to_str().ok()).unwrap_or("operator");
    // One that is decided has had its saga: begun anew when that is forgotten, it would do everything a second time.
    if !order.status.is_final() {
        engine.begin(&order).await.map_err(not_now)?;
    }
    engine.retry(&id, by).await.map_err(|error| match error {
        AskError::Missing(_) => ApiError::conflict("The order is over"),
        other => not_now(other),
    })?;
    Ok(StatusCode::ACCEPTED)
}

/// A page of everything that was ever said of orders.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Stored {
    events: Vec<Envelope>,
    /// What to ask for the next page with; nothing after the last.
    next: Option<i64>,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
struct Behind {
    /// The place behind which the page begins: `next` of the page before.
    #[serde(default)]
    after: i64,
    /// How many at most: 100 unless something else is said, and never more than 500.
    limit: Option<i64>,
}

/// The events of all orders in their order, for whoever comes later than they did. No name of a service begins like this path, so that
/// a gateway has no way to it.
#[utoipa::path(get, path = "/_events", params(Behind), responses(
    (status = 200, description = "A page of them", body = Stored),
    (status = 400, description = "`Malformed query`", body = ErrorBody),
    (status = 401, description = "A service token is needed", body = ErrorBody),
))]
async fn events(
    State(app): Shared,
    headers: HeaderMap,
    Query(behind): Query<Behind>,
) -> Result<Json<Stored>, ApiError> {
    app.operators_only(&headers)?;
    let limit = behind.limit.unwrap_or(100).clamp(1, 500);
    let page = app.store.events(behind.after, limit).await?;
    let full = i64::try_from(page.len()).is_ok_and(|count| count == limit);
    let next = page.last().filter(|_| full).map(|kept| kept.seq);
    Ok(Json(Stored { events: page.into_iter().map(|kept| kept.envelope).collect(), next }))
}

/// An order, as it is audited.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Audited {
    id: String,
    user_id: String,
    status: Status,
    reason: Option<String>,
    total: Cents,
    items: Vec<Item>,
    /// Whether nothing happens for it any more.
    over: bool,
}

/// A page of orders, for whoever compares them with money and stock.
#[derive(Debug, Serialize)]
struct Books {
    orders: Vec<Audited>,
    /// What to ask for the next page with; nothing after the last.
    next: Option<String>,
}

impl App {
    /// All orders, a page at a time in the order of their ids.
    async fn audit(&self, page: Page) -> Result<Books, ApiError> {
        let (limit, after) = (page.limit(), page.after.unwrap_or_default());
        // Sagas first: an order whose saga is over now stands where it will stand for ever. Each saga has an order with its id, so that a
        // page of sagas reaches as far as one of orders.
        let over: Option<std::collections::HashMap<String, bool>> = match &self.moved_by {
            MovedBy::Saga(engine, _) => {
                let heads =
                    engine.page(&after, usize::try_from(limit).unwrap_or(500)).await.map_err(not_now)?;
                Some(heads.iter().map(|head| (head.id.to_string(), head.phase.is_terminal())).collect())
            }
            MovedBy::Events => None,
        };
        let orders = self.store.page(&after, limit).await?;
        let full = i64::try_from(orders.len()).is_ok_and(|count| count == limit);
        let next = orders.last().filter(|_| full).map(|order| order.id.clone());
        // Behind this, a saga that is over is forgotten.
        let known_since = i64::try_from(Keep::of(self.context.env()).steps.total().as_millis())
            .map_or(i64::MIN, |keep| now_ms().saturating_sub(keep));
        let forgotten = |order: &Order| order.status.is_final() && order.updated_at < known_since;
        let audited = |order: Order| Audited {
            over: match &over {
                Some(over) => over.get(&order.id).copied().unwrap_or_else(|| forgotten(&order)),
                None => order.status.is_final(),
            },
            id: order.id,
            user_id: order.user_id,
            status: order.status,
            reason: order.reason,
            total: order.total,
            items: order.items,
        };
        Ok(Books { orders: orders.into_iter().map(audited).collect(), next })
    }

    /// What comes from a user comes with the gateway's token, so that the token alone makes nobody an operator.
    fn operators_only(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if headers.contains_key(&USER_ID) {
            Err(ApiError::new(StatusCode::FORBIDDEN, "For operators only"))
        } else if self.context.tokens().accepts(headers) {
            Ok(())
        } else {
            Err(ApiError::unauthorized("A service token is needed"))
        }
    }

    /// The order, if whoever asks may know of it.
    async fn find_for(&self, headers: &HeaderMap, id: &str) -> Result<Order, ApiError> {
        let order = self.find(id).await?;
        if may_see(headers, &order.user_id) { Ok(order) } else { Err(ApiError::not_found("Order not found")) }
    }

    async fn find(&self, id: &str) -> Result<Order, ApiError> {
        self.store.find(id).await?.ok_or_else(|| ApiError::not_found("Order not found"))
    }

    /// The user by the newest event, else as last seen, else nobody in particular.
    async fn last_known(&self, id: &str) -> User {
        let replica = self.read.user(id).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the names of users cannot be read");
            None
        });
        let known = match replica {
            Some(user) => Some(user),
            None => self.users.recent(id).await,
        };
        known.unwrap_or_else(|| nobody(id, "Unknown (service unavailable)"))
    }

    /// The order, once it is decided, or as it stands after so long; and whether that was waited for, which not too many do at once.
    async fn decided(&self, id: &str, patience: Duration) -> Result<(Order, bool), ApiError> {
        let Ok(_place) = self.waiting.try_acquire() else { return Ok((self.find(id).await?, false)) };
        let until = tokio::time::Instant::now() + patience;
        let waiter = self.store.waiters().register(id);
        loop {
            let next = waiter.next();
            let order = self.find(id).await?;
            if order.status.is_final() || tokio::time::Instant::now() >= until {
                return Ok((order, true));
            }
            let look = until.min(tokio::time::Instant::now() + LOOK);
            let _ = tokio::time::timeout_at(look, next).await;
        }
    }

    /// Takes an order in: once for each key of a user.
    async fn place(&self, headers: &HeaderMap, new: NewOrder) -> Result<Order, ApiError> {
        new.check().map_err(|error| ApiError::bad_request(error.to_string()))?;
        if !may_see(headers, &new.user_id) {
            return Err(ApiError::new(StatusCode::FORBIDDEN, "Nobody orders for another user"));
        }
        let key = client_key(headers)?;
        if let Some(key) = &key
            && let Some(known) = self.store.of_client_key(&new.user_id, key).await?
        {
            return same(&new, known);
        }
        let id = new_id();
        let span = tracing::info_span!(
            "createOrder",
            userId = new.user_id,
            orderId = id,
            otel.status_code = tracing::field::Empty
        );
        self.create(id, new, key).instrument(span).await
    }

    async fn create(&self, id: String, new: NewOrder, key: Option<String>) -> Result<Order, ApiError> {
        let validate = tracing::info_span!("validateUser", userId = new.user_id, orderId = id);
        let (user, items) = futures::join!(
            self.users.validate(&new.user_id).instrument(validate),
            self.prices.of(&new.items),
        );
        if matches!(user, Known::No) {
            return Err(ApiError::unprocessable("Unknown user"));
        }
        let items = items?;
        let total = total(&items).map_err(|error| ApiError::bad_request(error.to_string()))?;
        let now = now_ms();
        let order = Order {
            correlation: trace::correlation().unwrap_or_else(|| id.clone()),
            traceparent: trace::traceparent(),
            id,
            user_id: new.user_id.clone(),
            items,
            total,
            status: Status::Pending,
            reason: None,
            user_known: matches!(user, Known::Yes),
            version: 1,
            created_at: now,
            updated_at: now,
        };
        let save = tracing::info_span!("saveOrder", userId = order.user_id, orderId = order.id);
        match self.store.place(order.clone(), key).instrument(save).await? {
            Placed::Known(known) => same(&new, known),
            Placed::New => {
                self.begin(order.clone());
                Ok(order)
            }
        }
    }

    /// Starts the order's saga. Nobody waits for that: the order is accepted, and a start that is lost is made up for.
    fn begin(&self, order: Order) {
        let MovedBy::Saga(engine, missed) = &self.moved_by else { return };
        let (engine, missed) = (engine.clone(), missed.clone());
        self.context.spawn(async move {
            if let Err(error) = engine.begin(&order).await {
                tracing::info!(%error, order = order.id, "an order's saga is started later");
                missed.one(&order.id);
            }
        });
    }
}

fn same(new: &NewOrder, known: Order) -> Result<Order, ApiError> {
    if new.wants(&known.user_id, &known.items) {
        Ok(known)
    } else {
        Err(ApiError::unprocessable("The Idempotency-Key belongs to another order"))
    }
}

fn client_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(key) = headers.get(&IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| (1..=LONGEST_KEY).contains(&key.len()));
    key.map(|key| Some(key.to_owned())).ok_or_else(|| ApiError::bad_request("Invalid Idempotency-Key"))
}

fn accepted(order: &Order) -> Response {
    let body = Json(Accepted { id: order.id.clone(), status: order.status });
    let mut response = (StatusCode::ACCEPTED, body).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/orders/{}", order.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
