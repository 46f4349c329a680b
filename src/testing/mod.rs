//! Checks one's own sagas against crashes, lost answers, late requests and stale orchestrators, on the paused clock.
//!
//! # Example
//!
//! ```
//! use mainstay::{saga::{Output, Saga, Step}, testing::{self, Ledger}};
//!
//! fn order(ledger: &Ledger) -> Saga<u32, Output<u64>> {
//!     let mut saga = Saga::define::<u32>("order", 1);
//!     let (charge, refund) = (ledger.clone(), ledger.clone());
//!     let charged = saga
//!         .step("charge", (), move |step: Step<u32>, ()| {
//!             let charged = charge.action(step.key(), || 99);
//!             async move { charged }
//!         })
//!         .compensate(move |step, (), _| {
//!             refund.undo(step.key());
//!             async { Ok(()) }
//!         });
//!     saga.build(charged).unwrap()
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let runs = testing::check(7, order).await;
//! assert!(runs > 50);
//! # }
//! ```
//!
//! # Semantics
//!
//! Nothing in a definition has to be changed for it: the code of its steps is wrapped, the store is one in memory, time is tokio's. Run it
//! in `#[tokio::test(start_paused = true)]`: [`check`] and [`Check::all`] panic where the clock runs. One case by [`Check::run`] or
//! [`Check::replay`] may be run there, and takes as long as it says.
//!
//! | goes wrong | how |
//! |---|---|
//! | nothing | the happy case |
//! | a step | it is rejected; it happens and its answer is lost, by an error, a timeout or a panic; its request is lost |
//! | a request | it arrives when its compensation is done; every call arrives twice; what is on its way in a crash arrives at the end |
//! | the process | the power is cut before and after every call and every operation that changes the store, and there also before it is synced; also while unwinding, in the claim and the first call of a recovery, and with [`Check::crash_twice`] anywhere in one |
//! | the store | an append or a claim fails before it does anything, or its answer is lost |
//! | the owner | it stands still at every place until its lease is over and another has the saga, then goes on |
//! | a person | orders of every kind come at every place, also where they cannot be followed |
//! | a compensation | it fails once, or each time |
//!
//! A step whose code never ends is checked as any other: its attempts have their timeouts, a request that arrives late [has as long as a
//! saga](Check::patience), and is then never answered.
//!
//! Operations that change the store are appends, claims, heartbeats, announcements, requests, and at the end of a run, when the saga is forgotten
//! if it is over and the orchestrator leaves. Heartbeats and claims come as long as an orchestrator lives; of those that take nothing, with
//! nothing between them but each other, only the first one is a place.
//!
//! Steps that are done in the transaction of a SQLite journal are given a database by `Check::database`, with feature `sqlite`.
//!
//! Each run asserts that what was planned did happen, where it was planned, and then everything in the table of [`check_evidence`]. A run
//! has a name, such as `reject(charge)+crash(append:3:after)`, by which [`Check::replay`] makes exactly it.
//!
//! The definition is built anew for every run with a new [`Ledger`], a participant that has a barrier and counts net effects. Participants of
//! one's own can stand beside it or in its place: their net effects are then seen by [`Check::expect`], and the calls are checked all
//! the same. Where nobody can say what the steps have done, since they do not use the ledger and there is neither a database nor
//! an expectation, undoing nothing would be as good as undoing: [`check`] and [`Check::all`] panic.
//!
//! [`check_evidence`] is the checker by itself, for histories that were collected elsewhere, for instance of a process that was killed.
//!
//! # Cost
//!
//! A saga of four steps takes some two thousand runs, of well under a millisecond each in release.

mod business;
mod case;
mod check;
mod checker;
#[cfg(feature = "sqlite")]
mod database;
mod evidence;
mod gate;
mod ledger;
mod plan;
mod seen;
mod world;

pub use case::{Case, Edge, Fault, InvalidCase, Loss, Ordered, Place};
#[doc(hidden)]
pub use check::Bug;
pub use check::{Check, check};
pub use checker::check_evidence;
pub use evidence::{Call, Evidence, Part, Said, Structure, Violation, What};
#[doc(hidden)]
pub use ledger::Flaw;
pub use ledger::Ledger;
pub use plan::{crashes_behind, crashes_in, orders_in};
pub use seen::{Failed, Seen, Summary};
pub use world::Skew;
