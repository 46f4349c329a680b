//! What a jump of the store's clock does to waits: nothing to those of one process, and what is documented to those that are recorded.
#![cfg(feature = "saga")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::CircuitBreaker;
use mainstay::saga::{
    Failure, Handle, Inputs, Orchestrator, Outcome, Output, Phase, Saga, SagaId, Timestamp,
    journal::Journal,
    memory::{Fault, Memory, Operation},
};

const HOUR: Duration = Duration::from_secs(3_600);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn back(store: &Memory, by: Duration) {
    let now = store.now().await.unwrap();
    store.set_clock(Timestamp(now.0 - u64::try_from(by.as_millis()).unwrap()));
}

async fn forward(store: &Memory, by: Duration) {
    let now = store.now().await.unwrap();
    store.set_clock(now.after(by));
}

async fn open<R: Inputs>(store: &Memory, saga: &Saga<u32, R>) -> Orchestrator {
    let opening = Orchestrator::open(store.clone()).register(saga).lease(seconds(1));
    opening.stuck_retry(Some(Duration::from_millis(900))).start().await.unwrap()
}

/// How long it takes until a saga is over, at most two hours.
async fn took<R: Inputs>(handle: &Handle<R>) -> Duration
where
    R::Values: std::fmt::Debug,
{
    let began = tokio::time::Instant::now();
    tokio::time::timeout(2 * HOUR, handle.finished()).await.expect("it is over").unwrap();
    began.elapsed()
}

/// The first try fails like this, the second succeeds.
fn second_try(first: fn() -> Failure) -> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>("second", 1);
    let calls = Arc::new(AtomicU32::new(0));
    let output = saga
        .retriable("step", (), move |_, ()| {
            let call = calls.fetch_add(1, SeqCst);
            async move { if call == 0 { Err(first()) } else { Ok(1_u32) } }
        })
        .through(mainstay::stack("bare").build().unwrap())
        .add();
    saga.build(output).unwrap()
}

/// A breaker that is open from now on, and for how long.
fn tripped() -> (CircuitBreaker, Duration) {
    let config = CircuitBreaker::config().consecutive_failures(1).open_wait(seconds(20), 1.0, seconds(20));
    let breaker = config.immediate_close().build().unwrap();
    breaker.try_acquire().unwrap().failure();
    let wait = breaker.try_acquire().unwrap_err().retry_after().unwrap();
    assert!(wait > seconds(5), "{wait:?}");
    (breaker, wait)
}

#[tokio::test(start_paused = true)]
async fn a_refused_step_waits_as_long_as_its_policy_says() {
    for jump in ["back", "none", "forward"] {
        let (store, refusals) = (Memory::new(), Arc::new(AtomicU32::new(0)));
        let (breaker, wait) = tripped();
        let mut saga = Saga::define::<u32>("refused", 1);
        let output = saga
            .step("step", (), |_, ()| async { Ok(1_u32) })
            .through(mainstay::stack("breaker").circuit_breaker(breaker).build().unwrap())
            .without_compensation("nothing");
        let saga = saga.build(output).unwrap();
        let counted = refusals.clone();
        let observer = move |event: &mainstay::Event<'_>| {
            counted.fetch_add(u32::from(matches!(event, mainstay::Event::SagaWaits { .. })), SeqCst);
        };
        let opening = Orchestrator::open(store.clone()).register(&saga).observe(observer);
        let orchestrator = opening.start().await.unwrap();
        let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
        tokio::time::sleep(seconds(1)).await;
        match jump {
            "back" => back(&store, HOUR).await,
            "forward" => forward(&store, HOUR).await,
            _ => {}
        }
        let took = took(&handle).await + seconds(1);
        // Up to a tenth longer, because others were told the same.
        let latest = wait + wait / 10 + Duration::from_millis(10);
        assert!(took >= wait && took < latest, "{jump}: {took:?} for {wait:?}");
        // It is not asked again and again in between: the wait is obeyed, not only repeated until it is over.
        assert_eq!(refusals.load(SeqCst), 1, "{jump}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stuck_step_that_is_in_memory_waits_as_long_as_it_is_told() {
    for jump in ["back", "forward"] {
        let (store, saga) = (Memory::new(), second_try(|| Failure::rejected("no")));
        let orchestrator = open(&store, &saga).await;
        let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        // A heartbeat shows the clock to the orchestrator: with a lease of 1 s there are two within the wait.
        if jump == "back" {
            back(&store, HOUR).await
        } else {
            forward(&store, HOUR).await
        }
        let took = took(&handle).await + Duration::from_millis(100);
        assert!(took >= Duration::from_millis(900) && took < seconds(2), "{jump}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_in_flight_at_a_cancel_is_waited_for_no_longer_than_a_minute() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("hangs", 1);
    saga.step("hangs", (), |_, ()| std::future::pending::<Result<u32, Failure>>())
        .through(mainstay::stack("bare").build().unwrap())
        .compensate(|_, (), _| async { Ok(()) });
    let saga = saga.build(()).unwrap();
    let orchestrator = open(&store, &saga).await;
    let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    handle.cancel("enough").await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    back(&store, HOUR).await;
    let took = took(&handle).await;
    assert!(took > seconds(50) && took < seconds(70), "{took:?}");
}

fn sleeper(time: Duration) -> Saga<u32, Output<u32>> {
    let mut saga = Saga::define::<u32>("sleeper", 1);
    let slept = saga.sleep("sleep", (), time);
    let output = saga.step("last", slept, |_, ()| async { Ok(1_u32) }).without_compensation("nothing");
    saga.build(output).unwrap()
}

/// A recorded timer is a date: a clock that is set back makes it later by as much, one that is set forward makes it earlier.
#[tokio::test(start_paused = true)]
async fn a_durable_timer_goes_by_the_wall_clock() {
    for jump in ["back", "none", "forward"] {
        let (store, saga) = (Memory::new(), sleeper(HOUR / 2));
        let orchestrator = open(&store, &saga).await;
        let handle = orchestrator.start(&saga, "s", &1).await.unwrap();
        tokio::time::sleep(seconds(1)).await;
        match jump {
            "back" => back(&store, HOUR).await,
            "forward" => forward(&store, HOUR).await,
            _ => {}
        }
        let took = took(&handle).await;
        let expected = match jump {
            "back" => HOUR + HOUR / 2,
            "none" => HOUR / 2,
            _ => Duration::ZERO,
        };
        assert!(took + seconds(2) > expected && took < expected + seconds(2), "{jump}: {took:?}");
    }
}

/// Beside a flight the saga is in memory, and the timer is napped for: a jump is noticed all the same.
#[tokio::test(start_paused = true)]
async fn a_durable_timer_beside_a_flight_notices_a_jump_forward() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("beside", 1);
    saga.step("long", (), |_, ()| async {
        tokio::time::sleep(2 * HOUR).await;
        Ok(1_u32)
    })
    .through(mainstay::stack("bare").build().unwrap())
    .without_compensation("nothing");
    let slept = saga.sleep("sleep", (), HOUR / 2);
    saga.step("last", slept, |_, ()| async { Ok(1_u32) }).without_compensation("nothing");
    let saga = saga.build(()).unwrap();
    let orchestrator = open(&store, &saga).await;
    orchestrator.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    forward(&store, HOUR).await;
    tokio::time::sleep(seconds(65)).await;
    let stored = store.stored(&SagaId::new("s").unwrap()).unwrap();
    let done = |step: &str| {
        stored.entries.iter().any(|entry| entry.kind == "completed" && entry.step.as_deref() == Some(step))
    };
    assert!(done("sleep") && done("last"), "{:?}", stored.entries);
}

/// After an orderly end the next owner takes everything at once, also when its clock is behind.
#[tokio::test(start_paused = true)]
async fn what_was_let_go_at_an_end_is_taken_up_by_a_clock_that_is_behind() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("two", 1);
    let first = saga
        .step("first", (), |_, ()| async {
            tokio::time::sleep(seconds(5)).await;
            Ok(1_u32)
        })
        .without_compensation("nothing");
    let second = saga.step("second", first, |_, _| async { Ok(2_u32) }).without_compensation("nothing");
    let saga = saga.build(second).unwrap();
    let orchestrator = open(&store, &saga).await;
    orchestrator.start(&saga, "s", &1).await.unwrap();
    orchestrator.shutdown(seconds(30)).await;
    assert_eq!(store.stored(&SagaId::new("s").unwrap()).unwrap().head.phase, Phase::Running);
    back(&store, HOUR).await;
    let store = store.reopen();
    let next = open(&store, &saga).await;
    let took = took(&next.handle(&saga, "s").unwrap()).await;
    assert!(took < seconds(2), "{took:?}");
}

/// A lease is a date too. Set forward, others may take what is owned until its owner has noticed; the epoch keeps it in one hand. Set back, what a dead
/// orchestrator has left is taken later by as much.
#[tokio::test(start_paused = true)]
async fn a_lease_goes_by_the_wall_clock_and_nothing_is_done_twice_for_that() {
    for jump in ["back", "forward"] {
        let store = Memory::new();
        let calls = Arc::new(AtomicU32::new(0));
        let mut saga = Saga::define::<u32>("slow", 1);
        let counted = calls.clone();
        let output = saga
            .step("slow", (), move |_, ()| {
                let call = counted.fetch_add(1, SeqCst);
                async move {
                    tokio::time::sleep(seconds(60)).await;
                    Ok(call)
                }
            })
            .through(mainstay::stack("bare").build().unwrap())
            .without_compensation("nothing");
        let saga = saga.build(output).unwrap();
        let other = store.connect();
        let (first, second) = (open(&store, &saga).await, open(&other, &saga).await);
        let handle = first.start(&saga, "s", &1).await.unwrap();
        tokio::time::sleep(seconds(1)).await;
        if jump == "back" {
            back(&store, HOUR).await
        } else {
            forward(&store, HOUR).await
        }
        let outcome = handle.finished().await.unwrap();
        let stored = store.stored(&SagaId::new("s").unwrap()).unwrap();
        let completed = stored.entries.iter().filter(|entry| entry.kind == "completed").count();
        assert_eq!(completed, 1, "{jump}");
        if jump == "back" {
            assert_eq!((outcome, stored.head.epoch), (Outcome::Completed(0), 1), "nobody has taken it");
        } else {
            assert!(stored.head.epoch <= 5, "it has changed hands {} times", stored.head.epoch);
        }
        drop((first, second));
    }
    // The dead are mourned by the clock.
    let (store, saga) = (Memory::new(), second_try(|| Failure::rejected("no")));
    let first = open(&store, &saga).await;
    store.fault(Operation::Append, 1, Fault::CrashAfter);
    first.start(&saga, "s", &1).await.unwrap();
    store.dead().await;
    drop(first);
    let store = store.connect();
    back(&store, HOUR).await;
    let second = open(&store, &saga).await;
    let took = took(&second.handle(&saga, "s").unwrap()).await;
    assert!(took > HOUR && took < HOUR + seconds(15), "{took:?}");
}

/// What else the store is asked for may take longer than the lease.
#[tokio::test(start_paused = true)]
async fn a_lease_is_kept_while_other_operations_hang() {
    let store = Memory::new();
    let mut saga = Saga::define::<u32>("slow", 1);
    let output = saga
        .step("slow", (), |_, ()| async {
            tokio::time::sleep(seconds(90)).await;
            Ok(1_u32)
        })
        .through(mainstay::stack("bare").build().unwrap())
        .without_compensation("nothing");
    let saga = saga.build(output).unwrap();
    let other = store.connect();
    let (first, second) = (open(&store, &saga).await, open(&other, &saga).await);
    first.start(&saga, "s", &1).await.unwrap();
    tokio::time::sleep(seconds(1)).await;
    // A claim that takes four leases.
    store.fault(Operation::Claim, 0, Fault::Stall(seconds(40)));
    tokio::time::sleep(seconds(80)).await;
    let head = store.stored(&SagaId::new("s").unwrap()).unwrap().head;
    assert_eq!(
        (head.epoch, head.owner.as_ref()),
        (1, Some(first.incarnation())),
        "it was taken from a living owner"
    );
    // What fails is asked again.
    store.fault(
        Operation::Heartbeat,
        0,
        Fault::Fail(mainstay::saga::StoreError::Unavailable("planned".to_owned())),
    );
    tokio::time::sleep(seconds(60)).await;
    let head = store.stored(&SagaId::new("s").unwrap()).unwrap().head;
    assert_eq!((head.epoch, head.phase), (1, Phase::Completed));
    drop(second);
}
