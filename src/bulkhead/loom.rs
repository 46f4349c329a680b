//! Every interleaving of a few threads on one pool.

use std::{
    sync::Arc as StdArc,
    task::{Wake, Waker},
};

use loom::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use super::{
    machine::Asked,
    shared::{Joined, Shared},
};
use crate::{every_order::model, slots::index::assume};

/// Counts the wake-ups.
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: StdArc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn bell() -> StdArc<Bell> {
    StdArc::new(Bell(AtomicUsize::new(0)))
}

/// The slots are given out by hand: this thread has the first.
fn pool(limit: usize, room: usize) -> Arc<Shared> {
    assume(0);
    Arc::new(Shared::new(limit, room))
}

fn on(slot: usize, run: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        assume(slot);
        run();
    })
}

fn is_idle(pool: &Shared) {
    let usage = pool.usage();
    assert_eq!((usage.in_use, usage.waiting), (0, 0), "something is left");
}

#[test]
fn the_limit_is_never_exceeded_while_permits_are_stolen_and_returned() {
    model(|| {
        let pool = pool(1, 0);
        let inside = Arc::new(AtomicUsize::new(0));
        // The only permit is in this thread's cache.
        assert!(pool.take());
        pool.give_back();
        let visit = |pool: Arc<Shared>, inside: Arc<AtomicUsize>| {
            move || {
                if pool.take() {
                    assert_eq!(inside.fetch_add(1, SeqCst), 0, "two were inside");
                    inside.fetch_sub(1, SeqCst);
                    pool.give_back();
                }
            }
        };
        let other = on(1, visit(pool.clone(), inside.clone()));
        visit(pool.clone(), inside)();
        other.join().unwrap();
        is_idle(&pool);
        assert!(pool.take(), "the permit was lost");
        assert!(!pool.take(), "a permit was made up");
    });
}

#[test]
fn a_refusal_means_that_every_permit_was_in_use() {
    model(|| {
        let pool = pool(2, 0);
        // Both permits are in caches, one of them in that of a thread that is gone.
        for slot in [2, 0] {
            assume(slot);
            assert!(pool.take());
            pool.give_back();
        }
        // Each of two threads uses one at a time, so neither may be refused; but the other has to get at a cache.
        let other = {
            let pool = pool.clone();
            on(1, move || {
                assert!(pool.take(), "was refused while one of two was free");
                pool.give_back();
            })
        };
        for _ in 0..2 {
            assert!(pool.take(), "was refused while one of two was free");
            pool.give_back();
        }
        other.join().unwrap();
        is_idle(&pool);
    });
}

#[test]
fn a_returned_permit_reaches_whoever_waits_for_it() {
    model(|| {
        let pool = pool(1, 1);
        assert!(pool.take());
        let bell = bell();
        let waiter = {
            let (pool, bell) = (pool.clone(), bell.clone());
            on(1, move || {
                match pool.take_or_join(Waker::from(bell.clone())) {
                    Joined::Taken => {}
                    Joined::Full => panic!("there was room"),
                    Joined::Waiting(ticket) => {
                        while bell.0.load(SeqCst) == 0 {
                            thread::yield_now();
                        }
                        let asked = pool.ask(ticket, Waker::noop().clone(), false);
                        assert_eq!(asked, Asked::Granted, "was woken for nothing");
                    }
                }
                pool.give_back();
            })
        };
        pool.give_back();
        waiter.join().unwrap();
        is_idle(&pool);
    });
}

#[test]
fn a_permit_granted_to_a_waiter_that_leaves_goes_to_the_next() {
    model(|| {
        let pool = pool(1, 2);
        assert!(pool.take());
        let (first, second) = (bell(), bell());
        let Joined::Waiting(leaving) = pool.take_or_join(Waker::from(first)) else {
            panic!("the only permit is taken");
        };
        let Joined::Waiting(staying) = pool.take_or_join(Waker::from(second.clone())) else {
            panic!("the only permit is taken");
        };
        let other = {
            let pool = pool.clone();
            on(1, move || pool.leave(leaving))
        };
        pool.give_back();
        other.join().unwrap();
        assert_eq!(second.0.load(SeqCst), 1, "the wake-up was lost");
        let asked = pool.ask(staying, Waker::noop().clone(), false);
        assert_eq!(asked, Asked::Granted);
        pool.give_back();
        is_idle(&pool);
    });
}

#[test]
fn a_wait_that_ends_as_the_permit_comes_neither_loses_nor_doubles_it() {
    model(|| {
        let pool = pool(1, 1);
        assert!(pool.take());
        let Joined::Waiting(ticket) = pool.take_or_join(Waker::noop().clone()) else {
            panic!("the only permit is taken");
        };
        let other = {
            let pool = pool.clone();
            on(1, move || pool.give_back())
        };
        if pool.ask(ticket, Waker::noop().clone(), true) == Asked::Granted {
            pool.give_back();
        }
        other.join().unwrap();
        is_idle(&pool);
        assert!(pool.take(), "the permit was lost");
        assert!(!pool.take(), "a permit was made up");
    });
}

#[test]
fn resizing_while_permits_move_keeps_the_new_limit() {
    model(|| {
        let pool = pool(2, 0);
        let other = {
            let pool = pool.clone();
            on(1, move || {
                if pool.take() {
                    pool.give_back();
                }
            })
        };
        pool.resize(1);
        let taken = pool.take();
        other.join().unwrap();
        if taken {
            pool.give_back();
        }
        is_idle(&pool);
        assert!(pool.take(), "the permit was lost");
        assert!(!pool.take(), "the old limit is still in force");
    });
}

#[test]
fn the_numbers_read_while_permits_move_are_those_of_one_instant() {
    model(|| {
        let pool = pool(2, 0);
        assert!(pool.take());
        let other = {
            let pool = pool.clone();
            on(1, move || {
                if pool.take() {
                    pool.give_back();
                }
            })
        };
        let in_use = pool.usage().in_use;
        assert!(in_use == 1 || in_use == 2, "{in_use} in use");
        other.join().unwrap();
        pool.give_back();
        is_idle(&pool);
    });
}
