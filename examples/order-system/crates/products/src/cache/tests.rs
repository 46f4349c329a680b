//! What the cache promises, with times and orders of events that no test from outside could have.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::future::join_all;
use order_kit::{ApiError, Cents};
use tokio::{sync::Notify, time::advance};

use super::{CHANGE_TTL, Cache, Cached, From, Kept, Local, *};
use crate::wire::Product;

fn teapot(version: i64) -> Versioned {
    let product = Product {
        id: "teapot".to_owned(),
        name: "Teapot".to_owned(),
        price: Cents(version),
        created_at: "2026-11-26T03:40:00.000Z".to_owned(),
    };
    Versioned { version, product }
}

type Loaded = Result<Option<Versioned>, ApiError>;

async fn is(version: i64) -> Loaded {
    Ok(Some(teapot(version)))
}

async fn not_asked() -> Loaded {
    panic!("the cache has it")
}

fn local() -> Cached {
    Cached::new(Arc::new(Local::new()))
}

#[tokio::test(start_paused = true)]
async fn a_copy_in_memory_is_good_for_ten_seconds() {
    let cached = local();
    assert_eq!(cached.get("teapot", is(1)).await.unwrap(), Some((teapot(1), From::Database)));
    advance(local::TTL - Duration::from_millis(1)).await;
    assert_eq!(cached.get("teapot", not_asked()).await.unwrap(), Some((teapot(1), From::Cache)));
    advance(Duration::from_millis(1)).await;
    assert_eq!(cached.get("teapot", is(1)).await.unwrap(), Some((teapot(1), From::Database)));
}

/// A hundred ask while the database is slow: how often it is asked.
async fn readings(get: impl AsyncFn(&AtomicUsize, &Notify)) -> usize {
    let (read, go) = (AtomicUsize::new(0), Notify::new());
    let all = join_all((0..100).map(|_| get(&read, &go)));
    // All have asked before the first is answered.
    let answer = async {
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        go.notify_waiters();
    };
    futures::join!(all, answer);
    read.load(Ordering::Relaxed)
}

async fn slow(read: &AtomicUsize, go: &Notify) -> Loaded {
    read.fetch_add(1, Ordering::Relaxed);
    go.notified().await;
    is(1).await
}

#[tokio::test]
async fn a_hundred_who_miss_at_once_are_one_reading() {
    let cached = local();
    let together = readings(async |read, go| {
        assert_eq!(cached.get("teapot", slow(read, go)).await.unwrap().unwrap().0, teapot(1));
    });
    assert_eq!(together.await, 1);
    // The twin without it: a place that is asked, read past, and filled.
    let place = Local::new();
    let apart = readings(async |read, go| {
        if place.get("teapot").await == Kept::Nothing {
            place.put(&slow(read, go).await.unwrap().unwrap()).await;
        }
    });
    assert_eq!(apart.await, 100);
}

#[tokio::test]
async fn a_reading_that_fails_or_finds_nothing_is_not_kept() {
    let cached = local();
    let failed = cached.get("teapot", async { Err(ApiError::unavailable("not now")) }).await;
    assert_eq!(failed.unwrap_err(), ApiError::unavailable("not now"));
    assert_eq!(cached.get("teapot", async { Ok(None) }).await.unwrap(), None);
    assert_eq!(cached.get("teapot", is(1)).await.unwrap(), Some((teapot(1), From::Database)));
}

#[tokio::test]
async fn a_reader_that_goes_away_leaves_its_reading_to_the_next() {
    let cached = local();
    let mut gone = Box::pin(cached.get("teapot", std::future::pending()));
    let mut next = Box::pin(cached.get("teapot", is(1)));
    assert!(futures::poll!(&mut gone).is_pending());
    assert!(futures::poll!(&mut next).is_pending(), "it waits for the first");
    drop(gone);
    assert_eq!(next.await.unwrap(), Some((teapot(1), From::Database)));
}

/// The race that plain "read, then keep" and "write, then forget" lose: the old product would stand in the cache for an hour.
#[tokio::test]
async fn who_has_read_before_a_change_does_not_put_it_back_behind_it() {
    let cached = local();
    let (read, go) = (AtomicUsize::new(0), Notify::new());
    let mut old = Box::pin(cached.get("teapot", slow(&read, &go)));
    assert!(futures::poll!(&mut old).is_pending());
    cached.changed("teapot", 2).await;
    assert_eq!(
        cached.get("teapot", is(2)).await.unwrap(),
        Some((teapot(2), From::Database)),
        "who asks after the change does not wait for a reading from before it"
    );
    go.notify_waiters();
    assert_eq!(old.await.unwrap().unwrap().0, teapot(1), "who asked before may see what was before");
    assert_eq!(cached.get("teapot", not_asked()).await.unwrap(), Some((teapot(2), From::Cache)));
}

#[tokio::test(start_paused = true)]
async fn a_place_keeps_the_newer_whatever_comes_first() {
    for (first, second) in [(1, 2), (2, 1), (2, 2)] {
        let place = Local::new();
        place.put(&teapot(first)).await;
        place.put(&teapot(second)).await;
        assert_eq!(place.get("teapot").await, Kept::Copy(teapot(2)));
    }
    let place = Local::new();
    place.changed("teapot", 2).await;
    place.put(&teapot(1)).await;
    assert_eq!(place.get("teapot").await, Kept::Changed(2));
    place.changed("teapot", 1).await;
    assert_eq!(place.get("teapot").await, Kept::Changed(2), "news that come late are no news");
    advance(CHANGE_TTL).await;
    assert_eq!(place.get("teapot").await, Kept::Nothing);
    place.put(&teapot(1)).await;
    assert_eq!(place.get("teapot").await, Kept::Copy(teapot(1)));
}
