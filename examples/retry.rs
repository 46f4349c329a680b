//! A retry with a predicate, server hints and a budget: `cargo run --example retry`

use std::{cell::Cell, time::Duration};

use mainstay::{Error, Event, Retry, retry::Verdict};

#[derive(Debug)]
enum SearchError {
    Busy { retry_after: Duration },
    NotFound,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), mainstay::ConfigError> {
    let retry = Retry::exponential(Duration::from_millis(20))
        .name("search")
        .max_attempts(4)
        .when(|attempt| match attempt.error() {
            Some(SearchError::Busy { retry_after }) => Verdict::After(*retry_after),
            Some(SearchError::NotFound) | None => Verdict::Stop,
        })
        .observe(|event: &Event<'_>| println!("  {event:?}"))
        .build()?;

    println!("busy once, then an answer:");
    let calls = Cell::new(0);
    let found = retry
        .call(|| async {
            calls.set(calls.get() + 1);
            match calls.get() {
                1 => Err(SearchError::Busy { retry_after: Duration::from_millis(40) }),
                _ => Ok("a book"),
            }
        })
        .await;
    println!("{found:?} after {} calls", calls.get());

    println!("an error that no retry helps against comes back unchanged:");
    let found: Result<&str, _> = retry.call(|| async { Err(SearchError::NotFound) }).await;
    assert!(matches!(found, Err(Error::Inner(SearchError::NotFound))));

    println!("{:#?}", retry.snapshot());
    Ok(())
}
