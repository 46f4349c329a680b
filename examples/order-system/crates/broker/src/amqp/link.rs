//! The connection: made when it is needed and not there, with the declared topology put onto it again.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind};

use super::address::Address;
use crate::{BrokerError, MAX_RETURNS, Queue, Topology};

/// How long the broker may take to confirm a message before it counts as unconfirmed.
const CONFIRMATION: Duration = Duration::from_secs(30);

/// A little more than the attempt to connect, which has a limit of its own.
const CONNECTING: Duration = Duration::from_secs(8);

/// Far beyond what anybody looks at a dead letter.
const NO_LIMIT: i64 = 1_000_000_000;

pub(super) struct Link {
    address: Address,
    topology: Mutex<Topology>,
    live: tokio::sync::Mutex<Option<Live>>,
    unacked: Mutex<HashMap<String, Arc<AtomicU64>>>,
    pub(super) runtime: tokio::runtime::Handle,
}

/// A connection that works, as far as is known.
#[derive(Clone)]
struct Live {
    connection: Arc<Connection>,
    /// With confirms.
    publisher: Channel,
}

/// The queues that stand for one queue of ours.
pub(super) struct Names {
    pub(super) main: String,
    pub(super) dead: String,
    /// With the wait of each.
    pub(super) retries: Vec<(String, Duration)>,
}

impl Link {
    pub(super) fn new(address: Address) -> Self {
        Self {
            address,
            topology: Mutex::default(),
            live: tokio::sync::Mutex::default(),
            unacked: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    pub(super) fn shown(&self) -> &str {
        &self.address.shown
    }

    pub(super) fn topology(&self) -> Topology {
        self.topology.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The exchange's name on the server; empty before the first declaration.
    pub(super) fn exchange(&self) -> String {
        let topology = self.topology.lock().unwrap_or_else(PoisonError::into_inner);
        if topology.exchange.is_empty() { String::new() } else { self.named(&topology.exchange) }
    }

    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.address.prefix)
    }

    /// The settings of a queue that was declared through this broker.
    pub(super) fn queue(&self, name: &str) -> Result<Queue, BrokerError> {
        let topology = self.topology.lock().unwrap_or_else(PoisonError::into_inner);
        topology.find(name).cloned().ok_or_else(|| BrokerError::UnknownQueue(name.to_owned()))
    }

    pub(super) fn names(&self, queue: &Queue) -> Names {
        let main = self.named(&queue.name);
        let waits: BTreeSet<Duration> =
            (1..queue.max_attempts).map(|failures| step(queue.backoff.after(failures))).collect();
        Names {
            dead: format!("{main}.dead"),
            retries: waits.into_iter().map(|wait| (retry_name(&main, wait), wait)).collect(),
            main,
        }
    }

    /// Where a message waits after so many failures, and for how long.
    pub(super) fn retry(&self, queue: &Queue, failures: u32) -> (String, Duration) {
        let wait = step(queue.backoff.after(failures));
        (retry_name(&self.named(&queue.name), wait), wait)
    }

    /// How many deliveries of the queue are with consumers of this broker.
    pub(super) fn unacked(&self, queue: &str) -> Arc<AtomicU64> {
        let mut counts = self.unacked.lock().unwrap_or_else(PoisonError::into_inner);
        counts.entry(queue.to_owned()).or_default().clone()
    }

    // --- connecting ---

    /// The connection, made anew if there is none. Whoever comes meanwhile waits for the same attempt.
    async fn live(&self) -> Result<Live, BrokerError> {
        let mut slot = self.live.lock().await;
        if let Some(live) = slot.as_ref() {
            if live.connection.status().connected() && live.publisher.status().connected() {
                return Ok(live.clone());
            }
            tracing::warn!(address = %self.address.shown, "the connection to the broker is lost");
            // The half that is still there goes too, so that all start afresh.
            if let Some(live) = slot.take() {
                drop(tokio::time::timeout(CONNECTING, live.connection.close(200, "OK".into())).await);
            }
        }
        let live = match tokio::time::timeout(CONNECTING, self.connect()).await {
            Ok(connected) => connected?,
            Err(_) => return Err(self.unreachable("no answer in time")),
        };
        tracing::info!(address = %self.address.shown, "connected to the broker");
        *slot = Some(live.clone());
        Ok(live)
    }

    async fn connect(&self) -> Result<Live, BrokerError> {
        let properties = ConnectionProperties::default().with_connection_name("order-broker".into());
        let connection = Connection::connect_uri(self.address.uri.clone(), properties)
            .await
            .map_err(|error| self.unreachable(error))?;
        let publisher = connection.create_channel().await.map_err(|error| self.fault(&error))?;
        let confirms = publisher.confirm_select(ConfirmSelectOptions::default()).await;
        confirms.map_err(|error| self.fault(&error))?;
        let live = Live { connection: Arc::new(connection), publisher };
        self.declare_on(&live, &self.topology()).await?;
        Ok(live)
    }

    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        self.live().await?.connection.create_channel().await.map_err(|error| self.fault(&error))
    }

    pub(super) fn unreachable(&self, reason: impl ToString) -> BrokerError {
        BrokerError::Unreachable { address: self.address.shown.clone(), reason: reason.to_string() }
    }

    /// What the server refused is a failure; everything else means that it is not there.
    pub(super) fn fault(&self, error: &lapin::Error) -> BrokerError {
        match error.kind() {
            lapin::ErrorKind::ProtocolError(refusal) => BrokerError::Failed(refusal.to_string()),
            _ => self.unreachable(error),
        }
    }

    // --- declaring ---

    pub(super) async fn declare(&self, topology: &Topology) -> Result<(), BrokerError> {
        for queue in &topology.queues {
            for name in self.names(queue).all().chain([&self.named(&topology.exchange)]) {
                if name.len() > 255 {
                    return Err(BrokerError::Invalid(format!("the name `{name}` is longer than 255 bytes")));
                }
            }
        }
        self.know(topology);
        self.declare_on(&self.live().await?, topology).await
    }

    /// Takes in what is known to be there.
    pub(super) fn know(&self, topology: &Topology) {
        self.topology.lock().unwrap_or_else(PoisonError::into_inner).merge(topology);
    }

    async fn declare_on(&self, live: &Live, topology: &Topology) -> Result<(), BrokerError> {
        if topology.exchange.is_empty() {
            return Ok(());
        }
        // On a channel of its own: a refusal closes it.
        let channel = live.connection.create_channel().await.map_err(|error| self.fault(&error))?;
        self.declare_through(&channel, topology).await.map_err(|error| self.fault(&error))
    }

    async fn declare_through(&self, channel: &Channel, topology: &Topology) -> lapin::Result<()> {
        let exchange = ShortString::from(self.named(&topology.exchange));
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel
            .exchange_declare(exchange.clone(), ExchangeKind::Topic, durable, FieldTable::default())
            .await?;
        for queue in &topology.queues {
            let names = self.names(queue);
            declare_queue(channel, &names.dead, &[("x-delivery-limit", NO_LIMIT.into())]).await?;
            // Whatever RabbitMQ itself gives up must not be discarded, as it would without a dead-letter exchange.
            let limit = ("x-delivery-limit", i64::from(MAX_RETURNS).into());
            declare_queue(
                channel,
                &names.main,
                &[limit].into_iter().chain(dies_into(&names.dead)).collect::<Vec<_>>(),
            )
            .await?;
            for (retry, wait) in &names.retries {
                let ttl = ("x-message-ttl", i64::try_from(wait.as_millis()).unwrap_or(i64::MAX).into());
                let then = dies_into(&names.main);
                declare_queue(channel, retry, &[ttl].into_iter().chain(then).collect::<Vec<_>>()).await?;
            }
            for pattern in &queue.bindings {
                let options = QueueBindOptions::default();
                let pattern = pattern.as_str().into();
                channel
                    .queue_bind(
                        names.main.as_str().into(),
                        exchange.clone(),
                        pattern,
                        options,
                        FieldTable::default(),
                    )
                    .await?;
            }
        }
        Ok(())
    }

    // --- publishing ---

    /// Sends messages, each to an exchange and a routing key, and answers for each when it is confirmed: whether a queue took it.
    pub(super) async fn send(
        &self,
        messages: Vec<(String, String, Vec<u8>, BasicProperties)>,
    ) -> Vec<Result<bool, BrokerError>> {
        let count = messages.len();
        let live = match self.live().await {
            Ok(live) => live,
            Err(error) => return vec![Err(error); count],
        };
        let confirmed = async {
            let mut sent = Vec::with_capacity(count);
            for (exchange, routing_key, body, properties) in messages {
                let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
                let (exchange, routing_key) = (exchange.into(), routing_key.into());
                sent.push(
                    live.publisher.basic_publish(exchange, routing_key, options, &body, properties).await,
                );
            }
            let mut results = Vec::with_capacity(count);
            for confirm in sent {
                let confirmation = match confirm {
                    Ok(confirm) => confirm.await,
                    Err(error) => Err(error),
                };
                results.push(match confirmation {
                    Ok(Confirmation::Ack(returned)) => Ok(returned.is_none()),
                    Ok(Confirmation::Nack(_)) => Err(BrokerError::Failed("the broker refused it".to_owned())),
                    Ok(Confirmation::NotRequested) => {
                        Err(BrokerError::Failed("the channel has no confirms".to_owned()))
                    }
                    Err(error) => Err(self.fault(&error)),
                });
            }
            results
        };
        match tokio::time::timeout(CONFIRMATION, confirmed).await {
            Ok(results) => results,
            Err(_) => vec![Err(self.unreachable("no confirmation in time")); count],
        }
    }

    /// Sends one message straight to a queue that has to be there.
    pub(super) async fn send_to(
        &self,
        queue: String,
        body: Vec<u8>,
        properties: BasicProperties,
    ) -> Result<(), BrokerError> {
        let gone = BrokerError::Failed(format!("the queue `{queue}` is gone"));
        match self.send(vec![(String::new(), queue, body, properties)]).await.pop() {
            Some(Ok(true)) => Ok(()),
            Some(Ok(false)) | None => Err(gone),
            Some(Err(error)) => Err(error),
        }
    }
}

/// Whether the server says that there is no such queue.
pub(super) fn is_missing(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(refusal) if refusal.get_id() == 404)
}

impl Names {
    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        [&self.main, &self.dead].into_iter().chain(self.retries.iter().map(|(name, _)| name))
    }
}

/// RabbitMQ counts whole milliseconds, and a wait of none would be no wait.
fn step(wait: Duration) -> Duration {
    Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).clamp(1, 86_400_000))
}

fn retry_name(main: &str, wait: Duration) -> String {
    format!("{main}.retry.{}ms", wait.as_millis())
}

/// What leaves the queue by itself goes over into that one, and leaves only when that one has it.
fn dies_into(queue: &str) -> [(&'static str, AMQPValue); 4] {
    let text = |text: &str| AMQPValue::LongString(text.into());
    [
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(queue)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]
}

/// A quorum queue: it writes each message to the disk before it confirms, and counts how often one has come back.
async fn declare_queue(
    channel: &Channel,
    name: &str,
    arguments: &[(&'static str, AMQPValue)],
) -> lapin::Result<()> {
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    for (argument, value) in arguments {
        table.insert((*argument).into(), value.clone());
    }
    channel.queue_declare(name.into(), QueueDeclareOptions::durable(), table).await.map(drop)
}
