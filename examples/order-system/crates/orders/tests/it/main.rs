//! The orders' side: against neighbours that are played.

mod bad_input;
mod broker;
mod grpc;
mod journeys;
mod operators;
mod postgres;
mod queries;
mod spans;
mod styles;
mod world;
