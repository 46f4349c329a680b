//! Whoever orders: asked at the user service, and remembered for when that is away.

use std::{sync::Arc, time::Duration};

use order_grpc::Users;
use order_kit::{
    BoxError, Cache, Context,
    client::{CallError, Options},
    health::Check,
};

use crate::wire::User;

/// How long a user who exists is believed to. Users are never deleted.
const BELIEVED: Duration = Duration::from_secs(10);
const MOST: u64 = 50_000;

/// Whether there is a user.
#[derive(Debug)]
pub(crate) enum Known {
    Yes,
    No,
    /// The service does not answer.
    Unknown(CallError),
}

/// The users that orders ask about.
#[derive(Clone)]
pub(crate) struct Directory {
    service: Users,
    believed: Arc<Cache<User>>,
}

impl Directory {
    /// With the policies of calls to the user service, 20 at once, by whichever transport the settings name.
    pub(crate) fn new(context: &Context) -> Result<Self, BoxError> {
        let options = Options { concurrency: 20, queue: 1_000, ..Options::default() };
        let service = Users::new(context, options)?;
        Ok(Directory { service, believed: Arc::new(Cache::new(BELIEVED, MOST)) })
    }

    /// Without the service orders are accepted, and their users validated later.
    pub(crate) fn check(&self) -> Check {
        self.service.check()
    }

    /// The user as the service knows it now.
    pub(crate) async fn find(&self, id: &str) -> Result<Option<User>, CallError> {
        let found = self.service.find(id).await?.map(User::from);
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
        let ask = async move { service.find(&user).await.map_err(Some)?.map(User::from).ok_or(None) };
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
