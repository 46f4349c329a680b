//! Whether a service lives, and whether it can be given work.
//!
//! `/health` and `/health/live` answer from memory: a process whose database is away is not to be restarted for it. `/health/ready` and
//! `/ready` ask what the service needs, all at once, each for one second at most. The worst answer counts, in whatever order they come:
//! a required check that fails makes it `unhealthy` (503), an optional one `degraded` (200, or what `READY_DEGRADED_STATUS` says).

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use futures::future::join_all;
use serde::Serialize;

use crate::{Context, Db};

/// How long a check may take.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

type Ask = dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync;

/// One thing that a service needs.
#[derive(Clone)]
pub struct Check {
    name: &'static str,
    required: bool,
    ask: Arc<Ask>,
}

impl Check {
    /// Without which the service cannot do its work.
    pub fn required<F>(name: &'static str, ask: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Check { name, required: true, ask: Arc::new(move || Box::pin(ask())) }
    }

    /// That a database answers; without it nothing can be done.
    pub fn database(name: &'static str, db: &Db) -> Self {
        let db = db.clone();
        Check::required(name, move || {
            let db = db.clone();
            async move { db.ping().await }
        })
    }

    /// That the broker answers. The caller says whether it is required.
    pub fn message_queue(context: &Context, required: bool) -> Self {
        let broker = context.broker().clone();
        let queue = Check::required("messageQueue", move || {
            let broker = broker.clone();
            async move { broker.check().await.map_err(|_| "the broker does not answer".to_owned()) }
        });
        Check { required, ..queue }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Without which the service does less.
    pub fn optional<F>(name: &'static str, ask: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Check { required: false, ..Check::required(name, ask) }
    }
}

/// How well a service is; the later the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All is there.
    Ok,
    /// Something optional is away.
    Degraded,
    /// Something required is away.
    Unhealthy,
}

/// What one check said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Checked {
    /// `ok`, `fail` or `timeout`.
    pub status: &'static str,
    /// What is wrong, without addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The answer of `/health/ready`.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Ready {
    /// The worst of them.
    pub status: Status,
    /// Who says so.
    pub service: String,
    /// When.
    pub timestamp: String,
    /// Seconds since the start.
    pub uptime: u64,
    /// Each check by its name.
    pub checks: BTreeMap<&'static str, Checked>,
}

/// Asks all at once.
pub async fn ready(service: &str, uptime: Duration, checks: &[Check]) -> Ready {
    let answers = join_all(checks.iter().map(async |check| {
        let checked = match tokio::time::timeout(CHECK_TIMEOUT, (check.ask)()).await {
            Ok(Ok(())) => Checked { status: "ok", error: None },
            Ok(Err(error)) => Checked { status: "fail", error: Some(error) },
            Err(_) => Checked { status: "timeout", error: Some("no answer within a second".to_owned()) },
        };
        let status = match (checked.status, check.required) {
            ("ok", _) => Status::Ok,
            (_, false) => Status::Degraded,
            (_, true) => Status::Unhealthy,
        };
        (check.name, checked, status)
    }))
    .await;
    let status = answers.iter().map(|answer| answer.2).max().unwrap_or(Status::Ok);
    Ready {
        status,
        service: service.to_owned(),
        timestamp: crate::iso(crate::now_ms()),
        uptime: uptime.as_secs(),
        checks: answers.into_iter().map(|(name, checked, _)| (name, checked)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down() -> std::future::Ready<Result<(), String>> {
        std::future::ready(Err("away".to_owned()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_worst_counts_in_any_order() {
        let [database, user] = [Check::required("database", down), Check::optional("userService", down)];
        for checks in [[database.clone(), user.clone()], [user.clone(), database.clone()]] {
            assert_eq!(ready("it", Duration::ZERO, &checks).await.status, Status::Unhealthy);
        }
        assert_eq!(ready("it", Duration::ZERO, &[user]).await.status, Status::Degraded);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_is_a_timeout_and_holds_up_no_other() {
        let hung = Check::required("cache", std::future::pending);
        let well = Check::required("database", || std::future::ready(Ok(())));
        let answer = ready("it", Duration::ZERO, &[hung, well]).await;
        assert_eq!((answer.checks["cache"].status, answer.checks["database"].status), ("timeout", "ok"));
    }
}
