use std::{
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Wake, Waker},
};

use order_grpc::proto::orders::order_service_client::OrderServiceClient;
use order_kit::{Cents, context::Ports, env::Env, now_ms};
use tonic::{Code, Streaming, transport::Channel};

use super::*;
use crate::{order::Item as Line, store::Placed};

const DAY: Duration = Duration::from_secs(24 * 3_600);
const SOON: Duration = Duration::from_secs(20);

/// Orders that nobody moves on but the test.
struct Shop {
    context: Context,
    grpc: Grpc,
    _data: tempfile::TempDir,
}

impl Shop {
    /// In which nothing is looked for: who is not woken sleeps.
    async fn open() -> Self {
        let data = tempfile::tempdir().unwrap();
        let broker = order_broker::open("memory:").await.unwrap();
        let context = Context::new(crate::NAME, Env::empty(), data.path(), broker, Arc::new(Ports(3_000)));
        let store = Store::of(&context).await.unwrap();
        let grpc = Grpc { look: DAY, ..Grpc::new(&context, store) };
        let shop = Shop { context, grpc, _data: data };
        shop.order("one").await;
        shop
    }

    async fn order(&self, id: &str) {
        let order = Order {
            id: id.to_owned(),
            user_id: "ada".to_owned(),
            items: vec![Line { product_id: "lamp".to_owned(), quantity: 2, price: Cents(10) }],
            total: Cents(20),
            status: order::Status::Pending,
            reason: None,
            user_known: true,
            correlation: "c".to_owned(),
            traceparent: None,
            version: 1,
            created_at: now_ms(),
            updated_at: now_ms(),
        };
        assert!(matches!(self.grpc.store.place(order, None).await.unwrap(), Placed::New));
    }

    async fn serve(&self) -> Channel {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (context, grpc) = (self.context.clone(), self.grpc.clone());
        self.context.spawn(async move { serve(context, listener, grpc).await.unwrap() });
        Channel::from_shared(url).unwrap().connect().await.unwrap()
    }

    fn asking(&self, id: &str) -> Request<OrderRequest> {
        let mut request = Request::new(OrderRequest { id: id.to_owned() });
        request.metadata_mut().insert("x-service-token", self.context.tokens().send().parse().unwrap());
        request
    }

    async fn watch(&self, channel: &Channel, id: &str) -> Result<Streaming<OrderStatus>, Status> {
        Ok(OrderServiceClient::new(channel.clone()).watch_order(self.asking(id)).await?.into_inner())
    }

    /// Nobody watches, and there is room for as many as ever.
    async fn is_left(&self, places: usize) {
        let left = async {
            while self.grpc.places.available_permits() < places || self.grpc.store.waiters().orders() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, left).await.expect("nothing is left of who has watched");
    }

    async fn end(self) {
        self.context.stop().cancel();
        tokio::time::timeout(Duration::from_secs(5), self.context.finished())
            .await
            .expect("it ends before its grace is over");
    }
}

async fn next(stream: &mut Streaming<OrderStatus>) -> Option<(Stands, String)> {
    let change = tokio::time::timeout(SOON, stream.message()).await.expect("in time").unwrap();
    change.map(|it| {
        assert_eq!((it.order_id.as_str(), it.at.len()), ("one", "2026-11-26T03:40:00.000Z".len()));
        (it.status(), it.reason)
    })
}

#[tokio::test]
async fn where_it_stands_is_told_first_then_each_change_until_it_is_over() {
    let shop = Shop::open().await;
    let channel = shop.serve().await;
    let mut stream = shop.watch(&channel, "one").await.unwrap();
    assert_eq!(next(&mut stream).await, Some((Stands::Pending, String::new())));
    shop.grpc.store.wait_for_payment("one").await.unwrap();
    assert_eq!(next(&mut stream).await, Some((Stands::WaitingPayment, String::new())));
    shop.grpc.store.cancel("one", "out_of_stock").await.unwrap();
    let over = Some((Stands::Cancelled, "out_of_stock".to_owned()));
    assert_eq!(next(&mut stream).await, over);
    assert_eq!(next(&mut stream).await, None);

    let mut late = shop.watch(&channel, "one").await.unwrap();
    assert_eq!((next(&mut late).await, next(&mut late).await), (over, None));
    shop.end().await;
}

#[tokio::test]
async fn an_unknown_order_is_not_found_and_without_a_token_there_is_no_answer() {
    let shop = Shop::open().await;
    let channel = shop.serve().await;
    let refused = shop.watch(&channel, "two").await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "Order not found"));
    let mut raw = OrderServiceClient::new(channel);
    let refused = raw.get_order(shop.asking("two")).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "Order not found"));
    let bare = || Request::new(OrderRequest { id: "one".to_owned() });
    assert_eq!(raw.watch_order(bare()).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(raw.get_order(bare()).await.unwrap_err().code(), Code::Unauthenticated);
    shop.is_left(MOST_WATCHING).await;
    shop.end().await;
}

#[tokio::test]
async fn who_reads_late_misses_nothing() {
    let shop = Shop::open().await;
    let mut watcher = shop.grpc.watcher("one", None).await.unwrap();
    shop.grpc.store.wait_for_payment("one").await.unwrap();
    shop.grpc.store.confirm("one").await.unwrap();
    let mut seen = Vec::new();
    while let Some(change) = watcher.next().await.unwrap() {
        seen.push(change.status());
    }
    assert_eq!(seen, [Stands::Pending, Stands::WaitingPayment, Stands::Confirmed]);
    shop.end().await;
}

/// Lets it look, and find nothing new, which it does not yet hear of.
async fn looked<F: Future>(mut change: std::pin::Pin<&mut F>) {
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(woken.clone());
    assert!(change.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    let woken = async {
        while !woken.0.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    // Where the database was so quick that it answered within the poll, nobody is woken, and it waits for the change already.
    let _ = tokio::time::timeout(Duration::from_secs(1), woken).await;
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn what_changes_between_a_look_and_the_wait_is_not_missed() {
    let shop = Shop::open().await;
    let mut watcher = shop.grpc.watcher("one", None).await.unwrap();
    watcher.next().await.unwrap();
    let mut change = pin!(watcher.next());
    looked(change.as_mut()).await;
    shop.grpc.store.confirm("one").await.unwrap();
    let change = tokio::time::timeout(SOON, change).await;
    assert_eq!(change.expect("it hears of it").unwrap().unwrap().status(), Stands::Confirmed);
    shop.end().await;
}

/// Another process, say, with a list of its own of who waits.
#[tokio::test]
async fn what_another_instance_changes_is_looked_for() {
    let shop = Shop::open().await;
    let grpc = Grpc { look: LOOK, ..shop.grpc.clone() };
    let mut watcher = grpc.watcher("one", None).await.unwrap();
    watcher.next().await.unwrap();
    let mut change = pin!(watcher.next());
    looked(change.as_mut()).await;
    Store::new(shop.grpc.store.db().clone()).confirm("one").await.unwrap();
    let change = tokio::time::timeout(SOON, change).await.expect("it is seen").unwrap();
    assert_eq!(change.unwrap().status(), Stands::Confirmed);
    shop.end().await;
}

#[tokio::test]
async fn who_goes_leaves_nothing_behind_and_not_too_many_watch() {
    let mut shop = Shop::open().await;
    shop.grpc.places = Arc::new(Semaphore::new(2));
    let channel = shop.serve().await;
    let mut one = shop.watch(&channel, "one").await.unwrap();
    // This one never reads.
    let two = shop.watch(&channel, "one").await.unwrap();
    assert!(next(&mut one).await.is_some());
    let refused = shop.watch(&channel, "one").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop((one, two));
    shop.is_left(2).await;
    // One who loses the connection.
    let mut three = shop.watch(&channel, "one").await.unwrap();
    assert!(next(&mut three).await.is_some());
    drop((channel, three));
    shop.is_left(2).await;
    shop.end().await;
}

#[tokio::test]
async fn the_callers_time_ends_it() {
    let shop = Shop::open().await;
    let channel = shop.serve().await;
    let mut request = shop.asking("one");
    request.set_timeout(Duration::from_millis(200));
    let mut stream = OrderServiceClient::new(channel).watch_order(request).await.unwrap().into_inner();
    assert!(next(&mut stream).await.is_some());
    let ended = tokio::time::timeout(SOON, stream.message()).await.expect("it ends").unwrap_err();
    assert_eq!(ended.code(), Code::DeadlineExceeded);
    shop.is_left(MOST_WATCHING).await;
    shop.end().await;
}

/// Nothing but a timer is under way then, so that the clock of the test goes to it.
#[tokio::test(start_paused = true)]
async fn the_callers_time_ends_it_when_it_is_over_and_not_before() {
    let shop = Shop::open().await;
    let until = Instant::now() + Duration::from_secs(3);
    let mut watcher = shop.grpc.watcher("one", Some(until)).await.unwrap();
    watcher.next().await.unwrap();
    assert_eq!(watcher.next().await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(Instant::now(), until);
}

/// A watcher that held up the end would hold it for the whole grace.
#[tokio::test]
async fn a_service_that_ends_ends_its_watchers() {
    let shop = Shop::open().await;
    let channel = shop.serve().await;
    let mut stream = shop.watch(&channel, "one").await.unwrap();
    let _unread = shop.watch(&channel, "one").await.unwrap();
    assert!(next(&mut stream).await.is_some());
    shop.end().await;
    let ended = tokio::time::timeout(SOON, stream.message()).await.expect("it ends").unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "The service ends"));
}
