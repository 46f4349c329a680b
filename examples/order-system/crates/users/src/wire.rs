//! What the service says to others, and hears from them.

use order_kit::told::Told;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::NAME;

/// A user was made; the data is the user, [`Revised`].
pub const CREATED: &str = "user.created";
/// A user has another name or e-mail address; the data is the user as it is now, [`Revised`].
pub const UPDATED: &str = "user.updated";

/// What this service tells.
pub(crate) fn events() -> Told {
    Told::by(NAME).says::<Revised>(&[CREATED, UPDATED])
}

/// A user, in answers and in events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The id.
    pub id: String,
    /// The e-mail address, as it was given; no two users have the same, in whatever case.
    #[schema(example = "alice@example.com")]
    pub email: String,
    /// The name.
    #[schema(example = "Alice")]
    pub name: String,
    /// When the user was made, as RFC 3339.
    #[schema(format = DateTime)]
    pub created_at: String,
}

/// A user with the number of its last change, in events and in pages of all users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Revised {
    /// The user.
    #[serde(flatten)]
    pub user: User,
    /// Counts all changes of all users: of two states of a user the one with the greater number is the newer.
    pub revision: i64,
}

/// Who is to be made.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(expecting = "an object with `name` and `email`")]
pub struct NewUser {
    /// 2 to 100 characters, none of them a control character.
    #[schema(min_length = 2, max_length = 100, example = "Alice")]
    pub name: String,
    /// Holds an `@`; at most 254 bytes, no control character.
    #[schema(max_length = 254, example = "alice@example.com")]
    pub email: String,
}

/// What is to change; what is not named stays.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(expecting = "an object with `name`, `email` or both")]
pub struct UserChange {
    /// As when a user is made.
    #[schema(min_length = 2, max_length = 100)]
    pub name: Option<String>,
    /// As when a user is made.
    #[schema(max_length = 254)]
    pub email: Option<String>,
}
