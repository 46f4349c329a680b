//! The order system as a whole: one contract for all its shapes, every documented route, the journeys, what traces show, how it starts, who is added later, what
//! is deployed, what is written about it, and how its parts hang together.

mod api;
mod architecture;
mod contract;
mod deploy;
mod docs;
mod doctor;
mod events;
mod journeys;
mod listeners;
mod load;
mod operations;
mod roles;
mod schema;
mod shapes;
mod starts;
mod strangling;
mod top;
mod traces;
mod workers;
