//! Charging and refunding: the provider first, then the ledger.
//!
//! The two cannot change in one transaction. What makes them agree is that both know the saga's key, and that both answer it
//! the same way: a charge that was lost between them is asked for again or taken back, under the same key, and so is a refund.

use mainstay::saga::{
    Direction, Key,
    barrier::{Action, Lookup},
};
use order_kit::{ApiError, Cents, Db, db::DbError};

use crate::{
    ledger::{self, Unwritten},
    provider::Cards,
    wire::{ALREADY_COMPENSATED, Behaviour, Charge, Declined, LookedUp, OrderPayments, Payment, Refunded},
};

/// The most that is charged for one order: ten thousand million.
const MAX_AMOUNT: Cents = Cents(1_000_000_000_000);

/// An event by which a step was asked for: whose queue, and the event's id.
pub(crate) type Seen = (&'static str, String);

/// The service.
#[derive(Clone)]
pub(crate) struct Payments {
    db: Db,
    cards: Cards,
}

/// The answer to a charge.
pub(crate) type Charged = Result<Payment, Declined>;

impl Payments {
    pub(crate) fn new(db: Db, cards: Cards) -> Self {
        Payments { db, cards }
    }

    /// Charges an order, once for the key.
    pub(crate) async fn charge(
        &self,
        key: Key,
        charge: Charge,
        seen: Option<Seen>,
    ) -> Result<Charged, ApiError> {
        check(&charge)?;
        let (order, asked) = (charge.order_id.clone(), key.clone());
        let (known, otherwise) = self
            .db
            .read(async move |tx| {
                let known = tx.looked_up::<Payment>(&asked).await?;
                Ok::<_, DbError>((known, ledger::charged_otherwise(tx, &order, &asked).await?))
            })
            .await?;
        let verdict = match known {
            // Whatever the provider may have taken for this key goes back before anybody hears of it.
            Lookup::NotApplied if otherwise => return self.second_charge(&key).await,
            Lookup::NotApplied => {
                Some(self.cards.charge(&key.to_string(), &charge.user_id, charge.amount).await?)
            }
            // The answer is there, and the ledger gives it.
            Lookup::Applied(_) | Lookup::Rejected(_) | Lookup::Compensated => None,
        };
        let asked = key.clone();
        let written = self
            .db
            .write(async move |tx| {
                note(tx, seen).await?;
                ledger::charge(tx, &key, &charge, verdict).await
            })
            .await;
        match written {
            Ok(Action::Done(answer) | Action::Repeated(answer)) => Ok(answer),
            Ok(Action::Refused) => Err(ApiError::conflict(ALREADY_COMPENSATED)),
            Err(Unwritten::AlreadyCharged) => self.second_charge(&asked).await,
            Err(Unwritten::Other(error)) => Err(error),
        }
    }

    /// An order is charged under one key alone.
    async fn second_charge(&self, key: &Key) -> Result<Charged, ApiError> {
        self.cards.take_back(&key.to_string()).await?;
        Err(ApiError::conflict("already_charged"))
    }

    /// Takes the charge back whose compensation has this key, once; and if there is none, there never will be.
    pub(crate) async fn refund(
        &self,
        key: Key,
        order: String,
        seen: Option<Seen>,
    ) -> Result<Refunded, ApiError> {
        check_id("orderId", &order)?;
        let asked = key.clone();
        let known = self.db.read(async move |tx| tx.looked_up::<Payment>(&asked).await).await?;
        match known {
            Lookup::Compensated => {}
            Lookup::Applied(payment) if payment.order_id != order => {
                return Err(ApiError::unprocessable("This key was used for another order"));
            }
            _ => self.cards.take_back(&key.with_phase(Direction::Do).to_string()).await?,
        }
        let (_, refunded) = self
            .db
            .write(async move |tx| {
                note(tx, seen).await?;
                ledger::refund(tx, &key, &order).await
            })
            .await?;
        Ok(refunded)
    }

    /// What is known of a key.
    pub(crate) async fn looked_up(&self, key: Key) -> Result<LookedUp, ApiError> {
        let known = self.db.read(async move |tx| tx.looked_up::<Payment>(&key).await).await?;
        Ok(match known {
            Lookup::Applied(payment) => LookedUp::Applied { payment },
            Lookup::Rejected(answer) => {
                LookedUp::Rejected { answer: answer.decode().map_err(ApiError::internal)? }
            }
            Lookup::Compensated => LookedUp::Compensated,
            Lookup::NotApplied => LookedUp::NotApplied,
        })
    }

    /// All that was moved for an order.
    pub(crate) async fn of_order(&self, order: String) -> Result<OrderPayments, ApiError> {
        Ok(self.db.read(async move |tx| ledger::of_order(tx, &order).await).await?)
    }

    /// Says how a user's card behaves.
    pub(crate) async fn behave(&self, user: String, behaviour: Behaviour) -> Result<(), ApiError> {
        check_id("userId", &user)?;
        self.cards.behave(user, behaviour).await
    }
}

/// That an event has been handled. If it was before, the step's key knows the answer.
async fn note(tx: &order_kit::Tx<'_>, seen: Option<Seen>) -> Result<(), DbError> {
    if let Some((queue, id)) = seen {
        tx.inbox(queue, &id).await?;
    }
    Ok(())
}

fn check(charge: &Charge) -> Result<(), ApiError> {
    check_id("orderId", &charge.order_id)?;
    check_id("userId", &charge.user_id)?;
    if charge.amount <= Cents(0) || charge.amount > MAX_AMOUNT {
        return Err(ApiError::bad_request(format!("An amount is 0.01 to {MAX_AMOUNT}")));
    }
    Ok(())
}

fn check_id(name: &str, id: &str) -> Result<(), ApiError> {
    if id.is_empty() || id.len() > 200 || id.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!("{name} has 1 to 200 bytes and no control characters")));
    }
    Ok(())
}
