//! The same on PostgreSQL, with the server of `MAINSTAY_TEST_POSTGRES`, in schemas of its own.

use std::{
    io::Write,
    panic::{AssertUnwindSafe, resume_unwind},
};

use futures::FutureExt;
use http::{Method, StatusCode};
use order_kit::env;

use crate::world::{Mood, World, eventually, order_of};

#[tokio::test]
async fn orders_on_postgres() {
    let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
        let _ = writeln!(std::io::stderr(), "skipped: orders_on_postgres: MAINSTAY_TEST_POSTGRES is not set");
        return;
    };
    let prefix = format!("test_{}_{:x}_", std::process::id(), order_kit::now_ms());
    let ran = AssertUnwindSafe(run(url.clone(), prefix.clone())).catch_unwind().await;
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    for schema in ["orders", "orders_saga", "orders_read"] {
        client.batch_execute(&format!("drop schema if exists \"{prefix}{schema}\" cascade")).await.unwrap();
    }
    if let Err(panic) = ran {
        resume_unwind(panic);
    }
}

async fn run(url: String, prefix: String) {
    let mut world =
        World::with(|env| env.with(env::DATABASE_URL, url).with("DATABASE_SCHEMA_PREFIX", prefix)).await;
    let keyed = [("idempotency-key", "k")];
    let post = async || world.send(Method::POST, "/orders", &keyed, Some(order_of("ada", 3))).await;
    let at_once = futures::future::join_all((0..4).map(|_| post())).await;
    let id = at_once[0].body["id"].as_str().unwrap().to_owned();
    for answer in at_once {
        assert_eq!((answer.status, answer.body["id"].as_str()), (StatusCode::ACCEPTED, Some(&*id)));
    }
    assert_eq!(world.decided(&id).await["status"], "confirmed");
    world.neighbours.declined.lock().unwrap().insert("eve".to_owned());
    let declined = world.order("eve", 3).await;
    assert_eq!(world.decided(&declined).await["reason"], "card_declined");

    world.neighbours.set("charge", Mood::Failing);
    let waiting = world.order("ada", 1).await;
    world.until(&waiting, "waiting_payment").await;
    world.restart().await;
    world.neighbours.set("charge", Mood::Well);
    assert_eq!(world.decided(&waiting).await["status"], "confirmed");
    assert_eq!(world.neighbours.effects("charge", &waiting), 1);
    eventually("the read side has them", async || {
        let rows = world.get("/orders/user/ada").await.body;
        let rows = rows.as_array().unwrap();
        rows.len() == 2 && rows.iter().all(|row| row["status"] == "confirmed")
    })
    .await;
    let audit = world.get("/_audit").await.body;
    assert_eq!(audit["orders"].as_array().unwrap().len(), 3);
    let counted = order_orders::rebuild(world.context_of("orders")).await.unwrap();
    assert!(counted >= 8, "{counted}");
    assert_eq!(world.get("/orders/user/ada").await.body.as_array().unwrap().len(), 2);
    world.end().await;
}
