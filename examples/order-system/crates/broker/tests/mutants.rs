//! The suite has to catch these: brokers in memory, each with one mistake that is made in real systems.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use order_broker::conformance::{self as suite, Check, Place};
use order_broker::{
    BoxFuture, Broker, BrokerError, Consumer, DeadLetter, Delivery, Fate, Memory, Message, PublishError,
    Settle, Settlement, Stats, Topology, Which,
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mistake {
    None,
    /// Two services consume the same queue, so each event reaches one of them.
    OneQueueForAll,
    /// A queue without a dead-letter exchange: what is given up is gone.
    DeadAreDiscarded,
    /// `noAck`: done when handed out.
    AckedBeforeHandled,
    PrefetchIgnored,
    /// A message is taken before the last await of `next`.
    NextLosesWhatItTook,
    KeysIgnored,
    UnroutableIsConfirmed,
    /// Who has declared nothing hears that nobody wants his messages.
    UndeclaredIsUnroutable,
    StarStandsForAnyNumber,
    /// An event emitter: each process has its own.
    OneBrokerPerProcess,
    /// `nack` with requeue: poison comes back for ever.
    FailuresAreNotCounted,
    /// Confirmed when it is sent, not when it is stored.
    ConfirmedTooEarly,
    PublishedTwice,
    HeadersAreLost,
    ReplayGoesToAll,
}

use Mistake::*;

struct Broken {
    inner: Memory,
    mistake: Mistake,
}

impl Broken {
    fn name<'a>(&self, queue: &'a str) -> &'a str {
        if self.mistake == OneQueueForAll { "all" } else { queue }
    }
}

impl Broker for Broken {
    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), BrokerError>> {
        let mut topology = topology.clone();
        match self.mistake {
            OneQueueForAll => topology.queues.iter_mut().for_each(|queue| queue.name = "all".to_owned()),
            StarStandsForAnyNumber => {
                for pattern in topology.queues.iter_mut().flat_map(|queue| &mut queue.bindings) {
                    *pattern = pattern.replace('*', "#");
                }
            }
            _ => {}
        }
        Box::pin(async move { self.inner.declare(&topology).await })
    }

    fn publish(&self, mut messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        Box::pin(async move {
            let count = messages.len();
            match self.mistake {
                KeysIgnored => {
                    for message in &mut messages {
                        let key = std::mem::take(&mut message.key);
                        message.headers.insert("key".to_owned(), key);
                    }
                }
                PublishedTwice => messages = messages.iter().flat_map(|m| [m.clone(), m.clone()]).collect(),
                UndeclaredIsUnroutable
                    if self.inner.topology().await.is_ok_and(|it| it.exchange.is_empty()) =>
                {
                    return messages
                        .into_iter()
                        .map(|message| Err(PublishError::Unroutable { topic: message.topic }))
                        .collect();
                }
                HeadersAreLost => messages.iter_mut().for_each(|message| message.headers.clear()),
                ConfirmedTooEarly => {
                    let inner = self.inner.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_secs(3600)).await;
                        inner.publish(messages).await
                    });
                    return vec![Ok(()); count];
                }
                _ => {}
            }
            let results = self.inner.publish(messages).await;
            if self.mistake == UnroutableIsConfirmed {
                return vec![Ok(()); count];
            }
            results.into_iter().take(count).collect()
        })
    }

    fn consume<'a>(
        &'a self,
        queue: &'a str,
        prefetch: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>, BrokerError>> {
        Box::pin(async move {
            let prefetch = if self.mistake == PrefetchIgnored { prefetch.max(100) } else { prefetch };
            let inner = self.inner.consume(self.name(queue), prefetch).await?;
            Ok(Box::new(BrokenConsumer { inner, mistake: self.mistake }) as Box<dyn Consumer>)
        })
    }

    fn stats<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<Stats, BrokerError>> {
        Box::pin(async move {
            if self.mistake == DeadAreDiscarded {
                self.inner.discard(queue, Which::All).await?;
            }
            self.inner.stats(self.name(queue)).await
        })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.check()
    }

    fn dead_letters<'a>(
        &'a self,
        queue: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<DeadLetter>, BrokerError>> {
        self.inner.dead_letters(self.name(queue), limit)
    }

    fn replay<'a>(&'a self, queue: &'a str, which: Which) -> BoxFuture<'a, Result<u64, BrokerError>> {
        Box::pin(async move {
            if self.mistake != ReplayGoesToAll {
                return self.inner.replay(queue, which).await;
            }
            let letters = self.inner.dead_letters(queue, usize::MAX).await?;
            let meant = letters.into_iter().map(|letter| letter.message).filter(|m| which.has(&m.id));
            self.inner.publish(meant.collect()).await;
            self.inner.discard(queue, which).await
        })
    }

    fn discard<'a>(&'a self, queue: &'a str, which: Which) -> BoxFuture<'a, Result<u64, BrokerError>> {
        self.inner.discard(queue, which)
    }

    fn topology(&self) -> BoxFuture<'_, Result<Topology, BrokerError>> {
        self.inner.topology()
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}

struct BrokenConsumer {
    inner: Box<dyn Consumer>,
    mistake: Mistake,
}

impl Consumer for BrokenConsumer {
    fn next(&mut self) -> BoxFuture<'_, Result<Delivery, BrokerError>> {
        Box::pin(async {
            let delivery = self.inner.next().await?;
            if self.mistake == NextLosesWhatItTook {
                tokio::task::yield_now().await;
            }
            let (mut message, attempt) = (delivery.message().clone(), delivery.attempt());
            if let Some(key) = message.headers.remove("key") {
                message.key = key;
            }
            let settle: Box<dyn Settle> = if self.mistake == AckedBeforeHandled {
                delivery.ack().await?;
                Box::new(NothingToDo)
            } else {
                Box::new(PassedOn { delivery, mistake: self.mistake })
            };
            Ok(Delivery::new(message, attempt, settle))
        })
    }

    fn next_batch(&mut self, _max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, BrokerError>> {
        Box::pin(async { Ok(vec![self.next().await?]) })
    }
}

struct NothingToDo;

impl Settle for NothingToDo {
    fn settle(self: Box<Self>, _how: Settlement) -> BoxFuture<'static, Result<Fate, BrokerError>> {
        Box::pin(async { Ok(Fate::Done) })
    }
}

struct PassedOn {
    delivery: Delivery,
    mistake: Mistake,
}

impl Settle for PassedOn {
    fn settle(self: Box<Self>, how: Settlement) -> BoxFuture<'static, Result<Fate, BrokerError>> {
        let Self { delivery, mistake } = *self;
        match how {
            Settlement::Retry(_) if mistake == FailuresAreNotCounted => {
                drop(delivery);
                Box::pin(async { Ok(Fate::Again(Duration::from_millis(20))) })
            }
            Settlement::Retry(reason) => delivery.retry(reason),
            Settlement::Ack => {
                let acked = delivery.ack();
                Box::pin(async { acked.await.map(|()| Fate::Done) })
            }
            Settlement::Reject(reason) => {
                let rejected = delivery.reject(reason);
                Box::pin(async { rejected.await.map(|()| Fate::Dead) })
            }
            Settlement::Return => {
                drop(delivery);
                Box::pin(async { Ok(Fate::Again(Duration::ZERO)) })
            }
        }
    }
}

struct Here {
    shared: Memory,
    mistake: Mistake,
}

impl Place for Here {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Broker>> {
        let inner = if self.mistake == OneBrokerPerProcess { Memory::new() } else { self.shared.clone() };
        let broken = Broken { inner, mistake: self.mistake };
        Box::pin(async { Arc::new(broken) as Arc<dyn Broker> })
    }
}

fn passes(mistake: Mistake, check: Check) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let place = Here { shared: Memory::new(), mistake };
    runtime.unwrap().block_on(AssertUnwindSafe(check(&place)).catch_unwind()).is_ok()
}

#[test]
fn each_mistake_is_caught_by_the_check_that_is_made_for_it() {
    let cases: [(Mistake, Check); 15] = [
        (OneQueueForAll, suite::each_queue_gets_each_event),
        (DeadAreDiscarded, suite::poison_dies_with_reason_and_count_and_others_pass),
        (AckedBeforeHandled, suite::a_dropped_delivery_returns),
        (PrefetchIgnored, suite::nobody_holds_more_than_its_prefetch),
        (NextLosesWhatItTook, suite::a_dropped_next_loses_nothing),
        (KeysIgnored, suite::order_per_key_is_kept_over_retries),
        (UndeclaredIsUnroutable, suite::who_only_publishes_declares_the_exchange_alone),
        (UnroutableIsConfirmed, suite::what_nobody_wants_is_told),
        (StarStandsForAnyNumber, suite::topics_are_matched_by_the_one_table),
        (OneBrokerPerProcess, suite::what_one_publishes_another_one_gets),
        (FailuresAreNotCounted, suite::poison_dies_with_reason_and_count_and_others_pass),
        (ConfirmedTooEarly, suite::what_is_confirmed_is_in_the_queue),
        (PublishedTwice, suite::two_consumers_share_without_loss_and_without_doubles),
        (HeadersAreLost, suite::a_message_comes_as_it_was_sent),
        (ReplayGoesToAll, suite::the_dead_are_replayed),
    ];
    for (mistake, check) in cases {
        assert!(passes(Mistake::None, check), "the check for {mistake:?} passes without it");
        assert!(!passes(mistake, check), "{mistake:?} is not caught");
    }
}
