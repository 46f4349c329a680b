//! The service as its callers see it.

#[path = "../../../kit/tests/support/deliveries.rs"]
mod deliveries;
#[path = "../../../kit/tests/support/service.rs"]
mod service;

mod api;
mod choreography;
mod concurrency;
mod every_order;
mod provider;
mod words;
