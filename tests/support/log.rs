//! What the participants of a saga did, in order.
#![allow(dead_code)]

use std::sync::{Arc, Mutex};

#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn count(&self, what: &str) -> usize {
        self.lines().iter().filter(|line| *line == what).count()
    }
}
