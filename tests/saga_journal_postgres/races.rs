//! Several journals at once.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use mainstay::saga::{
    conformance::{Pen, definition},
    journal::{Append, Journal, Phase, Refusal},
};

use crate::place::{LONG, Place, append, at, by, claim, whole, with_place};

#[test]
fn five_claimers_take_each_of_two_thousand_sagas_once() {
    with_place("five_claimers_take_each_of_two_thousand_sagas_once", |place| async move {
        let journal = place.journal().await;
        let dead = by("dead");
        let pens = (0..2_000).map(|n| Pen::new(&format!("saga-{n:04}"), &dead, at()));
        // One half has an owner without a lease, the other half none; both are to be taken.
        let batch: Vec<Append> = pens
            .enumerate()
            .map(|(n, mut pen)| match n % 2 {
                0 => pen.begin(&definition()),
                _ => Append { release: true, wake: Some(at()), ..pen.begin(&definition()) },
            })
            .collect();
        assert!(journal.append(batch).await.unwrap().iter().all(|answer| answer.is_ok()));

        let claimers: Vec<_> = (0..5)
            .map(|n| {
                let place = place.clone();
                tokio::spawn(async move {
                    let (journal, me) = (place.journal().await, by(&format!("claimer-{n}")));
                    journal.heartbeat(&me, LONG).await.unwrap();
                    let mut taken = Vec::new();
                    let mut idle = 0;
                    // What another one has in hand is stepped over, so that an empty answer may be too early.
                    while idle < 3 {
                        let some = journal.claim(claim(&me, 50)).await.unwrap();
                        assert!(some.len() <= 50, "a claim takes no more than its limit");
                        idle = if some.is_empty() { idle + 1 } else { 0 };
                        taken.extend(some);
                    }
                    (me, taken)
                })
            })
            .collect();
        let mut owners = BTreeMap::new();
        for claimer in claimers {
            let (me, taken) = claimer.await.unwrap();
            for stored in taken {
                stored.verify().unwrap();
                assert_eq!(stored.head.owner.as_ref(), Some(&me));
                assert_eq!(stored.head.epoch, 2, "it was claimed once");
                let before = owners.insert(stored.head.id.clone(), me.clone());
                assert_eq!(before, None, "{} was claimed twice", stored.head.id);
            }
        }
        assert_eq!(owners.len(), 2_000, "every saga was claimed");
        let takers: HashSet<_> = owners.values().collect();
        assert!(takers.len() > 1, "claimers do not wait for each other");
    });
}

#[test]
fn an_owner_of_before_writes_nothing_more() {
    with_place("an_owner_of_before_writes_nothing_more", |place| async move {
        let (old, new) = (place.journal().await, place.journal().await);
        new.heartbeat(&by("new"), LONG).await.unwrap();
        old.heartbeat(&by("old"), Duration::from_millis(30)).await.unwrap();
        let mut pens: Vec<_> = (0..20).map(|n| Pen::new(&format!("saga-{n:02}"), &by("old"), at())).collect();
        let begun = pens.iter_mut().map(|pen| pen.begin(&definition())).collect();
        assert!(old.append(begun).await.unwrap().iter().all(|answer| answer.is_ok()));
        tokio::time::sleep(Duration::from_millis(40)).await;

        // The old owner has not noticed yet that its lease is over, and goes on.
        let zombie = tokio::spawn(async move {
            let mut accepted = vec![1_u64; pens.len()];
            loop {
                let batch = pens.iter_mut().map(|pen| pen.step("late")).collect();
                let answers = old.append(batch).await.unwrap();
                for (at, answer) in answers.iter().enumerate() {
                    match answer {
                        Ok(()) => accepted[at] += 1,
                        Err(refusal) => assert_eq!(*refusal, Refusal::Fenced { epoch: 2 }),
                    }
                }
                if answers.iter().all(|answer| answer.is_err()) {
                    return accepted;
                }
            }
        });
        let mut taken = Vec::new();
        while taken.len() < 20 {
            for stored in new.claim(claim(&by("new"), 7)).await.unwrap() {
                stored.verify().expect("what is claimed is whole, whatever its old owner was doing");
                let mut pen = Pen::resume(&stored.head, at());
                append(&new, pen.step("new")).await.unwrap();
                taken.push(stored);
            }
        }
        let accepted = zombie.await.unwrap();
        for stored in taken {
            let name = stored.head.id.as_str();
            let n: usize = name["saga-".len()..].parse().unwrap();
            let now = whole(&new, name).await;
            assert_eq!(stored.head.len, accepted[n], "what was accepted before the takeover is there");
            assert_eq!(now.head.len, accepted[n] + 1, "and nothing of the old owner behind it");
            assert_eq!(now.entries.last().unwrap().epoch, 2);
        }
    });
}

async fn deadlocks(place: &Place) -> i64 {
    let client = place.client().await;
    let _ = client.batch_execute("SELECT pg_stat_force_next_flush()").await;
    let counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    client.query_one(counted, &[]).await.unwrap().get(0)
}

#[test]
fn batches_that_overlap_do_not_lock_each_other_out() {
    with_place("batches_that_overlap_do_not_lock_each_other_out", |place| async move {
        // Other tests use the same database and so the same count: once without is enough.
        let mut counts = Vec::new();
        for attempt in 0..3 {
            let before = deadlocks(&place).await;
            overlap(&place, attempt).await;
            tokio::time::sleep(Duration::from_millis(1_100)).await;
            counts.push(deadlocks(&place).await - before);
            if counts.last() == Some(&0) {
                return;
            }
        }
        panic!("there were deadlocks each time: {counts:?}");
    });
}

/// Four connections begin, change and end the same sagas in all kinds of orders, and fight for the same locks.
async fn overlap(place: &Place, attempt: u64) {
    let writers: Vec<_> = (0..4_u64)
        .map(|writer| {
            let place = place.clone();
            tokio::spawn(async move {
                let journal = place.journal().await;
                let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(writer + 17 * attempt + 1);
                let mut next = move |below: u64| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random % below
                };
                let mut accepted = 0;
                for _ in 0..60 {
                    let mut names: Vec<u64> = (0..60).collect();
                    for at in 0..20 {
                        let other = at + next(60 - at as u64) as usize;
                        names.swap(at, other);
                    }
                    let batch: Vec<Append> = names[..20]
                        .iter()
                        .map(|name| {
                            let name = format!("{attempt}-{name}");
                            // Of those that begin it one gets it, and the others' items are refused from then on.
                            let mut pen = Pen::new(&name, &by(&format!("writer-{writer}")), at());
                            match next(4) {
                                0 => {
                                    let mut item = pen.begin(&definition());
                                    let keys = (0..3).map(|_| format!("key-{}", next(12)));
                                    item.begin.as_mut().unwrap().locks = keys.collect();
                                    item
                                }
                                1 => Append { phase: Phase::Completed, ..pen.write(&[]) },
                                _ => pen.write(&[]),
                            }
                        })
                        .collect();
                    let answers = journal.append(batch).await.unwrap();
                    accepted += answers.iter().filter(|answer| answer.is_ok()).count();
                }
                accepted
            })
        })
        .collect();
    for writer in writers {
        assert!(writer.await.unwrap() > 0, "the test is about batches that are accepted");
    }
}
