//! Requests are led elsewhere while nobody notices: one service after another leaves the monolith, with its data, and a new one is tried with
//! some.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use order_kit::{
    BoxError,
    auth::ServiceTokens,
    env::{self, Env},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;

use super::{CALM, Play, Stage, Story};
use crate::{
    monolith::Monolith,
    processes,
    remote::{Answer, Remote},
    services,
    strangler::{self, Shown, What},
    system::{Options, System, longest_end},
};

/// How many users the monolith has from the beginning: more than are asked for at once.
const BEFORE: usize = 150;

/// A gateway with services, and the monolith that they come from.
struct Both {
    stage: Stage,
    monolith: Monolith,
    /// Whoever talks to the monolith alone.
    legacy: Remote,
    /// Where the services' data is, and where the monolith's.
    data: [tempfile::TempDir; 2],
}

async fn both(play: &Play, parts: Vec<&'static str>) -> Result<Both, BoxError> {
    let data = [tempfile::tempdir()?, tempfile::tempdir()?];
    let mut options = Options::alone(data[0].path()).with(env::RATE_LIMIT, "off");
    for (name, value) in &play.variables {
        options = options.with(name, value.clone());
    }
    // On the same servers it would be one system: the same tables, and queues of which each takes half of the messages.
    let prefix = options.env.get_or_default(env::DATABASE_SCHEMA_PREFIX);
    let apart = options.env.clone().with(env::RABBITMQ_URL, "sqlite:");
    let apart = apart.with(env::DATABASE_SCHEMA_PREFIX, format!("{prefix}monolith_"));
    let monolith = Monolith::start(0, data[1].path(), apart.clone()).await?;
    let legacy = Remote::of([("users".to_owned(), monolith.url())].into(), &apart);
    let options = options
        .with(env::LEGACY_URL, monolith.url())
        .with(env::LEGACY_TOKEN, ServiceTokens::of(&apart).send())
        .with(env::LEGACY_RABBITMQ_URL, format!("sqlite:{}", data[1].path().join("broker.db").display()))
        .with(env::STRANGLE, "products,orders,payments,inventory,notifications");
    let alone = !parts.contains(&"users");
    let system = System::start(Options { parts, ..options }).await?;
    let mut remote = Remote::to(&system);
    if alone {
        remote.moved("users", monolith.url());
    }
    let mut stage = Stage::set(Some(system), remote).await?;
    // Users are looked up by themselves, and by who works here.
    let worker = stage.user(0).to_owned();
    stage.remote.log_in_as(&worker, &["admin"]).await?;
    Ok(Both { stage, monolith, legacy, data })
}

impl Both {
    /// What a person says in a terminal.
    async fn command(&self, what: What) -> Result<(), BoxError> {
        strangler::run(&what, &self.stage.remote).await.map(drop)
    }

    /// How often users were asked for at either side, and what came of it.
    async fn counts(&self) -> Result<Shown, BoxError> {
        let routes = strangler::routes(&self.stage.remote).await?;
        Ok(routes.into_iter().find(|it| it.service == "users").ok_or("no route of users")?)
    }

    async fn ask(&self, path: &str) -> Result<Answer, BoxError> {
        self.stage.remote.get("gateway", path).await
    }

    /// Asks for all of them, and gives how often the side that was asked as well said something else, when that is known of all.
    async fn compared(&self, story: &mut Story, ids: &[String]) -> Result<(u64, u64), BoxError> {
        let before = self.counts().await?;
        for id in ids {
            let answer = self.ask(&format!("/api/users/{id}")).await?;
            if answer.status != 200 || served_by(&answer) != "monolith" {
                let by = served_by(&answer);
                story.check(false, format!("the answer is the monolith's: {} by {by}", answer.status));
            }
        }
        let all = before.shadows() + u64::try_from(ids.len())?;
        let end = tokio::time::Instant::now() + CALM;
        loop {
            let now = self.counts().await?;
            if now.shadows() >= all {
                let of = |count: fn(&Shown) -> u64| count(&now) - count(&before);
                return Ok((of(|it| it.shadow_matches), of(|it| it.shadow_mismatches)));
            }
            if tokio::time::Instant::now() >= end {
                return Err(format!("not all were compared: {now:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn end(self) {
        self.stage.end().await;
        self.monolith.stop().await;
    }
}

fn served_by(answer: &Answer) -> &str {
    answer.header("x-served-by").unwrap_or("nobody")
}

/// `serve users` with more arguments: a process of its own.
struct Users {
    process: Child,
    remote: Remote,
    /// What it said last.
    said: String,
}

impl Users {
    /// Starts it and waits until it has said something that begins like this.
    async fn serve(play: &Play, both: &Both, more: &[&str], until: &str) -> Result<Self, BoxError> {
        let system = both.stage.system.as_ref().ok_or("no system")?;
        let env = &system.options().env;
        let set = [env::LEGACY_URL, env::LEGACY_TOKEN, env::LEGACY_RABBITMQ_URL]
            .map(|name| (name, env.get_or_default(name)));
        let mut process = Command::new(&play.program)
            .args(["serve", "users", "--port-base", "0", "--data"])
            .arg(both.data[0].path())
            .args(more)
            .env(env::LOG, "off")
            .envs(play.variables.iter().cloned())
            .envs(set)
            .env(env::GATEWAY_URL, system.url("gateway"))
            .env_remove(env::PORT)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(process.stdout.take().ok_or("no output")?).lines();
        let mut url = String::new();
        while let Some(said) = tokio::time::timeout(CALM, lines.next_line()).await?? {
            if let Some(here) = said.strip_prefix("users ") {
                here.clone_into(&mut url);
            }
            if said.starts_with(until) {
                let remote = Remote::of([("users".to_owned(), url)].into(), env);
                both.stage.remote.until(CALM, "gateway", "/discover/users", |it| it.status == 200).await?;
                return Ok(Users { process, remote, said });
            }
        }
        Err(format!("`serve users` has ended and did not say `{until}`").into())
    }

    async fn end(mut self) {
        processes::end(&mut self.process, longest_end(&Env::empty())).await;
    }

    /// The files of databases that it has open below this folder.
    fn files(&self, below: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
        let below = below.canonicalize()?;
        let open = processes::databases(self.process.id().unwrap_or_default())?;
        Ok(open.iter().filter_map(|path| path.strip_prefix(&below).ok()).map(Path::to_owned).collect())
    }
}

/// Makes a user at the monolith; the id.
async fn make(legacy: &Remote, name: &str) -> Result<String, BoxError> {
    let user = json!({ "name": name, "email": format!("{}@example.com", name.replace(' ', ".")) });
    let made = legacy.post("users", "/users", user).await?.expect(201)?.json();
    Ok(made["id"].as_str().ok_or("no id")?.to_owned())
}

async fn change(legacy: &Remote, id: &str, change: Value) -> Result<(), BoxError> {
    legacy.put("users", &format!("/users/{id}"), change).await?.expect(200).map(drop)
}

/// Makes and renames users at the monolith until it is told to stop; whom it has made.
async fn goes_on(
    legacy: Remote,
    known: Vec<String>,
    stop: CancellationToken,
) -> Result<Vec<String>, BoxError> {
    let mut made = Vec::new();
    while !stop.is_cancelled() {
        let number = made.len();
        made.push(make(&legacy, &format!("Meanwhile {number}")).await?);
        let renamed = &known[number * 7 % known.len()];
        change(&legacy, renamed, json!({ "name": format!("Renamed {number}") })).await?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(made)
}

pub(super) async fn strangler(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    let parts = services::ALL.iter().copied().filter(|part| *part != "users").collect();
    let both = both(play, parts).await?;
    let names: Vec<String> = (0..BEFORE).map(|number| format!("Old Customer {number}")).collect();
    let made = names.iter().map(|name| make(&both.legacy, name));
    let mut all = futures::future::try_join_all(made).await?;
    let product = both.ask(&format!("/api/products/{}", both.stage.product(0))).await?;
    story.check(
        product.status == 200 && served_by(&product) == "products",
        format!("products have left: {}", served_by(&product)),
    );
    let user = both.ask(&format!("/api/users/{}", all[0])).await?;
    story.check(
        user.status == 200 && served_by(&user) == "monolith",
        format!("users have not: {}", served_by(&user)),
    );

    story.say("the new users have a database of their own, and nobody in it");
    let users = Users::serve(play, &both, &[], "users ").await?;
    both.command(What::Shadow { service: "users".to_owned(), off: false }).await?;
    let (_, differ) = both.compared(story, &all[..10]).await?;
    story.check(
        differ == 10,
        format!("what they would say is compared, and not told: {differ} of 10 answers differ"),
    );
    users.end().await;

    story.say("they are filled from the monolith, which goes on meanwhile");
    let stop = CancellationToken::new();
    let going_on = tokio::spawn(goes_on(both.legacy.clone(), all.clone(), stop.clone()));
    let users = Users::serve(play, &both, &["--backfill"], "backfilled:").await;
    stop.cancel();
    let meanwhile = going_on.await??;
    let users = users?;
    story.say(&users.said);
    let (first, second, later) = (&all[0], &all[1], make(&both.legacy, "Later").await?);
    change(&both.legacy, first, json!({ "name": "Of Another Name" })).await?;
    // An address that one gives to another.
    change(&both.legacy, first, json!({ "email": "elsewhere@example.com" })).await?;
    change(&both.legacy, second, json!({ "email": "old.customer.0@example.com" })).await?;
    let count = meanwhile.len();
    all.extend(meanwhile);
    all.push(later);
    let (mut theirs, mut same) = (Vec::new(), 0);
    for id in &all {
        theirs.push(both.legacy.get("users", &format!("/users/{id}")).await?.expect(200)?.json());
    }
    for (id, user) in all.iter().zip(&theirs) {
        let alike = |answer: &Answer| answer.json() == *user;
        if let Err(error) = users.remote.until(CALM, "users", &format!("/users/{id}"), alike).await {
            story.say(error);
            break;
        }
        same += 1;
    }
    story.check(
        same == all.len(),
        format!("{same} are as at the monolith: {BEFORE} from before, {count} made meanwhile, and one later"),
    );
    let (same, differ) = both.compared(story, &all).await?;
    story.check(same > 0 && differ == 0, format!("of {same} answers that were compared {differ} differ"));
    let ours = users.files(both.data[0].path());
    match (ours, users.files(both.data[1].path())) {
        (Ok(_), Ok(foreign)) => {
            let only = foreign == [PathBuf::from("broker.db")].into();
            story.check(only, "of the monolith's files they have its broker open, and no database");
        }
        _ => story.say("which files they have open cannot be seen here"),
    }

    story.say("users leave, by one command");
    both.command(What::Strangle { service: "users".to_owned() }).await?;
    let mut same = 0;
    for (id, theirs) in all.iter().zip(&theirs) {
        let user = both.ask(&format!("/api/users/{id}")).await?;
        same += usize::from(user.status == 200 && served_by(&user) == "users" && user.json() == *theirs);
    }
    story.check(same == all.len(), format!("{same} of {} are told as before, by users", all.len()));
    let again = json!({ "name": "Somebody Else", "email": "OLD.customer.7@example.com" });
    let again = both.stage.remote.post("gateway", "/api/users", again).await?;
    story.check(
        again.status == 409 && served_by(&again) == "users",
        format!("an address of one who has come along is taken: {}", again.status),
    );

    story.say("and come back, by another");
    both.command(What::Rollback { service: "users".to_owned() }).await?;
    let user = both.ask(&format!("/api/users/{}", all[0])).await?;
    story.check(
        user.status == 200 && served_by(&user) == "monolith",
        format!("they are served by {}", served_by(&user)),
    );
    users.end().await;
    both.end().await;
    Ok(())
}

pub(super) async fn canary(story: &mut Story, play: &Play) -> Result<(), BoxError> {
    const REQUESTS: usize = 1_000;
    let both = both(play, services::ALL.to_vec()).await?;
    // Whoever asks for the same is sent to the same side; so each asks for somebody else, whom neither side knows.
    let path = |number: usize| format!("/api/users/somebody-{number}");
    story.say(format!("{REQUESTS} requests, a tenth of them for the new service"));
    both.command(What::Canary { service: "users".to_owned(), share: "10%".to_owned() }).await?;
    let mut new = 0;
    for number in 0..REQUESTS {
        new += usize::from(served_by(&both.ask(&path(number)).await?) == "users");
    }
    story.check((70..=130).contains(&new), format!("{new} of {REQUESTS} went there: 10 ± 3 %"));
    story.say("the rollback");
    both.command(What::Rollback { service: "users".to_owned() }).await?;
    let mut new = 0;
    for number in 0..REQUESTS {
        new += usize::from(served_by(&both.ask(&path(number)).await?) == "users");
    }
    story.check(new == 0, "none of them does any more");
    both.end().await;
    Ok(())
}
