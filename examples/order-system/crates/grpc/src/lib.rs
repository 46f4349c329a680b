//! gRPC between services: the contracts (`proto/`) and what is generated from them; [how they are served](server); [`GrpcUsers`], a client
//! whose connections are behind the same policies as every other call of the system; and [`Users`], which asks by gRPC or by HTTP, as
//! `USER_TRANSPORT` says.
//!
//! Nothing here is a service: whoever asks for users depends on the contract and not on the service.

mod client;
mod judge;
pub mod server;
mod users;

pub use client::{GrpcUsers, Options, User, UsersError};
pub use judge::endpoint;
pub use users::Users;

/// What is generated from the contracts.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod proto {
    /// `users.proto`.
    pub mod users {
        tonic::include_proto!("order.users.v1");
    }
    /// `orders.proto`.
    pub mod orders {
        tonic::include_proto!("order.orders.v1");
    }
}
