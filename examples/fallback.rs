//! A fallback that sees why, decides, and marks its answer: `cargo run --example fallback`

use std::time::Duration;

use mainstay::{Error, Fallback};
use tokio::time::sleep;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), mainstay::ConfigError> {
    let recommendations = mainstay::stack("recommendations")
        .fallback_with(
            Fallback::new(|why: Error<u16>| async move {
                println!("  falling back, because: {why}");
                Ok(vec!["bestseller"])
            })
            // The caller's own mistakes are its own.
            .when(|why| !matches!(why, Error::Inner(400..=499)))
            .limit(50),
        )
        .timeout(Duration::from_millis(20))
        .build()?;
    println!("{recommendations:?}\n");

    for status in [200, 503, 404] {
        let answer = recommendations
            .call_marked(|| async move { if status == 200 { Ok(vec!["for you"]) } else { Err(status) } })
            .await;
        println!("{status}: {answer:?}");
    }
    let slow = recommendations
        .call_marked(|| async {
            sleep(Duration::from_secs(1)).await;
            Ok(vec!["too late"])
        })
        .await;
    println!("slow: {slow:?}");
    Ok(())
}
