//! Users: who orders. Made, changed and read over REST; read by [gRPC](serve_grpc). Both share one repository.
//!
//! | event | data |
//! |---|---|
//! | `user.created`, `user.updated` | the user, and its `revision` |
//!
//! Where users come from a monolith they are [filled](moving::backfill) from there and kept in step until they have moved.

mod grpc;
pub mod moving;
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
    moving::listen(&context, &users).await?;
    // Events wait in the outbox until the broker is back.
    let checks = vec![Check::database("database", users.db()), Check::message_queue(&context, false)];
    let routes = routes::routes(users.clone()).merge(moving::routes(users, context.tokens().clone()));
    Ok(Service { routes, checks })
}
