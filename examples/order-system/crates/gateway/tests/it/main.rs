//! The gateway as a whole: real connections to small services that are made up here.

mod proxy;
mod support;
