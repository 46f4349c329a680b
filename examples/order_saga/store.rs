//! Where the sagas are kept: in a file beside the services' databases, or in PostgreSQL.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

#[cfg(feature = "postgres")]
use mainstay::saga::postgres::{Postgres, tokio_postgres};
use mainstay::saga::{Opening, Orchestrator, journal::Journal, sqlite::Sqlite};

use crate::Error;

/// How long the others leave the sagas of an orchestrator alone of which they hear nothing: short, since here it is dead.
pub const LEASE: Duration = Duration::from_millis(500);
#[cfg(feature = "postgres")]
const POLL: Duration = Duration::from_millis(50);

/// Where the sagas of this run are.
#[derive(Debug, Clone)]
pub enum Place {
    Sqlite(PathBuf),
    /// In a schema that is made by this run, and dropped at its end.
    #[cfg(feature = "postgres")]
    Postgres {
        url: String,
        schema: String,
    },
}

impl Place {
    /// What `--store` says; a child of this program is told the schema, too.
    pub fn new(data: &Path, store: Option<&str>, schema: Option<&str>) -> Result<Self, String> {
        let Some(store) = store else { return Ok(Place::Sqlite(data.join("sagas.db"))) };
        let Some(("postgres", rest)) = store.split_once(':') else {
            return Err(format!("{store:?} is no store: say postgres:URL, or nothing for SQLite"));
        };
        Place::postgres(if rest.starts_with("//") { store } else { rest }, schema)
    }

    #[cfg(feature = "postgres")]
    fn postgres(url: &str, schema: Option<&str>) -> Result<Self, String> {
        let unique = || format!("mainstay_orders_{}_{:x}", std::process::id(), crate::chance::seed());
        Ok(Place::Postgres { url: url.to_owned(), schema: schema.map_or_else(unique, str::to_owned) })
    }

    #[cfg(not(feature = "postgres"))]
    fn postgres(_url: &str, _schema: Option<&str>) -> Result<Self, String> {
        Err("this was built without PostgreSQL: cargo run --features postgres --example order_saga"
            .to_owned())
    }

    /// What a child of this program has to be told of it.
    pub fn arguments(&self) -> Vec<String> {
        match self {
            Place::Sqlite(_) => Vec::new(),
            #[cfg(feature = "postgres")]
            Place::Postgres { url, schema } => {
                vec!["--store".to_owned(), format!("postgres:{url}"), "--schema".to_owned(), schema.clone()]
            }
        }
    }

    /// How many orchestrators may live beside the youngest. The file has one at a time; in PostgreSQL one lives on while another is
    /// killed, and takes over what that leaves when its lease is over.
    pub fn beside(&self) -> usize {
        match self {
            Place::Sqlite(_) => 0,
            #[cfg(feature = "postgres")]
            Place::Postgres { .. } => 1,
        }
    }

    pub async fn open(&self) -> Result<Store, Error> {
        Ok(match self {
            Place::Sqlite(path) => Store::Sqlite(Sqlite::open(path)?),
            #[cfg(feature = "postgres")]
            Place::Postgres { url, schema } => Store::Postgres(Postgres::connect(url).schema(schema).await?),
        })
    }

    /// Leaves nothing behind in a database that others use, too.
    pub async fn remove(&self) -> Result<(), Error> {
        match self {
            Place::Sqlite(_) => {}
            #[cfg(feature = "postgres")]
            Place::Postgres { url, schema } => {
                let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
                tokio::spawn(connection);
                client.batch_execute(&format!("DROP SCHEMA IF EXISTS \"{schema}\" CASCADE")).await?;
            }
        }
        Ok(())
    }
}

/// The open store.
#[derive(Debug, Clone)]
pub enum Store {
    Sqlite(Sqlite),
    #[cfg(feature = "postgres")]
    Postgres(Postgres),
}

impl Store {
    pub fn orchestrator(&self) -> Opening {
        match self {
            Store::Sqlite(journal) => Orchestrator::open(journal.clone()),
            #[cfg(feature = "postgres")]
            Store::Postgres(journal) => Orchestrator::open(journal.clone()).lease(LEASE).poll(POLL),
        }
    }

    pub fn journal(&self) -> &dyn Journal {
        match self {
            Store::Sqlite(journal) => journal,
            #[cfg(feature = "postgres")]
            Store::Postgres(journal) => journal,
        }
    }
}
