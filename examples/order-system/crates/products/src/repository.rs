//! Where products are kept.

use order_kit::{
    ApiError, Cents, Context, Db, Tx,
    db::{DbError, Row, Value},
    iso, new_id, now_ms,
};
use serde::{Deserialize, Serialize};

use crate::wire::{NewProduct, Product, ProductChange};

/// `version` counts the changes of a product, so that of two copies the newer is known.
const MIGRATIONS: &[&str] = &[
    "
create table product (
    id text primary key,
    name text not null,
    price bigint not null,
    created_at bigint not null,
    version bigint not null
);
create index product_by_time on product (created_at desc, id desc);
",
    "
create index product_by_name on product (name, created_at desc, id desc);
",
];

const COLUMNS: &str = "id, name, price, created_at, version";
const LONGEST_NAME: usize = 200;
const PRICES: std::ops::RangeInclusive<i64> = 1..=100_000_000;

/// A product as of one of its changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Versioned {
    pub(crate) version: i64,
    pub(crate) product: Product,
}

/// The products; clones are the same.
#[derive(Clone)]
pub(crate) struct Products {
    db: Db,
}

impl Products {
    pub(crate) async fn open(context: &Context) -> Result<Self, DbError> {
        Ok(Products { db: context.open_db(MIGRATIONS).await? })
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) async fn create(&self, new: NewProduct) -> Result<Product, ApiError> {
        check_name(&new.name)?;
        check_price(new.price)?;
        let work = async move |tx: &Tx<'_>| {
            let now = now_ms();
            let product = Product { id: new_id(), name: new.name, price: new.price, created_at: iso(now) };
            tx.execute(
                "insert into product (id, name, price, created_at, version) values ($1, $2, $3, $4, 1)",
                &[(&product.id).into(), (&product.name).into(), product.price.into(), now.into()],
            )
            .await?;
            Ok::<_, ApiError>(product)
        };
        self.db.write(work).await
    }

    pub(crate) async fn find(&self, id: String) -> Result<Option<Versioned>, DbError> {
        let sql = format!("select {COLUMNS} from product where id = $1");
        let work = async move |tx: &Tx<'_>| {
            tx.first(&sql, &[id.into()]).await?.map(|row| versioned(&row)).transpose()
        };
        self.db.read(work).await
    }

    /// The newest first; of a name, or all.
    pub(crate) async fn list(&self, limit: i64, name: Option<String>) -> Result<Vec<Product>, DbError> {
        let only = if name.is_some() { "where name = $2" } else { "" };
        let sql = format!("select {COLUMNS} from product {only} order by created_at desc, id desc limit $1");
        let work = async move |tx: &Tx<'_>| {
            let values = [Some(Value::from(limit)), name.map(Value::from)];
            let rows = tx.query(&sql, &values.into_iter().flatten().collect::<Vec<_>>()).await?;
            rows.iter().map(|row| versioned(row).map(|it| it.product)).collect()
        };
        self.db.read(work).await
    }

    /// `None` if there is no such product.
    pub(crate) async fn update(
        &self,
        id: String,
        change: ProductChange,
    ) -> Result<Option<Versioned>, ApiError> {
        change.name.as_deref().map_or(Ok(()), check_name)?;
        change.price.map_or(Ok(()), check_price)?;
        let sql = format!(
            "update product set name = coalesce($1, name), price = coalesce($2, price), version = version + 1
             where id = $3 returning {COLUMNS}"
        );
        let work = async move |tx: &Tx<'_>| {
            let row = tx.first(&sql, &[change.name.into(), change.price.into(), id.into()]).await?;
            Ok::<_, ApiError>(row.map(|row| versioned(&row)).transpose()?)
        };
        self.db.write(work).await
    }
}

fn versioned(row: &Row) -> Result<Versioned, DbError> {
    let product = Product {
        id: row.text(0)?,
        name: row.text(1)?,
        price: Cents(row.int(2)?),
        created_at: iso(row.int(3)?),
    };
    Ok(Versioned { version: row.int(4)?, product })
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let sound = !name.trim().is_empty()
        && name.chars().count() <= LONGEST_NAME
        && !name.chars().any(char::is_control);
    if sound { Ok(()) } else { Err(ApiError::bad_request("Invalid name")) }
}

fn check_price(price: Cents) -> Result<(), ApiError> {
    if PRICES.contains(&price.0) { Ok(()) } else { Err(ApiError::bad_request("Invalid price")) }
}
