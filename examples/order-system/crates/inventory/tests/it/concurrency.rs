//! Many at the same time: nothing is sold twice, nobody waits for each other, and the books are right.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::SeqCst},
};

use futures::future::join_all;
use order_kit::env::Env;
use serde_json::{Value, json};

use crate::{
    on_both,
    service::{Bench, Place},
};

async fn start(place: Place) -> Bench {
    Bench::start(place, order_inventory::NAME, Env::empty(), order_inventory::build).await
}

async fn reserve(it: &Bench, order: &str, products: &[&str]) -> u16 {
    let items: Vec<_> = products.iter().map(|product| json!({"productId": product, "quantity": 1})).collect();
    let body = json!({"orderId": order, "items": items});
    it.step("/inventory/reserve", &format!("reserve-stock.do@{order}"), body).await.status
}

on_both!(
    of_the_last_ten_fifty_get_ten,
    orders_with_the_same_products_in_any_order_do_not_block_each_other,
    the_same_reservation_at_the_same_time_is_one,
    reservations_releases_and_commits_at_once_keep_the_books_right,
);

async fn of_the_last_ten_fifty_get_ten(place: Place) {
    let it = start(place).await;
    it.put("/inventory/p", json!({"quantity": 10})).await;
    let orders: Vec<_> = (0..50).map(|number| format!("o{number}")).collect();
    let answers = join_all(orders.iter().map(|order| reserve(&it, order, &["p"]))).await;
    let got = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((got(200), got(409)), (10, 40), "{answers:?}");
    let level = it.get("/inventory/p").await.body;
    assert_eq!((&level["reserved"], &level["available"]), (&json!(10), &json!(0)));
    assert_eq!(it.get("/_audit").await.body["ok"], true);
}

/// What happens to whoever looks first and takes then.
#[tokio::test]
async fn looking_first_and_taking_then_oversells() {
    let left = Arc::new(AtomicI64::new(10));
    let answers = join_all((0..50).map(|_| {
        let left = left.clone();
        async move {
            let seen = left.load(SeqCst);
            tokio::task::yield_now().await;
            if seen > 0 {
                left.fetch_sub(1, SeqCst);
            }
            seen > 0
        }
    }))
    .await;
    assert_ne!(answers.iter().filter(|sold| **sold).count(), 10, "the check above would let this pass");
}

async fn orders_with_the_same_products_in_any_order_do_not_block_each_other(place: Place) {
    let it = start(place).await;
    for product in ["a", "b", "c"] {
        it.put(&format!("/inventory/{product}"), json!({"quantity": 30})).await;
    }
    let ways = [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]];
    let orders: Vec<_> = (0..60).map(|number| format!("o{number}")).collect();
    let work = orders.iter().enumerate().map(|(number, order)| reserve(&it, order, &ways[number % 3]));
    let answers = join_all(work).await;
    let got = |status| answers.iter().filter(|answer| **answer == status).count();
    assert_eq!((got(200), got(409)), (30, 30), "{answers:?}");
    let audit = it.get("/_audit").await.body;
    assert_eq!(audit["ok"], true, "{audit}");
}

async fn the_same_reservation_at_the_same_time_is_one(place: Place) {
    let it = start(place).await;
    it.put("/inventory/p", json!({"quantity": 10})).await;
    let answers = join_all((0..20).map(|_| reserve(&it, "o", &["p"]))).await;
    assert_eq!(answers, [200; 20]);
    assert_eq!(it.get("/inventory/p").await.body["reserved"], 1);
}

async fn reservations_releases_and_commits_at_once_keep_the_books_right(place: Place) {
    let it = start(place).await;
    for product in ["a", "b"] {
        it.put(&format!("/inventory/{product}"), json!({"quantity": 25})).await;
    }
    let orders: Vec<_> = (0..60).map(|number| format!("o{number:02}")).collect();
    join_all(orders.iter().enumerate().map(async |(number, order)| {
        let products: &[&str] = if number % 2 == 0 { &["a", "b"] } else { &["b", "a"] };
        let undo = format!("reserve-stock.undo@{order}");
        let release = it.step("/inventory/release", &undo, json!({"orderId": order}));
        match number % 4 {
            // The release is on its way while the reservation is.
            0 => drop(futures::join!(reserve(&it, order, products), release)),
            1 => {
                reserve(&it, order, products).await;
                release.await;
            }
            2 => {
                if reserve(&it, order, products).await == 200 {
                    let commit = format!("commit-stock.do@{order}");
                    let committed = it.step("/inventory/commit", &commit, json!({"orderId": order})).await;
                    assert_eq!(committed.status, 200);
                }
            }
            _ => drop(reserve(&it, order, products).await),
        }
    }))
    .await;
    // The audit, page by page.
    let (mut after, mut seen) = (String::new(), Vec::new());
    loop {
        let page = it.get(&format!("/_audit?limit=7&after={after}")).await.body;
        // The whole is looked at once, with the first.
        assert_eq!(page["ok"], if after.is_empty() { json!(true) } else { json!(null) }, "{page}");
        seen.extend(page["orders"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut after),
            None => break,
        }
    }
    assert!(seen.is_sorted_by_key(|order| order["orderId"].as_str().map(str::to_owned)));
    let sum = |state: &str| -> i64 {
        let of = seen.iter().filter(|order| order["state"] == state);
        of.filter_map(|order| order["items"].as_array())
            .flatten()
            .filter_map(|item| item["quantity"].as_i64())
            .sum()
    };
    let products: Value = it.get("/_audit?limit=1").await.body["products"].clone();
    let total = |field: &str| -> i64 {
        products.as_array().unwrap().iter().filter_map(|product| product[field].as_i64()).sum()
    };
    assert_eq!((sum("held"), sum("committed")), (total("held"), total("decremented")));
    assert_eq!(total("onHand") + total("decremented"), 50);
    // Whatever the race, no released order holds anything.
    for (number, order) in orders.iter().enumerate().filter(|(number, _)| number % 4 < 2) {
        let state = it.get(&format!("/inventory/reservations/{order}")).await.body["state"].clone();
        assert_ne!(state, "held", "{number}: {order}");
    }
}
