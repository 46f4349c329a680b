//! How many messages a second a broker carries, and what that costs.
//!
//! ```text
//! cargo run --release -p order-broker --example throughput -- memory:
//! cargo run --release -p order-broker --example throughput -- sqlite:/tmp/throughput.db
//! cargo run --release -p order-broker --example throughput -- sqlite:/tmp/throughput.db 3000
//! ```
//!
//! Orders have six events each, every event goes to three queues, and each queue has one consumer with a prefetch of 100. Without a second
//! argument first all is published, then all is consumed, both as fast as it goes; with one, so many events a second are published
//! for ten seconds while they are consumed, and the delay from publication to handling is told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use order_broker::{Broker, Message, Queue, Topology, ack_all};

const QUEUES: [&str; 3] = ["inventory", "email", "analytics"];
const EVENTS: [&str; 6] = ["created", "reserved", "paid", "confirmed", "shipped", "delivered"];
const FULL_SPEED_ORDERS: usize = 10_000;
const PUBLISHERS: usize = 8;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "memory:".to_owned());
    let rate: Option<u32> = arguments.next().map(|rate| rate.parse().expect("the rate is a number"));
    let broker = order_broker::open(&address).await.expect("the broker opens");
    let topology = QUEUES
        .iter()
        .fold(Topology::new("events"), |topology, name| topology.queue(Queue::new(*name).bind("order.*")));
    broker.declare(&topology).await.expect("the topology is declared");
    println!("{}", broker.address());
    match rate {
        None => full_speed(&broker).await,
        Some(rate) => paced(&broker, rate).await,
    }
}

/// The events of one order. Its headers and body are of the usual size.
fn events(order: usize) -> Vec<Message> {
    let message = |event: &&str| {
        let body = format!(
            r#"{{"id":"{order}","type":"order.{event}","data":{{"orderId":"{order}","userId":"u-17","items":[{{"sku":"a-1","quantity":2}},{{"sku":"b-2","quantity":1}}],"total":"59.90"}},"metadata":{{"timestamp":"2026-01-01T00:00:00.000Z","version":"1.0","source":"order-service"}}}}"#
        );
        Message::new(format!("order.{event}"), format!("order-{order}"), body)
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .header("published-ns", nanos().to_string())
    };
    EVENTS.iter().map(message).collect()
}

fn nanos() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_nanos()).expect("before 2554")
}

async fn full_speed(broker: &Arc<dyn Broker>) {
    let total = FULL_SPEED_ORDERS * EVENTS.len();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let publishers = (0..PUBLISHERS).map(|publisher| {
        let broker = broker.clone();
        tokio::spawn(async move {
            for order in (publisher..FULL_SPEED_ORDERS).step_by(PUBLISHERS) {
                for result in broker.publish(events(order)).await {
                    result.expect("it is confirmed");
                }
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.expect("it publishes");
    }
    report("published", total, start, cpu);
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let consumers = QUEUES.map(|queue| tokio::spawn(consume(broker.clone(), queue, total)));
    for consumer in consumers {
        consumer.await.expect("it consumes");
    }
    report("delivered and acknowledged", total * QUEUES.len(), start, cpu);
}

async fn paced(broker: &Arc<dyn Broker>, rate: u32) {
    let orders = usize::try_from(rate).expect("it fits") * 10 / EVENTS.len();
    let total = orders * EVENTS.len();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let consumers = QUEUES.map(|queue| tokio::spawn(consume(broker.clone(), queue, total)));
    let mut publishing = Vec::with_capacity(orders);
    for order in 0..orders {
        let due = start + Duration::from_secs(10).mul_f64(order as f64 / orders as f64);
        tokio::time::sleep_until(due.into()).await;
        let broker = broker.clone();
        // Open loop: the next order does not wait for the confirmation of this one.
        publishing.push(tokio::spawn(async move { broker.publish(events(order)).await }));
    }
    for published in publishing {
        published
            .await
            .expect("it publishes")
            .into_iter()
            .for_each(|result| result.expect("it is confirmed"));
    }
    report("published", total, start, cpu);
    for (queue, consumer) in QUEUES.iter().zip(consumers) {
        let mut delays = consumer.await.expect("it consumes");
        delays.sort_unstable();
        let at = |part: f64| delays[((delays.len() - 1) as f64 * part) as usize] as f64 / 1e6;
        println!("  {queue}: delay p50 {:.1} ms, p99 {:.1} ms, most {:.1} ms", at(0.5), at(0.99), at(1.0));
    }
    report("delivered and acknowledged", total * QUEUES.len(), start, cpu);
}

/// Answers each message's delay in nanoseconds.
async fn consume(broker: Arc<dyn Broker>, queue: &'static str, total: usize) -> Vec<u64> {
    let mut consumer = broker.consume(queue, 100).await.expect("the queue is there");
    let mut delays = Vec::with_capacity(total);
    let mut acks = tokio::task::JoinSet::new();
    while delays.len() < total {
        let batch = consumer.next_batch(100).await.expect("the consumer goes on");
        let now = nanos();
        delays.extend(batch.iter().map(|delivery| {
            now.saturating_sub(delivery.message().headers["published-ns"].parse().expect("it is a number"))
        }));
        acks.spawn(ack_all(batch));
    }
    for acked in acks.join_all().await {
        acked.expect("it is taken");
    }
    delays
}

fn report(what: &str, count: usize, start: Instant, cpu: f64) {
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let count = count as f64;
    println!(
        "  {what}: {:.0}/s, {:.1} µs of processor each, {:.0} % of one core",
        count / seconds,
        cpu / count * 1e6,
        cpu / seconds * 100.0
    );
}

/// What this process has used so far. 0 where there is no `/proc`.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    // User and system time, in hundredths of a second.
    fields.iter().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
