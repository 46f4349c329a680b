//! What is accepted, what is refused, and what is then there.

use std::{future::poll_fn, task::Poll};

use super::{
    Append, Begin, Broken, Pen, Phase, Record, Refusal, SagaId, Subject, accept, begun, claim, definition,
    ensure, incarnation, refuse, same, whole,
};
use crate::saga::{
    Cause, Payload, Timestamp,
    journal::{Ask, Query, Request},
};

type Checked = Result<(), Broken>;

fn locking(pen: &mut Pen, locks: &[&str]) -> Append {
    let mut append = pen.begin(&definition());
    let locks = locks.iter().map(|&lock| lock.to_owned()).collect();
    append.begin = Some(Begin { definition: definition(), tag: String::new(), locks });
    append
}

pub(super) async fn what_is_begun_is_found_whole(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    ensure!(journal.load(&SagaId::new("a").unwrap()).await?.is_none(), "an empty store has a saga");
    let by = incarnation("one");
    let now = journal.now().await?;
    let mut pen = Pen::new("a", &by, now);
    let mut append = pen.begin(&definition());
    append.begin.as_mut().unwrap().tag = "a tag".into();
    append.note = "a note".into();
    append.wake = Some(Timestamp(now.0 + 5));
    let entries = append.entries.clone();
    accept(&journal, append).await?;
    let stored = whole(&journal, pen.saga()).await?;
    let head = &stored.head;
    same!(head.definition, definition(), "the definition");
    same!(head.tag, "a tag", "the tag");
    same!(head.note, "a note", "the note");
    same!(head.phase, Phase::Running, "the phase");
    same!((head.epoch, head.len, head.recoveries), (1, 1, 0), "epoch, length and recoveries");
    same!(head.owner, Some(by), "the owner is who began it");
    same!(head.wake, Some(Timestamp(now.0 + 5)), "the wake");
    same!((head.created, head.finished), (now, None), "created at its first entry, and not finished");
    same!(stored.entries, entries, "the entries");
    same!(journal.list(Query::default()).await?, vec![stored.head], "the listing shows the same head");
    Ok(())
}

pub(super) async fn what_is_appended_survives(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pen = begun(&journal, "a", "one").await?;
    for step in ["x", "y", "z"] {
        accept(&journal, pen.step(step)).await?;
    }
    let mut two = pen.write(&[
        Record::Aborted { cause: Cause::Deadline, clean: vec!["z".into()] },
        Record::Undone { step: "y".into(), attempts: 2, ms: 3 },
    ]);
    two.phase = Phase::Unwinding;
    accept(&journal, two).await?;
    let before = whole(&journal, pen.saga()).await?;
    let journal = subject.again(journal).await;
    let after = whole(&journal, pen.saga()).await?;
    same!(after, before, "what was accepted is there after the store was opened again");
    same!(after.entries.len(), 6, "the number of entries");
    same!(after.entries[2].step.as_deref(), Some("y"), "the step of an entry");
    same!(after.entries[4].kind, "aborted", "the kind of an entry");
    Ok(())
}

pub(super) async fn a_second_begin_is_refused(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pen = begun(&journal, "a", "one").await?;
    let before = whole(&journal, pen.saga()).await?;
    for owner in ["one", "two"] {
        let mut again = Pen::new("a", &incarnation(owner), Timestamp(1));
        same!(
            refuse(&journal, again.begin(&definition())).await?,
            Refusal::Exists,
            "a second begin by {owner}"
        );
    }
    same!(whole(&journal, pen.saga()).await?, before, "a refused begin changes nothing");
    accept(&journal, pen.end(Phase::Completed)).await?;
    let mut again = Pen::new("a", &incarnation("two"), Timestamp(1));
    same!(refuse(&journal, again.begin(&definition())).await?, Refusal::Exists, "a begin after the end");
    Ok(())
}

pub(super) async fn a_missing_saga_is_refused(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pen = Pen::new("a", &incarnation("one"), Timestamp(1));
    same!(refuse(&journal, pen.write(&[])).await?, Refusal::Missing, "a row that is not there");
    same!(refuse(&journal, pen.step("x")).await?, Refusal::Missing, "an entry for a saga that is not there");
    ensure!(journal.load(pen.saga()).await?.is_none(), "a refused append has made a saga");
    Ok(())
}

pub(super) async fn a_gap_is_refused(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pen = begun(&journal, "a", "one").await?;
    let behind = pen.clone().step("x");
    let mut ahead = pen.clone();
    ahead.step("lost");
    same!(refuse(&journal, ahead.step("x")).await?, Refusal::Gap { expected: 1 }, "an entry was left out");
    accept(&journal, pen.step("x")).await?;
    same!(refuse(&journal, behind).await?, Refusal::Gap { expected: 2 }, "an entry comes a second time");
    let mut torn = pen.clone().write(&[Record::Sent { step: "a".into() }, Record::Sent { step: "b".into() }]);
    torn.entries[1].seq += 1;
    same!(refuse(&journal, torn).await?, Refusal::Gap { expected: 2 }, "there is a gap within the append");
    let mut late = Pen::new("b", &incarnation("one"), Timestamp(1));
    late.write(&[Record::Sent { step: "lost".into() }]);
    same!(
        refuse(&journal, late.begin(&definition())).await?,
        Refusal::Gap { expected: 0 },
        "a begin starts at 0"
    );
    same!(whole(&journal, pen.saga()).await?.head.len, 2, "what was refused is not there");
    accept(&journal, pen.step("y")).await
}

pub(super) async fn an_owner_of_before_is_refused(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut zombie = begun(&journal, "a", "one").await?;
    accept(&journal, zombie.release(Some(Timestamp(1)))).await?;
    same!(
        refuse(&journal, zombie.clone().step("x")).await?,
        Refusal::Fenced { epoch: 1 },
        "it has let the saga go"
    );
    same!(journal.claim(claim("two")).await?.len(), 1, "the number of claimed sagas");
    same!(
        refuse(&journal, zombie.clone().step("x")).await?,
        Refusal::Fenced { epoch: 2 },
        "another owner has it"
    );
    same!(refuse(&journal, zombie.write(&[])).await?, Refusal::Fenced { epoch: 2 }, "a row is fenced too");
    // The same orchestrator may own it again; what it wrote under its first ownership still does not pass.
    let mut owner = Pen::resume(&whole(&journal, zombie.saga()).await?.head, Timestamp(1));
    accept(&journal, owner.release(Some(Timestamp(1)))).await?;
    same!(journal.claim(claim("one")).await?.len(), 1, "the number of claimed sagas");
    same!(
        refuse(&journal, zombie.clone().step("x")).await?,
        Refusal::Fenced { epoch: 3 },
        "an epoch of before"
    );
    let head = whole(&journal, zombie.saga()).await?.head;
    same!((head.len, head.epoch), (1, 3), "length and epoch");
    Ok(())
}

pub(super) async fn a_stranger_is_refused(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pen = begun(&journal, "a", "one").await?;
    let stranger = Append { by: incarnation("two"), ..pen.clone().step("x") };
    same!(
        refuse(&journal, stranger).await?,
        Refusal::Fenced { epoch: 1 },
        "the right epoch in the wrong hands"
    );
    let early = Append { epoch: 2, ..pen.clone().step("x") };
    same!(refuse(&journal, early).await?, Refusal::Fenced { epoch: 1 }, "an epoch that has not begun");
    accept(&journal, pen.step("x")).await
}

pub(super) async fn one_refusal_does_not_touch_the_others(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pens = Vec::new();
    for id in ["a", "b", "c", "d"] {
        pens.push(begun(&journal, id, "one").await?);
    }
    let mut batch: Vec<Append> = pens.iter_mut().map(|pen| pen.step("x")).collect();
    batch[1].epoch = 7;
    batch[2].entries[0].seq = 9;
    batch.push(Pen::new("e", &incarnation("one"), Timestamp(1)).begin(&definition()));
    batch.push(Pen::new("a", &incarnation("one"), Timestamp(1)).begin(&definition()));
    batch.push(Pen::new("f", &incarnation("one"), Timestamp(1)).step("x"));
    let expected = vec![
        Ok(()),
        Err(Refusal::Fenced { epoch: 1 }),
        Err(Refusal::Gap { expected: 1 }),
        Ok(()),
        Ok(()),
        Err(Refusal::Exists),
        Err(Refusal::Missing),
    ];
    same!(journal.append(batch).await?, expected, "the answers in the order of the batch");
    for (id, len) in [("a", 2), ("b", 1), ("c", 1), ("d", 2), ("e", 1)] {
        same!(whole(&journal, &SagaId::new(id).unwrap()).await?.head.len, len, "the length of {id}");
    }
    same!(journal.append(Vec::new()).await?, Vec::new(), "an empty batch");
    Ok(())
}

pub(super) async fn the_first_of_a_batch_gets_the_lock(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let by = incarnation("one");
    let new = |id: &str| Pen::new(id, &by, Timestamp(1));
    accept(&journal, new("holder").begin(&definition())).await?;
    let batch = vec![
        locking(&mut new("c"), &["x", "y"]),
        locking(&mut new("a"), &["y", "z"]),
        locking(&mut new("holder"), &["w"]),
        locking(&mut new("b"), &["z", "w"]),
        locking(&mut new("d"), &["w"]),
    ];
    let lock = |key: &str, holder: &str| {
        Err(Refusal::Locked { key: key.into(), holder: SagaId::new(holder).expect("a good id") })
    };
    let expected = vec![Ok(()), lock("y", "c"), Err(Refusal::Exists), Ok(()), lock("w", "b")];
    same!(journal.append(batch).await?, expected, "a lock goes to the first who is accepted");
    for id in ["a", "d"] {
        ensure!(journal.load(new(id).saga()).await?.is_none(), "{id} was refused and is there");
    }
    Ok(())
}

pub(super) async fn of_two_batches_at_once_one_comes_first(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let by = incarnation("one");
    for round in 0..10 {
        let new = |name: &str| Pen::new(&format!("{name} {round}"), &by, Timestamp(1));
        let key = format!("key {round}");
        let batch = |side: &str| {
            let locks = locking(&mut new(&format!("locks of {side}")), &[&key]);
            vec![locks, new(side).begin(&definition())]
        };
        let (one, two) = tokio::join!(journal.append(batch("one")), journal.append(batch("two")));
        let (one, two) = (one?, two?);
        let (side, first, second) =
            if one.first() == Some(&Ok(())) { ("one", one, two) } else { ("two", two, one) };
        same!(first, vec![Ok(()); 2], "one batch is answered as if it had come alone");
        let holder = new(&format!("locks of {side}")).saga().clone();
        let expected = vec![Err(Refusal::Locked { key, holder }), Ok(())];
        same!(second, expected, "the other one is answered as if it had come behind it");
        for side in ["one", "two"] {
            same!(whole(&journal, new(side).saga()).await?.head.len, 1, "what only batch {side} has");
        }
    }
    Ok(())
}

pub(super) async fn an_append_is_there_whole_or_not_at_all(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut holder = Pen::new("holder", &incarnation("one"), Timestamp(1));
    accept(&journal, locking(&mut holder, &["key"])).await?;
    let mut pen = Pen::new("a", &incarnation("one"), Timestamp(1));
    let mut append = locking(&mut pen, &["free", "key"]);
    append.entries.extend(pen.step("x").entries);
    ensure!(matches!(refuse(&journal, append).await?, Refusal::Locked { .. }), "the lock is taken");
    ensure!(journal.load(pen.saga()).await?.is_none(), "a part of a refused append is there");
    let records: Vec<Record> = (0..50).map(|n| Record::Sent { step: format!("step {n}") }).collect();
    accept(&journal, holder.write(&records)).await?;
    let journal = subject.again(journal).await;
    same!(whole(&journal, holder.saga()).await?.head.len, 51, "fifty entries in one append");
    ensure!(journal.load(pen.saga()).await?.is_none(), "a part of a refused append is there");
    Ok(())
}

pub(super) async fn the_row_changes_without_entries(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pen = begun(&journal, "a", "one").await?;
    let wake = Some(Timestamp(77));
    let row = Append { phase: Phase::Stuck, note: "no answer".into(), wake, ..pen.write(&[]) };
    accept(&journal, row).await?;
    let head = whole(&journal, pen.saga()).await?.head;
    same!(
        (head.phase, head.note.as_str(), head.wake),
        (Phase::Stuck, "no answer", wake),
        "phase, note and wake"
    );
    same!((head.len, head.owner.as_ref().map(|by| by.as_str())), (1, Some("one")), "length and owner");
    accept(&journal, pen.step("x")).await?;
    let head = whole(&journal, pen.saga()).await?.head;
    same!(
        (head.phase, head.note.as_str(), head.wake),
        (Phase::Running, "", None),
        "phase, note and wake after it"
    );
    Ok(())
}

pub(super) async fn an_end_ends_everything(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    for phase in Phase::ALL.into_iter().filter(|phase| phase.is_terminal()) {
        let mut pen = begun(&journal, phase.as_str(), "one").await?;
        let order = Ask::Order(crate::saga::Order::Retry { step: None });
        let request = Request { id: "r".into(), saga: pen.saga().clone(), by: "me".into(), ask: order };
        journal.request(request).await?;
        let at = Timestamp(journal.now().await?.0 + 1_000);
        let append = Append { wake: Some(Timestamp(1)), ..pen.at(at).end(phase) };
        accept(&journal, append).await?;
        let head = whole(&journal, pen.saga()).await?.head;
        same!((head.phase, head.finished), (phase, Some(at)), "it ended at the time of its last entry");
        same!((head.owner, head.wake), (None, None), "{phase} has neither owner nor wake");
        same!(
            journal.requests(&incarnation("one")).await?,
            Vec::new(),
            "no request waits at what is {phase}"
        );
    }
    let mut pen = begun(&journal, "later", "one").await?;
    let created = whole(&journal, pen.saga()).await?.head.created;
    accept(&journal, Append { phase: Phase::Abandoned, ..pen.write(&[]) }).await?;
    let finished = whole(&journal, pen.saga()).await?.head.finished;
    same!(finished, Some(created), "an end without entries is at the time of the last one before");
    Ok(())
}

pub(super) async fn what_is_over_stays_over(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pen = begun(&journal, "a", "one").await?;
    accept(&journal, pen.end(Phase::Completed)).await?;
    let before = whole(&journal, pen.saga()).await?;
    for append in [pen.clone().step("x"), pen.clone().write(&[]), pen.clone().release(Some(Timestamp(1)))] {
        same!(refuse(&journal, append).await?, Refusal::Fenced { epoch: 1 }, "an append after the end");
    }
    same!(whole(&journal, pen.saga()).await?, before, "what is over does not change");
    Ok(())
}

pub(super) async fn locks_are_held_until_the_end(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let by = incarnation("one");
    let mut holder = Pen::new("holder", &by, Timestamp(1));
    accept(&journal, locking(&mut holder, &["it's \"one\"", "two", "two"])).await?;
    let other = Pen::new("other", &by, Timestamp(1));
    for key in ["it's \"one\"", "two"] {
        let expected = Refusal::Locked { key: key.into(), holder: holder.saga().clone() };
        same!(
            refuse(&journal, locking(&mut other.clone(), &[key])).await?,
            expected,
            "the lock {key} is held"
        );
    }
    accept(&journal, holder.step("x")).await?;
    accept(&journal, holder.release(None)).await?;
    let journal = subject.again(journal).await;
    let refused = refuse(&journal, locking(&mut other.clone(), &["two"])).await?;
    ensure!(
        matches!(refused, Refusal::Locked { .. }),
        "a lock outlives ownership, and was refused by {refused}"
    );
    let only = crate::saga::journal::Claim { only: Some(vec![holder.saga().clone()]), ..claim("one") };
    let taken = journal.claim(only).await?;
    same!(taken.len(), 1, "the number of claimed sagas");
    accept(&journal, Pen::resume(&taken[0].head, Timestamp(2)).end(Phase::Compensated)).await?;
    accept(&journal, locking(&mut other.clone(), &["it's \"one\"", "two"])).await
}

pub(super) async fn locks_are_taken_all_or_none(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let by = incarnation("one");
    let new = |id: &str| Pen::new(id, &by, Timestamp(1));
    accept(&journal, locking(&mut new("holder"), &["b"])).await?;
    let refused = refuse(&journal, locking(&mut new("greedy"), &["a", "b", "c"])).await?;
    let expected = Refusal::Locked { key: "b".into(), holder: SagaId::new("holder").unwrap() };
    same!(refused, expected, "which lock, and who has it");
    accept(&journal, locking(&mut new("modest"), &["a", "c"])).await
}

pub(super) async fn any_id_is_kept_as_it_is(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let long = "ü".repeat(100);
    let ids = [
        "it's",
        "\"quoted\"",
        "semi;colon",
        "back\\slash",
        "100%",
        "a_b",
        "{\"json\":1}",
        "a,b",
        "{a,b}",
        "NULL",
        " ",
        "Größe/Ωμέγα/日本語/🦀",
        "e\u{301}",
        "\u{e9}",
        &long,
    ];
    let by = incarnation("it's \"me\" \\ 🦀");
    let mut batch: Vec<Append> =
        ids.iter().map(|id| Pen::new(id, &by, Timestamp(1)).begin(&definition())).collect();
    for (append, id) in batch.iter_mut().zip(ids) {
        append.note = format!("'{id}'");
        append.begin.as_mut().unwrap().tag = id.into();
    }
    same!(journal.append(batch).await?, vec![Ok(()); ids.len()], "each of these ids is possible");
    let journal = subject.again(journal).await;
    for id in ids {
        let stored = whole(&journal, &SagaId::new(id).unwrap()).await?;
        same!((stored.head.id.as_str(), stored.head.tag.as_str()), (id, id), "id and tag");
        same!((stored.head.note, stored.head.owner), (format!("'{id}'"), Some(by.clone())), "note and owner");
    }
    let listed = journal.list(Query::default()).await?;
    let listed: Vec<&str> = listed.iter().map(|head| head.id.as_str()).collect();
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    same!(listed, sorted, "the order is that of the bytes");
    Ok(())
}

pub(super) async fn large_records_are_kept(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pen = begun(&journal, "a", "one").await?;
    let text: String = "0123456789abcde ü".chars().cycle().take(1_000_000).collect();
    let output = Payload::encode(&text).unwrap();
    let record = Record::Completed { step: "large".into(), output, attempts: u32::MAX, ms: u64::MAX >> 1 };
    accept(&journal, pen.write(&[record.clone(), Record::Sent { step: "s".repeat(1_000) }])).await?;
    accept(&journal, pen.step("x")).await?;
    let journal = subject.again(journal).await;
    let stored = whole(&journal, pen.saga()).await?;
    ensure!(stored.entries[1].record().is_ok_and(|found| found == record), "the large record is another one");
    Ok(())
}

pub(super) async fn dropped_futures_harm_nothing(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pen = begun(&journal, "a", "one").await?;
    let by = incarnation("one");
    for round in 0..20 {
        // Not polled at all, or polled once: what was asked may be done or not, and the store goes on.
        drop(journal.append(vec![pen.clone().step("unpolled")]));
        once(journal.append(vec![pen.clone().step("once")])).await;
        once(journal.claim(claim("two"))).await;
        once(journal.heartbeat(&by, super::LONG)).await;
        pen = go_on(&journal, pen.saga(), round).await?;
    }
    let len = whole(&journal, pen.saga()).await?.head.len;
    ensure!((21..=41).contains(&len), "each dropped append is there at most once: found {len} entries");
    Ok(())
}

/// Polls once and drops.
async fn once<T>(mut pending: crate::saga::journal::Pending<'_, T>) {
    poll_fn(|cx| {
        let _ = pending.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
}

/// Appends behind whatever is there: a server may still work on what was dropped, which then comes before it.
async fn go_on(journal: &super::Shared, saga: &SagaId, round: u32) -> Result<Pen, Broken> {
    for _ in 0..100 {
        let mut pen = Pen::resume(&whole(journal, saga).await?.head, Timestamp(1));
        match journal.append(vec![pen.step("x")]).await?.remove(0) {
            Ok(()) => return Ok(pen),
            Err(Refusal::Gap { .. }) => {}
            Err(refusal) => {
                return Err(Broken::new(format!("in round {round} an append was refused: {refusal}")));
            }
        }
    }
    Err(Broken::new(format!("in round {round} no append came through")))
}
