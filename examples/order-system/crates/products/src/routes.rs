//! Products over REST.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode};
use order_kit::{
    ApiError, Json,
    error::ErrorBody,
    extract::{Path, Query},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    cache::From,
    catalog::Catalog,
    wire::{NewProduct, Product, ProductChange},
};

const LIMIT: u32 = 50;
const MOST: u32 = 500;
static X_CACHE: HeaderName = HeaderName::from_static("x-cache");

pub(crate) fn routes(catalog: Catalog) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(create, list)).routes(routes!(show, update)).with_state(catalog)
}

/// Makes a product.
#[utoipa::path(post, path = "/products", request_body = NewProduct, responses(
    (status = 201, description = "Made", body = Product),
    (status = 400, description = "`Invalid name`, `Invalid price`, or a body that cannot be read", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
))]
async fn create(
    State(catalog): State<Catalog>,
    Json(new): Json<NewProduct>,
) -> Result<(StatusCode, Json<Product>), ApiError> {
    Ok((StatusCode::CREATED, Json(catalog.create(new).await?)))
}

/// The product with that id.
#[utoipa::path(get, path = "/products/{id}", params(("id" = String, Path, description = "The id")), responses(
    (status = 200, description = "The product", body = Product, headers(
        ("x-cache" = String, description = "`miss` if this request has read the database, else `hit`"),
    )),
    (status = 400, description = "An id that cannot be read", body = ErrorBody),
    (status = 404, description = "`Product not found`", body = ErrorBody),
))]
async fn show(State(catalog): State<Catalog>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let (product, from) = catalog.find(&id).await?.ok_or_else(unknown)?;
    let cache = HeaderValue::from_static(match from {
        From::Cache => "hit",
        From::Database => "miss",
    });
    Ok(([(X_CACHE.clone(), cache)], Json(product)).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Listing {
    /// How many at most: 50 if nothing is said, and never more than 500.
    limit: Option<u32>,
    /// Only those of this name.
    name: Option<String>,
}

/// The newest products, or those of a name, from the database.
#[utoipa::path(get, path = "/products", params(Listing), responses(
    (status = 200, description = "The newest first", body = Vec<Product>),
    (status = 400, description = "A limit that is none", body = ErrorBody),
))]
async fn list(
    State(catalog): State<Catalog>,
    Query(listing): Query<Listing>,
) -> Result<Json<Vec<Product>>, ApiError> {
    let limit = listing.limit.unwrap_or(LIMIT).min(MOST);
    Ok(Json(catalog.list(limit.into(), listing.name).await?))
}

/// Changes a product's name, price, or both. Orders that were placed keep the price they were placed at.
#[utoipa::path(put, path = "/products/{id}", params(("id" = String, Path, description = "The id")), request_body = ProductChange, responses(
    (status = 200, description = "The product as it is now", body = Product),
    (status = 400, description = "`Invalid name`, `Invalid price`, or a body or an id that cannot be read", body = ErrorBody),
    (status = 404, description = "`Product not found`", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
))]
async fn update(
    State(catalog): State<Catalog>,
    Path(id): Path<String>,
    Json(change): Json<ProductChange>,
) -> Result<Json<Product>, ApiError> {
    catalog.update(id, change).await?.map(Json).ok_or_else(unknown)
}

fn unknown() -> ApiError {
    ApiError::not_found("Product not found")
}
