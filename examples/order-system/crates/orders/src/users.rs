//! Whoever orders: asked at the user service, and remembered for when that is away.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use http::StatusCode;
use mainstay::ConfigError;
use order_kit::{
    Cache, Context,
    client::{CallError, Client, Options},
};

use crate::wire::User;

/// How long a user who exists is believed to. Users are never deleted.
const BELIEVED: Duration = Duration::from_secs(10);
const MOST: u64 = 50_000;

/// The user service, whatever it speaks.
pub trait Users: Send + Sync {
    /// The user with that id, or `None` if the service knows none.
    fn find<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<User>, CallError>>;
}

/// Whether there is a user.
#[derive(Debug)]
pub(crate) enum Known {
    Yes,
    No,
    /// The service does not answer.
    Unknown(CallError),
}

/// The user service over HTTP.
#[derive(Debug)]
pub struct OverHttp(Client);

impl OverHttp {
    /// With the policies of calls to the user service: 20 at once.
    ///
    /// # Errors
    ///
    /// A policy that cannot be.
    pub fn new(context: &Context) -> Result<Self, ConfigError> {
        Client::new(context, "user", Options { concurrency: 20, queue: 1_000, ..Options::default() })
            .map(OverHttp)
    }
}

impl Users for OverHttp {
    fn find<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<User>, CallError>> {
        Box::pin(async move {
            let reply = self.0.get(&format!("/users/{id}")).await?;
            if reply.status == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            reply.success()?.json().map(Some)
        })
    }
}

/// The users that orders ask about.
#[derive(Clone)]
pub(crate) struct Directory {
    service: Arc<dyn Users>,
    believed: Arc<Cache<User>>,
}

impl Directory {
    pub(crate) fn new(service: Arc<dyn Users>) -> Self {
        Directory { service, believed: Arc::new(Cache::new(BELIEVED, MOST)) }
    }

    /// The user as the service knows it now.
    pub(crate) async fn find(&self, id: &str) -> Result<Option<User>, CallError> {
        let found = self.service.find(id).await?;
        if let Some(user) = &found {
            self.believed.put(id, user.clone()).await;
        }
        Ok(found)
    }

    /// The one of a moment ago.
    pub(crate) async fn recent(&self, id: &str) -> Option<User> {
        self.believed.get(id).await
    }

    /// Whether there is such a user.
    pub(crate) async fn validate(&self, id: &str) -> Known {
        let (service, user) = (self.service.clone(), id.to_owned());
        // That there is none is not remembered.
        let ask = async move { service.find(&user).await.map_err(Some)?.ok_or(None) };
        match self.believed.get_or(id, ask).await.as_ref().map_err(|error| (**error).clone()) {
            Ok(_) => Known::Yes,
            Err(None) => Known::No,
            Err(Some(error)) => {
                tracing::warn!(%error, "whether there is the user cannot be found out");
                Known::Unknown(error)
            }
        }
    }
}
