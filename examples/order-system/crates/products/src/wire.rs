//! What the service says to others, and hears from them.

use order_kit::Cents;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Product {
    /// The id.
    pub id: String,
    /// The name.
    #[schema(example = "Teapot")]
    pub name: String,
    /// What one of it costs.
    pub price: Cents,
    /// When the product was made, as RFC 3339.
    pub created_at: String,
}

/// What is to be offered.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct NewProduct {
    /// 1 to 200 characters, none of them a control character, and not blank.
    #[schema(min_length = 1, max_length = 200, example = "Teapot")]
    pub name: String,
    /// From 0.01 to 1000000.00.
    pub price: Cents,
}

/// What is to change; what is not named stays.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ProductChange {
    /// As when a product is made.
    #[schema(min_length = 1, max_length = 200)]
    pub name: Option<String>,
    /// As when a product is made.
    pub price: Option<Cents>,
}
