//! Orders by gRPC, moved on as in production.

use order_grpc::proto::orders::{OrderRequest, Status, order_service_client::OrderServiceClient};
use order_orders::serve_grpc;
use tokio::net::TcpListener;
use tonic::{Request, transport::Channel};

use crate::world::World;

async fn also_over_grpc(world: &World) -> OrderServiceClient<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let context = world.context.clone();
    world.context.spawn(async move { serve_grpc(context, listener).await.unwrap() });
    OrderServiceClient::new(Channel::from_shared(url).unwrap().connect().await.unwrap())
}

fn asking(id: &str) -> Request<OrderRequest> {
    let mut request = Request::new(OrderRequest { id: id.to_owned() });
    request.metadata_mut().insert("x-service-token", "internal-dev-token".parse().unwrap());
    request
}

#[tokio::test]
async fn an_order_is_watched_until_it_is_confirmed_and_is_what_rest_says() {
    let world = World::new().await;
    let mut grpc = also_over_grpc(&world).await;
    let id = world.order("ada", 3).await;
    let mut stream = grpc.watch_order(asking(&id)).await.unwrap().into_inner();
    let mut last = None;
    while let Some(change) = stream.message().await.unwrap() {
        assert_eq!(change.order_id, id);
        last = Some(change);
    }
    let last = last.expect("where it stands");
    assert_eq!(last.status(), Status::Confirmed);

    let rest = world.decided(&id).await;
    let order = grpc.get_order(asking(&id)).await.unwrap().into_inner();
    assert_eq!((order.status(), order.reason.as_str()), (Status::Confirmed, ""));
    for (here, there) in [
        (&order.id, &rest["id"]),
        (&order.user_id, &rest["userId"]),
        (&order.total, &rest["total"]),
        (&order.created_at, &rest["createdAt"]),
        (&order.updated_at, &rest["updatedAt"]),
        (&last.at, &rest["updatedAt"]),
        (&order.items[0].product_id, &rest["items"][0]["productId"]),
        (&order.items[0].price, &rest["items"][0]["price"]),
    ] {
        assert_eq!(here, there);
    }
    assert_eq!((order.items.len(), order.items[0].quantity), (1, 3));
    world.end().await;
}
