//! What a caller of a tower stack gets to see when it fails.
#![cfg(feature = "tower")]
#![allow(missing_docs)]

mod support;

use std::{
    error::Error as _,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use mainstay::{Bulkhead, Deadline, Error, Fallback, Kind, RateLimiter, Refused, Stack, Timeout};
use support::*;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

/// Every way to be refused, as a layer that refuses `hang`ing calls with that kind, and whether the call was started.
macro_rules! each_refusal {
    ($check:ident) => {{
        let full_bulkhead = Bulkhead::new(1).unwrap();
        let full_queue = Bulkhead::config(1).queue(1, 10 * MS).build().unwrap();
        let _held = (full_bulkhead.try_acquire().unwrap(), full_queue.try_acquire().unwrap());
        let stack = |name: &'static str| mainstay::stack(name);
        $check!(open(), Kind::CircuitOpen, false);
        $check!(full_bulkhead.clone(), Kind::BulkheadFull, false);
        $check!(full_queue.clone(), Kind::QueueTimeout, false);
        let limiter = RateLimiter::new(1, 1_000 * MS).unwrap();
        limiter.try_acquire().unwrap().started();
        $check!(limiter, Kind::RateLimited, false);
        $check!(Timeout::new(10 * MS).unwrap(), Kind::TimedOut, true);
        $check!(Deadline::new(10 * MS).unwrap(), Kind::DeadlineExceeded, true);
        $check!(
            stack("queue").deadline(5 * MS).bulkhead(full_queue.clone()).build().unwrap(),
            Kind::DeadlineExceeded,
            false
        );
    }};
}

async fn hang<E>(_: u32) -> Result<u32, E> {
    std::future::pending().await
}

#[tokio::test(start_paused = true)]
async fn a_box_error_passes_through_and_absorbs_refusals() {
    let answer =
        full().layer(service_fn(|_: u32| async { Err::<u32, BoxError>("own".into()) })).oneshot(1).await;
    assert_eq!(answer.unwrap_err().to_string(), "own");
    macro_rules! check {
        ($layer:expr, $kind:expr, $started:expr) => {
            let error = $layer.layer(service_fn(hang::<BoxError>)).oneshot(1).await.unwrap_err();
            let refused = error.downcast_ref::<Refused>().expect("the refusal itself, unwrapped");
            assert_eq!((refused.kind(), refused.was_started()), ($kind, $started));
            let began = if $started { "the operation may have begun" } else { "the operation was not begun" };
            assert_eq!(refused.source().map(ToString::to_string).as_deref(), Some(began));
        };
    }
    each_refusal!(check);
}

#[tokio::test(start_paused = true)]
async fn a_users_enum_passes_through_and_absorbs_refusals() {
    let answer = full().layer(service_fn(|_: u32| async { Err::<u32, _>(Failed::Down) })).oneshot(1).await;
    assert_eq!(answer, Err(Failed::Down));
    macro_rules! check {
        ($layer:expr, $kind:expr, $started:expr) => {
            match $layer.layer(service_fn(hang::<Failed>)).oneshot(1).await {
                Err(Failed::Refused(refused)) => {
                    assert_eq!((refused.kind(), refused.was_started()), ($kind, $started))
                }
                other => panic!("{other:?}"),
            }
        };
    }
    each_refusal!(check);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_error_is_lifted_by_each_policy_and_by_a_stack() {
    let not_found = || service_fn(|_: u32| async { Err::<u32, _>(io::Error::from(io::ErrorKind::NotFound)) });
    let error = full().lift().layer(not_found()).oneshot(1).await.unwrap_err();
    assert_eq!(error.inner().map(io::Error::kind), Some(io::ErrorKind::NotFound));
    assert_eq!(error.into_inner().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
    let alone = stubborn(2).build().unwrap().lift().layer(not_found()).oneshot(1).await.unwrap_err();
    assert!(alone.was_started() && alone.refused().is_none());
    macro_rules! check {
        ($layer:expr, $kind:expr, $started:expr) => {
            let error = $layer.lift().layer(service_fn(hang::<io::Error>)).oneshot(1).await.unwrap_err();
            assert_eq!(error.refused().map(Refused::kind), Some($kind));
            assert_eq!(error.was_started(), $started);
        };
    }
    each_refusal!(check);
}

#[tokio::test(start_paused = true)]
async fn a_lifted_fallback_answers_in_the_services_own_type() {
    let fallback = Fallback::<_, u32, io::Error>::new(|why: Error<io::Error>| async move {
        why.refused().map(|_| 7).ok_or(io::Error::from(io::ErrorKind::Other))
    });
    let stack = mainstay::stack("lifted").policy(fallback).timeout(10 * MS).build().unwrap();
    assert_eq!(stack.lift().layer(service_fn(hang::<io::Error>)).oneshot(1).await.unwrap(), 7);
    let failing = service_fn(|_: u32| async { Err::<u32, _>(io::Error::from(io::ErrorKind::NotFound)) });
    let error = stack.lift().layer(failing).oneshot(1).await.unwrap_err();
    assert_eq!(error.inner().map(io::Error::kind), Some(io::ErrorKind::Other));
}

/// Writing down the error's type is the check: it is the same after one policy and after twelve.
#[tokio::test(start_paused = true)]
async fn errors_do_not_nest_however_many_policies_are_stacked() {
    fn flat<S: Service<u32, Response = u32, Error = Error<io::Error>>>(service: S) -> S {
        service
    }
    let service = || service_fn(hang::<io::Error>);
    let one = flat(Timeout::new(10 * MS).unwrap().lift().layer(service()));
    // A layer around a lifted service absorbs refusals, so the error stays what it was.
    let two = flat(full().layer(full().lift().layer(service())));
    let many = flat(
        ServiceBuilder::new()
            .layer(Timeout::new(70 * MS).unwrap())
            .layer(Deadline::new(60 * MS).unwrap())
            .layer(Bulkhead::new(1).unwrap())
            .layer(full())
            .layer(stubborn(2).build().unwrap())
            .layer(touchy().build().unwrap())
            .layer(Timeout::new(10 * MS).unwrap().lift())
            .service(service()),
    );
    let kind = |answer: Result<u32, Error<io::Error>>| answer.unwrap_err().refused().map(Refused::kind);
    assert_eq!(kind(one.oneshot(1).await), Some(Kind::TimedOut));
    // The outer retries repeat what the layers inside them refuse, until the deadline; see below.
    assert_eq!(kind(two.oneshot(1).await), Some(Kind::DeadlineExceeded));
    assert!(kind(many.oneshot(1).await).is_some());
    let wrapped: Result<u32, Error<io::Error>> = full().call(|| hang(1)).await;
    assert_eq!(wrapped.unwrap_err().refused().map(Refused::kind), Some(Kind::TimedOut));
}

#[derive(Debug)]
struct Outer(io::Error);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot pay")
    }
}

impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> Vec<String> {
    std::iter::successors(Some(error), |&error| error.source()).map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn the_chain_of_sources_has_no_gap_and_no_repetition() {
    let failing = service_fn(|_: u32| async { Err::<u32, _>(Outer(io::Error::other("no route"))) });
    let error = full().lift().layer(failing).oneshot(1).await.unwrap_err();
    assert_eq!(chain(&error), ["cannot pay", "no route"]);

    let error = full().lift().layer(service_fn(hang::<Outer>)).oneshot(1).await.unwrap_err();
    assert_eq!(chain(&error), ["full: timed out", "the operation may have begun"]);

    let error = full().layer(service_fn(hang::<Failed>)).oneshot(1).await.unwrap_err();
    let expected = ["full: timed out", "the operation may have begun"];
    assert_eq!(chain(&error), expected, "transparent in the user's enum too");

    let error: BoxError = open().layer(service_fn(hang::<BoxError>)).oneshot(1).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("circuit_breaker: circuit open, retry after "), "{text}");
}

/// Layers that were added one by one do not know each other: to the outer one, a refusal of the inner one is an error of its
/// service. Composed as a stack they do.
#[tokio::test(start_paused = true)]
async fn only_in_a_stack_a_retry_tells_a_refusal_from_an_error() {
    let hanging = |calls: &Arc<AtomicUsize>| {
        let calls = calls.clone();
        service_fn(move |request: u32| {
            calls.fetch_add(1, Relaxed);
            hang::<Failed>(request)
        })
    };
    let calls = Arc::default();
    let layers = ServiceBuilder::new()
        .layer(stubborn(3).build().unwrap())
        .layer(Timeout::new(10 * MS).unwrap())
        .service(hanging(&calls));
    assert!(layers.oneshot(1).await.is_err());
    assert_eq!(calls.load(Relaxed), 3);

    let calls = Arc::default();
    let stack = mainstay::stack("stack").retry(stubborn(3)).timeout(10 * MS).build().unwrap();
    assert!(stack.layer(hanging(&calls)).oneshot(1).await.is_err());
    assert_eq!(calls.load(Relaxed), 1);

    // What can be done about it where they have to be apart.
    let calls = Arc::default();
    let knowing = stubborn(3).when(|failure: &mainstay::retry::Failure<'_, u32, Failed>| {
        matches!(failure.error(), Some(error) if !matches!(error, Failed::Refused(_)))
    });
    let layers = ServiceBuilder::new()
        .layer(knowing.build().unwrap())
        .layer(Timeout::new(10 * MS).unwrap())
        .service(hanging(&calls));
    assert!(layers.oneshot(1).await.is_err());
    assert_eq!(calls.load(Relaxed), 1);
}

/// What generic code has to write to accept any stack around any service.
async fn through<L, S>(stack: &Stack<L>, service: S) -> Result<u32, S::Error>
where
    Stack<L>: Layer<S>,
    S: Service<u32>,
    <Stack<L> as Layer<S>>::Service: Service<u32, Response = u32, Error = S::Error>,
{
    stack.layer(service).oneshot(1).await
}

#[tokio::test(start_paused = true)]
async fn generic_code_can_say_that_the_error_is_unchanged() {
    assert_eq!(
        through(&full(), service_fn(|request: u32| async move { Ok::<_, Failed>(request) })).await,
        Ok(1)
    );
}
