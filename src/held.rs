//! How a list of policies is kept by all who use it, and held by the calls of a tower service.
//!
//! The future of a tower call owns its policies, so every call counts a reference up and down. Were that one count, two threads
//! would wait for each other's cache line at each call. Here each thread has a reference of its own to the
//! list, made at its first call and counted on a line of its own, and the thread's calls share that one:
//!
//! ```text
//! Stack, Guarded ──▶ Shared ──▶ list ◀─┬─ the reference of thread 0 ◀── its calls
//!                       └──────────────┼─ the reference of thread 1 ◀── its calls
//!                                      └─ the reference of all threads without a slot
//! ```
//!
//! A call that ends on another thread counts down where it counted up: right, and dearer. A thread's successor in its slot
//! takes its reference over. Nothing points back, so whoever lets go last frees everything.

use std::sync::Arc;

use crate::sync::Padded;
#[cfg(feature = "tower")]
use crate::{call::Sealed, slots};
#[cfg(feature = "tower")]
use std::{fmt, ops::Deref, sync::OnceLock};

/// A list of policies, and the references that threads have to it.
///
/// Padded: a clone of a service counts on the line before, which a call that reads this shall not meet.
pub(crate) struct Shared<L>(Arc<Padded<Inner<L>>>);

/// Every call reads it, so it keeps to itself: a neighbour on its line that one thread writes would stop all the others.
pub(crate) type Kept<L> = Arc<Padded<L>>;

struct Inner<L> {
    list: Kept<L>,
    /// One for each slot of a thread, the last for all threads without.
    #[cfg(feature = "tower")]
    references: Box<[Padded<OnceLock<Held<L>>>]>,
}

impl<L> Shared<L> {
    pub(crate) fn new(list: L) -> Self {
        Shared(Arc::new(Padded(Inner {
            list: Arc::new(Padded(list)),
            #[cfg(feature = "tower")]
            references: (0..=slots::limit()).map(|_| Padded(OnceLock::new())).collect(),
        })))
    }

    #[inline]
    pub(crate) fn list(&self) -> &Kept<L> {
        &self.0.list
    }

    /// For one call.
    #[cfg(feature = "tower")]
    #[inline]
    pub(crate) fn hold(&self) -> Held<L> {
        match self.0.references.get(slots::known()).and_then(|own| own.get()) {
            Some(reference) => reference.clone(),
            None => self.reference(slots::mine()).clone(),
        }
    }

    /// The reference of the thread with the slot `index`.
    #[cfg(feature = "tower")]
    #[cold]
    fn reference(&self, index: usize) -> &Held<L> {
        let references = &self.0.references;
        references[index.min(references.len() - 1)]
            .get_or_init(|| Held(Arc::new(Padded(self.0.list.clone()))))
    }
}

impl<L> Clone for Shared<L> {
    fn clone(&self) -> Self {
        Shared(self.0.clone())
    }
}

/// The policies as a call of a tower service holds them.
#[cfg(feature = "tower")]
pub struct Held<L>(Arc<Padded<Kept<L>>>);

#[cfg(feature = "tower")]
impl<L> Clone for Held<L> {
    #[inline]
    fn clone(&self) -> Self {
        Held(self.0.clone())
    }
}

#[cfg(feature = "tower")]
impl<L> Deref for Held<L> {
    type Target = L;

    #[inline]
    fn deref(&self) -> &L {
        &self.0
    }
}

#[cfg(feature = "tower")]
impl<L: Sealed> Sealed for Held<L> {}

#[cfg(feature = "tower")]
impl<L> fmt::Debug for Held<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "tower", not(mainstay_loom)))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn the_calls_of_a_thread_are_counted_in_a_place_of_its_own() {
        let shared = Shared::new(());
        let calls = [shared.hold(), shared.hold()];
        let own = shared.reference(slots::mine());
        assert_eq!(Arc::strong_count(&own.0), 3, "two calls and the thread's own");
        assert_eq!(Arc::strong_count(shared.list()), 2, "and none of them here");
        let place = |index| Arc::as_ptr(&shared.reference(index).0) as usize;
        let places: std::collections::HashSet<_> = (0..slots::limit()).map(place).collect();
        assert_eq!(places.len(), slots::limit(), "two threads would wait for each other's count");
        assert_eq!(place(slots::limit()), place(usize::MAX), "threads without a slot share one");
        assert!(!places.contains(&place(usize::MAX)));
        drop(calls);
    }

    #[test]
    fn what_every_call_reads_has_cache_lines_of_its_own() {
        let shared = Shared::new([0_u8; 3]);
        let beginnings = [
            Arc::as_ptr(&shared.0) as usize,
            Arc::as_ptr(shared.list()) as usize,
            shared.0.references.as_ptr() as usize,
        ];
        assert_eq!(beginnings.map(|place| place % 128), [0; 3]);
        assert_eq!([size_of_val(&**shared.list()), size_of_val(&shared.0.references[0])], [128; 2]);
    }

    #[test]
    fn the_policies_live_as_long_as_somebody_holds_them() {
        for last in 0..3 {
            let list = Arc::new(());
            let shared = Shared::new(list.clone());
            let twin = shared.clone();
            let call = shared.hold();
            let abroad = thread::scope(|scope| scope.spawn(|| twin.hold()).join().unwrap());
            let mut holders: Vec<Box<dyn std::any::Any + Send>> =
                vec![Box::new((shared, twin)), Box::new(call), Box::new(abroad)];
            let last = holders.swap_remove(last);
            for holder in holders {
                // On another thread than that which counted up.
                thread::spawn(|| drop(holder)).join().unwrap();
            }
            assert_eq!(Arc::strong_count(&list), 2, "they were freed under somebody");
            drop(last);
            assert_eq!(Arc::strong_count(&list), 1, "they were never freed");
        }
    }
}
