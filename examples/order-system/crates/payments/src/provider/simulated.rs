//! The provider: a company elsewhere, played here by two tables of its own and transactions of its own. It speaks as such companies do,
//! and what it says is understood in [the adapter](super) alone.
//!
//! It knows a capture by the reference that its customer gives, and answers a reference for the second time as it did for the first. A
//! void gives the money back, and of a reference that was not captured it makes one that never can be.

use std::future::pending;

use order_kit::{Db, db::DbError};

/// The provider's tables.
pub(super) const MIGRATION: &str = "
    create table psp_shopper (shopper text primary key, conduct text not null);
    create table psp_capture (
        reference text primary key,
        shopper text not null,
        minor_units bigint not null,
        outcome text not null,
        voided bigint not null
    );
";

/// What the provider answers when it takes the money, and when it doesn't.
pub(super) mod code {
    pub(in super::super) const CAPTURED: &str = "captured";
    pub(in super::super) const CARD_DECLINED: &str = "card_declined";
    pub(in super::super) const REFERENCE_VOIDED: &str = "reference_voided";
    pub(in super::super) const REFERENCE_REUSED: &str = "reference_reused";
}

/// How the provider treats a shopper, for those who try things out.
pub(super) mod conduct {
    pub(in super::super) const APPROVE: &str = "approve";
    pub(in super::super) const REFUSE: &str = "refuse";
    pub(in super::super) const STALL: &str = "stall";
}

/// A request for money.
#[derive(Debug, Clone)]
pub(super) struct CaptureRequest {
    pub(super) reference: String,
    pub(super) shopper: String,
    pub(super) minor_units: i64,
}

/// The provider.
#[derive(Clone)]
pub(super) struct Psp(pub(super) Db);

impl Psp {
    /// Takes the money, and says so with a code. A shopper who stalls has the money taken and no answer; asked again there is one.
    pub(super) async fn capture(&self, request: CaptureRequest) -> Result<String, DbError> {
        let (code, answered) = self
            .0
            .write(async move |tx| {
                let known =
                    "select outcome, voided, shopper, minor_units from psp_capture where reference = $1";
                // Two requests with one reference: the second waits here, and finds what the first has left.
                let new = tx
                    .execute(
                        "insert into psp_capture (reference, shopper, minor_units, outcome, voided)
                         values ($1, $2, $3, '', 0) on conflict (reference) do nothing",
                        &[(&request.reference).into(), (&request.shopper).into(), request.minor_units.into()],
                    )
                    .await?;
                if new == 0 {
                    let row = tx.first(known, &[(&request.reference).into()]).await?;
                    let row = row.ok_or_else(|| DbError::Statement("a capture is lost".to_owned()))?;
                    let same = (row.text(2)?, row.int(3)?) == (request.shopper, request.minor_units);
                    let code = match (row.int(1)?, same) {
                        (0, true) => row.text(0)?,
                        (0, false) => code::REFERENCE_REUSED.to_owned(),
                        _ => code::REFERENCE_VOIDED.to_owned(),
                    };
                    return Ok::<_, DbError>((code, true));
                }
                let conduct = tx
                    .first("select conduct from psp_shopper where shopper = $1", &[(&request.shopper).into()])
                    .await?
                    .map(|row| row.text(0))
                    .transpose()?;
                let refused = conduct.as_deref() == Some(conduct::REFUSE);
                let outcome = if refused { code::CARD_DECLINED } else { code::CAPTURED };
                tx.execute(
                    "update psp_capture set outcome = $2 where reference = $1",
                    &[(&request.reference).into(), outcome.into()],
                )
                .await?;
                Ok((outcome.to_owned(), conduct.as_deref() != Some(conduct::STALL)))
            })
            .await?;
        if answered { Ok(code) } else { pending().await }
    }

    /// Gives the money of a reference back, once; and if there is none, there never will be.
    pub(super) async fn void(&self, reference: String) -> Result<(), DbError> {
        self.0
            .write(async move |tx| {
                tx.execute(
                    "insert into psp_capture (reference, shopper, minor_units, outcome, voided)
                     values ($1, '', 0, '', 1) on conflict (reference) do update set voided = 1",
                    &[reference.into()],
                )
                .await
                .map(drop)
            })
            .await
    }

    /// Says how a shopper is treated from now on.
    pub(super) async fn instruct(&self, shopper: String, conduct: &'static str) -> Result<(), DbError> {
        self.0
            .write(async move |tx| {
                tx.execute(
                    "insert into psp_shopper (shopper, conduct) values ($1, $2)
                     on conflict (shopper) do update set conduct = excluded.conduct",
                    &[shopper.into(), conduct.into()],
                )
                .await
                .map(drop)
            })
            .await
    }
}
