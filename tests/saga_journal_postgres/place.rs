//! A schema of its own for each test, which leaves nothing behind.

use std::{
    future::Future,
    io::Write,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use mainstay::saga::{
    Incarnation, SagaId, Timestamp,
    journal::{Append, Claim, Journal, Refusal, Stored},
    postgres::Postgres,
};
use tokio_postgres::{Client, Config, NoTls};

/// Where a test's tables are.
#[derive(Clone)]
pub struct Place {
    pub url: String,
    pub schema: String,
}

/// Runs a test with a place of its own; without a server the test says that it is skipped.
pub fn with_place<F>(test: &str, body: impl FnOnce(Place) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
        // Past the capture of the test's output: a test that did not run has to be seen.
        let _ = writeln!(std::io::stderr(), "skipped: {test}: MAINSTAY_TEST_POSTGRES is not set");
        return;
    };
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let unique = format!("{:x}_{:x}_{}", since.as_nanos(), std::process::id(), COUNT.fetch_add(1, Relaxed));
    let place = Place { url, schema: format!("mainstay_test_{unique}") };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let done = runtime.block_on(async {
        let done = tokio::spawn(body(place.clone())).await;
        let client = place.client().await;
        let schemas = "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, $1)";
        for row in client.query(schemas, &[&place.schema]).await.unwrap() {
            let name = row.get::<_, &str>(0).replace('"', "\"\"");
            let drop = format!("DROP SCHEMA \"{name}\" CASCADE");
            client.batch_execute(&drop).await.unwrap();
        }
        done
    });
    drop(runtime);
    if let Err(failed) = done {
        std::panic::resume_unwind(failed.into_panic());
    }
}

impl Place {
    /// A connection of the test itself.
    pub async fn client(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A journal here.
    pub async fn journal(&self) -> Postgres {
        Postgres::connect(&self.url).schema(&self.schema).await.unwrap()
    }

    /// A journal here whose connections can be told by the schema's name.
    pub async fn named_journal(&self) -> Postgres {
        let mut config: Config = self.url.parse().unwrap();
        config.application_name(&self.schema[..63.min(self.schema.len())]);
        Postgres::connect_with(config, NoTls).schema(&self.schema).await.unwrap()
    }

    /// How many rows a table has.
    pub async fn count(&self, table: &str) -> i64 {
        let count = format!("SELECT count(*) FROM \"{}\".{table}", self.schema);
        self.client().await.query_one(&count, &[]).await.unwrap().get(0)
    }
}

pub const LONG: Duration = Duration::from_secs(3_600);

pub fn by(name: &str) -> Incarnation {
    Incarnation::from_text(name)
}

pub fn at() -> Timestamp {
    Timestamp(1_767_225_600_000)
}

pub fn id(name: &str) -> SagaId {
    SagaId::new(name).unwrap()
}

pub fn claim(by: &Incarnation, limit: usize) -> Claim {
    let definitions = vec![mainstay::saga::conformance::definition()];
    Claim { by: by.clone(), definitions, except: Vec::new(), only: None, limit }
}

/// Appends one item; what became of it.
pub async fn append(journal: &Postgres, item: Append) -> Result<(), Refusal> {
    journal.append(vec![item]).await.unwrap().remove(0)
}

/// A saga that has to be there and whole.
pub async fn whole(journal: &Postgres, name: &str) -> Stored {
    let stored = journal.load(&id(name)).await.unwrap().expect("the saga is there");
    stored.verify().expect("its entries are whole");
    stored
}
