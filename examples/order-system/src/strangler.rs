//! `routes`, `canary`, `shadow`, `strangle`, `rollback`: which requests of a running system go to a service and which to the monolith that
//! it leaves, asked of the gateway and set there.

use std::fmt::Write;

use clap::Subcommand;
use order_gateway::strangler::{Route, To};
use order_kit::{BoxError, env};
use serde::Deserialize;
use serde_json::json;

use crate::remote::{Answer, Remote};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Where the requests of each service go: to it, or to the monolith that it leaves; with counts.
    Routes,
    /// Sends a share of what only reads to the service: `canary users 10%`. Changes are made where they were.
    Canary {
        /// Which service.
        service: String,
        /// From `0%` to `100%`.
        share: String,
    },
    /// Asks the side that does not answer as well, and counts how often it would have answered in another way: `shadow users`.
    Shadow {
        /// Which service.
        service: String,
        /// Ends it.
        #[arg(long)]
        off: bool,
    },
    /// Sends all requests of a service to it: `strangle users`.
    Strangle {
        /// Which service.
        service: String,
    },
    /// Sends all requests of a service to the monolith again, and ends canary and shadow: `rollback users`.
    Rollback {
        /// Which service.
        service: String,
    },
}

/// A route, as the gateway shows it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// The service.
    pub service: String,
    to: To,
    #[serde(default)]
    canary_percent: Option<u8>,
    shadow: bool,
    new: u64,
    legacy: u64,
    /// Shadow requests that were answered alike.
    pub shadow_matches: u64,
    /// Shadow requests that were answered in another way.
    pub shadow_mismatches: u64,
    shadow_failed: u64,
    shadow_skipped: u64,
}

impl Shown {
    /// How many shadow requests there were, those among them that were not sent or not answered.
    pub fn shadows(&self) -> u64 {
        self.shadow_matches + self.shadow_mismatches + self.shadow_failed + self.shadow_skipped
    }
}

/// Does it, and gives what there is to be printed: the routes as they are then.
///
/// # Errors
///
/// A share or a service that is none, and whatever else the gateway does not do; in one line.
pub async fn run(what: &What, remote: &Remote) -> Result<String, BoxError> {
    let (service, change): (_, Box<dyn Fn(Route) -> Route + Send>) = match what {
        What::Routes => return Ok(printed(&routes(remote).await?)),
        What::Canary { service, share } => {
            let percent = percent(share)?;
            (service, Box::new(move |route| Route { canary_percent: Some(percent), ..route }))
        }
        What::Shadow { service, off } => {
            let shadow = !off;
            (service, Box::new(move |route| Route { shadow, ..route }))
        }
        What::Strangle { service } => (service, Box::new(|_| plain(To::New))),
        What::Rollback { service } => (service, Box::new(|_| plain(To::Legacy))),
    };
    let routes = routes(remote).await?;
    let Some(shown) = routes.iter().find(|it| it.service == *service) else {
        let known: Vec<&str> = routes.iter().map(|it| it.service.as_str()).collect();
        return Err(format!(
            "there is no service `{service}` behind the gateway; there are {}",
            known.join(", ")
        )
        .into());
    };
    let Shown { to, canary_percent, shadow, .. } = *shown;
    let route = change(Route { to, canary_percent, shadow });
    let answer = remote.put("gateway", &format!("/_routes/{service}"), json!(route)).await;
    Ok(printed(&[answered(remote, answer)?.read()?]))
}

/// All routes of a running gateway.
///
/// # Errors
///
/// That it does not say.
pub async fn routes(remote: &Remote) -> Result<Vec<Shown>, BoxError> {
    answered(remote, remote.get("gateway", "/_routes").await)?.read()
}

fn plain(to: To) -> Route {
    Route { to, canary_percent: None, shadow: false }
}

fn percent(share: &str) -> Result<u8, BoxError> {
    let number = share.strip_suffix('%').unwrap_or(share).parse().ok();
    number
        .filter(|percent| *percent <= 100)
        .ok_or_else(|| format!("`{share}` is no share: it is a whole number from 0% to 100%").into())
}

/// The gateway's answer, if it is one to work with.
fn answered(remote: &Remote, answer: Result<Answer, BoxError>) -> Result<Answer, BoxError> {
    let gateway = remote.url("gateway");
    let answer = answer.map_err(|error| format!("the gateway at {gateway} does not answer: {error}"))?;
    match answer.status.as_u16() {
        200 => Ok(answer),
        401 => Err(format!("the gateway at {gateway} wants another {}", env::INTERNAL_TOKEN).into()),
        status => {
            let said = answer.json()["error"].as_str().map_or_else(|| status.to_string(), str::to_owned);
            Err(format!("the gateway at {gateway}: {said}").into())
        }
    }
}

fn printed(routes: &[Shown]) -> String {
    let mut text = format!(
        "{:<14} {:<9} {:>6} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
        "service",
        "goes to",
        "canary",
        "shadow",
        "service",
        "monolith",
        "same",
        "different",
        "failed",
        "skipped"
    );
    for it in routes {
        let to = if it.to == To::New { "service" } else { "monolith" };
        let canary = it.canary_percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent}%"));
        let shadow = if it.shadow { "on" } else { "-" };
        // Writing into a text does not fail.
        let _ = writeln!(
            text,
            "{:<14} {to:<9} {canary:>6} {shadow:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            it.service,
            it.new,
            it.legacy,
            it.shadow_matches,
            it.shadow_mismatches,
            it.shadow_failed,
            it.shadow_skipped
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn a_share_is_a_whole_number_of_a_hundred() {
        for (text, share) in [("10%", 10), ("10", 10), ("0%", 0), ("100%", 100)] {
            assert_eq!(percent(text).unwrap(), share);
        }
        for none in ["150%", "101", "-1%", "", "%", "10%%", "ten", "1.5%", "256%"] {
            assert!(percent(none).unwrap_err().to_string().contains(none), "{none}");
        }
    }
}
