//! Why a saga was not started, or could not be asked.

use std::fmt;

use crate::{
    error::Refused,
    saga::{
        journal::{DefinitionId, StoreError},
        record::{InvalidId, SagaId},
    },
};

/// A text that cannot be a lock, a tag, a message's id or a name; or too many of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidText(String);

impl InvalidText {
    /// The longest of these texts in bytes.
    pub const MAX: usize = 200;

    pub(super) fn check(what: &str, text: &str, longest: usize) -> Result<(), Self> {
        if text.len() <= longest && !text.chars().any(char::is_control) {
            return Ok(());
        }
        let begin: String = text.chars().take(40).collect();
        Err(InvalidText(format!(
            "{what} {begin:?} is not possible: allowed are {longest} bytes without control characters"
        )))
    }

    pub(super) fn too_many(what: &str, most: usize) -> Self {
        InvalidText(format!("there are too many {what}: allowed are {most}"))
    }
}

impl fmt::Display for InvalidText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidText {}

/// Why a saga was not started.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartError {
    /// The id is impossible.
    Id(InvalidId),
    /// A lock or the tag is impossible, or there are too many locks.
    Text(InvalidText),
    /// The input is too large, has no JSON, or one that cannot be read again.
    Input(String),
    /// The definition is not registered with this orchestrator.
    Unregistered(DefinitionId),
    /// There is a saga with this id that was started otherwise.
    Different {
        /// The id.
        id: SagaId,
    },
    /// There is a saga with this id, and what it was started with cannot be read: it is damaged, or this code reads its inputs in another form.
    /// So it is not known whether it is the one that was to be started. Nothing has begun now. Under another id it might be done twice: let a
    /// person look at it.
    Unreadable {
        /// The id.
        id: SagaId,
        /// What cannot be read, and why.
        why: String,
    },
    /// The saga was started before and follows another version of the definition: its outcome has other types. See
    /// [`Orchestrator::run`](super::Orchestrator::run).
    OtherDefinition {
        /// The one it follows.
        stored: DefinitionId,
    },
    /// The saga is completed, and this code cannot read what came of it: a step's output has another form by now. Its records are as they
    /// were; code that knows them reads them.
    Output {
        /// The id.
        id: SagaId,
        /// What cannot be read, and why.
        why: String,
    },
    /// There was a saga with this id: it is over, and was [forgotten](super::Orchestrator::forget) before it could be looked at. Whether it was
    /// started with the same input, and what became of it, is not known any more. Started again it begins anew, here: services that remember
    /// the first one by its id, as those with a [`barrier`](crate::saga::barrier) do for the time of its
    /// [`Retention`](crate::saga::barrier::Retention), answer what was done for it as done, without doing it again, and refuse what was undone.
    Forgotten {
        /// The id.
        id: SagaId,
    },
    /// Another saga has a lock that this one needs.
    Locked {
        /// The lock.
        key: String,
        /// Who has it.
        holder: SagaId,
    },
    /// It works on as many sagas as it [may](super::Opening::max_live). Nothing has begun. Listeners are told, by
    /// [`Event::Refused`](crate::Event::Refused) of a policy with the name `saga`.
    Busy(Refused),
    /// It is being shut down. Nothing has begun.
    Closed,
    /// The store has failed. Whether the saga has begun is not known, or what came of it: start it again with the same id.
    Store(StoreError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Id(error) => error.fmt(f),
            StartError::Text(error) => error.fmt(f),
            StartError::Input(why) => write!(f, "the input is not possible: {why}"),
            StartError::Unregistered(DefinitionId { name, version, .. }) => {
                write!(f, "the definition {name:?} version {version} is not registered as it is")
            }
            StartError::Different { id } => {
                write!(f, "there is a saga {id} with another definition or input")
            }
            StartError::Unreadable { id, why } => {
                write!(f, "there is a saga {id}, and what it was started with cannot be read: {why}")
            }
            StartError::OtherDefinition { stored } => other_definition(stored, f),
            StartError::Output { id, why } => unreadable_output(id, why, f),
            StartError::Forgotten { id } => write!(f, "the saga {id} is over, and was just forgotten"),
            StartError::Locked { key, holder } => write!(f, "the lock {key:?} is held by saga {holder}"),
            StartError::Busy(_) => f.write_str(
                "as many sagas are being worked on at once as `max_live` allows; nothing has begun",
            ),
            StartError::Closed => f.write_str("the orchestrator is being shut down"),
            StartError::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {}

impl From<InvalidId> for StartError {
    fn from(error: InvalidId) -> Self {
        StartError::Id(error)
    }
}

impl From<InvalidText> for StartError {
    fn from(error: InvalidText) -> Self {
        StartError::Text(error)
    }
}

impl From<InvalidText> for AskError {
    fn from(error: InvalidText) -> Self {
        AskError::Text(error)
    }
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        StartError::Store(error)
    }
}

fn other_definition(stored: &DefinitionId, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let DefinitionId { name, version, digest } = stored;
    write!(f, "the saga follows the definition {name:?} version {version} with digest {digest}")
}

fn unreadable_output(saga: &SagaId, why: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "the saga {saga} is completed, and what came of it cannot be read: {why}")
}

/// Why something could not be asked of a saga.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AskError {
    /// The id is impossible.
    Id(InvalidId),
    /// A message's id, the name of a step or of whoever asks is impossible.
    Text(InvalidText),
    /// There is no saga with this id.
    Missing(SagaId),
    /// The saga has no step with this name that waits for a message.
    Step {
        /// The saga.
        saga: SagaId,
        /// What was named.
        step: String,
    },
    /// The saga follows another definition, or another version of it, than the one it was asked with.
    OtherDefinition {
        /// The one it follows.
        stored: DefinitionId,
    },
    /// What was sent is too large, has no JSON, or one that the step could not read.
    Payload(String),
    /// The saga is completed, and this code cannot read what came of it: a step's output has another form by now.
    Output {
        /// The saga.
        saga: SagaId,
        /// What cannot be read, and why.
        why: String,
    },
    /// The store.
    Store(StoreError),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AskError::Id(error) => error.fmt(f),
            AskError::Text(error) => error.fmt(f),
            AskError::Missing(id) => write!(f, "there is no saga {id}"),
            AskError::Step { saga, step } => write!(f, "no step {step:?} of saga {saga} waits for a message"),
            AskError::OtherDefinition { stored } => other_definition(stored, f),
            AskError::Payload(why) => write!(f, "the payload is not possible: {why}"),
            AskError::Output { saga, why } => unreadable_output(saga, why, f),
            AskError::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for AskError {}

impl From<InvalidId> for AskError {
    fn from(error: InvalidId) -> Self {
        AskError::Id(error)
    }
}

impl From<StoreError> for AskError {
    fn from(error: StoreError) -> Self {
        AskError::Store(error)
    }
}

impl StartError {
    /// A saga has begun, and this came of waiting for its end.
    pub(super) fn of_waiting(error: AskError) -> Self {
        match error {
            AskError::Id(error) => StartError::Id(error),
            AskError::Text(error) => StartError::Text(error),
            AskError::Store(error) => StartError::Store(error),
            AskError::Missing(id) => StartError::Forgotten { id },
            AskError::OtherDefinition { stored } => StartError::OtherDefinition { stored },
            AskError::Output { saga, why } => StartError::Output { id: saga, why },
            // Of what is sent, and who waits sends nothing.
            AskError::Payload(why) => StartError::Input(why),
            error @ AskError::Step { .. } => StartError::Input(error.to_string()),
        }
    }
}
