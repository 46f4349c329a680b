//! A bulkhead bounds how many calls run at once, with a short queue: `cargo run --example bulkhead`

use std::time::Duration;

use futures::future::join_all;
use mainstay::{Bulkhead, Error};
use tokio::time::sleep;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), mainstay::ConfigError> {
    // Two at once; two more may wait, each for at most 80 ms.
    let reports = Bulkhead::config(2).name("reports").queue(2, Duration::from_millis(80)).build()?;

    let render = |report: u32| {
        let reports = reports.clone();
        async move {
            let rendered = reports
                .call(|| async {
                    sleep(Duration::from_millis(50)).await;
                    Ok::<_, std::convert::Infallible>(format!("report {report}"))
                })
                .await;
            match rendered {
                Ok(report) => println!("{report} is ready"),
                Err(Error::Refused(refused)) => println!("report {report}: {refused}"),
                Err(Error::Inner(never)) => match never {},
            }
        }
    };

    join_all((1..=5).map(render)).await;
    println!("{:?}", reports.snapshot());

    // How many permits does 50 calls/s of 200 ms need, if one in a thousand may be refused?
    let sized = Bulkhead::for_load(50.0, Duration::from_millis(200))?;
    println!("50 calls/s of 200 ms: a limit of {}", sized.limit());
    Ok(())
}
