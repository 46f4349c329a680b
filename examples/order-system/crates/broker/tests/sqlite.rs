//! The suite on the queues in a SQLite file.

mod support;

use std::sync::Arc;

use order_broker::conformance::Place;
use order_broker::{BoxFuture, Broker};
use support::Folder;

struct InFile(Folder);

impl Place for InFile {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Broker>> {
        let address = format!("sqlite:{}", self.0.path().join("broker.db").display());
        Box::pin(async move { order_broker::open(&address).await.expect("the file opens") })
    }
}

fn place(test: &str) -> Option<(tokio::runtime::Runtime, InFile)> {
    Some((support::runtime(), InFile(Folder::new(test))))
}

order_broker::conformance!(place);
