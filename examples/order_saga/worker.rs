//! A process that runs an orchestrator under load until it is killed. What it has to say goes to its parent, a line each:
//!
//! * `ready LEFT MS`: it has taken up what its predecessors left, so many sagas, in so many milliseconds
//! * `accepted ID`: the order is durable; from now on it may not be lost
//! * `over ID`: its saga has ended

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mainstay::{
    Event,
    saga::{Orchestrator, StartError},
};

use crate::{
    Error, Options, audit,
    chance::Chance,
    saga::{self, OrderSaga},
    services::{Purchase, Shop},
    store::Place,
};

/// How many orders are under way at once.
const CUSTOMERS: usize = 32;

pub async fn work(data: &Path, place: &Place, seed: u64, round: u32, options: &Options) -> Result<(), Error> {
    let order = saga::order(Shop::open(data, options.wrong_keys)?)?;
    let store = place.open().await?;
    let left = audit::sagas(store.journal()).await?.others.len();
    let began = Instant::now();
    let orchestrator = store
        .orchestrator()
        .register(&order)
        .observe(|event: &Event<'_>| {
            if let Event::SagaPhase { saga, to, .. } = event
                && to.is_terminal()
            {
                println!("over {saga}");
            }
        })
        // Here it is not the sagas that the orchestrator dies of.
        .max_recoveries(u32::MAX)
        .stuck_retry(Some(Duration::from_secs(1)))
        .start()
        .await?;
    orchestrator.recovered().await;
    println!("ready {left} {}", began.elapsed().as_millis());
    if options.last {
        let all_over = async {
            while !audit::sagas(store.journal()).await?.others.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        };
        let over = tokio::time::timeout(options.patience, all_over).await;
        orchestrator.shutdown(Duration::from_secs(5)).await;
        return over.unwrap_or_else(|_| Err(format!("not all is over after {:?}", options.patience).into()));
    }
    let next = Arc::new(AtomicU64::new(0));
    let customers = (0..CUSTOMERS).map(|_| {
        let (orchestrator, order, next) = (orchestrator.clone(), order.clone(), next.clone());
        tokio::spawn(async move {
            loop {
                let number = u64::from(round) << 32 | next.fetch_add(1, Relaxed);
                buy(&orchestrator, &order, seed, number).await?;
            }
        })
    });
    for customer in customers.collect::<Vec<_>>() {
        let failed: Result<(), Error> = customer.await?;
        failed?;
    }
    Ok(())
}

async fn buy(orchestrator: &Orchestrator, order: &OrderSaga, seed: u64, number: u64) -> Result<(), Error> {
    let id = format!("{seed}-{}-{}", number >> 32, number & 0xffff_ffff);
    let handle = match orchestrator.start(order, &id, &purchase(seed, number)).await {
        Ok(handle) => handle,
        Err(StartError::Busy(_)) => {
            tokio::time::sleep(Duration::from_millis(10)).await;
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    println!("accepted {id}");
    handle.finished().await?;
    Ok(())
}

/// One order in five has an empty card, one in ten gets a lost answer, one in ten is refused when everything is paid.
fn purchase(seed: u64, number: u64) -> Purchase {
    let mut chance = Chance::new(seed, number);
    Purchase {
        customer: ["ada", "grace", "mallory"][[0, 1, 0, 1, 0, 1, 0, 1, 0, 2][chance.below(10) as usize]]
            .to_owned(),
        item: if chance.below(4) == 0 { "chair" } else { "lamp" }.to_owned(),
        quantity: 1 + chance.below(3) as i64,
        cents: 100 + chance.below(10_000) as i64,
        card: match chance.below(10) {
            0 | 1 => "empty",
            2 => "slow",
            _ => "valid",
        }
        .to_owned(),
    }
}
