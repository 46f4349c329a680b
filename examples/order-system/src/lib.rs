//! The documented order system, put together: every service in one process, or a process for each; and what a person does with it.

pub mod audit;
pub mod chaos;
pub mod cli;
pub mod demo;
pub mod doctor;
pub mod load;
pub mod messages;
pub mod monolith;
pub mod processes;
pub mod remote;
pub mod saga;
pub mod seed;
pub mod services;
pub mod strangler;
pub mod system;
pub mod top;
pub mod watch;
