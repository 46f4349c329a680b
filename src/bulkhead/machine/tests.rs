use proptest::prelude::*;

use super::*;
use crate::property::{catches, holds};

/// A pool with all its permits taken.
fn exhausted(limit: usize, room: usize) -> Pool<char> {
    let mut pool = Pool::new(limit, room);
    while pool.take() {}
    pool
}

#[test]
fn permits_are_handed_over_in_the_order_of_arrival() {
    let mut pool = exhausted(1, 3);
    let a = pool.join('a').expect("room for three");
    let b = pool.join('b').expect("room for three");
    assert_eq!(pool.give_back(), Some('a'));
    assert_eq!(pool.ask(b, 'b', false).0, Asked::Waiting);
    assert_eq!(pool.ask(a, 'a', false).0, Asked::Granted);
    assert_eq!(pool.give_back(), Some('b'));
    assert_eq!(pool.ask(b, 'b', false).0, Asked::Granted);
}

#[test]
fn a_waiter_that_leaves_with_a_granted_permit_passes_it_on() {
    let mut pool = exhausted(1, 3);
    let a = pool.join('a').expect("room for three");
    pool.join('b').expect("room for three");
    assert_eq!(pool.give_back(), Some('a'));
    assert_eq!(pool.leave(a).0, Some('b'));
    assert_eq!((pool.out(), pool.waiting()), (1, 0));
}

#[test]
fn a_waiter_that_leaves_without_a_permit_takes_none_with_it() {
    let mut pool = exhausted(1, 3);
    let a = pool.join('a').expect("room for three");
    assert_eq!(pool.leave(a), (None, Some('a')));
    assert_eq!(pool.give_back(), None);
    assert!(pool.take());
}

#[test]
fn only_those_who_still_wait_count_against_the_length_of_the_queue() {
    let mut pool = exhausted(1, 1);
    pool.join('a').expect("room for one");
    assert_eq!(pool.join('b'), Err('b'));
    assert_eq!(pool.give_back(), Some('a'));
    pool.join('b').expect("the first has its permit, so there is room again");
}

#[test]
fn a_granted_permit_wins_over_an_expired_wait() {
    let mut pool = exhausted(1, 1);
    let a = pool.join('a').expect("room for one");
    assert_eq!(pool.give_back(), Some('a'));
    assert_eq!(pool.ask(a, 'a', true).0, Asked::Granted);
}

#[test]
fn an_expired_waiter_is_out_of_the_queue() {
    let mut pool = exhausted(1, 1);
    let a = pool.join('a').expect("room for one");
    assert_eq!(pool.ask(a, 'A', true), (Asked::Expired, Some('a')));
    assert_eq!((pool.waiting(), pool.give_back()), (0, None));
}

#[test]
fn a_smaller_limit_lets_those_inside_finish_and_admits_nobody_before() {
    let mut pool = exhausted(3, 1);
    assert!(pool.resize(1).is_empty());
    assert_eq!((pool.out(), pool.limit(), pool.free()), (3, 1, 0));
    for _ in 0..2 {
        assert_eq!(pool.give_back(), None);
        assert!(!pool.take(), "more were inside than the new limit");
    }
    pool.give_back();
    assert!(pool.take());
}

#[test]
fn a_larger_limit_serves_as_many_waiters_as_it_adds_permits() {
    let mut pool = exhausted(1, 5);
    for waiter in ['a', 'b', 'c'] {
        pool.join(waiter).expect("room for five");
    }
    assert_eq!(pool.resize(3), ['a', 'b']);
    assert_eq!((pool.waiting(), pool.free()), (1, 0));
}

#[test]
fn a_limit_beyond_all_bounds_is_no_limit() {
    let mut pool = Pool::<()>::new(usize::MAX, usize::MAX);
    assert!(pool.take());
    assert!(pool.resize(1).is_empty() && pool.resize(usize::MAX).is_empty());
    assert!(pool.take());
    assert_eq!(pool.out(), 2);
}

/// A step of a history; the numbers choose among the waiters there are.
#[derive(Debug, Clone, Copy)]
enum Step {
    Take,
    Join,
    Ask(usize, bool),
    Leave(usize),
    GiveBack,
    Resize(usize),
    LendAndCollect(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Take),
        4 => Just(Step::Join),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(who, expired)| Step::Ask(who, expired)),
        2 => any::<usize>().prop_map(Step::Leave),
        4 => Just(Step::GiveBack),
        1 => (1..6_usize).prop_map(Step::Resize),
        1 => any::<usize>().prop_map(Step::LendAndCollect),
    ];
    proptest::collection::vec(step, 0..40)
}

/// A bug put into the pool on purpose. The property must find each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    OneMoreThanTheLimit,
    OneMoreInTheQueue,
    LastInFirstOut,
    LeavingTakesTheGrantedPermitAlong,
    ExpiryTakesTheGrantedPermitAlong,
    ExpiredWaiterStaysInTheQueue,
    ReturnedPermitIsNotHandedOver,
    LargerLimitWakesNobody,
    OldWakerIsKept,
}

struct Subject {
    pool: Pool<u64>,
    mutant: Mutant,
}

impl Subject {
    fn new(limit: usize, room: usize, mutant: Mutant) -> Self {
        let extra = usize::from(mutant == Mutant::OneMoreThanTheLimit);
        let more = usize::from(mutant == Mutant::OneMoreInTheQueue);
        let mut pool = Pool::new(limit + extra, room + more);
        pool.limit = limit as isize;
        Subject { pool, mutant }
    }

    fn ask(&mut self, ticket: u64, waker: u64, expired: bool) -> Asked {
        let at = self.pool.place(ticket);
        let granted = at.is_some_and(|at| at < self.pool.granted);
        match self.mutant {
            Mutant::ExpiryTakesTheGrantedPermitAlong if expired && granted => {
                self.pool.ask(ticket, waker, expired);
                Asked::Expired
            }
            Mutant::ExpiredWaiterStaysInTheQueue if expired && !granted => Asked::Expired,
            Mutant::OldWakerIsKept if !expired && !granted => Asked::Waiting,
            _ => self.pool.ask(ticket, waker, expired).0,
        }
    }

    fn leave(&mut self, ticket: u64) -> Option<u64> {
        let at = self.pool.place(ticket);
        let granted = at.is_some_and(|at| at < self.pool.granted);
        if self.mutant == Mutant::LeavingTakesTheGrantedPermitAlong && granted {
            self.pool.ask(ticket, 0, true);
            return None;
        }
        self.pool.leave(ticket).0
    }

    fn give_back(&mut self) -> Option<u64> {
        match self.mutant {
            Mutant::ReturnedPermitIsNotHandedOver => {
                self.pool.free += 1;
                None
            }
            Mutant::LastInFirstOut if self.pool.waiting() > 1 => {
                let (first, last) = (self.pool.granted, self.pool.queue.len() - 1);
                let waker = self.pool.queue[first].waker;
                self.pool.queue[first].waker = self.pool.queue[last].waker;
                self.pool.queue[last].waker = waker;
                self.pool.give_back()
            }
            _ => self.pool.give_back(),
        }
    }

    fn resize(&mut self, limit: usize) -> Vec<u64> {
        let served = self.pool.resize(limit);
        match self.mutant {
            Mutant::LargerLimitWakesNobody => Vec::new(),
            _ => served,
        }
    }
}

/// The same written as naively as it can be: lists, searched from the front each time.
#[derive(Default)]
struct Model {
    limit: usize,
    room: usize,
    running: usize,
    /// Ticket, waker, and whether a permit was granted.
    waiters: Vec<(u64, u64, bool)>,
}

impl Model {
    fn in_use(&self) -> usize {
        self.running + self.waiters.iter().filter(|waiter| waiter.2).count()
    }

    fn waiting(&self) -> usize {
        self.waiters.iter().filter(|waiter| !waiter.2).count()
    }

    fn serve(&mut self) -> Vec<u64> {
        let mut woken = Vec::new();
        while self.in_use() < self.limit {
            let Some(waiter) = self.waiters.iter_mut().find(|waiter| !waiter.2) else {
                break;
            };
            waiter.2 = true;
            woken.push(waiter.1);
        }
        woken
    }
}

fn follows_the_model(limit: usize, room: usize, steps: &[Step], mutant: Mutant) -> Result<(), TestCaseError> {
    let mut subject = Subject::new(limit, room, mutant);
    let mut model = Model { limit, room, ..Model::default() };
    let mut waker = 0;
    for &step in steps {
        waker += 1;
        match step {
            Step::Take => {
                let free = model.in_use() < model.limit;
                model.running += usize::from(free);
                prop_assert_eq!(subject.pool.take(), free, "take");
            }
            Step::Join if model.in_use() >= model.limit => {
                let joined = subject.pool.join(waker);
                prop_assert_eq!(joined.is_ok(), model.waiting() < model.room, "join");
                if let Ok(ticket) = joined {
                    model.waiters.push((ticket, waker, false));
                }
            }
            Step::Ask(who, expired) if !model.waiters.is_empty() => {
                let who = who % model.waiters.len();
                let (ticket, _, granted) = model.waiters[who];
                let expected = match (granted, expired) {
                    (true, _) => Asked::Granted,
                    (false, true) => Asked::Expired,
                    (false, false) => Asked::Waiting,
                };
                if expected == Asked::Waiting {
                    model.waiters[who].1 = waker;
                } else {
                    model.waiters.remove(who);
                }
                model.running += usize::from(granted);
                prop_assert_eq!(subject.ask(ticket, waker, expired), expected, "ask");
            }
            Step::Leave(who) if !model.waiters.is_empty() => {
                let (ticket, ..) = model.waiters.remove(who % model.waiters.len());
                prop_assert_eq!(subject.leave(ticket), model.serve().first().copied(), "leave");
            }
            Step::GiveBack if model.running > 0 => {
                model.running -= 1;
                prop_assert_eq!(subject.give_back(), model.serve().first().copied(), "give back");
            }
            Step::Resize(limit) => {
                model.limit = limit;
                prop_assert_eq!(subject.resize(limit), model.serve(), "resize");
            }
            Step::LendAndCollect(count) => {
                let free = model.limit.saturating_sub(model.in_use());
                let count = count % (free + 1);
                if model.waiting() == 0 {
                    subject.pool.lend(count);
                    prop_assert_eq!(subject.pool.free(), free - count, "lend");
                    subject.pool.collect(count);
                }
            }
            _ => {}
        }
        prop_assert_eq!(subject.pool.out(), model.in_use(), "permits out");
        prop_assert_eq!(subject.pool.waiting(), model.waiting(), "waiting");
        prop_assert_eq!(subject.pool.limit(), model.limit, "limit");
        prop_assert_eq!(subject.pool.queue.len(), model.waiters.len(), "queue");
    }
    Ok(())
}

fn histories() -> impl Strategy<Value = (usize, usize, Vec<Step>)> {
    (1..5_usize, 0..4_usize, steps())
}

#[test]
fn the_pool_does_what_a_naive_model_does() {
    holds(histories(), |(limit, room, steps)| follows_the_model(limit, room, &steps, Mutant::None));
}

#[test]
fn the_pool_property_finds_every_planted_bug() {
    let mutants = [
        Mutant::OneMoreThanTheLimit,
        Mutant::OneMoreInTheQueue,
        Mutant::LastInFirstOut,
        Mutant::LeavingTakesTheGrantedPermitAlong,
        Mutant::ExpiryTakesTheGrantedPermitAlong,
        Mutant::ExpiredWaiterStaysInTheQueue,
        Mutant::ReturnedPermitIsNotHandedOver,
        Mutant::LargerLimitWakesNobody,
        Mutant::OldWakerIsKept,
    ];
    catches(&mutants, histories, |mutant, (limit, room, steps)| {
        follows_the_model(limit, room, &steps, mutant)
    });
}

/// A bug put into the shares on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ShareMutant {
    None,
    TakesWhatIsGuaranteedToOthers,
    LeavesIdleCapacityUnused,
    BorrowedPermitIsReservedWhenItReturns,
    ReturnsToAnotherPart,
}

fn take_share(shares: &mut Shares, part: usize, mutant: ShareMutant) -> bool {
    match mutant {
        ShareMutant::TakesWhatIsGuaranteedToOthers if shares.free > 0 => {
            shares.free -= 1;
            let share = &mut shares.parts[part];
            if share.in_use < share.guaranteed {
                shares.reserved -= 1;
            }
            share.in_use += 1;
            true
        }
        ShareMutant::LeavesIdleCapacityUnused
            if shares.parts[part].in_use >= shares.parts[part].guaranteed =>
        {
            false
        }
        _ => shares.take(part),
    }
}

fn return_share(shares: &mut Shares, part: usize, mutant: ShareMutant) {
    match mutant {
        ShareMutant::BorrowedPermitIsReservedWhenItReturns
            if shares.parts[part].in_use > shares.parts[part].guaranteed =>
        {
            shares.give_back(part);
            shares.reserved += 1;
        }
        ShareMutant::ReturnsToAnotherPart => {
            let other = (part + 1) % shares.parts.len();
            let to = if shares.parts[other].in_use > 0 { other } else { part };
            shares.give_back(to);
        }
        _ => shares.give_back(part),
    }
}

fn shares_follow_the_rule(
    guaranteed: &[usize],
    floating: usize,
    steps: &[(bool, usize)],
    mutant: ShareMutant,
) -> Result<(), TestCaseError> {
    let total = guaranteed.iter().sum::<usize>() + floating;
    let mut shares = Shares::new(total, guaranteed.iter().copied());
    let mut in_use = vec![0; guaranteed.len()];
    for &(take, part) in steps {
        let part = part % guaranteed.len();
        if take {
            // The rule as it is written in the documentation, computed from nothing but the uses.
            let free = total - in_use.iter().sum::<usize>();
            let kept: usize = (0..guaranteed.len())
                .filter(|&other| other != part)
                .map(|other| guaranteed[other].saturating_sub(in_use[other]))
                .sum();
            let may = in_use[part] < guaranteed[part] || free > kept;
            in_use[part] += usize::from(may);
            prop_assert_eq!(take_share(&mut shares, part, mutant), may, "take");
        } else if in_use[part] > 0 {
            in_use[part] -= 1;
            return_share(&mut shares, part, mutant);
        }
        for (part, &expected) in in_use.iter().enumerate() {
            prop_assert_eq!(shares.in_use(part), expected, "in use");
        }
        prop_assert!(in_use.iter().sum::<usize>() <= total, "more than there are");
    }
    Ok(())
}

fn demands() -> impl Strategy<Value = (Vec<usize>, usize, Vec<(bool, usize)>)> {
    (
        proptest::collection::vec(0..4_usize, 1..4),
        1..4_usize,
        proptest::collection::vec((prop::bool::weighted(0.6), 0..4_usize), 0..40),
    )
}

#[test]
fn partitions_take_what_the_documented_rule_allows() {
    holds(demands(), |(guaranteed, floating, steps)| {
        shares_follow_the_rule(&guaranteed, floating, &steps, ShareMutant::None)
    });
}

#[test]
fn the_partition_property_finds_every_planted_bug() {
    let mutants = [
        ShareMutant::TakesWhatIsGuaranteedToOthers,
        ShareMutant::LeavesIdleCapacityUnused,
        ShareMutant::BorrowedPermitIsReservedWhenItReturns,
        ShareMutant::ReturnsToAnotherPart,
    ];
    catches(&mutants, demands, |mutant, (guaranteed, floating, steps)| {
        shares_follow_the_rule(&guaranteed, floating, &steps, mutant)
    });
}

#[test]
fn a_partition_always_gets_its_share() {
    let mut shares = Shares::new(20, [10, 5]);
    let taken = (0..20).filter(|_| shares.take(1)).count();
    assert_eq!(taken, 10, "its 5, and the 5 that are guaranteed to nobody");
    let taken = (0..20).filter(|_| shares.take(0)).count();
    assert_eq!(taken, 10, "all of its share, though the other took as much as it could");
}
