//! What this service says to others and hears from them. Nobody else's types are used: what others call things ends here.

use order_kit::{Cents, told::Told};
use serde::{Deserialize, Serialize};

use crate::{
    NAME,
    order::{Item, Status, Wanted},
};

/// An order was accepted.
pub const CREATED: &str = "order.created";
/// An order stands elsewhere than before, and neither is confirmed nor cancelled: it waits for the payment service.
pub const UPDATED: &str = "order.updated";
/// An order is paid for.
pub const CONFIRMED: &str = "order.confirmed";
/// Another name of [`CONFIRMED`], published after it.
pub const PAID: &str = "order.paid";
/// Nothing comes of an order.
pub const CANCELLED: &str = "order.cancelled";
/// An order is on its way; nobody says so yet.
pub const SHIPPED: &str = "order.shipped";

/// The stock was not there.
pub const RESERVATION_FAILED: &str = "inventory.reservation.failed";
/// An order's money has come.
pub const PAYMENT_COMPLETED: &str = "payment.completed";
/// An order's money will not come.
pub const PAYMENT_FAILED: &str = "payment.failed";
/// There is a new user.
pub const USER_CREATED: &str = "user.created";
/// A user has another name or address.
pub const USER_UPDATED: &str = "user.updated";

/// What this service tells.
pub(crate) fn events() -> Told {
    Told::by(NAME).says::<OrderEvent>(&[CREATED, UPDATED, CONFIRMED, PAID, CANCELLED])
}

/// The data of all events of an order: the whole order, as it was behind the change. `version` counts the changes of the order from 1,
/// so that whoever hears of them in another order, or twice, knows which is the newest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderEvent {
    /// Which order.
    pub order_id: String,
    /// Whose.
    pub user_id: String,
    /// Its lines.
    #[schema(min_items = 1)]
    pub items: Vec<Item>,
    /// What it costs.
    pub total: Cents,
    /// When this happened.
    #[schema(format = DateTime)]
    pub timestamp: String,
    /// Where it stands.
    pub status: Status,
    /// Why it was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Which change of the order this is.
    #[schema(minimum = 1)]
    pub version: i64,
    /// When it was accepted.
    #[schema(format = DateTime)]
    pub created_at: String,
}

/// What others' events say that this service needs of them: which order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AboutOrder {
    /// Which order.
    pub order_id: String,
    /// Why not, if something failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A user, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// Who.
    pub id: String,
    /// The name.
    pub name: String,
    /// The address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// A user, as events say.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Revised {
    /// The user.
    #[serde(flatten)]
    pub(crate) user: User,
    /// Counts all changes of users: a greater one is newer.
    pub(crate) revision: i64,
}

impl From<order_grpc::User> for User {
    fn from(user: order_grpc::User) -> Self {
        User { id: user.id, name: user.name, email: Some(user.email) }
    }
}

/// A product, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Product {
    pub(crate) price: Cents,
}

/// Asks the inventory to keep goods for an order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reserve<'a> {
    pub(crate) order_id: &'a str,
    pub(crate) items: &'a [Wanted],
}

/// Asks for something that needs nothing but the order's name: release, commit, refund.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Concerning<'a> {
    pub(crate) order_id: &'a str,
}

/// Asks for an order's money.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Charge<'a> {
    pub(crate) order_id: &'a str,
    pub(crate) user_id: &'a str,
    pub(crate) amount: Cents,
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Receipt {
    pub(crate) payment_id: String,
}
