//! Users leave a monolith: what it says in pages and by events, in every order.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::State, routing::get};
use http::{HeaderMap, Request, StatusCode, Uri};
use order_broker::{Broker, Message, Which};
use order_kit::{
    Context,
    context::Ports,
    env::{self, Env},
    server::{Access, router},
};
use order_users::moving::{Backfilled, backfill, queue};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    on_both, person,
    service::{Bench, Place},
    start,
};

on_both!(
    the_newest_holds_whether_a_page_or_an_event_has_it,
    a_backfill_that_broke_off_goes_on_where_it_was,
    addresses_that_users_of_the_monolith_exchange_come_along,
    an_address_of_somebody_who_was_made_here_is_not_taken_away,
    who_was_changed_here_stays_as_he_is_here,
    who_watches_hears_of_those_who_come,
);

/// A monolith: its broker, and what it answers when it is asked for pages.
struct Monolith {
    said: Arc<Said>,
    env: Env,
    _folder: tempfile::TempDir,
}

struct Said {
    broker: Arc<dyn Broker>,
    /// All users, in the order of their revisions.
    users: Mutex<Vec<Value>>,
    /// How many pages it still answers before it breaks.
    pages: Mutex<usize>,
    /// What it was asked for.
    asked: Mutex<Vec<String>>,
}

async fn page(State(said): State<Arc<Said>>, uri: Uri, headers: HeaderMap) -> Result<String, StatusCode> {
    assert_eq!(headers["x-service-token"], "for-legacy", "no other token is shown to it");
    let heard = said.broker.topology().await.unwrap().find(&queue().name).is_some();
    assert!(heard, "a change that no page has would be lost");
    said.asked.lock().unwrap().push(uri.to_string());
    let mut pages = said.pages.lock().unwrap();
    *pages = pages.checked_sub(1).ok_or(StatusCode::FORBIDDEN)?;
    let number = |name: &str| -> i64 {
        let query = uri.query().unwrap().split('&').find_map(|it| it.strip_prefix(name));
        query.unwrap().parse().unwrap()
    };
    let (after, limit) = (number("after="), usize::try_from(number("limit=")).unwrap());
    let users = said.users.lock().unwrap();
    let behind = users.iter().filter(|user| user["revision"].as_i64().unwrap() > after);
    let users: Vec<_> = behind.take(limit).cloned().collect();
    let next = users.last().filter(|_| users.len() == limit).map(|last| last["revision"].clone());
    Ok(json!({ "users": users, "next": next }).to_string())
}

impl Monolith {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("sqlite:{}", folder.path().join("broker.db").display());
        let said = Arc::new(Said {
            broker: order_broker::open(&address).await.unwrap(),
            users: Mutex::default(),
            pages: Mutex::new(usize::MAX),
            asked: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let env = Env::empty()
            .with(env::LEGACY_URL, format!("http://{}", listener.local_addr().unwrap()))
            .with(env::LEGACY_TOKEN, "for-legacy")
            .with(env::LEGACY_RABBITMQ_URL, &address);
        let routes = Router::new().route("/_users", get(page)).with_state(said.clone());
        tokio::spawn(axum::serve(listener, routes).into_future());
        Monolith { said, env, _folder: folder }
    }

    /// Has these users, as pages tell.
    fn has(&self, users: &[Value]) {
        *self.said.users.lock().unwrap() = users.to_vec();
    }

    /// Says by an event that a user is so.
    async fn says(&self, user: &Value) {
        let id = order_kit::new_id();
        let body = json!({
            "id": id, "type": "user.updated", "data": user,
            "metadata": { "timestamp": "", "version": "1.0", "source": "users", "correlationId": "c" },
        });
        let key = user["id"].as_str().unwrap().to_owned();
        let message = Message {
            id,
            topic: "user.updated".to_owned(),
            key,
            body: body.to_string(),
            headers: BTreeMap::new(),
        };
        self.said.broker.publish(vec![message]).await.remove(0).unwrap();
    }

    /// Waits until all that was said is heard; how many events were refused so far.
    async fn heard(&self) -> u64 {
        let heard = async {
            loop {
                let stats = self.said.broker.stats(&queue().name).await.unwrap();
                if stats.backlog() == 0 {
                    return stats.dead;
                }
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), heard).await.expect("it is heard")
    }

    async fn tells(&self, user: &Value) -> u64 {
        self.says(user).await;
        self.heard().await
    }

    async fn moved_to(&self, place: Place) -> Bench {
        Bench::start(place, order_users::NAME, self.env.clone(), order_users::build).await
    }
}

const MADE: &str = "2019-02-03T04:05:06.789Z";

fn user(id: &str, name: &str, email: &str, revision: i64) -> Value {
    json!({ "id": id, "name": name, "email": email, "createdAt": MADE, "revision": revision })
}

/// A user as REST shows it.
fn shown(user: &Value) -> Value {
    let mut user = user.clone();
    user.as_object_mut().unwrap().remove("revision");
    user
}

async fn is(users: &Bench, user: &Value) -> bool {
    users.get(&format!("/users/{}", user["id"].as_str().unwrap())).await.body == shown(user)
}

async fn filled(users: &Bench) -> Backfilled {
    backfill(&users.context).await.unwrap()
}

fn counts(taken: u64, known: u64) -> Backfilled {
    Backfilled { taken, known, refused: Vec::new() }
}

async fn the_newest_holds_whether_a_page_or_an_event_has_it(place: Place) {
    let monolith = Monolith::start().await;
    let users = monolith.moved_to(place).await;
    let [old, new] = [("Old", 4), ("New", 7)].map(|(name, revision)| {
        let of = |id: &str| user(id, name, &format!("{id}@x"), revision + i64::from(id == "b"));
        ["a", "b"].map(of)
    });
    // The event of the one is newer than his page, the event of the other older.
    assert_eq!(monolith.tells(&new[0]).await, 0);
    assert!(is(&users, &new[0]).await);
    assert_eq!(monolith.tells(&old[1]).await, 0);
    monolith.has(&[old[0].clone(), new[1].clone()]);
    assert_eq!(filled(&users).await, counts(1, 1));
    assert!(is(&users, &new[0]).await && is(&users, &new[1]).await);
    // Late, and again.
    for event in [&old[0], &old[1], &new[0], &new[1]] {
        assert_eq!(monolith.tells(event).await, 0);
    }
    assert!(is(&users, &new[0]).await && is(&users, &new[1]).await);
    assert_eq!(filled(&users).await, counts(0, 2));
    let told = users.end().await;
    assert!(told.is_empty(), "the monolith has said it: {told:?}");
}

async fn a_backfill_that_broke_off_goes_on_where_it_was(place: Place) {
    let monolith = Monolith::start().await;
    let all: Vec<_> = (1..=250).map(|n| user(&format!("u{n}"), "Somebody", &format!("{n}@x"), n)).collect();
    monolith.has(&all);
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let begin = |place| {
        Bench::start_in(folder.clone(), place, order_users::NAME, monolith.env.clone(), order_users::build)
    };
    let users = begin(place.clone()).await;
    *monolith.said.pages.lock().unwrap() = 1;
    let error = backfill(&users.context).await.unwrap_err().to_string();
    assert!(error.contains("the monolith") && error.contains("403"), "{error}");
    assert!(is(&users, &all[99]).await, "what had come is there");
    assert!(!is(&users, &all[100]).await);
    *monolith.said.pages.lock().unwrap() = usize::MAX;
    // In another process, where the data is in files; a schema goes with its bench.
    let users = match place {
        Place::Sqlite => {
            users.end().await;
            begin(place).await
        }
        Place::Postgres { .. } => users,
    };
    assert_eq!(filled(&users).await, counts(150, 0));
    for user in &all {
        assert!(is(&users, user).await, "{user}");
    }
    assert_eq!(filled(&users).await, counts(0, 250), "one that is done begins anew");
    let asked = std::mem::take(&mut *monolith.said.asked.lock().unwrap());
    let after = |page: &String| page.split(['=', '&']).nth(1).unwrap().to_owned();
    let after: Vec<_> = asked.iter().map(after).collect();
    assert_eq!(after, ["0", "100", "100", "200", "0", "100", "200"]);
    users.end().await;
}

async fn addresses_that_users_of_the_monolith_exchange_come_along(place: Place) {
    let monolith = Monolith::start().await;
    let users = monolith.moved_to(place).await;
    monolith.has(&[user("a", "Ann", "one@x", 1), user("b", "Bob", "two@x", 2)]);
    assert_eq!(filled(&users).await, counts(2, 0));
    // Ann gave hers away, Bob took it, and then she his.
    let (bob, ann) = (user("b", "Bob", "One@x", 4), user("a", "Ann", "two@x", 5));
    assert_eq!(monolith.tells(&bob).await, 0);
    assert!(is(&users, &bob).await);
    assert_eq!(users.post("/users", person("Eve", "one@x")).await.status, 409, "it is Bob's now");
    // What she was called before comes late, and with it what was her address.
    assert_eq!(monolith.tells(&user("a", "Anne", "one@x", 3)).await, 0);
    assert!(is(&users, &bob).await, "he keeps it");
    assert_eq!(monolith.tells(&ann).await, 0);
    assert!(is(&users, &ann).await && is(&users, &bob).await);
    for taken in ["ONE@x", "TWO@x"] {
        assert_eq!(users.post("/users", person("Eve", taken)).await.status, 409, "{taken}");
    }
    users.end().await;
}

async fn an_address_of_somebody_who_was_made_here_is_not_taken_away(place: Place) {
    let monolith = Monolith::start().await;
    let users = monolith.moved_to(place).await;
    let here = users.post("/users", person("Eve", "Shared@x")).await.body;
    let path = format!("/users/{}", here["id"].as_str().unwrap());
    let (ann, bob) = (user("a", "Ann", "shared@x", 1), user("b", "Bob", "bob@x", 2));
    monolith.has(&[ann.clone(), bob.clone()]);
    let done = filled(&users).await;
    assert_eq!((done.taken, done.known, done.refused.len()), (1, 0, 1));
    assert!(done.refused[0].starts_with("a: ") && done.refused[0].contains(here["id"].as_str().unwrap()));
    assert_eq!(monolith.tells(&ann).await, 1, "an event is a dead letter");
    assert_eq!(users.get(&path).await.body, here);
    assert_eq!(users.get("/users/a").await.status, 404);
    assert!(is(&users, &bob).await, "the others come");
    // Somebody sees to it, and takes the event anew, or the pages.
    assert_eq!(users.put(&path, json!({ "email": "eve@x" })).await.status, 200);
    assert_eq!(monolith.said.broker.replay(&queue().name, Which::All).await.unwrap(), 1);
    assert_eq!(monolith.tells(&bob).await, 0);
    assert!(is(&users, &ann).await);
    assert_eq!(filled(&users).await, counts(0, 2));
    users.end().await;
}

async fn who_was_changed_here_stays_as_he_is_here(place: Place) {
    let monolith = Monolith::start().await;
    let users = monolith.moved_to(place).await;
    let ann = user("a", "Ann", "ann@x", 1);
    assert_eq!(monolith.tells(&ann).await, 0);
    let changed = users.put("/users/a", json!({ "name": "Ann Smith" })).await.body;
    let late = user("a", "Anna", "ann@x", 9);
    assert_eq!(monolith.tells(&late).await, 0);
    monolith.has(&[late]);
    assert_eq!(filled(&users).await, counts(0, 1));
    assert_eq!(users.get("/users/a").await.body, changed);
    let told = users.end().await;
    assert_eq!(told.len(), 1, "what changed here is told, and nothing else: {told:?}");
}

async fn who_watches_hears_of_those_who_come(place: Place) {
    let monolith = Monolith::start().await;
    let users = monolith.moved_to(place).await;
    // The later one there comes first, and whoever has seen him has not seen all.
    for user in [user("b", "Bob", "bob@x", 20), user("a", "Ann", "ann@x", 10)] {
        assert_eq!(monolith.tells(&user).await, 0);
    }
    let page = users.get("/_users?limit=1").await.body;
    assert_eq!(page["users"][0]["id"], "b");
    let behind = users.get(&format!("/_users?after={}&limit=5", page["next"])).await.body;
    assert_eq!((&behind["users"][0]["id"], &behind["next"]), (&json!("a"), &Value::Null));
    users.end().await;
}

/// Before the service listens; that the queue was there when the page was asked for, the monolith has seen.
#[tokio::test]
async fn a_change_that_no_page_has_is_not_lost() {
    let monolith = Monolith::start().await;
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let broker = order_broker::open("memory:").await.unwrap();
    let alone =
        Context::new(order_users::NAME, monolith.env.clone(), folder.path(), broker, Arc::new(Ports(3000)));
    let (old, new) = (user("a", "Old", "a@x", 1), user("a", "New", "a@x", 2));
    monolith.has(&[old]);
    assert_eq!(backfill(&alone).await.unwrap(), counts(1, 0));
    monolith.says(&new).await;
    alone.stop().cancel();
    alone.finished().await;
    let env = monolith.env.clone();
    let users = Bench::start_in(folder, Place::Sqlite, order_users::NAME, env, order_users::build).await;
    assert_eq!(monolith.heard().await, 0);
    assert!(is(&users, &new).await);
    users.end().await;
}

#[tokio::test]
async fn without_the_monoliths_address_token_and_broker_nothing_is_begun() {
    let monolith = Monolith::start().await;
    for name in [env::LEGACY_URL, env::LEGACY_TOKEN, env::LEGACY_RABBITMQ_URL] {
        let env = monolith.env.clone().with(name, "");
        let users = Bench::start(Place::Sqlite, order_users::NAME, env, order_users::build).await;
        let error = backfill(&users.context).await.unwrap_err().to_string();
        assert_eq!(error, format!("{name} is not set"));
        users.end().await;
    }
    assert!(monolith.said.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn all_users_are_given_page_by_page_and_only_to_services() {
    let users = start().await;
    for n in 0..5 {
        users.post("/users", person(&format!("User {n}"), &format!("{n}@x"))).await;
    }
    let first = users.get("/users?limit=500").await.body[4]["id"].as_str().unwrap().to_owned();
    users.put(&format!("/users/{first}"), json!({ "name": "Of Another Name" })).await;
    let (mut names, mut next) = (Vec::new(), json!(0));
    while !next.is_null() {
        let page = users.get(&format!("/_users?after={next}&limit=2")).await.body;
        let of = |it: &Value| (it["name"].as_str().unwrap().to_owned(), it["revision"].as_i64().unwrap());
        names.extend(page["users"].as_array().unwrap().iter().map(of));
        next = page["next"].clone();
    }
    let last = ("Of Another Name".to_owned(), 6);
    let expected: Vec<_> = (1..5).map(|n| (format!("User {n}"), n + 1)).chain([last]).collect();
    assert_eq!(names, expected, "in the order of their last changes");

    // Where everybody may ask for everything else.
    let service = order_users::build(users.context.clone()).await.unwrap();
    let open = router(&users.context, service, Access::Everybody);
    for (path, status) in [("/users", StatusCode::OK), ("/_users", StatusCode::UNAUTHORIZED)] {
        let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
        assert_eq!(open.clone().oneshot(request).await.unwrap().status(), status, "{path}");
    }
    users.end().await;
}
