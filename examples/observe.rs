//! Events as `tracing` records, and snapshots for a health check: `cargo run --example observe --all-features`

use mainstay::{CircuitBreaker, Registry};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).without_time().init();

    let registry = Registry::new();
    let payments = mainstay::stack("payments")
        .observe(mainstay::observe::Tracing)
        .circuit_breaker(CircuitBreaker::config().minimum_calls(3))
        .retry(2)
        .bulkhead(10)
        .build()?;
    registry.add(&payments);

    for _ in 0..4 {
        let _refused_or_failed = payments.call(|| async { Err::<(), _>("no route to host") }).await;
    }

    println!("\nGET /health");
    println!("{}", serde_json::to_string_pretty(&registry.snapshots())?);
    Ok(())
}
