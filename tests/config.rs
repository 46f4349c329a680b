//! Settings: impossible ones are refused in code and in files alike, with the field, the value and the range; possible
//! ones survive being written and read.
#![cfg(feature = "serde")]
#![allow(missing_docs)]

use std::{fmt::Debug, time::Duration};

use mainstay::{
    Bulkhead, CircuitBreaker, ConfigError, Deadline, Keyed, RateLimiter, Retry, Timeout,
    backoff::Jitter,
    bulkhead,
    circuit_breaker::{self, Verdict, Window},
    rate_limiter,
    retry::{self, Budget, BudgetConfig},
};
use proptest::prelude::*;
use serde::{
    Deserialize, Serialize,
    de::{
        DeserializeOwned,
        value::{Error as ValueError, MapDeserializer},
    },
};
use serde_json::{Value, json};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// One impossible value: what code says, what a file says, and how both are answered.
struct Impossible {
    field: &'static str,
    value: &'static str,
    allowed: &'static str,
    built: Result<(), ConfigError>,
    /// `None` where a file cannot say it.
    read: Option<Result<(), String>>,
}

fn case<B, F: DeserializeOwned>(
    field: &'static str,
    value: &'static str,
    allowed: &'static str,
    built: Result<B, ConfigError>,
    file: Option<Value>,
) -> Impossible {
    let read = |file| serde_json::from_value::<F>(file).map(|_| ()).map_err(|error| error.to_string());
    Impossible { field, value, allowed, built: built.map(|_| ()), read: file.map(read) }
}

fn breaker(
    field: &'static str,
    value: &'static str,
    allowed: &'static str,
    config: circuit_breaker::Config,
    file: impl Into<Option<Value>>,
) -> Impossible {
    case::<_, circuit_breaker::Config>(field, value, allowed, config.build(), file.into())
}

fn limiter(
    field: &'static str,
    value: &'static str,
    allowed: &'static str,
    config: rate_limiter::Config,
    file: Value,
) -> Impossible {
    case::<_, rate_limiter::Config>(field, value, allowed, config.build(), Some(file))
}

fn retry_case(
    field: &'static str,
    value: &'static str,
    allowed: &'static str,
    config: retry::Config,
    file: impl Into<Option<Value>>,
) -> Impossible {
    case::<_, retry::Config>(field, value, allowed, config.build(), file.into())
}

fn budget(
    field: &'static str,
    value: &'static str,
    allowed: &'static str,
    config: BudgetConfig,
    file: impl Into<Option<Value>>,
) -> Impossible {
    let file = file.into().map(|budget: Value| json!({ "budget": budget }));
    case::<_, retry::Config>(field, value, allowed, config.build(), file)
}

fn impossible() -> Vec<Impossible> {
    let cb = CircuitBreaker::config;
    let exp = || Retry::exponential(50 * MS);
    let zero = Duration::ZERO;
    let rate = "a number above 0.0 and up to 1.0";
    let above_zero = "a duration above zero";
    vec![
        // --- circuit breaker
        breaker(
            "circuit_breaker.window.count",
            "0",
            "1 or more",
            cb().count_window(0),
            json!({"window": {"count": 0}}),
        ),
        breaker(
            "circuit_breaker.window.time.length",
            "0ns",
            above_zero,
            cb().time_window(zero, 1),
            json!({"window": {"time": {"length": "0s", "buckets": 1}}}),
        ),
        breaker(
            "circuit_breaker.window.time.buckets",
            "0",
            "1 to 1000",
            cb().time_window(S, 0),
            json!({"window": {"time": {"length": "1s", "buckets": 0}}}),
        ),
        breaker(
            "circuit_breaker.window.time.buckets",
            "1001",
            "1 to 1000",
            cb().time_window(S, 1_001),
            json!({"window": {"time": {"length": "1s", "buckets": 1_001}}}),
        ),
        breaker(
            "circuit_breaker.window.time.buckets",
            "4",
            "1 to 3",
            cb().time_window(Duration::from_nanos(3), 4),
            json!({"window": {"time": {"length": "3ns", "buckets": 4}}}),
        ),
        breaker(
            "circuit_breaker.minimum_calls",
            "0",
            "1 or more",
            cb().minimum_calls(0),
            json!({"minimum_calls": 0}),
        ),
        breaker(
            "circuit_breaker.minimum_calls",
            "11",
            "1 to 10, the size of the count window",
            cb().count_window(10).minimum_calls(11),
            json!({"window": {"count": 10}, "minimum_calls": 11}),
        ),
        breaker(
            "circuit_breaker.failure_rate",
            "0.0",
            rate,
            cb().failure_rate(0.0),
            json!({"failure_rate": 0.0}),
        ),
        breaker(
            "circuit_breaker.failure_rate",
            "-0.5",
            rate,
            cb().failure_rate(-0.5),
            json!({"failure_rate": -0.5}),
        ),
        breaker(
            "circuit_breaker.failure_rate",
            "1.5",
            rate,
            cb().failure_rate(1.5),
            json!({"failure_rate": 1.5}),
        ),
        breaker("circuit_breaker.failure_rate", "NaN", rate, cb().failure_rate(f64::NAN), None),
        breaker("circuit_breaker.failure_rate", "inf", rate, cb().failure_rate(f64::INFINITY), None),
        breaker(
            "circuit_breaker.slow_rate.rate",
            "0.0",
            rate,
            cb().slow_rate(0.0, S),
            json!({"slow_rate": {"rate": 0.0, "threshold": "1s"}}),
        ),
        breaker(
            "circuit_breaker.slow_rate.rate",
            "1.01",
            rate,
            cb().slow_rate(1.01, S),
            json!({"slow_rate": {"rate": 1.01, "threshold": "1s"}}),
        ),
        breaker("circuit_breaker.slow_rate.rate", "NaN", rate, cb().slow_rate(f64::NAN, S), None),
        breaker(
            "circuit_breaker.slow_rate.threshold",
            "0ns",
            above_zero,
            cb().slow_rate(0.5, zero),
            json!({"slow_rate": {"rate": 0.5, "threshold": "0s"}}),
        ),
        breaker(
            "circuit_breaker.consecutive_failures",
            "0",
            "1 or more",
            cb().consecutive_failures(0),
            json!({"consecutive_failures": 0}),
        ),
        breaker(
            "circuit_breaker.consecutive_failures_within.failures",
            "0",
            "1 to 1000",
            cb().consecutive_failures_within(0, S),
            json!({"consecutive_failures_within": {"failures": 0, "time": "1s"}}),
        ),
        breaker(
            "circuit_breaker.consecutive_failures_within.failures",
            "1001",
            "1 to 1000",
            cb().consecutive_failures_within(1_001, S),
            json!({"consecutive_failures_within": {"failures": 1_001, "time": "1s"}}),
        ),
        breaker(
            "circuit_breaker.consecutive_failures_within.time",
            "0ns",
            above_zero,
            cb().consecutive_failures_within(5, zero),
            json!({"consecutive_failures_within": {"failures": 5, "time": "0s"}}),
        ),
        breaker(
            "circuit_breaker.failures_of_last.calls",
            "0",
            "1 or more",
            cb().failures_of_last(1, 0),
            json!({"failures_of_last": {"failures": 1, "calls": 0}}),
        ),
        breaker(
            "circuit_breaker.failures_of_last.failures",
            "0",
            "1 to 5, the number of calls it is taken of",
            cb().failures_of_last(0, 5),
            json!({"failures_of_last": {"failures": 0, "calls": 5}}),
        ),
        breaker(
            "circuit_breaker.failures_of_last.failures",
            "6",
            "1 to 5, the number of calls it is taken of",
            cb().failures_of_last(6, 5),
            json!({"failures_of_last": {"failures": 6, "calls": 5}}),
        ),
        breaker("circuit_breaker.probes", "0", "1 or more", cb().probes(0), json!({"probes": 0})),
        breaker(
            "circuit_breaker.probe_verdict",
            "0.0",
            rate,
            cb().probe_verdict(Verdict::Rate(0.0)),
            json!({"probe_verdict": {"rate": 0.0}}),
        ),
        breaker(
            "circuit_breaker.probe_verdict",
            "2.0",
            rate,
            cb().probe_verdict(Verdict::Rate(2.0)),
            json!({"probe_verdict": {"rate": 2.0}}),
        ),
        breaker(
            "circuit_breaker.probe_verdict",
            "NaN",
            rate,
            cb().probe_verdict(Verdict::Rate(f64::NAN)),
            None,
        ),
        breaker(
            "circuit_breaker.probe_timeout",
            "0ns",
            above_zero,
            cb().probe_timeout(zero),
            json!({"probe_timeout": "0s"}),
        ),
        breaker(
            "circuit_breaker.open_wait",
            "0ns",
            above_zero,
            cb().open_wait(zero, 2.0, S),
            json!({"open_wait": "0s"}),
        ),
        breaker(
            "circuit_breaker.open_wait_jitter",
            "1.5",
            "a number from 0.0 to 1.0",
            cb().open_wait_jitter(1.5),
            json!({"open_wait_jitter": 1.5}),
        ),
        breaker(
            "circuit_breaker.open_wait_jitter",
            "NaN",
            "a number from 0.0 to 1.0",
            cb().open_wait_jitter(f64::NAN),
            None,
        ),
        breaker(
            "circuit_breaker.open_wait_growth",
            "0.9",
            "a number from 1.0",
            cb().open_wait(S, 0.9, S),
            json!({"open_wait": "1s", "open_wait_growth": 0.9}),
        ),
        breaker(
            "circuit_breaker.open_wait_growth",
            "NaN",
            "a number from 1.0",
            cb().open_wait(S, f64::NAN, S),
            None,
        ),
        breaker(
            "circuit_breaker.open_wait_growth",
            "inf",
            "a number from 1.0",
            cb().open_wait(S, f64::INFINITY, S),
            None,
        ),
        breaker(
            "circuit_breaker.open_wait_max",
            "500ms",
            "1s or more, the first wait",
            cb().open_wait(S, 2.0, 500 * MS),
            json!({"open_wait": "1s", "open_wait_max": "500ms"}),
        ),
        breaker(
            "circuit_breaker.open_for_max",
            "0ns",
            above_zero,
            cb().open_for_max(zero),
            json!({"open_for_max": "0s"}),
        ),
        breaker("circuit_breaker.ramp", "0", "1 or more", cb().ramp(0), json!({"ramp": 0})),
        // --- bulkhead
        case::<_, bulkhead::Config>(
            "bulkhead.limit",
            "0",
            "1 or more",
            Bulkhead::config(0).build(),
            Some(json!({"limit": 0})),
        ),
        case::<_, bulkhead::Config>(
            "bulkhead.queue.length",
            "0",
            "1 or more",
            Bulkhead::config(1).queue(0, S).build(),
            Some(json!({"limit": 1, "queue": {"length": 0, "max_wait": "1s"}})),
        ),
        case::<_, bulkhead::Config>(
            "bulkhead.queue.max_wait",
            "0ns",
            above_zero,
            Bulkhead::config(1).queue(1, zero).build(),
            Some(json!({"limit": 1, "queue": {"length": 1, "max_wait": "0s"}})),
        ),
        case::<_, bulkhead::Config>(
            "bulkhead.rate_per_s",
            "0.0",
            "above 0",
            Bulkhead::for_load(0.0, S),
            None,
        ),
        case::<_, bulkhead::Config>(
            "bulkhead.rate_per_s",
            "NaN",
            "above 0",
            Bulkhead::for_load(f64::NAN, S),
            None,
        ),
        case::<_, bulkhead::Config>("bulkhead.p99", "0ns", above_zero, Bulkhead::for_load(1.0, zero), None),
        case::<_, bulkhead::Config>(
            "keyed.capacity",
            "0",
            "1 or more",
            Keyed::<String, _>::new(0, Bulkhead::config(1)),
            None,
        ),
        // --- rate limiter
        limiter(
            "rate_limiter.limit",
            "0",
            "1 or more",
            RateLimiter::config(0, S),
            json!({"limit": 0, "window": "1s"}),
        ),
        limiter(
            "rate_limiter.limit",
            "1000001",
            "1 to 1000000 for a sliding window",
            RateLimiter::config(1_000_001, S),
            json!({"limit": 1_000_001, "window": "1s"}),
        ),
        limiter(
            "rate_limiter.window",
            "0ns",
            above_zero,
            RateLimiter::config(1, zero),
            json!({"limit": 1, "window": "0s"}),
        ),
        limiter(
            "rate_limiter.burst",
            "0",
            "1 or more",
            RateLimiter::config(1, S).token_bucket(0),
            json!({"limit": 1, "window": "1s", "algorithm": {"token_bucket": {"burst": 0}}}),
        ),
        // --- retry
        retry_case(
            "retry.base",
            "0ns",
            above_zero,
            Retry::exponential(zero),
            json!({"backoff": {"exponential": "0s"}}),
        ),
        retry_case(
            "retry.step",
            "0ns",
            above_zero,
            Retry::linear(zero),
            json!({"backoff": {"linear": "0s"}}),
        ),
        retry_case(
            "retry.sequence",
            "[]",
            "at least one wait",
            Retry::sequence([]),
            json!({"backoff": {"sequence": []}}),
        ),
        retry_case(
            "retry.factor",
            "0.5",
            "a finite number from 1",
            exp().factor(0.5),
            json!({"factor": 0.5}),
        ),
        retry_case("retry.factor", "NaN", "a finite number from 1", exp().factor(f64::NAN), None),
        retry_case("retry.factor", "inf", "a finite number from 1", exp().factor(f64::INFINITY), None),
        retry_case(
            "retry.cap",
            "40ms",
            "at least the longest wait of the schedule, 50ms",
            exp().cap(40 * MS),
            json!({"backoff": {"exponential": "50ms"}, "cap": "40ms"}),
        ),
        retry_case(
            "retry.cap",
            "2ms",
            "at least the longest wait of the schedule, 3ms",
            Retry::sequence([MS, 3 * MS]).cap(2 * MS),
            json!({"backoff": {"sequence": ["1ms", "3ms"]}, "cap": "2ms"}),
        ),
        retry_case(
            "retry.max_attempts",
            "0",
            "a number from 1, the first attempt included",
            exp().max_attempts(0),
            json!({"max_attempts": 0}),
        ),
        retry_case(
            "retry.total_time",
            "0ns",
            above_zero,
            exp().total_time(zero),
            json!({"total_time": "0s"}),
        ),
        // --- budget
        budget(
            "retry.budget.ratio",
            "-0.1",
            "a number from 0 to 1",
            Budget::config().ratio(-0.1),
            json!({"ratio": -0.1}),
        ),
        budget(
            "retry.budget.ratio",
            "1.5",
            "a number from 0 to 1",
            Budget::config().ratio(1.5),
            json!({"ratio": 1.5}),
        ),
        budget("retry.budget.ratio", "NaN", "a number from 0 to 1", Budget::config().ratio(f64::NAN), None),
        budget(
            "retry.budget.ratio",
            "0.0001",
            "0, or a number from 0.0005 to 1",
            Budget::config().ratio(0.0001),
            json!({"ratio": 0.0001}),
        ),
        budget(
            "retry.budget.window",
            "0ns",
            above_zero,
            Budget::config().window(zero),
            json!({"window": "0s"}),
        ),
        budget(
            "retry.budget.max",
            "0",
            "a number from 1",
            Budget::config().min(0).max(0),
            json!({"min": 0, "max": 0}),
        ),
        budget(
            "retry.budget.min",
            "6",
            "0..=5, the largest capacity",
            Budget::config().min(6).max(5),
            json!({"min": 6, "max": 5}),
        ),
        // --- timeout, deadline
        case::<_, Timeout>("timeout.limit", "0ns", above_zero, Timeout::new(zero), Some(json!("0s"))),
        case::<_, Deadline>("deadline.limit", "0ns", above_zero, Deadline::new(zero), Some(json!("0ms"))),
    ]
}

#[test]
fn impossible_settings_are_refused_with_field_value_and_range() {
    for Impossible { field, value, allowed, built, read } in impossible() {
        let message = format!("{field} = {value} is not possible: allowed is {allowed}");
        let error = built.expect_err(&message);
        assert_eq!(error.to_string(), message);
        let parts = ConfigError::Setting { field, value: value.to_owned(), allowed: allowed.to_owned() };
        assert_eq!(error, parts);
        if let Some(read) = read {
            assert_eq!(read.expect_err(&message), message, "a file says the same");
        }
    }
}

#[test]
fn numbers_that_json_cannot_write_are_refused_too() {
    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let file = || MapDeserializer::<_, ValueError>::new([("factor", number)].into_iter());
        let error = retry::Config::deserialize(file()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("retry.factor = {number:?} is not possible")), "{error}");
        let file = || MapDeserializer::<_, ValueError>::new([("open_wait_growth", number)].into_iter());
        let error = circuit_breaker::Config::deserialize(file()).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("circuit_breaker.open_wait_growth = {number:?} is not")),
            "{error}"
        );
    }
}

#[test]
fn an_impossible_setting_of_a_stack_is_refused_when_it_is_built() {
    let field = |error: ConfigError| match error {
        ConfigError::Setting { field, .. } => field,
        other => panic!("{other}"),
    };
    let stack = || mainstay::stack("s");
    let zero = Duration::ZERO;
    assert_eq!(field(stack().timeout(zero).build().unwrap_err()), "timeout.limit");
    assert_eq!(field(stack().deadline(zero).build().unwrap_err()), "deadline.limit");
    assert_eq!(field(stack().bulkhead(0).build().unwrap_err()), "bulkhead.limit");
    assert_eq!(field(stack().retry(0).build().unwrap_err()), "retry.max_attempts");
    let breaker = stack().circuit_breaker(CircuitBreaker::config().probes(0));
    assert_eq!(
        field(breaker.timeout(zero).build().unwrap_err()),
        "circuit_breaker.probes",
        "the first of them"
    );
    assert_eq!(field(mainstay::recommended("s", zero, MS, 1).unwrap_err()), "deadline.limit");
    assert_eq!(field(mainstay::recommended("s", S, zero, 1).unwrap_err()), "timeout.limit");
    assert_eq!(field(mainstay::recommended("s", S, MS, 0).unwrap_err()), "bulkhead.limit");
}

#[test]
fn the_recommended_stacks_attempt_is_shorter_than_its_call() {
    let error = mainstay::recommended("s", 500 * MS, 2 * S, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "timeout.limit = 2s is not possible: allowed is a duration below the deadline, 500ms"
    );
    assert!(mainstay::recommended("s", S, S, 1).is_err());
    assert!(mainstay::recommended("s", S, S - Duration::from_nanos(1), 1).is_ok());
}

#[test]
fn a_field_that_does_not_exist_is_refused_by_name() {
    fn error_of<T: DeserializeOwned + Debug>(file: Value) -> String {
        serde_json::from_value::<T>(file).unwrap_err().to_string()
    }
    let unknown = "unknown field `limitt`";
    for error in [
        error_of::<circuit_breaker::Config>(json!({"limitt": 1})),
        error_of::<circuit_breaker::Config>(
            json!({"slow_rate": {"rate": 0.5, "threshold": "1s", "limitt": 1}}),
        ),
        error_of::<circuit_breaker::Config>(
            json!({"consecutive_failures_within": {"failures": 1, "time": "1s", "limitt": 1}}),
        ),
        error_of::<circuit_breaker::Config>(
            json!({"failures_of_last": {"failures": 1, "calls": 2, "limitt": 1}}),
        ),
        error_of::<circuit_breaker::Config>(
            json!({"window": {"time": {"length": "1s", "buckets": 1, "limitt": 1}}}),
        ),
        error_of::<bulkhead::Config>(json!({"limit": 1, "limitt": 1})),
        error_of::<bulkhead::Config>(
            json!({"limit": 1, "queue": {"length": 1, "max_wait": "1s", "limitt": 1}}),
        ),
        error_of::<rate_limiter::Config>(json!({"limit": 1, "window": "1s", "limitt": 1})),
        error_of::<rate_limiter::Config>(
            json!({"limit": 1, "window": "1s", "algorithm": {"token_bucket": {"burst": 1, "limitt": 1}}}),
        ),
        error_of::<retry::Config>(json!({"limitt": 1})),
        error_of::<retry::Config>(json!({"budget": {"limitt": 1}})),
        error_of::<BudgetConfig>(json!({"limitt": 1})),
    ] {
        assert!(error.starts_with(unknown), "{error}");
    }
    for error in [
        error_of::<circuit_breaker::Config>(json!({"window": {"cuont": 1}})),
        error_of::<retry::Config>(json!({"backoff": {"exponentail": "1s"}})),
        error_of::<retry::Config>(json!({"jitter": "ful"})),
        error_of::<rate_limiter::Config>(json!({"limit": 1, "window": "1s", "algorithm": "slidng"})),
    ] {
        assert!(error.starts_with("unknown variant"), "{error}");
    }
    assert!(error_of::<bulkhead::Config>(json!({})).starts_with("missing field `limit`"));
    assert!(error_of::<rate_limiter::Config>(json!({"limit": 1})).starts_with("missing field `window`"));
}

#[test]
fn a_duration_needs_its_unit() {
    for duration in [json!(500), json!("500"), json!("fast"), json!(null), json!("-1s")] {
        assert!(serde_json::from_value::<Timeout>(duration.clone()).is_err(), "{duration}");
        assert!(serde_json::from_value::<Deadline>(duration.clone()).is_err(), "{duration}");
        let retry = json!({"backoff": {"constant": duration}});
        assert!(serde_json::from_value::<retry::Config>(retry).is_err(), "{duration}");
        let limiter = json!({"limit": 1, "window": duration});
        assert!(serde_json::from_value::<rate_limiter::Config>(limiter).is_err(), "{duration}");
        let breaker = json!({"open_wait": duration});
        assert!(serde_json::from_value::<circuit_breaker::Config>(breaker).is_err(), "{duration}");
    }
}

#[test]
fn no_budget_beside_a_budget_is_refused() {
    let file = json!({"no_budget": true, "budget": {}});
    let error = serde_json::from_value::<retry::Config>(file).unwrap_err().to_string();
    assert_eq!(error, "retry.no_budget = true is not possible: allowed is false beside retry.budget");
}

#[test]
fn what_is_on_by_default_can_be_switched_off_in_a_file() {
    let read = serde_json::from_value::<circuit_breaker::Config>;
    let debug = |file| format!("{:?}", read(file).unwrap());
    let neither = format!("{:?}", CircuitBreaker::config().failure_rate(None).immediate_close());
    for file in [
        json!({"no_failure_rate": true, "immediate_close": true}),
        json!({"failure_rate": null, "ramp": null}),
        json!({"failure_rate": null, "no_failure_rate": true, "ramp": null, "immediate_close": true}),
        json!({"failure_rate": null, "no_failure_rate": false, "ramp": null, "immediate_close": false}),
    ] {
        assert_eq!(debug(file), neither);
    }
    let both = json!({"failure_rate": 0.5, "no_failure_rate": false, "ramp": 3, "immediate_close": false});
    assert_eq!(debug(both), format!("{:?}", CircuitBreaker::config()));
    // The values of the defaults, which were said all the same.
    for (file, message) in [
        (
            json!({"failure_rate": 0.5, "no_failure_rate": true}),
            "circuit_breaker.no_failure_rate = true is not possible: allowed is false beside circuit_breaker.failure_rate",
        ),
        (
            json!({"ramp": 3, "immediate_close": true}),
            "circuit_breaker.immediate_close = true is not possible: allowed is false beside circuit_breaker.ramp",
        ),
    ] {
        assert_eq!(read(file).unwrap_err().to_string(), message);
    }
}

#[test]
fn an_empty_file_is_the_defaults() {
    let same = |read: Value, built: Value| assert_eq!(read, built);
    same(
        serde_json::to_value(serde_json::from_str::<circuit_breaker::Config>("{}").unwrap()).unwrap(),
        serde_json::to_value(CircuitBreaker::config()).unwrap(),
    );
    same(
        serde_json::to_value(serde_json::from_str::<retry::Config>("{}").unwrap()).unwrap(),
        serde_json::to_value(retry::Config::default()).unwrap(),
    );
    assert_eq!(serde_json::from_str::<BudgetConfig>("{}").unwrap(), Budget::config());
}

/// The settings of a whole stack in one file, as a service would have them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payments {
    deadline: Deadline,
    circuit_breaker: circuit_breaker::Config,
    retry: retry::Config,
    bulkhead: bulkhead::Config,
    timeout: Timeout,
    fallback_limit: usize,
}

#[tokio::test(start_paused = true)]
async fn a_stack_from_a_file() {
    let file = json!({
        "deadline": "2s",
        "circuit_breaker": { "window": { "count": 10 }, "consecutive_failures": 2, "seed": 1 },
        "retry": { "backoff": { "constant": "20ms" }, "jitter": "none", "max_attempts": 2, "no_budget": true },
        "bulkhead": { "limit": 3, "name": "pool" },
        "timeout": "1h 30m",
        "fallback_limit": 5,
    });
    let settings: Payments = serde_json::from_value(file).unwrap();
    let written = serde_json::to_value(&settings).unwrap();
    assert_eq!((&written["deadline"], &written["timeout"]), (&json!("2s"), &json!("1h 30m")));
    let fallback = mainstay::Fallback::value(9).limit(settings.fallback_limit);
    let stack = mainstay::stack("payments")
        .fallback_with(fallback)
        .deadline(settings.deadline)
        .circuit_breaker(settings.circuit_breaker)
        .retry(settings.retry)
        .bulkhead(settings.bulkhead)
        .timeout(settings.timeout)
        .build()
        .unwrap();
    let mut attempts = 0;
    let answer = stack.call_marked(|| {
        attempts += 1;
        std::future::ready(Err::<u32, _>("down"))
    });
    let answer = answer.await.unwrap();
    assert_eq!((answer.value, answer.degraded, attempts), (9, true, 2));
    let drawn = format!("{stack:?}");
    for part in [
        "at most 5 at once",
        "deadline 2s for",
        "at most 2 attempts, constant 20ms",
        "bulkhead of 3",
        "timeout 5400s per",
    ] {
        assert!(drawn.contains(part), "{part:?} in\n{drawn}");
    }
}

// --- round trips

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        1 => Just(Duration::MAX),
        1 => Just(Duration::from_nanos(1)),
        8 => (0_u64..10_000_000, 0_u32..1_000_000_000).prop_map(|(s, ns)| Duration::new(s, ns.max(1))),
    ]
}

fn rate() -> impl Strategy<Value = f64> {
    // Fractions that are exact in binary, since JSON's reader may be off in the last digit of others.
    (1_u32..=1_024).prop_map(|parts| f64::from(parts) / 1_024.0)
}

prop_compose! {
    fn breaker_settings()(
        window in prop_oneof![
            (1_u32..1_000).prop_map(Window::Count),
            (duration(), 1_u32..50).prop_map(|(length, buckets)| Window::Time {
                length: length.max(Duration::from_nanos(50)), buckets
            }),
        ],
        name in proptest::option::of("[a-z]{1,8}"),
        failure in proptest::option::of(rate()),
        slow in proptest::option::of((rate(), duration())),
        consecutive in proptest::option::of(1_u32..100),
        within in proptest::option::of((1_u32..=1_000, duration())),
        of_last in proptest::option::of((1_u32..10, 10_u32..20)),
        verdict in prop_oneof![Just(Verdict::FirstFailure), rate().prop_map(Verdict::Rate)],
        waits in (duration(), duration(), rate(), duration(), duration()),
        numbers in (1_u32..100, proptest::option::of(1_u32..100), any::<bool>(), proptest::option::of(any::<u64>())),
    ) -> circuit_breaker::Config {
        let (first, other, growth, probe, open_for) = waits;
        let (probes, ramp, cancelled, seed) = numbers;
        let mut config = CircuitBreaker::config()
            .failure_rate(failure)
            .open_wait(first.min(other), 1.0 + growth, first.max(other))
            .probe_timeout(probe)
            .open_for_max(open_for)
            .probes(probes)
            .probe_verdict(verdict);
        config = match window {
            Window::Count(calls) => config.count_window(calls).minimum_calls(calls),
            Window::Time { length, buckets } => config.time_window(length, buckets),
        };
        if let Some(name) = name { config = config.name(name) }
        if let Some((rate, threshold)) = slow { config = config.slow_rate(rate, threshold) }
        if let Some(failures) = consecutive { config = config.consecutive_failures(failures) }
        if let Some((failures, time)) = within { config = config.consecutive_failures_within(failures, time) }
        if let Some((failures, calls)) = of_last { config = config.failures_of_last(failures, calls) }
        config = match ramp { Some(results) => config.ramp(results), None => config.immediate_close() };
        if cancelled { config = config.count_cancelled_as_failure() }
        if let Some(seed) = seed { config = config.seed(seed) }
        config
    }
}

prop_compose! {
    fn retry_settings()(
        shape in 0..4,
        waits in proptest::collection::vec(duration(), 1..5),
        cap in proptest::option::of(Just(Duration::MAX)),
        factor in rate(),
        jitter in prop_oneof![Just(Jitter::Full), Just(Jitter::None), Just(Jitter::Equal), Just(Jitter::Decorrelated)],
        attempts in proptest::option::of(1_u32..100),
        total in proptest::option::of(duration()),
        windows in (duration(), duration()),
        flags in any::<[bool; 3]>(),
        budget in (rate(), duration(), 0_u32..50, 50_u32..500),
        name in proptest::option::of("[a-z]{1,8}"),
        seed in proptest::option::of(any::<u64>()),
    ) -> retry::Config {
        let mut config = match shape {
            0 => Retry::constant(waits[0]),
            1 => Retry::linear(waits[0]),
            2 => Retry::exponential(waits[0]).factor(1.0 + factor),
            _ => Retry::sequence(waits),
        };
        config = config.jitter(jitter).hint_window(windows.0).throttle_base(windows.1);
        if let Some(cap) = cap { config = config.cap(cap) }
        if let Some(attempts) = attempts { config = config.max_attempts(attempts) }
        if let Some(total) = total { config = config.total_time(total) }
        if flags[0] { config = config.idempotent() }
        if flags[1] { config = config.repeat_refusals() }
        let (ratio, window, min, max) = budget;
        config = if flags[2] {
            config.no_budget()
        } else {
            let settings = Budget::config().ratio(ratio).window(window).min(min).max(max);
            config.budget(settings.build().expect("these are possible"))
        };
        if let Some(name) = name { config = config.name(name) }
        if let Some(seed) = seed { config = config.seed(seed) }
        config
    }
}

/// Written, read, written again: the same text, and the same settings as far as `Debug` shows them.
fn survives<T: Serialize + DeserializeOwned>(config: &T) -> Result<T, TestCaseError> {
    let text = serde_json::to_string(config).map_err(|error| TestCaseError::fail(error.to_string()))?;
    let read: T =
        serde_json::from_str(&text).map_err(|error| TestCaseError::fail(format!("{error} in {text}")))?;
    prop_assert_eq!(&serde_json::to_string(&read).unwrap(), &text);
    let bare: T = serde_json::from_value(without_nulls(serde_json::to_value(config).unwrap())).unwrap();
    prop_assert_eq!(&serde_json::to_string(&bare).unwrap(), &text, "in a format that has no null");
    Ok(read)
}

/// What a format that has no null makes of a value: TOML leaves such fields out.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let there = fields.into_iter().filter(|(_, value)| !value.is_null());
            there.map(|(field, value)| (field, without_nulls(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        value => value,
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: proptest::test_runner::RngSeed::Fixed(7), failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn a_breakers_settings_survive(config in breaker_settings()) {
        let read = survives(&config)?;
        prop_assert_eq!(format!("{read:?}"), format!("{config:?}"));
        prop_assert!(read.build().is_ok());
    }

    #[test]
    fn a_retrys_settings_survive(config in retry_settings()) {
        let read = survives(&config)?;
        prop_assert_eq!(
            format!("{:?}", read.build().unwrap()).replace("seed", ""),
            format!("{:?}", config.build().unwrap()).replace("seed", "")
        );
    }

    #[test]
    fn a_bulkheads_settings_survive(
        limit in 1_usize..1_000,
        queue in proptest::option::of((1_usize..100, duration())),
        name in proptest::option::of("[a-z]{1,8}"),
    ) {
        let mut config = Bulkhead::config(limit);
        if let Some((length, wait)) = queue { config = config.queue(length, wait) }
        if let Some(name) = name { config = config.name(name) }
        let read = survives(&config)?;
        prop_assert_eq!(format!("{read:?}"), format!("{config:?}"));
    }

    #[test]
    fn a_rate_limiters_settings_survive(
        limit in 1_u32..1_000_000,
        window in duration(),
        shape in 0..3,
        burst in 1_u32..,
        name in proptest::option::of("[a-z]{1,8}"),
    ) {
        let mut config = RateLimiter::config(limit, window);
        config = match shape {
            0 => config,
            1 => config.fixed_window(),
            _ => config.token_bucket(burst),
        };
        if let Some(name) = name { config = config.name(name) }
        let read = survives(&config)?;
        prop_assert_eq!(format!("{read:?}"), format!("{config:?}"));
    }

    #[test]
    fn a_budgets_settings_survive(ratio in rate(), window in duration(), min in 0_u32..50, max in 50_u32..500) {
        let config = Budget::config().ratio(ratio).window(window).min(min).max(max);
        prop_assert_eq!(survives(&config)?, config);
    }

    #[test]
    fn limits_survive(limit in duration()) {
        let (timeout, deadline) = (Timeout::new(limit).unwrap(), Deadline::new(limit).unwrap());
        prop_assert_eq!(format!("{:?}", survives(&timeout)?), format!("{timeout:?}"));
        prop_assert_eq!(format!("{:?}", survives(&deadline)?), format!("{deadline:?}"));
    }
}
