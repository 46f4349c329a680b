//! Who listens to orders, and is asked by nobody while one is placed: [mails](self), [figures](analytics) and [points](loyalty).
//!
//! Each is a service with a queue and a database of its own, so each gets every event, and one that is away holds up neither the
//! orders nor the others. What comes again is recognised by the inbox, in the transaction that has the effect.
//!
//! This one writes to users: one mail when an order is received, one when it is confirmed and one when it is cancelled.

pub mod analytics;
pub mod loyalty;
mod mail;
mod recipients;
mod wire;

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use order_broker::Queue;
use order_grpc::Users;
use order_kit::{
    ApiError, BoxError, Context, Db, Json, Service,
    client::Options,
    events::{self, Envelope, Trouble},
    extract::Query,
    health::Check,
};
use serde::Deserialize;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use mail::{Channel, Kind, Mail, Mailer, Recording, Sent};
pub use recipients::{MOST_RECIPIENTS, RECIPIENT_TTL};

use recipients::{Recipient, Recipients};
use wire::{ORDER_CANCELLED, ORDER_CONFIRMED, ORDER_CREATED, Order, USER_UPDATED, User};

/// The service's name.
pub const NAME: &str = "notifications";

/// Events of one order come one after another; so many orders at once.
const PARALLEL: u16 = 16;

/// Mails are addressed while users are away for a quarter of an hour; then an event is a dead letter, to be replayed.
pub fn queue() -> Queue {
    Queue::new(NAME)
        .bind(ORDER_CREATED)
        .bind(ORDER_CONFIRMED)
        .bind(ORDER_CANCELLED)
        .bind(USER_UPDATED)
        .max_attempts(200)
        .backoff(Duration::from_millis(100), Duration::from_secs(5))
}

/// Builds the service, with mails that are recorded and go nowhere.
///
/// # Errors
///
/// A database that cannot be opened, or a queue that cannot be.
pub async fn build(context: Context) -> Result<Service, BoxError> {
    build_with(context, Recording).await
}

/// Builds the service with another way to send mails.
///
/// # Errors
///
/// As of [`build`].
pub async fn build_with(context: Context, mailer: impl Mailer) -> Result<Service, BoxError> {
    let db = context.open_db(mail::MIGRATIONS).await?;
    // So many are asked for an address at once: mails can wait, and leave the service to those who cannot.
    let users = Users::new(&context, Options { concurrency: 5, ..Options::default() })?;
    let mut checks = checks(&context, &db);
    // A mail waits in its queue until it can be addressed.
    checks.push(users.check());
    let notifier =
        Notifier { db: db.clone(), recipients: Arc::new(Recipients::new(users)), mailer: Arc::new(mailer) };
    let handler = notifier.clone();
    events::consume(&context, queue(), PARALLEL, move |event| {
        let notifier = handler.clone();
        async move { notifier.handle(event).await }
    })
    .await?;
    Ok(Service { routes: OpenApiRouter::new().routes(routes!(sent)).with_state(notifier), checks })
}

/// What a service needs that listens and keeps what it has heard.
fn checks(context: &Context, db: &Db) -> Vec<Check> {
    vec![Check::database("database", db), Check::message_queue(context, true)]
}

#[derive(Clone)]
struct Notifier {
    db: Db,
    recipients: Arc<Recipients>,
    mailer: Arc<dyn Mailer>,
}

impl Notifier {
    async fn handle(&self, event: Envelope) -> Result<(), Trouble> {
        let kind = match event.kind.as_str() {
            ORDER_CREATED => Kind::Received,
            ORDER_CONFIRMED => Kind::Confirmed,
            ORDER_CANCELLED => Kind::Cancelled,
            USER_UPDATED => {
                let User { id, name, email, revision } = event.data()?;
                self.recipients.changed(&id, Recipient { name, email }, revision).await;
                return Ok(());
            }
            // A binding of an older version of this service; the rest of the system goes on.
            other => {
                tracing::info!(kind = other, "an event that concerns nobody here");
                return Ok(());
            }
        };
        let order: Order = event.data()?;
        // Outside of the transaction: nobody's writes wait for another service.
        let user = self.recipients.find(&order.user_id).await?;
        let mail = Mail::about(&order, kind, user.as_ref())?;
        let mailer = self.mailer.clone();
        self.db
            .write(async move |tx| {
                if tx.inbox(NAME, &event.id).await? {
                    mailer.send(tx, &mail).await?;
                }
                Ok::<_, Trouble>(())
            })
            .await
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
struct Wanted {
    /// The order's id.
    order: String,
}

/// The mails about an order, in the order in which they were sent.
#[utoipa::path(get, path = "/sent", params(Wanted), responses((status = 200, body = [Sent]), (status = 400)))]
async fn sent(
    State(notifier): State<Notifier>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Vec<Sent>>, ApiError> {
    let sent = notifier.db.read(async move |tx| mail::sent(tx, &wanted.order).await).await;
    Ok(Json(sent?))
}
