//! The way out of a monolith, one service after another: which requests go to the new side and which to the old one.
//!
//! A route says where requests of one service go, which share goes to the new side as a canary, and whether the other side is asked as well
//! to see if it would have said the same. All of that is set while the gateway runs, and taken back by one call.

use std::{
    collections::BTreeMap,
    sync::{
        RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use order_kit::{
    env::{self, Env},
    metric,
};
use serde::{Deserialize, Serialize};

/// One of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum To {
    /// The service.
    New,
    /// The monolith.
    Legacy,
}

impl To {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            To::New => To::Legacy,
            To::Legacy => To::New,
        }
    }
}

/// Where requests of one service go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// Where all of them go, if there is no canary; and with one what changes something, so that one side alone has all changes.
    pub to: To,
    /// Of what only reads, so many of a hundred go to the new side and the others to the monolith, whatever `to` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 100)]
    pub canary_percent: Option<u8>,
    /// Reads go to the other side as well, and what it says is compared and thrown away.
    #[serde(default)]
    pub shadow: bool,
}

/// How often what has happened, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    new: AtomicU64,
    legacy: AtomicU64,
    matches: AtomicU64,
    mismatches: AtomicU64,
    failed: AtomicU64,
    skipped: AtomicU64,
}

/// What came of a question to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// It says the same.
    Same,
    /// It says something else.
    Different,
    /// It says nothing.
    Failed,
    /// It was not asked: too many questions are on their way.
    Skipped,
}

/// A route and its counters, as shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// The service.
    pub service: &'static str,
    /// As in [`Route`].
    pub to: To,
    /// As in [`Route`].
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 100)]
    pub canary_percent: Option<u8>,
    /// As in [`Route`].
    pub shadow: bool,
    /// Requests that went to the new side.
    pub new: u64,
    /// Requests that went to the monolith.
    pub legacy: u64,
    /// Shadow requests that were answered alike.
    pub shadow_matches: u64,
    /// Shadow requests that were answered in another way.
    pub shadow_mismatches: u64,
    /// Shadow requests without an answer.
    pub shadow_failed: u64,
    /// Shadow requests that were not sent, because too many were on their way.
    pub shadow_skipped: u64,
}

/// The routes of all services.
#[derive(Debug)]
pub struct Strangler {
    routes: BTreeMap<&'static str, (RwLock<Route>, Counters)>,
    /// Where the monolith is.
    legacy: Option<String>,
}

/// Why a route cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// Nobody knows that service.
    #[error("no such service")]
    Service,
    /// The share is none.
    #[error("canaryPercent is a number from 0 to 100")]
    Percent,
    /// There is no monolith.
    #[error("there is no monolith: LEGACY_URL is not set")]
    NoMonolith,
}

impl Strangler {
    /// As the environment says: without a monolith all goes to the services, with one what `STRANGLE` names.
    ///
    /// # Errors
    ///
    /// A service in `STRANGLE` that nobody knows, or no monolith to leave.
    pub fn of(env: &Env) -> Result<Self, String> {
        let legacy = env.get(env::LEGACY_URL);
        let strangled = env.get_or_default(env::STRANGLE);
        let strangled: Vec<&str> = strangled.split(',').map(str::trim).filter(|it| !it.is_empty()).collect();
        if legacy.is_none() && !strangled.is_empty() {
            return Err("STRANGLE needs LEGACY_URL: where the monolith is".to_owned());
        }
        if let Some(unknown) = strangled.iter().find(|name| !crate::behind().any(|it| it.name == **name)) {
            return Err(format!("STRANGLE names {unknown:?}, which is no service"));
        }
        let routes = crate::behind().map(|known| {
            let new = legacy.is_none() || strangled.contains(&known.name);
            let route =
                Route { to: if new { To::New } else { To::Legacy }, canary_percent: None, shadow: false };
            (known.name, (RwLock::new(route), Counters::default()))
        });
        Ok(Strangler { routes: routes.collect(), legacy })
    }

    /// Where the monolith is.
    pub fn legacy(&self) -> Option<&str> {
        self.legacy.as_deref()
    }

    /// Where a request goes, and whether the other side is asked as well. What reads with the same key goes to the same side as long as the
    /// share is the same, and stays on the new side when it grows.
    pub fn decide(&self, service: &str, key: &str, reads: bool) -> (To, bool) {
        let Some((route, counters)) = self.routes.get(service) else { return (To::Legacy, false) };
        let Route { to, canary_percent, shadow } = *route.read().unwrap_or_else(|error| error.into_inner());
        let to = match canary_percent.filter(|_| reads) {
            Some(percent) if share(key) < u64::from(percent) => To::New,
            Some(_) => To::Legacy,
            None => to,
        };
        let counter = if to == To::New { &counters.new } else { &counters.legacy };
        counter.fetch_add(1, Relaxed);
        (to, shadow && self.legacy.is_some())
    }

    /// Sets where requests of a service go.
    ///
    /// # Errors
    ///
    /// [`Wrong`].
    pub fn set(&self, service: &str, route: Route) -> Result<Shown, Wrong> {
        let (name, (place, counters)) = self.routes.get_key_value(service).ok_or(Wrong::Service)?;
        if route.canary_percent.is_some_and(|percent| percent > 100) {
            return Err(Wrong::Percent);
        }
        let plain = Route { to: To::New, canary_percent: None, shadow: false };
        if self.legacy.is_none() && route != plain {
            return Err(Wrong::NoMonolith);
        }
        *place.write().unwrap_or_else(|error| error.into_inner()) = route;
        Ok(counters.show(name, route))
    }

    /// What came of a question to the other side.
    pub fn compared(&self, service: &'static str, compared: Compared) {
        let Some((_, counters)) = self.routes.get(service) else { return };
        let (counter, outcome) = match compared {
            Compared::Same => (&counters.matches, "same"),
            Compared::Different => (&counters.mismatches, "different"),
            Compared::Failed => (&counters.failed, "failed"),
            Compared::Skipped => (&counters.skipped, "skipped"),
        };
        counter.fetch_add(1, Relaxed);
        metrics::counter!(metric::GATEWAY_SHADOW_TOTAL, "service" => service, "outcome" => outcome)
            .increment(1);
    }

    /// All routes.
    pub fn show(&self) -> Vec<Shown> {
        let shown = self.routes.iter().map(|(name, (route, counters))| {
            counters.show(name, *route.read().unwrap_or_else(|error| error.into_inner()))
        });
        shown.collect()
    }
}

impl Counters {
    fn show(&self, service: &'static str, route: Route) -> Shown {
        Shown {
            service,
            to: route.to,
            canary_percent: route.canary_percent,
            shadow: route.shadow,
            new: self.new.load(Relaxed),
            legacy: self.legacy.load(Relaxed),
            shadow_matches: self.matches.load(Relaxed),
            shadow_mismatches: self.mismatches.load(Relaxed),
            shadow_failed: self.failed.load(Relaxed),
            shadow_skipped: self.skipped.load(Relaxed),
        }
    }
}

/// Where a key stands among a hundred: the same in every process and every version.
fn share(key: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in key.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    // The low bits of that hash hardly depend on the first bytes.
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> 32) % 100
}

/// Whether two bodies say the same: as JSON if they are that, whatever the order of the fields.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    let json = |body| serde_json::from_slice::<serde_json::Value>(body).ok();
    one == other || matches!((json(one), json(other)), (Some(one), Some(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strangler(strangled: &str) -> Strangler {
        let env = Env::empty().with(env::LEGACY_URL, "http://127.0.0.1:1").with(env::STRANGLE, strangled);
        Strangler::of(&env).unwrap()
    }

    fn route(to: To, canary_percent: Option<u8>) -> Route {
        Route { to, canary_percent, shadow: false }
    }

    #[test]
    fn what_is_strangled_is_new_and_all_else_is_old() {
        let strangler = strangler("users, products");
        let to = |service| strangler.decide(service, "k", true).0;
        assert_eq!(
            (to("users"), to("products"), to("orders"), to("else")),
            (To::New, To::New, To::Legacy, To::Legacy)
        );
        let alone = Strangler::of(&Env::empty()).unwrap();
        assert_eq!(alone.decide("orders", "k", true), (To::New, false));
        assert_eq!(alone.set("orders", route(To::Legacy, None)), Err(Wrong::NoMonolith));
        assert!(Strangler::of(&Env::empty().with(env::STRANGLE, "users")).is_err());
        let unknown = Env::empty().with(env::LEGACY_URL, "http://x").with(env::STRANGLE, "user");
        assert!(Strangler::of(&unknown).is_err());
    }

    #[test]
    fn a_canary_is_its_share_and_stays_when_the_share_grows() {
        let strangler = strangler("");
        let new = |percent| -> Vec<usize> {
            strangler.set("users", route(To::Legacy, Some(percent))).unwrap();
            (0..1_000)
                .filter(|id| strangler.decide("users", &format!("u1 /users/{id}"), true).0 == To::New)
                .collect()
        };
        let (ten, thirty) = (new(10), new(30));
        assert!((70..=130).contains(&ten.len()), "{}", ten.len());
        assert!((250..=350).contains(&thirty.len()), "{}", thirty.len());
        assert!(ten.iter().all(|id| thirty.contains(id)), "nobody goes back");
        assert_eq!((new(0).len(), new(100).len()), (0, 1_000));
        for to in [To::New, To::Legacy] {
            strangler.set("users", route(to, Some(50))).unwrap();
            let sides = (0..100).map(|id| strangler.decide("users", &format!("{id}"), false).0);
            assert!(sides.into_iter().all(|side| side == to), "changes are made on one side");
        }
        assert_eq!(strangler.set("users", route(To::New, Some(101))), Err(Wrong::Percent));
        assert_eq!(strangler.set("nobody", route(To::New, None)), Err(Wrong::Service));
        strangler.set("users", route(To::Legacy, None)).unwrap();
        assert_eq!(strangler.decide("users", "k", true).0, To::Legacy, "back by one call");
    }

    #[test]
    fn json_is_compared_as_json() {
        assert!(same(br#"{"a":1,"b":2}"#, br#"{ "b": 2, "a": 1 }"#));
        assert!(!same(br#"{"a":1}"#, br#"{"a":2}"#) && !same(b"a", b"b") && same(b"a", b"a"));
    }
}
