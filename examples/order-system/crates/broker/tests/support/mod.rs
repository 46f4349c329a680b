//! What the test files share.
#![allow(dead_code)] // Not every file needs all of it.

pub mod process;
pub mod proxy;

use std::path::{Path, PathBuf};

/// A folder of the test's own, removed at its end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(test: &str) -> Self {
        let unique = uuid::Uuid::now_v7().simple();
        let path = std::env::temp_dir().join(format!("order-broker-{test}-{unique}"));
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// The server that the environment names, with a prefix of the test's own. `None`, and said so, if it names none.
pub fn amqp_address(test: &str) -> Option<String> {
    use std::io::Write;
    let Ok(server) = std::env::var("MAINSTAY_TEST_AMQP") else {
        // Not `eprintln!`, which the test runner swallows.
        let _ = writeln!(std::io::stderr(), "skipped: {test}: MAINSTAY_TEST_AMQP is not set");
        return None;
    };
    let separator = if server.contains('?') { '&' } else { '?' };
    Some(format!("{server}{separator}prefix=test.{}.", uuid::Uuid::now_v7().simple()))
}

/// Deletes what these brokers have declared at this address.
pub async fn delete(address: &str, brokers: &[order_broker::Amqp]) {
    use order_broker::Broker;
    let deleter = order_broker::Amqp::new(address).expect("the address is one");
    for broker in brokers {
        let topology = broker.topology().await.expect("it knows what it has declared");
        if !topology.exchange.is_empty() {
            deleter.declare(&topology).await.expect("the server is there");
        }
    }
    deleter.delete_declared().await.expect("it can be deleted");
}
