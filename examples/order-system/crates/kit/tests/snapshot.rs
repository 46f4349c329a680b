//! A read sees one state of the database, whatever is written meanwhile.

use std::io::Write;

use order_kit::db::{Db, DbError, Place};
use tokio::sync::oneshot;

const MIGRATIONS: &[&str] = &["create table note (id bigint primary key)"];

async fn one_state(place: Place) {
    let db = Db::open(place, MIGRATIONS).await.unwrap();
    let (looked, written) = (oneshot::channel(), oneshot::channel());
    let reader = tokio::spawn({
        let db = db.clone();
        async move {
            db.read(async move |tx| {
                let count = async || tx.first("select count(*) from note", &[]).await?.unwrap().int(0);
                let before = count().await?;
                looked.0.send(()).unwrap();
                written.1.await.unwrap();
                Ok::<_, DbError>((before, count().await?))
            })
            .await
        }
    });
    looked.1.await.unwrap();
    db.write(async |tx| tx.execute("insert into note values (1)", &[]).await)
        .await
        .map_err(|it: DbError| it)
        .unwrap();
    written.0.send(()).unwrap();
    assert_eq!(reader.await.unwrap().unwrap(), (0, 0));
    let after = db.read(async |tx| tx.first("select count(*) from note", &[]).await?.unwrap().int(0)).await;
    assert_eq!(after.map_err(|error: DbError| error.to_string()), Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_sqlite() {
    let data = tempfile::tempdir().unwrap();
    one_state(Place::Sqlite(data.path().join("it.db"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_postgres() {
    let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
        let _ = std::io::stderr().write_all(b"skipped: in_postgres: MAINSTAY_TEST_POSTGRES is not set\n");
        return;
    };
    let schema = format!("order_kit_{}", order_kit::new_id().replace('-', ""));
    let place = Place::Postgres { url: url.clone(), schema: schema.clone() };
    let outcome = tokio::spawn(one_state(place)).await;
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
        .batch_execute(&format!("set client_min_messages to warning; drop schema {schema} cascade"))
        .await
        .unwrap();
    outcome.unwrap();
}
