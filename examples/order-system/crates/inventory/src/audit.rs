//! Whether the books are right: what came in is there or was sold, and what is held is held for somebody.

use order_kit::{ApiError, Db, Tx, context::Page, db::DbError};
use serde::{Deserialize, Serialize};

use crate::wire::StockItem;

/// What the audit says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    /// All products, with the first page only: their orders are read from end to end.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub whole: Option<Whole>,
    /// One page of orders, by their ids.
    pub orders: Vec<Order>,
    /// What to ask for the next page with; nothing after the last.
    pub next: Option<String>,
}

/// The books of all products.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    /// Whether all of `products` are.
    pub ok: bool,
    /// Every product.
    pub products: Vec<Product>,
}

/// The books of a product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Product {
    /// Which.
    pub product_id: String,
    /// On the shelf.
    pub on_hand: i64,
    /// Held, by the product's own number.
    pub reserved: i64,
    /// Ever put on the shelf, less what was taken off by hand.
    pub received: i64,
    /// Held, by the sum over orders.
    pub held: i64,
    /// Sold, by the sum over orders.
    pub decremented: i64,
    /// Whether `received` = `on_hand` + `decremented`, `reserved` = `held`, and 0 ≤ `reserved` ≤ `on_hand`.
    pub ok: bool,
}

/// What an order has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// Which.
    pub order_id: String,
    /// `held`, `committed`, `released` or `refused`.
    pub state: String,
    /// What it holds, held, or bought.
    pub items: Vec<StockItem>,
}

/// Looks at one state of the books: one page of orders, and with the first one all products.
///
/// # Errors
///
/// The database's.
pub async fn audit(db: Db, page: Page) -> Result<Audit, ApiError> {
    let audit = db.read(async move |tx| {
        let whole = if page.after.as_deref().unwrap_or_default().is_empty() {
            let products = products(tx).await?;
            Some(Whole { ok: products.iter().all(|product| product.ok), products })
        } else {
            None
        };
        let orders = orders(tx, &page).await?;
        let full = i64::try_from(orders.len()) == Ok(page.limit());
        let next = orders.last().filter(|_| full).map(|order| order.order_id.clone());
        Ok::<_, DbError>(Audit { whole, orders, next })
    });
    Ok(audit.await?)
}

async fn products(tx: &Tx<'_>) -> Result<Vec<Product>, DbError> {
    let rows = tx
        .query(
            "select p.product_id, p.on_hand, p.reserved, p.received,
                 cast(coalesce(sum(case when r.state = 'held' then l.quantity end), 0) as bigint),
                 cast(coalesce(sum(case when r.state = 'committed' then l.quantity end), 0) as bigint)
             from stock p
             left join reservation_line l on l.product_id = p.product_id
             left join reservation r on r.order_id = l.order_id
             group by p.product_id, p.on_hand, p.reserved, p.received
             order by p.product_id",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let (on_hand, reserved, received) = (row.int(1)?, row.int(2)?, row.int(3)?);
            let (held, decremented) = (row.int(4)?, row.int(5)?);
            let conserved = received == on_hand + decremented && reserved == held;
            Ok(Product {
                product_id: row.text(0)?,
                on_hand,
                reserved,
                received,
                held,
                decremented,
                ok: conserved && (0..=on_hand).contains(&reserved),
            })
        })
        .collect()
}

async fn orders(tx: &Tx<'_>, page: &Page) -> Result<Vec<Order>, DbError> {
    let after = page.after.clone().unwrap_or_default();
    let rows = tx
        .query(
            "select r.order_id, r.state, l.product_id, l.quantity
             from (select order_id, state from reservation where order_id > $1 order by order_id limit $2) r
             left join reservation_line l on l.order_id = r.order_id
             order by r.order_id, l.product_id",
            &[after.into(), page.limit().into()],
        )
        .await?;
    let mut orders: Vec<Order> = Vec::new();
    for row in rows {
        let (order_id, state) = (row.text(0)?, row.text(1)?);
        if orders.last().is_none_or(|last| last.order_id != order_id) {
            orders.push(Order { order_id, state, items: Vec::new() });
        }
        if let (Some(product_id), Some(quantity), Some(order)) =
            (row.maybe_text(2)?, row.maybe_int(3)?, orders.last_mut())
        {
            order.items.push(StockItem { product_id, quantity });
        }
    }
    Ok(orders)
}
