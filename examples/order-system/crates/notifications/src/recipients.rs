//! Whom a mail goes to: asked of the service that knows, and remembered for a minute.

use std::time::Duration;

use order_grpc::Users;
use order_kit::{Cache, events::Trouble};

/// How long an address is taken to be right; an event of its change that comes here replaces it earlier.
pub const RECIPIENT_TTL: Duration = Duration::from_secs(60);
/// How many are remembered.
pub const MOST_RECIPIENTS: u64 = 10_000;

/// Whom a mail goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    pub name: String,
    pub email: String,
}

/// A recipient who is remembered.
#[derive(Debug, Clone)]
struct Known {
    recipient: Recipient,
    /// Of the event that said so; 0 if users were asked, who do not say it.
    revision: i64,
}

pub struct Recipients {
    users: Users,
    known: Cache<Known>,
}

impl Recipients {
    pub fn new(users: Users) -> Self {
        Recipients { users, known: Cache::new(RECIPIENT_TTL, MOST_RECIPIENTS) }
    }

    /// `None` if there is no such user. That is not remembered: the next event asks again.
    pub async fn find(&self, id: &str) -> Result<Option<Recipient>, Trouble> {
        let asked = ask(self.users.clone(), id.to_owned());
        match self.known.get_or(id, asked).await.as_ref().map_err(|error| (**error).clone()) {
            Ok(known) => Ok(Some(known.recipient.clone())),
            Err(None) => Ok(None),
            Err(Some(trouble)) => Err(trouble),
        }
    }

    /// The user has another name or address by the change of that number. Of those that are heard the greatest holds, in whatever order they
    /// come. Who is not remembered is asked for when there is a mail, so that a late event makes nobody of old known again.
    pub async fn changed(&self, id: &str, recipient: Recipient, revision: i64) {
        let newer = |known: Known| (known.revision < revision).then_some(Known { recipient, revision });
        self.known.change(id, newer).await;
    }
}

/// The recipient; `Err(None)` if there is no such user.
async fn ask(users: Users, id: String) -> Result<Known, Option<Trouble>> {
    let later = |error| Some(Trouble::Later(format!("the user cannot be looked up: {error}")));
    let user = users.find(&id).await.map_err(later)?.ok_or(None)?;
    Ok(Known { recipient: Recipient { name: user.name, email: user.email }, revision: 0 })
}
