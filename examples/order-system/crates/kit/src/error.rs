//! What a service answers when it cannot do what it was asked: always `{"error": …}`, and nothing of how it is built.

use std::time::Duration;

use axum::{
    extract::{FromRequest, Request, rejection::JsonRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};

use crate::{client::CallError, db::DbError, object::Object};

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {message}")]
pub struct ApiError {
    /// The status.
    pub status: StatusCode,
    /// What stands in `error`; made for whoever asked.
    pub message: String,
    /// When to ask again.
    pub retry_after: Option<Duration>,
}

/// The body of an [`ApiError`].
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// What is wrong, for whoever asked.
    pub error: String,
}

impl ApiError {
    /// An error with that status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError { status, message: message.into(), retry_after: None }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// 401.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::UNAUTHORIZED, message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::FORBIDDEN, message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::CONFLICT, message)
    }

    /// 422.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, message)
    }

    /// 503, to be asked again: in a second, unless something else is [known](ApiError::after).
    pub fn unavailable(message: impl Into<String>) -> Self {
        ApiError {
            retry_after: Some(Duration::from_secs(1)),
            ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    /// To be asked again after so long, where that is known.
    #[must_use]
    pub fn after(self, known: Option<Duration>) -> Self {
        ApiError { retry_after: known.or(self.retry_after), ..self }
    }

    /// 500. What has happened goes to the log and not to whoever asked.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        tracing::error!(error = %what, "internal error");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(ErrorBody { error: self.message })).into_response();
        if let Some(after) = self.retry_after {
            let seconds = after.as_millis().div_ceil(1_000).max(1);
            if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Unavailable(why) => {
                tracing::error!(error = %why, "the database is unavailable");
                ApiError::unavailable("Service unavailable")
            }
            other => ApiError::internal(other),
        }
    }
}

/// Refusals of policies: 503, with the time to come back.
impl From<mainstay::Refused> for ApiError {
    fn from(refused: mainstay::Refused) -> Self {
        ApiError::unavailable("Service unavailable").after(refused.retry_after())
    }
}

/// For calls whose failure has no meaning of its own to whoever asked.
impl From<CallError> for ApiError {
    fn from(error: CallError) -> Self {
        tracing::warn!(error = %error, "a call failed");
        ApiError::unavailable("Service unavailable").after(error.retry_after())
    }
}

/// JSON in both directions. A body that is none, or not what is expected, is a 400 (413 if it is too large) with `{"error": …}`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json<T>(pub T);

/// How long a client may take for the body of its request. Then it is a 408: less than the whole request may take, which would be a 504.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(15);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let read = axum::Json::<Object<T>>::from_request(request, state);
        let Ok(read) = tokio::time::timeout(BODY_TIMEOUT, read).await else {
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "The body of the request did not come"));
        };
        match read {
            Ok(axum::Json(Object(value))) => Ok(Json(value)),
            Err(rejection) => Err(match rejection {
                JsonRejection::JsonDataError(error) => ApiError::bad_request(reason(&error.body_text())),
                JsonRejection::JsonSyntaxError(_) => ApiError::bad_request("Malformed JSON"),
                JsonRejection::MissingJsonContentType(_) => {
                    ApiError::bad_request("Expected `Content-Type: application/json`")
                }
                other if other.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "The body is too large")
                }
                other => ApiError::bad_request(other.body_text()),
            }),
        }
    }
}

/// What serde says, without axum's preamble.
fn reason(text: &str) -> String {
    text.strip_prefix("Failed to deserialize the JSON body into the target type: ").unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_the_clients_fault() {
        let began = tokio::time::Instant::now();
        let never = futures::stream::pending::<Result<Vec<u8>, std::io::Error>>();
        let request = http::Request::post("/")
            .header(header::CONTENT_TYPE, "application/json")
            .body(axum::body::Body::from_stream(never))
            .unwrap();
        let refused = Json::<serde_json::Value>::from_request(request, &()).await.map(|_| ()).unwrap_err();
        assert_eq!((refused.status, began.elapsed()), (StatusCode::REQUEST_TIMEOUT, BODY_TIMEOUT));
    }
}
