//! One queue in memory: plain data, no waiting, no lock.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use tokio::time::Instant;

use crate::{Backoff, DeadLetter, Fate, MAX_RETURNS, Message, Queue, Settlement, Stats, Which, unix_ms};

/// The messages of one queue.
///
/// Of a key one message at most is on its way: ready, delayed or held. The others wait in its lane, and the next of them
/// becomes ready when that one is gone.
pub(super) struct Line {
    max_attempts: u32,
    backoff: Backoff,
    next_seq: u64,
    next_consumer: u64,
    ready: BTreeMap<u64, Entry>,
    delayed: BTreeMap<(Instant, u64), Entry>,
    held: HashMap<u64, (u64, Entry)>,
    lanes: HashMap<String, VecDeque<(u64, Entry)>>,
    dead: VecDeque<DeadLetter>,
    /// The open consumers; how much each holds is counted in `held_by`, also for those that are closed.
    consumers: HashSet<u64>,
    held_by: HashMap<u64, usize>,
}

#[derive(Clone)]
struct Entry {
    message: Message,
    failures: u32,
    returns: u32,
}

impl Entry {
    fn attempt(&self) -> u32 {
        1 + self.failures + self.returns
    }
}

/// A message that was taken.
pub(super) struct Held {
    pub(super) message: Message,
    pub(super) attempt: u32,
}

impl Line {
    pub(super) fn new(queue: &Queue) -> Self {
        Self {
            max_attempts: queue.max_attempts,
            backoff: queue.backoff,
            next_seq: 0,
            next_consumer: 0,
            ready: BTreeMap::new(),
            delayed: BTreeMap::new(),
            held: HashMap::new(),
            lanes: HashMap::new(),
            dead: VecDeque::new(),
            consumers: HashSet::new(),
            held_by: HashMap::new(),
        }
    }

    pub(super) fn set(&mut self, queue: &Queue) {
        self.max_attempts = queue.max_attempts;
        self.backoff = queue.backoff;
    }

    pub(super) fn push(&mut self, message: Message) {
        let seq = self.next_seq;
        self.next_seq += 1;
        let entry = Entry { message, failures: 0, returns: 0 };
        if !entry.message.key.is_empty() {
            if let Some(lane) = self.lanes.get_mut(&entry.message.key) {
                lane.push_back((seq, entry));
                return;
            }
            self.lanes.insert(entry.message.key.clone(), VecDeque::new());
        }
        self.ready.insert(seq, entry);
    }

    pub(super) fn open(&mut self) -> u64 {
        let id = self.next_consumer;
        self.next_consumer += 1;
        self.consumers.insert(id);
        id
    }

    pub(super) fn close(&mut self, consumer: u64) {
        self.consumers.remove(&consumer);
        self.held_by.retain(|_, holds| *holds > 0);
    }

    /// Takes the oldest ready messages, as many as the consumer may hold.
    pub(super) fn take(&mut self, consumer: u64, prefetch: usize, max: usize) -> Vec<(u64, Held)> {
        self.wake();
        let holds = self.held_by.entry(consumer).or_default();
        let mut taken = Vec::new();
        while taken.len() < max && *holds < prefetch {
            let Some((seq, entry)) = self.ready.pop_first() else { break };
            let attempt = entry.attempt();
            taken.push((seq, Held { message: entry.message.clone(), attempt }));
            self.held.insert(seq, (consumer, entry));
            *holds += 1;
        }
        taken
    }

    /// When the first delayed message becomes ready.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.delayed.keys().next().map(|(due, _)| *due)
    }

    pub(super) fn settle(&mut self, seq: u64, how: Settlement) -> Fate {
        let (consumer, mut entry) = self.held.remove(&seq).expect("only its one delivery settles a message");
        let holds = self.held_by.get_mut(&consumer).expect("who holds a message is counted");
        *holds -= 1;
        if *holds == 0 {
            self.held_by.remove(&consumer);
        }
        let attempt = entry.attempt();
        match how {
            Settlement::Ack => {
                self.leave(&entry.message.key);
                Fate::Done
            }
            Settlement::Reject(reason) => self.die(entry, attempt, reason),
            Settlement::Retry(reason) => {
                entry.failures += 1;
                if entry.failures >= self.max_attempts {
                    return self.die(entry, attempt, reason);
                }
                let wait = self.backoff.after(entry.failures);
                self.delayed.insert((Instant::now() + wait, seq), entry);
                Fate::Again(wait)
            }
            Settlement::Return => {
                entry.returns += 1;
                if entry.returns > MAX_RETURNS {
                    return self.die(entry, attempt, crate::delivery::returned_too_often());
                }
                self.ready.insert(seq, entry);
                Fate::Again(std::time::Duration::ZERO)
            }
        }
    }

    pub(super) fn dead(&self, limit: usize) -> Vec<DeadLetter> {
        self.dead.iter().take(limit).cloned().collect()
    }

    pub(super) fn take_dead(&mut self, which: &Which) -> Vec<DeadLetter> {
        let (taken, left): (Vec<_>, Vec<_>) =
            self.dead.drain(..).partition(|letter| which.has(&letter.message.id));
        self.dead = left.into();
        taken
    }

    pub(super) fn stats(&mut self) -> Stats {
        self.wake();
        let behind: usize = self.lanes.values().map(VecDeque::len).sum();
        Stats {
            ready: (self.ready.len() + behind) as u64,
            delayed: self.delayed.len() as u64,
            unacked: self.held.len() as u64,
            dead: self.dead.len() as u64,
            consumers: self.consumers.len() as u64,
        }
    }

    /// Moves what is due to the ready ones. It has kept its number, so it comes before what was published later.
    fn wake(&mut self) {
        let now = Instant::now();
        while let Some(first) = self.delayed.first_entry().filter(|first| first.key().0 <= now) {
            let ((_, seq), entry) = first.remove_entry();
            self.ready.insert(seq, entry);
        }
    }

    fn die(&mut self, entry: Entry, count: u32, reason: String) -> Fate {
        self.leave(&entry.message.key);
        self.dead.push_back(DeadLetter { count, message: entry.message, reason, since_ms: unix_ms() });
        Fate::Dead
    }

    /// The message of this key that was on its way is gone: the next one of the key may go.
    fn leave(&mut self, key: &str) {
        let Some(lane) = self.lanes.get_mut(key) else { return };
        match lane.pop_front() {
            Some((seq, entry)) => drop(self.ready.insert(seq, entry)),
            None => drop(self.lanes.remove(key)),
        }
    }
}
