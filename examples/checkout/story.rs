//! The story: what happens to the payment service, and when.

use std::time::Duration;

use crate::services::Fault;

/// One act of the story: from when until when the payment service behaves how.
#[derive(Clone, Debug)]
pub struct Phase {
    pub name: &'static str,
    pub fault: Fault,
    pub from: Duration,
    pub until: Duration,
}

impl Phase {
    pub fn contains(&self, at: Duration) -> bool {
        self.from <= at && at < self.until
    }
}

/// Every fault meets a healthy system, so that each has to be noticed anew, and is followed by a recovery.
const ACTS: [(&str, Fault, f64); 7] = [
    ("healthy", Fault::None, 4.0),
    ("payment fails", Fault::Fail, 4.5),
    ("recovers", Fault::None, 3.5),
    ("payment hangs", Fault::Hang, 4.5),
    ("recovers", Fault::None, 3.5),
    ("payment is slow", Fault::Slow, 4.5),
    ("recovers", Fault::None, 5.5),
];

/// A recovery is never made shorter than this: the promise is full service within two seconds, and it has to
/// be seen.
const SHORTEST_RECOVERY: f64 = 2.4;

/// The shortest story in which every act can still be told.
pub const SHORTEST: f64 = 12.0;

/// The story, stretched or squeezed to last about `seconds`.
pub fn of(seconds: f64) -> Vec<Phase> {
    let is_recovery = |index: usize| index > 0 && ACTS[index].1 == Fault::None;
    let scale = seconds / ACTS.iter().map(|(_, _, share)| share).sum::<f64>();
    // What the recoveries take beyond their share is taken from the other acts.
    let recovering = |share: f64| (share * scale).max(SHORTEST_RECOVERY);
    let (mut fixed, mut shares) = (0.0, 0.0);
    for (index, (_, _, share)) in ACTS.iter().enumerate() {
        match is_recovery(index) {
            true => fixed += recovering(*share),
            false => shares += share,
        }
    }
    let mut from = 0.0;
    let mut phases = Vec::new();
    for (index, &(name, fault, share)) in ACTS.iter().enumerate() {
        let length = match is_recovery(index) {
            true => recovering(share),
            false => share * (seconds - fixed) / shares,
        };
        phases.push(Phase {
            name,
            fault,
            from: Duration::from_secs_f64(from),
            until: Duration::from_secs_f64(from + length),
        });
        from += length;
    }
    phases
}
