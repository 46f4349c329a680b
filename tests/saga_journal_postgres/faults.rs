//! What breaks between a journal and its server.

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use mainstay::saga::{
    Payload, Timestamp,
    conformance::{Pen, definition},
    journal::{Append, Ask, Journal, Phase, Query, Refusal, Request, Requested, StoreError},
    postgres::Postgres,
};
use tokio_postgres::{
    Config, NoTls,
    config::{Host, SslMode},
};

use crate::{
    place::{LONG, Place, append, at, by, claim, whole, with_place},
    proxy::{Cut, Message, Proxy},
};

/// A part of the text of the statement that appends, and of no other one.
const APPEND: Message = Message::Statement("plain_entries AS");
const CLAIM: Message = Message::Statement("orphaned AS MATERIALIZED");
const REQUEST: Message = Message::Statement("target AS MATERIALIZED");

/// A journal that reaches its server through a proxy.
pub async fn behind_proxy(place: &Place, patience: Duration) -> (Proxy, Postgres) {
    let config: Config = place.url.parse().unwrap();
    let host = match &config.get_hosts()[0] {
        Host::Tcp(host) => host.clone(),
        other => panic!("the proxy needs TCP, not {other:?}"),
    };
    let proxy = Proxy::new(format!("{host}:{}", config.get_ports().first().unwrap_or(&5432))).await;
    let mut through = Config::new();
    through.host("127.0.0.1").port(proxy.port).dbname(config.get_dbname().unwrap_or("postgres"));
    if let Some(user) = config.get_user() {
        through.user(user);
    }
    if let Some(password) = config.get_password() {
        through.password(password);
    }
    let journal =
        Postgres::connect_with(through, NoTls).schema(&place.schema).patience(patience).await.unwrap();
    (proxy, journal)
}

pub const CUTS: [Cut; 3] = [Cut::Before, Cut::After, Cut::Late(Duration::from_millis(150))];

#[test]
fn an_append_whose_answer_is_lost_is_done_once() {
    with_place("an_append_whose_answer_is_lost_is_done_once", |place| async move {
        let (proxy, journal) = behind_proxy(&place, Duration::from_secs(10)).await;
        for (n, cut) in CUTS.into_iter().enumerate() {
            let name = format!("saga-{n}");
            let mut pen = Pen::new(&name, &by("me"), at());
            let mut expected = 0;
            let mut count = 0;
            let mut steps: Vec<(&str, Append)> = Vec::new();
            steps.push(("begin", pen.begin(&definition())));
            steps.push(("one entry", pen.step("a")));
            let record = pen.step("b").entries.remove(0).record().unwrap();
            steps.push(("three entries", pen.write(&[record.clone(), record.clone(), record])));
            steps.push(("none", Append { note: "waits".into(), wake: Some(at()), ..pen.write(&[]) }));
            // The one between was never sent.
            steps.push(("a gap", pen.step("never")));
            steps.push(("the release", pen.release(Some(Timestamp(77)))));
            for (what, item) in steps {
                let gap = what == "three entries" || what == "a gap";
                proxy.cut(APPEND, cut);
                let answer = append(&journal, item.clone()).await;
                count += 1;
                if gap {
                    assert_eq!(answer, Err(Refusal::Gap { expected }), "{what}, cut {cut:?}");
                } else {
                    assert_eq!(answer, Ok(()), "{what}, cut {cut:?}");
                    expected += item.entries.len() as u64;
                }
                assert_eq!(proxy.happened(), count + n * 6, "the connection was cut, {cut:?}");
                let head = whole(&journal, &name).await.head;
                assert_eq!(head.len, expected, "{what}, cut {cut:?}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            let head = whole(&journal, &name).await.head;
            assert_eq!(
                (head.len, head.owner, head.wake),
                (expected, None, Some(Timestamp(77))),
                "cut {cut:?}"
            );
        }
    });
}

#[test]
fn two_batches_that_lose_one_connection_are_done_once_each() {
    with_place("two_batches_that_lose_one_connection_are_done_once_each", |place| async move {
        let (proxy, journal) = behind_proxy(&place, Duration::from_secs(10)).await;
        for (n, cut) in CUTS.into_iter().enumerate() {
            let names = [format!("one-{n}"), format!("two-{n}")];
            let mut pens: Vec<Pen> = names.iter().map(|name| Pen::new(name, &by("me"), at())).collect();
            let begun = pens.iter_mut().map(|pen| pen.begin(&definition())).collect();
            assert!(journal.append(begun).await.unwrap().iter().all(Result::is_ok));
            let [one, two] = [0, 1].map(|pen| pens[pen].step("a"));
            // Both are sent before the first one has its answer, and neither has one before the connection is gone.
            proxy.cut_two(APPEND, cut);
            let answers = tokio::join!(append(&journal, one), append(&journal, two));
            assert_eq!(answers, (Ok(()), Ok(())), "cut {cut:?}");
            assert_eq!(proxy.happened(), n + 1, "the connection was cut, {cut:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
            for name in &names {
                assert_eq!(whole(&journal, name).await.head.len, 2, "{name}, cut {cut:?}");
            }
        }
    });
}

/// The second of two batches waits for the first one at the server, which is no silence.
#[test]
fn a_batch_behind_a_slow_one_is_waited_for() {
    with_place("a_batch_behind_a_slow_one_is_waited_for", |place| async move {
        // Half of it is silence: the second batch takes longer, and does not after the first one's answer.
        let patience = Duration::from_secs(5);
        let journal = Postgres::connect(&place.url).schema(&place.schema).patience(patience).await.unwrap();
        let (me, client) = (by("me"), place.client().await);
        let mut pens = ["one", "two"].map(|name| Pen::new(name, &me, at()));
        for pen in &mut pens {
            append(&journal, pen.begin(&definition())).await.unwrap();
        }
        let session = format!("SELECT session FROM \"{}\".writer", place.schema);
        let session = async || client.query_one(&session, &[]).await.unwrap().get::<_, String>(0);
        let before = session().await;
        let held = |saga: &'static str, millis| {
            let place = place.clone();
            tokio::spawn(async move {
                let client = place.client().await;
                let hold =
                    format!("BEGIN; SELECT 1 FROM \"{}\".saga WHERE id = '{saga}' FOR UPDATE", place.schema);
                client.batch_execute(&hold).await.unwrap();
                tokio::time::sleep(Duration::from_millis(millis)).await;
            })
        };
        let both = [held("one", 1_700), held("two", 3_200)];
        tokio::time::sleep(Duration::from_millis(200)).await;
        let [one, two] = pens.each_mut().map(|pen| pen.step("a"));
        let answers = tokio::join!(append(&journal, one), append(&journal, two));
        assert_eq!(answers, (Ok(()), Ok(())));
        for held in both {
            held.await.unwrap();
        }
        assert_eq!(session().await, before, "no other connection was needed");
    });
}

/// Who stands still in the middle of a transaction leaves rows locked, for as long as the server lets it.
#[test]
fn a_lease_is_prolonged_while_a_row_is_locked_by_somebody_else() {
    with_place("a_lease_is_prolonged_while_a_row_is_locked_by_somebody_else", |place| async move {
        let journal = Arc::new(place.named_journal().await);
        let (me, holder) = (by("me"), place.client().await);
        let mut pen = Pen::new("locked", &me, at());
        append(&journal, pen.begin(&definition())).await.unwrap();
        let hold = format!("BEGIN; SELECT 1 FROM \"{}\".saga FOR UPDATE", place.schema);
        holder.batch_execute(&hold).await.unwrap();
        let (held, next) = (journal.clone(), pen.step("a"));
        let waiting = tokio::spawn(async move { append(&held, next).await });
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'";
        let name = place.schema[..63.min(place.schema.len())].to_owned();
        while holder.query_one(waits, &[&name]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        journal.heartbeat(&me, LONG).await.unwrap();
        journal.now().await.unwrap();
        assert!(!waiting.is_finished(), "the append waits all the same");
        holder.batch_execute("ROLLBACK").await.unwrap();
        waiting.await.unwrap().unwrap();
    });
}

#[test]
fn a_statement_that_comes_late_changes_nothing() {
    with_place("a_statement_that_comes_late_changes_nothing", |place| async move {
        let (proxy, journal) = behind_proxy(&place, Duration::from_secs(10)).await;
        let mut pen = Pen::new("a", &by("me"), at());
        append(&journal, pen.begin(&definition())).await.unwrap();
        // It has no entries, so that nothing but the connection's registration can tell the late one.
        proxy.cut(APPEND, Cut::Late(Duration::from_millis(300)));
        append(&journal, Append { note: "first".into(), ..pen.write(&[]) }).await.unwrap();
        append(&journal, Append { note: "second".into(), ..pen.write(&[]) }).await.unwrap();
        assert_eq!(proxy.happened(), 1);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(whole(&journal, "a").await.head.note, "second");
    });
}

#[test]
fn a_batch_whose_answer_is_lost_is_answered_item_by_item() {
    with_place("a_batch_whose_answer_is_lost_is_answered_item_by_item", |place| async move {
        let (proxy, journal) = behind_proxy(&place, Duration::from_secs(10)).await;
        for (n, cut) in CUTS.into_iter().enumerate() {
            let me = by("me");
            let pen = |name: &str| Pen::new(&format!("{name}-{n}"), &me, at());
            let mut there = pen("there");
            append(&journal, there.begin(&definition())).await.unwrap();
            append(&journal, pen("before").begin(&definition())).await.unwrap();
            let mut locks = pen("locks").begin(&definition());
            locks.begin.as_mut().unwrap().locks = vec![format!("key-{n}")];
            let mut second = pen("second").begin(&definition());
            second.begin.as_mut().unwrap().locks = vec![format!("key-{n}")];
            let batch = vec![
                pen("new").begin(&definition()),
                Pen::new(&format!("before-{n}"), &me, Timestamp(7)).begin(&definition()),
                there.step("a"),
                pen("missing").write(&[]),
                locks,
                second,
            ];
            proxy.cut(APPEND, cut);
            let answers = journal.append(batch).await.unwrap();
            let holder = pen("locks").saga().clone();
            let expected = [
                Ok(()),
                Err(Refusal::Exists),
                Ok(()),
                Err(Refusal::Missing),
                Ok(()),
                Err(Refusal::Locked { key: format!("key-{n}"), holder }),
            ];
            assert_eq!(answers, expected, "cut {cut:?}");
            assert_eq!(proxy.happened(), n + 1);
            assert_eq!(whole(&journal, &format!("there-{n}")).await.head.len, 2);
            assert_eq!(whole(&journal, &format!("new-{n}")).await.head.len, 1);
        }
        assert_eq!(place.count("saga").await, 12);
        assert_eq!(place.count("semantic_lock").await, 3);
    });
}

#[test]
fn a_claim_whose_answer_is_lost_loses_no_saga() {
    with_place("a_claim_whose_answer_is_lost_loses_no_saga", |place| async move {
        let (proxy, journal) = behind_proxy(&place, Duration::from_secs(10)).await;
        let me = by("me");
        journal.heartbeat(&me, LONG).await.unwrap();
        let mut happened = 0;
        for message in [CLAIM, Message::Commit] {
            for cut in CUTS {
                let name = format!("saga-{happened}");
                let begun = Append {
                    release: true,
                    wake: Some(at()),
                    ..Pen::new(&name, &me, at()).begin(&definition())
                };
                append(&journal, begun).await.unwrap();
                proxy.cut(message, cut);
                let taken = journal.claim(claim(&me, 10)).await.unwrap();
                happened += 1;
                assert_eq!(proxy.happened(), happened);
                let names: Vec<_> = taken.iter().map(|stored| stored.head.id.as_str()).collect();
                assert_eq!(names, [&name], "{message:?} {cut:?}");
                taken[0].verify().unwrap();
                let mut pen = Pen::resume(&taken[0].head, at());
                append(&journal, pen.end(Phase::Completed)).await.expect("it is the owner");
            }
        }
    });
}

#[test]
fn a_request_whose_answer_is_lost_is_left() {
    with_place("a_request_whose_answer_is_lost_is_left", |place| async move {
        let (proxy, journal) = behind_proxy(&place, Duration::from_secs(10)).await;
        let me = by("me");
        let mut pen = Pen::new("a", &me, at());
        append(&journal, pen.begin(&definition())).await.unwrap();
        for (n, cut) in CUTS.into_iter().enumerate() {
            let request = Request {
                id: format!("request-{n}"),
                saga: pen.saga().clone(),
                by: "test".into(),
                ask: Ask::Signal { step: "pay".into(), payload: Payload::encode(&n).unwrap() },
            };
            proxy.cut(REQUEST, cut);
            assert_eq!(journal.request(request.clone()).await.unwrap(), Requested::Left, "cut {cut:?}");
            assert_eq!(proxy.happened(), n + 1);
            assert_eq!(journal.request(request).await.unwrap(), Requested::Known);
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(journal.requests(&me).await.unwrap().len(), n + 1);
        }
    });
}

#[test]
fn a_server_that_ends_connections_loses_nothing() {
    with_place("a_server_that_ends_connections_loses_nothing", |place| async move {
        let journal = Arc::new(place.named_journal().await);
        let over = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..8)
            .map(|n| {
                let (journal, over) = (journal.clone(), over.clone());
                tokio::spawn(async move {
                    let mut pens: Vec<_> =
                        (0..4).map(|m| Pen::new(&format!("saga-{n}-{m}"), &by("me"), at())).collect();
                    let begun = pens.iter_mut().map(|pen| pen.begin(&definition())).collect();
                    assert_eq!(journal.append(begun).await.unwrap(), vec![Ok(()); 4]);
                    let mut acknowledged = 1_u64;
                    while !over.load(Relaxed) {
                        let batch = pens.iter_mut().map(|pen| pen.step("next")).collect();
                        assert_eq!(
                            journal.append(batch).await.unwrap(),
                            vec![Ok(()); 4],
                            "after {acknowledged}"
                        );
                        acknowledged += 1;
                    }
                    (n, acknowledged)
                })
            })
            .collect();
        let client = place.client().await;
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1";
        let mut ended = 0;
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            ended += client
                .query_one(end, &[&&place.schema[..63.min(place.schema.len())]])
                .await
                .unwrap()
                .get::<_, i64>(0);
        }
        over.store(true, Relaxed);
        assert!(ended >= 20, "connections were ended: {ended}");
        for writer in writers {
            let (n, acknowledged) = writer.await.unwrap();
            for m in 0..4 {
                let stored = whole(&journal, &format!("saga-{n}-{m}")).await;
                assert_eq!(stored.head.len, acknowledged, "what was acknowledged is there, once");
            }
        }
    });
}

#[test]
fn what_another_try_would_not_change_is_told_at_once() {
    with_place("what_another_try_would_not_change_is_told_at_once", |place| async move {
        // There is no TLS here, and no address at all.
        let mut encrypted: Config = place.url.parse().unwrap();
        encrypted.ssl_mode(SslMode::Require);
        let mut nowhere = Config::new();
        nowhere.dbname("test");
        for (config, why) in [(encrypted, "TLS"), (nowhere, "host and hostaddr are missing")] {
            let connecting = Postgres::connect_with(config, NoTls).patience(LONG).into_future();
            let refused = tokio::time::timeout(Duration::from_secs(10), connecting).await.expect(why);
            let refused = refused.unwrap_err();
            assert!(matches!(&refused, StoreError::Absent(said) if said.contains(why)), "{refused}");
        }
    });
}

#[test]
fn a_server_that_cannot_be_reached_is_told_in_time() {
    with_place("a_server_that_cannot_be_reached_is_told_in_time", |place| async move {
        let patience = Duration::from_secs(1);
        let since = Instant::now();
        let nobody =
            Postgres::connect("postgres://postgres@127.0.0.1:1/test").patience(patience).await.unwrap_err();
        assert!(matches!(&nobody, StoreError::Unavailable(why) if why.contains("refused")), "{nobody}");
        assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());

        let nowhere = Postgres::connect("mysql:/x").await.unwrap_err();
        assert!(matches!(nowhere, StoreError::Absent(_)), "{nowhere}");
        let mut config: Config = place.url.parse().unwrap();
        config.dbname("there_is_no_such_database");
        let absent = Postgres::connect_with(config, NoTls).await.unwrap_err();
        assert!(
            matches!(&absent, StoreError::Absent(why) if why.contains("there_is_no_such_database")),
            "{absent}"
        );

        let (proxy, journal) = behind_proxy(&place, patience).await;
        let mut pen = Pen::new("a", &by("me"), at());
        append(&journal, pen.begin(&definition())).await.unwrap();
        proxy.shut().await;
        let step = pen.step("x");
        let since = Instant::now();
        let unreachable = journal.append(vec![step.clone()]).await.unwrap_err();
        assert!(matches!(unreachable, StoreError::Unavailable(_)), "{unreachable}");
        let unreachable = journal.load(pen.saga()).await.unwrap_err();
        assert!(matches!(unreachable, StoreError::Unavailable(_)), "{unreachable}");
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        proxy.open();
        assert_eq!(append(&journal, step).await, Ok(()), "it comes back by itself");
        assert_eq!(whole(&journal, "a").await.head.len, 2);
    });
}

#[test]
fn reading_does_not_wait_for_a_writer_that_hangs() {
    with_place("reading_does_not_wait_for_a_writer_that_hangs", |place| async move {
        let journal = Arc::new(place.journal().await);
        let mut pen = Pen::new("a", &by("me"), at());
        append(&journal, pen.begin(&definition())).await.unwrap();
        journal.list(Query::default()).await.unwrap();
        let client = place.client().await;
        let hold = format!("BEGIN; SELECT * FROM \"{}\".saga FOR UPDATE", place.schema);
        client.batch_execute(&hold).await.unwrap();
        let stalled = tokio::spawn({
            let (journal, item) = (journal.clone(), pen.step("x"));
            async move { append(&journal, item).await }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let since = Instant::now();
        assert_eq!(journal.load(pen.saga()).await.unwrap().unwrap().head.len, 1);
        assert_eq!(journal.list(Query::default()).await.unwrap().len(), 1);
        assert!(since.elapsed() < Duration::from_millis(500), "{:?}", since.elapsed());
        assert!(!stalled.is_finished());
        client.batch_execute("COMMIT").await.unwrap();
        assert_eq!(stalled.await.unwrap(), Ok(()));
    });
}

#[test]
fn an_entry_that_nobody_counts_costs_its_own_saga_alone() {
    with_place("an_entry_that_nobody_counts_costs_its_own_saga_alone", |place| async move {
        let journal = place.journal().await;
        let mut pens: Vec<_> = ["a", "b", "c"].map(|name| Pen::new(name, &by("me"), at())).into();
        let begun = pens.iter_mut().map(|pen| pen.begin(&definition())).collect();
        assert_eq!(journal.append(begun).await.unwrap(), vec![Ok(()); 3]);
        let foreign = format!(
            "INSERT INTO \"{0}\".saga_event SELECT number, 1, 1, 0, 'x', 'x', NULL, '', 0 FROM \"{0}\".saga WHERE id = 'b'",
            place.schema
        );
        place.client().await.batch_execute(&foreign).await.unwrap();
        let batch = pens.iter_mut().map(|pen| pen.step("x")).collect();
        let answers = journal.append(batch).await.unwrap();
        assert_eq!(answers, vec![Ok(()), Err(Refusal::Fenced { epoch: 1 }), Ok(())]);
    });
}
