//! Journeys: what happens to orders when all is well and when something is broken, played and checked.

use std::{fmt, path::Path, time::Duration};

use order_kit::{BoxError, env};
use serde_json::{Value, json};

use crate::{
    remote::{Answer, Remote},
    seed::{Seed, seed},
    system::{Options, System},
};

mod broker;
mod cascade;
mod chain;
mod orders;
mod payment;
pub(crate) mod processes;
mod routes;

/// How long what is on its way may take to end, when nothing is broken any more.
const CALM: Duration = Duration::from_secs(30);

/// What a person takes for at once.
const AT_ONCE: Duration = Duration::from_millis(50);
/// The same of a machine that builds programs meanwhile, for the median of several: an answer is some milliseconds of work, and whoever waits
/// for a service that is broken waits for seconds.
const AT_ONCE_LOOSE: Duration = Duration::from_secs(1);
/// The same for one answer alone: its disk may have been somebody else's for a while.
const ONE_LOOSE: Duration = Duration::from_secs(5);
/// Who is answered later than this has been left hanging.
const HANGS: Duration = Duration::from_secs(2);
/// The same of a busy machine. Nothing that works waits as long as that for anything; a customer's program gives up after 30 s.
const HANGS_LOOSE: Duration = Duration::from_secs(10);

/// The names, in the order in which they are listed.
pub const NAMES: &[(&str, &str)] = &[
    ("happy", "an order is paid for and confirmed; everybody hears of it once"),
    ("declined", "the card is declined: what was reserved is released, nothing is refunded"),
    ("out-of-stock", "there is not enough of it: cancelled, and nobody was asked for money"),
    ("payment-down", "payments fail: orders wait, everything else goes on; then they are paid for"),
    ("payment-killed", "the payment process is killed under load: nobody hangs, nobody pays twice"),
    ("crash", "the order process is killed with sagas at every place: each goes on where it was"),
    ("broker-down", "the broker is away: orders are taken, and told of in order when it is back"),
    ("cascade", "a service that hangs, with and without breakers"),
    ("chain", "five hops share one deadline"),
    ("chain-of-retries", "what retries at every hop do to the last one, with and without a budget"),
    ("strangler", "users leave the monolith with their data, while it goes on"),
    ("canary", "a tenth of the requests goes to the new service"),
];

/// Plays one; how many of its checks did not hold.
///
/// # Errors
///
/// That it could not be played.
pub async fn play(name: &str, options: &Play) -> Result<usize, BoxError> {
    let Some((name, what)) = NAMES.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no journey `{name}`; there are {}", names.join(", ")).into());
    };
    let mut story = Story::begin(name, what, options.timed);
    match *name {
        "happy" => orders::happy(&mut story, options).await?,
        "declined" => orders::declined(&mut story, options).await?,
        "out-of-stock" => orders::out_of_stock(&mut story, options).await?,
        "payment-down" => payment::down(&mut story, options).await?,
        "payment-killed" => processes::payment_killed(&mut story, options).await?,
        "crash" => processes::crash(&mut story, options).await?,
        "broker-down" => broker::down(&mut story, options).await?,
        "cascade" => cascade::cascade(&mut story, options).await?,
        "chain" => chain::chain(&mut story).await?,
        "chain-of-retries" => chain::retries(&mut story).await?,
        "strangler" => routes::strangler(&mut story, options).await?,
        _ => routes::canary(&mut story, options).await?,
    }
    Ok(story.end())
}

/// How journeys are played.
#[derive(Debug, Clone)]
pub struct Play {
    /// What is set for every system that is started.
    pub variables: Vec<(String, String)>,
    /// For journeys that kill processes.
    pub program: std::path::PathBuf,
    /// Whether times are as strict as they are for a person. A machine that does other things meanwhile is held to the loose ones.
    pub timed: bool,
}

impl Play {
    /// Whether a saga moves orders on, and not the events alone.
    fn conducted(&self) -> bool {
        !self.variables.iter().any(|(name, value)| name == env::SAGA_STYLE && value == "choreography")
    }

    /// A system of its own in this process, with its users and products, and a user who is logged in.
    async fn stage(&self, data: &Path, variables: &[(&str, &str)]) -> Result<Stage, BoxError> {
        let mut options = Options::alone(data).with(env::RATE_LIMIT, "off").with(env::POLICY_FAST, "1");
        for (name, value) in &self.variables {
            options = options.with(name, value.clone());
        }
        for (name, value) in variables {
            options = options.with(name, *value);
        }
        let system = System::start(options).await?;
        let remote = Remote::to(&system);
        Stage::set(Some(system), remote).await
    }
}

/// Starts a process for each service, on free ports.
///
/// # Errors
///
/// That they are not ready in time.
pub async fn start_processes(play: &Play, data: &Path) -> Result<crate::processes::Processes, BoxError> {
    processes::start(play, data).await
}

/// A system with users and products.
pub struct Stage {
    /// In this process, if it is.
    pub system: Option<System>,
    /// The person.
    pub remote: Remote,
    /// Who and what there is.
    pub seed: Seed,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.seed.fmt(f)
    }
}

impl Stage {
    /// With the first user logged in.
    async fn set(system: Option<System>, mut remote: Remote) -> Result<Self, BoxError> {
        let seed = seed(&remote).await?;
        let user = seed.users.first().ok_or("no users")?.1.clone();
        remote.log_in(&user).await?;
        Ok(Stage { system, remote, seed })
    }

    fn user(&self, index: usize) -> &str {
        &self.seed.users[index].1
    }

    fn product(&self, index: usize) -> &str {
        &self.seed.products[index].1
    }

    /// Orders through the gateway, as a customer does.
    async fn order(&self, user: usize, product: usize, quantity: i64) -> Result<Answer, BoxError> {
        let body = json!({
            "userId": self.user(user),
            "items": [{ "productId": self.product(product), "quantity": quantity }],
        });
        // The first is logged in.
        let customer =
            if user == 0 { self.remote.clone() } else { self.remote.as_user(self.user(user)).await? };
        customer.post("gateway", "/api/orders", body).await
    }

    /// Waits until an order is over.
    async fn over(&self, order: &str, time: Duration) -> Result<Value, BoxError> {
        let over = |answer: &Answer| {
            ["confirmed", "cancelled"].contains(&answer.json()["status"].as_str().unwrap_or(""))
        };
        Ok(self.remote.until(time, "orders", &format!("/orders/{order}"), over).await?.json())
    }

    async fn stock(&self, product: usize) -> Result<Value, BoxError> {
        let path = format!("/inventory/{}", self.product(product));
        Ok(self.remote.get("inventory", &path).await?.expect(200)?.json())
    }

    /// Waits until so many mails about an order were sent, and gives their kinds.
    async fn mails(&self, order: &str, at_least: usize) -> Result<Vec<String>, BoxError> {
        let path = format!("/sent?order={order}");
        let enough = |answer: &Answer| answer.json().as_array().is_some_and(|mails| mails.len() >= at_least);
        let answer = self.remote.until(Duration::from_secs(5), "notifications", &path, enough).await?;
        let kinds = answer.json().as_array().cloned().unwrap_or_default();
        let mut kinds: Vec<String> =
            kinds.iter().filter_map(|mail| mail["kind"].as_str().map(str::to_owned)).collect();
        kinds.sort();
        Ok(kinds)
    }

    async fn end(self) {
        if let Some(system) = self.system {
            system.stop().await;
        }
    }
}

/// What is told while a journey is played.
#[derive(Debug)]
pub struct Story {
    name: &'static str,
    began: tokio::time::Instant,
    missed: usize,
    checked: usize,
    timed: bool,
}

impl Story {
    fn begin(name: &'static str, what: &str, timed: bool) -> Self {
        println!("{name}: {what}\n");
        Story { name, began: tokio::time::Instant::now(), missed: 0, checked: 0, timed }
    }

    /// What happens now.
    pub fn say(&self, what: impl fmt::Display) {
        println!("{:>7.2} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// What has to hold.
    pub fn check(&mut self, holds: bool, what: impl fmt::Display) {
        self.checked += 1;
        self.missed += usize::from(!holds);
        println!(
            "{:>7.2} s    {} {what}",
            self.began.elapsed().as_secs_f64(),
            if holds { "yes" } else { "NO " }
        );
    }

    /// The bound that holds here: the strict one, or that of a machine which does other things meanwhile. Both count.
    pub fn bound<T>(&self, strict: T, loose: T) -> T {
        if self.timed { strict } else { loose }
    }

    fn end(self) -> usize {
        let Story { name, checked, missed, .. } = self;
        println!("\n{name}: {} of {checked} checks hold", checked - missed);
        missed
    }
}

/// The middle one.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// The id in the answer to an order.
pub(crate) fn order_id(answer: &Answer) -> Result<String, BoxError> {
    answer.json()["id"].as_str().map(str::to_owned).ok_or_else(|| format!("no order in {answer:?}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_late_misses_the_strict_bound_and_who_is_very_late_the_loose_one() {
        for (took, timed, missed) in [(1, true, 0), (5, true, 1), (5, false, 0), (11, false, 1)] {
            let mut story = Story::begin("late", "some are", timed);
            let bar = story.bound(HANGS, HANGS_LOOSE);
            story.check(Duration::from_secs(took) < bar, format!("{took} s"));
            assert_eq!(story.end(), missed, "{took} s, {timed}");
        }
    }
}
