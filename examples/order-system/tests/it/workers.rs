//! How long queues are worked on.

use std::time::Duration;

use order_system::services;

/// The queue of the inventory, when nobody conducts.
const QUEUE: &str = "inventory.saga";

/// A dead letter would be goods that nobody can buy, or a customer's money.
#[test]
fn what_moves_orders_on_outlasts_an_outage_of_a_day() {
    let moves = [QUEUE, "payments.saga", "orders.choreography"];
    let queues = services::topology().queues.into_iter().filter(|queue| moves.contains(&queue.name.as_str()));
    let waits: Vec<Duration> = queues
        .map(|queue| (1..queue.max_attempts).map(|failures| queue.backoff.after(failures)).sum())
        .collect();
    assert_eq!(waits.len(), moves.len());
    assert!(waits.iter().all(|waits| *waits > Duration::from_secs(24 * 3_600)), "{waits:?}");
}
