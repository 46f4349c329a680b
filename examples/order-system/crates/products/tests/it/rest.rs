use std::collections::BTreeSet;

use futures::future::join_all;
use http::Method;
use order_kit::env::Env;
use serde_json::{Value, json};

use crate::{
    everywhere,
    hostile::{Proxy, leaks_nothing},
    offer, path_of,
    service::{Bench, Place, described},
    start,
};

#[tokio::test]
async fn products_of_a_name_are_found_among_all() {
    everywhere("products_of_a_name_are_found_among_all", async |products| {
        let cups = [
            products.post("/products", &offer("Cup", "1.00")).await.body,
            products.post("/products", &offer("Cup", "2.00")).await.body,
        ];
        products.post("/products", &offer("Cups", "3.00")).await;
        let found = async |query: &str| products.get(&format!("/products?{query}")).await.body;
        assert_eq!(found("name=Cup").await, json!([cups[1], cups[0]]), "the newest first");
        assert_eq!(found("name=Cup&limit=1").await, json!([cups[1]]));
        assert_eq!(found("name=cup").await, json!([]));
        assert_eq!(found("name=").await, json!([]));
    })
    .await;
}

#[tokio::test]
async fn a_product_is_made_read_and_changed() {
    everywhere("a_product_is_made_read_and_changed", async |products| {
        let made = products.post("/products", &offer("Teapot", "12.5")).await;
        let (path, teapot) = (path_of(&made), made.body);
        let fields: BTreeSet<_> = teapot.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, BTreeSet::from(["createdAt", "id", "name", "price"]));
        assert_eq!((&teapot["name"], &teapot["price"]), (&json!("Teapot"), &json!("12.50")));
        assert_eq!(products.get(&path).await.body, teapot);

        let changed = products.put(&path, &json!({ "price": "13.00", "colour": "blue" })).await;
        let mut expected = teapot.clone();
        expected["price"] = json!("13.00");
        assert_eq!((changed.status, changed.body), (200, expected.clone()));
        assert_eq!(products.get(&path).await.body, expected);
        for method in [Method::GET, Method::PUT] {
            let unknown = products.call(method, "/products/nothing", "{}").await;
            assert_eq!((unknown.status, unknown.error()), (404, "Product not found"));
            assert_eq!(unknown.header("x-cache"), None);
        }
    })
    .await;
}

#[tokio::test]
async fn the_second_reading_is_from_the_cache_and_a_change_is_seen_at_once() {
    everywhere("the_second_reading_is_from_the_cache_and_a_change_is_seen_at_once", async |products| {
        let path = path_of(&products.post("/products", &offer("Teapot", "12.50")).await);
        let read = async || {
            let answer = products.get(&path).await;
            (answer.header("x-cache").unwrap().to_owned(), answer.body["price"].clone())
        };
        assert_eq!(read().await, ("miss".to_owned(), json!("12.50")));
        assert_eq!(read().await, ("hit".to_owned(), json!("12.50")));
        for price in ["13.00", "14.00"] {
            products.put(&path, &json!({ "price": price })).await;
            assert_eq!(read().await, ("miss".to_owned(), json!(price)));
            assert_eq!(read().await, ("hit".to_owned(), json!(price)));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_hundred_who_miss_at_once_one_reads_the_database() {
    everywhere("of_a_hundred_who_miss_at_once_one_reads_the_database", async |products| {
        let path = path_of(&products.post("/products", &offer("Teapot", "12.50")).await);
        let answers = join_all((0..100).map(|_| products.get(&path))).await;
        let misses = answers.iter().filter(|it| it.header("x-cache") == Some("miss")).count();
        assert_eq!(misses, 1);
        assert!(answers.iter().all(|it| it.body["price"] == json!("12.50")));
    })
    .await;
}

#[tokio::test]
async fn the_newest_are_listed_first_and_no_more_than_asked_for() {
    everywhere("the_newest_are_listed_first_and_no_more_than_asked_for", async |products| {
        for n in 0..5 {
            products.post("/products", &offer(&format!("Product {n}"), "1.00")).await;
        }
        let names = |list: Value| -> Vec<String> {
            list.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(products.get("/products?limit=2").await.body), ["Product 4", "Product 3"]);
        assert_eq!(names(products.get("/products").await.body).len(), 5);
    })
    .await;
}

/// Every answer that the description promises is seen, and no other.
#[tokio::test]
async fn the_description_says_what_the_routes_do() {
    let products = start().await;
    let mut seen = BTreeSet::new();
    let mut ask = async |method: Method, route: &str, path: &str, body: &str| {
        let answer = products.call(method.clone(), path, body.to_owned()).await;
        seen.insert(format!("{method} {route} {}", answer.status));
        answer
    };
    let (teapot, long) = (offer("Teapot", "12.50").to_string(), " ".repeat(300 * 1024));
    let one = path_of(&ask(Method::POST, "/products", "/products", &teapot).await);
    ask(Method::POST, "/products", "/products", "{").await;
    ask(Method::POST, "/products", "/products", &long).await;
    ask(Method::GET, "/products", "/products", "").await;
    ask(Method::GET, "/products", "/products?limit=x", "").await;
    ask(Method::GET, "/products/{id}", &one, "").await;
    ask(Method::GET, "/products/{id}", "/products/nothing", "").await;
    ask(Method::GET, "/products/{id}", "/products/%FF", "").await;
    ask(Method::PUT, "/products/{id}", &one, "{}").await;
    ask(Method::PUT, "/products/{id}", &one, "{\"name\":\"\"}").await;
    ask(Method::PUT, "/products/{id}", "/products/nothing", "{}").await;
    ask(Method::PUT, "/products/{id}", &one, &long).await;
    assert_eq!(seen, described(&products.get("/openapi.json").await.body));
    products.end().await;
}

#[tokio::test]
async fn a_broken_database_is_an_error_that_tells_nothing_and_the_cache_still_answers() {
    let products = start().await;
    let path = path_of(&products.post("/products", &offer("Teapot", "12.50")).await);
    products.get(&path).await;
    let file = products.data.path().join("products.db");
    rusqlite::Connection::open(file).unwrap().execute_batch("drop table product").unwrap();
    for answer in [
        products.get("/products/another").await,
        products.get("/products").await,
        products.post("/products", &offer("Cup", "3.00")).await,
        products.put(&path, &offer("Cup", "3.00")).await,
    ] {
        assert_eq!((answer.status, answer.error()), (500, "Internal server error"));
        leaks_nothing(&answer);
    }
    let cached = products.get(&path).await;
    assert_eq!((cached.status, cached.header("x-cache")), (200, Some("hit")));
    products.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_has_gone_is_unavailable_and_comes_back() {
    let test = "a_database_that_has_gone_is_unavailable_and_comes_back";
    let Some(Place::Postgres { url, prefix }) = Place::postgres(test) else { return };
    let proxy = Proxy::to_url(&url).await;
    let place = Place::Postgres { url: proxy.url(&url), prefix };
    let products = Bench::start(place, order_products::NAME, Env::empty(), order_products::build).await;
    let path = path_of(&products.post("/products", &offer("Teapot", "12.50")).await);
    proxy.cut();
    for answer in [products.get(&path).await, products.post("/products", &offer("Cup", "3.00")).await] {
        assert_eq!((answer.status, answer.error()), (503, "Service unavailable"));
        leaks_nothing(&answer);
    }
    assert_eq!(products.get("/health/ready").await.status, 503);
    assert_eq!(products.get("/health").await.status, 200, "the process lives");
    proxy.mend();
    assert_eq!(products.get(&path).await.status, 200);
    products.end().await;
}
