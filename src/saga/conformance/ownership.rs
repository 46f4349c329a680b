//! Who may write: leases, claims and epochs.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Append, Broken, Claim, DefinitionId, LONG, Pen, Phase, SagaId, Shared, Subject, accept, begun, claim,
    definition, ensure, ids, incarnation, refuse, same, whole,
};
use crate::saga::{
    Order, Timestamp,
    journal::{Ask, Presence, Request},
};

type Checked = Result<(), Broken>;

/// A saga without an owner.
async fn released(journal: &Shared, saga: &str, wake: Option<Timestamp>) -> Result<Pen, Broken> {
    let mut pen = begun(journal, saga, "first").await?;
    accept(journal, pen.release(wake)).await?;
    Ok(pen)
}

/// A saga whose owner's lease has run out.
async fn orphan(subject: &Subject, journal: &Shared, saga: &str, owner: &str) -> Result<Pen, Broken> {
    let pen = begun(journal, saga, owner).await?;
    journal.heartbeat(&incarnation(owner), Subject::LEASE).await?;
    subject.pass(Subject::LEASE * 2).await;
    Ok(pen)
}

/// A store where "two" lives: what it claims is not to be had a second time.
async fn opened(subject: &Subject) -> Result<Shared, Broken> {
    let journal = subject.opened().await;
    journal.heartbeat(&incarnation("two"), LONG).await?;
    Ok(journal)
}

fn wake(at: u64) -> Option<Timestamp> {
    Some(Timestamp(at))
}

fn ask(saga: &SagaId, id: &str) -> Request {
    Request {
        id: id.into(),
        saga: saga.clone(),
        by: "me".into(),
        ask: Ask::Order(Order::Retry { step: None }),
    }
}

pub(super) async fn a_new_saga_is_not_claimed(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    same!(journal.claim(claim("two")).await?, Vec::new(), "an empty store has nothing to claim");
    let mut pen = begun(&journal, "a", "one").await?;
    same!(journal.claim(claim("two")).await?, Vec::new(), "a living owner's saga");
    let due = Append { wake: wake(1), ..pen.step("x") };
    accept(&journal, due).await?;
    same!(journal.claim(claim("two")).await?, Vec::new(), "a living owner's saga whose wake has come");
    same!(journal.claim(claim("one")).await?, Vec::new(), "one's own saga");
    accept(&journal, pen.step("y")).await
}

pub(super) async fn what_is_released_is_claimed_when_its_wake_comes(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    let now = journal.now().await?;
    released(&journal, "past", wake(now.0)).await?;
    released(&journal, "later", Some(now.after(LONG))).await?;
    // Last, so that it does not come while something else is done.
    released(&journal, "soon", Some(journal.now().await?.after(Subject::LEASE * 4))).await?;
    same!(ids(&journal.claim(claim("two")).await?), ["past"], "what is due now");
    subject.pass(Subject::LEASE * 5).await;
    let taken = journal.claim(claim("two")).await?;
    same!(ids(&taken), ["soon"], "what is due after a while");
    same!(taken[0].head.recoveries, 0, "to be claimed after a release is no recovery");
    Ok(())
}

pub(super) async fn what_is_released_without_a_wake_waits_for_a_request(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    let pen = released(&journal, "a", None).await?;
    released(&journal, "b", Some(journal.now().await?.after(LONG))).await?;
    released(&journal, "c", None).await?;
    same!(journal.claim(claim("two")).await?, Vec::new(), "nothing is due");
    journal.request(ask(pen.saga(), "r")).await?;
    journal.request(ask(&SagaId::new("b").unwrap(), "r")).await?;
    let taken = journal.claim(claim("two")).await?;
    let taken: BTreeSet<&str> = ids(&taken).into_iter().collect();
    same!(taken, BTreeSet::from(["a", "b"]), "where requests wait");
    Ok(())
}

pub(super) async fn the_oldest_wake_comes_first(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    for (saga, at) in [("a", 30), ("b", 10), ("c", 40), ("d", 20)] {
        released(&journal, saga, wake(at)).await?;
    }
    let pen = released(&journal, "e", None).await?;
    journal.request(ask(pen.saga(), "r")).await?;
    let taken = journal.claim(Claim { limit: 3, ..claim("two") }).await?;
    same!(ids(&taken), ["e", "b", "d"], "without a wake, then by age");
    same!(ids(&journal.claim(claim("two")).await?), ["a", "c"], "the rest by age");
    Ok(())
}

pub(super) async fn a_claim_takes_no_more_than_its_limit(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    for n in 0..10 {
        released(&journal, &format!("saga {n}"), wake(n + 1)).await?;
    }
    let mut taken = BTreeSet::new();
    for expected in [4, 4, 2, 0] {
        let claimed = journal.claim(Claim { limit: 4, ..claim("two") }).await?;
        same!(claimed.len(), expected, "how many of ten are taken four at a time");
        taken.extend(claimed.into_iter().map(|stored| stored.head.id));
    }
    same!(taken.len(), 10, "each is taken once");
    same!(journal.claim(Claim { limit: 0, ..claim("two") }).await?, Vec::new(), "a limit of none");
    Ok(())
}

pub(super) async fn a_claim_begins_the_next_epoch(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    let mut pen = begun(&journal, "a", "first").await?;
    accept(&journal, pen.step("x")).await?;
    accept(&journal, Append { note: "asleep".into(), ..pen.release(wake(5)) }).await?;
    for epoch in 2..6 {
        let owner = format!("owner {epoch}");
        journal.heartbeat(&incarnation(&owner), LONG).await?;
        let taken = journal.claim(claim(&owner)).await?;
        same!(ids(&taken), ["a"], "what is claimed in epoch {epoch}");
        let head = &taken[0].head;
        same!((head.epoch, head.owner.clone()), (epoch, Some(incarnation(&owner))), "epoch and owner");
        same!(
            (head.phase, head.note.as_str(), head.len),
            (Phase::Waiting, "asleep", 2),
            "the rest of the head"
        );
        same!(taken[0], whole(&journal, pen.saga()).await?, "a claim answers with what is stored");
        let mut pen = Pen::resume(head, Timestamp(1));
        accept(&journal, Append { note: "asleep".into(), ..pen.release(wake(5)) }).await?;
    }
    Ok(())
}

pub(super) async fn two_claims_never_take_the_same(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    for n in 0..40 {
        released(&journal, &format!("saga {n}"), wake(n + 1)).await?;
    }
    journal.heartbeat(&incarnation("one"), LONG).await?;
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        let one = journal.claim(Claim { limit: 8, ..claim("one") });
        let two = journal.claim(Claim { limit: 8, ..claim("two") });
        let (one, two) = tokio::join!(one, two);
        for stored in one?.into_iter().chain(two?) {
            ensure!(stored.head.epoch == 2, "saga {} was claimed twice", stored.head.id);
            ensure!(seen.insert(stored.head.id.clone()), "saga {} was given to two owners", stored.head.id);
        }
    }
    same!(seen.len(), 40, "all were claimed");
    Ok(())
}

pub(super) async fn sagas_of_the_dead_are_claimed(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    begun(&journal, "living", "living").await?;
    let mut zombie = orphan(subject, &journal, "a", "dead").await?;
    let taken = journal.claim(claim("two")).await?;
    same!(ids(&taken), ["a"], "the saga whose owner's lease has run out");
    let head = &taken[0].head;
    same!((head.epoch, head.recoveries, head.len), (2, 1, 1), "epoch, recoveries and length");
    ensure!(taken[0].verify().is_ok(), "what was claimed is not whole");
    let refused = refuse(&journal, zombie.step("x")).await?;
    same!(refused, crate::saga::journal::Refusal::Fenced { epoch: 2 }, "the dead owner writes on");
    accept(&journal, Pen::resume(head, Timestamp(1)).step("x")).await
}

pub(super) async fn an_unknown_owner_is_dead(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    let mut pen = Pen::new("a", &incarnation("unheard of"), Timestamp(1));
    accept(&journal, pen.begin(&definition())).await?;
    let taken = journal.claim(claim("two")).await?;
    same!(ids(&taken), ["a"], "the saga of an owner who never had a lease");
    same!(taken[0].head.recoveries, 1, "recoveries");
    Ok(())
}

pub(super) async fn a_heartbeat_prolongs_a_lease(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    let by = incarnation("one");
    begun(&journal, "a", "one").await?;
    journal.heartbeat(&by, Subject::LEASE).await?;
    journal.heartbeat(&by, LONG).await?;
    subject.pass(Subject::LEASE * 2).await;
    same!(journal.claim(claim("two")).await?, Vec::new(), "the lease was prolonged");
    journal.heartbeat(&by, Subject::LEASE).await?;
    subject.pass(Subject::LEASE * 2).await;
    same!(
        ids(&journal.claim(claim("two")).await?),
        ["a"],
        "the last heartbeat counts, also when its lease is shorter"
    );
    begun(&journal, "b", "one").await?;
    same!(journal.claim(claim("two")).await?, Vec::new(), "who was dead lives again");
    Ok(())
}

pub(super) async fn who_leaves_can_be_taken_from(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    begun(&journal, "a", "one").await?;
    journal.leave(&incarnation("never came")).await?;
    same!(journal.claim(claim("two")).await?, Vec::new(), "another one has left");
    journal.leave(&incarnation("one")).await?;
    same!(ids(&journal.claim(claim("two")).await?), ["a"], "its owner has left");
    Ok(())
}

pub(super) async fn what_an_orchestrator_says_is_read_by_others(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    same!(journal.orchestrators().await?, Vec::new(), "nobody has come");
    let says = Presence {
        lease_ms: 50,
        definitions: vec![definition()],
        blocked: vec![(SagaId::new("it's \"a\" 🦀").unwrap(), "record 3 cannot be read\n".to_owned())],
    };
    journal.announce(&incarnation("never came"), says.clone()).await?;
    for by in ["two", "one"] {
        journal.heartbeat(&incarnation(by), LONG).await?;
    }
    let shown = async |journal: &Shared| -> Result<Vec<(String, bool, Option<Presence>)>, Broken> {
        let now = journal.now().await?;
        let all = journal.orchestrators().await?.into_iter();
        Ok(all.map(|one| (one.by.as_str().to_owned(), one.until > now, one.presence)).collect())
    };
    let quiet = |by: &str, lives| (by.to_owned(), lives, None);
    same!(shown(&journal).await?, [quiet("one", true), quiet("two", true)], "who has come and said nothing");
    journal.announce(&incarnation("one"), Presence::default()).await?;
    journal.announce(&incarnation("one"), says.clone()).await?;
    journal.heartbeat(&incarnation("one"), LONG).await?;
    let one = ("one".to_owned(), true, Some(says));
    same!(shown(&journal).await?, [one, quiet("two", true)], "what was said last, after another heartbeat");
    journal.leave(&incarnation("one")).await?;
    journal.leave(&incarnation("never came")).await?;
    let left: Vec<_> = shown(&journal).await?.into_iter().filter(|(by, ..)| by != "two").collect();
    ensure!(left.iter().all(|one| *one == quiet("one", false)), "who has left still says {left:?}");
    Ok(())
}

pub(super) async fn recoveries_are_counted_until_an_entry(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    let mut pen = begun(&journal, "a", "dead 0").await?;
    for n in 1..4 {
        journal.leave(&incarnation(&format!("dead {}", n - 1))).await?;
        let taken = journal.claim(claim(&format!("dead {n}"))).await?;
        same!(taken.len(), 1, "the number of claimed sagas");
        same!(taken[0].head.recoveries, n, "recoveries in a row");
        pen = Pen::resume(&taken[0].head, Timestamp(1));
        accept(&journal, pen.write(&[])).await?;
        same!(
            whole(&journal, pen.saga()).await?.head.recoveries,
            n,
            "recoveries after a row without entries"
        );
    }
    accept(&journal, pen.step("x")).await?;
    same!(whole(&journal, pen.saga()).await?.head.recoveries, 0, "recoveries after an entry");
    Ok(())
}

pub(super) async fn an_unwanted_saga_is_not_claimed(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    for saga in ["a", "it's", "c"] {
        released(&journal, saga, wake(1)).await?;
    }
    let except = vec![SagaId::new("it's").unwrap(), SagaId::new("unheard of").unwrap()];
    // The limit counts what is taken, not what is passed over.
    let taken = journal.claim(Claim { except, limit: 2, ..claim("two") }).await?;
    same!(ids(&taken), ["a", "c"], "all but the unwanted one");
    same!(ids(&journal.claim(claim("two")).await?), ["it's"], "it is still to be had");
    Ok(())
}

pub(super) async fn only_one_saga_is_claimed(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    let asleep = released(&journal, "asleep", None).await?.saga().clone();
    released(&journal, "due", wake(1)).await?;
    let owned = begun(&journal, "owned", "one").await?.saga().clone();
    let only = |saga: &SagaId| Claim { only: Some(vec![saga.clone()]), ..claim("two") };
    same!(ids(&journal.claim(only(&asleep)).await?), ["asleep"], "it alone, though nothing wakes it");
    same!(journal.claim(only(&owned)).await?, Vec::new(), "a living owner's saga");
    let again = journal.claim(only(&asleep)).await?;
    same!(ids(&again), ["asleep"], "its own, which it has lost sight of");
    same!((again[0].head.epoch, again[0].head.recoveries), (3, 0), "the next epoch, and no recovery");
    let another = Claim { by: incarnation("three"), ..only(&asleep) };
    same!(journal.claim(another).await?, Vec::new(), "that of another one who lives");
    same!(
        journal.claim(only(&SagaId::new("missing").unwrap())).await?,
        Vec::new(),
        "a saga that is not there"
    );
    let unwanted = Claim { except: vec![SagaId::new("due").unwrap()], ..only(&SagaId::new("due").unwrap()) };
    same!(journal.claim(unwanted).await?, Vec::new(), "unwanted all the same");
    journal.leave(&incarnation("one")).await?;
    let taken = journal.claim(only(&owned)).await?;
    same!(ids(&taken), ["owned"], "a dead owner's saga");
    same!(taken[0].head.recoveries, 1, "recoveries");
    let several = Claim { only: Some(vec![asleep.clone(), owned, asleep.clone()]), ..claim("two") };
    let taken = journal.claim(several.clone()).await?;
    same!(ids(&taken), ["asleep", "owned"], "several, one of which is named twice");
    same!(
        (taken[0].head.epoch, taken[1].head.recoveries),
        (4, 1),
        "each of them once, and no recovery of its own"
    );
    same!(journal.claim(Claim { limit: 1, ..several }).await?.len(), 1, "no more than the limit");
    same!(journal.claim(Claim { only: Some(Vec::new()), ..claim("two") }).await?, Vec::new(), "none");
    same!(ids(&journal.claim(claim("two")).await?), ["due"], "what nobody has named");
    Ok(())
}

pub(super) async fn only_known_definitions_are_claimed(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    let variants = [
        definition(),
        DefinitionId { version: 2, ..definition() },
        DefinitionId { digest: "other".into(), ..definition() },
        DefinitionId { name: "it's \"other\"".into(), ..definition() },
    ];
    let by = incarnation("one");
    for (n, variant) in variants.iter().enumerate() {
        let mut pen = Pen::new(&format!("saga {n}"), &by, Timestamp(1));
        accept(&journal, pen.begin(variant)).await?;
        accept(&journal, pen.release(wake(n as u64 + 1))).await?;
    }
    let knowing = |known: &[usize]| Claim {
        definitions: known.iter().map(|&n| variants[n].clone()).collect(),
        ..claim("two")
    };
    same!(journal.claim(knowing(&[])).await?, Vec::new(), "who knows nothing gets nothing");
    same!(ids(&journal.claim(knowing(&[0])).await?), ["saga 0"], "name, version and digest count");
    same!(ids(&journal.claim(knowing(&[3, 1])).await?), ["saga 1", "saga 3"], "several definitions");
    let only = Claim { only: Some(vec![SagaId::new("saga 2").unwrap()]), ..knowing(&[0]) };
    same!(journal.claim(only).await?, Vec::new(), "one saga alone has to be known too");
    same!(ids(&journal.claim(knowing(&[0, 1, 2, 3])).await?), ["saga 2"], "the one that is left");
    Ok(())
}

pub(super) async fn what_is_over_is_not_claimed(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    for phase in Phase::ALL {
        let mut pen = begun(&journal, phase.as_str(), "one").await?;
        accept(&journal, Append { phase, release: true, wake: wake(1), ..pen.step("x") }).await?;
    }
    let taken = journal.claim(claim("two")).await?;
    let taken: BTreeSet<&str> = taken.iter().map(|stored| stored.head.phase.as_str()).collect();
    let open = Phase::ALL.into_iter().filter(|phase| !phase.is_terminal());
    let open: BTreeSet<&str> = open.map(Phase::as_str).collect();
    same!(taken, open, "every phase that is not over");
    let only = Claim { only: Some(vec![SagaId::new("completed").unwrap()]), ..claim("two") };
    same!(journal.claim(only).await?, Vec::new(), "what is over, by name");
    Ok(())
}

pub(super) async fn time_goes_on(subject: &Subject) -> Checked {
    let journal = opened(subject).await?;
    let before = journal.now().await?;
    ensure!(before.0 > 0, "it is 1970");
    subject.pass(Duration::from_millis(20)).await;
    let passed = journal.now().await?.since(before);
    ensure!(passed >= Duration::from_millis(15), "20 ms have passed, and the clock says {passed:?}");
    ensure!(passed <= Duration::from_secs(30), "20 ms have passed, and the clock says {passed:?}");
    Ok(())
}
