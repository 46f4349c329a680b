//! What an order is: its lines, its total, where it stands, and what is no order.

use std::{collections::BTreeMap, fmt, str::FromStr};

use order_kit::Cents;
use serde::{Deserialize, Serialize};

/// The most lines of one order.
pub(crate) const MOST_ITEMS: usize = 100;
/// The most pieces of one product, in however many lines: the inventory keeps no more for an order.
pub(crate) const MOST_PIECES: i64 = 10_000;
/// The most that an order may cost, ten thousand million: the payment service charges no more.
const MOST_TOTAL: Cents = Cents(1_000_000_000_000);
/// The longest id of a user or a product, in bytes.
const LONGEST_ID: usize = 100;

/// What somebody wants: no price is known yet.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewOrder {
    /// Who orders.
    pub user_id: String,
    /// What, from 1 to 100 lines.
    pub items: Vec<Wanted>,
}

/// One line of what somebody wants.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// Which product.
    pub product_id: String,
    /// How many pieces, from 1 to 10,000; of a product in several lines, all of them together.
    #[schema(minimum = 1, maximum = 10_000)]
    pub quantity: i64,
}

/// One line of an order.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// Which product.
    pub product_id: String,
    /// How many pieces.
    pub quantity: i64,
    /// Of one piece, when it was ordered.
    pub price: Cents,
}

/// Where an order stands. The last two are for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is accepted, and nothing is decided.
    Pending,
    /// As pending; it waits for the payment service, which does not answer or is left alone for now.
    WaitingPayment,
    /// It is paid for, and its goods are the customer's.
    Confirmed,
    /// Nothing comes of it; the reason says why.
    Cancelled,
}

impl Status {
    /// As it is stored and told.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::WaitingPayment => "waiting_payment",
            Status::Confirmed => "confirmed",
            Status::Cancelled => "cancelled",
        }
    }

    /// Whether nothing can happen to the order any more.
    pub fn is_final(self) -> bool {
        matches!(self, Status::Confirmed | Status::Cancelled)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that is no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no status of an order")]
pub struct NoStatus(String);

impl FromStr for Status {
    type Err = NoStatus;

    fn from_str(text: &str) -> Result<Self, NoStatus> {
        [Status::Pending, Status::WaitingPayment, Status::Confirmed, Status::Cancelled]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| NoStatus(text.to_owned()))
    }
}

/// Why something is no order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoOrder {
    /// The id of the user can't be one.
    #[error("Invalid userId")]
    User,
    /// The id of a product can't be one.
    #[error("Invalid productId")]
    Product,
    /// There are no lines.
    #[error("An order needs items")]
    Empty,
    /// There are too many.
    #[error("An order has at most {MOST_ITEMS} items")]
    TooMany,
    /// A line is of no pieces, or there are too many of a product.
    #[error("Invalid quantity: 1 to {MOST_PIECES} are possible")]
    Quantity,
    /// The total is more than can be charged.
    #[error("The total is too large")]
    Total,
    /// There is nothing to pay.
    #[error("An order costs something")]
    Free,
}

impl NewOrder {
    /// Whether it can be an order, whoever and whatever it names.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), NoOrder> {
        if !is_id(&self.user_id) {
            return Err(NoOrder::User);
        }
        if self.items.is_empty() {
            return Err(NoOrder::Empty);
        }
        if self.items.len() > MOST_ITEMS {
            return Err(NoOrder::TooMany);
        }
        // What is accepted has to be possible: the inventory is asked for the lines of a product as one.
        let mut pieces: BTreeMap<&str, i64> = BTreeMap::new();
        for item in &self.items {
            if !is_id(&item.product_id) {
                return Err(NoOrder::Product);
            }
            let left = MOST_PIECES - pieces.get(item.product_id.as_str()).copied().unwrap_or_default();
            if !(1..=left).contains(&item.quantity) {
                return Err(NoOrder::Quantity);
            }
            *pieces.entry(&item.product_id).or_default() += item.quantity;
        }
        Ok(())
    }

    /// Whether it wants what these lines are.
    pub(crate) fn wants(&self, user_id: &str, items: &[Item]) -> bool {
        let same = |(wanted, item): (&Wanted, &Item)| {
            wanted.product_id == item.product_id && wanted.quantity == item.quantity
        };
        self.user_id == user_id && self.items.len() == items.len() && self.items.iter().zip(items).all(same)
    }
}

/// Ids go into addresses: nothing in them has a meaning there.
fn is_id(text: &str) -> bool {
    (1..=LONGEST_ID).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// What the lines cost together.
///
/// # Errors
///
/// [`NoOrder::Total`] or [`NoOrder::Free`] if that cannot be charged.
pub fn total(items: &[Item]) -> Result<Cents, NoOrder> {
    let add = |sum: Cents, item: &Item| sum.plus(item.price.times(item.quantity)?);
    match items.iter().try_fold(Cents(0), add) {
        Some(Cents(0)) => Err(NoOrder::Free),
        Some(total) if total <= MOST_TOTAL => Ok(total),
        _ => Err(NoOrder::Total),
    }
}

/// How many pieces of each product, with the products that stand in several lines once.
pub(crate) fn pieces(items: &[Item]) -> Vec<Wanted> {
    let mut pieces: BTreeMap<&str, i64> = BTreeMap::new();
    for item in items {
        *pieces.entry(&item.product_id).or_default() += item.quantity;
    }
    let wanted = |(product, quantity): (&str, i64)| Wanted { product_id: product.to_owned(), quantity };
    pieces.into_iter().map(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(quantity: i64, price: i64) -> Item {
        Item { product_id: "p".to_owned(), quantity, price: Cents(price) }
    }

    #[test]
    fn three_lines_of_ten_cents_are_thirty() {
        assert_eq!(total(&[line(1, 10), line(1, 10), line(1, 10)]).unwrap().to_string(), "0.30");
    }

    #[test]
    fn a_total_that_cannot_be_charged_is_refused_and_not_wrapped() {
        assert_eq!(total(&[line(10_000, i64::MAX / 100)]), Err(NoOrder::Total));
        assert_eq!(total(&[line(1, i64::MAX), line(1, 1)]), Err(NoOrder::Total));
        assert_eq!(total(&[line(1, 1_000_000_000_000)]), Ok(Cents(1_000_000_000_000)));
        assert_eq!(total(&[line(1, 1_000_000_000_000), line(1, 1)]), Err(NoOrder::Total));
        assert_eq!(total(&[line(7, 0)]), Err(NoOrder::Free));
        assert_eq!(total(&[line(1, 0), line(1, 1)]), Ok(Cents(1)));
    }

    #[test]
    fn an_unknown_status_is_none() {
        for status in ["pending", "waiting_payment", "confirmed", "cancelled"] {
            assert_eq!(status.parse::<Status>().unwrap().as_str(), status);
        }
        for text in ["", "Pending", "shipped", "confirmed "] {
            assert!(text.parse::<Status>().is_err(), "{text}");
            assert!(serde_json::from_value::<Status>(text.into()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_order_is_refused() {
        let new = |user: &str, lines: &[(&str, i64)]| NewOrder {
            user_id: user.to_owned(),
            items: lines
                .iter()
                .map(|(product, quantity)| Wanted { product_id: (*product).to_owned(), quantity: *quantity })
                .collect(),
        };
        assert_eq!(new("u", &[("p", 1), ("q", 10_000)]).check(), Ok(()));
        assert_eq!(new("u", &[("p", 1); 100]).check(), Ok(()));
        assert_eq!(new("u", &[("p", 1); 101]).check(), Err(NoOrder::TooMany));
        assert_eq!(new("u", &[]).check(), Err(NoOrder::Empty));
        for quantity in [0, -1, 10_001, i64::MIN, i64::MAX] {
            assert_eq!(new("u", &[("p", quantity)]).check(), Err(NoOrder::Quantity), "{quantity}");
        }
        assert_eq!(new("u", &[("p", 6_000), ("q", 6_000), ("p", 4_000)]).check(), Ok(()));
        assert_eq!(new("u", &[("p", 6_000), ("q", 1), ("p", 4_001)]).check(), Err(NoOrder::Quantity));
        for id in ["", "a/b", "a?b", "..%2f", "ä", &"x".repeat(101)] {
            assert_eq!(new(id, &[("p", 1)]).check(), Err(NoOrder::User), "{id}");
            assert_eq!(new("u", &[(id, 1)]).check(), Err(NoOrder::Product), "{id}");
        }
    }

    #[test]
    fn a_product_in_two_lines_is_reserved_once() {
        let pieces = pieces(&[line(2, 10), line(3, 10)]);
        assert_eq!(pieces, [Wanted { product_id: "p".to_owned(), quantity: 5 }]);
    }
}
