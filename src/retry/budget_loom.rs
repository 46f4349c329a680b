//! Every interleaving of what shares a budget.

use ::loom::{model, thread};

use super::*;
use crate::slots::index::assume;

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
    model(|| {
        let budget = budget(1);
        assume(0);
        assert_eq!(withdraw(&budget), 1);
        let depositing = {
            let budget = budget.clone();
            thread::spawn(move || {
                assume(1);
                budget.deposit();
            })
        };
        depositing.join().unwrap();
        assert_eq!(withdraw(&budget), 1);
    });
}
