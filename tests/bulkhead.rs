//! The bulkhead through its public interface, on the paused clock.

use std::{
    future::{Future, pending, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use futures::FutureExt;
use mainstay::{
    Bulkhead, ConfigError, Error, Event, Kind,
    bulkhead::{Acquire, Partitions, Permit},
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

type Answer = Result<u32, Error<&'static str>>;

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn kind<T: std::fmt::Debug>(answer: Result<T, Error<&'static str>>) -> Kind {
    match answer {
        Err(Error::Refused(refused)) => refused.kind(),
        other => panic!("was not refused: {other:?}"),
    }
}

/// A waker that remembers being woken.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

impl Flag {
    fn was_woken(&self) -> bool {
        self.0.swap(false, SeqCst)
    }
}

fn poll_once<F: Future>(future: Pin<&mut F>, flag: &Arc<Flag>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(&Waker::from(flag.clone())))
}

fn one_with_queue(length: usize) -> Bulkhead {
    Bulkhead::config(1).queue(length, ms(100)).build().expect("the settings are possible")
}

#[test]
fn a_full_bulkhead_without_a_queue_refuses_at_once_and_tells_its_listeners() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = heard.clone();
    let bulkhead = Bulkhead::config(2)
        .name("payments")
        .observe(move |event: &Event<'_>| {
            if let Event::Refused { refused, .. } = event {
                log.lock().unwrap().push((refused.kind(), refused.name().to_owned()));
            }
        })
        .build()
        .unwrap();
    let _held = [bulkhead.try_acquire().unwrap(), bulkhead.try_acquire().unwrap()];

    let refused = bulkhead.try_acquire().unwrap_err();
    assert_eq!((refused.kind(), refused.name()), (Kind::BulkheadFull, "payments"));
    assert!(!refused.was_started());
    let answer: Answer = bulkhead.call(|| async { Ok(1) }).now_or_never().expect("refuses at once");
    assert_eq!(kind(answer), Kind::BulkheadFull);
    assert_eq!(*heard.lock().unwrap(), vec![(Kind::BulkheadFull, "payments".to_owned()); 2]);
}

#[test]
fn a_listener_may_use_the_bulkhead_that_reports_to_it() {
    let slot: Arc<Mutex<Option<Bulkhead>>> = Arc::default();
    let seen = slot.clone();
    let bulkhead = Bulkhead::config(1)
        .observe(move |_: &Event<'_>| {
            let bulkhead = seen.lock().unwrap().clone().expect("was put there below");
            assert_eq!(bulkhead.in_use(), 1);
        })
        .build()
        .unwrap();
    *slot.lock().unwrap() = Some(bulkhead.clone());
    let _held = bulkhead.try_acquire().unwrap();
    assert!(bulkhead.try_acquire().is_err());
    slot.lock().unwrap().take();
}

#[test]
fn impossible_settings_are_refused_when_built_with_field_value_and_range() {
    let field = |result: Result<Bulkhead, ConfigError>| match result {
        Err(ConfigError::Setting { field, value, allowed }) => {
            assert!(!allowed.is_empty());
            (field, value)
        }
        other => panic!("was accepted: {other:?}"),
    };
    assert_eq!(field(Bulkhead::new(0)), ("bulkhead.limit", "0".to_owned()));
    assert_eq!(field(Bulkhead::config(1).queue(0, ms(1)).build()), ("bulkhead.queue.length", "0".to_owned()));
    assert_eq!(
        field(Bulkhead::config(1).queue(1, Duration::ZERO).build()),
        ("bulkhead.queue.max_wait", "0ns".to_owned())
    );
    assert_eq!(field(Bulkhead::for_load(f64::NAN, ms(1))).0, "bulkhead.rate_per_s");
    assert_eq!(field(Bulkhead::for_load(1.0, Duration::ZERO)).0, "bulkhead.p99");
    assert_eq!(field(Bulkhead::for_load(1e9, ms(1000))).0, "sizing.offered_load");
    assert!(Bulkhead::new(3).unwrap().resize(0).is_err());
    assert!(mainstay::stack("s").bulkhead(0).build().is_err());
}

#[test]
fn for_load_applies_the_formulas() {
    assert_eq!(Bulkhead::for_load(200.0, ms(50)).unwrap().limit(), 21);
}

#[tokio::test(start_paused = true)]
async fn settings_beyond_all_bounds_saturate() {
    let bulkhead = Bulkhead::config(usize::MAX).queue(usize::MAX, Duration::MAX).build().unwrap();
    bulkhead.resize(1).unwrap();
    let held = bulkhead.try_acquire().unwrap();
    let waiter = bulkhead.acquire();
    let mut waiter = pin!(waiter);
    assert!(poll_once(waiter.as_mut(), &Arc::default()).is_pending());
    drop(held);
    assert!(waiter.now_or_never().expect("was handed the permit").is_ok());
}

#[test]
fn settings_given_to_a_stack_take_over_its_name_and_a_built_bulkhead_keeps_its_own() {
    let name = |stack: &mainstay::Stack<(Bulkhead, ())>| {
        let answer = stack.call(|| {
            let inner = stack.call(|| async { Ok::<u32, &str>(1) });
            async move { inner.await.map_err(|error| error.refused().unwrap().name().to_owned()) }
        });
        answer.now_or_never().unwrap().unwrap_err().into_inner().unwrap()
    };
    assert_eq!(name(&mainstay::stack("shop").bulkhead(1).build().unwrap()), "shop");
    let settings = Bulkhead::config(1);
    assert_eq!(name(&mainstay::stack("shop").bulkhead(settings).build().unwrap()), "shop");
    let settings = Bulkhead::config(1).name("own");
    assert_eq!(name(&mainstay::stack("shop").bulkhead(settings).build().unwrap()), "own");
    let built = Bulkhead::new(1).unwrap();
    assert_eq!(name(&mainstay::stack("shop").bulkhead(built).build().unwrap()), "bulkhead");
}

#[test]
fn a_stack_is_drawn_with_limit_and_queue() {
    let bulkhead = Bulkhead::config(20).queue(10, ms(100));
    let stack = mainstay::stack("shop").bulkhead(bulkhead).build().unwrap();
    assert!(format!("{stack:?}").contains("bulkhead of 20, queue of 10 for at most 100ms"));
}

#[tokio::test(start_paused = true)]
async fn waiters_run_in_the_order_in_which_they_came() {
    let bulkhead = one_with_queue(3);
    let order = Mutex::new(Vec::new());
    let call = |number: u32| {
        let (bulkhead, order) = (&bulkhead, &order);
        async move {
            let answer: Answer = bulkhead
                .call(|| async {
                    order.lock().unwrap().push(number);
                    tokio::time::sleep(ms(10)).await;
                    Ok(number)
                })
                .await;
            answer
        }
    };
    let (a, b, c, d, e) = tokio::join!(call(1), call(2), call(3), call(4), call(5));
    assert_eq!((a, b, c, d), (Ok(1), Ok(2), Ok(3), Ok(4)));
    assert_eq!(kind(e), Kind::BulkheadFull, "the queue has room for three");
    assert_eq!(*order.lock().unwrap(), [1, 2, 3, 4]);
    assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn try_acquire_does_not_overtake_those_who_wait() {
    let bulkhead = one_with_queue(1);
    let held = bulkhead.try_acquire().unwrap();
    let flag = Arc::new(Flag::default());
    let waiter = bulkhead.acquire();
    let mut waiter = pin!(waiter);
    assert!(poll_once(waiter.as_mut(), &flag).is_pending());
    drop(held);
    assert!(flag.was_woken());
    assert!(bulkhead.try_acquire().is_err(), "the permit is the waiter's");
    assert!(poll_once(waiter, &flag).is_ready());
}

#[tokio::test(start_paused = true)]
async fn the_deadline_around_a_call_bounds_the_wait() {
    let bulkhead = one_with_queue(1);
    let _held = bulkhead.try_acquire().unwrap();
    let stack = mainstay::stack("shop").deadline(ms(30)).bulkhead(bulkhead.clone()).build().unwrap();
    let started = tokio::time::Instant::now();
    let answer: Answer = stack.call(|| async { Ok(1) }).await;
    assert_eq!(kind(answer), Kind::DeadlineExceeded);
    assert_eq!(started.elapsed(), ms(30));
    assert_eq!(bulkhead.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_the_deadline_no_wait_and_no_operation_is_begun() {
    let bulkhead = one_with_queue(1);
    let past = tokio::time::Instant::now().into_std();
    tokio::time::advance(ms(1)).await;
    let call = || async {
        let answer: Answer = bulkhead.call(|| async { panic!("was begun") }).await;
        kind(answer)
    };
    let free = mainstay::deadline::within(past, call()).await;
    assert_eq!(free, Kind::DeadlineExceeded);
    let _held = bulkhead.try_acquire().unwrap();
    let full = mainstay::deadline::within(past, call()).await;
    assert_eq!(full, Kind::DeadlineExceeded);
    let gate = mainstay::deadline::within(past, bulkhead.acquire()).await;
    assert_eq!(gate.unwrap_err().kind(), Kind::DeadlineExceeded);
    assert_eq!(bulkhead.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_comes_after_the_deadline_goes_to_the_next() {
    let bulkhead = one_with_queue(2);
    let held = bulkhead.try_acquire().unwrap();
    let flags = [(); 2].map(|()| Arc::new(Flag::default()));
    let deadline = tokio::time::Instant::now().into_std() + ms(50);
    let late = mainstay::deadline::within(deadline, bulkhead.acquire());
    let mut late = pin!(late);
    let next = bulkhead.acquire();
    let mut next = pin!(next);
    assert!(poll_once(late.as_mut(), &flags[0]).is_pending());
    assert!(poll_once(next.as_mut(), &flags[1]).is_pending());
    drop(held);
    // The task of the first is slow to come round.
    tokio::time::advance(ms(60)).await;
    let Poll::Ready(Err(refused)) = poll_once(late, &flags[0]) else {
        panic!("it may not begin any more");
    };
    assert_eq!(refused.kind(), Kind::DeadlineExceeded);
    assert!(flags[1].was_woken());
    assert!(matches!(poll_once(next, &flags[1]), Poll::Ready(Ok(_))));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_is_woken_through_the_task_that_polled_it_last() {
    let bulkhead = one_with_queue(1);
    let held = bulkhead.try_acquire().unwrap();
    let (first, last) = (Arc::new(Flag::default()), Arc::new(Flag::default()));
    let waiter = bulkhead.acquire();
    let mut waiter = pin!(waiter);
    assert!(poll_once(waiter.as_mut(), &first).is_pending());
    assert!(poll_once(waiter.as_mut(), &last).is_pending());
    drop(held);
    assert!(last.was_woken() && !first.was_woken());
}

#[tokio::test(start_paused = true)]
async fn resizing_serves_waiters_at_once_and_lets_running_calls_finish() {
    let bulkhead = one_with_queue(5);
    let held = bulkhead.try_acquire().unwrap();
    let flag = Arc::new(Flag::default());
    let waiter = bulkhead.acquire();
    let mut waiter = pin!(waiter);
    assert!(poll_once(waiter.as_mut(), &flag).is_pending());
    bulkhead.resize(2).unwrap();
    assert!(flag.was_woken());
    let Poll::Ready(Ok(second)) = poll_once(waiter, &flag) else {
        panic!("was not served");
    };
    bulkhead.resize(1).unwrap();
    assert_eq!((bulkhead.in_use(), bulkhead.limit()), (2, 1));
    drop(second);
    assert!(bulkhead.try_acquire().is_err(), "one runs, and one is the limit");
    drop(held);
    assert!(bulkhead.try_acquire().is_ok());
}

/// Pending `left` times, then `Ok`; wakes itself.
async fn pends(left: u32) -> Result<u32, &'static str> {
    let mut left = left;
    poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(Ok(1));
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_at_any_await_point_leaves_nothing_behind() {
    let flag = Arc::new(Flag::default());
    for polls in 0..8 {
        // The polls before `release` wait in the queue, the others run the operation.
        for release in 0..8 {
            let bulkhead = one_with_queue(2);
            let mut held = Some(bulkhead.try_acquire().unwrap());
            {
                let call = bulkhead.call(|| pends(3));
                let mut call = pin!(call);
                for poll in 0..polls {
                    if poll == release {
                        held = None;
                    }
                    if poll_once(call.as_mut(), &flag).is_ready() {
                        break;
                    }
                }
                // Granted, and dropped before it is polled again.
                if release == polls {
                    held = None;
                }
            }
            drop(held);
            let rest = (bulkhead.in_use(), bulkhead.waiting());
            assert_eq!(rest, (0, 0), "dropped after {polls} polls, permit at {release}");
            assert!(bulkhead.try_acquire().is_ok());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_granted_waiter_that_is_dropped_wakes_the_next() {
    let bulkhead = one_with_queue(2);
    let held = bulkhead.try_acquire().unwrap();
    let flags = [(); 2].map(|()| Arc::new(Flag::default()));
    let mut first = Box::pin(bulkhead.acquire());
    let mut second = Box::pin(bulkhead.acquire());
    assert!(poll_once(first.as_mut(), &flags[0]).is_pending());
    assert!(poll_once(second.as_mut(), &flags[1]).is_pending());
    drop(held);
    assert!(flags[0].was_woken() && !flags[1].was_woken());
    drop(first);
    assert!(flags[1].was_woken());
    assert!(poll_once(second.as_mut(), &flags[1]).is_ready());
}

#[tokio::test(start_paused = true)]
async fn the_deadline_around_the_gate_bounds_its_wait_too() {
    let bulkhead = one_with_queue(1);
    let _held = bulkhead.try_acquire().unwrap();
    let started = tokio::time::Instant::now();
    let deadline = started.into_std() + ms(30);
    let gate = mainstay::deadline::within(deadline, bulkhead.acquire()).await;
    assert_eq!(gate.unwrap_err().kind(), Kind::DeadlineExceeded);
    assert_eq!(started.elapsed(), ms(30));
}

#[test]
fn an_attempt_is_gone_before_its_permit_is_free() {
    /// Looks, when it is dropped, at how many permits are in use.
    struct Looks(Bulkhead, Arc<AtomicUsize>);
    impl Drop for Looks {
        fn drop(&mut self) {
            self.1.store(self.0.in_use(), SeqCst);
        }
    }
    let bulkhead = Bulkhead::new(1).unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    let looks = || Looks(bulkhead.clone(), seen.clone());
    for waits in [false, true] {
        seen.store(0, SeqCst);
        let call = bulkhead.call(|| async {
            let _looks = looks();
            if waits {
                pending::<()>().await;
            }
            Ok::<u32, &str>(1)
        });
        assert_eq!(call.now_or_never().is_none(), waits);
        assert_eq!(seen.load(SeqCst), 1, "another could have begun beside it");
        assert_eq!(bulkhead.in_use(), 0);
    }
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("in drop");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_anywhere_inside_gives_the_permit_back() {
    let bulkhead = one_with_queue(1);
    let polled = |call: &mut dyn FnMut()| {
        let before = catch_unwind(AssertUnwindSafe(call));
        assert!(before.is_err(), "did not panic");
        assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (0, 0));
    };
    polled(&mut || {
        let start = || -> futures::future::Ready<Result<u32, &str>> { panic!("at the start") };
        drop(bulkhead.call(start).now_or_never());
    });
    polled(&mut || {
        let inside = || async { if true { panic!("inside") } else { Ok::<u32, &str>(1) } };
        drop(bulkhead.call(inside).now_or_never());
    });
    polled(&mut || {
        // Pending first, so that the panic comes from cancelling.
        let cancelled = || async {
            let _bomb = PanicsWhenDropped;
            pending::<Result<u32, &str>>().await
        };
        drop(bulkhead.call(cancelled).now_or_never());
    });
}

#[test]
fn a_listener_that_panics_leaves_the_bulkhead_exact() {
    let bulkhead = Bulkhead::config(1).observe(|_: &Event<'_>| panic!("in the listener")).build().unwrap();
    let held = bulkhead.try_acquire().unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| bulkhead.try_acquire().is_ok())).is_err());
    let call = || bulkhead.call(|| async { Ok::<u32, &str>(1) }).now_or_never();
    assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
    assert_eq!(bulkhead.in_use(), 1);
    drop(held);
    assert_eq!(bulkhead.in_use(), 0);
}

#[test]
fn waiting_without_a_runtime_panics_and_gives_the_place_back() {
    let bulkhead = one_with_queue(1);
    let _held = bulkhead.try_acquire().unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| bulkhead.acquire().now_or_never().is_some())).is_err());
    assert_eq!(bulkhead.waiting(), 0);
}

#[test]
fn an_owned_permit_outlives_the_handle_it_came_from() {
    let bulkhead = Bulkhead::new(1).unwrap();
    let other = bulkhead.clone();
    let permit = bulkhead.try_acquire().unwrap().into_owned();
    drop(bulkhead);
    assert_eq!(other.in_use(), 1);
    std::thread::spawn(move || drop(permit)).join().unwrap();
    assert_eq!(other.in_use(), 0);
}

#[test]
fn partitions_are_bulkheads_for_stacks_and_keep_their_shares() {
    let parts = Partitions::new(4, [("gold", 2), ("free", 1)]).unwrap();
    let (gold, free) = (parts.get("gold").unwrap(), parts.get("free").unwrap());
    assert_eq!((gold.limit(), free.limit()), (3, 2));
    let stack = mainstay::stack("shop").bulkhead(free.clone()).build().unwrap();
    let _held = [free.try_acquire().unwrap(), free.try_acquire().unwrap()];
    let answer: Answer = stack.call(|| async { Ok(1) }).now_or_never().unwrap();
    assert!(answer.as_ref().unwrap_err().refused().is_some_and(|why| why.name() == "free"));
    assert_eq!(kind(answer), Kind::BulkheadFull);
    let gold_held = [gold.try_acquire().unwrap(), gold.try_acquire().unwrap()];
    assert!(gold.try_acquire().is_err(), "all four are in use");
    drop(gold_held);
    assert_eq!((gold.in_use(), free.in_use()), (0, 2));
    assert!(gold.resize(3).is_err(), "a partition's limit follows from the others");
}

#[test]
fn impossible_partitions_are_refused() {
    assert!(Partitions::new(0, [("a", 0)]).is_err());
    assert!(Partitions::new(3, [("a", 2), ("b", 2)]).is_err(), "more than there is");
    assert!(Partitions::new(3, [("a", usize::MAX), ("b", 2)]).is_err(), "the sum overflows");
    assert!(Partitions::new(3, [("a", 1), ("a", 1)]).is_err(), "one name twice");
    assert!(Partitions::new(3, [("a", 1); 0]).is_err(), "no partition");
}

#[test]
fn a_partition_that_could_never_admit_a_call_is_refused() {
    let error = Partitions::new(20, [("gold", 10), ("silver", 10), ("batch", 0)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "partitions.shares = [10, 10, 0] is not possible: allowed is shares that add up to 19 at most, \
         since that of \"batch\" is 0"
    );
    for (total, shares) in [(1, [1, 0]), (1, [0, 1]), (2, [1, 1]), (2, [1, 0]), (1, [0, 0])] {
        let built = Partitions::new(total, [("a", shares[0]), ("b", shares[1])]);
        let admits = |parts: Partitions| parts.iter().all(|part| part.try_acquire().is_ok());
        assert_eq!(built.is_ok(), shares.iter().sum::<usize>() < total || !shares.contains(&0), "{shares:?}");
        assert!(built.is_err() || admits(built.unwrap()), "{total}: {shares:?}");
    }
}

#[cfg(feature = "serde")]
#[test]
fn settings_in_a_file_are_checked_like_those_in_code() {
    use mainstay::bulkhead::Config;
    let read = |text: &str| serde_json::from_str::<Config>(text);
    let config = read(r#"{"limit": 3, "queue": {"length": 2, "max_wait": "1s 500ms"}}"#).unwrap();
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(text, r#"{"limit":3,"queue":{"length":2,"max_wait":"1s 500ms"}}"#);
    for (text, says) in [
        (r#"{"limit": 0}"#, "bulkhead.limit"),
        (r#"{"limit": 3, "queue": {"length": 0, "max_wait": "1s"}}"#, "bulkhead.queue.length"),
        (r#"{"limit": 3, "queue": {"length": 2, "max_wait": "0s"}}"#, "bulkhead.queue.max_wait"),
        (r#"{"limit": 3, "queue": {"length": 2, "max_wait": "soon"}}"#, "expected a duration with its unit"),
        (r#"{"limit": 3, "permits": 3}"#, "unknown field"),
        (r#"{"limit": 3, "queue": {"length": 2, "max_wait": "1s", "order": 1}}"#, "unknown field"),
        (r#"{}"#, "missing field"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    let snapshot = serde_json::to_value(config.build().unwrap().snapshot()).unwrap();
    assert_eq!(snapshot["limit"], 3);
}

// --- a naive model of the whole handle --------------------------------------------------------------------------

/// A step of a history; the numbers choose among the permits and waiters there are.
#[derive(Debug, Clone, Copy)]
enum Step {
    TryAcquire,
    Arrive,
    Poll(usize),
    DropWaiter(usize),
    DropPermit(usize),
    Advance(u64),
    Resize(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::TryAcquire),
        4 => Just(Step::Arrive),
        4 => any::<usize>().prop_map(Step::Poll),
        2 => any::<usize>().prop_map(Step::DropWaiter),
        4 => any::<usize>().prop_map(Step::DropPermit),
        2 => (1..40_u64).prop_map(Step::Advance),
        1 => (1..6_usize).prop_map(Step::Resize),
    ];
    proptest::collection::vec(step, 0..40)
}

/// A bug put around the handle on purpose. The property must find each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    DroppedWaiterKeepsItsPlace,
    DroppedPermitIsLost,
    WaitIsLongerThanItMay,
    ResizeIsForgotten,
    QueueIsOneLonger,
    TryAcquireOvertakes,
    WakeUpIsLost,
}

/// A waiter of the model: when its wait ends, and whether it was granted a permit.
struct ModelWaiter {
    until: u64,
    granted: bool,
}

fn follows_the_model(limit: usize, room: usize, steps: &[Step], mutant: Mutant) -> Result<(), TestCaseError> {
    const MAX_WAIT: u64 = 50;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let wait = MAX_WAIT + u64::from(mutant == Mutant::WaitIsLongerThanItMay);
        let length = room + usize::from(mutant == Mutant::QueueIsOneLonger);
        let bulkhead = Bulkhead::config(limit).queue(length, ms(wait)).build().unwrap();
        let mut permits: Vec<Permit<'_>> = Vec::new();
        let mut waiters: Vec<(Pin<Box<Acquire<'_>>>, Arc<Flag>)> = Vec::new();
        let mut model: Vec<ModelWaiter> = Vec::new();
        let (mut limit, mut running, mut now) = (limit, 0, 0);
        for &step in steps {
            let in_use = running + model.iter().filter(|waiter| waiter.granted).count();
            let waiting = model.iter().filter(|waiter| !waiter.granted).count();
            match step {
                Step::TryAcquire => {
                    if mutant == Mutant::TryAcquireOvertakes && waiting > 0 && running > 0 {
                        std::mem::forget(permits.pop());
                        running -= 1;
                    }
                    let acquired = bulkhead.try_acquire();
                    prop_assert_eq!(acquired.is_ok(), in_use < limit, "try_acquire");
                    running += usize::from(acquired.is_ok());
                    permits.extend(acquired);
                }
                Step::Arrive => {
                    let flag = Arc::new(Flag::default());
                    let mut waiter = Box::pin(bulkhead.acquire());
                    match poll_once(waiter.as_mut(), &flag) {
                        Poll::Ready(Ok(permit)) => {
                            prop_assert!(in_use < limit, "the limit was exceeded");
                            running += 1;
                            permits.push(permit);
                        }
                        Poll::Ready(Err(refused)) => {
                            prop_assert_eq!(refused.kind(), Kind::BulkheadFull);
                            prop_assert!(in_use >= limit && waiting == room, "refused for nothing");
                        }
                        Poll::Pending => {
                            prop_assert!(in_use >= limit && waiting < room, "waits for nothing");
                            waiters.push((waiter, flag));
                            model.push(ModelWaiter { until: now + MAX_WAIT, granted: false });
                        }
                    }
                }
                Step::Poll(who) if !model.is_empty() => {
                    let who = who % model.len();
                    let (waiter, flag) = &mut waiters[who];
                    let ModelWaiter { until, granted } = model[who];
                    let polled = poll_once(waiter.as_mut(), flag);
                    if polled.is_pending() {
                        prop_assert!(!granted && now < until, "still waits");
                    } else {
                        drop(waiters.remove(who));
                        model.remove(who);
                    }
                    match polled {
                        Poll::Ready(Ok(permit)) => {
                            prop_assert!(granted, "a permit out of turn");
                            running += 1;
                            permits.push(permit);
                        }
                        Poll::Ready(Err(refused)) => {
                            prop_assert!(!granted && now >= until, "gave up early");
                            prop_assert_eq!(refused.kind(), Kind::QueueTimeout);
                        }
                        Poll::Pending => {}
                    }
                }
                Step::DropWaiter(who) if !model.is_empty() => {
                    let who = who % model.len();
                    let waiter = waiters.remove(who);
                    model.remove(who);
                    if mutant == Mutant::DroppedWaiterKeepsItsPlace {
                        std::mem::forget(waiter);
                    }
                }
                Step::DropPermit(which) if running > 0 => {
                    let permit = permits.swap_remove(which % permits.len());
                    running -= 1;
                    if mutant == Mutant::DroppedPermitIsLost {
                        std::mem::forget(permit);
                    }
                }
                Step::Advance(by) => {
                    now += by;
                    tokio::time::advance(ms(by)).await;
                }
                Step::Resize(to) => {
                    limit = to;
                    if mutant != Mutant::ResizeIsForgotten {
                        bulkhead.resize(to).unwrap();
                    }
                }
                _ => {}
            }
            // Whatever happened: the first of those who wait are granted what is free, and are woken.
            let mut in_use = running + model.iter().filter(|waiter| waiter.granted).count();
            for (waiter, (_, flag)) in model.iter_mut().zip(&waiters) {
                if mutant == Mutant::WakeUpIsLost {
                    flag.was_woken();
                }
                if !waiter.granted && in_use < limit {
                    waiter.granted = true;
                    in_use += 1;
                    prop_assert!(flag.was_woken(), "was granted a permit and not woken");
                }
            }
            prop_assert_eq!(bulkhead.in_use(), in_use, "in use");
            let waiting = model.iter().filter(|waiter| !waiter.granted).count();
            prop_assert_eq!(bulkhead.waiting(), waiting, "waiting");
        }
        drop((permits, waiters));
        prop_assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (0, 0), "something is left");
        Ok(())
    })
}

fn handle_property(mutant: Mutant) -> Result<(), String> {
    let cases = std::env::var("MAINSTAY_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(10_000);
    let planted = mutant != Mutant::None;
    let config = Config {
        // A planted bug may hide from a few cases.
        cases: if planted { cases.max(10_000) } else { cases },
        failure_persistence: None,
        max_shrink_iters: if planted { 0 } else { 10_000 },
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&(1..5_usize, 1..4_usize, steps()), |(limit, room, steps)| {
            follows_the_model(limit, room, &steps, mutant)
        })
        .map_err(|error| error.to_string())
}

#[test]
fn the_handle_does_what_a_naive_model_does() {
    handle_property(Mutant::None).unwrap();
}

#[test]
fn the_handle_property_finds_every_planted_bug() {
    for mutant in [
        Mutant::DroppedWaiterKeepsItsPlace,
        Mutant::DroppedPermitIsLost,
        Mutant::WaitIsLongerThanItMay,
        Mutant::ResizeIsForgotten,
        Mutant::QueueIsOneLonger,
        Mutant::TryAcquireOvertakes,
        Mutant::WakeUpIsLost,
    ] {
        assert!(handle_property(mutant).is_err(), "{mutant:?} was not found");
    }
}

// --- threads ----------------------------------------------------------------------------------------------------

const STRESS: Duration = Duration::from_millis(700);

/// Counts who is inside, and remembers the most.
#[derive(Default)]
struct Inside {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Inside {
    fn enter(&self) {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
    }

    fn leave(&self) {
        self.now.fetch_sub(1, SeqCst);
    }
}

#[test]
fn threads_that_fight_for_permits_neither_exceed_the_limit_nor_lose_one() {
    for limit in [1, 3, 8] {
        let bulkhead = Bulkhead::new(limit).unwrap();
        let inside = Inside::default();
        let end = Instant::now() + STRESS / 3;
        // Permits also change the thread, so that one thread takes what another returns.
        let (give, take) = std::sync::mpsc::channel();
        let take = Mutex::new(take);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (bulkhead, inside, give, take) = (&bulkhead, &inside, give.clone(), &take);
                scope.spawn(move || {
                    let mut own = Vec::new();
                    for round in 0_usize.. {
                        if Instant::now() > end {
                            break;
                        }
                        if let Ok(permit) = bulkhead.try_acquire() {
                            inside.enter();
                            if round % 7 == thread {
                                give.send(permit.into_owned()).unwrap();
                            } else {
                                own.push(permit);
                            }
                        }
                        if round % 3 != 0 {
                            if let Some(permit) = own.pop() {
                                inside.leave();
                                drop(permit);
                            }
                        }
                        if let Ok(permit) = take.lock().unwrap().try_recv() {
                            inside.leave();
                            drop(permit);
                        }
                        assert!(bulkhead.in_use() <= limit);
                    }
                    for permit in own {
                        inside.leave();
                        drop(permit);
                    }
                });
            }
        });
        drop(give);
        drop(take);
        // `leave` comes before the permit is free, so a count above the limit would be the bulkhead's fault.
        assert!(inside.most.load(SeqCst) <= limit, "the limit was exceeded");
        assert_eq!(bulkhead.in_use(), 0, "a permit was lost or made up");
        let all: Vec<_> = (0..limit).map(|_| bulkhead.try_acquire().unwrap()).collect();
        assert!(bulkhead.try_acquire().is_err());
        drop(all);
    }
}

#[test]
fn calls_on_two_threads_that_wait_time_out_and_are_cancelled_conserve_all_permits() {
    const LIMIT: usize = 3;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let bulkhead = Bulkhead::config(LIMIT).queue(4, ms(2)).build().unwrap();
    let inside = Arc::new(Inside::default());
    let counts: Arc<[AtomicUsize; 4]> = Arc::default();
    runtime.block_on(async {
        let end = Instant::now() + STRESS;
        let mut tasks = Vec::new();
        for task in 0..12_u64 {
            let (bulkhead, inside, counts) = (bulkhead.clone(), inside.clone(), counts.clone());
            tasks.push(tokio::spawn(async move {
                for round in 0_u64.. {
                    if Instant::now() > end {
                        break;
                    }
                    let call = bulkhead.call(|| async {
                        inside.enter();
                        // Leaves also when it is cancelled.
                        let _leave = scopeguard(&inside);
                        match (round + task) % 4 {
                            0 => tokio::time::sleep(ms(1)).await,
                            1 => tokio::task::yield_now().await,
                            _ => {}
                        }
                        Ok::<u32, &str>(1)
                    });
                    let at = if (round + task) % 5 == 0 {
                        match tokio::time::timeout(Duration::from_micros(300), call).await {
                            Ok(answer) => usize::from(answer.is_err()),
                            Err(_) => 2,
                        }
                    } else {
                        match call.await.map_err(|why| why.refused().map(|why| why.kind())) {
                            Ok(_) => 0,
                            Err(Some(Kind::QueueTimeout)) => 3,
                            Err(_) => 1,
                        }
                    };
                    counts[at].fetch_add(1, SeqCst);
                    tokio::task::yield_now().await;
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
    let counts = counts.each_ref().map(|count| count.load(SeqCst));
    assert!(counts[..3].iter().all(|&count| count > 0), "something never happened: {counts:?}");
    assert!(inside.most.load(SeqCst) <= LIMIT, "the limit was exceeded");
    assert_eq!((bulkhead.in_use(), bulkhead.waiting()), (0, 0), "{counts:?}");
}

fn scopeguard(inside: &Inside) -> impl Drop + '_ {
    struct Leave<'a>(&'a Inside);
    impl Drop for Leave<'_> {
        fn drop(&mut self) {
            self.0.leave();
        }
    }
    Leave(inside)
}

#[test]
fn the_futures_are_as_free_as_what_is_inside_them() {
    fn is_send_and_sync<T: Send + Sync>(_: &T) {}
    fn is_unpin<T: Unpin>() {}
    let bulkhead = Bulkhead::new(1).unwrap();
    is_send_and_sync(&bulkhead);
    is_send_and_sync(&bulkhead.acquire());
    is_send_and_sync(&bulkhead.try_acquire().unwrap());
    is_send_and_sync(&bulkhead.call(|| async { Ok::<u32, &str>(1) }));
    is_unpin::<Permit<'_>>();
}
