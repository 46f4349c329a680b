//! What is tried without end takes no more memory, and leaves no more records, the longer it is tried.
//!
//! One test, since it counts what the whole process has allocated.
#![cfg(feature = "saga")]
#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicIsize, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use mainstay::saga::{Failure, Orchestrator, Phase, Saga, SagaId, memory::Memory};

/// The system's allocator, and how many bytes it has given out and not got back.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every method is the system allocator's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as isize, SeqCst);
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE.fetch_add(size as isize - layout.size() as isize, SeqCst);
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, SeqCst);
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Within a driver's patience, and beyond it, where the saga is let go and taken up again each time.
#[tokio::test(start_paused = true)]
async fn a_compensation_that_fails_ten_thousand_times_takes_no_more_memory_than_one_that_fails_a_thousand_times()
 {
    for every in [Duration::from_millis(500), Duration::from_secs(30)] {
        let (store, attempts) = (Memory::new(), Arc::new(AtomicU32::new(0)));
        let counted = attempts.clone();
        let mut saga = Saga::define::<u32>("hopeless", 1);
        let first = saga.step("first", (), |_, ()| async { Ok(1_u32) }).compensate(move |_, (), _| {
            let attempt = counted.fetch_add(1, SeqCst);
            async move { Err(Failure::unknown(format!("no, for the {attempt}th time"))) }
        });
        saga.step("second", first, |_, _| async { Err::<(), _>(Failure::rejected("no")) })
            .without_compensation("it does nothing");
        let saga = saga.build(()).unwrap();
        let opening = Orchestrator::open(store.clone()).register(&saga).stuck_retry(Some(every));
        let orchestrator = opening.poll(Duration::from_secs(5)).start().await.unwrap();
        orchestrator.start(&saga, "s", &1).await.unwrap();
        let until = async |times: u32| {
            while attempts.load(SeqCst) < times {
                tokio::time::sleep(Duration::from_secs(7)).await;
            }
            let stored = store.stored(&SagaId::new("s").unwrap()).unwrap();
            assert_eq!(stored.head.phase, Phase::Stuck);
            let bytes: usize = stored.entries.iter().map(|entry| entry.data.len()).sum();
            (stored.entries.len(), bytes, LIVE.load(SeqCst))
        };
        let (records, bytes, live) = until(1_000).await;
        let (later_records, later_bytes, later_live) = until(10_000).await;
        println!("{every:?}: {records} records of {bytes} bytes; {live} bytes live, then {later_live}");
        assert_eq!((later_records, later_bytes), (records, bytes), "the log has grown");
        // One attempt is on its way or not; nothing adds up. One byte for each attempt would be 9,000.
        assert!(later_live - live < 8_192, "{live} bytes, then {later_live}");
        orchestrator.shutdown(Duration::from_secs(1)).await;
    }
}
