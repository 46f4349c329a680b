//! `chaos`: faults and kills at random, orders all the while; and in the end everything has to agree.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use http::StatusCode;
use order_kit::BoxError;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    audit::settled,
    demo::{Play, order_id, processes::start},
    remote::Remote,
    seed::seed,
};

const ORDERS_A_SECOND: u64 = 20;
/// How long everything may take to end when the faults are over.
const CALM: Duration = Duration::from_secs(120);

/// A seed that nobody has chosen.
pub fn any_seed() -> u64 {
    RandomState::new().hash_one(std::process::id()) % 1_000_000
}

/// What happens, and when.
#[derive(Debug, Clone, PartialEq)]
enum Act {
    Kill(&'static str),
    Fault(&'static str, Value),
    Well(&'static str),
}

/// The schedule of a seed: the same each time.
fn schedule(seed: u64, time: Duration) -> Vec<(Duration, Act)> {
    let mut chance = Chance(seed);
    let mut acts = Vec::new();
    let mut at = Duration::from_millis(1_000);
    while at < time {
        let service = ["payments", "inventory", "orders", "users", "products", "notifications"]
            [chance.below(6) as usize];
        let act = match chance.below(5) {
            0 | 1 => Act::Kill(service),
            2 => Act::Fault(service, json!({ "failPercent": chance.below(100), "forSeconds": 3 })),
            3 => Act::Fault(service, json!({ "effectThenFailPercent": chance.below(100), "forSeconds": 3 })),
            _ => Act::Fault(service, json!({ "hang": true, "forSeconds": 2 })),
        };
        let ends =
            matches!(act, Act::Fault(..)).then(|| (at + Duration::from_millis(3_000), Act::Well(service)));
        acts.push((at, act));
        acts.extend(ends);
        at += Duration::from_millis(400 + chance.below(1_600));
    }
    acts.sort_by_key(|(at, _)| *at);
    acts
}

/// Plays it. Whether everything agrees in the end.
///
/// # Errors
///
/// That it could not be played.
pub async fn run(number: u64, time: Duration, play: &Play) -> Result<bool, BoxError> {
    println!("chaos --seed {number} --for {}", time.as_secs());
    let data = tempfile::tempdir()?;
    let processes = start(play, data.path()).await?;
    let remote = processes.remote();
    let seed = seed(&remote).await?;
    let customers = seed.customers(&remote).await?;
    // One of the three has a card that is declined.
    let card = format!("/payments/cards/{}", seed.users[2].1);
    remote.put("payments", &card, json!({ "behaviour": "decline" })).await?.expect(200)?;

    let began = Instant::now();
    let orders = {
        let seed = seed.clone();
        tokio::spawn(async move {
            let mut chance = Chance(number ^ 0x5eed);
            let (mut accepted, mut other) = (Vec::new(), 0_u64);
            for order in 0..time.as_secs() * ORDERS_A_SECOND {
                tokio::time::sleep_until(began + Duration::from_millis(order * 1_000 / ORDERS_A_SECOND))
                    .await;
                let (user, remote) = &customers[chance.below(3) as usize];
                let product = &seed.products[chance.below(3) as usize].1;
                let body = json!({ "userId": user, "items": [{ "productId": product, "quantity": 1 + chance.below(3) }] });
                match remote.post("gateway", "/api/orders", body).await {
                    Ok(answer) if answer.status == 202 => accepted.push(order_id(&answer)?),
                    _ => other += 1,
                }
            }
            Ok::<_, BoxError>((accepted, other))
        })
    };
    for (at, act) in schedule(number, time) {
        tokio::time::sleep_until(began + at).await;
        // What has just been killed cannot be reached, and need not be.
        let done = match &act {
            Act::Kill(service) => processes.kill(service).await.map(drop),
            Act::Fault(service, faults) => remote.put(service, "/_faults", faults.clone()).await.map(drop),
            Act::Well(service) => {
                remote.call(http::Method::DELETE, service, "/_faults", None).await.map(drop)
            }
        };
        println!(
            "{:>7.2} s  {act:?}{}",
            began.elapsed().as_secs_f64(),
            if done.is_ok() { "" } else { " (not reached)" }
        );
    }
    let (accepted, other) = orders.await??;
    println!("{} orders were taken, {other} were not", accepted.len());
    let audited = settled(&remote, CALM).await?;
    // There may be more, whose answers were lost: no number says that these are there.
    let lost = lost(&remote, &accepted).await?;
    for order in &lost {
        println!("NO  order {order} was taken, and is not there");
    }
    let green = audited.print() && lost.is_empty();
    println!("seed {number}: {}", if green { "the audit is green" } else { "the audit is RED" });
    processes.stop().await;
    Ok(green)
}

/// Those of the orders that order-service does not know.
///
/// # Errors
///
/// That it does not say.
pub async fn lost(remote: &Remote, orders: &[String]) -> Result<Vec<String>, BoxError> {
    let mut lost = Vec::new();
    for order in orders {
        let answer = remote.get("orders", &format!("/orders/{order}")).await?;
        if answer.status == StatusCode::NOT_FOUND {
            lost.push(order.clone());
        } else {
            answer.expect(200)?;
        }
    }
    Ok(lost)
}

/// SplitMix64: the same seed, the same numbers.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_has_the_same_schedule() {
        let time = Duration::from_secs(60);
        assert_eq!(schedule(42, time), schedule(42, time));
        assert_ne!(schedule(42, time), schedule(43, time));
        assert!(schedule(42, time).len() > 30);
    }
}
