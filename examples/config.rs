//! Settings out of a file, checked like the builders: `cargo run --example config --all-features`

use mainstay::{Timeout, bulkhead, circuit_breaker, retry};

#[derive(serde::Deserialize)]
struct Settings {
    circuit_breaker: circuit_breaker::Config,
    retry: retry::Config,
    bulkhead: bulkhead::Config,
    timeout: Timeout,
}

const FILE: &str = r#"{
    "circuit_breaker": { "window": { "time": { "length": "10s", "buckets": 10 } }, "failure_rate": 0.4, "open_wait": "250ms" },
    "retry": { "backoff": { "exponential": "50ms" }, "max_attempts": 3, "idempotent": true },
    "bulkhead": { "limit": 20, "queue": { "length": 10, "max_wait": "100ms" } },
    "timeout": "500ms"
}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let settings: Settings = serde_json::from_str(FILE)?;
    let stack = mainstay::stack("payments")
        .circuit_breaker(settings.circuit_breaker)
        .retry(settings.retry)
        .bulkhead(settings.bulkhead)
        .timeout(settings.timeout)
        .build()?;
    println!("{stack:?}\n");

    let mistake = serde_json::from_str::<bulkhead::Config>(r#"{ "limit": 0 }"#);
    println!("a limit of 0: {}", mistake.unwrap_err());
    Ok(())
}
