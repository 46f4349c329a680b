use order_grpc::{
    GrpcUsers, Options, UsersError,
    proto::users::{UserRequest, user_service_client::UserServiceClient},
};
use order_kit::{
    Context,
    env::{self, Env},
    fault::Faults,
};
use order_users::serve_grpc;
use tokio::net::TcpListener;
use tonic::{Code, Request, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{everywhere, person, service::Bench, start};

/// Serves it over gRPC as well; where.
async fn also_over_grpc(users: &Bench) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let context = users.context.clone();
    users.context.spawn(async move { serve_grpc(context, listener).await.unwrap() });
    url
}

/// The client of another service.
fn client(of: &Context, url: &str) -> GrpcUsers {
    client_with(of, url, Env::empty(), Options::default())
}

fn client_with(of: &Context, url: &str, env: Env, options: Options) -> GrpcUsers {
    let env = env.with(env::USER_GRPC_URL, url);
    let broker = of.broker().clone();
    let locate = std::sync::Arc::new(order_kit::context::Ports(3000));
    let context = Context::new("orders", env, of.data(), broker, locate);
    GrpcUsers::new(&context, options).unwrap()
}

#[tokio::test]
async fn what_rest_has_made_grpc_finds() {
    everywhere("what_rest_has_made_grpc_finds", async |users| {
        let grpc = client(&users.context, &also_over_grpc(users).await);
        let alice = users.post("/users", &person("Alice", "alice@example.com")).await.body;
        let found = grpc.get(alice["id"].as_str().unwrap()).await.unwrap().unwrap();
        assert_eq!(found.name, "Alice");
        assert_eq!(serde_json::to_value(found).unwrap(), alice, "as JSON it is what REST answers");
        for unknown in ["nobody", "", "a\0b", &"x".repeat(10_000)] {
            assert_eq!(grpc.get(unknown).await.unwrap(), None);
        }
    })
    .await;
}

#[tokio::test]
async fn unknown_is_not_found_and_without_a_token_there_is_no_answer() {
    let users = start().await;
    let url = also_over_grpc(&users).await;
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let mut raw = UserServiceClient::new(channel.clone());
    let asked = || Request::new(UserRequest { id: "nobody".to_owned() });
    assert_eq!(raw.get_user(asked()).await.unwrap_err().code(), Code::Unauthenticated);
    let mut wrong = asked();
    wrong.metadata_mut().insert("x-service-token", "guessed".parse().unwrap());
    assert_eq!(raw.get_user(wrong).await.unwrap_err().code(), Code::Unauthenticated);
    let mut right = asked();
    right.metadata_mut().insert("x-service-token", users.context.tokens().send().parse().unwrap());
    let refused = raw.get_user(right).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "User not found"));

    // Whoever watches over processes has no token.
    let mut health = HealthClient::new(channel);
    for service in ["", "order.users.v1.UserService"] {
        let asked = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(asked).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    users.end().await;
}

#[tokio::test]
async fn a_broken_database_is_an_error_that_tells_nothing() {
    let users = start().await;
    let grpc = client(&users.context, &also_over_grpc(&users).await);
    assert_eq!(grpc.get("nobody").await.unwrap(), None);
    let file = users.data.path().join("users.db");
    rusqlite::Connection::open(file).unwrap().execute_batch("drop table users").unwrap();
    let Err(UsersError::Status(status)) = grpc.get("nobody").await else { panic!("no status") };
    assert_eq!((status.code(), status.message()), (Code::Internal, "Internal server error"));
    users.end().await;
}

#[tokio::test]
async fn faults_that_are_switched_on_concern_grpc_as_well() {
    let users = start().await;
    let grpc = client(&users.context, &also_over_grpc(&users).await);
    users.context.faults().set(Faults { reject: true, ..Faults::default() });
    assert_eq!(grpc.get("nobody").await.unwrap_err().code(), Some(Code::ResourceExhausted));
    users.context.faults().set(Faults { fail_percent: 100, ..Faults::default() });
    assert_eq!(grpc.get("nobody").await.unwrap_err().code(), Some(Code::Internal));
    users.context.faults().set(Faults::default());
    assert_eq!(grpc.get("nobody").await.unwrap(), None);
    users.end().await;
}

#[tokio::test]
async fn five_failures_open_the_breaker_unless_it_is_off() {
    let users = start().await;
    let url = also_over_grpc(&users).await;
    users.context.faults().set(Faults { fail_percent: 100, ..Faults::default() });
    let once = Options { attempts: 1, ..Options::default() };
    for (breakers, asked) in [("on", 5), ("off", 30)] {
        let grpc = client_with(&users.context, &url, Env::empty().with(env::BREAKERS, breakers), once);
        let mut failed = 0;
        for _ in 0..30 {
            let answer = grpc.get("nobody").await.unwrap_err();
            failed += u32::from(answer.code() == Some(Code::Internal));
        }
        assert_eq!((failed, grpc.is_open()), (asked, breakers == "on"), "{breakers}");
    }
    users.end().await;
}
