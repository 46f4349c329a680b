//! Stacks over, under and among tower's own middleware.
#![cfg(feature = "tower")]
#![allow(missing_docs, clippy::disallowed_methods)] // Time is measured from outside.

mod support;

use std::{
    hash::{BuildHasherDefault, DefaultHasher},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use futures::future::join_all;
use mainstay::{Bulkhead, CircuitBreaker, Kind, Refused, circuit_breaker::State};
use support::*;
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt,
    balance::p2c::Balance,
    buffer::Buffer,
    discover::ServiceList,
    limit::ConcurrencyLimit,
    load::{CompleteOnResponse, Constant, PendingRequests},
    service_fn,
    util::{BoxCloneService, rng::HasherRng},
};

fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<Kind> {
    error.downcast_ref::<Refused>().map(Refused::kind)
}

/// `Strict` with an error that everything in tower can pass on.
fn boxing(strict: Strict) -> impl Service<u32, Response = u32, Error = BoxError, Future: Send> + Clone {
    strict.map_err(BoxError::from)
}

#[tokio::test(start_paused = true)]
async fn over_a_buffer_and_under_one() {
    let (strict, record) = Strict::failing(2);
    let over = full().layer(Buffer::new(strict, 3));
    assert_eq!(over.clone().oneshot(1).await.unwrap(), 2);
    assert_eq!(record.calls(), 3);
    let answers = join_all((0..10).map(|request| over.clone().oneshot(request))).await;
    assert!(answers.into_iter().map(Result::unwrap).eq(1..11));

    let (strict, record) = Strict::failing(2);
    let under = Buffer::new(full().layer(strict), 3);
    let answers = join_all((0..10).map(|request| under.clone().oneshot(request))).await;
    assert!(answers.into_iter().map(Result::unwrap).eq(1..11));
    assert_eq!(record.calls(), 12);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_crosses_a_buffer() {
    let service = Buffer::new(open().layer(Strict::failing(0).0), 3);
    let error = service.oneshot(1).await.unwrap_err();
    assert_eq!(error.downcast_ref::<Failed>().unwrap().to_string(), error.to_string());
    let service = full().layer(Buffer::new(open().layer(boxing(Strict::failing(0).0)), 3));
    assert_eq!(refusal(&*service.oneshot(1).await.unwrap_err()), Some(Kind::CircuitOpen));
}

#[tokio::test(start_paused = true)]
async fn over_a_concurrency_limit_and_under_one() {
    for round in 0..2 {
        let running = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let slow = service_fn({
            let (running, most) = (running.clone(), most.clone());
            move |request: u32| {
                let (running, most) = (running.clone(), most.clone());
                async move {
                    most.fetch_max(running.fetch_add(1, Relaxed) + 1, Relaxed);
                    tokio::time::sleep(10 * MS).await;
                    running.fetch_sub(1, Relaxed);
                    Ok::<_, Failed>(request + 1)
                }
            }
        });
        let answers = if round == 0 {
            let service = full().layer(ConcurrencyLimit::new(slow, 2));
            join_all((0..8).map(|request| service.clone().oneshot(request))).await
        } else {
            let service = ConcurrencyLimit::new(full().layer(slow), 2);
            join_all((0..8).map(|request| service.clone().oneshot(request))).await
        };
        assert!(answers.into_iter().map(Result::unwrap).eq(1..9));
        assert_eq!((most.load(Relaxed), running.load(Relaxed)), (2, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_gives_up_its_place_in_a_concurrency_limit_while_it_waits() {
    let (strict, _) = Strict::failing(1);
    let mut service = stubborn(2).build().unwrap().layer(ConcurrencyLimit::new(strict, 1));
    let first = tokio::spawn(service.ready().await.unwrap().call(1));
    tokio::time::sleep(5 * MS).await;
    // The first call is in its backoff of 10 ms.
    let begun = tokio::time::Instant::now();
    assert_eq!(service.oneshot(2).await, Ok(3));
    assert!(begun.elapsed() < 5 * MS);
    assert_eq!(first.await.unwrap(), Ok(2));
}

#[tokio::test(start_paused = true)]
async fn around_the_endpoints_of_a_balancer_and_around_the_balancer() {
    let breakers: Vec<_> = (0..2).map(|_| touchy().build().unwrap()).collect();
    let (healthy, healthy_record) = Strict::failing(0);
    let (broken, broken_record) = Strict::failing(usize::MAX);
    let endpoint = |breaker: &CircuitBreaker, strict| {
        let stack =
            mainstay::stack("endpoint").circuit_breaker(breaker.clone()).timeout(50 * MS).build().unwrap();
        PendingRequests::new(stack.layer(boxing(strict)), CompleteOnResponse::default())
    };
    let endpoints = vec![endpoint(&breakers[0], healthy), endpoint(&breakers[1], broken)];
    // The same choices in every run.
    let chance = HasherRng::with_hasher(BuildHasherDefault::<DefaultHasher>::default());
    let balancer = Balance::from_rng(ServiceList::new(endpoints), chance);

    // A refusal of the broken endpoint is a reason to ask another one, since nothing was started.
    let around = mainstay::stack("around")
        .deadline(10_000 * MS)
        .circuit_breaker(CircuitBreaker::config())
        .retry(stubborn(50).repeat_refusals().idempotent())
        .timeout(1_000 * MS)
        .in_any_order()
        .build()
        .unwrap();
    let service = around.layer(Buffer::new(balancer, 10));
    for request in 0..20 {
        assert_eq!(service.clone().oneshot(request).await.unwrap(), request + 1);
    }
    assert_eq!(healthy_record.calls(), 20);
    assert_eq!(breakers[0].state(), State::Closed);
    // At most the call that tripped it, and probes 50 to 100 ms apart.
    let probes = broken_record.calls();
    assert!((1..20).contains(&probes), "{probes}");
}

#[tokio::test(start_paused = true)]
async fn a_stack_is_an_endpoint_with_any_measure_of_load() {
    let service = Constant::new(full().layer(boxing(Strict::failing(0).0)), 1);
    let balancer = Balance::new(ServiceList::new(vec![service]));
    assert_eq!(balancer.oneshot(1).await.unwrap(), 2);
}

#[tokio::test(start_paused = true)]
async fn as_a_boxed_clone_service_on_both_sides() {
    let (strict, record) = Strict::failing(2);
    let inner: BoxCloneService<u32, u32, Failed> = BoxCloneService::new(strict);
    let outer: BoxCloneService<u32, u32, Failed> = BoxCloneService::new(full().layer(inner));
    let answers = join_all((0..5).map(|request| outer.clone().oneshot(request))).await;
    assert!(answers.into_iter().map(Result::unwrap).eq(1..6));
    assert_eq!((record.calls(), record.reserved()), (7, 0));
}

#[tokio::test(start_paused = true)]
async fn in_a_service_builder_among_others() {
    let (strict, record) = Strict::failing(1);
    let bulkhead = Bulkhead::new(5).unwrap();
    let service = ServiceBuilder::new()
        .buffer(5)
        .layer(full())
        .concurrency_limit(3)
        .layer(bulkhead.clone())
        .map_request(|request: u32| request * 10)
        .map_err(BoxError::from)
        .layer(stubborn(2).build().unwrap())
        .service(strict);
    assert_eq!(service.clone().oneshot(4).await.unwrap(), 41);
    let held = (0..5).map(|_| bulkhead.try_acquire().unwrap()).collect::<Vec<_>>();
    assert_eq!(refusal(&*service.clone().oneshot(4).await.unwrap_err()), Some(Kind::BulkheadFull));
    drop(held);
    assert_eq!(service.oneshot(5).await.unwrap(), 51);
    assert_eq!((record.calls(), bulkhead.in_use()), (3, 0));
}
