//! A circuit breaker that remembers across a restart: `cargo run --example restore --all-features`

use mainstay::{CircuitBreaker, circuit_breaker::Snapshot};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = CircuitBreaker::config().name("search").minimum_calls(5);

    let breaker = config.clone().build()?;
    for _ in 0..5 {
        let _failed = breaker.call(|| async { Err::<(), _>("down") }).await;
    }
    let saved = serde_json::to_string_pretty(&breaker.snapshot())?;
    println!("before the restart: {saved}");
    drop(breaker);

    // A new process does not have to learn again that the dependency is down.
    let snapshot: Snapshot = serde_json::from_str(&saved)?;
    let breaker = config.restore(&snapshot).build()?;
    println!("after it: {:?}, for another {:?}", breaker.state(), breaker.snapshot().remaining_wait);
    Ok(())
}
