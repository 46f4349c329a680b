//! One circuit breaker per shard, bounded in number: `cargo run --example keyed`

use mainstay::{CircuitBreaker, ConfigError, Keyed, Registry};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ConfigError> {
    let shards = Keyed::new(100, CircuitBreaker::config().name("search").minimum_calls(5))?;
    let registry = Registry::new();
    registry.add(&shards);

    // One of four shards is down. One breaker for all of them would have refused three healthy ones.
    for round in 0..10 {
        for shard in ["a", "b", "c", "d"] {
            let answer = shards
                .get(shard)
                .call(|| async move { if shard == "d" { Err("down") } else { Ok(round) } })
                .await;
            if round == 9 {
                println!("shard {shard}: {answer:?}");
            }
        }
    }

    // More attentive from here on, for every shard, with the evidence that each has.
    shards.reconfigure(CircuitBreaker::config().name("search").minimum_calls(5).failure_rate(0.2))?;

    for snapshot in registry.snapshots() {
        println!("{snapshot:?}");
    }
    Ok(())
}
