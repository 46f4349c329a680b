//! With the Redis of `MAINSTAY_TEST_REDIS`, below a prefix of its own that is removed.

use std::time::Duration;

use futures::future::join_all;
use order_kit::env::{self, Env};
use redis::{AsyncTypedCommands, aio::MultiplexedConnection};
use serde_json::{Value, json};

use crate::{
    hostile::{Proxy, leaks_nothing},
    offer, path_of,
    service::{Bench, Place, server},
};

struct Shared {
    url: String,
    prefix: String,
    redis: MultiplexedConnection,
}

impl Shared {
    async fn new(test: &str) -> Option<Self> {
        let url = server(test, "MAINSTAY_TEST_REDIS")?;
        let client = redis::Client::open(url.clone()).unwrap();
        let redis = client.get_multiplexed_async_connection().await.unwrap();
        Some(Shared { url, prefix: format!("test:{}:", order_kit::new_id()), redis })
    }

    fn env(&self, url: &str) -> Env {
        Env::empty().with(env::REDIS_URL, url).with("REDIS_KEY_PREFIX", self.prefix.clone())
    }

    async fn start(&self) -> Bench {
        Bench::start(Place::Sqlite, order_products::NAME, self.env(&self.url), order_products::build).await
    }

    fn key(&self, path: &str) -> String {
        format!("{}product:{}", self.prefix, path.strip_prefix("/products/").unwrap())
    }

    async fn end(mut self) {
        let keys: Vec<String> = self.redis.keys(format!("{}*", self.prefix)).await.unwrap();
        for key in keys {
            self.redis.del(key).await.unwrap();
        }
    }
}

async fn read(products: &Bench, path: &str) -> (String, Value) {
    let answer = products.get(path).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    (answer.header("x-cache").unwrap().to_owned(), answer.body["price"].clone())
}

#[tokio::test]
async fn a_copy_is_kept_for_an_hour_and_forgotten_by_every_instance_when_it_changes() {
    let Some(mut shared) = Shared::new("a_copy_is_kept_for_an_hour_and_forgotten_by_every_instance").await
    else {
        return;
    };
    let one = shared.start().await;
    let env = shared.env(&shared.url);
    let other =
        Bench::start_in(one.data.clone(), Place::Sqlite, order_products::NAME, env, order_products::build)
            .await;
    let path = path_of(&one.post("/products", &offer("Teapot", "12.50")).await);
    assert_eq!(read(&one, &path).await, ("miss".to_owned(), json!("12.50")));
    assert_eq!(
        read(&other, &path).await,
        ("hit".to_owned(), json!("12.50")),
        "what one has read serves the other"
    );
    let key = shared.key(&path);
    let ttl: i64 = redis::cmd("TTL").arg(&key).query_async(&mut shared.redis).await.unwrap();
    assert!((3_590..=3_600).contains(&ttl), "{ttl}");

    assert_eq!(one.put(&path, &json!({ "price": "13.00" })).await.status, 200);
    let ttl: i64 = redis::cmd("TTL").arg(&key).query_async(&mut shared.redis).await.unwrap();
    assert!((50..=60).contains(&ttl), "that it has changed is remembered for a minute: {ttl}");
    assert_eq!(read(&other, &path).await, ("miss".to_owned(), json!("13.00")));
    assert_eq!(read(&one, &path).await, ("hit".to_owned(), json!("13.00")));
    assert_eq!(one.get("/health/ready").await.body["checks"]["redis"]["status"], json!("ok"));
    one.end().await;
    other.end().await;
    shared.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_a_hundred_who_miss_at_once_one_reads_the_database() {
    let Some(shared) = Shared::new("redis: of_a_hundred_who_miss_at_once_one_reads_the_database").await
    else {
        return;
    };
    let products = shared.start().await;
    let path = path_of(&products.post("/products", &offer("Teapot", "12.50")).await);
    let answers = join_all((0..100).map(|_| read(&products, &path))).await;
    assert_eq!(answers.iter().filter(|(cache, _)| cache == "miss").count(), 1);
    products.end().await;
    shared.end().await;
}

#[tokio::test]
async fn what_others_have_put_there_is_no_product() {
    let Some(mut shared) = Shared::new("what_others_have_put_there_is_no_product").await else { return };
    let products = shared.start().await;
    let path = path_of(&products.post("/products", &offer("Teapot", "12.50")).await);
    for rubbish in
        ["", "rubbish", "[]", "{}", "{\"version\":\"x\"}", "{\"version\":1,\"product\":{\"id\":7}}", "\u{0}"]
    {
        shared.redis.set(shared.key(&path), rubbish).await.unwrap();
        assert_eq!(read(&products, &path).await, ("miss".to_owned(), json!("12.50")), "{rubbish}");
        assert_eq!(read(&products, &path).await, ("hit".to_owned(), json!("12.50")), "{rubbish}");
    }
    // Not even a text.
    shared.redis.del(shared.key(&path)).await.unwrap();
    shared.redis.lpush(shared.key(&path), "rubbish").await.unwrap();
    assert_eq!(read(&products, &path).await, ("miss".to_owned(), json!("12.50")));
    products.end().await;
    shared.end().await;
}

#[tokio::test]
async fn a_redis_that_goes_away_is_never_an_error_and_hears_later_what_has_changed() {
    let Some(shared) = Shared::new("a_redis_that_goes_away_is_never_an_error").await else { return };
    let proxy = Proxy::to_url(&shared.url).await;
    let one = Bench::start(
        Place::Sqlite,
        order_products::NAME,
        shared.env(&proxy.url(&shared.url)),
        order_products::build,
    )
    .await;
    let env = shared.env(&shared.url);
    let other =
        Bench::start_in(one.data.clone(), Place::Sqlite, order_products::NAME, env, order_products::build)
            .await;
    let path = path_of(&one.post("/products", &offer("Teapot", "12.50")).await);
    read(&one, &path).await;
    assert_eq!(read(&one, &path).await.0, "hit");
    proxy.cut();
    for _ in 0..20 {
        assert_eq!(read(&one, &path).await, ("miss".to_owned(), json!("12.50")));
    }
    let ready = one.get("/health/ready").await;
    assert_eq!((ready.status, ready.body["status"].clone()), (200, json!("degraded")));
    assert!(!ready.text.contains("127.0.0.1"), "{}", ready.text);
    let changed = one.put(&path, &json!({ "price": "13.00" })).await;
    assert_eq!(changed.status, 200);
    leaks_nothing(&changed);
    assert_eq!(read(&one, &path).await, ("miss".to_owned(), json!("13.00")), "its own changes it knows");
    assert_eq!(read(&other, &path).await, ("hit".to_owned(), json!("12.50")), "the other cannot know yet");

    proxy.mend();
    // Once Redis has been told, both see it; in a few seconds.
    let heard = async {
        while read(&other, &path).await.1 != json!("13.00") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), heard).await.expect("Redis is told when it is back");
    assert_eq!(read(&one, &path).await.1, json!("13.00"));
    one.end().await;
    other.end().await;
    shared.end().await;
}

#[tokio::test]
async fn a_redis_that_was_never_there_is_no_reason_not_to_start() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    drop(listener);
    let products = Bench::start(
        Place::Sqlite,
        order_products::NAME,
        Env::empty().with(env::REDIS_URL, url),
        order_products::build,
    )
    .await;
    let path = path_of(&products.post("/products", &offer("Teapot", "12.50")).await);
    for price in ["13.00", "14.00"] {
        assert_eq!(read(&products, &path).await.0, "miss");
        products.put(&path, &json!({ "price": price })).await;
        assert_eq!(read(&products, &path).await.1, json!(price));
    }
    products.end().await;
}
