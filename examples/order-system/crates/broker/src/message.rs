//! What is sent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A message, as its publisher made it and every consumer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Message {
    /// Who it is, the same in every queue and at every redelivery: what an inbox remembers.
    pub id: String,
    /// The routing key, words between dots: `order.created`.
    pub topic: String,
    /// Messages with the same key are handled in the order in which they were published; an empty key asks for no order.
    pub key: String,
    /// The content, JSON text.
    pub body: String,
    /// What travels beside the content: `traceparent`, `correlation-id`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

impl Message {
    /// A message with a fresh time-ordered id and no headers.
    pub fn new(topic: impl Into<String>, key: impl Into<String>, body: impl Into<String>) -> Self {
        Self {
            id: uuid::Uuid::now_v7().to_string(),
            topic: topic.into(),
            key: key.into(),
            body: body.into(),
            headers: BTreeMap::new(),
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }
}

/// A message that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The message as it was published.
    pub message: Message,
    /// Why: the reason given with the last [`retry`](crate::Delivery::retry) or with [`reject`](crate::Delivery::reject).
    pub reason: String,
    /// How often it was delivered.
    pub count: u32,
    /// Since when it lies here, in milliseconds since 1970.
    pub since_ms: u64,
}
