//! `saga`: the sagas of orders, asked of order-service. When it does not run, `mainstay-saga` works on its store.

use std::fmt::Write;

use clap::Subcommand;
use order_kit::BoxError;
use serde::Deserialize;
use serde_json::json;

use crate::remote::Remote;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Those that wait for a person.
    List,
    /// Everything that has happened to an order.
    Show {
        /// The order.
        id: String,
    },
    /// Lets one that waits for a person go on.
    Retry {
        /// The order.
        id: String,
    },
}

/// An entry of what order-service lists.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Waiting {
    order_id: String,
    phase: String,
    note: String,
}

/// Does it, and gives what there is to be printed.
///
/// # Errors
///
/// What order-service says, if it is not what was asked for.
pub async fn run(what: &What, remote: &Remote) -> Result<String, BoxError> {
    let mut said = String::new();
    match what {
        What::List => {
            let sagas: Vec<Waiting> = remote.get("orders", "/orders/attention").await?.expect(200)?.read()?;
            for Waiting { order_id, phase, note } in &sagas {
                writeln!(said, "{order_id}  {phase}  {note}")?;
            }
            writeln!(said, "{} wait for a person", sagas.len())?;
        }
        What::Show { id } => {
            let timeline = remote.get("orders", &format!("/orders/{id}/timeline")).await?.expect(200)?.json();
            let steps = timeline["steps"].as_array().or(timeline.as_array()).cloned().unwrap_or_default();
            writeln!(
                said,
                "{:<16} {:<6} {:>8} {:<14} {:>8}  process",
                "step", "way", "attempts", "outcome", "ms"
            )?;
            for step in steps {
                writeln!(
                    said,
                    "{:<16} {:<6} {:>8} {:<14} {:>8}  {}",
                    text(&step["step"]),
                    text(&step["direction"]),
                    text(&step["attempts"]),
                    text(&step["outcome"]),
                    text(&step["ms"]),
                    text(&step["process"])
                )?;
            }
        }
        What::Retry { id } => {
            remote.post("orders", &format!("/orders/{id}/retry"), json!({})).await?.expect(202)?;
            writeln!(said, "{id} is tried again")?;
        }
    }
    Ok(said)
}

fn text(value: &serde_json::Value) -> String {
    value
        .as_str()
        .map_or_else(|| if value.is_null() { "-".to_owned() } else { value.to_string() }, str::to_owned)
}
