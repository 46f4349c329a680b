//! A participant that remembers: what a service with a barrier in front of it does, in memory.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    saga::{
        Direction, Failure, Key, Payload, SagaId, Verified,
        barrier::{Action, COMPENSATED, Compensation},
    },
    sync::{Mutex, lock},
};

/// A participant in memory with the semantics of [`barrier`](crate::saga::barrier): a duplicate has one effect and the same answer, a
/// compensation without its action does nothing and is remembered, an action behind its compensation is refused, whether it was done before or not.
///
/// Cloning shares it. It counts the net effects of each step, which is what the checker asks for.
///
/// ```
/// use mainstay::{saga::{Direction, Key, SagaId, barrier::{Action, Compensation}}, testing::Ledger};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let ledger = Ledger::default();
/// let saga = SagaId::new("o-1")?;
/// let charge = Key::new(&saga, "charge", Direction::Do)?;
/// assert_eq!(ledger.act(&charge, || 7), Action::Done(7));
/// assert_eq!(ledger.act(&charge, || 8), Action::Repeated(7));
/// assert_eq!(ledger.undo(&charge.with_phase(Direction::Undo)), Compensation::Undone);
/// assert_eq!(ledger.act(&charge, || 9), Action::Refused);
/// assert_eq!(ledger.net(&saga, "charge"), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Rows>>);

#[derive(Debug, Default)]
struct Rows {
    rows: BTreeMap<(SagaId, String), Row>,
    flaw: Option<Flaw>,
}

#[derive(Debug, Default, Clone)]
struct Row {
    /// The action's result, once it has happened.
    result: Option<Payload>,
    /// Why it was rejected for good.
    rejected: Option<String>,
    compensated: bool,
    net: i64,
}

/// A planted fault in a ledger, for tests that have to notice it.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// A compensation without an action undoes what never was.
    EmptyRollback,
    /// An action behind its compensation happens.
    LateAction,
    /// Each delivery has its effect.
    Duplicates,
}

impl Ledger {
    /// A ledger with a planted fault.
    #[doc(hidden)]
    pub fn flawed(flaw: Flaw) -> Self {
        let ledger = Ledger::default();
        lock(&ledger.0).flaw = Some(flaw);
        ledger
    }

    /// An action arrives; `make` is its effect and its result.
    ///
    /// # Panics
    ///
    /// When the result has no JSON, or was stored as another type.
    pub fn act<T: Serialize + DeserializeOwned>(&self, key: &Key, make: impl FnOnce() -> T) -> Action<T> {
        let mut rows = lock(&self.0);
        let flaw = rows.flaw;
        let row = rows.rows.entry((key.saga().clone(), key.step().to_owned())).or_default();
        row.net += i64::from(row.result.is_some() && flaw == Some(Flaw::Duplicates));
        if row.rejected.is_some() || row.compensated && flaw != Some(Flaw::LateAction) {
            return Action::Refused;
        }
        if let Some(result) = &row.result {
            return Action::Repeated(
                result.decode().unwrap_or_else(|error| panic!("{key} was another type: {error}")),
            );
        }
        let result = make();
        let stored = Payload::encode(&result).unwrap_or_else(|error| panic!("{key} has no JSON: {error}"));
        row.result = Some(stored);
        row.net += 1;
        Action::Done(result)
    }

    /// The same as the answer of a step: a refusal is a rejection.
    ///
    /// # Errors
    ///
    /// [`Failure::rejected`] when the compensation came first, or has undone it.
    ///
    /// # Panics
    ///
    /// As [`act`](Self::act).
    pub fn action<T: Serialize + DeserializeOwned>(
        &self,
        key: &Key,
        make: impl FnOnce() -> T,
    ) -> Result<T, Failure> {
        let refused = || match self.verify::<T>(key) {
            Verified::Rejected(why) => Failure::rejected(why),
            _ => Failure::rejected(COMPENSATED),
        };
        self.act(key, make).result().ok_or_else(refused)
    }

    /// An action arrives that is rejected for good: what arrives of it later is, too. The answer of its step.
    ///
    /// One that has happened already stays so.
    pub fn reject(&self, key: &Key, why: &str) -> Failure {
        let mut rows = lock(&self.0);
        let row = rows.rows.entry((key.saga().clone(), key.step().to_owned())).or_default();
        if row.result.is_none() {
            row.rejected.get_or_insert_with(|| why.to_owned());
        }
        Failure::rejected(why)
    }

    /// A compensation arrives.
    pub fn undo(&self, key: &Key) -> Compensation {
        let mut rows = lock(&self.0);
        let flaw = rows.flaw;
        let row = rows.rows.entry((key.saga().clone(), key.step().to_owned())).or_default();
        if row.compensated && (row.result.is_some() || flaw != Some(Flaw::EmptyRollback)) {
            return Compensation::Repeated;
        }
        row.compensated = true;
        if row.result.is_none() && flaw != Some(Flaw::EmptyRollback) {
            return Compensation::Nothing;
        }
        row.net -= 1;
        Compensation::Undone
    }

    /// Whether the action has happened and was not undone: an answer for a step that verifies, as that of a barrier
    /// ([`Lookup::into_verified`](crate::saga::barrier::Lookup::into_verified)).
    ///
    /// # Panics
    ///
    /// When the result was stored as another type.
    pub fn verify<T: DeserializeOwned>(&self, key: &Key) -> Verified<T> {
        let rows = lock(&self.0);
        let Some(row) = rows.rows.get(&(key.saga().clone(), key.step().to_owned())) else {
            return Verified::Resend;
        };
        match (&row.rejected, &row.result) {
            (Some(why), _) => Verified::Rejected(why.clone()),
            _ if row.compensated => Verified::Rejected(COMPENSATED.to_owned()),
            (None, Some(result)) => Verified::Applied(
                result.decode().unwrap_or_else(|error| panic!("{key} was another type: {error}")),
            ),
            // The request may be on its way yet.
            (None, None) => Verified::Resend,
        }
    }

    /// How often a step was done less how often it was undone.
    pub fn net(&self, saga: &SagaId, step: &str) -> i64 {
        lock(&self.0).rows.get(&(saga.clone(), step.to_owned())).map_or(0, |row| row.net)
    }

    /// Whether anything has arrived here.
    pub fn is_used(&self) -> bool {
        !lock(&self.0).rows.is_empty()
    }

    /// The net effects of all steps of a saga.
    pub fn effects(&self, saga: &SagaId) -> BTreeMap<String, i64> {
        let rows = lock(&self.0);
        rows.rows
            .iter()
            .filter(|((of, _), _)| of == saga)
            .map(|((_, step), row)| (step.clone(), row.net))
            .collect()
    }

    /// Whether a key belongs to an action, for participants that get both.
    pub fn is_action(key: &Key) -> bool {
        key.phase() == Direction::Do
    }
}
