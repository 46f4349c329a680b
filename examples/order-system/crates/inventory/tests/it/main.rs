//! The service as its callers see it.

#[path = "../../../kit/tests/support/service.rs"]
mod service;

mod api;
