//! The two stacks: what stands between the shop and the services that it calls.

use std::time::Duration;

use axum::body::Body;
use mainstay::retry::Budget;
use mainstay::{Bulkhead, CircuitBreaker, ConfigError, Refused, Retry};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt};

use crate::shop::{Http, Payments, Receipt, Users};
use crate::tape::{Gauges, Listener};

/// The user call: a layer around an HTTP client.
pub fn users(policies: &Policies, http: Http, unprotected: bool) -> Result<Users, ConfigError> {
    let stack = mainstay::stack("users")
        .observe(policies.listener.clone())
        .deadline(Duration::from_secs(1))
        .circuit_breaker(policies.breaker.clone())
        .retry(policies.retry.clone())
        .bulkhead(policies.bulkhead.clone())
        .timeout(Duration::from_millis(500))
        .build()?;
    // The client has an error type of its own, which cannot say "refused": one that can takes its place.
    let http = http.map_response(|response| response.map(Body::new)).map_err(BoxError::from);
    if unprotected {
        return Ok(BoxCloneSyncService::new(http));
    }
    Ok(BoxCloneSyncService::new(ServiceBuilder::new().layer(stack).service(http)))
}

/// The payment call: a wrapper around a function, with something to say when payment cannot be reached.
pub fn payments(policies: &Policies, unprotected: bool) -> Result<Payments, ConfigError> {
    if unprotected {
        return Ok(mainstay::stack("payments").build()?.boxed());
    }
    let stack = mainstay::stack("payments")
        .observe(policies.listener.clone())
        .fallback(|why| async move { Ok(Receipt::Deferred(why.refused().map(Refused::kind))) })
        .deadline(Duration::from_secs(1))
        .circuit_breaker(policies.breaker.clone())
        .retry(policies.retry.clone())
        .bulkhead(policies.bulkhead.clone())
        .timeout(Duration::from_millis(500))
        .build()?;
    Ok(stack.boxed())
}

/// The policies with a state of their own, kept so that somebody can look at them.
#[derive(Clone)]
pub struct Policies {
    breaker: CircuitBreaker,
    retry: Retry,
    bulkhead: Bulkhead,
    listener: Listener,
}

impl Policies {
    /// The same settings for both services.
    pub fn new(name: &'static str, listener: Listener) -> Result<Self, ConfigError> {
        // Opens when half of the last 30 calls failed or took 200 ms, a hanging call as soon as it has taken that
        // long. Asks again after a quarter of a second, later every half second.
        let breaker = CircuitBreaker::config()
            .count_window(30)
            .failure_rate(0.5)
            .slow_rate(0.5, Duration::from_millis(200))
            .open_wait(Duration::from_millis(250), 2.0, Duration::from_millis(500));
        // Tries up to three times, as long as there are ten successes for each retry. What timed out may have been
        // done, so that it is only repeated because doing it twice does no harm.
        let retry = Retry::exponential(Duration::from_millis(50)).idempotent();
        // A healthy call takes a few milliseconds, so that one or two are under way at a time. A burst may wait.
        let bulkhead = Bulkhead::config(20).queue(20, Duration::from_millis(50));
        Ok(Self {
            breaker: breaker.name(name).observe(listener.clone()).build()?,
            retry: retry.name(name).observe(listener.clone()).build()?,
            bulkhead: bulkhead.name(name).observe(listener.clone()).build()?,
            listener,
        })
    }

    pub fn gauges(&self) -> Gauges {
        Gauges {
            breaker: self.breaker.state(),
            in_use: self.bulkhead.in_use(),
            limit: self.bulkhead.limit(),
            budget: self.retry.budget().map_or(f64::INFINITY, Budget::available),
        }
    }
}
