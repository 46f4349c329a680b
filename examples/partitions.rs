//! Shares of one bulkhead, and how large it must be: `cargo run --example partitions`

use std::time::Duration;

use mainstay::{
    Bulkhead, ConfigError,
    bulkhead::{Partitions, sizing},
};

fn main() -> Result<(), ConfigError> {
    // How many calls are under way at 40 per second of 250 ms, and how many permits refuse only one in a thousand?
    let under_way = sizing::little(40.0, Duration::from_millis(250));
    let permits = sizing::for_blocking(under_way, 0.001)?;
    println!("{under_way} calls under way on average; {permits} permits for one refusal in a thousand");
    assert_eq!(Bulkhead::for_load(40.0, Duration::from_millis(250))?.limit(), permits);

    // Ten permits: four are guaranteed to gold and two to free, the rest is for whoever comes.
    let shares = Partitions::new(10, [("gold", 4), ("free", 2)])?;
    let (Some(gold), Some(free)) = (shares.get("gold"), shares.get("free")) else {
        unreachable!("both were just made");
    };
    let crowd: Vec<_> = std::iter::from_fn(|| free.try_acquire().ok()).collect();
    println!("free alone gets {} permits: its 2, and the 4 that nobody is guaranteed", crowd.len());
    let served: Vec<_> = std::iter::from_fn(|| gold.try_acquire().ok()).collect();
    println!("gold still gets its {}", served.len());
    Ok(())
}
