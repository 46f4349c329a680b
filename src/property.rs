//! How properties are run here: on many random cases, and on planted bugs that they must catch.

use std::fmt::Debug;

use proptest::{
    strategy::Strategy,
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};

/// How many cases a planted bug gets to show itself in, whatever `MAINSTAY_CASES` says: it may hide from a few.
const PLANTED: u32 = 50_000;

/// The number of cases: `MAINSTAY_CASES`, or 10,000.
fn cases() -> u32 {
    std::env::var("MAINSTAY_CASES").map_or(10_000, |cases| cases.parse().expect("MAINSTAY_CASES is a number"))
}

fn run<S: Strategy>(
    strategy: S,
    cases: u32,
    shrink: u32,
    property: impl Fn(S::Value) -> Result<(), TestCaseError>,
) -> Result<(), TestError<S::Value>> {
    let config = Config { cases, max_shrink_iters: shrink, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&strategy, property)
}

/// The property holds for every case.
pub(crate) fn holds<S: Strategy>(strategy: S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    if let Err(error) = run(strategy, cases(), 10_000, property) {
        panic!("{error}");
    }
}

/// The property fails for some case of each planted bug: it can see what it is there to see.
pub(crate) fn catches<M: Copy + Debug, S: Strategy>(
    mutants: &[M],
    strategy: impl Fn() -> S,
    property: impl Fn(M, S::Value) -> Result<(), TestCaseError>,
) {
    for &mutant in mutants {
        let caught = run(strategy(), PLANTED, 0, |case| property(mutant, case)).is_err();
        assert!(caught, "nothing notices {mutant:?}");
    }
}
