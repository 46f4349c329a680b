//! Tokens: who a request is from, and what needs which. JSON Web Tokens signed with `JWT_SECRET`, HS256 and nothing else.

use http::{HeaderMap, Method, header};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use order_kit::{
    auth,
    env::{self, Env},
};
use serde::{Deserialize, Serialize};

/// How long a token of the development issuer holds.
const DEVELOPMENT_HOURS: u64 = 12;

/// What a request has to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: everybody may ask.
    Nothing,
    /// A token, whatever it says.
    Token,
    /// A token with one of these roles.
    Role(&'static [&'static str]),
}

const STAFF: Needs = Needs::Role(auth::STAFF);

/// What is needed where: the first line that fits holds. Without a method it holds for all. Paths are those behind `/api`; with `/**` at its
/// end one holds for everything below it, too. What no line names is for staff: no service has it, and what a monolith has there does not
/// ask whose it is.
pub const ROUTES: &[(Option<Method>, &str, Needs)] = &[
    (Some(Method::POST), "/users", Needs::Nothing),
    (None, "/users", STAFF),
    (None, "/users/**", Needs::Token),
    (None, "/orders/**", Needs::Token),
    (Some(Method::GET), "/products/**", Needs::Nothing),
    (Some(Method::HEAD), "/products/**", Needs::Nothing),
    (None, "/products/**", STAFF),
    (None, "/payments/**", STAFF),
    (None, "/inventory/**", STAFF),
];

/// What a request has to show, by the path behind `/api`.
pub fn needs(method: &Method, path: &str) -> Needs {
    let holds = |(of, pattern, _): &&(Option<Method>, &str, Needs)| {
        of.as_ref().is_none_or(|of| of == method) && fits(pattern, path)
    };
    ROUTES.iter().find(holds).map_or(STAFF, |(_, _, needs)| *needs)
}

fn fits(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix("/**") {
        Some(base) => path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        None => pattern == path,
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whose it is.
    pub sub: String,
    /// For which customer that one works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// What the customer pays for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// What that one may do beside what everybody may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Until when it holds, in seconds of 1970.
    pub exp: u64,
}

impl Claims {
    /// Of that one and nothing more, for as long as a token holds in development.
    pub fn of(sub: &str) -> Self {
        let now = u64::try_from(order_kit::now_ms() / 1_000).unwrap_or(0);
        let exp = now + DEVELOPMENT_HOURS * 3_600;
        Claims { sub: sub.to_owned(), tenant: None, plan: None, roles: Vec::new(), exp }
    }

    /// Whether that is enough.
    pub fn satisfy(&self, needs: Needs) -> bool {
        match needs {
            Needs::Nothing | Needs::Token => true,
            Needs::Role(roles) => self.roles.iter().any(|role| roles.contains(&role.as_str())),
        }
    }
}

/// What a request shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// No token.
    Nothing,
    /// One that does not hold, for whatever reason.
    Worthless,
    /// One that holds.
    Token(Claims),
}

/// Reads tokens, and makes some in development.
#[derive(Clone)]
pub struct Tokens {
    decoding: DecodingKey,
    validation: Validation,
    /// Only where a development issuer is wanted.
    encoding: Option<EncodingKey>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens(issues: {})", self.encoding.is_some())
    }
}

impl Tokens {
    /// As the environment says. Whoever has not chosen a secret, or asks for it, gets a development issuer.
    pub fn of(env: &Env) -> Self {
        let secret = env.get_or_default(env::JWT_SECRET);
        let unchosen = env::declared(env::JWT_SECRET).is_some_and(|declared| declared.default == secret);
        let issues = unchosen || env.get(env::DEV_TOKENS).is_some_and(|value| value == "1");
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        Tokens {
            decoding: DecodingKey::from_secret(secret.as_bytes()),
            validation,
            encoding: issues.then(|| EncodingKey::from_secret(secret.as_bytes())),
        }
    }

    /// What the request shows in `Authorization`.
    pub fn read(&self, headers: &HeaderMap) -> Shown {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Shown::Nothing };
        let token = value.to_str().ok().and_then(|value| value.split_once(' '));
        let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        match (token, values.next()) {
            (Some((_, token)), None) => self.verify(token.trim()).map_or(Shown::Worthless, Shown::Token),
            _ => Shown::Worthless,
        }
    }

    fn verify(&self, token: &str) -> Option<Claims> {
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation).ok()?.claims;
        // What stands in a header further on has to fit into one.
        let fits = |text: &str| text.len() <= 256 && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        let all = [Some(claims.sub.as_str()), claims.tenant.as_deref(), claims.plan.as_deref()];
        (!claims.sub.is_empty() && all.into_iter().flatten().all(fits)).then_some(claims)
    }

    /// A new token, where a development issuer is wanted.
    pub fn issue(&self, claims: &Claims) -> Option<String> {
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, self.encoding.as_ref()?).ok()
    }

    /// Whether it makes tokens.
    pub fn issues(&self) -> bool {
        self.encoding.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shows(tokens: &Tokens, value: &str) -> Shown {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        tokens.read(&headers)
    }

    fn signed(algorithm: Algorithm, secret: &str, claims: &impl Serialize) -> String {
        jsonwebtoken::encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret.as_bytes()))
            .unwrap()
    }

    #[test]
    fn only_a_token_of_ours_that_still_holds_is_one() {
        let tokens = Tokens::of(&Env::empty().with(env::JWT_SECRET, "a secret"));
        let now = u64::try_from(order_kit::now_ms() / 1_000).unwrap();
        let claims = |exp| Claims { exp, ..Claims::of("u1") };
        let good = signed(Algorithm::HS256, "a secret", &claims(now + 60));
        assert_eq!(shows(&tokens, &format!("Bearer {good}")), Shown::Token(claims(now + 60)));
        assert_eq!(tokens.read(&HeaderMap::new()), Shown::Nothing);

        // "alg": "none", with the claims of the good one and no signature, or with its signature.
        let mut parts = good.split('.').skip(1);
        let (payload, signature) = (parts.next().unwrap(), parts.next().unwrap());
        let none = "eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0";
        let bad = [
            signed(Algorithm::HS256, "a secret", &claims(now - 1)),
            signed(Algorithm::HS256, "another", &claims(now + 60)),
            signed(Algorithm::HS512, "a secret", &claims(now + 60)),
            signed(Algorithm::HS256, "a secret", &serde_json::json!({ "sub": "u1" })),
            signed(Algorithm::HS256, "a secret", &serde_json::json!({ "sub": "", "exp": now + 60 })),
            signed(
                Algorithm::HS256,
                "a secret",
                &serde_json::json!({ "sub": "u1", "exp": now + 60, "roles": "admin" }),
            ),
            signed(Algorithm::HS256, "a secret", &serde_json::json!({ "sub": "u\r\nx: y", "exp": now + 60 })),
            format!("{none}.{payload}."),
            format!("{none}.{payload}.{signature}"),
            format!("{good}x"),
            String::new(),
        ];
        for token in bad {
            assert_eq!(shows(&tokens, &format!("Bearer {token}")), Shown::Worthless, "{token}");
        }
        assert_eq!(shows(&tokens, &format!("Basic {good}")), Shown::Worthless);
    }

    #[test]
    fn tokens_are_made_in_development_alone() {
        let unchosen = Tokens::of(&Env::empty());
        let gold = Claims { plan: Some("gold".to_owned()), ..Claims::of("u1") };
        let token = unchosen.issue(&gold).unwrap();
        let Shown::Token(claims) = shows(&unchosen, &format!("bearer {token}")) else { panic!("no token") };
        assert_eq!((claims.sub.as_str(), claims.plan.as_deref()), ("u1", Some("gold")));
        let chosen = Env::empty().with(env::JWT_SECRET, "a secret");
        assert_eq!(Tokens::of(&chosen).issue(&gold), None);
        assert!(Tokens::of(&chosen.with(env::DEV_TOKENS, "1")).issues());
    }

    #[test]
    fn few_things_are_open_and_some_need_a_role() {
        let open = [(Method::POST, "/users"), (Method::GET, "/products"), (Method::GET, "/products/7")];
        let staff = [
            (Method::GET, "/users"),
            (Method::POST, "/products"),
            (Method::PUT, "/products/7"),
            (Method::POST, "/payments/7/x"),
            (Method::GET, "/payments"),
            (Method::GET, "/payments/"),
            (Method::PATCH, "/inventory/7/x"),
            (Method::GET, "/productsx"),
            (Method::GET, "/paymentsx"),
            (Method::GET, "/sent"),
            (Method::GET, "/counters"),
        ];
        let any = [
            (Method::GET, "/users/7"),
            (Method::POST, "/users/7"),
            (Method::POST, "/orders"),
            (Method::GET, "/orders/7"),
            (Method::POST, "/orders/7/cancel"),
        ];
        let all = |needs_this: Needs, requests: &[(Method, &str)]| {
            for (method, path) in requests {
                assert_eq!(needs(method, path), needs_this, "{method} {path}");
            }
        };
        all(Needs::Nothing, &open);
        all(STAFF, &staff);
        all(Needs::Token, &any);
    }

    #[test]
    fn one_of_the_roles_is_enough_and_another_is_none() {
        let of = |roles: &[&str]| Claims {
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            ..Claims::of("u1")
        };
        assert!(of(&["clerk", "service"]).satisfy(STAFF) && of(&["admin"]).satisfy(STAFF));
        assert!(!of(&["clerk", "Admin", "admins"]).satisfy(STAFF) && !of(&[]).satisfy(STAFF));
        assert!(of(&[]).satisfy(Needs::Token));
    }
}
