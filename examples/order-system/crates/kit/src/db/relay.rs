//! Takes events from the outbox to the broker.

use std::{panic::resume_unwind, pin::Pin, sync::Arc, time::Duration};

use mainstay::saga::outbox::{self, Message, Relay, Relayed, Unsent};
use tokio::{runtime::Handle, sync::oneshot};
use tokio_util::sync::CancellationToken;

use super::{Db, DbError, Place, postgres, sqlite};

/// How long the relay rests when there is nothing to do.
const IDLE: Duration = Duration::from_millis(15);
/// How long it rests when the broker or the database is away.
const AWAY: Duration = Duration::from_millis(200);

/// Publishes messages, and says of each what has become of it, in their order.
pub type Publish =
    Arc<dyn Fn(Vec<Message>) -> Pin<Box<dyn Future<Output = Vec<Result<(), Unsent>>> + Send>> + Send + Sync>;

/// Runs until it is told to stop, and then as long as there is something to publish that can be. On a thread of its own, which ends with
/// whoever waits here: when the future is dropped, and so when its runtime is.
///
/// # Errors
///
/// That the thread has gone.
pub async fn run_relay(db: &Db, publish: Publish, stop: CancellationToken) -> Result<(), DbError> {
    let (mut ended, wait) = oneshot::channel();
    let (db, services) = (db.clone(), Handle::current());
    sqlite::spawn("outbox", move || {
        // Of its own: the services' may be gone at any moment, and who then waits for a time or a connection of it panics.
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "a runtime could not be made"),
        };
        runtime.block_on(async {
            tokio::select! {
                () = run(&db, &services, &publish, &stop) => {}
                () = ended.closed() => {}
            }
        });
        let _ = ended.send(());
    });
    wait.await.map_err(|_| DbError::Unavailable("the relay's thread has gone".to_owned()))
}

/// Publishes where the services run, as the broker does.
async fn published(services: &Handle, publish: &Publish, messages: Vec<Message>) -> Vec<Result<(), Unsent>> {
    let count = messages.len();
    match services.spawn(publish(messages)).await {
        Ok(answers) => answers,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => vec![Err(Unsent::unavailable("the services have ended")); count],
        },
    }
}

enum Connection {
    /// It only reads.
    Sqlite(rusqlite::Connection),
    Postgres(tokio_postgres::Client),
}

async fn run(db: &Db, services: &Handle, publish: &Publish, stop: &CancellationToken) {
    let relay = Relay::new().batch(256);
    let mut connection = None;
    loop {
        let publish = async |messages| published(services, publish, messages).await;
        let round = round(db, &mut connection, &relay, publish).await;
        let rest = match round {
            Ok(Relayed { unavailable: None, sent: 1.., .. }) => Duration::ZERO,
            Ok(Relayed { unavailable: None, .. }) => IDLE,
            Ok(_) => AWAY,
            Err(error) => {
                tracing::warn!(%error, "the outbox cannot be read");
                connection = None;
                AWAY
            }
        };
        if stop.is_cancelled() && rest != Duration::ZERO {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = stop.cancelled(), if rest != Duration::ZERO => {}
        }
    }
}

async fn round(
    db: &Db,
    connection: &mut Option<Connection>,
    relay: &Relay,
    publish: impl AsyncFnMut(Vec<Message>) -> Vec<Result<(), Unsent>>,
) -> Result<Relayed, DbError> {
    if connection.is_none() {
        *connection = Some(match db.place() {
            Place::Sqlite(path) => Connection::Sqlite(sqlite::connect(path)?),
            Place::Postgres { url, schema } => Connection::Postgres(postgres::connect(url, schema).await?),
        });
    }
    match connection.as_mut() {
        Some(Connection::Sqlite(connection)) => {
            let round = outbox::sqlite::Round::read(connection, relay)?;
            if round.is_empty() {
                return Ok(Relayed::default());
            }
            let published = round.publish_many(relay, publish).await;
            // By the thread that writes: a second one that did would hold it up, and empty its cache.
            db.write(async move |tx| tx.mark(&published)).await
        }
        Some(Connection::Postgres(client)) => Ok(outbox::postgres::relay_many(client, relay, publish).await?),
        None => Ok(Relayed::default()),
    }
}
