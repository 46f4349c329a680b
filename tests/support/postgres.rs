//! A schema of one's own in the Postgres of `MAINSTAY_TEST_POSTGRES`, dropped afterwards.
#![allow(dead_code, missing_docs)]

use std::{
    io::Write,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

pub struct Schema {
    pub url: String,
    pub name: String,
    pub runtime: Runtime,
}

impl Schema {
    /// None, and says so where nobody captures it, when there is no server to test with.
    pub fn new(test: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Ok(url) = std::env::var("MAINSTAY_TEST_POSTGRES") else {
            let _ = writeln!(std::io::stderr(), "skipped: {test}: MAINSTAY_TEST_POSTGRES is not set");
            return None;
        };
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), test);
        let name = format!("mainstay_{random:016x}_{}", COUNT.fetch_add(1, Relaxed));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let schema = Schema { url, name, runtime };
        schema.execute(&format!("create schema {}", schema.name));
        Some(schema)
    }

    /// A connection whose `search_path` is the schema.
    pub fn connect(&self) -> Client {
        self.runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&self.url, NoTls).await.expect("the server answers");
            tokio::spawn(connection);
            client
                .batch_execute(&format!(
                    "set search_path to {}; set client_min_messages to warning",
                    self.name
                ))
                .await
                .unwrap();
            client
        })
    }

    /// How a connection of `sqlx` is made whose `search_path` is the schema.
    #[cfg(feature = "sqlx")]
    pub fn options(&self) -> sqlx::postgres::PgConnectOptions {
        let options: sqlx::postgres::PgConnectOptions = self.url.parse().unwrap();
        options.options([("search_path", &*self.name), ("client_min_messages", "warning")])
    }

    /// The same as [`connect`](Schema::connect), for `sqlx`.
    #[cfg(feature = "sqlx")]
    pub fn connect_sqlx(&self) -> sqlx::PgConnection {
        use sqlx::ConnectOptions;
        self.runtime.block_on(self.options().connect()).expect("the server answers")
    }

    fn execute(&self, statement: &str) {
        self.runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&self.url, NoTls).await.expect("the server answers");
            tokio::spawn(connection);
            client.batch_execute(statement).await.unwrap();
        });
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        self.execute(&format!("set client_min_messages to warning; drop schema {} cascade", self.name));
    }
}
