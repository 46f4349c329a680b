//! Every event that is told is what the service that tells it says of its events (`GET /events.json`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use http::Method;
use jsonschema::Validator;
use order_broker::{Message, Queue, Topology};
use order_kit::{BoxError, env, events::EXCHANGE};
use order_system::{
    remote::Remote,
    seed::{Seed, seed},
    services::ALL,
    system::{Options, System},
};
use serde_json::{Value, json};

use crate::journeys::STAGE;

const SOON: Duration = Duration::from_secs(20);
/// The queue that hears everything.
const HEARD: &str = "test.heard";

/// What each service says of its events, as it publishes it.
struct Schemas(BTreeMap<&'static str, (Value, Validator)>);

impl Schemas {
    async fn of(remote: &Remote) -> Result<Self, BoxError> {
        let mut all = BTreeMap::new();
        for part in ALL {
            let answer = remote.get(part, "/events.json").await?;
            if answer.status == 404 {
                continue;
            }
            let schema = answer.expect(200)?.json();
            let options = jsonschema::draft202012::options().should_validate_formats(true);
            let validator = options.build(&schema)?;
            all.insert(*part, (schema, validator));
        }
        Ok(Schemas(all))
    }

    /// What is wrong with an event, if it is of this service.
    fn refused(&self, source: &Value, event: &Value) -> Option<String> {
        let source = source.as_str().expect("a name");
        let Some((_, validator)) = self.0.get(source) else { return Some(format!("{source} tells nothing")) };
        validator.iter_errors(event).next().map(|error| error.to_string())
    }

    /// All kinds that there are.
    fn kinds(&self) -> BTreeSet<String> {
        let says = self.0.values().flat_map(|(schema, _)| schema["oneOf"].as_array().expect("its kinds"));
        let kinds = says.flat_map(|says| says["properties"]["type"]["enum"].as_array().expect("names"));
        kinds.map(|kind| kind.as_str().expect("a name").to_owned()).collect()
    }
}

/// A system, and somebody who listens to all of it.
struct Stage {
    system: System,
    remote: Remote,
    seed: Seed,
}

impl Stage {
    async fn start(data: &Path, style: &str) -> Result<Self, BoxError> {
        let options = Options::alone(data).with(env::RATE_LIMIT, "off").with(env::POLICY_FAST, "1");
        let system = System::start(options.with(env::SAGA_STYLE, style)).await?;
        system.broker().declare(&Topology::new(EXCHANGE).queue(Queue::new(HEARD).bind("#"))).await?;
        let remote = Remote::to(&system);
        let seed = seed(&remote).await?;
        Ok(Stage { system, remote, seed })
    }

    /// Orders so many teapots; the order's id.
    async fn order(&self, user: usize, quantity: u32) -> Result<String, BoxError> {
        let items = json!([{ "productId": self.seed.products[0].1, "quantity": quantity }]);
        let body = json!({ "userId": self.seed.users[user].1, "items": items });
        let taken = self.remote.post("orders", "/orders", body).await?.expect(202)?.json();
        Ok(taken["id"].as_str().ok_or("no id")?.to_owned())
    }

    async fn until(&self, order: &str, status: &str) -> Result<(), BoxError> {
        let path = format!("/orders/{order}");
        self.remote.until(SOON, "orders", &path, |answer| answer.json()["status"] == status).await.map(drop)
    }

    /// A user has another name; one order is confirmed, one declined, and there is not enough for one.
    async fn play(&self) -> Result<(), BoxError> {
        let path = |index: usize| format!("/users/{}", self.seed.users[index].1);
        self.remote.put("users", &path(2), json!({ "name": "Caroline Clark" })).await?.expect(200)?;
        let card = format!("/payments/cards/{}", self.seed.users[1].1);
        self.remote.put("payments", &card, json!({ "behaviour": "decline" })).await?.expect(200)?;
        self.until(&self.order(0, 2).await?, "confirmed").await?;
        self.until(&self.order(1, 1).await?, "cancelled").await?;
        self.until(&self.order(0, 9_999).await?, "cancelled").await
    }

    /// An order waits, since payments charge it and do not say so, and is cancelled meanwhile.
    async fn refund(&self) -> Result<(), BoxError> {
        let faults = json!({ "effectThenFailPercent": 100 });
        self.remote.put("payments", "/_faults", faults).await?.expect(200)?;
        let order = self.order(0, 1).await?;
        self.until(&order, "waiting_payment").await?;
        self.remote.post("orders", &format!("/orders/{order}/cancel"), json!(null)).await?.expect(202)?;
        self.remote.call(Method::DELETE, "payments", "/_faults", None).await?.expect(200)?;
        self.until(&order, "cancelled").await
    }

    /// Ends the system in order, so that every outbox is empty; all that was heard.
    async fn end(self) -> Result<Vec<Value>, BoxError> {
        let broker = self.system.broker().clone();
        self.system.stop().await;
        let (mut heard, mut consumer) = (Vec::new(), broker.consume(HEARD, 100).await?);
        while broker.stats(HEARD).await?.backlog() > 0 {
            for delivery in consumer.next_batch(100).await? {
                heard.push(serde_json::from_str(&delivery.message().body)?);
                delivery.ack().await?;
            }
        }
        Ok(heard)
    }
}

/// The events that orders has stored.
async fn stored(remote: &Remote) -> Result<Vec<Value>, BoxError> {
    let page = remote.get("orders", "/_events?limit=500").await?.expect(200)?.json();
    assert_eq!(page["next"], json!(null), "that is all of them");
    Ok(page["events"].as_array().ok_or("events")?.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_what_its_service_says_of_it_in_both_styles() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let mut told = BTreeSet::new();
    for style in ["orchestrated", "choreography"] {
        let data = tempfile::tempdir()?;
        let stage = Stage::start(data.path(), style).await?;
        stage.play().await?;
        if style == "orchestrated" {
            stage.refund().await?;
        }
        let schemas = Schemas::of(&stage.remote).await?;
        let stored = stored(&stage.remote).await?;
        let heard = stage.end().await?;
        assert!(stored.len() > 5, "{stored:?}");
        for event in heard.iter().chain(&stored) {
            assert_eq!(schemas.refused(&event["metadata"]["source"], event), None, "{style}: {event}");
        }
        told.extend(heard.iter().filter_map(|event| event["type"].as_str().map(str::to_owned)));
        if style == "orchestrated" {
            assert_eq!(told, schemas.kinds(), "all kinds were told, and no other");
            let kinds: BTreeMap<_, _> = heard.iter().map(|event| (event["type"].as_str(), event)).collect();
            for event in kinds.into_values() {
                damages(event).for_each(|(what, broken)| {
                    let refused = schemas.refused(&event["metadata"]["source"], &broken);
                    assert!(refused.is_some(), "{what} of {event}");
                });
            }
        }
    }
    Ok(())
}

/// The event with something wrong in it: what the test above is there to find.
fn damages(event: &Value) -> impl Iterator<Item = (String, Value)> {
    let nonsense = json!({ "no": "such thing" });
    let pointers = |part: &Value, below: &str| -> Vec<String> {
        part.as_object().expect("an object").keys().map(|name| format!("{below}/{name}")).collect()
    };
    let fields =
        [pointers(event, ""), pointers(&event["metadata"], "/metadata"), pointers(&event["data"], "/data")];
    let mut wrong: Vec<(String, Value)> =
        fields.concat().into_iter().map(|field| (field, nonsense.clone())).collect();
    for (field, value) in [
        ("/id", "1"),
        ("/type", "order.unheard-of"),
        ("/metadata/timestamp", "yesterday"),
        ("/metadata/version", "2.0"),
        ("/metadata/source", "notifications"),
        ("/data", "text"),
    ] {
        wrong.push((field.to_owned(), json!(value)));
    }
    let event = event.clone();
    wrong.into_iter().map(move |(field, value)| {
        let mut broken = event.clone();
        *broken.pointer_mut(&field).expect("it has that") = value;
        (field, broken)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_a_kind_that_nobody_knows_is_passed_on_and_breaks_nobody() -> Result<(), BoxError> {
    let _stage = STAGE.lock().await;
    let data = tempfile::tempdir()?;
    let stage = Stage::start(data.path(), "orchestrated").await?;
    let broker = stage.system.broker().clone();
    let kinds = ["order.gifted", "user.praised", "parcel.lost"];
    let unknown = kinds.map(|kind| {
        json!({
            "id": order_kit::new_id(), "type": kind, "data": { "to": ["whom", 1] }, "more": true,
            "metadata": { "timestamp": "", "version": "3", "source": "future", "correlationId": "c", "mood": "good" },
        })
    });
    for event in &unknown {
        let message = Message::new(event["type"].as_str().ok_or("a kind")?, "k", event.to_string());
        broker.publish(vec![message]).await.remove(0)?;
    }
    // Behind it, in the same queues.
    stage.play().await?;
    let mut queues = broker.topology().await?.queues;
    queues.retain(|queue| queue.name != HEARD);
    for queue in queues {
        let end = tokio::time::Instant::now() + SOON;
        while broker.stats(&queue.name).await?.backlog() > 0 {
            assert!(tokio::time::Instant::now() < end, "{} is held up", queue.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(broker.stats(&queue.name).await?.dead, 0, "{}", queue.name);
    }
    let heard = stage.end().await?;
    for event in &unknown {
        assert!(heard.contains(event), "as it was: {event}");
    }
    Ok(())
}
