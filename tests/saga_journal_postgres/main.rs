//! `saga::postgres::Postgres` against a real server, whose address is in `MAINSTAY_TEST_POSTGRES`; without it every test here is
//! skipped and says so. Each makes a schema of its own and drops it.

#![allow(clippy::disallowed_methods)]

mod damage;
mod ended;
mod faults;
mod measure;
mod place;
mod proxy;
mod races;
#[path = "../support/transact.rs"]
mod transact;
mod work;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use mainstay::saga::{
    Timestamp,
    conformance::{self, Pen, Subject, definition},
    journal::{Append, Journal, Phase, Refusal, StoreError},
    postgres::Postgres,
};
use place::{append, at, by, whole, with_place};

#[test]
fn it_does_what_every_store_has_to_do() {
    with_place("it_does_what_every_store_has_to_do", |place| async move {
        let opened = Arc::new(AtomicU64::new(0));
        let open = {
            let (place, opened) = (place.clone(), opened.clone());
            move || {
                let schema = format!("{}_{}", place.schema, opened.fetch_add(1, Relaxed));
                let place = place::Place { schema, ..place.clone() };
                async move { Arc::new(place.journal().await) as Arc<dyn Journal> }
            }
        };
        let reopen = {
            move |journal: Arc<dyn Journal>| {
                let schema = format!("{}_{}", place.schema, opened.load(Relaxed) - 1);
                let place = place::Place { schema, ..place.clone() };
                drop(journal);
                async move { Arc::new(place.journal().await) as Arc<dyn Journal> }
            }
        };
        conformance::run(&Subject::new(open, tokio::time::sleep).reopen(reopen)).await;
    });
}

#[test]
fn a_later_format_is_refused() {
    with_place("a_later_format_is_refused", |place| async move {
        drop(place.journal().await);
        let later = format!("UPDATE \"{}\".meta SET value = '2' WHERE name = 'format'", place.schema);
        place.client().await.batch_execute(&later).await.unwrap();
        let refused = Postgres::connect(&place.url).schema(&place.schema).await.unwrap_err();
        assert_eq!(refused, StoreError::Format { found: "2".into(), known: "1".into() });
    });
}

/// What most appends are is laid out apart; the answers are in the order of the batch nevertheless.
#[test]
fn a_batch_of_all_kinds_is_answered_in_its_order() {
    with_place("a_batch_of_all_kinds_is_answered_in_its_order", |place| async move {
        let journal = place.journal().await;
        let me = by("me");
        let mut pens: Vec<Pen> =
            ["h", "g", "f", "e", "d", "c"].iter().map(|id| Pen::new(id, &me, at())).collect();
        for pen in &mut pens {
            append(&journal, pen.begin(&definition())).await.unwrap();
        }
        let [h, g, f, e, d, c] = &mut pens[..] else { unreachable!() };
        let _never = g.step("never sent");
        let mut stale = f.step("of another epoch");
        (stale.epoch, stale.entries[0].epoch) = (7, 7);
        let batch = vec![
            h.step("plain"),
            g.step("behind a gap"),
            Pen::new("b", &me, at()).begin(&definition()),
            stale,
            e.end(Phase::Completed),
            Append { by: by("nobody"), ..d.step("of another owner") },
            Append { by: me.clone(), ..Pen::new("c-", &me, at()).step("of no saga") },
            Pen::new("h", &me, at()).begin(&definition()),
            Append { note: "note".into(), wake: Some(Timestamp(5)), ..c.step("plain too") },
            Append { answers: vec!["request".into()], ..h.step("with an answer, behind its own") },
            Pen::new("a", &me, at()).begin(&definition()),
        ];
        let answers = journal.append(batch).await.unwrap();
        let expected = vec![
            Ok(()),
            Err(Refusal::Gap { expected: 1 }),
            Ok(()),
            Err(Refusal::Fenced { epoch: 1 }),
            Ok(()),
            Err(Refusal::Fenced { epoch: 1 }),
            Err(Refusal::Missing),
            Err(Refusal::Exists),
            Ok(()),
            Ok(()),
            Ok(()),
        ];
        assert_eq!(answers, expected);
        for (id, len) in [("a", 1), ("b", 1), ("c", 2), ("d", 1), ("e", 2), ("f", 1), ("g", 1), ("h", 3)] {
            let stored = whole(&journal, id).await;
            assert_eq!(stored.head.len, len, "{id}");
            stored.verify().unwrap();
        }
        let head = whole(&journal, "c").await.head;
        assert_eq!((&*head.note, head.wake), ("note", Some(Timestamp(5))));
    });
}

#[test]
fn twenty_can_make_the_tables_at_once() {
    with_place("twenty_can_make_the_tables_at_once", |place| async move {
        let opening: Vec<_> = (0..20)
            .map(|_| {
                let place = place.clone();
                tokio::spawn(async move { drop(place.journal().await) })
            })
            .collect();
        for opened in opening {
            opened.await.expect("whoever comes second finds the tables");
        }
    });
}

#[test]
fn a_schema_may_have_any_name() {
    with_place("a_schema_may_have_any_name", |place| async move {
        let place = place::Place { schema: format!("{} @~Ä", place.schema), ..place };
        let journal = place.journal().await;
        let mut pen = Pen::new("a", &by("one"), at());
        append(&journal, pen.begin(&definition())).await.unwrap();
        whole(&journal, "a").await;
        let nameless = Postgres::connect(&place.url).schema("").await.unwrap_err();
        assert!(matches!(nameless, StoreError::Absent(_)), "{nameless}");
    });
}

#[test]
fn a_note_may_have_a_character_that_the_database_refuses() {
    with_place("a_note_may_have_a_character_that_the_database_refuses", |place| async move {
        let journal = place.journal().await;
        let mut pen = Pen::new("a", &by("one"), at());
        append(&journal, pen.begin(&definition())).await.unwrap();
        let stuck = Append { phase: Phase::Stuck, note: "it said \0".into(), ..pen.step("x\0y") };
        append(&journal, stuck).await.unwrap();
        let head = journal.load(pen.saga()).await.unwrap().unwrap().head;
        assert_eq!(head.note, "it said \u{2400}");
    });
}
