//! What a saga's journal is made of: one record for each fact, chained by checksums.
//!
//! The format is documented in `docs/saga-format.md`; the names and fields here are stored and do not change.

use std::{fmt, sync::Arc};

use super::journal::Ask;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::value::RawValue;

/// The name of a saga: unique in its store, chosen by whoever starts it.
///
/// 1 to 200 bytes without control characters. The order or request that the saga is about is a good name: starting it a second
/// time then finds the first.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SagaId(Arc<str>);

impl SagaId {
    /// The longest id in bytes.
    pub const MAX: usize = 200;

    /// Checks an id.
    ///
    /// # Errors
    ///
    /// [`InvalidId`] when it is empty, too long, or has a control character.
    pub fn new(id: &str) -> Result<Self, InvalidId> {
        if id.is_empty() || id.len() > Self::MAX || id.chars().any(char::is_control) {
            return Err(InvalidId(id.chars().take(40).collect()));
        }
        Ok(SagaId(id.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SagaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for SagaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for SagaId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SagaId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        SagaId::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A text that cannot be the id of a saga.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidId(String);

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "saga id {:?} is not possible: allowed are 1 to {} bytes without control characters",
            self.0,
            SagaId::MAX
        )
    }
}

impl std::error::Error for InvalidId {}

/// One run of one orchestrator: drawn at random when it starts and never used again, so that what a dead process left behind
/// cannot be taken for one's own.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(Arc<str>);

impl Incarnation {
    /// Out of a store.
    pub fn from_text(text: &str) -> Self {
        Incarnation(text.into())
    }

    /// The incarnation as text, at most 64 bytes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An instant of the wall clock, in milliseconds since 1970; durable, unlike an `Instant`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// `by` later, saturating.
    pub fn after(self, by: std::time::Duration) -> Self {
        Timestamp(
            self.0.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)).min(i64::MAX as u64),
        )
    }

    /// How much later it is than `earlier`; zero if it is not.
    pub fn since(self, earlier: Timestamp) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A value as JSON text. Cloning shares it.
#[derive(Clone)]
pub struct Payload(Arc<RawValue>);

impl Payload {
    /// Encodes a value.
    ///
    /// # Errors
    ///
    /// What its `Serialize` says: a map with keys that are no strings, for instance.
    pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        Ok(Payload(serde_json::value::to_raw_value(value)?.into()))
    }

    /// The JSON of nothing.
    pub(crate) fn null() -> Self {
        Payload::encode(&()).unwrap_or_else(|_| unreachable!("null has a JSON"))
    }

    /// Decodes it.
    ///
    /// # Errors
    ///
    /// When it is not the JSON of a `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.as_str())
    }

    /// The JSON text.
    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Payload {}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Payload(Box::<RawValue>::deserialize(deserializer)?.into()))
    }
}

/// Why a saga was turned round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// A step said that it has not happened and will not.
    Rejected {
        /// Which.
        step: String,
        /// What it said.
        error: String,
    },
    /// Nobody knows whether a step has happened, and its policy is not to find out.
    Unknown {
        /// Which.
        step: String,
        /// What is known.
        error: String,
    },
    /// Somebody asked for it.
    Cancelled {
        /// Why.
        reason: String,
    },
    /// Its deadline came.
    Deadline,
    /// A step was not over in [its time](super::Adding::within).
    Late {
        /// Which.
        step: String,
        /// How long it had, in milliseconds.
        ms: u64,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Rejected { step, error } => write!(f, "{step} was rejected: {error}"),
            Cause::Unknown { step, error } => write!(f, "the outcome of {step} is unknown: {error}"),
            Cause::Cancelled { reason } => write!(f, "cancelled: {reason}"),
            Cause::Deadline => f.write_str("its deadline came"),
            Cause::Late { step, ms } => write!(f, "{step} was not over within {ms} ms"),
        }
    }
}

/// A fact in the life of a saga. Steps are named by their paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Record {
    /// It was accepted.
    Begun {
        /// What it was given.
        input: Payload,
        /// When it is turned round, if it has not passed its pivot by then.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        deadline: Option<Timestamp>,
    },
    /// A step that must not be repeated blindly is about to be sent.
    Sent {
        /// Which.
        step: String,
    },
    /// A timer or a wait for a signal has begun.
    Armed {
        /// Which.
        step: String,
        /// When it is over.
        until: Timestamp,
    },
    /// A step has happened.
    Completed {
        /// Which.
        step: String,
        /// What came of it.
        output: Payload,
        /// How many attempts the owner made that recorded it.
        attempts: u32,
        /// How long they took.
        ms: u64,
    },
    /// The saga was turned round: nothing goes forward any more.
    Aborted {
        /// Why.
        cause: Cause,
        /// The steps that were due and are known to have had no effect.
        clean: Vec<String>,
    },
    /// After it was turned round, a step that was still in flight said that it has not happened.
    Clean {
        /// Which.
        step: String,
    },
    /// A step was undone.
    Undone {
        /// Which.
        step: String,
        /// How many attempts the owner made that recorded it.
        attempts: u32,
        /// How long they took.
        ms: u64,
    },
    /// A step that has to succeed, or a compensation, has failed as often as it may. The saga is not over.
    Stuck {
        /// Which.
        step: String,
        /// What it said last.
        error: String,
    },
    /// The saga waits for a person.
    Parked {
        /// The step that it waits at; none when it is the whole saga.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        step: Option<String>,
        /// Why.
        reason: String,
    },
    /// A message from outside, once for each of its names.
    Signalled {
        /// What it is about: the step that waits for it.
        step: String,
        /// What it says.
        payload: Payload,
    },
    /// A person has decided something.
    Ordered {
        /// Who.
        by: String,
        /// What.
        order: Order,
        /// Where it turns the saga round: the steps that were due and are known to have had no effect.
        #[serde(skip_serializing_if = "Vec::is_empty", default)]
        clean: Vec<String>,
    },
    /// An order could not be followed where the saga stood, or a message not be read. Nothing follows from it; a message of which `why` says
    /// that it waits is still read by code that can.
    Refused {
        /// Who asked.
        by: String,
        /// For what.
        ask: Ask,
        /// Why not.
        why: String,
    },
}

/// What a person may decide about a saga.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Order {
    /// Turn it round, unless it has passed its pivot.
    Cancel {
        /// Why.
        reason: String,
    },
    /// Try what is stuck or parked once more.
    Retry {
        /// One step; all when there is none.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        step: Option<String>,
    },
    /// The step has happened, with this output: found out, or done by hand.
    Complete {
        /// Which.
        step: String,
        /// What came of it.
        output: Payload,
    },
    /// The step has not happened and will not.
    Reject {
        /// Which.
        step: String,
        /// Why.
        reason: String,
    },
    /// The compensation of this step was done by hand, or is not needed.
    Undone {
        /// Which.
        step: String,
        /// What was done.
        reason: String,
    },
    /// Turn it round even though a step may have passed that cannot be undone.
    Compensate {
        /// Why.
        reason: String,
    },
    /// Leave it as it is, for ever. What it did stays done.
    Abandon {
        /// Why.
        reason: String,
    },
}

/// The longest text of an error, a cause or a reason in a record, in bytes.
const TEXT: usize = 4 * 1024;

/// Cuts what is too long, and what no column of text takes.
fn shorten(text: &mut String) {
    if text.len() > TEXT {
        let cut = (0..=TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(cut);
        text.push('…');
    }
    if text.contains('\0') {
        *text = text.replace('\0', "\u{fffd}");
    }
}

impl Order {
    /// The same with a reason of bounded length.
    pub(crate) fn shortened(mut self) -> Self {
        match &mut self {
            Order::Cancel { reason }
            | Order::Reject { reason, .. }
            | Order::Undone { reason, .. }
            | Order::Compensate { reason }
            | Order::Abandon { reason } => shorten(reason),
            Order::Retry { .. } | Order::Complete { .. } => {}
        }
        self
    }
}

impl Record {
    /// The same with texts of bounded length: what a participant says may be of any, and a row may not.
    pub(crate) fn shortened(mut self) -> Self {
        match &mut self {
            Record::Stuck { error, .. } => shorten(error),
            Record::Parked { reason, .. } => shorten(reason),
            Record::Aborted { cause, .. } => match cause {
                Cause::Rejected { error, .. } | Cause::Unknown { error, .. } => shorten(error),
                Cause::Cancelled { reason } => shorten(reason),
                Cause::Deadline | Cause::Late { .. } => {}
            },
            Record::Ordered { order, .. } => *order = order.clone().shortened(),
            Record::Refused { ask, why, .. } => {
                if let Ask::Order(order) = ask {
                    *order = order.clone().shortened();
                }
                shorten(why);
            }
            _ => {}
        }
        self
    }

    /// The kind as a short stable word.
    pub fn kind(&self) -> &'static str {
        match self {
            Record::Begun { .. } => "begun",
            Record::Sent { .. } => "sent",
            Record::Armed { .. } => "armed",
            Record::Completed { .. } => "completed",
            Record::Aborted { .. } => "aborted",
            Record::Clean { .. } => "clean",
            Record::Undone { .. } => "undone",
            Record::Stuck { .. } => "stuck",
            Record::Parked { .. } => "parked",
            Record::Signalled { .. } => "signalled",
            Record::Ordered { .. } => "ordered",
            Record::Refused { .. } => "refused",
        }
    }

    /// The step that it is about, if it is about one.
    pub fn step(&self) -> Option<&str> {
        match self {
            Record::Sent { step }
            | Record::Armed { step, .. }
            | Record::Completed { step, .. }
            | Record::Clean { step }
            | Record::Undone { step, .. }
            | Record::Stuck { step, .. }
            | Record::Signalled { step, .. } => Some(step),
            Record::Parked { step, .. } => step.as_deref(),
            Record::Begun { .. }
            | Record::Aborted { .. }
            | Record::Ordered { .. }
            | Record::Refused { .. } => None,
        }
    }
}

/// A record in its place: as it is stored, one row each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the saga, from 0 without gaps.
    pub seq: u64,
    /// The ownership under which it was written.
    pub epoch: u64,
    /// When it was written, by the clock of whoever wrote it, which follows the store's. For people, and for [steps whose time is
    /// limited](super::Adding::within); nothing else is decided by it.
    pub at: Timestamp,
    /// Who wrote it.
    pub by: Incarnation,
    /// [`Record::kind`], for people and for queries.
    pub kind: String,
    /// [`Record::step`], for people and for queries.
    pub step: Option<String>,
    /// The record as JSON.
    pub data: String,
    /// CRC-32 over the predecessor's checksum and everything above; see [`checksum`](Entry::checksum).
    pub crc: u32,
}

impl Entry {
    /// Puts a record in its place behind an entry with the checksum `previous` (0 before the first).
    ///
    /// # Errors
    ///
    /// Never for the records of this crate; the signature keeps the encoder honest.
    pub fn new(
        saga: &SagaId,
        seq: u64,
        previous: u32,
        epoch: u64,
        at: Timestamp,
        by: &Incarnation,
        record: &Record,
    ) -> Result<Self, serde_json::Error> {
        let mut entry = Entry {
            seq,
            epoch,
            at,
            by: by.clone(),
            kind: record.kind().to_owned(),
            step: record.step().map(str::to_owned),
            data: serde_json::to_string(record)?,
            crc: 0,
        };
        entry.crc = entry.checksum(saga, previous);
        Ok(entry)
    }

    /// What [`crc`](Entry::crc) has to be behind an entry with the checksum `previous`.
    ///
    /// CRC-32 (IEEE) over: `previous`, `seq`, `epoch`, `at` as little-endian integers of 4, 8, 8 and 8 bytes, then saga id, `by`,
    /// `kind`, `step` (empty when there is none) and `data`, each with a zero byte behind it.
    pub fn checksum(&self, saga: &SagaId, previous: u32) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&previous.to_le_bytes());
        hasher.update(&self.seq.to_le_bytes());
        hasher.update(&self.epoch.to_le_bytes());
        hasher.update(&self.at.0.to_le_bytes());
        let step = self.step.as_deref().unwrap_or("");
        for text in [saga.as_str(), self.by.as_str(), &self.kind, step, &self.data] {
            hasher.update(text.as_bytes());
            hasher.update(&[0]);
        }
        hasher.finalize()
    }

    /// The record.
    ///
    /// # Errors
    ///
    /// When it was written by a later version that knows more kinds.
    pub fn record(&self) -> Result<Record, serde_json::Error> {
        serde_json::from_str(&self.data)
    }
}
