//! How users leave a monolith. The new service has a database of its own, which is [filled](backfill) from the monolith page by page, and
//! kept in step by the monolith's events.
//!
//! Of what the monolith says of a user the greatest revision holds, whether it came in a page or by an event, in whatever order and however
//! often. Whoever was made or changed here is this service's own from then on: what the monolith says of him is passed over. What is taken
//! in is not published: the monolith has said it. And an address is one user's here as there; who comes with that of somebody who was
//! made or changed here is refused, and told of.

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use http::HeaderMap;
use order_broker::{Broker, BrokerError, Queue, Topology};
use order_kit::{
    ApiError, BoxError, Context, Json, Tx,
    auth::ServiceTokens,
    client::{Client, Options},
    context::Ports,
    db::DbError,
    env,
    error::ErrorBody,
    events::{self, EXCHANGE, Envelope, Trouble},
    extract::Query,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    NAME,
    repository::{Users, next_revision},
    wire::{CREATED, Revised, UPDATED},
};

const PARALLEL: u16 = 4;
/// How many users are asked for at once.
const PAGE: i64 = 100;
/// The most that are given at once.
const MOST: i64 = 500;
/// How long the monolith's broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

// === At the monolith ===

/// Some of the users, in the order of their last changes.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
struct Page {
    users: Vec<Revised>,
    /// Behind which revision the next ones are; nothing after the last.
    next: Option<i64>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Behind {
    /// The revision behind which the page begins: `next` of the page before.
    #[serde(default)]
    after: i64,
    /// How many at most: 100 unless something else is said, and never more than 500.
    limit: Option<i64>,
}

#[derive(Clone)]
struct Source {
    users: Users,
    tokens: ServiceTokens,
}

pub(crate) fn routes(users: Users, tokens: ServiceTokens) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(all)).with_state(Source { users, tokens })
}

/// All users in the order of their last changes, for a service that takes them over: whoever is changed meanwhile comes once more. No name of a
/// service begins like this path, so that a gateway has no way to it.
#[utoipa::path(get, path = "/_users", params(Behind), responses(
    (status = 200, description = "A page of them", body = Page),
    (status = 400, description = "`Malformed query`", body = ErrorBody),
    (status = 401, description = "A service token is needed", body = ErrorBody),
))]
async fn all(
    State(source): State<Source>,
    headers: HeaderMap,
    Query(behind): Query<Behind>,
) -> Result<Json<Page>, ApiError> {
    // A monolith's other routes are open to everybody.
    if !source.tokens.accepts(&headers) {
        return Err(ApiError::unauthorized("A service token is needed"));
    }
    let limit = behind.limit.unwrap_or(PAGE).clamp(1, MOST);
    let users = source.users.after(behind.after, limit).await?;
    let full = i64::try_from(users.len()).is_ok_and(|count| count == limit);
    let next = users.last().filter(|_| full).map(|last| last.revision);
    Ok(Json(Page { users, next }))
}

// === At the new service ===

/// What it hears of the monolith: a queue in the monolith's broker. There is none anywhere else.
pub fn queue() -> Queue {
    Queue::new("users.moving")
        .bind(CREATED)
        .bind(UPDATED)
        .max_attempts(200)
        .backoff(Duration::from_millis(100), Duration::from_secs(5))
}

/// The monolith's broker, if one is named.
#[derive(Clone)]
struct Theirs(Option<Arc<dyn Broker>>);

async fn theirs(context: &Context) -> Result<Option<Arc<dyn Broker>>, BrokerError> {
    let open = async {
        Ok::<_, BrokerError>(match context.env().get(env::LEGACY_RABBITMQ_URL) {
            Some(address) => Theirs(Some(order_broker::open(&address).await?)),
            None => Theirs(None),
        })
    };
    context.shared(open).await.map(|Theirs(broker)| broker)
}

/// Takes in what the monolith tells, if its broker is named, until the service ends.
pub(crate) async fn listen(context: &Context, users: &Users) -> Result<(), BrokerError> {
    let Some(broker) = theirs(context).await? else { return Ok(()) };
    let users = users.clone();
    events::consume_from(context, broker, queue(), PARALLEL, move |event| {
        let users = users.clone();
        async move { hear(&users, event).await }
    })
    .await
}

async fn hear(users: &Users, event: Envelope) -> Result<(), Trouble> {
    let user: Revised = event.data()?;
    match take_in(users, vec![user], None).await?.pop() {
        Some(Taken::Refused(why)) => Err(Trouble::Poison(why)),
        _ => Ok(()),
    }
}

/// What has become of the monolith's users.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backfilled {
    /// New here, or newer than what was here.
    pub taken: u64,
    /// Had come before, in this state or a newer one; or are this service's own by now.
    pub known: u64,
    /// Could not be taken in: each with the reason.
    pub refused: Vec<String>,
}

/// Takes in all users whom the monolith has, page by page. To be called when the service runs; what the monolith changes meanwhile comes by
/// its events, for which the queue is made before the first page is asked for. Goes on where one broke off that did not come to its end,
/// and may be called as often as one likes.
///
/// # Errors
///
/// A setting that is missing, the monolith or its broker that does not answer, the database that cannot be written. What was taken in before
/// stays.
pub async fn backfill(context: &Context) -> Result<Backfilled, BoxError> {
    let users = Users::of(context).await?;
    let monolith = monolith(context)?;
    let missing = || format!("{} is not set", env::LEGACY_RABBITMQ_URL);
    subscribed(&*theirs(context).await?.ok_or_else(missing)?).await?;
    let (mut filled, mut behind) = (Backfilled::default(), Some(broken_off(&users).await?));
    while let Some(after) = behind {
        let path = format!("/_users?after={after}&limit={PAGE}");
        let reply = monolith.get(&path).await.and_then(|reply| reply.success());
        let page: Page =
            reply.and_then(|reply| reply.json()).map_err(|error| format!("the monolith: {error}"))?;
        for taken in take_in(&users, page.users, Some(page.next)).await? {
            match taken {
                Taken::In => filled.taken += 1,
                Taken::Known => filled.known += 1,
                Taken::Refused(why) => filled.refused.push(why),
            }
        }
        behind = page.next;
    }
    Ok(filled)
}

/// A client of the monolith, which is shown its own token and never that of services.
fn monolith(context: &Context) -> Result<Client, BoxError> {
    let set = |name: &str| context.env().get(name).ok_or_else(|| format!("{name} is not set"));
    let env = context.env().clone();
    let env = env.with(env::USER_SERVICE_URL, set(env::LEGACY_URL)?);
    let env = env.with(env::INTERNAL_TOKEN, set(env::LEGACY_TOKEN)?);
    let outside = Context::new(NAME, env, context.data(), context.broker().clone(), Arc::new(Ports(3000)));
    Ok(Client::new(&outside, "user", Options::default())?)
}

/// Makes sure that the queue is there: a change that no page has would be lost without it.
async fn subscribed(broker: &dyn Broker) -> Result<(), BoxError> {
    let queue = Topology::new(EXCHANGE).queue(queue());
    let declared = async {
        while let Err(error) = broker.declare(&queue).await {
            tracing::debug!(%error, "the monolith's broker takes no queue yet");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let late = |_| format!("the monolith's broker at {} does not answer", broker.address());
    Ok(tokio::time::timeout(PATIENCE, declared).await.map_err(late)?)
}

/// Where to go on.
async fn broken_off(users: &Users) -> Result<i64, DbError> {
    let work = async |tx: &Tx<'_>| {
        let row = tx.first("select behind from backfill where one = 1", &[]).await?;
        row.map_or(Ok(0), |row| row.int(0))
    };
    users.db().read(work).await
}

/// What has become of one user.
#[derive(Debug)]
enum Taken {
    In,
    Known,
    Refused(String),
}

/// Takes users in, in one transaction; if they are a page, with where the next one begins.
async fn take_in(
    users: &Users,
    page: Vec<Revised>,
    next: Option<Option<i64>>,
) -> Result<Vec<Taken>, Trouble> {
    let dated = |it: Revised| match order_kit::ms(&it.user.created_at) {
        Some(created_at) => Ok((it, created_at)),
        None => Err(Trouble::Poison(format!("{}: createdAt is no time: {}", it.user.id, it.user.created_at))),
    };
    let page = page.into_iter().map(dated).collect::<Result<Vec<_>, _>>()?;
    let work = async move |tx: &Tx<'_>| {
        let mut all = Vec::with_capacity(page.len());
        for (user, created_at) in page {
            all.push(take(tx, user, created_at).await?);
        }
        match next {
            Some(Some(behind)) => {
                let sql = "insert into backfill (one, behind) values (1, $1) on conflict (one) do update set behind = excluded.behind";
                tx.execute(sql, &[behind.into()]).await?;
            }
            // The next one begins at the beginning, and so comes to whoever was refused.
            Some(None) => {
                tx.execute("delete from backfill", &[]).await?;
            }
            None => {}
        }
        Ok::<_, Trouble>(all)
    };
    let all = users.db().write(work).await?;
    Ok(all)
}

async fn take(tx: &Tx<'_>, Revised { user, revision }: Revised, created_at: i64) -> Result<Taken, DbError> {
    // The monolith's numbers are not in the order in which users come here, which is what watchers go by.
    let own = next_revision(tx).await?;
    let sql = "select legacy_revision from users where id = $1";
    if let Some(row) = tx.first(sql, &[(&user.id).into()]).await?
        && row.maybe_int(0)?.is_none_or(|known| known >= revision)
    {
        return Ok(Taken::Known);
    }
    let email_key = user.email.to_lowercase();
    let sql = "select id, legacy_revision from users where email_key = $1 and id <> $2";
    if let Some(row) = tx.first(sql, &[(&email_key).into(), (&user.id).into()]).await? {
        let other = row.text(0)?;
        match row.maybe_int(1)? {
            None => {
                return Ok(Taken::Refused(format!(
                    "{}: {other}, who is not the monolith's, has the address",
                    user.id
                )));
            }
            // Later than this the monolith gave the address to the other. So this is old, and something newer of this user is on its way.
            Some(later) if later > revision => return Ok(Taken::Known),
            // The other has another address by now; that is on its way.
            Some(_) => {
                tx.execute("update users set email_key = id where id = $1", &[other.into()]).await?;
            }
        }
    }
    tx.execute(
        "insert into users (id, email, email_key, name, created_at, revision, legacy_revision) values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (id) do update set email = excluded.email, email_key = excluded.email_key, name = excluded.name,
             revision = excluded.revision, legacy_revision = excluded.legacy_revision",
        &[
            user.id.into(),
            user.email.into(),
            email_key.into(),
            user.name.into(),
            created_at.into(),
            own.into(),
            revision.into(),
        ],
    )
    .await?;
    Ok(Taken::In)
}
