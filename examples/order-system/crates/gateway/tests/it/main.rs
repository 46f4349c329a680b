//! The gateway as a whole: real connections to small services that are made up here.

mod doors;
mod hurried;
mod log;
mod nothing_of_the_domain;
mod proxy;
mod registry;
mod remembered;
mod strangler;
mod streams;
mod support;
mod tls;
