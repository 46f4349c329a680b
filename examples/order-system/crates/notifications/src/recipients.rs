//! Whom a mail goes to: asked of the service that knows, and remembered for a minute.

use std::time::Duration;

use order_grpc::Users;
use order_kit::{Cache, events::Trouble};

/// How long an address is taken to be right; an event of its change that comes here ends it earlier.
pub const RECIPIENT_TTL: Duration = Duration::from_secs(60);
/// How many are remembered.
pub const MOST_RECIPIENTS: u64 = 10_000;

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
        let asked = ask(self.users.clone(), id.to_owned());
        match self.known.get_or(id, asked).await.as_ref().map_err(|error| (**error).clone()) {
            Ok(recipient) => Ok(Some(recipient.clone())),
            Err(None) => Ok(None),
            Err(Some(trouble)) => Err(trouble),
        }
    }

    /// The user has another name or address now.
    pub async fn changed(&self, id: &str, recipient: Recipient) {
        self.known.put(id, recipient).await;
    }
}

/// The recipient; `Err(None)` if there is no such user.
async fn ask(users: Users, id: String) -> Result<Recipient, Option<Trouble>> {
    let later = |error| Some(Trouble::Later(format!("the user cannot be looked up: {error}")));
    let user = users.find(&id).await.map_err(later)?.ok_or(None)?;
    Ok(Recipient { name: user.name, email: user.email })
}
