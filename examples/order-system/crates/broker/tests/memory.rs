//! The suite on the queues in memory, with a paused clock.

use std::sync::Arc;

use order_broker::conformance::Place;
use order_broker::{BoxFuture, Broker, Memory};

struct InMemory(Memory);

impl Place for InMemory {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Broker>> {
        Box::pin(async { Arc::new(self.0.clone()) as Arc<dyn Broker> })
    }
}

fn place(_test: &str) -> Option<(tokio::runtime::Runtime, InMemory)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    Some((runtime.unwrap(), InMemory(Memory::new())))
}

order_broker::conformance!(place);
