//! What a row of the table is: the words that name it, and the policy that it
//! builds once for all its workers.

use std::fmt;
use std::sync::Arc;

use crate::worker::Worker;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Floor(&'static str),
    Bare,
    BarePending,
    BreakerCount,
    /// A time window that already holds so many calls.
    BreakerTime {
        calls: u64,
    },
    BreakerOpen,
    BulkheadFree,
    BulkheadFull,
    Timeout,
    TimeoutPending,
    Retry,
    Five,
    FiveDeadline,
    FivePending,
}

impl What {
    /// Where it stands in the table.
    pub fn place(self) -> (u8, u64) {
        match self {
            Self::Floor(_) => (0, 0),
            Self::Bare => (1, 0),
            Self::BarePending => (2, 0),
            Self::BreakerCount => (3, 0),
            Self::BreakerTime { calls } => (4, calls),
            Self::BreakerOpen => (5, 0),
            Self::BulkheadFree => (6, 0),
            Self::BulkheadFull => (7, 0),
            Self::Timeout => (8, 0),
            Self::TimeoutPending => (9, 0),
            Self::Retry => (10, 0),
            Self::Five => (11, 0),
            Self::FiveDeadline => (12, 0),
            Self::FivePending => (13, 0),
        }
    }

    /// The row its cost is compared with: the bare call of the same kind.
    pub fn baseline(self) -> Option<What> {
        match self {
            Self::Floor(_) | Self::Bare | Self::BarePending => None,
            // The operation is not started, so there is nothing to subtract.
            Self::BreakerOpen | Self::BulkheadFull => None,
            Self::TimeoutPending | Self::FivePending => Some(Self::BarePending),
            _ => Some(Self::Bare),
        }
    }

    /// Calls to make through a new policy before each measured batch.
    pub fn prefill(self) -> Option<u64> {
        match self {
            Self::BreakerTime { calls } => Some(calls),
            _ => None,
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Floor(name) => write!(f, "floor: {name}"),
            Self::Bare => f.write_str("bare call"),
            Self::BarePending => f.write_str("bare call, pends once"),
            Self::BreakerCount => f.write_str("breaker, count window"),
            Self::BreakerTime { calls } => write!(f, "breaker, time window, {calls} calls in it"),
            Self::BreakerOpen => f.write_str("breaker, open: refuses"),
            Self::BulkheadFree => f.write_str("bulkhead, free"),
            Self::BulkheadFull => f.write_str("bulkhead, full: refuses"),
            Self::Timeout => f.write_str("timeout"),
            Self::TimeoutPending => f.write_str("timeout, call pends once"),
            Self::Retry => f.write_str("retry that does not retry"),
            Self::Five => f.write_str("five policies"),
            Self::FiveDeadline => f.write_str("five policies + deadline"),
            Self::FivePending => f.write_str("five policies, call pends once"),
        }
    }
}

/// How the policy is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Nothing is applied.
    Plain,
    /// A method that takes a future or a closure.
    Wrapper,
    /// A tower service: `poll_ready`, then `call`.
    Tower,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "-",
            Self::Wrapper => "wrapper",
            Self::Tower => "tower",
        })
    }
}

/// Makes a worker on the thread that calls it; all workers share one policy.
pub type Spawner = Arc<dyn Fn() -> Box<dyn Worker> + Send + Sync>;

/// One line of the table.
pub struct Row {
    pub what: What,
    pub library: &'static str,
    pub form: Form,
    /// What a reader has to know to compare this row with its neighbours.
    pub note: &'static str,
    policy: Box<dyn Fn() -> Spawner>,
}

impl Row {
    /// Builds the policy anew.
    pub fn policy(&self) -> Spawner {
        (self.policy)()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {} / {}", self.what, self.library, self.form)
    }
}

/// All rows; each library's file adds its own.
#[derive(Default)]
pub struct Rows(pub Vec<Row>);

impl Rows {
    /// Adds a row. `policy` builds the shared policy and returns what makes a
    /// worker for it.
    pub fn add<P, S, W>(&mut self, what: What, library: &'static str, form: Form, policy: P)
    where
        P: Fn() -> S + 'static,
        S: Fn() -> W + Send + Sync + 'static,
        W: Worker + 'static,
    {
        self.add_noted(what, library, form, "", policy);
    }

    /// [`add`](Self::add) with a note.
    pub fn add_noted<P, S, W>(
        &mut self,
        what: What,
        library: &'static str,
        form: Form,
        note: &'static str,
        policy: P,
    ) where
        P: Fn() -> S + 'static,
        S: Fn() -> W + Send + Sync + 'static,
        W: Worker + 'static,
    {
        self.0.push(Row {
            what,
            library,
            form,
            note,
            policy: Box::new(move || {
                let spawn = policy();
                Arc::new(move || Box::new(spawn()))
            }),
        });
    }
}
