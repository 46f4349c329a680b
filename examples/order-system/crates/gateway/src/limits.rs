//! How many requests anybody may send: so many of one address in any stretch of time, and of a customer what the plan in the token says.
//!
//! Counted exactly, in a sliding window: never more than the limit in any such time, wherever it begins. A request whose token names a plan
//! that is known counts for its tenant, from whatever address; every other request counts for its address, one with a worthless token too.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode};
use mainstay::{
    Keyed, RateLimiter, Refused, Registry,
    rate_limiter::{Config, Quota},
    registry::{Inspect, Snapshot},
};
use order_kit::{
    ApiError,
    env::{self, Env},
};

use crate::{
    Gateway,
    token::{Claims, Shown},
};

/// How many addresses, and how many tenants of a plan, are counted at once. Beyond that those are forgotten that have used least.
const KEYS: usize = 10_000;

/// What is counted for whom.
#[derive(Debug, Clone)]
pub struct Limits(Option<Counted>);

#[derive(Debug, Clone)]
struct Counted {
    clients: Keyed<String, Config>,
    plans: BTreeMap<String, Keyed<String, Config>>,
}

/// A limiter for each key as operators see it: the key that has the least left, however many there are.
#[derive(Clone)]
struct Tightest(Keyed<String, Config>);

impl Inspect for Tightest {
    fn inspect(&self, show: &mut dyn FnMut(Snapshot)) {
        let (mut least, mut tightest) = (u32::MAX, None);
        self.0.inspect(&mut |snapshot| {
            if let Snapshot::RateLimiter(limiter) = &snapshot
                && (tightest.is_none() || limiter.quota.remaining < least)
            {
                least = limiter.quota.remaining;
                tightest = Some(snapshot);
            }
        });
        tightest.into_iter().for_each(show);
    }
}

/// A request that may not pass, and where its sender stands.
#[derive(Debug, Clone)]
pub struct TooMany {
    refused: Refused,
    quota: Quota,
}

impl Limits {
    /// As the environment says.
    ///
    /// # Errors
    ///
    /// A rate that is none.
    pub fn of(env: &Env) -> Result<Self, String> {
        let clients = env.get_or_default(env::RATE_LIMIT);
        if clients == "off" {
            return Ok(Limits(None));
        }
        let keyed = |name: &str, rate: &str| {
            let (limit, window) = rate_of(rate).ok_or_else(|| format!("no rate: {rate:?}"))?;
            let config =
                RateLimiter::config(limit, window).name(name.to_owned()).observe(mainstay::observe::Metrics);
            Keyed::new(KEYS, config).map_err(|error| error.to_string())
        };
        let plans = env.get_or_default(env::RATE_LIMIT_PLANS);
        let plans = plans.split(',').map(str::trim).filter(|plan| !plan.is_empty() && *plan != "off");
        let plans = plans.map(|plan| {
            let (name, rate) = plan.split_once('=').ok_or_else(|| format!("no plan: {plan:?}"))?;
            Ok((name.trim().to_owned(), keyed(&format!("plan-{}", name.trim()), rate)?))
        });
        Ok(Limits(Some(Counted {
            clients: keyed("client", &clients)?,
            plans: plans.collect::<Result<_, String>>()?,
        })))
    }

    /// Lists them with other policies: of each, the key that has the least left.
    pub fn show_in(&self, registry: &Registry) {
        let counted = self.0.iter().flat_map(|it| it.plans.values().chain([&it.clients]));
        counted.for_each(|keyed| registry.add(&Tightest(keyed.clone())));
    }

    /// Counts a request, and says what is left; `None` where nothing is counted.
    ///
    /// # Errors
    ///
    /// [`TooMany`].
    pub fn count(&self, client: Option<IpAddr>, who: Option<&Claims>) -> Result<Option<Quota>, TooMany> {
        let Some(counted) = &self.0 else { return Ok(None) };
        let plan = who.and_then(|who| Some((who, counted.plans.get(who.plan.as_deref()?)?)));
        let limiter = match plan {
            Some((Claims { tenant: Some(tenant), .. }, limiters)) => {
                limiters.get(&format!("tenant {tenant}"))
            }
            Some((Claims { sub, .. }, limiters)) => limiters.get(&format!("user {sub}")),
            None => counted.clients.get(&client.map_or_else(|| "unknown".to_owned(), network)),
        };
        match limiter.try_acquire() {
            Ok(permit) => {
                let quota = permit.quota();
                permit.started();
                Ok(Some(quota))
            }
            Err(refused) => Err(TooMany { refused, quota: limiter.quota() }),
        }
    }
}

/// Whom an address stands for: itself, or the network of 64 bits that one customer of a provider has to himself.
fn network(client: IpAddr) -> String {
    match client.to_canonical() {
        IpAddr::V4(four) => four.to_string(),
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() >> 64 << 64).to_string(),
    }
}

/// `100/15m`: so many in so much time, in `s`, `m` or `h`.
fn rate_of(text: &str) -> Option<(u32, Duration)> {
    let (limit, window) = text.trim().split_once('/')?;
    let (number, unit) = window.trim().split_at_checked(window.trim().len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return None,
    };
    let number: u64 = if number.is_empty() { 1 } else { number.parse().ok()? };
    Some((limit.trim().parse().ok()?, Duration::from_secs(number.checked_mul(seconds)?)))
}

/// Reads the token of a request, for all that comes after, and counts the request.
pub async fn limited(State(gateway): State<Gateway>, mut request: Request, next: Next) -> Response {
    let shown = gateway.0.tokens.read(request.headers());
    let who = if let Shown::Token(claims) = &shown { Some(claims) } else { None };
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|it| it.0.ip());
    let (mut response, quota) = match gateway.0.limits.count(client, who) {
        Ok(quota) => {
            request.extensions_mut().insert(shown);
            (next.run(request).await, quota)
        }
        Err(TooMany { refused, quota }) => {
            let mut error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "Too many requests");
            error.retry_after = refused.retry_after();
            (error.into_response(), Some(quota))
        }
    };
    if let Some(quota) = quota {
        let fields = [
            ("ratelimit-limit", quota.limit.into()),
            ("ratelimit-remaining", quota.remaining.into()),
            ("ratelimit-reset", quota.reset_seconds()),
        ];
        for (name, value) in fields {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from(value));
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const QUARTER: Duration = Duration::from_secs(15 * 60);

    fn who(sub: &str, tenant: &str, plan: &str) -> Claims {
        Claims { tenant: Some(tenant.into()), plan: Some(plan.into()), ..Claims::of(sub) }
    }

    fn address(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_in_any_quarter_of_an_hour_for_each_address() {
        let limits = Limits::of(&Env::empty()).unwrap();
        let begun = tokio::time::Instant::now();
        let mut passed = Vec::new();
        for step in 0..3_000_u64 {
            if limits.count(address(1), None).is_ok() {
                passed.push(begun.elapsed());
            }
            advance(Duration::from_millis(step * 7_919 % 3_000)).await;
        }
        assert!(passed.len() > 400, "{}", passed.len());
        // The hundred-and-first is never within a quarter of an hour of the first, wherever one begins.
        assert!(passed.windows(101).all(|some| some[100] - some[0] >= QUARTER));
        // The same test of windows that begin at fixed times would find 200 in such a stretch: what is counted there is no promise.
        let fixed: Vec<_> =
            (0..200).map(|at| QUARTER - Duration::from_secs(100) + Duration::from_secs(at)).collect();
        assert!(!fixed.windows(101).all(|some| some[100] - some[0] >= QUARTER));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_is_told_when_to_come_back() {
        let limits = Limits::of(&Env::empty()).unwrap();
        for left in (0..100).rev() {
            assert_eq!(limits.count(address(1), None).unwrap().unwrap().remaining, left);
        }
        advance(Duration::from_secs(60)).await;
        let refused = limits.count(address(1), None).unwrap_err();
        assert_eq!(refused.refused.retry_after(), Some(QUARTER - Duration::from_secs(60)));
        assert_eq!((refused.quota.limit, refused.quota.remaining), (100, 0));
        assert!(limits.count(address(2), None).is_ok(), "another address");
        advance(QUARTER - Duration::from_secs(60)).await;
        assert!(limits.count(address(1), None).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_plan_counts_for_the_tenant_wherever_it_comes_from() {
        let env = Env::empty().with(env::RATE_LIMIT, "3/1h").with(env::RATE_LIMIT_PLANS, "gold=5/1h");
        let limits = Limits::of(&env).unwrap();
        let passed = |client: u8, who: &Claims| {
            (0..20).filter(|_| limits.count(address(client), Some(who)).is_ok()).count()
        };
        assert_eq!(passed(1, &who("u1", "t1", "gold")), 5);
        assert_eq!(
            passed(2, &who("u2", "t1", "gold")),
            0,
            "another user at another address, of the same tenant"
        );
        assert_eq!(passed(1, &who("u3", "t2", "gold")), 5, "another tenant");
        assert_eq!(passed(1, &who("u4", "t3", "no such plan")), 3, "by address, of which nothing was used");
        assert!(limits.count(address(1), None).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn off_is_off_and_nonsense_is_refused() {
        let off = Limits::of(&Env::empty().with(env::RATE_LIMIT, "off")).unwrap();
        assert!((0..1_000).all(|_| matches!(off.count(address(1), None), Ok(None))));
        for nonsense in ["", "100", "100/15", "100/15d", "x/1m", "0/1m", "1/0s", "/"] {
            let env = Env::empty().with(env::RATE_LIMIT_PLANS, format!("gold={nonsense}"));
            assert!(Limits::of(&env).is_err(), "{nonsense}");
        }
        assert_eq!(rate_of("5/h"), Some((5, Duration::from_secs(3_600))));
    }

    #[tokio::test(start_paused = true)]
    async fn operators_see_who_has_the_least_left() {
        let (limits, registry) = (Limits::of(&Env::empty()).unwrap(), Registry::new());
        limits.show_in(&registry);
        assert_eq!(registry.snapshots(), [], "nobody has come yet");
        for (client, times) in [(1, 3), (2, 40), (3, 7)] {
            assert!((0..times).all(|_| limits.count(address(client), None).is_ok()));
        }
        limits.count(address(1), Some(&who("u1", "t1", "gold"))).unwrap();
        let shown = registry.snapshots().into_iter().map(|snapshot| match snapshot {
            Snapshot::RateLimiter(limiter) => (limiter.name.to_string(), limiter.quota.remaining),
            other => panic!("{other:?}"),
        });
        let shown: Vec<_> = shown.collect();
        assert_eq!(shown, [("plan-gold[tenant t1]".to_owned(), 9_999), ("client[192.0.2.2]".to_owned(), 60)]);
    }

    #[test]
    fn a_customer_with_many_addresses_is_one() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(of("2001:db8:0:1::7"), of("2001:db8:0:1:ffff::9"));
        assert_ne!(of("2001:db8:0:1::7"), of("2001:db8:0:2::7"));
    }
}
