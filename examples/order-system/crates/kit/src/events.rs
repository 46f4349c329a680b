//! Events: what services tell each other through the broker.
//!
//! An event is put into the outbox in the transaction that makes it true ([`emit`]), taken to the broker by the [relay](start_relay), and
//! handled once by each consumer that has a queue for it ([`consume`]).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mainstay::saga::outbox::{Message as Outgoing, Unsent};
use order_broker::{Broker, Delivery, Message, PublishError, Queue, Topology};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, value::to_raw_value};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::{
    ApiError, Context, Db, Tx,
    db::{self, DbError},
    metric, trace,
};

/// The exchange that all services publish to.
pub const EXCHANGE: &str = "events";
/// The version of the envelope.
pub const VERSION: &str = "1.0";

/// How long a start waits for a queue to be there. Several are waited for one after another, and a broker that takes no connection and
/// refuses none would keep each waiting for as long as it takes to give one up.
const DECLARE: Duration = Duration::from_secs(2);

/// An event with what stands around it. The same fields in the outbox, in the queue and in a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Envelope {
    /// Its own name; the same each time it is delivered.
    #[schema(format = "uuid")]
    pub id: String,
    /// What has happened: `order.created`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it says.
    pub data: Value,
    /// About itself.
    pub metadata: Metadata,
}

/// About an event. Whoever emits it says which service it is; the rest is not theirs to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// When, as RFC 3339.
    #[schema(format = DateTime)]
    pub timestamp: String,
    /// Of the envelope.
    #[schema(pattern = "^1\\.0$")]
    pub version: String,
    /// Which service says so.
    pub source: String,
    /// Of the order, or request, that all this comes from.
    pub correlation_id: String,
    /// The trace that it is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// What came of an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Not now; it is delivered again.
    #[error("{0}")]
    Later(String),
    /// It can't be handled; it becomes a dead letter.
    #[error("{0}")]
    Poison(String),
}

impl From<DbError> for Trouble {
    fn from(error: DbError) -> Self {
        Trouble::Later(error.to_string())
    }
}

/// What no time heals becomes a dead letter.
impl From<ApiError> for Trouble {
    fn from(error: ApiError) -> Self {
        if error.status.is_server_error() {
            Trouble::Later(error.to_string())
        } else {
            Trouble::Poison(error.to_string())
        }
    }
}

impl Envelope {
    /// The data as the type that its kind has.
    ///
    /// # Errors
    ///
    /// [`Trouble::Poison`] if it isn't that.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, Trouble> {
        T::deserialize(&self.data).map_err(|error| Trouble::Poison(format!("{}: {error}", self.kind)))
    }
}

/// Puts an event into the outbox. It is published if, and only if, the transaction is committed; events of one `key` in their order.
/// Returns its [`Envelope`] as the text that is published.
///
/// # Errors
///
/// The database's.
pub async fn emit<T: Serialize + ?Sized>(
    tx: &Tx<'_>,
    source: &str,
    kind: &str,
    key: &str,
    data: &T,
) -> Result<String, DbError> {
    let unwritable = |error: serde_json::Error| DbError::Statement(error.to_string());
    let envelope = Envelope {
        id: crate::new_id(),
        kind: kind.to_owned(),
        data: serde_json::to_value(data).map_err(unwritable)?,
        metadata: Metadata {
            timestamp: crate::iso(crate::now_ms()),
            version: VERSION.to_owned(),
            source: source.to_owned(),
            correlation_id: trace::correlation().unwrap_or_else(|| key.to_owned()),
            traceparent: trace::traceparent(),
        },
    };
    let text = to_raw_value(&envelope).map_err(unwritable)?;
    tx.outbox(EXCHANGE, key, &text).await?;
    Ok(Box::<str>::from(text).into_string())
}

/// Takes what is in the outbox of this database to the broker, until the service ends and the outbox is empty or the broker away. What
/// the last requests write is taken as well: it goes on until they have been answered.
///
/// Who only publishes declares no queue, so the exchange is declared before the first event goes. Until that has been done the outbox keeps all.
pub fn start_relay(context: &Context, db: &Db) {
    let (broker, db) = (context.broker().clone(), db.clone());
    let (service, outbox) = (context.name(), db.clone());
    context.measured(move || {
        let outbox = outbox.clone();
        async move {
            let unsent: Result<i64, DbError> = outbox.read(async |tx| tx.unsent().await).await;
            if let Ok(unsent) = unsent {
                metrics::gauge!(metric::OUTBOX_UNSENT, "service" => service).set(unsent as f64);
            }
        }
    });
    let declared = Arc::new(OnceCell::new());
    let publish: db::Publish = Arc::new(move |messages| {
        let (broker, declared) = (broker.clone(), declared.clone());
        Box::pin(async move {
            let exchange = Topology::new(EXCHANGE);
            match declared.get_or_try_init(|| broker.declare(&exchange)).await {
                Ok(()) => publish(&*broker, messages).await,
                Err(error) => counted(vec![Err(Unsent::unavailable(error)); messages.len()]),
            }
        })
    });
    let (service, quiet) = (context.clone(), CancellationToken::new());
    context.spawn(async move {
        let answered = async {
            service.stop().cancelled().await;
            service.served().await;
            quiet.cancel();
        };
        let (relayed, ()) = futures::join!(db::run_relay(&db, publish, quiet.clone()), answered);
        if let Err(error) = relayed {
            tracing::error!(%error, "the relay has ended");
        }
    });
}

async fn publish(broker: &dyn Broker, messages: Vec<Outgoing>) -> Vec<Result<(), Unsent>> {
    let message = |outgoing: &Outgoing| {
        let envelope: Envelope = outgoing.payload.decode()?;
        let metadata = envelope.metadata;
        let mut headers = BTreeMap::from([(trace::CORRELATION_ID.to_owned(), metadata.correlation_id)]);
        headers.extend(metadata.traceparent.map(|value| (trace::TRACEPARENT.to_owned(), value)));
        Ok::<_, serde_json::Error>(Message {
            id: envelope.id,
            topic: envelope.kind,
            key: outgoing.key.clone(),
            body: outgoing.payload.as_str().to_owned(),
            headers,
        })
    };
    // What cannot be read is refused in its place; the rest is published together.
    let mut answers: Vec<Option<Result<(), Unsent>>> = Vec::with_capacity(messages.len());
    let mut good = Vec::with_capacity(messages.len());
    for outgoing in &messages {
        match message(outgoing) {
            Ok(message) => {
                good.push(message);
                answers.push(None);
            }
            Err(error) => answers.push(Some(Err(Unsent::refused(error)))),
        }
    }
    let mut published = broker.publish(good).await.into_iter().map(|answer| match answer {
        // Nobody has asked for it yet: that is no fault, and it is nobody's loss.
        Ok(()) | Err(PublishError::Unroutable { .. }) => Ok(()),
        Err(PublishError::Unconfirmed(error)) => Err(Unsent::unavailable(error)),
    });
    let unanswered = || Err(Unsent::unavailable("the broker did not say what became of it"));
    let answers: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.unwrap_or_else(|| published.next().unwrap_or_else(unanswered)))
        .collect();
    counted(answers)
}

fn counted(answers: Vec<Result<(), Unsent>>) -> Vec<Result<(), Unsent>> {
    let of = |wanted: fn(&Result<(), Unsent>) -> bool| answers.iter().filter(|it| wanted(it)).count() as u64;
    let counts = [
        ("ok", of(|answer| answer.is_ok())),
        ("unavailable", of(|answer| matches!(answer, Err(Unsent::Unavailable(_))))),
        ("refused", of(|answer| matches!(answer, Err(Unsent::Refused(_))))),
    ];
    for (outcome, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        metrics::counter!(metric::EVENTS_PUBLISHED_TOTAL, "outcome" => outcome).increment(count);
    }
    answers
}

/// A queue whose events are handled again for more than a day, however long somebody is away: for what moves orders on, where a dead letter
/// would be goods that nobody can buy, or a customer's money.
pub fn patient(name: &str) -> Queue {
    Queue::new(name).max_attempts(10_000).backoff(Duration::from_millis(100), Duration::from_secs(10))
}

/// Handles what comes into a queue, one after another or up to `parallel` at once, until the service ends.
///
/// The handler runs in its own span within the event's trace. `Ok` acknowledges; it is up to the handler to do so once: [`Tx::inbox`] with
/// [`Envelope::id`] in its transaction.
///
/// # Errors
///
/// That the queue could not be made.
pub async fn consume<F>(
    context: &Context,
    queue: Queue,
    parallel: u16,
    handler: impl Fn(Envelope) -> F + Send + Sync + 'static,
) -> Result<(), order_broker::BrokerError>
where
    F: Future<Output = Result<(), Trouble>> + Send + 'static,
{
    consume_from(context, context.broker().clone(), queue, parallel, handler).await
}

/// The same with a queue of another broker than the service's own.
///
/// # Errors
///
/// As of [`consume`].
pub async fn consume_from<F>(
    context: &Context,
    broker: Arc<dyn Broker>,
    queue: Queue,
    parallel: u16,
    handler: impl Fn(Envelope) -> F + Send + Sync + 'static,
) -> Result<(), order_broker::BrokerError>
where
    F: Future<Output = Result<(), Trouble>> + Send + 'static,
{
    let name = queue.name.clone();
    let topology = Topology::new(EXCHANGE).queue(queue);
    let (stop, service) = (context.stop().clone(), context.name());
    let handler = Arc::new(handler);
    let (holder, held) = (broker.clone(), name.clone());
    context.measured(move || {
        let (broker, queue) = (holder.clone(), held.clone());
        async move {
            if let Ok(stats) = broker.stats(&queue).await {
                for (name, value) in
                    [(metric::QUEUE_BACKLOG, stats.backlog()), (metric::QUEUE_DEAD, stats.dead)]
                {
                    metrics::gauge!(name, "service" => service, "queue" => queue.clone()).set(value as f64);
                }
            }
        }
    });
    context.wait_for("its queues");
    context.attend(&name, false);
    // A broker that is away, or says nothing, is no reason not to start: what is to be declared waits for it.
    let mut declared = match tokio::time::timeout(DECLARE, broker.declare(&topology)).await {
        Ok(Err(error @ order_broker::BrokerError::Invalid(_))) => return Err(error),
        declared => matches!(declared, Ok(Ok(()))),
    };
    // Where it is there, the service is not built before it consumes.
    let mut first = if declared { Some(broker.consume(&name, parallel).await) } else { None };
    context.attend(&name, matches!(first, Some(Ok(_))));
    let attending = context.clone();
    context.spawn(async move {
        while !stop.is_cancelled() {
            if !declared {
                declared = broker.declare(&topology).await.is_ok();
            }
            let consumer = match first.take() {
                Some(first) => first,
                None => broker.consume(&name, parallel).await,
            };
            attending.attend(&name, consumer.is_ok());
            let mut consumer = match consumer {
                Ok(consumer) => consumer,
                Err(error) => {
                    tracing::warn!(%error, queue = name, "cannot consume");
                    declared = false;
                    tokio::select! {
                        () = tokio::time::sleep(Duration::from_millis(200)) => continue,
                        () = stop.cancelled() => break,
                    }
                }
            };
            let mut running = tokio::task::JoinSet::new();
            loop {
                while running.try_join_next().is_some() {}
                let next = tokio::select! {
                    next = consumer.next() => next,
                    () = stop.cancelled() => break,
                };
                match next {
                    Ok(delivery) => {
                        let (handler, queue) = (handler.clone(), name.clone());
                        running.spawn(async move { handle(service, &queue, &*handler, delivery).await });
                    }
                    Err(error) => {
                        tracing::warn!(%error, queue = name, "the consumer broke");
                        attending.attend(&name, false);
                        break;
                    }
                }
            }
            while running.join_next().await.is_some() {}
        }
    });
    Ok(())
}

async fn handle<F>(
    service: &'static str,
    queue: &str,
    handler: &(impl Fn(Envelope) -> F + Sync),
    delivery: Delivery,
) where
    F: Future<Output = Result<(), Trouble>> + Send,
{
    let message = delivery.message();
    let header = |name: &str| message.headers.get(name).map(String::as_str);
    let parent = header(trace::TRACEPARENT).map(str::to_owned);
    let span = trace::span_in(parent.as_deref(), || {
        tracing::info_span!(
            "consume", otel.kind = "consumer", otel.name = %format_args!("{queue} {}", message.topic),
            messaging.destination = queue, messaging.message.id = message.id, otel.status_code = tracing::field::Empty,
        )
    });
    let correlation = header(trace::CORRELATION_ID).unwrap_or(&message.key).to_owned();
    let envelope: Result<Envelope, _> = serde_json::from_str(&message.body);
    let work = async {
        let began = tokio::time::Instant::now();
        let handled = match envelope {
            Ok(envelope) => handler(envelope).await,
            Err(error) => Err(Trouble::Poison(format!("no event: {error}"))),
        };
        if let Err(trouble) = &handled {
            tracing::Span::current().record("otel.status_code", "ERROR");
            tracing::warn!(error = %trouble, queue, attempt = delivery.attempt(), "an event could not be handled");
        }
        let outcome = match &handled {
            Ok(()) => "ok",
            Err(Trouble::Later(_)) => "later",
            Err(Trouble::Poison(_)) => "poison",
        };
        metrics::counter!(metric::EVENTS_HANDLED_TOTAL, "queue" => queue.to_owned(), "outcome" => outcome)
            .increment(1);
        metrics::histogram!(metric::EVENT_SECONDS, "queue" => queue.to_owned())
            .record(began.elapsed().as_secs_f64());
        let settled = match handled {
            Ok(()) => delivery.ack().await,
            Err(Trouble::Later(why)) => delivery.retry(why).await.map(drop),
            Err(Trouble::Poison(why)) => delivery.reject(why).await,
        };
        if let Err(error) = settled {
            tracing::info!(%error, queue, "an event will be delivered again");
        }
    };
    trace::work(service, correlation, parent.as_deref(), span, work).await;
}
