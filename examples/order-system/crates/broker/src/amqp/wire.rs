//! A message as AMQP carries it. What AMQP has no field for are headers whose names begin with `x-broker-`.

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use crate::{BrokerError, DeadLetter, MAX_RETURNS, Message, delivery::returned_too_often};

const KEY: &str = "x-broker-key";
/// The topic, since a retried or dead message's routing key is the name of a queue.
const TOPIC: &str = "x-broker-topic";
/// How often the message had been delivered when it was last put somewhere by a consumer.
const ATTEMPTS: &str = "x-broker-attempts";
const FAILURES: &str = "x-broker-failures";
const REASON: &str = "x-broker-reason";
const SINCE: &str = "x-broker-since-ms";

/// Headers that are RabbitMQ's or ours, and not the publisher's.
const RESERVED: [&str; 7] = [
    "x-broker-",
    "x-death",
    "x-first-death-",
    "x-last-death-",
    "x-delivery-count",
    "x-acquired-count",
    "x-opt-",
];

/// What is known of a message beside itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// How often it was delivered, this time included.
    pub(super) attempts: u32,
    pub(super) failures: u32,
}

/// Whether AMQP can carry it: its short strings have 255 bytes at most.
pub(super) fn check(message: &Message) -> Result<(), BrokerError> {
    for (what, text) in [("id", &message.id), ("topic", &message.topic)] {
        if text.len() > 255 {
            return Err(BrokerError::Invalid(format!("the message's {what} is longer than 255 bytes")));
        }
    }
    for name in message.headers.keys() {
        if name.len() > 255 || is_reserved(name) {
            return Err(BrokerError::Invalid(format!("a message cannot have the header `{name}`")));
        }
    }
    Ok(())
}

fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|prefix| name.starts_with(prefix))
}

/// The properties of a message that has passed [`check`].
pub(super) fn properties(message: &Message, record: Record) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in &message.headers {
        headers.insert(name.as_str().into(), text(value));
    }
    headers.insert(TOPIC.into(), text(&message.topic));
    headers.insert(KEY.into(), text(&message.key));
    if record != Record::default() {
        headers.insert(ATTEMPTS.into(), AMQPValue::LongUInt(record.attempts));
        headers.insert(FAILURES.into(), AMQPValue::LongUInt(record.failures));
    }
    BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2) // on disk
        .with_message_id(message.id.as_str().into())
        .with_headers(headers)
}

/// The properties of a dead letter.
pub(super) fn dead_properties(message: &Message, record: Record, reason: &str) -> BasicProperties {
    let properties = properties(message, record);
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(REASON.into(), text(reason));
    headers.insert(SINCE.into(), AMQPValue::LongLongInt(crate::unix_ms().cast_signed()));
    properties.with_headers(headers)
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// The message of a delivery, and its record with this delivery counted. `None` if its content is not text.
pub(super) fn message(delivery: &Delivery) -> Option<(Message, Record)> {
    let body = String::from_utf8(delivery.data.clone()).ok()?;
    Some((with_body(delivery, body), record(delivery)))
}

fn record(delivery: &Delivery) -> Record {
    // Counted by quorum queues: how often it came back.
    let returns = number(delivery, "x-delivery-count").unwrap_or(0);
    let before = number(delivery, ATTEMPTS).unwrap_or(0);
    let failures = number(delivery, FAILURES).unwrap_or(0);
    let narrow = |wide: i64| u32::try_from(wide).unwrap_or(0);
    Record { attempts: narrow(1 + before + returns), failures: narrow(failures) }
}

fn with_body(delivery: &Delivery, body: String) -> Message {
    let properties = &delivery.properties;
    let headers = table(delivery).into_iter().flat_map(|table| table.inner());
    Message {
        id: properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default(),
        topic: string(delivery, TOPIC).unwrap_or_else(|| delivery.routing_key.to_string()),
        key: string(delivery, KEY).unwrap_or_default(),
        body,
        headers: headers
            .filter(|(name, _)| !is_reserved(name.as_str()))
            .filter_map(|(name, value)| Some((name.to_string(), as_text(value)?)))
            .collect(),
    }
}

/// A message in a queue of dead letters, put there by a consumer of ours or by RabbitMQ itself.
pub(super) fn dead_letter(delivery: &Delivery) -> DeadLetter {
    let message = with_body(delivery, String::from_utf8_lossy(&delivery.data).into_owned());
    if let (Some(reason), Some(since)) = (string(delivery, REASON), number(delivery, SINCE)) {
        let count = number(delivery, ATTEMPTS).unwrap_or(1);
        return DeadLetter {
            message,
            reason,
            count: u32::try_from(count).unwrap_or(0),
            since_ms: since.cast_unsigned(),
        };
    }
    let before = number(delivery, ATTEMPTS).and_then(|before| u32::try_from(before).ok()).unwrap_or(0);
    let death = table(delivery).and_then(|table| match table.inner().get("x-death") {
        Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice().first(),
        _ => None,
    });
    let time = match death {
        Some(AMQPValue::FieldTable(death)) => match death.inner().get("time") {
            Some(AMQPValue::Timestamp(seconds)) => Some(*seconds),
            _ => None,
        },
        _ => None,
    };
    let (reason, count) = match string(delivery, "x-first-death-reason").as_deref() {
        Some("delivery_limit") => (returned_too_often(), before + MAX_RETURNS + 1),
        Some("rejected") => ("not text, so not a message of this system".to_owned(), before + 1),
        other => (other.unwrap_or("unknown").to_owned(), before + 1),
    };
    DeadLetter { message, reason, count, since_ms: time.unwrap_or(0).saturating_mul(1000) }
}

fn table(delivery: &Delivery) -> Option<&FieldTable> {
    delivery.properties.headers().as_ref()
}

fn header<'a>(delivery: &'a Delivery, name: &str) -> Option<&'a AMQPValue> {
    table(delivery)?.inner().get(name)
}

fn string(delivery: &Delivery, name: &str) -> Option<String> {
    header(delivery, name).and_then(as_text)
}

fn as_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(ShortString::to_string(text)),
        _ => None,
    }
}

fn number(delivery: &Delivery, name: &str) -> Option<i64> {
    match header(delivery, name)? {
        AMQPValue::LongLongInt(n) => Some(*n),
        AMQPValue::LongInt(n) => Some((*n).into()),
        AMQPValue::LongUInt(n) => Some((*n).into()),
        AMQPValue::ShortInt(n) => Some((*n).into()),
        AMQPValue::ShortUInt(n) => Some((*n).into()),
        AMQPValue::ShortShortInt(n) => Some((*n).into()),
        AMQPValue::ShortShortUInt(n) => Some((*n).into()),
        _ => None,
    }
}
