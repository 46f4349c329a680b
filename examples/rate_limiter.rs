//! A rate limiter for each client of a server, with what HTTP tells about it: `cargo run --example rate_limiter`

use std::time::Duration;

use mainstay::{Keyed, Kind, RateLimiter, rate_limiter::Quota};
use tokio::time::sleep;

fn fields(quota: Quota) -> String {
    format!("limit {}, remaining {}, reset {} s", quota.limit, quota.remaining, quota.reset_seconds())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Three in any half second, for each of at most 1,000 clients.
    let clients = Keyed::new(1_000, RateLimiter::config(3, Duration::from_millis(500)).name("api"))?;

    for (client, request) in [("ann", 1), ("ann", 2), ("bob", 1), ("ann", 3), ("ann", 4)] {
        let limiter = clients.get(client);
        match limiter.try_acquire() {
            Ok(permit) => {
                println!("{client} {request}: 200, {}", fields(permit.quota()));
                permit.started(); // from here on it counts
            }
            Err(refused) => {
                println!("{client} {request}: 429, {}; {refused}", fields(limiter.quota()));
                sleep(refused.retry_after().unwrap_or_default()).await;
            }
        }
    }
    assert!(clients.get("ann").try_acquire().is_ok(), "it came back when it was told to");

    // A partner who allows ten a second, five of them at once. As a policy around the call:
    let partner = RateLimiter::config(10, Duration::from_secs(1)).token_bucket(5).name("partner").build()?;
    let mut refused = 0;
    for _ in 0..8 {
        match partner.call(|| async { Ok::<_, std::io::Error>("paid") }).await {
            Ok(_) => {}
            Err(error) if error.refused().is_some_and(|why| why.kind() == Kind::RateLimited) => refused += 1,
            Err(error) => return Err(error.into()),
        }
    }
    println!("partner: {refused} of 8 refused\n{:?}", partner.snapshot());
    Ok(())
}
