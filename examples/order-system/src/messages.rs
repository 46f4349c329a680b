//! `topology` and `dlq`: what the broker has, for whoever operates it.

use std::{path::Path, sync::Arc, time::Duration};

use order_broker::{Broker, BrokerError, Which};
use order_kit::{BoxError, env::Env};

use crate::{services, system::broker_address};

/// The broker of the settings. It connects by itself, for which it is given two seconds; whether it has, [`Broker::check`] says.
///
/// # Errors
///
/// An address that is none, or a file that cannot be opened.
pub async fn open(env: &Env, data: &Path) -> Result<Arc<dyn Broker>, BrokerError> {
    let broker = order_broker::open(&broker_address(env, data)).await?;
    for _ in 0..20 {
        if broker.check().await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // RabbitMQ tells nobody of queues whose names he does not know. One that is away is told of by what is asked next.
    if let Err(error) = broker.look_for(&services::topology()).await {
        tracing::warn!(%error, "the queues could not be looked for");
    }
    Ok(broker)
}

/// Prints the exchange, each queue with its bindings, and what is in it.
///
/// # Errors
///
/// The broker's.
pub async fn topology(broker: &dyn Broker) -> Result<(), BoxError> {
    broker.check().await?;
    let topology = broker.topology().await?;
    println!("broker    {}", broker.address());
    println!("exchange  {} (topic, durable)", topology.exchange);
    println!(
        "\n{:<24} {:>7} {:>7} {:>7} {:>7} {:>9}  bindings",
        "queue", "ready", "delayed", "unacked", "dead", "consumers"
    );
    for queue in &topology.queues {
        let stats = broker.stats(&queue.name).await?;
        println!(
            "{:<24} {:>7} {:>7} {:>7} {:>7} {:>9}  {}",
            queue.name,
            stats.ready,
            stats.delayed,
            stats.unacked,
            stats.dead,
            stats.consumers,
            queue.bindings.join(", ")
        );
    }
    Ok(())
}

/// Prints the dead letters of a queue, or of all.
///
/// # Errors
///
/// The broker's.
pub async fn list(broker: &dyn Broker, queue: Option<&str>, limit: usize) -> Result<(), BoxError> {
    let mut found = 0;
    for name in queues(broker, queue).await? {
        for letter in broker.dead_letters(&name, limit).await? {
            found += 1;
            println!("{name}  {}  {}  key {}", letter.message.id, letter.message.topic, letter.message.key);
            let since = order_kit::iso(i64::try_from(letter.since_ms).unwrap_or(i64::MAX));
            println!("    {} times, since {since}: {}", letter.count, letter.reason);
        }
    }
    println!("{found} dead letters");
    Ok(())
}

/// Puts dead letters back into their queue, or throws them away; how many it were.
///
/// # Errors
///
/// The broker's.
pub async fn settle(
    broker: &dyn Broker,
    queue: &str,
    ids: Vec<String>,
    replay: bool,
) -> Result<u64, BoxError> {
    let which = if ids.is_empty() { Which::All } else { Which::Ids(ids) };
    Ok(if replay { broker.replay(queue, which).await? } else { broker.discard(queue, which).await? })
}

async fn queues(broker: &dyn Broker, queue: Option<&str>) -> Result<Vec<String>, BoxError> {
    Ok(match queue {
        Some(queue) => vec![queue.to_owned()],
        None => broker.topology().await?.queues.into_iter().map(|queue| queue.name).collect(),
    })
}
