//! Input that no client sends, but somebody.

use http::Method;
use serde_json::{Value, json};

use crate::{
    everywhere,
    hostile::{Chance, bad_bodies, leaks_nothing},
    offer, path_of, start,
};

#[tokio::test]
async fn bad_bodies_are_refused_and_nothing_is_stored() {
    everywhere("bad_bodies_are_refused_and_nothing_is_stored", async |products| {
        let made = products.post("/products", &offer("Teapot", "12.50")).await;
        let path = path_of(&made);
        for (what, body, status) in bad_bodies() {
            for (method, path) in [(Method::POST, "/products"), (Method::PUT, &path)] {
                let answer = products.call(method.clone(), path, body.clone()).await;
                assert_eq!(answer.status, status, "{method} {what}: {}", answer.text);
                assert!(!answer.error().is_empty());
                leaks_nothing(&answer);
            }
        }
        assert_eq!(products.get("/products").await.body, json!([made.body]));
    })
    .await;
}

#[tokio::test]
async fn bad_names_and_prices_are_refused_and_nothing_is_stored() {
    let good = offer("Teapot", "12.50");
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body
    };
    let without = |field: &str| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(field);
        body
    };
    let mut bad = vec![without("name"), without("price")];
    for wrong in [json!(null), json!(true), json!(["12.50"]), json!({ "amount": 1 })] {
        bad.extend([with("name", wrong.clone()), with("price", wrong)]);
    }
    bad.push(with("name", json!(12)));
    for name in ["", " ", "Tea\0pot", "Tea\npot", &"x".repeat(201), &"é".repeat(50_000)] {
        bad.push(with("name", json!(name)));
    }
    let prices = [
        "-0.01",
        "-1",
        "0",
        "0.00",
        "0.001",
        "1000000.01",
        "92233720368547758.07",
        "99999999999999999999",
        "1e3",
        "NaN",
        "Infinity",
        "12,50",
        "",
        "1\0",
    ];
    bad.extend(prices.map(|price| with("price", json!(price))));
    bad.extend(
        [json!(-1), json!(-0.01), json!(0), json!(0.001), json!(1e300), json!(u64::MAX)]
            .map(|it| with("price", it)),
    );
    everywhere("bad_names_and_prices_are_refused_and_nothing_is_stored", async |products| {
        for body in &bad {
            let answer = products.post("/products", body).await;
            assert_eq!(answer.status, 400, "{body}: {}", answer.text);
            assert!(answer.error().len() < 300, "an answer is not as long as what was sent");
            leaks_nothing(&answer);
        }
        assert_eq!(products.get("/products").await.body, json!([]));
        // The twins that are just good enough, so that the list above fails for what it says.
        for (name, price) in [("x", "0.01"), (&"é".repeat(200), "1000000.00")] {
            let path = path_of(&products.post("/products", &offer(name, price)).await);
            assert_eq!(products.get(&path).await.body["price"], json!(price));
        }
        // A number is taken as well as a text.
        let number = r#"{"name":"Cup","price":0.10}"#;
        let made = products.call(Method::POST, "/products", number).await;
        assert_eq!(made.body["price"], json!("0.10"));
    })
    .await;
}

#[tokio::test]
async fn a_change_that_is_refused_changes_nothing() {
    everywhere("a_change_that_is_refused_changes_nothing", async |products| {
        let made = products.post("/products", &offer("Teapot", "12.50")).await;
        let path = path_of(&made);
        for bad in [
            json!({ "price": "-1" }),
            json!({ "name": "" }),
            json!({ "name": "Pot", "price": "0" }),
            json!({ "price": 1e300 }),
        ] {
            assert_eq!(products.put(&path, &bad).await.status, 400, "{bad}");
        }
        assert_eq!(products.get(&path).await.body, made.body);
    })
    .await;
}

#[tokio::test]
async fn odd_addresses_find_nothing() {
    everywhere("odd_addresses_find_nothing", async |products| {
        for id in ["%00", "a%00b", "%27%20or%201=1--", "..%2F..%2Fetc", "%F0%9F%92%A9", &"x".repeat(10_000)] {
            for method in [Method::GET, Method::PUT] {
                let answer = products.call(method, &format!("/products/{id}"), "{}").await;
                assert_eq!((answer.status, answer.error()), (404, "Product not found"), "{id}");
            }
        }
        let answer = products.get("/products/%FF").await;
        assert_eq!((answer.status, answer.error()), (400, "Malformed path"));
    })
    .await;
}

/// Bodies and addresses by chance, the same in every run: whatever they are, the service is not at fault.
#[tokio::test]
async fn whatever_is_sent_is_no_error_of_the_service() {
    let products = start().await;
    let mut chance = Chance(42);
    for _ in 0..1_000 {
        let (method, path) = match chance.below(4) {
            0 => (Method::POST, "/products".to_owned()),
            1 => (Method::GET, format!("/products/{}", chance.escaped())),
            2 => (Method::PUT, format!("/products/{}", chance.escaped())),
            _ => (Method::GET, format!("/products?limit={}", chance.escaped())),
        };
        let body = chance.body(&["name", "price"]);
        let answer = products.call(method.clone(), &path, body.clone()).await;
        let fault = answer.status >= 500;
        assert!(!fault, "{method} {path} {}: {}", String::from_utf8_lossy(&body), answer.text);
    }
    products.end().await;
}
