//! A retry in a file says the same as a retry in code.
#![cfg(feature = "serde")]

use std::time::Duration;

use mainstay::{
    Retry,
    backoff::Jitter,
    retry::{Budget, Config},
};
use serde_json::{Value, from_value, json, to_value};

fn read(value: Value) -> Result<Config, String> {
    from_value(value).map_err(|error| error.to_string())
}

#[test]
fn an_empty_file_is_the_default() {
    let read = read(json!({})).unwrap();
    assert_eq!(format!("{read:?}"), format!("{:?}", Config::default()));
}

#[test]
fn every_setting_survives_a_round_trip() {
    let ms = Duration::from_millis;
    let config = Retry::sequence([ms(50), ms(1_500)])
        .name("payments")
        .factor(3.0)
        .cap(ms(2_000))
        .jitter(Jitter::Decorrelated)
        .max_attempts(7)
        .total_time(ms(90_000))
        .idempotent()
        .repeat_refusals()
        .hint_window(ms(7))
        .throttle_base(ms(8))
        .seed(9);
    let file = to_value(&config).unwrap();
    assert_eq!(file["backoff"], json!({"sequence": ["50ms", "1s 500ms"]}));
    assert_eq!(file["total_time"], "1m 30s");
    assert_eq!(format!("{:?}", read(file).unwrap()), format!("{config:?}"));

    let unlimited = Retry::linear(ms(5)).no_budget();
    let file = to_value(&unlimited).unwrap();
    assert_eq!(format!("{:?}", read(file).unwrap()), format!("{unlimited:?}"));

    let file = json!({"backoff": {"constant": "5ms"}, "budget": {"ratio": 0.2, "window": "10s", "min": 2, "max": 9}});
    let budget = read(file).unwrap().build().unwrap();
    let expected = Budget::config().ratio(0.2).window(ms(10_000)).min(2).max(9).build().unwrap();
    assert_eq!(format!("{:?}", budget.budget().unwrap()), format!("{expected:?}"));
}

#[test]
fn a_file_is_checked_like_code_and_says_what_is_wrong() {
    for (file, expected) in [
        (json!({"max_attempts": 0}), "retry.max_attempts = 0"),
        (json!({"factor": 0.5}), "retry.factor = 0.5"),
        (json!({"backoff": {"sequence": []}}), "retry.sequence = []"),
        (json!({"backoff": {"exponential": "1s"}, "cap": "1ms"}), "retry.cap = 1ms"),
        (json!({"budget": {"ratio": 1.5}}), "retry.budget.ratio = 1.5"),
        (json!({"budget": {}, "no_budget": true}), "retry.no_budget"),
        (json!({"total_time": "0s"}), "retry.total_time = 0ns"),
        (json!({"total_time": "soon"}), "soon"),
        (json!({"atempts": 3}), "atempts"),
        (json!({"budget": {"rate": 1}}), "rate"),
    ] {
        let error = read(file.clone()).expect_err(&file.to_string());
        assert!(error.contains(expected), "{file}: {error}");
    }
}

#[test]
fn a_snapshot_can_be_written() {
    let retry = Retry::constant(Duration::ZERO).name("payments").build().unwrap();
    let snapshot = to_value(retry.snapshot()).unwrap();
    assert_eq!(snapshot["name"], "payments");
    assert_eq!(snapshot["gave_up"]["budget"], 0);
    assert_eq!(snapshot["budget"]["available"], 1.0);
}
