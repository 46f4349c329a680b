//! Atomics, locks and padding; loom's own when its model checker runs (`--cfg mainstay_loom`).

use std::ops::Deref;

#[cfg(mainstay_loom)]
pub(crate) use loom::sync::{Arc, Mutex, MutexGuard, atomic};
#[cfg(not(mainstay_loom))]
pub(crate) use std::sync::{Arc, Mutex, MutexGuard, atomic};

/// Locks, ignoring poison: no user code runs under a lock, so a panic cannot leave one half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Keeps a value on cache lines of its own; 128 because x86 fetches lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl<T> Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
