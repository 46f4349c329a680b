//! Whoever orders: asked at the user service, and remembered for when that is away.

use std::{sync::Arc, time::Duration};

use order_kit::{
    BoxError, Context,
    client::{CallError, Options},
};
use order_users_grpc::Users;

use crate::{cache::Cache, wire::User};

/// How long a user who exists is believed to. Users are never deleted.
const BELIEVED: Duration = Duration::from_secs(10);
const MOST: usize = 50_000;

/// Whether there is a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Yes,
    No,
    /// The service does not answer.
    Unknown,
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

    /// The user as the service knows it now.
    pub(crate) async fn find(&self, id: &str) -> Result<Option<User>, CallError> {
        let found = self.service.find(id).await?.map(User::from);
        if let Some(user) = &found {
            self.believed.put(id, user.clone());
        }
        Ok(found)
    }

    /// The one of a moment ago.
    pub(crate) fn recent(&self, id: &str) -> Option<User> {
        self.believed.get(id)
    }

    /// Whether there is such a user.
    pub(crate) async fn validate(&self, id: &str) -> Known {
        if self.recent(id).is_some() {
            return Known::Yes;
        }
        match self.find(id).await {
            Ok(Some(_)) => Known::Yes,
            Ok(None) => Known::No,
            Err(error) => {
                tracing::warn!(%error, "whether there is the user cannot be found out");
                Known::Unknown
            }
        }
    }
}
