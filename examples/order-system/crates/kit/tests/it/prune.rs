//! What is forgotten of what is remembered against repetition, and what is not yet.

use std::{sync::Arc, time::Duration};

use mainstay::saga::{
    Direction, Key,
    barrier::{Action, Compensation, sqlite::Pruning},
};
use order_kit::{
    Context, Db, Tx,
    context::Ports,
    db::{DbError, Place},
    env::{self, Env},
    events::{emit, start_relay},
    prune::{BATCH, Keep},
};

use crate::support::{Somewhere, memory, until};

const DAY: i64 = 24 * 60 * 60 * 1_000;
const MINUTE: i64 = 60 * 1_000;

async fn run(db: &Db, sql: String) {
    let ran = db.write(async move |tx| tx.execute(&sql, &[]).await).await;
    ran.unwrap_or_else(|error: DbError| panic!("{error}"));
}

/// Lets it be so long ago.
async fn ago(db: &Db, table: &str, column: &str, ms: i64, which: &str) {
    let then = match db.place() {
        Place::Sqlite(_) => format!("cast(unixepoch('subsec') * 1000 as integer) - {ms}"),
        Place::Postgres { .. } => format!("now() - interval '{ms} milliseconds'"),
    };
    run(db, format!("update mainstay_{table} set {column} = {then} where {which}")).await;
}

/// How many rows the barrier, the inbox and the outbox have.
async fn counts(db: &Db) -> [i64; 3] {
    let count = async |tx: &Tx<'_>| {
        let mut counts = [0; 3];
        for (count, table) in counts.iter_mut().zip(["barrier", "inbox", "outbox"]) {
            let rows = tx.first(&format!("select count(*) from mainstay_{table}"), &[]).await?;
            *count = rows.ok_or_else(|| DbError::Statement("no row".to_owned()))?.int(0)?;
        }
        Ok::<_, DbError>(counts)
    };
    db.read(count).await.unwrap()
}

async fn charge(db: &Db, saga: &str) -> Action<Result<i64, String>> {
    let key: Key = format!("charge.do@{saga}").parse().unwrap();
    let once = async move |tx: &Tx<'_>| tx.once(&key, async |_| Ok::<_, DbError>(Ok(7))).await;
    db.write(once).await.unwrap()
}

async fn refund(db: &Db, saga: &str) -> Compensation {
    let key: Key = format!("charge.do@{saga}").parse().unwrap();
    let key = key.with_phase(Direction::Undo);
    let once = async move |tx: &Tx<'_>| tx.undo_once(&key, async |_, _: i64| Ok::<_, DbError>(())).await;
    db.write(once).await.unwrap()
}

async fn accept(db: &Db, message: &'static str) -> bool {
    db.write(async move |tx: &Tx<'_>| tx.inbox("me", message).await).await.unwrap()
}

async fn pruned(db: &Db, limit: usize) -> bool {
    let keep = Keep::of(&Env::empty());
    let mut walk = Pruning::new(keep.steps);
    db.write(async move |tx: &Tx<'_>| tx.prune(&keep, &mut walk, limit).await).await.unwrap()
}

#[tokio::test]
async fn what_can_still_be_repeated_is_remembered_to_the_last_minute() {
    for somewhere in Somewhere::all("what_can_still_be_repeated") {
        let db = Db::open(somewhere.place.clone(), &[]).await.unwrap();
        for saga in ["over", "nearly", "undone-late"] {
            let _ = charge(&db, saga).await;
        }
        assert_eq!(refund(&db, "undone-late").await, Compensation::Undone);
        ago(&db, "barrier", "at", 90 * DAY + MINUTE, "saga = 'over'").await;
        ago(&db, "barrier", "at", 90 * DAY - MINUTE, "saga = 'nearly'").await;
        ago(&db, "barrier", "at", 400 * DAY, "saga = 'undone-late' and phase = 'do'").await;
        for message in ["old", "recent"] {
            assert!(accept(&db, message).await);
        }
        ago(&db, "inbox", "at", 30 * DAY + MINUTE, "message = 'old'").await;
        ago(&db, "inbox", "at", 30 * DAY - MINUTE, "message = 'recent'").await;
        for kind in ["old", "recent", "unsent"] {
            let told = async move |tx: &Tx<'_>| tx.outbox("events", kind, kind).await;
            db.write(told).await.unwrap();
        }
        ago(&db, "outbox", "sent", DAY + MINUTE, "key = 'old'").await;
        ago(&db, "outbox", "sent", DAY - MINUTE, "key = 'recent'").await;
        ago(&db, "outbox", "at", 400 * DAY, "key = 'unsent'").await;

        assert_eq!(counts(&db).await, [4, 2, 3]);
        assert!(!pruned(&db, 10).await);
        assert_eq!(counts(&db).await, [3, 1, 2], "{:?}", somewhere.place);
        assert!(matches!(charge(&db, "nearly").await, Action::Repeated(Ok(7))));
        assert!(matches!(charge(&db, "undone-late").await, Action::Refused), "its saga was here lately");
        assert_eq!(refund(&db, "over").await, Compensation::Nothing, "it is forgotten");
        assert_eq!((accept(&db, "old").await, accept(&db, "recent").await), (true, false));
        drop(db);
        somewhere.end().await;
    }
}

#[tokio::test]
async fn a_batch_is_no_larger_than_said_and_says_when_there_may_be_more() {
    for somewhere in Somewhere::all("a_batch_is_no_larger_than_said") {
        let db = Db::open(somewhere.place.clone(), &[]).await.unwrap();
        for saga in ["a", "b", "c"] {
            let _ = charge(&db, saga).await;
        }
        ago(&db, "barrier", "at", 91 * DAY, "true").await;
        assert!(pruned(&db, 2).await);
        assert_eq!(counts(&db).await[0], 1);
        assert!(!pruned(&db, 2).await);
        assert_eq!(counts(&db).await[0], 0);
        drop(db);
        somewhere.end().await;
    }
}

/// With promises that nothing takes any time, so that everything is old at once.
#[tokio::test]
async fn a_service_prunes_its_database_by_itself() {
    let data = tempfile::tempdir().unwrap();
    let env = [env::LONGEST_SAGA_MS, env::LONGEST_DELIVERY_MS, env::KEEP_SENT_MS, env::PRUNE_EVERY_MS]
        .iter()
        .fold(Env::empty(), |env, name| env.with(name, "0"));
    let context = Context::new("it", env, data.path(), memory().await, Arc::new(Ports(1)));
    let db = context.open_db(&[]).await.unwrap();
    start_relay(&context, &db);
    let rows = BATCH + BATCH / 2;
    let fill = async move |tx: &Tx<'_>| {
        for n in 0..rows {
            tx.inbox("me", &n.to_string()).await?;
            emit(tx, "it", "it.is", "key", &n).await?;
        }
        Ok::<_, DbError>(())
    };
    db.write(fill).await.unwrap();
    let _ = charge(&db, "a").await;
    until("nothing is left", async || counts(&db).await == [0, 0, 0]).await;
    context.stop().cancel();
    tokio::time::timeout(Duration::from_secs(20), context.finished())
        .await
        .expect("it ends with the service");
}
