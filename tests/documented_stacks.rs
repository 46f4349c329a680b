//! Every stack that the README and the pages in `docs/` show is built here and called, in both forms.
#![cfg(feature = "tower")]
#![allow(missing_docs, clippy::disallowed_methods)] // Time is measured from outside.

mod support;

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use mainstay::{
    BoxedStack, Bulkhead, CircuitBreaker, ConfigError, Deadline, Error, Fallback, Keyed, Kind, Refused,
    Registry, Retry, Stack, Timeout, circuit_breaker::State, stack::List,
};
use support::*;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};

/// The stacks below, as `file: name`.
const CALLED_HERE: &[&str] = &[
    "README.md: payments",
    "README.md: users",
    "README.md: search",
    "docs/stacking.md: payments",
    "docs/stacking.md: replicas",
];

/// The blocks of Rust in a page of Markdown.
fn rust_blocks(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<(bool, String)> = None;
    for line in page.lines() {
        match (line.trim_start().strip_prefix("```"), block.take()) {
            (Some(info), None) => block = Some((info.starts_with("rust"), String::new())),
            (Some(_), Some((rust, text))) => blocks.extend(rust.then_some(text)),
            (None, Some((rust, text))) => block = Some((rust, text + line + "\n")),
            (None, None) => {}
        }
    }
    blocks
}

/// Names of the stacks that `page` builds in blocks where nothing is called through them.
fn not_called_where_shown(page: &str) -> Vec<String> {
    // A saga that runs calls through the stacks of its steps.
    let calls = [".call(", ".call_with(", ".call_marked(", ".call_once(", ".oneshot(", ".run(&"];
    let mut names = Vec::new();
    for block in rust_blocks(page) {
        if calls.iter().any(|call| block.contains(call)) {
            continue;
        }
        for rest in block.split("stack(\"").skip(1) {
            names.extend(rest.split_once('"').map(|(name, _)| name.to_owned()));
        }
    }
    names
}

#[test]
fn every_stack_of_the_readme_and_the_docs_is_called() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec!["README.md".to_owned()];
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        pages.extend(file.ends_with(".md").then(|| format!("docs/{file}")));
    }
    for page in pages {
        for name in not_called_where_shown(&fs::read_to_string(root.join(&page)).unwrap()) {
            let stack = format!("{page}: {name}");
            assert!(
                CALLED_HERE.contains(&&*stack),
                "{stack}: call it in the same block of code, or in a test of this file"
            );
        }
    }
    // What it would find.
    let shown = "```rust\nlet a = stack(\"a\").build()?;\n```\n```text\nstack(\"b\")\n```\n```rust\nstack(\"c\").build()?.call(f);\n```";
    assert_eq!(not_called_where_shown(shown), ["a"]);
}

/// Calls `stack` in both forms: one call succeeds, one fails, and both forms share what they know.
async fn called<L>(stack: &Stack<L>)
where
    L: List + mainstay::call::Run<(), u32, Failed>,
    Stack<L>: Layer<Strict>,
    <Stack<L> as Layer<Strict>>::Service: Service<u32, Response = u32, Error = Failed>,
{
    assert_eq!(stack.call(|| async { Ok::<_, Failed>(7) }).await, Ok(7));
    let declined = stack.call(|| async { Err::<u32, _>(Failed::Down) }).await;
    assert_eq!(declined, Err(Error::Inner(Failed::Down)));
    assert_eq!(stack.layer(Strict::failing(0).0).oneshot(1).await, Ok(2));
    assert_eq!(stack.layer(Strict::failing(99).0).oneshot(1).await, Err(Failed::Down));
}

/// Whether a call that hangs is given up, by whom and when.
async fn gives_up<L: mainstay::call::Run<(), u32, Failed>>(stack: &Stack<L>) -> (Kind, Duration) {
    let begun = tokio::time::Instant::now();
    match stack.call(std::future::pending::<Result<u32, Failed>>).await {
        Err(Error::Refused(refused)) => (refused.kind(), begun.elapsed()),
        other => panic!("{other:?}"),
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn the_recommended_stack_by_hand_and_in_one_call() {
    let by_hand = mainstay::stack("payments")
        .deadline(seconds(2))
        .circuit_breaker(CircuitBreaker::config())
        .retry(Retry::exponential(50 * MS))
        .bulkhead(20)
        .timeout(500 * MS)
        .build()
        .unwrap();
    called(&by_hand).await;
    assert_eq!(gives_up(&by_hand).await, (Kind::TimedOut, 500 * MS));

    let shared = mainstay::stack("payments")
        .deadline(seconds(2))
        .circuit_breaker(CircuitBreaker::config())
        .retry(Retry::exponential(50 * MS))
        .bulkhead(Bulkhead::new(20).unwrap())
        .timeout(500 * MS)
        .build()
        .unwrap();
    called(&shared).await;

    let in_one_call = mainstay::recommended("payments", seconds(2), 500 * MS, 20).unwrap();
    called(&in_one_call).await;
    assert_eq!(gives_up(&in_one_call).await, (Kind::TimedOut, 500 * MS));
    assert_eq!(format!("{by_hand:?}"), format!("{in_one_call:?}"));
}

#[tokio::test(start_paused = true)]
async fn the_readmes_tower_stack() {
    let users = mainstay::stack("users")
        .deadline(seconds(2))
        .circuit_breaker(CircuitBreaker::config())
        .retry(Retry::exponential(50 * MS))
        .timeout(500 * MS)
        .build()
        .unwrap();
    called(&users).await;
    let client = service_fn(|id: u32| async move { Ok::<_, BoxError>(format!("user {id}")) });
    let service = ServiceBuilder::new().layer(users.clone()).service(client);
    assert_eq!(service.oneshot(7).await.unwrap(), "user 7");
}

#[tokio::test(start_paused = true)]
async fn the_readmes_ways_to_keep_a_stack() {
    struct App {
        search: Stack![CircuitBreaker, Bulkhead, Timeout],
    }
    let app = App {
        search: mainstay::stack("search")
            .circuit_breaker(CircuitBreaker::config())
            .bulkhead(50)
            .timeout(200 * MS)
            .build()
            .unwrap(),
    };
    called(&app.search).await;
    assert_eq!(gives_up(&app.search).await, (Kind::TimedOut, 200 * MS));

    static PAYMENTS: LazyLock<BoxedStack<String, io::Error>> = LazyLock::new(|| {
        mainstay::stack("payments")
            .fallback(|_why| async { Ok("deferred".to_owned()) })
            .deadline(seconds(2))
            .circuit_breaker(CircuitBreaker::config())
            .build()
            .expect("the settings are constants")
            .boxed()
    });
    let refused = PAYMENTS.call(|| async { Err(io::ErrorKind::ConnectionRefused.into()) }).await;
    assert_eq!(refused.unwrap(), "deferred");
    let hung = PAYMENTS.call_marked(std::future::pending).await.unwrap();
    assert_eq!((&*hung.value, hung.degraded), ("deferred", true));
    let healthy = PAYMENTS.call_marked(|| async { Ok("receipt".to_owned()) }).await.unwrap();
    assert_eq!((&*healthy.value, healthy.degraded), ("receipt", false));

    let hosts = Keyed::new(1_000, CircuitBreaker::config().name("hosts")).unwrap();
    assert_eq!(hosts.get("eu-1.example").call(|| async { Ok::<_, ()>(200) }).await, Ok(200));
}

#[tokio::test(start_paused = true)]
async fn the_readmes_order_that_does_not_build() {
    let upside_down = mainstay::stack("payments")
        .retry(Retry::exponential(50 * MS))
        .circuit_breaker(CircuitBreaker::config())
        .build();
    assert!(matches!(upside_down, Err(ConfigError::Order { .. })));
}

#[tokio::test(start_paused = true)]
async fn the_readmes_lifted_and_observed_stacks() {
    let files = mainstay::stack("files").timeout(seconds(1)).build().unwrap();
    called(&files).await;
    let missing = service_fn(|(): ()| async { Err::<(), _>(io::Error::from(io::ErrorKind::NotFound)) });
    let service = ServiceBuilder::new().layer(files.lift()).service(missing);
    assert!(matches!(service.oneshot(()).await, Err(Error::Inner(_))));

    let (registry, heard) = (Registry::new(), Heard::default());
    let payments = mainstay::stack("payments").observe(heard.clone()).bulkhead(20).build().unwrap();
    registry.add(&payments);
    called(&payments).await;
    assert_eq!(heard.all(), [""; 0], "healthy calls emit nothing");
    let hang = std::future::pending::<Result<u32, Failed>>;
    let mut held: Vec<_> = (0..20).map(|_| Box::pin(payments.call(hang))).collect();
    for call in &mut held {
        assert!(futures::poll!(call).is_pending());
    }
    let full = payments.call(|| async { Ok::<_, Failed>(7) }).await;
    assert_eq!(full.unwrap_err().refused().map(Refused::kind), Some(Kind::BulkheadFull));
    assert_eq!(heard.count("BulkheadFull"), 1);
    assert_eq!(registry.snapshots().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_stack_that_escapes_the_check() {
    let replicas = mainstay::stack("replicas")
        .retry(Retry::exponential(10 * MS))
        .circuit_breaker(CircuitBreaker::config())
        .in_any_order()
        .build()
        .unwrap();
    called(&replicas).await;
}

/// A policy alone, with the same state in both forms.
#[tokio::test(start_paused = true)]
async fn each_policy_alone_shares_its_state_between_the_two_forms() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let down = service_fn(move |_: u32| {
        counter.fetch_add(1, Relaxed);
        async { Err::<u32, _>(Failed::Down) }
    });
    let healthy = || Strict::failing(0).0;

    let breaker = touchy().build().unwrap();
    assert_eq!(breaker.layer(down.clone()).oneshot(1).await, Err(Failed::Down));
    assert_eq!(breaker.state(), State::Open);
    assert!(matches!(breaker.call(|| async { Ok::<_, Failed>(7) }).await, Err(Error::Refused(_))));
    tokio::time::advance(100 * MS).await;
    assert_eq!(breaker.call(|| async { Ok::<_, Failed>(7) }).await, Ok(7));
    assert_eq!(breaker.layer(healthy()).oneshot(1).await, Ok(2));

    let bulkhead = Bulkhead::new(1).unwrap();
    let held = bulkhead.try_acquire().unwrap();
    assert!(bulkhead.layer(healthy()).oneshot(1).await.is_err());
    assert!(bulkhead.call(|| async { Ok::<_, Failed>(7) }).await.is_err());
    drop(held);
    assert_eq!(bulkhead.layer(healthy()).oneshot(1).await, Ok(2));

    let retry = stubborn(3).build().unwrap();
    calls.store(0, Relaxed);
    assert_eq!(retry.layer(down.clone()).oneshot(1).await, Err(Failed::Down));
    assert_eq!((calls.load(Relaxed), retry.snapshot().retries), (3, 2));
    let wrapped = retry.call(|| async { Err::<u32, _>(Failed::Down) }).await;
    assert_eq!((wrapped, retry.snapshot().retries), (Err(Error::Inner(Failed::Down)), 4));

    let hangs = service_fn(|_: u32| std::future::pending::<Result<u32, Failed>>());
    let timeout = Timeout::new(50 * MS).unwrap();
    assert!(
        matches!(timeout.layer(hangs).oneshot(1).await, Err(Failed::Refused(why)) if why.kind() == Kind::TimedOut)
    );
    assert_eq!(timeout.layer(healthy()).oneshot(1).await, Ok(2));
    let deadline = Deadline::new(50 * MS).unwrap();
    let refused = deadline.layer(hangs).oneshot(1).await;
    assert!(matches!(refused, Err(Failed::Refused(why)) if why.kind() == Kind::DeadlineExceeded));
    assert_eq!(deadline.layer(healthy()).oneshot(1).await, Ok(2));

    let fallback = Fallback::<_, u32, Failed>::value(9).limit(1);
    assert_eq!(fallback.layer(down.clone()).oneshot(1).await, Ok(9));
    assert_eq!(fallback.call(|| async { Err(Failed::Down) }).await, Ok(9));
    assert_eq!(fallback.layer(healthy()).oneshot(1).await, Ok(2));
}

/// One breaker in two stacks is one breaker.
#[tokio::test(start_paused = true)]
async fn a_policy_given_to_two_stacks_shares_its_state() {
    let breaker = touchy().build().unwrap();
    let one = mainstay::stack("one").circuit_breaker(breaker.clone()).timeout(seconds(1)).build().unwrap();
    let two = mainstay::stack("two").deadline(seconds(1)).circuit_breaker(breaker).build().unwrap();
    assert_eq!(one.layer(Strict::failing(1).0).oneshot(1).await, Err(Failed::Down));
    let refused = two.call(|| async { Ok::<_, Failed>(7) }).await;
    assert_eq!(refused.unwrap_err().refused().map(Refused::kind), Some(Kind::CircuitOpen));
}
