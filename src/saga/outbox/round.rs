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
        let line = (message.topic.clone(), message.key.clone());
        if stopped.contains(&line) {
            continue;
        }
        let refusals = message.refusals.saturating_add(1);
        let fate = match caught(async { publisher(message).await }).await {
            Ok(Ok(())) => {
                relayed.sent += 1;
                Fate::Sent
            }
            Ok(Err(Unsent::Unavailable(reason))) => {
                relayed.unavailable = Some(reason);
                break;
            }
            Ok(Err(Unsent::Refused(reason))) | Err(reason) => {
                let wait = relay.backoff.delays(None).nth(refusals.saturating_sub(1) as usize);
                match wait.filter(|_| refusals < relay.attempts) {
                    Some(time) => {
                        relayed.refused += 1;
                        stopped.insert(line);
                        Fate::Wait { time, reason }
                    }
                    None => {
                        relayed.parked += 1;
                        if !relay.skip_parked {
                            stopped.insert(line);
                        }
                        Fate::Parked { reason }
                    }
                }
            }
        };
        fates.push((row, fate));
    }
    (fates, relayed)
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
