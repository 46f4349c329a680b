//! A circuit breaker opens, probes, and lets traffic back in: `cargo run --example circuit_breaker`

use std::time::Duration;

use mainstay::{CircuitBreaker, Error, Event};
use tokio::time::sleep;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), mainstay::ConfigError> {
    let breaker = CircuitBreaker::config()
        .name("inventory")
        .count_window(20)
        .minimum_calls(10)
        .failure_rate(0.5)
        .open_wait(Duration::from_millis(200), 2.0, Duration::from_secs(1))
        .observe(|event: &Event<'_>| {
            if let Event::Transition { from, to, counts, .. } = event {
                println!(
                    "  {} -> {}: {} of {} calls failed",
                    from.as_str(),
                    to.as_str(),
                    counts.failures,
                    counts.calls
                );
            }
        })
        .build()?;

    println!("the dependency is down");
    for call in 1..=12 {
        match breaker.call(|| async { Err::<u32, _>("connection refused") }).await {
            Err(Error::Inner(error)) => println!("call {call:2}: {error}"),
            Err(Error::Refused(refused)) => println!("call {call:2}: {refused}"),
            Ok(stock) => println!("call {call:2}: {stock} in stock"),
        }
    }

    println!("the dependency is back");
    while breaker.state() != mainstay::circuit_breaker::State::Closed {
        sleep(Duration::from_millis(20)).await;
        let _answer = breaker.call(|| async { Ok::<_, &str>(3) }).await;
    }
    println!("{breaker:?}");
    Ok(())
}
