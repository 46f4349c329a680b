//! Looking at many sagas, and forgetting them.

use std::collections::BTreeSet;

use super::{
    Append, Begin, Broken, DefinitionId, Pen, Phase, SagaId, Shared, Subject, accept, begun, definition,
    ensure, incarnation, same, whole,
};
use crate::saga::{
    Timestamp,
    journal::{Ask, Forgotten, Query, Request, Requested},
};

type Checked = Result<(), Broken>;

async fn listed(journal: &Shared, query: Query) -> Result<Vec<String>, Broken> {
    Ok(journal.list(query).await?.into_iter().map(|head| head.id.as_str().to_owned()).collect())
}

/// A saga that ended at that time.
async fn ended(journal: &Shared, saga: &str, at: u64) -> Result<Pen, Broken> {
    let mut pen = begun(journal, saga, "one").await?;
    let append = pen.at(Timestamp(at)).end(Phase::Completed);
    accept(journal, append).await?;
    Ok(pen)
}

pub(super) async fn pages_follow_each_other(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    same!(listed(&journal, Query::default()).await?, Vec::<String>::new(), "an empty store");
    // In an order that is neither theirs nor its reverse, and with one id that begins another.
    let ids = ["b", "ü", "a", "aa", "Z", "z", "1", "10", "9", "a b"];
    for id in ids {
        begun(&journal, id, "one").await?;
    }
    let mut sorted: Vec<String> = ids.iter().map(|&id| id.to_owned()).collect();
    sorted.sort();
    for limit in [1, 3, 10, 50] {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = listed(&journal, Query { limit, after, ..Query::default() }).await?;
            ensure!(page.len() <= limit, "a page of {limit} has {}", page.len());
            let Some(last) = page.last() else { break };
            after = Some(SagaId::new(last).unwrap());
            found.extend(page);
        }
        same!(found, sorted, "pages of {limit}");
    }
    let behind = Query { after: Some(SagaId::new("a a").unwrap()), ..Query::default() };
    same!(listed(&journal, behind).await?, ["a b", "aa", "b", "z", "ü"], "behind an id that is not there");
    Ok(())
}

pub(super) async fn a_listing_shows_what_was_asked_for(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let by = incarnation("one");
    let other = DefinitionId { name: "it's other".into(), ..definition() };
    for phase in Phase::ALL {
        for (definition, tag) in
            [(definition(), ""), (definition(), "red"), (other.clone(), "it's blue"), (other.clone(), "red")]
        {
            let id = format!("{phase} {} {tag}", definition.name);
            let mut pen = Pen::new(&id, &by, Timestamp(1));
            let mut append = Append { phase, ..pen.begin(&definition) };
            append.begin = Some(Begin { definition, tag: tag.into(), locks: Vec::new() });
            accept(&journal, append).await?;
        }
    }
    let count = async |query: Query| listed(&journal, query).await.map(|found| found.len());
    same!(count(Query::default()).await?, 32, "everything");
    for phase in Phase::ALL {
        let heads = journal.list(Query { phases: vec![phase], ..Query::default() }).await?;
        same!(heads.len(), 4, "what is {phase}");
        ensure!(
            heads.iter().all(|head| head.phase == phase),
            "a listing of what is {phase} shows other phases"
        );
    }
    let two = vec![Phase::Stuck, Phase::Parked];
    same!(count(Query { phases: two.clone(), ..Query::default() }).await?, 8, "two phases");
    let name = Some("it's other".to_owned());
    same!(count(Query { definition: name.clone(), ..Query::default() }).await?, 16, "one definition");
    same!(count(Query { definition: Some("it".into()), ..Query::default() }).await?, 0, "no part of a name");
    same!(count(Query { tag: Some("red".into()), ..Query::default() }).await?, 16, "one tag");
    same!(count(Query { tag: Some(String::new()), ..Query::default() }).await?, 8, "no tag");
    let all = Query { phases: two, definition: name, tag: Some("it's blue".into()), after: None, limit: 1 };
    let first = listed(&journal, all.clone()).await?;
    same!(first, ["parked it's other it's blue"], "all at once, the first page");
    let rest = Query { after: Some(SagaId::new(&first[0]).unwrap()), ..all };
    same!(listed(&journal, rest).await?, ["stuck it's other it's blue"], "all at once, the second page");
    Ok(())
}

pub(super) async fn ten_thousand_sagas_are_paged(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let by = incarnation("one");
    for thousand in 0..10 {
        let new = |n: u64| {
            Pen::new(&format!("saga {}", (n * 7_919) % 10_000), &by, Timestamp(1)).begin(&definition())
        };
        let batch: Vec<Append> = (thousand * 1_000..(thousand + 1) * 1_000).map(new).collect();
        let answers = journal.append(batch).await?;
        ensure!(answers.len() == 1_000 && answers.iter().all(Result::is_ok), "a thousand sagas at once");
    }
    let mut found = BTreeSet::new();
    let mut after = None;
    loop {
        let page = listed(&journal, Query { limit: 777, after: after.take(), ..Query::default() }).await?;
        let Some(last) = page.last() else { break };
        after = Some(SagaId::new(last).unwrap());
        for id in page {
            ensure!(found.insert(id.clone()), "{id} is on two pages");
        }
    }
    same!(found.len(), 10_000, "the number of sagas on all pages");
    same!(listed(&journal, Query::default()).await?.len(), 100, "a page when no size is said");
    Ok(())
}

pub(super) async fn only_what_ended_before_is_forgotten(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    ended(&journal, "old", 1_000).await?;
    ended(&journal, "at that time", 2_000).await?;
    ended(&journal, "new", 3_000).await?;
    let mut open = Pen::new("open", &incarnation("one"), Timestamp(1));
    accept(&journal, open.begin(&definition())).await?;
    let mut asleep = Pen::new("asleep", &incarnation("one"), Timestamp(1));
    accept(&journal, asleep.begin(&definition())).await?;
    accept(&journal, asleep.release(None)).await?;
    same!(journal.forget("me", Timestamp(2_000), 100).await?, 1, "how many ended before");
    same!(listed(&journal, Query::default()).await?, ["asleep", "at that time", "new", "open"], "the others");
    same!(journal.forget("me", Timestamp(2_000), 100).await?, 0, "how many are left that ended before");
    let journal = subject.again(journal).await;
    same!(journal.forget("me", Timestamp(u64::MAX >> 1), 100).await?, 2, "everything that is over");
    same!(
        listed(&journal, Query::default()).await?,
        ["asleep", "open"],
        "what is not over is never forgotten"
    );
    accept(&journal, open.step("x")).await
}

pub(super) async fn forgetting_goes_in_small_batches(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    for n in 0..25 {
        ended(&journal, &format!("saga {n}"), n + 1).await?;
    }
    for (expected, left) in [(10, 15), (10, 5), (5, 0), (0, 0)] {
        same!(journal.forget("me", Timestamp(1_000), 10).await?, expected, "how many are forgotten at once");
        same!(listed(&journal, Query::default()).await?.len(), left, "how many are left");
    }
    Ok(())
}

pub(super) async fn forgetting_leaves_nothing_behind(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let by = incarnation("one");
    let request = |id: &str| Request {
        id: id.into(),
        saga: SagaId::new("a").unwrap(),
        by: "me".into(),
        ask: Ask::Order(crate::saga::Order::Retry { step: None }),
    };
    for round in 1..4 {
        let mut pen = Pen::new("a", &by, Timestamp(round));
        let mut append = pen.begin(&definition());
        append.begin.as_mut().unwrap().locks = vec!["key".into()];
        accept(&journal, append).await?;
        same!(journal.request(request("answered")).await?, Requested::Left, "a request in round {round}");
        same!(journal.request(request("dropped")).await?, Requested::Left, "a request in round {round}");
        accept(&journal, Append { answers: vec!["answered".into()], ..pen.step("x") }).await?;
        accept(&journal, pen.end(Phase::Completed)).await?;
        same!(whole(&journal, pen.saga()).await?.entries.len(), 3, "the entries in round {round}");
        same!(journal.forget("me", Timestamp(1_000), 1).await?, 1, "how many are forgotten");
        ensure!(journal.load(pen.saga()).await?.is_none(), "a forgotten saga is still there");
        same!(
            journal.request(request("answered")).await?,
            Requested::Missing,
            "a request at what is forgotten"
        );
    }
    Ok(())
}

pub(super) async fn who_forgot_is_noted(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    for n in 0..5 {
        ended(&journal, &format!("saga {n}"), n + 1).await?;
    }
    same!(journal.forget("ada", Timestamp(1), 10).await?, 0, "how many ended before the first");
    same!(journal.forgotten(10).await?, Vec::new(), "what was forgotten when nothing was");
    for (by, before, limit, count) in [("ada", 5, 2, 2), ("bob", 5, 1, 1), ("ada", 5, 9, 1), ("ada", 9, 9, 1)]
    {
        same!(journal.forget(by, Timestamp(before), limit).await?, count, "how many {by} forgets");
    }
    let journal = subject.again(journal).await;
    let told = |noted: Vec<Forgotten>| -> Vec<(String, u64, u64)> {
        noted.into_iter().map(|noted| (noted.by, noted.before.0, noted.sagas)).collect()
    };
    let mut all = told(journal.forgotten(10).await?);
    let last: Vec<_> = all.iter().take(1).cloned().collect();
    same!(told(journal.forgotten(1).await?), last, "the last one");
    // Those of one moment have no order.
    all.sort();
    // At midnight they may be two rows.
    if all.len() < 3 {
        same!(all, [("ada".into(), 9, 4), ("bob".into(), 5, 1)], "who forgot how many");
    }
    Ok(())
}
