//! Orders: accepted at once and answered with 202, then moved on by a durable [saga](mainstay::saga) or, with `SAGA_STYLE=choreography`,
//! by the events of the other services. Lists of orders are read from a side of their own, made of the orders' events. By
//! [gRPC](serve_grpc) other services look at an order, or watch it until it is over.
//!
//! | what | where |
//! |---|---|
//! | orders, their events, the outbox, the barrier | `orders.db`, or the schema `orders` |
//! | the journal of the sagas | `orders-saga.db`, or the schema `orders_saga` |
//! | lists of orders, names of users | `orders-read.db`, or the schema `orders_read` |

mod choreography;
mod grpc;
mod journey;
pub mod order;
mod prices;
mod read;
mod routes;
mod saga;
mod steps;
mod store;
mod sweeper;
mod users;
mod waiters;
pub mod wire;

use std::{sync::Arc, time::Duration};

use order_kit::{BoxError, Context, Db, Service, db::Place, env, health::Check};
use tokio::sync::{Semaphore, mpsc};

pub use choreography::{QUEUE as CHOREOGRAPHY_QUEUE, queue as choreography_queue};
pub use grpc::serve_grpc;
pub use read::{ORDERS_QUEUE, OrderRow, USERS_QUEUE, build_read, queues as read_queues, rebuild};

/// As in the kit's list of services.
pub const NAME: &str = "orders";

/// Opens the databases, takes up what is under way, and returns the routes.
///
/// # Errors
///
/// A database or a journal that cannot be opened, or a setting that makes no sense.
pub async fn build(context: Context) -> Result<Service, BoxError> {
    let deadline = deadline(&context)?;
    context.wait_for("its databases");
    let store = store::Store::of(&context).await?;
    let read = read::ReadStore::open(&context).await?;
    let users = users::Directory::new(&context)?;
    let prices = prices::Prices::new(&context)?;
    context.tells(wire::events());
    order_kit::events::start_relay(&context, store.db());
    order_kit::prune::start(&context, store.db());
    read::listen(&context, &read).await?;
    let moved_by = match context.env().get_or_default(env::SAGA_STYLE).as_str() {
        "orchestrated" => {
            let steps = steps::Steps::new(&context, store.clone(), users.clone())?;
            context.wait_for("its sagas");
            let (tell, turned) = mpsc::unbounded_channel();
            let engine = saga::Engine::start(&context, &steps, deadline, saga::MOST_AT_ONCE, tell).await?;
            let missed = sweeper::Missed::default();
            sweeper::start(&context, store.clone(), engine.clone(), missed.clone(), turned);
            MovedBy::Saga(engine, missed)
        }
        "choreography" => {
            choreography::start(&context, &store, &users, deadline).await?;
            MovedBy::Events
        }
        other => {
            return Err(format!("SAGA_STYLE is {other:?}: orchestrated or choreography are possible").into());
        }
    };
    let (orders, mover, service) = (store.clone(), moved_by.clone(), context.name());
    context.measured(move || {
        let (orders, mover) = (orders.clone(), mover.clone());
        async move {
            let attention = match &mover {
                MovedBy::Saga(engine, _) => engine.attention().await.map(|heads| heads.len() as u64),
                MovedBy::Events => Ok(0),
            };
            if let (Ok(open), Ok(attention)) = (orders.count_open().await, attention) {
                order_kit::metric::sagas(service, open, attention);
            }
        }
    });
    let mut checks = checks(&context, &[("database", store.db()), ("readDatabase", read.db())]);
    checks.push(users.check());
    if let MovedBy::Saga(engine, _) = &moved_by {
        let engine = engine.clone();
        checks.push(Check::required("sagas", move || {
            let failed = engine.failed();
            async move { if failed { Err("the journal has failed".to_owned()) } else { Ok(()) } }
        }));
    }
    let routes = read::routes(read.clone());
    let waiting = Arc::new(Semaphore::new(routes::MOST_WAITING));
    let app = routes::App { context, store, read, users, prices, moved_by, waiting };
    Ok(Service { routes: routes.merge(routes::routes(app)), checks })
}

/// Who moves orders on.
#[derive(Clone)]
pub(crate) enum MovedBy {
    Saga(saga::Engine, sweeper::Missed),
    Events,
}

/// How long an order may take: no longer than its steps are remembered.
fn deadline(context: &Context) -> Result<Duration, BoxError> {
    let text = context.env().get_or_default(env::ORDER_DEADLINE_MS);
    let deadline = match text.parse() {
        Ok(ms @ 1..) => Duration::from_millis(ms),
        _ => {
            let possible = "a number of milliseconds above 0 is possible";
            return Err(format!("ORDER_DEADLINE_MS is {text:?}: {possible}").into());
        }
    };
    let longest = order_kit::prune::Keep::of(context.env()).steps.longest_saga;
    if longest < deadline {
        let ms = longest.as_millis();
        return Err(format!("LONGEST_SAGA_MS is {ms}, less than ORDER_DEADLINE_MS, which is {text}").into());
    }
    Ok(deadline)
}

/// Where data of that name belongs; schemas are spelt with `_`.
pub(crate) fn place(context: &Context, name: &str) -> Place {
    match context.place(name) {
        Place::Postgres { url, schema } => Place::Postgres { url, schema: schema.replace('-', "_") },
        file => file,
    }
}

/// The databases are needed; events wait in the outbox while the broker is away.
pub(crate) fn checks(context: &Context, databases: &[(&'static str, &Db)]) -> Vec<Check> {
    let database = |(name, db): &(&'static str, &Db)| Check::database(name, db);
    let queue = Check::message_queue(context, false);
    databases.iter().map(database).chain([queue]).collect()
}
