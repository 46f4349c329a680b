//! The suite on RabbitMQ, with the server of `MAINSTAY_TEST_AMQP`.

mod support;

use std::sync::{Arc, Mutex};

use order_broker::conformance::Place;
use order_broker::{Amqp, BoxFuture, Broker};

/// A prefix of the test's own. What was declared under it is deleted at the end, also of a test that failed.
struct InRabbit {
    address: String,
    opened: Mutex<Vec<Amqp>>,
}

impl InRabbit {
    fn new(test: &str) -> Option<Self> {
        let address = support::amqp_address(test)?;
        Some(Self { address, opened: Mutex::default() })
    }
}

impl Place for InRabbit {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Broker>> {
        Box::pin(async {
            let broker = Amqp::new(&self.address).expect("the address is one");
            self.opened.lock().unwrap().push(broker.clone());
            Arc::new(broker) as Arc<dyn Broker>
        })
    }

    fn keeps_order(&self) -> bool {
        false
    }
}

impl Drop for InRabbit {
    fn drop(&mut self) {
        let opened = std::mem::take(&mut *self.opened.lock().unwrap());
        support::runtime().block_on(support::delete(&self.address, &opened));
    }
}

fn place(test: &str) -> Option<(tokio::runtime::Runtime, InRabbit)> {
    Some((support::runtime(), InRabbit::new(test)?))
}

order_broker::conformance!(place);
