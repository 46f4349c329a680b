//! A place of its own for each thread, so that counting a healthy call costs no shared cache line
//! and no locked instruction.
//!
//! A thread takes an index at its first use and gives it back when it ends. As long as it holds the index it is
//! the *only writer* of that slot in every [`Slots`], so a plain load and store replace an atomic
//! add; everybody may read. Threads that find no free index get `None` and use the slow path of
//! whatever they are counting; now and then they ask again. The successor of a thread sees its predecessor's writes: the index
//! passes through a mutex.

use crate::sync::Padded;

/// One value for each thread that may own a slot.
#[derive(Debug)]
pub(crate) struct Slots<T>(Box<[Padded<T>]>);

impl<T: Default> Slots<T> {
    pub(crate) fn new() -> Self {
        Slots((0..index::limit()).map(|_| Padded(T::default())).collect())
    }
}

impl<T> Slots<T> {
    /// The index of this thread's slot, which nobody else writes.
    #[inline]
    pub(crate) fn mine(&self) -> Option<(usize, &T)> {
        let index = index::known();
        match self.0.get(index) {
            Some(slot) => Some((index, &slot.0)),
            None => self.find(),
        }
    }

    /// For a thread that has no index yet, or none at all.
    #[cold]
    fn find(&self) -> Option<(usize, &T)> {
        let index = index::get();
        self.0.get(index).map(|slot| (index, &slot.0))
    }

    /// All slots, in the order of their indexes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|slot| &slot.0)
    }

    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.0.get(index).map(|slot| &slot.0)
    }
}

/// How many threads can have a slot.
#[cfg(feature = "tower")]
pub(crate) fn limit() -> usize {
    index::limit()
}

/// The index of this thread's slot; some number above the limit if it has none.
#[cfg(feature = "tower")]
pub(crate) fn mine() -> usize {
    index::get()
}

/// As [`mine`], for a thread that has asked before; above the limit for one that has not.
#[cfg(feature = "tower")]
#[inline]
pub(crate) fn known() -> usize {
    index::known()
}

#[cfg(not(mainstay_loom))]
mod index {
    use std::{
        cell::Cell,
        sync::{Mutex, OnceLock, PoisonError},
    };

    const UNASSIGNED: usize = usize::MAX;
    /// There was none. It is one less with each question since, down to [`AGAIN`].
    const NONE: usize = UNASSIGNED - 1;
    /// Perhaps one was given back meanwhile.
    const AGAIN: usize = NONE - PATIENCE;
    /// The thread ends.
    const GONE: usize = AGAIN - 1;

    /// So many questions of a thread without an index are answered without a look whether there is one now.
    pub(super) const PATIENCE: usize = 1_024;

    thread_local! {
        static INDEX: Cell<usize> = const { Cell::new(UNASSIGNED) };
        static RETURN: ReturnOnExit = const { ReturnOnExit };
    }

    /// How many threads can have a slot: room for the workers of two runtimes.
    pub(super) fn limit() -> usize {
        static LIMIT: OnceLock<usize> = OnceLock::new();
        *LIMIT.get_or_init(|| {
            let cores = std::thread::available_parallelism().map_or(4, usize::from);
            (cores * 2).clamp(4, 128)
        })
    }

    /// The index, if it was asked for before; above every limit if not, and if there is none.
    #[inline]
    pub(super) fn known() -> usize {
        INDEX.get()
    }

    #[inline]
    pub(super) fn get() -> usize {
        match known() {
            UNASSIGNED | AGAIN => assign(),
            index if index > AGAIN => {
                INDEX.set(index - 1);
                index
            }
            index => index,
        }
    }

    /// Indexes that are not in use; the smallest are given out first, so that they stay warm.
    pub(super) fn free() -> &'static Mutex<Vec<usize>> {
        static FREE: OnceLock<Mutex<Vec<usize>>> = OnceLock::new();
        FREE.get_or_init(|| Mutex::new((0..limit()).rev().collect()))
    }

    #[cold]
    fn assign() -> usize {
        // Registers the destructor; refused while the thread is being torn down.
        let index = match RETURN.try_with(|_| ()) {
            Ok(()) => free().lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or(NONE),
            Err(_) => GONE,
        };
        INDEX.set(index);
        index
    }

    struct ReturnOnExit;

    impl Drop for ReturnOnExit {
        fn drop(&mut self) {
            let index = INDEX.replace(GONE);
            if index < GONE {
                free().lock().unwrap_or_else(PoisonError::into_inner).push(index);
            }
        }
    }
}

/// loom runs its threads as coroutines, so the index is said by the test.
#[cfg(mainstay_loom)]
pub(crate) mod index {
    use std::cell::Cell;

    loom::thread_local! {
        static INDEX: Cell<usize> = Cell::new(usize::MAX);
    }

    pub(super) fn limit() -> usize {
        3
    }

    pub(super) fn known() -> usize {
        INDEX.with(Cell::get)
    }

    pub(super) fn get() -> usize {
        known()
    }

    /// Gives the calling loom thread the slot `index`.
    #[cfg(test)]
    pub(crate) fn assume(index: usize) {
        INDEX.with(|cell| cell.set(index));
    }
}

#[cfg(all(test, not(mainstay_loom)))]
mod tests {
    use super::*;
    use std::{
        cell::Cell,
        process::Command,
        sync::{
            atomic::{AtomicU64, Ordering::Relaxed},
            mpsc,
        },
        thread,
    };

    #[test]
    fn no_two_living_threads_share_a_slot_and_indexes_are_reused() {
        let slots = Slots::<AtomicU64>::new();
        for _round in 0..50 {
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for _ in 0..1_000 {
                            if let Some((_, slot)) = slots.mine() {
                                slot.store(slot.load(Relaxed) + 1, Relaxed);
                            }
                        }
                    });
                }
            });
        }
        // Single-writer slots lose no update: the total is a whole number of threads' work.
        let total: u64 = slots.iter().map(|slot| slot.load(Relaxed)).sum();
        assert!(total > 0 && total.is_multiple_of(1_000), "{total}");
    }

    /// In a process of its own, since it leaves no slot to other tests.
    #[test]
    fn a_thread_that_found_no_slot_gets_one_that_is_given_back() {
        const ALONE: &str = "MAINSTAY_SLOTS_ALONE";
        if std::env::var_os(ALONE).is_some() {
            return asks_again();
        }
        let name = "slots::tests::a_thread_that_found_no_slot_gets_one_that_is_given_back";
        let mut alone = Command::new(std::env::current_exe().unwrap());
        let ended = alone.args(["--exact", name]).env(ALONE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    }

    fn asks_again() {
        let slots = Slots::<AtomicU64>::new();
        let mut holders: Vec<_> = (0..index::limit()).map(|_| holder()).collect();
        for question in 0..3 * index::PATIENCE {
            assert!(slots.mine().is_none(), "question {question}: all are held");
        }
        let (end, thread) = holders.pop().unwrap();
        drop(end);
        thread.join().unwrap();
        let question = (0..=index::PATIENCE).find(|_| slots.mine().is_some());
        assert!(question.is_some(), "one was given back");
        assert_eq!(slots.mine().map(|(index, _)| index), Some(index::known()));

        // Whoever asks while the thread ends takes none along.
        for (end, thread) in holders {
            drop(end);
            thread.join().unwrap();
        }
        assert_eq!(index::free().lock().unwrap().len(), index::limit() - 1, "all but this thread's");
    }

    /// A thread that has a slot until it is let go.
    fn holder() -> (mpsc::Sender<()>, thread::JoinHandle<()>) {
        struct Asks(Cell<usize>);

        impl Drop for Asks {
            fn drop(&mut self) {
                for _ in 0..=2 * index::PATIENCE {
                    self.0.set(index::get());
                }
            }
        }

        thread_local! {
            static LAST: Asks = const { Asks(Cell::new(0)) };
        }

        let (end, ended) = mpsc::channel::<()>();
        let (say, said) = mpsc::channel();
        let thread = thread::spawn(move || {
            // Before the slot, so that it outlives it.
            LAST.with(|last| last.0.set(0));
            say.send(index::get()).unwrap();
            assert!(ended.recv().is_err());
        });
        assert!(said.recv().unwrap() < index::limit());
        (end, thread)
    }
}
