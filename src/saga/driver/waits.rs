//! How long a step waits that was not begun: thousands of sagas that one breaker has refused must not come back together. And how long one
//! waits that did not arrive.

use std::time::Duration;

use crate::{
    backoff::{Jitter, Schedule},
    chance::Chance,
    saga::record::SagaId,
};

/// What one waits that nobody has told how long, the first time.
const SHORTEST: Duration = Duration::from_millis(100);

/// The same when it was refused again and again. It stays in memory so long: the store is not written to for it.
const LONGEST: Duration = super::LINGER;

/// How long it waits before a participant that has nothing of a step is sent the same again; doubled each time, up to 256 times this.
const AGAIN: Duration = Duration::from_millis(100);

/// How often the same is sent again that may have been on its way before; as often as what has to succeed is tried by default.
const RESENDS: u32 = 8;

/// The waits of one saga's steps.
pub(super) struct Waits {
    /// How often in a row a step was refused.
    refused: Vec<(usize, u32)>,
    /// How often a step's participant had nothing of what it was sent; and how often what was sent might still arrive.
    again: Vec<(usize, u32)>,
    unseen: Vec<(usize, u32)>,
    chance: Chance,
}

/// How often it was, for one step.
fn times(of: &mut Vec<(usize, u32)>, step: usize) -> &mut u32 {
    let at = of.iter().position(|(other, _)| *other == step).unwrap_or_else(|| {
        of.push((step, 0));
        of.len() - 1
    });
    &mut of[at].1
}

impl Waits {
    /// Drawn from the saga's name and ownership: a history that is replayed waits as long again.
    pub(super) fn new(saga: &SagaId, epoch: u64) -> Self {
        Waits {
            refused: Vec::new(),
            again: Vec::new(),
            unseen: Vec::new(),
            chance: Chance::of((saga.as_str(), epoch)),
        }
    }

    /// How long a step waits that was refused once more: the backoff, or as long as was said if that is longer, and then up to a tenth more.
    pub(super) fn refused(&mut self, step: usize, said: Option<Duration>) -> Duration {
        let times = times(&mut self.refused, step);
        // Equal jitter: what comes back at once is only refused again.
        let backoff = Schedule::exponential(SHORTEST).cap(LONGEST).jitter(Jitter::Equal);
        let drawn = backoff.delay(*times, Duration::ZERO, &mut 0, self.chance.next());
        let Some(drawn) = drawn else { unreachable!("an exponential schedule has no end") };
        *times = times.saturating_add(1);
        Duration::from_nanos(match said {
            Some(said) => backoff.honour(said, drawn, Duration::MAX, self.chance.next()),
            None => drawn,
        })
    }

    /// The step was let begin.
    pub(super) fn begun(&mut self, step: usize) {
        self.refused.retain(|(other, _)| *other != step);
    }

    /// How long a step waits whose participant has nothing of it; `clean` if it vouches for that nothing can arrive.
    pub(super) fn again(&mut self, step: usize, clean: bool) -> Duration {
        if !clean {
            *times(&mut self.unseen, step) += 1;
        }
        let times = times(&mut self.again, step);
        *times = times.saturating_add(1);
        AGAIN * 2_u32.pow((*times).min(8))
    }

    /// Whether it is no use to send a step again that may have been on its way all the time. It is counted anew then.
    pub(super) fn was_sent_enough(&mut self, step: usize) -> bool {
        let enough = *times(&mut self.unseen, step) >= RESENDS;
        if enough {
            self.count_anew();
        }
        enough
    }

    /// Everything is tried as if for the first time.
    pub(super) fn count_anew(&mut self) {
        self.again.clear();
        self.unseen.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(saga: usize) -> Waits {
        Waits::new(&SagaId::new(&format!("order-{saga}")).unwrap(), 1)
    }

    fn within(wait: Duration, from: Duration, to: Duration) -> bool {
        (from..=to).contains(&wait)
    }

    #[test]
    fn who_is_told_nothing_waits_longer_each_time_up_to_a_second() {
        for saga in 0..1_000 {
            let mut waits = waits(saga);
            for longest in [100, 200, 400, 800, 1_000, 1_000, 1_000].map(Duration::from_millis) {
                let wait = waits.refused(3, None);
                assert!(within(wait, longest / 2, longest), "{wait:?} of {longest:?}");
            }
            waits.begun(3);
            let wait = waits.refused(3, None);
            assert!(wait <= SHORTEST, "{wait:?}: it was let begin in between");
        }
    }

    #[test]
    fn who_is_told_when_to_come_comes_no_sooner_and_a_tenth_later_at_most() {
        let told = Duration::from_secs(30);
        for saga in 0..1_000 {
            let mut waits = waits(saga);
            for _ in 0..8 {
                let wait = waits.refused(0, Some(told));
                assert!(within(wait, told, told + told / 10), "{wait:?}");
            }
            // By now the backoff is longer than what it is told.
            let wait = waits.refused(0, Some(Duration::from_millis(1)));
            assert!(within(wait, LONGEST / 2, LONGEST + LONGEST / 10), "{wait:?}");
        }
        assert!(waits(0).refused(0, Some(Duration::MAX)) > Duration::from_secs(1 << 33), "however long");
    }

    #[test]
    fn one_step_does_not_wait_for_the_refusals_of_another() {
        let mut waits = waits(0);
        for _ in 0..8 {
            waits.refused(0, None);
        }
        let wait = waits.refused(1, None);
        assert!(wait <= SHORTEST, "{wait:?}");
    }

    #[test]
    fn a_history_that_is_replayed_waits_as_long_again_and_another_owner_does_not() {
        let wait = |epoch| Waits::new(&SagaId::new("order-17").unwrap(), epoch).refused(0, None);
        assert_eq!(wait(1), wait(1));
        assert_ne!(wait(1), wait(2));
    }
}
