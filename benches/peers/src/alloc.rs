//! A global allocator that can count, per thread, while a counting pass runs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

/// What one thread asked of the allocator during a counting pass.
#[derive(Clone, Copy, Default)]
pub struct Count {
    pub allocations: u64,
    pub bytes: u64,
}

struct Counting;

/// Off during the timed passes, where it costs one relaxed load per allocation.
static ENABLED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static COUNT: Cell<Count> = const { Cell::new(Count { allocations: 0, bytes: 0 }) };
}

#[global_allocator]
static GLOBAL: Counting = Counting;

fn note(bytes: usize) {
    if ENABLED.load(Ordering::Relaxed) {
        // `try_with`: the allocator also runs while a thread is being torn down.
        let _ = COUNT.try_with(|count| {
            let Count { allocations, bytes: sum } = count.get();
            count.set(Count { allocations: allocations + 1, bytes: sum + bytes as u64 });
        });
    }
}

// SAFETY: every method hands its arguments unchanged to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `work` and returns what this thread allocated meanwhile.
pub fn count(work: impl FnOnce()) -> Count {
    let before = COUNT.get();
    ENABLED.store(true, Ordering::Relaxed);
    work();
    ENABLED.store(false, Ordering::Relaxed);
    let after = COUNT.get();
    Count { allocations: after.allocations - before.allocations, bytes: after.bytes - before.bytes }
}
