//! Users by gRPC: the contract (`proto/users.proto`), what is generated from it, and [`GrpcUsers`], a client whose channel is behind
//! the same policies as every other call of the system; and [`Users`], which asks by gRPC or by HTTP, as `USER_TRANSPORT` says.
//!
//! Nothing here is the users' service: whoever asks for users depends on the contract and not on the service.

mod client;
mod judge;
mod users;

pub use client::{Changes, GrpcUsers, Options, User, UsersError};
pub use judge::is_failure;
pub use users::Users;

/// What is generated from the contract.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod proto {
    tonic::include_proto!("order.users.v1");
}
