//! What services show each other: the header `X-Service-Token`.

use http::{HeaderMap, HeaderName};
use subtle::ConstantTimeEq;

use crate::env::{self, Env};

/// The header.
pub static SERVICE_TOKEN: HeaderName = HeaderName::from_static("x-service-token");
/// For whom the gateway asks: the subject of the token that it was shown. Services that ask for themselves do not send it.
pub static USER_ID: HeaderName = HeaderName::from_static("x-user-id");

/// What that one may do beside what everybody may: the roles of the token, separated by commas.
pub static ROLES: HeaderName = HeaderName::from_static("x-roles");
/// The roles of whoever works here: a person, or a program.
pub const STAFF: &[&str] = &["admin", "service"];

/// Whether these headers are a service's own, or ask for this user: what is another user's is nobody else's.
pub fn may_see(headers: &HeaderMap, user: &str) -> bool {
    headers.get_all(&USER_ID).iter().all(|asks| asks.as_bytes() == user.as_bytes())
}

/// Whether these headers ask for somebody who works here.
pub fn is_staff(headers: &HeaderMap) -> bool {
    let roles = headers.get(&ROLES).and_then(|roles| roles.to_str().ok()).unwrap_or_default();
    roles.split(',').any(|role| STAFF.contains(&role))
}

/// The tokens of `INTERNAL_TOKEN`: the first is sent, any is accepted, so that one can replace another without a moment in which calls fail.
#[derive(Clone)]
pub struct ServiceTokens(std::sync::Arc<[String]>);

impl std::fmt::Debug for ServiceTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServiceTokens({})", self.0.len())
    }
}

impl ServiceTokens {
    /// As the environment says.
    pub fn of(env: &Env) -> Self {
        let tokens = env.get_or_default(env::INTERNAL_TOKEN);
        let tokens = tokens.split(',').map(str::trim).filter(|token| !token.is_empty());
        ServiceTokens(tokens.map(str::to_owned).collect())
    }

    /// The one to send.
    pub fn send(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    /// Whether the request shows one of them. Takes as long for a token that is nearly right as for any other of its length.
    pub fn accepts(&self, headers: &HeaderMap) -> bool {
        let Some(shown) = headers.get(&SERVICE_TOKEN) else { return false };
        let matches = self.0.iter().map(|token| token.as_bytes().ct_eq(shown.as_bytes()));
        matches.fold(subtle::Choice::from(0), |any, one| any | one).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tokens_hold_while_one_replaces_the_other() {
        let tokens = ServiceTokens::of(&Env::empty().with(env::INTERNAL_TOKEN, "new, old"));
        let shows = |token: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(&SERVICE_TOKEN, token.parse().unwrap());
            tokens.accepts(&headers)
        };
        assert_eq!(
            (tokens.send(), shows("new"), shows("old"), shows("older"), shows("")),
            ("new", true, true, false, false)
        );
        assert!(!tokens.accepts(&HeaderMap::new()));
    }
}
