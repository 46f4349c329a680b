//! Mails, and what sends them.

use futures::future::{FutureExt, LocalBoxFuture};
use order_kit::{
    Tx,
    db::{DbError, Value},
    events::Trouble,
};
use serde::{Deserialize, Serialize};

use crate::{recipients::Recipient, wire::Order};

pub const MIGRATIONS: &[&str] = &["create table sent (
    number {serial},
    order_id text not null,
    kind text not null,
    channel text not null,
    recipient text,
    subject text not null,
    at bigint not null,
    unique (order_id, kind, channel)
)"];

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The order has come.
    Received,
    /// It will be delivered.
    Confirmed,
    /// It will not.
    Cancelled,
}

/// The way it takes. This service sends mails; the others are for mailers that can do more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// By mail.
    Email,
    /// To a telephone.
    Sms,
    /// To an app.
    Push,
}

/// Something to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// The order that it is about.
    pub order: String,
    /// What it says of it.
    pub kind: Kind,
    /// Its way.
    pub channel: Channel,
    /// Where it goes; nowhere if nobody knows the user.
    pub to: Option<String>,
    /// Its first line.
    pub subject: String,
}

/// Sends within the transaction that notes that it was sent: either both happen or neither. One that reaches out of the database
/// writes what is to go there into its outbox.
pub trait Mailer: Send + Sync + 'static {
    /// Sends it, or says why that is impossible now: the event comes again later.
    fn send<'a>(&'a self, tx: &'a Tx<'a>, mail: &'a Mail) -> LocalBoxFuture<'a, Result<(), DbError>>;
}

/// Records mails and sends them nowhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recording;

/// A mail that was sent, or could not be addressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sent {
    /// The order that it is about.
    pub order_id: String,
    /// What it says of it: `received`, `confirmed` or `cancelled`.
    pub kind: String,
    /// `email`.
    pub channel: String,
    /// `sent`, or `undeliverable` if nobody knows the user.
    pub status: String,
    /// The address.
    pub to: Option<String>,
    /// Its first line.
    pub subject: String,
    /// When, as RFC 3339.
    pub at: String,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Received => "received",
            Kind::Confirmed => "confirmed",
            Kind::Cancelled => "cancelled",
        }
    }
}

impl Channel {
    fn word(self) -> &'static str {
        match self {
            Channel::Email => "email",
            Channel::Sms => "sms",
            Channel::Push => "push",
        }
    }
}

impl Mail {
    /// The mail that a user gets about an order.
    pub(crate) fn about(order: &Order, kind: Kind, user: Option<&Recipient>) -> Result<Self, Trouble> {
        let Order { order_id, reason, .. } = order;
        let subject = match (kind, reason) {
            (Kind::Received, _) => {
                format!("Order Confirmation: order {order_id} of {} was received", order.total()?)
            }
            (Kind::Confirmed, _) => format!("Order {order_id} confirmed"),
            (Kind::Cancelled, Some(reason)) => format!("Order {order_id} cancelled: {reason}"),
            (Kind::Cancelled, None) => format!("Order {order_id} cancelled"),
        };
        Ok(Mail {
            order: order_id.clone(),
            kind,
            channel: Channel::Email,
            // A name is somebody's own words and must not end the header.
            to: user.map(|user| match user.name.replace(['"', '\\', '<', '>', '\r', '\n'], " ").trim() {
                "" => user.email.clone(),
                name => format!("\"{name}\" <{}>", user.email),
            }),
            subject,
        })
    }
}

impl Mailer for Recording {
    fn send<'a>(&'a self, tx: &'a Tx<'a>, mail: &'a Mail) -> LocalBoxFuture<'a, Result<(), DbError>> {
        async move {
            // The inbox knows each event; two events that say the same of an order are still one mail.
            tx.execute(
                "insert into sent (order_id, kind, channel, recipient, subject, at) values ($1, $2, $3, $4, $5, $6)
                 on conflict (order_id, kind, channel) do nothing",
                &[
                    Value::from(&mail.order),
                    mail.kind.word().into(),
                    mail.channel.word().into(),
                    mail.to.clone().into(),
                    Value::from(&mail.subject),
                    order_kit::now_ms().into(),
                ],
            )
            .await
            .map(drop)
        }
        .boxed_local()
    }
}

/// What was sent about an order.
pub async fn sent(tx: &Tx<'_>, order: &str) -> Result<Vec<Sent>, DbError> {
    let rows = tx
        .query(
            "select order_id, kind, channel, recipient, subject, at from sent where order_id = $1 order by number",
            &[order.into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            let to = row.maybe_text(3)?;
            Ok(Sent {
                order_id: row.text(0)?,
                kind: row.text(1)?,
                channel: row.text(2)?,
                status: if to.is_some() { "sent" } else { "undeliverable" }.to_owned(),
                to,
                subject: row.text(4)?,
                at: order_kit::iso(row.int(5)?),
            })
        })
        .collect()
}
