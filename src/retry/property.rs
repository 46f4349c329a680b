//! How properties are run here: on many random cases, and on planted bugs that they must catch.

use proptest::{
    strategy::Strategy,
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};

/// The number of cases: `MAINSTAY_CASES`, or 10,000.
fn cases() -> u32 {
    std::env::var("MAINSTAY_CASES").map_or(10_000, |cases| cases.parse().expect("MAINSTAY_CASES is a number"))
}

fn run<S: Strategy>(
    strategy: S,
    shrink: u32,
    property: impl Fn(S::Value) -> Result<(), TestCaseError>,
) -> Result<(), TestError<S::Value>> {
    let config =
        Config { cases: cases(), max_shrink_iters: shrink, failure_persistence: None, ..Config::default() };
    TestRunner::new(config).run(&strategy, property)
}

/// The property holds for every case.
pub(crate) fn holds<S: Strategy>(strategy: S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    if let Err(error) = run(strategy, 10_000, property) {
        panic!("{error}");
    }
}

/// The property fails for some case of each planted bug: it can see what it is there to see.
pub(crate) fn catches<M: Copy + std::fmt::Debug, S: Strategy>(
    mutants: &[M],
    strategy: impl Fn() -> S,
    property: impl Fn(M, S::Value) -> Result<(), TestCaseError>,
) {
    for &mutant in mutants {
        let caught = run(strategy(), 0, |case| property(mutant, case)).is_err();
        assert!(caught, "nothing notices {mutant:?}");
    }
}
