//! Orders over gRPC: one is asked for, or watched until it is over.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, stream};
use order_grpc::{
    proto::orders::{
        Item, OrderRequest, OrderResponse, OrderStatus, Status as Stands,
        order_service_server::{OrderService, OrderServiceServer},
    },
    server::{self, REQUEST_LIMIT, call, status},
};
use order_kit::{BoxError, Context, iso};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    order,
    store::{Order, Store},
    waiters::Waiter,
};

/// How often a watcher looks for what other instances have changed; what this one changes it hears at once.
const LOOK: Duration = Duration::from_millis(500);
/// How many watch at once, each of which looks that often.
const MOST_WATCHING: usize = 200;

/// Serves orders over [gRPC](server::serve), until the context's stop, which ends watchers with `UNAVAILABLE`.
///
/// # Errors
///
/// A database that cannot be opened, or a listener that breaks.
pub async fn serve_grpc(context: Context, listener: TcpListener) -> Result<(), BoxError> {
    let grpc = Grpc::new(&context, Store::of(&context).await?);
    serve(context, listener, grpc).await
}

async fn serve(context: Context, listener: TcpListener, grpc: Grpc) -> Result<(), BoxError> {
    let service = OrderServiceServer::new(grpc).max_decoding_message_size(REQUEST_LIMIT);
    server::serve(context, listener, service).await
}

#[derive(Clone)]
struct Grpc {
    context: Context,
    store: Store,
    places: Arc<Semaphore>,
    look: Duration,
}

impl Grpc {
    fn new(context: &Context, store: Store) -> Self {
        Grpc { context: context.clone(), store, places: Arc::new(Semaphore::new(MOST_WATCHING)), look: LOOK }
    }

    async fn find(&self, id: &str) -> Result<Order, Status> {
        let order = self.store.find(id).await.map_err(status)?;
        order.ok_or_else(|| Status::not_found("Order not found"))
    }

    /// Somebody who watches, and has seen nothing yet.
    async fn watcher(&self, id: &str, until: Option<Instant>) -> Result<Watcher, Status> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| Status::resource_exhausted("Very many watch already"))?;
        // First, so that what happens from now on is heard of.
        let waiter = self.store.waiters().register(id);
        let order = self.find(id).await?;
        Ok(Watcher {
            store: self.store.clone(),
            stop: self.context.stop().clone(),
            look: self.look,
            until,
            waiter,
            version: order.version,
            over: false,
            read: VecDeque::from([stands(order.id, order.status, order.reason, iso(order.updated_at))]),
            _place: place,
        })
    }
}

#[tonic::async_trait]
impl OrderService for Grpc {
    async fn get_order(&self, request: Request<OrderRequest>) -> Result<Response<OrderResponse>, Status> {
        let (metadata, _, OrderRequest { id }) = request.into_parts();
        let work = async { Ok(Response::new(self.find(&id).await?.into())) };
        call(&self.context, "OrderService/GetOrder", &metadata, work).await
    }

    type WatchOrderStream = Pin<Box<dyn Stream<Item = Result<OrderStatus, Status>> + Send>>;

    async fn watch_order(
        &self,
        request: Request<OrderRequest>,
    ) -> Result<Response<Self::WatchOrderStream>, Status> {
        let (metadata, _, OrderRequest { id }) = request.into_parts();
        let work = self.watcher(&id, server::end(&metadata));
        let watcher = call(&self.context, "OrderService/WatchOrder", &metadata, work).await?;
        let changes = stream::try_unfold(watcher, async |mut watcher: Watcher| {
            Ok(watcher.next().await?.map(|change| (change, watcher)))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

/// Reads changes when its caller takes them, out of what is stored for good: one that is slow misses nothing, and costs no memory here. All of
/// it is in the answer's body, and goes with it.
struct Watcher {
    store: Store,
    stop: CancellationToken,
    look: Duration,
    /// When the caller's time is over, if it said so.
    until: Option<Instant>,
    waiter: Waiter,
    /// The last version of the order that was read.
    version: i64,
    /// Whether the last status is told.
    over: bool,
    read: VecDeque<OrderStatus>,
    _place: OwnedSemaphorePermit,
}

impl Watcher {
    async fn next(&mut self) -> Result<Option<OrderStatus>, Status> {
        loop {
            if let Some(change) = self.read.pop_front() {
                self.over = matches!(change.status(), Stands::Confirmed | Stands::Cancelled);
                return Ok(Some(change));
            }
            if self.over {
                return Ok(None);
            }
            // Before the reading: what changes meanwhile is read the next time.
            let moved = self.waiter.next();
            let changes = self.store.changes(self.waiter.order(), self.version).await.map_err(status)?;
            if let Some(last) = changes.last() {
                self.version = last.version;
                let change =
                    |it: crate::wire::OrderEvent| stands(it.order_id, it.status, it.reason, it.timestamp);
                self.read.extend(changes.into_iter().map(change));
                continue;
            }
            let look = Instant::now() + self.look;
            tokio::select! {
                () = moved => {}
                () = sleep_until(self.until.map_or(look, |until| until.min(look))) => {}
                () = self.stop.cancelled() => return Err(Status::unavailable("The service ends")),
            }
            if self.until.is_some_and(|until| until <= Instant::now()) {
                return Err(Status::deadline_exceeded("The caller's time is over"));
            }
        }
    }
}

fn stands(order_id: String, status: order::Status, reason: Option<String>, at: String) -> OrderStatus {
    OrderStatus { order_id, status: Stands::from(status).into(), reason: reason.unwrap_or_default(), at }
}

impl From<order::Status> for Stands {
    fn from(status: order::Status) -> Self {
        match status {
            order::Status::Pending => Stands::Pending,
            order::Status::WaitingPayment => Stands::WaitingPayment,
            order::Status::Confirmed => Stands::Confirmed,
            order::Status::Cancelled => Stands::Cancelled,
        }
    }
}

impl From<Order> for OrderResponse {
    fn from(order: Order) -> Self {
        let item = |it: order::Item| Item {
            product_id: it.product_id,
            quantity: it.quantity,
            price: it.price.to_string(),
        };
        OrderResponse {
            id: order.id,
            user_id: order.user_id,
            items: order.items.into_iter().map(item).collect(),
            total: order.total.to_string(),
            status: Stands::from(order.status).into(),
            reason: order.reason.unwrap_or_default(),
            created_at: iso(order.created_at),
            updated_at: iso(order.updated_at),
        }
    }
}

#[cfg(test)]
mod tests;
