//! What a breaker remembers of the calls behind it: the last N of them, or those of the last while.
//!
//! Both forms answer in O(1) and their memory is fixed by the settings. Every call has a sequence number. The count
//! window keeps the numbers of its bad calls alone, so that any number of good ones is one addition: a bad call has left
//! the window when its number is N behind. The time window is a ring of buckets; a bucket is named by its
//! *epoch*, the number of bucket widths since the breaker was made, and what lies a whole window apart is never mixed.

use std::collections::VecDeque;

/// How long the memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The last calls.
    Count(u64),
    /// The last `buckets` stretches of `width` nanoseconds.
    Time { width: u64, buckets: u64 },
}

impl Shape {
    /// The bucket that holds the instant `nanos`; always the same one in a count window.
    pub(crate) fn epoch(self, nanos: u64) -> u64 {
        match self {
            Shape::Count(_) => 0,
            Shape::Time { width, .. } => nanos / width,
        }
    }
}

/// Where a call was counted, so that more can be said of it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
}

/// The calls in a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    pub(crate) slow: u64,
}

impl Sums {
    fn add(&mut self, other: Sums) {
        self.calls += other.calls;
        self.failed += other.failed;
        self.slow += other.slow;
    }

    fn sub(&mut self, other: Sums) {
        self.calls -= other.calls;
        self.failed -= other.failed;
        self.slow -= other.slow;
    }
}

#[derive(Debug)]
pub(crate) enum Window {
    Count(Count),
    Time(Time),
}

impl Window {
    /// Empty, at the bucket `epoch`, where the next call is number `seq + 1`.
    pub(crate) fn new(shape: Shape, seq: u64, epoch: u64) -> Self {
        match shape {
            Shape::Count(size) => {
                Window::Count(Count { size, seq, since: seq, bad: VecDeque::new(), failed: 0, slow: 0 })
            }
            Shape::Time { buckets, .. } => Window::Time(Time {
                ring: vec![Sums::default(); usize::try_from(buckets).unwrap_or(usize::MAX)],
                head: epoch,
                sums: Sums::default(),
            }),
        }
    }

    /// Lets time pass up to the bucket `epoch`.
    pub(crate) fn advance(&mut self, epoch: u64) {
        if let Window::Time(time) = self {
            time.advance(epoch);
        }
    }

    /// Counts `n` calls that were neither failed nor slow.
    pub(crate) fn good(&mut self, mark: Mark, n: u64) {
        self.put(mark, Sums { calls: n, failed: 0, slow: 0 });
    }

    /// Counts one call, bad or good.
    pub(crate) fn one(&mut self, mark: Mark, failed: bool, slow: bool) {
        self.put(mark, Sums { calls: 1, failed: failed.into(), slow: slow.into() });
    }

    fn put(&mut self, mark: Mark, sums: Sums) {
        match self {
            Window::Count(count) => count.put(mark.seq, sums),
            Window::Time(time) => time.put(mark.epoch, sums),
        }
    }

    /// The call counted at `mark` as slow has failed too.
    pub(crate) fn also_failed(&mut self, mark: Mark) {
        match self {
            Window::Count(count) => {
                if let Ok(at) = count.bad.binary_search_by_key(&mark.seq, |bad| bad.seq) {
                    if !count.bad[at].failed {
                        count.bad[at].failed = true;
                        count.failed += 1;
                    }
                }
            }
            // A mark that lies ahead was made when the buckets were narrower.
            Window::Time(time) => {
                let epoch = mark.epoch.min(time.head);
                time.put(epoch, Sums { calls: 0, failed: 1, slow: 0 });
            }
        }
    }

    pub(crate) fn sums(&self) -> Sums {
        match self {
            Window::Count(count) => Sums { calls: count.len(), failed: count.failed, slow: count.slow },
            Window::Time(time) => time.sums,
        }
    }

    /// The same evidence in another shape, as far as it fits: `seq` calls so far, now in the bucket `epoch`, which began
    /// `width` nanoseconds wide as bucket `old_epoch` of the present shape.
    pub(crate) fn reshape(&mut self, from: Shape, to: Shape, seq: u64, nanos: u64) {
        let epoch = to.epoch(nanos);
        match (&mut *self, from, to) {
            (Window::Count(count), _, Shape::Count(size)) => {
                // What lies before a window that was shorter is not known and is not made up.
                count.since = count.seq - count.len();
                count.size = size;
                count.evict();
            }
            (Window::Time(time), Shape::Time { width, .. }, Shape::Time { width: wider, .. }) => {
                let mut new = Window::new(to, seq, epoch);
                for (old, sums) in time.oldest_first() {
                    // The end of the old bucket, so that nothing is forgotten too early.
                    let end = old.saturating_mul(width).saturating_add(width - 1);
                    let at = Mark { seq, epoch: (end / wider).min(epoch) };
                    new.put(at, sums);
                }
                *self = new;
            }
            (Window::Count(_), _, Shape::Time { .. }) => {
                let sums = self.sums();
                *self = Window::new(to, seq, epoch);
                self.put(Mark { seq, epoch }, sums);
            }
            (Window::Time(time), _, Shape::Count(_)) => {
                let sums = time.sums;
                *self = Window::new(to, seq, epoch);
                self.load(Mark { seq, epoch }, sums);
            }
            // A window and the shape it has are of one kind.
            (Window::Time(_), Shape::Count(_), Shape::Time { .. }) => {
                *self = Window::new(to, seq, epoch);
            }
        }
    }

    /// Fills an empty window with calls whose order is not known: the bad ones count as the latest.
    pub(crate) fn load(&mut self, mark: Mark, sums: Sums) {
        match self {
            Window::Time(time) => time.put(mark.epoch, sums),
            Window::Count(count) => {
                let calls = sums.calls.min(count.size).min(mark.seq);
                count.since = mark.seq - calls;
                count.seq = mark.seq;
                let (failed, slow) = (sums.failed.min(calls), sums.slow.min(calls));
                for back in (0..failed.max(slow)).rev() {
                    count.push(Bad { seq: mark.seq - back, failed: back < failed, slow: back < slow });
                }
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Count {
    size: u64,
    /// The number of the last call.
    seq: u64,
    /// Nothing is known of calls up to this number.
    since: u64,
    bad: VecDeque<Bad>,
    failed: u64,
    slow: u64,
}

#[derive(Debug, Clone, Copy)]
struct Bad {
    seq: u64,
    failed: bool,
    slow: bool,
}

impl Count {
    /// How many calls take up memory.
    #[cfg(all(test, not(mainstay_loom)))]
    pub(crate) fn remembered(&self) -> usize {
        self.bad.len()
    }

    fn len(&self) -> u64 {
        (self.seq - self.since).min(self.size)
    }

    fn put(&mut self, seq: u64, sums: Sums) {
        self.seq = seq;
        if sums.failed + sums.slow > 0 {
            self.push(Bad { seq, failed: sums.failed > 0, slow: sums.slow > 0 });
        }
        self.evict();
    }

    fn push(&mut self, bad: Bad) {
        self.failed += u64::from(bad.failed);
        self.slow += u64::from(bad.slow);
        self.bad.push_back(bad);
    }

    /// Lets go of the bad calls that N later ones have pushed out: each is visited once.
    fn evict(&mut self) {
        while let Some(bad) = self.bad.front() {
            if bad.seq + self.size > self.seq {
                break;
            }
            self.failed -= u64::from(bad.failed);
            self.slow -= u64::from(bad.slow);
            self.bad.pop_front();
        }
    }
}

#[derive(Debug)]
pub(crate) struct Time {
    ring: Vec<Sums>,
    /// The newest bucket.
    head: u64,
    sums: Sums,
}

impl Time {
    #[cfg(all(test, not(mainstay_loom)))]
    pub(crate) fn remembered(&self) -> usize {
        self.ring.len()
    }

    fn advance(&mut self, epoch: u64) {
        if epoch <= self.head {
            return;
        }
        let buckets = self.ring.len() as u64;
        if epoch - self.head >= buckets {
            self.ring.fill(Sums::default());
            self.sums = Sums::default();
        } else {
            for passed in self.head + 1..=epoch {
                let slot = (passed % buckets) as usize;
                let expired = std::mem::take(&mut self.ring[slot]);
                self.sums.sub(expired);
            }
        }
        self.head = epoch;
    }

    /// Counts in the bucket `epoch`, unless that has left the window.
    fn put(&mut self, epoch: u64, sums: Sums) {
        self.advance(epoch);
        let buckets = self.ring.len() as u64;
        if self.head - epoch < buckets {
            self.ring[(epoch % buckets) as usize].add(sums);
            self.sums.add(sums);
        }
    }

    fn oldest_first(&self) -> impl Iterator<Item = (u64, Sums)> + '_ {
        let buckets = self.ring.len() as u64;
        let oldest = self.head.saturating_sub(buckets - 1);
        (oldest..=self.head).map(move |epoch| (epoch, self.ring[(epoch % buckets) as usize]))
    }
}
