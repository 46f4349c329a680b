//! Where stock moves.
//!
//! All of an order's items are held, or none. A product's row is changed by one statement that says under which condition, so that two
//! orders can't both have the last piece; rows are taken in the order of product ids, so that no two orders wait for each other.

use std::collections::BTreeMap;

use mainstay::saga::{
    Direction, Key, SagaId,
    barrier::{Action, Compensation},
};
use order_kit::{ApiError, Tx, db::DbError, events};
use serde::Serialize;

use crate::{
    NAME,
    wire::{
        ALREADY_COMPENSATED, Committed, Level, OUT_OF_STOCK, OutOfStock, Released, ReleasedEvent,
        Reservation, ReservationFailed, Reserved, ReservedEvent, StockItem, Wanted, told,
    },
};

/// The tables. `received` is what was ever put on the shelf, less what was taken from it by hand; nothing but the audit reads it.
pub const MIGRATIONS: &[&str] = &["
    create table stock (
        product_id text primary key,
        on_hand bigint not null check (on_hand >= 0),
        reserved bigint not null check (reserved >= 0),
        received bigint not null,
        check (reserved <= on_hand)
    );
    create table reservation (
        order_id text primary key,
        state text not null check (state in ('held', 'committed', 'released', 'refused')),
        at bigint not null
    );
    create table reservation_line (
        order_id text not null,
        product_id text not null,
        quantity bigint not null check (quantity > 0),
        primary key (order_id, product_id)
    );
    create index reservation_line_product on reservation_line (product_id);
"];

/// The most of one product in one line of an order.
pub const MAX_QUANTITY: i64 = 10_000;
/// The most lines of an order.
pub const MAX_ITEMS: usize = 100;
/// The most of one product on the shelf.
pub const MAX_ON_HAND: i64 = 1_000_000_000;

/// A step of an order, and the same in both styles: what was done for a saga is not done again for an event.
///
/// # Errors
///
/// That the order's id cannot be part of a key.
pub fn key(order_id: &str, step: &str, direction: Direction) -> Result<Key, ApiError> {
    let bad = |error: &dyn std::fmt::Display| ApiError::bad_request(error.to_string());
    let saga = SagaId::new(order_id).map_err(|error| bad(&error))?;
    Key::new(&saga, step, direction).map_err(|error| bad(&error))
}

/// The step that holds.
pub const RESERVE: &str = "reserve-stock";
/// The step that decrements.
pub const COMMIT: &str = "commit-stock";
/// What a commit hears for which nothing is held (yet).
pub const NOT_RESERVED: &str = "not_reserved";

/// What is wanted, checked: each product once, in their order.
#[derive(Debug, Clone)]
pub struct Demand {
    wanted: Wanted,
    lines: BTreeMap<String, i64>,
}

impl Demand {
    /// Checks the order and its items.
    ///
    /// # Errors
    ///
    /// 400 for what cannot be held.
    pub fn new(wanted: Wanted) -> Result<Self, ApiError> {
        check_id("orderId", &wanted.order_id)?;
        if wanted.items.is_empty() || wanted.items.len() > MAX_ITEMS {
            return Err(ApiError::bad_request(format!("An order has 1 to {MAX_ITEMS} items")));
        }
        let mut lines = BTreeMap::new();
        for item in &wanted.items {
            check_id("productId", &item.product_id)?;
            if !(1..=MAX_QUANTITY).contains(&item.quantity) {
                return Err(ApiError::bad_request(format!("A quantity is 1 to {MAX_QUANTITY}")));
            }
            *lines.entry(item.product_id.clone()).or_insert(0) += item.quantity;
        }
        Ok(Demand { wanted, lines })
    }

    /// The order.
    pub fn order_id(&self) -> &str {
        &self.wanted.order_id
    }

    fn items(&self) -> Vec<StockItem> {
        let item = |(product, quantity): (&String, &i64)| StockItem {
            product_id: product.clone(),
            quantity: *quantity,
        };
        self.lines.iter().map(item).collect()
    }
}

/// Refuses an id that is empty, longer than 200 bytes, or has control characters.
///
/// # Errors
///
/// 400.
pub fn check_id(name: &str, id: &str) -> Result<(), ApiError> {
    if id.is_empty() || id.len() > 200 || id.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!("{name} has 1 to 200 bytes and no control characters")));
    }
    Ok(())
}

/// Holds an order's items, all or none, once for its key.
///
/// # Errors
///
/// 409 if the order was reserved under another key, 422 if the key was used for something else; the database's.
pub async fn reserve(
    tx: &Tx<'_>,
    key: &Key,
    demand: &Demand,
) -> Result<Action<Result<Reserved, OutOfStock>>, ApiError> {
    let order = &demand.wanted.order_id;
    let done = tx.once(key, async |tx| hold(tx, demand).await).await?;
    if let Action::Repeated(before) = &done {
        let same = match before {
            Ok(reserved) => reserved.order_id == *order && reserved.items == demand.items(),
            Err(refused) => refused.order_id == *order,
        };
        if !same {
            return Err(ApiError::unprocessable("This key was used for something else"));
        }
    }
    Ok(done)
}

async fn hold(tx: &Tx<'_>, demand: &Demand) -> Result<Result<Reserved, OutOfStock>, ApiError> {
    let order = &demand.wanted.order_id;
    let new = tx
        .execute(
            "insert into reservation (order_id, state, at) values ($1, 'held', $2)
             on conflict (order_id) do nothing",
            &[order.into(), order_kit::now_ms().into()],
        )
        .await?;
    if new == 0 {
        return Err(ApiError::conflict("already_reserved"));
    }
    let mut taken = Vec::new();
    for (product, &quantity) in &demand.lines {
        let took = tx
            .execute(
                "update stock set reserved = reserved + $2 where product_id = $1 and on_hand - reserved >= $2",
                &[product.into(), quantity.into()],
            )
            .await?;
        if took == 0 {
            for (product, quantity) in taken {
                give_back(tx, product, quantity).await?;
            }
            return refuse(tx, demand, product, quantity).await.map(Err);
        }
        taken.push((product, quantity));
    }
    for (product, &quantity) in &demand.lines {
        tx.execute(
            "insert into reservation_line (order_id, product_id, quantity) values ($1, $2, $3)",
            &[order.into(), product.into(), quantity.into()],
        )
        .await?;
    }
    let event = ReservedEvent {
        order_id: order.clone(),
        user_id: demand.wanted.user_id.clone(),
        items: demand.items(),
        total: demand.wanted.total,
    };
    tell(tx, told::RESERVED, order, &event).await?;
    Ok(Ok(Reserved { order_id: order.clone(), reserved: true, items: demand.items() }))
}

async fn refuse(tx: &Tx<'_>, demand: &Demand, product: &str, requested: i64) -> Result<OutOfStock, ApiError> {
    let order = &demand.wanted.order_id;
    tx.execute("update reservation set state = 'refused' where order_id = $1", &[order.into()]).await?;
    let available = level(tx, product).await?.map_or(0, |level| level.available);
    let event = ReservationFailed {
        order_id: order.clone(),
        reason: OUT_OF_STOCK.to_owned(),
        product_id: product.to_owned(),
    };
    tell(tx, told::RESERVATION_FAILED, order, &event).await?;
    Ok(OutOfStock {
        error: OUT_OF_STOCK.to_owned(),
        order_id: order.clone(),
        product_id: product.to_owned(),
        requested,
        available,
    })
}

async fn give_back(tx: &Tx<'_>, product: &str, quantity: i64) -> Result<(), DbError> {
    let sql = "update stock set reserved = reserved - $2 where product_id = $1";
    tx.execute(sql, &[product.into(), quantity.into()]).await.map(drop)
}

/// Frees what the order holds, once for its key; and if it holds nothing yet, it never will.
///
/// # Errors
///
/// 409 if the order's items have left the shelf, 422 if the key is of another order; the database's.
pub async fn release(tx: &Tx<'_>, key: &Key, order: &str) -> Result<(Compensation, Released), ApiError> {
    let free = async |tx: &Tx<'_>, reserved: Reserved| {
        if reserved.order_id != order {
            return Err(ApiError::unprocessable("This key was used for another order"));
        }
        let sql = "update reservation set state = 'released' where order_id = $1 and state = 'held'";
        if tx.execute(sql, &[order.into()]).await? == 0 {
            return Err(ApiError::conflict("already_committed"));
        }
        for item in &reserved.items {
            give_back(tx, &item.product_id, item.quantity).await?;
        }
        let event = ReleasedEvent { order_id: reserved.order_id, items: reserved.items };
        tell(tx, told::RELEASED, order, &event).await
    };
    let done = tx.undo_once(key, free).await?;
    Ok((done, Released { order_id: order.to_owned(), released: true }))
}

/// Turns what an order holds into a decrement, once for its key. The rejection is for good: what was released cannot be sold.
///
/// # Errors
///
/// 409 `not_reserved` if there is nothing to commit (yet), which is not kept; 422 if the key was used for another order; the database's.
pub async fn commit(
    tx: &Tx<'_>,
    key: &Key,
    order: &str,
) -> Result<Action<Result<Committed, String>>, ApiError> {
    let done = tx.once(key, async |tx| take_away(tx, order).await).await?;
    if let Action::Repeated(Ok(committed)) = &done
        && committed.order_id != order
    {
        return Err(ApiError::unprocessable("This key was used for another order"));
    }
    Ok(done)
}

async fn take_away(tx: &Tx<'_>, order: &str) -> Result<Result<Committed, String>, ApiError> {
    let done = Committed { order_id: order.to_owned(), committed: true };
    let sql = "update reservation set state = 'committed' where order_id = $1 and state = 'held'";
    if tx.execute(sql, &[order.into()]).await? == 0 {
        return match state(tx, order).await?.as_deref() {
            // Under another key: it is done all the same, and once.
            Some("committed") => Ok(Ok(done)),
            Some("released") => Ok(Err(ALREADY_COMPENSATED.to_owned())),
            _ => Err(ApiError::conflict(NOT_RESERVED)),
        };
    }
    for item in lines(tx, order).await? {
        tx.execute(
            "update stock set on_hand = on_hand - $2, reserved = reserved - $2 where product_id = $1",
            &[item.product_id.into(), item.quantity.into()],
        )
        .await?;
    }
    Ok(Ok(done))
}

/// Sets what is on the shelf; what is held stays held.
///
/// # Errors
///
/// 400 for a number that cannot be, 409 if more than that is held; the database's.
pub async fn set(tx: &Tx<'_>, product: &str, quantity: i64) -> Result<Level, ApiError> {
    check_id("productId", product)?;
    if !(0..=MAX_ON_HAND).contains(&quantity) {
        return Err(ApiError::bad_request(format!("A stock is 0 to {MAX_ON_HAND}")));
    }
    let set = tx
        .execute(
            "insert into stock (product_id, on_hand, reserved, received) values ($1, $2, 0, $2)
             on conflict (product_id) do update
             set on_hand = excluded.on_hand, received = stock.received + excluded.on_hand - stock.on_hand
             where stock.reserved <= excluded.on_hand",
            &[product.into(), quantity.into()],
        )
        .await?;
    if set == 0 {
        return Err(ApiError::conflict("More than that is held for orders"));
    }
    level(tx, product).await?.ok_or_else(|| ApiError::internal("a product that was set is not there"))
}

/// What there is of a product.
///
/// # Errors
///
/// The database's.
pub async fn level(tx: &Tx<'_>, product: &str) -> Result<Option<Level>, DbError> {
    let sql = "select on_hand, reserved from stock where product_id = $1";
    let Some(row) = tx.first(sql, &[product.into()]).await? else { return Ok(None) };
    let (on_hand, reserved) = (row.int(0)?, row.int(1)?);
    Ok(Some(Level { product_id: product.to_owned(), on_hand, reserved, available: on_hand - reserved }))
}

/// What became of an order's reservation.
///
/// # Errors
///
/// The database's.
pub async fn reservation(tx: &Tx<'_>, order: &str) -> Result<Option<Reservation>, DbError> {
    let sql = "select state, at from reservation where order_id = $1";
    let Some(row) = tx.first(sql, &[order.into()]).await? else { return Ok(None) };
    Ok(Some(Reservation {
        order_id: order.to_owned(),
        state: row.text(0)?,
        items: lines(tx, order).await?,
        created_at: order_kit::iso(row.int(1)?),
    }))
}

async fn state(tx: &Tx<'_>, order: &str) -> Result<Option<String>, DbError> {
    let row = tx.first("select state from reservation where order_id = $1", &[order.into()]).await?;
    row.map(|row| row.text(0)).transpose()
}

/// In the order in which rows of products are taken.
async fn lines(tx: &Tx<'_>, order: &str) -> Result<Vec<StockItem>, DbError> {
    let sql = "select product_id, quantity from reservation_line where order_id = $1";
    let mut items = Vec::new();
    for row in tx.query(sql, &[order.into()]).await? {
        items.push(StockItem { product_id: row.text(0)?, quantity: row.int(1)? });
    }
    items.sort_by(|one, other| one.product_id.cmp(&other.product_id));
    Ok(items)
}

async fn tell<T: Serialize>(tx: &Tx<'_>, kind: &str, order: &str, data: &T) -> Result<(), ApiError> {
    events::emit(tx, NAME, kind, order, data).await?;
    Ok(())
}
