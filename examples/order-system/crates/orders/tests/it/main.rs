//! The orders' side: against neighbours that are played.

mod bad_input;
mod journeys;
mod world;
