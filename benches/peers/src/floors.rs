//! What the hardware, the kernel and tokio ask, whoever writes the policy.

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Instant;

use crate::operation::{Dependency, Operation, PendsOnce, REQUEST, ReadyCall};
use crate::row::{Form, Rows, What};
use crate::settings::TIMEOUT;
use crate::worker::{answered, repeated, served};

/// An atomic on a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Word(AtomicU64);

impl Word {
    fn leaked() -> &'static Self {
        Box::leak(Box::default())
    }

    #[inline]
    fn add(&self) -> u64 {
        self.0.fetch_add(1, Ordering::AcqRel)
    }
}

/// A timer as an armed timeout has it: registered by the first poll, taken out
/// by the drop.
#[inline]
fn register_timer() {
    let sleep = pin!(tokio::time::sleep(TIMEOUT));
    let cx = &mut Context::from_waker(Waker::noop());
    let _ = black_box(sleep.poll(cx));
}

/// Sixteen times four that do not wait for each other.
#[inline]
fn additions() -> [u64; 4] {
    let mut lanes = [1, 2, 3, 4].map(black_box);
    for step in 0..16 {
        lanes = lanes.map(|lane: u64| lane.rotate_left(7).wrapping_add(step));
    }
    lanes
}

pub fn rows(rows: &mut Rows) {
    let floor = What::Floor;

    rows.add(floor("one Instant::now()"), "-", Form::Plain, || || repeated(Instant::now));

    rows.add(floor("one atomic load"), "-", Form::Plain, || {
        let word = Word::leaked();
        move || repeated(move || word.0.load(Ordering::Acquire))
    });

    // Keeps a core busy and shares nothing. Where two threads do less than twice the work, the processors share a core.
    rows.add(floor("64 additions in registers"), "-", Form::Plain, || || repeated(additions));

    // With two threads each has a word of its own: the striped case.
    rows.add(floor("one atomic add, own word"), "-", Form::Plain, || {
        || {
            let word = Word::leaked();
            repeated(move || word.add())
        }
    });

    // With two threads both want the same word: what a shared counter costs.
    rows.add(floor("one atomic add, shared word"), "-", Form::Plain, || {
        let word = Word::leaked();
        move || repeated(move || word.add())
    });

    rows.add(floor("register and drop a timer"), "-", Form::Plain, || || repeated(register_timer));

    // A stack of five has to read the clock once, and to change three words:
    // bulkhead in, bulkhead out, and the breaker's window.
    rows.add(floor("five: clock + 3 atomic adds"), "-", Form::Plain, || {
        || {
            let [a, b, c] = [Word::leaked(), Word::leaked(), Word::leaked()];
            repeated(move || (black_box(Instant::now()), a.add(), b.add(), c.add()))
        }
    });

    // The same when the call does not answer at once.
    rows.add(floor("five: the same + timer"), "-", Form::Plain, || {
        || {
            let [a, b, c] = [Word::leaked(), Word::leaked(), Word::leaked()];
            repeated(move || {
                register_timer();
                (black_box(Instant::now()), a.add(), b.add(), c.add())
            })
        }
    });

    bare::<ReadyCall>(What::Bare, rows);
    bare::<PendsOnce>(What::BarePending, rows);
}

fn bare<O: Operation>(what: What, rows: &mut Rows) {
    rows.add(what, "-", Form::Wrapper, || || answered(|| O::start(REQUEST)));
    rows.add(what, "-", Form::Tower, || || served(Dependency::<O>::new()));
}
