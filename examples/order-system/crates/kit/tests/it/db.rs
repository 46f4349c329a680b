//! One way to work with two databases.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::response::IntoResponse;
use futures::{FutureExt, future::join_all};
use http_body_util::BodyExt;
use mainstay::saga::{
    Direction, Key,
    barrier::{Action, Compensation, Lookup},
};
use order_kit::{
    ApiError, Db, Tx,
    db::{DbError, Place, Value, WAITING},
};

use crate::support::{Somewhere, admin};

const TABLES: &[&str] = &["create table account (name text primary key, cents bigint not null)"];

async fn put(db: &Db, name: &str, cents: i64) -> Result<(), DbError> {
    let name = name.to_owned();
    db.write(async move |tx| {
        tx.execute("insert into account (name, cents) values ($1, $2)", &[name.into(), cents.into()])
            .await
            .map(drop)
    })
    .await
}

async fn names(db: &Db) -> Vec<String> {
    let rows = db.read(async |tx| tx.query("select name from account order by name", &[]).await).await;
    rows.unwrap_or_else(|error: DbError| panic!("{error}")).iter().map(|row| row.text(0).unwrap()).collect()
}

#[tokio::test]
async fn work_that_fails_or_panics_leaves_nothing_and_its_caller_hears_of_it() {
    for somewhere in Somewhere::all("work_that_fails_or_panics_leaves_nothing") {
        let db = Db::open(somewhere.place.clone(), TABLES).await.unwrap();
        put(&db, "kept", 1).await.unwrap();
        let failed = db
            .write(async |tx| {
                tx.execute("insert into account (name, cents) values ('failed', 1)", &[]).await?;
                Err::<(), _>(DbError::Statement("no".to_owned()))
            })
            .await;
        assert!(matches!(failed, Err(DbError::Statement(why)) if why == "no"));
        for _ in 0..10 {
            let panicked: Result<(), DbError> = db
                .write(async |tx| {
                    tx.execute("insert into account (name, cents) values ('panicked', 1)", &[]).await?;
                    panic!("on purpose")
                })
                .await;
            assert!(matches!(panicked, Err(DbError::Unavailable(_))), "{panicked:?}");
        }
        let read: Result<(), DbError> = db.read(async |_| panic!("on purpose")).await;
        assert!(matches!(read, Err(DbError::Unavailable(_))));
        assert_eq!(names(&db).await, ["kept"], "{:?}", somewhere.place);
        put(&db, "later", 2).await.unwrap();
        assert_eq!(names(&db).await, ["kept", "later"]);
        let nothing = db.read(async |tx| {
            tx.first("select cents, name from account where name = $1", &["x".into()]).await
        });
        assert_eq!(nothing.await.unwrap_or_else(|error: DbError| panic!("{error}")), None);
        drop(db);
        somewhere.end().await;
    }
}

#[tokio::test]
async fn what_is_there_twice_is_said_to_be_and_spoils_nobody_elses_work() {
    for somewhere in Somewhere::all("what_is_there_twice") {
        let db = Db::open(somewhere.place.clone(), TABLES).await.unwrap();
        put(&db, "n0", 1).await.unwrap();
        let puts = (0..40).map(|n| {
            let db = db.clone();
            async move { put(&db, &format!("n{}", n / 2), 1).await }
        });
        let answers = join_all(puts).await;
        let twice = answers.iter().filter(|it| matches!(it, Err(DbError::NotUnique(_)))).count();
        assert_eq!((twice, answers.iter().filter(|it| it.is_ok()).count()), (21, 19), "{answers:?}");
        assert_eq!(names(&db).await.len(), 20);
        let wrong = db.write(async |tx| tx.execute("select nonsense from nowhere", &[]).await).await;
        assert!(matches!(wrong, Err(DbError::Statement(_))), "{wrong:?}");
        drop(db);
        somewhere.end().await;
    }
}

#[tokio::test]
async fn many_at_once_lose_no_update() {
    for somewhere in Somewhere::all("many_at_once_lose_no_update") {
        let db = Db::open(somewhere.place.clone(), TABLES).await.unwrap();
        put(&db, "sum", 0).await.unwrap();
        let add = async |n: i64| {
            db.write(async move |tx| {
                tx.execute("update account set cents = cents + $1 where name = 'sum'", &[n.into()]).await?;
                if n % 10 == 0 { Err(DbError::Statement("every tenth fails".to_owned())) } else { Ok(()) }
            })
            .await
        };
        let failed = join_all((1..=300).map(&add)).await.into_iter().filter(Result::is_err).count();
        let row =
            db.read(async |tx| tx.first("select cents from account where name = 'sum'", &[]).await).await;
        let sum = row.unwrap_or_else(|error: DbError| panic!("{error}")).unwrap().int(0).unwrap();
        let wanted: i64 = (1..=300).filter(|n| n % 10 != 0).sum();
        assert_eq!((failed, sum), (30, wanted));
        drop(db);
        somewhere.end().await;
    }
}

#[tokio::test]
async fn a_step_is_done_once_and_undone_once() {
    for somewhere in Somewhere::all("a_step_is_done_once_and_undone_once") {
        let db = Db::open(somewhere.place.clone(), TABLES).await.unwrap();
        let key: Key = "charge.do@order-1".parse().unwrap();
        let ran = Arc::new(AtomicU32::new(0));
        let once = async |key: &Key, answer: Result<i64, String>| {
            let (key, ran) = (key.clone(), ran.clone());
            db.write(async move |tx| {
                tx.once(&key, async |_| {
                    ran.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, DbError>(answer)
                })
                .await
            })
            .await
            .unwrap()
        };
        assert!(matches!(once(&key, Ok(7)).await, Action::Done(Ok(7))));
        assert!(matches!(once(&key, Ok(8)).await, Action::Repeated(Ok(7))));
        let declined: Key = "charge.do@order-2".parse().unwrap();
        assert!(matches!(once(&declined, Err("declined".to_owned())).await, Action::Done(Err(_))));
        assert!(matches!(once(&declined, Ok(1)).await, Action::Repeated(Err(why)) if why == "declined"));
        assert_eq!(ran.load(Ordering::SeqCst), 2);

        let undo = async |key: &Key| {
            let key = key.with_phase(Direction::Undo);
            db.write(async move |tx| {
                tx.undo_once(&key, async |tx, charged: i64| {
                    tx.execute(
                        "insert into account (name, cents) values ($1, $2)",
                        &["refund".into(), charged.into()],
                    )
                    .await
                    .map(drop)
                })
                .await
            })
            .await
            .unwrap_or_else(|error: DbError| panic!("{error}"))
        };
        assert!(matches!(undo(&key).await, Compensation::Undone));
        assert!(matches!(undo(&key).await, Compensation::Repeated));
        assert!(matches!(once(&key, Ok(9)).await, Action::Refused), "it was undone");
        assert!(matches!(undo(&declined).await, Compensation::Nothing));
        assert_eq!(names(&db).await, ["refund"]);
        let early: Key = "charge.do@order-3".parse().unwrap();
        assert!(matches!(undo(&early).await, Compensation::Nothing));
        assert!(matches!(once(&early, Ok(1)).await, Action::Refused), "its compensation came first");
        let lookup = async |key: &Key| {
            let key = key.clone();
            let found = db.read(async move |tx| tx.looked_up::<i64>(&key).await).await;
            found.unwrap_or_else(|error: DbError| panic!("{error}"))
        };
        assert!(matches!(lookup(&key).await, Lookup::Compensated));
        assert!(matches!(lookup(&declined).await, Lookup::Rejected(_)));
        assert!(matches!(lookup(&"charge.do@order-4".parse().unwrap()).await, Lookup::NotApplied));
        let first = async || {
            db.write(async |tx| tx.inbox("me", "m1").await)
                .await
                .unwrap_or_else(|error: DbError| panic!("{error}"))
        };
        assert_eq!((first().await, first().await), (true, false));
        drop(db);
        somewhere.end().await;
    }
}

#[tokio::test]
async fn a_migration_runs_once_and_an_older_program_does_not_touch_newer_data() {
    const LATER: &[&str] = &[
        "create table account (name text primary key, cents bigint not null)",
        "insert into account (name, cents) values ('by migration', 1)",
    ];
    for somewhere in Somewhere::all("a_migration_runs_once") {
        let opened = join_all((0..4).map(|_| Db::open(somewhere.place.clone(), TABLES))).await;
        let refused: Vec<_> = opened.iter().filter_map(|it| it.as_ref().err()).collect();
        assert!(refused.is_empty(), "four processes start at once: {refused:?}");
        for _ in 0..2 {
            let db = Db::open(somewhere.place.clone(), LATER).await.unwrap();
            assert_eq!(names(&db).await, ["by migration"]);
        }
        match Db::open(somewhere.place.clone(), TABLES).await {
            Err(DbError::Statement(why)) => assert!(why.contains("newer"), "{why}"),
            other => panic!("{:?}", other.map(|_| ())),
        }
        drop(opened);
        somewhere.end().await;
    }
}

#[tokio::test]
async fn what_ends_the_transaction_itself_takes_no_false_word_with_it() {
    let somewhere = Somewhere::sqlite();
    let db = Db::open(somewhere.place.clone(), TABLES).await.unwrap();
    for round in 0..5 {
        // The writer is held up, so that the rest shares a transaction.
        let hold = db.write(async |_| {
            std::thread::sleep(Duration::from_millis(30));
            Ok::<_, DbError>(())
        });
        let works = join_all((0..9).map(|n| {
            let (db, name) = (db.clone(), format!("{round}-{n}"));
            async move {
                let answer: Result<(), DbError> = db
                    .write(async move |tx| {
                        tx.execute("insert into account (name, cents) values ($1, 1)", &[name.into()])
                            .await?;
                        if n == 4 { tx.execute("rollback", &[]).await.map(drop) } else { Ok(()) }
                    })
                    .await;
                (n, answer)
            }
        }));
        // It may be in the same transaction, and be told so.
        let (_held, answers) = futures::join!(hold, works);
        let there = names(&db).await;
        for (n, answer) in answers {
            let kept = there.contains(&format!("{round}-{n}"));
            assert_eq!(answer.is_ok(), kept, "{n}: {answer:?}");
            assert!(n != 4 || answer.is_err());
        }
        put(&db, &format!("after {round}"), 1).await.unwrap();
    }
    drop(db);
    somewhere.end().await;
}

#[tokio::test]
async fn what_nobody_waits_for_is_not_begun_and_no_more_waits_than_may() {
    let somewhere = Somewhere::sqlite();
    let db = Db::open(somewhere.place.clone(), TABLES).await.unwrap();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let mut hold = Box::pin(db.write(async move |_| {
        let _ = begun.send(());
        let _ = wait.recv();
        Ok::<_, DbError>(())
    }));
    assert!(hold.as_mut().now_or_never().is_none());
    begins.await.unwrap();
    // The writer is busy. Two callers come; the first goes again.
    let mut goes = Box::pin(put(&db, "goes", 1));
    let mut stays = Box::pin(put(&db, "stays", 1));
    assert!(goes.as_mut().now_or_never().is_none() && stays.as_mut().now_or_never().is_none());
    drop(goes);
    let mut crowd: Vec<_> = (2..WAITING)
        .map(|_| {
            let mut one = Box::pin(db.write(async |_| Ok::<_, DbError>(())));
            assert!(one.as_mut().now_or_never().is_none());
            one
        })
        .collect();
    let refused = put(&db, "too many", 1).now_or_never();
    assert!(matches!(refused, Some(Err(DbError::Unavailable(_)))), "{refused:?}");
    drop(go);
    hold.await.unwrap();
    stays.await.unwrap();
    crowd.pop().unwrap().await.unwrap();
    assert_eq!(names(&db).await, ["stays"]);
    drop(crowd);
    drop(db);
    somewhere.end().await;
}

#[tokio::test]
async fn a_connection_that_is_killed_is_replaced() {
    let Some(somewhere) = Somewhere::postgres("a_connection_that_is_killed_is_replaced") else { return };
    let Place::Postgres { url, .. } = &somewhere.place else { unreachable!() };
    let db = Db::open(somewhere.place.clone(), TABLES).await.unwrap();
    let admin = admin(url).await;
    for round in 0..3 {
        let pid = async || {
            db.read(async |tx| {
                let row = tx.first("select pg_backend_pid(), pg_sleep(0.02)::text", &[]).await?;
                row.map_or(Ok(0), |row| row.int(0))
            })
            .await
            .unwrap_or_else(|error: DbError| panic!("{error}"))
        };
        let pids: std::collections::BTreeSet<i64> =
            join_all((0..24).map(|_| pid())).await.into_iter().collect();
        assert!(pids.len() > 1, "several connections take turns");
        for pid in &pids {
            admin.query("select pg_terminate_backend($1)", &[&i32::try_from(*pid).unwrap()]).await.unwrap();
        }
        let again = join_all((0..24).map(|n| {
            let db = db.clone();
            async move { put(&db, &format!("{round}-{n}"), 1).await }
        }));
        for answer in again.await {
            answer.unwrap();
        }
    }
    assert_eq!(names(&db).await.len(), 72);
    drop(db);
    somewhere.end().await;
}

#[tokio::test]
async fn a_statement_that_hangs_is_ended_and_the_next_work_is_done() {
    let Some(somewhere) = Somewhere::postgres("a_statement_that_hangs_is_ended") else { return };
    let Place::Postgres { url, schema } = &somewhere.place else { unreachable!() };
    let limit = async |db: &Db| {
        let shown = db.read(async |tx| tx.first("show statement_timeout", &[]).await).await;
        shown.unwrap_or_else(|error: DbError| panic!("{error}")).unwrap().text(0).unwrap()
    };
    let db = Db::open(somewhere.place.clone(), TABLES).await.unwrap();
    assert_eq!(limit(&db).await, "1min", "as long as the kit says");
    drop(db);
    // The address says less, so that nobody has to wait for the kit's.
    let url =
        format!("{url}{}options=-c%20statement_timeout%3D1000", if url.contains('?') { '&' } else { '?' });
    let db = Db::open(Place::Postgres { url, schema: schema.clone() }, TABLES).await.unwrap();
    assert_eq!(limit(&db).await, "1s");
    // More than there are connections, some in the midst of a transaction that has written.
    let hang = async |n: usize| {
        let work = async move |tx: &Tx<'_>| {
            let row = [format!("hangs {n}").into()];
            tx.execute("insert into account (name, cents) values ($1, 1)", &row).await?;
            tx.first("select pg_sleep(600)::text", &[]).await.map(drop)
        };
        db.write(work).await
    };
    let all = tokio::time::timeout(Duration::from_secs(20), join_all((0..9).map(hang))).await;
    for ended in all.expect("they end") {
        assert!(matches!(ended, Err(DbError::Unavailable(_))), "{ended:?}");
    }
    put(&db, "after", 1).await.unwrap();
    assert_eq!(names(&db).await, ["after"]);
    drop(db);
    somewhere.end().await;
}

#[tokio::test]
async fn who_cannot_reach_it_says_so_and_not_where_it_is() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let url = format!("postgres://somebody:secret@127.0.0.1:{port}/somewhere");
    let away =
        Db::open(Place::Postgres { url, schema: "it".to_owned() }, TABLES).await.map(drop).unwrap_err();
    assert!(matches!(&away, DbError::Unavailable(why) if !why.contains("secret")), "{away:?}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "no folder").unwrap();
    let below = Place::Sqlite(file.join("it.db"));
    let nowhere = Db::open(below.clone(), TABLES).await.map(drop).unwrap_err();
    assert!(matches!(nowhere, DbError::Unavailable(_)), "{nowhere:?}");
    assert!(Db::reachable(&below).await.is_err());
    for error in [away, nowhere] {
        let response = ApiError::from(error).into_response();
        assert_eq!(response.status(), 503);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&body[..], br#"{"error":"Service unavailable"}"#);
    }
    let fresh = folder.path().join("not yet").join("it.db");
    Db::reachable(&Place::Sqlite(fresh.clone())).await.unwrap();
    assert!(!fresh.parent().unwrap().exists(), "asking makes nothing");
}

#[tokio::test]
async fn a_value_of_each_kind_comes_back_as_it_was() {
    for somewhere in Somewhere::all("a_value_of_each_kind_comes_back_as_it_was") {
        let table = &["create table kind (n {serial}, whole bigint, words text)"];
        let db = Db::open(somewhere.place.clone(), table).await.unwrap();
        for (whole, words) in [(Value::Null, Value::Null), (Value::Int(i64::MIN), "é\n'\"$1".into())] {
            let insert = db.write(async move |tx| {
                tx.execute("insert into kind (whole, words) values ($1, $2)", &[whole, words]).await
            });
            assert_eq!(insert.await.unwrap_or_else(|error: DbError| panic!("{error}")), 1);
        }
        let rows =
            db.read(async |tx| tx.query("select n, whole, words from kind order by n", &[]).await).await;
        let rows = rows.unwrap_or_else(|error: DbError| panic!("{error}"));
        assert_eq!((rows[0].maybe_int(1).unwrap(), rows[0].maybe_text(2).unwrap()), (None, None));
        assert_eq!((rows[1].int(1).unwrap(), rows[1].text(2).unwrap().as_str()), (i64::MIN, "é\n'\"$1"));
        assert!(rows[0].int(0).unwrap() < rows[1].int(0).unwrap());
        assert!(rows[1].int(2).is_err() && rows[1].text(9).is_err());
        drop(db);
        somewhere.end().await;
    }
}
