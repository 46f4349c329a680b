//! How fast sagas that were left over are let go on: not all at once, so that their participants do not meet a crowd.
//!
//! Time is cut into windows. In each at most twice as many may begin as began in the one before, and never fewer than `first`. A steady
//! stream is not held up; a crowd doubles from window to window.

use std::time::{Duration, Instant};

use crate::time;

/// The window that is being filled. It may lie ahead: then what comes waits for it.
#[derive(Debug)]
pub(super) struct Ramp {
    first: usize,
    every: Duration,
    /// Its beginning, how many may begin in it, and how many do.
    window: Option<(Instant, usize, usize)>,
}

impl Ramp {
    pub(super) fn new(first: usize, every: Duration) -> Self {
        Ramp { first, every, window: None }
    }

    /// Takes the next place; how long it is until then.
    pub(super) fn place(&mut self, now: Instant) -> Duration {
        let (mut start, mut most, mut taken) = self.window.unwrap_or((now, self.first, 0));
        let next = |taken: usize| taken.saturating_mul(2).max(self.first);
        if now >= time::later(start, self.every.saturating_mul(2)) {
            // Nothing has begun for a window or more.
            (start, most, taken) = (now, self.first, 0);
        } else if taken >= most || now >= time::later(start, self.every) {
            (start, most, taken) = (time::later(start, self.every), next(taken), 0);
        }
        self.window = Some((start, most, taken + 1));
        start.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(100);

    fn places(ramp: &mut Ramp, now: Instant, sagas: usize) -> Vec<u128> {
        (0..sagas).map(|_| ramp.place(now).as_millis()).collect()
    }

    #[test]
    fn a_crowd_doubles_from_window_to_window() {
        let (mut ramp, now) = (Ramp::new(2, EVERY), time::now());
        assert_eq!(
            places(&mut ramp, now, 15),
            [0, 0, 100, 100, 100, 100, 200, 200, 200, 200, 200, 200, 200, 200, 300]
        );
    }

    #[test]
    fn the_others_of_a_crowd_that_come_while_it_waits_are_behind_it() {
        let (mut ramp, now) = (Ramp::new(1, EVERY), time::now());
        assert_eq!(places(&mut ramp, now, 3), [0, 100, 100]);
        assert_eq!(places(&mut ramp, now + EVERY / 2, 1), [150]);
    }

    #[test]
    fn a_steady_stream_is_not_held_up_and_a_crowd_behind_it_begins_with_twice_as_many() {
        let (mut ramp, now) = (Ramp::new(4, EVERY), time::now());
        for window in 0..50 {
            let now = now + EVERY * window;
            let sagas = if window == 0 { 4 } else { 8 };
            assert_eq!(places(&mut ramp, now, sagas), vec![0; sagas], "window {window}");
        }
        let mut crowd = vec![0; 16];
        crowd.push(100);
        assert_eq!(places(&mut ramp, now + EVERY * 50, 17), crowd);
    }

    #[test]
    fn after_a_pause_it_begins_anew() {
        let (mut ramp, now) = (Ramp::new(1, EVERY), time::now());
        assert_eq!(places(&mut ramp, now, 7), [0, 100, 100, 200, 200, 200, 200]);
        assert_eq!(places(&mut ramp, now + EVERY * 4, 2), [0, 100]);
        assert_eq!(places(&mut Ramp::new(usize::MAX, EVERY), now, 3), [0; 3]);
    }
}
