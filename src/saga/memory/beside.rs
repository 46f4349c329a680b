//! Another database on the simulated device, in whose transactions the work of steps is done.

use std::{
    any::{Any, TypeId},
    fmt,
    sync::Arc,
};

use crate::saga::{
    Entry,
    journal::{Refusal, Work},
};

/// What such a database held at one moment.
pub(crate) type Saved = Arc<dyn Any + Send + Sync>;

/// A database on the device of a [`Memory`](super::Memory): what work commits in it is synced, or lost, with the append that the work is of.
pub(crate) trait Beside: fmt::Debug + Send + Sync {
    /// Whether it does work of this type.
    fn does(&self, job: TypeId) -> bool;

    /// Does work and commits it; the entry that comes of it. The append has been found acceptable before.
    fn work(&self, work: &Work) -> Result<Entry, Refusal>;

    /// What it holds.
    fn save(&self) -> Saved;

    /// The power was cut. What was committed behind `last` is lost with the appends that it was for; nothing is, if there is none.
    fn crash(&self, last: Option<Saved>);
}
