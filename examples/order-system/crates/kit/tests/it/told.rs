//! What a service says of its events.

use http::{HeaderMap, StatusCode};
use order_kit::{Context, env::Env, server::Access, told::Told};
use serde_json::{Value, json};

use crate::support::{Served, context, get, memory, send, service};

#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "it is described, and never made")]
struct Weighed {
    grams: u32,
    of: Thing,
}

#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "it is described, and never made")]
struct Thing {
    name: String,
}

async fn served(context: Context) -> Served {
    Served::start(context, service(axum::Router::new(), Vec::new()), Access::Services).await
}

#[tokio::test]
async fn everybody_may_ask_what_a_service_tells() {
    let scales = context("scales", Env::empty(), memory().await);
    scales.tells(Told::by("scales").says::<Weighed>(&["thing.weighed", "thing.measured"]));
    let served = served(scales).await;
    let (status, body) = send("GET", &format!("{}/events.json", served.url), HeaderMap::new()).await;
    assert_eq!(status, StatusCode::OK);
    let schema: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let says = json!({ "enum": ["thing.weighed", "thing.measured"] });
    assert_eq!(schema["oneOf"][0]["properties"]["type"], says);
    assert_eq!(schema["oneOf"][0]["properties"]["data"]["$ref"], "#/$defs/Weighed");
    assert_eq!(schema["$defs"]["Weighed"]["properties"]["of"]["$ref"], "#/$defs/Thing");
    let types: Vec<&String> = schema["$defs"].as_object().unwrap().keys().collect();
    assert_eq!(types, ["Envelope", "Metadata", "Thing", "Weighed"]);
}

#[tokio::test]
async fn who_tells_nothing_has_no_schema_and_a_whole_has_that_of_its_parts() {
    let whole = context("whole", Env::empty(), memory().await);
    let silent = served(whole.clone()).await;
    assert_eq!(get(&format!("{}/events.json", silent.url)).await.0, StatusCode::NOT_FOUND);
    for part in ["scales", "ruler"] {
        whole.part(part).tells(Told::by(part).says::<Weighed>(&["thing.weighed"]));
    }
    let whole = served(whole).await;
    let (_, schema) = get(&format!("{}/events.json", whole.url)).await;
    let ids: Vec<&Value> = schema["anyOf"].as_array().unwrap().iter().map(|it| &it["$id"]).collect();
    assert_eq!(ids, ["urn:events:scales", "urn:events:ruler"]);
}
