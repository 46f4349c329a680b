//! One round of a relay, without the database: who is published, and what becomes of whom.

use std::{
    any::Any,
    collections::HashSet,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::Duration,
};

use super::{Message, Relay, Relayed, Unsent};
#[cfg(any(feature = "postgres", feature = "sqlx"))]
use crate::saga::participant::seconds;

/// What is to be written about a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Sent,
    Wait { time: Duration, reason: String },
    Parked { reason: String },
}

/// Publishes in the given order, in which the messages of each key are in theirs, and nothing of a key behind a
/// message that waits.
pub(super) async fn publish(
    relay: &Relay,
    messages: Vec<(i64, Message)>,
    mut publisher: impl AsyncFnMut(Message) -> Result<(), Unsent>,
) -> (Vec<(i64, Fate)>, Relayed) {
    let (mut fates, mut relayed) = (Vec::with_capacity(messages.len()), Relayed::default());
    let mut stopped = HashSet::new();
    for (row, message) in messages {
        let line = line(&message);
        if stopped.contains(&line) {
            continue;
        }
        let refusals = message.refusals;
        let answer = caught(async { publisher(message).await }).await;
        let Some(fate) =
            fate(relay, &mut relayed, refusals, answer.unwrap_or_else(|panic| Err(Unsent::Refused(panic))))
        else {
            break;
        };
        if fate.stops(relay) {
            stopped.insert(line);
        }
        fates.push((row, fate));
    }
    (fates, relayed)
}

/// The same in waves: the first message of every key at once, then the second of each key whose first was sent, and so on.
pub(super) async fn publish_many(
    relay: &Relay,
    mut messages: Vec<(i64, Message)>,
    mut publisher: impl AsyncFnMut(Vec<Message>) -> Vec<Result<(), Unsent>>,
) -> (Vec<(i64, Fate)>, Relayed) {
    let (mut fates, mut relayed) = (Vec::with_capacity(messages.len()), Relayed::default());
    let mut stopped = HashSet::new();
    while !messages.is_empty() && relayed.unavailable.is_none() {
        let mut lines = HashSet::new();
        let (wave, later): (Vec<_>, Vec<_>) = messages
            .into_iter()
            .filter(|(_, message)| !stopped.contains(&line(message)))
            .partition(|(_, message)| lines.insert(line(message)));
        if wave.is_empty() {
            break;
        }
        messages = later;
        let sent: Vec<Message> = wave.iter().map(|(_, message)| message.clone()).collect();
        let mut answers = match caught(async { publisher(sent).await }).await {
            Ok(answers) => answers.into_iter(),
            Err(panic) => vec![Err(Unsent::Refused(panic)); wave.len()].into_iter(),
        };
        for (row, message) in wave {
            let unanswered = || Err(Unsent::unavailable("the publisher did not say what became of it"));
            let answer = answers.next().unwrap_or_else(unanswered);
            match fate(relay, &mut relayed, message.refusals, answer) {
                Some(fate) => {
                    if fate.stops(relay) {
                        stopped.insert(line(&message));
                    }
                    fates.push((row, fate));
                }
                None => {
                    stopped.insert(line(&message));
                }
            }
        }
    }
    (fates, relayed)
}

/// What has to come in order.
fn line(message: &Message) -> (String, String) {
    (message.topic.clone(), message.key.clone())
}

impl Fate {
    /// Whether nothing of the same key may follow in this round.
    fn stops(&self, relay: &Relay) -> bool {
        match self {
            Fate::Sent => false,
            Fate::Wait { .. } => true,
            Fate::Parked { .. } => !relay.skip_parked,
        }
    }
}

/// A row whose message was refused, the reason, and the seconds to wait; without them it is parked.
#[cfg(any(feature = "postgres", feature = "sqlx"))]
type Refused = (i64, String, Option<f64>);

/// What the statements for Postgres are given: the rows that were sent, and those that were not.
#[cfg(any(feature = "postgres", feature = "sqlx"))]
pub(super) fn marks(fates: Vec<(i64, Fate)>) -> (Vec<i64>, Vec<Refused>) {
    let (mut sent, mut refused) = (Vec::new(), Vec::new());
    for (row, fate) in fates {
        let (reason, wait) = match fate {
            Fate::Sent => {
                sent.push(row);
                continue;
            }
            Fate::Wait { time, reason } => (reason, Some(seconds(time))),
            Fate::Parked { reason } => (reason, None),
        };
        // A text of Postgres has no zero byte.
        refused.push((row, reason.replace('\0', " "), wait));
    }
    (sent, refused)
}

/// What becomes of a message by the publisher's answer; nothing if it could not be tried.
fn fate(relay: &Relay, relayed: &mut Relayed, refusals: u32, answer: Result<(), Unsent>) -> Option<Fate> {
    let reason = match answer {
        Ok(()) => {
            relayed.sent += 1;
            return Some(Fate::Sent);
        }
        Err(Unsent::Unavailable(reason)) => {
            relayed.unavailable = Some(reason);
            return None;
        }
        Err(Unsent::Refused(reason)) => reason,
    };
    let refusals = refusals.saturating_add(1);
    let wait = relay.backoff.delays(None).nth(refusals.saturating_sub(1) as usize);
    Some(match wait.filter(|_| refusals < relay.attempts) {
        Some(time) => {
            relayed.refused += 1;
            Fate::Wait { time, reason }
        }
        None => {
            relayed.parked += 1;
            Fate::Parked { reason }
        }
    })
}

/// The future's output, or what it said when it panicked.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(said(&*panic))),
    })
    .await
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the publisher panicked: {}", text.unwrap_or("without a message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saga::Payload;

    fn message(id: i64, key: &str) -> (i64, Message) {
        (id, Message::new(&id.to_string(), "events", key, Payload::encode(&id).unwrap()))
    }

    /// The waves that were seen, by the messages' ids.
    async fn waves(
        messages: Vec<(i64, Message)>,
        answer: impl Fn(&str) -> Result<(), Unsent>,
    ) -> (Vec<Vec<String>>, Vec<(i64, Fate)>, Relayed) {
        let mut seen = Vec::new();
        let publisher = async |wave: Vec<Message>| {
            let ids: Vec<String> = wave.into_iter().map(|message| message.id).collect();
            let answers = ids.iter().map(|id| answer(id)).collect();
            seen.push(ids);
            answers
        };
        let (fates, relayed) = publish_many(&Relay::new(), messages, publisher).await;
        (seen, fates, relayed)
    }

    fn three_of_a_and_one_of_b() -> Vec<(i64, Message)> {
        vec![message(1, "a"), message(2, "a"), message(3, "b"), message(4, "a")]
    }

    #[tokio::test]
    async fn a_wave_has_one_message_of_each_key() {
        let (seen, fates, relayed) = waves(three_of_a_and_one_of_b(), |_| Ok(())).await;
        assert_eq!(seen, [vec!["1", "3"], vec!["2"], vec!["4"]]);
        assert_eq!((fates.len(), relayed.sent), (4, 4));
    }

    #[tokio::test]
    async fn behind_a_refused_message_nothing_of_its_key_follows() {
        let (seen, fates, relayed) =
            waves(
                three_of_a_and_one_of_b(),
                |id| if id == "1" { Err(Unsent::refused("no")) } else { Ok(()) },
            )
            .await;
        assert_eq!(seen, [vec!["1", "3"]]);
        assert!(matches!(&fates[..], [(1, Fate::Wait { .. }), (3, Fate::Sent)]));
        assert_eq!((relayed.sent, relayed.refused), (1, 1));
    }

    #[tokio::test]
    async fn an_outage_ends_the_round_and_keeps_what_was_sent_before() {
        let away = |id: &str| if id == "1" { Err(Unsent::unavailable("away")) } else { Ok(()) };
        let (seen, fates, relayed) = waves(three_of_a_and_one_of_b(), away).await;
        assert_eq!(seen, [vec!["1", "3"]]);
        assert_eq!(fates, [(3, Fate::Sent)]);
        assert_eq!(relayed.unavailable.as_deref(), Some("away"));
    }

    #[tokio::test]
    async fn what_is_not_answered_for_was_not_sent_and_a_panic_refuses_the_wave() {
        let messages = three_of_a_and_one_of_b();
        let (fates, relayed) = publish_many(&Relay::new(), messages.clone(), async |_| vec![Ok(())]).await;
        assert_eq!((fates, relayed.unavailable.is_some()), (vec![(1, Fate::Sent)], true));
        let (fates, relayed) = publish_many(&Relay::new(), messages, async |_| panic!("planted")).await;
        assert!(fates.iter().all(|(_, fate)| matches!(fate, Fate::Wait { .. })));
        assert_eq!((fates.len(), relayed.refused), (2, 2));
    }
}
