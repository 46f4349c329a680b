//! The name under which a participant knows one action or one compensation.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::record::SagaId;

/// Whether a key is that of an action or that of its compensation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The action.
    Do,
    /// The compensation of the action.
    Undo,
}

impl Direction {
    /// The direction as a short stable word, as in a key: `do` or `undo`.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Do => "do",
            Direction::Undo => "undo",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The idempotency key of an action or a compensation: `charge-card.do@order-17`, that is
/// `<path of the step>.<do|undo>@<saga>`.
///
/// Every attempt of one action has the same key, whoever makes it and however often: the number of the attempt is no part of it.
/// No other action of any saga of the same store has it. The participant that gets it can therefore recognise what it has done before;
/// [`barrier`](super::barrier) does that for it. Sent as text, in a header for instance, it is parsed at the other end.
///
/// ```
/// use mainstay::saga::{Direction, Key, SagaId};
///
/// let key = Key::new(&SagaId::new("order-17")?, "charge-card", Direction::Do)?;
/// assert_eq!(key.to_string(), "charge-card.do@order-17");
///
/// let received: Key = "charge-card.do@order-17".parse()?;
/// assert_eq!(received, key);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    saga: SagaId,
    step: Arc<str>,
    phase: Direction,
}

impl Key {
    /// The longest path of a step in bytes.
    pub const MAX_STEP: usize = 500;

    /// The key of a step's action or compensation.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] when the step's path is empty, longer than [`MAX_STEP`](Key::MAX_STEP) bytes, or has an `@` or a
    /// control character.
    pub fn new(saga: &SagaId, step: &str, phase: Direction) -> Result<Self, InvalidKey> {
        if step.is_empty()
            || step.len() > Self::MAX_STEP
            || step.contains(|c: char| c == '@' || c.is_control())
        {
            return Err(InvalidKey::of(
                step,
                "the path of a step has 1 to 500 bytes, no @ and no control characters",
            ));
        }
        Ok(Key { saga: saga.clone(), step: step.into(), phase })
    }

    /// The saga's id.
    pub fn saga(&self) -> &SagaId {
        &self.saga
    }

    /// The path of the step.
    pub fn step(&self) -> &str {
        &self.step
    }

    /// Whether it is the key of the action or of the compensation.
    pub fn phase(&self) -> Direction {
        self.phase
    }

    /// The key of the same step's action or compensation.
    pub fn with_phase(&self, phase: Direction) -> Self {
        Key { phase, ..self.clone() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}", self.step, self.phase, self.saga)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        // The step has no @, so the first one ends it; what is behind belongs to the saga's id, which may have some.
        let (step, saga) = text.split_once('@').ok_or_else(|| InvalidKey::of(text, "it has no @"))?;
        let (step, phase) = if let Some(step) = step.strip_suffix(".undo") {
            (step, Direction::Undo)
        } else if let Some(step) = step.strip_suffix(".do") {
            (step, Direction::Do)
        } else {
            return Err(InvalidKey::of(text, "there is neither .do nor .undo in front of the @"));
        };
        let saga =
            SagaId::new(saga).map_err(|error| InvalidKey { text: shown(text), why: error.to_string() })?;
        Key::new(&saga, step, phase)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is no [`Key`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidKey {
    text: String,
    why: String,
}

impl InvalidKey {
    fn of(text: &str, why: &str) -> Self {
        InvalidKey { text: shown(text), why: why.to_owned() }
    }
}

/// As much of a text as belongs into an error.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no key of a saga's step: {}", self.text, self.why)
    }
}

impl std::error::Error for InvalidKey {}

#[cfg(all(test, not(mainstay_loom)))]
mod tests {
    use proptest::{prelude::*, string::string_regex};

    use super::*;
    use crate::property::holds;

    fn key(text: &str) -> Result<Key, InvalidKey> {
        text.parse()
    }

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let parts = (string_regex("[a-zé.0-9\\[\\]/-]{1,30}").unwrap(), "[a-z@.]{1,20}", any::<bool>());
        holds(parts, |(step, saga, undo)| {
            let phase = if undo { Direction::Undo } else { Direction::Do };
            let written = Key::new(&SagaId::new(&saga).unwrap(), &step, phase).unwrap();
            let read = key(&written.to_string()).unwrap();
            prop_assert_eq!(&read, &written);
            prop_assert_eq!((read.step(), read.saga().as_str(), read.phase()), (&*step, &*saga, phase));
            let json = serde_json::to_string(&written).unwrap();
            prop_assert_eq!(serde_json::from_str::<Key>(&json).unwrap(), written);
            Ok(())
        });
    }

    #[test]
    fn the_first_at_sign_ends_the_step() {
        let read = key("a.undo.do@b.do@c").unwrap();
        assert_eq!((read.step(), read.saga().as_str(), read.phase()), ("a.undo", "b.do@c", Direction::Do));
        assert_eq!(read.with_phase(Direction::Undo).to_string(), "a.undo.undo@b.do@c");
    }

    #[test]
    fn what_is_no_key_says_why() {
        for (text, why) in [
            ("charge.do", "no @"),
            ("charge@order-17", "neither .do nor .undo"),
            ("charge.DO@order-17", "neither .do nor .undo"),
            (".do@order-17", "the path of a step"),
            ("charge.do@", "saga id"),
            ("cha\nrge.do@order-17", "control characters"),
        ] {
            let error = key(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error} does not say {why}");
        }
        assert!(Key::new(&SagaId::new("s").unwrap(), "a@b", Direction::Do).is_err());
        assert!(Key::new(&SagaId::new("s").unwrap(), &"a".repeat(501), Direction::Do).is_err());
        assert!(serde_json::from_str::<Key>("\"charge\"").is_err());
    }
}
