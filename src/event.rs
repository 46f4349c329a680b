//! Facts that policies report, and who listens.

use std::{fmt, sync::Arc, time::Duration};

use crate::circuit_breaker::{Counts, State};
use crate::error::{Kind, Name, Refused};
#[cfg(feature = "saga")]
use crate::saga::{
    Census, Record,
    journal::{Phase, StoreError},
};

/// Something worth knowing happened. Healthy calls emit nothing.
///
/// Events are borrowed and are handed over after every lock is released, so a listener may call
/// back into the policy that is reporting.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A circuit breaker changed its state.
    #[non_exhaustive]
    Transition {
        /// The breaker.
        name: &'a Name,
        /// The state it left.
        from: State,
        /// The state it is in now.
        to: State,
        /// What its window held when it changed.
        counts: Counts,
    },
    /// A policy ended a call.
    #[non_exhaustive]
    Refused {
        /// What the caller is told.
        refused: &'a Refused,
        /// `true` if the policy only observes: the call went on all the same.
        observed: bool,
    },
    /// A retry will start another attempt.
    #[non_exhaustive]
    Retried {
        /// The retry.
        name: &'a Name,
        /// The number of the attempt that failed, from 1.
        attempt: u32,
        /// How long it waits before the next one.
        delay: Duration,
    },
    /// A retry would have gone on but was not allowed to.
    #[non_exhaustive]
    GaveUp {
        /// The retry.
        name: &'a Name,
        /// How many attempts were made.
        attempts: u32,
        /// What stopped it.
        why: GaveUp,
    },
    /// A fallback answered in place of the operation.
    #[non_exhaustive]
    FellBack {
        /// The fallback.
        name: &'a Name,
        /// The refusal it replaced; `None` if the operation itself failed.
        instead_of: Option<Kind>,
    },
    /// A saga's journal has grown by a durable record, or by one that will be before the saga ends.
    #[cfg(feature = "saga")]
    #[non_exhaustive]
    SagaRecord {
        /// What the saga follows.
        definition: &'a str,
        /// The saga.
        saga: &'a str,
        /// What was recorded.
        record: &'a Record,
    },
    /// A saga's phase has changed; told by the orchestrator that changed it.
    #[cfg(feature = "saga")]
    #[non_exhaustive]
    SagaPhase {
        /// What the saga follows.
        definition: &'a str,
        /// The saga.
        saga: &'a str,
        /// Its phase before; `None` when it has just begun.
        from: Option<Phase>,
        /// Its phase now.
        to: Phase,
        /// What there is to say about it.
        note: &'a str,
        /// How long ago it began.
        age: Duration,
    },
    /// A policy did not let a saga's step begin; it will be tried again.
    #[cfg(feature = "saga")]
    #[non_exhaustive]
    SagaWaits {
        /// What the saga follows.
        definition: &'a str,
        /// The saga.
        saga: &'a str,
        /// The step.
        step: &'a str,
        /// What the policy said.
        why: &'a str,
        /// How long it waits.
        after: Duration,
    },
    /// A saga's deadline came when a step had happened, or may have, that cannot be undone; or the time of a step was over that has to
    /// succeed. The saga goes on.
    #[cfg(feature = "saga")]
    #[non_exhaustive]
    SagaOverdue {
        /// What the saga follows.
        definition: &'a str,
        /// The saga.
        saga: &'a str,
        /// The step whose time was over; `None` for the saga's deadline.
        step: Option<&'a str>,
        /// How long ago that was.
        by: Duration,
    },
    /// An order to a saga could not be followed where it stands, or a message not be read or used, and was dropped.
    #[cfg(feature = "saga")]
    #[non_exhaustive]
    SagaOrderRefused {
        /// What the saga follows.
        definition: &'a str,
        /// The saga.
        saga: &'a str,
        /// Why.
        why: &'a str,
    },
    /// A saga cannot be worked on, and nothing of it was changed: what is stored is damaged, or does not fit the code.
    #[cfg(feature = "saga")]
    #[non_exhaustive]
    SagaBlocked {
        /// What the saga follows.
        definition: &'a str,
        /// The saga.
        saga: &'a str,
        /// Why.
        why: &'a str,
    },
    /// How many sagas an orchestrator works on: told every lease, and as soon as it takes up no more for want of a place.
    #[cfg(feature = "saga")]
    #[non_exhaustive]
    SagaLive {
        /// How many places are taken.
        live: usize,
        /// How many there are; see [`Opening::max_live`](crate::saga::Opening::max_live).
        max_live: usize,
        /// For how long it has taken up nothing because all are taken: neither what is due nor what was asked for nor what others have left.
        /// `None` while it takes up what comes.
        held: Option<Duration>,
    },
    /// The sagas in the store that are not over were counted; see [`Orchestrator::census`](crate::saga::Orchestrator::census).
    #[cfg(feature = "saga")]
    #[non_exhaustive]
    SagaCensus {
        /// How many there are.
        census: &'a Census,
    },
    /// The store of sagas has failed; what depends on it is tried again.
    #[cfg(feature = "saga")]
    #[non_exhaustive]
    SagaStoreFailed {
        /// What it said.
        error: &'a StoreError,
    },
}

/// Why a retry ended before its operation succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GaveUp {
    /// All attempts were used.
    Attempts,
    /// The backoff sequence ended.
    Backoff,
    /// The budget had no token left.
    Budget,
    /// The deadline leaves no time for another attempt.
    Deadline,
    /// The time limit for all attempts together leaves no time for another.
    TotalTime,
    /// The outcome is unknown and the operation was not declared idempotent.
    NotIdempotent,
    /// The request could not be copied.
    NotRepeatable,
}

impl GaveUp {
    /// The reason as a short stable label, as used by metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            GaveUp::Attempts => "attempts",
            GaveUp::Backoff => "backoff",
            GaveUp::Budget => "budget",
            GaveUp::Deadline => "deadline",
            GaveUp::TotalTime => "total_time",
            GaveUp::NotIdempotent => "not_idempotent",
            GaveUp::NotRepeatable => "not_repeatable",
        }
    }
}

/// Receives [events](Event). Every `Fn(&Event<'_>)` closure is one.
///
/// It runs on the thread of the call, so it must not block. Of several transitions of one circuit breaker that happen at the
/// same time, one thread reports all, in their order. A panic in it unwinds into the call; the policy has already settled its
/// own state.
pub trait Observer: Send + Sync {
    /// Receives one event.
    fn on_event(&self, event: &Event<'_>);
}

impl<F: Fn(&Event<'_>) + Send + Sync> Observer for F {
    fn on_event(&self, event: &Event<'_>) {
        self(event);
    }
}

/// Who a policy is and who listens to it; the part of its settings that all policies share.
#[derive(Clone)]
pub struct Identity {
    name: Name,
    /// Whether the name was given, rather than being the pattern's own.
    named: bool,
    observers: Vec<Arc<dyn Observer>>,
}

impl Identity {
    /// Nobody in particular: an instance of the pattern `pattern`.
    pub(crate) fn new(pattern: &'static str) -> Self {
        Identity { name: Name::new(pattern), named: false, observers: Vec::new() }
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// The name, if it was given rather than being the pattern's own.
    #[cfg(feature = "serde")]
    pub(crate) fn given_name(&self) -> Option<&Name> {
        self.named.then_some(&self.name)
    }

    pub(crate) fn set_name(&mut self, name: Name) {
        self.name = name;
        self.named = true;
    }

    /// Becomes the policy of one key among those of this name.
    pub(crate) fn set_key(&mut self, key: &dyn fmt::Display) {
        self.set_name(Name::keyed(&self.name, key));
    }

    pub(crate) fn observe(&mut self, observer: Arc<dyn Observer>) {
        self.observers.push(observer);
    }

    /// What a policy inside a stack takes over from it: the name if it has none, and the listeners.
    pub(crate) fn inherit(&mut self, stack: &Identity) {
        if !self.named {
            self.set_name(stack.name.clone());
        }
        self.observers.extend(stack.observers.iter().cloned());
    }

    /// Tells the listeners; call it with no lock held.
    #[inline]
    pub(crate) fn emit(&self, event: &Event<'_>) {
        for observer in &self.observers {
            observer.on_event(event);
        }
    }

    /// Tells the listeners, where nobody could do anything about one that panics.
    #[cfg(feature = "saga")]
    pub(crate) fn emit_guarded(&self, event: &Event<'_>) {
        for observer in &self.observers {
            let told = std::panic::AssertUnwindSafe(|| observer.on_event(event));
            // The panic's message was printed by the hook.
            let _ = std::panic::catch_unwind(told);
        }
    }

    #[inline]
    pub(crate) fn has_listeners(&self) -> bool {
        !self.observers.is_empty()
    }

    /// Tells the listeners that a call was refused.
    #[cold]
    pub(crate) fn tell_refused(&self, refused: Refused) {
        self.emit(&Event::Refused { refused: &refused, observed: false });
    }

    /// Tells the listeners that a call was refused.
    #[inline]
    pub(crate) fn refuse(&self, refused: Refused) -> Refused {
        self.emit(&Event::Refused { refused: &refused, observed: false });
        refused
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.name)
            .field("observers", &self.observers.len())
            .finish()
    }
}
