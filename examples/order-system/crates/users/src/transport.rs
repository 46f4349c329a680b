//! What gRPC costs beside REST: the same service, the same user, the same policies, on this machine.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use order_grpc::GrpcUsers;
use order_kit::{
    ApiError, BoxError, Context,
    client::{Client, Options},
    context::Ports,
    env::{self, Env},
    server::{Access, router, serve},
};
use tokio::net::TcpListener;

use crate::{NAME, build, repository::Users, serve_grpc, wire::NewUser};

/// How many calls are in flight at once where they are.
pub const AT_ONCE: usize = 16;

/// What was measured of one transport.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// Calls one after another: the half of them was faster.
    pub median: Duration,
    /// Calls one after another: one of a hundred was slower.
    pub p99: Duration,
    /// Calls in a second, one after another.
    pub alone: f64,
    /// Calls in a second, [`AT_ONCE`] in flight.
    pub together: f64,
}

/// Both transports.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    /// How many calls each figure comes from.
    pub calls: usize,
    /// `GET /users/{id}`.
    pub rest: Measured,
    /// `UserService.GetUser`.
    pub grpc: Measured,
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} calls each        median       p99   calls/s   calls/s, {AT_ONCE} at once",
            self.calls
        )?;
        for (name, it) in [("REST", self.rest), ("gRPC", self.grpc)] {
            writeln!(
                f,
                "{name:<18} {:>8} µs {:>6} µs {:>9.0} {:>9.0}",
                it.median.as_micros(),
                it.p99.as_micros(),
                it.alone,
                it.together
            )?;
        }
        let ratio = self.grpc.together / self.rest.together;
        write!(
            f,
            "gRPC serves {:.2} times the calls of REST one after another, {ratio:.2} times with {AT_ONCE} at once",
            self.grpc.alone / self.rest.alone
        )
    }
}

/// Starts the service on two ports of this machine, asks for one user `calls` times over each transport, and ends it. Each call goes through
/// the client that the system itself uses, and each reads the database.
///
/// # Errors
///
/// A service that did not start, or a call that failed.
pub async fn compare(calls: usize) -> Result<Comparison, BoxError> {
    let calls = calls.max(AT_ONCE);
    let data = tempfile::tempdir()?;
    let (rest, grpc) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    let env = Env::empty()
        .with(env::USER_SERVICE_URL, format!("http://{}", rest.local_addr()?))
        .with(env::USER_GRPC_URL, format!("http://{}", grpc.local_addr()?));
    let broker = order_broker::open("memory:").await?;
    let context = Context::new(NAME, env, data.path(), broker, Arc::new(Ports(3000)));
    let routes = router(&context, build(context.clone()).await?, Access::Services);
    context.spawn(serve(context.clone(), routes, rest));
    let served = context.clone();
    context.spawn(async move {
        if let Err(error) = serve_grpc(served, grpc).await {
            tracing::error!(%error, "users are no longer served over gRPC");
        }
    });
    let measured = both(&context, calls).await;
    context.stop().cancel();
    context.finished().await;
    measured
}

async fn both(context: &Context, calls: usize) -> Result<Comparison, BoxError> {
    let alice = NewUser { name: "Alice".to_owned(), email: "alice@example.com".to_owned() };
    let id = Users::of(context).await?.create(alice).await?.id;
    let rest = Client::new(context, "user", Options::default())?;
    let grpc = GrpcUsers::new(context, Options::default())?;
    let path = format!("/users/{id}");
    let over_rest = async || -> Result<(), BoxError> {
        rest.get(&path).await?.success()?.json::<order_grpc::User>()?;
        Ok(())
    };
    let over_grpc = async || -> Result<(), BoxError> {
        let found = grpc.get(&id).await?;
        found.map(drop).ok_or_else(|| ApiError::not_found("User not found").into())
    };
    // Connections are made, and what can be warm is, before anything is measured.
    measure(calls.min(200), &over_rest).await?;
    measure(calls.min(200), &over_grpc).await?;
    Ok(Comparison { calls, rest: measure(calls, &over_rest).await?, grpc: measure(calls, &over_grpc).await? })
}

async fn measure(calls: usize, call: &impl AsyncFn() -> Result<(), BoxError>) -> Result<Measured, BoxError> {
    let mut took = Vec::with_capacity(calls);
    let began = Instant::now();
    for _ in 0..calls {
        let one = Instant::now();
        call().await?;
        took.push(one.elapsed());
    }
    let alone = calls as f64 / began.elapsed().as_secs_f64();
    took.sort_unstable();
    let began = Instant::now();
    let each = calls.div_ceil(AT_ONCE);
    try_join_all((0..AT_ONCE).map(async |_| {
        for _ in 0..each {
            call().await?;
        }
        Ok::<_, BoxError>(())
    }))
    .await?;
    let together = (each * AT_ONCE) as f64 / began.elapsed().as_secs_f64();
    let at = |share: usize| took.get(took.len() * share / 100).or(took.last()).copied().unwrap_or_default();
    Ok(Measured { median: at(50), p99: at(99), alone, together })
}
