//! Four orders, and what becomes of each.

use std::{path::Path, sync::atomic::Ordering::Relaxed};

use mainstay::saga::{Cause, Orchestrator, Order, Outcome, Phase, journal::Requested, view::Timeline};

use crate::{
    Error, saga,
    saga::OrderSaga,
    services::{Purchase, Shop},
    store::Place,
};

/// The number of plays that went otherwise than they should.
pub async fn play(data: &Path, place: &Place, wrong_keys: bool) -> Result<usize, Error> {
    let shop = Shop::open(data, wrong_keys)?;
    let order = saga::order(shop)?;
    let orchestrator = place.open().await?.orchestrator().register(&order).start().await?;
    let stage = Stage { shop, order, orchestrator };
    let broken =
        stage.happy().await? + stage.declined().await? + stage.unknown().await? + stage.stuck().await?;
    stage.orchestrator.shutdown(std::time::Duration::from_secs(5)).await;
    Ok(broken)
}

struct Stage {
    shop: &'static Shop,
    order: OrderSaga,
    orchestrator: Orchestrator,
}

impl Stage {
    async fn happy(&self) -> Result<usize, Error> {
        title("A happy order", "five steps, each recorded before the next one begins");
        let outcome = self.run("happy", "lamp", "valid").await?;
        self.show("happy", matches!(outcome, Outcome::Completed(_))).await
    }

    async fn declined(&self) -> Result<usize, Error> {
        title("A declined card", "a rejection says that nothing has happened: no refund, the rest is undone");
        let outcome = self.run("declined", "lamp", "empty").await?;
        self.show("declined", matches!(outcome, Outcome::Compensated(Cause::Rejected { .. }))).await
    }

    async fn unknown(&self) -> Result<usize, Error> {
        title(
            "An unknown charge",
            "the card is charged, the answer is lost: the same key is sent again, and recognised",
        );
        let outcome = self.run("unknown", "lamp", "slow").await?;
        self.show("unknown", matches!(outcome, Outcome::Completed(_))).await
    }

    async fn stuck(&self) -> Result<usize, Error> {
        title("A stuck undo", "the stock cannot be released until a person has repaired the scanner");
        self.shop.stock.scanner_is_broken.store(true, Relaxed);
        let outcome = self.run("stuck", "vase", "empty").await?;
        let held = match &outcome {
            Outcome::Held { phase: Some(Phase::Stuck), why } => {
                println!(
                    "held: {why}\n      (mainstay-saga --store sqlite:sagas.db retry stuck reserve-stock)"
                );
                true
            }
            // It was resolved when this was played in the same folder before.
            Outcome::Compensated(_) => true,
            _ => false,
        };
        self.shop.stock.scanner_is_broken.store(false, Relaxed);
        let retry = Order::Retry { step: Some("reserve-stock".to_owned()) };
        let requested = self.orchestrator.order("stuck", "ada", retry).await?;
        let asked = matches!(requested, Requested::Left | Requested::Over(_));
        let outcome = self.orchestrator.handle(&self.order, "stuck")?.finished().await?;
        self.show("stuck", held && asked && matches!(outcome, Outcome::Compensated(_))).await
    }

    async fn run(&self, id: &str, item: &str, card: &str) -> Result<Outcome<i64>, Error> {
        let purchase = Purchase {
            customer: "ada".to_owned(),
            item: item.to_owned(),
            quantity: 2,
            cents: 4_900,
            card: card.to_owned(),
        };
        Ok(self.orchestrator.run(&self.order, id, &purchase).await?)
    }

    async fn show(&self, id: &str, as_expected: bool) -> Result<usize, Error> {
        let stored = self.orchestrator.load(id).await?.ok_or("the saga has vanished")?;
        print!("{}", Timeline::of(&stored));
        if !as_expected {
            println!("that is not how it should have ended");
        }
        Ok(usize::from(!as_expected))
    }
}

fn title(what: &str, why: &str) {
    println!("\n{what}: {why}\n");
}
