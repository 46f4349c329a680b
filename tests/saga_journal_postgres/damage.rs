//! What is damaged in the tables, or cannot be read or written by the server, on the disk: one saga's misfortune, and the others go on.

use std::{collections::BTreeSet, future::Future, time::Duration};

use mainstay::saga::{
    Orchestrator, Order, Output, Saga, SagaId, StartError, Timestamp,
    conformance::{Pen, definition},
    journal::{Head, Journal, Phase, Query, Refusal, Request, StoreError},
    postgres::Postgres,
};
use tokio::sync::watch;
use tokio_postgres::Client;

use crate::place::{LONG, Place, append, at, by, id, with_place};

/// The saga that the damage is done to; ten others are beside it.
const DAMAGED: &str = "saga-04";

/// Who tells of the damaged saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// `blocked`, with a reason that has this in it: the saga was claimed.
    Blocked(&'static str),
    /// `list`, with a note that has this in it: the row is as it was.
    Listed(&'static str),
}
use Told::{Blocked, Listed};

/// Eleven sagas of which a process has died, that wait for the second of their steps.
struct Eleven {
    journal: Postgres,
    client: Client,
    schema: String,
    gate: watch::Sender<bool>,
    saga: Saga<u32, Output<u32>>,
}

/// Waits until it is so, and not for ever.
async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let waiting = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(8), waiting)
        .await
        .unwrap_or_else(|_| panic!("not in time: {what}"));
}

impl Eleven {
    async fn new(place: &Place) -> Self {
        let journal = place.journal().await;
        let (gate, seen) = watch::channel(false);
        let mut saga = Saga::define::<u32>("two", 1);
        let one = saga.step("one", (), |_, ()| async { Ok(1_u32) }).without_compensation("nothing");
        let two = saga
            .step("two", one, move |_, _: u32| {
                let mut seen = seen.clone();
                async move {
                    let _ = seen.wait_for(|open| *open).await;
                    Ok(2_u32)
                }
            })
            .without_compensation("nothing");
        let saga = saga.build(two).unwrap();
        let eleven =
            Eleven { journal, client: place.client().await, schema: place.schema.clone(), gate, saga };
        let first = eleven.orchestrator().await;
        for name in names() {
            first.start(&eleven.saga, &name, &1).await.unwrap();
        }
        until("all wait for their second step", || async {
            let mut all = true;
            for name in names() {
                all &= eleven.journal.load(&id(&name)).await.unwrap().unwrap().head.len == 2;
            }
            all
        })
        .await;
        drop(first);
        // Of every other saga the owner is dead, the others have none and are due.
        eleven.run("UPDATE @.orchestrator SET until = 0").await;
        eleven
            .run("UPDATE @.saga SET owner = NULL, wake = 0 WHERE right(id, 1) IN ('1', '3', '5', '7', '9')")
            .await;
        eleven
    }

    async fn orchestrator(&self) -> Orchestrator {
        let opening = Orchestrator::open(self.journal.clone()).register(&self.saga);
        opening.poll(Duration::from_millis(50)).start().await.unwrap()
    }

    fn sql(&self, text: &str) -> String {
        text.replace('@', &format!("\"{}\"", self.schema))
    }

    async fn run(&self, text: &str) {
        self.client.batch_execute(&self.sql(text)).await.unwrap();
    }

    /// The damaged saga's rows as text, with or without what a claim changes.
    async fn rows(&self, number: i64, claimed: bool) -> String {
        let without = if claimed { "- 'owner' - 'epoch' - 'recoveries'" } else { "" };
        let text = format!(
            "SELECT concat((SELECT to_jsonb(saga) {without} FROM @.saga WHERE number = $1),
                (SELECT string_agg(to_jsonb(entry)::text, ' ' ORDER BY seq) FROM @.saga_event AS entry WHERE saga = $1))"
        );
        self.client.query_one(&self.sql(&text), &[&number]).await.unwrap().get(0)
    }

    async fn finish_but_one(&self, orchestrator: &Orchestrator) {
        self.gate.send_replace(true);
        tokio::time::timeout(Duration::from_secs(8), orchestrator.recovered()).await.expect("it recovers");
        until("the others finish", || async {
            let over = Query { phases: vec![Phase::Completed], ..Query::default() };
            let found = orchestrator.list(over).await.expect("a listing never fails for one saga");
            let found: BTreeSet<_> = found.into_iter().map(|head| head.id.to_string()).collect();
            names().all(|name| name == DAMAGED || found.contains(&name))
        })
        .await;
    }
}

/// All heads, one on a page.
async fn pages(orchestrator: &Orchestrator) -> Vec<Head> {
    let mut heads: Vec<Head> = Vec::new();
    while heads.len() < 20 {
        let after = heads.last().map(|head| head.id.clone());
        match orchestrator.list(Query { after, limit: 1, ..Query::default() }).await.unwrap().pop() {
            Some(head) => heads.push(head),
            None => break,
        }
    }
    heads
}

fn names() -> impl Iterator<Item = String> {
    (0..11).map(|n| format!("saga-{n:02}"))
}

/// Damages one saga's rows, and looks at what becomes of all of them.
async fn damage(place: &Place, what: &str, told: Told) {
    let eleven = Eleven::new(place).await;
    let number = eleven.sql("SELECT number FROM @.saga WHERE id = $1");
    let number: i64 = eleven.client.query_one(&number, &[&DAMAGED]).await.unwrap().get(0);
    eleven.run(&what.replace("THIS", &number.to_string())).await;
    let name = eleven.sql("SELECT id FROM @.saga WHERE number = $1");
    let name: String = eleven.client.query_one(&name, &[&number]).await.unwrap().get(0);
    let claimed = matches!(told, Blocked(_));
    let before = eleven.rows(number, claimed).await;

    let second = eleven.orchestrator().await;
    eleven.finish_but_one(&second).await;
    // One whose id is none is listed under the next one that is.
    let listed = name.replace('\u{14}', " ");
    match told {
        Blocked(why) => {
            until(&format!("{what}: blocked with {why:?}"), || async {
                let blocked = second.blocked().await.unwrap();
                blocked.iter().any(|(id, reason)| id.as_str() == listed && reason.contains(why))
            })
            .await;
        }
        Listed(why) => {
            let heads = second.list(Query::default()).await.unwrap();
            let head = heads.iter().find(|head| head.id.as_str() == listed).expect(what);
            assert!(head.note.contains(why), "{what}: {:?}", head.note);
            let blocked = second.blocked().await.unwrap();
            assert!(
                blocked.iter().any(|(id, why)| *id == head.id && *why == head.note),
                "{what}: {blocked:?}"
            );
            assert_eq!(heads.len(), 11, "{what}");
            assert_eq!(pages(&second).await, heads, "{what}: each once, a page at a time");
            let phases = vec![Phase::Stuck, Phase::Parked];
            let stuck = second.list(Query { phases, ..Query::default() }).await.unwrap();
            let none = why.contains("phase");
            assert_eq!(stuck.len(), usize::from(none), "{what}: what is in no phase is shown as stuck");
        }
    }
    assert_eq!(eleven.rows(number, claimed).await, before, "{what}: its rows are as they were");
    // With another digest everything is as it was written.
    if let Some(stored) = second.load(&listed).await.unwrap() {
        assert_eq!(stored.verify().is_ok(), told == Blocked("is not registered"), "{what}");
    }
    // An end is in the store before it is known here.
    until(&format!("{what}: nothing is in flight"), || async { second.live() == 0 }).await;
}

macro_rules! damages {
    ($($test:ident: $what:literal, $told:expr;)+) => {
        $(#[test]
        fn $test() {
            with_place(concat!("damage_", stringify!($test)), |place| async move {
                damage(&place, $what, $told).await;
            });
        })+
    };
}

damages! {
    an_entry_with_a_negative_checksum:
        "UPDATE @.saga_event SET crc = -1 WHERE saga = THIS AND seq = 1", Blocked("entry 1 does not have the checksum");
    // In its lower half it is the right one.
    an_entry_with_a_checksum_that_is_too_large:
        "UPDATE @.saga_event SET crc = crc + 4294967296 WHERE saga = THIS AND seq = 1",
        Blocked("entry 1 does not have the checksum");
    an_entry_that_is_no_json:
        "UPDATE @.saga_event SET data = 'no JSON' WHERE saga = THIS AND seq = 1",
        Blocked("entry 1 does not have the checksum");
    an_entry_of_an_unknown_kind:
        "UPDATE @.saga_event SET kind = 'dreamt' WHERE saga = THIS AND seq = 1",
        Blocked("entry 1 does not have the checksum");
    an_entry_with_a_negative_number:
        "UPDATE @.saga_event SET seq = -1 WHERE saga = THIS AND seq = 0", Blocked("entry 0 does not have the checksum");
    an_entry_of_a_negative_epoch:
        "UPDATE @.saga_event SET epoch = -epoch WHERE saga = THIS AND seq = 1",
        Blocked("entry 1 does not have the checksum");
    an_entry_of_a_negative_time:
        "UPDATE @.saga_event SET at = -at WHERE saga = THIS AND seq = 0", Blocked("entry 0 does not have the checksum");
    a_missing_entry:
        "DELETE FROM @.saga_event WHERE saga = THIS AND seq = 0", Blocked("entry 0 is missing");
    a_head_of_an_unknown_phase:
        "UPDATE @.saga SET phase = 'dreaming' WHERE number = THIS", Listed("its phase makes no sense: \"dreaming\"");
    a_head_with_a_negative_length:
        "UPDATE @.saga SET len = -len WHERE number = THIS", Listed("its len makes no sense: -2");
    a_head_with_the_largest_length:
        "UPDATE @.saga SET len = 9223372036854775806 WHERE number = THIS", Blocked("9223372036854775806 were written");
    a_head_of_a_negative_epoch:
        "UPDATE @.saga SET epoch = -epoch WHERE number = THIS", Listed("its epoch makes no sense: -1");
    // A claim cannot count on from there.
    a_head_of_the_last_epoch:
        "UPDATE @.saga SET epoch = 9223372036854775807 WHERE number = THIS", Listed("its epoch makes no sense: 9223372036854775807");
    a_head_with_a_negative_checksum:
        "UPDATE @.saga SET crc = -1 WHERE number = THIS", Listed("its crc makes no sense: -1");
    a_head_with_a_checksum_that_is_too_large:
        "UPDATE @.saga SET crc = 4294967296 WHERE number = THIS", Listed("its crc makes no sense: 4294967296");
    a_head_with_a_negative_wake:
        "UPDATE @.saga SET wake = -1 WHERE number = THIS", Listed("its wake makes no sense: -1");
    a_head_with_a_negative_beginning:
        "UPDATE @.saga SET created = -1 WHERE number = THIS", Listed("its created makes no sense: -1");
    a_head_with_negative_recoveries:
        "UPDATE @.saga SET recoveries = -1 WHERE number = THIS", Listed("its recoveries makes no sense: -1");
    a_head_of_a_negative_version:
        "UPDATE @.saga SET version = -1 WHERE number = THIS", Listed("its version makes no sense: -1");
    a_head_with_an_id_that_is_none:
        "UPDATE @.saga SET id = E'saga-0\\x14' WHERE number = THIS", Listed("its id makes no sense");
    a_head_with_another_digest:
        "UPDATE @.saga SET digest = 'x' || digest WHERE number = THIS", Blocked("is not registered");
    a_head_without_an_owner_and_of_a_negative_epoch:
        "UPDATE @.saga SET epoch = -epoch, owner = NULL, wake = 0 WHERE number = THIS", Listed("its epoch");
    a_head_without_a_note:
        "ALTER TABLE @.saga ALTER note DROP NOT NULL; UPDATE @.saga SET note = NULL WHERE number = THIS",
        Blocked("its note makes no sense");
    // A page of the server that is damaged is told with this code.
    entries_that_the_server_cannot_read:
        "ALTER TABLE @.saga_event RENAME TO disk;
         CREATE FUNCTION @.failing() RETURNS text LANGUAGE plpgsql AS
            $$BEGIN RAISE EXCEPTION 'invalid page in block 7' USING ERRCODE = 'XX001'; END$$;
         CREATE VIEW @.saga_event AS SELECT saga, seq, epoch, at, author, kind, step,
            CASE WHEN saga = THIS AND current_setting('application_name') = 'mainstay' THEN @.failing() ELSE data END AS data, crc
            FROM @.disk;
         CREATE FUNCTION @.write() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO @.disk VALUES (NEW.*); RETURN NEW; END$$;
         CREATE TRIGGER write INSTEAD OF INSERT ON @.saga_event FOR EACH ROW EXECUTE FUNCTION @.write()",
        Blocked("there are 0 entries where 2 were written");
}

/// The device cannot write the rows of one saga. What is in a batch with them is written all the same.
#[test]
fn a_saga_that_cannot_be_written_fails_no_batch() {
    with_place("a_saga_that_cannot_be_written_fails_no_batch", |place| async move {
        let eleven = Eleven::new(&place).await;
        let second = eleven.orchestrator().await;
        until("all are taken up", || async { second.live() == 11 }).await;
        // A sequence counts also what is rolled back.
        let trouble = "CREATE SEQUENCE @.refused;
             CREATE FUNCTION @.refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
                IF NEW.saga = (SELECT number FROM @.saga WHERE id = 'THIS') THEN
                    PERFORM nextval('@.refused'); RAISE EXCEPTION 'invalid page in block 7' USING ERRCODE = 'XX001';
                END IF;
                RETURN NEW; END$$;
             CREATE TRIGGER refuse BEFORE INSERT ON @.saga_event FOR EACH ROW EXECUTE FUNCTION @.refuse()";
        eleven.run(&trouble.replace("THIS", DAMAGED)).await;
        // Behind an append that has to wait, those of all eleven gather for one batch.
        let mut other = place.client().await;
        let held = other.transaction().await.unwrap();
        held.batch_execute(&eleven.sql("LOCK TABLE @.saga_event IN EXCLUSIVE MODE")).await.unwrap();
        let late = tokio::spawn({
            let (second, saga) = (second.clone(), eleven.saga.clone());
            async move { second.start(&saga, "late", &1).await.map(drop) }
        });
        let waits = eleven.sql(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = '@.saga_event'::regclass)",
        );
        until("an append waits", || async { eleven.client.query_one(&waits, &[]).await.unwrap().get(0) })
            .await;
        eleven.gate.send_replace(true);
        tokio::time::sleep(Duration::from_millis(300)).await;
        held.commit().await.unwrap();

        late.await.unwrap().unwrap();
        eleven.finish_but_one(&second).await;
        let count = eleven.sql("SELECT last_value FROM @.refused");
        let count: i64 = eleven.client.query_one(&count, &[]).await.unwrap().get(0);
        assert!(count >= 2, "it was refused with the others, and then alone");
        let head = second.load(DAMAGED).await.unwrap().unwrap().head;
        assert_eq!((head.phase, head.len), (Phase::Running, 2), "nothing of it was written");
        eleven.run("DROP TRIGGER refuse ON @.saga_event").await;
        until("it goes on when it can be written", || async {
            second.load(DAMAGED).await.unwrap().unwrap().head.phase == Phase::Completed
        })
        .await;
    });
}

/// The server cannot read the row of one saga, wherever it comes to it.
#[test]
fn a_row_that_the_server_cannot_read_holds_up_no_other() {
    with_place("a_row_that_the_server_cannot_read_holds_up_no_other", |place| async move {
        let eleven = Eleven::new(&place).await;
        let number = eleven.sql("SELECT number FROM @.saga WHERE id = $1");
        let number: i64 = eleven.client.query_one(&number, &[&DAMAGED]).await.unwrap().get(0);
        // So wide that each has a page for itself.
        let trouble = "ALTER TABLE @.saga ADD wide text, ALTER wide SET STORAGE PLAIN;
             UPDATE @.saga SET wide = repeat('x', 5000);
             ALTER TABLE @.saga RENAME TO disk;
             CREATE SEQUENCE @.failures;
             CREATE FUNCTION @.readable(number bigint) RETURNS bool LANGUAGE plpgsql COST 100000 AS $$BEGIN
                IF number = THIS AND current_setting('application_name') = 'mainstay' THEN
                    PERFORM nextval('@.failures'); RAISE EXCEPTION 'invalid page in block 7' USING ERRCODE = 'XX001';
                END IF;
                RETURN true; END$$;
             CREATE VIEW @.saga AS SELECT ctid, * FROM @.disk WHERE @.readable(number)";
        eleven.run(&trouble.replace("THIS", &number.to_string())).await;
        let mut nap = Saga::define::<u32>("nap", 1);
        nap.sleep("nap", (), LONG);
        let nap = nap.build(()).unwrap();
        let opening = Orchestrator::open(eleven.journal.clone()).register(&eleven.saga).register(&nap);
        let second = opening.poll(Duration::from_millis(50)).start().await.unwrap();
        until("the others are taken up", || async { second.live() == 10 }).await;
        tokio::time::timeout(Duration::from_secs(8), second.recovered()).await.expect("it recovers");
        assert!(second.list(Query::default()).await.is_err(), "that it cannot be read is not passed over");

        second.start(&nap, "late", &1).await.unwrap();
        until("it sleeps in the store alone", || async {
            second.load("late").await.unwrap().unwrap().head.owner.is_none()
        })
        .await;
        second.cancel("late", "why not").await.unwrap();
        eleven.gate.send_replace(true);
        let over = eleven.sql("SELECT count(*) FROM @.disk WHERE phase = $1");
        for (phase, many) in [(Phase::Compensated, 1_i64), (Phase::Completed, 10)] {
            until(&format!("{many} are {phase}"), || async {
                eleven.client.query_one(&over, &[&phase.as_str()]).await.unwrap().get::<_, i64>(0) == many
            })
            .await;
        }
        let failures = eleven.sql("SELECT last_value FROM @.failures");
        let failures = || async { eleven.client.query_one(&failures, &[]).await.unwrap().get::<_, i64>(0) };
        let before = failures().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(failures().await, before, "what cannot be read is not asked for at each look");
        eleven.run("ALTER VIEW @.saga RENAME TO broken; ALTER TABLE @.disk RENAME TO saga").await;
        assert!(second.load(DAMAGED).await.unwrap().is_some());
    });
}

/// The server cannot read what is asked of one saga.
#[test]
fn what_is_asked_and_cannot_be_read_holds_up_no_saga() {
    with_place("what_is_asked_and_cannot_be_read_holds_up_no_saga", |place| async move {
        let eleven = Eleven::new(&place).await;
        let order = Order::Abandon { reason: "enough".to_owned() };
        eleven.journal.request(Request::order(id(DAMAGED), "ann", order)).await.unwrap();
        let trouble = "ALTER TABLE @.signal RENAME TO disk;
             CREATE FUNCTION @.readable() RETURNS bool LANGUAGE plpgsql COST 100000 AS $$BEGIN
                IF current_setting('application_name') = 'mainstay' THEN
                    RAISE EXCEPTION 'invalid page in block 7' USING ERRCODE = 'XX001';
                END IF;
                RETURN true; END$$;
             CREATE VIEW @.signal AS SELECT * FROM @.disk WHERE @.readable()";
        eleven.run(trouble).await;
        // It is not due: only for what is asked of it would it be taken up.
        let far = "UPDATE @.saga SET owner = NULL, wake = 9000000000000000000 WHERE id = 'THIS'";
        eleven.run(&far.replace("THIS", DAMAGED)).await;
        let second = eleven.orchestrator().await;
        until("the others are taken up", || async { second.live() == 10 }).await;
        tokio::time::timeout(Duration::from_secs(8), second.recovered()).await.expect("it recovers");
        eleven.run("ALTER VIEW @.signal RENAME TO broken; ALTER TABLE @.disk RENAME TO signal").await;
        until("what is asked is done", || async {
            second.load(DAMAGED).await.unwrap().unwrap().head.phase == Phase::Abandoned
        })
        .await;
        eleven.finish_but_one(&second).await;
    });
}

#[test]
fn what_is_beside_a_damaged_row_is_answered() {
    with_place("what_is_beside_a_damaged_row_is_answered", |place| async move {
        let (journal, client) = (place.journal().await, place.client().await);
        let (me, gone) = (by("me"), by("gone"));
        let mut pens = ["a", "b", "c"].map(|name| Pen::new(name, &me, at()));
        for pen in &mut pens {
            let mut begun = pen.begin(&definition());
            begun.begin.as_mut().unwrap().locks = vec![format!("lock of {}", pen.saga())];
            append(&journal, begun).await.unwrap();
        }
        let [a, b, c] = &mut pens;
        let ask = |id: &SagaId| Request::order(id.clone(), "ann", Order::Cancel { reason: "why not".into() });
        for id in [a.saga(), b.saga()] {
            journal.request(ask(id)).await.unwrap();
        }
        append(&journal, c.end(Phase::Completed)).await.unwrap();
        for who in [&me, &gone] {
            journal.heartbeat(who, LONG).await.unwrap();
        }
        let damage = format!(
            "UPDATE \"{0}\".saga SET id = E'a\\x11' WHERE id = 'a'; UPDATE \"{0}\".saga SET finished = -7 WHERE id = 'c';
             UPDATE \"{0}\".orchestrator SET until = -1 WHERE incarnation = 'gone'",
            place.schema
        );
        client.batch_execute(&damage).await.unwrap();

        let asked = journal.requests(&me).await.unwrap();
        assert_eq!(asked.iter().map(|request| request.saga.as_str()).collect::<Vec<_>>(), ["b"]);
        let mut late = Pen::new("late", &me, at()).begin(&definition());
        late.begin.as_mut().unwrap().locks = vec!["lock of a".to_owned()];
        let held = Err(Refusal::Locked { key: "lock of a".to_owned(), holder: id("a ") });
        assert_eq!(journal.append(vec![late, b.step("on")]).await.unwrap(), [held, Ok(())]);
        let registered = journal.orchestrators().await.unwrap();
        assert_eq!(registered.iter().map(|one| one.by.as_str()).collect::<Vec<_>>(), ["gone", "me"]);
        assert_eq!(registered[0].until, Timestamp(0), "it is not alive");
        assert_eq!(
            journal.forget("me", Timestamp(u64::MAX), 10).await.unwrap(),
            0,
            "nobody knows when it ended"
        );
        let heads = journal.list(Query::default()).await.unwrap();
        assert_eq!(heads[2].note, "its finished makes no sense: -7");
    });
}

/// While the server refuses what is written with `code`, a start is told so; what is in flight goes on when it no longer does.
async fn refusing(place: &Place, code: &str, expected: fn(&StoreError) -> bool) {
    let eleven = Eleven::new(place).await;
    let second = eleven.orchestrator().await;
    until("all are taken up", || async { second.live() == 11 }).await;
    // A sequence counts also what is rolled back.
    let trouble = "CREATE SEQUENCE @.refused;
         CREATE FUNCTION @.refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            PERFORM nextval('@.refused'); RAISE EXCEPTION 'the device says no' USING ERRCODE = 'THAT'; END$$;
         CREATE TRIGGER refuse BEFORE INSERT ON @.saga_event FOR EACH ROW EXECUTE FUNCTION @.refuse()";
    eleven.run(&trouble.replace("THAT", code)).await;
    let refused = second.start(&eleven.saga, "late", &1).await.unwrap_err();
    assert!(matches!(&refused, StartError::Store(error) if expected(error)), "{refused:?}");
    assert!(refused.to_string().contains("the device says no"), "{refused}");
    eleven.gate.send_replace(true);
    until("what is in flight is refused", || async {
        let count = eleven.sql("SELECT last_value FROM @.refused");
        eleven.client.query_one(&count, &[]).await.unwrap().get::<_, i64>(0) >= 4
    })
    .await;
    assert!(second.load("late").await.unwrap().is_none(), "nothing of it was written");
    assert_eq!(second.list(Query::default()).await.unwrap().len(), 11, "it can be read all the time");
    eleven.run("DROP TRIGGER refuse ON @.saga_event").await;
    second.start(&eleven.saga, "late", &1).await.unwrap();
    until("all twelve finish", || async {
        let over = Query { phases: vec![Phase::Completed], ..Query::default() };
        second.list(over).await.unwrap().len() == 12
    })
    .await;
}

#[test]
fn a_full_disk_is_told_and_gone_when_there_is_room() {
    with_place("a_full_disk_is_told_and_gone_when_there_is_room", |place| async move {
        refusing(&place, "53100", |error| matches!(error, StoreError::Full(_))).await;
    });
}

#[test]
fn a_device_that_fails_is_told_and_may_come_back() {
    with_place("a_device_that_fails_is_told_and_may_come_back", |place| async move {
        refusing(&place, "58030", |error| matches!(error, StoreError::Io(_))).await;
    });
}
