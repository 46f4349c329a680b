use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
};

use mainstay::deadline;
use order_broker::Broker;
use order_kit::{context::Locate, env::Env};
use tokio::net::TcpListener;
use tonic::Response;

use super::*;
use crate::{
    proto::users::user_service_server::{UserService, UserServiceServer},
    server,
};

/// An instance that runs.
#[derive(Clone)]
struct Played {
    context: Context,
    base: String,
    asked: Arc<AtomicU32>,
    /// What it answers; without anything, nothing ever.
    answer: Option<Code>,
}

impl Played {
    async fn start(
        data: &tempfile::TempDir,
        broker: &Arc<dyn Broker>,
        answer: Option<Code>,
        env: Env,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let nobody = Arc::new(Instances(Mutex::default()));
        let context = Context::new("users", env, data.path(), broker.clone(), nobody);
        let played = Played { context: context.clone(), base, asked: Arc::default(), answer };
        let service = UserServiceServer::new(played.clone());
        context.clone().spawn(async move { server::serve(context, listener, service).await.unwrap() });
        played
    }

    async fn end(&self) {
        self.context.stop().cancel();
        self.context.finished().await;
    }
}

#[tonic::async_trait]
impl UserService for Played {
    async fn get_user(&self, request: tonic::Request<UserRequest>) -> Result<Response<UserResponse>, Status> {
        self.asked.fetch_add(1, SeqCst);
        let work = async {
            match self.answer {
                Some(Code::Ok) => Ok(Response::new(UserResponse::default())),
                Some(code) => Err(Status::new(code, "")),
                None => std::future::pending().await,
            }
        };
        server::call(&self.context, "UserService/GetUser", request.metadata(), work).await
    }
}

/// What a registry knows: instances that take turns, but for those that are lost.
struct Instances(Mutex<VecDeque<String>>);

impl Locate for Instances {
    fn locate(&self, service: &str) -> String {
        assert_eq!(service, NAME);
        let mut all = self.0.lock().unwrap();
        all.rotate_left(1);
        all.back().cloned().unwrap_or_default()
    }

    fn lost(&self, _: &str, base: &str) {
        self.0.lock().unwrap().retain(|it| it != base);
    }
}

struct World {
    played: Vec<Played>,
    instances: Arc<Instances>,
    users: GrpcUsers,
    _data: tempfile::TempDir,
}

impl World {
    async fn of(answers: &[Option<Code>], options: Options) -> Self {
        World::with(answers, options, Env::empty()).await
    }

    /// With instances that are set so.
    async fn with(answers: &[Option<Code>], options: Options, env: Env) -> Self {
        let data = tempfile::tempdir().unwrap();
        let broker = order_broker::open("memory:").await.unwrap();
        let mut played = Vec::new();
        for answer in answers {
            played.push(Played::start(&data, &broker, *answer, env.clone()).await);
        }
        let bases = played.iter().map(|it| it.base.clone()).collect();
        let instances = Arc::new(Instances(Mutex::new(bases)));
        let context = Context::new("orders", Env::empty(), data.path(), broker, instances.clone());
        let users = GrpcUsers::new(&context, options).unwrap();
        World { played, instances, users, _data: data }
    }

    async fn end(self) {
        for played in self.played {
            played.end().await;
        }
    }
}

#[tokio::test]
async fn instances_take_turns_and_one_that_has_ended_is_asked_no_more() {
    let world = World::of(&[Some(Code::Ok), Some(Code::Ok)], Options::default()).await;
    for _ in 0..10 {
        world.users.get("alice").await.unwrap();
    }
    let asked = || [0, 1].map(|at| world.played[at].asked.load(SeqCst));
    assert_eq!(asked(), [5, 5]);
    world.played[0].end().await;
    for _ in 0..10 {
        world.users.get("alice").await.unwrap();
    }
    assert_eq!(asked(), [5, 15]);
    assert_eq!(*world.instances.0.lock().unwrap(), [world.played[1].base.clone()], "the registry is told");
    world.end().await;
}

#[tokio::test]
async fn whether_the_service_is_well_its_instances_say_in_turns() {
    let world = World::of(&[Some(Code::Ok), Some(Code::Ok)], Options::default()).await;
    let twice = async || BTreeSet::from([world.users.alive().await, world.users.alive().await]);
    assert_eq!(twice().await, BTreeSet::from([Ok(())]));
    world.played[0].end().await;
    assert_eq!(twice().await, BTreeSet::from([Ok(()), Err("it does not answer".to_owned())]));
    assert_eq!(twice().await, BTreeSet::from([Ok(())]), "the other one is asked from now on");
    assert_eq!(world.played[1].asked.load(SeqCst), 0, "health is asked for, and no user");
    world.end().await;
}

#[tokio::test]
async fn who_is_told_to_end_says_so_and_still_answers_for_a_while() {
    let env = Env::empty().with(order_kit::env::SHUTDOWN_DELAY_MS, "2000");
    let world = World::with(&[Some(Code::Ok)], Options::default(), env).await;
    let address = world.played[0].base.trim_start_matches("http://").to_owned();
    world.users.alive().await.unwrap();
    world.played[0].context.stop().cancel();
    let began = std::time::Instant::now();
    while world.users.alive().await.is_ok() {
        assert!(began.elapsed() < Duration::from_secs(10), "it says nothing");
    }
    world.users.get("alice").await.unwrap();
    while tokio::net::TcpStream::connect(&address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(began.elapsed() < Duration::from_secs(10), "it does not end");
    }
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    world.end().await;
}

#[tokio::test]
async fn callers_in_a_hurry_say_nothing_about_the_service() {
    let world = World::of(&[None], Options::default()).await;
    for _ in 0..10 {
        let call = world.users.get("alice");
        let late = deadline::within(deadline::after(Duration::from_millis(60)), call).await.unwrap_err();
        assert!(matches!(late, UsersError::Late), "{late}");
        assert!(matches!(CallError::from(late), CallError::Late { sent: true }));
    }
    assert!(!world.users.is_open());
    assert_eq!(world.instances.0.lock().unwrap().len(), 1, "and nothing about the instance");
    assert!(world.played[0].asked.load(SeqCst) <= 10, "nothing is asked again");
    world.end().await;
}

#[tokio::test]
async fn a_service_that_gives_up_by_itself_has_failed() {
    let world = World::of(&[Some(Code::DeadlineExceeded)], Options::default()).await;
    for _ in 0..5 {
        let call = world.users.get("alice");
        let failed = deadline::within(deadline::after(Duration::from_secs(3)), call).await.unwrap_err();
        assert_eq!(failed.code(), Some(Code::DeadlineExceeded), "{failed}");
    }
    assert!(world.users.is_open());
    world.end().await;
}
