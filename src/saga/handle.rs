//! What the one who has started a saga holds of it.

use std::{fmt, sync::Arc};

use super::{
    definition::{Definition, Inputs, Saga},
    journal::{DefinitionId, Head, Phase, Requested, Stored},
    orchestrator::{AskError, Finished, Orchestrator, Status, Waiter, fold},
    record::{Cause, Order, SagaId},
};

/// What became of a saga.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome<T> {
    /// Every step has happened.
    Completed(T),
    /// Every step that may have happened was undone.
    Compensated(Cause),
    /// A person has given it up; what it did stays done.
    Abandoned(String),
    /// It is not over: stuck, waiting for a person, or blocked. It goes on when that is settled.
    Held {
        /// The phase: stuck or parked; of a blocked saga the last one that is known.
        phase: Option<Phase>,
        /// Why.
        why: String,
    },
}

impl<T> Outcome<T> {
    /// What came of it, if it was completed.
    pub fn completed(self) -> Option<T> {
        match self {
            Outcome::Completed(value) => Some(value),
            _ => None,
        }
    }
}

/// One saga, to ask and to wait for. Dropping it changes nothing.
pub struct Handle<R: Inputs> {
    orchestrator: Orchestrator,
    definition: Arc<Definition>,
    result: R,
    id: SagaId,
}

impl<R: Inputs> fmt::Debug for Handle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.id).finish()
    }
}

impl<R: Inputs> Handle<R> {
    pub(crate) fn new<I>(orchestrator: Orchestrator, saga: Saga<I, R>, id: SagaId) -> Self {
        Handle { orchestrator, definition: saga.definition, result: saga.result, id }
    }

    /// Its name.
    pub fn id(&self) -> &SagaId {
        &self.id
    }

    /// Where it stands; see [`Orchestrator::status`].
    ///
    /// # Errors
    ///
    /// [`AskError::Missing`] when there is no such saga, and [`AskError::Store`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn status(&self) -> Result<Status, AskError> {
        let status = self.orchestrator.status(self.id.as_str()).await?;
        status.ok_or_else(|| AskError::Missing(self.id.clone()))
    }

    /// Turns it round if that is possible; see [`Orchestrator::cancel`].
    ///
    /// # Errors
    ///
    /// [`AskError`], as there.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn cancel(&self, reason: &str) -> Result<Requested, AskError> {
        self.orchestrator.cancel(self.id.as_str(), reason).await
    }

    /// Leaves a decision of `by` with it; see [`Orchestrator::order`].
    ///
    /// # Errors
    ///
    /// [`AskError`], as there.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn order(&self, by: &str, order: Order) -> Result<Requested, AskError> {
        self.orchestrator.order(self.id.as_str(), by, order).await
    }

    /// Waits until it is over, or until it is stuck, parked or blocked.
    ///
    /// While another process has it, that it is so is seen in the store, as its end is (see [`finished`](Self::finished)), and believed
    /// when it is so for two looks: after one [`poll`](super::Opening::poll) at best, and up to 20 s when it has taken long.
    ///
    /// # Errors
    ///
    /// [`AskError::Missing`] when there is no such saga, or none any more; [`AskError::OtherDefinition`] when it does not follow the
    /// definition of this handle, [`AskError::Output`] when this code cannot read what came of it, and [`AskError::Store`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn settled(&self) -> Result<Outcome<R::Values>, AskError> {
        self.wait(true).await
    }

    /// Waits until it is over, however long it is held up.
    ///
    /// While it is driven by another process, its end is seen in the store: at once at first, after up to 10 s when it has taken long.
    ///
    /// # Errors
    ///
    /// As of [`settled`](Self::settled).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn finished(&self) -> Result<Outcome<R::Values>, AskError> {
        self.wait(false).await
    }

    async fn wait(&self, until_held: bool) -> Result<Outcome<R::Values>, AskError> {
        let inner = self.orchestrator.inner();
        let waiter = Waiter::new(inner, &self.id);
        let mut before: Option<Arc<Stored>> = None;
        loop {
            let moves = waiter.moves();
            if let Some((mut watch, definition)) = inner.watch(&self.id) {
                self.follows(&definition.shape.id)?;
                let stop = |status: &Status| status.finished.is_some() || until_held && is_held(status);
                // An error says that its driver has left; where it stands then is in the store.
                if let Ok(status) = watch.wait_for(stop).await {
                    return self.outcome(status.clone());
                }
            }
            let blocked = inner.status(&self.id).filter(|status| status.blocked.is_some());
            if let Some(status) = blocked.filter(|_| until_held) {
                return self.outcome(status);
            }
            let stored = waiter.look().await?;
            let stored = stored.ok_or_else(|| AskError::Missing(self.id.clone()))?;
            self.follows(&stored.head.definition)?;
            let mut status = Status::of(&stored.head, None);
            if stored.head.phase.is_terminal() {
                match fold(&stored, &self.definition) {
                    Ok(machine) => status.finished = Some(Finished::of(&machine)),
                    // A person has given up what could not be read: that is all there is to know.
                    Err(_) if stored.head.phase == Phase::Abandoned => {}
                    Err(why) => status.blocked = Some(why),
                }
                return self.outcome(status);
            }
            if until_held {
                // Between two drivers it says the phase of the last record; and so while an owner does not get any further.
                let stands = before.as_ref().is_some_and(|before| stands(&before.head, &stored.head));
                let owner = stored.head.owner.as_ref();
                if is_held(&status) && (owner.is_none() || stands) {
                    return self.outcome(status);
                }
                if let Some(owner) = owner.filter(|owner| stands && **owner != inner.by) {
                    status.blocked = inner.blocked_at(owner, &self.id).await?;
                    if status.blocked.is_some() {
                        return self.outcome(status);
                    }
                }
                before = Some(stored);
            }
            waiter.wait(moves).await;
        }
    }

    /// Whether the saga is of the definition whose values this handle knows.
    fn follows(&self, stored: &DefinitionId) -> Result<(), AskError> {
        if *stored == self.definition.shape.id {
            return Ok(());
        }
        Err(AskError::OtherDefinition { stored: stored.clone() })
    }

    fn outcome(&self, status: Status) -> Result<Outcome<R::Values>, AskError> {
        if let Some(why) = status.blocked {
            return Ok(Outcome::Held { phase: status.phase, why });
        }
        Ok(match (status.phase, status.finished) {
            (Some(Phase::Completed), Some(finished)) => {
                let decoded = self.result.decode(&|step| finished.outputs.get(step)?.clone());
                Outcome::Completed(decoded.map_err(|failure| {
                    let why = failure.message().to_owned();
                    AskError::Output { saga: self.id.clone(), why }
                })?)
            }
            (Some(Phase::Compensated), Some(finished)) => {
                let cause = finished.cause.unwrap_or(Cause::Cancelled { reason: status.note });
                Outcome::Compensated(cause)
            }
            (Some(Phase::Abandoned), _) => Outcome::Abandoned(status.note),
            (phase, _) => Outcome::Held { phase, why: status.note },
        })
    }
}

/// Whether nothing has happened to a saga from one look to the next. Of one look there is one value, however often it is asked for.
fn stands(before: &Head, now: &Head) -> bool {
    !std::ptr::eq(before, now)
        && (&before.owner, before.epoch, before.len) == (&now.owner, now.epoch, now.len)
}

fn is_held(status: &Status) -> bool {
    status.blocked.is_some() || matches!(status.phase, Some(Phase::Stuck | Phase::Parked))
}
