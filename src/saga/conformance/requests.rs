//! What comes from outside: signals and orders.

use super::{
    Append, Broken, Phase, SagaId, Shared, Subject, accept, begun, claim, ensure, ids, incarnation, same,
    whole,
};
use crate::saga::{
    Order, Payload, Timestamp,
    journal::{Ask, Claim, Request, Requested},
};

type Checked = Result<(), Broken>;

fn signal(saga: &str, id: &str) -> Request {
    let payload = Payload::encode(&["it's", "\"signed\"", "🦀"]).expect("strings are JSON");
    let ask = Ask::Signal { step: "payment".into(), payload };
    Request { id: id.into(), saga: SagaId::new(saga).expect("a good id"), by: "it's me".into(), ask }
}

async fn waiting(journal: &Shared, owner: &str) -> Result<Vec<String>, Broken> {
    let requests = journal.requests(&incarnation(owner)).await?;
    Ok(requests.into_iter().map(|request| request.id).collect())
}

pub(super) async fn a_request_waits_for_the_owner(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pen = begun(&journal, "a", "one").await?;
    begun(&journal, "b", "two").await?;
    same!(journal.requests(&incarnation("one")).await?, Vec::new(), "nobody has asked");
    let order = Order::Complete { step: "x".into(), output: Payload::encode(&7).expect("a number is JSON") };
    let order = Request { ask: Ask::Order(order), ..signal("a", "order") };
    for request in [signal("a", "signal"), order.clone()] {
        same!(journal.request(request).await?, Requested::Left, "a first request");
    }
    same!(
        journal.requests(&incarnation("one")).await?,
        vec![signal("a", "signal"), order],
        "as they were left"
    );
    same!(waiting(&journal, "two").await?, Vec::<String>::new(), "they are for the owner alone");
    accept(&journal, pen.release(None)).await?;
    same!(waiting(&journal, "one").await?, Vec::<String>::new(), "who has let the saga go is not its owner");
    same!(ids(&journal.claim(claim("two")).await?), ["a"], "a request wakes a saga");
    same!(waiting(&journal, "two").await?, ["signal", "order"], "the new owner finds them");
    Ok(())
}

pub(super) async fn requests_come_in_their_order(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    for saga in ["c", "a", "b"] {
        begun(&journal, saga, "one").await?;
    }
    let mut expected = Vec::new();
    for n in (0..30).rev() {
        let id = format!("request {n}");
        journal.request(signal(["b", "c", "a"][n % 3], &id)).await?;
        expected.push(id);
    }
    same!(waiting(&journal, "one").await?, expected, "in the order of their arrival, over all sagas");
    Ok(())
}

pub(super) async fn a_request_is_left_once(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    begun(&journal, "a", "one").await?;
    begun(&journal, "b", "one").await?;
    same!(journal.request(signal("a", "r")).await?, Requested::Left, "a first request");
    let second = Request { ask: Ask::Order(Order::Retry { step: None }), ..signal("a", "r") };
    same!(journal.request(second).await?, Requested::Known, "another one with its name");
    same!(journal.requests(&incarnation("one")).await?, vec![signal("a", "r")], "the first one counts");
    same!(journal.request(signal("b", "r")).await?, Requested::Left, "the same name at another saga");
    for id in ["R", "r ", "it's \"r\"", "🦀"] {
        same!(journal.request(signal("a", id)).await?, Requested::Left, "another name: {id}");
    }
    Ok(())
}

pub(super) async fn an_answered_request_stays_known(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pen = begun(&journal, "a", "one").await?;
    journal.request(signal("a", "r")).await?;
    accept(&journal, Append { answers: vec!["r".into()], ..pen.step("x") }).await?;
    same!(waiting(&journal, "one").await?, Vec::<String>::new(), "it was answered");
    same!(journal.request(signal("a", "r")).await?, Requested::Known, "it was answered before");
    same!(waiting(&journal, "one").await?, Vec::<String>::new(), "and does not wait again");
    journal.request(signal("a", "unanswered")).await?;
    accept(&journal, pen.end(Phase::Completed)).await?;
    let journal = subject.again(journal).await;
    same!(journal.request(signal("a", "r")).await?, Requested::Known, "also when the saga is over");
    let over = Requested::Over(Phase::Completed);
    same!(
        journal.request(signal("a", "unanswered")).await?,
        over,
        "one that was dropped at the end was not answered"
    );
    Ok(())
}

pub(super) async fn a_request_needs_a_saga_that_is_not_over(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    same!(journal.request(signal("a", "r")).await?, Requested::Missing, "there is no saga");
    for phase in Phase::ALL {
        let mut pen = begun(&journal, phase.as_str(), "one").await?;
        accept(&journal, Append { phase, ..pen.step("x") }).await?;
        let expected = if phase.is_terminal() { Requested::Over(phase) } else { Requested::Left };
        same!(journal.request(signal(phase.as_str(), "r")).await?, expected, "a request at what is {phase}");
    }
    let open = Phase::ALL.into_iter().filter(|phase| !phase.is_terminal()).count();
    same!(waiting(&journal, "one").await?.len(), open, "one waits at each saga that is not over");
    Ok(())
}

pub(super) async fn what_is_answered_is_gone_and_the_rest_waits(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let mut pen = begun(&journal, "a", "one").await?;
    begun(&journal, "b", "one").await?;
    for (saga, id) in [("a", "1"), ("b", "2"), ("a", "it's 3"), ("a", "4"), ("b", "1")] {
        journal.request(signal(saga, id)).await?;
    }
    let answers = vec!["1".into(), "it's 3".into(), "never asked".into()];
    let mut refused = Append { answers: answers.clone(), ..pen.clone().step("x") };
    refused.epoch = 9;
    ensure!(journal.append(vec![refused]).await?[0].is_err(), "a wrong epoch was accepted");
    same!(waiting(&journal, "one").await?.len(), 5, "what is refused answers nothing");
    accept(&journal, Append { answers, ..pen.step("x") }).await?;
    same!(waiting(&journal, "one").await?, ["2", "4", "1"], "what waits, at its own saga only");
    accept(&journal, Append { answers: vec!["4".into()], ..pen.release(None) }).await?;
    same!(journal.claim(claim("two")).await?, Vec::new(), "answered requests wake nothing");
    whole(&journal, pen.saga()).await.map(drop)
}

pub(super) async fn requests_survive(subject: &Subject) -> Checked {
    let journal = subject.opened().await;
    let pen = begun(&journal, "a", "one").await?;
    journal.request(signal("a", "r")).await?;
    let journal = subject.again(journal).await;
    same!(
        journal.requests(&incarnation("one")).await?,
        vec![signal("a", "r")],
        "after the store was opened again"
    );
    journal.leave(&incarnation("one")).await?;
    let taken = journal.claim(Claim { only: Some(vec![pen.saga().clone()]), ..claim("two") }).await?;
    same!(ids(&taken), ["a"], "the saga that it waits at");
    let journal = subject.again(journal).await;
    same!(waiting(&journal, "two").await?, ["r"], "ownership survives too");
    let head = whole(&journal, pen.saga()).await?.head;
    same!((head.epoch, head.recoveries), (2, 1), "and so do epoch and recoveries");
    accept(&journal, super::Pen::resume(&head, Timestamp(1)).step("x")).await
}
