//! The pool of permits with the queue in front of it, and the shares of partitions: arithmetic
//! only, without locks, clocks or a particular kind of waker.

use std::collections::VecDeque;

/// Permits, and who waits for one in the order of arrival.
///
/// `W` is whatever wakes a waiter; a method that returns one leaves it to the caller to wake it once no lock is held.
///
/// Always holds: nobody waits while a permit is free, and the waiters that were granted a permit
/// but have not fetched it yet are the first in the queue.
#[derive(Debug)]
pub(super) struct Pool<W> {
    limit: isize,
    /// Below zero while more permits are in use than a smaller limit allows.
    free: isize,
    /// How many may wait.
    room: usize,
    next_ticket: u64,
    queue: VecDeque<Waiter<W>>,
    /// How many at the front of `queue` have a permit.
    granted: usize,
}

#[derive(Debug)]
struct Waiter<W> {
    ticket: u64,
    /// Taken when the permit is granted.
    waker: Option<W>,
}

/// What a waiter finds when it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// It has a permit and has left the queue.
    Granted,
    /// It keeps its place.
    Waiting,
    /// It has left the queue with nothing.
    Expired,
}

impl<W> Pool<W> {
    pub(super) fn new(limit: usize, room: usize) -> Self {
        let limit = clamp(limit);
        Pool { limit, free: limit, room, next_ticket: 0, queue: VecDeque::new(), granted: 0 }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.unsigned_abs()
    }

    /// How many permits nobody has.
    pub(super) fn free(&self) -> usize {
        self.free.max(0).unsigned_abs()
    }

    /// How many permits are out: in use, granted, or lent to a cache.
    pub(super) fn out(&self) -> usize {
        self.limit.saturating_sub(self.free).unsigned_abs()
    }

    /// How many wait for a permit.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len() - self.granted
    }

    /// Whether another one may wait.
    pub(super) fn has_room(&self) -> bool {
        self.waiting() < self.room
    }

    /// Takes a permit if one is free.
    pub(super) fn take(&mut self) -> bool {
        let taken = self.free > 0;
        if taken {
            self.free -= 1;
        }
        taken
    }

    /// A place at the end of the queue, if there is room. Only while no permit is free.
    pub(super) fn join(&mut self, waker: W) -> Result<u64, W> {
        debug_assert!(self.free <= 0, "a waiter joined while a permit was free");
        if !self.has_room() {
            return Err(waker);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.queue.push_back(Waiter { ticket, waker: Some(waker) });
        Ok(ticket)
    }

    /// What became of the waiter `ticket`: a granted permit is fetched, even when its time is over;
    /// otherwise it goes if its time is over, or waits on with `waker`. The second value is a waker it no
    /// longer needs.
    pub(super) fn ask(&mut self, ticket: u64, waker: W, expired: bool) -> (Asked, Option<W>) {
        let Some(at) = self.place(ticket) else {
            return (Asked::Expired, Some(waker));
        };
        if at < self.granted {
            self.granted -= 1;
            self.queue.remove(at);
            (Asked::Granted, Some(waker))
        } else if expired {
            let gone = self.queue.remove(at);
            (Asked::Expired, gone.and_then(|waiter| waiter.waker))
        } else {
            (Asked::Waiting, self.queue[at].waker.replace(waker))
        }
    }

    /// Takes the waiter `ticket` out; a permit that it was granted goes to the next. Returns that next one's waker,
    /// and the waiter's own.
    pub(super) fn leave(&mut self, ticket: u64) -> (Option<W>, Option<W>) {
        let Some(at) = self.place(ticket) else {
            return (None, None);
        };
        let own = self.queue.remove(at).and_then(|waiter| waiter.waker);
        let next = if at < self.granted {
            self.granted -= 1;
            self.give_back()
        } else {
            None
        };
        (next, own)
    }

    /// Takes a permit back; the first waiter gets it and must be woken.
    pub(super) fn give_back(&mut self) -> Option<W> {
        self.free += 1;
        self.serve()
    }

    /// Changes the limit. Waiters that a larger one serves must be woken.
    pub(super) fn resize(&mut self, limit: usize) -> Vec<W> {
        let limit = clamp(limit);
        self.free = self.free.saturating_add(limit - self.limit);
        self.limit = limit;
        std::iter::from_fn(|| self.serve()).collect()
    }

    /// Lends `count` free permits to a cache.
    pub(super) fn lend(&mut self, count: usize) {
        debug_assert!(count <= self.free(), "permits were lent that do not exist");
        self.free -= count as isize;
    }

    /// Takes `count` unused permits back from a cache. Nobody waits while there are caches.
    pub(super) fn collect(&mut self, count: usize) {
        debug_assert_eq!(self.waiting(), 0, "somebody waited beside a cached permit");
        self.free += count as isize;
    }

    fn serve(&mut self) -> Option<W> {
        if self.free <= 0 {
            return None;
        }
        let waker = self.queue.get_mut(self.granted)?.waker.take();
        self.granted += 1;
        self.free -= 1;
        waker
    }

    fn place(&self, ticket: u64) -> Option<usize> {
        self.queue.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }
}

/// Half of the range, so that sums of two stay inside it. "No limit" written as `usize::MAX` works.
fn clamp(limit: usize) -> isize {
    limit.min(isize::MAX as usize / 2) as isize
}

/// A fixed number of permits of which each part has a guaranteed share, and may use what is guaranteed to
/// nobody or left over by itself.
#[derive(Debug)]
pub(super) struct Shares {
    free: usize,
    /// The part of `free` that is kept for parts that use less than their shares.
    reserved: usize,
    parts: Vec<Share>,
}

#[derive(Debug)]
struct Share {
    guaranteed: usize,
    in_use: usize,
}

impl Shares {
    /// The sum of the shares must not exceed `total`.
    pub(super) fn new(total: usize, shares: impl IntoIterator<Item = usize>) -> Self {
        let parts: Vec<_> = shares.into_iter().map(|guaranteed| Share { guaranteed, in_use: 0 }).collect();
        let reserved = parts.iter().map(|part| part.guaranteed).sum();
        debug_assert!(reserved <= total, "more was guaranteed than exists");
        Shares { free: total, reserved, parts }
    }

    /// Takes a permit for `part`: one of its share, or one that is free and reserved for nobody.
    pub(super) fn take(&mut self, part: usize) -> bool {
        let Share { guaranteed, in_use } = &mut self.parts[part];
        if *in_use < *guaranteed {
            self.reserved -= 1;
        } else if self.free <= self.reserved {
            return false;
        }
        self.free -= 1;
        *in_use += 1;
        true
    }

    /// Takes a permit back from `part`.
    pub(super) fn give_back(&mut self, part: usize) {
        let Share { guaranteed, in_use } = &mut self.parts[part];
        *in_use -= 1;
        self.free += 1;
        if *in_use < *guaranteed {
            self.reserved += 1;
        }
    }

    pub(super) fn in_use(&self, part: usize) -> usize {
        self.parts[part].in_use
    }
}

#[cfg(all(test, not(mainstay_loom)))]
mod tests;
