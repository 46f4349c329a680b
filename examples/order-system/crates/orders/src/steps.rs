//! The steps of an order's saga: what each asks of whom, and what the answers mean.
//!
//! | answer | means | the saga |
//! |---|---|---|
//! | 2xx | it has happened | goes on |
//! | 402, 409, 400, 404, 422 | it has not, and never will | is turned round |
//! | a refusal of a policy before the request was sent, no connection, 401, 403, 429 | it has not yet | asks again |
//! | 5xx, a timeout, a broken connection, an answer that cannot be read | nobody knows | asks again, under the same key |

use std::{pin::pin, sync::Arc, time::Duration};

use http::StatusCode;
use mainstay::{
    ConfigError,
    saga::{Failure, Step},
};
use order_kit::{
    Cents, Context,
    client::{CallError, Client, Options, Reply},
    trace,
};
use serde::{Deserialize, Serialize};

use crate::{
    NAME,
    journey::Journeys,
    order::{Item, pieces},
    saga::MOST_AT_ONCE,
    store::{Decided, Order, Store},
    users::{Directory, Known},
    wire::{Charge, Concerning, Receipt, Reserve},
};

/// How long a charge may take until the order is said to wait for it.
const SOON: Duration = Duration::from_millis(500);

/// What a saga is started with: the order as it was accepted. The same whenever it is made of the order's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Purchase {
    pub(crate) user_id: String,
    pub(crate) items: Vec<Item>,
    pub(crate) total: Cents,
    pub(crate) user_known: bool,
    pub(crate) correlation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) traceparent: Option<String>,
}

impl Purchase {
    pub(crate) fn of(order: &Order) -> Self {
        Purchase {
            user_id: order.user_id.clone(),
            items: order.items.clone(),
            total: order.total,
            user_known: order.user_known,
            correlation: order.correlation.clone(),
            traceparent: order.traceparent.clone(),
        }
    }
}

type This = Step<Purchase>;

/// Whom the steps ask.
#[derive(Clone)]
pub(crate) struct Steps {
    context: Context,
    pub(crate) store: Store,
    pub(crate) users: Directory,
    pub(crate) journeys: Journeys,
    inventory: Client,
    payments: Client,
}

/// What an answer means for a step.
#[derive(Debug)]
enum Said {
    Done(Reply),
    /// It has not happened and will not, for this reason.
    No(String),
    /// With when to ask again, where a policy knows it.
    NotYet(Failure),
    Unknown(String),
}

impl Steps {
    pub(crate) fn new(context: &Context, store: Store, users: Directory) -> Result<Arc<Self>, ConfigError> {
        // The saga repeats what has to be repeated, so the client does not. An order has one call on its way at most: there is room
        // for all that are moved on at once, twice over.
        let options = Options { attempts: 1, queue: 2 * MOST_AT_ONCE, ..Options::default() };
        let inventory = Client::new(context, "inventory", Options { concurrency: 20, ..options })?;
        let payments = Client::new(context, "payment", Options { concurrency: 10, ..options })?;
        let (context, journeys) = (context.clone(), Journeys::default());
        Ok(Arc::new(Steps { context, store, users, journeys, inventory, payments }))
    }

    /// Runs within the span and under the correlation id of the order.
    async fn within<T>(&self, step: &This, work: impl Future<Output = T>) -> T {
        let order = step.input();
        let span = self.journeys.span(step.saga().as_str(), order.total, order.traceparent.as_deref());
        let work = async {
            self.pass("before", step).await;
            let done = work.await;
            self.pass("after", step).await;
            done
        };
        trace::work(NAME, order.correlation.clone(), order.traceparent.as_deref(), span, work).await
    }

    /// Where sagas can be held, for who wants to see what becomes of one whose process dies there.
    async fn pass(&self, when: &str, step: &This) {
        tokio::select! {
            // In order, so that whoever is not held does not look for the end.
            biased;
            () = self.context.faults().pass(when, step.key()) => {}
            () = self.context.stop().cancelled() => {}
        }
    }

    /// The order is there since it was accepted: its row, its event and this step's in the barrier are one transaction.
    pub(crate) async fn create(&self, step: This) -> Result<(), Failure> {
        let said = async {
            if step.input().user_known {
                tracing::info!("order validated");
            }
        };
        self.within(&step, said).await;
        Ok(())
    }

    /// Makes up for what the user service could not say when the order was accepted.
    pub(crate) async fn validate(&self, step: This) -> Result<(), Failure> {
        let validate = async {
            match self.users.validate(&step.input().user_id).await {
                Known::Yes => {
                    tracing::info!("order validated");
                    Ok(())
                }
                Known::No => {
                    self.journeys.refused(step.saga().as_str(), UNKNOWN_USER);
                    Err(Failure::rejected(UNKNOWN_USER))
                }
                Known::Unknown(error) => Err(not_yet(error)),
            }
        };
        self.within(&step, validate).await
    }

    /// Cancels the order.
    pub(crate) async fn cancel(&self, step: This, reason: &str) -> Result<(), Failure> {
        let cancel = async {
            match self.store.cancel(step.saga().as_str(), reason).await? {
                Decided::Done => Ok(()),
                Decided::Otherwise => Err(Failure::unknown("the order is confirmed")),
            }
        };
        self.within(&step, cancel).await
    }

    /// Has the inventory keep the goods.
    pub(crate) async fn reserve(&self, step: This) -> Result<(), Failure> {
        let items = pieces(&step.input().items);
        let request = Reserve { order_id: step.saga().as_str(), items: &items };
        let ask = self.ask(&self.inventory, "/inventory/reserve", &step, &request);
        let said = self.within(&step, ask).await;
        self.judged(&step, said).map(drop)
    }

    /// Has the inventory let go of them.
    pub(crate) async fn release(&self, step: This) -> Result<(), Failure> {
        self.undo(&self.inventory, "/inventory/release", &step).await
    }

    /// Has the payment service take the money.
    pub(crate) async fn charge(&self, step: This) -> Result<Option<String>, Failure> {
        let order_id = step.saga().as_str();
        let Purchase { user_id, total, .. } = step.input();
        let request = Charge { order_id, user_id, amount: *total };
        let charge = async {
            let mut ask = pin!(self.ask(&self.payments, "/payments/charge", &step, &request));
            let at_once = tokio::select! {
                said = &mut ask => Some(said),
                () = tokio::time::sleep(SOON) => None,
            };
            let said = match at_once {
                Some(said) => said,
                None => {
                    self.wait_for_payment(order_id).await;
                    ask.await
                }
            };
            match &said {
                Said::Done(_) => tracing::info!("payment charged"),
                Said::NotYet(_) | Said::Unknown(_) => self.wait_for_payment(order_id).await,
                Said::No(_) => {}
            }
            said
        };
        let said = self.within(&step, charge).await;
        let reply = self.judged(&step, said)?;
        Ok(reply.json::<Receipt>().ok().map(|receipt| receipt.payment_id))
    }

    /// Has the payment service give it back.
    pub(crate) async fn refund(&self, step: This) -> Result<(), Failure> {
        self.undo(&self.payments, "/payments/refund", &step).await
    }

    /// From here on there is no way back.
    pub(crate) async fn confirm(&self, step: This) -> Result<(), Failure> {
        let confirm = async {
            match self.store.confirm(step.saga().as_str()).await? {
                Decided::Done => Ok(()),
                Decided::Otherwise => Err(Failure::rejected("the order is cancelled")),
            }
        };
        self.within(&step, confirm).await
    }

    /// Has the inventory hand over the goods that it has kept.
    pub(crate) async fn commit(&self, step: This) -> Result<(), Failure> {
        let concerning = Concerning { order_id: step.saga().as_str() };
        let ask = self.ask(&self.inventory, "/inventory/commit", &step, &concerning);
        let said = self.within(&step, ask).await;
        self.judged(&step, said).map(drop)
    }

    async fn ask(&self, service: &Client, path: &str, step: &This, body: &(impl Serialize + Sync)) -> Said {
        said(service.post(path, Some(&step.key().to_string()), body).await)
    }

    /// Whatever keeps a compensation from happening, it counts: who has to undo something for long is to be seen.
    async fn undo(&self, service: &Client, path: &str, step: &This) -> Result<(), Failure> {
        let concerning = Concerning { order_id: step.saga().as_str() };
        match self.within(step, self.ask(service, path, step, &concerning)).await {
            Said::Done(_) => Ok(()),
            Said::NotYet(failure) => Err(Failure::unknown(failure)),
            Said::No(why) | Said::Unknown(why) => Err(Failure::unknown(why)),
        }
    }

    fn judged(&self, step: &This, said: Said) -> Result<Reply, Failure> {
        match said {
            Said::Done(reply) => Ok(reply),
            Said::No(reason) => {
                self.journeys.refused(step.saga().as_str(), &reason);
                Err(Failure::rejected(reason))
            }
            Said::NotYet(failure) => Err(failure),
            Said::Unknown(why) => Err(Failure::unknown(why)),
        }
    }

    async fn wait_for_payment(&self, order: &str) {
        if self.journeys.begins_to_wait(order)
            && let Err(error) = self.store.wait_for_payment(order).await
        {
            tracing::warn!(%error, "it could not be said that an order waits for the payment service");
            self.journeys.did_not_begin_to_wait(order);
        }
    }
}

/// Why an order is cancelled whose user the user service does not know.
pub(crate) const UNKNOWN_USER: &str = "unknown_user";

fn said(answer: Result<Reply, CallError>) -> Said {
    let reply = match answer {
        Ok(reply) => reply,
        Err(error) if error.may_have_happened() => return Said::Unknown(error.to_string()),
        Err(error) => return Said::NotYet(not_yet(error)),
    };
    let reason = || reply.error().filter(|reason| is_reason(reason));
    match reply.status {
        status if status.is_success() => Said::Done(reply),
        StatusCode::PAYMENT_REQUIRED => Said::No(reason().unwrap_or_else(|| "card_declined".to_owned())),
        StatusCode::CONFLICT => Said::No(reason().unwrap_or_else(|| "out_of_stock".to_owned())),
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => {
            tracing::error!(status = %reply.status, error = reply.error(), "a step was not understood");
            Said::No(reason().unwrap_or_else(|| "refused".to_owned()))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
            Said::NotYet(not_yet(reply.into()))
        }
        status => Said::Unknown(format!("it answered {status}")),
    }
}

/// What was not begun. An open breaker says when it is of use to ask again, and a service may: the library waits that long, and each order a
/// little longer than the others. Thousands that asked at the same moment while a service is away would be all that it sees when it is back.
fn not_yet(error: CallError) -> Failure {
    let after = error.retry_after();
    Failure::unstarted(error).retry_after(after)
}

/// Reasons are words for programs, `out_of_stock`; anything else is prose.
fn is_reason(text: &str) -> bool {
    (1..=40).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use bytes_of::reply;

    use super::*;

    mod bytes_of {
        use order_kit::client::Reply;

        pub(super) fn reply(status: u16, body: &'static str) -> Reply {
            Reply {
                status: http::StatusCode::from_u16(status).unwrap(),
                headers: http::HeaderMap::new(),
                body: body.as_bytes().to_vec().into(),
            }
        }
    }

    #[test]
    fn each_answer_means_one_thing() {
        let word = |answer| match said(answer) {
            Said::Done(_) => "done".to_owned(),
            Said::No(reason) => reason,
            Said::NotYet(failure) if failure.is_clean() => "not yet".to_owned(),
            Said::NotYet(_) => "not yet, and something has happened".to_owned(),
            Said::Unknown(_) => "unknown".to_owned(),
        };
        let connection = |sent| CallError::Connection { text: String::new(), sent };
        for (answer, meaning) in [
            (Ok(reply(200, "{}")), "done"),
            (Ok(reply(402, r#"{"error":"card_declined"}"#)), "card_declined"),
            (Ok(reply(402, "no JSON")), "card_declined"),
            (Ok(reply(409, r#"{"error":"out_of_stock"}"#)), "out_of_stock"),
            (Ok(reply(400, r#"{"error":"Malformed JSON"}"#)), "refused"),
            (Ok(reply(401, "{}")), "not yet"),
            (Ok(reply(408, "{}")), "unknown"),
            (Ok(reply(302, "{}")), "unknown"),
            (Err(reply(429, "{}").into()), "not yet"),
            (Err(reply(500, "{}").into()), "unknown"),
            (Err(reply(503, "{}").into()), "unknown"),
            (Err(connection(false)), "not yet"),
            (Err(connection(true)), "unknown"),
            (Err(CallError::Garbled(String::new())), "unknown"),
        ] {
            assert_eq!(word(answer), meaning);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_left_alone_is_asked_again_when_that_is_over() {
        let breaker = mainstay::CircuitBreaker::config();
        let breaker =
            breaker.consecutive_failures(1).open_wait(Duration::from_secs(30), 1.0, Duration::from_secs(30));
        let breaker = breaker.open_wait_jitter(0.0).build().unwrap();
        breaker.try_acquire().unwrap().failure();
        let left_alone = CallError::Refused(breaker.try_acquire().unwrap_err());
        let mut too_many = reply(429, "{}");
        too_many.headers.insert(http::header::RETRY_AFTER, 30.into());
        for error in [left_alone, too_many.into()] {
            let Said::NotYet(failure) = said(Err(error)) else { panic!("nothing was sent") };
            assert!(format!("{failure:?}").contains("30s"), "{failure:?}");
        }
    }
}
