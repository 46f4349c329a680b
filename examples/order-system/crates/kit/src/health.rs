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

    /// That the broker answers, and the service's queues are consumed. The caller says whether it is required.
    pub fn message_queue(context: &Context, required: bool) -> Self {
        let context = context.clone();
        let queue = Check::required("messageQueue", move || {
            let context = context.clone();
            async move {
                let here = context.broker().check().await;
                here.map_err(|_| "the broker does not answer".to_owned())?;
                let unattended = context.unattended();
                unattended.map_or(Ok(()), |queue| Err(format!("the queue {queue} is not consumed yet")))
            }
        });
        Check { required, ..queue }
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

/// Asks all at once. Of those with one name, as the parts of a monolith have them, the worst answer is shown.
pub async fn ready(service: &str, uptime: Duration, checks: &[Check]) -> Ready {
    let mut answers = join_all(checks.iter().map(async |check| {
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
    // The worst is the last of its name, which is the one that is kept.
    answers.sort_by_key(|answer| answer.2);
    let status = answers.last().map_or(Status::Ok, |answer| answer.2);
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

    #[tokio::test(start_paused = true)]
    async fn of_one_name_the_worst_is_shown() {
        let well = || Check::required("database", || async { Ok(()) });
        let away = || Check::required("database", || async { Err("away".to_owned()) });
        for checks in [[well(), away()], [away(), well()]] {
            let ready = ready("monolith", Duration::ZERO, &checks).await;
            assert_eq!((ready.status, ready.checks["database"].status), (Status::Unhealthy, "fail"));
        }
    }

    /// Every row of up to four checks, each required or not, and well, away or silent.
    #[tokio::test(start_paused = true)]
    async fn the_worst_counts_in_any_order() {
        let kinds = [true, false]
            .into_iter()
            .flat_map(|required| ["ok", "fail", "timeout"].map(|says| (required, says)));
        let kinds: Vec<_> = kinds.collect();
        let check = |name, (required, says): (bool, &'static str)| {
            let ask = move || async move {
                match says {
                    "ok" => Ok(()),
                    "fail" => Err("away".to_owned()),
                    _ => std::future::pending().await,
                }
            };
            Check { required, ..Check::optional(name, ask) }
        };
        let mut rows = vec![Vec::new()];
        for length in 0..4 {
            let longer = rows.iter().filter(|row: &&Vec<_>| row.len() == length);
            let longer = longer.flat_map(|row| kinds.iter().map(|kind| [&row[..], &[*kind]].concat()));
            let longer: Vec<_> = longer.collect();
            rows.extend(longer);
        }
        assert_eq!(rows.len(), 1 + 6 + 36 + 216 + 1_296);
        for row in rows {
            let names = ["database", "messageQueue", "userService", "cache"];
            let checks: Vec<_> =
                names.into_iter().zip(row.clone()).map(|(name, kind)| check(name, kind)).collect();
            let answer = ready("it", Duration::ZERO, &checks).await;
            let away = |wanted| row.iter().any(|(required, says)| *required == wanted && *says != "ok");
            let expected = match (away(true), away(false)) {
                (true, _) => Status::Unhealthy,
                (false, true) => Status::Degraded,
                (false, false) => Status::Ok,
            };
            assert_eq!(answer.status, expected, "{row:?}");
            for (name, (_, says)) in names.iter().zip(&row) {
                assert_eq!(answer.checks[name].status, *says, "{row:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_queue_that_is_to_be_consumed_and_is_not_is_named() {
        let broker = order_broker::open("memory:").await.unwrap();
        let ports = Arc::new(crate::context::Ports(1));
        let context = Context::new("it", crate::env::Env::empty(), std::path::Path::new("."), broker, ports);
        let check = Check::message_queue(&context, true);
        let said = async || {
            ready("it", Duration::ZERO, std::slice::from_ref(&check)).await.checks["messageQueue"].clone()
        };
        assert_eq!(said().await.status, "ok");
        context.attend("mails", false);
        context.attend("points", true);
        assert_eq!(said().await.error.as_deref(), Some("the queue mails is not consumed yet"));
        context.attend("mails", true);
        assert_eq!(said().await.status, "ok");
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_is_a_timeout_and_holds_up_no_other() {
        let hung = Check::required("cache", std::future::pending);
        let well = Check::required("database", || std::future::ready(Ok(())));
        let answer = ready("it", Duration::ZERO, &[hung, well]).await;
        assert_eq!((answer.checks["cache"].status, answer.checks["database"].status), ("timeout", "ok"));
    }
}
