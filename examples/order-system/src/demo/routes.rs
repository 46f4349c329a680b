//! Requests are led elsewhere while nobody notices: one service after another leaves the monolith, and a new one is tried with some.

use order_kit::{BoxError, env};
use serde_json::json;

use super::{Play, Stage, Story};
use crate::{
    monolith::Monolith,
    remote::{Answer, Remote},
    system::{Options, System},
};

/// A gateway with services, and the monolith that they come from.
struct Both {
    stage: Stage,
    monolith: Monolith,
    /// A user whom the monolith alone has.
    legacy_user: String,
    _data: [tempfile::TempDir; 2],
}

async fn both(play: &Play) -> Result<Both, BoxError> {
    let data = [tempfile::tempdir()?, tempfile::tempdir()?];
    let mut options = Options::alone(data[0].path()).with(env::RATE_LIMIT, "off");
    for (name, value) in &play.variables {
        options = options.with(name, value.clone());
    }
    let monolith = Monolith::start(0, data[1].path(), options.env.clone()).await?;
    let legacy = Remote::of([("users".to_owned(), monolith.url())].into(), &options.env);
    let made =
        legacy.post("users", "/users", json!({ "name": "Old Customer", "email": "old@example.com" })).await?;
    let legacy_user = made.expect(201)?.json()["id"].as_str().unwrap_or_default().to_owned();
    let options = options
        .with("LEGACY_URL", monolith.url())
        .with("STRANGLE", "products,orders,payments,inventory,notifications");
    let system = System::start(options).await?;
    let remote = Remote::to(&system);
    Ok(Both { stage: Stage::set(Some(system), remote).await?, monolith, legacy_user, _data: data })
}

fn served_by(answer: &Answer) -> String {
    answer.header("x-served-by").unwrap_or("nobody").to_owned()
}

pub(super) async fn strangler(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    let Both { stage, monolith, legacy_user, _data } = both(play).await?;
    let (old, new) = (format!("/api/users/{legacy_user}"), format!("/api/users/{}", stage.user(0)));
    let product = stage.remote.get("gateway", &format!("/api/products/{}", stage.product(0))).await?;
    story.check(
        product.status == 200 && served_by(&product) == "products",
        format!("products have left: {}", served_by(&product)),
    );
    let user = stage.remote.get("gateway", &old).await?;
    story.check(
        user.status == 200 && served_by(&user) == "monolith",
        format!("users have not: {}", served_by(&user)),
    );

    story.say("users leave, by one call");
    stage.remote.put("gateway", "/_routes/users", json!({ "to": "new" })).await?.expect(200)?;
    let user = stage.remote.get("gateway", &new).await?;
    story.check(
        user.status == 200 && served_by(&user) == "users",
        format!("they are served by {}", served_by(&user)),
    );

    story.say("and come back, by another");
    stage.remote.put("gateway", "/_routes/users", json!({ "to": "legacy" })).await?.expect(200)?;
    let user = stage.remote.get("gateway", &old).await?;
    story.check(
        user.status == 200 && served_by(&user) == "monolith",
        format!("they are served by {}", served_by(&user)),
    );

    story.say("what the new service would say is compared, and not told");
    stage
        .remote
        .put("gateway", "/_routes/users", json!({ "to": "legacy", "shadow": true }))
        .await?
        .expect(200)?;
    for _ in 0..10 {
        let user = stage.remote.get("gateway", &old).await?;
        story_status(story, &user);
    }
    let differs = stage
        .remote
        .until(std::time::Duration::from_secs(5), "gateway", "/_routes", |answer| shadowed(answer).1 >= 10)
        .await;
    let counts = differs.as_ref().map(shadowed).unwrap_or_default();
    story.check(
        differs.is_ok(),
        format!(
            "the new service does not know the old customer: {} of {} answers differ",
            counts.1, counts.0
        ),
    );
    stage.end().await;
    monolith.stop().await;
    Ok(())
}

/// One line if it is not as it should be, and none if it is.
fn story_status(story: &mut Story, answer: &Answer) {
    if answer.status != 200 || served_by(answer) != "monolith" {
        story.check(
            false,
            format!("the answer is the monolith's: {} by {}", answer.status, served_by(answer)),
        );
    }
}

/// How many answers were compared for users, and how many differed.
fn shadowed(answer: &Answer) -> (u64, u64) {
    let routes = answer.json();
    let users = match &routes {
        serde_json::Value::Array(routes) => {
            routes.iter().find(|it| it["service"] == "users").cloned().unwrap_or_default()
        }
        other => other["users"].clone(),
    };
    let number = |name: &str| users[name].as_u64().unwrap_or(0);
    let differ = number("shadowMismatches");
    (number("shadowMatches") + differ, differ)
}

pub(super) async fn canary(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    const REQUESTS: usize = 1_000;
    let Both { stage, monolith, _data, .. } = both(play).await?;
    // Whoever asks for the same is sent to the same side; so each asks for somebody else, whom neither side knows.
    let path = |number: usize| format!("/api/users/somebody-{number}");
    story.say(format!("{REQUESTS} requests, a tenth of them for the new service"));
    stage
        .remote
        .put("gateway", "/_routes/users", json!({ "to": "legacy", "canaryPercent": 10 }))
        .await?
        .expect(200)?;
    let mut new = 0;
    for number in 0..REQUESTS {
        new += usize::from(served_by(&stage.remote.get("gateway", &path(number)).await?) == "users");
    }
    story.check((70..=130).contains(&new), format!("{new} of {REQUESTS} went there: 10 ± 3 %"));
    story.say("the rollback");
    stage
        .remote
        .put("gateway", "/_routes/users", json!({ "to": "legacy", "canaryPercent": 0 }))
        .await?
        .expect(200)?;
    let mut new = 0;
    for number in 0..REQUESTS {
        new += usize::from(served_by(&stage.remote.get("gateway", &path(number)).await?) == "users");
    }
    story.check(new == 0, "none of them does any more");
    stage.end().await;
    monolith.stop().await;
    Ok(())
}
