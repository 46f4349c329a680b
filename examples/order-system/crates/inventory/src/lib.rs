//! The inventory: what there is of each product, and what is held for which order.
//!
//! Stock moves in one place, [`stock`]: a reservation *holds*, a commit turns what is held into a *decrement*, a release *frees* it. An
//! order goes through this once, whoever asks: the saga by HTTP, or, with `SAGA_STYLE=choreography`, the events of the other
//! services. Both use the same keys, so that an order that meets both is still counted once. In the orchestrated system nothing
//! is consumed: an event alone decrements nothing.
//!
//! | arrives | answer |
//! |---|---|
//! | `POST /inventory/reserve` for the first time, or again | 200, the same each time |
//! | … what is not there | 409 `out_of_stock`, the same each time, also when there is more by then |
//! | … after its release | 409 `already_compensated`, whether it was done before or not, and nothing is held |
//! | `POST /inventory/release`, for what was reserved, refused, or never heard of | 200, as often as it comes |
//! | … for what was committed | 409 `already_committed` |
//! | `POST /inventory/commit` | 200 as often as it comes |
//! | … for what was released | 409 `already_compensated` |
//! | … for what was not reserved (yet) | 409 `not_reserved`, which is not kept |

use order_kit::{BoxError, Context, Service, env::SAGA_STYLE, events, health::Check};

pub mod audit;
mod choreography;
mod http;
pub mod stock;
pub mod wire;

pub use choreography::queue;

/// The service's name.
pub const NAME: &str = "inventory";

/// Opens the service's database and starts what runs beside its routes.
///
/// # Errors
///
/// A database that cannot be opened.
pub async fn build(context: Context) -> Result<Service, BoxError> {
    let db = context.open_db(stock::MIGRATIONS).await?;
    context.tells(wire::events());
    events::start_relay(&context, &db);
    let choreography = context.env().get_or_default(SAGA_STYLE) == "choreography";
    if choreography {
        choreography::start(&context, &db).await?;
    }
    context.audited_in(&db, audit::audit);
    // Whoever is asked over HTTP works without the broker: events wait in the outbox.
    let checks = vec![Check::database("database", &db), Check::message_queue(&context, choreography)];
    Ok(Service { routes: http::routes(db), checks })
}
