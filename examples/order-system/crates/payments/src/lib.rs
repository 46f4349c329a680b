//! Payments: what was charged and refunded for each order.
//!
//! The ledger has an entry for each movement of money: a charge is positive, a refund negative. The money itself is moved by a
//! provider, whose words stay in its adapter. A step first asks the provider, under the saga's key, and then writes the ledger, the
//! answer and the events in one transaction; whoever dies between the two is asked again by whoever waits for the answer, and the
//! provider knows the key.
//!
//! | arrives | answer |
//! |---|---|
//! | `POST /payments/charge` for the first time, or again | 200, the same each time |
//! | … for a card that is declined | 402 `card_declined`, the same each time, also when the card is good by then |
//! | … after its refund | 409 `already_compensated`, whether it was charged before or not, and nothing is charged |
//! | … for an order that was charged under another key | 409 `already_charged` |
//! | … when the provider gives no answer | 503 `Payment temporarily unavailable`: nobody knows; the same key again finds out |
//! | `POST /payments/refund`, for what was charged, declined, or never heard of | 200, as often as it comes |
//!
//! With `SAGA_STYLE=choreography` the same steps, under the same keys, follow the events of the other services.

use std::time::Duration;

use order_kit::{BoxError, Context, Service, env::SAGA_STYLE, events, health::Check};

pub mod audit;
mod choreography;
mod http;
mod ledger;
mod payments;
mod provider;
pub mod wire;

pub use choreography::queue;

/// The service's name.
pub const NAME: &str = "payments";

/// The tables, the provider's among them.
pub const MIGRATIONS: &[&str] = &[ledger::MIGRATION, provider::MIGRATION, ledger::INDEX];

/// What may be set.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long the provider is waited for.
    pub provider_timeout: Duration,
}

/// Two seconds.
impl Default for Options {
    fn default() -> Self {
        Options { provider_timeout: Duration::from_secs(2) }
    }
}

/// Opens the service's database and starts what runs beside its routes.
///
/// # Errors
///
/// A database that cannot be opened.
pub async fn build(context: Context) -> Result<Service, BoxError> {
    build_with(context, Options::default()).await
}

/// As [`build`], with other options.
///
/// # Errors
///
/// A database that cannot be opened.
pub async fn build_with(context: Context, options: Options) -> Result<Service, BoxError> {
    let db = context.open_db(MIGRATIONS).await?;
    context.tells(wire::events());
    events::start_relay(&context, &db);
    let cards = provider::Cards::new(&context, &db, options.provider_timeout)?;
    let payments = payments::Payments::new(db.clone(), cards);
    let choreography = context.env().get_or_default(SAGA_STYLE) == "choreography";
    if choreography {
        choreography::start(&context, &payments).await?;
    }
    context.audited_in(&db, audit::audit);
    // Whoever is asked over HTTP works without the broker: events wait in the outbox.
    let checks = vec![Check::database("database", &db), Check::message_queue(&context, choreography)];
    Ok(Service { routes: http::routes(payments), checks })
}
