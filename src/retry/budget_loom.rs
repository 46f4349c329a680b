//! Every interleaving of what shares a budget.

use ::loom::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::*;
use crate::{
    every_order::{Ever, model},
    slots::index::assume,
};

fn budget(tokens: u32) -> Budget {
    // A start of three tokens or the capacity, and a success for each of the deposits.
    Budget::config().ratio(1.0).min(tokens).max(tokens).build().unwrap()
}

fn withdraw(budget: &Budget) -> u32 {
    u32::from(budget.withdraw(time::now(), true))
}

#[test]
fn of_two_withdrawals_for_one_token_one_is_paid() {
    model(|| {
        let budget = budget(1);
        let other = {
            let budget = budget.clone();
            thread::spawn(move || {
                assume(1);
                withdraw(&budget)
            })
        };
        assume(0);
        let paid = withdraw(&budget);
        assert_eq!(paid + other.join().unwrap(), 1);
        assert_eq!(budget.available(), 0.0);
    });
}

#[test]
fn a_deposit_that_meets_a_withdrawal_is_neither_lost_nor_counted_twice() {
    model(|| {
        let budget = budget(10);
        let depositing = {
            let budget = budget.clone();
            thread::spawn(move || {
                assume(1);
                // The last of them brings the estimate up to date itself.
                for _ in 0..DRAIN {
                    budget.deposit();
                }
            })
        };
        assume(0);
        let paid = withdraw(&budget) + withdraw(&budget);
        depositing.join().unwrap();
        assert_eq!(paid, 2);
        assert_eq!(budget.available(), 3.0 + DRAIN as f64 - 2.0);
    });
}

#[test]
fn a_withdrawal_sees_the_deposits_that_happened_before_it() {
    let ever = Ever::default();
    let seen = ever.clone();
    model(move || {
        let budget = budget(1);
        let deposited = Arc::new(AtomicBool::new(false));
        assume(0);
        assert_eq!(withdraw(&budget), 1);
        let depositing = {
            let (budget, deposited) = (budget.clone(), deposited.clone());
            thread::spawn(move || {
                assume(1);
                budget.deposit();
                deposited.store(true, Ordering::Release);
            })
        };
        let before = deposited.load(Ordering::Acquire);
        let paid = withdraw(&budget);
        if before {
            seen.happened();
            assert_eq!(paid, 1, "the deposit was made before");
        }
        depositing.join().unwrap();
        assert_eq!(paid + withdraw(&budget), 1, "one token was deposited");
    });
    assert!(ever.has_happened());
}
