//! The participant's side of a saga over HTTP: which step a request belongs to.
//!
//! `Idempotency-Key` carries the saga's [`Key`] as text. A route takes [`ActionKey`] or [`CompensationKey`]; whoever sends none, or
//! that of the other direction, gets a 400 before anything is done.

use axum::extract::FromRequestParts;
use http::request::Parts;
use mainstay::saga::{Direction, Key};

use crate::{client::IDEMPOTENCY_KEY, error::ApiError};

/// The key of a step's action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionKey(pub Key);

/// The key of a step's compensation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompensationKey(pub Key);

impl<S: Send + Sync> FromRequestParts<S> for ActionKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        of(parts, Direction::Do).map(ActionKey)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for CompensationKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        of(parts, Direction::Undo).map(CompensationKey)
    }
}

fn of(parts: &Parts, direction: Direction) -> Result<Key, ApiError> {
    let shown = parts.headers.get(&IDEMPOTENCY_KEY);
    let shown = shown.ok_or_else(|| ApiError::bad_request("An Idempotency-Key is needed"))?;
    let key: Option<Key> = shown.to_str().ok().and_then(|text| text.parse().ok());
    let key = key.ok_or_else(|| ApiError::bad_request("The Idempotency-Key is no key of a saga's step"))?;
    if key.phase() == direction {
        Ok(key)
    } else {
        Err(ApiError::bad_request(format!("The Idempotency-Key is not one to {direction}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(key: Option<&str>, direction: Direction) -> Result<Key, u16> {
        let mut request = http::Request::new(());
        if let Some(key) = key {
            request.headers_mut().insert(&IDEMPOTENCY_KEY, key.parse().unwrap());
        }
        of(&request.into_parts().0, direction).map_err(|error| error.status.as_u16())
    }

    #[test]
    fn a_key_is_for_one_direction() {
        let key: Key = "charge-card.do@order-1".parse().unwrap();
        assert_eq!(shown(Some("charge-card.do@order-1"), Direction::Do), Ok(key.clone()));
        assert_eq!(shown(Some("charge-card.do@order-1"), Direction::Undo), Err(400));
        assert_eq!(
            shown(Some("charge-card.undo@order-1"), Direction::Undo),
            Ok(key.with_phase(Direction::Undo))
        );
        assert_eq!(shown(Some("order-1"), Direction::Do), Err(400));
        assert_eq!(shown(None, Direction::Do), Err(400));
    }
}
