//! Whom a mail goes to: asked of the service that knows, and remembered for a minute.

use std::time::Duration;

use order_kit::events::Trouble;
use order_users_grpc::Users;

use crate::cache::Cache;

/// How long an address is taken to be right; an event of its change that comes here ends it earlier.
pub const RECIPIENT_TTL: Duration = Duration::from_secs(60);
/// How many are remembered.
pub const MOST_RECIPIENTS: usize = 10_000;

/// Whom a mail goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    pub name: String,
    pub email: String,
}

pub struct Recipients {
    users: Users,
    known: Cache<Recipient>,
}

impl Recipients {
    pub fn new(users: Users) -> Self {
        Recipients { users, known: Cache::new(RECIPIENT_TTL, MOST_RECIPIENTS) }
    }

    /// `None` if there is no such user. That is not remembered: the next event asks again.
    pub async fn find(&self, id: &str) -> Result<Option<Recipient>, Trouble> {
        if let Some(known) = self.known.get(id) {
            return Ok(Some(known));
        }
        let found = self.users.find(id).await;
        let found =
            found.map_err(|error| Trouble::Later(format!("the user cannot be looked up: {error}")))?;
        let Some(user) = found else { return Ok(None) };
        let found = Recipient { name: user.name, email: user.email };
        self.known.put(id, found.clone());
        Ok(Some(found))
    }

    /// The user has another name or address now.
    pub fn changed(&self, id: &str, recipient: Recipient) {
        self.known.put(id, recipient);
    }
}
