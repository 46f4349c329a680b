//! How many places are taken at each moment: arithmetic only, without locks or clocks.
//!
//! Times are nanoseconds since the limiter was made. They never go back: a call that has read the clock before another, and comes
//! after it, is taken to come at the same time.

use std::collections::VecDeque;

use super::config::Algorithm;

/// For how many times a sliding window has room as soon as it has any: 64 bytes, of a cache line.
const LEAST_ROOM: usize = 8;

/// What a limiter goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) algorithm: Algorithm,
    /// Above zero.
    pub(super) limit: u32,
    /// In nanoseconds, above zero.
    pub(super) window: u64,
}

/// How many places there are at most at one moment.
pub(super) fn capacity(algorithm: Algorithm, limit: u32) -> u32 {
    match algorithm {
        Algorithm::SlidingWindow | Algorithm::FixedWindow => limit,
        Algorithm::TokenBucket { burst } => burst,
    }
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Machine {
    rules: Rules,
    used: Used,
    /// The latest time that it was told.
    now: u64,
    /// Grows when the evidence is made anew by other rules: what was taken before cannot be given back.
    generation: u32,
    totals: Totals,
}

/// The evidence.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
enum Used {
    /// When each place was taken, the oldest first; at most as many as the limit is, or was. It has room for as many as were ever taken at
    /// once: see [`make_room`].
    Times(VecDeque<u64>),
    /// How many since the window began; it has not begun while there is none.
    Window { began: u64, used: u32 },
    /// What is in the bucket, as it was at `at`. A token is as many parts as the window has nanoseconds, so that each nanosecond
    /// brings `limit` of them: whole numbers, exact.
    Bucket { parts: u128, at: u64 },
}

/// What has become of the calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) admitted: u64,
    pub(super) refused: u64,
    pub(super) given_back: u64,
}

/// What was taken: enough to give it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Receipt {
    cost: u32,
    generation: u32,
    /// When; for a fixed window, when the window began.
    at: u64,
}

/// What there is at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) limit: u32,
    pub(super) remaining: u32,
    /// Nanoseconds until everything is there again if nobody comes.
    pub(super) reset: u64,
}

impl Machine {
    pub(super) fn new(rules: Rules) -> Self {
        Machine { rules, used: Used::new(&rules, 0, 0), now: 0, generation: 0, totals: Totals::default() }
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// Takes `cost` places, or says in how many nanoseconds there will be as many; `None` for never.
    pub(super) fn take(&mut self, cost: u32, now: u64) -> Result<Receipt, Option<u64>> {
        self.move_on(now);
        match self.used.take(&self.rules, cost, self.now) {
            Ok(at) => {
                self.totals.admitted += 1;
                Ok(Receipt { cost, generation: self.generation, at })
            }
            Err(wait) => {
                self.totals.refused += 1;
                let possible = cost <= capacity(self.rules.algorithm, self.rules.limit);
                Err(possible.then_some(wait))
            }
        }
    }

    /// Takes a reservation back that was not used.
    pub(super) fn give_back(&mut self, receipt: Receipt, now: u64) {
        self.move_on(now);
        self.totals.given_back += 1;
        if receipt.generation == self.generation {
            self.used.give_back(&self.rules, receipt, self.now);
        }
    }

    pub(super) fn left(&mut self, now: u64) -> Left {
        self.move_on(now);
        self.used.left(&self.rules, self.now)
    }

    /// Goes on by other rules. What is taken stays taken.
    pub(super) fn reconfigure(&mut self, rules: Rules, now: u64) {
        self.move_on(now);
        if rules == self.rules {
            return;
        }
        match (&mut self.used, rules.algorithm) {
            (Used::Times(times), Algorithm::SlidingWindow) => {
                times.shrink_to(rules.limit as usize);
            }
            (Used::Window { .. }, Algorithm::FixedWindow) => {}
            (used, _) => {
                let taken = used.taken(&self.rules);
                *used = Used::new(&rules, taken, self.now);
                self.generation = self.generation.wrapping_add(1);
            }
        }
        self.rules = rules;
    }

    fn move_on(&mut self, now: u64) {
        self.now = self.now.max(now);
        self.used.move_on(&self.rules, self.now);
    }
}

impl Used {
    /// With `taken` places taken at `now`.
    fn new(rules: &Rules, taken: u32, now: u64) -> Self {
        match rules.algorithm {
            Algorithm::SlidingWindow => Used::Times((0..taken.min(rules.limit)).map(|_| now).collect()),
            Algorithm::FixedWindow => Used::Window { began: now, used: taken },
            Algorithm::TokenBucket { burst } => {
                Used::Bucket { parts: tokens(burst.saturating_sub(taken), rules), at: now }
            }
        }
    }

    /// Forgets what is over. From here on all is as of `now`.
    fn move_on(&mut self, rules: &Rules, now: u64) {
        match self {
            Used::Times(times) => {
                while times.front().is_some_and(|&at| now - at >= rules.window) {
                    times.pop_front();
                }
            }
            Used::Window { began, used } => {
                if *used > 0 && now - *began >= rules.window {
                    *used = 0;
                }
            }
            Used::Bucket { parts, at } => {
                *parts = (*parts + flow(now - *at, rules)).min(full(rules));
                *at = now;
            }
        }
    }

    /// The place of what was taken, or in how many nanoseconds there would be as much, if ever.
    fn take(&mut self, rules: &Rules, cost: u32, now: u64) -> Result<u64, u64> {
        match self {
            Used::Times(times) => {
                let after = times.len().saturating_add(cost as usize);
                match after.checked_sub(rules.limit as usize + 1) {
                    None => {
                        make_room(times, after, rules.limit as usize);
                        times.extend((0..cost).map(|_| now));
                        Ok(now)
                    }
                    // The last of those that have to leave first.
                    Some(last) => Err(times.get(last).map_or(0, |&at| rules.window - (now - at))),
                }
            }
            Used::Window { began, used } => {
                if cost > rules.limit.saturating_sub(*used) {
                    return Err(rules.window.saturating_sub(now - *began));
                }
                if *used == 0 {
                    *began = now;
                }
                *used += cost;
                Ok(*began)
            }
            Used::Bucket { parts, .. } => {
                let price = tokens(cost, rules);
                match parts.checked_sub(price) {
                    Some(rest) => {
                        *parts = rest;
                        Ok(now)
                    }
                    None => Err(until(price - *parts, rules)),
                }
            }
        }
    }

    fn give_back(&mut self, rules: &Rules, receipt: Receipt, now: u64) {
        let Receipt { cost, at, .. } = receipt;
        match self {
            Used::Times(times) => {
                // Places that were taken at one time are as good as each other.
                let end = times.partition_point(|&taken| taken <= at);
                let begin = end.saturating_sub(cost as usize);
                if times.get(begin) == Some(&at) {
                    times.drain(begin..end);
                }
            }
            Used::Window { began, used } => {
                if *began == at {
                    *used = used.saturating_sub(cost);
                }
            }
            // What has flowed in since might have run over without this reservation; giving it back too would give it twice.
            Used::Bucket { parts, .. } => {
                let since = flow(now - at, rules);
                *parts = (*parts + tokens(cost, rules).saturating_sub(since)).min(full(rules));
            }
        }
    }

    fn left(&self, rules: &Rules, now: u64) -> Left {
        let limit = capacity(rules.algorithm, rules.limit);
        let reset = match self {
            Used::Times(times) => times.back().map_or(0, |&at| rules.window - (now - at)),
            Used::Window { used: 0, .. } => 0,
            Used::Window { began, .. } => rules.window - (now - began),
            Used::Bucket { parts, .. } => until(full(rules) - parts, rules),
        };
        Left { limit, remaining: limit.saturating_sub(self.taken(rules)), reset }
    }

    /// How many places are not there, those of which a part is missing included.
    fn taken(&self, rules: &Rules) -> u32 {
        match self {
            Used::Times(times) => u32::try_from(times.len()).unwrap_or(u32::MAX),
            Used::Window { used, .. } => *used,
            Used::Bucket { parts, .. } => {
                u32::try_from((full(rules) - parts).div_ceil(u128::from(rules.window))).unwrap_or(u32::MAX)
            }
        }
    }
}

/// Room for so many times, of which there are never more than `limit`. It is doubled, and never beyond the limit: whoever has a limiter for
/// each of many keys pays for those that are used, and whoever uses all of one pays no more than its ring.
fn make_room(times: &mut VecDeque<u64>, count: usize, limit: usize) {
    if count > times.capacity() {
        let room = count.max(times.capacity().saturating_mul(2).max(LEAST_ROOM)).min(limit);
        times.reserve_exact(room - times.len());
    }
}

/// In parts, see [`Used::Bucket`]. At most 2 to the 96th.
fn tokens(count: u32, rules: &Rules) -> u128 {
    u128::from(count) * u128::from(rules.window)
}

/// What flows in.
fn flow(nanos: u64, rules: &Rules) -> u128 {
    u128::from(nanos) * u128::from(rules.limit)
}

fn full(rules: &Rules) -> u128 {
    tokens(capacity(rules.algorithm, rules.limit), rules)
}

/// How many nanoseconds it takes until `parts` have flowed in.
fn until(parts: u128, rules: &Rules) -> u64 {
    u64::try_from(parts.div_ceil(u128::from(rules.limit))).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(mainstay_loom)))]
mod tests;
