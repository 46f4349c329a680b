//! How loom tests are run here: over every order that there is, of which there must be several.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Runs `test` once for each order in which its threads may act.
pub(crate) fn model(test: impl Fn() + Send + Sync + 'static) {
    let tried = Arc::new(AtomicUsize::new(0));
    let count = tried.clone();
    loom::model(move || {
        count.fetch_add(1, Relaxed);
        test();
    });
    assert!(tried.load(Relaxed) > 1, "the threads never met: there was one order to try");
}

/// Says whether something that depends on the order has happened in any of them. Not loom's, which forget.
#[derive(Clone, Default)]
pub(crate) struct Ever(Arc<AtomicUsize>);

impl Ever {
    pub(crate) fn happened(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(crate) fn has_happened(&self) -> bool {
        self.0.load(Relaxed) > 0
    }
}
