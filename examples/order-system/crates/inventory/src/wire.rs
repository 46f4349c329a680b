//! What the inventory says and hears, as it is written. These types are its own: whoever else uses a message has its own as well, and
//! the tests of the whole system hold the two together.

use order_kit::{Cents, told::Told};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::NAME;

/// The events that the inventory hears, in choreography.
pub mod heard {
    /// An order wants its items.
    pub const ORDER_CREATED: &str = "order.created";
    /// An order is final: what it holds leaves the shelf.
    pub const ORDER_CONFIRMED: &str = "order.confirmed";
    /// An order is off: what it holds is free.
    pub const ORDER_CANCELLED: &str = "order.cancelled";
    /// An order is not paid: what it holds is free.
    pub const PAYMENT_FAILED: &str = "payment.failed";
}

/// The events that the inventory tells, in either style.
pub mod told {
    /// All items of an order are held.
    pub const RESERVED: &str = "inventory.reserved";
    /// None of an order's items is held, since one is not there.
    pub const RESERVATION_FAILED: &str = "inventory.reservation.failed";
    /// What an order held is free again.
    pub const RELEASED: &str = "inventory.released";
}

/// What the inventory tells, with the data of each.
pub(crate) fn events() -> Told {
    Told::by(NAME)
        .says::<ReservedEvent>(&[told::RESERVED])
        .says::<ReservationFailed>(&[told::RESERVATION_FAILED])
        .says::<ReleasedEvent>(&[told::RELEASED])
}

/// The reason when there is not enough of a product, or none such.
pub const OUT_OF_STOCK: &str = "out_of_stock";
/// What an action hears that comes after its compensation.
pub const ALREADY_COMPENSATED: &str = "already_compensated";

/// So many of a product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StockItem {
    /// The product.
    pub product_id: String,
    /// How many: in a line of a request no more than 10,000. What stands in several lines is told as one.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub quantity: i64,
}

/// What an order wants to have held. The data of `order.created`, as far as it matters here, and the body of a reservation.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// The order.
    pub order_id: String,
    /// Its items; a product that stands there twice is summed.
    #[schema(min_items = 1, max_items = 100)]
    pub items: Vec<StockItem>,
    /// Whose order it is; handed on to whoever charges.
    #[serde(default)]
    pub user_id: Option<String>,
    /// What it costs; handed on to whoever charges.
    #[serde(default)]
    pub total: Option<Cents>,
}

/// Which order. The data of `order.confirmed`, `order.cancelled` and `payment.failed`, as far as it matters here.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WhichOrder {
    /// The order.
    pub order_id: String,
}

/// A reservation that was made: the answer, and what is kept for the same key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reserved {
    /// The order.
    pub order_id: String,
    /// Always true.
    pub reserved: bool,
    /// What is held, each product once.
    pub items: Vec<StockItem>,
}

/// A reservation that was refused: the answer, and what is kept for the same key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutOfStock {
    /// `out_of_stock`.
    pub error: String,
    /// The order.
    pub order_id: String,
    /// The product of which there is not enough.
    pub product_id: String,
    /// How many were wanted.
    pub requested: i64,
    /// How many there were.
    pub available: i64,
}

/// That an order's items are free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Released {
    /// The order.
    pub order_id: String,
    /// Always true.
    pub released: bool,
}

/// That an order's items have left the shelf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Committed {
    /// The order.
    pub order_id: String,
    /// Always true.
    pub committed: bool,
}

/// The data of `inventory.reserved`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReservedEvent {
    /// The order.
    pub order_id: String,
    /// Whose it is, if the inventory was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// What is held.
    pub items: Vec<StockItem>,
    /// What it costs, if the inventory was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Cents>,
}

/// The data of `inventory.reservation.failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReservationFailed {
    /// The order.
    pub order_id: String,
    /// `out_of_stock`.
    pub reason: String,
    /// The product of which there is not enough.
    pub product_id: String,
}

/// The data of `inventory.released`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleasedEvent {
    /// The order.
    pub order_id: String,
    /// What is free again.
    pub items: Vec<StockItem>,
}

/// The body that sets a product's stock.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct SetStock {
    /// How many there are on the shelf, those that are held included.
    #[schema(minimum = 0, maximum = 1_000_000_000)]
    pub quantity: i64,
}

/// What there is of a product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Level {
    /// The product.
    pub product_id: String,
    /// On the shelf.
    pub on_hand: i64,
    /// Of those, held for orders.
    pub reserved: i64,
    /// Of those, free.
    pub available: i64,
}

/// What became of an order's reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reservation {
    /// The order.
    pub order_id: String,
    /// `held`, `committed`, `released` or `refused`.
    pub state: String,
    /// What it holds or has held.
    pub items: Vec<StockItem>,
    /// When it was made.
    pub created_at: String,
}
