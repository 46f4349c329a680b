//! Who waits for an order to move, in this process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Those who wait, by the order. Costs nothing for orders that nobody waits for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waiters(Arc<Mutex<HashMap<String, Arc<Notify>>>>);

/// One who waits. Dropped, it is forgotten.
#[derive(Debug)]
pub(crate) struct Waiter {
    waiters: Waiters,
    order: String,
    woken: Arc<Notify>,
}

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, what happens to the order is not missed.
    pub(crate) fn register(&self, order: &str) -> Waiter {
        let woken = self.lock().entry(order.to_owned()).or_default().clone();
        Waiter { waiters: self.clone(), order: order.to_owned(), woken }
    }

    /// Wakes all who wait for this order.
    pub(crate) fn wake(&self, order: &str) {
        if let Some(woken) = self.lock().get(order) {
            woken.notify_waiters();
        }
    }
}

impl Waiter {
    /// Which order it is.
    pub(crate) fn order(&self) -> &str {
        &self.order
    }

    /// To be asked for before the order is looked at, and awaited after it: then nothing falls between.
    pub(crate) fn next(&self) -> tokio::sync::futures::Notified<'_> {
        self.woken.notified()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut all = self.waiters.lock();
        // This one, and the one in the map.
        if Arc::strong_count(&self.woken) <= 2 {
            all.remove(&self.order);
        }
    }
}

#[cfg(test)]
impl Waiters {
    /// How many orders somebody waits for.
    pub(crate) fn orders(&self) -> usize {
        self.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wake_between_the_look_and_the_wait_is_not_missed_and_nobody_is_left_in_the_map() {
        let waiters = Waiters::default();
        let (one, two) = (waiters.register("a"), waiters.register("a"));
        let next = one.next();
        waiters.wake("a");
        next.await;
        drop(one);
        assert_eq!(waiters.orders(), 1);
        drop(two);
        assert_eq!(waiters.orders(), 0);
    }
}
