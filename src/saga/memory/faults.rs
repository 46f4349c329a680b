//! What can be made to go wrong in the simulated store, and what it has counted.

use std::{collections::BTreeMap, time::Duration};

use crate::saga::journal::StoreError;

/// What a journal can be asked, to name it in faults and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Operation {
    /// `Journal::append`.
    Append,
    /// `Journal::heartbeat`.
    Heartbeat,
    /// `Journal::leave`.
    Leave,
    /// `Journal::announce`.
    Announce,
    /// `Journal::orchestrators`.
    Orchestrators,
    /// `Journal::claim`.
    Claim,
    /// `Journal::load`.
    Load,
    /// `Journal::list`.
    List,
    /// `Journal::request`.
    Request,
    /// `Journal::requests`.
    Requests,
    /// `Journal::forget`.
    Forget,
    /// `Journal::forgotten`.
    Forgotten,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Operation; 12] = [
        Operation::Append,
        Operation::Heartbeat,
        Operation::Leave,
        Operation::Announce,
        Operation::Orchestrators,
        Operation::Claim,
        Operation::Load,
        Operation::List,
        Operation::Request,
        Operation::Requests,
        Operation::Forget,
        Operation::Forgotten,
    ];

    /// The operation as a short stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Append => "append",
            Operation::Heartbeat => "heartbeat",
            Operation::Leave => "leave",
            Operation::Announce => "announce",
            Operation::Orchestrators => "orchestrators",
            Operation::Claim => "claim",
            Operation::Load => "load",
            Operation::List => "list",
            Operation::Request => "request",
            Operation::Requests => "requests",
            Operation::Forget => "forget",
            Operation::Forgotten => "forgotten",
        }
    }
}

/// What goes wrong in one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It fails, and has done nothing.
    Fail(StoreError),
    /// It is done and durable, and fails nevertheless: the answer was lost.
    LoseAnswer(StoreError),
    /// It is written but not synced, and the device failed at that: everything after it on this connection is
    /// refused as [`Poisoned`](StoreError::Poisoned).
    FailSync,
    /// The power is cut before anything is done.
    CrashBefore,
    /// The power is cut when it is written and not synced.
    CrashUnsynced,
    /// The power is cut when it is durable, and before it is answered.
    CrashAfter,
    /// It takes so long, then is done.
    Stall(Duration),
    /// It is written, takes so long, then is synced and answered.
    StallUnsynced(Duration),
}

/// What a store in memory has done since it was made or since [`Memory::reset_counts`](super::Memory::reset_counts).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// How often each operation was asked for, whatever became of it.
    pub operations: BTreeMap<Operation, u64>,
    /// The items of batches that were accepted.
    pub accepted: u64,
    /// The items of batches that were refused.
    pub refused: u64,
    /// The entries of the accepted items.
    pub entries: u64,
    /// The entries by kind.
    pub kinds: BTreeMap<String, u64>,
    /// The syncs for appends: one for each batch of which anything was accepted.
    pub forced: u64,
    /// The syncs for everything else: claims, leases, requests, forgetting.
    pub forced_others: u64,
}

impl Counts {
    /// The entries of one kind.
    pub fn kind(&self, kind: &str) -> u64 {
        self.kinds.get(kind).copied().unwrap_or(0)
    }

    /// How often an operation was asked for.
    pub fn operation(&self, operation: Operation) -> u64 {
        self.operations.get(&operation).copied().unwrap_or(0)
    }

    pub(super) fn entry(&mut self, kind: &str) {
        self.entries += 1;
        match self.kinds.get_mut(kind) {
            Some(count) => *count += 1,
            None => drop(self.kinds.insert(kind.to_owned(), 1)),
        }
    }
}

/// The faults that are still to come on one connection.
#[derive(Debug, Default)]
pub(super) struct Planned(Vec<(Option<Operation>, u64, Fault)>);

impl Planned {
    pub(super) fn plan(&mut self, on: Option<Operation>, skip: u64, fault: Fault) {
        self.0.push((on, skip, fault));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Counts an operation; the first fault whose turn it is.
    pub(super) fn next(&mut self, operation: Operation) -> Option<Fault> {
        let mut due = None;
        for (at, (on, skip, _)) in self.0.iter_mut().enumerate() {
            if on.is_some_and(|on| on != operation) {
                continue;
            }
            match skip.checked_sub(1) {
                Some(left) => *skip = left,
                None if due.is_none() => due = Some(at),
                None => {}
            }
        }
        due.map(|at| self.0.remove(at).2)
    }
}
