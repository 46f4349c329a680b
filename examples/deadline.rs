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

    // A spawned task does not inherit the deadline. `within` carries it over; past it, nothing begins.
    let late = request
        .call_with(|attempt| {
            let client = client.clone();
            async move {
                let at = attempt.deadline().expect("the stack has a deadline");
                let task = tokio::spawn(deadline::within(at, async move {
                    sleep(Duration::from_millis(160)).await;
                    look_up(&client).await
                }));
                // The answer is not waited for: it comes after the deadline.
                Ok::<_, Error<&'static str>>(task)
            }
        })
        .await
        .map_err(Error::flatten);
    if let Ok(task) = late {
        println!("{:?}", task.await);
    }
    Ok(())
}
