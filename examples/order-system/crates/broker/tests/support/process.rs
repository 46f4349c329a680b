//! Processes that really die. The test program starts itself again, with a role to play.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

use order_broker::{Broker, Message, Queue, Topology};

pub const VISIBILITY: Duration = Duration::from_secs(3);

const ROLE: &str = "ORDER_BROKER_TEST_ROLE";
const ADDRESS: &str = "ORDER_BROKER_TEST_ADDRESS";

/// One queue that wants everything, and takes silence for death soon, though not as soon as a busy machine is silent.
pub fn topology() -> Topology {
    Topology::new("events").queue(
        Queue::new("orders")
            .bind("#")
            .backoff(Duration::from_millis(10), Duration::from_millis(10))
            .visibility(VISIBILITY),
    )
}

pub fn numbered(count: usize) -> Vec<Message> {
    (0..count).map(|n| Message::new("order.created", format!("order-{n}"), n.to_string())).collect()
}

/// A process of its own. Killed when dropped, and gone by itself when this process is.
pub struct Process {
    child: std::process::Child,
    said: Option<Said>,
}

/// What a process says, line by line. At its end there is no more.
pub struct Said(std::io::Lines<BufReader<ChildStdout>>);

impl Iterator for Said {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.0.find_map(|line| line.ok()?.strip_prefix("child: ").map(str::to_owned))
    }
}

impl Process {
    /// Starts this test program again. Its test `child` plays the role.
    pub fn start(role: &str, address: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(ADDRESS, address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("it starts");
        let said = Said(BufReader::new(child.stdout.take().expect("it is piped")).lines());
        Self { child, said: Some(said) }
    }

    /// The next thing that it says.
    pub fn says(&mut self) -> String {
        self.said.as_mut().and_then(Iterator::next).expect("it says something before it ends")
    }

    /// All that it will say, for a thread to listen to.
    pub fn listen(&mut self) -> Said {
        self.said.take().expect("nobody listens yet")
    }

    pub fn tell(&mut self) {
        writeln!(self.child.stdin.as_mut().expect("it is piped")).expect("it listens");
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it is dead");
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(sent.expect("`kill` is there").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn say(what: &str) {
    println!("\nchild: {what}");
    std::io::stdout().flush().expect("somebody reads");
}

/// What the test `child` of each file does: nothing, unless it was started to play a role.
pub fn play() {
    let (Ok(role), Ok(address)) = (std::env::var(ROLE), std::env::var(ADDRESS)) else { return };
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let _ = told.send(line);
        }
        // Whoever has started this process is gone.
        std::process::exit(0);
    });
    super::runtime().block_on(async {
        let broker = order_broker::open(&address).await.expect("it opens");
        broker.declare(&topology()).await.expect("it declares");
        match role.as_str() {
            "publish" => publish(&*broker).await,
            "hold" => hold(&*broker, &mut hears).await,
            "work" => work(&*broker).await,
            other => panic!("there is no role {other}"),
        }
        // To be killed.
        std::future::pending::<()>().await;
    });
}

async fn publish(broker: &dyn Broker) {
    for result in broker.publish(numbered(50)).await {
        result.expect("it is confirmed");
    }
    say("published");
}

/// Holds one and has more at hand; when it is told to, acknowledges and says what came of it.
async fn hold(broker: &dyn Broker, hears: &mut tokio::sync::mpsc::UnboundedReceiver<String>) {
    let mut consumer = broker.consume("orders", 3).await.expect("it consumes");
    let delivery = consumer.next().await.expect("it gets one");
    say(&delivery.message().body);
    hears.recv().await.expect("it is told");
    say(&format!("{:?}", delivery.ack().await));
}

async fn work(broker: &dyn Broker) {
    let mut consumer = broker.consume("orders", 1).await.expect("it consumes");
    say("works");
    loop {
        let delivery = consumer.next().await.expect("it gets one");
        let body = delivery.message().body.clone();
        delivery.ack().await.expect("it is taken");
        say(&body);
    }
}
