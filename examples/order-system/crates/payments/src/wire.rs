//! What payments say and hear, as it is written. These types are the service's own: whoever else uses a message has its own as well,
//! and the tests of the whole system hold the two together.

use order_kit::{Cents, told::Told};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::NAME;

/// The events that payments hear, in choreography.
pub mod heard {
    /// An order's items are held: it can be charged.
    pub const INVENTORY_RESERVED: &str = "inventory.reserved";
    /// An order is off: what it was charged is given back.
    pub const ORDER_CANCELLED: &str = "order.cancelled";
}

/// The events that payments tell, in either style.
pub mod told {
    /// An order was charged.
    pub const COMPLETED: &str = "payment.completed";
    /// The same, under its other name; follows [`COMPLETED`].
    pub const RECEIVED: &str = "payment.received";
    /// An order could not be charged, and won't be.
    pub const FAILED: &str = "payment.failed";
    /// An order's money was given back.
    pub const REFUNDED: &str = "payment.refunded";
}

/// What payments tell, with the data of each.
pub(crate) fn events() -> Told {
    Told::by(NAME)
        .says::<PaymentCompleted>(&[told::COMPLETED, told::RECEIVED])
        .says::<PaymentFailed>(&[told::FAILED])
        .says::<PaymentRefunded>(&[told::REFUNDED])
}

/// The published reason of an order whose card was declined; what a provider calls it is the provider's affair.
pub const DECLINED: &str = "card_declined";
/// What an action hears that comes after its compensation.
pub const ALREADY_COMPENSATED: &str = "already_compensated";

/// The body of a charge.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Charge {
    /// For which order.
    pub order_id: String,
    /// Whose card.
    pub user_id: String,
    /// How much, more than nothing.
    pub amount: Cents,
}

/// The data of `inventory.reserved`, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReservedOrder {
    /// The order.
    pub order_id: String,
    /// Whose it is.
    pub user_id: String,
    /// What it costs.
    pub total: Cents,
}

/// Which order: the body of a refund, and the data of `order.cancelled` as far as it matters here.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderToRefund {
    /// The order.
    pub order_id: String,
}

/// A charge that was made: the answer, and what is kept for the same key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Payment {
    /// Its own name.
    pub payment_id: String,
    /// For which order.
    pub order_id: String,
    /// How much.
    pub amount: Cents,
    /// Always `charged`.
    pub status: String,
}

/// A charge that was refused: the answer, and what is kept for the same key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Declined {
    /// `card_declined`.
    pub error: String,
    /// For which order.
    pub order_id: String,
    /// How much.
    pub amount: Cents,
}

/// That nothing is charged for an order any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refunded {
    /// Which order.
    pub order_id: String,
    /// How much was given back: nothing if there was nothing.
    pub refunded: Cents,
    /// Always `refunded`.
    pub status: String,
}

/// The data of `payment.completed` and `payment.received`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentCompleted {
    /// For which order.
    pub order_id: String,
    /// Whose card.
    pub user_id: String,
    /// The payment.
    pub payment_id: String,
    /// How much.
    pub amount: Cents,
}

/// The data of `payment.failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentFailed {
    /// For which order.
    pub order_id: String,
    /// Whose card.
    pub user_id: String,
    /// How much.
    pub amount: Cents,
    /// `card_declined`.
    pub reason: String,
}

/// The data of `payment.refunded`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRefunded {
    /// For which order.
    pub order_id: String,
    /// The payment.
    pub payment_id: String,
    /// How much.
    pub amount: Cents,
}

/// The ledger of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderPayments {
    /// Which.
    pub order_id: String,
    /// The sum of its charges.
    pub charged: Cents,
    /// The sum of its refunds.
    pub refunded: Cents,
    /// Each movement, in their order.
    pub entries: Vec<Entry>,
}

/// A movement of money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The payment that it is part of.
    pub payment_id: String,
    /// `charge` or `refund`.
    pub kind: String,
    /// More than nothing for a charge, less for a refund.
    pub amount: Cents,
    /// When.
    pub at: String,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum LookedUp {
    /// It was charged, and not refunded.
    Applied {
        /// The answer.
        payment: Payment,
    },
    /// It was refused for good.
    Rejected {
        /// The answer.
        answer: Declined,
    },
    /// It was refunded, or never will be charged.
    Compensated,
    /// Nothing is known; it may be about to be charged, or on its way.
    NotApplied,
}

/// How a user's card behaves, for those who try things out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Behaviour {
    /// It pays.
    Ok,
    /// It is declined.
    Decline,
    /// It pays, and the provider does not say so; asked again it does.
    Timeout,
}

/// A user's card: the body that sets its behaviour, and the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Card {
    /// How it behaves.
    pub behaviour: Behaviour,
}
