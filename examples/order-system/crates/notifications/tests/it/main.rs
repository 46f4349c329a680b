//! The listeners on a broker in memory, with users that can be away.

mod listeners;
mod mails;
mod support;
