//! The routes. Money moves by `POST` alone.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use mainstay::saga::Key;
use order_kit::{
    ApiError, Json,
    error::ErrorBody,
    extract::{Path, Query},
    step::{ActionKey, CompensationKey},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    payments::Payments,
    wire::{Card, Charge, Declined, LookedUp, OrderPayments, OrderToRefund, Payment, Refunded},
};

pub(crate) fn routes(payments: Payments) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(charge))
        .routes(routes!(refund))
        .routes(routes!(of_order))
        .routes(routes!(lookup))
        .routes(routes!(set_card))
        .with_state(payments)
}

/// Charges an order.
#[utoipa::path(
    post, path = "/payments/charge", request_body = Charge,
    params(("Idempotency-Key" = String, Header, description = "The saga's key: `charge-card.do@ORDER`")),
    responses(
        (status = 200, body = Payment),
        (status = 400, body = ErrorBody),
        (status = 402, description = "The card is declined, for good", body = Declined),
        (status = 409, description = "`already_compensated` or `already_charged`", body = ErrorBody),
        (status = 422, description = "The key was used for another charge", body = ErrorBody),
        (status = 503, description = "Nobody knows; the same key again finds out", body = ErrorBody),
    )
)]
async fn charge(
    State(payments): State<Payments>,
    ActionKey(key): ActionKey,
    Json(charge): Json<Charge>,
) -> Result<Response, ApiError> {
    Ok(match payments.charge(key, charge, None).await? {
        Ok(payment) => Json(payment).into_response(),
        Err(declined) => (StatusCode::PAYMENT_REQUIRED, Json(declined)).into_response(),
    })
}

/// Takes a charge back; and if there was none, there never will be.
#[utoipa::path(
    post, path = "/payments/refund", request_body = OrderToRefund,
    params(("Idempotency-Key" = String, Header, description = "The saga's key: `charge-card.undo@ORDER`")),
    responses(
        (status = 200, body = Refunded),
        (status = 400, body = ErrorBody),
        (status = 422, description = "The key was used for another order", body = ErrorBody),
        (status = 503, description = "Not yet; the same key again goes on", body = ErrorBody),
    )
)]
async fn refund(
    State(payments): State<Payments>,
    CompensationKey(key): CompensationKey,
    Json(order): Json<OrderToRefund>,
) -> Result<Json<Refunded>, ApiError> {
    payments.refund(key, order.order_id, None).await.map(Json)
}

/// All that was moved for an order; nothing, for one that nobody has heard of.
#[utoipa::path(
    get, path = "/payments/order/{orderId}", params(("orderId" = String, Path)),
    responses((status = 200, body = OrderPayments))
)]
async fn of_order(
    State(payments): State<Payments>,
    Path(order): Path<String>,
) -> Result<Json<OrderPayments>, ApiError> {
    payments.of_order(order).await.map(Json)
}

/// What is known of a charge, by its key or its refund's.
#[utoipa::path(
    get, path = "/payments/lookup", params(("key" = String, Query, description = "`charge-card.do@ORDER`")),
    responses((status = 200, body = LookedUp), (status = 400, body = ErrorBody))
)]
async fn lookup(
    State(payments): State<Payments>,
    Query(asked): Query<BTreeMap<String, String>>,
) -> Result<Json<LookedUp>, ApiError> {
    let key: Option<Key> = asked.get("key").and_then(|key| key.parse().ok());
    let key = key.ok_or_else(|| ApiError::bad_request("`key` is no key of a saga's step"))?;
    payments.looked_up(key).await.map(Json)
}

/// Says how a user's card behaves from now on.
#[utoipa::path(
    put, path = "/payments/cards/{userId}", params(("userId" = String, Path)), request_body = Card,
    responses((status = 200, body = Card), (status = 400, body = ErrorBody))
)]
async fn set_card(
    State(payments): State<Payments>,
    Path(user): Path<String>,
    Json(card): Json<Card>,
) -> Result<Json<Card>, ApiError> {
    payments.behave(user, card.behaviour).await?;
    Ok(Json(card))
}
