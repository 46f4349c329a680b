//! The routes.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use mainstay::saga::barrier::Action;
use order_kit::{
    ApiError, Db, Json,
    error::ErrorBody,
    extract::Path,
    step::{ActionKey, CompensationKey},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    stock::{self, Demand},
    wire::{
        ALREADY_COMPENSATED, Committed, Level, OutOfStock, Released, Reservation, Reserved, SetStock, Wanted,
        WhichOrder,
    },
};

pub(crate) fn routes(db: Db) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(reserve))
        .routes(routes!(release))
        .routes(routes!(commit))
        .routes(routes!(reservation))
        .routes(routes!(get_stock, set_stock))
        .with_state(db)
}

/// Holds an order's items, all or none.
#[utoipa::path(
    post, path = "/inventory/reserve", request_body = Wanted,
    params(("Idempotency-Key" = String, Header, description = "The saga's key: `reserve-stock.do@ORDER`")),
    responses(
        (status = 200, body = Reserved),
        (status = 400, body = ErrorBody),
        (status = 409, description = "`out_of_stock`, `already_compensated` or `already_reserved`", body = OutOfStock),
        (status = 422, description = "The key was used for something else", body = ErrorBody),
    )
)]
async fn reserve(
    State(db): State<Db>,
    ActionKey(key): ActionKey,
    Json(wanted): Json<Wanted>,
) -> Result<Response, ApiError> {
    let demand = Demand::new(wanted)?;
    let done = db.write(async move |tx| stock::reserve(tx, &key, &demand).await).await?;
    match done.result() {
        Some(Ok(reserved)) => Ok(Json(reserved).into_response()),
        Some(Err(refused)) => Ok((StatusCode::CONFLICT, Json(refused)).into_response()),
        None => Err(ApiError::conflict(ALREADY_COMPENSATED)),
    }
}

/// Frees what an order holds; and if it holds nothing yet, it never will.
#[utoipa::path(
    post, path = "/inventory/release", request_body = WhichOrder,
    params(("Idempotency-Key" = String, Header, description = "The saga's key: `reserve-stock.undo@ORDER`")),
    responses(
        (status = 200, body = Released),
        (status = 400, body = ErrorBody),
        (status = 409, description = "`already_committed`", body = ErrorBody),
        (status = 422, description = "The key was used for another order", body = ErrorBody),
    )
)]
async fn release(
    State(db): State<Db>,
    CompensationKey(key): CompensationKey,
    Json(which): Json<WhichOrder>,
) -> Result<Json<Released>, ApiError> {
    stock::check_id("orderId", &which.order_id)?;
    let (_, released) = db.write(async move |tx| stock::release(tx, &key, &which.order_id).await).await?;
    Ok(Json(released))
}

/// Turns what an order holds into a decrement.
#[utoipa::path(
    post, path = "/inventory/commit", request_body = WhichOrder,
    params(("Idempotency-Key" = String, Header, description = "The saga's key: `commit-stock.do@ORDER`")),
    responses(
        (status = 200, body = Committed),
        (status = 400, body = ErrorBody),
        (status = 409, description = "`already_compensated` or `not_reserved`", body = ErrorBody),
        (status = 422, description = "The key was used for another order", body = ErrorBody),
    )
)]
async fn commit(
    State(db): State<Db>,
    ActionKey(key): ActionKey,
    Json(which): Json<WhichOrder>,
) -> Result<Json<Committed>, ApiError> {
    stock::check_id("orderId", &which.order_id)?;
    let done = db.write(async move |tx| stock::commit(tx, &key, &which.order_id).await).await?;
    match done {
        Action::Done(Ok(committed)) | Action::Repeated(Ok(committed)) => Ok(Json(committed)),
        Action::Done(Err(reason)) | Action::Repeated(Err(reason)) => Err(ApiError::conflict(reason)),
        Action::Refused => Err(ApiError::conflict(ALREADY_COMPENSATED)),
    }
}

/// What became of an order's reservation.
#[utoipa::path(
    get, path = "/inventory/reservations/{orderId}", params(("orderId" = String, Path)),
    responses((status = 200, body = Reservation), (status = 404, body = ErrorBody))
)]
async fn reservation(State(db): State<Db>, Path(order): Path<String>) -> Result<Json<Reservation>, ApiError> {
    let found = db.read(async move |tx| stock::reservation(tx, &order).await).await?;
    found.map(Json).ok_or_else(|| ApiError::not_found("Reservation not found"))
}

/// What there is of a product.
#[utoipa::path(
    get, path = "/inventory/{productId}", params(("productId" = String, Path)),
    responses((status = 200, body = Level), (status = 404, body = ErrorBody))
)]
async fn get_stock(State(db): State<Db>, Path(product): Path<String>) -> Result<Json<Level>, ApiError> {
    let found = db.read(async move |tx| stock::level(tx, &product).await).await?;
    found.map(Json).ok_or_else(|| ApiError::not_found("Product not found"))
}

/// Sets what is on the shelf.
#[utoipa::path(
    put, path = "/inventory/{productId}", params(("productId" = String, Path)), request_body = SetStock,
    responses(
        (status = 200, body = Level),
        (status = 400, body = ErrorBody),
        (status = 409, description = "More than that is held", body = ErrorBody),
    )
)]
async fn set_stock(
    State(db): State<Db>,
    Path(product): Path<String>,
    Json(SetStock { quantity }): Json<SetStock>,
) -> Result<Json<Level>, ApiError> {
    db.write(async move |tx| stock::set(tx, &product, quantity).await).await.map(Json)
}
