//! Calls in a row: one deadline for all of them, and what retries at each of them do.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, extract::State, routing::get};
use futures::future::join_all;
use http::{HeaderMap, StatusCode};
use order_kit::{
    BoxError, Context,
    client::{self, Client},
    context::{Locate, Service},
    env::{self, Env},
    server::{Access, router, serve},
};
use tokio::net::TcpListener;
use utoipa_axum::router::OpenApiRouter;

use super::{HANGS_LOOSE, Story};

/// What a hop saw and does.
struct Hop {
    /// The next one, if there is one.
    next: Option<Client>,
    /// How long it works before it asks the next.
    work: Mutex<Duration>,
    /// What was left when it was asked.
    left: Mutex<Vec<u128>>,
    calls: AtomicU64,
    fails: bool,
}

/// One address, whoever is asked for.
struct To(String);

impl Locate for To {
    fn locate(&self, _: &str) -> String {
        self.0.clone()
    }

    fn lost(&self, _: &str, _: &str) {}
}

const HOPS: [&str; 5] = ["hop-1", "hop-2", "hop-3", "hop-4", "hop-5"];

async fn asked(State(hop): State<Arc<Hop>>, headers: HeaderMap) -> StatusCode {
    hop.calls.fetch_add(1, Ordering::SeqCst);
    if let Some(left) = client::told_deadline(&headers) {
        hop.left.lock().unwrap_or_else(PoisonError::into_inner).push(left.as_millis());
    }
    if hop.fails {
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    let work = *hop.work.lock().unwrap_or_else(PoisonError::into_inner);
    tokio::time::sleep(work).await;
    match &hop.next {
        None => StatusCode::OK,
        Some(next) => match next.get("/").await {
            Ok(reply) => reply.status,
            Err(_) => StatusCode::BAD_GATEWAY,
        },
    }
}

/// Hops that run, the first in front.
struct Chain {
    hops: Vec<Arc<Hop>>,
    contexts: Vec<Context>,
    first: Client,
}

async fn start(
    hops: &'static [&'static str],
    options: client::Options,
    last_fails: bool,
    env: &Env,
) -> Result<Chain, BoxError> {
    let broker = order_broker::open("memory:").await?;
    let context = |name: &'static str, next: &str| {
        Context::new(name, env.clone(), Path::new("."), broker.clone(), Arc::new(To(next.to_owned())))
    };
    let mut chain: (Vec<Arc<Hop>>, Vec<Context>) = Default::default();
    let mut next: Option<(&'static str, String)> = None;
    for name in hops.iter().rev() {
        let context = context(name, next.as_ref().map_or("", |(_, url)| url));
        let client = match &next {
            Some((next, _)) => Some(Client::new(&context, next, options)?),
            None => None,
        };
        let hop = Arc::new(Hop {
            fails: last_fails && client.is_none(),
            next: client,
            work: Mutex::new(Duration::from_millis(10)),
            left: Mutex::default(),
            calls: AtomicU64::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        next = Some((name, format!("http://{}", listener.local_addr()?)));
        let routes: Router = Router::new().route("/", get(asked)).with_state(hop.clone());
        let service = Service { routes: OpenApiRouter::from(routes), checks: Vec::new() };
        tokio::spawn(serve(context.clone(), router(&context, service, Access::Services), listener));
        chain.0.insert(0, hop);
        chain.1.push(context);
    }
    let (name, url) = next.ok_or("no hops")?;
    let outside = context("outside", &url);
    let first = Client::new(&outside, name, options)?;
    chain.1.push(outside);
    Ok(Chain { hops: chain.0, contexts: chain.1, first })
}

impl Chain {
    fn calls(&self) -> Vec<u64> {
        self.hops.iter().map(|hop| hop.calls.load(Ordering::SeqCst)).collect()
    }

    /// How often the last hop was called for each of so many requests.
    fn ratio(&self, requests: u64) -> f64 {
        self.calls().last().copied().unwrap_or(0) as f64 / requests as f64
    }

    fn end(self) {
        for context in self.contexts {
            context.stop().cancel();
        }
    }
}

pub(super) async fn chain(story: &mut Story) -> Result<(), BoxError> {
    let budget = Duration::from_millis(600);
    let options =
        client::Options { deadline: budget, attempt: budget, attempts: 1, ..client::Options::default() };
    let chain = start(&HOPS, options, false, &Env::empty()).await?;

    story.say("five hops, 10 ms of work in each, 600 ms for all");
    let reply = chain.first.get("/").await?;
    story.check(reply.status == 200, "the last hop's answer arrives");
    let lefts: Vec<u128> = chain
        .hops
        .iter()
        .filter_map(|hop| hop.left.lock().unwrap_or_else(PoisonError::into_inner).last().copied())
        .collect();
    story.check(lefts.len() == HOPS.len(), "each hop was told how much time is left");
    let shrinks = lefts.windows(2).all(|pair| pair[1] + 10 <= pair[0]);
    story.check(shrinks && lefts[0] <= 600, format!("less at each: {lefts:?} ms"));

    story.say("the fourth hop takes 700 ms");
    *chain.hops[3].work.lock().unwrap_or_else(PoisonError::into_inner) = Duration::from_millis(700);
    let before = chain.calls();
    let began = Instant::now();
    let answer = chain.first.get("/").await;
    let took = began.elapsed();
    story.check(answer.is_err(), "there is no answer in time");
    let late = story.bound(Duration::from_millis(100), HANGS_LOOSE);
    story.check(
        took < budget + late,
        format!("and whoever asked hears so after {} ms, not later", took.as_millis()),
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after = chain.calls();
    story.check(
        after[3] == before[3] + 1 && after[4] == before[4],
        "the fifth hop was not begun for an answer that nobody waits for",
    );
    chain.end();
    Ok(())
}

const TIERS: [&str; 3] = ["tier-1", "tier-2", "tier-3"];

pub(super) async fn retries(story: &mut Story) -> Result<(), BoxError> {
    const FEW: u64 = 5;
    const MANY: u64 = 200;
    // They would hide what budgets do.
    let env = Env::empty().with(env::BREAKERS, "off");
    story.say("three tiers, each of which asks the next up to three times; the last fails; no breakers");
    let options = client::Options { attempts: 3, budget: false, ..client::Options::default() };
    let chain = start(&TIERS, options, true, &env).await?;
    join_all((0..FEW).map(|_| chain.first.get("/"))).await;
    let (calls, ratio) = (chain.calls(), chain.ratio(FEW));
    story.say(format!("{FEW} requests without budgets"));
    story.check(ratio > 10.0, format!("the last tier saw {ratio:.2} calls for each: {calls:?}"));
    chain.end();
    let options = client::Options { budget: true, ..options };
    let chain = start(&TIERS, options, true, &env).await?;
    for _ in 0..MANY {
        let _ = chain.first.get("/").await;
    }
    let (calls, ratio) = (chain.calls(), chain.ratio(MANY));
    story.say(format!("{MANY} requests with budgets"));
    story.check(ratio <= 1.2, format!("the last tier saw {ratio:.2} calls for each: {calls:?}"));
    chain.end();
    Ok(())
}
