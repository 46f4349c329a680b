//! Mails: one of each kind, whatever comes twice, and none that is lost.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::{FutureExt, LocalBoxFuture};
use http::StatusCode;
use order_kit::{Tx, db::DbError};
use order_notifications::{Mail, Mailer, NAME, Recording, build, build_with};
use serde_json::{Value, json};

use crate::support::{On, Users, World, event, order, until};

async fn one_of_each(on: On) {
    let users = Users::start().await;
    let Some(world) = World::on(on, "one_mail_of_each_kind_however_often_an_event_comes").await else {
        return;
    };
    let world = world.with_users(&users);
    let service = world.start(NAME, build).await;
    let events = [
        order("order.created", "o1", "alice", "12.50"),
        order("order.confirmed", "o1", "alice", "12.50"),
        order("order.created", "o2", "bob", "3.00"),
        order("order.cancelled", "o2", "bob", "3.00"),
        // Another event that says once more what was said.
        order("order.confirmed", "o1", "alice", "12.50"),
    ];
    for _ in 0..3 {
        for event in &events {
            world.publish(event).await;
        }
    }
    world.settled(NAME).await;
    let (_, sent) = service.get("/sent?order=o1").await;
    let subjects: Vec<_> =
        sent.as_array().unwrap().iter().map(|mail| mail["subject"].as_str().unwrap()).collect();
    assert_eq!(subjects, ["Order Confirmation: order o1 of 12.50 was received", "Order o1 confirmed"]);
    let mail = &sent[0];
    assert_eq!(
        (&mail["orderId"], &mail["kind"], &mail["channel"], &mail["to"], &mail["status"]),
        (
            &json!("o1"),
            &json!("received"),
            &json!("email"),
            &json!("\"Alice\" <alice@example.com>"),
            &json!("sent")
        )
    );
    let (_, sent) = service.get("/sent?order=o2").await;
    assert_eq!(sent[1]["subject"], "Order o2 cancelled: card_declined");
    assert_eq!((sent.as_array().unwrap().len(), world.dead(NAME).await), (2, 0));
    assert_eq!(service.get("/sent?order=other").await, (StatusCode::OK, json!([])));
    assert_eq!(users.calls(), 2, "each user is looked up once");
    world.end([service]).await;
}

#[tokio::test]
async fn one_mail_of_each_kind_however_often_an_event_comes() {
    one_of_each(On::Sqlite).await;
    one_of_each(On::Postgres).await;
}

#[tokio::test]
async fn no_mail_is_lost_while_users_are_away() {
    let users = Users::start().await;
    users.fail(4);
    let world = World::new().await.with_users(&users);
    let service = world.start(NAME, build).await;
    world.publish(&order("order.created", "o1", "alice", "12.50")).await;
    world.publish(&order("order.confirmed", "o1", "alice", "12.50")).await;
    until("users are asked in vain", async || users.calls() >= 4).await;
    world.settled(NAME).await;
    let kinds: Vec<_> = service.sent("o1").await.into_iter().map(|mail| mail.0).collect();
    assert_eq!(
        (kinds.as_slice(), world.dead(NAME).await),
        (["received".to_owned(), "confirmed".to_owned()].as_slice(), 0)
    );
    world.end([service]).await;
}

#[tokio::test]
async fn an_unknown_user_is_noted_and_holds_up_nobody() {
    let users = Users::start().await;
    let world = World::new().await.with_users(&users);
    let service = world.start(NAME, build).await;
    world.publish(&order("order.created", "o1", "nobody", "1.00")).await;
    world.publish(&order("order.created", "o2", "alice", "1.00")).await;
    // An id is data, and no way to another route.
    world.publish(&order("order.created", "o3", "../orders/é?x=1", "1.00")).await;
    world.settled(NAME).await;
    assert_eq!(service.sent("o1").await, [("received".to_owned(), "undeliverable".to_owned(), Value::Null)]);
    assert_eq!(service.sent("o2").await.len(), 1);
    assert!(users.asked().contains(&"../orders/é?x=1".to_owned()), "{:?}", users.asked());
    world.end([service]).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_a_dead_letter_and_the_next_is_handled() {
    let users = Users::start().await;
    let world = World::new().await.with_users(&users);
    let service = world.start(NAME, build).await;
    world.publish(&event("order.created", "o1", json!({ "orderId": "o1" }))).await;
    world.publish(&order("order.confirmed", "o1", "alice", "1.00")).await;
    world.settled(NAME).await;
    assert_eq!(service.sent("o1").await.len(), 1);
    let dead = world.broker.dead_letters(NAME, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].count), (1, 1));
    assert!(dead[0].reason.contains("userId"), "{}", dead[0].reason);
    world.end([service]).await;
}

#[tokio::test]
async fn a_new_address_is_used_at_once() {
    let users = Users::start().await;
    let world = World::new().await.with_users(&users);
    let service = world.start(NAME, build).await;
    world.publish(&order("order.created", "o1", "alice", "1.00")).await;
    world.settled(NAME).await;
    let changed = json!({ "id": "alice", "name": "Bob\" <x@y>\r\nBcc: all", "email": "new@example.com", "createdAt": "", "revision": 7 });
    world.publish(&event("user.updated", "alice", changed)).await;
    world.settled(NAME).await;
    world.publish(&order("order.created", "o2", "alice", "1.00")).await;
    world.settled(NAME).await;
    let to = service.sent("o2").await.remove(0).2;
    assert_eq!(to, json!("\"Bob   x@y   Bcc: all\" <new@example.com>"), "and a name is no header");
    assert_eq!(users.calls(), 1);
    world.end([service]).await;
}

#[tokio::test]
async fn of_two_changes_the_newer_holds_whichever_comes_first() {
    let users = Users::start().await;
    let world = World::new().await.with_users(&users);
    let service = world.start(NAME, build).await;
    world.publish(&order("order.created", "o1", "alice", "1.00")).await;
    world.settled(NAME).await;
    for (email, revision) in [("newer@example.com", 10), ("older@example.com", 9)] {
        let changed =
            json!({ "id": "alice", "name": "Alice", "email": email, "createdAt": "", "revision": revision });
        world.publish(&event("user.updated", "alice", changed)).await;
        world.settled(NAME).await;
    }
    world.publish(&order("order.created", "o2", "alice", "1.00")).await;
    world.settled(NAME).await;
    assert_eq!(service.sent("o2").await.remove(0).2, json!("\"Alice\" <newer@example.com>"));
    assert_eq!(users.calls(), 1);
    world.end([service]).await;
}

#[tokio::test]
async fn who_is_not_remembered_is_asked_for_and_not_taken_from_a_late_event() {
    let users = Users::start().await;
    let world = World::new().await.with_users(&users);
    let service = world.start(NAME, build).await;
    let old =
        json!({ "id": "alice", "name": "Alice", "email": "old@example.com", "createdAt": "", "revision": 3 });
    world.publish(&event("user.updated", "alice", old)).await;
    world.settled(NAME).await;
    world.publish(&order("order.created", "o1", "alice", "1.00")).await;
    world.settled(NAME).await;
    assert_eq!(service.sent("o1").await.remove(0).2, json!("\"Alice\" <alice@example.com>"));
    world.end([service]).await;
}

/// Fails the first time, after the mail.
struct FailsOnce {
    failed: AtomicBool,
    /// The broken twin: says that all is well.
    hides_it: bool,
}

impl Mailer for FailsOnce {
    fn send<'a>(&'a self, tx: &'a Tx<'a>, mail: &'a Mail) -> LocalBoxFuture<'a, Result<(), DbError>> {
        async move {
            if self.failed.swap(true, Ordering::SeqCst) {
                return Recording.send(tx, mail).await;
            }
            if self.hides_it {
                return Ok(());
            }
            Recording.send(tx, mail).await?;
            Err(DbError::Unavailable("no".to_owned()))
        }
        .boxed_local()
    }
}

async fn mails_after_one_failure(hides_it: bool) -> usize {
    let users = Users::start().await;
    let world = World::new().await.with_users(&users);
    let mailer = FailsOnce { failed: AtomicBool::new(false), hides_it };
    let service = world.start(NAME, |context| build_with(context, mailer)).await;
    world.publish(&order("order.created", "o1", "alice", "1.00")).await;
    world.settled(NAME).await;
    let sent = service.sent("o1").await.len();
    world.end([service]).await;
    sent
}

#[tokio::test]
async fn a_mail_that_fails_is_not_noted_as_sent() {
    assert_eq!(mails_after_one_failure(false).await, 1);
    assert_eq!(
        mails_after_one_failure(true).await,
        0,
        "a mailer that hides its failure loses the mail, and this test would see it"
    );
}

#[tokio::test]
async fn a_question_without_an_order_is_refused() {
    let users = Users::start().await;
    let world = World::new().await.with_users(&users);
    let service = world.start(NAME, build).await;
    let (status, body) = service.get("/sent").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body["error"].is_string(), "{body}");
    let (status, ready) = service.get("/health/ready").await;
    let names: Vec<_> = ready["checks"].as_object().unwrap().keys().cloned().collect();
    assert_eq!((status, &ready["status"]), (StatusCode::OK, &json!("ok")), "{ready}");
    assert_eq!(names, ["database", "messageQueue", "userService"]);
    world.end([service]).await;
}
