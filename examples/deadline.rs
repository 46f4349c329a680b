//! A deadline for the whole call, seen by everything inside: `cargo run --example deadline`

use std::time::Duration;

use mainstay::{Error, Retry, Stack, Timeout, backoff::Jitter, deadline};
use tokio::time::sleep;

/// A client with a stack of its own. It knows nothing of its callers, and still does not work past their deadline.
async fn look_up(client: &Stack![Retry, Timeout]) -> Result<u32, Error<&'static str>> {
    println!("  looking up with {:?} left", deadline::remaining());
    client
        .call(|| async {
            sleep(Duration::from_millis(30)).await;
            Err("try again")
        })
        .await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), mainstay::ConfigError> {
    let client = mainstay::stack("client")
        .retry(Retry::constant(Duration::from_millis(60)).jitter(Jitter::None).max_attempts(10).no_budget())
        .timeout(Duration::from_millis(100))
        .build()?;
    let request = mainstay::stack("request").deadline(Duration::from_millis(150)).build()?;

    // The client gives up by itself when its next attempt could not finish in time, and says what it knows: the last error.
    let answer = request.call(|| look_up(&client)).await.map_err(Error::flatten);
    println!("{answer:?}");
    Ok(())
}
