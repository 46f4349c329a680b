//! Users over REST.

use axum::extract::State;
use http::{HeaderMap, StatusCode};
use order_kit::{
    ApiError, Json,
    auth::{is_staff, may_see},
    error::ErrorBody,
    extract::{Path, Query},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    repository::Users,
    wire::{NewUser, User, UserChange},
};

const LIMIT: u32 = 50;
const MOST: u32 = 500;

pub(crate) fn routes(users: Users) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(create, list)).routes(routes!(show, update)).with_state(users)
}

/// Makes a user.
#[utoipa::path(post, path = "/users", request_body = NewUser, responses(
    (status = 201, description = "Made", body = User),
    (status = 400, description = "`Invalid email`, `Invalid name`, or a body that cannot be read", body = ErrorBody),
    (status = 409, description = "`Email already exists`", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
))]
async fn create(
    State(users): State<Users>,
    Json(new): Json<NewUser>,
) -> Result<(StatusCode, Json<User>), ApiError> {
    Ok((StatusCode::CREATED, Json(users.create(new).await?)))
}

/// The user with that id. Another user finds nobody, unless that one works here.
#[utoipa::path(get, path = "/users/{id}", params(("id" = String, Path, description = "The id")), responses(
    (status = 200, description = "The user", body = User),
    (status = 400, description = "An id that cannot be read", body = ErrorBody),
    (status = 404, description = "`User not found`, or another user asks", body = ErrorBody),
))]
async fn show(
    State(users): State<Users>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<User>, ApiError> {
    if !may_see(&headers, &id) && !is_staff(&headers) {
        return Err(unknown());
    }
    users.find(id).await?.map(Json).ok_or_else(unknown)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Listing {
    /// How many at most: 50 if nothing is said, and never more than 500.
    limit: Option<u32>,
    /// Only the one with this e-mail address, in whatever case.
    email: Option<String>,
}

/// The newest users, or the one with an address.
#[utoipa::path(get, path = "/users", params(Listing), responses(
    (status = 200, description = "The newest first", body = Vec<User>),
    (status = 400, description = "A limit that is none", body = ErrorBody),
))]
async fn list(
    State(users): State<Users>,
    Query(listing): Query<Listing>,
) -> Result<Json<Vec<User>>, ApiError> {
    if let Some(email) = listing.email {
        return Ok(Json(users.with_email(&email).await?.into_iter().collect()));
    }
    let limit = listing.limit.unwrap_or(LIMIT).min(MOST);
    Ok(Json(users.list(limit.into()).await?))
}

/// Changes a user's name, e-mail address, or both. Another user finds nobody to change.
#[utoipa::path(put, path = "/users/{id}", params(("id" = String, Path, description = "The id")), request_body = UserChange, responses(
    (status = 200, description = "The user as it is now", body = User),
    (status = 400, description = "`Invalid email`, `Invalid name`, or a body or an id that cannot be read", body = ErrorBody),
    (status = 404, description = "`User not found`, or another user asks", body = ErrorBody),
    (status = 409, description = "`Email already exists`", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
))]
async fn update(
    State(users): State<Users>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(change): Json<UserChange>,
) -> Result<Json<User>, ApiError> {
    if !may_see(&headers, &id) {
        return Err(unknown());
    }
    users.update(id, change).await?.map(Json).ok_or_else(unknown)
}

fn unknown() -> ApiError {
    ApiError::not_found("User not found")
}
