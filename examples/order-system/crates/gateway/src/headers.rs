//! What of a request's and an answer's headers goes on to the other side.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use order_kit::{
    auth::{ROLES, USER_ID},
    client::DEADLINE,
};

/// The tenant of the token.
pub static TENANT: HeaderName = HeaderName::from_static("x-tenant");
/// The plan of the token.
pub static PLAN: HeaderName = HeaderName::from_static("x-plan");
/// Who gave an answer: a service, or the monolith.
pub static SERVED_BY: HeaderName = HeaderName::from_static("x-served-by");
/// `hit`, or `miss` where an answer may be remembered.
pub static CACHE: HeaderName = HeaderName::from_static("x-cache");

/// What concerns one connection and not the message on it.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What only the gateway says to a service. From a client it would be a lie about who it is, or where it comes from.
const ONLY_OURS: [&str; 30] = [
    "forwarded",
    "remote-user",
    "x-actor",
    "x-auth-request-groups",
    "x-auth-request-user",
    "x-authenticated-user",
    "x-client-cert",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-groups",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-forwarded-user",
    "x-groups",
    "x-operator",
    "x-plan",
    "x-real-ip",
    "x-remote-user",
    "x-role",
    "x-roles",
    "x-scope",
    "x-scopes",
    "x-service-token",
    "x-shadow",
    "x-tenant",
    "x-user",
    "x-user-id",
];

/// Takes out what ends at this hop, with what `Connection` names.
pub fn end_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    // Two lengths are how requests are smuggled: the one that was believed is gone with its encoding.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    for name in named {
        headers.remove(name);
    }
}

/// Where a request came from.
#[derive(Debug, Clone, Copy)]
pub struct From<'a> {
    /// The client's address.
    pub client: Option<IpAddr>,
    /// Whether it came by https.
    pub secure: bool,
    /// Whom its token names.
    pub who: Option<&'a crate::token::Claims>,
}

/// Makes a client's headers those of a request to a service: without what ends here, without what a client may not say, with what only
/// the gateway says. The token itself ends here as well: a service is told whose it was. What the gateway shows of itself depends on who is
/// asked, and is not here.
pub fn to_service(headers: &mut HeaderMap, from: From<'_>) {
    let host = headers.remove(header::HOST);
    end_hop(headers);
    for name in ONLY_OURS {
        headers.remove(name);
    }
    // The gateway has said "continue" already, when it began to read the body.
    headers.remove(header::EXPECT);
    headers.remove(header::AUTHORIZATION);
    headers.remove(&DEADLINE);
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    if let Some(client) = from.client {
        set(HeaderName::from_static("x-forwarded-for"), &client.to_string());
    }
    set(HeaderName::from_static("x-forwarded-proto"), if from.secure { "https" } else { "http" });
    if let Some(who) = from.who {
        set(USER_ID.clone(), &who.sub);
        set(TENANT.clone(), who.tenant.as_deref().unwrap_or_default());
        set(PLAN.clone(), who.plan.as_deref().unwrap_or_default());
        set(ROLES.clone(), &who.roles.join(","));
    }
    if let Some(host) = host {
        headers.insert(HeaderName::from_static("x-forwarded-host"), host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Claims;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn what_ends_at_a_hop_goes_no_further() {
        let mut got = headers(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ]);
        end_hop(&mut got);
        assert_eq!(got, headers(&[("accept", "*/*")]));
    }

    #[test]
    fn a_client_cannot_say_who_it_is() {
        let lies = [
            ("x-user-id", "root"),
            ("x-tenant", "all"),
            ("x-operator", "grace"),
            ("x-scopes", "admin"),
            ("x-roles", "service"),
            ("x-forwarded-user", "root"),
            ("remote-user", "root"),
            ("x-service-token", "guess"),
            ("x-forwarded-for", "127.0.0.1"),
            ("forwarded", "for=127.0.0.1"),
            ("authorization", "Bearer abc"),
            ("host", "shop.example"),
        ];
        let roles = vec!["admin".to_owned(), "clerk".to_owned()];
        let who = Claims { tenant: Some("t1".into()), roles, ..Claims::of("u1") };
        let mut got = headers(&lies);
        let client = Some([192, 0, 2, 1].into());
        to_service(&mut got, From { client, secure: true, who: Some(&who) });
        let expected = [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
            ("x-user-id", "u1"),
            ("x-tenant", "t1"),
            ("x-plan", ""),
            ("x-roles", "admin,clerk"),
        ];
        assert_eq!(got, headers(&expected));
        let mut got = headers(&lies);
        to_service(&mut got, From { client: None, secure: false, who: None });
        assert!(
            !got.contains_key("x-service-token")
                && !got.contains_key("x-operator")
                && !got.contains_key("x-user-id")
                && !got.contains_key("x-tenant")
                && !got.contains_key("x-roles")
                && !got.contains_key("authorization")
        );
    }
}
