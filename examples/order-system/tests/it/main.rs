//! The order system as a whole: one contract for all its shapes, the journeys, what is deployed, and how its parts hang together.

mod architecture;
mod contract;
mod deploy;
mod journeys;
mod shapes;
