//! Users: who orders. Made, changed and read over REST; read and watched by [gRPC](serve_grpc). Both share one repository.
//!
//! | event | data |
//! |---|---|
//! | `user.created`, `user.updated` | the user |

mod grpc;
mod repository;
mod routes;
pub mod transport;
pub mod wire;

use order_kit::{BoxError, Context, Service, health::Check};

pub use grpc::serve_grpc;

/// As in the kit's list of services.
pub const NAME: &str = "users";

/// Opens the database, starts what takes events to the broker, and returns the routes.
///
/// # Errors
///
/// A database that cannot be opened.
pub async fn build(context: Context) -> Result<Service, BoxError> {
    let users = repository::Users::of(&context).await?;
    context.tells(wire::events());
    // Events wait in the outbox until the broker is back.
    let checks = vec![Check::database("database", users.db()), Check::message_queue(&context, false)];
    Ok(Service { routes: routes::routes(users), checks })
}
