//! The kit as services use it: databases, events, the server and the client.

mod client;
mod db;
mod events;
mod figures;
mod prune;
mod server;
mod support;
mod telemetry;
mod told;
