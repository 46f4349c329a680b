//! What is understood of other services' events and answers: no more than is needed here.

use order_kit::{Cents, events::Trouble};
use serde::Deserialize;

pub const ORDER_CREATED: &str = "order.created";
pub const ORDER_CONFIRMED: &str = "order.confirmed";
pub const ORDER_CANCELLED: &str = "order.cancelled";
pub const USER_UPDATED: &str = "user.updated";

/// Of all events of orders.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    pub order_id: String,
    pub user_id: String,
    /// Not every event repeats it.
    #[serde(default)]
    total: Option<Cents>,
    /// Why it was cancelled.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Order {
    /// What it is worth.
    ///
    /// # Errors
    ///
    /// That the event does not say it.
    pub fn total(&self) -> Result<Cents, Trouble> {
        self.total.ok_or_else(|| Trouble::Poison("an order without a total".to_owned()))
    }
}

/// A user, as the events say it.
#[derive(Debug, Clone, Deserialize)]
pub struct User {
    pub id: String,
    pub name: String,
    pub email: String,
    /// Counts all changes of users: a greater one is newer.
    pub revision: i64,
}
