//! The adapter to the provider: the one place where the provider's words are understood. The rest of the service knows of cards, and
//! that one pays or is declined.
//!
//! Every call goes through a circuit breaker, a bulkhead of ten and a timeout, as to any other company, though this one lives in the
//! process. `/_policies` shows them.

mod simulated;

use std::time::Duration;

use mainstay::{BoxedStack, ConfigError, Error};
use order_kit::{ApiError, Cents, Context, Db, client::policies, db::DbError};

use crate::wire::Behaviour;
use simulated::{CaptureRequest, Psp, code, conduct};

/// The tables of the provider.
pub(crate) const MIGRATION: &str = simulated::MIGRATION;

/// How many calls to the provider run at once.
const CONCURRENCY: usize = 10;
/// How many more wait for their turn, for a second at most.
const QUEUE: usize = 100;

/// What came of a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The money was taken.
    Paid,
    /// The card's owner has no such money, or shall not have it: for good.
    Declined,
    /// It was taken back before it was asked for.
    Withdrawn,
    /// The key was used for another charge.
    Other,
}

/// What can go wrong between the two.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("{0}")]
    Away(#[from] DbError),
    #[error("an answer that nobody here understands: {0}")]
    Unknown(String),
}

/// The cards of all users, as the provider sees them.
#[derive(Clone)]
pub(crate) struct Cards {
    psp: Psp,
    charge: BoxedStack<Verdict, Trouble>,
    take_back: BoxedStack<(), Trouble>,
}

impl Cards {
    /// Cards whose provider keeps its tables in `db`, and is waited for no longer than `timeout`.
    pub(crate) fn new(context: &Context, db: &Db, timeout: Duration) -> Result<Self, ConfigError> {
        let name = context.policy_name("card-provider");
        let breaker = policies::build(policies::breaker(name.clone(), context.env()), context.env())?;
        let bulkhead = policies::bulkhead(name.clone(), CONCURRENCY, QUEUE)?;
        context.policies().add(&breaker);
        context.policies().add(&bulkhead);
        let stack = || {
            mainstay::stack(name.clone())
                .circuit_breaker(breaker.clone())
                .bulkhead(bulkhead.clone())
                .timeout(timeout)
                .build()
        };
        Ok(Cards { psp: Psp(db.clone()), charge: stack()?.boxed(), take_back: stack()?.boxed() })
    }

    /// Charges the user's card under a key: the same key is charged once, and has the same verdict each time.
    ///
    /// An error says nothing of whether the money was taken. Asked again, the provider knows.
    pub(crate) async fn charge(&self, key: &str, user: &str, amount: Cents) -> Result<Verdict, ApiError> {
        let request =
            || CaptureRequest { reference: key.to_owned(), shopper: user.to_owned(), minor_units: amount.0 };
        let call = self.charge.call(|| async { understood(&self.psp.capture(request()).await?) });
        call.await.map_err(unavailable)
    }

    /// Takes a charge back; and if there was none under this key, there never will be.
    pub(crate) async fn take_back(&self, key: &str) -> Result<(), ApiError> {
        let call = self.take_back.call(|| async { Ok(self.psp.void(key.to_owned()).await?) });
        call.await.map_err(unavailable)
    }

    /// Says how a user's card behaves from now on.
    pub(crate) async fn behave(&self, user: String, behaviour: Behaviour) -> Result<(), ApiError> {
        let conduct = match behaviour {
            Behaviour::Ok => conduct::APPROVE,
            Behaviour::Decline => conduct::REFUSE,
            Behaviour::Timeout => conduct::STALL,
        };
        Ok(self.psp.instruct(user, conduct).await?)
    }
}

/// What the provider's code means here.
fn understood(answer: &str) -> Result<Verdict, Trouble> {
    match answer {
        code::CAPTURED => Ok(Verdict::Paid),
        code::CARD_DECLINED => Ok(Verdict::Declined),
        code::REFERENCE_VOIDED => Ok(Verdict::Withdrawn),
        code::REFERENCE_REUSED => Ok(Verdict::Other),
        other => Err(Trouble::Unknown(other.to_owned())),
    }
}

fn unavailable(error: Error<Trouble>) -> ApiError {
    tracing::warn!(%error, "the card provider gave no verdict");
    let known = error.refused().and_then(mainstay::Refused::retry_after);
    ApiError::unavailable("Payment temporarily unavailable").after(known)
}

/// What the provider has taken and not given back, for the audit, as a query: each `key` with its `money`.
pub(crate) fn taken() -> String {
    let captured = code::CAPTURED;
    format!(
        "select reference as key, minor_units as money from psp_capture where outcome = '{captured}' and voided = 0"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_providers_words_become_ours_and_unknown_ones_are_no_verdict() {
        assert_eq!(understood("captured").unwrap(), Verdict::Paid);
        assert_eq!(understood("card_declined").unwrap(), Verdict::Declined);
        assert_eq!(understood("reference_voided").unwrap(), Verdict::Withdrawn);
        assert_eq!(understood("reference_reused").unwrap(), Verdict::Other);
        assert!(matches!(understood("maybe_later"), Err(Trouble::Unknown(code)) if code == "maybe_later"));
    }
}
