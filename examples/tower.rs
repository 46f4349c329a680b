//! The same policies as tower layers, with a service's own error type: `cargo run --example tower`

use std::time::Duration;

use mainstay::{CircuitBreaker, Refused, Retry};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};

#[derive(Debug, thiserror::Error)]
enum PaymentError {
    #[error("declined")]
    Declined,
    #[error(transparent)]
    Refused(#[from] Refused),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let payments = mainstay::stack("payments")
        .deadline(Duration::from_secs(1))
        .circuit_breaker(CircuitBreaker::config().minimum_calls(3).classify_err(|error: &PaymentError| {
            match error {
                // The service works; the card does not.
                PaymentError::Declined => mainstay::circuit_breaker::Class::Success,
                PaymentError::Refused(_) => mainstay::circuit_breaker::Class::Ignored,
            }
        }))
        .retry(
            Retry::exponential(Duration::from_millis(20))
                .clone_request(|order: &u32| (*order < 100).then_some(*order)),
        )
        .timeout(Duration::from_millis(50))
        .build()?;

    let client = service_fn(|order: u32| async move {
        match order {
            7 => Err(PaymentError::Declined),
            8 => std::future::pending().await,
            _ => Ok(format!("receipt for order {order}")),
        }
    });
    let mut service = ServiceBuilder::new().layer(payments.clone()).service(client);

    for order in [1, 7, 8] {
        println!("order {order}: {:?}", service.ready().await?.call(order).await);
    }
    Ok(())
}
