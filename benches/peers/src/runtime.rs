//! The tokio runtime whose timers the calls use.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// How often the timer fires that keeps other timers from being the next one.
pub const TICK: Duration = Duration::from_millis(10);

/// A runtime with one worker thread that turns the timer wheel, and a timer
/// that is always due before any timeout here: so arming a timeout does not
/// wake the worker, as it rarely does in a service with other timers.
pub fn driven() -> Runtime {
    let runtime =
        Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime can be built");
    runtime.spawn(async {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
        }
    });
    runtime
}

/// A runtime that nothing drives: calls count their own instructions only.
pub fn still() -> Runtime {
    Builder::new_current_thread().enable_time().build().expect("a runtime can be built")
}
