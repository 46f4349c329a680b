//! What can go wrong. No text here holds a password.

/// Why a broker did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The address is not one of a broker.
    #[error("`{address}` is not the address of a broker: {reason}")]
    BadAddress {
        /// The address, without its password.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing answers there now. The broker keeps trying.
    #[error("the broker at {address} cannot be reached: {reason}")]
    Unreachable {
        /// The address, without its password.
        address: String,
        /// What was tried and failed.
        reason: String,
    },
    /// The broker was reached, and failed or refused.
    #[error("the broker failed: {0}")]
    Failed(String),
    /// This broker knows of no exchange yet, so nobody can say which queues want a message.
    #[error("there is no exchange: declare it first")]
    NoExchange,
    /// Nobody has declared this queue.
    #[error("there is no queue `{0}`: declare it first")]
    UnknownQueue(String),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The delivery is no longer this consumer's: it took too long, or the connection broke, and somebody else has it or will.
    #[error("the delivery has returned to its queue before it was settled")]
    Lost,
    /// The broker was shut down.
    #[error("the broker is closed")]
    Closed,
}

/// Why a message is not known to be in every queue that wants it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue wants this topic: the message is nowhere.
    #[error("no queue wants a message of topic `{topic}`")]
    Unroutable {
        /// The topic.
        topic: String,
    },
    /// No confirmation came: the message may be in the queues or not. Send it again, with the same id.
    #[error("not confirmed: {0}")]
    Unconfirmed(#[from] BrokerError),
}
