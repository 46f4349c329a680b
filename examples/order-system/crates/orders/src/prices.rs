//! What products cost, as the product service says, kept for a moment.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::try_join_all;
use http::StatusCode;
use mainstay::ConfigError;
use order_kit::{
    ApiError, Cache, Cents, Context,
    client::{Client, Options},
};

use crate::{
    order::{Item, Wanted},
    wire::Product,
};

/// How long a price holds.
const HOLDS: Duration = Duration::from_secs(5);
const MOST: u64 = 50_000;

#[derive(Clone)]
pub(crate) struct Prices {
    products: Client,
    known: Arc<Cache<Cents>>,
}

impl Prices {
    pub(crate) fn new(context: &Context) -> Result<Self, ConfigError> {
        let products = Client::new(context, "product", Options { queue: 1_000, ..Options::default() })?;
        Ok(Prices { products, known: Arc::new(Cache::new(HOLDS, MOST)) })
    }

    /// The lines with their prices.
    ///
    /// # Errors
    ///
    /// 422 if there is no such product, 503 if the service cannot say.
    pub(crate) async fn of(&self, wanted: &[Wanted]) -> Result<Vec<Item>, ApiError> {
        let products: BTreeSet<&str> = wanted.iter().map(|item| item.product_id.as_str()).collect();
        let products: Vec<&str> = products.into_iter().collect();
        let prices = try_join_all(products.iter().map(|id| self.price(id))).await?;
        let item = |wanted: &Wanted| {
            let at = products.binary_search(&wanted.product_id.as_str()).unwrap_or_default();
            Item { product_id: wanted.product_id.clone(), quantity: wanted.quantity, price: prices[at] }
        };
        Ok(wanted.iter().map(item).collect())
    }

    async fn price(&self, id: &str) -> Result<Cents, ApiError> {
        let asked = ask(self.products.clone(), id.to_owned());
        self.known.get_or(id, asked).await.map_err(|error| (*error).clone())
    }
}

async fn ask(products: Client, id: String) -> Result<Cents, ApiError> {
    let reply = products.get(&format!("/products/{id}")).await?;
    if reply.status == StatusCode::NOT_FOUND {
        return Err(ApiError::unprocessable("Unknown product"));
    }
    let Product { price } = reply.success().and_then(|reply| reply.json())?;
    if price < Cents(0) {
        return Err(ApiError::internal(format!("product {id} has a negative price")));
    }
    Ok(price)
}
