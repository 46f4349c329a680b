//! The queue of dead letters: looked at, replayed, discarded. All by fetching without acknowledging, so that what is not
//! taken stays.

use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicGetOptions};

use super::link::Link;
use super::wire::{self, Record};
use crate::{BrokerError, DeadLetter, Queue, Which};

pub(super) async fn look(link: &Link, queue: &Queue, limit: usize) -> Result<Vec<DeadLetter>, BrokerError> {
    let mut letters = Vec::new();
    let mut fetching = Fetching::start(link, queue).await?;
    while letters.len() < limit {
        let Some(delivery) = fetching.next().await? else { break };
        letters.push(wire::dead_letter(&delivery));
    }
    fetching.put_back().await?;
    Ok(letters)
}

pub(super) async fn take(
    link: &Link,
    queue: &Queue,
    which: &Which,
    replay: bool,
) -> Result<u64, BrokerError> {
    let mut taken = 0;
    let mut fetching = Fetching::start(link, queue).await?;
    while let Some(delivery) = fetching.next().await? {
        let letter = wire::dead_letter(&delivery);
        if !which.has(&letter.message.id) {
            continue;
        }
        if replay {
            let properties = wire::properties(&letter.message, Record::default());
            link.send_to(link.names(queue).main, delivery.data.clone(), properties).await?;
        }
        delivery.ack(BasicAckOptions::default()).await.map_err(|error| link.fault(&error))?;
        taken += 1;
    }
    fetching.put_back().await?;
    Ok(taken)
}

/// Fetches each letter that was there at the start once.
struct Fetching<'a> {
    link: &'a Link,
    channel: Channel,
    queue: String,
    left: Option<u32>,
}

impl<'a> Fetching<'a> {
    async fn start(link: &'a Link, queue: &Queue) -> Result<Self, BrokerError> {
        let channel = link.channel().await?;
        Ok(Self { link, channel, queue: link.names(queue).dead, left: None })
    }

    async fn next(&mut self) -> Result<Option<Delivery>, BrokerError> {
        if self.left == Some(0) {
            return Ok(None);
        }
        let fetched = self.channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default()).await;
        let Some(fetched) = fetched.map_err(|error| self.link.fault(&error))? else { return Ok(None) };
        self.left = Some(self.left.map_or(fetched.message_count, |left| left - 1));
        Ok(Some(fetched.delivery))
    }

    /// Gives back what was not acknowledged. Dropping it instead does the same a little later.
    async fn put_back(self) -> Result<(), BrokerError> {
        self.channel.close(200, "OK".into()).await.map_err(|error| self.link.fault(&error))
    }
}
